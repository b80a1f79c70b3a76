"""A campaign's ledger as Optuna studies, for Optuna's own plots and importances.

Only points of the same budget are set side by side: those of the whole budget, and with halving also those of the first
rung, where every trial was still there.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from math import isclose
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState

from orchestration.campaigns.ledger import Segment, SegmentState
from orchestration.campaigns.settings import CampaignSettings
from orchestration.campaigns.standing import Standing, one_line, standing
from search_spaces.space import Parameter, Space, Value

ENOUGH_FOR_IMPORTANCES, TOP = 10, 5


@dataclass(frozen=True, slots=True)
class Point:
    """What a trial reached at one budget, with the values it had up to there. reached: one for each objective."""

    trial: int
    values: Mapping[str, Value]
    reached: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Points of one budget side by side."""

    kimg: float
    whole: bool
    points: tuple[Point, ...]


def comparisons(segments: Sequence[Segment], settings: CampaignSettings) -> list[Comparison]:
    """The whole budget, and before it with halving the first rung."""
    rungs = [settings.budget_kimg]
    if settings.scheduler == "halving" and len(settings.rungs) > 1:
        rungs.append(settings.rungs[0])
    return [Comparison(kimg, kimg == settings.budget_kimg, points_at(segments, settings, kimg)) for kimg in rungs]


def points_at(segments: Sequence[Segment], settings: CampaignSettings, kimg: float) -> tuple[Point, ...]:
    """Every trial that was compared at so many kimg with a number for each objective."""
    found = []
    for segment in segments:
        if segment.state != SegmentState.REACHED or not isclose(segment.until_kimg, kimg):
            continue
        reached = [standing(segment.figures, objective.figure) for objective in settings.objectives]
        known = tuple(one for one in reached if one is not None)
        if len(known) == len(reached):
            found.append(Point(segment.trial, segment.values, known))
    return tuple(found)


def study_of(points: Sequence[Point], space: Space, settings: CampaignSettings) -> optuna.Study:
    """A study in memory whose trials have the ledger's numbers. Names and choices are escaped for plotly's texts."""
    with quietly():
        study = optuna.create_study(directions=[objective.direction for objective in settings.objectives])
        by_number = {point.trial: point for point in points}
        for number in range(max(by_number, default=-1) + 1):
            study.add_trial(_as_optuna(by_number.get(number), points, space))
    return study


def _as_optuna(point: Point | None, points: Sequence[Point], space: Space) -> optuna.trial.FrozenTrial:
    if point is None:  # it only keeps the numbers of the others right
        return optuna.trial.create_trial(state=TrialState.FAIL)
    names = [name for name in space.parameters if name in point.values]
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        values=[reached.value for reached in point.reached],
        params={text(name): _choice(point.values[name]) for name in names},
        distributions={
            text(name): distribution(space.parameters[name], [one.values[name] for one in points if name in one.values])
            for name in names
        },
    )


def distribution(parameter: Parameter, values: Sequence[Value]) -> BaseDistribution:
    """A parameter's range as Optuna's, widened where a value lies outside it."""
    if parameter.kind == "choice":
        return CategoricalDistribution(
            [_choice(value) for value in dict.fromkeys([*(parameter.values or ()), *values])]
        )
    numbers = [float(value) for value in values]
    low = min([parameter.low or 0.0, *numbers])
    high = max([parameter.high or 0.0, *numbers])
    log = parameter.log and low > 0
    if parameter.kind == "int":
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def importances(study: optuna.Study, settings: CampaignSettings, objective: int, count: int) -> dict[str, float] | None:
    """PED-ANOVA's share of each parameter in reaching the best points, adding up to 1; None for too few points.

    Source: Watanabe et al. 2023, arXiv:2304.10255. Optuna's documentation asks for at least five points above the
    quantile, so that of few points more than the best tenth are taken.
    """
    if count < ENOUGH_FOR_IMPORTANCES:
        return None
    sign = 1.0 if settings.objectives[objective].direction == "minimize" else -1.0
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, TOP / count))
    with quietly():
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: sign * trial.values[objective]
        )
    return {str(name): float(share) for name, share in found.items()}


@contextmanager
def quietly() -> Iterator[None]:
    """Without Optuna's log lines and warnings: the page says in words what they are about."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def text(words: str) -> str:
    """Words as plotly shows them: it takes some HTML tags in texts for markup."""
    return escape(one_line(words), quote=False)


def _choice(value: Value) -> Any:
    return text(value) if isinstance(value, str) else value
