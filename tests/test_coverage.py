"""Precision, recall, density and coverage: distributions whose figures are known, bounded memory, bad input."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn_by_hypothesis
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestration.evaluation import coverage
from orchestration.evaluation.coverage import PROTOCOLS, Balls, Coverage, reaches
from orchestration.evaluation.metric import Metric, Result

from .distributions import NET, assert_same, given, normal, refusal, scattered, seen

FIGURES = ["precision", "recall", "density", "coverage"]


def judged(real: NDArray[Any], drawn: NDArray[Any], seed: int = 0, **options: int) -> dict[str, Result]:
    results = given(Coverage(NET, seed, **options), drawn, real).compute()
    assert [result.name for result in results] == FIGURES
    return {result.name: result for result in results}


def values(real: NDArray[Any], drawn: NDArray[Any]) -> dict[str, float]:
    return {name: result.estimate.value for name, result in judged(real, drawn).items()}


def test_reaches_are_distances_to_the_nearest_others() -> None:
    rows = torch.tensor([[0.0], [1.0], [3.0], [7.0], [7.0]], dtype=torch.float64)
    first, third = reaches(rows, (1, 3))
    assert first.tolist() == pytest.approx([1, 1, 2, 0, 0], abs=1e-6)
    assert third.tolist() == pytest.approx([7, 6, 4, 6, 6])


def test_balls_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reals at 0 to 7: the balls of the ends reach 3 and 5 far, those in the middle 2 and 3.
    real = np.arange(8, dtype=np.float32)[:, None]
    drawn = np.array([-4, -2.5, 3.5, 50, 51, 52], np.float32)[:, None]
    for chunk in (2, 500):
        monkeypatch.setattr(coverage, "CHUNK", chunk)
        found = Balls(real, drawn)
        assert found.within_real.tolist() == [False, True, True, False, False, False]
        # Reaches of the drawn to their 3rd: 54, 53.5, 47.5 and more.
        assert found.within_drawn.all()
        assert found.balls.tolist() == [
            sum(abs(place - other) <= reach for other, reach in zip(range(8), (5, 4, 3, 3, 3, 3, 4, 5), strict=True))
            for place in (-4, -2.5, 3.5, 50, 51, 52)
        ]
        assert found.covered.all()


def test_equal_distributions() -> None:
    found = values(normal(0, 1500, 3), normal(1, 1500, 3))
    assert found["precision"] > 0.9
    assert found["recall"] > 0.9
    assert found["density"] == pytest.approx(1, abs=0.06)
    # 1 - (N-1)...(N-5) / (2N-1)...(2N-5), which is 31/32 in the limit (Naeem et al. 2020, section 3.3).
    assert found["coverage"] == pytest.approx(31 / 32, abs=0.015)


def test_disjoint_distributions() -> None:
    assert set(values(normal(0, 200, 4), normal(1, 200, 4, 100)).values()) == {0}


def test_one_mode_is_precise_and_reaches_little() -> None:
    modes = 20 * np.eye(6, dtype=np.float32)
    real = normal(0, 600, 6) + modes[np.arange(600) % 6]
    found = values(real, normal(1, 600, 6) + modes[0])
    assert found["precision"] > 0.8
    assert found["recall"] < 0.3
    assert found["coverage"] < 0.3
    # And the other way: one mode is real, and the generator makes six.
    found = values(normal(0, 600, 6) + modes[0], normal(1, 600, 6) + modes[np.arange(600) % 6])
    assert found["precision"] < 0.3
    assert found["recall"] > 0.8


def test_a_constant_generator_reaches_nothing() -> None:
    real = normal(0, 300, 4)
    found = values(real, np.repeat(real[:1], 300, axis=0))
    assert (found["precision"], found["density"] > 0) == (1, True)
    assert found["recall"] <= 1 / 300
    assert found["coverage"] < 0.05


@settings(deadline=None, max_examples=10)
@drawn_by_hypothesis(st.integers(1, 4), st.integers(0, 1000), st.sampled_from([(60, 50), (200, 13), (70, 90)]))
def test_any_way_gives_the_same(workers: int, order: int, counts: tuple[int, int]) -> None:
    real, drawn = normal(0, counts[0], 5), normal(1, counts[1], 5, 0.2)
    make = partial(Coverage, NET, 3, most=64)
    assert_same(scattered(make, workers, order, drawn, real).compute(), given(make(), drawn, real).compute())


def test_samples_are_bounded_and_chosen_with_the_seed() -> None:
    metrics = [Coverage(NET, seed, most=40) for seed in (0, 0, 1)]
    for metric in metrics:
        for start in range(0, 1000, 20):
            places = np.arange(start, start + 20)
            metric.update(seen(normal(start, 20, 3), places=places))
            metric.update_real(seen(normal(start + 1, 20, 3), places=places))
            for side in (metric._drawn, metric._real):
                assert sum(len(rows) for _, rows in side._parts) <= 80
    first, again, other = (metric.compute() for metric in metrics)
    assert_same(first, again)
    assert [result.estimate for result in first] != [result.estimate for result in other]
    chosen = [set(side.kept()[0]) for side in (metrics[0]._drawn, metrics[0]._real)]
    assert [len(places) for places in chosen] == [40, 40]
    assert chosen[0] != chosen[1]
    assert min(chosen[0]) < 200
    assert max(chosen[0]) >= 800
    assert first[0].figure == f"precision/{NET}/40"
    assert first[0].notes == (
        "40 of 1000 real pictures, chosen with the seed",
        "40 of 1000 drawn pictures, chosen with the seed",
    )
    assert (first[0].real, first[0].drawn) == (40, 40)


def test_counts_that_differ_are_noted() -> None:
    found = judged(normal(0, 30, 3), normal(1, 20, 3))
    (note,) = found["density"].notes
    assert note == "30 real and 20 drawn pictures: the figures hang on counts, compare equal ones only"
    assert {name: result.estimate.count for name, result in found.items()} == {
        "precision": 20,
        "recall": 30,
        "density": 20,
        "coverage": 30,
    }


def test_it_is_a_metric_and_its_protocols_are_described() -> None:
    metric: Metric = Coverage(NET)
    assert (metric.looks_at, metric.looks_at_real, metric.plan) == ({NET}, {NET}, "captions")
    assert [name.partition("/")[0] for name in PROTOCOLS] == FIGURES


def test_bad_input() -> None:
    message = refusal(given(Coverage(NET), normal(0, 5, 4), normal(1, 9, 4)).compute)
    assert message == f"coverage/{NET} needs at least 6 drawn pictures, and has 5: judge more"
    assert "6 real pictures, and has 1" in refusal(given(Coverage(NET), normal(0, 9, 4), normal(1, 1, 4)).compute)
    assert "the real pictures have 5 and those drawn 4" in refusal(
        given(Coverage(NET), normal(0, 9, 4), normal(1, 9, 5)).compute
    )
    rows = normal(0, 9, 4)
    rows[3] = np.inf
    for update in (Coverage(NET).update, Coverage(NET).update_real):
        assert "at place 3 holds values that are not finite" in refusal(lambda update=update: update(seen(rows)))
    metric = given(Coverage(NET), normal(0, 9, 4), normal(1, 9, 4))
    with pytest.raises(ValueError, match="at place 0 came twice"):
        metric.update_real(seen(normal(0, 9, 4)))
    before = metric.compute()
    for other in (Coverage("other"), Coverage(NET, 1), Coverage(NET, most=7)):
        with pytest.raises(ValueError, match=f"is not {NET} with seed 0"):
            metric.merge(other)
    assert_same(metric.compute(), before)
