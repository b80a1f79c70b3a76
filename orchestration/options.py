"""The options that several commands share, and short forms of those that take a number."""

from collections.abc import Callable
from typing import Any

import click

Function = Callable[..., Any]
Option = Callable[[Function], Function]


def shared_options() -> list[click.Parameter]:
    """What every command takes."""
    return [
        click.Option(["--home"], metavar="DIR", help="Folder of all state  [default: $T2I_HOME, else ./t2i-home]"),
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
    function = number("--workers", "Ray Train workers, which share the batch  [default: the recipe's]", 1)(function)
    function = repeatable(
        "--set", "assignments", "FIELD=VALUE", "Any field, e.g. model.lambda_1=0.5; `t2i models SYSTEM` lists them."
    )(function)
    function = click.option(
        "--data", metavar="SOURCE", help="scenes[:options] or FORMAT:PATH, e.g. coco:PATH  [default: the recipe's]"
    )(function)
    return click.argument("recipe")(function)
