"""What `t2i models` and `t2i data` show."""

import difflib
import inspect
import json
import textwrap
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from models.contract import Settings
from models.registry import get_system, system_names
from orchestration.config import Experiment, describe_fields
from orchestration.data.pictures import load_picture
from orchestration.data.records import Dataset
from orchestration.errors import RequestError
from orchestration.progress import Say
from orchestration.recipes import RECIPES
from orchestration.stages import write_atomically
from orchestration.training.recorder import png_bytes
from search_spaces.space import load_space

TILE, CAPTION_HEIGHT, COLUMNS, ROWS = 192, 48, 6, 3


def list_systems(say: Say) -> dict[str, Any]:
    """Every system with its recipes."""
    systems = {}
    for name in system_names():
        system = get_system(name)
        recipes = [recipe for recipe, function in RECIPES.items() if function().system == name]
        say(f"{name}  {system.title}")
        say(f"  needs: {', '.join(sorted(system.needs))}")
        for recipe in recipes:
            say(f"  {recipe:26} {first_line(recipe)}")
        systems[name] = {"title": system.title, "needs": sorted(system.needs), "recipes": recipes}
    say("\nt2i models SYSTEM shows every field and documented parameter; t2i train RECIPE trains.")
    return {"systems": systems}


def first_line(recipe: str) -> str:
    """A recipe in one line."""
    return (inspect.getdoc(RECIPES[recipe]) or "").splitlines()[0]


def show_system(name: str, say: Say) -> dict[str, Any]:
    """One system's fields, and the parameters its paper documents. Raises RequestError."""
    if name not in system_names():
        near = difflib.get_close_matches(name, system_names(), n=1)
        hint = f"perhaps {near[0]!r} was meant; " if near else ""
        raise RequestError(f"no system {name!r}; {hint}there are {', '.join(system_names())}")
    system = get_system(name)
    say(system.title)
    say("\nRecipes")
    for recipe, function in RECIPES.items():
        if function().system == name:
            say(textwrap.indent(f"{recipe}\n{textwrap.indent(inspect.getdoc(function) or '', '  ')}\n", "  "))
    say("Parameters the paper documents (t2i tune)")
    space = load_space(name)
    for key, parameter in space.parameters.items():
        mark = "*" if key in space.default else " "
        paper = "none given" if parameter.paper is None else parameter.paper
        released = "" if parameter.released is None else f", released {parameter.released}"
        say(f" {mark}{key:28} {parameter.describe()}; paper {paper}{released} ({parameter.source})")
    say("  * varied unless told otherwise")
    say("\nFields (--set FIELD=VALUE)")
    rows = [row for row in describe_fields(Experiment) if row[0] not in ("recipe", "system", "model")]
    for field, kind, default, description in rows + _model_fields(system.Config):
        say(f"  {field} = {default.replace('required', '(the recipe says)')}  [{kind}]")
        if description:
            say(textwrap.fill(description, 100, initial_indent="      ", subsequent_indent="      "))
    return {"system": name, "title": system.title, "parameters": space.model_dump(mode="json")["parameters"]}


def _model_fields(config: type[Settings]) -> list[tuple[str, str, str, str]]:
    """The rows of a system's own fields, with the values that its default configuration has."""
    defaults = config().model_dump(mode="json")
    rows = []
    for field, kind, _, description in describe_fields(config):
        value: Any = defaults
        for part in field.split("."):
            value = value[part]
        rows.append((f"model.{field}", kind, json.dumps(value), description))
    return rows


def draw_sheet(dataset: Dataset, path: Path) -> None:
    """The first pictures of a split, each with its first caption, as one PNG.

    Raises RequestError for a picture that does not decode and a path that cannot be written.
    """
    records = list(islice(dataset.records, COLUMNS * ROWS))
    rows = -(-len(records) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + CAPTION_HEIGHT)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, record in enumerate(records):
        left, top = index % COLUMNS * TILE, index // COLUMNS * (TILE + CAPTION_HEIGHT)
        pixels = load_picture(record.file, min(record.width, TILE - 4)).transpose(1, 2, 0)
        tile = Image.fromarray(pixels).resize((TILE - 4, TILE - 4), Image.Resampling.NEAREST)
        sheet.paste(tile, (left + 2, top + 2))
        if record.captions:
            caption = textwrap.fill(record.captions[0].text, 30, max_lines=3, placeholder=" ...")
            pen.multiline_text((left + 4, top + TILE), caption, fill="black")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, png_bytes(sheet))
    except OSError as error:
        raise RequestError(f"the sheet cannot be written to {path} ({error.strerror}): name another file") from error
