"""Segments carried out by Ray Tune on one real cluster: groups come and go, processes die, nothing is left."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestration.campaigns.execution import SLOT, STORAGE, Given, execute
from orchestration.campaigns.ledger import Ledger, Segment, SegmentState
from orchestration.campaigns.leftovers import OF_THE_CLUSTER
from orchestration.campaigns.settings import CampaignSettings, Objective
from orchestration.cluster import ray_cluster
from orchestration.errors import RequestError, RunError
from orchestration.tracking import Tracker
from orchestration.training.recorder import read_metrics
from orchestration.training.state import checkpoint_folders, newest_checkpoint, open_checkpoint
from orchestration.training.worker import CHECKPOINTS, train_worker
from search_spaces.space import Parameter, Space, Value
from tests.campaign_drill import Scripted, ask_to_die, mortal_segment
from tests.tiny import CPU, tiny_experiment, tiny_job, tiny_trainer

pytestmark = pytest.mark.ray_cluster

CHANGES: dict[str, object] = {"model__image_losses": "discriminator"}  # no pretrained weights
STEP = tiny_trainer(tiny_experiment("xmcgan", **CHANGES)).images_per_iteration / 1000
RUNG = 12 * STEP
PATIENCE_S = 15.0
SPACE = Space(
    system="xmcgan",
    parameters={
        "tau": Parameter(field="model.tau", kind="float", low=0.01, high=1.0, paper=0.1, source="none", stage="gan"),
        "workers": Parameter(
            field="resources.workers", kind="choice", values=(1, 2), paper=1, source="none", stage="gan"
        ),
    },
    default=("tau",),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster(4, {SLOT: 2}) as ray:
        yield ray


@pytest.fixture
def given(tmp_path: Path, tracker: Tracker) -> Given:
    """A campaign of trials of two rungs, a checkpoint at each step."""
    base = tiny_experiment(
        "xmcgan",
        **CHANGES,
        training__kimg=2 * RUNG,
        training__checkpoint_kimg=STEP,
        training__keep_checkpoints=30,
        training__log_kimg=RUNG,
        training__picture_kimg=2 * RUNG,
    )
    folder = tmp_path / "campaign"
    folder.mkdir()
    parent = tracker.start_run("xmcgan", "campaign", "the campaign", {})
    return Given(base, SPACE, tiny_job(tmp_path / "job", base).prepared, folder, parent, tracker.home, None)


def settings(at_once: int = 2) -> CampaignSettings:
    objective = Objective(figure="validation/fid/fixed")
    return CampaignSettings(
        trials=9, concurrent=at_once, budget_kimg=2 * RUNG, grace_kimg=RUNG, objectives=(objective,)
    )


def segment(trial: int, step: int, tau: float = 0.1, workers: int = 1, donor: int | None = None) -> Segment:
    values: dict[str, Value] = {"tau": tau, "workers": workers}
    return Segment(trial, step, RUNG * (step + 1), values, donor)


def left_on(ray: Any) -> dict[str, list[str]]:
    """What lives on the cluster though nothing runs. What is free is known there a little later than what has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while (left := _left_on(ray)) != NOTHING and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def _left_on(ray: Any) -> dict[str, list[str]]:
    # Ray keeps one coordinator for all that ever trains on a cluster.
    from ray.util.state import list_actors, list_placement_groups

    address = ray.get_runtime_context().gcs_address
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    return {
        "actors": sorted(
            {one.class_name for one in list_actors(address=address, filters=[("state", "!=", "DEAD")], limit=1000)}
            - OF_THE_CLUSTER
        ),
        "groups": [one.name for one in list_placement_groups(address=address, filters=[("state", "!=", "REMOVED")])],
        "folders": [path.name for path in session.glob("artifacts/*/*")],
        "slots": [] if ray.available_resources().get(SLOT) == 2 else ["a slot is held"],
        "cores": [] if ray.available_resources().get("CPU") == 4 else ["a core is held"],
    }


NOTHING: dict[str, list[str]] = {"actors": [], "groups": [], "folders": [], "slots": [], "cores": []}


