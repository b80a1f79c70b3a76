"""Sheets for people: drawings with a title and words, side by side and one below the other."""

import bisect
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from orchestration.data import lettering
from orchestration.data.lettering import FINE, HEADING, INK, PAPER, QUIET, SMALL, TEXT, Colour, Word, font, text_block

GAP, MARGIN = 10 * FINE, 16 * FINE
PALE: Colour = (215, 215, 215)


def sheet(title: str, about: str, blocks: Sequence[Image.Image], width: int) -> Image.Image:
    """A whole sheet, made smaller by FINE: title, what is told of it, and blocks of that width one below the other."""
    told = text_block([Word(word, QUIET) for word in about.split()], width)
    top = MARGIN + 26 * FINE + told.height + MARGIN
    page = Image.new("RGB", (width + 2 * MARGIN, top + sum(block.height + MARGIN for block in blocks)), PAPER)
    ImageDraw.Draw(page).text((MARGIN, MARGIN), title, fill=INK, font=font(HEADING))
    page.paste(told, (MARGIN, MARGIN + 26 * FINE))
    for block in blocks:
        page.paste(block, (MARGIN, top))
        top += block.height + MARGIN
    return page.reduce(FINE)


def column(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    """One below the other; at least one."""
    height = sum(part.height + gap for part in parts) - gap
    page = Image.new("RGB", (max(part.width for part in parts), height), PAPER)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height + gap
    return page


def row(parts: Sequence[Image.Image], gap: int, width: int) -> Image.Image:
    """Side by side, in as many lines as the width needs."""
    lines: list[list[Image.Image]] = [[]]
    for part in parts:
        if lines[-1] and sum(each.width + gap for each in lines[-1]) + part.width > width:
            lines.append([])
        lines[-1].append(part)
    return column([_line(line, gap) for line in lines], GAP)


def _line(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    size = sum(part.width + gap for part in parts) - gap, max(part.height for part in parts)
    page = Image.new("RGB", size, PAPER)
    left = 0
    for part in parts:
        page.paste(part, (left, 0))
        left += part.width + gap
    return page


def section(heading: str, panels: Sequence[Image.Image], width: int) -> Image.Image:
    """Panels below their heading."""
    return column([_text(heading, width, TEXT, INK), row(panels, GAP, width)], GAP // 2)


def panel(title: str, drawing: Image.Image, below: Sequence[Word] = ()) -> Image.Image:
    """A drawing with a title above and a line for each word below."""
    listed = [text_block([_short(word, drawing.width)], drawing.width, 1) for word in below]
    return column([_text(title, drawing.width, SMALL, QUIET), drawing, *listed], FINE)


def _text(text: str, width: int, size: int, colour: Colour) -> Image.Image:
    text = fitted(text, width, size)
    page = Image.new("RGB", (max(1, math.ceil(lettering.width_of(text, size))), lettering.line_height(size)), PAPER)
    ImageDraw.Draw(page).text((0, 0), text, fill=colour, font=font(size))
    return page


def note(text: str, side: int) -> Image.Image:
    """A square with a text where a drawing is missing."""
    page = Image.new("RGB", (side, side), PAPER)
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, 0, side - 1, side - 1), outline=PALE, width=FINE)
    pen.text((side / 2, side / 2), fitted(text, side, SMALL), fill=QUIET, font=font(SMALL), anchor="mm")
    return page


def _short(word: Word, width: int) -> Word:
    room = width - (TEXT if word.square is not None else 0)
    return Word(fitted(word.text, room, TEXT), word.colour, word.square)


def fitted(text: str, width: float, size: int) -> str:
    """The text, or as much of it as the width in pixels holds, and "…"."""
    if len(text) < width and lettering.width_of(text, size) <= width:
        return text
    kept = bisect.bisect(range(min(len(text), int(width))), width, key=lambda end: _cut_width(text, end, size))
    return f"{text[: max(kept - 1, 0)]}…"


def _cut_width(text: str, end: int, size: int) -> float:
    return lettering.width_of(f"{text[:end]}…", size)


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """Its longer side becomes `side`; small ones are shown with their pixels."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
