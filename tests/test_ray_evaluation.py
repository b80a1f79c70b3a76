"""Judging on a real Ray cluster: 1, 2 and 3 workers give the same figures."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestration.cluster import ray_cluster
from orchestration.evaluation.evaluate import Evaluation, Request
from orchestration.evaluation.record import MetricRecord
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.recipes import get_recipe
from orchestration.stages import read_records

from .evaluate_drill import SMALL_JUDGE
from .tiny_inputs import TINY_DIM, write_tiny_bert

pytestmark = pytest.mark.ray_cluster
SCENES = "scenes:size=32,things=3,colours=3,backgrounds=2,objects=1,train=16,val=16,test=64"
SAMPLES = 1250  # 13 portions: enough for workers, and the last is not whole


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster(minimum_cpus=3) as ray:
        yield ray


def test_the_number_of_workers_changes_no_figure(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestration.evaluation import scenes_net

    for name, value in SMALL_JUDGE.items():
        monkeypatch.setattr(scenes_net, name, value)
    home = Home(tmp_path)
    experiment = get_recipe("xmcgan_scenes32").replace(
        {
            "data.source": SCENES,
            "text.name": str(write_tiny_bert(tmp_path / "bert")),
            "model.text_dim": TINY_DIM,
            "model.channels": 2,
            "model.noise_dim": 4,
            "model.sentence_dim": 4,
        }
    )
    encoder = Preparation(experiment, home).encoder
    found: list[list[MetricRecord]] = []
    for workers, threads in ((1, 1), (1, 2), (2, 1), (3, 1)):
        torch.set_num_threads(threads)
        for drawn in home.stages.glob("drawn-*"):
            shutil.rmtree(drawn)
        evaluation = Evaluation(experiment, home, Request(samples=SAMPLES, workers=workers), encoder)
        found.append(evaluation.untrained())
    torch.set_num_threads(1)
    first = found[0]
    assert {record.metric for record in first} >= {"fid", "kid", "coverage", "accuracy", "duplicates"}
    for records in found[1:]:
        for one, other in zip(first, records, strict=True):
            assert one.figure == other.figure
            assert (other.value, other.low, other.high) == pytest.approx((one.value, one.low, one.high), rel=1e-9)
    # Each time pictures were drawn anew, for two plans; the real ones were looked at once.
    stages = [line["stage"] for line in read_records(home.stages)]
    assert stages.count("drawn") == 8 and stages.count("real") == 1
