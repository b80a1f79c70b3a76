"""The ledger of a campaign: one sqlite file that says what was proposed, what ran, what came of it, and why.

It is the truth: "best" is read from it, and everything is resumed from it. One process writes, the campaign's driver;
every change is one transaction, so a kill leaves the ledger before it or after it. Paths in it are relative to the
campaign's folder, which can be copied elsewhere.
"""

import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.errors import RequestError, RunError
from orchestration.home import copy_of
from search_spaces.space import Value

if TYPE_CHECKING:
    from orchestration.remote.copies import WorkingCopy

log = logging.getLogger(__name__)

FILE, VERSION = "ledger.db", 1
APPLICATION = 0x7432694C  # "t2iL": tells the file from any other sqlite file
_TABLES = """
create table campaign (name text primary key, value text not null);
create table trials (
  number integer primary key, assignment text not null, origin text not null, state text not null,
  reason text not null default '', kimg real not null default 0, figures text, checkpoint text, digest text,
  run_id text, identity text
);
create table segments (
  trial integer not null references trials, step integer not null, until_kimg real not null, assignment text not null,
  donor integer, donor_digest text, attempts integer not null default 0, state text not null,
  figures text, checkpoint text, digest text, reason text not null default '',
  primary key (trial, step)
);
"""


class State(StrEnum):
    """Of a trial. WAITING: proposed, or between two segments; the last five are ends."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    COLLAPSED = "collapsed"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self not in (State.WAITING, State.RUNNING)


class SegmentState(StrEnum):
    BEGUN = "begun"
    REACHED = "reached"
    DIVERGED = "diverged"
    COLLAPSED = "collapsed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Trial:
    """One point of the space. figures: of its last comparison, with _low and _high; checkpoint: folder relative to the
    campaign's; digest: of that checkpoint; identity: hash of its experiment; origin: "paper" for trial 0, else
    "proposed"."""

    number: int
    values: dict[str, Value]
    origin: str
    state: State = State.WAITING
    reason: str = ""
    kimg: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    digest: str | None = None
    run_id: str | None = None
    identity: str | None = None

    @property
    def name(self) -> str:
        """Of its folder and in MLflow."""
        return f"trial-{self.number:04d}"


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a trial's training between two comparisons. donor: the trial whose checkpoint it begins from, with
    that checkpoint's digest, None where it goes on from its own; attempts: times it was begun."""

    trial: int
    step: int
    until_kimg: float
    values: dict[str, Value]
    donor: int | None = None
    donor_digest: str | None = None
    attempts: int = 0
    state: SegmentState = SegmentState.BEGUN
    figures: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    digest: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reached:
    """How a segment ended. state: REACHED, or why it did not; run_id, identity: of its trial."""

    state: SegmentState
    kimg: float
    figures: dict[str, float]
    checkpoint: str | None
    digest: str | None
    run_id: str | None = None
    identity: str | None = None
    reason: str = ""


