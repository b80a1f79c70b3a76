"""Content-addressed results: what a stage depends on is its name, and what exists is not computed again.

A stage's key is the hash of its name, version, settings and inputs. Its result is a folder, written atomically with a
manifest of every file's size and sha256. Two processes that need the same missing stage compute it once: one holds a
file lock, the other waits, and takes over if the first dies. A result that is not as it was written is refused by
name, and computed anew only once somebody has dropped it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec
from filelock import FileLock, Timeout

from orchestration.errors import RequestError, RunError
from orchestration.home import copy_of

if TYPE_CHECKING:
    from orchestration.stage_remote import Remote

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""

MANIFEST, RECORDS = "stage.json", "records.jsonl"
MANIFEST_FORMAT = 1
REMOTE = "T2I_STAGES_REMOTE"  # the variable that names where copies are: see orchestration.stage_remote
BEGUN = "begun"  # ends the name of the folder of a stage that can go on
# Larger files are read again only if their time of change is not the recorded one; `t2i stages check` reads all.
HASH_LIMIT = 16 * 2**20


def quiet(what: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a recipe.

    settings: the JSON values it depends on; inputs: digests or keys of what it reads; run: fills an empty folder.
    resumable: after a kill or an error `run` gets the folder as it was left, must check what it finds, and goes on.
    """

    name: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    run: Callable[[Path, Progress], None] = field(compare=False)
    resumable: bool = field(default=False, compare=False)

    @property
    def key(self) -> str:
        """16 hex digits."""
        return stage_key(self.name, self.version, self.settings, self.inputs)

    @property
    def folder_name(self) -> str:
        """What its result is called in a store: NAME-KEY."""
        return f"{self.name}-{self.key}"


def stage_key(name: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """16 hex digits of all that a stage's result depends on."""
    return short_hash({"name": name, "version": version, "settings": settings, "inputs": inputs})


def short_hash(value: Any) -> str:
    """The first 16 hex digits of the sha256 of a JSON value, written one way."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file under a folder, by relative path: what a manifest says of them."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_atomically(path: Path, data: bytes | str) -> None:
    """`path` holds all of `data` or what it held before."""
    temporary = hidden_sibling(path)
    try:
        with temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def hidden_sibling(path: Path) -> Path:
    """A new name beside `path` for what is not finished.

    Not from tempfile, whose files and folders only their owner can read: a home may be shared.
    """
    return path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")


class _Form(msgspec.Struct):
    format: int = MANIFEST_FORMAT


class FileEntry(msgspec.Struct, frozen=True):
    """What a manifest says of a file. modified: its time of change in ns, for those over HASH_LIMIT."""

    bytes: int
    sha256: str
    modified: int | None = None


class Manifest(msgspec.Struct, frozen=True):
    """What a stage's folder is, and every file in it."""

    name: str
    version: int
    settings: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, FileEntry]
    format: int = MANIFEST_FORMAT

    @property
    def folder_name(self) -> str:
        """What its folder must be called."""
        return f"{self.name}-{stage_key(self.name, self.version, self.settings, self.inputs)}"


