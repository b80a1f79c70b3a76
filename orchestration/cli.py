"""The commands, thin: each reads its options, calls one function and prints what it returns."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import update_wrapper
from pathlib import Path
from typing import Any, NoReturn

import click

from orchestration.errors import RequestError, RunError
from orchestration.home import Home, find_home

Result = dict[str, Any]

# Before any library that reads them is imported.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class App:
    """What every command shares: where state lives, which MLflow, and how to speak."""

    def __init__(self, home: Home, mlflow_uri: str | None, as_json: bool) -> None:
        self.home, self.mlflow_uri, self.as_json = home, mlflow_uri, as_json

    def tracker(self) -> Any:
        """The MLflow tracker of this home."""
        from orchestration.tracking import Tracker

        return Tracker(self.home.root, self.mlflow_uri)

    def progress(self) -> Any:
        """Bars when a person is watching."""
        from orchestration.progress import default_progress

        return default_progress()

    def say(self, line: str) -> None:
        """One line for a person; standard output is left to results when it is JSON."""
        click.echo(line, err=self.as_json)


def command(group: click.Group, name: str) -> Callable[[Callable[..., Result | None]], click.Command]:
    """A command with the shared options; what it returns is printed, as JSON with --json."""

    def decorate(function: Callable[..., Result | None]) -> click.Command:
        def run(home: str | None, mlflow_uri: str | None, as_json: bool, **options: Any) -> None:
            app = App(find_home(home), mlflow_uri, as_json)
            result = function(app, **options)
            if result is not None and as_json:
                click.echo(json.dumps(result, sort_keys=True))

        update_wrapper(run, function)
        shared = [
            click.option("--home", metavar="DIR", help="Folder of all state (default: $T2I_HOME, else ./t2i-home)."),
            click.option("--mlflow-uri", metavar="URI", help="MLflow server (default: sqlite in the home)."),
            click.option(
                "--json", "as_json", is_flag=True, help="The last line of standard output is one JSON object."
            ),
        ]
        wrapped: Callable[..., Any] = run
        for option in shared:
            wrapped = option(wrapped)
        return group.command(name, context_settings={"max_content_width": 110})(wrapped)

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="t2i")
def cli() -> None:
    """Text-to-image GAN papers as one living laboratory: train, sweep, judge, track, serve.

    \b
    Start here:
      t2i quickstart                      everything once, in about ten minutes
      t2i models                          the systems, their recipes and documented parameters
      t2i train xmcgan_scenes32           one recipe; the same command again resumes it
    """


experiment_options = [
    click.argument("recipe"),
    click.option("--data", metavar="SOURCE", help="scenes[:options] or FORMAT:PATH, e.g. coco:PATH."),
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Any field of the experiment, e.g. --set model.lambda_1=0.5 (t2i models SYSTEM lists them). Repeatable.",
    ),
    click.option("--workers", type=click.IntRange(1), help="Ray Train workers."),
]


def takes_experiment(function: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments that name and change a recipe."""
    for option in reversed(experiment_options):
        function = option(function)
    return function


def chosen_experiment(recipe: str, data: str | None, assignments: Sequence[str], workers: int | None) -> Any:
    """The recipe with the command line's changes. Raises RequestError."""
    from orchestration.config import apply_assignments
    from orchestration.recipes import get_recipe

    shorthand = [f"data.source={json.dumps(data)}"] if data is not None else []
    shorthand += [f"resources.workers={workers}"] if workers is not None else []
    return apply_assignments(get_recipe(recipe), [*shorthand, *assignments])


@command(cli, "quickstart")
@click.option("--prompt", default=None, help="What the endpoint should draw at the end.")
def quickstart(app: App, prompt: str | None) -> None:
    """The main job, end to end: data, campaign, training, judging, promotion, a picture from the endpoint.

    The last line of standard output is one JSON object. What is done is not done again.

    \b
    Example: t2i quickstart --prompt "a yellow car on the grass"
    """
    from orchestration.quickstart import PROMPT
    from orchestration.quickstart import quickstart as run

    result = run(app.home, app.tracker(), prompt or PROMPT, app.say, app.progress())
    click.echo(json.dumps(result, sort_keys=True))


