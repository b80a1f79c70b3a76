"""Portions of synthetic arrays, and metrics that saw them by many ways."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestration.errors import RequestError
from orchestration.evaluation.metric import Asked, Metric, Result, Seen

NET = "net"
M = TypeVar("M", bound=Metric)


def seen(rows: NDArray[Any], array: str = "features", places: NDArray[np.int64] | None = None, net: str = NET) -> Seen:
    places = np.arange(len(rows)) if places is None else places
    return Seen(Asked(places, places, places, places, [""] * len(places)), {f"{net}/{array}": rows})


def given(metric: M, drawn: NDArray[Any], real: NDArray[Any] | None = None, array: str = "features") -> M:
    """The metric, with all drawn rows and all real ones seen in one portion each."""
    metric.update(seen(drawn, array))
    if real is not None:
        metric.update_real(seen(real, array))
    return metric


def scattered(
    make: Callable[[], M],
    workers: int,
    order_seed: int,
    drawn: NDArray[Any],
    real: NDArray[Any] | None = None,
    array: str = "features",
    portion: int = 13,
) -> M:
    """The same rows in shuffled portions, given to workers in turn, whose metrics are merged in a shuffled order."""
    rng = np.random.default_rng(order_seed)
    metrics = [make() for _ in range(workers)]
    for rows, kind in ((drawn, "update"), (real, "update_real")):
        if rows is None:
            continue
        places = rng.permutation(len(rows))
        for number, start in enumerate(range(0, len(rows), portion)):
            part = places[start : start + portion]
            getattr(metrics[number % workers], kind)(seen(rows[part], array, part))
    metrics = [metrics[index] for index in rng.permutation(workers)]
    for metric in metrics[1:]:
        metrics[0].merge(metric)
    return metrics[0]


def numbers(results: Sequence[Result]) -> dict[str, float]:
    """All that results say in numbers, by name."""
    found: dict[str, float] = {}
    for result in results:
        estimate = result.estimate
        found |= {
            result.figure: estimate.value,
            f"{result.figure} low": estimate.low,
            f"{result.figure} high": estimate.high,
            f"{result.figure} count": estimate.count,
            f"{result.figure} real": result.real,
            f"{result.figure} drawn": result.drawn,
            **{f"{result.figure} {name}": value for name, value in result.details.items()},
        }
    return found


def assert_same(ours: Sequence[Result], theirs: Sequence[Result]) -> None:
    assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-9, abs=1e-13)
    assert [result.notes for result in ours] == [result.notes for result in theirs]


def refusal(call: Callable[[], object]) -> str:
    """The message of the RequestError that `call` must end in: one line, one sentence."""
    with pytest.raises(RequestError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert ". " not in message
    assert not message.endswith(".")
    return message


def normal(seed: int, count: int, width: int, shift: float = 0.0, scale: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=(count, width)) * scale + shift).astype(np.float32)


def falling(seed: int, count: int, width: int, shift: float = 0.0) -> NDArray[np.float32]:
    """Deviations that fall as those of a net's features do, far from 0, with one feature that never changes."""
    rows = 5 + (normal(seed, count, width) + shift) * np.arange(1, width + 1, dtype=np.float32) ** -0.7
    rows[:, -1] = 3
    return rows.astype(np.float32)
