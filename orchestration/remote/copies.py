"""The working copy of a home on object storage: what of it is published and fetched, and in which order.

A run, a trial and a campaign are each a folder of the copy that is published by itself. `writer.json` says which copy
wrote it last: whoever is not that copy fetches before it goes on, and what that copy has and the store lacks is still
to be published. A checkpoint is published files first and manifest last, and taken away manifest first, so that one
without a manifest does not exist; what a run has recorded goes before the checkpoint, and its end after.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath

from filelock import FileLock

from orchestration.errors import RequestError, RunError
from orchestration.home import COPY
from orchestration.remote.lease import LEASE, Lease
from orchestration.remote.store import Away, Result, Store
from orchestration.stages import file_sha256, write_atomically

HOME, MEND = "--home", "name another with --home or T2I_HOME"
WRITER, PUBLISHED, FETCHING = "writer.json", ".published.json", ".fetching.lock"
MANIFEST = "manifest.json"  # of a checkpoint: see orchestration.training.state
UNFINISHED = ".writing-"
CHECKPOINTS = ("checkpoints", "rungs")
APART = ("trials",)  # folders that are published by themselves
LAST = ("segment.json", "outcome.json")
"""They say how far a run has come, so they are published after what they speak of."""
LINES, PICTURE = ".jsonl", ".png"
SEEN = ".seen"
"""In the root of a working copy: what was read of runs that other machines work on."""
NOT_KEPT = ("optuna.db", "optuna.db-journal", "ledger.db-journal")
"""Made again from the ledger, or part of what sqlite is writing."""
PATIENCE_S, FETCH_S = 60.0, 900.0
"""A store that is away before a training or after it is waited for so long, and another process here that fetches."""

log = logging.getLogger(__name__)


@cache
def open_store(url: str) -> Store:
    """The store of a home, opened once a process. Raises RequestError."""
    return Store(url, HOME, MEND)


@dataclass(frozen=True, slots=True)
class WorkingCopy:
    """A folder of this machine that stands for a URL."""

    root: Path
    url: str
    id: str

    @classmethod
    def make(cls, root: Path, url: str) -> "WorkingCopy":
        """The copy in `root`, which says so from now on. Raises RequestError where the URL cannot be opened."""
        open_store(url)
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not (root / COPY).is_file():
                write_atomically(root / COPY, json.dumps({"url": url, "id": uuid.uuid4().hex}))
        except OSError as error:
            raise RequestError(
                f"the working copy of {url} cannot be kept in {root} ({error}): name another folder with T2I_CACHE"
            ) from error
        return cls.open(root)

    @classmethod
    def open(cls, root: Path) -> "WorkingCopy":
        """The copy that `root` says it is. Raises RequestError when it is broken."""
        try:
            said = json.loads((root / COPY).read_text())
            return cls(root, str(said["url"]), str(said["id"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"{root / COPY} does not say what {root} is a copy of ({error}): remove {root}, and it is fetched anew"
            ) from error

    @property
    def store(self) -> Store:
        return open_store(self.url)

    def name(self, folder: Path) -> str:
        """A folder's path in the store."""
        return folder.absolute().relative_to(self.root).as_posix()

    @contextmanager
    def working(self, folder: Path) -> Iterator[None]:
        """This machine alone works on the folder; what the store has of it is here, and at the end it is all there.

        Raises RequestError when another machine works on it, RunError when it cannot be fetched or published.
        """
        with ExitStack() as leaving:
            lease = Lease(self.store, self.name(folder), self.id)
            self.insist(lambda _: lease.acquire(), folder, "fetched")
            leaving.callback(lease.release)
            self.insist(self.take, folder, "fetched")

            def publish(folder: Path) -> None:
                lease.require()
                self.take(folder)  # a worker on another machine may have written
                self.push_all(folder)

            try:
                yield
            except BaseException:
                with suppress(OSError, RunError):
                    publish(folder)
                raise
            self.insist(publish, folder, "published")

    def insist(self, act: Callable[[Path], Result], folder: Path, what: str) -> Result:
        """What `act` on a folder returns; waited for while the store is away.

        Raises RunError, which says how to go on, when it stays away. what: "fetched" or "published".
        """
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return act(folder)
            except Away as error:
                if time.monotonic() >= until:
                    raise self._failed(folder, what, error) from error
                time.sleep(min(PATIENCE_S, 5.0))
            except OSError as error:
                raise self._failed(folder, what, error) from error

    def _failed(self, folder: Path, what: str, error: OSError) -> RunError:
        return RunError(
            f"{self.name(folder)} could not be {what} ({self.url}: {error}): what is here stays here; repeat the "
            "command once the store answers, and it goes on from there"
        )

    def take(self, folder: Path) -> None:
        """Before this copy writes into the folder: whatever another one published, or this one has lost, is fetched."""
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / FETCHING, timeout=FETCH_S):
            if self._is_behind(folder):
                self._fetch(folder)
            elif not _Here.of(folder).checkpoints:
                for name in sorted((there := _Listing.of(self.store.sizes(self.name(folder)))).checkpoints):
                    if there.is_whole(name):
                        self.fetch_checkpoint(folder / name)
            if not (folder / PUBLISHED).is_file():
                _note(folder, {})
            if self._writer(folder) != self.id:
                self.store.put(f"{self.name(folder)}/{WRITER}", json.dumps({"copy": self.id}).encode())

    def pull(self, folder: Path) -> None:
        """Make the folder what is published of it; nothing where nobody did, or this copy wrote last and has it yet."""
        if not self._is_behind(folder):
            return
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / FETCHING, timeout=FETCH_S):
            if self._is_behind(folder):  # else somebody here has begun to write meanwhile
                self._fetch(folder)

    def _is_behind(self, folder: Path) -> bool:
        writer = self._writer(folder)
        return writer is not None and not (writer == self.id and (folder / PUBLISHED).is_file())

    def _fetch(self, folder: Path) -> None:
        there = _Listing.of(self.store.sizes(self.name(folder)))
        here = _Here.of(folder)
        published = {name: self._fetch_file(folder, name) for name in there.files}
        for name in here.files.keys() - there.files.keys():
            (folder / name).unlink(missing_ok=True)
        for name in sorted(there.checkpoints, reverse=True):  # the newest first
            if there.is_whole(name) and self.fetch_checkpoint(folder / name):
                published[name] = file_sha256(folder / name / MANIFEST)
        for name in here.checkpoints.keys() - published.keys():
            shutil.rmtree(folder / name, ignore_errors=True)
        _note(folder, published)

    def seen(self, folder: Path) -> Path:
        """Where to read what a run or trial has recorded so far, without checkpoints, whoever works on it: the folder
        itself where this copy wrote last or nobody published, else one that nothing but this ever writes.

        So a reader never gets in the way of a worker that begins here at that moment. Raises OSError.
        """
        if self._writer(folder) in (None, self.id):
            return folder
        beside = self.root / SEEN / self.name(folder)
        there = _Listing.of(self.store.sizes(self.name(folder))).files
        for name, size in there.items():
            # Pictures never change; all else is small.
            if not (name.endswith(PICTURE) and _size_of(beside / name) == size):
                with suppress(FileNotFoundError):
                    self._fetch_file(folder, name, beside)
        for name in _Here.of(beside).files.keys() - there.keys():
            (beside / name).unlink(missing_ok=True)
        return beside

    def fetch_checkpoint(self, folder: Path) -> bool:
        """Put a published checkpoint in place, every byte of it verified; False, and it is said, for a damaged one."""
        from orchestration.training.state import DamagedCheckpoint, open_checkpoint

        name = self.name(folder)
        working = folder.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}")
        try:
            manifest = self.store.read(f"{name}/{MANIFEST}")
            if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == manifest:
                with suppress(DamagedCheckpoint):
                    open_checkpoint(folder)
                    return True
            working.mkdir(parents=True)
            (working / MANIFEST).write_bytes(manifest)
            for file in _sizes_of(manifest):
                self.store.get_file(f"{name}/{file}", working / file)
            open_checkpoint(working)
            if folder.exists():
                shutil.rmtree(folder)
            working.replace(folder)
            return True
        except (DamagedCheckpoint, FileNotFoundError, ValueError) as error:
            log.warning("checkpoint %s in %s is damaged and passed over: %s", name, self.url, error)
            return False
        finally:
            shutil.rmtree(working, ignore_errors=True)

    def fetch_checkpoint_with(self, parent: Path, digest: str) -> None:
        """Fetch the published checkpoint below `parent` whose manifest has this sha256, if there is one."""
        there = self.store.sizes(self.name(parent))
        for name in sorted({file.partition("/")[0] for file in there if file.endswith(f"/{MANIFEST}")}):
            with suppress(FileNotFoundError):
                if _sha256(self.store.read(f"{self.name(parent)}/{name}/{MANIFEST}")) == digest:
                    self.fetch_checkpoint(parent / name)
                    return

    def _fetch_file(self, folder: Path, name: str, into: Path | None = None) -> str:
        path = (into or folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self.store.read(f"{self.name(folder)}/{name}")
        write_atomically(path, content)
        return _sha256(content)

    def _writer(self, folder: Path) -> str | None:
        try:
            return str(json.loads(self.store.read(f"{self.name(folder)}/{WRITER}"))["copy"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return ""

    def require_writer(self, folder: Path) -> None:
        """RunError when another copy has taken the folder over: what is here is not published over its work."""
        if self._writer(folder) != self.id:
            raise RunError(
                f"another machine has taken {self.name(folder)} in {self.url} over: what is here is not published; "
                "repeat the command to go on from what that one published"
            )

    def push_all(self, folder: Path) -> None:
        """Publish the folder, and those in it that are published by themselves and were written here last."""
        self.push(folder)
        for apart in APART:
            for below in sorted((folder / apart).glob("*")):
                if below.is_dir() and self._writer(below) == self.id:
                    self.push(below)

    def put(self, folder: Path, name: str, content: bytes) -> None:
        """Publish one file of the folder as it is now."""
        self.require_writer(folder)
        self.store.put(f"{self.name(folder)}/{name}", content)

    def push_records(self, folder: Path) -> None:
        """Publish what a run has recorded since, and nothing else. Raises as `push`."""
        self.require_writer(folder)
        known = _noted(folder)
        for path in sorted(folder.glob(f"*{LINES}")):
            content = _whole_lines(path.read_bytes())
            if known.get(path.name) != (digest := _sha256(content)):
                self.store.put(f"{self.name(folder)}/{path.name}", content)
                known[path.name] = digest
                _note(folder, known)

    def push(self, folder: Path) -> None:
        """Make what is published of the folder what is here. Raises OSError, and RunError as `require_writer`.

        Killed at any moment it leaves a state to go on from, which is never behind the last whole checkpoint.
        """
        if not folder.is_dir():
            return
        self.require_writer(folder)
        _Push(self, folder).carry_out()


@dataclass
class _Listing:
    """What is published: small files with their sizes, and each checkpoint's files with theirs."""

    files: dict[str, int] = field(default_factory=dict)
    checkpoints: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, sizes: dict[str, int]) -> "_Listing":
        found = cls()
        for name, size in sizes.items():
            parts = PurePosixPath(name).parts
            if ".." in parts or parts[0] in APART or name in (LEASE, WRITER):
                continue
            if parts[0] in CHECKPOINTS:
                if len(parts) > 2:
                    found.checkpoints.setdefault("/".join(parts[:2]), {})["/".join(parts[2:])] = size
            else:
                found.files[name] = size
        return found

    def is_whole(self, name: str) -> bool:
        """Whether a checkpoint exists at all."""
        return MANIFEST in self.checkpoints.get(name, {})


@dataclass
class _Here:
    """What is to be published: small files, and checkpoints with their manifests' sha256; damaged: those that are not,
    and say nothing of what is published."""

    files: dict[str, Path] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path) -> "_Here":
        found = cls()
        for parent in CHECKPOINTS:
            for path in sorted((folder / parent).glob("[!.]*")):
                name = f"{parent}/{path.name}"
                try:
                    manifest = (path / MANIFEST).read_bytes()
                    _sizes_of(manifest)
                    found.checkpoints[name] = _sha256(manifest)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except ValueError:
                    found.damaged.add(name)
        for place, folders, files in os.walk(folder):
            top = Path(place) == folder
            away = (*CHECKPOINTS, *APART) if top else ()
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in away)
            for name in sorted(files):
                path = Path(place) / name
                if not name.startswith(".") and name not in NOT_KEPT and path.is_file():
                    found.files[path.relative_to(folder).as_posix()] = path
        return found


