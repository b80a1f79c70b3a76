"""Two sides of a ratio in one process, interleaved, so that a noisy machine troubles both alike."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any


def interleaved(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median seconds of each side over `rounds` turns, after one turn that is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for side, function in enumerate((first, second)):
            start = time.perf_counter()
            function()
            if turn:
                times[side].append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def report(**figures: Any) -> None:
    """One JSON line."""
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}))
