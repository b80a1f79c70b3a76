"""`t2i evaluate`: checkpoints judged side by side."""

from collections.abc import Sequence
from pathlib import Path

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError
from orchestration.options import number, pair, repeatable

FORMS = (".md", ".csv")


def add_to(group: click.Group) -> None:
    """Add the command to a group."""
    command(group, "evaluate")(evaluate)


@click.argument("runs", metavar="RUN...", nargs=-1)
@click.option("--data", metavar="SOURCE", help="Judge on other data  [default: what the first was trained on]")
@click.option("--split", metavar="SPLIT", help="train, val or test  [default: the experiment's data.test_split]")
@click.option(
    "--metrics",
    metavar="NAMES",
    help="METRIC or METRIC/PROTOCOL, comma-separated; 'list' explains them  [default: all that need no weights]",
)
@number("--samples", "Captions drawn, one picture each.", 16, default=30_000)
@number("--real", "At most so many real pictures  [default: as many as are drawn]", 16)
@number("--seeds", "Repeat with so many sampling seeds: their spread is the noise floor.", 1, 100, default=1)
@repeatable("--weights", "weights", "NAME=PATH", "Weights that a protocol needs  [default: none]")
@number("--workers", "Processes that draw and look; the figures are the same  [default: every core]", 1)
@click.option("--untrained", is_flag=True, help="Judge the first run's net before training too.")
@click.option("--real-row", is_flag=True, help="Judge the real pictures too, as if they had been drawn.")
@click.option(
    "--out", type=click.Path(dir_okay=False), help="Write the table to this .md or .csv file too  [default: no]"
)
def evaluate(
    app: App,
    runs: Sequence[str],
    data: str | None,
    split: str | None,
    metrics: str | None,
    samples: int,
    real: int | None,
    seeds: int,
    weights: Sequence[str],
    workers: int | None,
    untrained: bool,
    real_row: bool,
    out: str | None,
) -> Result | None:
    """Judge runs on held-out captions, side by side.

    RUN is a run's name in HOME/runs, a run folder or a checkpoint folder. Every figure carries its protocol in its
    name, a 95 % interval and its numbers of pictures; figures of two protocols do not compare, and the papers' are
    shown beside ours only where protocol and data are the same. What was drawn is kept: a killed evaluation goes on,
    and the real pictures are looked at once. The records go to HOME/runs/RUN/evaluations and to MLflow.

    \b
    Examples:
      t2i evaluate xmcgan_scenes32-1a415cbaa832 --samples 500
      t2i evaluate RUN1 RUN2 --metrics fid,kid,is --seeds 3 --out table.md
      t2i evaluate RUN --metrics fid/inception-2015 --weights inception-2015=FILE
    """
    from orchestration.evaluation.catalogue import describe_metrics
    from orchestration.evaluation.evaluate import Request, judge_runs
    from orchestration.evaluation.tables import Table

    if metrics == "list":
        for line in describe_metrics():
            app.say(line)
        return None
    if not runs:
        raise RequestError("no run to judge: name one, a run folder or a checkpoint folder")
    if out is not None and Path(out).suffix not in FORMS:
        raise RequestError(f"--out {out} is neither .md nor .csv: end its name with one of them")
    request = Request(_names(metrics), split, data, samples, real, None, parse_weights(weights), workers)
    rows = judge_runs(app.home, app.tracker(), runs, request, seeds, untrained, real_row, app.progress())
    table = Table.of([record for records in rows.values() for record in records])
    app.say(table.text())
    if out is not None:
        table.write(Path(out))
        app.say(f"wrote {out}")
    return {
        "figures": {name: {record.figure: record.value for record in records} for name, records in rows.items()},
        "records": {name: [record.to_json() for record in records] for name, records in rows.items()},
    }


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


def parse_weights(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=PATH of every --weights. Raises RequestError."""
    return dict(pair("--weights", text, "NAME=PATH, such as inception-2015=FILE") for text in pairs)
