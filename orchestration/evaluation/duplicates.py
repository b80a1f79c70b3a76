"""Duplicates: does other noise give another picture? One that drops modes answers a caption with one picture."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestration.evaluation.metric import Array, Asked, Result, Seen
from orchestration.evaluation.pixels import check_pictures
from orchestration.evaluation.plans import REPEATS
from orchestration.evaluation.repeats import Table, next_of_group, pairs_of
from orchestration.stages import short_hash

PIXELS = "pixels"
THUMBNAIL_SIDE, THUMBNAIL_LEVELS = 8, 16
GREY_LEVELS, LPIPS_DISTANCE = 8.0, 0.05
"""At most so far apart, two pictures count as one. Our own rule: about what JPEG of quality 75 does to photographs
(COCO at 64 to 256 px: medians of 6 to 8 grey levels, and of LPIPS 0.05); mirroring does 69 levels, and another
photograph 91."""

PROTOCOLS = {
    "rms-8": "share of pairs of pictures of one caption whose pixels differ by at most 8 of 256 grey levels (root mean "
    "square); XMC-GAN and others look for this mode dropping by eye",
    "lpips-alex-0.05": "the same where LPIPS (Zhang et al., 2018) is at most 0.05; so for each LPIPS view",
}


class Pixels:
    """Looks at pixels, without any net: pixels/next_rms, float32 (B,), how far each picture is from the next one of its
    group in grey levels (0 to 255, root of the mean square over pixels and channels), NaN where there is none; and
    pixels/thumbnail, int64 (B,), equal for equal pictures and nearly never for others.

    Sums are of whole numbers, so they are the same everywhere to the last bit. A thumbnail is the picture's means over
    8 x 8 fields in 16 levels, hashed: small rounding errors, as between two kinds of GPU, mostly leave it as it is.
    """

    name = PIXELS
    digest = short_hash([PIXELS, 1, THUMBNAIL_SIDE, THUMBNAIL_LEVELS])
    notes: tuple[str, ...] = ()

    def __init__(self, device: torch.device | None = None) -> None:
        """The device is not used: pictures are looked at where there are 64-bit numbers, on the CPU."""

    def look(self, pictures: Tensor, asked: Asked) -> dict[str, Array]:
        """uint8 pictures (B,3,H,W), groups following each other."""
        check_pictures(pictures)
        rows = pictures.cpu().numpy()
        distances = np.full(len(rows), np.nan, np.float32)
        for place, other in enumerate(next_of_group(asked.groups).tolist()):
            if other >= 0:
                difference = rows[place].astype(np.int64) - rows[other]
                distances[place] = np.sqrt(np.square(difference).sum() / difference.size)
        thumbnails = np.array([_thumbnail(row) for row in rows], np.int64)
        return {f"{PIXELS}/next_rms": distances, f"{PIXELS}/thumbnail": thumbnails}


def _thumbnail(picture: NDArray[np.uint8]) -> int:
    """64 bits of a picture (3,H,W)."""
    sums, lengths = picture.astype(np.int64), []
    for axis in (1, 2):
        side = picture.shape[axis]
        fields = min(side, THUMBNAIL_SIDE)
        edges = np.arange(fields) * side // fields
        sums = np.add.reduceat(sums, edges, axis=axis)
        lengths.append(np.diff([*edges, side]))
    levels = sums * THUMBNAIL_LEVELS // (256 * np.outer(*lengths))
    return int.from_bytes(hashlib.blake2b(levels.astype(np.uint8).tobytes(), digest_size=8).digest(), signed=True)


class Duplicates:
    """Share of pairs of pictures of one caption, drawn with other noise, that are nearly the same picture.

    view: "pixels", by root mean square in grey levels, or one of LPIPS; threshold: at most so far apart; none: 8 grey
    levels, LPIPS 0.05. It is part of the protocol's name. The interval is Wilson's, over captions.

    details: `share_at_half_the_threshold`, `share_at_twice_the_threshold`, `median_distance` over pairs;
    `equal_to_another_captions`: share of pictures whose thumbnail is that of a picture of another caption, which a
    generator that ignores its caption makes too.
    """

    name = "duplicates"
    looks_at_real: frozenset[str] = frozenset()
    plan = REPEATS

    def __init__(self, view: str = PIXELS, threshold: float | None = None) -> None:
        by_pixels = view == PIXELS
        self.threshold = (GREY_LEVELS if by_pixels else LPIPS_DISTANCE) if threshold is None else threshold
        if not 0 <= self.threshold < np.inf:
            raise ValueError(f"the threshold of duplicates is {self.threshold}: give a number from 0 on")
        self.protocol = f"{'rms' if by_pixels else view}-{self.threshold:g}"
        self.looks_at = frozenset({PIXELS, view})
        self._array = f"{PIXELS}/next_rms" if by_pixels else f"{view}/next"
        self._seen = Table()

    def update(self, drawn: Seen) -> None:
        self._seen.add(drawn.asked.places, drawn.asked.groups, drawn[self._array], drawn[f"{PIXELS}/thumbnail"])

    def update_real(self, real: Seen) -> None:
        """Nothing: no real picture plays a part."""

    def merge(self, other: "Duplicates") -> None:
        if self.protocol != other.protocol:
            raise ValueError(f"duplicates/{self.protocol} cannot add duplicates/{other.protocol}")
        self._seen.merge(other._seen)

    def compute(self) -> list[Result]:
        groups, values, thumbnails = self._seen.read() or (np.empty(0),) * 3
        pairs = pairs_of(groups, values, f"{self.name}/{self.protocol}")
        details = {
            "share_at_half_the_threshold": float((pairs.values <= self.threshold / 2).mean()),
            "share_at_twice_the_threshold": float((pairs.values <= self.threshold * 2).mean()),
            "median_distance": float(np.median(pairs.values)),
            "equal_to_another_captions": float(shared_between_groups(groups, thumbnails).mean()),
        }
        estimate = pairs.share(pairs.values <= self.threshold)
        return [Result(self.name, self.protocol, estimate, 0, pairs.drawn, details=details)]


def shared_between_groups(groups: Array, thumbnails: Array) -> NDArray[np.bool_]:
    """(N,) whether a picture's thumbnail is also that of a picture of another group."""
    _, kinds = np.unique(thumbnails, return_inverse=True)
    owners = np.unique(np.stack([kinds, groups]), axis=1)[0]
    return np.bincount(owners, minlength=len(kinds))[kinds] > 1
