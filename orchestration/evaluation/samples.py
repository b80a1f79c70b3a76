"""Arrays of pictures by place, checked as they come: what metrics that compare distributions have in common."""

import numpy as np
from numpy.typing import NDArray

from orchestration.data.sampler import derive_seed, mix
from orchestration.errors import RequestError
from orchestration.evaluation.metric import Seen

KEEP_STREAM = 330

Rows = NDArray[np.float32]


class Samples:
    """Rows (N,F) float32 of one array, by place; all of them, or the `most` with the least seeded keys.

    array: full name, VIEW/ARRAY. stream: keeps apart the choices of one seed. However rows come, and merged in any
    order, the same are kept.
    """

    def __init__(self, array: str, most: int | None = None, seed: int = 0, stream: int = 0) -> None:
        self.array, self.most = array, most
        self._key_seed = derive_seed(seed, KEEP_STREAM, stream)
        self._places: set[int] = set()
        self._parts: list[tuple[NDArray[np.int64], Rows]] = []
        self.width = 0

    @property
    def count(self) -> int:
        """Rows that were given, kept or not."""
        return len(self._places)

    def add(self, seen: Seen, array: str | None = None) -> Rows:
        """Take the rows of a portion, of another array where one is named, and return them (B,F).

        Raises ValueError for a place that comes twice and for an array that is not (B,F); RequestError for numbers that
        are not finite, and for another width than before.
        """
        places = np.array(seen.asked.places, np.int64)
        name = array or self.array
        rows = np.array(seen[name], np.float32)
        if rows.ndim != 2 or len(rows) != len(places) or not rows.shape[1]:
            raise ValueError(f"{name} of {len(places)} pictures must be (B,F), not {rows.shape}")
        broken = ~np.isfinite(rows).all(1)
        if broken.any():
            raise RequestError(
                f"{name} of the picture at place {places[broken.argmax()]} holds values that are not finite "
                "numbers: look for such values in the pictures and in the weights of the net"
            )
        if not len(rows):
            return rows
        new = set(places.tolist())
        if len(new) < len(places):
            raise ValueError(f"{self.array} has a place twice in one portion")
        self._check(new, rows.shape[1])
        self._places |= new
        self.width = rows.shape[1]
        self._parts.append((places, rows))
        self._trim(spare=self.most or 0)
        return rows

    def check(self, other: "Samples") -> None:
        """Raises what `merge` would."""
        if (self.array, self.most, self._key_seed) != (other.array, other.most, other._key_seed):
            raise ValueError(f"samples of {other.array} are kept otherwise than those of {self.array}")
        if other.count:
            self._check(other._places, other.width)

    def merge(self, other: "Samples") -> None:
        """Take what another worker saw. Raises as `add`, and ValueError where it keeps others."""
        self.check(other)
        self._places |= other._places
        self.width = self.width or other.width
        self._parts += other._parts
        self._trim(spare=self.most or 0)

    def kept(self) -> tuple[NDArray[np.int64], Rows]:
        """Places (N,) in rising order, and their rows (N,F)."""
        self._trim(spare=0)
        places, rows = self._joined()
        order = np.argsort(places)
        if (order[1:] < order[:-1]).any():
            places, rows = places[order], rows[order]
        self._parts = [(places, rows)]
        return places, rows

    def _check(self, places: set[int], width: int) -> None:
        again = self._places & places
        if again:
            raise ValueError(f"{self.array} of the picture at place {min(again)} came twice")
        if self.width and self.width != width:
            raise RequestError(
                f"{self.array} has {width} numbers a picture where it had {self.width} before: "
                "look at all pictures with the same weights"
            )

    def _joined(self) -> tuple[NDArray[np.int64], Rows]:
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros((0, self.width), np.float32)
        places, rows = zip(*self._parts, strict=True)
        return np.concatenate(places), np.concatenate(rows)

    def _trim(self, spare: int) -> None:
        if self.most is None or sum(len(places) for places, _ in self._parts) <= self.most + spare:
            return
        places, rows = self._joined()
        least = np.argsort(mix(self._key_seed, 0, places))[: self.most]
        self._parts = [(places[least], rows[least])]


def merge_all(*pairs: tuple[Samples, Samples]) -> None:
    """Merge each second into its first: all of them, or none where one raises."""
    for mine, theirs in pairs:
        mine.check(theirs)
    for mine, theirs in pairs:
        mine.merge(theirs)


def check_widths(figure: str, real: int, drawn: int) -> None:
    """Raises RequestError where the features of both sides are not of one width."""
    if real != drawn:
        raise RequestError(
            f"{figure} compares features of one width, and the real pictures have {real} and those drawn {drawn}: "
            "use the same weights for both"
        )


def check_counts(figure: str, real: int, drawn: int, least: int) -> None:
    """Raises RequestError where a side has fewer than `least` pictures."""
    for kind, count in (("real", real), ("drawn", drawn)):
        if count < least:
            raise RequestError(f"{figure} needs at least {least} {kind} pictures, and has {count}: judge more")
