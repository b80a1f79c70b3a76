"""The options that several commands share, and short forms of those that take a number."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

from orchestration.errors import RequestError

Function = Callable[..., Any]
Option = Callable[[Function], Function]
Workers = int | tuple[int, int] | None
"""What --workers says: a number, the fewest and the most, or nothing."""


def shared_options() -> list[click.Parameter]:
    """What every command takes."""
    return [
        click.Option(
            ["--home"],
            metavar="DIR",
            help="Folder of all state, or s3://BUCKET/FOLDER  [default: $T2I_HOME, else ./t2i-home]",
        ),
        click.Option(["--mlflow-uri"], metavar="URI", help="MLflow tracking server  [default: sqlite in the home]"),
        click.Option(["--json", "as_json"], is_flag=True, help="The last line of standard output is one JSON object."),
    ]


def number(flag: str, text: str, low: int, high: int | None = None, default: int | None = None) -> Option:
    """An option that takes a whole number from `low` to `high`."""
    kind = click.IntRange(low, high)
    return click.option(flag, type=kind, default=default, show_default=default is not None, metavar="N", help=text)


def kimg_option(flag: str, text: str) -> Option:
    """An option that takes a length in kimg."""
    return click.option(flag, type=click.FloatRange(0, min_open=True), metavar="KIMG", help=text)


def repeatable(flag: str, name: str, metavar: str, text: str) -> Option:
    """An option that may be given several times, as the argument `name`."""
    return click.option(flag, name, multiple=True, metavar=metavar, help=f"Repeatable. {text}")


def takes_experiment(function: Function) -> Function:
    """The argument that names a recipe, and the options that change it."""
    return click.argument("recipe")(takes_changes(function))


def takes_changes(function: Function) -> Function:
    """The options that change a recipe."""
    function = click.option(
        "--workers",
        type=WorkerCount(),
        metavar="N|A-B",
        help="Ray Train workers, which share the batch; A-B: as many of them as the cluster has, while it grows and "
        "shrinks  [default: the recipe's]",
    )(function)
    function = repeatable(
        "--set", "assignments", "FIELD=VALUE", "Any field, e.g. model.lambda_1=0.5; `t2i models SYSTEM` lists them."
    )(function)
    return click.option(
        "--data", metavar="SOURCE", help="scenes[:options] or FORMAT:PATH, e.g. coco:PATH  [default: the recipe's]"
    )(function)


class WorkerCount(click.ParamType[Workers]):
    """N, an int, or A-B, both ends of a range."""

    name = "workers"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Workers:
        if not isinstance(value, str):
            return value
        low, dash, high = (part.strip() for part in value.partition("-"))
        if not (dash and low.isdecimal() and high.isdecimal()):
            number_of_them: Any = click.IntRange(1)
            return number_of_them.convert(value, parameter, context)
        fewest, most = int(low), int(high)
        if not 1 <= fewest <= most:
            self.fail(f"{value} is no range of workers: write the fewest, at least 1, then the most, such as 1-4")
        return fewest, most


def worker_assignments(workers: Workers) -> list[str]:
    """`--set` assignments of what --workers says."""
    if workers is None:
        return []
    fewest, most = workers if isinstance(workers, tuple) else ("null", workers)
    return [f"resources.workers={most}", f"resources.min_workers={fewest}"]


def chosen_experiment(recipe: str, data: str | None, assignments: Sequence[str], workers: Workers) -> Any:
    """The recipe with the command line's changes. Raises RequestError."""
    from orchestration.config import apply_assignments
    from orchestration.recipes import get_recipe

    shorthand = [f"data.source={json.dumps(data)}"] if data is not None else []
    return apply_assignments(get_recipe(recipe), [*shorthand, *worker_assignments(workers), *assignments])


def pair(flag: str, text: str, form: str) -> tuple[str, str]:
    """NAME=VALUE of a repeatable option. Raises RequestError that says `form`."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise RequestError(f"{flag} {text!r} is none: write it as {form}")
    return name.strip(), value.strip()
