"""Which points a campaign tries: the same whatever was killed or moved."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st
from optuna.trial import TrialState

from orchestration.campaigns import proposals, study_storage
from orchestration.campaigns.ledger import State, Trial
from orchestration.campaigns.proposals import Proposer, grid_points
from orchestration.campaigns.settings import Objective
from orchestration.errors import RequestError
from search_spaces.space import Space, load_space
from tests.proposal_support import (
    FIGURE,
    FIRST,
    OTHER,
    SAMPLERS,
    SPACE,
    drawn,
    facts,
    finished,
    history,
    proposer,
    segment,
    study_in,
    told,
)
from tests.space_support import choice, number, space_of


class TestProposals:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_trial_0_is_the_first_point(self, tmp_path: Path, sampler: str) -> None:
        with proposer(tmp_path, told(sampler)) as one:
            assert one.propose(0, []) == FIRST
        # As far as its parameters exist.
        with proposer(tmp_path / "b", first={**FIRST, "mode": "a"}) as one:
            assert one.propose(0, []) == {"mode": "a", "steps": 2, "rate": 0.1}

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_points_are_points_of_the_space(self, tmp_path: Path, sampler: str) -> None:
        with proposer(tmp_path, told(sampler)) as one:
            for count in (1, 2, 5, 12, 30):
                point = one.propose(count, history(count))
                SPACE.check(point)
                assert list(point) == [label for label in SPACE.parameters if label in point]
                assert json.loads(json.dumps(point)) == point

    def test_the_same_ledger_gives_the_same_point_in_another_process(self, tmp_path: Path) -> None:
        """Whatever was asked before, whatever the storage, whatever order Python's sets have there."""
        code = (
            "import json, sys; from pathlib import Path; from tests.proposal_support import drawn\n"
            "print(json.dumps(drawn(Path(sys.argv[1]))))"
        )
        ran = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "-c", code, str(tmp_path / "there")],
            env={**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(ran.stdout) == drawn(tmp_path / "here", backwards=True)
        assert ran.stderr == ""

    @pytest.mark.parametrize("sampler", [*SAMPLERS, "grid"])
    def test_a_campaign_that_was_killed_proposes_what_its_twin_does(self, tmp_path: Path, sampler: str) -> None:
        """It is resumed four times, once with its storage lost."""
        settings, space, first = told(sampler, trials=16), SPACE, FIRST
        if sampler == "grid":
            space = space_of(mode=choice("a", "b", "c"), steps=number(1, 5, "int"))
            first, settings = {"mode": "a", "steps": 2}, told("grid", trials=15)

        def run(folder: Path, kills: Sequence[int]) -> list[Trial]:
            trials: list[Trial] = []
            for until in (*kills, settings.trials):
                with proposer(folder, settings, space, first) as one:
                    for trial in trials:
                        one.tell(trial, ())
                    while len(trials) < until:
                        values = one.propose(len(trials), trials)
                        one.propose(len(trials), trials)  # and killed before the ledger had it
                        trials.append(finished(len(trials), values, **{FIGURE: len(str(values)) % 7}))
                        one.tell(trials[-1], ())
                if until == 9:
                    (folder / study_storage.FILE).unlink()
            return trials

        twin, killed = run(tmp_path / "a", ()), run(tmp_path / "b", (1, 2, 9, 13))
        assert [trial.values for trial in killed] == [trial.values for trial in twin]
        assert facts(tmp_path / "a") == facts(tmp_path / "b")
        assert len({json.dumps(trial.values) for trial in twin}) == settings.trials

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_seeds_and_numbers_give_other_points(self, tmp_path: Path, sampler: str) -> None:
        points = []
        for seed in (0, 1):
            with proposer(tmp_path / str(seed), told(sampler, seed=seed)) as one:
                points += [one.propose(number, history(1)) for number in (1, 2, 3)]
        assert len({json.dumps(point) for point in points}) == 6

    @pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
    def test_it_learns(self, tmp_path: Path, sampler: str) -> None:
        """Its last points are far closer to the best one than those of chance."""
        space = space_of(a=number(0, 1), b=number(1e-4, 1, log=True))

        def last_ones(sampler: str, seed: int) -> float:
            settings, trials = told(sampler, trials=45, seed=seed), list[Trial]()
            with proposer(tmp_path / f"{sampler}{seed}", settings, space, {"a": 0.9, "b": 0.5}) as one:
                for index in range(45):
                    point: dict[str, Any] = one.propose(index, trials)
                    figure = abs(point["a"] - 0.3) + abs(math.log10(point["b"]) + 2) / 4
                    trials.append(finished(index, point, **{FIGURE: figure}))
            return sum(trial.figures[FIGURE] for trial in trials[-12:])

        assert sum(last_ones(sampler, seed) for seed in range(3)) < 0.6 * sum(
            last_ones("random", seed) for seed in range(3)
        )

    def test_a_figure_that_is_made_large(self, tmp_path: Path) -> None:
        space, trials = space_of(a=number(0, 1)), [finished(i, {"a": i / 19}, **{FIGURE: i / 19}) for i in range(20)]
        for direction, high in (("maximize", True), ("minimize", False)):
            objective = Objective(figure=FIGURE, direction=direction)  # type: ignore[arg-type]
            settings = told().model_copy(update={"objectives": (objective,)})
            with proposer(tmp_path / direction, settings, space, {"a": 0.0}) as one:
                drawn = [one.propose(number, trials)["a"] for number in range(20, 40)]
            assert (sum(value > 0.5 for value in drawn) > 14) == high  # type: ignore[operator, misc]

    @pytest.mark.parametrize("state", [State.DIVERGED, State.COLLAPSED])
    def test_where_training_broke_is_avoided(self, tmp_path: Path, state: State) -> None:
        """High values broke, whatever figure they had on the way; the others wait, and are all alike."""
        space = space_of(a=number(0, 1))
        trials = [Trial(i, {"a": i / 19}, "p", State.WAITING, kimg=1.0, figures={FIGURE: 5.0}) for i in range(20)]
        trials[12:] = [replace(trial, state=state, figures={FIGURE: 0.1}) for trial in trials[12:]]
        with proposer(tmp_path, told(), space, {"a": 0.0}) as one:
            drawn = [one.propose(number, trials)["a"] for number in range(20, 50)]
        assert sum(value < 0.6 for value in drawn) > 24  # type: ignore[operator, misc]

    def test_one_that_waits_at_a_rung_teaches(self, tmp_path: Path) -> None:
        space = space_of(a=number(0, 1))
        waiting = [Trial(i, {"a": i / 19}, "p", State.WAITING, kimg=1.0, figures={FIGURE: i / 19}) for i in range(20)]
        with proposer(tmp_path, told(), space, {"a": 0.0}) as one:
            drawn = [one.propose(number, waiting)["a"] for number in range(20, 50)]
        assert sum(value < 0.4 for value in drawn) > 22  # type: ignore[operator, misc]

    def test_what_was_tried_is_not_proposed_again_while_there_is_more(self, tmp_path: Path) -> None:
        space = space_of(mode=choice("a", "b", "c", "d"))
        for sampler in ("tpe", "random"):
            trials: list[Trial] = []
            with proposer(tmp_path / sampler, told(sampler), space, {"mode": "a"}) as one:
                for index in range(6):
                    trials.append(finished(index, one.propose(index, trials), **{FIGURE: 1.0}))
            assert {trial.values["mode"] for trial in trials[:4]} == {"a", "b", "c", "d"}

    def test_a_value_outside_a_range_that_changed_since_is_no_obstacle(self, tmp_path: Path) -> None:
        trials = [replace(trial, values={**trial.values, "rate": 7.0, "old": 1}) for trial in history(12)]
        for sampler in SAMPLERS:
            with proposer(tmp_path / sampler, told(sampler)) as one:
                SPACE.check(one.propose(12, trials))
                for trial in trials:
                    one.tell(trial, ())
            stored = study_in(tmp_path / sampler).trials
            assert len(stored) == 12 and all("rate" not in trial.params for trial in stored)

    def test_several_objectives(self, tmp_path: Path) -> None:
        settings = told(objectives=2)
        trials = [finished(i, {"a": i / 19}, **{FIGURE: abs(i / 19 - 0.5), OTHER: 1.0}) for i in range(20)]
        trials.append(finished(20, {"a": 0.9}, **{FIGURE: 0.0}))  # it lacks the other figure
        space = space_of(a=number(0, 1))
        with proposer(tmp_path, settings, space, {"a": 0.0}) as one:
            drawn = [one.propose(number, trials)["a"] for number in range(21, 41)]
            for trial in trials:
                one.tell(trial, [segment(trial.number, 0, 4.0, 1.0, values=trial.values)])
        assert sum(0.25 < value < 0.75 for value in drawn) > 13  # type: ignore[operator, misc]
        study = study_in(tmp_path)
        assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
        assert study.trials[3].values == [abs(3 / 19 - 0.5), 1.0] and study.trials[20].state == TrialState.FAIL
        assert study.best_trials

    @pytest.mark.parametrize(
        ("first", "says"),
        [
            ({**FIRST, "rate": 2.0}, "trial 0 does not fit: rate = 2.0 is outside its range (0.0001 to 1, log)"),
            ({**FIRST, "rat": 2.0}, "trial 0 does not fit: new documents no parameter 'rat'; near it: rate"),
            ({"mode": "a", "steps": 1}, "trial 0 does not fit: the point has no value for rate"),
        ],
    )
    def test_a_first_point_outside_the_space_is_refused(self, tmp_path: Path, first: Any, says: str) -> None:
        with pytest.raises(RequestError) as caught:
            Proposer(SPACE, told(), tmp_path, "camp", None, first)
        assert str(caught.value).startswith(says) and not list(tmp_path.iterdir())

    @pytest.mark.parametrize("system", ["xmcgan", "attngan", "mirrorgan"])
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_documented_spaces(self, tmp_path: Path, system: str, sampler: str) -> None:
        space = load_space(system)
        first = {label: known.documented for label, known in space.parameters.items()}
        trials: list[Trial] = []
        with proposer(tmp_path, told(sampler, trials=20), space, first) as one:  # type: ignore[arg-type]
            for index in range(8):
                point = one.propose(index, trials)
                space.check(point)
                trials.append(finished(index, point, **{FIGURE: float(index)}))
                one.tell(trials[-1], ())
        assert [trial.number for trial in study_in(tmp_path).trials] == list(range(8))

    @checked(deadline=None, max_examples=40)
    @given(
        known=st.one_of(
            st.tuples(st.just("float"), st.floats(1e-3, 5), st.floats(6, 1e3), st.booleans()),
            st.tuples(st.just("int"), st.integers(1, 5), st.integers(6, 40), st.booleans()),
        )
    )
    def test_history_is_told_in_the_ranges_that_points_are_drawn_from(self, known: Any) -> None:
        kind, low, high, log = known
        space = space_of(p=number(low, high, kind, log=log), q=choice(True, 3, "x"))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        trial = optuna.create_study().ask()
        space.suggest(trial)
        made = {label: proposals._distribution(known) for label, known in space.parameters.items()}
        assert trial.distributions == made


class TestCMA:
    def test_its_generations_are_read_from_the_ledger(self, tmp_path: Path) -> None:
        space = space_of(a=number(0, 1), b=number(0, 1))
        size = 6  # 4 + floor(3 ln 2)
        ring = [{"a": 0.5 + 0.2 * math.cos(i), "b": 0.5 + 0.2 * math.sin(i)} for i in range(size)]
        trials = [finished(0, {"a": 0.5, "b": 0.5}, **{FIGURE: 1.0})]
        trials += [finished(1 + i, point, **{FIGURE: point["a"]}) for i, point in enumerate(ring)]  # type: ignore[arg-type]
        with proposer(tmp_path, told("cmaes"), space, {"a": 0.5, "b": 0.5}) as one:

            def mean(trials: Sequence[Trial]) -> float:
                drawn = [one.propose(number, trials)["a"] for number in range(100, 160)]
                return sum(drawn) / 60  # type: ignore[arg-type]

            centred, led = mean(trials[:-1]), mean(trials)
            assert abs(centred - 0.5) < 0.06 and led < centred - 0.05
            # One that failed through no fault of its own is no result; one that broke is the worst.
            failed = [*trials[:3], replace(trials[3], state=State.FAILED), *trials[4:]]
            assert mean(failed) == pytest.approx(centred)
            lowest = min(range(1, 7), key=lambda index: trials[index].values["a"])  # type: ignore[arg-type, return-value]
            broken = [*trials]
            broken[lowest] = replace(trials[lowest], state=State.DIVERGED)
            assert mean(broken) > led + 0.02

    def test_further_trained_ones_are_better(self, tmp_path: Path) -> None:
        space = space_of(a=number(0, 1), b=number(0, 1))
        points = [{"a": 0.2 + 0.1 * i, "b": 0.5 + 0.02 * (-1) ** i} for i in range(6)]
        with proposer(tmp_path, told("cmaes"), space, {"a": 0.5, "b": 0.5}) as one:

            def mean(kimgs: Sequence[float]) -> float:
                trials = [finished(0, {"a": 0.5, "b": 0.5}, x=1.0)]
                trials += [
                    Trial(1 + i, point, "p", State.WAITING, kimg=kimg, figures={FIGURE: 10.0 - i})  # type: ignore[arg-type]
                    for i, (point, kimg) in enumerate(zip(points, kimgs, strict=True))
                ]
                drawn = [one.propose(number, trials)["a"] for number in range(100, 140)]
                return sum(drawn) / 40  # type: ignore[arg-type]

            assert mean([1.0] * 6) > 0.55 > 0.45 > mean([2.0, 2.0, 2.0, 1.0, 1.0, 1.0])

    @pytest.mark.parametrize(
        ("space", "objectives", "says"),
        [
            (
                space_of(mode=choice("a", "b"), steps=number(1, 3, "int")),
                1,
                "the sampler cmaes needs two ranges of numbers or more, and mode, steps have 1: use --sampler tpe, or",
            ),
            (space_of(mode=choice("a", "b")), 1, "needs two ranges of numbers or more, and mode have 0"),
            (SPACE, 2, "the sampler cmaes makes one figure small or large, not several: use --sampler tpe"),
        ],
    )  # fmt: skip
    def test_what_it_cannot_do_is_refused(self, tmp_path: Path, space: Space, objectives: int, says: str) -> None:
        first = {label: known.at(0) for label, known in space.parameters.items()}
        with pytest.raises(RequestError) as caught:
            Proposer(space, told("cmaes", objectives), tmp_path, "camp", None, first)
        assert says in str(caught.value)

    def test_without_its_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(proposals, "find_spec", lambda name: None)
        with pytest.raises(RequestError, match="needs the package cmaes: pip install cmaes, or use --sampler tpe"):
            Proposer(SPACE, told("cmaes"), tmp_path, "camp", None, FIRST)


class TestGrid:
    def test_ranges_get_as_many_values_as_fit(self) -> None:
        space = space_of(a=number(0, 1), mode=choice("x", "y"))
        points = grid_points(space, {"a": 0.25, "mode": "x"}, told("grid", trials=10))
        assert sorted({point["a"] for point in points}) == [0, 0.25, 0.5, 0.75, 1]
        assert len(points) == 9 and {"a": 0.25, "mode": "x"} not in points
        assert len(grid_points(space, {"a": 0.1, "mode": "x"}, told("grid", trials=11))) == 10

    def test_an_order_of_the_seed(self) -> None:
        space, first = space_of(steps=number(1, 9, "int")), {"steps": 9}
        orders = [grid_points(space, first, told("grid", trials=9, seed=seed)) for seed in (0, 0, 1)]
        assert orders[0] == orders[1] != orders[2]
        assert sorted(point["steps"] for point in orders[2]) == list(range(1, 9))

    def test_a_log_range(self) -> None:
        space = space_of(rate=number(1e-3, 1, log=True))
        points = grid_points(space, {"rate": 0.5}, told("grid", trials=5))
        assert sorted(point["rate"] for point in points) == pytest.approx([1e-3, 1e-2, 1e-1, 1])

    def test_what_does_not_exist_multiplies_nothing(self) -> None:
        space = space_of(deep=choice(1, 2, 3, mode="b"), mode=choice("a", "b"))
        points = grid_points(space, {"mode": "a"}, told("grid", trials=4))
        assert sorted(map(str, points)) == [str({"deep": value, "mode": "b"}) for value in (1, 2, 3)]

    def test_it_proposes_each_once(self, tmp_path: Path) -> None:
        space = space_of(mode=choice("a", "b", "c"), steps=number(1, 2, "int"))
        with proposer(tmp_path, told("grid", trials=6), space, {"mode": "b", "steps": 1}) as one:
            points = [one.propose(number, []) for number in range(6)]
        assert len({json.dumps(point) for point in points}) == 6 and points[0] == {"mode": "b", "steps": 1}

    def test_one_larger_than_the_campaign_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError) as caught:
            Proposer(SPACE, told("grid", trials=8), tmp_path, "camp", None, FIRST)
        assert str(caught.value) == (
            "a grid over deep, mode, steps, rate has 13 points or more with the first one, and the campaign 8 trials: "
            "give --trials 13, name fewer parameters, or list their values"
        )

    def test_one_far_larger(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(proposals, "COUNTED", 500)
        space = space_of(**{f"p{index}": number(0, 1) for index in range(10)})
        with pytest.raises(RequestError, match="has over 501 points or more"):
            grid_points(space, dict.fromkeys(space.parameters, 0.1), told("grid"))

    def test_one_smaller_than_the_campaign_is_refused(self) -> None:
        space = space_of(mode=choice("a", "b", "c"))
        assert len(grid_points(space, {"mode": "a"}, told("grid", trials=3))) == 2
        with pytest.raises(RequestError) as caught:
            grid_points(space, {"mode": "a"}, told("grid", trials=4))
        assert str(caught.value) == (
            "a grid over mode has 3 points with the first one for up to 4 trials: give --trials 3"
        )

    def test_one_trial_is_the_first_point_alone(self) -> None:
        assert grid_points(SPACE, FIRST, told("grid", trials=1)) == []
