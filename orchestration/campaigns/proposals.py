"""Which point a campaign tries next, by Optuna.

What is proposed depends on nothing but the campaign's seed, the trial's number and what the ledger says of the trials
before: for each proposal the sampler is seeded anew and shown the ledger. So a campaign that was killed, moved or given
another storage goes on as if nothing had happened, and nothing of Optuna's is read back. The study in Optuna's storage
follows the ledger, for people: `optuna-dashboard`, importances.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from orchestration.campaigns.ledger import Segment, SegmentState, State, Trial
from orchestration.campaigns.settings import CampaignSettings
from orchestration.campaigns.study_storage import StudyStorage, quiet_optuna
from orchestration.errors import RequestError
from orchestration.stages import short_hash
from search_spaces.space import Parameter, Space, SpaceError, Value

BROKEN = (State.DIVERGED, State.COLLAPSED)
ATTEMPTS = 20
"""Draws before a point that was tried already is proposed again, as in a space of few points it must be."""
COUNTED = 100_000
"""Points of a grid that are counted for a message."""
CMA_STEP = 1 / 6
"""Of CMA-ES, at first: this share of each range, as Optuna has it."""


class Proposer:
    """Proposes points and keeps Optuna's storage with the ledger. `first` is trial 0, as far as its parameters exist.

    storage: URL of Optuna's database, by default `optuna.db` in the campaign's folder; name: of the study in it.

    tpe: multivariate, in groups of parameters that exist together (with several objectives each parameter by itself,
    Optuna's default there); the first `startup` points are random. cmaes: CMA-ES over the numbers, TPE over choices.
    grid: see `grid_points`. random: every parameter evenly over its range, or its logarithm.

    Raises RequestError for a first point outside the space, a sampler that does not fit, and a storage that cannot be
    used.
    """

    def __init__(
        self,
        space: Space,
        settings: CampaignSettings,
        folder: Path,
        name: str,
        storage: str | None = None,
        first: Mapping[str, Value] | None = None,
    ) -> None:
        self.space, self.settings = space, settings
        self.first, self._grid = check_sampler(space, settings, first or {})
        self.distributions = {label: _distribution(known) for label, known in space.parameters.items()}
        directions = [objective.direction for objective in settings.objectives]
        mark = short_hash(
            [name, space.model_dump(mode="json"), settings.seed, settings.model_dump(mode="json")["objectives"]]
        )
        self._storage = StudyStorage(folder, storage, name, directions, mark)

    @property
    def startup(self) -> int:
        """Results before TPE takes over from chance: Optuna's 10, fewer where few trials are planned."""
        return max(4, min(10, self.settings.trials // 4))

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Value]:
        """The point of trial `number`, given all trials before it, with its parameters in the order of the space."""
        earlier = [trial for trial in trials if trial.number < number]
        self._storage.expect(number)
        if number == 0:
            return dict(self.first)
        if self.settings.sampler == "grid":
            return dict(self._grid[number - 1])
        tried = [trial.values for trial in earlier]
        point: dict[str, Value] = {}
        for attempt in range(ATTEMPTS):
            point = self._draw(earlier, self._seed(number, attempt))
            if point not in tried:
                break
        return point

    def tell(self, trial: Trial, segments: Sequence[Segment]) -> None:
        """Bring the trial's record in Optuna's storage to what the ledger says of it. Segments of others are ignored.

        A trial that had its whole budget is COMPLETE, one that was stopped PRUNED, one that diverged, collapsed, failed
        or has no figure FAIL, any other RUNNING. Intermediate values are the objective at each rung, at a step of that
        many pictures. The parameters are those first proposed; what a population changed, and when, is in the user
        attribute `changes`. A storage that does not answer holds nothing up: it is brought up to date later.
        """
        self._storage.put(trial.number, self._record(trial, [one for one in segments if one.trial == trial.number]))

    def close(self) -> None:
        """Bring the storage up to date and let go of it. Raises RunError when it cannot be written."""
        self._storage.close()

    def _seed(self, *path: int) -> int:
        return int(np.random.SeedSequence([self.settings.seed, *path]).generate_state(1)[0])

    def _draw(self, trials: Sequence[Trial], seed: int) -> dict[str, Value]:
        with quiet_optuna(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                directions=[objective.direction for objective in self.settings.objectives],
                sampler=self._sampler(seed),
            )
            if self.settings.sampler != "random":
                study.add_trials([self._remembered(trial) for trial in trials])
            if self.settings.sampler == "cmaes":
                study.enqueue_trial(self._cma_numbers(trials, seed))
            return self.space.suggest(study.ask())

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self.settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        joint = len(self.settings.objectives) == 1
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=self.startup, multivariate=joint, group=joint, constant_liar=True
        )

    def _remembered(self, trial: Trial) -> FrozenTrial:
        """A trial as the sampler sees it. Unlike in the storage, one that waits at a rung counts as pruned there, and
        one whose training broke as worse than all others: its surroundings are avoided."""
        losses, state = self._figures(trial), TrialState.RUNNING
        values, steps = None, {}
        if trial.state is State.FAILED:
            state = TrialState.FAIL
        elif trial.state in BROKEN or (trial.state is State.FINISHED and losses is None):
            state = TrialState.PRUNED
        elif trial.state is State.FINISHED:
            state, values = TrialState.COMPLETE, losses
        elif trial.kimg > 0:
            state = TrialState.PRUNED
            steps = {_images(trial.kimg): losses[0]} if losses is not None and len(losses) == 1 else {}
        return self._frozen(state, trial.values, values, steps, {})

    def _record(self, trial: Trial, segments: Sequence[Segment]) -> FrozenTrial:
        """A trial as the storage has it."""
        figures = self._figures(trial)
        state, values = TrialState.RUNNING, None
        if trial.state is State.FINISHED and figures is not None:
            state, values = TrialState.COMPLETE, figures
        elif trial.state is State.STOPPED:
            state = TrialState.PRUNED
        elif trial.state.ended:
            state = TrialState.FAIL
        name, steps = self.settings.objectives[0].figure, {}
        for segment in segments:
            figure = segment.figures.get(name, math.nan)
            if segment.state is SegmentState.REACHED and math.isfinite(figure) and len(self.settings.objectives) == 1:
                steps[_images(segment.until_kimg)] = figure
        first = segments[0].values if segments else trial.values
        attributes: dict[str, Any] = {"state": str(trial.state), "kimg": trial.kimg, "origin": trial.origin}
        if trial.reason:
            attributes["reason"] = trial.reason
        changes = [
            {"from_kimg": before.until_kimg, "copies": segment.donor, "values": segment.values}
            for before, segment in pairwise(segments)
            if segment.donor is not None or segment.values != before.values
        ]
        if changes:
            attributes["changes"] = changes
        return self._frozen(state, first, values, steps, attributes)

    def _figures(self, trial: Trial) -> list[float] | None:
        """Every objective; None where one is missing, or no number."""
        figures = [trial.figures.get(objective.figure, math.nan) for objective in self.settings.objectives]
        return figures if all(math.isfinite(figure) for figure in figures) else None

    def _frozen(
        self,
        state: TrialState,
        point: Mapping[str, Value],
        values: list[float] | None,
        steps: dict[int, float],
        attributes: dict[str, Any],
    ) -> FrozenTrial:
        # A value outside a range that was changed since cannot be told to Optuna.
        known = {
            label: value
            for label, value in point.items()
            if label in self.distributions and self.space.parameters[label].allows(value)
        }
        return optuna.trial.create_trial(
            state=state,
            values=values,
            params=known,
            distributions={label: self.distributions[label] for label in known},
            intermediate_values=steps,
            user_attrs=attributes,
        )

    def _cma_numbers(self, trials: Sequence[Trial], seed: int) -> dict[str, Value]:
        """The numbers of a point, by CMA-ES from the first point on; each range is [0, 1] to it.

        Its state is computed anew from the ledger: the trials that have come to anything, in the order of their
        numbers, are its generations. Only their ranks matter, so that the further a trial came the better it is.
        """
        from cmaes import CMA

        ranges = {label: known for label, known in self.space.parameters.items() if known.kind != "choice"}
        mean = np.array([self._place(label, 0.5, self.first) for label in ranges])
        cma = CMA(mean, CMA_STEP, bounds=np.tile([0.0, 1.0], (len(ranges), 1)), seed=seed)
        told = [trial for trial in trials if trial.number > 0 and trial.state is not State.FAILED]
        told = [trial for trial in told if trial.state.ended or trial.kimg > 0]
        size = cma.population_size
        for start in range(0, len(told) - size + 1, size):
            generation = sorted(told[start : start + size], key=self._rank)
            places = [
                np.array([self._place(label, here, trial.values) for label, here in zip(ranges, cma.mean, strict=True)])
                for trial in generation
            ]
            cma.tell(list(zip(places, range(size), strict=True)))
        cma.reseed_rng(seed)
        places = cma.ask().tolist()
        return {label: known.at(place) for (label, known), place in zip(ranges.items(), places, strict=True)}

    def _place(self, label: str, otherwise: float, point: Mapping[str, Value]) -> float:
        """Where the point's number lies in its range, cut to it; `otherwise` where it does not exist."""
        value = point.get(label)
        if value is None or isinstance(value, str):
            return float(otherwise)
        return min(max(self.space.parameters[label].position(value), 0.0), 1.0)

    def _rank(self, trial: Trial) -> tuple[bool, float, float, int]:
        figures = self._figures(trial)
        if figures is None or trial.state in BROKEN:
            return True, 0.0, 0.0, trial.number
        sign = -1 if self.settings.objectives[0].direction == "maximize" else 1
        return False, -trial.kimg, sign * figures[0], trial.number


def check_sampler(
    space: Space, settings: CampaignSettings, first: Mapping[str, Value]
) -> tuple[dict[str, Value], list[dict[str, Value]]]:
    """What is known before anything runs: trial 0 as it exists, and the points of a grid; none for other samplers.

    Raises RequestError for a first point outside the space and a sampler that does not fit.
    """
    try:
        point = space.existing(first)
        space.check(point)
    except SpaceError as error:
        raise RequestError(f"trial 0 does not fit: {error}") from error
    if settings.sampler == "cmaes":
        _check_cma(space, settings)
    return point, grid_points(space, point, settings) if settings.sampler == "grid" else []


def grid_points(space: Space, first: Mapping[str, Value], settings: CampaignSettings) -> list[dict[str, Value]]:
    """The points after the first one, in an order that the seed shuffles.

    A choice has all its values. Every range has the same number of evenly placed values, its ends among them (an int no
    more than there are): as many as still fit into the trials, and at least two. Parameters that do not exist at a
    point multiply nothing. Raises RequestError when the points are more than the trials, or fewer.
    """
    room, points = settings.trials - 1, list[dict[str, Value]]()
    for count in range(2, room + 3):
        found = list(islice((point for point in _grid(space, count) if point != first), room + 1))
        if len(found) > room or len(found) == len(points):
            break
        points = found
    if not points and room > 0:
        least = 1 + sum(1 for _ in islice((point for point in _grid(space, 2) if point != first), COUNTED))
        more = "over " if least > COUNTED else ""
        raise RequestError(
            f"a grid over {', '.join(space.parameters)} has {more}{least} points or more with the first one, and the "
            f"campaign {settings.trials} trials: give --trials {least}, name fewer parameters, or list their values"
        )
    if len(points) < room:
        raise RequestError(
            f"a grid over {', '.join(space.parameters)} has {len(points) + 1} points with the first one for up to "
            f"{settings.trials} trials: give --trials {len(points) + 1}"
        )
    order = np.random.default_rng([settings.seed, 0]).permutation(len(points))
    return [points[index] for index in order]


def _grid(space: Space, count: int) -> Iterator[dict[str, Value]]:
    """Every point of the grid, once."""
    labels = space.order

    def extend(point: dict[str, Value], depth: int) -> Iterator[dict[str, Value]]:
        if depth == len(labels):
            yield {label: point[label] for label in space.parameters if label in point}
            return
        label = labels[depth]
        values = space.parameters[label].spread(count) if space.exists(label, point) else None
        for value in values or ():
            yield from extend({**point, label: value}, depth + 1)
        if values is None:
            yield from extend(point, depth + 1)

    yield from extend({}, 0)


def _check_cma(space: Space, settings: CampaignSettings) -> None:
    numbers = sum(known.kind != "choice" for known in space.parameters.values())
    if len(settings.objectives) > 1:
        raise RequestError("the sampler cmaes makes one figure small or large, not several: use --sampler tpe")
    if numbers < 2:
        raise RequestError(
            f"the sampler cmaes needs two ranges of numbers or more, and {', '.join(space.parameters)} have {numbers}: "
            "use --sampler tpe, or name more parameters"
        )
    if find_spec("cmaes") is None:
        raise RequestError("the sampler cmaes needs the package cmaes: pip install cmaes, or use --sampler tpe")


def _distribution(parameter: Parameter) -> BaseDistribution:
    """What `Parameter.suggest` draws from."""
    if parameter.kind == "choice":
        return CategoricalDistribution(list(parameter.values or ()))
    assert parameter.low is not None and parameter.high is not None
    if parameter.kind == "int":
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _images(kimg: float) -> int:
    return round(kimg * 1000)
