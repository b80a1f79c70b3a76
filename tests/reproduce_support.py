"""Made records and reports of papers' tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.campaigns.reproduce_claims import (
    Cell,
)
from orchestration.campaigns.reproduce_report import Report, Run
from orchestration.campaigns.reproduce_scales import (
    SCALES,
    measures_of,
)
from orchestration.evaluation.record import Judged, MetricRecord
from search_spaces.tables import load_table

SMOKE, SMALL, PAPER = (SCALES[name] for name in ("smoke", "small", "paper"))
MIRRORGAN, XMCGAN = load_table("mirrorgan_table3"), load_table("xmcgan_table4")


def record(value: float, half: float = 0.1, figure: str = "fid/scenes-net", **changes: Any) -> MetricRecord:
    """A record of one figure on scenes."""
    metric, _, protocol = figure.partition("/")
    values = {"system": "xmcgan", "data": "scenes", "split": "test", "pictures": "xmcgan 32 centre"} | changes
    judged = Judged(recipe="recipe", run="run", checkpoint="c", kimg=1.0, data_digest="d", seed=1234, **values)
    return MetricRecord(metric, protocol, value, value - half, value + half, 500, 500, 500, judged)


def made_report(values: Mapping[str, float | Sequence[float]], seeds: int = 1, **changes: Any) -> Report:
    """MirrorGAN's table at smoke scale with the same value in every figure of a row."""
    measures = measures_of(MIRRORGAN, SMOKE, ["mirrorgan_scenes"])
    found: dict[tuple[str, int], Cell] = {}
    runs = []
    for row, value in values.items():
        several = [value] if isinstance(value, float | int) else value
        runs += [Run(row, "mirrorgan_scenes", seed, f"run-{row}", "c") for seed in range(len(several))]
        for place, figure in enumerate(("inception_score/openai/scenes-net", "r_precision/1+99/top-1")):
            found[row, place] = Cell(tuple(record(one, 0.01, figure) for one in several))
    options: dict[str, Any] = {"rows": tuple(MIRRORGAN.rows), "shared": ("damsm", "stream")} | changes
    return Report(MIRRORGAN, SMOKE, tuple(measures), seeds=seeds, runs=tuple(runs), cells=found, **options)


RISING = dict(zip(MIRRORGAN.rows, (0.1, 0.3, 0.2, 0.205, 0.4), strict=True))
