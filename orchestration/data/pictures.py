"""Pictures of a split at training size, wherever their pixels come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestration.data.transforms import Transform


class StoredPictures(Protocol):
    """Pictures after the fixed half of a transform: prepared shards, or files that are decoded at each access."""

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """(N,) in the order of the records."""
        ...

    def pictures(self, rows: NDArray[np.int64]) -> Sequence[NDArray[np.uint8]]:
        """uint8 (3,h,w) in 0..255 for each of the rows."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Square pictures of side `size`: the random half of the transform applied to stored ones."""

    stored: StoredPictures
    transform: Transform
    size: int

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """(N,) in the order of the records."""
        return self.stored.image_ids

    def still(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 (B,3,size,size): the centre, not flipped."""
        return np.stack([self.transform.view(picture, self.size) for picture in self.stored.pictures(rows)])

    def drawn(self, rows: NDArray[np.int64], draws: NDArray[np.float64], flip: bool) -> NDArray[np.uint8]:
        """uint8 (B,3,size,size): cut and, if `flip`, mirrored by draws (B,3) in [0, 1)."""
        stored = self.stored.pictures(rows)
        views = (
            self.transform.view(picture, self.size, numbers, flip)
            for picture, numbers in zip(stored, draws, strict=True)
        )
        return np.stack(list(views))
