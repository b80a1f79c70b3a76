"""What a training leaves is published beside it: it does not wait for a slow store, nor end for an absent one; and
what it records can be watched from elsewhere."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestration.errors import RunError
from orchestration.remote.copies import WorkingCopy
from orchestration.training.turn import Order, Superseded, require_turn

RETRY_S = 30.0
"""After a publication that failed the next is tried no later than so many seconds."""
RECORDS_S, LOOK_S = 10.0, 10.0
"""Seconds between two publications of what is recorded while nothing else is due, and between two looks at it."""
HANGS_S = 10.0
"""A look that takes longer is not waited for: the next one who asks may have what it finds."""

log = logging.getLogger(__name__)


@contextmanager
def following(copy: WorkingCopy, folder: Path, turn: Order = ()) -> Iterator[Callable[[], None]]:
    """What is published of the folder follows what is here, whenever what is yielded was called, and at the end.

    turn: as of `take_under`. Raises RunError when the folder cannot be fetched at first, or not all could be published
    at last.
    """
    take_under(copy, folder, turn)
    copy.insist(copy.push, folder, "published")  # workers on other machines begin from it
    follower = _Follower(copy, folder)
    follower.start()
    try:
        yield follower.due.set
    except Superseded:
        follower.stop()  # the folder is another process's, which publishes it
        raise
    except BaseException:
        follower.stop()
        with suppress(OSError, RunError):
            copy.push(folder)
        raise
    follower.stop()
    copy.insist(copy.push, folder, "published")


def take_under(copy: WorkingCopy, folder: Path, turn: Order) -> None:
    """Begin to write in the folder on behalf of whoever has this turn. Raises Superseded, and RunError.

    One that comes too late looks first: it would take the folder from the machine that has begun it again.
    """
    copy.insist(copy.pull, folder, "fetched")
    require_turn(folder, turn)
    copy.insist(copy.take, folder, "fetched")


class _Follower(threading.Thread):
    def __init__(self, copy: WorkingCopy, folder: Path) -> None:
        super().__init__(name=f"publish {folder.name}", daemon=True)
        self.copy, self.folder = copy, folder
        self.due, self._ended = threading.Event(), threading.Event()

    def run(self) -> None:
        warned, behind = False, False
        while True:
            whole = self.due.wait(RETRY_S if behind else RECORDS_S) or behind
            if self._ended.is_set():
                return
            self.due.clear()
            try:
                (self.copy.push if whole else self.copy.push_records)(self.folder)
                behind = False
            except (OSError, RunError) as error:
                behind = True
                if not warned:
                    warned = True
                    log.warning(
                        "%s is not published for now (%s: %s): training goes on, and it is tried again",
                        self.folder.name,
                        self.copy.url,
                        error,
                    )

    def stop(self) -> None:
        """Return once nothing is being published."""
        self._ended.set()
        self.due.set()
        self.join()


class Looking:
    """Where to read what a run has recorded, from a machine that may not be the one that trains it."""

    def __init__(self, copy: WorkingCopy, folder: Path) -> None:
        self.copy, self.folder = copy, folder
        self._found, self._next = folder, 0.0
        self._looks: threading.Thread | None = None

    def __call__(self) -> Path:
        """A folder that is seconds old; of a store that is away, or hangs, the last one that was seen."""
        if time.monotonic() >= self._next and (self._looks is None or not self._looks.is_alive()):
            # A call to a store can take minutes to fail, and whoever asks has more to do.
            self._looks = threading.Thread(target=self._look, name=f"look at {self.folder.name}", daemon=True)
            self._looks.start()
            self._looks.join(HANGS_S)
        return self._found

    def _look(self) -> None:
        try:
            self._found = self.copy.seen(self.folder)
        except OSError as error:
            log.info("what %s records is not seen for now (%s: %s)", self.folder.name, self.copy.url, error)
        self._next = time.monotonic() + LOOK_S
