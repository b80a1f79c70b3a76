"""Fixtures that more than one test module uses."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that only development machines have; a test that needs it is skipped elsewhere."""
    folder = Path(os.environ.get("T2I_SHARED") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder} (T2I_SHARED names another)")
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state folder for every test that trains: its stages are computed once."""
    return tmp_path_factory.mktemp("home")
