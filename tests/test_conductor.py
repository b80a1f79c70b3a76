"""The logic of campaigns without Ray: what runs next, what is resumed, and that a kill changes nothing."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.campaigns.conductor import Conductor, best
from orchestration.campaigns.ledger import Ledger, Reached, Segment, SegmentState, State, Trial
from orchestration.campaigns.settings import CampaignSettings, Objective
from search_spaces.space import Parameter, Space, Value

FIGURE = "validation/fid/scenes-net"
SPACE = Space(
    system="xmcgan",
    parameters={
        "tau": Parameter(
            field="model.tau", kind="float", low=0.01, high=1, log=True, paper=0.1, source="made", stage="gan"
        )
    },
    default=("tau",),
)


def asked(**changes: Any) -> CampaignSettings:
    values: dict[str, Any] = {
        "trials": 6,
        "concurrent": 1,
        "budget_kimg": 4,
        "grace_kimg": 1,
        "objectives": [Objective(figure=FIGURE)],
        **changes,
    }
    return CampaignSettings.model_validate(values)


class Proposer:
    """Proposes by number and by what the ledger says, as a seeded sampler does."""

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Value]:
        history = [(trial.number, trial.values, trial.figures) for trial in trials]
        digest = hashlib.sha256(json.dumps([number, history], sort_keys=True).encode()).digest()
        return {"tau": 0.01 + digest[0] / 300}

    def tell(self, trial: Trial, segments: Sequence[Segment]) -> None:
        pass


def train(segment: Segment, fate: Callable[[Segment], SegmentState] = lambda segment: SegmentState.REACHED) -> Reached:
    """What training would give: a figure of the values, the length and the donor."""
    state = fate(segment)
    digest = hashlib.sha256(f"{segment.values}{segment.until_kimg}{segment.donor_digest}".encode()).hexdigest()
    figures = {FIGURE: abs(float(segment.values["tau"]) - 0.3) * 100 / segment.until_kimg}
    if state != SegmentState.REACHED:
        return Reached(state, segment.until_kimg / 2, {}, None, None, reason=f"it {state}")
    return Reached(state, segment.until_kimg, figures, f"trials/trial-{segment.trial:04d}/checkpoints/x", digest)


class Killed(Exception):
    pass


def carry_out(
    folder: Path,
    wanted: CampaignSettings,
    fate: Callable[[Segment], SegmentState] = lambda segment: SegmentState.REACHED,
    kill_after: Sequence[int] = (),
) -> Ledger:
    """Run a campaign, `concurrent` at a time, the oldest ends first; the driver dies after so many events each time."""
    deaths = iter([*kill_after, None])
    ledger = Ledger.open(folder) if (folder / "ledger.db").exists() else Ledger.create(folder, {})
    while True:
        left = next(deaths)
        conductor = Conductor(ledger, wanted, SPACE, Proposer(), {"tau"})
        running: list[Segment] = []
        try:
            for event in range(10_000):
                if left is not None and event == left:
                    raise Killed
                segment = conductor.next() if len(running) < wanted.concurrent else None
                if segment is not None:
                    running.append(segment)
                elif running:
                    done = running.pop(0)
                    conductor.ended(done, train(done, fate))
                else:
                    break
        except Killed:
            ledger.close()
            ledger = Ledger.open(folder)
            continue
        assert conductor.done
        return ledger


def told(ledger: Ledger) -> list[dict[str, Any]]:
    """All but how often something was begun."""
    return [asdict(trial) for trial in ledger.trials()] + [
        {**asdict(segment), "attempts": 0} for segment in ledger.segments()
    ]


class TestHalving:
    def test_only_the_better_go_on_and_one_has_the_whole_budget(self, tmp_path: Path) -> None:
        ledger = carry_out(tmp_path, asked(trials=8))
        trials = ledger.trials()
        assert len(trials) == 8 and all(trial.state.ended for trial in trials)
        at = [sum(segment.step == step for segment in ledger.segments()) for step in range(3)]
        assert 8 == at[0] > at[1] > at[2] >= 1
        winner = best(trials, asked())[0]
        assert winner.state == State.FINISHED and winner.kimg == 4
        stopped = [trial for trial in trials if trial.state == State.STOPPED]
        assert stopped and all("others were better" in trial.reason for trial in stopped)
        assert trials[0].origin == "paper"

    def test_a_single_trial_goes_to_its_end(self, tmp_path: Path) -> None:
        (trial,) = carry_out(tmp_path, asked(trials=1)).trials()
        assert trial.state == State.FINISHED

    def test_what_diverges_ends_with_its_reason(self, tmp_path: Path) -> None:
        def fate(segment: Segment) -> SegmentState:
            return SegmentState.DIVERGED if segment.trial == 2 else SegmentState.REACHED

        ledger = carry_out(tmp_path, asked(), fate)
        trial = ledger.trial(2)
        assert trial.state == State.DIVERGED and "diverged" in trial.reason
        assert best(ledger.trials(), asked())[0].number != 2

    def test_what_fails_is_tried_again_as_often_as_asked(self, tmp_path: Path) -> None:
        begun: list[int] = []

        def fate(segment: Segment) -> SegmentState:
            begun.append(segment.trial)
            return SegmentState.FAILED if segment.trial == 1 else SegmentState.REACHED

        ledger = carry_out(tmp_path, asked(trials=3, failures=2), fate)
        assert begun.count(1) == 3
        assert ledger.trial(1).state == State.FAILED

    def test_a_driver_that_dies_is_no_failure_of_its_trials(self, tmp_path: Path) -> None:
        fates = iter([SegmentState.FAILED, SegmentState.FAILED])
        ledger = carry_out(
            tmp_path, asked(trials=1, failures=2), lambda _: next(fates, SegmentState.REACHED), kill_after=[1, 1, 1, 1]
        )
        assert ledger.trial(0).state == State.FINISHED
        assert ledger.segments()[0].attempts == 7

    def test_all_diverge(self, tmp_path: Path) -> None:
        ledger = carry_out(tmp_path, asked(), lambda segment: SegmentState.DIVERGED)
        assert best(ledger.trials(), asked()) == []


class TestPopulation:
    WANTED = asked(scheduler="population", trials=4, concurrent=2, quantile=0.25)

    def test_the_worst_copies_the_best_and_changes_its_values(self, tmp_path: Path) -> None:
        ledger = carry_out(tmp_path, self.WANTED)
        segments = ledger.segments()
        assert len(segments) == 16 and {segment.step for segment in segments} == {0, 1, 2, 3}
        copies = [segment for segment in segments if segment.donor is not None]
        assert len(copies) == 3
        for copy in copies:
            donor = next(one for one in segments if (one.trial, one.step) == (copy.donor, copy.step - 1))
            assert copy.donor_digest == donor.digest
            assert copy.values != donor.values
            rung = {one.trial: one.figures[FIGURE] for one in segments if one.step == copy.step - 1}
            assert rung[copy.trial] == max(rung.values()) and rung[donor.trial] == min(rung.values())
        assert all(trial.state == State.FINISHED for trial in ledger.trials())

    def test_no_generation_begins_before_all_are_there(self, tmp_path: Path) -> None:
        ledger = Ledger.create(tmp_path, {})
        conductor = Conductor(ledger, self.WANTED, SPACE, Proposer(), {"tau"})
        first, second = conductor.next(), conductor.next()
        assert first is not None and second is not None
        conductor.ended(first, train(first))
        third = conductor.next()
        assert third is not None and third.step == 0
        conductor.ended(second, train(second))
        conductor.ended(third, train(third))
        fourth = conductor.next()
        assert fourth is not None and fourth.step == 0
        assert conductor.next() is None
        conductor.ended(fourth, train(fourth))
        fifth = conductor.next()
        assert fifth is not None and fifth.step == 1


class TestKills:
    @settings(max_examples=12, deadline=None)
    @given(
        kills=st.lists(st.integers(1, 12), min_size=1, max_size=4),
        scheduler=st.sampled_from(["halving", "population", "none"]),
    )
    def test_a_driver_that_is_killed_ends_with_the_ledger_of_its_twin(
        self, tmp_path_factory: pytest.TempPathFactory, kills: list[int], scheduler: str
    ) -> None:
        wanted = asked(scheduler=scheduler, trials=4)
        calm = carry_out(tmp_path_factory.mktemp("calm"), wanted)
        disturbed = carry_out(tmp_path_factory.mktemp("disturbed"), wanted, kill_after=kills)
        assert told(disturbed) == told(calm)

    @settings(max_examples=8, deadline=None)
    @given(kills=st.lists(st.integers(1, 12), min_size=1, max_size=3), concurrent=st.integers(1, 4))
    def test_no_trial_is_lost_or_run_twice_however_many_run_at_a_time(
        self, tmp_path_factory: pytest.TempPathFactory, kills: list[int], concurrent: int
    ) -> None:
        ledger = carry_out(tmp_path_factory.mktemp("any"), asked(concurrent=concurrent), kill_after=kills)
        assert [trial.number for trial in ledger.trials()] == list(range(6))
        pairs = [(segment.trial, segment.step) for segment in ledger.segments()]
        assert len(pairs) == len(set(pairs))
        assert best(ledger.trials(), asked())[0].kimg == 4


class TestSettings:
    def test_rungs(self) -> None:
        assert asked(budget_kimg=8, grace_kimg=1).rungs == (1, 2, 4, 8)
        assert asked(budget_kimg=3, grace_kimg=1, reduction=3).rungs == (1, 3)
        assert asked(scheduler="none").rungs == (4,)
        assert asked(scheduler="population", grace_kimg=1).rungs == (1, 2, 3, 4)

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"grace_kimg": 5}, "grace 5 kimg"),
            ({"scheduler": "population", "trials": 1}, "two trials"),
            ({"objectives": [Objective(figure="a"), Objective(figure="b")]}, "--scheduler none"),
            ({"trials": 0}, "trials"),
        ],
    )
    def test_what_makes_no_sense(self, changes: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            asked(**changes)

    def test_a_front_of_two_objectives(self) -> None:
        wanted = asked(
            scheduler="none", objectives=[Objective(figure="a"), Objective(figure="b", direction="maximize")]
        )
        rows = [(1.0, 1.0), (2.0, 2.0), (3.0, 1.5), (float("nan"), 9.0)]
        trials = [
            Trial(number, {}, "proposed", State.FINISHED, figures={"a": a, "b": b})
            for number, (a, b) in enumerate(rows)
        ]
        assert [trial.number for trial in best(trials, wanted)] == [0, 1]
