"""Where state lives: one folder, `--home` or T2I_HOME, or a URL of which this machine keeps a working copy."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from orchestration.errors import RequestError

if TYPE_CHECKING:
    from orchestration.remote.copies import WorkingCopy

DEFAULT = "t2i-home"
COPY = "remote.json"
"""In the root of a working copy: which URL it is a copy of. A home of this machine alone has none."""
CACHE = "T2I_CACHE"
AT_ONCE = 16  # folders that are read from a store


@dataclass(frozen=True, slots=True)
class Home:
    """The folders under one root; nothing is created until it is written."""

    root: Path

    @property
    def data(self) -> Path:
        """Generated data sets."""
        return self.root / "data"

    @property
    def stages(self) -> Path:
        """Content-addressed results."""
        return self.root / "stages"

    @property
    def encoders(self) -> Path:
        """Packaged encoders, unpacked."""
        return self.root / "encoders"

    @property
    def runs(self) -> Path:
        """One folder a training run."""
        return self.root / "runs"

    @property
    def campaigns(self) -> Path:
        """One folder a campaign."""
        return self.root / "campaigns"


def find_home(option: str | None = None) -> Home:
    """The home named by the option, else by T2I_HOME, else ./t2i-home; absolute.

    A URL (s3://bucket/folder, gs://, file:///folder ...) is worked on in a copy below T2I_CACHE, by default
    ~/.cache/t2i. Raises RequestError for one that nothing here opens.
    """
    named = option or os.environ.get("T2I_HOME") or DEFAULT
    if "://" not in named:
        return Home(Path(named).expanduser().resolve())
    from orchestration.remote.copies import WorkingCopy

    url = named.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("://")[2]).strip("-.") or "home"
    cache = Path(os.environ.get(CACHE) or "~/.cache/t2i").expanduser().resolve()
    return Home(WorkingCopy.make(cache / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}", url).root)


def copy_of(path: Path) -> "WorkingCopy | None":
    """The working copy that a path lies in; None in a home of this machine alone."""
    path = path.absolute()
    for folder in (path, *path.parents):
        if (folder / COPY).is_file():
            from orchestration.remote.copies import WorkingCopy

            return WorkingCopy.open(folder)
    return None


def found_at(path: Path) -> str:
    """What to call a path of a home before anybody: in a working copy, where it is published."""
    copy = copy_of(path)
    return str(path) if copy is None else f"{copy.url}/{copy.name(path)}"


def pull(folder: Path, writing: bool = False) -> None:
    """Make a run's, trial's or campaign's folder what another machine published of it, if it did.

    writing: what comes next in it is this machine's. Raises RunError when the store does not answer.
    """
    if (copy := copy_of(folder)) is not None:
        copy.insist(copy.take if writing else copy.pull, folder, "fetched")


def looking(folder: Path) -> Callable[[], Path]:
    """Says, as often as it is called, where what has been recorded in a run's folder so far can be read.

    In a working copy it may be trained on another machine; otherwise that is the folder itself.
    """
    copy = copy_of(folder)
    if copy is None:
        return lambda: folder
    from orchestration.remote.following import Looking

    return Looking(copy, folder)


def all_looked_at(folders: Sequence[Path]) -> list[Path]:
    """Where what has been recorded in each run's folder can be read now. Raises RunError when a store is away."""
    copy = copy_of(folders[0]) if folders else None
    if copy is None:
        return list(folders)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(AT_ONCE) as several:
        return list(several.map(lambda folder: copy.insist(copy.seen, folder, "fetched"), folders))


@contextmanager
def publishing(folder: Path, turn: tuple[int, ...] = ()) -> Iterator[Callable[[], None]]:
    """For whoever trains in a run's folder: what is yielded is called when there is something worth keeping.

    turn: on whose behalf. Raises Superseded when that turn is over (see orchestration.training.turn), RunError at the
    end when not all could be published; nothing happens in a home of this machine alone.
    """
    copy = copy_of(folder)
    if copy is None:
        yield lambda: None
        return
    from orchestration.remote.following import following

    with following(copy, folder, turn) as due:
        yield due


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One process at a time works in a run's or campaign's folder; RequestError when another does. Made if missing.

    In a working copy it is one of all machines: what others published is fetched first, and all is published at the
    end. Raises RunError when that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RequestError(
            f"{folder.name} is being worked on by another process: wait for it, or change the experiment"
        ) from error
    try:
        copy = copy_of(folder)
        with copy.working(folder) if copy else nullcontext():
            yield
    finally:
        lock.release()
