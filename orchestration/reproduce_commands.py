"""`t2i reproduce`: the papers' ablation tables as commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError, RunError
from orchestration.evaluation_commands import parse_weights
from orchestration.options import number, repeatable


def add_to(group: click.Group) -> None:
    """Add the command to a group."""
    command(group, "reproduce")(reproduce)


@click.argument("table", metavar="TABLE", required=False)
@click.option("--list", "listing", is_flag=True, help="Show all tables, what they claim and which can run now; stop.")
@click.option("--scale", default="smoke", show_default=True, metavar="SCALE", help="smoke, small or paper: see --list.")
@repeatable("--row", "rows", "NAME", "Only these rows, two or more  [default: all]")
@number("--seeds", "Trainings of each row, with different seeds  [default: the scale's]", 1, 100)
@repeatable("--data", "data", "FORMAT:PATH", "The paper's data, at --scale paper, such as cub:PATH  [default: none]")
@repeatable("--weights", "weights", "NAME=PATH", "Weights that the paper's metrics need  [default: none]")
@repeatable("--set", "assignments", "FIELD=VALUE", "Any field that the rows do not set.")
@number("--workers", "Ray Train workers of each row, which share the batch  [default: the recipe's]", 1)
@click.option(
    "--out", type=click.Path(dir_okay=False), help="Write the table to this .md or .csv file too  [default: no]"
)
def reproduce(
    app: App,
    table: str | None,
    listing: bool,
    scale: str,
    rows: Sequence[str],
    seeds: int | None,
    data: Sequence[str],
    weights: Sequence[str],
    assignments: Sequence[str],
    workers: int | None,
    out: str | None,
) -> Result | None:
    """Run a paper's ablation table, and try its claims.

    Every row is a training run that is judged; the table that comes out has the paper's numbers beside ours and says
    of each claim whether it holds, is reversed, or is within the noise. At --scale smoke and small rows are trained on
    generated scenes and judged by stand-ins for the paper's metrics, which are named; at --scale paper by the published
    recipe, data and metrics. What is done is not done again: the same command goes on where it was killed. Figures are
    kept in HOME/reproductions/TABLE-SCALE.

    \b
    Examples:
      t2i reproduce --list
      t2i reproduce mirrorgan-table3 --scale smoke
      t2i reproduce xmcgan-table4 --row none --row s --row w --seeds 3 --out table.md
      t2i reproduce mirrorgan-table3 --scale paper --data cub:PATH --weights inception-cub=FILE
    """
    if listing:
        return list_tables(app)
    if table is None:
        raise RequestError("no table to reproduce: name one, such as mirrorgan-table3 (t2i reproduce --list shows all)")
    from orchestration.campaigns.reproduce import Options, make_plan
    from orchestration.campaigns.reproduce import reproduce as run
    from orchestration.campaigns.reproduce_report import check_form
    from orchestration.campaigns.reproduce_scales import find_scale, find_table

    chosen, at = find_table(table), find_scale(scale)
    if out is not None:
        check_form(Path(out))
    changes = [f"resources.workers={workers}"] if workers is not None else []
    options = Options(data, [*changes, *assignments], rows, seeds, parse_weights(weights))
    plan = make_plan(chosen, at, options)
    app.say(f"{chosen.source} at scale {at.name}: {len(plan.units)} trainings")
    report = run(chosen, at, app.home, app.tracker(), options, app.say, app.progress())
    app.say("")
    app.say(report.text())
    if out is not None:
        report.write(Path(out))
        app.say(f"wrote {out}")
    result = report.to_json()
    if report.failures:
        app.give(result)
        raise RunError(
            f"{len(report.failures)} of {len(report.runs)} trainings have no figure (the first: "
            f"{report.failures[0].failure}): repeat the command to try them again"
        )
    return result


def list_tables(app: App) -> Result:
    """Every table: its system, what it claims, and at which scales it can run now."""
    from orchestration.campaigns.reproduce_scales import SCALES, why_not_now
    from search_spaces.tables import load_table, table_names

    found: dict[str, Any] = {}
    for name in table_names():
        table = load_table(name)
        reason, kinds = why_not_now(table), dict.fromkeys(column.data for column in table.columns.values())
        needs = " ".join(f"--data {kind}:PATH" for kind in kinds)
        runs = f"runs now; at --scale paper with {needs}" if reason is None else f"{table.system} is to come"
        app.say(f"{table.label}  {table.title}")
        app.say(f"  {table.source}; {len(table.rows)} rows: {', '.join(table.rows)}")
        for claim in table.claims:
            app.say(f"  {claim.words} in {', '.join(claim.columns)} ({claim.source})")
        app.say(f"  {runs}\n")
        found[table.label] = {
            "system": table.system,
            "title": table.title,
            "source": table.source,
            "rows": list(table.rows),
            "claims": [{"rows": list(c.order), "columns": list(c.columns), "source": c.source} for c in table.claims],
            "runs_now": reason is None,
            "why_not": reason,
            "data": list(kinds),
        }
    for scale in SCALES.values():
        app.say(f"--scale {scale.name:6} {scale.about}")
    return {"tables": found, "scales": {scale.name: scale.about for scale in SCALES.values()}}
