"""Which paused trial trains on: ASHA in its promotion form, as pure functions over the ledger.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2018, algorithm 2. A trial pauses at each
rung. Among all that reached a rung, the best 1/reduction may go on to the next one, as soon as that is known. As in the
paper, one that went on early may be overtaken by later ones, so more than that share can go on in the end.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestration.campaigns.ledger import Segment, SegmentState, State, Trial
from orchestration.campaigns.settings import CampaignSettings


@dataclass(frozen=True, slots=True)
class _Standing:
    """A trial at a rung. loss: lower is better, infinite where training broke or gave no figure."""

    trial: int
    loss: float


def promotable(trials: Sequence[Trial], segments: Sequence[Segment], settings: CampaignSettings) -> int | None:
    """The number of a waiting trial that may train on to its next rung; None where there is none now.

    The highest rung is looked at first, and the best there comes first; ties go to the lower number. A trial that
    diverged, collapsed or failed on its way to a rung, or has no figure there, counts among those that reached it, as
    the worst.
    """
    waiting = {trial.number for trial in trials if trial.state is State.WAITING}
    for rung, standings in _downwards(segments, settings):
        gone_on = {segment.trial for segment in segments if _rung(segment, settings) > rung}
        for standing in standings[: len(standings) // settings.reduction]:
            if standing.trial in waiting - gone_on and math.isfinite(standing.loss):
                return standing.trial
    return None


def last_resort(trials: Sequence[Trial], segments: Sequence[Segment], settings: CampaignSettings) -> int | None:
    """The waiting trial that trains on so that one has the whole budget: the best at the highest rung.

    To be asked when nothing is left to propose. None while a trial runs, when one has a figure at the whole budget, or
    when none waits that has one at all.
    """
    if any(trial.state is State.RUNNING for trial in trials):
        return None
    last = len(settings.rungs) - 1
    if any(_rung(segment, settings) == last and math.isfinite(_loss(segment, settings)) for segment in segments):
        return None
    waiting = {trial.number for trial in trials if trial.state is State.WAITING}
    for _, standings in _downwards(segments, settings):
        for standing in standings:
            if standing.trial in waiting and math.isfinite(standing.loss):
                return standing.trial
    return None


def _downwards(segments: Sequence[Segment], settings: CampaignSettings) -> Iterator[tuple[int, list[_Standing]]]:
    """Every rung below the last, highest first, with all that reached it, best first."""
    for rung in range(len(settings.rungs) - 2, -1, -1):
        standings = [
            _Standing(segment.trial, _loss(segment, settings))
            for segment in segments
            if _rung(segment, settings) == rung and segment.state is not SegmentState.BEGUN
        ]
        yield rung, sorted(standings, key=lambda standing: (standing.loss, standing.trial))


def _rung(segment: Segment, settings: CampaignSettings) -> int:
    """The rung that a segment leads to: the nearest."""
    return min(range(len(settings.rungs)), key=lambda index: abs(settings.rungs[index] - segment.until_kimg))


def _loss(segment: Segment, settings: CampaignSettings) -> float:
    return settings.objectives[0].loss(segment.figures) if segment.state is SegmentState.REACHED else math.inf
