"""Whether a challenger wins: the noise, the verdict, and what must not be compared."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestration.errors import RequestError
from orchestration.evaluation.estimates import QUANTILE_95, student
from orchestration.evaluation.record import MetricRecord
from orchestration.promotion import Verdict, weigh
from tests.promotion_support import made, side

OPPOSITE = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER, Verdict.WITHIN_NOISE: Verdict.WITHIN_NOISE}


class TestNoise:
    def test_of_one_seed_it_is_the_intervals(self) -> None:
        found = weigh([made(10, half=3)], [made(16, half=4, run="champion")])
        assert found.gain == 6 and found.noise == pytest.approx(5) and found.verdict is Verdict.BETTER
        assert weigh([made(10, half=3)], [made(14.9, half=4)]).verdict is Verdict.WITHIN_NOISE
        assert weigh([made(20, half=3)], [made(14.9, half=4)]).verdict is Verdict.WORSE

    def test_exactly_the_noise_is_no_win(self) -> None:
        assert weigh([made(10, half=3)], [made(15, half=4)]).verdict is Verdict.WITHIN_NOISE

    def test_more_seeds_do_not_narrow_the_intervals(self) -> None:
        found = weigh(side([10, 10, 10, 10], half=3), side([16, 16, 16, 16], half=4))
        assert found.noise == pytest.approx(5)
        assert (found.challenger.low, found.challenger.high, found.challenger.count) == (7, 13, 4)

    def test_what_both_have_in_common_with_a_seed_cancels(self) -> None:
        mine, theirs = side([10, 20, 30], half=0.1), side([12, 22.5, 31.5], half=0.1)
        found = weigh(mine, theirs)
        assert found.paired and found.gain == pytest.approx(2) and found.seeds == (0, 1, 2)
        # The differences are 2, 2.5 and 1.5: their deviation is 0.5.
        assert found.noise == pytest.approx(4.303 * 0.5 / math.sqrt(3))
        assert found.verdict is Verdict.BETTER

    def test_other_seeds_do_not_cancel(self) -> None:
        found = weigh(side([10, 20, 30], half=0.1), side([12, 22.5, 31.5], half=0.1, seed=7))
        assert not found.paired and found.verdict is Verdict.WITHIN_NOISE
        spreads = 10.0, math.sqrt(sum((value - 22) ** 2 for value in (12, 22.5, 31.5)) / 2)
        assert found.noise == pytest.approx(4.303 * math.hypot(*spreads) / math.sqrt(3))

    def test_a_side_of_one_seed_spreads_as_the_other(self) -> None:
        found = weigh(side([10, 14], half=0.1), side([12], half=0.1, seed=7))
        assert found.noise == pytest.approx(12.706 * math.sqrt(8) * math.sqrt(1 / 2 + 1))
        assert weigh(side([10], half=1), side([12], half=1, seed=7)).noise == pytest.approx(math.sqrt(2))

    def test_higher_may_be_better(self) -> None:
        mine, theirs = (side([value] * 2, half=0.01, figure="accuracy/thing") for value in (0.9, 0.5))
        assert weigh(mine, theirs).verdict is Verdict.BETTER and weigh(theirs, mine).verdict is Verdict.WORSE

    def test_the_sentence_has_the_numbers(self) -> None:
        told = weigh(side([10, 11], half=3), side([20, 21], half=4, run="champion")).numbers
        assert told == (
            "fid/scenes-net, lower is better, is 10.5 [7.5, 13.5] and the champion's 20.5 [16.5, 24.5] (2 seeds, 64 "
            "pictures each); a gain of 10 with a noise of 5 is better"
        )


class TestWhatDoesNotCompare:
    @pytest.mark.parametrize(
        ("other", "reason"),
        [
            (made(1, figure="kid/scenes-net"), "fid/scenes-net is not kid/scenes-net"),
            (made(1, data="other"), "the data differs"),
            (made(1, split="val"), r"the split differs \(test and val\)"),
            (made(1, drawn=65), r"number of pictures drawn differs \(64 and 65\)"),
        ],
    )
    def test_two_sides(self, other: MetricRecord, reason: str) -> None:
        with pytest.raises(RequestError, match=reason):
            weigh([made(1)], [other])
        with pytest.raises(RequestError, match="do not compare"):
            weigh([made(1), other], [made(1)])

    @pytest.mark.parametrize(
        ("mine", "theirs", "reason"),
        [
            ([], [made(1)], "nothing to compare"),
            ([made(1)], [], "nothing to compare"),
            ([made(1), made(2)], [made(1)], "twice with seed 0"),
            ([made(1), made(2, 1, run="other")], [made(1)], "of two checkpoints"),
            ([made(math.nan)], [made(1)], "is not finite"),
            ([made(1)], [made(math.inf)], "is not finite"),
            ([made(1, half=math.nan)], [made(1)], "is not finite"),
            ([made(1, figure="lpips/alex")], [made(1, figure="lpips/alex")], "neither more nor less is better"),
        ],
    )
    def test_records(self, mine: list[MetricRecord], theirs: list[MetricRecord], reason: str) -> None:
        with pytest.raises(RequestError, match=reason):
            weigh(mine, theirs)


VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
SEVERAL = st.lists(VALUES, min_size=1, max_size=5)
HALVES = st.floats(0, 20)
FIGURES = st.sampled_from(["fid/scenes-net", "accuracy/thing"])


@settings(deadline=None, max_examples=200)
@given(one=SEVERAL, other=SEVERAL, half=HALVES, second=HALVES, figure=FIGURES, seed=st.sampled_from([0, 9]))
def test_swapped_sides_have_the_opposite_verdict(
    one: list[float], other: list[float], half: float, second: float, figure: str, seed: int
) -> None:
    mine, theirs = side(one, half, "one", figure), side(other, second, "other", figure, seed)
    there, back = weigh(mine, theirs), weigh(theirs, mine)
    assert there.gain == -back.gain and there.noise == back.noise
    assert back.verdict is OPPOSITE[there.verdict]


@settings(deadline=None, max_examples=200)
@given(
    one=SEVERAL,
    other=SEVERAL,
    half=HALVES,
    wider=st.floats(1, 5),
    spread=st.floats(1, 5),
    seed=st.sampled_from([0, 9]),
    which=st.sampled_from(["challenger", "champion", "both"]),
)
def test_more_noise_never_makes_a_win(
    one: list[float], other: list[float], half: float, wider: float, spread: float, seed: int, which: str
) -> None:
    """Wider intervals, and seeds that lie further apart around the same mean."""

    def louder(values: list[float], changed: bool) -> list[float]:
        centre = math.fsum(values) / len(values)
        return [centre + (value - centre) * (spread if changed else 1.0) for value in values]

    # Paired, what one side adds to its spread may cancel that of the other: there the differences are made to spread.
    together = seed == 0 and len(one) == len(other)
    mine = [a - b for a, b in zip(one, other, strict=True)] if together else one
    theirs = [0.0] * len(other) if together else other
    calm = weigh(side(mine, half), side(theirs, half, "champion", seed=seed))
    halves = [half * wider if which in (name, "both") else half for name in ("challenger", "champion")]
    loud = weigh(
        side(louder(mine, which != "champion" or together), halves[0]),
        side(louder(theirs, which != "challenger"), halves[1], "champion", seed=seed),
    )
    assert loud.noise >= calm.noise - 1e-9
    assume(abs(abs(calm.gain) - calm.noise) > 1e-6)
    if calm.verdict is not Verdict.BETTER:
        assert loud.verdict is not Verdict.BETTER


@settings(deadline=None, max_examples=100)
@given(values=SEVERAL, other=SEVERAL, half=HALVES, data=st.data())
def test_the_order_of_records_does_not_matter(
    values: list[float], other: list[float], half: float, data: st.DataObject
) -> None:
    mine, theirs = side(values, half), side(other, half, "champion")
    shuffled: list[Any] = data.draw(st.permutations(mine))
    there, again = weigh(mine, theirs), weigh(shuffled, theirs)
    assert again.gain == pytest.approx(there.gain) and again.noise == pytest.approx(there.noise)


def test_students_quantiles_go_down_to_the_normal_one() -> None:
    found = [student(freedom) for freedom in range(1, 40)]
    assert found == sorted(found, reverse=True) and found[0] == 12.706 and found[-1] == QUANTILE_95
    with pytest.raises(ValueError, match="a degree of freedom"):
        student(0)


def test_intervals_need_not_be_symmetric() -> None:
    record = msgspec.structs.replace(made(0.5, figure="accuracy/thing"), low=0.4, high=0.8)
    other = msgspec.structs.replace(made(0.1, figure="accuracy/thing"), low=0.1, high=0.1)
    assert weigh([record], [other]).noise == pytest.approx(0.2)
