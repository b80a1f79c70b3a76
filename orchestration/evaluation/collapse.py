"""Collapse: whatever the caption and the noise, a generator draws nearly one picture.

`variety/pixels` says how far pictures drawn for different captions with different noise are from being one: the
standard deviation of each pixel over the pictures, in grey levels, averaged over pixels and channels, of pictures
shrunk to 16x16. Shrinking leaves what a person tells pictures apart by, and takes away noise of single pixels.

A training has collapsed when variety is below LEAST_SHARE of the real pictures' and no larger than at some judging
before. So the first judging never counts: a net that has learned nothing yet may draw nearly one picture too, and one
that rises slowly is let go on. Measured on scenes, whose real pictures have 65 to 67 grey levels: untrained nets 5.5
(MirrorGAN) to 15.5 (XMC-GAN), and in sound trainings never less; XMC-GAN with a learning rate 200 and 2,000 times too
large falls to 0.0 within 0.7 kimg; untrained generators that hear the same sentence each time, as from an encoder that
has learned nothing, 0.3 to 1.1 (AttnGAN), and others more.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.parallel import Ranks
from orchestration.errors import RunError
from orchestration.evaluation.estimates import QUANTILE_95, Estimate
from orchestration.evaluation.metric import Array, Asked, Result, Seen
from orchestration.evaluation.pixels import check_pictures
from orchestration.evaluation.plans import CAPTIONS
from orchestration.evaluation.samples import Samples, check_counts
from orchestration.training.loop import Diverged

PROTOCOLS: Mapping[str, str] = {
    "variety/pixels": "standard deviation of a pixel over pictures of different captions and noise, in grey levels, "
    "mean over pixels of pictures shrunk to 16x16: near 0 all pictures are one",
}
VIEW, SIDE = "pixels", 16
ARRAY = f"{VIEW}/thumbnail"
LEAST_SHARE = 0.02
FIGURE, REAL_FIGURE = "validation/variety/pixels", "validation/variety_real/pixels"


class Collapsed(RunError):
    """A generator draws nearly one picture for everything; `reason` has the numbers. Every rank raises it."""

    def __init__(self, reason: str, kimg: float) -> None:
        self.reason = reason
        super().__init__(
            f"training collapsed at {kimg:.3f} kimg ({reason}): nothing later than the last checkpoint is kept; lower "
            "the learning rates or change the balance of the losses and start again"
        )


def collapse_reason(judgings: Iterable[Mapping[str, float]]) -> str | None:
    """Why the last of a run's recorded figures say that it has collapsed, as one clause; None where they do not.

    judgings: the lines of metrics.jsonl in order; those without `validation/variety/pixels` play no part.
    """
    seen = [line for line in judgings if FIGURE in line]
    if not seen:
        return None
    variety, real = seen[-1][FIGURE], seen[-1].get(REAL_FIGURE, 0.0)
    # The first judging rises over nothing.
    rising = all(variety > line[FIGURE] for line in seen[:-1])
    if rising or variety >= LEAST_SHARE * real:
        return None
    return (
        f"pictures for different captions and noise differ by {variety:.3g} grey levels, real ones by {real:.3g}: "
        f"less than {LEAST_SHARE:.0%} is one picture for all"
    )


Ending = Diverged | Collapsed


def end_together(found: Ending | None, ranks: Ranks, device: torch.device, kimg: float) -> None:
    """Raise on every rank what rank 0, which alone judges, has found; nothing where it found nothing.

    Every rank calls it at the same points: one that stopped alone would leave the others waiting for it.
    """
    kinds: tuple[type[Ending], ...] = (Collapsed, Diverged)
    code = 0 if found is None or ranks.rank else 1 + kinds.index(type(found))
    # A mean over ranks is the one message that Ranks has.
    message = torch.tensor(float(code * ranks.size), device=device)
    ranks.average_([message])
    if found is not None and not ranks.rank:
        raise found
    if message:
        raise kinds[round(message.item()) - 1]("rank 0 has found it", kimg)


class Thumbnails:
    """Pictures shrunk to 16x16 by the mean of each area, as a view; no weights."""

    name = VIEW
    digest = f"mean-{SIDE}"
    notes: tuple[str, ...] = ()

    @torch.inference_mode()
    def look(self, pictures: Tensor, asked: Asked | None = None) -> dict[str, Array]:
        """uint8 pictures (B,3,H,W) to pixels/thumbnail (B,768) in grey levels. Raises RequestError for others."""
        check_pictures(pictures)
        return {ARRAY: F.adaptive_avg_pool2d(pictures.float(), SIDE).flatten(1).cpu().numpy()}


class Variety:
    """`variety/pixels`, in grey levels; `real` beside it is that of the real pictures.

    The interval is of the pictures drawn, by each picture's influence, as that of FID. It keeps 3 KB a picture.
    """

    name, protocol, plan = "variety", VIEW, CAPTIONS
    looks_at = looks_at_real = frozenset({VIEW})

    def __init__(self) -> None:
        self._drawn, self._real = Samples(ARRAY), Samples(ARRAY)

    def update(self, drawn: Seen) -> None:
        """Add pixels/thumbnail (B,768). Raises ValueError for a place that came before."""
        self._drawn.add(drawn)

    def update_real(self, real: Seen) -> None:
        """Add pixels/thumbnail (B,768) of real pictures."""
        self._real.add(real)

    def merge(self, other: "Variety") -> None:
        self._drawn.merge(other._drawn)
        self._real.merge(other._real)

    def compute(self) -> list[Result]:
        """Raises RequestError for fewer than two pictures on a side."""
        counts = self._real.count, self._drawn.count
        check_counts("variety/pixels", *counts, 2)
        value, influences = _spread(self._drawn.kept()[1])
        half = QUANTILE_95 * float(influences.std(ddof=1)) / counts[1] ** 0.5
        estimate = Estimate(value, max(0.0, value - half), value + half, counts[1])
        return [Result("variety", VIEW, estimate, *counts, details={"real": _spread(self._real.kept()[1])[0]})]


def _spread(rows: Array) -> tuple[float, Array]:
    """Mean over columns of the deviation over rows (N,F), and how each row pulls it (N,)."""
    apart = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    squares = apart**2
    deviations = np.sqrt(squares.mean(0))
    moving = deviations > 0
    pulls = (squares[:, moving] / deviations[moving] - deviations[moving]).sum(1) / (2 * len(deviations))
    return float(deviations.mean()), pulls
