"""Content-addressed results: computed once, by whoever is first, and never half."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.errors import RequestError, RunError
from orchestration.stages import (
    HASH_LIMIT,
    MANIFEST,
    Progress,
    Stage,
    ensure,
    is_complete,
    short_hash,
    write_atomically,
)

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0


class Work:
    """A stage's run that counts itself and writes two files, one of them in a folder."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path, progress: Progress) -> None:
        self.times += 1
        assert list(folder.iterdir()) == []
        progress("working", 1, 1)
        (folder / "result.txt").write_text("what was computed")
        (folder / "inner").mkdir()
        (folder / "inner" / "more.bin").write_bytes(bytes(1000))


def stage_of(run: Callable[[Path, Progress], None], **changes: Any) -> Stage:
    values: dict[str, Any] = {"name": "work", "version": 1, "settings": {"a": 1}, "inputs": {"data": "x"}}
    return Stage(**(values | changes), run=run)


def test_computed_once(tmp_path: Path) -> None:
    work, told = Work(), list[tuple[str, int, int]]()
    stage = stage_of(work)
    folder = ensure(stage, tmp_path, lambda *report: told.append(report))
    assert folder == tmp_path / f"work-{stage.key}"
    assert told == [("working", 1, 1)]
    # Another object that describes the same thing finds the same result.
    assert ensure(stage_of(Work()), tmp_path) == folder == ensure(stage, tmp_path)
    assert work.times == 1
    assert is_complete(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["files"].keys() == {"result.txt", "inner/more.bin"}
    assert manifest["settings"] == {"a": 1} and manifest["inputs"] == {"data": "x"}
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == [folder.name]


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"version": 2}, {"settings": {"a": 2}}, {"settings": {"b": 1}}, {"inputs": {"data": "y"}}],
    ids=str,
)
def test_the_key_changes_with_all_that_matters(change: dict[str, Any], tmp_path: Path) -> None:
    work = Work()
    first, second = stage_of(work), stage_of(work, **change)
    assert first.key != second.key and len(first.key) == 16
    assert ensure(first, tmp_path) != ensure(second, tmp_path)
    assert work.times == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(value=st.dictionaries(st.text(max_size=3), json_values, max_size=4), other=json_values)
def test_a_hash_depends_on_the_value_alone(value: dict[str, Any], other: Any) -> None:
    """Not on the order of keys; and two values have two hashes."""
    assert short_hash(value) == short_hash(dict(reversed(value.items())))
    same = json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (short_hash(value) == short_hash(other)) == same


def cut_short(folder: Path) -> None:
    (folder / "result.txt").write_text("what was")


def changed(folder: Path) -> None:
    (folder / "result.txt").write_text("what was c0mputed")


def removed(folder: Path) -> None:
    (folder / "inner" / "more.bin").unlink()


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def manifest_of(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / MANIFEST).write_text(content)

    write.__name__ = f"manifest {content!r}"
    return write


