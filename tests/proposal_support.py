"""Proposers on small spaces, histories of a campaign, and what Optuna's storage holds of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna

from orchestration.campaigns import study_storage
from orchestration.campaigns.ledger import Segment, SegmentState, State, Trial
from orchestration.campaigns.proposals import Proposer
from orchestration.campaigns.settings import CampaignSettings, Objective
from search_spaces.space import Space, Value
from tests.space_support import choice, number, space_of

FIGURE, OTHER = "validation/fid/scenes-net", "validation/seconds"
SPACE = space_of(
    deep=number(0, 1, mode="b"),
    mode=choice("a", "b"),
    steps=number(1, 6, "int"),
    rate=number(1e-4, 1, log=True),
)
FIRST: dict[str, Value] = {"deep": 0.5, "mode": "b", "steps": 2, "rate": 0.1}
SAMPLERS = ("tpe", "random", "cmaes")


def told(sampler: str = "tpe", objectives: int = 1, **changes: Any) -> CampaignSettings:
    figures = (Objective(figure=FIGURE), Objective(figure=OTHER, direction="maximize"))[:objectives]
    scheduler = "halving" if objectives == 1 else "none"
    usual = {"trials": 24, "budget_kimg": 4, "grace_kimg": 1, "sampler": sampler, "scheduler": scheduler}
    return CampaignSettings(**{**usual, "objectives": figures, **changes})


@contextmanager
def proposer(
    folder: Path,
    settings: CampaignSettings | None = None,
    space: Space = SPACE,
    first: Mapping[str, Value] | None = None,
    storage: str | None = None,
    name: str = "camp",
) -> Iterator[Proposer]:
    """One, which lets go of its storage."""
    one = Proposer(space, settings or told(), folder, name, storage, FIRST if first is None else first)
    try:
        yield one
    finally:
        one.close()


def finished(index: int, values: dict[str, Value], **figures: float) -> Trial:
    return Trial(index, values, "proposed", State.FINISHED, kimg=4.0, figures=figures or {FIGURE: loss(values)})


def loss(values: Mapping[str, Any]) -> float:
    """Smallest at rate 0.01, 4 steps, mode a."""
    return float(abs(math.log10(values["rate"]) + 2) + abs(values["steps"] - 4) + (values["mode"] == "b"))


def history(count: int) -> list[Trial]:
    """Trials in every state, without any randomness."""
    trials = []
    for index in range(count):
        values: dict[str, Value] = {"mode": "ab"[index % 2], "steps": 1 + index % 6, "rate": 10.0 ** -(index % 5)}
        values["rate"] = max(values["rate"], 1e-4) * (1 - index / 1000)  # type: ignore[type-var, operator]
        if values["mode"] == "b":
            values["deep"] = index / count
        figure = {FIGURE: loss(values), OTHER: float(index)}
        state = (State.FINISHED, State.WAITING, State.STOPPED, State.DIVERGED, State.FAILED, State.RUNNING)[index % 6]
        kimg = {State.FINISHED: 4.0, State.DIVERGED: 1.5}.get(state, 1.0 if index % 4 else 0.0)
        trials.append(Trial(index, values, "proposed", state, kimg=kimg, figures=figure if kimg else {}))
    return trials


def drawn(folder: Path, backwards: bool = False) -> dict[str, list[dict[str, Value]]]:
    """Some points by each sampler."""
    points = {}
    for sampler in SAMPLERS:
        counts = [1, 7, 13, 30]
        with proposer(folder / sampler, told(sampler)) as one:
            found = {count: one.propose(count, history(count)) for count in (counts[::-1] if backwards else counts)}
        points[sampler] = [found[count] for count in counts]
    return points


def segment(trial: int, step: int, until: float, figure: float | None, **changes: Any) -> Segment:
    figures = {} if figure is None else {FIGURE: figure}
    usual = {"values": FIRST, "state": SegmentState.REACHED, "figures": figures}
    return Segment(trial, step, until, **{**usual, **changes})


def study_in(folder: Path, name: str = "camp") -> optuna.Study:
    """As a dashboard opens it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder / study_storage.FILE}")


def facts(folder: Path) -> list[Any]:
    """All of the storage but ids and times."""
    return [
        (trial.number, trial.state.name, trial.values, trial.params, trial.intermediate_values, trial.user_attrs)
        for trial in study_in(folder).trials
    ]


def fill(folder: Path, trials: Sequence[Trial]) -> None:
    """A campaign that is resumed and ends at once."""
    with proposer(folder) as one:
        for trial in trials:
            rungs = [segment(trial.number, 0, 1.0, trial.figures[FIGURE], values=trial.values)] if trial.figures else []
            one.tell(trial, rungs)
