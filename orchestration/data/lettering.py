"""Text on pictures for people: wrapped blocks of coloured words, and name tags that avoid each other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
FINE = 2
"""Everything is drawn this many times larger than it is kept, for smooth lines."""

PAPER: Colour = (255, 255, 255)
INK: Colour = (30, 30, 30)
QUIET: Colour = (140, 140, 140)
TEXT, SMALL, HEADING = 13 * FINE, 11 * FINE, 15 * FINE
_LINES = 9  # of a block


@dataclass(frozen=True, slots=True)
class Word:
    """A stretch of text that is not broken, with a coloured square before it if there is one."""

    text: str
    colour: Colour = INK
    square: Colour | None = None


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow itself brings."""
    return ImageFont.load_default(size)


def width_of(text: str, size: int = TEXT) -> float:
    """In pixels."""
    return font(size).getlength(text)


def line_height(size: int = TEXT) -> int:
    """From one line to the next, in pixels."""
    return round(size * 1.35)


def text_block(words: Iterable[Word], width: int, lines: int = _LINES) -> Image.Image:
    """The words on `width` pixels, wrapped; what does not fit on `lines` lines is left out, and "..." says so."""
    placed: list[tuple[float, int, Word]] = []
    x, line, height = 0.0, 0, line_height()
    for word in words:
        indent = TEXT if word.square is not None else 0
        needed = indent + width_of(word.text)
        if x > 0 and x + needed > width:
            x, line = 0.0, line + 1
        if line >= lines:
            placed = placed[:-1] if len(placed) > 1 else placed
            last_x, last_line, _ = placed[-1]
            placed[-1] = (last_x, last_line, Word("...", QUIET))
            line = lines - 1
            break
        placed.append((x, line, word))
        x += needed + width_of(" ") * (2.5 if word.square is not None else 1)
    block = Image.new("RGB", (width, (line + 1) * height if placed else 0), PAPER)
    pen = ImageDraw.Draw(block)
    for x, line, word in placed:
        top = line * height
        if word.square is not None:
            pen.rectangle((x, top + 3 * FINE, x + TEXT * 0.7, top + 3 * FINE + TEXT * 0.7), fill=word.square)
            x += TEXT
        pen.text((x, top), word.text, fill=word.colour, font=font(TEXT))
    return block


Rectangle = tuple[float, float, float, float]


def tag(
    drawing: Image.Image, text: str, colour: Colour, places: Sequence[tuple[float, float]], taken: list[Rectangle]
) -> bool:
    """Write a name on a coloured ground at the first of the places (left, top) where it hides no other one.

    `taken` are the tags written so far, and gets this one. False when every place is taken.
    """
    width, height = width_of(text, SMALL) + 4 * FINE, line_height(SMALL)
    for x, y in places:
        left, top = max(0.0, min(x, drawing.width - width)), max(0.0, min(y, drawing.height - height))
        area = (left, top, left + width, top + height)
        if any(_meet(area, other) for other in taken):
            continue
        pen = ImageDraw.Draw(drawing)
        pen.rectangle(area, fill=colour)
        # Rec. 601 luma: dark letters on light grounds.
        light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        pen.text((left + 2 * FINE, top), text, fill=INK if light else PAPER, font=font(SMALL))
        taken.append(area)
        return True
    return False


def _meet(first: Rectangle, second: Rectangle) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
