"""A campaign on two nodes that share no folder: PostgreSQL behind MLflow and Optuna, S3 behind the home."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from orchestration.tracking import Tracker
from orchestration.training.state import open_checkpoint

from .cli_support import T2i, runner
from .cluster_support import Cluster, two_nodes
from .ray_support import assignments
from .storage_support import Beside, beside

pytestmark = pytest.mark.ray_cluster
NODES = ("head", "worker")
SEARCH = ["--trials", "2", "--kimg", "0.1", "--parameter", "tau", "--range", "tau=0.05:0.2", "--scheduler", "none"]


@pytest.fixture(scope="module")
def storage() -> Iterator[Beside]:
    with beside() as found:
        yield found


@dataclass(frozen=True, slots=True)
class Apart:
    """Two nodes, and the folder that their working copies are in."""

    nodes: Cluster
    copies: Path


@pytest.fixture(scope="module")
def cluster(storage: Beside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    folder = tmp_path_factory.mktemp("cluster")
    caches = {name: {"T2I_CACHE": str(folder / name)} for name in ("head", "worker")}
    with two_nodes(
        folder, environment={**storage.environment, **caches["head"]}, worker_environment=caches["worker"]
    ) as running:
        yield Apart(running, folder)


@pytest.fixture
def t2i(
    cluster: Apart,
    storage: Beside,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> T2i:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**storage.environment, "T2I_CACHE": str(tmp_path / "mine")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.nodes.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.nodes.token_file))
    return runner(tmp_path / "home", tmp_path / "here", monkeypatch, capsys)


def on_one_machine(*words: str) -> Any:
    """What a command says that knows of no cluster; a process of its own, since Ray keeps a process's first token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "T2I_"))}
    ended = subprocess.run(
        [sys.executable, "-m", "orchestration", *words], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_campaign_is_the_same_as_on_one_machine(
    storage: Beside, cluster: Apart, t2i: T2i, home: Path, tmp_path: Path
) -> None:
    """Its ledger, its records in MLflow and Optuna, its report and its champion; seen from a third machine."""
    tiny = assignments(training__kimg=0.1, evaluation__protocol="auto", evaluation__every_kimg=0.1)
    words = ["tune", "xmcgan_scenes32", *SEARCH, *tiny, "--name", "apart"]
    far = ["--home", storage.home, "--mlflow-uri", storage.mlflow]
    found = t2i("submit", "--json", "--", *words, *far, "--storage", storage.optuna, "--json").json["result"]
    assert found["trials"] == 2
    # Each node has a copy of its own, and each trained.
    trials = [sorted((cluster.copies / node).glob("*/campaigns/apart/trials/*/experiment.json")) for node in NODES]
    assert all(trials), trials
    mine = on_one_machine(*words, "--home", str(home), "--json")
    # The judge is trained where the command runs: with another number of threads its figures differ a little.
    assert found["trials"] == mine["trials"]
    assert found["best_objective"] == pytest.approx(mine["best_objective"], rel=0.05)

    tracker = Tracker(tmp_path / "looks", storage.mlflow)
    runs = {run.name: run for run in tracker.run_summaries("xmcgan")}
    assert sorted(name for name in runs if name.startswith("trial-")) == ["trial-0000", "trial-0001"]
    study = optuna.load_study(study_name=None, storage=storage.optuna)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert study.best_value == found["best_objective"]

    page = tmp_path / "report.html"
    reported = t2i("report", "apart", *far, "--out", str(page))
    assert reported.code == 0 and "trial-0001" in page.read_text(), reported.err
    promoted = t2i("promote", "apart/trial-0000", *far, "--json").json
    champion = tracker.champion("xmcgan")
    assert champion is not None and champion.version == promoted["version"]
    assert champion.source.startswith(("s3://", "mlflow-artifacts:")), "its files are in the store"
    picture = tracker.fetch(champion, tmp_path / "fetched")
    assert open_checkpoint(picture).digest == champion.tags["t2i.checkpoint_digest"]
