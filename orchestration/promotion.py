"""Whether a challenger is better than a champion, from the records of judging both: numbers in, a verdict out."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, stdev

from orchestration.errors import RequestError
from orchestration.evaluation.estimates import Estimate, student
from orchestration.evaluation.record import MetricRecord, why_not_comparable
from orchestration.evaluation.tables import better


class Verdict(StrEnum):
    """On the challenger."""

    BETTER = "better"
    WORSE = "worse"
    WITHIN_NOISE = "within noise"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of challenger and champion: means of value and interval over their seeds.

    direction: "lower" or "higher", which is better; seeds: the challenger's; paired: whether the champion's are the
    same; drawn: pictures a seed; gain: how much better the challenger is, in the units of the figure, below 0 where it
    is worse; noise: a gain counts beyond it.
    """

    figure: str
    direction: str
    challenger: Estimate
    champion: Estimate
    seeds: tuple[int, ...]
    paired: bool
    drawn: int
    gain: float
    noise: float

    @property
    def verdict(self) -> Verdict:
        """Only a difference that is larger than the noise is one."""
        if abs(self.gain) <= self.noise:
            return Verdict.WITHIN_NOISE
        return Verdict.BETTER if self.gain > 0 else Verdict.WORSE

    @property
    def numbers(self) -> str:
        """All of it, as part of a sentence."""
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        return (
            f"{self.figure}, {self.direction} is better, is {_shown(self.challenger)} and the champion's "
            f"{_shown(self.champion)} ({seeds}, {self.drawn} pictures each); a gain of {self.gain:.4g} with a noise of "
            f"{self.noise:.4g} is {self.verdict}"
        )


def weigh(challenger: Sequence[MetricRecord], champion: Sequence[MetricRecord]) -> Comparison:
    """Compare one figure of two checkpoints, each judged with one sampling seed or several, a record a seed.

    The gain is the difference of the means over seeds. The noise, at 95 %, is the larger of

    - sqrt(h1^2 + h2^2), where h1 and h2 are the means over seeds of half the records' intervals. It is that of pictures
      and captions. More seeds do not make it smaller: they draw from the same captions, and the real pictures are the
      same; more pictures do. Counts of the same captions vary together, so it is rather too large than too small.
    - t s / sqrt(n), where s is the standard deviation of the n differences between records of the same seed and t the
      97.5 % quantile of Student's distribution with n - 1 degrees of freedom. It is that of seeds: what both have in
      common with a seed, its captions, cancels. Of one seed it is not known, and 0.

    Where the seeds are not the same, the second is t sqrt(s1^2 / n1 + s2^2 / n2), with the degrees of freedom of the
    side that has fewer (Welch's own would fall while the noise grows); a side of one seed is taken to spread as the
    other. How much another training of the same experiment would differ is not in it: what is promoted is a checkpoint.

    Raises RequestError for records that must not be compared, and for a figure of which neither direction is better.
    """
    for records in (challenger, champion):
        if not records:
            raise RequestError("there is nothing to compare: judge challenger and champion with one seed or more")
        _require_seeds(records)
    first = challenger[0]
    _require_comparable(first, champion[0])
    direction = better(first.metric)
    if direction is None:
        raise RequestError(f"of {first.figure} neither more nor less is better by itself: compare by another figure")
    mine, theirs = ({record.judged.seed: record.value for record in records} for records in (challenger, champion))
    sides = _mean(challenger), _mean(champion)
    if not all(math.isfinite(value) for side in sides for value in (side.value, side.low, side.high)):
        raise RequestError(f"{first.figure} is not finite: judge with more --samples, or compare by another figure")
    gain = sides[0].value - sides[1].value
    intervals = _root((side.high - side.low) / 2 for side in sides)
    return Comparison(
        first.figure,
        direction,
        *sides,
        tuple(sorted(mine)),
        mine.keys() == theirs.keys(),
        first.drawn,
        gain if direction == "higher" else -gain,
        max(intervals, _noise_of_seeds(mine, theirs)),
    )


def _require_seeds(records: Sequence[MetricRecord]) -> None:
    for number, record in enumerate(records):
        _require_comparable(records[0], record)
        if record.judged.checkpoint != records[0].judged.checkpoint:
            raise RequestError(f"records of {record.judged.run} are of two checkpoints: judge one of them again")
        if any(record.judged.seed == other.judged.seed for other in records[:number]):
            raise RequestError(f"{record.figure} of {record.judged.run} is there twice with seed {record.judged.seed}")


def _require_comparable(one: MetricRecord, other: MetricRecord) -> None:
    reason = why_not_comparable(one, other)
    if reason is not None:
        raise RequestError(f"{one.judged.run} and {other.judged.run} do not compare: {reason}")


def _mean(records: Sequence[MetricRecord]) -> Estimate:
    value, low, high = (fmean(getattr(record, name) for record in records) for name in ("value", "low", "high"))
    return Estimate(value, low, high, len(records))


def _noise_of_seeds(mine: dict[int, float], theirs: dict[int, float]) -> float:
    """Half of a 95 % interval of the difference of two means over seeds; values by seed."""
    if mine.keys() == theirs.keys():
        count = len(mine)
        if count < 2:
            return 0.0
        return student(count - 1) * stdev(mine[seed] - theirs[seed] for seed in mine) / math.sqrt(count)
    several = [list(side.values()) for side in (mine, theirs) if len(side) > 1]
    if not several:
        return 0.0
    spreads = [stdev(side) for side in several]
    one, other = spreads[0], spreads[-1]
    error = _root((one / math.sqrt(len(mine)), other / math.sqrt(len(theirs))))
    return student(min(len(side) for side in several) - 1) * error


def _root(parts: Iterable[float]) -> float:
    """Root of the sum of squares, in whatever order: no verdict depends on who is the challenger."""
    return math.sqrt(math.fsum(part * part for part in parts))


def _shown(side: Estimate) -> str:
    return f"{side.value:.4g} [{side.low:.4g}, {side.high:.4g}]"
