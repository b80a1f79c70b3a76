"""Does a generator stay among real pictures, and reach all of them? Shares of samples within balls around others.

A ball around a sample reaches to its k-th nearest neighbour of its own side. Of balls with k = 3 (Kynkäänniemi et al.,
"Improved Precision and Recall Metric for Assessing Generative Models", 2019, equations 1 and 2):

    precision  share of drawn samples within a real ball
    recall     share of real samples within a drawn ball

and of real balls with k = 5 (Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020,
equations 3 and 4), which an outlier's large ball misleads less:

    density    real balls that a drawn sample is in, over k; 1 on average for equal distributions, and not bounded by it
    coverage   share of real balls with a drawn sample; 31/32 on average for equal distributions and large equal counts

Intervals are of one side's samples, with the balls of the other as they are. All four hang on the counts.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestration.evaluation.estimates import mean, share
from orchestration.evaluation.metric import Result, Seen
from orchestration.evaluation.plans import CAPTIONS
from orchestration.evaluation.samples import Rows, Samples, check_counts, check_widths, merge_all

PROTOCOLS: Mapping[str, str] = {
    "precision/NET": "share of pictures drawn within a real 3-neighbour ball of view NET (Kynkäänniemi et al. 2019)",
    "recall/NET": "share of real pictures within a drawn 3-neighbour ball of view NET (Kynkäänniemi et al. 2019)",
    "density/NET": "real 5-neighbour balls that a picture drawn is in, over 5 (Naeem et al. 2020)",
    "coverage/NET": "share of real 5-neighbour balls with a picture drawn (Naeem et al. 2020)",
}
MOST = 5000
NEAREST, NEAREST_OF_DENSITY = 3, 5
CHUNK = 500


def reaches(rows: Tensor, nearest: tuple[int, ...]) -> list[Tensor]:
    """For each k in `nearest`, (N,) distances of N rows (N,F) to their k-th nearest other row."""
    parts = []
    for chunk in torch.split(rows, CHUNK):
        # Each row is its own nearest.
        parts.append(torch.cdist(chunk, rows).topk(max(nearest) + 1, largest=False).values)
    ordered = torch.cat(parts)
    return [ordered[:, k] for k in nearest]


class Balls:
    """What is in whose ball. real: (N,F); drawn: (N',F); more than 5 of each, in float64.

    within_real: (N',) whether a drawn sample is in a real ball (k = 3); within_drawn: (N,) whether a real one is in a
    drawn ball (k = 3); balls: (N',) real balls that a drawn sample is in (k = 5); covered: (N,) whether a real ball has
    a drawn sample (k = 5). It needs 500 distances a sample at a time.
    """

    def __init__(self, real: Rows, drawn: Rows) -> None:
        # Distances come from products of rows: about the real mean they lose fewer digits.
        centre = real.astype(np.float64).mean(0)
        rows, others = (torch.from_numpy(side.astype(np.float64) - centre) for side in (real, drawn))
        near, wide = reaches(rows, (NEAREST, NEAREST_OF_DENSITY))
        (near_drawn,) = reaches(others, (NEAREST,))
        within, balls = [], []
        met, covered = (torch.zeros(len(rows), dtype=torch.bool) for _ in range(2))
        for chunk, reach in zip(torch.split(others, CHUNK), torch.split(near_drawn, CHUNK), strict=True):
            distances = torch.cdist(chunk, rows)
            within.append((distances <= near).any(1))
            met |= (distances <= reach[:, None]).any(0)
            inside = distances <= wide
            balls.append(inside.sum(1))
            covered |= inside.any(0)
        self.within_real: NDArray[np.bool_] = torch.cat(within).numpy()
        self.within_drawn: NDArray[np.bool_] = met.numpy()
        self.balls: NDArray[np.int64] = torch.cat(balls).numpy()
        self.covered: NDArray[np.bool_] = covered.numpy()


class Coverage:
    """Precision, recall, density and coverage of view `net`'s features (B,F), of at most `most` samples a side.

    seed: of the choice where there are more. It keeps them in float32: 41 MB a side for 5,000 of 2,048 features, for a
    moment twice that.
    """

    name = "coverage"
    plan = CAPTIONS

    def __init__(self, net: str, seed: int = 0, most: int = MOST) -> None:
        self.protocol = net if most == MOST else f"{net}/{most}"
        self.seed = seed
        self.looks_at = self.looks_at_real = frozenset({net})
        self._real, self._drawn = (Samples(f"{net}/features", most, seed, stream) for stream in (0, 1))

    def update(self, drawn: Seen) -> None:
        """Add NET/features (B,F). Raises RequestError for features that are not finite or of another width, and
        ValueError for a place that came before."""
        self._drawn.add(drawn)

    def update_real(self, real: Seen) -> None:
        """Add NET/features (B,F) of real pictures. Raises as `update`."""
        self._real.add(real)

    def merge(self, other: "Coverage") -> None:
        """Add what another worker saw. Raises ValueError for another protocol or seed."""
        if (self.protocol, self.seed) != (other.protocol, other.seed):
            raise ValueError(f"{other.protocol} with seed {other.seed} is not {self.protocol} with seed {self.seed}")
        merge_all((self._real, other._real), (self._drawn, other._drawn))

    def compute(self) -> list[Result]:
        """`precision`, `recall`, `density` and `coverage`. Raises RequestError for fewer than six pictures on a side,
        or two widths."""
        figure, seen = f"coverage/{self.protocol}", (self._real.count, self._drawn.count)
        check_counts(figure, *seen, NEAREST_OF_DENSITY + 1)
        check_widths(figure, self._real.width, self._drawn.width)
        (_, real), (_, drawn) = self._real.kept(), self._drawn.kept()
        found = Balls(real, drawn)
        estimates = {
            "precision": share(found.within_real),
            "recall": share(found.within_drawn),
            "density": mean(found.balls / NEAREST_OF_DENSITY),
            "coverage": share(found.covered),
        }
        notes = [
            f"{len(rows)} of {count} {kind} pictures, chosen with the seed"
            for kind, count, rows in zip(("real", "drawn"), seen, (real, drawn), strict=True)
            if len(rows) < count
        ]
        if len(real) != len(drawn):
            notes.append(
                f"{len(real)} real and {len(drawn)} drawn pictures: the figures hang on counts, compare equal ones only"
            )
        return [
            Result(name, self.protocol, estimate, len(real), len(drawn), tuple(notes))
            for name, estimate in estimates.items()
        ]
