"""KID: known distances, subsets that hang on places alone, honest intervals, bad input."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn_by_hypothesis
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.image.kid import poly_mmd

from orchestration.evaluation.kid import SHARED_UP_TO, Kid, draw_subset, kernel_distances
from orchestration.evaluation.metric import Metric, Result

from .distributions import NET, assert_same, falling, given, normal, refusal, scattered, seen


def kid(real: NDArray[Any], drawn: NDArray[Any], seed: int = 0, **options: int) -> Result:
    (result,) = given(Kid(NET, seed, **options), drawn, real).compute()
    return result


def test_a_distance_by_hand() -> None:
    # Kernels of one feature: (xy + 1)^3. Pairs within: 1 and 27, twice; between: 1, 1, 8 and 64.
    real, drawn = np.array([[0.0], [2.0]]), np.array([[1.0], [1.5]])
    within, other = 1.0, (1 * 1.5 + 1) ** 3
    between = [1, 1, (2 * 1 + 1) ** 3, (2 * 1.5 + 1) ** 3]
    pair = (np.arange(2), np.arange(2))
    assert kernel_distances(real, drawn, [pair]) == pytest.approx(within + other - 2 * sum(between) / 4)


@pytest.mark.parametrize("size", [20, 60])
def test_shared_kernels_and_kernels_by_subset_agree_with_torchmetrics(size: int) -> None:
    real, drawn = normal(0, 100, 6), normal(1, 90, 6, 0.4)
    assert (len(real) <= SHARED_UP_TO * size) == (size == 60)
    rng = np.random.default_rng(0)
    pairs = [(rng.permutation(100)[:size], rng.permutation(90)[:size]) for _ in range(5)]
    theirs = [
        poly_mmd(torch.from_numpy(real[one]).double(), torch.from_numpy(drawn[two]).double()).item()
        for one, two in pairs
    ]
    assert kernel_distances(real, drawn, pairs) == pytest.approx(theirs, rel=1e-10)
    assert kernel_distances(real, drawn, pairs, degree=2) != pytest.approx(theirs, rel=1e-3)


def test_noise_is_farther_than_blur() -> None:
    real = falling(0, 300, 16)
    near, blurred, noise = falling(3, 300, 16), falling(1, 300, 16) * np.float32(0.9), normal(2, 300, 16, 5, 3)
    ranked = [kid(real, drawn).estimate for drawn in (near, blurred, noise)]
    assert ranked[0].value < ranked[1].value < ranked[2].value
    assert ranked[0].low < 0 < ranked[0].high


def test_subsets_hang_on_places_and_the_seed() -> None:
    places = np.arange(100)
    first = draw_subset(places, 30, 5)
    assert len(set(first)) == 30
    assert (first == draw_subset(places, 30, 5)).all()
    assert set(first) != set(draw_subset(places, 30, 6))
    shuffled = np.random.default_rng(0).permutation(100)
    assert set(shuffled[draw_subset(shuffled, 30, 5)]) == set(first)
    assert np.bincount(np.concatenate([draw_subset(places, 30, seed) for seed in range(300)])).min() > 50


@settings(deadline=None, max_examples=10)
@drawn_by_hypothesis(st.integers(1, 4), st.integers(0, 1000), st.sampled_from([(60, 50), (150, 13)]))
def test_any_way_gives_the_same(workers: int, order: int, counts: tuple[int, int]) -> None:
    real, drawn = falling(0, counts[0], 8), falling(1, counts[1], 8, 0.2)
    make = partial(Kid, NET, 3, subsets=6, subset_size=20)
    assert_same(scattered(make, workers, order, drawn, real).compute(), given(make(), drawn, real).compute())


@pytest.mark.parametrize("shift", [0.1, 0.4])
@pytest.mark.parametrize("size", [40, 200])
def test_intervals_hold_what_other_draws_give(shift: float, size: int) -> None:
    estimates = [
        kid(normal(seed, 200, 6), normal(1000 + seed, 200, 6, shift), seed, subsets=20, subset_size=size).estimate
        for seed in range(60)
    ]
    values = np.array([estimate.value for estimate in estimates])
    halves = np.array([(estimate.high - estimate.low) / 2 for estimate in estimates])
    assert np.mean(np.abs(values - values.mean()) <= halves) >= 0.85
    assert 0.75 < halves.mean() / 1.96 / values.std(ddof=1) < 1.7


def test_subsets_are_as_published_or_half_of_what_there_is() -> None:
    result = kid(normal(0, 50, 4), normal(1, 31, 4))
    assert result.details["subset_size"] == 15
    assert result.notes == ("subsets of 15: 31 pictures are too few for larger",)
    assert (result.figure, result.real, result.drawn, result.estimate.count) == (f"kid/{NET}", 50, 31, 31)
    other = kid(normal(0, 50, 4), normal(1, 31, 4), subsets=9, subset_size=12)
    assert (other.figure, other.notes, other.details["subset_size"]) == (f"kid/{NET}/9x12", (), 12)
    assert other.details["std"] > 0
    with pytest.raises(ValueError, match="not 100 of 1"):
        Kid(NET, subset_size=1)


def test_features_are_kept_as_float32() -> None:
    metric = given(Kid(NET), normal(0, 30, 4), normal(1, 20, 4))
    kept = [rows for side in (metric._real, metric._drawn) for _, rows in side._parts]
    assert sum(rows.nbytes for rows in kept) == (30 + 20) * 4 * 4


def test_it_is_a_metric() -> None:
    metric: Metric = Kid(NET)
    assert (metric.looks_at, metric.looks_at_real, metric.plan) == ({NET}, {NET}, "captions")


def test_bad_input() -> None:
    message = refusal(given(Kid(NET), normal(0, 9, 4), normal(1, 1, 4)).compute)
    assert message == f"kid/{NET} needs at least 4 real pictures, and has 1: judge more"
    assert "the real pictures have 5 and those drawn 4" in refusal(
        given(Kid(NET), normal(0, 9, 4), normal(1, 9, 5)).compute
    )
    rows = normal(0, 9, 4)
    rows[3] = np.nan
    for update in (Kid(NET).update, Kid(NET).update_real):
        assert "at place 3 holds values that are not finite" in refusal(lambda update=update: update(seen(rows)))
    metric = given(Kid(NET), normal(0, 9, 4), normal(1, 9, 4))
    with pytest.raises(ValueError, match="at place 0 came twice"):
        metric.update(seen(normal(0, 9, 4)))
    before = metric.compute()
    for other in (Kid("other"), Kid(NET, 1), Kid(NET, subsets=7)):
        with pytest.raises(ValueError, match=f"is not kid/{NET}"):
            metric.merge(other)
    assert_same(metric.compute(), before)
