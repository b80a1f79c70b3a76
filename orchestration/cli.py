"""The commands, thin: each reads its options, calls one function and prints what it returns."""

import errno
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from orchestration import (
    champion_commands,
    cluster_commands,
    data_commands,
    doctor_commands,
    drill_commands,
    evaluation_commands,
    report_commands,
    reproduce_commands,
    serve_commands,
    show_commands,
    stage_commands,
    submit_commands,
    tune_commands,
)
from orchestration.commands import App, Result, command
from orchestration.errors import RequestError, RunError
from orchestration.options import Workers, chosen_experiment, takes_experiment

# Before any library that reads them is imported.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
STORY = "t2i-failure.txt"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="t2i")
def cli() -> None:
    """Text-to-image GAN papers as one living laboratory: train, sweep, judge, track, serve.

    \b
    Start here:
      t2i quickstart                      everything once, in about ten minutes
      t2i models                          the systems, their recipes and documented parameters
      t2i train xmcgan_scenes32           one recipe; the same command again resumes it

    Every command has --help with an example. Exit code 0: done; 2: the request is wrong; 1: it failed while running.
    """


@command(cli, "quickstart")
@click.option("--prompt", metavar="TEXT", help="What the endpoint draws at the end  [default: a red boat on the sea]")
def quickstart(app: App, prompt: str | None) -> None:
    """Run the main job end to end, in about ten minutes.

    Generated data, a small campaign, training on two workers, judging, promotion to champion, and a picture from the
    endpoint: HOME/quickstart.png. The last line of standard output is one JSON object. What is done is not done again.

    \b
    Example: t2i quickstart --prompt "a yellow car on the grass"
    """
    from orchestration.quickstart import PROMPT
    from orchestration.quickstart import quickstart as run

    result = run(app.home, app.tracker(), prompt or PROMPT, app.say, app.progress())
    click.echo(json.dumps(result, sort_keys=True))


@command(cli, "train")
@takes_experiment
@click.option("--dry-run", is_flag=True, help="Print the experiment with every field as JSON, and stop.")
def train(
    app: App, recipe: str, data: str | None, assignments: Sequence[str], workers: Workers, dry_run: bool
) -> Result | None:
    """Train a recipe to its end.

    It runs under Ray Train and is tracked in MLflow; `t2i models` lists the recipes. The same command again goes on
    where a killed run was, and finds a finished one. Checkpoints, pictures and metrics are in HOME/runs/RECIPE-HASH.
    Lengths are in kimg: thousands of pictures shown to the discriminator.

    \b
    Examples:
      t2i train xmcgan_scenes32 --workers 2
      t2i train xmcgan_laptop --data coco:PATH --set training.kimg=20
    """
    experiment = chosen_experiment(recipe, data, assignments, workers)
    if dry_run:
        click.echo(json.dumps(experiment.model_dump(mode="json"), indent=None if app.as_json else 1))
        return None
    from orchestration.training.launch import pretrained_features
    from orchestration.training.launch import train as run

    finished = run(experiment, app.home, app.tracker(), app.progress())
    figures = {name: value for name, value in finished.figures.items() if name.startswith("validation/")}
    app.say(f"trained {experiment.run_name}: {finished.checkpoint.folder}")
    for name, value in sorted(figures.items()):
        app.say(f"  {name} = {value:.4g}")
    return {
        "run": str(finished.folder),
        "checkpoint": str(finished.checkpoint.folder),
        "checkpoint_digest": finished.checkpoint.digest,
        "mlflow_run": finished.run_id,
        "pretrained_features": pretrained_features(experiment),
        "figures": figures,
    }


@command(cli, "models")
@click.argument("system", required=False)
def models(app: App, system: str | None) -> Result:
    """List systems, recipes, fields and documented parameters.

    Without SYSTEM, the systems and their recipes. With SYSTEM, every field that --set takes, with its default, and
    the parameters that its paper documents, with the paper's values.

    \b
    Examples:
      t2i models
      t2i models xmcgan
    """
    from orchestration.listing import list_systems, show_system

    result = show_system(system, app.say) if system else list_systems(app.say)
    return result


tune_commands.add_to(cli)
report_commands.add_to(cli)
reproduce_commands.add_to(cli)
evaluation_commands.add_to(cli)
show_commands.add_to(cli)
champion_commands.add_to(cli)
cluster_commands.add_to(cli)
submit_commands.add_to(cli)
doctor_commands.add_to(cli)
drill_commands.add_to(cli)
serve_commands.add_to(cli)
cli.add_command(data_commands.data)
cli.add_command(stage_commands.stages)


def main() -> NoReturn:
    """Run a command; every way it can end has its exit code (see orchestration.errors)."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.exit(run_cli(sys.argv[1:]))


def run_cli(arguments: Sequence[str]) -> int:
    """The exit code of `t2i ARGUMENTS`; one sentence on standard error when it is not 0."""
    try:
        cli.main(args=list(arguments) or ["--help"], prog_name="t2i", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        # click's own sentences: unknown option or command, missing argument, value out of range.
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        return _complain(f"{error.format_message().rstrip('.')}{hint}", 2)
    except RequestError as error:
        return _complain(str(error), 2)
    except RunError as error:
        return _complain(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted: repeat the command to go on", 130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            where = f" while writing {error.filename}" if error.filename else ""
            return _complain(f"the disk is full{where} ({error.strerror}): free some and repeat the command", 1)
        return _complain(f"unexpected {type(error).__name__}: {error}; {_write_story(traceback.format_exc())}", 1)
    return 0


def _write_story(story: str) -> str:
    """Keep a traceback where it can be written: the current folder, else the temporary one. Says where."""
    try:
        path = Path.cwd() / STORY
        path.write_text(story)
    except OSError:
        try:
            with tempfile.NamedTemporaryFile("w", prefix="t2i-failure-", suffix=".txt", delete=False) as file:
                file.write(story)
            path = Path(file.name)
        except OSError:
            return "the whole story could not be written anywhere"
    return f"the whole story is in {path}"


def _complain(sentence: str, code: int) -> int:
    click.echo(f"t2i: {' '.join(sentence.split())}", err=True)
    return code
