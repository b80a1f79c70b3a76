"""Inception Score: known scores, the protocols' splits, order by place, honest intervals, bad input."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn_by_hypothesis
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestration.evaluation.inception_score import (
    CHUNK,
    KINDS,
    PROTOCOLS,
    InceptionScore,
    inception_scores,
    score,
    split_bounds,
)
from orchestration.evaluation.metric import Metric, Result

from .distributions import NET, assert_same, given, normal, refusal, scattered, seen


def judged(kind: str, logits: NDArray[Any], seed: int = 0) -> Result:
    (result,) = given(InceptionScore(f"{kind}/{NET}", seed), logits, array="logits").compute()
    return result


def sure(classes: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Logits of pictures that are of one class for certain."""
    return (1000 * np.eye(count)[classes]).astype(np.float32)


def ones(count: int) -> NDArray[np.int64]:
    return np.ones((1, count), np.int64)


def by_definition(logits: NDArray[Any]) -> float:
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(1, keepdims=True)
    return float(np.exp((shares * np.log(shares / shares.mean(0))).sum(1).mean()))


def test_scores_that_are_known() -> None:
    # Certain and even over 8 classes: 8. All the same: 1. Nothing is known: 1.
    assert score(sure(np.arange(80) % 8, 20), ones(80)) == pytest.approx(8)
    assert score(sure(np.zeros(80, np.int64), 20), ones(80)) == pytest.approx(1)
    assert score(np.zeros((80, 20)), ones(80)) == pytest.approx(1)
    logits = normal(0, 2 * CHUNK + 7, 9, scale=3)
    assert score(logits, ones(len(logits))) == pytest.approx(by_definition(logits), rel=1e-12)


def test_pictures_that_count_twice_are_as_two_pictures() -> None:
    logits = normal(0, 6, 5, scale=2)
    weights = np.array([[2, 0, 1, 1, 0, 3], [0, 0, 0, 0, 0, 0]])
    twice = by_definition(np.repeat(logits, weights[0], axis=0))
    assert score(logits, weights) == pytest.approx([twice, by_definition(logits)])


def test_splits() -> None:
    assert split_bounds(23, 10)[:3] == [(0, 2), (2, 4), (4, 6)]
    assert split_bounds(23, 10)[-1] == (20, 23)
    assert split_bounds(29, 10, tail=False)[-1] == (18, 20)
    assert split_bounds(23, 1) == [(0, 23)]


def test_protocols() -> None:
    logits = normal(0, 143, 6, scale=2)
    parts = {kind: split_bounds(143, 1 if kind == "xmcgan" else 10, kind != "cpgan") for kind in KINDS if kind != "cub"}
    for kind, bounds in parts.items():
        scores = np.array([by_definition(logits[first:last]) for first, last in bounds])
        result = judged(kind, logits)
        assert result.figure == f"inception_score/{kind}/{NET}"
        assert result.estimate.value == pytest.approx(scores.mean())
        assert result.details["std"] == pytest.approx(scores.std())
        assert (result.real, result.drawn) == (0, 140 if kind == "cpgan" else 143)
    assert judged("cpgan", logits).notes == ("the last 3 of 143 pictures are left out, as the protocol has it",)
    changed = logits.copy()
    changed[140:] += normal(1, 3, 6)
    assert judged("cpgan", changed).estimate.value == judged("cpgan", logits).estimate.value
    assert {name.partition("/")[2].partition("/")[0] for name in PROTOCOLS} == set(KINDS)


def test_birds_are_judged_without_the_background_and_shuffled() -> None:
    logits = normal(0, 120, 51, scale=2)
    result = judged("cub", logits)
    background = logits.copy()
    background[:, 0] += 50
    assert judged("cub", background).estimate == result.estimate
    assert judged("cub", logits[:, 1:]).estimate == result.estimate
    # One order for each seed, and none of them the pictures' own.
    assert judged("cub", logits, 1).estimate.value != pytest.approx(result.estimate.value, rel=1e-6)
    in_order = inception_scores(logits[:, 1:], ones(120), 10).mean()
    assert result.estimate.value != pytest.approx(in_order, rel=1e-6)
    assert result.estimate.value == pytest.approx(in_order, rel=0.1)