class _Push:
    """One publication of one folder."""

    def __init__(self, copy: WorkingCopy, folder: Path) -> None:
        self.copy, self.store, self.folder, self.place = copy, copy.store, folder, copy.name(folder)
        # Checkpoints are listed before the records are read, so that these reach at least as far.
        self.here = _Here.of(folder)
        self.there = _Listing.of(self.store.sizes(self.place))
        self.known = _noted(folder)

    def carry_out(self) -> None:
        self._unpublish_what_is_not_so_any_more()
        first = [name for name in self.here.files if name not in LAST]
        for name in first:
            self._put(name)
        self._remove(sorted(self.there.files.keys() - self.here.files.keys()))
        sent = [self._send(name, digest) for name, digest in self.here.checkpoints.items()]
        # Sending takes long: meanwhile another copy may have taken the folder over.
        self.copy.require_writer(self.folder)
        if all(sent):
            for name in sorted(self.there.checkpoints.keys() - self.here.checkpoints.keys() - self.here.damaged):
                self._drop(name)
        for name in LAST:
            if name in self.here.files:
                self._put(name)

    def _unpublish_what_is_not_so_any_more(self) -> None:
        """A checkpoint of another content, or newer than all that are here, could be gone back to by mistake."""
        newest = {name.partition("/")[0]: name for name in sorted(self.here.checkpoints)}
        for name, files in self.there.checkpoints.items():
            if MANIFEST not in files or name in self.here.damaged:
                continue
            digest = self.here.checkpoints.get(name)
            parent = name.partition("/")[0]
            if self._is_there(name) if digest else name < newest.get(parent, ""):
                continue
            self._remove([f"{name}/{MANIFEST}"])
            del files[MANIFEST]

    def _is_there(self, name: str) -> bool:
        """Whether a checkpoint that is here is published, whole and the same."""
        files = self.there.checkpoints.get(name, {})
        if MANIFEST not in files:
            return False
        digest = self.here.checkpoints[name]
        if self.known.get(name) != digest:
            if _sha256(self.store.read(f"{self.place}/{name}/{MANIFEST}")) != digest:
                return False
            self._note(name, digest)
        try:
            wanted = _sizes_of((self.folder / name / MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return True  # dropped here meanwhile
        return all(files.get(file) == size for file, size in wanted.items())

    def _put(self, name: str) -> None:
        try:
            content = self.here.files[name].read_bytes()
        except FileNotFoundError:
            return  # removed meanwhile: the next publication removes it there
        if name.endswith(LINES):
            content = _whole_lines(content)
        digest = _sha256(content)
        if self.known.get(name) != digest or self.there.files.get(name) != len(content):
            self.store.put(f"{self.place}/{name}", content)
            self._note(name, digest)

    def _send(self, name: str, digest: str) -> bool:
        """Publish a checkpoint; False when it was dropped here meanwhile."""
        if self._is_there(name):
            return True
        alike = [other for other, same in self.here.checkpoints.items() if same == digest and other != name]
        twin = next((other for other in alike if self._is_there(other)), None)
        source = self.folder / name
        try:
            manifest = (source / MANIFEST).read_bytes()
            sizes = _sizes_of(manifest)
            for file in sizes:
                if twin:
                    self.store.copy(f"{self.place}/{twin}/{file}", f"{self.place}/{name}/{file}")
                else:
                    self.store.put_file(source / file, f"{self.place}/{name}/{file}")
            self.copy.require_writer(self.folder)
            self.store.put(f"{self.place}/{name}/{MANIFEST}", manifest)
        except FileNotFoundError:
            if source.is_dir():
                raise
            return False
        self._note(name, digest)
        self.there.checkpoints[name] = {**sizes, MANIFEST: len(manifest)}
        return True

    def _drop(self, name: str) -> None:
        files = self.there.checkpoints[name]
        self._remove([f"{name}/{file}" for file in sorted(files, key=lambda file: file != MANIFEST)])

    def _remove(self, names: list[str]) -> None:
        for name in names:
            self.store.remove([f"{self.place}/{name}"])
            self.known.pop(name, None)

    def _note(self, name: str, digest: str) -> None:
        self.known[name] = digest
        _note(self.folder, self.known)


def _noted(folder: Path) -> dict[str, str]:
    """sha256 of what was published of a folder; nothing of it is relied on without a look at the store."""
    try:
        return dict(json.loads((folder / PUBLISHED).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _note(folder: Path, published: dict[str, str]) -> None:
    write_atomically(folder / PUBLISHED, json.dumps(published, indent=1, sort_keys=True))


def _sizes_of(manifest: bytes) -> dict[str, int]:
    """Sizes of a checkpoint's files, by path. Raises ValueError when this is no manifest or names files elsewhere."""
    try:
        found = {str(name): int(entry["bytes"]) for name, entry in json.loads(manifest)["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} is broken") from error
    for name in found:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{MANIFEST} names the file {name!r} outside the folder")
    return found


def _whole_lines(content: bytes) -> bytes:
    """Without the last one while it is being written."""
    return content[: content.rfind(b"\n") + 1]


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
