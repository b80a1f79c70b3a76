"""`t2i promote`, `rollback` and `history`: which version is served, and why."""

import shlex
from collections.abc import Sequence

import click
import msgspec

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError, RunError
from orchestration.evaluation_commands import parse_weights
from orchestration.options import Option, number, repeatable


def add_to(group: click.Group) -> None:
    """Add the commands to a group."""
    command(group, "promote")(promote)
    command(group, "rollback")(rollback)
    command(group, "history")(history)


def model_option(text: str) -> Option:
    """The option that names a registered model."""
    return click.option("--model", default="xmcgan", show_default=True, metavar="NAME", help=text)


@click.argument("run", metavar="RUN")
@click.option("--force", is_flag=True, help="Promote it whatever judging says, or without; the history says so.")
@click.option(
    "--figure",
    default="fid",
    show_default=True,
    metavar="NAME",
    help="METRIC or METRIC/PROTOCOL that decides; a plain one is under the run's protocol.",
)
@number("--samples", "Captions drawn, one picture each  [default: the run's evaluation.samples]", 16)
@number("--seeds", "So many sampling seeds for each of the two.", 1, 100, default=3)
@repeatable("--weights", "weights", "NAME=PATH", "Weights that the figure's protocol needs  [default: none]")
@number("--workers", "Processes that draw and look; the figures are the same  [default: every core]", 1)
def promote(
    app: App,
    run: str,
    force: bool,
    figure: str,
    samples: int | None,
    seeds: int,
    weights: Sequence[str],
    workers: int | None,
) -> Result:
    """Make a run's newest checkpoint the champion, if it is better.

    It becomes a version of its system's registered model. It and the champion draw for the same test captions with the
    same seeds, and the alias `champion`, which `t2i serve` loads, moves only when it is better by more than the noise;
    otherwise the exit code is 1, and 2 where the two cannot be compared. The first version is champion unjudged. RUN is
    a run's name in HOME/runs, a trial as CAMPAIGN/trial-0003, a run folder or a checkpoint folder.

    \b
    Examples:
      t2i promote xmcgan_scenes32-1a415cbaa832
      t2i promote CAMPAIGN/trial-0003 --figure kid --samples 2000 --seeds 5
      t2i promote RUN --force
    """
    from orchestration.champion_contest import Contest
    from orchestration.champions import promote as challenge
    from orchestration.evaluation.tables import Table
    from orchestration.runs import find_checkpoint
    from orchestration.training.recorder import last_metrics, read_metrics

    checkpoint, folder = find_checkpoint(app.home, run)
    given = {"--figure": figure, "--samples": samples, "--seeds": seeds}
    words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    told = shlex.join(["t2i", "promote", run, *words, *(["--force"] if force else [])])
    contest = Contest(figure, samples, seeds, parse_weights(weights), workers, force, told)
    figures = last_metrics(read_metrics(folder))
    ended = challenge(app.tracker(), app.home, checkpoint, folder, contest, figures, app.progress())
    if ended.records:
        app.say(Table.of(ended.records).text())
    result = {
        "model": ended.version.model,
        "version": ended.version.version,
        "checkpoint_digest": checkpoint.digest,
        "champion": ended.champion.version,
        "promoted": not ended.refused,
        "sentence": ended.sentence,
        "entry": None if ended.entry is None else msgspec.to_builtins(ended.entry),
        "records": [record.to_json() for record in ended.records],
    }
    if ended.refused:
        app.give(result)
        raise RunError(ended.sentence)
    app.say(ended.sentence)
    return result


@model_option("Registered model to roll back.")
def rollback(app: App, model: str) -> Result:
    """Make the champion before the champion again.

    Repeated, it goes back further, until there is none left. A server that runs follows within seconds. What was rolled
    back stays a version, and can be promoted again.

    \b
    Example: t2i rollback --model xmcgan
    """
    from orchestration.champions import rollback as go_back

    told = shlex.join(["t2i", "rollback", "--model", model])
    ended = go_back(app.tracker(), app.home, model, told)
    for reason in ended.passed_over.values():
        app.say(f"passed over {reason}")
    app.say(f"{model} version {ended.champion.version} is the champion again, in place of version {ended.replaced}")
    return {
        "model": model,
        "version": ended.champion.version,
        "replaced": ended.replaced,
        "passed_over": {str(number): reason for number, reason in ended.passed_over.items()},
    }


@model_option("Registered model.")
def history(app: App, model: str) -> Result:
    """List a model's versions, and every decision on its champion.

    Each with its verdict, its numbers, and the command that decided. All of it is in the registry, as tags of the
    versions.

    \b
    Example: t2i history --model xmcgan
    """
    from orchestration.champion_history import read_history

    tracker = app.tracker()
    versions = tracker.versions(model)
    if not versions:
        raise RequestError(f"no model {model!r} is registered: promote a run with t2i promote RUN")
    champion, entries = tracker.champion(model), read_history(versions)
    number = None if champion is None else champion.version
    for version in versions:
        mark = "* " if version.version == number else "  "
        tags = version.tags
        images = int(tags.get("t2i.images_seen", 0)) / 1000
        app.say(
            f"{mark}version {version.version}  {tags.get('t2i.recipe', '-')}  {images:g} kimg  "
            f"{tags.get('t2i.checkpoint_digest', '-')[:12]}  {tags.get('t2i.decision', 'registered')}  "
            f"{tags.get('t2i.verdict', 'not judged')}"
        )
    app.say("* the champion" if number is not None else "there is no champion")
    app.say("")
    for entry in entries:
        app.say(entry.line)
    return {
        "model": model,
        "champion": number,
        "versions": [{"version": each.version, "tags": dict(each.tags)} for each in versions],
        "history": [msgspec.to_builtins(entry) for entry in entries],
    }
