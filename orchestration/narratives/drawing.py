"""How a narrative's way to a picture is drawn, as figure 2 of TReCS shows it: words, trace, masks, label map, pictures.

A mention has one number and one colour on the whole sheet.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from scipy import ndimage

from orchestration.data import lettering
from orchestration.data.lettering import FINE, INK, PAPER, QUIET, SMALL, TEXT, Colour, Word, font, text_block
from orchestration.data.overlays import colour_of
from orchestration.data.panels import GAP, MARGIN, PALE, column, enlarged, fitted, note, panel, row, section, sheet
from orchestration.narratives.composed import Composed, Mention
from orchestration.narratives.regions import class_name, coloured, mask_fit, mixed, regions_of, stuff_fit

Pixels = NDArray[np.uint8]

WIDTH, PICTURE, TRACE = 1400 * FINE, 176 * FINE, 264 * FINE
WIDE, LINE = 26 * FINE, 2 * FINE
SILENT: Colour = (110, 110, 110)
LEGEND = (
    "A mention, neighbouring words of one tag, has one number and colour throughout; pale where it is not drawn. "
    "Outlined: the mask that a mention got, with its overlap with the hull (IoU). Framed: whose stuff is taken."
)
RETRIEVED = 10
"""Retrieved pictures on the sheet; what was used beyond them is shown too."""
_SMALLEST = 0.004  # of a map: a smaller region is named below


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A narrative with all that was made of it.

    classes: names; pictures: (S,H,W,3), drawn by `seeds` of the canvas;
    photographs: (H,W,3) of retrieved pictures by image id; image_id, photograph (H,W,3) and labels (H,W): of the
    picture that the narrative tells of, where there is one; simulated: whether its trace was made up.
    """

    composed: Composed
    classes: Sequence[str]
    pictures: Pixels
    seeds: Sequence[int]
    photographs: Mapping[int, Pixels]
    image_id: int | None = None
    photograph: Pixels | None = None
    labels: NDArray[np.integer] | None = None
    simulated: bool = False

    def name(self, label: int) -> str:
        """Of a class; the number of classes is "unknown"."""
        return class_name(label, self.classes)

    def numbered(self, place: int) -> str:
        """A mention as it is called on the sheet."""
        return f"{place + 1} {self.name(self.composed.mentions[place].label)}"


def narrative_sheet(title: str, about: str, shown: Sequence[Shown]) -> Pixels:
    """uint8 (H,W,3): one narrative below the other, each from its words to its pictures.

    about: what is told below the title; how the sheet is read follows it.
    """
    return np.asarray(sheet(title, f"{about} {LEGEND}", [_block(one) for one in shown], WIDTH))


def _block(one: Shown) -> Image.Image:
    of = "" if one.image_id is None else f" of image {one.image_id}"
    words = section(f"1  narrative{of}, by what its words mention", [_words(one, WIDTH)], WIDTH)
    how = "simulated mouse trace" if one.simulated else "mouse trace"
    trace = section(f"2  {how} and hulls" if _traced(one) else "2  no mouse trace", [_trace(one)], WIDTH)
    found = _retrieved(one) or [note("nothing was retrieved", PICTURE)]
    retrieved = section("3  retrieved pictures, best first, and masks taken", found, WIDTH - trace.width - WIDE)
    rows = [Image.new("RGB", (WIDTH, FINE), PALE), words, row([trace, retrieved], WIDE, WIDTH), *_left_out(one)]
    sections = [section("4  label map, put together", _maps(one), WIDTH)]
    drawn = [
        panel(f"seed {seed}", enlarged(Image.fromarray(picture), PICTURE))
        for seed, picture in zip(one.seeds, one.pictures, strict=True)
    ]
    if drawn:
        sections.append(section("5  drawn from it", drawn, WIDTH))
    if own := _own(one):
        sections.append(section("what it tells of", own, WIDTH))
    return column([*rows, row(sections, WIDE, WIDTH)], MARGIN)


# --- The words ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Placed:
    """A word on a line. mention: its place; tag: what is written below it; joined: to the word before."""

    text: str
    left: float
    right: float
    line: int
    mention: int | None
    tag: str
    joined: bool


