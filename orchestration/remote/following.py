"""What a training leaves is published beside it: it does not wait for a slow store, nor end for an absent one."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestration.errors import RunError
from orchestration.remote.copies import WorkingCopy

RETRY_S = 30.0
"""After a publication that failed the next is tried no later than so many seconds."""

log = logging.getLogger(__name__)


@contextmanager
def following(copy: WorkingCopy, folder: Path) -> Iterator[Callable[[], None]]:
    """What is published of the folder follows what is here, whenever what is yielded was called, and at the end.

    Raises RunError when the folder cannot be fetched at first, or not all could be published at last.
    """
    copy.insist(copy.take, folder, "fetched")
    copy.insist(copy.push, folder, "published")  # workers on other machines begin from it
    follower = _Follower(copy, folder)
    follower.start()
    try:
        yield follower.due.set
    except BaseException:
        follower.stop()
        with suppress(OSError, RunError):
            copy.push(folder)
        raise
    follower.stop()
    copy.insist(copy.push, folder, "published")


class _Follower(threading.Thread):
    def __init__(self, copy: WorkingCopy, folder: Path) -> None:
        super().__init__(name=f"publish {folder.name}", daemon=True)
        self.copy, self.folder = copy, folder
        self.due, self._ended = threading.Event(), threading.Event()

    def run(self) -> None:
        warned, behind = False, False
        while True:
            self.due.wait(RETRY_S if behind else None)
            if self._ended.is_set():
                return
            self.due.clear()
            try:
                self.copy.push(self.folder)
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
