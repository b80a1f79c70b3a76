"""Fixtures that more than one test module uses."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.tracking import Tracker


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that only development machines have; a test that needs it is skipped elsewhere."""
    folder = Path(os.environ.get("T2I_SHARED") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder} (T2I_SHARED names another)")
    return folder


@pytest.fixture(scope="module")
def all_cores() -> Iterator[None]:
    """Two threads for modules that train for long, unless tests run beside these: they would fight for the cores."""
    import torch

    from orchestration.training.worker import share_of_cores

    before = torch.get_num_threads()
    torch.set_num_threads(min(2, share_of_cores(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state folder for every test that trains: its stages are computed once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables: making them takes longer than any test here."""
    tracker = Tracker(tmp_path_factory.mktemp("template"))
    tracker.run_summaries("none")
    return tracker.home / "mlflow.db"


@pytest.fixture
def tracker(migrated: Path, tmp_path: Path) -> Tracker:
    home = tmp_path / "a home"
    home.mkdir()
    shutil.copy(migrated, home)
    return Tracker(home)


@pytest.fixture(scope="module")
def shared_tracker(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    home = tmp_path_factory.mktemp("shared")
    shutil.copy(migrated, home)
    return Tracker(home)


@pytest.fixture
def closed_uri() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}"
