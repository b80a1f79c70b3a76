"""ASHA's promotion rule: who may train on, and that one trial always has the whole budget."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from orchestration.campaigns.halving import last_resort, promotable
from orchestration.campaigns.ledger import Segment, SegmentState, State, Trial
from orchestration.campaigns.settings import CampaignSettings, Objective

FIGURE = "validation/fid/scenes-net"
ENDS = {SegmentState.DIVERGED: State.DIVERGED, SegmentState.FAILED: State.FAILED}


def halving(direction: Any = "minimize", **changes: Any) -> CampaignSettings:
    """Rungs at 1, 2, 4 and 8 kimg, one of two goes on, unless told otherwise."""
    objective = Objective(figure=FIGURE, direction=direction)
    return CampaignSettings(**{"trials": 8, "budget_kimg": 8, "grace_kimg": 1, "objectives": (objective,), **changes})


@dataclass
class Book:
    """A ledger in memory. `reach` trains a trial to its next rung."""

    settings: CampaignSettings
    trials: list[Trial] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    def new(self) -> int:
        self.trials.append(Trial(len(self.trials), {}, "proposed"))
        return len(self.trials) - 1

    def reach(self, number: int, figure: float | None, state: SegmentState = SegmentState.REACHED) -> None:
        step = self.step(number)
        figures = {} if figure is None else {FIGURE: figure}
        until = self.settings.rungs[step]
        self.segments.append(Segment(number, step, until, {}, state=state, figures=figures))
        last = step == len(self.settings.rungs) - 1
        end = ENDS.get(state, State.FINISHED if last else State.WAITING)
        self.trials[number] = replace(self.trials[number], state=end, kimg=until, figures=figures)

    def begin(self, number: int) -> None:
        step = self.step(number)
        self.segments.append(Segment(number, step, self.settings.rungs[step], {}))
        self.trials[number] = replace(self.trials[number], state=State.RUNNING)

    def step(self, number: int) -> int:
        return sum(segment.trial == number for segment in self.segments)

    def promotable(self) -> int | None:
        return promotable(self.trials, self.segments, self.settings)

    def last_resort(self) -> int | None:
        return last_resort(self.trials, self.segments, self.settings)


def book_of(*figures: float | None, settings: CampaignSettings | None = None) -> Book:
    """Trials that wait at the first rung with these figures."""
    book = Book(settings or halving())
    for figure in figures:
        book.reach(book.new(), figure)
    return book


class TestPromotable:
    def test_the_best_half_goes_on_best_first(self) -> None:
        book = book_of(4.0, 2.0, 3.0, 1.0)
        order = []
        while (number := book.promotable()) is not None:
            order.append(number)
            book.begin(number)
        assert order == [3, 1]

    def test_of_one_nobody(self) -> None:
        assert book_of(1.0).promotable() is None
        assert book_of().promotable() is None
        assert book_of(1.0, 2.0).promotable() == 0

    def test_a_figure_that_is_made_large(self) -> None:
        assert book_of(1.0, 2.0, settings=halving("maximize")).promotable() == 1

    def test_one_in_three(self) -> None:
        settings = halving(reduction=3)
        assert book_of(5.0, 4.0, settings=settings).promotable() is None
        assert book_of(5.0, 4.0, 6.0, settings=settings).promotable() == 1

    def test_the_highest_rung_comes_first(self) -> None:
        book = book_of(1.0, 2.0, 3.0, 4.0)
        book.reach(0, 9.0)
        book.reach(1, 8.0)
        # At the first rung nobody is left, at the second the better one.
        assert book.promotable() == 1
        book.reach(book.new(), 0.1)
        book.reach(book.new(), 0.2)
        assert book.promotable() == 1
        book.begin(1)
        assert book.promotable() == 4

    def test_ties_go_to_the_lower_number(self) -> None:
        assert book_of(1.0, 1.0, 1.0).promotable() == 0

    @pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf, None])
    @pytest.mark.parametrize("direction", ["minimize", "maximize"])
    def test_no_figure_is_the_worst_one(self, figure: float | None, direction: str) -> None:
        settings = halving(direction)
        assert book_of(figure, 5.0, settings=settings).promotable() == 1
        assert book_of(figure, figure, settings=settings).promotable() is None

    @pytest.mark.parametrize("state", ENDS)
    def test_one_that_broke_counts_where_it_was_going(self, state: SegmentState) -> None:
        book = book_of(5.0)
        book.reach(book.new(), 0.0, state)  # whatever its last figure was
        assert book.promotable() == 0
        book.begin(0)
        assert book.promotable() is None

    def test_one_that_broke_later_keeps_its_place_at_the_rung_before(self) -> None:
        book = book_of(1.0, 2.0)
        book.reach(0, None, SegmentState.DIVERGED)
        # It was the better half of two; the other one is not.
        assert book.promotable() is None

    def test_one_that_runs_has_not_reached_its_rung(self) -> None:
        book = book_of(1.0)
        book.begin(book.new())
        assert book.promotable() is None

    def test_one_that_was_stopped_does_not_go_on(self) -> None:
        book = book_of(1.0, 2.0)
        book.trials[0] = replace(book.trials[0], state=State.STOPPED)
        assert book.promotable() is None

    def test_overtaken_ones_are_not_called_back(self) -> None:
        """As in the paper: a later, better one goes on though the share is used up."""
        book = book_of(5.0, 6.0)
        book.begin(0)
        book.reach(book.new(), 1.0)
        book.reach(book.new(), 2.0)
        assert book.promotable() == 2
        book.begin(2)
        assert book.promotable() == 3

    def test_a_rung_that_was_written_a_little_beside(self) -> None:
        book = book_of(1.0, 2.0)
        book.segments = [replace(segment, until_kimg=1.0000001) for segment in book.segments]
        assert book.promotable() == 0


class TestLastResort:
    def test_the_best_at_the_highest_rung(self) -> None:
        book = book_of(1.0, 2.0, 3.0)
        book.reach(1, 9.0)
        assert book.last_resort() == 1

    def test_not_while_one_runs(self) -> None:
        book = book_of(1.0, 2.0)
        book.begin(book.new())
        assert book.last_resort() is None

    def test_not_when_one_had_the_whole_budget(self) -> None:
        book = book_of(1.0, 2.0)
        for _ in range(3):
            assert book.last_resort() == 0
            book.reach(0, 4.0)
        assert book.trials[0].state is State.FINISHED and book.last_resort() is None

    @pytest.mark.parametrize(("figure", "state"), [(None, SegmentState.REACHED), (1.0, SegmentState.DIVERGED)])
    def test_a_budget_without_a_figure_is_none(self, figure: float | None, state: SegmentState) -> None:
        book = book_of(1.0, 2.0)
        for _ in range(2):
            book.reach(0, 4.0)
        book.reach(0, figure, state)
        assert book.last_resort() == 1

    def test_nobody_is_left(self) -> None:
        assert book_of().last_resort() is None
        assert book_of(None, math.nan).last_resort() is None


@st.composite
def campaigns(draw: st.DrawFn) -> tuple[CampaignSettings, list[list[float | None]], list[int]]:
    """Settings; for each trial its figure at each rung, None where it diverges; which of what runs ends first."""
    rungs = draw(st.integers(1, 4))
    reduction = draw(st.integers(2, 4))
    trials = draw(st.integers(1, 12))
    settings = halving(
        draw(st.sampled_from(["minimize", "maximize"])),
        trials=trials,
        concurrent=draw(st.integers(1, 4)),
        reduction=reduction,
        grace_kimg=0.5,
        budget_kimg=0.5 * reduction ** (rungs - 1),
    )
    assert len(settings.rungs) == rungs
    figure = st.one_of(st.none(), st.floats(-5, 5), st.just(math.nan), st.integers(0, 2).map(float))
    curves = [[draw(figure) for _ in range(rungs)] for _ in range(trials)]
    return settings, curves, draw(st.lists(st.integers(0, 3), min_size=1, max_size=20))


@checked(deadline=None, max_examples=150)
@given(campaign=campaigns())
def test_a_whole_campaign(campaign: tuple[CampaignSettings, list[list[float | None]], list[int]]) -> None:
    """Each promotion is among the best 1/reduction of its rung at that moment, and one trial has the whole budget
    unless all break."""
    settings, curves, ends = campaign
    book, running, turn = Book(settings), list[int](), 0
    promoted: dict[int, list[int]] = {}

    def one_ends() -> None:
        nonlocal turn
        number = running.pop(ends[turn % len(ends)] % len(running))
        turn += 1
        figure = curves[number][book.step(number) - 1]
        book.segments = [segment for segment in book.segments if segment.state is not SegmentState.BEGUN] + [
            segment for segment in book.segments if segment.state is SegmentState.BEGUN and segment.trial != number
        ]
        book.reach(number, figure, SegmentState.DIVERGED if figure is None else SegmentState.REACHED)

    for _ in range(10_000):
        assert book.promotable() == book.promotable()
        if len(running) == settings.concurrent:
            one_ends()
        elif (number := book.promotable()) is not None:
            rung = book.step(number) - 1
            at_rung = [one for one in book.segments if one.step == rung and one.state is not SegmentState.BEGUN]
            sign = -1 if settings.objectives[0].direction == "maximize" else 1
            sound = [one for one in at_rung if math.isfinite(one.figures.get(FIGURE, math.nan))]
            place = sorted((sign * one.figures[FIGURE], one.trial) for one in sound)
            mine = next(index for index, (_, trial) in enumerate(place) if trial == number)
            assert mine < len(at_rung) // settings.reduction
            assert number not in promoted.setdefault(rung, [])
            promoted[rung].append(number)
            book.begin(number)
            running.append(number)
        elif len(book.trials) < settings.trials:
            number = book.new()
            book.begin(number)
            running.append(number)
        elif running:
            one_ends()
        elif (number := book.last_resort()) is not None:
            book.begin(number)
            running.append(number)
        else:
            break
    else:
        raise AssertionError("the campaign does not end")
    whole = [
        one
        for one in book.segments
        if one.until_kimg == settings.budget_kimg and math.isfinite(one.figures.get(FIGURE, math.nan))
        and one.state is SegmentState.REACHED
    ]  # fmt: skip
    waiting = [trial for trial in book.trials if trial.state is State.WAITING and trial.figures]
    sound_ones = [trial for trial in waiting if math.isfinite(trial.figures[FIGURE])]
    assert whole or not sound_ones


@checked(deadline=None, max_examples=80)
@given(
    figures=st.lists(st.one_of(st.none(), st.floats(-3, 3), st.just(math.nan)), max_size=20),
    reduction=st.integers(2, 5),
    order=st.randoms(use_true_random=False),
)
def test_when_all_are_there_no_more_than_the_share_goes_on(
    figures: list[float | None], reduction: int, order: Any
) -> None:
    settings = halving(reduction=reduction, budget_kimg=reduction, trials=max(1, len(figures)))
    book = book_of(*figures, settings=settings)
    chosen = []
    while True:
        # What is decided does not depend on how the rows are ordered.
        first = book.promotable()
        order.shuffle(book.segments)
        assert book.promotable() == first
        if first is None:
            break
        chosen.append(first)
        book.begin(first)
    sound = sorted((figure, number) for number, figure in enumerate(figures) if figure is not None and figure == figure)
    assert chosen == [number for _, number in sound[: len(figures) // reduction]]
