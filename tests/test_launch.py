"""What training under Ray Train leaves behind, with Ray replaced."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestration.errors import RequestError, RunError
from orchestration.home import Home
from orchestration.training import launch
from orchestration.training.worker import OUTCOME
from tests.tiny import tiny_experiment, tiny_job


@pytest.mark.parametrize("fails", [False, True])
def test_ctrl_c_is_the_callers_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Ray Train takes it and keeps it. Its handler holds the controller, for whose end a campaign would wait."""

    def taken(*_: object) -> None: ...

    def train() -> None:
        signal.signal(signal.SIGINT, taken)
        if fails:
            raise ValueError("no such thing")

    @contextmanager
    def cluster(minimum_cpus: int) -> Iterator[Any]:
        yield SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0})

    monkeypatch.setattr(launch, "ray_cluster", cluster)
    monkeypatch.setattr(launch, "_trainer", lambda *_: SimpleNamespace(fit=train))
    job, before = tiny_job(tmp_path / "job", tiny_experiment("xmcgan")), signal.getsignal(signal.SIGINT)
    if fails:
        with pytest.raises(RunError, match="no such thing"):
            launch.fit(job)
    else:
        launch.fit(job)
    assert signal.getsignal(signal.SIGINT) is before is not taken


def test_what_has_finished_needs_no_cluster(tmp_path: Path, closed_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed_uri.removeprefix("http://"))
    monkeypatch.setattr(launch, "Preparation", lambda *_: SimpleNamespace(everything=lambda: None))
    monkeypatch.setattr(launch, "_run", lambda *told: told[4])
    home, experiment, tracker = Home(tmp_path), tiny_experiment("xmcgan"), SimpleNamespace()
    folder = home.runs / experiment.run_name
    folder.mkdir(parents=True)
    (folder / OUTCOME).write_text('{"status": "diverged", "reason": "nan", "images_seen": 8}')
    with pytest.raises(RequestError, match="no Ray cluster answers"):
        launch.train(experiment, home, tracker)  # type: ignore[arg-type]
    (folder / OUTCOME).write_text('{"status": "finished", "reason": "", "images_seen": 8}')
    assert launch.train(experiment, home, tracker) == folder  # type: ignore[arg-type, comparison-overlap]
