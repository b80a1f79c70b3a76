"""Which points a campaign tries: the same whatever was killed or moved, and Optuna's storage with the ledger."""

import json
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
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
from orchestration.campaigns.ledger import Segment, SegmentState, State, Trial
from orchestration.campaigns.proposals import Proposer, grid_points
from orchestration.campaigns.settings import CampaignSettings, Objective
from orchestration.errors import RequestError, RunError
from search_spaces.space import Space, Value, load_space
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
            "import json, sys; from pathlib import Path; from tests.test_proposals import drawn\n"
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


class TestStorage:
    def test_every_state(self, tmp_path: Path) -> None:
        waiting = Trial(0, FIRST, "paper", State.WAITING, kimg=2.0, figures={FIGURE: 7.0})
        rungs = [segment(0, 0, 1.0, 8.0), segment(0, 1, 2.0, 7.0)]
        whole = [*rungs, segment(0, 2, 4.0, 6.0)]
        with proposer(tmp_path) as one:
            one.tell(Trial(0, FIRST, "paper", State.RUNNING), [replace(rungs[0], state=SegmentState.BEGUN)])
            assert facts(tmp_path)[0][1] == "RUNNING"
            one.tell(waiting, rungs)
            assert facts(tmp_path)[0][1:5] == ("RUNNING", None, FIRST, {1000: 8.0, 2000: 7.0})
            one.tell(replace(waiting, state=State.FINISHED, kimg=4.0, figures={FIGURE: 6.0}), whole)
            one.tell(replace(waiting, number=1, state=State.STOPPED, reason="others were better"), rungs)
            for index, state in enumerate((State.DIVERGED, State.COLLAPSED, State.FAILED), 2):
                broken = segment(index, 2, 4.0, None, state=SegmentState.DIVERGED)
                one.tell(replace(waiting, number=index, state=state, reason="NaN"), [*rungs, broken])
            one.tell(replace(waiting, number=5, state=State.FINISHED, figures={FIGURE: math.nan}), rungs)
            one.tell(replace(waiting, number=6, state=State.FINISHED, figures={}), ())
        stored = facts(tmp_path)
        assert [row[1] for row in stored] == ["COMPLETE", "PRUNED", *["FAIL"] * 5]
        assert stored[0][2] == [6.0] and stored[0][4] == {1000: 8.0, 2000: 7.0, 4000: 6.0}
        # Of the segments that were told with it, none is trial 1's own.
        assert stored[1][4] == {} and stored[1][5]["reason"] == "others were better"
        assert stored[2][5] == {"state": "diverged", "kimg": 2.0, "origin": "paper", "reason": "NaN"}

    def test_pruned_ones_keep_their_curve(self, tmp_path: Path) -> None:
        stopped = Trial(0, FIRST, "paper", State.STOPPED, kimg=2.0, figures={FIGURE: 7.0})
        with proposer(tmp_path) as one:
            one.tell(stopped, [segment(0, 0, 1.0, 8.0), segment(0, 1, 2.0, math.nan), segment(1, 0, 1.0, 3.0)])
        [trial] = study_in(tmp_path).trials
        assert trial.state == TrialState.PRUNED and trial.intermediate_values == {1000: 8.0}

    def test_what_a_population_changed_is_kept_with_its_kimg(self, tmp_path: Path) -> None:
        changed = {**FIRST, "rate": 0.12}
        stretches = [
            segment(1, 0, 1.0, 8.0),
            segment(1, 1, 2.0, 7.0),
            segment(1, 2, 3.0, 6.0, values=changed, donor=0),
            segment(1, 3, 4.0, None, values=changed, state=SegmentState.BEGUN),
        ]
        with proposer(tmp_path, told(scheduler="population")) as one:
            one.tell(Trial(0, FIRST, "paper"), ())
            for count in range(1, 5):
                one.tell(Trial(1, stretches[count - 1].values, "proposed", State.RUNNING), stretches[:count])
                assert study_in(tmp_path).trials[1].params == FIRST
        assert facts(tmp_path)[1][5]["changes"] == [{"from_kimg": 2.0, "copies": 0, "values": changed}]
        assert study_in(tmp_path)._study_id == 1  # it was never written anew

    def test_it_is_left_alone_where_it_says_what_the_ledger_says(self, tmp_path: Path) -> None:
        trials = history(12)
        fill(tmp_path, trials)
        before, written = facts(tmp_path), study_in(tmp_path).trials
        fill(tmp_path, trials)
        assert facts(tmp_path) == before and len(before) == 12
        again = study_in(tmp_path).trials
        assert [t.datetime_start for t in again] == [t.datetime_start for t in written]

    @pytest.mark.parametrize(
        "change",
        [
            "update trial_values set value = value + 1",
            "update trial_intermediate_values set intermediate_value = intermediate_value + 1",
            "delete from trial_intermediate_values",
            "update trial_params set param_value = 3 where param_name = 'steps'",
            "update trial_params set distribution_json = replace(distribution_json, '6', '7')",
            "update trials set state = 'FAIL' where number = 0",
            "update trials set state = 'COMPLETE' where number = 5",
            "update trial_user_attributes set value_json = '5'",
            "insert into trial_user_attributes (trial_id, key, value_json) values (1, 'x', '1')",
            "update study_user_attributes set value_json = '\"other\"'",
        ],
    )
    def test_it_is_made_anew_where_it_differs_from_the_ledger(self, tmp_path: Path, change: str) -> None:
        trials = history(12)
        fill(tmp_path, trials)
        before = facts(tmp_path)
        with closing(sqlite3.connect(tmp_path / study_storage.FILE)) as database, database:
            assert database.execute(change).rowcount > 0
        fill(tmp_path, trials)
        assert facts(tmp_path) == before

    def test_what_it_has_beyond_the_ledger_is_forgotten(self, tmp_path: Path) -> None:
        trials = history(12)
        fill(tmp_path, trials)
        fill(tmp_path, trials[:7])
        assert len(facts(tmp_path)) == 7
        fill(tmp_path, trials)
        with proposer(tmp_path) as one:
            for trial in trials[:7]:
                one.tell(trial, ())
            one.propose(7, trials[:7])
            assert len(facts(tmp_path)) == 7
            one.tell(trials[7], ())
        fresh = facts(tmp_path)
        fill(tmp_path / "other", trials[:8])
        assert [row[:4] for row in fresh] == [row[:4] for row in facts(tmp_path / "other")]

    def test_numbers_wait_for_those_before_them(self, tmp_path: Path) -> None:
        trials = history(4)
        with proposer(tmp_path) as one:
            for index in (0, 3, 2):
                one.tell(trials[index], ())
            assert len(facts(tmp_path)) == 1
            one.tell(trials[1], ())
            assert [row[3] for row in facts(tmp_path)] == [trial.values for trial in trials]

    def test_any_database(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/shared {{x}}.db"
        for name in ("a", "b"):
            with proposer(tmp_path / name, storage=url, name=name) as one:
                one.tell(history(1)[0], ())
            assert not (tmp_path / name).exists()
        with closing(sqlite3.connect(tmp_path / "shared {x}.db")) as database:
            assert database.execute("select study_name from studies order by 1").fetchall() == [("a",), ("b",)]

    @pytest.mark.parametrize("name", ["with space", "per%20cent", "a?b=c", "sharp#", "{brace}", "grün"])
    def test_a_campaign_in_any_folder(self, tmp_path: Path, name: str) -> None:
        with proposer(tmp_path / name) as one:
            one.tell(history(1)[0], ())
        assert {path.name for path in (tmp_path / name).iterdir()} == {study_storage.FILE}
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_another_campaigns_study_is_not_touched(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'shared.db'}"
        with proposer(tmp_path / "a", storage=url) as one:
            one.tell(history(1)[0], ())
        with pytest.raises(RequestError) as caught:
            Proposer(SPACE, told(seed=5), tmp_path / "b", "camp", url, FIRST)
        assert str(caught.value) == (
            f"Optuna's storage {url} has another study 'camp': give the campaign another name, or delete that study "
            "there"
        )
        # A longer campaign, or one in another folder, is the same one.
        with proposer(tmp_path / "c", told(trials=99, budget_kimg=8), storage=url) as one:
            one.tell(history(1)[0], ())

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("nonsense", "Optuna's storage nonsense cannot be used (Could not parse"),
            ("unknown://x", "cannot be used (Can't load plugin: sqlalchemy.dialects:unknown): mend it, update optuna"),
            ("sqlite:////no/such/folder/x.db", "cannot be used (unable to open database file): mend it"),
            ("postgresql://user:secret@localhost:1/x", "postgresql://user:***@localhost:1/x cannot be used ("),
        ],
    )
    def test_one_that_cannot_be_used_is_a_sentence(self, tmp_path: Path, url: str, says: str) -> None:
        with pytest.raises(RequestError) as caught:
            Proposer(SPACE, told(), tmp_path, "camp", url, FIRST)
        assert says in str(caught.value) and "\n" not in str(caught.value) and "secret" not in str(caught.value)

    def test_one_of_a_newer_version(self, tmp_path: Path) -> None:
        fill(tmp_path, [])
        with closing(sqlite3.connect(tmp_path / study_storage.FILE)) as database, database:
            database.execute("update alembic_version set version_num = 'v99.0.0.a'")
        with pytest.raises(RequestError) as caught:
            Proposer(SPACE, told(), tmp_path, "camp", None, FIRST)
        assert "no longer compatible" in str(caught.value)
        assert str(caught.value).endswith("delete it, and it is made anew")

    def test_one_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / study_storage.FILE).write_bytes(b"no database at all" * 100)
        with pytest.raises(RequestError, match=r"cannot be used \(file is not a database\): delete it, and it is made"):
            Proposer(SPACE, told(), tmp_path, "camp", None, FIRST)

    def test_one_that_is_away_for_a_while_holds_nothing_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trials, clock = history(12), [0.0]
        monkeypatch.setattr(study_storage.time, "monotonic", lambda: clock[0])
        with proposer(tmp_path / "b") as other:
            other.tell(trials[0], ())
        with proposer(tmp_path / "a") as one:
            one.tell(trials[0], ())
            with closing(sqlite3.connect(tmp_path / "a" / study_storage.FILE)) as database:
                database.execute("alter table trials rename to away")
                database.commit()
                one.tell(trials[1], ())
                assert "no such table: trials" in one._storage.behind
                assert one.propose(5, trials[:5])
                database.execute("alter table away rename to trials")
                database.commit()
            one.tell(trials[2], ())
            assert one._storage.behind and len(facts(tmp_path / "a")) == 1  # it is left alone for a while
            clock[0] += study_storage.RETRY_S
            one.tell(trials[3], ())
            assert not one._storage.behind and len(facts(tmp_path / "a")) == 4

    def test_one_that_stays_away_is_said_at_the_end(self, tmp_path: Path) -> None:
        one = Proposer(SPACE, told(), tmp_path, "camp", None, FIRST)
        with closing(sqlite3.connect(tmp_path / study_storage.FILE)) as database:
            database.execute("drop table trials")
        one.tell(history(1)[0], ())
        with pytest.raises(RunError, match=r"lacks trials \(no such table: trials\): mend it and resume"):
            one.close()

    def test_nothing_is_said(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        optuna.logging.set_verbosity(optuna.logging.INFO)
        try:
            for sampler in SAMPLERS:
                with proposer(tmp_path / sampler, told(sampler)) as one:
                    one.propose(12, history(12))
                    one.tell(history(1)[0], ())
            assert optuna.logging.get_verbosity() == optuna.logging.INFO
            assert capfd.readouterr() == ("", "")
        finally:
            optuna.logging.set_verbosity(optuna.logging.WARNING)

    def test_importances_and_plots_read_it(self, tmp_path: Path) -> None:
        trials = [finished(i, {"mode": "a", "steps": 1 + i % 6, "rate": 10.0 ** -(i % 4)}) for i in range(16)]
        fill(tmp_path, trials)
        study = study_in(tmp_path)
        assert study.best_trial.number == min(trials, key=lambda trial: (trial.figures[FIGURE], trial.number)).number
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), params=["steps", "rate"]
        )
        assert found.keys() == {"steps", "rate"}


def fill(folder: Path, trials: Sequence[Trial]) -> None:
    """A campaign that is resumed and ends at once."""
    with proposer(folder) as one:
        for trial in trials:
            rungs = [segment(trial.number, 0, 1.0, trial.figures[FIGURE], values=trial.values)] if trial.figures else []
            one.tell(trial, rungs)
