"""`t2i data show`: what records carry, drawn over their pictures."""

import colorsys
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from orchestration.data import lettering
from orchestration.data.coco_stuff import LABELS, UNLABELLED
from orchestration.data.lettering import FINE, INK, PAPER, QUIET, Colour, Word, text_block
from orchestration.data.masks import draw_region, label_map, panoptic_ids
from orchestration.data.records import Box, Dataset, ImageRecord, Instance, Narrative
from orchestration.data.traces import convex_hull, phrase_points
from orchestration.data.transforms import decode
from orchestration.errors import RequestError
from orchestration.stages import write_atomically
from orchestration.training.recorder import png_bytes

SIDE = 360 * FINE
"""A picture's longer side in a panel."""
_GAP = 10 * FINE
_LINE = 2 * FINE
_RELATIONS = 10  # more arrows than these hide each other
_LEGEND = 12
_TAGS = 16  # on one picture
_TAGGED_AREA = 30 * 30 * FINE**2  # a smaller segment would be hidden by its own name
_HULLS = 40


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing with its title and what is written below."""

    title: str
    drawing: Image.Image
    words: Sequence[Word] = ()


class View:
    """A record's picture at panel size, and where published pixels are in it."""

    def __init__(self, record: ImageRecord, root: Path) -> None:
        picture = decode(root / record.file)
        self.record = record
        self.scale = SIDE / max(picture.size)
        self.size = (max(1, round(picture.width * self.scale)), max(1, round(picture.height * self.scale)))
        # Small pictures are shown with their pixels.
        enlarge = Image.Resampling.NEAREST if self.scale > 3 else Image.Resampling.LANCZOS
        self.picture = picture.resize(self.size, enlarge)

    def faded(self, by: float) -> Image.Image:
        """The picture on its way to white, so that colours on it are seen."""
        return Image.blend(self.picture, Image.new("RGB", self.size, "white"), by)

    def rectangle(self, box: Box) -> tuple[float, float, float, float]:
        """left, top, right, bottom in panel pixels, ordered and inside the panel."""
        x, y, width, height = (value * self.scale for value in box)
        left, right = (min(max(value, 0.0), self.size[0] - 1.0) for value in sorted((x, x + width)))
        top, bottom = (min(max(value, 0.0), self.size[1] - 1.0) for value in sorted((y, y + height)))
        return left, top, right, bottom

    def stencil(self, mask: NDArray[np.bool_]) -> Image.Image:
        """(H,W) in published pixels to an 8-bit mask of panel size."""
        return Image.fromarray(mask.astype(np.uint8) * 255).resize(self.size, Image.Resampling.NEAREST)


def colour_of(index: int) -> Colour:
    """Neighbouring indices get colours far apart."""
    hue = (0.58 + index * 0.618034) % 1
    return _hsv(hue, (0.85, 0.6, 0.95)[index % 3], (0.95, 0.85, 0.7)[index % 3])


def time_colour(share: float, value: float = 1.0) -> Colour:
    """From blue at 0 to red at 1."""
    return _hsv(0.67 * (1 - min(max(share, 0.0), 1.0)), 0.95, value)


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def picture_panel(view: View) -> Panel:
    """The picture, its class and its first caption."""
    captions = view.record.captions or ()
    words = [Word(word) for word in captions[0].text.split()] if captions else []
    if len(captions) > 1:
        words.append(Word(f"(1 of {len(captions)})", QUIET))
    if view.record.class_name is not None:
        words = [Word(view.record.class_name, square=colour_of(view.record.class_id or 0)), *words]
    return Panel("picture", view.picture, words)


def box_panel(view: View) -> Panel:
    """Boxes, each in its instance's colour, with category names where there is room; all are counted below."""
    things = view.record.instances or ()
    boxes = [(thing.category, thing.box, colour_of(index)) for index, thing in enumerate(things)]
    if view.record.subject_box is not None:
        boxes.append(("subject", view.record.subject_box, colour_of(len(boxes))))
    drawing = view.picture.copy()
    _draw_boxes(view, drawing, boxes)
    return Panel("boxes", drawing, _counted(things) if view.record.instances is not None else ())


