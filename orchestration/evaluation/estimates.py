"""Figures with their uncertainty: intervals at 95 %."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestration.data.sampler import derive_seed, mix

QUANTILE_95 = 1.959964
RESAMPLES = 20
RESAMPLE_STREAM = 310
# 97.5 % quantiles of Student's t for 1, 2, 3 ... degrees of freedom.
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure between `low` and `high` (95 %), from `count` samples."""

    value: float
    low: float
    high: float
    count: int


def share(hits: NDArray[np.bool_]) -> Estimate:
    """The share of hits, with Wilson's score interval (1927): in [0, 1], and not empty at 0 and 1.

    It takes pictures as independent; captions that serve several pictures make the truth a little wider. Raises
    ValueError for no pictures.
    """
    if not len(hits):
        raise ValueError("no pictures to take a share of")
    return wilson(float(hits.mean()), len(hits))


def wilson(value: float, count: int) -> Estimate:
    """A share of `count` independent trials with Wilson's score interval."""
    spread = QUANTILE_95**2 / count
    centre = (value + spread / 2) / (1 + spread)
    half = (spread * (value * (1 - value) + spread / 4)) ** 0.5 / (1 + spread)
    return Estimate(value, max(0.0, centre - half), min(1.0, centre + half), count)


def mean(values: NDArray[np.float64]) -> Estimate:
    """The mean of N values, and 1.96 standard errors around it. Raises ValueError for none."""
    if not len(values):
        raise ValueError("no values to take the mean of")
    value, half = float(values.mean()), 0.0
    if len(values) > 1:
        half = QUANTILE_95 * float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate(value, value - half, value + half, len(values))


def student(freedom: int) -> float:
    """97.5 % quantile of Student's t; beyond the table that of the normal distribution, 0.08 less at most.

    Raises ValueError for less than one degree of freedom.
    """
    if freedom < 1:
        raise ValueError("Student's t needs a degree of freedom or more")
    return STUDENT[freedom - 1] if freedom <= len(STUDENT) else QUANTILE_95


def resample_weights(places: NDArray[np.int64], seed: int, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """(resamples,B) how often each of B samples comes in each bootstrap resample: Poisson numbers of mean 1.

    A sample's numbers depend on its place and the seed alone, so resamples can be summed in portions, by any number of
    workers (Poisson bootstrap: Chamandy et al., "Estimating Uncertainty for Massive Data Streams", 2012).
    """
    # Inverse of Poisson's distribution function at a uniform number; beyond 12 it is 1 to the last digit.
    mass = np.exp(-1.0) / np.cumprod([1.0, *range(1, 13)])
    rows = []
    for resample in range(resamples):
        bits = mix(derive_seed(seed, RESAMPLE_STREAM), resample, places)
        uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        rows.append(np.searchsorted(np.cumsum(mass), uniform, side="right"))
    return np.stack(rows).astype(np.int64)


def bootstrapped(value: float, resampled: NDArray[np.float64], count: int) -> Estimate:
    """`value` and 1.96 standard deviations of its resampled values around it.

    Quantiles of the resampled values would not do: a distance between distributions is larger in every resample, since
    resamples repeat samples.
    """
    half = QUANTILE_95 * float(resampled.std(ddof=1))
    return Estimate(value, value - half, value + half, count)


def figures(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Estimates METRIC/PROTOCOL/... as figures of a verdict: each beside METRIC_low/... and METRIC_high/..."""
    found: dict[str, float] = {}
    for name, estimate in estimates.items():
        metric, _, rest = name.partition("/")
        found |= {
            name: estimate.value,
            f"{metric}_low/{rest}": estimate.low,
            f"{metric}_high/{rest}": estimate.high,
        }
    return found
