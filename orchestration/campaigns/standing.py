"""Where trials stand: best first, and whether a lead is more than noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestration.campaigns.conductor import best
from orchestration.campaigns.ledger import State, Trial
from orchestration.campaigns.settings import CampaignSettings, Objective

VALIDATION = "validation/"
ENDED_BADLY = (State.DIVERGED, State.COLLAPSED, State.FAILED)


@dataclass(frozen=True, slots=True)
class Standing:
    """A figure of a trial. low, high: its 95 % interval, None where the run recorded none."""

    value: float
    low: float | None = None
    high: float | None = None

    def overlaps(self, other: "Standing") -> bool | None:
        """Whether the two intervals overlap; None where one is not known."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return None
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{interval}"


def standing(figures: Mapping[str, float], figure: str) -> Standing | None:
    """A figure with its interval; None where it is missing or not finite."""
    value = _finite(figures.get(figure))
    if value is None:
        return None
    low, high = (_finite(figures.get(bound_name(figure, bound))) for bound in ("low", "high"))
    return Standing(value, low, high) if low is not None and high is not None else Standing(value)


def bound_name(figure: str, bound: str) -> str:
    """The figure that holds the "low" or "high" end of another's interval: METRIC_low/PROTOCOL."""
    prefix = VALIDATION if figure.startswith(VALIDATION) else ""
    metric, slash, protocol = figure.removeprefix(prefix).partition("/")
    return f"{prefix}{metric}_{bound}{slash}{protocol}"


def ranked(trials: Sequence[Trial], settings: CampaignSettings) -> list[Trial]:
    """Best first: whole budgets by their objective (a Pareto front before the rest), then the longest trained, then
    what ended badly."""
    front = {trial.number for trial in best(trials, settings)}
    objective = settings.objectives[0]

    def place(trial: Trial) -> tuple[int, float, float, int]:
        value = signed(trial, objective)
        if trial.state == State.FINISHED:
            return 0, trial.number not in front, value, trial.number
        return 2 if trial.state in ENDED_BADLY else 1, -trial.kimg, value, trial.number

    return sorted(trials, key=place)


def signed(trial: Trial, objective: Objective) -> float:
    """The objective to be made small; infinite where there is none."""
    reached = standing(trial.figures, objective.figure)
    if reached is None:
        return math.inf
    return reached.value if objective.direction == "minimize" else -reached.value


def told_lead(trials: Sequence[Trial], settings: CampaignSettings) -> str:
    """In one sentence, how far the best is ahead of the next, and whether that is more than noise."""
    front = best(trials, settings)
    if not front:
        return "No trial has a figure at the whole budget yet."
    if len(settings.objectives) > 1:
        names = ", ".join(trial.name for trial in front)
        return f"Pareto front: {names}; no other trial is as good as one of these in every objective."
    objective = settings.objectives[0]
    first = front[0]
    own = standing(first.figures, objective.figure)
    others = [
        (trial, reached)
        for trial in ranked(trials, settings)
        if trial.state == State.FINISHED and trial != first
        if (reached := standing(trial.figures, objective.figure)) is not None
    ]
    told = f"Best: {first.name} with {own}"
    if own is None or not others:
        return f"{told}, the only trial with a figure at the whole budget."
    judged = [(trial, own.overlaps(reached)) for trial, reached in others]
    level = [trial.name for trial, overlap in judged if overlap]
    if level:
        more = f" and {len(level) - 1} more" if len(level) > 1 else ""
        return f"{told}, within the noise of {level[0]}{more}: their 95 % intervals overlap."
    if judged[0][1] is None:
        return f"{told}; without an interval nobody can say whether its lead on {judged[0][0].name} is noise."
    return f"{told}, ahead of {others[0][0].name} ({others[0][1]}) by more than the noise."


def reason_in_words(trial: Trial) -> str:
    """Why a trial ended, on one line without control characters; "" for one that goes on or had its whole budget."""
    if trial.state not in (State.STOPPED, *ENDED_BADLY):
        return ""
    reason = one_line(trial.reason) or "no reason was recorded"
    return f"{trial.state}: {reason}"


def one_line(text: str) -> str:
    """The text without line ends and what a terminal would obey."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def shown(value: object) -> str:
    """A value of a point for a person."""
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
