"""A campaign in the terminal: its trials as a table, once or redrawn while it runs."""

import json
import os
import shutil
import sqlite3
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO

from orchestration.campaigns.conductor import best
from orchestration.campaigns.ledger import FILE, Ledger, State, Trial
from orchestration.campaigns.settings import CampaignSettings
from orchestration.campaigns.standing import VALIDATION, one_line, ranked, reason_in_words, shown, standing, told_lead
from orchestration.errors import RequestError
from orchestration.home import looking
from orchestration.progress import person_watching
from orchestration.stages import Progress, quiet
from orchestration.training.recorder import METRICS

WIDTH, NARROWEST, VALUES_NEED = 110, 40, 30
TAIL_BYTES = 64 * 1024
UP, CLEAR_BELOW = "\x1b[{}F", "\x1b[J"


def trials_table(trials: Sequence[Trial], settings: CampaignSettings, width: int = WIDTH) -> str:
    """The trials as lines of at most `width` characters, best first, and a sentence on how far the best leads.

    Each with its state, kimg of its budget, objectives with their 95 % intervals, and values; below it, why it ended
    where it did not reach the budget.
    """
    width = max(width, NARROWEST)
    if not trials:
        return "no trial has begun yet"
    front = {trial.number for trial in best(trials, settings)}
    order = ranked(trials, settings)
    heads = [
        "trial",
        "state",
        "kimg",
        *(objective.figure.removeprefix(VALIDATION) for objective in settings.objectives),
    ]
    rows = [
        [
            f"{trial.name}{_marks(trial, front)}",
            str(trial.state),
            f"{trial.kimg:g}/{settings.budget_kimg:g}",
            *(str(standing(trial.figures, one.figure) or "-") for one in settings.objectives),
        ]
        for trial in order
    ]
    columns = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    lead = sum(columns) + 2 * len(columns)
    beside = width - lead >= VALUES_NEED
    lines = [f"{_line(heads, columns)}  {'values' if beside else ''}".rstrip()]
    for trial, row in zip(order, rows, strict=True):
        values = ", ".join(f"{one_line(name)}={shown(value)}" for name, value in trial.values.items())
        wrapped = textwrap.wrap(values, width - lead if beside else width - 4)
        first = wrapped.pop(0) if beside and wrapped else ""
        lines.append(f"{_line(row, columns)}  {first}".rstrip())
        indent = " " * (lead if beside else 4)
        lines += [f"{indent}{part}" for part in wrapped]
        why = reason_in_words(trial)
        lines += textwrap.wrap(why, width, initial_indent="    ", subsequent_indent="      ") if why else []
    return "\n".join(_cut(line, width) for line in [*lines, *textwrap.wrap(told_lead(trials, settings), width)])


def _marks(trial: Trial, front: set[int]) -> str:
    marks = [name for name, holds in (("best", trial.number in front), ("paper", trial.origin == "paper")) if holds]
    return f" ({', '.join(marks)})" if marks else ""


def _line(cells: Sequence[str], columns: Sequence[int]) -> str:
    return "  ".join(cell.ljust(column) for cell, column in zip(cells, columns, strict=True))


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


class LiveTable:
    """Shows a campaign that runs, from a thread that only reads its ledger.

    In a terminal the table is redrawn in place, and taken away at the end. Otherwise `progress` is told how many
    trials have ended. Nothing that goes wrong with showing disturbs the campaign.
    """

    def __init__(
        self,
        folder: Path,
        settings: CampaignSettings,
        progress: Progress = quiet,
        stream: TextIO | None = None,
        every_s: float = 1.0,
    ) -> None:
        self.folder, self.settings, self.progress, self.every_s = folder, settings, progress, every_s
        self._stream = sys.stderr if stream is None else stream
        self._redraws = _can_redraw(stream)
        self._where: dict[int, Callable[[], Path]] = {}
        self._drawn = 0
        self._last = ""
        self._said: SimpleQueue[str] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="campaign-table", daemon=True)

    def __enter__(self) -> "LiveTable":
        if self._redraws or self.progress is not quiet:
            self._thread.start()
        return self

    def say(self, line: str) -> None:
        """A line that stays, above the table, or between the lines of `progress`; silence where nothing is shown."""
        self._said.put(line)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._stop.wait(self.every_s):
                self._show()
            self._replace("")
            self._tell()
        except (OSError, ValueError):  # the terminal is gone: nobody is left to be shown anything
            return

    def _show(self) -> None:
        self._tell()
        try:
            trials = read_trials(self.folder)
        except (sqlite3.Error, RequestError):
            return  # being written, or not there yet: the next look will tell
        if self._redraws:
            self._draw([self._as_it_runs(trial) for trial in trials])
        else:
            self.progress("trials ended", sum(trial.state.ended for trial in trials), self.settings.trials)

    def _tell(self) -> None:
        lines = [self._said.get() for _ in range(self._said.qsize())]
        if not lines:
            return
        self._replace("")
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()
        self._last = ""

    def _as_it_runs(self, trial: Trial) -> Trial:
        """A running trial as far as its own records say it is; the ledger knows only of its last comparison."""
        # At the end nothing is drawn any more, and a store that hangs would be waited for once a trial.
        if trial.state != State.RUNNING or self._stop.is_set():
            return trial
        if trial.number not in self._where:
            self._where[trial.number] = looking(self.folder / "trials" / trial.name)
        return replace(trial, kimg=max(trial.kimg, _last_kimg(self._where[trial.number]() / METRICS)))

    def _draw(self, trials: Sequence[Trial]) -> None:
        columns, rows = shutil.get_terminal_size((WIDTH, 24))
        ended = sum(trial.state.ended for trial in trials)
        lines = [f"{ended} of {self.settings.trials} trials ended"]
        lines += trials_table(trials, self.settings, columns - 1).splitlines()
        room = max(rows - 1, 3)
        if len(lines) > room:
            lines = [*lines[: room - 2], f"… {len(lines) - room + 1} more lines", lines[-1]]
        text = "\n".join(_cut(line, columns - 1) for line in lines) + "\n"
        if text != self._last:
            self._replace(text)

    def _replace(self, text: str) -> None:
        """In one write, so that nothing flickers."""
        back = UP.format(self._drawn) + CLEAR_BELOW if self._drawn else ""
        self._stream.write(back + text)
        self._stream.flush()
        self._drawn, self._last = text.count("\n"), text


def read_trials(folder: Path) -> list[Trial]:
    """The trials in the ledger of a campaign that another thread or process writes.

    Raises sqlite3.Error, and RequestError for a damaged one.
    """
    with closing(sqlite3.connect(f"{(folder / FILE).absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
        return Ledger(folder, connection).trials()


def _last_kimg(path: Path) -> float:
    """Of the newest whole line, read from the end of a file that grows; 0 when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return 0.0
    for line in reversed(lines):
        try:
            return float(json.loads(line)["kimg"])
        except (ValueError, KeyError, TypeError):
            continue  # cut off in the middle of writing
    return 0.0


def _can_redraw(stream: TextIO | None) -> bool:
    """Whether a person watches a terminal that can move its cursor."""
    watching = person_watching() if stream is None else stream.isatty()
    return watching and os.environ.get("TERM", "dumb") != "dumb"
