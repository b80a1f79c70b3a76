"""A campaign from its first command to its last: planned, checked, carried out, resumed, and told to MLflow.

`HOME/campaigns/NAME` is all there is of it: ledger, Optuna's storage, a run folder for each trial. It can be copied and
resumed elsewhere.
"""

import difflib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from orchestration.campaigns.changes import code_files, differences
from orchestration.campaigns.conductor import Conductor, best
from orchestration.campaigns.ledger import FILE, Ledger, State, Trial
from orchestration.campaigns.live import LiveTable
from orchestration.campaigns.needs import available_resources
from orchestration.campaigns.points import paper_point
from orchestration.campaigns.preflight import Report, preflight, require_writable
from orchestration.campaigns.segments import TRIALS
from orchestration.campaigns.settings import CampaignSettings
from orchestration.cluster import require_cluster
from orchestration.config import Experiment, parse_experiment
from orchestration.errors import RequestError, RunError
from orchestration.home import Home, exclusive, pull
from orchestration.preparation import Preparation
from orchestration.prepared import Prepared
from orchestration.stage_store import PREPARED
from orchestration.stages import Progress, quiet, short_hash, write_atomically
from orchestration.tracking import Tracker
from orchestration.training.launch import EXPERIMENT_FILE, checkpoint_tags, run_tags, train_part
from orchestration.training.state import Checkpoint, open_checkpoint
from search_spaces.space import Space

