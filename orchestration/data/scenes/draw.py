"""From a scene to pixels and visible masks.

Everything is drawn four times too large in whole numbers and box-filtered down: anti-aliased, and the same bytes
on every machine with the same Pillow.
"""

from dataclasses import dataclass
from itertools import pairwise
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from orchestration.data.scenes.backgrounds import PAINTERS
from orchestration.data.scenes.compose import Placed, Scene
from orchestration.data.scenes.geometry import corners, on_canvas
from orchestration.data.scenes.shapes import INK, RGB, Tone
from orchestration.data.scenes.vocabulary import BACKGROUNDS, COLOURS, THINGS, Colour

OVERSAMPLING = 4


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn scene.

    `labels` is (H,W) uint8: 0 is background, k is the k-th object (1 = main) where it is visible. `areas` counts the
    pixels each object would have if nothing lay over it.
    """

    image: Image.Image
    labels: NDArray[np.uint8]
    areas: tuple[int, ...]


def draw(scene: Scene, size: int) -> Drawing:
    """Draw a scene as an RGB picture of `size` x `size` pixels."""
    background = BACKGROUNDS[scene.background]
    canvas = PAINTERS[background.name](size * OVERSAMPLING, Random(scene.texture))
    labels = np.zeros((size, size), dtype=np.uint8)
    areas = [0] * len(scene.objects)
    for index in range(len(scene.objects) - 1, -1, -1):
        areas[index] = _draw_object(canvas, labels, scene.objects[index], index + 1, background.outline)
    return Drawing(canvas.reduce(OVERSAMPLING), labels, tuple(areas))


def _draw_object(canvas: Image.Image, labels: NDArray[np.uint8], placed: Placed, label: int, outline: RGB) -> int:
    """Draw one object over what is there, label its pixels, return their number."""
    side = canvas.width
    points = on_canvas(placed.thing, placed.turn, placed.mirror, placed.size, (placed.x, placed.y), side)
    line = 2 + side // 128
    left, top, right, bottom = _frame(points, line, side)

    silhouette = Image.new("L", (right - left, bottom - top))
    stencil = ImageDraw.Draw(silhouette)
    starts = corners(placed.thing)[1]
    spans = list(pairwise(starts))
    inside = points - np.array([left, top])
    for start, stop in spans:
        stencil.polygon(inside[start:stop].ravel().tolist(), 255)
    outlined = Image.fromarray(_thicker(np.asarray(silhouette), line))
    canvas.paste(outline, (left, top), outlined)

    pen = ImageDraw.Draw(canvas)
    colour = COLOURS[placed.colour]
    for (start, stop), part in zip(spans, THINGS[placed.thing].parts, strict=True):
        polygon = points[start:stop].ravel().tolist()
        pen.polygon(polygon, _paint(part.paint, colour))
        if part.edged:
            pen.line(polygon + polygon[:2], INK, max(2, line * 2 // 3))

    covered = np.asarray(outlined.reduce(OVERSAMPLING)) >= 128
    rows, columns = (
        slice(top // OVERSAMPLING, bottom // OVERSAMPLING),
        slice(left // OVERSAMPLING, right // OVERSAMPLING),
    )
    labels[rows, columns][covered] = label
    return int(covered.sum())


def _frame(points: NDArray[np.int64], line: int, side: int) -> tuple[int, int, int, int]:
    """The part of the canvas an outlined object may touch, in whole pixels of the picture."""
    left, top = (int(c) for c in (points.min(axis=0) - line - 1) // OVERSAMPLING * OVERSAMPLING)
    right, bottom = (int(c) for c in -(-(points.max(axis=0) + line + 2) // OVERSAMPLING) * OVERSAMPLING)
    return max(0, left), max(0, top), min(side, right), min(side, bottom)


def _thicker(mask: NDArray[np.uint8], by: int) -> NDArray[np.uint8]:
    """The mask grown by `by` pixels, with cut corners; in two steps, so that thin parts get no gaps."""
    for step in (by // 2, by - by // 2):
        slant = max(1, step * 3 // 4)
        padded = np.pad(mask, step)
        height, width = mask.shape
        grown = mask.copy()
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            y, x = step * (1 + dy), step * (1 + dx)
            np.maximum(grown, padded[y : y + height, x : x + width], out=grown)
        for dy, dx in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            y, x = step + slant * dy, step + slant * dx
            np.maximum(grown, padded[y : y + height, x : x + width], out=grown)
        mask = grown
    return mask


def _paint(paint: Tone | RGB, colour: Colour) -> RGB:
    if paint == "base":
        return colour.base
    if paint == "light":
        return colour.light
    if paint == "dark":
        return colour.dark
    if paint == "spot":
        return colour.spot
    return paint
