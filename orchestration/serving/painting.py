"""Batches that cannot be seen in the picture: the same prompt and seed give the same bits in any company.

A floating-point result may depend on the shape of the batch, since libraries choose their kernels and the split of work
by it. So a painter is drawn with in every batch size that could be used, at several places and beside several
neighbours, and only sizes that agree bit for bit are used; a batch is padded up to one of them.

Truncation needs no trial of its own: it changes each seed's numbers by themselves, before any net, and then the same
kernels see the same shapes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestration.errors import RequestError
from orchestration.reasons.schema import Abilities, Reasons

logger = logging.getLogger(__name__)

# Captions of one word, of ordinary length, and longer than any text encoder reads.
PROBES: Final[Sequence[tuple[str, int]]] = (
    ("bird", 1),
    ("a red bird with black wings sits on a thin branch", 2),
    ("a man in a blue coat walks beside a long wooden fence and " * 12, 3),
)
# Which probes fill a batch, in turn: one among its own kind, all three, the long one beside the ordinary one.
_PATTERNS: Final[Sequence[Sequence[int]]] = ((1,), (0, 1, 2), (2, 1))

Key = tuple[Tensor, ...]
Probes = Sequence[tuple[str, int]]


class PainterLike(Protocol):
    """What serving needs of a checkpoint. Pictures are (B,H,W,3) uint8, or (B,3,H,W) float32 in [-1, 1].

    truncation: of the latent, in standard deviations; RequestError where `abilities` has none.
    """

    resolution: int
    checkpoint_digest: str
    experiment_name: str

    @property
    def probes(self) -> Probes | None:
        """Three prompts and seeds in the place of `PROBES`; None where any words will do."""
        ...

    @property
    def abilities(self) -> Abilities:
        """What can be asked of it."""
        ...

    @classmethod
    def load(cls, checkpoint: Path, home: Path, device: str = "cpu") -> Self:
        """From a checkpoint folder. Raises RequestError."""
        ...

    def check(self, prompt: str) -> None:
        """RequestError for a prompt that it cannot draw."""
        ...

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None = None) -> NDArray[np.uint8]:
        """(B,H,W,3) uint8: a function of `draw_float`'s result, picture by picture."""
        ...

    def draw_float(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None = None) -> Tensor:
        """(B,3,H,W) float32 in [-1, 1]."""
        ...

    def explain(self, prompt: str, seeds: Sequence[int], truncation: float | None) -> Reasons:
        """Why the pictures of these seeds look as they do. Raises RequestError as drawing does."""
        ...


def probes_of(painter: PainterLike) -> Probes:
    """What a painter is tried with."""
    return painter.probes or PROBES


def prompt_fault(painter: PainterLike, prompt: str) -> str | None:
    """Why the painter cannot draw a prompt, in a sentence; None where it can."""
    try:
        painter.check(prompt)
    except RequestError as error:
        return str(error)
    return None


def candidate_sizes(max_batch: int) -> list[int]:
    """1, 2, 4, 8 ... and max_batch."""
    sizes = [2**power for power in range(max_batch.bit_length()) if 2**power <= max_batch]
    return sizes if sizes[-1] == max_batch else [*sizes, max_batch]


class InvariantBatches:
    """Draws any number of pictures with a painter, each as if it were drawn alone.

    sizes: the batch sizes in use, ascending; all give the same bits for the same prompt and seed at every place. Sizes
    fall into families that agree. In use is the family that reaches half of max_batch and has the smallest member,
    since a lone request pays for its padding; if none reaches half, the one that reaches furthest; (1,) if no larger
    size is steady. The choice depends on the results alone, never on time, so that equal replicas choose alike.
    """

    def __init__(self, painter: PainterLike, max_batch: int) -> None:
        self._painter = painter
        self.max_batch = max_batch
        self.sizes = self._agreeing_sizes()
        left_out = [size for size in candidate_sizes(max_batch) if size not in self.sizes]
        logger.info("batch sizes in use: %s; left out, since their bits differ: %s", list(self.sizes), left_out)

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None = None) -> NDArray[np.uint8]:
        """(B,H,W,3) uint8 for B >= 1 prompts and seeds, in their order; one truncation for all."""
        parts = []
        for start in range(0, len(prompts), self.sizes[-1]):
            stop = min(start + self.sizes[-1], len(prompts))
            parts.append(self._draw_padded(prompts[start:stop], seeds[start:stop], truncation))
        return np.concatenate(parts)

    def padded_size(self, count: int) -> int:
        """The smallest size in use that holds `count` pictures, for 1 <= count <= max(sizes)."""
        return next(size for size in self.sizes if size >= count)

    def _draw_padded(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None) -> NDArray[np.uint8]:
        padding = self.padded_size(len(prompts)) - len(prompts)
        prompts, seeds, count = [*prompts, *[prompts[-1]] * padding], [*seeds, *[seeds[-1]] * padding], len(prompts)
        return self._painter.draw(prompts, seeds, truncation)[:count]

    def _agreeing_sizes(self) -> tuple[int, ...]:
        families: list[tuple[Key, list[int]]] = []
        for size in candidate_sizes(self.max_batch):
            key = self._draw_probes(size)
            if key is None:
                logger.info("batch size %d is left out: a picture depends on its place or its neighbours", size)
                continue
            for known, sizes in families:
                if _equal(known, key):
                    sizes.append(size)
                    break
            else:
                families.append((key, [size]))
        if not families:
            return (1,)
        return min((tuple(sizes) for _, sizes in families), key=self._preference)

    def _preference(self, sizes: tuple[int, ...]) -> tuple[int, int]:
        reaches = 2 * sizes[-1] >= self.max_batch
        return (0, sizes[0]) if reaches else (1, -sizes[-1])

    def _draw_probes(self, size: int) -> Key | None:
        """Each probe's picture in batches of `size`, or None when two drawings of one probe differ."""
        seen: dict[int, Tensor] = {}
        probes = probes_of(self._painter)
        for pattern in _patterns(size):
            rows = [pattern[place % len(pattern)] for place in range(size)]
            pictures = self._painter.draw_float([probes[row][0] for row in rows], [probes[row][1] for row in rows])
            for row, picture in zip(rows, pictures, strict=True):
                if not torch.equal(seen.setdefault(row, picture), picture):
                    return None
        return tuple(seen[row] for row in sorted(seen))


def _patterns(size: int) -> Sequence[Sequence[int]]:
    # A batch of one holds one probe, so each is drawn by itself; twice, since even that may vary.
    return ((0,), (1,), (2,), (1,)) if size == 1 else _PATTERNS


def _equal(left: Key, right: Key) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
