"""Where state lives: one folder, `--home` or T2I_HOME."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from orchestration.errors import RequestError

DEFAULT = "t2i-home"


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
    """The home named by the option, else by T2I_HOME, else ./t2i-home; absolute."""
    return Home(Path(option or os.environ.get("T2I_HOME") or DEFAULT).expanduser().resolve())


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One process at a time works in a run's or campaign's folder; RequestError when another does. Made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RequestError(
            f"{folder.name} is being worked on by another process: wait for it, or change the experiment"
        ) from error
    try:
        yield
    finally:
        lock.release()