class Ledger:
    """An open ledger. Raises RequestError for a file that is none, or of a newer version; RunError when it cannot be
    written."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder, self._connection = folder, connection
        self._copy: WorkingCopy | None = None
        self._warned = False

    def publish(self) -> None:
        """From now on every change is published too, in order, where the folder is a copy of one elsewhere.

        What cannot be published now is with the next change, or at the campaign's end. Raises RunError when another
        machine has taken the campaign over.
        """
        self._copy = copy_of(self.folder)
        self._send()

    def _send(self) -> None:
        if self._copy is None:
            return
        try:
            self._copy.put(self.folder, FILE, self._connection.serialize())
        except OSError as error:
            if not self._warned:
                log.warning("the ledger of %s is not published for now: %s", self.folder.name, error)
            self._warned = True

    @classmethod
    def create(cls, folder: Path, header: Mapping[str, Any]) -> "Ledger":
        """A new one. header: JSON values by name: settings, space, base experiment, code version, identity ..."""
        path = folder / FILE
        if path.exists():
            raise RequestError(f"{folder} holds a campaign already: resume it, or give another --name")
        working = path.with_name(f".{FILE}-new")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            working.unlink(missing_ok=True)
            connection = sqlite3.connect(working)
            connection.executescript(_TABLES)
            connection.execute(f"pragma application_id = {APPLICATION}")
            connection.execute(f"pragma user_version = {VERSION}")
            with connection:
                rows = [(name, json.dumps(value)) for name, value in header.items()]
                connection.executemany("insert into campaign values (?, ?)", rows)
            connection.close()
            working.replace(path)
        except (sqlite3.Error, OSError) as error:
            raise RunError(
                f"no ledger can be written to {folder} ({error}): free disk or choose another home"
            ) from error
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "Ledger":
        """The ledger of a campaign's folder."""
        path = folder / FILE
        if not path.is_file():
            raise RequestError(f"{folder} is no campaign: it has no {FILE}")
        try:
            connection = sqlite3.connect(path, timeout=30)
            connection.execute("pragma foreign_keys = on")
            (application,) = connection.execute("pragma application_id").fetchone()
            (version,) = connection.execute("pragma user_version").fetchone()
        except sqlite3.Error as error:
            raise RequestError(f"{path} is no ledger of a campaign ({error})") from error
        if application != APPLICATION:
            raise RequestError(f"{path} is no ledger of a campaign")
        if version > VERSION:
            raise RequestError(f"{path} is of version {version}, and this t2i reads up to {VERSION}: use a newer t2i")
        return cls(folder, connection)

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connection:
                yield self._connection
            self._send()
        except sqlite3.Error as error:
            raise RunError(
                f"the ledger in {self.folder} cannot be written ({error}): free disk or mend its rights, and resume"
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Opening looks at the first page only: what is damaged further on is found here."""
        try:
            yield self._connection
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise RequestError(
                f"{self.folder / FILE} cannot be read ({error}): restore it from a copy, or run the campaign anew "
                "under another --name"
            ) from error

    @property
    def header(self) -> dict[str, Any]:
        """What the campaign was told. Raises RequestError, as `trials` and `segments` do, when it is damaged."""
        with self._reading() as reading:
            rows = reading.execute("select name, value from campaign").fetchall()
            return {name: json.loads(value) for name, value in rows}

    def note(self, name: str, value: Any) -> None:
        """Set one value of the header."""
        with self._change() as change:
            change.execute("insert or replace into campaign values (?, ?)", (name, json.dumps(value)))

    def trials(self) -> list[Trial]:
        """Every trial, by number."""
        with self._reading() as reading:
            rows = reading.execute(
                "select number, assignment, origin, state, reason, kimg, figures, checkpoint, digest, run_id, identity "
                "from trials order by number"
            )
            return [
                Trial(
                    number, json.loads(values), origin, State(state), reason, kimg, json.loads(figures or "{}"), *rest
                )
                for number, values, origin, state, reason, kimg, figures, *rest in rows
            ]

    def trial(self, number: int) -> Trial:
        """One trial; KeyError for a number that was not proposed."""
        for trial in self.trials():
            if trial.number == number:
                return trial
        raise KeyError(number)

    def segments(self) -> list[Segment]:
        """Every segment, by trial and step."""
        with self._reading() as reading:
            rows = reading.execute(
                "select trial, step, until_kimg, assignment, donor, donor_digest, attempts, state, figures, "
                "checkpoint, digest, reason from segments order by trial, step"
            )
            return [
                Segment(
                    trial, step, until, json.loads(values), donor, donor_digest, attempts, SegmentState(state),
                    json.loads(figures or "{}"), *rest,
                )
                for trial, step, until, values, donor, donor_digest, attempts, state, figures, *rest in rows
            ]  # fmt: skip

    def propose(self, number: int, values: Mapping[str, Value], origin: str) -> Trial:
        """Enter a new trial."""
        with self._change() as change:
            change.execute(
                "insert into trials (number, assignment, origin, state) values (?, ?, ?, ?)",
                (number, json.dumps(dict(values)), origin, State.WAITING),
            )
        return self.trial(number)

    def begin(self, segment: Segment) -> None:
        """A segment is about to run, for the first time or again."""
        with self._change() as change:
            change.execute(
                "insert into segments (trial, step, until_kimg, assignment, donor, donor_digest, attempts, state) "
                "values (?, ?, ?, ?, ?, ?, 1, ?) on conflict (trial, step) do update set "
                "attempts = attempts + 1, state = excluded.state",
                (
                    segment.trial,
                    segment.step,
                    segment.until_kimg,
                    json.dumps(segment.values),
                    segment.donor,
                    segment.donor_digest,
                    SegmentState.BEGUN,
                ),
            )
            change.execute(
                "update trials set state = ?, assignment = ? where number = ?",
                (State.RUNNING, json.dumps(segment.values), segment.trial),
            )

    def reach(self, segment: Segment, reached: Reached, state: State) -> None:
        """A segment ended, and its trial with it is in `state`."""
        figures = json.dumps(reached.figures)
        with self._change() as change:
            change.execute(
                "update segments set state = ?, figures = ?, checkpoint = ?, digest = ?, reason = ? "
                "where trial = ? and step = ?",
                (
                    reached.state,
                    figures,
                    reached.checkpoint,
                    reached.digest,
                    reached.reason,
                    segment.trial,
                    segment.step,
                ),
            )
            change.execute(
                "update trials set state = ?, reason = ?, kimg = ?, figures = ?, "
                "checkpoint = coalesce(?, checkpoint), digest = coalesce(?, digest), "
                "run_id = coalesce(?, run_id), identity = coalesce(?, identity) where number = ?",
                (
                    state,
                    reached.reason,
                    reached.kimg,
                    figures,
                    reached.checkpoint,
                    reached.digest,
                    reached.run_id,
                    reached.identity,
                    segment.trial,
                ),
            )

    def assign_run(self, number: int, run_id: str) -> None:
        """A trial's run in MLflow became known."""
        with self._change() as change:
            change.execute("update trials set run_id = ? where number = ?", (run_id, number))

    def end(self, number: int, state: State, reason: str) -> None:
        """A trial that waits ends without another segment."""
        with self._change() as change:
            change.execute("update trials set state = ?, reason = ? where number = ?", (state, reason, number))