def _placed(one: Shown, width: int) -> list[_Placed]:
    """Wrapped so that the tags below do not meet."""
    owner = {
        word: place
        for place, mention in enumerate(one.composed.mentions)
        for word in range(mention.phrase.first, mention.phrase.end)
    }
    space = lettering.width_of(" ")
    found: list[_Placed] = []
    x, busy, line = 0.0, 0.0, 0  # busy: up to where this line has tags
    for place, word in enumerate(one.composed.words):
        mention = owner.get(place)
        goes_on = mention is not None and owner.get(place - 1) == mention
        tag = "" if mention is None or goes_on else fitted(one.numbered(mention), width / 2, SMALL)
        text = fitted(word, width, TEXT)
        x = max(x, busy) if tag else x
        if x > 0 and x + max(lettering.width_of(text), _tag_width(tag)) > width:
            x, busy, line = 0.0, 0.0, line + 1
            if goes_on and mention is not None:
                tag, goes_on = f"{mention + 1}", False
        right = x + lettering.width_of(text)
        found.append(_Placed(text, x, right, line, mention, tag, goes_on))
        if tag:
            busy = x + _tag_width(tag) + space
        x = right + space
    return found


def _tag_width(tag: str) -> float:
    return lettering.width_of(tag, SMALL) + 4 * FINE if tag else 0.0


def _words(one: Shown, width: int) -> Image.Image:
    """Words on a ground of their mention's colour, and its name below; grey where they mention nothing."""
    words = _placed(one, width)
    tagged = {word.line for word in words if word.tag}
    high, below = lettering.line_height() + GAP // 2, lettering.line_height(SMALL) + GAP // 2
    lines = words[-1].line + 1 if words else 0
    tops = [line * high + sum(each < line for each in tagged) * below for line in range(lines + 1)]
    page = Image.new("RGB", (width, tops[-1] or high), PAPER)
    pen = ImageDraw.Draw(page)
    for number, word in enumerate(words):
        top = tops[word.line]
        if word.mention is not None:
            colour, bottom = colour_of(word.mention), top + lettering.line_height() + FINE
            left = words[number - 1].right if word.joined else word.left
            pen.rectangle((left, top, word.right, bottom), fill=mixed(colour, 0.25))
            pen.rectangle((left, bottom - LINE, word.right, bottom), fill=colour)
            drawn = _is_drawn(one.composed.mentions[word.mention])
            if word.tag:
                lettering.tag(page, word.tag, colour if drawn else mixed(colour, 0.3), [(word.left, bottom)], [])
        ink = SILENT if word.mention is None else INK
        pen.text((word.left, top), word.text, fill=ink, font=font(TEXT))
    return page


def _is_drawn(mention: Mention) -> bool:
    return not mention.why and (mention.choice is not None or not mention.thing)


def _left_out(one: Shown) -> list[Image.Image]:
    """What is mentioned and not drawn, with the reason."""
    missing = [(place, each) for place, each in enumerate(one.composed.mentions) if not _is_drawn(each)]
    if not missing:
        return []
    listed = [
        Word(fitted(f"{one.numbered(place)}: {each.why or 'no mask'}", WIDTH / 2, TEXT), square=colour_of(place))
        for place, each in missing
    ]
    return [text_block([Word("not drawn:"), *listed], WIDTH, len(listed) + 1)]


def _traced(one: Shown) -> bool:
    return any(len(trace) for trace in one.composed.narrative.traces)


# --- The trace ----------------------------------------------------------------------------------------------------


def _trace(one: Shown) -> Image.Image:
    """The mouse trace over the faded photograph, or over nothing, in the colours of what is told meanwhile."""
    mentions = one.composed.mentions
    if not _traced(one):
        return panel("", note("words only", PICTURE))
    if one.photograph is not None:
        ground = enlarged(Image.fromarray(one.photograph), TRACE)
        ground = Image.blend(ground, Image.new("RGB", ground.size, PAPER), 0.6)
    else:
        height, width = one.composed.canvas.labels.shape
        scale = TRACE / max(height, width)
        ground = Image.new("RGB", (round(width * scale), round(height * scale)), PAPER)
    pen = ImageDraw.Draw(ground)
    pen.rectangle((0, 0, ground.width - 1, ground.height - 1), outline=PALE, width=FINE)
    large_first = sorted(range(len(mentions)), key=lambda place: -int(mentions[place].hull.sum()))
    outlines = {place: _outline(mentions[place].hull, ground.size) for place in large_first}
    for place in large_first:
        _lay(ground, outlines[place], colour_of(place), 0.15)
    _draw_traces(ground, one)
    taken: list[lettering.Rectangle] = []
    for place in reversed(large_first):
        if outlines[place]:
            left, top = (min(ends) for ends in zip(*outlines[place], strict=True))
            bottom = max(y for _, y in outlines[place])
            high = lettering.line_height(SMALL)
            spots = [(left, top - high), (left, top), (left, bottom), (left, bottom - high)]
            spots += [(left, top + step * high) for step in (1, 2, 3, -2)]
            name = fitted(one.numbered(place), ground.width / 2, SMALL)
            if not lettering.tag(ground, name, colour_of(place), spots, taken):
                lettering.tag(ground, f"{place + 1}", colour_of(place), spots, taken)
    return panel("a circle: where a stroke begins", ground)