def _draw_boxes(
    view: View, drawing: Image.Image, boxes: Sequence[tuple[str, Box, Colour]]
) -> list[lettering.Rectangle]:
    """The places of the tags."""
    pen = ImageDraw.Draw(drawing)
    large_first = sorted(boxes, key=lambda item: -abs(item[1][2] * item[1][3]))
    for _, box, colour in large_first:
        pen.rectangle(view.rectangle(box), outline=colour, width=_LINE)
    taken: list[lettering.Rectangle] = []
    for name, box, colour in large_first[:_TAGS]:
        left, top, right, bottom = view.rectangle(box)
        above, inside = (left, top - lettering.line_height(lettering.SMALL)), (left, top)
        # A tag inside a small box would hide what is in it.
        first = [inside, above] if bottom - top > 40 * FINE else [above, (right, top)]
        lettering.tag(drawing, name, colour, [*first, (left, bottom)], taken)
    return taken


def _counted(things: Sequence[Instance]) -> list[Word]:
    counts = Counter(f"{thing.category}{' (crowd)' if thing.crowd else ''}" for thing in things)
    named = [f"{name} x{count}" if count > 1 else name for name, count in counts.most_common()]
    return [Word(name + ("," if name != named[-1] else "")) for name in named] or [Word("no thing", QUIET)]


def mask_panel(view: View) -> Panel:
    """Instance masks, in the colours of their boxes; crowds are outlined only."""
    record = view.record
    drawing = view.faded(0.25)
    drawn = [(index, thing) for index, thing in enumerate(record.instances or ()) if thing.segmentation is not None]
    for index, thing in sorted(drawn, key=lambda item: -item[1].area):
        stencil = view.stencil(draw_region(record, thing))
        _paint(drawing, stencil, colour_of(index), 0.15 if thing.crowd else 0.6)
    return Panel("instance masks", drawing, [Word(f"{len(drawn)} of {len(record.instances or ())} with a mask", QUIET)])


