"""Fréchet Inception Distance (Heusel et al. 2017, section 4): of Gaussians with the features' means and covariances.

FID is |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is the sum of the roots of the eigenvalues of
C1 C2; where C = L L^T, these roots are the singular values of L1^T L2. The last form is exact to rounding even where a
covariance is singular: there the roots of eigenvalues that should be 0 are noise of 1e-8 each, so that sums that were
added up in another order would give another figure.

The interval holds the real pictures as given, as part of the protocol, and is of the pictures drawn: a sample's
influence is the derivative of FID by its weight, and the variance of FID that of the influences over N (infinitesimal
jackknife: Efron, "The Jackknife, the Bootstrap and Other Resampling Plans", 1982, chapter 6). 20 bootstrap resamples
would need 20 covariances (670 MB for 2,048 features) and 20 decompositions; in simulations from 100 to 2,000 samples of
64 to 400 features, influences gave 0.9 to 1.4 of the true deviation, Poisson resamples 0.9 to 2.1.

FID of N samples is larger than that of the distributions by a term in 1/N (Chong and Forsyth, "Effectively Unbiased FID
and Inception Score and where to find them", 2020, section 3). `fid_inf` takes it away: a line in 1/N through FID of all
pictures drawn and the mean FID of two halves, to 1/N = 0. They fit it through 15 random subsets; disjoint halves hold
each sample once, so that the extrapolation is about as certain as FID itself. The term of the real pictures stays.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestration.data.sampler import derive_seed, mix
from orchestration.evaluation.estimates import QUANTILE_95, Estimate
from orchestration.evaluation.fid_statistics import Statistics
from orchestration.evaluation.metric import Result, Seen
from orchestration.evaluation.plans import CAPTIONS
from orchestration.evaluation.samples import Samples, check_counts, check_widths, merge_all

PROTOCOLS: Mapping[str, str] = {
    "fid/NET": "Fréchet distance of the features that view NET sees in pictures drawn and in real ones (Heusel et al. "
    "2017)",
    "fid/NET/real-DIGEST": "the same against the mean and covariance of a file that does not say what it is of",
    "fid_inf/NET": "FID extrapolated to infinitely many pictures drawn (after Chong and Forsyth 2020)",
}
HALF_STREAM = 331
INFLUENCE_SAMPLES = 2000

Floats = NDArray[np.float64]


class Moments:
    """Count, mean and covariance of (N,F) rows, in float64; it holds F x F numbers, and at most F rows beside.

    Scatters are about their own means, so that no digits are lost where means are far from 0 (Chan, Golub and LeVeque,
    "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).
    """

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[NDArray[np.float32]] = []
        self._summed = 0
        self._mean: Floats = np.zeros(0)
        self._scatter: Floats = np.zeros((0, 0))

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add rows (B,F)."""
        if len(rows):
            self._rows.append(rows)
            self.count += len(rows)
            self._sum_up(rows.shape[1])

    def merge(self, other: "Moments") -> None:
        """Add another's rows."""
        if not other.count:
            return
        self.count += other.count
        self._rows += other._rows
        if other._summed:
            self._add_scatter(other._summed, other._mean, other._scatter)
        self._sum_up(len(other._mean) or other._rows[0].shape[1])

    def gaussian(self) -> "Gaussian":
        """Mean and unbiased covariance of two rows or more. While they are fewer than features, no F x F is needed."""
        if not self._summed:
            rows = np.concatenate(self._rows).astype(np.float64)
            mean = rows.mean(0)
            return Gaussian(mean, (rows - mean).T / (self.count - 1) ** 0.5)
        return Gaussian.of(*self.statistics())

    def statistics(self) -> tuple[Floats, Floats]:
        """Mean (F,) and unbiased covariance (F,F) of two rows or more."""
        whole = Moments()
        whole.merge(self)
        whole._sum_rows()
        return whole._mean, whole._scatter / (self.count - 1)

    def _sum_up(self, width: int) -> None:
        # By count alone, so that the way to a figure does not depend on how rows came.
        if self.count - self._summed > width:
            self._sum_rows()

    def _sum_rows(self) -> None:
        if self._rows:
            rows = np.concatenate(self._rows).astype(np.float64)
            mean = rows.mean(0)
            rows -= mean
            self._rows = []
            self._add_scatter(len(rows), mean, rows.T @ rows)

    def _add_scatter(self, count: int, mean: Floats, scatter: Floats) -> None:
        if not self._summed:
            self._summed, self._mean, self._scatter = count, mean.copy(), scatter.copy()
            return
        total, apart = self._summed + count, mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(apart * (self._summed * count / total), apart)
        self._mean += apart * (count / total)
        self._summed = total


class Gaussian:
    """mean: (F,); factor: (F,R), whose product with its transpose is the covariance."""

    def __init__(self, mean: Floats, factor: Floats) -> None:
        self.mean, self.factor = mean, factor

    @classmethod
    def of(cls, mean: Floats, covariance: Floats) -> "Gaussian":
        """From a mean (F,) and a covariance (F,F)."""
        values, vectors = np.linalg.eigh(covariance)
        real = values > _noise(values)
        return cls(mean, vectors[:, real] * np.sqrt(values[real]))


def _noise(eigenvalues: Floats) -> float:
    """Up to here eigenvalues of a positive symmetric matrix cannot be told from 0: they may be rounding errors."""
    return max(0.0, float(eigenvalues.max(initial=0.0)) * len(eigenvalues) * float(np.finfo(np.float64).eps))


class FrechetDistance:
    """Of two Gaussians over the same F features."""

    def __init__(self, real: Gaussian, drawn: Gaussian) -> None:
        self.real, self.drawn = real, drawn

    @cached_property
    def _product(self) -> Floats:
        return np.asarray(self.real.factor.T @ self.drawn.factor)

    @cached_property
    def value(self) -> float:
        """The squared distance, in units of the features squared; at least 0."""
        apart = ((self.real.mean - self.drawn.mean) ** 2).sum()
        variances = (self.real.factor**2).sum() + (self.drawn.factor**2).sum()
        return max(0.0, float(apart + variances - 2 * np.linalg.svd(self._product, compute_uv=False).sum()))

    def influences(self, rows: Floats) -> Floats:
        """(K,) derivative by the weight of each of K samples drawn, rows (K,F), up to a number they share.

        The derivative of Tr (C1 C2)^(1/2) by C2 is half of L1 (L1^T C2 L1)^(-1/2) L1^T.
        """
        values, vectors = np.linalg.eigh(self._product @ self._product.T)
        real = values > _noise(values)
        apart = rows - self.drawn.mean
        moved = apart @ (self.real.factor @ vectors[:, real])
        shrunk = (moved**2) @ (values[real] ** -0.5)
        return np.asarray(2 * apart @ (self.drawn.mean - self.real.mean) + (apart**2).sum(1) - shrunk)


class Fid:
    """FID of view `net`'s features (B,F), with `fid_inf` where each half has as many pictures as there are features.

    seed: of the halves and of the samples whose influences are taken. real: statistics that take the place of real
    pictures; RequestError for those of another net. Whatever the number of pictures, it keeps for 2,048 features three
    matrices (100 MB), up to 2,048 rows with each (50 MB), and 2,000 samples drawn (16 MB, for a moment twice that);
    `compute` needs about 350 MB more, and 13 s of one core.
    """

    name = "fid"
    plan = CAPTIONS

    def __init__(self, net: str, seed: int = 0, real: Statistics | None = None) -> None:
        self.net, self.seed, self._given = net, seed, real
        array = f"{net}/features"
        if real is not None:
            real.check_net(net)
        self.protocol = f"{net}/real-{real.digest[:8]}" if real is not None and not real.net else net
        self.looks_at = frozenset({net})
        self.looks_at_real: frozenset[str] = frozenset() if real is not None else self.looks_at
        self._halves, self._real = (Moments(), Moments()), Moments()
        self._samples, self._real_places = Samples(array, INFLUENCE_SAMPLES, seed), Samples(array, 0)

    def update(self, drawn: Seen) -> None:
        """Add NET/features (B,F). Raises RequestError for features that are not finite or of another width, and
        ValueError for a place that came before."""
        if self._given is not None and len(drawn):
            self._given.check_width(np.shape(drawn[self._samples.array])[-1])
        rows = self._samples.add(drawn)
        second = (mix(derive_seed(self.seed, HALF_STREAM), 0, drawn.asked.places) >> np.uint64(63)).astype(np.bool_)
        for half, chosen in zip(self._halves, (~second, second), strict=True):
            half.add(rows[chosen])

    def update_real(self, real: Seen) -> None:
        """Add NET/features (B,F) of real pictures. Raises as `update`, and ValueError where statistics were given."""
        if self._given is not None:
            raise ValueError(f"fid/{self.protocol} has its real pictures' statistics from {self._given.source}")
        self._real.add(self._real_places.add(real))

    def merge(self, other: "Fid") -> None:
        """Add what another worker saw. Raises ValueError for another protocol, seed or statistics."""
        means = [b"" if fid._given is None else fid._given.mean.tobytes() for fid in (self, other)]
        if (self.protocol, self.seed) != (other.protocol, other.seed) or means[0] != means[1]:
            raise ValueError(f"fid/{other.protocol} with seed {other.seed} is not fid/{self.protocol}, {self.seed}")
        merge_all((self._samples, other._samples), (self._real_places, other._real_places))
        self._real.merge(other._real)
        for half, others in zip(self._halves, other._halves, strict=True):
            half.merge(others)

    def real_statistics(self, weights: str = "") -> Statistics:
        """Of the real pictures, to be saved and given to another Fid. weights: digest of the view."""
        if self._given is not None:
            return self._given
        check_counts(f"fid/{self.protocol}", self._real.count, 2, 2)
        return Statistics(*self._real.statistics(), count=self._real.count, net=self.net, weights=weights)

    def compute(self) -> list[Result]:
        """`fid`, and `fid_inf`. Raises RequestError for fewer than two pictures on a side, or two widths."""
        figure, drawn = f"fid/{self.protocol}", Moments()
        for half in self._halves:
            drawn.merge(half)
        if self._given is None:
            check_counts(figure, self._real.count, drawn.count, 2)
            check_widths(figure, self._real_places.width, self._samples.width)
            count, real = self._real.count, self._real.gaussian()
        else:
            check_counts(figure, 2, drawn.count, 2)
            count, real = self._given.count, Gaussian.of(self._given.mean, self._given.covariance)
        distance = FrechetDistance(real, drawn.gaussian())
        influences = distance.influences(self._samples.kept()[1].astype(np.float64))
        half_width = QUANTILE_95 * float(influences.std(ddof=1)) / drawn.count**0.5

        def result(name: str, value: float, notes: tuple[str, ...]) -> Result:
            estimate = Estimate(value, value - half_width, value + half_width, drawn.count)
            return Result(name, self.protocol, estimate, count, drawn.count, notes)

        width = self._samples.width
        results = [result("fid", distance.value, self._notes(count, drawn.count, width))]
        if min(half.count for half in self._halves) >= width:
            results.append(result("fid_inf", self._extrapolated(real, distance.value), ()))
        return results

    def _extrapolated(self, real: Gaussian, whole: float) -> float:
        """The line through (1/N, FID of all) and (mean of 1/n, mean FID of two halves), at 0."""
        counts = [half.count for half in self._halves]
        halved = sum(FrechetDistance(real, half.gaussian()).value for half in self._halves) / 2
        near, far = 1 / sum(counts), sum(1 / count for count in counts) / 2
        return whole - near * (halved - whole) / (far - near)

    def _notes(self, real: int, drawn: int, width: int) -> tuple[str, ...]:
        notes = [
            f"fewer {kind} pictures ({count}) than features ({width}): biased upwards, compare equal counts only"
            for kind, count in (("real", real), ("drawn", drawn))
            if count < width and not (kind == "real" and self._given is not None and not count)
        ]
        if self._given is not None and not self._given.net:
            notes.append(
                f"{self._given.source} does not say by which net and from how many real pictures it is: both are taken "
                f"on trust as fitting {self.net}"
            )
        return tuple(notes)