def _outline(hull: NDArray[np.bool_], size: tuple[int, int]) -> list[tuple[float, float]]:
    """The corners, in a drawing of this size, of the polygon around a convex mask's pixels."""
    rows = np.flatnonzero(hull.any(1))
    if not len(rows):
        return []
    lefts, rights = hull[rows].argmax(1), hull.shape[1] - hull[rows][:, ::-1].argmax(1)
    corners = np.concatenate([np.stack([x, rows + down], 1) for x in (lefts, rights) for down in (0, 1)])
    polygon = shapely.MultiPoint(corners / (hull.shape[1], hull.shape[0]) * size).convex_hull
    return [(float(x), float(y)) for x, y in shapely.get_coordinates(polygon)]


def _lay(drawing: Image.Image, corners: Sequence[tuple[float, float]], colour: Colour, opacity: float) -> None:
    if corners:
        stencil = Image.new("L", drawing.size, 0)
        ImageDraw.Draw(stencil).polygon(corners, fill=round(255 * opacity))
        drawing.paste(colour, mask=stencil)
        ImageDraw.Draw(drawing).line([*corners, corners[0]], fill=colour, width=LINE, joint="curve")


def _draw_traces(drawing: Image.Image, one: Shown) -> None:
    """Strokes, each part in the colour of the mention that is told meanwhile, grey where none is."""
    pen = ImageDraw.Draw(drawing)
    told = [(each.phrase.start, each.phrase.stop) for each in one.composed.mentions]
    for trace in one.composed.narrative.traces:
        if not len(trace):
            continue
        places = [(float(x), float(y)) for x, y in trace[:, :2].clip(0, 1) * np.subtract(drawing.size, 1)]
        colours = [QUIET if (place := _told_at(told, time)) is None else colour_of(place) for time in trace[:, 2]]
        pen.line(places, fill=PAPER, width=LINE + 2 * FINE)
        for start, end, colour in zip(places, places[1:], colours[1:], strict=False):
            pen.line((*start, *end), fill=colour, width=LINE)
        x, y = places[0]
        pen.ellipse(
            (x - 2 * LINE, y - 2 * LINE, x + 2 * LINE, y + 2 * LINE), fill=PAPER, outline=colours[0], width=LINE
        )


def _told_at(told: Iterable[tuple[float | None, float | None]], time: float) -> int | None:
    """The mention that is told at a time; None for none, and where nothing has a time."""
    for place, (start, stop) in enumerate(told):
        if start is not None and stop is not None and start <= time <= stop:
            return place
    return None


# --- What was retrieved -------------------------------------------------------------------------------------------


def _retrieved(one: Shown) -> list[Image.Image]:
    composed = one.composed
    used = {each.choice.picture for each in composed.mentions if each.choice is not None}
    used |= set() if composed.stuff is None else {composed.stuff}
    places = [place for place in range(len(composed.retrieved)) if place < RETRIEVED or place in used]
    panels = [_retrieved_panel(one, place) for place in places]
    if len(places) < len(composed.retrieved):
        panels.append(note(f"and {len(composed.retrieved) - len(places)} more", PICTURE))
    return panels


def _retrieved_panel(one: Shown, place: int) -> Image.Image:
    """A picture with the masks taken from it, and below how well they fit their hulls."""
    composed, found = one.composed, one.composed.retrieved[place]
    photograph = one.photographs.get(found.image_id)
    if photograph is None:
        drawing = note("", PICTURE)
        below = [Word("its picture is not here", QUIET)]
    else:
        drawing = enlarged(Image.fromarray(photograph), PICTURE)
        below = []
    for number, mention in enumerate(composed.mentions):
        if mention.choice is not None and mention.choice.picture == place:
            _paint(drawing, mention.choice.mask(), colour_of(number))
            iou = mask_fit(mention)
            fit = "the largest" if iou is None else f"IoU {iou:.2f}"
            below.append(Word(f"{fitted(one.numbered(number), 0.55 * PICTURE, TEXT)}  {fit}", square=colour_of(number)))
    if place == composed.stuff:
        mean = stuff_fit(composed)
        below.append(Word("stuff" if mean is None else f"stuff, mean IoU {mean:.2f}", square=INK))
        pen = ImageDraw.Draw(drawing)
        pen.rectangle((0, 0, drawing.width - 1, drawing.height - 1), outline=INK, width=LINE)
    return panel(f"{place + 1}. image {found.image_id}   score {found.score:.3g}", drawing, below)


