"""Records of judging: a figure never travels without its protocol, its counts, its uncertainty and what was judged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from orchestration.errors import RequestError
from orchestration.evaluation.metric import Result, View

FORMAT = 1


class Judged(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was judged, on what, and how: the same for all figures of one evaluation.

    system, recipe, run: names; checkpoint: digest, empty for real pictures; kimg: thousands of pictures seen in
    training; data: the source, such as coco:PATH; data_digest, split: of the real pictures and captions; pictures: how
    they were made ready, such as "xmcgan 128"; seed: of captions and noise.
    """

    system: str
    recipe: str
    run: str
    checkpoint: str
    kimg: float
    data: str
    data_digest: str
    split: str
    pictures: str
    seed: int


class MetricRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One figure of one evaluation.

    views: digests of the weights that looked, by view; low, high: 95 % interval; count: independent samples behind the
    interval; real, drawn: pictures of each kind; seconds: of the whole evaluation it is part of.
    """

    metric: str
    protocol: str
    value: float
    low: float
    high: float
    count: int
    real: int
    drawn: int
    judged: Judged
    views: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    details: dict[str, float] = {}
    seconds: float = 0.0
    format: int = FORMAT

    @property
    def figure(self) -> str:
        """METRIC/PROTOCOL."""
        return f"{self.metric}/{self.protocol}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    @classmethod
    def of(cls, result: Result, judged: Judged, views: Sequence[View], seconds: float) -> Self:
        """The record of a metric's result, by the views that it looks at."""
        estimate = result.estimate
        return cls(
            result.name,
            result.protocol,
            estimate.value,
            estimate.low,
            estimate.high,
            estimate.count,
            result.real,
            result.drawn,
            judged,
            {view.name: view.digest for view in views},
            (*result.notes, *(note for view in views for note in view.notes)),
            dict(result.details),
            seconds,
        )


def by_figure(records: Sequence[MetricRecord]) -> dict[str, MetricRecord]:
    """The records of one evaluation by METRIC/PROTOCOL."""
    return {record.figure: record for record in records}


def to_json(records: Sequence[MetricRecord]) -> bytes:
    """Records as JSON, one a line."""
    return b"".join(msgspec.json.encode(record) + b"\n" for record in records)


def from_json(content: bytes, source: str) -> list[MetricRecord]:
    """The records that `to_json` wrote. Raises RequestError naming `source` and the line."""
    records = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            record = msgspec.json.decode(line, type=MetricRecord)
        except msgspec.MsgspecError as error:
            raise RequestError(f"{source}, line {number}, is no record of an evaluation ({error})") from error
        if record.format != FORMAT:
            raise RequestError(
                f"{source}, line {number}, is of format {record.format}, and this version reads {FORMAT}: judge again"
            )
        records.append(record)
    return records


def why_not_comparable(one: MetricRecord, other: MetricRecord) -> str | None:
    """Why two figures must not be compared, as the end of a sentence; None where they may."""
    if one.figure != other.figure:
        return f"{one.figure} is not {other.figure}"
    for view in sorted(one.views.keys() | other.views.keys()):
        if one.views.get(view) != other.views.get(view):
            return f"the weights of {view} differ"
    same = {
        "data": (one.judged.data_digest, other.judged.data_digest),
        "split": (one.judged.split, other.judged.split),
        "way the pictures were made ready": (one.judged.pictures, other.judged.pictures),
        "number of real pictures": (one.real, other.real),
        "number of pictures drawn": (one.drawn, other.drawn),
    }
    for what, (mine, theirs) in same.items():
        if mine != theirs:
            shown = "" if what == "data" else f" ({mine} and {theirs})"
            return f"the {what} differs{shown}"
    return None


@dataclass(frozen=True, slots=True)
class Difference:
    """`value` = other - one, with its standard error and whether it is more than the noise (1.96 of them)."""

    value: float
    error: float
    beyond_noise: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "beyond_noise", abs(self.value) > 1.96 * self.error)


def compare(one: MetricRecord, other: MetricRecord, noise: float = 0.0) -> Difference:
    """Difference of two figures; raises RequestError for two that must not be compared.

    noise: standard deviation of the figure over sampling seeds, where it was measured: the larger of it and the
    interval's counts. The samples are taken as independent; drawn for the same captions they vary less.
    """
    reason = why_not_comparable(one, other)
    if reason is not None:
        raise RequestError(f"{one.judged.run} and {other.judged.run} do not compare in {one.figure}: {reason}")
    errors = (max((record.high - record.low) / (2 * 1.96), noise) for record in (one, other))
    return Difference(other.value - one.value, math.hypot(*errors))


def noise_floor(records: Sequence[MetricRecord]) -> float:
    """Standard deviation of one figure over the sampling seeds of one checkpoint. Raises RequestError for fewer than
    two, or for figures that differ in more than the seed."""
    if len(records) < 2:
        raise RequestError("the noise floor needs two sampling seeds or more: evaluate with --seeds 3")
    for record in records[1:]:
        reason = why_not_comparable(records[0], record)
        if reason is None and record.judged.checkpoint != records[0].judged.checkpoint:
            reason = "they are of two checkpoints"
        if reason is not None:
            raise RequestError(f"no noise floor of {records[0].figure}: {reason}")
    values = [record.value for record in records]
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))
