"""How `t2i show RUN --what retrieval` is drawn: graphs, candidate patches, photographs, boxes and pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from orchestration.data import lettering
from orchestration.data.lettering import FINE, INK, PAPER, QUIET, SMALL, Colour, Word, font, text_block
from orchestration.data.overlays import colour_of
from orchestration.data.panels import PALE, enlarged, fitted, sheet

SHOWN = 8
"""Candidates of an object on the sheet and in replies; what was chosen beyond them is shown too."""

Pixels = NDArray[np.uint8]
Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture (S,S,3) of a graph. chosen: of each object, which candidate, -1 where there is none; image_ids: the
    training pictures that those are from."""

    seed: int
    picture: Pixels
    chosen: list[int]
    image_ids: list[int | None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A patch (S,S,3), the training picture that it is from and where it is there."""

    patch: Pixels
    image_id: int
    box: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What was made of a graph with N objects.

    objects: their names, numbered where there are several of one; relations: places among them, and the word between;
    candidates: of each object; boxes: x0, y0, x1, y1 in [0, 1], what was drawn by; image_id and real: of a held-out
    picture, None for a graph that a person wrote.
    """

    words: str
    objects: list[str]
    relations: list[tuple[int, str, int]]
    candidates: list[list[Candidate]]
    boxes: list[tuple[float, ...]]
    samples: list[Sample]
    image_id: int | None = None
    real: Pixels | None = None

    def shown(self, thing: int) -> list[int]:
        """Which candidates of an object are shown, the nearest first."""
        first = range(min(SHOWN, len(self.candidates[thing])))
        return sorted({*first, *(sample.chosen[thing] for sample in self.samples if sample.chosen[thing] >= 0)})

    def to_json(self) -> dict[str, Any]:
        """Without pixels."""
        return {
            "graph": self.words,
            "image_id": self.image_id,
            "objects": self.objects,
            "boxes": [[round(edge, 4) for edge in box] for box in self.boxes],
            "samples": [{"seed": one.seed, "chosen": one.image_ids} for one in self.samples],
        }


# The sheet, in pixels before it is made smaller

TILE, PICTURE, GRAPH = 64 * FINE, 152 * FINE, 240 * FINE
GAP, WIDE = 6 * FINE, 22 * FINE
BELOW, LINE = lettering.line_height(SMALL), 3 * FINE
ROW = TILE + BELOW + GAP


def retrieval_sheet(
    title: str, about: str, found: Sequence[Retrieval], photographs: Mapping[int, Pixels]
) -> Image.Image:
    """One below the other: graph, candidates, boxes, and for each seed where the patches are from and the picture."""
    across = max(len(one.shown(thing)) for one in found for thing in range(len(one.objects)))
    names = max(lettering.width_of(name) for one in found for name in one.objects) + 2 * GAP
    blocks = [_block(one, photographs, round(names), across) for one in found]
    return sheet(title, about, blocks, max(block.width for block in blocks))


def _block(one: Retrieval, photographs: Mapping[int, Pixels], names: int, across: int) -> Image.Image:
    """All of one graph; names: width of the column of names; across: candidates in a row."""
    graph = _graph_panel(one)
    real = [] if one.real is None else [Image.fromarray(one.real)]
    columns = GRAPH + WIDE + names + across * (TILE + GAP) + WIDE + PICTURE + WIDE
    width = columns + len(one.samples) * (TILE + GAP + PICTURE + WIDE) + len(real) * PICTURE
    held = f" (held-out image {one.image_id})" if one.image_id is not None else ""
    words = text_block([*map(Word, one.words.split()), Word(held, QUIET)], width, 4)
    head = 2 * GAP + words.height
    top = head + BELOW + GAP
    tall = max(graph.height, PICTURE, len(one.objects) * ROW)
    block = Image.new("RGB", (width, top + tall), PAPER)
    pen = ImageDraw.Draw(block)
    pen.line((0, 0, width, 0), fill=PALE, width=FINE)
    block.paste(words, (0, 2 * GAP))

    def say(text: str, x: float, y: float = head + GAP / 2, colour: Colour = QUIET) -> None:
        pen.text((x, y), text, fill=colour, font=font(SMALL))

    say("graph", 0)
    block.paste(graph, (0, top))
    x = GRAPH + WIDE
    say("object", x)
    say("candidate patches, the nearest first", x + names)
    for thing, name in enumerate(one.objects):
        y = top + thing * ROW
        lettering.tag(block, name, colour_of(thing), [(x, y + TILE / 2 - BELOW / 2)], [])
        for column, place in enumerate(one.shown(thing)):
            _candidate(block, one, thing, place, (x + names + column * (TILE + GAP), y))
    x += names + across * (TILE + GAP) + WIDE
    say("boxes", x)
    block.paste(_box_panel(one), (x, top))
    x += PICTURE + WIDE
    for sample in one.samples:
        say("cut from", x)
        for thing, image_id in enumerate(sample.image_ids):
            y = top + thing * ROW
            if image_id is None:
                say("no patch", x, y + TILE / 2)
                continue
            box = one.candidates[thing][sample.chosen[thing]].box
            block.paste(_with_box(photographs[image_id], box, colour_of(thing)), (x, y))
            say(fitted(f"image {image_id}", TILE + GAP, SMALL), x, y + TILE)
        x += TILE + GAP
        say(f"drawn, seed {sample.seed}", x, colour=INK)
        block.paste(enlarged(Image.fromarray(sample.picture), PICTURE), (x, top))
        x += PICTURE + WIDE
    for picture in real:
        say("real", x)
        block.paste(enlarged(picture, PICTURE), (x, top))
        pen.rectangle((x, top, x + PICTURE - 1, top + PICTURE - 1), outline=INK, width=LINE)
    return block


def _candidate(block: Image.Image, one: Retrieval, thing: int, place: int, corner: tuple[int, int]) -> None:
    """A patch: framed in its object's colour with the seeds that chose it, pale where none did."""
    x, y = corner
    patch = enlarged(Image.fromarray(one.candidates[thing][place].patch), TILE)
    seeds = [sample.seed for sample in one.samples if sample.chosen[thing] == place]
    block.paste(patch if seeds else Image.blend(patch, Image.new("RGB", patch.size, PAPER), 0.45), corner)
    if not seeds:
        return
    pen = ImageDraw.Draw(block)
    around = (x - LINE / 2, y - LINE / 2, x + TILE - 1 + LINE / 2, y + TILE - 1 + LINE / 2)
    pen.rectangle(around, outline=colour_of(thing), width=LINE + FINE)
    every = len(seeds) == len(one.samples) > 1
    said = "every seed" if every else f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    pen.text((x, y + TILE + FINE), fitted(said, TILE + GAP, SMALL), fill=INK, font=font(SMALL))


def in_picture(box: Sequence[float]) -> Rectangle:
    """x0, y0, x1, y1 of what is seen of a predicted box, which may be turned around or leave the picture."""
    x0, y0, x1, y1 = (min(max(edge, 0.0), 1.0) if math.isfinite(edge) else 0.0 for edge in box)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _rectangle(box: Sequence[float], side: int) -> Rectangle:
    """In pixels, ordered and inside."""
    x0, y0, x1, y1 = (edge * (side - 1) for edge in in_picture(box))
    return x0, y0, x1, y1


def _with_box(photograph: Pixels, box: Sequence[float], colour: Colour) -> Image.Image:
    drawing = enlarged(Image.fromarray(photograph), TILE)
    pen = ImageDraw.Draw(drawing)
    for shade, line in ((PAPER, LINE), (colour, 2 * FINE)):  # seen on any ground
        pen.rectangle(_rectangle(box, TILE), outline=shade, width=line)
    return drawing


def _box_panel(one: Retrieval) -> Image.Image:
    """What was drawn by: a rectangle for each object, the large ones first."""
    drawing = Image.new("RGB", (PICTURE, PICTURE), PAPER)
    pen = ImageDraw.Draw(drawing)
    pen.rectangle((0, 0, PICTURE - 1, PICTURE - 1), outline=PALE, width=FINE)
    areas = [_rectangle(box, PICTURE) for box in one.boxes]
    order = sorted(range(len(areas)), key=lambda at: -(areas[at][2] - areas[at][0]) * (areas[at][3] - areas[at][1]))
    for thing in order:
        left, top, right, bottom = (round(edge) for edge in areas[thing])
        tint = Image.new("RGB", (right - left + 1, bottom - top + 1), colour_of(thing))
        part = drawing.crop((left, top, right + 1, bottom + 1))
        drawing.paste(Image.blend(part, tint, 0.15), (left, top))
        pen.rectangle((left, top, right, bottom), outline=colour_of(thing), width=2 * FINE)
    taken: list[Rectangle] = []
    for thing in order:
        left, top, right, bottom = map(round, areas[thing])
        half = lettering.width_of(one.objects[thing], SMALL) / 2
        middle = (left + right) / 2 - half
        places = [(left, top), (right - 2 * half, bottom - BELOW), (middle, (top + bottom) / 2), (left, bottom - BELOW)]
        places += [(middle, top + step * BELOW) for step in range(1, 8)]
        lettering.tag(drawing, one.objects[thing], colour_of(thing), places, taken)
    return drawing


def _graph_panel(one: Retrieval) -> Image.Image:
    """Objects on an oval, and an arrow with its word from each subject to its object."""
    count = len(one.objects)
    height = PICTURE + 14 * FINE * max(0, count - 4)
    drawing = Image.new("RGB", (GRAPH, height), PAPER)
    pen = ImageDraw.Draw(drawing)
    sizes = [(lettering.width_of(name) / 2 + GAP, lettering.line_height() / 2 + FINE) for name in one.objects]
    wide = GRAPH / 2 - max(size[0] for size in sizes)
    high = height / 2 - max(size[1] for size in sizes)
    centres = []
    for place in _order(one):
        angle = 2 * math.pi * place / count - math.pi / 2
        reach = 0 if count == 1 else 1
        centres.append((GRAPH / 2 + reach * wide * math.cos(angle), height / 2 + reach * high * math.sin(angle)))
    taken = [(x - w, y - h, x + w, y + h) for (x, y), (w, h) in zip(centres, sizes, strict=True)]
    for (x, y), (w, h), name, thing in zip(centres, sizes, one.objects, range(count), strict=True):
        colour = colour_of(thing)
        pen.rounded_rectangle((x - w, y - h, x + w, y + h), radius=h, fill=colour)
        light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140  # Rec. 601 luma
        pen.text((x, y), name, fill=INK if light else PAPER, font=font(lettering.TEXT), anchor="mm")
    lines = [
        (_edge_of(centres[s], centres[t], sizes[s]), _edge_of(centres[t], centres[s], sizes[t]))
        for s, _, t in one.relations
    ]
    for (subject, _, target), (start, end) in zip(one.relations, lines, strict=True):
        if subject != target:
            _arrow(pen, start, end, colour_of(subject))
    for (subject, word, target), (start, end) in zip(one.relations, lines, strict=True):
        half = lettering.width_of(word, SMALL) / 2 + 2 * FINE
        x, y = centres[subject]
        along = (0.45, 0.55, 0.35, 0.65, 0.25, 0.75)
        spots = [(start[0] + at * (end[0] - start[0]), start[1] + at * (end[1] - start[1])) for at in along]
        if subject == target:
            spots = [(x, y + sizes[subject][1] + BELOW / 2), (x, y - sizes[subject][1] - BELOW / 2)]
            word = f"{word} itself"
        spots += [(x, y + step * BELOW) for x, y in spots[:1] for step in (1, -1, 2, -2)]
        # In the colour of its arrow, only lighter.
        red, green, blue = (round(0.35 * value + 0.65 * 255) for value in colour_of(subject))
        lettering.tag(drawing, word, (red, green, blue), [(x - half, y - BELOW / 2) for x, y in spots], taken)
    return drawing


def _order(one: Retrieval) -> list[int]:
    """Where on the oval each object is: those that are related stand beside each other."""
    beside: dict[int, list[int]] = {thing: [] for thing in range(len(one.objects))}
    for subject, _, target in one.relations:
        beside[subject].append(target)
        beside[target].append(subject)
    order: dict[int, int] = {}
    for first in beside:
        waiting = [first]
        while waiting:
            thing = waiting.pop()
            if thing not in order:
                order[thing] = len(order)
                waiting += reversed(beside[thing])
    return [order[thing] for thing in range(len(one.objects))]


def _edge_of(centre: tuple[float, float], other: tuple[float, float], size: tuple[float, float]) -> tuple[float, float]:
    """Where the line to the other one leaves the name at the centre; size: half of it."""
    across, down = other[0] - centre[0], other[1] - centre[1]
    share = min(1.0, size[0] / abs(across) if across else math.inf, size[1] / abs(down) if down else math.inf)
    return centre[0] + share * across, centre[1] + share * down


def _arrow(pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: Colour) -> None:
    pen.line((*start, *end), fill=colour, width=2 * FINE)
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    wings = [
        (end[0] - 9 * FINE * math.cos(angle + turn), end[1] - 9 * FINE * math.sin(angle + turn)) for turn in (0.4, -0.4)
    ]
    pen.polygon([end, *wings], fill=colour)