def _paint(drawing: Image.Image, stencil: Image.Image, colour: Colour, opacity: float) -> None:
    """Lay a colour over what the 8-bit mask covers, with its outline."""
    area = stencil.getbbox()
    if area is None:
        return
    # Only around the mask, since the filter is slow; what is beyond the picture counts as not masked.
    left, top = area[0] - _LINE - 1, area[1] - _LINE - 1
    stencil = stencil.crop((left, top, area[2] + _LINE + 1, area[3] + _LINE + 1))
    drawing.paste(colour, (left, top), stencil.point(lambda value: round(value * opacity)))
    edge = ImageChops.subtract(stencil, stencil.filter(ImageFilter.MinFilter(2 * _LINE + 1)))
    drawing.paste((colour[0] // 2, colour[1] // 2, colour[2] // 2), (left, top), edge)


def stuff_panel(view: View, names: Mapping[int, str]) -> Panel:
    """The map of labels, with the names of the largest; `names` is by label."""
    labels = label_map(view.record)
    present, counts = np.unique(labels, return_counts=True)
    palette = np.zeros((256, 3), np.uint8)
    words = []
    for label, count in sorted(zip(present.tolist(), counts.tolist(), strict=True), key=lambda item: -item[1]):
        colour = (128, 128, 128) if label == UNLABELLED else colour_of(label)
        palette[label] = colour
        name = "unlabelled" if label == UNLABELLED else names.get(label, f"label {label}")
        share = count / labels.size
        words.append(Word(f"{name} {share:.0%}" if share >= 0.01 else f"{name} <1%", square=colour))
    coloured = Image.fromarray(palette[labels]).resize(view.size, Image.Resampling.NEAREST)
    return Panel("label map", Image.blend(view.picture, coloured, 0.75), _first(words))


def _first(words: list[Word]) -> list[Word]:
    return words if len(words) <= _LEGEND else [*words[:_LEGEND], Word(f"and {len(words) - _LEGEND} more", QUIET)]


def panoptic_panel(view: View) -> Panel:
    """Segments of the panoptic map, each in its own colour, the large ones with their names."""
    panoptic = view.record.panoptic
    assert panoptic is not None
    ids = panoptic_ids(view.record)
    drawing = view.picture.copy()
    taken: list[lettering.Rectangle] = []
    segments = sorted(enumerate(panoptic.segments), key=lambda item: -item[1].area)
    for index, segment in segments:
        _paint(drawing, view.stencil(ids == segment.id), colour_of(index), 0.65)
    for index, segment in segments[:_TAGS]:
        middle = _middle(ids == segment.id) if segment.area * view.scale**2 > _TAGGED_AREA else None
        if middle is not None:
            x, y = middle[0] * view.scale, middle[1] * view.scale
            half = lettering.width_of(segment.category, lettering.SMALL) / 2
            places = [(x - half, y + down * FINE) for down in (-8, 8, -24)]
            lettering.tag(drawing, segment.category, colour_of(index), places, taken)
    things = sum(segment.thing for segment in panoptic.segments)
    stuff = len(panoptic.segments) - things
    return Panel("panoptic map", drawing, [Word(f"things {things},", QUIET), Word(f"regions of stuff {stuff}", QUIET)])


def _middle(mask: NDArray[np.bool_]) -> tuple[float, float] | None:
    """The masked pixel (x, y) nearest to the centroid; None for an empty mask."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return float(columns[nearest]), float(rows[nearest])


def trace_panel(view: View, narrative: Narrative) -> Panel:
    """A narrative's mouse trace and its words, both coloured by time, with the hull of each phrase."""
    said, traces = tuple(narrative.utterances), [trace for trace in narrative.traces if len(trace)]
    times = [time for words in said for time in (words.start, words.end)]
    times += [time for trace in traces for time in trace[[0, -1], 2].tolist()]
    first, last = min(times), max(times)

    def share(time: float) -> float:
        return (time - first) / max(last - first, 1e-6)

    drawing = view.faded(0.5)
    for words in said[:_HULLS]:
        hull = convex_hull(phrase_points(narrative, words.start, words.end), *view.size, min_radius=_LINE)
        if hull is not None:
            _lay_polygon(drawing, list(hull.exterior.coords), time_colour(share((words.start + words.end) / 2)))
    pen = ImageDraw.Draw(drawing)
    for trace in traces:
        places = trace[:, :2].clip(-1, 2) * view.size  # the mouse leaves the picture, broken files without bound
        for (x, y), (to_x, to_y), time in zip(places, places[1:], trace[1:, 2], strict=False):
            pen.line((x, y, to_x, to_y), fill=time_colour(share(time)), width=_LINE)
        x, y = places[0]
        pen.ellipse((x - 4 * FINE, y - 4 * FINE, x + 4 * FINE, y + 4 * FINE), outline=INK, width=FINE)
    spoken = [
        Word(word, time_colour(share((words.start + words.end) / 2), 0.75))
        for words in said
        for word in words.text.split()
    ]
    return Panel("narrative and mouse trace, from blue to red", drawing, spoken)


def _lay_polygon(drawing: Image.Image, corners: list[tuple[float, ...]], colour: Colour) -> None:
    stencil = Image.new("L", drawing.size, 0)
    ImageDraw.Draw(stencil).polygon([(x, y) for x, y, *_ in corners], fill=50, outline=170, width=FINE)
    drawing.paste(colour, mask=stencil)


def narrative_panel(narrative: Narrative) -> Panel:
    """A narrative without a trace: its words, each coloured by its tag where it has tags."""
    words = narrative.caption.split()
    tags = narrative.tags if narrative.tags is not None and len(narrative.tags) == len(words) else None
    order = list(dict.fromkeys(tags or ()))
    colours = {label: colour_of(index) for index, label in enumerate(order)}
    said = [Word(word, colours[tags[place]] if tags else INK) for place, word in enumerate(words)]
    text = text_block(said, SIDE - 2 * _GAP, 24)
    page = ImageOps.expand(ImageOps.expand(text, _GAP, PAPER), FINE, (220, 220, 220))
    title = "narrative, no mouse trace" + (", words by tag" if tags else "")
    return Panel(title, page, _first([Word(label, square=colour) for label, colour in colours.items()]))


def graph_panel(view: View) -> Panel:
    """A scene graph: the boxes of objects, and an arrow with the predicate from subject to object."""
    graph = view.record.graph
    assert graph is not None
    place = {thing.id: index for index, thing in enumerate(graph.objects)}
    links = graph.relationships[:_RELATIONS]
    linked = {end for subject, _, target in links for end in (subject, target)}
    shown = [thing for thing in graph.objects if not links or thing.id in linked]
    drawing = view.faded(0.4)
    taken = _draw_boxes(view, drawing, [(thing.name, thing.box, colour_of(place[thing.id])) for thing in shown])
    centres = {}
    for thing in shown:
        left, top, right, bottom = view.rectangle(thing.box)
        centres[thing.id] = ((left + right) / 2, (top + bottom) / 2)
    pen = ImageDraw.Draw(drawing)
    for subject, _, target in links:
        if subject != target:
            _arrow(pen, centres[subject], centres[target], colour_of(place[subject]))
    for subject, predicate, target in links:
        x, y = ((first + second) / 2 for first, second in zip(centres[subject], centres[target], strict=True))
        half = lettering.width_of(predicate, lettering.SMALL) / 2
        lettering.tag(drawing, predicate, PAPER, [(x - half, y + down * FINE) for down in (-7, 8, -22)], taken)
    names = {thing.id: thing.name for thing in graph.objects}
    words = [
        word
        for subject, predicate, target in links
        for word in (Word(f"{names[subject]} {predicate} {names[target]}", square=colour_of(place[subject])),)
    ]
    if len(graph.relationships) > len(links):
        words.append(Word(f"and {len(graph.relationships) - len(links)} more", QUIET))
    return Panel("scene graph", drawing, words)


def _arrow(pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: Colour) -> None:
    pen.line((*start, *end), fill=colour, width=_LINE)
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    wings = [
        (end[0] - 9 * FINE * math.cos(angle + turn), end[1] - 9 * FINE * math.sin(angle + turn)) for turn in (0.4, -0.4)
    ]
    pen.polygon([end, *wings], fill=colour)


def panels(record: ImageRecord, root: Path, names: Mapping[int, str]) -> list[Panel]:
    """A panel for each thing the record carries; `root` is the data set's folder, `names` are of COCO-Stuff labels.

    Raises RequestError for a picture, mask or map that cannot be drawn.
    """
    view = View(record, root)
    drawn = [picture_panel(view)]
    if record.instances is not None or record.subject_box is not None:
        drawn.append(box_panel(view))
    carries = record.carries
    if "masks" in carries:
        drawn.append(mask_panel(view))
    if "stuff" in carries:
        drawn.append(stuff_panel(view, names))
    if "panoptic" in carries:
        drawn.append(panoptic_panel(view))
    if "graph" in carries:
        drawn.append(graph_panel(view))
    for narrative in (record.narratives or ())[:1]:
        traced = any(len(trace) for trace in narrative.traces)
        drawn.append(trace_panel(view, narrative) if traced else narrative_panel(narrative))
    return drawn


def label_names(dataset: Dataset) -> dict[int, str]:
    """Names by label: COCO-Stuff's, but a split that names its own categories, as scenes do, has the last word."""
    found = dict(enumerate(LABELS))
    for record in dataset.records:
        regions = (*(record.instances or ()), *(record.stuff or ()))
        found.update((region.category_id - 1, region.category) for region in regions)
    return found


def chosen_records(dataset: Dataset, count: int, ids: Sequence[str] = ()) -> list[ImageRecord]:
    """The images with these published ids; without any, the first `count` of those that carry the most.

    Raises RequestError for an id that the split lacks.
    """
    if not ids:
        return sorted(dataset.records, key=lambda record: -len(record.carries))[:count]
    known = {name: record for record in dataset.records for name in (str(record.image_id), record.key) if name}
    for wanted in ids:
        if wanted not in known:
            some = ", ".join(islice(known, 3)) or "none"
            raise RequestError(f"split {dataset.split!r} has no usable image {wanted!r}; name another, such as {some}.")
    return [known[wanted] for wanted in ids]


def draw_overlays(dataset: Dataset, records: Sequence[ImageRecord], path: Path) -> dict[str, list[str]]:
    """A row of panels for each record, as one PNG; the titles drawn, by image id. Raises RequestError."""
    if not records:
        raise RequestError(f"split {dataset.split!r} has no usable image: nothing to draw.")
    names = label_names(dataset)
    rows, titles = [], {}
    for record in records:
        drawn = panels(record, dataset.root, names)
        rows.append(_row(record, drawn).reduce(FINE))
        titles[record.key or str(record.image_id)] = [panel.title for panel in drawn]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    _write(sheet, path)
    return titles


def _row(record: ImageRecord, drawn: Sequence[Panel]) -> Image.Image:
    """Panels side by side, each with its title above and its words below."""
    head, title = 2 * lettering.line_height(), lettering.line_height() + 2 * FINE
    blocks = [text_block(panel.words, panel.drawing.width) for panel in drawn]
    tall = max(panel.drawing.height for panel in drawn)
    below = max(block.height for block in blocks)
    width = _GAP + sum(panel.drawing.width + _GAP for panel in drawn)
    row = Image.new("RGB", (width, head + title + tall + _GAP // 2 + below + 2 * _GAP), PAPER)
    pen = ImageDraw.Draw(row)
    pen.line((_GAP, _GAP // 2, width - _GAP, _GAP // 2), fill=(220, 220, 220), width=FINE)
    label = f"image {record.key or record.image_id}   {record.file.name}   {record.width} x {record.height} px"
    pen.text((_GAP, _GAP), label, fill=INK, font=lettering.font(lettering.HEADING))
    x = _GAP
    for panel, block in zip(drawn, blocks, strict=True):
        pen.text((x, head), panel.title, fill=QUIET, font=lettering.font(lettering.TEXT))
        row.paste(panel.drawing, (x, head + title))
        row.paste(block, (x, head + title + panel.drawing.height + _GAP // 2))
        x += panel.drawing.width + _GAP
    return row


TILE, CAPTION_HEIGHT, COLUMNS = 192, 56, 6


def draw_sheet(dataset: Dataset, records: Sequence[ImageRecord], path: Path) -> None:
    """Pictures, each with its first caption, as one PNG.

    Raises RequestError for a picture that does not decode and a path that cannot be written.
    """
    rows = -(-len(records) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + CAPTION_HEIGHT)), PAPER)
    for index, record in enumerate(records):
        left, top = index % COLUMNS * TILE, index // COLUMNS * (TILE + CAPTION_HEIGHT)
        picture = decode(dataset.root / record.file)
        enlarge = Image.Resampling.NEAREST if max(picture.size) < TILE else Image.Resampling.LANCZOS
        picture = ImageOps.contain(picture, (TILE - 4, TILE - 4), enlarge)
        sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
        if record.captions:
            words = [Word(word) for word in record.captions[0].text.split()]
            block = text_block(words, (TILE - 8) * FINE, 3).reduce(FINE)
            sheet.paste(block, (left + 4, top + TILE))
    _write(sheet, path)


def _write(sheet: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, png_bytes(sheet))
    except OSError as error:
        raise RequestError(f"the sheet cannot be written to {path} ({error.strerror}): name another file") from error