SUMMARY = "campaign.json"
STATUS = {State.FINISHED: "FINISHED", State.STOPPED: "KILLED"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign is told, as it stands in the ledger's header. storage: an RDB URL for Optuna, None for a file in
    the campaign's folder."""

    base: Experiment
    space: Space
    settings: CampaignSettings
    storage: str | None = None
    given_name: str | None = None

    @property
    def name(self) -> str:
        """Of its folder: the same request finds, and resumes, the same campaign, on whatever resources."""
        told = [self.base.identity, self.space.model_dump(mode="json")]
        return (
            self.given_name or f"{self.base.recipe}-{short_hash([*told, self.settings.model_dump(mode='json')])[:12]}"
        )

    @property
    def header(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "base": self.base.model_dump(mode="json"),
            "space": self.space.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "storage": self.storage,
            "code": code_files(),
        }

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> "Plan":
        """The plan of a ledger's header. Raises RequestError when this version cannot read it."""
        try:
            space, base = Space.model_validate(header["space"]), parse_experiment(header["base"])
            space.require_system(base.system)
            settings = CampaignSettings.model_validate(header["settings"])
            return cls(base, space, settings, header["storage"], header["name"])
        except (KeyError, ValueError) as error:
            raise RequestError(
                f"the campaign's ledger does not say what this version needs ({error}): resume it with the version of "
                "t2i that began it"
            ) from error


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign as its ledger tells it."""

    folder: Path
    plan: Plan
    run_id: str | None
    trials: list[Trial] = field(default_factory=list)

    @property
    def objective(self) -> str:
        """The figure that trials are compared by; the first of several."""
        return self.plan.settings.objectives[0].figure

    @property
    def front(self) -> list[Trial]:
        """The best trial, or with several objectives those that none beats in all of them."""
        return best(self.trials, self.plan.settings)

    @property
    def best(self) -> Trial:
        """Only whole budgets are compared. Raises RunError when no trial finished."""
        front = self.front
        if not front:
            reasons = "; ".join(f"{trial.name}: {trial.reason or trial.state}" for trial in self.trials)
            raise RunError(
                f"no trial of campaign {self.plan.name} finished ({reasons}): widen the budget or mend the cause"
            )
        return front[0]

    def checkpoint(self, trial: Trial) -> Checkpoint:
        """A trial's last checkpoint, verified. Raises RunError when it is not the one the ledger knows."""
        if trial.checkpoint is None:
            raise RunError(f"{trial.name} of campaign {self.plan.name} left no checkpoint")
        pull(self.folder / TRIALS / trial.name)
        checkpoint = open_checkpoint(self.folder / trial.checkpoint)
        if checkpoint.digest != trial.digest:
            raise RunError(
                f"the checkpoint {checkpoint.folder} is not the one in the ledger (its digest differs): restore it, "
                "or run the campaign anew under another --name"
            )
        return checkpoint


def find_campaign(home: Home, name: str) -> Path:
    """The folder of a campaign, by its name in the home or by its path. Raises RequestError listing near names."""
    for folder in (Path(name), home.campaigns / name):
        pull(folder)
        if (folder / FILE).is_file():
            return folder
    known = sorted(path.parent.name for path in home.campaigns.glob(f"*/{FILE}"))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known or ["none yet"]
    raise RequestError(f"there is no campaign {name!r}; near it: {', '.join(near)}")


def read_campaign(folder: Path) -> Campaign:
    """A campaign as it stands, while it runs or afterwards. Raises RequestError."""
    ledger = Ledger.open(folder)
    try:
        header = ledger.header
        return Campaign(folder, Plan.of(header), header.get("run_id"), ledger.trials())
    finally:
        ledger.close()


def tune(
    plan: Plan,
    home: Home,
    tracker: Tracker,
    progress: Progress = quiet,
    accept: bool = False,
    folder: Path | None = None,
) -> Campaign:
    """Run the campaign to its end, from wherever it is; a finished one is found and not run again.

    accept: go on although the settings or the code are not those it was begun with. folder: of a campaign that is
    resumed, by default the one of its name in the home. Raises RequestError when the request cannot be met, RunError
    when it failed while running.
    """
    folder = folder or home.campaigns / plan.name
    require_writable(folder)
    if not (folder / FILE).is_file() and (refusal := check(plan, home).refusal) is not None:
        raise RequestError(refusal)
    with exclusive(folder):
        ledger = _ledger(folder, plan, accept)
        try:
            ledger.publish()
            return _run(ledger, plan, folder, home, tracker, progress)
        finally:
            ledger.close()


def check(plan: Plan, home: Home) -> Report:
    """What the campaign needs and what there is; nothing is done. Raises RequestError for what makes no sense."""
    from orchestration.campaigns.proposals import check_sampler

    check_sampler(plan.space, plan.settings, paper_point(plan.space, plan.base))
    return preflight(plan.base, plan.space, plan.settings, available_resources(), home)


def _ledger(folder: Path, plan: Plan, accept: bool) -> Ledger:
    """The campaign's ledger, new or as it was left. RequestError where it was told something else."""
    if not (folder / FILE).is_file():
        return Ledger.create(folder, plan.header)
    ledger = Ledger.open(folder)
    changed = differences({**ledger.header, "name": plan.name}, plan.header)
    if changed and not accept:
        ledger.close()
        raise RequestError(
            f"the campaign in {folder} was begun otherwise: {'; '.join(changed)}: give it another --name, or --accept "
            "to go on with what is asked now"
        )
    if changed:
        for name, value in plan.header.items():
            ledger.note(name, value)
    return ledger


def _run(ledger: Ledger, plan: Plan, folder: Path, home: Home, tracker: Tracker, progress: Progress) -> Campaign:
    from orchestration.campaigns.execution import Given, execute
    from orchestration.campaigns.population import mutable_parameters
    from orchestration.campaigns.proposals import Proposer

    settings = plan.settings
    book = Book(ledger, folder, plan, tracker)
    trials = ledger.trials()
    if len(trials) < settings.trials or not all(trial.state.ended for trial in trials):
        require_cluster()
        prepared = Preparation(plan.base, home, progress, partial(train_part, tracker)).everything()
        parent = book.begin(run_tags(plan.base, prepared))
        first = paper_point(plan.space, plan.base)
        proposer = Proposer(plan.space, settings, folder, plan.name, plan.storage, first)
        mutable = mutable_parameters(plan.base, plan.space) if settings.scheduler == "population" else frozenset()
        conductor = Conductor(ledger, settings, plan.space, proposer, mutable, book.seen)
        given = Given(plan.base, plan.space, prepared, folder, parent, tracker.home, tracker.uri, plan.name)
        try:
            with LiveTable(folder, settings, progress) as shown:
                execute(conductor, given, settings, say=shown.say)
        except BaseException as error:
            with suppress(RunError):
                tracker.finish(parent, "FAILED", str(error) or type(error).__name__)
            raise
        finally:
            proposer.close()
    book.close()
    campaign = read_campaign(folder)
    if campaign.front:
        campaign.checkpoint(campaign.best)
    return campaign


class Book:
    """Keeps MLflow with the ledger: one run a trial, found by its name, and the campaign's above them.

    A server that is down for a while holds nothing up: what could not be sent is sent at the end, or on resume.
    """

    def __init__(self, ledger: Ledger, folder: Path, plan: Plan, tracker: Tracker) -> None:
        self.ledger, self.folder, self.plan, self.tracker = ledger, folder, plan, tracker

    def begin(self, tags: Mapping[str, str]) -> str:
        """The campaign's own run."""
        plan = self.plan
        told = {"base": plan.base.model_dump(mode="json"), "campaign": plan.settings.model_dump(mode="json")}
        objective = plan.settings.objectives[0].figure
        parent = self.tracker.start_run(
            plan.base.system,
            f"campaign {plan.name}",
            f"campaign-{plan.name}",
            told,
            {**tags, "t2i.kind": "campaign", "t2i.objective": objective},
        )
        self.ledger.note("run_id", parent)
        return parent

    def seen(self, trial: Trial) -> None:
        """A trial's state changed: an end is told at once if the server answers."""
        if trial.state.ended:
            with suppress(RunError):
                self._tell(trial)

    def close(self) -> None:
        """Everything that ended is told, and the campaign's run is finished. Raises RunError when it cannot be."""
        for trial in self.ledger.trials():
            self._tell(trial)
        parent = self.ledger.header.get("run_id")
        if parent is not None:
            told = {"trials": [_plain(trial) for trial in self.ledger.trials()]}
            write_atomically(self.folder / SUMMARY, json.dumps(told, indent=1))
            self.tracker.log_artifact(parent, self.folder / SUMMARY)
            self.tracker.finish(parent, "FINISHED")

    def _tell(self, trial: Trial) -> None:
        run_id = trial.run_id or self._begin_trial(trial)
        if run_id is None:
            return
        pull(self.folder / TRIALS / trial.name)
        self.tracker.mirror(run_id, self.folder / TRIALS / trial.name)
        if trial.checkpoint is not None:
            checkpoint = open_checkpoint(self.folder / trial.checkpoint)
            self.tracker.log_tags(run_id, checkpoint_tags(checkpoint))
        self.tracker.finish(run_id, STATUS.get(trial.state, "FAILED"), trial.reason or None)  # type: ignore[arg-type]

    def _begin_trial(self, trial: Trial) -> str | None:
        """The run of a trial that trained while the server was away; None for one that never trained."""
        folder, parent = self.folder / TRIALS / trial.name, self.ledger.header.get("run_id")
        pull(folder)
        if not (folder / PREPARED).is_file() or parent is None:
            return None
        experiment = parse_experiment(json.loads((folder / EXPERIMENT_FILE).read_text()))
        prepared = Prepared.from_json(json.loads((folder / PREPARED).read_text()))
        run_id = self.tracker.start_run(
            experiment.system,
            trial.name,
            f"{self.plan.name}-{trial.name}",
            experiment.model_dump(mode="json"),
            {**run_tags(experiment, prepared), "t2i.kind": "trial"},
            parent,
        )
        self.ledger.assign_run(trial.number, run_id)
        return run_id


def _plain(trial: Trial) -> dict[str, Any]:
    return {
        "name": trial.name,
        "values": trial.values,
        "state": trial.state,
        "reason": trial.reason,
        "kimg": trial.kimg,
        "figures": trial.figures,
        "checkpoint_digest": trial.digest,
        "run": trial.run_id,
    }
