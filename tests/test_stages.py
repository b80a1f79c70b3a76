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
    DamagedStage,
    Progress,
    Stage,
    check_stage,
    ensure,
    is_complete,
    is_running,
    read_records,
    short_hash,
    write_atomically,
)
from tests.prepared_support import make_dataset, small_shards

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


def left_in(store: Path) -> list[str]:
    """What is in a store, without locks and records."""
    return sorted(path.name for path in store.iterdir() if path.suffix not in (".lock", ".jsonl"))


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
    assert left_in(tmp_path) == [folder.name]
    [record] = read_records(tmp_path)
    assert (record["stage"], record["key"], record["process"]) == ("work", stage.key, os.getpid())


def test_a_record_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []
    ensure(stage_of(Work()), tmp_path)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"stage": "wo')
    assert [record["stage"] for record in read_records(tmp_path)] == ["work"]


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


def replaced_by_a_folder(folder: Path) -> None:
    (folder / "result.txt").unlink()
    (folder / "result.txt").mkdir()


def manifest_changed(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | changes))

    change.__name__ = f"manifest with {changes}"
    return change


def manifest_of(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / MANIFEST).write_text(content)

    write.__name__ = f"manifest {content!r}"
    return write


ENTRY = {"bytes": 1, "sha256": "0" * 64}
DAMAGES = [
    (cut_short, "result.txt has 8 bytes and stage.json says 17"),
    (changed, "result.txt is not what was written"),
    (removed, "inner/more.bin is missing"),
    (replaced_by_a_folder, "result.txt "),
    (manifest_changed(version=2), "stage.json is that of work-"),
    (manifest_changed(settings={"a": 2}), "stage.json is that of work-"),
    (manifest_changed(name="other"), "stage.json is that of other-"),
    (manifest_changed(format=2), "stage.json is of format 2, and this version reads 1"),
    (manifest_changed(format="x"), "stage.json is no manifest"),
    (manifest_changed(files={"../work": ENTRY}), "names the file '../work' outside the folder"),
    (manifest_changed(files={"/etc/passwd": ENTRY}), "names the file '/etc/passwd' outside the folder"),
    *[
        (manifest_of(content), "stage.json is no manifest")
        for content in ("", "{", "[]", "null", "{}", '{"files": 3}', '{"files": {"a": 1}}', "[" * 100_000, "\ud7ff\0")
    ],
]


@pytest.mark.parametrize(("damage", "what"), DAMAGES, ids=lambda value: getattr(value, "__name__", "")[:60])
def test_a_damaged_result_is_refused_by_name(damage: Callable[[Path], None], what: str, tmp_path: Path) -> None:
    """And is computed anew only once somebody has removed it."""
    work = Work()
    folder = ensure(stage_of(work), tmp_path)
    damage(folder)
    assert not is_complete(folder)
    with pytest.raises(DamagedStage) as caught:
        ensure(stage_of(work), tmp_path)
    sentence = str(caught.value)
    assert sentence.startswith(f"stage folder {folder} is damaged (") and what in sentence and "\n" not in sentence
    assert f"t2i stages drop {folder.name} removes it" in sentence and isinstance(caught.value, RequestError)
    assert work.times == 1 and folder.is_dir()
    shutil.rmtree(folder)
    assert ensure(stage_of(work), tmp_path) == folder
    assert work.times == 2 and (folder / "result.txt").read_text() == "what was computed"


def test_without_a_manifest_it_is_what_a_killed_run_left(tmp_path: Path) -> None:
    work = Work()
    folder = ensure(stage_of(work), tmp_path)
    (folder / MANIFEST).unlink()
    assert not is_complete(folder)
    assert ensure(stage_of(work), tmp_path) == folder
    assert work.times == 2 and is_complete(folder)


