"""Label maps as runs of equal pixels along their rows: some twentieth of their bytes, and drawn again in no time."""

import numpy as np
from numpy.typing import NDArray

MOST = 2**16 - 1
"""The largest number that a pixel may have, and the longest run: of a row."""


def to_runs(*layers: NDArray[np.integer]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """L layers (H,W) of numbers 0 to MOST to the runs of pixels that are equal in all of them, row by row.

    Numbers (L,R) and lengths (R,); no run goes on in the next row. Raises ValueError for a number or a row that is
    larger.
    """
    stacked = np.stack(layers)
    if stacked.size and not (stacked.min() >= 0 and max(int(stacked.max()), stacked.shape[2]) <= MOST):
        raise ValueError(f"a pixel's number is outside 0 to {MOST}, or a row longer")
    begins = np.ones(stacked.shape[1:], np.bool_)
    begins[:, 1:] = (stacked[:, :, 1:] != stacked[:, :, :-1]).any(0)
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, begins.size))
    return stacked.reshape(len(layers), -1)[:, starts].astype(np.uint16), lengths.astype(np.uint16)


def from_runs(numbers: NDArray[np.uint16], lengths: NDArray[np.uint16], height: int, width: int) -> NDArray[np.int64]:
    """Numbers (R,) and lengths (R,) to the layer (height,width). Raises ValueError where they are of another size."""
    return np.repeat(numbers.astype(np.int64), lengths).reshape(height, width)
