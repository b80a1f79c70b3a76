"""Challenger and champion judged for real, on tiny nets whose pictures differ as they are told to."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from orchestration.champion_contest import Contest, judge_challenger, judge_champion
from orchestration.champions import Promotion, promote
from orchestration.config import Experiment
from orchestration.errors import RequestError
from orchestration.evaluation import scenes_net
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.stages import quiet, read_records
from orchestration.tracking import Tracker
from orchestration.training.state import Checkpoint, Provenance, initial_state, open_checkpoint, save_checkpoint
from tests.evaluate_drill import SMALL_JUDGE, small_experiment

CPU = torch.device("cpu")
SCENES = "scenes:size=32,things=3,colours=3,backgrounds=2,objects=1,train=96,val=16,test=96"
CONTEST = Contest(samples=64, seeds=2, workers=1)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Easy scenes need a small judge."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL_JUDGE.items():
            patch.setattr(scenes_net, name, value)
        yield


@pytest.fixture(scope="module")
def tracker(shared_tracker: Tracker) -> Tracker:
    return shared_tracker


@pytest.fixture(scope="module")
def home(tracker: Tracker) -> Home:
    return Home(tracker.home)


@pytest.fixture(scope="module")
def experiment(home: Home) -> Experiment:
    return small_experiment(home, SCENES)


@pytest.fixture(scope="module")
def provenance(home: Home, experiment: Experiment) -> Provenance:
    preparation = Preparation(experiment, home)
    return Provenance(preparation.dataset("train").digest, preparation.encoder.digest)


def run(home: Home, experiment: Experiment, provenance: Provenance, name: str, louder: float) -> Checkpoint:
    """Of nets that nobody trained, all of whose weights are so many times what they were."""
    state = initial_state(experiment, CPU)
    with torch.no_grad():
        for net in (*state.nets.values(), *state.averages.values()):
            for weights in net.parameters():
                weights.mul_(louder)
    return open_checkpoint(save_checkpoint(state, experiment, provenance, home.runs / name / "checkpoints"))


@pytest.fixture(scope="module")
def plain(home: Home, experiment: Experiment, provenance: Provenance) -> Checkpoint:
    return run(home, experiment, provenance, "plain", 1.0)


@pytest.fixture(scope="module")
def alike(home: Home, experiment: Experiment, provenance: Provenance) -> Checkpoint:
    return run(home, experiment, provenance, "alike", 1.0001)


@pytest.fixture(scope="module")
def flat(home: Home, experiment: Experiment, provenance: Provenance) -> Checkpoint:
    """It draws one grey picture for every caption."""
    return run(home, experiment, provenance, "flat", 0.0)


def challenge(tracker: Tracker, home: Home, checkpoint: Checkpoint, contest: Contest = CONTEST) -> Promotion:
    return promote(tracker, home, checkpoint, checkpoint.folder.parent.parent, contest)


def test_worse_alike_and_better(
    tracker: Tracker, home: Home, plain: Checkpoint, alike: Checkpoint, flat: Checkpoint
) -> None:
    """Whichever of two judging says is better: as challenger it wins, the other is refused, one alike does neither."""
    (one,), (other,) = (
        judge_challenger(tracker, home, checkpoint, checkpoint.folder.parent.parent, single, quiet)
        for single in [replace(CONTEST, seeds=1)]
        for checkpoint in (plain, flat)
    )
    assert one.drawn == other.drawn == 64 and one.judged.split == "test"
    worse, best = (plain, flat) if one.value > other.value else (flat, plain)
    assert not challenge(tracker, home, worse).refused
    won = challenge(tracker, home, best)
    assert not won.refused and won.comparison is not None
    assert won.comparison.paired and won.comparison.gain > won.comparison.noise > 0
    lost = challenge(tracker, home, worse)
    assert lost.refused and lost.comparison is not None
    assert lost.comparison.gain == -won.comparison.gain and lost.comparison.noise == won.comparison.noise
    forced = challenge(tracker, home, plain, replace(CONTEST, force=True))
    assert forced.champion.tags["t2i.checkpoint_digest"] == plain.digest
    near = challenge(tracker, home, alike)
    assert near.refused and "is within noise" in near.sentence


def test_pictures_are_drawn_once(tracker: Tracker, home: Home, plain: Checkpoint) -> None:
    folder = plain.folder.parent.parent
    first = judge_challenger(tracker, home, plain, folder, CONTEST, quiet)
    before = len(read_records(home.stages))
    again = judge_champion(home, plain, "xmcgan version 1", plain.experiment, CONTEST, quiet)
    assert len(read_records(home.stages)) == before
    assert [record.value for record in again] == [record.value for record in first]
    assert {record.judged.run for record in again} == {"xmcgan version 1"}
    assert list((folder / "evaluations").glob("test-*.jsonl"))


def test_a_champion_that_is_judged_by_another_net(tracker: Tracker, home: Home, plain: Checkpoint) -> None:
    """Its own experiment may mean another net by plain "fid": the challenger's counts."""
    (found,) = judge_champion(
        home, plain, "champion", plain.experiment, Contest("kid/scenes-net", 32, 1, workers=1), quiet
    )
    assert found.figure == "kid/scenes-net" and found.drawn == 32


@pytest.mark.parametrize("figure", ["precision", "recall/scenes-net", "accuracy/thing", "is/scenes-net", "duplicates"])
def test_other_figures_decide_too(tracker: Tracker, home: Home, plain: Checkpoint, figure: str) -> None:
    contest = Contest(figure, 32, 1, workers=1)
    (found,) = judge_challenger(tracker, home, plain, plain.folder.parent.parent, contest, quiet)
    name = figure.partition("/")[0]
    assert found.metric == {"is": "inception_score"}.get(name, name)


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        ("accuracy", "several figures: name one of accuracy/"),
        ("fid/nonsense", "no feature net is called 'nonsense'"),
        ("r_precision", "r_precision/dual"),
    ],
)
def test_figures_that_do_not(tracker: Tracker, home: Home, plain: Checkpoint, figure: str, sentence: str) -> None:
    contest = Contest(figure, 32, 1, workers=1)
    with pytest.raises(RequestError, match=sentence):
        judge_challenger(tracker, home, plain, plain.folder.parent.parent, contest, quiet)


def test_parts_draw_nothing(tracker: Tracker, home: Home, monkeypatch: pytest.MonkeyPatch, plain: Checkpoint) -> None:
    monkeypatch.setattr(Experiment, "draws", False)
    with pytest.raises(RequestError, match="xmcgan draws no pictures that could be judged"):
        judge_challenger(tracker, home, plain, plain.folder, CONTEST, quiet)
