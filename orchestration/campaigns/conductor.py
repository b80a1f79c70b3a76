"""What a campaign does next: pure logic over the ledger, without Ray, so that it can be resumed at any point.

Trials are trained in segments between rungs. Nothing that runs is ever stopped: a trial ends by getting no further
segment. What was begun when the driver died is handed out again, and goes on from its newest checkpoint.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from orchestration.campaigns.halving import last_resort, promotable
from orchestration.campaigns.ledger import Ledger, Reached, Segment, SegmentState, State, Trial
from orchestration.campaigns.population import exploit, explore
from orchestration.campaigns.settings import CampaignSettings
from search_spaces.space import Space, Value

ENDS = {
    SegmentState.DIVERGED: State.DIVERGED,
    SegmentState.COLLAPSED: State.COLLAPSED,
    SegmentState.FAILED: State.FAILED,
}


class Proposes(Protocol):
    """Where new points come from."""

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Value]: ...

    def tell(self, trial: Trial, segments: Sequence[Segment]) -> None: ...


@dataclass
class Conductor:
    """Hands out segments and takes in how they ended.

    mutable: parameters that a population may change in the middle of a trial; seen: told each trial whose state
    changed, for tables and MLflow.
    """

    ledger: Ledger
    settings: CampaignSettings
    space: Space
    proposer: Proposes
    mutable: Collection[str] = ()
    seen: Callable[[Trial], None] = lambda trial: None

    def __post_init__(self) -> None:
        self._out: set[int] = set()  # trials whose segment is handed out now
        # By trial and step. A driver that dies is no fault of its trials: the next one counts anew.
        self._failed: Counter[tuple[int, int]] = Counter()
        for trial in self.ledger.trials():
            self.proposer.tell(trial, self._segments(trial.number))

    @property
    def done(self) -> bool:
        """Whether nothing is left to do and nothing runs."""
        trials = self.ledger.trials()
        return len(trials) >= self.settings.trials and all(trial.state.ended for trial in trials)

    def next(self) -> Segment | None:
        """The next segment to run, entered in the ledger as begun; None when there is nothing to start now."""
        segment = self._begun() or self._again() or self._new()
        if segment is None and not self._out:
            segment = self._settle()
        if segment is not None:
            self.ledger.begin(segment)
            self._out.add(segment.trial)
            self._tell(segment.trial)
        return segment

    def ended(self, segment: Segment, reached: Reached) -> None:
        """Enter how a segment ended. What failed is handed out again as often as the settings allow one driver."""
        self._out.discard(segment.trial)
        if reached.state == SegmentState.FAILED:
            self._failed[segment.trial, segment.step] += 1
            if self._failed[segment.trial, segment.step] <= self.settings.failures:
                return  # it stays begun
        if reached.state == SegmentState.REACHED:
            last = segment.step == len(self.settings.rungs) - 1
            state = State.FINISHED if last else State.WAITING
        else:
            state = ENDS[reached.state]
        self.ledger.reach(segment, reached, state)
        self._tell(segment.trial)

    def _begun(self) -> Segment | None:
        """A segment that was begun and has no end: of a driver or a worker that died."""
        for segment in self.ledger.segments():
            if segment.state == SegmentState.BEGUN and segment.trial not in self._out:
                return segment
        return None

    def _again(self) -> Segment | None:
        """The next segment of a trial that waits."""
        trials, segments = self.ledger.trials(), self.ledger.segments()
        if self.settings.scheduler == "population":
            return self._next_generation(trials, segments)
        waiting = [trial.number for trial in trials if trial.state == State.WAITING]
        fresh = [number for number in waiting if not any(segment.trial == number for segment in segments)]
        number = fresh[0] if fresh else promotable(trials, segments, self.settings)
        return None if number is None else self._onward(self._trial(number))

    def _onward(self, trial: Trial, donor: Trial | None = None, values: Mapping[str, Value] | None = None) -> Segment:
        step = len(self._segments(trial.number))
        return Segment(
            trial.number,
            step,
            self.settings.rungs[step],
            dict(values or trial.values),
            donor.number if donor else None,
            donor.digest if donor else None,
        )

    def _new(self) -> Segment | None:
        """The first segment of a new trial, while there are any left."""
        trials = self.ledger.trials()
        if len(trials) >= self.settings.trials:
            return None
        number = len(trials)
        values = self.proposer.propose(number, trials)
        trial = self.ledger.propose(number, values, "paper" if number == 0 else "proposed")
        return self._onward(trial)

    def _next_generation(self, trials: Sequence[Trial], segments: Sequence[Segment]) -> Segment | None:
        """Of a population: once all are at the same rung, the worst copy the best, and all go on."""
        alive = [trial for trial in trials if not trial.state.ended]
        steps = {trial.number: sum(segment.trial == trial.number for segment in segments) for trial in alive}
        lowest = min(steps.values(), default=0)
        behind = [trial for trial in alive if steps[trial.number] == lowest]
        if lowest == 0:
            return self._onward(behind[0]) if behind else None
        whole = len(trials) == self.settings.trials and not any(trial.state == State.RUNNING for trial in behind)
        return self._of_generation(behind[0], trials, segments) if whole else None

    def _of_generation(self, trial: Trial, trials: Sequence[Trial], segments: Sequence[Segment]) -> Segment:
        """The trial's next segment. Who copies whom is decided by where all stood at the rung before it."""
        step = sum(segment.trial == trial.number for segment in segments)
        at_rung = {segment.trial: segment for segment in segments if segment.step == step - 1}
        stood = [
            replace(one, figures=at_rung[one.number].figures, digest=at_rung[one.number].digest, state=State.WAITING)
            for one in trials
            if one.number in at_rung and at_rung[one.number].state == SegmentState.REACHED
        ]
        copies = exploit(stood, self.settings, step, self.settings.objectives[0])
        if trial.number not in copies:
            return self._onward(trial)
        donor = next(one for one in stood if one.number == copies[trial.number])
        values = {segment.trial: segment.values for segment in segments if segment.step == step - 1}[donor.number]
        changed = explore(self.space, values, self.settings.seed, trial.number, step, self.mutable)
        return self._onward(trial, donor, changed)

    def _settle(self) -> Segment | None:
        """Nothing runs, nothing is new, no trial may go on: one must reach the budget, the others are stopped."""
        trials, segments = self.ledger.trials(), self.ledger.segments()
        number = last_resort(trials, segments, self.settings)
        if number is not None:
            return self._onward(self._trial(number))
        for trial in trials:
            if trial.state == State.WAITING:
                self.ledger.end(trial.number, State.STOPPED, f"others were better at {trial.kimg:g} kimg")
                self._tell(trial.number)
        return None

    def _trial(self, number: int) -> Trial:
        return self.ledger.trial(number)

    def _segments(self, number: int) -> list[Segment]:
        return [segment for segment in self.ledger.segments() if segment.trial == number]

    def _tell(self, number: int) -> None:
        trial = self._trial(number)
        self.proposer.tell(trial, self._segments(number))
        self.seen(trial)


def best(trials: Sequence[Trial], settings: CampaignSettings) -> list[Trial]:
    """The best of those that had the whole budget: one, or with several objectives those that none beats in all."""
    finished = [trial for trial in trials if trial.state == State.FINISHED]
    scored: list[tuple[Trial, tuple[float, ...]]] = []
    for trial in finished:
        values = _signed(trial, settings)
        if values is not None:
            scored.append((trial, values))
    if len(settings.objectives) == 1:
        return [min(scored, key=lambda item: (item[1], item[0].number))[0]] if scored else []
    return [trial for trial, values in scored if not any(_beats(theirs, values) for _, theirs in scored)]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """As good in everything, and better in something."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _signed(trial: Trial, settings: CampaignSettings) -> tuple[float, ...] | None:
    """Its objectives, all to be made small; None where one is missing or no number."""
    values = []
    for objective in settings.objectives:
        value = trial.figures.get(objective.figure)
        if value is None or value != value:
            return None
        values.append(value if objective.direction == "minimize" else -value)
    return tuple(values)
