"""A campaign: Ray Tune and Optuna over documented hyperparameters, every trial in MLflow, every stage shared."""

import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from orchestration.cluster import ray_cluster, wants_gpu
from orchestration.config import Experiment
from orchestration.errors import RequestError, RunError
from orchestration.home import Home, exclusive
from orchestration.preparation import Preparation
from orchestration.prepared import Prepared
from orchestration.stage_store import PREPARED
from orchestration.stages import Progress, quiet, short_hash, write_atomically
from orchestration.tracking import Mirror, Tracker
from orchestration.training.launch import EXPERIMENT_FILE, checkpoint_tags, fit, run_tags, train_part
from orchestration.training.recorder import read_metrics
from orchestration.training.state import newest_checkpoint
from orchestration.training.worker import CHECKPOINTS, Job, read_outcome, share_of_cores, train_worker
from search_spaces.space import Space, Value

SLOT = "trial_slot"
OBJECTIVE = "objective"
RESULTS, TRIALS, RAY = "campaign.json", "trials", ".ray"
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class CampaignSettings:
    """How a campaign searches. Budgets are in kimg of each trial."""

    trials: int
    concurrent: int
    grace_kimg: float
    reduction: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial: its values, how far it got, what it reached there, and where it is.

    state: "finished" (the whole budget), "stopped" (by the scheduler), "diverged" or "failed".
    """

    name: str
    values: dict[str, Value]
    state: str
    reason: str
    kimg: float
    objective: float | None
    checkpoint: str | None
    run_id: str | None


@dataclass(frozen=True, slots=True)
class Campaign:
    """A finished campaign. `best` is the finished trial with the lowest objective."""

    name: str
    folder: str
    run_id: str
    objective: str
    trials: list[TrialResult] = field(default_factory=list)

    @property
    def best(self) -> TrialResult:
        """Only whole budgets are compared. Raises RunError when no trial finished."""
        finished = [trial for trial in self.trials if trial.state == "finished" and trial.objective is not None]
        if not finished:
            reasons = "; ".join(f"{trial.name}: {trial.reason or trial.state}" for trial in self.trials)
            raise RunError(f"no trial of campaign {self.name} finished ({reasons}): widen the budget or mend the cause")
        return min(finished, key=lambda trial: (trial.objective, trial.name))


def paper_point(space: Space, base: Experiment) -> dict[str, Value]:
    """Trial 0: each parameter at its documented value, or at the recipe's own where the range does not hold that."""
    point: dict[str, Value] = {}
    for name, parameter in space.parameters.items():
        value: Any = base
        for part in parameter.field.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        documented = parameter.documented_on(base.data.source)
        chosen = value if documented is None else documented
        if not parameter.allows(chosen):
            raise RequestError(
                f"the range of {name} ({parameter.describe()}) holds neither a documented value nor the recipe's "
                f"{value!r}: widen it with --range"
            )
        point[name] = chosen
    return point


def trial_experiment(base: Experiment, space: Space, values: Mapping[str, Any]) -> Experiment:
    """The experiment of a point of the space. Raises RequestError when the point makes none."""
    return base.replace(space.assignments(values))


def preflight(base: Experiment, space: Space, settings: CampaignSettings) -> None:
    """Refuse what cannot run before anything is started. Raises RequestError with the numbers."""
    if settings.trials < 1 or settings.concurrent < 1:
        raise RequestError("a campaign needs at least one trial, and at least one at a time")
    if not 0 < settings.grace_kimg <= base.training.kimg:
        raise RequestError(
            f"grace {settings.grace_kimg:g} kimg must be above 0 and at most the trial's {base.training.kimg:g} kimg"
        )
    for name, parameter in space.parameters.items():
        for value in parameter.values or ():
            trial_experiment(base, space, {name: value})
    paper_point(space, base)


def tune(
    base: Experiment,
    space: Space,
    settings: CampaignSettings,
    home: Home,
    tracker: Tracker,
    progress: Progress = quiet,
) -> Campaign:
    """Run the campaign to its end. The same command finds a finished campaign and does not run it again.

    Raises RequestError when the request cannot be met.
    """
    preflight(base, space, settings)
    prepared = Preparation(base, home, progress, partial(train_part, tracker)).everything()
    if prepared.protocol == "none":
        raise RequestError("a campaign needs an objective: set evaluation.protocol to other than none")
    objective = f"validation/fid/{prepared.protocol}"
    identity = short_hash([base.identity, base.resources.workers, space.model_dump(mode="json"), asdict(settings)])
    name = f"{base.recipe}-{identity[:12]}"
    with exclusive(home.campaigns / name):
        return _campaign(name, base, space, settings, prepared, home.campaigns / name, objective, tracker, progress)


