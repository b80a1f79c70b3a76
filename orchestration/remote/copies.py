"""The working copy of a home on object storage: what of it is published and fetched, and in which order.

A run, a trial and a campaign are each a folder of the copy that is published by itself. `writer.json` says which copy
wrote it last: whoever is not that copy fetches before it goes on, and what that copy has and the store lacks is still
to be published. A checkpoint is published files first and manifest last, and taken away manifest first, so that one
without a manifest does not exist; what a run has recorded goes before the checkpoint, and its end after.
"""

import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock

from orchestration.errors import RequestError, RunError
from orchestration.home import COPY
from orchestration.remote.contents import (
    APART,
    LINES,
    MANIFEST,
    PUBLISHED,
    WRITER,
    Here,
    Listing,
    note,
    noted,
    sha256_of,
    size_of,
    sizes_of,
    whole_lines,
)
from orchestration.remote.lease import Lease
from orchestration.remote.publishing import Publication
from orchestration.remote.store import Away, Result, Store
from orchestration.stages import file_sha256, write_atomically

HOME, MEND = "--home", "name another with --home or T2I_HOME"
FETCHING = ".fetching.lock"
UNFINISHED = ".writing-"
PICTURE = ".png"
SEEN = ".seen"
"""In the root of a working copy: what was read of runs that other machines work on."""
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
            elif not Here.of(folder).checkpoints:
                for name in sorted((there := Listing.of(self.store.sizes(self.name(folder)))).checkpoints):
                    if there.is_whole(name):
                        self.fetch_checkpoint(folder / name)
            if not (folder / PUBLISHED).is_file():
                note(folder, {})
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
        there = Listing.of(self.store.sizes(self.name(folder)))
        here = Here.of(folder)
        published: dict[str, str] = {}
        for name in there.files:
            with suppress(FileNotFoundError):  # whoever works on it took it away since
                published[name] = self._fetch_file(folder, name)
        for name in here.files.keys() - published.keys():
            (folder / name).unlink(missing_ok=True)
        for name in sorted(there.checkpoints, reverse=True):  # the newest first
            if there.is_whole(name) and self.fetch_checkpoint(folder / name):
                published[name] = file_sha256(folder / name / MANIFEST)
        for name in here.checkpoints.keys() - published.keys():
            shutil.rmtree(folder / name, ignore_errors=True)
        note(folder, published)

    def seen(self, folder: Path) -> Path:
        """Where to read what a run or trial has recorded so far, without checkpoints, whoever works on it: the folder
        itself where this copy wrote last or nobody published, else one that nothing but this ever writes.

        So a reader never gets in the way of a worker that begins here at that moment. Raises OSError.
        """
        if self._writer(folder) in (None, self.id):
            return folder
        beside = self.root / SEEN / self.name(folder)
        there = Listing.of(self.store.sizes(self.name(folder))).files
        for name, size in there.items():
            # Pictures never change; all else is small.
            if not (name.endswith(PICTURE) and size_of(beside / name) == size):
                with suppress(FileNotFoundError):
                    self._fetch_file(folder, name, beside)
        for name in Here.of(beside).files.keys() - there.keys():
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
            for file in sizes_of(manifest):
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
                if sha256_of(self.store.read(f"{self.name(parent)}/{name}/{MANIFEST}")) == digest:
                    self.fetch_checkpoint(parent / name)
                    return

    def _fetch_file(self, folder: Path, name: str, into: Path | None = None) -> str:
        path = (into or folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self.store.read(f"{self.name(folder)}/{name}")
        write_atomically(path, content)
        return sha256_of(content)

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
        known = noted(folder)
        for path in sorted(folder.glob(f"*{LINES}")):
            content = whole_lines(path.read_bytes())
            if known.get(path.name) != (digest := sha256_of(content)):
                self.store.put(f"{self.name(folder)}/{path.name}", content)
                known[path.name] = digest
                note(folder, known)

    def push(self, folder: Path) -> None:
        """Make what is published of the folder what is here. Raises as `Publication`."""
        if not folder.is_dir():
            return
        self.require_writer(folder)
        Publication(self, folder).carry_out()
