"""What `t2i models` and `t2i data list` show."""

import difflib
import inspect
import json
import textwrap
from typing import Any

from models.contract import Settings
from models.registry import get_system, system_names
from orchestration.config import Experiment, describe_fields
from orchestration.data.records import CONTENTS
from orchestration.data.sources import FORMATS, SCENES
from orchestration.errors import RequestError
from orchestration.progress import Say
from orchestration.recipes import RECIPES
from search_spaces.space import load_space

# What `scenes` writes; a test reads some and compares.
SCENES_CARRY = frozenset({"images", "captions", "boxes", "masks", "stuff", "labels", "graph", "narratives", "traces"})


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
        only = f"; only where {parameter.condition}" if parameter.when else ""
        say(
            f" {mark}{key:28} {parameter.describe()}; paper {paper}{released} ({parameter.source})"
            f"; changes {parameter.stage}{only}"
        )
    say("  * varied unless told otherwise; changes: the first stage that runs again")
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


def list_formats(say: Say) -> dict[str, Any]:
    """Every kind of data with what a full release carries, and the systems whose needs that covers."""
    kinds = {SCENES: ("Generated pictures of things on backgrounds", SCENES_CARRY)}
    kinds |= {name: (known.title, known.carries) for name, known in FORMATS.items()}
    formats = {}
    for name, (title, carries) in kinds.items():
        serves = [system for system in system_names() if get_system(system).needs <= carries]
        carried = [content for content in CONTENTS if content in carries]
        say(f"{name}{'[:options]' if name == SCENES else ':PATH'}  {title}")
        say(textwrap.fill(f"carries {', '.join(carried)}", 100, initial_indent="  ", subsequent_indent="    "))
        say(f"  serves {', '.join(serves) or 'no system yet'}")
        formats[name] = {"title": title, "carries": carried, "serves": serves}
    say("\nt2i data check FORMAT:PATH says what a folder really holds, and what is wrong with it.")
    return {"formats": formats}