def test_trials_of_one_and_two_workers_that_end_early_die_and_copy(
    cluster: Any, given: Given, tracker: Tracker, tmp_path: Path
) -> None:
    """Two groups in a row have only their first segment, the second one's process is killed; of two others one is
    killed and one copies it. All slots and workers come back, and every checkpoint is what it would have been."""
    ledger = Ledger.create(given.folder, {})
    conductor = Scripted(
        ledger,
        [
            segment(0, 0, workers=2),
            segment(1, 0),
            segment(3, 0, workers=2),
            segment(2, 0, tau=0.5),
            segment(1, 1),
            segment(2, 1, tau=0.7, donor=1),
        ],
    )
    wishes = [ask_to_die(given.folder, 3, 0), ask_to_die(given.folder, 1, 1)]
    seen: list[tuple[str, int, int]] = []
    execute(conductor, given, settings(), lambda *said: seen.append(said), work=mortal_segment)

    assert not any(wish.exists() for wish in wishes)
    ended = {(one.trial, one.step): one for one in ledger.segments()}
    assert {place: (one.state, one.attempts) for place, one in ended.items()} == {
        (0, 0): (SegmentState.REACHED, 1),
        (1, 0): (SegmentState.REACHED, 1),
        (1, 1): (SegmentState.REACHED, 2),
        (2, 0): (SegmentState.REACHED, 1),
        (2, 1): (SegmentState.REACHED, 1),
        (3, 0): (SegmentState.REACHED, 2),
    }, conductor.told
    assert seen[-1] == ("segments", 8, 8) and conductor.done
    for one in ended.values():
        assert open_checkpoint(given.folder / (one.checkpoint or "")).digest == one.digest

    assert ended[3, 0].digest == ended[0, 0].digest
    torch.set_num_threads(1)
    alone = tiny_job(tmp_path / "alone", given.experiment(segment(1, 1)))
    train_worker(alone, lambda _: None, CPU)
    undisturbed = newest_checkpoint(Path(alone.folder) / CHECKPOINTS)
    assert undisturbed is not None and undisturbed.digest == ended[1, 1].digest
    copied = [open_checkpoint(path) for path in checkpoint_folders(given.trial_folder(2) / CHECKPOINTS)]
    assert copied[0].digest == ended[1, 0].digest != ended[2, 0].digest
    assert copied[-1].digest == ended[2, 1].digest != ended[1, 1].digest
    values = [line["metrics"] for line in read_metrics(given.trial_folder(2)) if "values/tau" in line["metrics"]]
    assert values == [{"values/tau": 0.5, "values/workers": 1.0}, {"values/tau": 0.7, "values/workers": 1.0}]

    runs = [run for run in tracker.run_summaries("xmcgan") if run.parent == given.parent]
    assert sorted(run.name for run in runs) == [f"trial-000{number}" for number in range(4)]
    assert {run.run_id for run in runs} == {trial.run_id for trial in ledger.trials()}
    assert left_on(cluster) == NOTHING
    assert not [*given.folder.glob(f"{STORAGE}*"), *given.folder.glob("trials/*/.ray-*")]


def test_a_segment_that_fails_for_good_is_told_and_the_others_go_on(cluster: Any, given: Given) -> None:
    ledger = Ledger.create(given.folder, {})
    conductor = Scripted(ledger, [segment(0, 0, tau=-1.0), segment(1, 0)], failures=1)
    (given.folder / f"{STORAGE}ffffffff-of-a-driver-that-died").mkdir()
    execute(conductor, given, settings())
    first, second = ledger.segments()
    assert (first.state, first.attempts, second.state) == (SegmentState.FAILED, 2, SegmentState.REACHED)
    assert "tau" in first.reason and "\n" not in first.reason
    assert left_on(cluster) == NOTHING and not list(given.folder.glob(f"{STORAGE}*"))


def test_more_trials_at_a_time_than_slots_are_refused(cluster: Any, given: Given) -> None:
    conductor = Scripted(Ledger.create(given.folder, {}), [segment(0, 0)])
    with pytest.raises(
        RequestError, match="3 trials at a time need 3 units .* the cluster has 2: start each node that trains with"
    ):
        execute(conductor, given, settings(3))
    assert conductor.told == []


def test_a_ledger_that_cannot_be_written_ends_it(cluster: Any, given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    conductor = Scripted(Ledger.create(given.folder, {}), [segment(0, 0), segment(1, 0)])

    def full(*_: object) -> None:
        raise RunError("the ledger cannot be written")

    monkeypatch.setattr(conductor, "ended", full)
    with pytest.raises(RunError, match=r"^the ledger cannot be written$"):
        execute(conductor, given, settings(1))
    assert [word for word, *_ in conductor.told] == ["begun"]
    assert left_on(cluster) == NOTHING
