"""A sheet of pictures with their first captions, to look at."""

import json
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_CELL = 192
_TEXT = 44


def contact_sheet(root: Path, split: str, rows: int, cols: int) -> Image.Image:
    """Tile the first rows x cols pictures of a split of the data set in folder `root`, each over its first caption."""
    published = json.loads((root / "annotations" / f"captions_{split}2017.json").read_text(encoding="utf-8"))
    first: dict[int, str] = {}
    for annotation in published["annotations"]:
        first.setdefault(annotation["image_id"], annotation["caption"])
    sheet = Image.new("RGB", (cols * (_CELL + 8), rows * (_CELL + _TEXT)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, entry in enumerate(published["images"][: rows * cols]):
        x, y = place % cols * (_CELL + 8) + 4, place // cols * (_CELL + _TEXT) + 4
        with Image.open(root / f"{split}2017" / entry["file_name"]) as picture:
            sheet.paste(picture.resize((_CELL, _CELL), Image.Resampling.NEAREST), (x, y))
        words = "\n".join(textwrap.wrap(first[entry["id"]], 32)[:3])
        pen.text((x, y + _CELL + 2), words, "black", font=font, spacing=0)
    return sheet