DAMAGES = [
    cut_short,
    changed,
    removed,
    no_manifest,
    *map(manifest_of, ["", "{", "[]", "null", "{}", '{"files": 3}', '{"files": {"result.txt": 1}}', '{"files": [1]}']),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_result_is_computed_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    work = Work()
    folder = ensure(stage_of(work), tmp_path)
    damage(folder)
    assert not is_complete(folder)
    assert ensure(stage_of(work), tmp_path) == folder
    assert work.times == 2 and is_complete(folder)
    assert (folder / "result.txt").read_text() == "what was computed"


def test_a_large_file_is_checked_by_size(tmp_path: Path) -> None:
    def write(folder: Path, _: Progress) -> None:
        with (folder / "large").open("wb") as file:
            file.truncate(HASH_LIMIT + 1)

    folder = ensure(stage_of(write), tmp_path)
    assert is_complete(folder)
    with (folder / "large").open("r+b") as file:
        file.truncate(HASH_LIMIT)
    assert not is_complete(folder)


@pytest.mark.parametrize("kind", [RequestError, RunError, ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(kind: type[BaseException], tmp_path: Path) -> None:
    def fail(folder: Path, _: Progress) -> None:
        (folder / "half").write_text("half")
        raise kind("why")

    with pytest.raises(kind, match="why"):
        ensure(stage_of(fail), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []
    work = Work()
    assert is_complete(ensure(stage_of(work), tmp_path))


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    def fill(folder: Path, _: Progress) -> None:
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"stage work .*No space left.*free some disk") as caught:
        ensure(stage_of(fill), tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "first")
    write_atomically(path, b"second")
    assert path.read_text() == "second"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "third")
    assert [found.name for found in tmp_path.iterdir()] == ["file"] and path.read_text() == "second"


# A process that needs a stage: it says that it runs it, then waits until it may end, if it is told to.
NEEDS_A_STAGE = """
import sys, time
from pathlib import Path
from orchestration.stages import Stage, ensure
store, name, may_end = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])

def run(folder, progress):
    (folder / "result.txt").write_text("from " + name)
    with (store.parent / "runs.txt").open("a") as file:
        file.write(name + "\\n")
    while not may_end.exists():
        time.sleep(0.01)

(store.parent / (name + ".started")).touch()
print(ensure(Stage("work", 1, {}, {}, run), store))
"""


def start(store: Path, name: str, may_end: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", NEEDS_A_STAGE, str(store), name, str(may_end)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def runs(parent: Path) -> list[str]:
    file = parent / "runs.txt"
    return file.read_text().split() if file.exists() else []


def test_two_processes_that_need_it_at_once_run_it_once(tmp_path: Path) -> None:
    store, may_end = tmp_path / "store", tmp_path / "may-end"
    processes = [start(store, name, may_end) for name in ("one", "two", "three")]
    try:
        wait_until(lambda: all((tmp_path / f"{name}.started").exists() for name in ("one", "two", "three")))
        wait_until(lambda: len(runs(tmp_path)) == 1)
        time.sleep(0.2)
        assert len(runs(tmp_path)) == 1
        may_end.touch()
        answers = [process.communicate(timeout=PATIENCE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    [folder] = {Path(out.strip()) for out, _ in answers}
    [name] = runs(tmp_path)
    assert is_complete(folder) and (folder / "result.txt").read_text() == f"from {name}"


def test_when_the_holder_is_killed_the_one_who_waits_takes_over(tmp_path: Path) -> None:
    store = tmp_path / "store"
    holder = start(store, "holder", tmp_path / "never")
    waiter = None
    try:
        wait_until(lambda: runs(tmp_path) == ["holder"])
        may_end = tmp_path / "may-end"
        may_end.touch()
        waiter = start(store, "waiter", may_end)
        wait_until(lambda: (tmp_path / "waiter.started").exists())
        time.sleep(0.2)
        assert waiter.poll() is None and runs(tmp_path) == ["holder"]
        os.kill(holder.pid, signal.SIGKILL)
        out, err = waiter.communicate(timeout=PATIENCE_S)
    finally:
        for process in (holder, waiter):
            if process is not None:
                process.kill()
                process.communicate()
    assert waiter.returncode == 0, err
    folder = Path(out.strip())
    assert is_complete(folder) and (folder / "result.txt").read_text() == "from waiter"
    assert runs(tmp_path) == ["holder", "waiter"]
    # Nothing of the killed one is left.
    assert [path.name for path in store.iterdir() if not path.name.endswith(".lock")] == [folder.name]


def test_what_other_stages_are_writing_is_left_alone(tmp_path: Path) -> None:
    """Only what belongs to the very same key is known to be abandoned."""
    other = stage_of(Work(), settings={"a": 2})
    writing = tmp_path / f".{other.name}-{other.key}-abcdef"
    writing.mkdir(parents=True)
    folder = ensure(stage_of(Work()), tmp_path)
    assert writing.is_dir()
    shutil.rmtree(folder)
    ensure(stage_of(Work()), tmp_path)
    assert writing.is_dir()
    ensure(other, tmp_path)
    assert not writing.exists()
