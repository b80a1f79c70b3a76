"""Whose turn it is to write a run's folder, of several processes that train the same run.

A machine that is cut off goes on training, unheard, while its run is begun again elsewhere; and a process may be held
up for minutes anywhere and then go on. So whoever begins takes a turn, written down in the folder, and whoever writes
looks first whether it is its own still. One that is not ends there: `Superseded`.

Looking and writing are one step for everybody who sees the folder's lock: taking a turn waits until what is being
written is written. That holds on one machine and on file systems that share locks (NFS 4, Lustre). A machine that an
NFS server has given up loses its locks without a word: one that is held up for longer than the server's lease exactly
between its look and its rename writes once more. Machines with copies of their own, as of a home on object storage, are
kept apart by `orchestration.remote`.

A turn is numbers, the first from whoever drives the training, one more from each that begins on its behalf: 7 begets
7.1, which begets 7.1.1 and, when a group of workers is started again, 7.1.2. A turn holds as long as nobody has taken
one that neither is it nor was begotten by it; one that is older than the folder's cannot be taken any more.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from orchestration.errors import RunError
from orchestration.stages import write_atomically

TURN, LOCK = "turn.json", ".turn.lock"
PATIENCE_S = 60.0

Order = tuple[int, ...]
Writing = Callable[[], AbstractContextManager[object]]
"""Within it one may write; it may refuse with Superseded."""


class Superseded(RunError):
    """The folder is another process's by now."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to write a run's folder, until somebody takes the next."""

    folder: Path
    order: Order

    @classmethod
    def take(cls, folder: Path, under: Order = ()) -> "Turn":
        """The next turn begotten by `under`; whoever wrote before no longer does.

        Raises Superseded when `under` holds no longer, RunError when another process does not end writing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            now = require_turn(folder, under)
            begotten = now[: len(under)] == under
            turn = cls(folder, (*under, now[len(under)] + 1 if begotten and len(now) > len(under) else 1))
            write_atomically(folder / TURN, json.dumps(turn.order))
        return turn

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody takes the next turn while the body writes, which should be short. Raises as `take`."""
        with _locked(self.folder):
            if _read(self.folder)[: len(self.order)] != self.order:
                raise _superseded(self.folder)
            yield


def require_turn(folder: Path, under: Order) -> Order:
    """The turn it is. Raises Superseded when `under` holds no longer and can beget none."""
    now = _read(folder)
    if now[: len(under)] != under and now > under:
        raise _superseded(folder)
    return now


def next_turn(folder: Path) -> Order:
    """For whoever drives the training of a folder, alone: later than all before, those not heard of too."""
    # The folder may be a copy that lags behind, and clocks of two machines differ: the later of both.
    return (max([time.time_ns(), *(number + 1 for number in _read(folder)[:1])]),)


def _superseded(folder: Path) -> Superseded:
    return Superseded(
        f"{folder.name} was begun again by another process, which trains it now: this one was cut off or taken for "
        "dead, and writes nothing more"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout as error:
        raise RunError(
            f"another process still writes in {folder} after {PATIENCE_S:g} s: end it, then repeat the command"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _read(folder: Path) -> Order:
    """The turn it is; none in a folder that nobody has written."""
    try:
        return tuple(int(number) for number in json.loads((folder / TURN).read_text()))
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError) as error:
        raise RunError(f"{folder / TURN} is broken: remove it once nothing trains in {folder}") from error
