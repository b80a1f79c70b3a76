"""A recipe's stages as a graph: what is there, what is missing, and what a changed field would run anew."""

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from orchestration.config import Experiment
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.stage_store import size_of
from orchestration.stages import (
    DamagedStage,
    Progress,
    Stage,
    begun_folder,
    check_stage,
    is_finished,
    is_running,
    quiet,
)
from orchestration.training.recorder import read_metrics
from orchestration.training.worker import read_outcome

DONE, RUNNING, MISSING, DAMAGED = "done", "running", "missing", "damaged"
NONE = "none"  # how a stage writes that it reads no such thing
LOCK = ".lock"  # of orchestration.home.exclusive


@dataclass(frozen=True, slots=True)
class Row:
    """One stage, or the run itself, whose key is the experiment's identity.

    label: its name and, where there are several, its split; inputs: names of stages, or digests of data, by what they
    are to it; note: what is damaged, or how far it is.
    """

    label: str
    name: str
    key: str
    state: str
    bytes: int
    inputs: dict[str, str]
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """The stages in order, each after those it reads, and the run that they are for."""

    stages: list[Row]
    run: Row

    @property
    def rows(self) -> list[Row]:
        return [*self.stages, self.run]


def read_graph(experiment: Experiment, home: Home, progress: Progress = quiet) -> Graph:
    """What this experiment's run needs and what of it is there. No stage is run.

    Scenes that were never drawn are drawn, as their digest is part of the keys. Raises RequestError.
    """
    stages = Preparation(experiment, home, progress).graph()
    names = {stage.key: stage.folder_name for stage in stages}
    rows = [_row(stage, names, home, experiment) for stage in stages]
    state, note = _run_state(experiment, home.runs / experiment.run_name)
    size = size_of(home.runs / experiment.run_name)
    return Graph(rows, Row("the run", experiment.run_name, experiment.identity, state, size, {}, note))


def _row(stage: Stage, names: dict[str, str], home: Home, experiment: Experiment) -> Row:
    folder = home.stages / stage.folder_name
    split = stage.settings.get("split")
    label = f"{stage.name} ({split})" if split else stage.name
    inputs = {what: names.get(value, value) for what, value in stage.inputs.items() if value != NONE}
    state, note = MISSING, None
    size = size_of(folder)
    if is_finished(folder):
        try:
            check_stage(folder)
            state = DONE
        except DamagedStage as error:
            state, note = DAMAGED, error.what
    else:
        state = RUNNING if is_running(stage, home.stages) else MISSING
        size = size_of(begun_folder(folder))
        if stage.name in experiment.stages:
            note = _how_far(experiment.stage(stage.name), home.runs / stage.folder_name)
        if note is None and size:
            note = "begun"
    return Row(label, stage.folder_name, stage.key, state, size, inputs, note)


def _run_state(experiment: Experiment, folder: Path) -> tuple[str, str | None]:
    outcome = read_outcome(folder)
    if outcome is not None and outcome.status == "finished":
        return DONE, None
    try:
        if (folder / LOCK).exists():
            with FileLock(folder / LOCK).acquire(timeout=0):
                pass
    except Timeout:
        return RUNNING, _how_far(experiment, folder)
    if outcome is not None:
        return MISSING, f"{outcome.status}: {outcome.reason}"
    return MISSING, _how_far(experiment, folder)


def _how_far(experiment: Experiment, folder: Path) -> str | None:
    lines = read_metrics(folder)
    return f"at {lines[-1]['kimg']:g} of {experiment.training.kimg:g} kimg" if lines else None


@dataclass(frozen=True, slots=True)
class Effect:
    """What a change does to one stage, or to the run. effect: "stays", "anew", or "there already" under its new key."""

    label: str
    name: str
    effect: str


def compare(before: Graph, after: Graph) -> list[Effect]:
    """What of `after` a run would compute that is neither in `before` nor there already."""
    known = {row.name for row in before.stages} | {before.run.key}

    def effect(row: Row, identity: str) -> str:
        if identity in known:
            return "stays"
        return "there already" if row.state == DONE else "anew"

    effects = [Effect(row.label, row.name, effect(row, row.name)) for row in after.stages]
    return [*effects, Effect(after.run.label, after.run.name, effect(after.run, after.run.key))]
