"""Homes on object storage for tests: what is published, stores that fail, runs that are killed."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.home import Home, copy_of, exclusive, find_home
from orchestration.remote.copies import WorkingCopy
from orchestration.stages import list_files, write_atomically
from orchestration.training.state import FORMAT, MANIFEST, _manifest_digest, checkpoint_folders, newest_checkpoint
from orchestration.training.worker import CHECKPOINTS, Job
from tests.contract.test_resume import hashes, recorded, short_run
from tests.remote_drill import start_remote_drill, train_held
from tests.tiny import tiny_job

SYSTEM = "xmcgan"
PATIENCE_S = 120.0
ROUTES = ("pipe_file", "put_file", "cat_file", "get_file", "find", "exists", "rm_file", "cp_file", "mv", "modified")


def machine(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The home as a machine with this cache sees it."""
    monkeypatch.setenv("T2I_CACHE", str(cache))
    return find_home(url)


def working_copy(home: Home) -> WorkingCopy:
    copy = copy_of(home.root)
    assert copy is not None
    return copy


def published(home: Home) -> dict[str, bytes]:
    """Every object below the home's URL."""
    store = working_copy(home).store
    return {name: store.read(name) for name in store.sizes("")}


def job_at(home: Home, data: Path, **changes: object) -> Job:
    """A short run in the home; its data lie elsewhere, where every machine has them."""
    job = tiny_job(data, short_run(SYSTEM, **changes))
    return replace(job, folder=str(home.runs / "run"))


def whole_in(run: Path) -> list[str]:
    return [folder.name for folder in checkpoint_folders(run / CHECKPOINTS)]


def killed_and_repeated_elsewhere(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL after a published checkpoint, the machine is lost, another repeats the command: the same bytes."""
    first = machine(url, folder / "first", monkeypatch)
    job = job_at(first, folder / "data")
    store = working_copy(first).store
    process = start_remote_drill(job, folder, PATIENCE_S)
    try:
        calm = job_at(Home(folder / "calm home"), folder / "calm")
        assert train_held(calm) == "finished"
        deadline = time.monotonic() + PATIENCE_S
        while not any(name.endswith("/manifest.json") for name in store.sizes("runs/run/checkpoints")):
            assert process.poll() is None, (folder / "stderr").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    shutil.rmtree(first.root)

    second = machine(url, folder / "second", monkeypatch)
    again = replace(job, folder=str(second.runs / "run"))
    with exclusive(Path(again.folder)):
        newest = newest_checkpoint(Path(again.folder) / CHECKPOINTS)
        assert newest is not None and 0 < newest.images_seen < again.experiment.training.kimg * 1000
    assert train_held(again) == "finished"
    assert_alike(Path(again.folder), Path(calm.folder))

    third = machine(url, folder / "third", monkeypatch)
    with exclusive(third.runs / "run"):
        assert_alike(third.runs / "run", Path(calm.folder))


def assert_alike(run: Path, calm: Path) -> None:
    assert hashes(run / CHECKPOINTS) == hashes(calm / CHECKPOINTS)
    assert hashes(run / "pictures") == hashes(calm / "pictures")
    assert recorded(run) == recorded(calm)
    assert (run / "outcome.json").read_bytes() == (calm / "outcome.json").read_bytes()


class Unreliable:
    """A file system whose calls fail when `fails(number, route)` says so; it counts them."""

    def __init__(self, files: Any, fails: Callable[[int, str], bool]) -> None:
        self._files, self.fails, self.calls = files, fails, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._files, name)
        if name not in ROUTES:
            return found

        def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.fails(self.calls, name):
                raise ConnectionError("the store is away")
            return found(*args, **options)

        return call


def small_checkpoint(parent: Path, kimg: int, content: bytes = b"weights") -> Path:
    """A checkpoint that verifies, of two small files."""
    folder = parent / f"kimg-{kimg:010.3f}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "text").mkdir(parents=True)
    (folder / "net.safetensors").write_bytes(content + str(kimg).encode())
    (folder / "text" / "words.json").write_bytes(b"{}")
    manifest: dict[str, Any] = {"format": FORMAT, "images_seen": kimg * 1000, "files": list_files(folder)}
    manifest["manifest_sha256"] = _manifest_digest(manifest)
    write_atomically(folder / MANIFEST, json.dumps(manifest))
    return folder


def made_by(home: Home, *kimgs: int) -> Path:
    """A run with these checkpoints, published."""
    run = home.runs / "run"
    with exclusive(run):
        for kimg in kimgs:
            small_checkpoint(run / CHECKPOINTS, kimg)
        (run / "metrics.jsonl").write_text("".join(json.dumps({"images": kimg * 1000}) + "\n" for kimg in kimgs))
    return run


def spoil(home: Home, fails: object) -> Unreliable:
    """The home's store fails as told from now on."""
    opened = working_copy(home).store
    opened.files = Unreliable(opened.files, fails)  # type: ignore[arg-type]
    return opened.files
