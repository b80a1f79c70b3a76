"""`t2i tune`: search the hyperparameters that a paper documents."""

from collections.abc import Container, Sequence
from typing import Any

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError
from orchestration.options import Workers, chosen_experiment, kimg_option, number, pair, repeatable, takes_changes

SAMPLERS, SCHEDULERS = ("tpe", "random", "grid", "cmaes"), ("halving", "population", "none")


def add_to(group: click.Group) -> None:
    """Add the command to a group."""
    command(group, "tune")(tune)


@click.argument("recipe", required=False)
@takes_changes
@number("--trials", "Trials in all; the first is the paper's.", 1, default=8)
@number("--concurrent", "Trials at a time.", 1, default=2)
@kimg_option("--kimg", "Length of a trial, in thousands of pictures  [default: the recipe's]")
@kimg_option("--grace-kimg", "Trials are compared from here on  [default: a quarter of --kimg]")
@repeatable(
    "--parameter", "parameters", "NAME", "Vary this one  [default: those that `t2i models SYSTEM` marks with *]"
)
@repeatable(
    "--range", "ranges", "NAME=RANGE", "Narrow one, e.g. tau=0.05:0.2 or batch_size=16,32  [default: the whole range]"
)
@repeatable(
    "--objective",
    "objectives",
    "FIGURE[:maximize]",
    "What to make small, or large; several give a Pareto front  [default: validation/fid/PROTOCOL]",
)
@click.option("--sampler", type=click.Choice(SAMPLERS), default="tpe", show_default=True, help="Who proposes points.")
@click.option(
    "--scheduler",
    type=click.Choice(SCHEDULERS),
    help="halving: ASHA, the best go on; population: PBT, the worst copy the best; none.  [default: halving; none with "
    "several objectives, and where nothing is trained]",
)
@number("--seed", "Seed of the search.", 0, default=0)
@click.option("--name", metavar="NAME", help="Name of the campaign  [default: RECIPE-HASH of all of the above]")
@click.option("--storage", metavar="URL", help="Optuna's database  [default: sqlite in the campaign's folder]")
@click.option(
    "--resume",
    metavar="CAMPAIGN",
    help="Go on with this campaign; takes no RECIPE  [default: begin one]",
)
@click.option("--accept", is_flag=True, help="Go on although settings or code changed since it was begun.")
@click.option("--dry-run", is_flag=True, help="Say what it needs and what there is, and stop.")
def tune(
    app: App,
    recipe: str | None,
    data: str | None,
    assignments: Sequence[str],
    workers: Workers,
    trials: int,
    concurrent: int,
    kimg: float | None,
    grace_kimg: float | None,
    parameters: Sequence[str],
    ranges: Sequence[str],
    objectives: Sequence[str],
    sampler: str,
    scheduler: str | None,
    seed: int,
    name: str | None,
    storage: str | None,
    resume: str | None,
    accept: bool,
    dry_run: bool,
) -> Result | None:
    """Search the hyperparameters that a paper documents.

    Trial 0 is the paper's own point; where it gives no value, the released code's, else the recipe's. Optuna proposes
    the others. Trials pause where they are compared, and only the better ones go on. A campaign is one folder in
    HOME/campaigns with a ledger; the same command, or --resume, goes on where it was cut off. Every trial is a run in
    MLflow under the campaign's.

    \b
    Examples:
      t2i tune xmcgan_scenes32 --trials 8 --kimg 8
      t2i tune xmcgan_scenes32 --parameter tau --parameter rho_1 --range tau=0.05:0.3
      t2i tune --resume CAMPAIGN
    """
    from orchestration.campaigns.campaign import Plan, find_campaign, read_campaign
    from orchestration.campaigns.campaign import tune as run
    from orchestration.campaigns.live import trials_table
    from orchestration.config import assigned

    if (recipe is None) == (resume is None):
        raise RequestError("name a RECIPE to begin a campaign, or --resume CAMPAIGN to go on with one")
    folder = None
    if resume is not None:
        folder = find_campaign(app.home, resume)
        plan = read_campaign(folder).plan
    else:
        assert recipe is not None
        experiment = chosen_experiment(recipe, data, assignments, workers)
        plan = _plan(
            experiment,
            trials,
            concurrent,
            kimg,
            grace_kimg,
            parameters,
            ranges,
            objectives,
            sampler,
            scheduler,
            seed,
            assigned(assignments),
        )
        plan = Plan(plan.base, plan.space, plan.settings, storage, name)
    if dry_run:
        return _needs(app, plan)
    campaign = run(plan, app.home, app.tracker(), app.progress(), accept, folder)
    app.say(f"campaign {campaign.plan.name}, objective {campaign.objective}")
    app.say(trials_table(campaign.trials, campaign.plan.settings))
    best = campaign.best
    return {
        "campaign": str(campaign.folder),
        "objective": campaign.objective,
        "trials": len(campaign.trials),
        "best_trial": best.name,
        "best_params": best.values,
        "best_objective": best.figures[campaign.objective],
        "best_checkpoint": str(campaign.checkpoint(best).folder),
        "front": [trial.name for trial in campaign.front],
        "mlflow_run": campaign.run_id,
    }


def _plan(
    experiment: Any,
    trials: int,
    concurrent: int,
    kimg: float | None,
    grace_kimg: float | None,
    parameters: Sequence[str],
    ranges: Sequence[str],
    objectives: Sequence[str],
    sampler: str,
    scheduler: str | None,
    seed: int,
    fixed: Container[str] = (),
) -> Any:
    from orchestration.campaigns.campaign import Plan
    from orchestration.campaigns.settings import plan_settings
    from orchestration.requirements import choose_protocol
    from search_spaces.space import SpaceError, load_space

    budget = kimg if kimg is not None else experiment.training.kimg
    grace = grace_kimg if grace_kimg is not None else budget / 4
    compared = ("training.checkpoint_kimg", "training.picture_kimg", "evaluation.every_kimg")
    # What trains nothing has no lengths: it is drawn and judged once. Every stretch ends with a checkpoint and a
    # verdict, so that whoever wants them at other lengths too has them there.
    lengths = {name: grace for name in compared if grace and name not in fixed}
    experiment = experiment.replace({"training.kimg": budget, **lengths})
    narrowed = dict(pair("--range", text, "NAME=low:high or NAME=a,b,c") for text in ranges)
    try:
        space = load_space(experiment.system).choose(parameters, narrowed, experiment.model_dump(mode="json"))
    except SpaceError as error:
        raise RequestError(str(error)) from error
    wanted = [text.partition(":") for text in objectives] or [(f"validation/fid/{choose_protocol(experiment)}", "", "")]
    settings = plan_settings(
        {
            "trials": trials,
            "concurrent": concurrent,
            "budget_kimg": budget,
            "grace_kimg": grace,
            "objectives": [{"figure": figure, "direction": direction or "minimize"} for figure, _, direction in wanted],
            "sampler": sampler,
            "scheduler": _scheduler(scheduler, len(wanted), budget),
            "seed": seed,
        }
    )
    return Plan(experiment, space, settings)


def _scheduler(asked: str | None, objectives: int, budget: float) -> str:
    if objectives > 1:
        return "none"
    return asked or ("halving" if budget else "none")


def _needs(app: App, plan: Any) -> Result:
    from orchestration.campaigns.campaign import check

    report = check(plan, app.home)
    app.say(report.text())
    if report.refusal:
        raise RequestError(report.refusal)
    return {"campaign": plan.name, "needs": report.text()}
