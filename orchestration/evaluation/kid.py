"""Kernel Inception Distance (Bińkowski et al., "Demystifying MMD GANs", 2018, section 4): squared MMD of features.

The kernel is (x.y/d + 1)^3. The unbiased estimate is taken on 100 random subsets of 1,000 real and 1,000 drawn features
and averaged, as in the authors' code; `kid_std`, the figure published beside it, is the deviation of the subsets'
values. That is not the error of the mean: subsets share samples. For subsets of m of N samples, each drawn without
repeats, the deviation s between S of them leaves the mean a variance of s^2 (1/S + m / (N - m)): two subsets have m/N
of their samples in common, and so of their variance, where the linear term rules it. The interval is made with it; it
is of both sides' samples.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestration.data.sampler import derive_seed, mix
from orchestration.evaluation.estimates import QUANTILE_95, Estimate
from orchestration.evaluation.metric import Result, Seen
from orchestration.evaluation.plans import CAPTIONS
from orchestration.evaluation.samples import Samples, check_counts, check_widths, merge_all

PROTOCOLS: Mapping[str, str] = {
    "kid/NET": "squared MMD of the features that view NET sees, kernel (x.y/d + 1)^3, mean of 100 subsets of 1,000 "
    "(Bińkowski et al. 2018)",
    "kid/NET/SxM": "the same with S subsets of M",
}
SUBSETS, SUBSET_SIZE = 100, 1000
LEAST = 4
# Where all samples are at most so many times a subset, kernels of all pairs are less work than those of 100 subsets.
SHARED_UP_TO = 2
REAL_STREAM, DRAWN_STREAM = 332, 333

Subset = NDArray[np.int64]
Pairs = Iterable[tuple[Subset, Subset]]


def kernel_distances(
    real: NDArray[np.floating], drawn: NDArray[np.floating], pairs: Pairs, degree: int = 3, coef: float = 1.0
) -> NDArray[np.float64]:
    """Unbiased squared MMD, with kernel (x.y/F + coef)^degree, on each pair of subsets (M,) of real (N,F) and drawn
    (N',F) features; computed in float64. It may be below 0."""
    pairs = list(pairs)
    least = min(len(subset) for pair in pairs for subset in pair)
    whole = _kernels(real, drawn, degree, coef) if max(len(real), len(drawn)) <= SHARED_UP_TO * least else None
    values = []
    for one, two in pairs:
        if whole is None:
            kernels = _kernels(real[one], drawn[two], degree, coef)
        else:
            picked = zip(whole, (one, one, two), (one, two, two), strict=True)
            kernels = [kernel[torch.from_numpy(rows)][:, torch.from_numpy(columns)] for kernel, rows, columns in picked]
        values.append(_squared_mmd(*kernels))
    return np.array(values)


def _squared_mmd(within_real: Tensor, between: Tensor, within_drawn: Tensor) -> float:
    """The unbiased estimate from kernels (M,M), (M,M'), (M',M'): a sample's kernel with itself takes no part."""
    apart = [
        (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)) for kernel in (within_real, within_drawn)
    ]
    return float(apart[0] + apart[1] - 2 * between.mean())


def _kernels(one: NDArray[np.floating], two: NDArray[np.floating], degree: int, coef: float) -> list[Tensor]:
    """Of all pairs of one and one, one and two, two and two."""
    x, y = (torch.from_numpy(rows.astype(np.float64)) for rows in (one, two))
    return [(a @ b.t() / a.shape[1] + coef) ** degree for a, b in ((x, x), (x, y), (y, y))]


def draw_subset(places: NDArray[np.int64], size: int, seed: int) -> Subset:
    """`size` of N rows, in rising order; the choice hangs on the places (N,) and the seed alone."""
    return np.sort(np.argpartition(mix(seed, 0, places), size - 1)[:size])


class Kid:
    """KID of view `net`'s features (B,F).

    seed: of the subsets, whose size is half the smaller side's count where that is below `subset_size`. It keeps all
    features in float32: 246 MB a side for 30,000 pictures and 2,048 features, since 100 subsets of 1,000 hold nearly
    all of 30,000; 1 GB at its peak, and 25 s of one core.
    """

    name = "kid"
    plan = CAPTIONS

    def __init__(self, net: str, seed: int = 0, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE) -> None:
        if subsets < 2 or subset_size < 2:
            raise ValueError(f"KID needs 2 subsets of 2 or more, not {subsets} of {subset_size}")
        published = (subsets, subset_size) == (SUBSETS, SUBSET_SIZE)
        self.protocol = net if published else f"{net}/{subsets}x{subset_size}"
        self.seed, self._subsets, self._subset_size = seed, subsets, subset_size
        self.looks_at = self.looks_at_real = frozenset({net})
        self._real, self._drawn = Samples(f"{net}/features"), Samples(f"{net}/features")

    def update(self, drawn: Seen) -> None:
        """Add NET/features (B,F). Raises RequestError for features that are not finite or of another width, and
        ValueError for a place that came before."""
        self._drawn.add(drawn)

    def update_real(self, real: Seen) -> None:
        """Add NET/features (B,F) of real pictures. Raises as `update`."""
        self._real.add(real)

    def merge(self, other: "Kid") -> None:
        """Add what another worker saw. Raises ValueError for another protocol or seed."""
        if (self.protocol, self.seed) != (other.protocol, other.seed):
            raise ValueError(f"kid/{other.protocol} with seed {other.seed} is not kid/{self.protocol}, {self.seed}")
        merge_all((self._real, other._real), (self._drawn, other._drawn))

    def compute(self) -> list[Result]:
        """`kid`, with `std` (the published kid_std) and `subset_size` as details.

        Raises RequestError for fewer than four pictures on a side, or two widths.
        """
        figure, counts = f"kid/{self.protocol}", (self._real.count, self._drawn.count)
        check_counts(figure, *counts, LEAST)
        check_widths(figure, self._real.width, self._drawn.width)
        least = min(counts)
        size = min(self._subset_size, least // 2)
        (real_places, real), (drawn_places, drawn) = self._real.kept(), self._drawn.kept()
        values = kernel_distances(real, drawn, self._pairs(real_places, drawn_places, size))
        value, spread = float(values.mean()), float(values.std())
        half = QUANTILE_95 * float(values.std(ddof=1)) * (1 / len(values) + size / (least - size)) ** 0.5
        notes = () if size == self._subset_size else (f"subsets of {size}: {least} pictures are too few for larger",)
        details = {"std": spread, "subset_size": float(size)}
        return [
            Result("kid", self.protocol, Estimate(value, value - half, value + half, least), *counts, notes, details)
        ]

    def _pairs(self, real: NDArray[np.int64], drawn: NDArray[np.int64], size: int) -> Iterator[tuple[Subset, Subset]]:
        for number in range(self._subsets):
            seeds = (derive_seed(self.seed, stream, number) for stream in (REAL_STREAM, DRAWN_STREAM))
            yield draw_subset(real, size, next(seeds)), draw_subset(drawn, size, next(seeds))