class DamagedStage(RequestError):
    """A stage's folder is not as it was written. what: which file, and what is wrong with it."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(
            f"stage folder {folder} is damaged ({what}): t2i stages drop {folder.name} removes it, and the next run "
            "computes it anew"
        )
        self.folder, self.what = folder, what


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a stage's folder. Raises DamagedStage when it is missing, broken or another stage's."""
    try:
        content = (folder / MANIFEST).read_bytes()
        form = msgspec.json.decode(content, type=_Form).format
        if form != MANIFEST_FORMAT:
            raise DamagedStage(folder, f"{MANIFEST} is of format {form}, and this version reads {MANIFEST_FORMAT}")
        manifest = msgspec.json.decode(content, type=Manifest)
    except OSError as error:
        raise DamagedStage(folder, f"{MANIFEST} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedStage(folder, f"{MANIFEST} is no manifest: {error}") from error
    if manifest.folder_name != folder.name:
        raise DamagedStage(folder, f"{MANIFEST} is that of {manifest.folder_name}, version {manifest.version}")
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DamagedStage(folder, f"{MANIFEST} names the file {name!r} outside the folder")
    return manifest


def check_stage(folder: Path, every_byte: bool = False) -> Manifest:
    """The manifest of a whole stage. Raises DamagedStage that names the first file which is not as it was written.

    A file over HASH_LIMIT whose size and time of change are the recorded ones is read only for `every_byte`.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        try:
            found = (folder / name).stat()
            if found.st_size != entry.bytes:
                raise DamagedStage(folder, f"{name} has {found.st_size} bytes and {MANIFEST} says {entry.bytes}")
            untouched = entry.bytes > HASH_LIMIT and entry.modified == found.st_mtime_ns
            if (every_byte or not untouched) and file_sha256(folder / name) != entry.sha256:
                raise DamagedStage(folder, f"{name} is not what was written: its sha256 differs")
        except FileNotFoundError as error:
            raise DamagedStage(folder, f"{name} is missing") from error
        except OSError as error:
            raise DamagedStage(folder, f"{name} cannot be read: {error.strerror}") from error
    return manifest


def is_finished(folder: Path) -> bool:
    """Whether a stage's computation ended here: there is a manifest, whatever became of the files since."""
    return os.path.lexists(folder / MANIFEST)


def is_complete(folder: Path) -> bool:
    """Whether the folder holds every file its manifest names, whole."""
    try:
        check_stage(folder)
    except DamagedStage:
        return False
    return True


def ensure(stage: Stage, store: Path, progress: Progress = quiet) -> Path:
    """The folder of the stage's result under `store`, computed now if it is not there (nor in the remote, if any).

    Raises DamagedStage (a RequestError) when it is there and not as it was written; RunError when a file cannot be read
    or written, a full disk for one; whatever else `stage.run` raises passes through. Nothing half-done is left behind
    but the hidden folder of a stage that can go on.
    """
    store.mkdir(parents=True, exist_ok=True)
    folder = store / stage.folder_name
    with FileLock(lock_file(folder)):
        _mark_used(folder)
        if is_finished(folder):
            check_stage(folder)
            return folder
        # Whoever held the lock before us and was killed left these.
        for left_over in (folder, *store.glob(f".{folder.name}-*")):
            if not (stage.resumable and left_over == begun_folder(folder)) and left_over.is_dir():
                shutil.rmtree(left_over, ignore_errors=True)
        remote = remote_of(store)
        if remote is not None and remote.fetch(folder, progress):
            return folder
        started = time.time()
        try:
            _compute(stage, folder, progress)
            _record(store, stage, started)
        except OSError as error:
            raise RunError(
                f"stage {stage.name} failed on a file ({error}): free some disk under {store} or mend that file, "
                "and repeat"
            ) from error
        if remote is not None:
            remote.send(folder, progress)
    return folder


def reopen(folder: Path, store: Path) -> Path:
    """The folder of a stage that is there whatever it was computed from, checked, and kept from being freed while this
    process lives. Raises FileNotFoundError where there is none, and as `ensure`."""
    if not is_finished(folder):
        raise FileNotFoundError(folder)

    def gone(working: Path, progress: Progress) -> None:
        raise RequestError(f"{folder} was removed just now: repeat what is making it, or name another home")

    found = read_manifest(folder)
    return ensure(Stage(found.name, found.version, found.settings, found.inputs, gone), store)


def remote_of(store: Path) -> "Remote | None":
    """Where copies of a store's stages are: the URL of T2I_STAGES_REMOTE, else beside the home that it is a copy of."""
    if url := os.environ.get(REMOTE):
        from orchestration.stage_remote import Remote

        return Remote(url)
    if (copy := copy_of(store)) is None:
        return None
    from orchestration.stage_remote import Remote

    return Remote(f"{copy.url}/{store.name}", "the home's stages", "use a home on this machine")


def _compute(stage: Stage, folder: Path, progress: Progress) -> None:
    working = begun_folder(folder) if stage.resumable else hidden_sibling(folder)
    try:
        working.mkdir(exist_ok=stage.resumable)
        (working / MANIFEST).unlink(missing_ok=True)  # a kill just before the end
        stage.run(working, progress)
        files = list_files(working)
        for name, entry in files.items():
            if entry["bytes"] > HASH_LIMIT:
                entry["modified"] = (working / name).stat().st_mtime_ns
        manifest = {
            "format": MANIFEST_FORMAT,
            "name": stage.name,
            "version": stage.version,
            "settings": dict(stage.settings),
            "inputs": dict(stage.inputs),
            "files": files,
        }
        write_atomically(working / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
        working.replace(folder)
    finally:
        if not stage.resumable:
            shutil.rmtree(working, ignore_errors=True)


def begun_folder(folder: Path) -> Path:
    """Where a stage that can go on works, before it is `folder`."""
    return folder.with_name(f".{folder.name}-{BEGUN}")


def lock_file(folder: Path) -> Path:
    """Held by whoever computes, checks or removes the stage."""
    return folder.with_name(f".{folder.name}.lock")


def is_locked(folder: Path) -> bool:
    """Whether some process computes, checks or removes the stage of this folder now."""
    if not lock_file(folder).exists():
        return False
    try:
        with FileLock(lock_file(folder)).acquire(timeout=0):
            return False
    except Timeout:
        return True


def is_running(stage: Stage, store: Path) -> bool:
    """Whether some process computes the stage now."""
    return is_locked(store / stage.folder_name)


# A shared lock on each stage that this process reads, until it ends: what is read is not freed. By file's path.
_used: dict[Path, int] = {}


def _users_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.users.lock")


def _mark_used(folder: Path) -> None:
    file = _users_file(folder)
    if file not in _used:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError:  # a file system without such locks
            os.close(descriptor)
        else:
            _used[file] = descriptor


@contextmanager
def alone_with(folder: Path) -> Iterator[bool]:
    """Whether no other process computes or reads the stage of this folder; none begins to until this ends.

    What this process itself has read does not count.
    """
    lock, file = FileLock(lock_file(folder)), _users_file(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        if (own := _used.pop(file, None)) is not None:
            os.close(own)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alone = False
            except OSError:
                alone = True
            else:
                alone = True
            yield alone
        finally:
            os.close(descriptor)
    finally:
        lock.release()


def _record(store: Path, stage: Stage, started: float) -> None:
    """One line for each stage that was computed: what ran, and what was only read, can be told apart."""
    line = {
        "stage": stage.name,
        "key": stage.key,
        "process": os.getpid(),
        "started": round(started, 3),
        "seconds": round(time.time() - started, 3),
    }
    with (store / RECORDS).open("a") as records:
        records.write(json.dumps(line) + "\n")


def read_records(store: Path) -> list[dict[str, Any]]:
    """Every computation of a stage in this store, oldest first. A line that a full disk cut short is left out."""
    try:
        lines = (store / RECORDS).read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
