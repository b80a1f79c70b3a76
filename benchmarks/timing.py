"""Two sides of a ratio in one process, interleaved, so that a noisy machine troubles both alike."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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


def growth_of_indices(found: Mapping[str, Sequence[Mapping[str, float]]], sizes: Sequence[int]) -> dict[str, Any]:
    """Figures of indices that were measured at several sizes, by kind, each beside the exact search of its own run.

    growth_ratio: how much slower the largest is than the smallest, over how much larger it is.
    """
    exact = [sorted(each[place]["exact_queries_s"] for each in found.values()) for place in range(len(sizes))]
    figures: dict[str, Any] = {"exact_queries_s": [round(each[len(each) // 2]) for each in exact]}
    for kind, each in found.items():
        figures[f"{kind}_queries_s"] = [round(one["queries_s"]) for one in each]
        figures[f"{kind}_over_exact"] = [round(one["queries_s"] / one["exact_queries_s"], 2) for one in each]
        figures[f"{kind}_recall"] = [round(one["recall"], 4) for one in each]
        figures[f"{kind}_build_s"] = [round(one["build_s"], 2) for one in each]
        figures[f"{kind}_mb"] = [round(one["index_mb"]) for one in each]
        figures[f"{kind}_growth_ratio"] = each[0]["queries_s"] / each[-1]["queries_s"] / (sizes[-1] / sizes[0])
    return figures
