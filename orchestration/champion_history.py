"""The history of a model's champions: entries in the registry, as tags of the versions that they are about.

An entry is written before the alias moves, and the alias is what counts: where the two differ, because a command was
killed in between or someone moved the alias by hand, the next decision begins with an entry that says so.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from orchestration.errors import RequestError
from orchestration.registry import PREVIOUS_TAG, ModelVersion
from orchestration.tracking import Tracker

ENTRY_TAG = "t2i.history."


class Decision(StrEnum):
    """What an entry says. FOUND: the alias is not where the entry before had left it."""

    FIRST = "first"
    PROMOTED = "promoted"
    REFUSED = "refused"
    ROLLED_BACK = "rolled back"
    FOUND = "found"


class Judgement(msgspec.Struct, frozen=True):
    """The numbers behind an entry; as in orchestration.promotion.Comparison.

    challenger, champion: value, low and high; records: artifact of the version's run that has all records.
    """

    figure: str
    direction: str
    verdict: str
    challenger: tuple[float, float, float]
    champion: tuple[float, float, float]
    gain: float
    noise: float
    seeds: tuple[int, ...]
    drawn: int
    records: str


class Entry(msgspec.Struct, frozen=True):
    """One decision on a version.

    number: from 1, by model; champion, replaced: versions that carry the alias after it and before it; at: UTC;
    command: that decided; forced: against the judgement, or without one.
    """

    number: int
    decision: Decision
    version: int
    champion: int
    replaced: int | None
    reason: str
    at: str
    command: str = ""
    forced: bool = False
    judgement: Judgement | None = None

    @property
    def line(self) -> str:
        """For a person."""
        forced = ", forced" if self.forced else ""
        return f"{self.number:3}  {self.at}  version {self.version}  {self.decision}{forced}: {self.reason}"


def read_history(versions: Sequence[ModelVersion]) -> list[Entry]:
    """The entries of a model's versions, oldest first. Raises RequestError for a tag that is none."""
    found = []
    for version in versions:
        for name, value in version.tags.items():
            if not name.startswith(ENTRY_TAG):
                continue
            try:
                found.append(msgspec.json.decode(value, type=Entry))
            except msgspec.MsgspecError as error:
                raise RequestError(
                    f"the tag {name} of version {version.version} of {version.model} is no entry of its history "
                    f"({error}): delete that tag in MLflow"
                ) from error
    return sorted(found, key=lambda entry: (entry.number, entry.at))


def champions(entries: Sequence[Entry]) -> list[int]:
    """The versions that a roll-back goes through, the champion last: promotion adds one, a roll-back takes away."""
    line: list[int] = []
    for entry in entries:
        if entry.decision is Decision.ROLLED_BACK:
            line = _back_to(line, entry.champion)
        elif entry.decision is Decision.FOUND:
            if line[-2:-1] == [entry.champion]:
                # The promotion before was cut off, or undone by hand.
                line.pop()
                continue
            if not line and entry.replaced is not None:
                line.append(entry.replaced)
            line.append(entry.champion)
        elif entry.decision is not Decision.REFUSED:
            line.append(entry.champion)
    return line


def _back_to(line: list[int], version: int) -> list[int]:
    kept = line[:-1]
    while kept and kept[-1] != version:
        kept.pop()
    return kept or [version]


def settle(tracker: Tracker, model: str, champion: ModelVersion | None) -> list[Entry]:
    """The history, brought up to where the alias is now. To be called while deciding."""
    entries = read_history(tracker.versions(model))
    line = champions(entries)
    if champion is None or (line and line[-1] == champion.version):
        return entries
    before = int(champion.tags[PREVIOUS_TAG]) if not line and PREVIOUS_TAG in champion.tags else None
    entry = Entry(
        next_number(entries),
        Decision.FOUND,
        champion.version,
        champion.version,
        line[-1] if line else before,
        "it has the alias champion, which was moved by hand, before there was a history, or by a command that was "
        "cut off",
        now(),
    )
    write(tracker, model, entry)
    return [*entries, entry]


def write(tracker: Tracker, model: str, entry: Entry) -> None:
    """Write an entry, and its decision as tags that MLflow's page shows beside the version."""
    judged = entry.judgement
    tags = {
        f"{ENTRY_TAG}{entry.number:04d}": msgspec.json.encode(entry).decode(),
        "t2i.decision": entry.decision.value,
        "t2i.decided_at": entry.at,
        "t2i.reason": entry.reason,
        "t2i.forced": str(entry.forced).lower(),
        "t2i.champion_before": str(entry.replaced or "none"),
        # Always all of them: those of an earlier decision must not stand beside this one.
        "t2i.verdict": judged.verdict if judged else "not judged",
        "t2i.judged_by": judged.figure if judged else "none",
        "t2i.gain": f"{judged.gain:.6g}" if judged else "none",
        "t2i.noise": f"{judged.noise:.6g}" if judged else "none",
    }
    tracker.tag_version(model, entry.version, tags)


def next_number(entries: Sequence[Entry]) -> int:
    """Of a new entry."""
    return max((entry.number for entry in entries), default=0) + 1


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