def _campaign(
    name: str,
    base: Experiment,
    space: Space,
    settings: CampaignSettings,
    prepared: Prepared,
    folder: Path,
    objective: str,
    tracker: Tracker,
    progress: Progress,
) -> Campaign:
    if (folder / RESULTS).is_file():
        return read_campaign(folder)
    _forget_unfinished(folder, tracker)
    write_atomically(folder / "space.json", space.model_dump_json(indent=1))
    parent = tracker.start_run(
        base.system,
        f"campaign {name}",
        f"campaign-{name}",
        {"base": base.model_dump(mode="json"), "campaign": asdict(settings)},
        {**run_tags(base, prepared), "t2i.kind": "campaign", "t2i.objective": objective},
    )
    try:
        with ray_cluster(base.resources.workers * settings.concurrent, {SLOT: settings.concurrent}) as ray:
            _search(ray, base, space, settings, prepared, folder, parent, tracker, objective, progress)
    except BaseException as error:
        with suppress(RunError):
            tracker.finish(parent, "FAILED", str(error) or type(error).__name__)
        raise
    campaign = _collect(name, folder, parent, objective, base, tracker)
    shutil.rmtree(folder / RAY, ignore_errors=True)
    write_atomically(folder / RESULTS, json.dumps(asdict(campaign), indent=1))
    with suppress(RunError):
        tracker.log_artifact(parent, folder / RESULTS)
        tracker.finish(parent, "FINISHED")
    return campaign


def _forget_unfinished(folder: Path, tracker: Tracker) -> None:
    """A campaign that was cut off starts again: its half-done trials are closed in MLflow and removed."""
    for trial in _trial_folders(folder):
        with suppress(RunError, OSError, ValueError, KeyError):
            tracker.finish(json.loads((trial / "trial.json").read_text())["run_id"], "KILLED", "campaign cut off")
    shutil.rmtree(folder / TRIALS, ignore_errors=True)
    shutil.rmtree(folder / RAY, ignore_errors=True)
    (folder / TRIALS).mkdir(parents=True)


def read_campaign(folder: Path) -> Campaign:
    """A finished campaign from its folder; trials' paths follow the folder when it was moved."""
    values = json.loads((folder / RESULTS).read_text())
    trials = [TrialResult(**trial) for trial in values.pop("trials")]
    return Campaign(**{**values, "folder": str(folder)}, trials=trials)


def _search(
    ray: Any,
    base: Experiment,
    space: Space,
    settings: CampaignSettings,
    prepared: Prepared,
    folder: Path,
    parent: str,
    tracker: Tracker,
    objective: str,
    progress: Progress,
) -> None:
    import optuna
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    gpu = wants_gpu(base.resources.use_gpu, ray)
    _check_slots(ray, settings.concurrent)
    given = {
        "base": base.model_dump(mode="json"),
        "space": space.model_dump(mode="json"),
        "prepared": prepared.to_json(),
        "folder": str(folder),
        "parent": parent,
        "home": str(tracker.home),
        "uri": tracker.uri,
        "objective": objective,
        "threads": base.resources.threads or share_of_cores(base.resources.workers * settings.concurrent),
    }
    # One worker trains in the trial's own process; more get a Ray Train group beside it.
    own = {"CPU": 1.0, **({"GPU": 1.0} if gpu else {})} if base.resources.workers == 1 else {}
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(run_trial, given=given), ray_tune.PlacementGroupFactory([{SLOT: 1, **own}])
    )
    tuner = ray_tune.Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            search_alg=OptunaSearch(
                space=space.suggest,
                metric=OBJECTIVE,
                mode="min",
                seed=settings.seed,
                points_to_evaluate=[paper_point(space, base)],
            ),
            scheduler=ASHAScheduler(
                time_attr="kimg",
                metric=OBJECTIVE,
                mode="min",
                grace_period=settings.grace_kimg,
                reduction_factor=settings.reduction,
                # Above the last report: a trial that reaches the budget ends by itself, not by the scheduler.
                max_t=base.training.kimg * 2 + 1,
            ),
            num_samples=settings.trials,
            max_concurrent_trials=settings.concurrent,
            reuse_actors=False,
        ),
        run_config=ray_tune.RunConfig(
            name="tune",
            storage_path=str(folder / RAY),
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=0),
        ),
    )
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder, settings.trials, progress, done), daemon=True)
    watcher.start()
    try:
        tuner.fit()
    finally:
        done.set()
        watcher.join()


def _watch(folder: Path, trials: int, progress: Progress, done: threading.Event) -> None:
    while not done.wait(POLL_S):
        if progress is not quiet:
            ended = sum(read_outcome(trial) is not None for trial in _trial_folders(folder))
            progress("trials finished", ended, trials)


def _check_slots(ray: Any, concurrent: int) -> None:
    slots = ray.cluster_resources().get(SLOT, 0)
    if slots < concurrent:
        raise RequestError(
            f"{concurrent} trials at a time need {concurrent} units of the resource {SLOT!r} and the cluster has "
            f"{slots:.0f}: start its head with --resources='{{\"{SLOT}\": {concurrent}}}'"
        )


