"""Recall@k: how often the right picture is among the first k for a caption, and a right caption for a picture.

TReCS measures its retrieval so (section 4.2, Table 3: k = 1, 5, 10, 20, 50, 100 over LN-COCO's 8,573 validation
narratives). It does not say what counts where an image has several captions. Here, from caption to image, the
candidates are the distinct images and the right one is the caption's own; from image to caption, the candidates are all
captions and any of the image's own is right. What the encoder cannot tell from the right one comes before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from orchestration.errors import RequestError
from orchestration.evaluation.estimates import share
from orchestration.evaluation.metric import Result, Seen
from orchestration.evaluation.plans import EVERY_CAPTION
from orchestration.evaluation.r_precision import INDEPENDENT, OWN_MATCHER, TIE

NAME = "recall"
TO_IMAGE, TO_CAPTION = "caption-to-image", "image-to-caption"
KS = (1, 5, 10, 20, 50, 100)
CHUNK_NUMBERS = 2**22  # 32 MB of cosines at a time
PROTOCOLS: Mapping[str, str] = {
    f"{NAME}/{TO_IMAGE}@K": "captions whose own image is among the first K of all distinct images (TReCS, Table 3, "
    "C to I)",
    f"{NAME}/{TO_CAPTION}@K": "images with any own caption among the first K of all captions (TReCS, Table 3, I to C)",
    f"{NAME}/dual-NAME/...": "the same by a dual encoder that no generator was trained against",
}


@dataclass(frozen=True, slots=True)
class _Pairs:
    """places, image_ids: (N,) int64; picture, caption: (N,C) float32."""

    places: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    picture: NDArray[np.float32]
    caption: NDArray[np.float32]


class Recall:
    """Recall@k in both directions on real pictures, by the embeddings VIEW/picture and VIEW/caption (B,C).

    Each sample is a caption with its image; an image may come with several, and is searched for once. view: the
    encoder; it is part of the protocol where its name begins with "dual-". The search is exact. It keeps every
    embedding, 60 MB for 30,000 samples of width 256, and takes 0.6 GB while it computes. A place that comes twice
    counts once.
    """

    name = NAME
    plan = EVERY_CAPTION
    looks_at: frozenset[str] = frozenset()

    def __init__(self, view: str = OWN_MATCHER) -> None:
        self.view = view
        self.protocol = f"{view}/both-ways" if view.startswith(INDEPENDENT) else "both-ways"
        self.looks_at_real = frozenset({view})
        self._prefix = f"{view}/" if view.startswith(INDEPENDENT) else ""
        self._parts: list[_Pairs] = []

    def update(self, drawn: Seen) -> None:
        """Pictures drawn play no part."""

    def update_real(self, real: Seen) -> None:
        """Add B real pictures, each with one of its captions. Raises ValueError for shapes that do not fit."""
        asked = real.asked
        picture, caption = (real[f"{self.view}/{array}"] for array in ("picture", "caption"))
        lengths = {len(real), len(asked.image_ids), len(picture), len(caption)}
        if len(lengths) > 1 or picture.ndim != 2 or picture.shape != caption.shape:
            raise ValueError(
                f"B places and image ids and two (B,C) are wanted, not {len(real)}, {len(asked.image_ids)}, "
                f"{picture.shape} and {caption.shape}"
            )
        embedded = (np.array(array, np.float32) for array in (picture, caption))
        self._parts.append(_Pairs(asked.places, asked.image_ids, *embedded))

    def merge(self, other: Self) -> None:
        """Add what another worker saw. Raises ValueError for another protocol."""
        if self.protocol != other.protocol:
            raise ValueError(f"{NAME}/{other.protocol} is not {NAME}/{self.protocol}")
        self._parts += other._parts

    def ranks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Wrong images before the right one, for each caption by place; and wrong captions before the first right
        one, for each image by id. Raises RequestError for fewer than two images."""
        return self._ranks(self._whole())

    def compute(self) -> list[Result]:
        """`recall/caption-to-image@1` ... and `recall/image-to-caption@1` ..., for every k that can miss.

        Raises as `ranks`.
        """
        pairs = self._whole()
        to_image, to_caption = self._ranks(pairs)
        images, owned = np.unique(pairs.image_ids, return_counts=True)
        notes: tuple[str, ...] = ()
        if len(pairs.places) > len(images):
            notes = (
                f"{len(pairs.places)} captions of {len(images)} images: a caption has its image as the only right one, "
                "an image has any of its captions",
            )
        found = []
        wrong = {TO_IMAGE: len(images) - 1, TO_CAPTION: int(len(pairs.places) - owned.max())}
        for direction, ranks in ((TO_IMAGE, to_image), (TO_CAPTION, to_caption)):
            details = {"median_rank": float(np.median(ranks)) + 1}
            found += [
                Result(NAME, f"{self._prefix}{direction}@{k}", share(ranks < k), len(images), 0, notes, details)
                for k in KS
                if k <= wrong[direction]
            ]
        return found

    def _whole(self) -> _Pairs:
        """All samples by place, each once. Raises RequestError for fewer than two images."""
        columns: list[NDArray[np.int64]] = []
        if sum(len(part.places) for part in self._parts):
            columns = [np.concatenate([getattr(part, item.name) for part in self._parts]) for item in fields(_Pairs)]
        images = len(np.unique(columns[1])) if columns else 0
        if images < 2:
            raise RequestError(
                f"{NAME} tells images apart by their captions, and {images or 'no'} "
                f"image{' was' if images else 's were'} given with captions: judge a split with captions of two images "
                "or more"
            )
        rows = np.unique(columns[0], return_index=True)[1]
        return _Pairs(*(column[rows] for column in columns))  # type: ignore[arg-type]

    def _ranks(self, pairs: _Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        _, first, own = np.unique(pairs.image_ids, return_index=True, return_inverse=True)
        pictures, captions = _unit(pairs.picture[first]), _unit(pairs.caption)
        image_of = torch.from_numpy(own)
        right = (pictures[image_of] * captions).sum(1)
        best = torch.full((len(pictures),), -torch.inf, dtype=torch.float64)
        best.scatter_reduce_(0, image_of, right.nan_to_num(-torch.inf), "amax")
        to_image, to_caption = [], torch.zeros(len(pictures), dtype=torch.int64)
        chunk = max(1, CHUNK_NUMBERS // len(pictures))
        for start in range(0, len(captions), chunk):
            part = slice(start, start + chunk)
            scores = captions[part] @ pictures.T
            wrong = torch.ones_like(scores, dtype=torch.bool).scatter_(1, image_of[part, None], False)
            # What is not clearly below comes before: ties, and scores that are not numbers.
            to_image.append((~(scores < right[part, None] - TIE) & wrong).sum(1))
            to_caption += (~(scores < best - TIE) & wrong).sum(0)
        return torch.cat(to_image).numpy(), to_caption.numpy()


def _unit(embeddings: NDArray[np.float32]) -> Tensor:
    return F.normalize(torch.from_numpy(embeddings).double(), dim=1)
