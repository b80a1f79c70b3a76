"""Progress bars: for a person who is watching, and nobody else."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from orchestration.home import looking
from orchestration.stages import Progress, quiet
from orchestration.training.recorder import read_metrics

STYLE = "T2I_PROGRESS"


class Bars:
    """A `Progress` that draws one bar after the other on standard error."""

    def __init__(self) -> None:
        self._what: str | None = None
        self._bar: tqdm[Any] | None = None
        self._lock = threading.Lock()

    def __call__(self, what: str, done: int, total: int) -> None:
        with self._lock:
            if what != self._what or self._bar is None or self._bar.total != total:
                self.close()
                self._bar = tqdm(total=total, desc=what, file=sys.stderr, leave=False, dynamic_ncols=True)
                self._what = what
            self._bar.update(done - self._bar.n)
            if done >= total:
                self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._what = None, None


class Lines:
    """A `Progress` for the log of a job that someone follows elsewhere: a line where something begins and ends, and in
    between at most one in `every_s` seconds."""

    def __init__(self, every_s: float = 10.0) -> None:
        self.every_s = every_s
        self._said: tuple[str, float] = "", 0.0
        self._lock = threading.Lock()

    def __call__(self, what: str, done: int, total: int) -> None:
        with self._lock:
            before, at = self._said
            if what == before and done < total and time.monotonic() - at < self.every_s:
                return
            self._said = what if done < total else "", time.monotonic()
            share = f" ({100 * done // total} %)" if total else ""
            print(f"{what}: {done:,} of {total:,}{share}", file=sys.stderr, flush=True)


def person_watching() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


def default_progress() -> Progress:
    """Bars for a person, silence for a log; lines where T2I_PROGRESS=lines asks for them, as in a job on a cluster."""
    if os.environ.get(STYLE) == "lines":
        return Lines()
    return Bars() if person_watching() else quiet


class Watcher:
    """Turns a run's growing metrics into progress, from a thread, while its workers train."""

    def __init__(self, folder: Path, kimg: float, progress: Progress, every_s: float = 1.0) -> None:
        self.total, self.progress, self.every_s = round(kimg * 1000), progress, every_s
        self._where = looking(folder)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watcher":
        if self.progress is not quiet and self.total:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.every_s):
            lines = read_metrics(self._where())
            if lines:
                self.progress("training, images", min(lines[-1]["images"], self.total), self.total)


Say = Callable[[str], None]
"""Tells the person one line about what happens next."""