def run_trial(config: dict[str, Any], given: dict[str, Any]) -> None:
    """One trial, in its own process."""
    from ray import tune as ray_tune

    from orchestration.config import parse_experiment

    space = Space.model_validate(given["space"])
    experiment = trial_experiment(parse_experiment(given["base"]), space, config)
    tracker = Tracker(Path(given["home"]), given["uri"])
    prepared = Prepared.from_json(given["prepared"])
    if experiment.reads_as != parse_experiment(given["base"]).reads_as:
        # Something before the GAN is varied: its stages are made here, or by another trial that needs the same ones.
        home = Home(Path(given["home"]))
        prepared = Preparation(experiment, home, train_part=partial(train_part, tracker)).everything()
    trial_id = ray_tune.get_context().get_trial_id()
    folder = Path(given["folder"]) / TRIALS / trial_id
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / EXPERIMENT_FILE, json.dumps(experiment.model_dump(mode="json"), indent=1))
    write_atomically(folder / PREPARED, json.dumps(prepared.to_json(), indent=1))
    run_id = tracker.start_run(
        experiment.system,
        f"trial {trial_id}",
        f"{Path(given['folder']).name}-{trial_id}",
        experiment.model_dump(mode="json"),
        {**run_tags(experiment, prepared), "t2i.kind": "trial"},
        given["parent"],
    )
    write_atomically(folder / "trial.json", json.dumps({"values": config, "run_id": run_id}))
    job = Job(experiment, prepared, str(folder), given["threads"])

    def report(figures: Mapping[str, float]) -> None:
        if given["objective"] in figures:
            ray_tune.report({OBJECTIVE: figures[given["objective"]], **figures})

    with Mirror(tracker, run_id, folder):
        if experiment.resources.workers == 1:
            train_worker(job, report, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        else:
            _train_group(job, report)
    outcome = read_outcome(folder)
    if outcome is not None and outcome.status == "diverged":
        raise RunError(outcome.reason)


def _train_group(job: Job, report: Any) -> None:
    """A Ray Train group of workers; what they record is reported from here, the trial's own process."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            fit(job)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    reported = 0.0
    while True:
        alive = thread.is_alive()
        for line in read_metrics(Path(job.folder)):
            if line["kimg"] > reported and any(name.startswith("validation/fid/") for name in line["metrics"]):
                reported = line["kimg"]
                report({**line["metrics"], "kimg": line["kimg"]})
        if not alive:
            break
        time.sleep(POLL_S)
    if failures:
        raise failures[0]


def _trial_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / TRIALS).glob("*/trial.json"))


def _collect(name: str, folder: Path, parent: str, objective: str, base: Experiment, tracker: Tracker) -> Campaign:
    trials = []
    for trial_folder in _trial_folders(folder):
        result = _trial_result(trial_folder, objective, base.training.kimg)
        trials.append(result)
        status = {"finished": "FINISHED", "stopped": "KILLED"}.get(result.state, "FAILED")
        with suppress(RunError):
            assert result.run_id is not None
            tracker.mirror(result.run_id, trial_folder)
            checkpoint = newest_checkpoint(trial_folder / CHECKPOINTS)
            if checkpoint is not None:
                tracker.log_tags(result.run_id, checkpoint_tags(checkpoint))
            tracker.finish(result.run_id, status, result.reason or None)  # type: ignore[arg-type]
    return Campaign(name, str(folder), parent, objective, trials)


def _trial_result(folder: Path, objective: str, budget: float) -> TrialResult:
    known = json.loads((folder / "trial.json").read_text())
    lines = [line for line in read_metrics(folder) if objective in line["metrics"]]
    outcome, checkpoint = read_outcome(folder), newest_checkpoint(folder / CHECKPOINTS)
    reached = lines[-1]["kimg"] if lines else 0.0
    if reached >= budget:
        # The scheduler may stop a trial at its very last report: it has had its whole budget all the same.
        state, reason = "finished", ""
    elif outcome is not None:
        state, reason = outcome.status, outcome.reason
    elif lines:
        state, reason = "stopped", f"stopped by the scheduler at {reached:g} kimg"
    else:
        state, reason = "failed", "it ended before its first evaluation"
    return TrialResult(
        folder.name,
        known["values"],
        state,
        reason,
        reached,
        lines[-1]["metrics"][objective] if lines else None,
        str(checkpoint.folder) if checkpoint else None,
        known["run_id"],
    )


def table(trials: Sequence[TrialResult]) -> str:
    """The trials as lines for a person, best first."""
    order = sorted(trials, key=lambda trial: (trial.state != "finished", trial.objective or float("inf")))
    lines = []
    for trial in order:
        values = ", ".join(
            f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in trial.values.items()
        )
        reached = "no figure" if trial.objective is None else f"{trial.objective:.2f}"
        lines.append(f"{trial.name}  {trial.state:9}  {reached:>9} at {trial.kimg:g} kimg  {values}")
    return "\n".join(lines)
