"""Sizes, turns and boxes in whole numbers."""

import math
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from orchestration.data.scenes.vocabulary import THINGS

UNIT = 1024  # lengths in a scene are 1024ths of the picture's side
ONE = 4096  # fixed-point one of sines, cosines and a thing's own size

Box = tuple[int, int, int, int]  # x, y, width, height


@cache
def corners(thing: int) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """All corners of a thing (N,2), centred, the longer side of their box 4096 units; and where each part starts."""
    parts = THINGS[thing].parts
    points = np.concatenate([np.array(part.points, dtype=np.int64) for part in parts])
    low, high = points.min(axis=0), points.max(axis=0)
    points = (2 * points - low - high) * (ONE // 2) // int((high - low).max())
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part.points))
    return points, tuple(starts)


@lru_cache(maxsize=4096)
def turned(thing: int, turn: int, mirror: bool) -> NDArray[np.int64]:
    """Corners of a thing, mirrored if asked and turned by whole degrees clockwise."""
    cosine, sine = round(ONE * math.cos(math.radians(turn))), round(ONE * math.sin(math.radians(turn)))
    x, y = corners(thing)[0].T
    if mirror:
        x = -x
    return np.stack([(x * cosine - y * sine) // ONE, (x * sine + y * cosine) // ONE], axis=1)


def span(thing: int, turn: int, mirror: bool) -> Box:
    """Box of a turned thing about its anchor, in 4096ths of the thing's size."""
    points = turned(thing, turn, mirror)
    low, high = points.min(axis=0), points.max(axis=0)
    return int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])


def scaled(length: int, size: int) -> int:
    """A length in 4096ths of a thing's size, in the units of that size."""
    return length * size // ONE


def on_canvas(thing: int, turn: int, mirror: bool, size: int, anchor: tuple[int, int], side: int) -> NDArray[np.int64]:
    """Corners (N,2) in pixels of a canvas `side` pixels wide; size and anchor are in UNITs of the side."""
    points = turned(thing, turn, mirror) * size // ONE + np.array(anchor, dtype=np.int64)
    return points * side // UNIT


def overlap(a: Box, b: Box) -> int:
    """Area shared by two boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def relation(subject: Box, other: Box) -> str:
    """The spatial relation of one box to another, one of RELATIONS.

    The six mutually exclusive relations of sg2im (Johnson et al. 2018, section 4.1): containment first, then the
    direction between the centres by quadrant. At 45 degrees exactly, sideways wins.
    """
    (ax, ay, aw, ah), (bx, by, bw, bh) = subject, other
    if ax < bx and ay < by and ax + aw > bx + bw and ay + ah > by + bh:
        return "surrounding"
    if ax > bx and ay > by and ax + aw < bx + bw and ay + ah < by + bh:
        return "inside"
    dx, dy = (2 * ax + aw) - (2 * bx + bw), (2 * ay + ah) - (2 * by + bh)
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"