@command(cli, "train")
@takes_experiment
@click.option("--dry-run", is_flag=True, help="Print the resolved experiment as JSON and stop.")
def train(
    app: App, recipe: str, data: str | None, assignments: Sequence[str], workers: int | None, dry_run: bool
) -> Result | None:
    """Train a recipe to its end, under Ray Train, tracked in MLflow.

    The same command again goes on where a killed run was, and finds a finished one. Checkpoints, pictures and metrics
    are in HOME/runs/RECIPE-HASH.

    \b
    Examples:
      t2i train xmcgan_scenes32 --workers 2
      t2i train xmcgan_laptop --data coco:PATH --set training.kimg=20
    """
    experiment = chosen_experiment(recipe, data, assignments, workers)
    if dry_run:
        click.echo(json.dumps(experiment.model_dump(mode="json"), indent=None if app.as_json else 1))
        return None
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
        "figures": figures,
    }


@command(cli, "tune")
@takes_experiment
@click.option(
    "--trials", type=click.IntRange(1), default=8, show_default=True, help="Trials; the first is the paper's."
)
@click.option("--concurrent", type=click.IntRange(1), default=2, show_default=True, help="Trials at a time.")
@click.option("--kimg", type=click.FloatRange(0, min_open=True), help="Budget of a trial (default: the recipe's).")
@click.option(
    "--grace-kimg",
    type=click.FloatRange(0, min_open=True),
    help="No trial is stopped before this (default: a quarter of the budget); also how often trials are judged.",
)
@click.option("--parameter", "parameters", multiple=True, metavar="NAME", help="Vary this one. Repeatable.")
@click.option(
    "--range", "ranges", multiple=True, metavar="NAME=RANGE", help="Narrow one: tau=0.05:0.2 or batch_size=16,32."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the search.")
def tune(
    app: App,
    recipe: str,
    data: str | None,
    assignments: Sequence[str],
    workers: int | None,
    trials: int,
    concurrent: int,
    kimg: float | None,
    grace_kimg: float | None,
    parameters: Sequence[str],
    ranges: Sequence[str],
    seed: int,
) -> Result:
    """Search the hyperparameters that the paper documents (Ray Tune, Optuna TPE, ASHA in kimg).

    Trial 0 is the paper's own point; where it gives no value, the released code's, else the recipe's. Every trial is a
    run in MLflow under the campaign's.

    \b
    Examples:
      t2i tune xmcgan_scenes32 --trials 8 --kimg 8
      t2i tune xmcgan_scenes32 --parameter tau --parameter rho_1 --range tau=0.05:0.3
    """
    from orchestration.campaigns.tune import CampaignSettings, table
    from orchestration.campaigns.tune import tune as run
    from search_spaces.space import SpaceError, load_space

    experiment = chosen_experiment(recipe, data, assignments, workers)
    budget = kimg if kimg is not None else experiment.training.kimg
    grace = grace_kimg if grace_kimg is not None else budget / 4
    experiment = experiment.replace(
        {
            "training.kimg": budget,
            "training.checkpoint_kimg": grace,
            "training.picture_kimg": grace,
            "evaluation.every_kimg": grace,
        }
    )
    try:
        space = load_space(experiment.system).choose(parameters, dict(_pair(text) for text in ranges))
    except SpaceError as error:
        raise RequestError(str(error)) from error
    settings = CampaignSettings(trials, concurrent, grace, seed=seed)
    campaign = run(experiment, space, settings, app.home, app.tracker(), app.progress())
    app.say(f"campaign {campaign.name}, objective {campaign.objective} (lower is better)")
    app.say(table(campaign.trials))
    best = campaign.best
    return {
        "campaign": campaign.folder,
        "objective": campaign.objective,
        "trials": len(campaign.trials),
        "best_params": best.values,
        "best_objective": best.objective,
        "best_checkpoint": best.checkpoint,
        "mlflow_run": campaign.run_id,
    }


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise RequestError(f"--range {text!r} is none: write it as NAME=low:high or NAME=a,b,c")
    return name.strip(), value.strip()


@command(cli, "evaluate")
@click.argument("run", metavar="RUN")
@click.option("--split", help="Held-out split (default: the experiment's test split).")
@click.option("--data", metavar="SOURCE", help="Other data than it was trained on.")
@click.option("--samples", type=click.IntRange(16), help="Captions drawn.")
def evaluate(app: App, run: str, split: str | None, data: str | None, samples: int | None) -> Result:
    """Judge a run or checkpoint on held-out captions, beside the net before training.

    RUN is a run's name in HOME/runs, a run folder or a checkpoint folder. Every figure carries its protocol.

    \b
    Example: t2i evaluate xmcgan_scenes32-1a415cbaa832
    """
    from orchestration.champions import evaluate as judge

    checkpoint, _ = find_checkpoint(app, run)
    before, after = judge(checkpoint, app.home, split, samples, data, app.progress())
    app.say(f"{after.samples} held-out captions, one picture each; before training -> now")
    for name, value in after.figures.items():
        app.say(f"  {name:32} {before.figures[name]:10.4g} -> {value:.4g}")
    return {
        "checkpoint": str(checkpoint.folder),
        "samples": after.samples,
        "before": dict(before.figures),
        "after": dict(after.figures),
    }


def find_checkpoint(app: App, run: str) -> tuple[Any, Path]:
    """The newest whole checkpoint of a run (by name or folder) or the checkpoint in a folder. Raises RequestError."""
    from orchestration.training.state import MANIFEST, newest_checkpoint, open_checkpoint
    from orchestration.training.worker import CHECKPOINTS

    for folder in (Path(run), app.home.runs / run):
        if (folder / MANIFEST).is_file():
            return open_checkpoint(folder), folder.parent.parent
        checkpoint = newest_checkpoint(folder / CHECKPOINTS)
        if checkpoint is not None:
            return checkpoint, folder
    known = sorted(path.name for path in app.home.runs.glob("*") if path.is_dir()) or ["none yet"]
    raise RequestError(f"no checkpoint in {run!r}: give a run ({', '.join(known)}) or the folder of a checkpoint")


@command(cli, "show")
@click.argument("run", metavar="RUN")
@click.option("--out", type=click.Path(dir_okay=False), default="show.png", show_default=True, help="PNG to draw.")
@click.option("--captions", type=click.IntRange(1, 100), default=12, show_default=True, help="Held-out captions.")
@click.option("--samples", type=click.IntRange(1, 8), default=3, show_default=True, help="Pictures a caption.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of captions and noise.")
def show(app: App, run: str, out: str, captions: int, samples: int, seed: int) -> Result:
    """Draw what a run makes of held-out captions, each beside the real picture (framed) that the caption describes.

    RUN is a run's name in HOME/runs, a run folder or a checkpoint folder.

    \b
    Example: t2i show xmcgan_scenes32-1a415cbaa832 --out sheet.png
    """
    from orchestration.showing import show_checkpoint

    checkpoint, _ = find_checkpoint(app, run)
    texts = show_checkpoint(checkpoint, app.home, Path(out), captions, samples, seed, app.progress())
    app.say(f"drew {len(texts)} captions to {out}")
    return {"png": str(Path(out).resolve()), "captions": texts}


@command(cli, "promote")
@click.argument("run", metavar="RUN")
def promote(app: App, run: str) -> Result:
    """Register a run's newest checkpoint as a model version and make it the champion that `t2i serve` loads.

    \b
    Example: t2i promote xmcgan_scenes32-1a415cbaa832
    """
    from orchestration.champions import promote as make_champion
    from orchestration.training.recorder import last_metrics, read_metrics

    checkpoint, folder = find_checkpoint(app, run)
    experiment, tracker = checkpoint.experiment, app.tracker()
    run_id = tracker.start_run(
        experiment.system,
        folder.name,
        folder.name,
        experiment.model_dump(mode="json"),
        {"t2i.recipe": experiment.recipe},
    )
    tracker.finish(run_id, "FINISHED")
    champion = make_champion(tracker, checkpoint, run_id, last_metrics(read_metrics(folder)))
    app.say(f"{champion.model} version {champion.version} is the champion: {checkpoint.folder}")
    return {"model": champion.model, "version": champion.version, "checkpoint_digest": checkpoint.digest}


@command(cli, "serve")
@click.option("--model", default="xmcgan", show_default=True, help="Registered model whose champion is served.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; the default is loopback.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
def serve(app: App, model: str, host: str, port: int) -> Result | None:
    """Serve the champion with Ray Serve until interrupted.

    POST /v1/images with {"prompt": ..., "seed": 0, "images": 1} gives a PNG, or JSON with several; GET /healthz says
    which version answers. With T2I_SERVE_TOKEN set, requests need it as a bearer token.

    \b
    Example:
      t2i serve --port 8000 &
      curl -s localhost:8000/v1/images -H 'Content-Type: application/json' \\
        -d '{"prompt": "a blue fish in the sea", "seed": 1}' -o fish.png
    """
    from orchestration.champions import champion_checkpoint
    from orchestration.serving import start_server

    tracker = app.tracker()
    champion = tracker.champion(model)
    if champion is None:
        raise RequestError(f"model {model!r} has no champion: train one and run t2i promote RUN, or t2i quickstart")
    checkpoint = champion_checkpoint(tracker, champion, app.home)
    server = start_server(checkpoint.folder, app.home.root, model, str(champion.version), host=host, port=port)
    app.say(f"{model} version {champion.version} answers at {server.url} (Ctrl-C ends it)")
    try:
        server.wait()
    finally:
        server.stop()
    return None


@command(cli, "models")
@click.argument("system", required=False)
def models(app: App, system: str | None) -> Result:
    """List the systems and recipes; with SYSTEM, its fields and the parameters that its paper documents.

    \b
    Example: t2i models xmcgan
    """
    from orchestration.listing import list_systems, show_system

    result = show_system(system, app.say) if system else list_systems(app.say)
    return result


@command(cli, "data")
@click.argument("source")
@click.option("--split", default="train", show_default=True)
@click.option("--sheet", type=click.Path(dir_okay=False), help="Draw a sheet of pictures with captions to this PNG.")
def data(app: App, source: str, split: str, sheet: str | None) -> Result:
    """Read and check a data set (generating scenes when they are not there), and say what it carries.

    \b
    Examples:
      t2i data scenes:size=64,things=8 --sheet scenes.png
      t2i data coco:PATH --split val
    """
    from orchestration.data.sources import open_source
    from orchestration.listing import draw_sheet

    progress = app.progress()
    dataset = open_source(source, split, app.home.root, lambda done, total: progress("drawing scenes", done, total))
    captions = sum(len(record.captions or ()) for record in dataset.records)
    app.say(f"{source} ({split}): {len(dataset.records)} pictures, {captions} captions")
    app.say(f"carries {', '.join(sorted(dataset.carries))}; digest {dataset.digest[:16]}")
    if sheet:
        draw_sheet(dataset, Path(sheet))
        app.say(f"drew {sheet}")
    return {
        "source": source,
        "split": split,
        "pictures": len(dataset.records),
        "captions": captions,
        "carries": sorted(dataset.carries),
        "digest": dataset.digest,
    }


def main() -> NoReturn:
    """Run a command; every way it can end has its exit code (see orchestration.errors)."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.exit(run_cli(sys.argv[1:]))


def run_cli(arguments: Sequence[str]) -> int:
    """The exit code of `t2i ARGUMENTS`; one sentence on standard error when it is not 0."""
    try:
        cli.main(args=list(arguments), prog_name="t2i", standalone_mode=False)
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
        story = Path.cwd() / "t2i-failure.txt"
        story.write_text(traceback.format_exc())
        return _complain(f"unexpected {type(error).__name__}: {error}; the whole story is in {story}", 1)
    return 0


def _complain(sentence: str, code: int) -> int:
    click.echo(f"t2i: {sentence}", err=True)
    return code
