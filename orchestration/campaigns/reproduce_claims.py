"""Whether a paper's claim holds in our figures: only differences beyond the noise count, either way.

With one training a row the noise is that of the pictures drawn to judge it. With several it is also how trainings of
the same row differ, pooled over all rows, as every row alone has too few to say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from msgspec.structs import replace

from orchestration.campaigns.reproduce_scales import Measure
from orchestration.errors import RequestError
from orchestration.evaluation.estimates import STUDENT, student
from orchestration.evaluation.record import MetricRecord, compare
from search_spaces.tables import Claim

HOLDS, REVERSED, WITHIN_NOISE, NOT_JUDGED = "holds", "reversed", "within noise", "not judged"
VERDICTS = (HOLDS, REVERSED, WITHIN_NOISE, NOT_JUDGED)

NORMAL = 1.96


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of one row: a record for each of its trainings, by seed."""

    records: tuple[MetricRecord, ...]

    @property
    def mean(self) -> MetricRecord:
        """The last record with the mean value and interval of all."""
        value, low, high = (
            fmean(getattr(record, name) for record in self.records) for name in ("value", "low", "high")
        )
        return replace(self.records[-1], value=value, low=low, high=high)

    @property
    def spread(self) -> float | None:
        """Standard deviation over trainings, None for one."""
        if len(self.records) < 2:
            return None
        return math.sqrt(self.squares / (len(self.records) - 1))

    @property
    def squares(self) -> float:
        """Sum of the squared distances from the mean."""
        centre = fmean(record.value for record in self.records)
        return math.fsum((record.value - centre) ** 2 for record in self.records)


@dataclass(frozen=True, slots=True)
class Noise:
    """How one figure differs among trainings of the same row: standard deviation, and degrees of freedom behind it."""

    deviation: float = 0.0
    freedom: int = 0

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> "Noise":
        """Pooled over the rows that were trained more than once."""
        freedom = sum(len(cell.records) - 1 for cell in cells)
        if not freedom:
            return cls()
        return cls(math.sqrt(math.fsum(cell.squares for cell in cells) / freedom), freedom)

    @property
    def critical(self) -> float:
        """So many standard errors are the noise at 95 %."""
        return student(self.freedom) if 0 < self.freedom <= len(STUDENT) else NORMAL


@dataclass(frozen=True, slots=True)
class Verdict:
    """What our figures say of a claim. gain: how much better `better` is than `worse`, in the units of the figure,
    below 0 where it is worse; error: its standard error; critical: as of Noise; reason: why it is not judged."""

    verdict: str
    worse: str
    better: str
    gain: float = math.nan
    error: float = math.nan
    critical: float = NORMAL
    reason: str = ""


def judge_claim(claim: Claim, measure: Measure, cells: Mapping[str, Cell], noise: Noise) -> Verdict:
    """The verdict on a claim by one figure; cells: by row, without those that have none.

    Rows in order hold where the last is better than the first and no step goes back; a step back, or the last being
    worse, is a reversal, each beyond the noise.
    """
    first, last = claim.order[0], claim.order[-1]
    missing = [row for row in claim.order if row not in cells]
    if missing:
        return Verdict(NOT_JUDGED, first, last, reason=f"{', '.join(missing)}: no figure")
    whole = _step(first, last, measure, cells, noise)
    if whole.verdict in (REVERSED, NOT_JUDGED) or len(claim.order) == 2:
        return whole
    steps = [_step(worse, better, measure, cells, noise) for worse, better in pairwise(claim.order)]
    unjudged = [step for step in steps if step.verdict == NOT_JUDGED]
    back = [step for step in steps if step.verdict == REVERSED]
    return min(unjudged or back or [whole], key=lambda step: step.gain)


def _step(worse: str, better: str, measure: Measure, cells: Mapping[str, Cell], noise: Noise) -> Verdict:
    one, other = cells[worse], cells[better]
    trainings = min(len(one.records), len(other.records))
    try:
        difference = compare(one.mean, other.mean, noise.deviation / math.sqrt(trainings))
    except RequestError as error:
        return Verdict(NOT_JUDGED, worse, better, reason=str(error))
    gain = difference.value if measure.better == "higher" else -difference.value
    if not (math.isfinite(gain) and math.isfinite(difference.error)):
        return Verdict(NOT_JUDGED, worse, better, reason="a figure is not finite")
    limit = noise.critical * difference.error
    verdict = HOLDS if gain > limit else REVERSED if -gain > limit else WITHIN_NOISE
    return Verdict(verdict, worse, better, gain, difference.error, noise.critical)
