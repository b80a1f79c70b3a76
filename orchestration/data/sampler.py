"""The order of the data as a pure function of (seed, position): nothing to save, nothing that depends on workers."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GOLDEN, STREAM_STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)


def mix(seed: int, stream: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 well-mixed bits for each position, by the splitmix64 finaliser (Steele, Lea and Flood, 2014).

    `stream` separates independent uses of one seed.
    """
    with np.errstate(over="ignore"):
        # Finalised by itself: else the next seed would be the same sequence, one position on.
        start = _finalise(np.array([seed], np.uint64) * GOLDEN + np.array([stream], np.uint64) * STREAM_STEP)
        return _finalise((positions.astype(np.uint64) + np.uint64(1)) * GOLDEN + start)


def _finalise(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def derive_seed(seed: int, stream: int, position: int = 0) -> int:
    """A seed (63 bits) for something else."""
    return int(mix(seed, stream, np.array([position]))[0] >> np.uint64(1))


class SeededOrder:
    """Endless shuffled passes over `size` items: position p is item perm_{p // size}[p % size]."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._pass = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        # Sorting random keys: a stable, documented order, unlike a library's shuffle, which may change by version.
        return np.argsort(mix(self.seed, epoch, np.arange(self.size)), kind="stable")

    def items(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The items at these positions (positions >= 0)."""
        epochs, places = np.divmod(positions, self.size)
        items = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            items[chosen] = self._pass(int(epoch))[places[chosen]]
        return items