def test_openai_takes_logits_without_the_bias_where_there_are_any() -> None:
    biased, unbiased = normal(0, 60, 6), normal(1, 60, 6)
    both = seen(biased, "logits")
    both = type(both)(both.asked, {f"{NET}/logits": biased, f"{NET}/logits_unbiased": unbiased})
    for kind, expected in (("openai", unbiased), ("xmcgan", biased)):
        metric = InceptionScore(f"{kind}/{NET}")
        metric.update(both)
        assert_same(metric.compute(), [judged(kind, expected)])


@settings(deadline=None, max_examples=10)
@drawn_by_hypothesis(st.integers(1, 4), st.integers(0, 1000), st.sampled_from(sorted(KINDS)))
def test_any_way_gives_the_same(workers: int, order: int, kind: str) -> None:
    logits = normal(0, 87, 51, scale=3)
    make = partial(InceptionScore, f"{kind}/{NET}", 3)
    ours = scattered(make, workers, order, logits, array="logits").compute()
    assert_same(ours, given(make(), logits, array="logits").compute())


def test_intervals_hold_what_other_draws_give() -> None:
    estimates = [judged("openai", normal(seed, 300, 8, scale=3), seed).estimate for seed in range(60)]
    values = np.array([estimate.value for estimate in estimates])
    halves = np.array([(estimate.high - estimate.low) / 2 for estimate in estimates])
    assert np.mean(np.abs(values - values.mean()) <= halves) >= 0.85
    assert 0.75 < halves.mean() / 1.96 / values.std(ddof=1) < 1.4


def test_few_pictures_are_noted() -> None:
    (note,) = judged("openai", normal(0, 50, 6)).notes
    assert note.startswith("fewer pictures a split (5) than classes (6): biased downwards")
    assert not judged("openai", normal(0, 60, 6)).notes


def test_it_is_a_metric() -> None:
    metric: Metric = InceptionScore()
    assert (metric.looks_at, metric.looks_at_real, metric.plan) == ({"inception-2015"}, frozenset(), "captions")
    metric.update_real(seen(normal(0, 3, 3)))


@pytest.mark.parametrize("protocol", ["", "openai", "openai/", "stackgan/net", "/net"])
def test_unknown_protocols(protocol: str) -> None:
    assert refusal(lambda: InceptionScore(protocol)) == (
        f"inception_score has no protocol {protocol!r}: use KIND/NET, with one of openai, cpgan, cub, xmcgan and the "
        "view that gives logits, such as openai/inception-2015"
    )


def test_bad_input() -> None:
    metric = given(InceptionScore(f"openai/{NET}"), normal(0, 19, 4), array="logits")
    message = refusal(metric.compute)
    assert message == (f"inception_score/openai/{NET} needs at least 20 pictures, two a split, and has 19: judge more")
    assert refusal(given(InceptionScore(f"xmcgan/{NET}"), normal(0, 1, 4), array="logits").compute).endswith(
        "needs at least 2 pictures, two a split, and has 1: judge more"
    )
    logits = normal(0, 9, 4)
    logits[4, 1] = np.nan
    assert f"{NET}/logits of the picture at place 4 holds values that are not finite" in refusal(
        lambda: InceptionScore(f"openai/{NET}").update(seen(logits, "logits"))
    )
    assert refusal(lambda: InceptionScore(f"cub/{NET}").update(seen(normal(0, 9, 1000), "logits"))) == (
        f"inception_score/cub/{NET} needs logits of 50 classes, or of 51 with the background first, and {NET}/logits "
        "has 1000: give the weights of the net that the protocol means"
    )
    assert "has 5 numbers a picture where it had 4 before" in refusal(
        lambda: metric.update(seen(normal(0, 2, 5), "logits", np.array([30, 31])))
    )
    with pytest.raises(ValueError, match="at place 0 came twice"):
        metric.update(seen(normal(0, 9, 4), "logits"))
    for other in (InceptionScore(f"xmcgan/{NET}"), InceptionScore(f"openai/{NET}", 1)):
        with pytest.raises(ValueError, match=f"is not openai/{NET} with seed 0"):
            metric.merge(other)
    metric.update(seen(normal(1, 1, 4), "logits", np.array([19])))
    assert metric.compute()[0].drawn == 20
