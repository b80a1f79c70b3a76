"""The main job: data, campaign, training on two workers, judging, promotion, and a picture from the endpoint."""

import time
from collections.abc import Mapping
from typing import Any

from orchestration.campaigns.campaign import Campaign, Plan, tune
from orchestration.campaigns.execution import SLOT
from orchestration.campaigns.points import trial_experiment
from orchestration.campaigns.settings import CampaignSettings, Objective
from orchestration.champion_contest import Contest
from orchestration.champions import promote
from orchestration.cluster import ray_cluster
from orchestration.config import Experiment
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.evaluate import UNTRAINED_ROW, Request, judge_runs
from orchestration.evaluation.record import by_figure
from orchestration.evaluation.tables import Table
from orchestration.home import Home
from orchestration.progress import Say
from orchestration.recipes import get_recipe
from orchestration.registry import ModelVersion
from orchestration.stages import Progress, write_atomically
from orchestration.tracking import Tracker
from orchestration.training.launch import FinishedRun, pretrained_features, train
from search_spaces.space import load_space

RECIPE = "xmcgan_scenes32"
TRIALS, TRIAL_KIMG, GRACE_KIMG = 4, 3.0, 1.5
# Trials are short, and what a short trial likes at the far ends of a range need not last: half to twice the documented
# values. The paper's batch of 256 would be 12 batches a trial.
RANGES = {
    "lambda_1": "0.5:2",
    "lambda_2": "0.5:2",
    "lambda_3": "0.5:2",
    "rho_1": "2.5:10",
    "tau": "0.05:0.2",
    "batch_size": "16,32,64",
}
WORKERS = CONCURRENT = 2
JUDGE = "scenes-net"
JUDGED_BY = ("fid", "kid", "accuracy", "duplicates")
PROMPT = "a red boat on the sea"


def quickstart(home: Home, tracker: Tracker, prompt: str, say: Say, progress: Progress) -> dict[str, Any]:
    """Everything, in order; what an earlier quickstart finished is not done again. Returns the summary."""
    started = time.perf_counter()
    base = get_recipe(RECIPE)
    say(f"data: {base.data.source} (an easy setting of scenes: 32 px, one thing a picture)")
    # One Ray for all of it: starting one takes seconds each time.
    with ray_cluster(WORKERS, {SLOT: CONCURRENT}):
        campaign = search(base, home, tracker, say, progress)
        run = train_best(base, campaign, home, tracker, say, progress)
        say("judging the champion on captions of the test split, against the net before training")
        request = Request(JUDGED_BY, samples=base.evaluation.samples)
        rows = judge_runs(home, tracker, [str(run.folder)], request, untrained=True, progress=progress)
        before, after = (by_figure(rows[name]) for name in (UNTRAINED_ROW, run.folder.name))
        say(Table.of([record for records in rows.values() for record in records]).text())
        figures = {name: record.value for name, record in after.items()}
        champion = challenge(run, figures, home, tracker, say, progress)
        say(f"champion: {champion.model} version {champion.version}; asking Ray Serve for {prompt!r}")
        picture = home.root / "quickstart.png"
        write_atomically(picture, draw_by_endpoint(tracker, home, prompt))
    fid, accuracy = f"fid/{JUDGE}", {name: after[f"accuracy/{name}"] for name in ("background", "colour", "thing")}
    return {
        "png": str(picture),
        "prompt": prompt,
        "champion": f"{champion.model}/{champion.version}",
        "checkpoint_digest": champion.tags.get("t2i.checkpoint_digest", run.checkpoint.digest),
        "trials": len(campaign.trials),
        "best_params": campaign.best.values,
        "protocol": fid,
        "fid_before": before[fid].value,
        "fid_after": after[fid].value,
        "fid_interval": [after[fid].low, after[fid].high],
        "kid_after": after[f"kid/{JUDGE}"].value,
        "samples": after[fid].drawn,
        "real_samples": after[fid].real,
        "accuracy": {
            **{name: record.value for name, record in accuracy.items()},
            "thing_chance": accuracy["thing"].details["chance"],
            "mismatched": {name: record.details["mismatched"] for name, record in accuracy.items()},
        },
        "data": base.data.source,
        "pretrained_features": pretrained_features(base),
        "run": str(run.folder),
        "campaign": str(campaign.folder),
        "mlflow_uri": tracker.uri,
        "seconds": round(time.perf_counter() - started, 1),
    }


def search(base: Experiment, home: Home, tracker: Tracker, say: Say, progress: Progress) -> Campaign:
    """A small campaign over the parameters that the paper documents, the paper's point first."""
    short = base.replace(
        {
            "training.kimg": TRIAL_KIMG,
            "training.checkpoint_kimg": TRIAL_KIMG,
            "training.picture_kimg": TRIAL_KIMG,
            "evaluation.every_kimg": GRACE_KIMG,
        }
    )
    space = load_space(base.system).choose(ranges=RANGES)
    say(f"campaign: {TRIALS} trials of {TRIAL_KIMG:g} kimg over {', '.join(space.parameters)}")
    settings = CampaignSettings(
        trials=TRIALS,
        concurrent=CONCURRENT,
        budget_kimg=TRIAL_KIMG,
        grace_kimg=GRACE_KIMG,
        objectives=(Objective(figure=f"validation/fid/{JUDGE}"),),
    )
    return tune(Plan(short, space, settings), home, tracker, progress)


def train_best(
    base: Experiment, campaign: Campaign, home: Home, tracker: Tracker, say: Say, progress: Progress
) -> FinishedRun:
    """The recipe's full length at the campaign's best point."""
    best = campaign.best
    experiment = trial_experiment(base, load_space(base.system), best.values).replace({"resources.workers": WORKERS})
    say(f"training {experiment.training.kimg:g} kimg at the best point on {WORKERS} workers (trial {best.name})")
    return train(experiment, home, tracker, progress)


def challenge(
    run: FinishedRun, figures: Mapping[str, float], home: Home, tracker: Tracker, say: Say, progress: Progress
) -> ModelVersion:
    """Who is champion after the run was offered: it is, unless there is one that is as good or does not compare."""
    contest = Contest(command="t2i quickstart")
    try:
        promotion = promote(tracker, home, run.checkpoint, run.folder, contest, figures, progress)
    except RequestError as error:
        champion = tracker.champion(run.checkpoint.experiment.system)
        if champion is None:
            raise
        say(str(error))
        return champion
    say(promotion.sentence)
    return promotion.champion


def draw_by_endpoint(tracker: Tracker, home: Home, prompt: str) -> bytes:
    """PNG bytes for a prompt from a server that is started for it and stopped again."""
    from orchestration.serving import request_image
    from orchestration.serving.server import start_server
    from orchestration.serving.settings import ServeSettings

    champion = tracker.champion(get_recipe(RECIPE).system)
    if champion is None:
        raise RunError("there is no champion in the registry: repeat the quickstart")
    settings = ServeSettings(home=home.root, tracking_uri=tracker.uri, models=(champion.model,))
    with start_server(settings, port=0) as server:
        return request_image(server.url, prompt, seed=0, timeout=60.0)
