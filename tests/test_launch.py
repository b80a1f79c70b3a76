"""What training under Ray Train leaves behind, with Ray replaced."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestration.errors import RunError
from orchestration.training import launch
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
