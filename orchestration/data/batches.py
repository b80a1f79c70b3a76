"""Batches by position: the samples of the global batch at any point of training, or a rank's part of them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import Batch
from orchestration.data.features import CaptionFeatures
from orchestration.data.pictures import Pictures
from orchestration.data.sampler import SeededOrder, derive_seed, mix
from orchestration.errors import RequestError, RunError

# Streams of the data seed: what is drawn must not depend on what else is drawn.
ORDER, CAPTION, FLIP = 0, 1, 2


@dataclass(frozen=True, slots=True)
class CaptionedPictures:
    """Pixels and captions of one split, row for row the same images."""

    pictures: Pictures
    captions: CaptionFeatures

    def __post_init__(self) -> None:
        if not np.array_equal(self.pictures.image_ids, self.captions.image_ids):
            raise RunError(
                "pictures and captions were prepared from different data: delete the stages folder and repeat"
            )
        silent = np.flatnonzero(np.diff(self.captions.starts) < 1)
        if len(silent):
            raise RequestError(
                f"image {self.captions.image_ids[silent[0]]} has no caption: leave it out of the data or add one"
            )

    def __len__(self) -> int:
        return len(self.pictures.image_ids)

    def images(self, items: NDArray[np.int64]) -> torch.Tensor:
        """(B,3,H,W) in [-1, 1]."""
        pixels = torch.from_numpy(self.pictures.pixels[items])
        return pixels.float().div_(127.5).sub_(1)


class TrainingStream:
    """What training sees: shuffled passes, one random caption an image, random flips; all by position and seed."""

    def __init__(self, data: CaptionedPictures, seed: int, flip: bool) -> None:
        self.data, self.seed, self.flip = data, seed, flip
        self.order = SeededOrder(len(data), derive_seed(seed, ORDER))

    def batch(self, start: int, count: int) -> Batch:
        """Samples start .. start+count-1 of the run (counted in images seen)."""
        positions = np.arange(start, start + count, dtype=np.int64)
        items = self.order.items(positions)
        captions = self.data.captions
        owned = captions.starts[items + 1] - captions.starts[items]
        draw = mix(self.seed, CAPTION, positions) % owned.astype(np.uint64)
        images = self.data.images(items)
        if self.flip:
            flipped = torch.from_numpy((mix(self.seed, FLIP, positions) >> np.uint64(63)).astype(bool))
            images[flipped] = images[flipped].flip(3)
        text = captions.take(captions.starts[items] + draw.astype(np.int64))
        return Batch(torch.from_numpy(self.data.pictures.image_ids[items]), images, text)


def held_out_captions(captions: CaptionFeatures, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(images, captions), `count` of each, drawn with the seed: images in shuffled passes, one random caption each.

    More than there are images oversamples them (XMC-GAN, section 5.2).
    """
    positions = np.arange(count, dtype=np.int64)
    items = SeededOrder(len(captions.image_ids), derive_seed(seed, ORDER)).items(positions)
    owned = (captions.starts[items + 1] - captions.starts[items]).astype(np.uint64)
    return items, captions.starts[items] + (mix(seed, CAPTION, positions) % owned).astype(np.int64)
