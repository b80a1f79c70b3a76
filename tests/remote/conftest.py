"""Two machines with a home in one store, of each kind of file system."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.home import Home
from orchestration.remote import copies, following, store
from tests.remote_support import (
    machine,
)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is waited for; stores are opened anew for each test."""
    monkeypatch.setattr(store, "FIRST_S", 0.0)
    monkeypatch.setattr(copies, "PATIENCE_S", 0.0)
    monkeypatch.setattr(following, "RETRY_S", 0.01)
    monkeypatch.delenv("T2I_STAGES_REMOTE", raising=False)
    copies.open_store.cache_clear()
    yield
    copies.open_store.cache_clear()


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket" if request.param == "file" else f"memory://{tmp_path.name}"


@pytest.fixture
def first(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return machine(url, tmp_path / "first", monkeypatch)


@pytest.fixture
def second(first: Home, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return machine(url, tmp_path / "second", monkeypatch)