def _paint(drawing: Image.Image, mask: NDArray[np.bool_], colour: Colour) -> None:
    """Tint a mask and outline it, light and then in the colour, so that it is seen on any ground."""
    stencil = Image.fromarray(mask.astype(np.uint8) * 255).resize(drawing.size, Image.Resampling.NEAREST)
    drawing.paste(colour, mask=stencil.point(lambda value: value // 3))
    wide, narrow = (stencil.filter(ImageFilter.MaxFilter(2 * reach + 1)) for reach in (LINE, FINE))
    inner = stencil.filter(ImageFilter.MinFilter(2 * LINE + 1))
    drawing.paste(PAPER, mask=ImageChops.subtract(wide, narrow))
    drawing.paste(colour, mask=ImageChops.subtract(narrow, inner))


# --- Label maps ---------------------------------------------------------------------------------------------------


def _maps(one: Shown) -> list[Image.Image]:
    """Stuff, things, and both."""
    composed, canvas = one.composed, one.composed.canvas
    nothing = np.zeros_like(canvas.labels)
    source = None if composed.stuff is None else composed.retrieved[composed.stuff].image_id
    return [
        _map_panel(one, "no stuff" if source is None else f"stuff of image {source}", canvas.stuff, nothing),
        _map_panel(
            one, "things on their hulls" if _traced(one) else "things", canvas.labels, canvas.instances, bare=True
        ),
        _map_panel(one, "whole label map", canvas.labels, canvas.instances),
    ]


def _own(one: Shown) -> list[Image.Image]:
    """The narrative's own picture and its labels."""
    panels = []
    if one.photograph is not None:
        panels.append(panel("photograph", enlarged(Image.fromarray(one.photograph), PICTURE)))
    if one.labels is not None:
        panels.append(_map_panel(one, "its true labels", one.labels, np.zeros_like(one.labels)))
    return panels


def _map_panel(
    one: Shown, title: str, labels: NDArray[np.integer], instances: NDArray[np.integer], bare: bool = False
) -> Image.Image:
    """A label map with names; what has no room for its name is named below. bare: without what is under the things."""
    regions = regions_of(one.composed, one.classes, labels, instances)
    if bare:
        regions = [region for region in regions if region.thing]
    drawing = enlarged(Image.fromarray(coloured(regions, labels.shape)), PICTURE)
    if bare:
        for place, mention in enumerate(one.composed.mentions):
            if mention.choice is not None:
                _lay(drawing, _outline(mention.hull, drawing.size), colour_of(place), 0)
    pen = ImageDraw.Draw(drawing)
    pen.rectangle((0, 0, drawing.width - 1, drawing.height - 1), outline=PALE, width=FINE)
    taken: list[lettering.Rectangle] = []
    below = []
    for region in sorted(regions, key=lambda each: -int(each.pixels.sum())):
        numbers = ",".join(f"{place + 1}" for place in region.mentions)
        name = f"{numbers} {one.name(region.label)}".strip()
        short, pixels = fitted(name, 0.7 * drawing.width, SMALL), region.pixels
        spots = _spots(pixels, drawing.size, lettering.width_of(short, SMALL)) if pixels.mean() > _SMALLEST else []
        if not lettering.tag(drawing, short, mixed(region.colour, 0.8), spots, taken):
            below.append(Word(name, square=region.colour))
    return panel(title, drawing, below)


def _spots(region: NDArray[np.bool_], size: tuple[int, int], width: float) -> list[tuple[float, float]]:
    """Where a name of this width may stand: around the pixel that is deepest inside of the region."""
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    deepest = np.argwhere(depth == depth.max())
    down, across = deepest[((deepest - np.argwhere(region).mean(0)) ** 2).sum(1).argmin()].tolist()
    x, y = (across + 0.5) / region.shape[1] * size[0], (down + 0.5) / region.shape[0] * size[1]
    high = lettering.line_height(SMALL)
    return [(x - width / 2, y - high / 2 + step * high) for step in (0, 1, -1)]