def test_a_manifest_without_a_format_is_of_the_first(tmp_path: Path) -> None:
    folder = ensure(stage_of(Work()), tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["format"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert is_complete(folder)


def test_a_large_file_is_read_only_if_it_was_touched(tmp_path: Path) -> None:
    def write(folder: Path, _: Progress) -> None:
        with (folder / "large").open("wb") as file:
            file.truncate(HASH_LIMIT + 1)

    folder = ensure(stage_of(write), tmp_path)
    large = folder / "large"
    times = (large.stat().st_atime_ns, large.stat().st_mtime_ns)
    os.utime(large)
    check_stage(folder)
    with large.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(DamagedStage, match="large is not what was written"):
        ensure(stage_of(write), tmp_path)
    # As a disk that rots leaves it: only reading every byte tells.
    os.utime(large, ns=times)
    check_stage(folder)
    with pytest.raises(DamagedStage, match="large is not what was written"):
        check_stage(folder, every_byte=True)
    with large.open("r+b") as file:
        file.truncate(HASH_LIMIT)
    assert not is_complete(folder)


@pytest.mark.parametrize("kind", [RequestError, RunError, ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(kind: type[BaseException], tmp_path: Path) -> None:
    def fail(folder: Path, _: Progress) -> None:
        (folder / "half").write_text("half")
        raise kind("why")

    with pytest.raises(kind, match="why"):
        ensure(stage_of(fail), tmp_path)
    assert left_in(tmp_path) == []
    work = Work()
    assert is_complete(ensure(stage_of(work), tmp_path))


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    def fill(folder: Path, _: Progress) -> None:
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"stage work .*No space left.*free some disk") as caught:
        ensure(stage_of(fill), tmp_path)
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == []


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
    assert left_in(store) == [folder.name]
    assert [record["process"] for record in read_records(store)] == [waiter.pid]


def test_is_running(tmp_path: Path) -> None:
    told: list[bool] = []
    stage = stage_of(lambda folder, _: told.append(is_running(stage, tmp_path)))
    assert not is_running(stage, tmp_path / "none") and not is_running(stage, tmp_path)
    assert not list(tmp_path.iterdir())
    ensure(stage, tmp_path)
    assert told == [True] and not is_running(stage, tmp_path)


class Steps:
    """A stage's run of three steps that can fail at one, and goes on where it was."""

    def __init__(self, fails_at: int | None, error: BaseException | None = None) -> None:
        self.fails_at, self.error, self.did = fails_at, error, list[int]()

    def __call__(self, folder: Path, _: Progress) -> None:
        for step in range(3):
            if not (folder / str(step)).exists():
                if step == self.fails_at and self.error:
                    raise self.error
                self.did.append(step)
                (folder / str(step)).write_text("done")


@pytest.mark.parametrize("error", [RequestError("why"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=str)
def test_one_that_can_go_on_does_after_an_error(error: BaseException, tmp_path: Path) -> None:
    first, second = Steps(2, error), Steps(None)
    with pytest.raises(RunError if isinstance(error, OSError) else type(error)):
        ensure(stage_of(first, resumable=True), tmp_path)
    [begun] = left_in(tmp_path)
    assert begun.startswith(".work-") and first.did == [0, 1]
    folder = ensure(stage_of(second, resumable=True), tmp_path)
    assert second.did == [2] and left_in(tmp_path) == [folder.name]
    assert set(check_stage(folder).files) == {"0", "1", "2"}


def test_killed_just_before_its_end(tmp_path: Path) -> None:
    """Its manifest was written and its folder not renamed."""
    stage = stage_of(Steps(None), resumable=True)
    folder = ensure(stage, tmp_path)
    folder.rename(tmp_path / f".{folder.name}-begun")
    check_stage(ensure(stage, tmp_path))
    assert set(check_stage(folder).files) == {"0", "1", "2"}


# A process that prepares pictures, and stops for good once two shards of three are whole.
PREPARES_PICTURES = """
import sys, time
from pathlib import Path
from orchestration.stages import Stage, ensure
from orchestration.data.shards import write_shards
from tests.prepared_support import make_dataset, small_shards
root, store = Path(sys.argv[1]), Path(sys.argv[2])

def run(folder, progress):
    def shown(done, total):
        while done > 8:
            (store.parent / "there").touch()
            time.sleep(0.01)
    write_shards(make_dataset(root), small_shards(), folder / "shards", progress=shown)

ensure(Stage("pictures", 1, {}, {}, run, resumable=True), store)
"""


def test_pictures_go_on_after_a_kill(tmp_path: Path) -> None:
    from orchestration.data.shards import open_shards, write_shards

    root, store = tmp_path / "data", tmp_path / "store"
    process = subprocess.Popen([sys.executable, "-c", PREPARES_PICTURES, str(root), str(store)], cwd=REPOSITORY)
    try:
        wait_until(lambda: (tmp_path / "there").exists() or process.poll() is not None)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    [begun] = left_in(store)
    whole = sorted((store / begun / "shards").glob("shard-*.json"))
    assert len(whole) == 2
    kept = {path.name: path.stat().st_mtime_ns for path in whole}
    seen: list[int] = []

    def run(folder: Path, _: Progress) -> None:
        shutil.rmtree(root)
        dataset = make_dataset(root)
        write_shards(dataset, small_shards(), folder / "shards", progress=lambda done, total: seen.append(done))

    folder = ensure(Stage("pictures", 1, {}, {}, run, resumable=True), store)
    assert left_in(store) == [folder.name]
    shards = open_shards(folder / "shards", root)
    assert len(shards) == 10 and len(list((folder / "shards").glob("shard-*.arrow"))) == 3
    # The first two shards were not written again.
    assert min(seen) > 8
    now = {path.name: path.stat().st_mtime_ns for path in (folder / "shards").glob("shard-*.json")}
    assert {name: now[name] for name in kept} == kept


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
