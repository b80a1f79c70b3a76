"""Nearest real neighbours of pictures drawn: has the generator learned its training pictures by heart?"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestration.errors import RequestError
from orchestration.evaluation.estimates import share
from orchestration.evaluation.metric import Result

PROTOCOLS = {
    "VIEW": "share of pictures drawn whose nearest training picture, by Euclidean distance of the view's features, is "
    "nearer to them than to any other training picture: 1 - authenticity (Alaa et al., 2022)",
}
ROWS, COLUMNS, SPARE = 1024, 4096, 8


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Nearest first, equally near ones by place: indices (N,k) int64 of real pictures, distances (N,k) float64."""

    indices: Tensor
    distances: Tensor


@torch.inference_mode()
def neighbours(drawn: Tensor, real: Tensor, k: int = 1, itself: Tensor | None = None) -> Neighbours:
    """The k real pictures nearest to each picture drawn, by Euclidean distance of features (N,F) and (M,F).

    Exact: candidates come from products in float64 of features about their mean, k + 8 for each picture, and are
    measured again by differences, so that an equal picture has distance 0. Computed where `drawn` is, in pieces of
    1,024 by 4,096: about 250 MB beside the features, and for 30,000 against 30,000 pictures with 2,048 features 4e12
    operations. itself: (N,) place of the real picture that a row is, which is left out; -1 for none.

    Raises RequestError for fewer than k real pictures to choose from, other features, or features that are not finite.
    """
    _check(drawn, real, k + (itself is not None))
    device = drawn.device
    centre = real.mean(0, dtype=torch.float64)
    parts = (real[start : start + ROWS].double() for start in range(0, len(real), ROWS))
    squares = torch.cat([(part - centre).square().sum(1) for part in parts]).to(device)
    found = []
    for start in range(0, len(drawn), ROWS):
        rows = drawn[start : start + ROWS].double()
        own = None if itself is None else itself[start : start + ROWS].to(device)
        candidates = _candidates(rows - centre.to(device), real, centre, squares, min(k + SPARE, len(real)))
        exact = torch.stack(
            [
                torch.linalg.vector_norm(real[mine.to(real.device)].to(device).double() - row, dim=1)
                for row, mine in zip(rows, candidates, strict=True)
            ]
        )
        if own is not None:
            # It took one of the spare places.
            exact = exact.masked_fill(candidates == own[:, None], torch.inf)
        # Two stable sorts: by place, then by distance.
        by_place = candidates.argsort(stable=True, dim=1)
        order = by_place.gather(1, exact.gather(1, by_place).argsort(stable=True, dim=1))[:, :k]
        found.append(Neighbours(candidates.gather(1, order).cpu(), exact.gather(1, order).cpu()))
    return Neighbours(torch.cat([part.indices for part in found]), torch.cat([part.distances for part in found]))


def _candidates(rows: Tensor, real: Tensor, centre: Tensor, squares: Tensor, count: int) -> Tensor:
    """(R,count) places of the real pictures nearest to centred rows (R,F)."""
    best, places = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
    for start in range(0, len(real), COLUMNS):
        part = (real[start : start + COLUMNS].double() - centre).to(rows.device)
        # Without the row's own square, which is the same for all it is compared with.
        far = squares[start : start + COLUMNS] - 2 * rows @ part.t()
        here = torch.arange(start, start + len(part), device=rows.device).expand(len(rows), -1)
        far, here = torch.cat([best, far], 1), torch.cat([places, here], 1)
        best, kept = far.topk(min(count, far.shape[1]), dim=1, largest=False)
        places = here.gather(1, kept)
    return places


def _check(drawn: Tensor, real: Tensor, needed: int) -> None:
    if drawn.ndim != 2 or real.ndim != 2 or drawn.shape[1] != real.shape[1]:
        raise RequestError(
            f"features of pictures drawn are {tuple(drawn.shape)} and of real ones {tuple(real.shape)}: give (N,F) and "
            "(M,F) of one view"
        )
    if not len(drawn):
        raise RequestError("there are no pictures drawn to find neighbours of: draw some")
    if len(real) < needed:
        raise RequestError(f"neighbours need {needed} real pictures or more, and there are {len(real)}: take more")
    for name, features in (("pictures drawn", drawn), ("real pictures", real)):
        if not bool(features.isfinite().all()):
            raise RequestError(f"features of {name} hold numbers that are not finite: check the pictures and the view")


def memorised(drawn: Tensor, training: Tensor, view: str) -> Result:
    """Share of pictures drawn that look copied: nearer to a training picture than that one is to any other.

    With r the training picture nearest to a picture g, g counts when d(g, r) < min over r' other than r of d(r, r'):
    1 - authenticity (Alaa et al., "How Faithful is your Synthetic Data?", 2022). A generator that copies reaches 1, one
    far from the data 0. Fresh pictures of the training distribution do not reach 0, and how much they reach depends on
    the features (normal ones: 0.6 in 2 dimensions, 0.1 in 512): compare with held-out real pictures, given as `drawn`.

    drawn (N,F), training (M,F): features of one view. details: `nearer_than_typical`, the share whose d(g, r) is below
    the median distance from those r to their nearest other training picture (as many as there are different r);
    `median_distance`, `median_real_distance`; `equal`, the share at distance 0. Raises RequestError as `neighbours`.
    """
    nearest = neighbours(drawn, training)
    matched, where = np.unique(nearest.indices[:, 0].numpy(), return_inverse=True)
    places = torch.from_numpy(matched)
    between = neighbours(training[places.to(training.device)], training, itself=places).distances[:, 0]
    distance, real_distance = nearest.distances[:, 0].numpy(), between.numpy()
    typical = float(np.median(real_distance))
    details = {
        "nearer_than_typical": float((distance < typical).mean()),
        "median_distance": float(np.median(distance)),
        "median_real_distance": typical,
        "equal": float((distance == 0).mean()),
    }
    estimate = share(distance < real_distance[where])
    notes = () if estimate.count >= 100 else (f"from {estimate.count} pictures: too few to call a generator a copyist",)
    return Result("memorised", view, estimate, len(training), len(drawn), notes, details)
