"""What a store's library says, and what becomes of it."""

import errno
from pathlib import Path
from typing import Any

import pytest

from orchestration.errors import RequestError
from orchestration.remote.store import Away, Store


class NoCredentialsError(Exception):
    """As libraries name theirs."""


def refusing(url: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, list[str]]:
    """A store of which every write fails so; and the paths that were asked for."""
    store, asked = Store(url, "--home", "give a folder"), []

    def write(place: str, content: bytes) -> None:
        asked.append(place)
        raise error

    monkeypatch.setattr(store.files, "pipe_file", write)
    return store, asked


@pytest.mark.parametrize("error", [OSError("Forbidden: no right to write\nmore"), NoCredentialsError("who are you")])
def test_a_matter_of_rights_is_asked_once(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = refusing("memory://rights", error, monkeypatch)
    with pytest.raises(PermissionError):
        store.put("one", b"")
    assert len(asked) == 1
    with pytest.raises(RequestError, match=r"^--home=memory://rights cannot be used \(it cannot be written to: "):
        store.require_writable()


def test_what_may_pass_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = refusing("memory://away", OSError("connection reset: Forbidden: no"), monkeypatch)
    store.attempts = 3
    with pytest.raises(Away):
        store.put("one", b"")
    assert len(asked) == 3


def test_what_a_full_store_takes_half_of_is_not_left_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, source = Store(f"file://{tmp_path}/store", "--home", "give a folder"), tmp_path / "source"
    store.put("one", b"before")
    source.write_bytes(b"all of it")

    def half(content: bytes, place: str) -> None:
        Path(place).write_bytes(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def put_file(path: str, place: str, **_: Any) -> None:
        half(Path(path).read_bytes(), place)

    monkeypatch.setattr(store.files, "pipe_file", lambda place, content: half(content, place))
    monkeypatch.setattr(store.files, "put_file", put_file)
    for _ in range(3):
        with pytest.raises(Away, match="No space left"):
            store.put("one", b"after it")
        with pytest.raises(Away, match="No space left"):
            store.put_file(source, "two")
    assert [path.name for path in (tmp_path / "store").rglob("*")] == ["one"] and store.read("one") == b"before"
