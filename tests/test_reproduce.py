"""Papers' tables run: what is planned, by what it is judged, what becomes of a claim, and what a wrong request says."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.campaigns import reproduce as module
from orchestration.campaigns.reproduce import Options, Plan, check_ready, make_plan
from orchestration.campaigns.reproduce_claims import (
    HOLDS,
    NORMAL,
    NOT_JUDGED,
    REVERSED,
    STUDENT,
    WITHIN_NOISE,
    Cell,
    Noise,
    judge_claim,
)
from orchestration.campaigns.reproduce_report import WIDTH, Report, Run
from orchestration.campaigns.reproduce_scales import (
    SCALES,
    STAND_INS,
    Measure,
    Scale,
    base_experiments,
    find_scale,
    find_table,
    measures_of,
    scenes_recipe,
    why_not_now,
)
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.catalogue import FAMILIES
from orchestration.evaluation.record import Judged, MetricRecord
from orchestration.home import Home, exclusive
from orchestration.reproduce_commands import add_to
from orchestration.tracking import Tracker
from search_spaces.tables import Claim, Table, load_table, table_names
from tests.tiny_inputs import TINY_DIM, write_tiny_bert, write_tiny_coco

SMOKE, SMALL, PAPER = (SCALES[name] for name in ("smoke", "small", "paper"))
PRESENT = [name for name in table_names() if why_not_now(load_table(name)) is None]
MIRRORGAN, XMCGAN = load_table("mirrorgan_table3"), load_table("xmcgan_table4")
HIGH = Measure(("is",), "recipe", "is/scenes-net", "inception_score/openai/scenes-net", "higher", False)
LOW = Measure(("fid",), "recipe", "fid/scenes-net", "fid/scenes-net", "lower", False)
ALONE = Noise()


def record(value: float, half: float = 0.1, figure: str = "fid/scenes-net", **changes: Any) -> MetricRecord:
    """A record of one figure on scenes."""
    metric, _, protocol = figure.partition("/")
    values = {"system": "xmcgan", "data": "scenes", "split": "test", "pictures": "xmcgan 32 centre"} | changes
    judged = Judged(recipe="recipe", run="run", checkpoint="c", kimg=1.0, data_digest="d", seed=1234, **values)
    return MetricRecord(metric, protocol, value, value - half, value + half, 500, 500, 500, judged)


def cells(**values: float | Sequence[float]) -> dict[str, Cell]:
    """Cells by row, of one training or several."""
    several = {row: [value] if isinstance(value, float | int) else value for row, value in values.items()}
    return {row: Cell(tuple(record(value) for value in found)) for row, found in several.items()}


def claim(*order: str) -> Claim:
    """Rows from the worst to the best."""
    form: dict[str, Any] = {"monotone": order} if len(order) > 2 else {"worse": order[0], "better": order[1]}
    return Claim(columns=("fid",), source="section 1", **form)


def refused(table: Table, scale: Scale, **options: Any) -> str:
    """What the request for a plan is told."""
    with pytest.raises(RequestError) as caught:
        make_plan(table, scale, Options(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestClaims:
    def test_a_difference_beyond_the_noise(self) -> None:
        """Standard errors of 0.1 / 1.96 each: the noise is 1.96 times their root of squares, 0.141."""
        found = judge_claim(claim("a", "b"), HIGH, cells(a=1.0, b=1.15), ALONE)
        assert found.verdict == HOLDS and found.gain == pytest.approx(0.15)
        assert found.critical * found.error == pytest.approx(0.1 * math.sqrt(2))
        assert judge_claim(claim("a", "b"), HIGH, cells(a=1.0, b=1.13), ALONE).verdict == WITHIN_NOISE
        assert judge_claim(claim("a", "b"), HIGH, cells(a=1.0, b=0.85), ALONE).verdict == REVERSED
        lower = judge_claim(claim("a", "b"), LOW, cells(a=1.0, b=0.85), ALONE)
        assert lower.verdict == HOLDS and lower.gain == pytest.approx(0.15)

    def test_what_has_no_figure_is_not_judged(self) -> None:
        found = judge_claim(claim("a", "b"), HIGH, cells(a=1.0), ALONE)
        assert (found.verdict, found.reason) == (NOT_JUDGED, "b: no figure") and math.isnan(found.gain)
        assert judge_claim(claim("a", "b"), HIGH, cells(a=1.0, b=math.nan), ALONE).reason == "a figure is not finite"
        other = {"a": Cell((record(1.0),)), "b": Cell((record(2.0, split="val"),))}
        assert "the split differs" in judge_claim(claim("a", "b"), HIGH, other, ALONE).reason

    def test_rows_in_order(self) -> None:
        order = claim("a", "b", "c")
        assert judge_claim(order, HIGH, cells(a=1.0, b=2.0, c=3.0), ALONE).verdict == HOLDS
        # A step within the noise takes nothing away.
        assert judge_claim(order, HIGH, cells(a=1.0, b=0.95, c=3.0), ALONE).verdict == HOLDS
        back = judge_claim(order, HIGH, cells(a=1.0, b=4.0, c=3.0), ALONE)
        assert (back.verdict, back.worse, back.better) == (REVERSED, "b", "c") and back.gain == pytest.approx(-1)
        assert judge_claim(order, HIGH, cells(a=3.0, b=2.0, c=1.0), ALONE).verdict == REVERSED
        assert judge_claim(order, HIGH, cells(a=1.0, b=1.05, c=1.1), ALONE).verdict == WITHIN_NOISE
        assert judge_claim(order, HIGH, cells(a=1.0, b=math.nan, c=3.0), ALONE).verdict == NOT_JUDGED

    def test_trainings_make_the_noise(self) -> None:
        """Pooled over rows: deviations 1 and 3 of two trainings each are root 5, with two degrees of freedom."""
        found = cells(a=[1 - 0.5**0.5, 1 + 0.5**0.5], b=[5 - 3 * 0.5**0.5, 5 + 3 * 0.5**0.5])
        assert found["a"].spread == pytest.approx(1) and found["b"].mean.value == pytest.approx(5)
        noise = Noise.of(list(found.values()))
        assert noise.deviation == pytest.approx(math.sqrt(5)) and noise.freedom == 2 and noise.critical == 4.303
        verdict = judge_claim(claim("a", "b"), HIGH, found, noise)
        # Each mean is of two: root of 5 / 2 each, together root 5.
        assert verdict.error == pytest.approx(math.sqrt(5)) and verdict.gain == pytest.approx(4)
        assert verdict.verdict == WITHIN_NOISE
        assert judge_claim(claim("a", "b"), HIGH, found, ALONE).verdict == HOLDS

    def test_one_training_has_no_spread(self) -> None:
        assert cells(a=1.0)["a"].spread is None
        assert Noise.of(list(cells(a=1.0, b=2.0).values())) == ALONE and ALONE.critical == NORMAL

    @pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (5, 2.571), (30, 2.042), (31, NORMAL)])
    def test_students_quantiles(self, freedom: int, quantile: float) -> None:
        assert Noise(1.0, freedom).critical == quantile
        assert len(STUDENT) == 30 and list(STUDENT) == sorted(STUDENT, reverse=True)


VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
TRAININGS = st.lists(VALUES, min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(one=TRAININGS, other=TRAININGS, shift=VALUES, scale=st.floats(0.1, 10))
def test_a_claim_turned_round_is_reversed(one: list[float], other: list[float], shift: float, scale: float) -> None:
    """Turning rows round, or the direction of the figure, turns the verdict; where the scale begins does not matter."""
    turned = {HOLDS: REVERSED, REVERSED: HOLDS, WITHIN_NOISE: WITHIN_NOISE}
    found = cells(a=one, b=other)
    noise = Noise.of(list(found.values()))
    verdict = judge_claim(claim("a", "b"), HIGH, found, noise)
    assert judge_claim(claim("b", "a"), HIGH, found, noise).verdict == turned[verdict.verdict]
    assert judge_claim(claim("a", "b"), LOW, found, noise).verdict == turned[verdict.verdict]
    moved = cells(a=[value + shift for value in one], b=[value + shift for value in other])
    again = judge_claim(claim("a", "b"), HIGH, moved, Noise.of(list(moved.values())))
    assert again.gain == pytest.approx(verdict.gain, abs=1e-6)
    assert again.error == pytest.approx(verdict.error, abs=1e-6)
    # More noise never makes a difference out of none.
    louder = judge_claim(claim("a", "b"), HIGH, found, replace(noise, deviation=(noise.deviation + 1) * (1 + scale)))
    assert louder.verdict in (verdict.verdict, WITHIN_NOISE)


@settings(deadline=None, max_examples=150)
@given(values=st.lists(VALUES, min_size=3, max_size=5))
def test_rows_in_order_hold_only_without_a_step_back(values: list[float]) -> None:
    names = [chr(ord("a") + place) for place in range(len(values))]
    found = cells(**dict(zip(names, values, strict=True)))
    steps = [judge_claim(claim(*pair), HIGH, found, ALONE).verdict for pair in pairwise(names)]
    ends = judge_claim(claim(names[0], names[-1]), HIGH, found, ALONE).verdict
    verdict = judge_claim(claim(*names), HIGH, found, ALONE).verdict
    assert (verdict == REVERSED) == (ends == REVERSED or REVERSED in steps)
    assert verdict in (REVERSED, ends)


class TestPlans:
    @pytest.mark.parametrize("name", PRESENT)
    @pytest.mark.parametrize("scale", [SMOKE, SMALL], ids=lambda scale: scale.name)
    def test_rows_on_scenes(self, name: str, scale: Any) -> None:
        table = load_table(name)
        plan = make_plan(table, scale)
        assert len(plan.units) == len(table.rows) * scale.seeds
        assert len({unit.experiment.identity for unit in plan.units}) == len(plan.units)
        base = base_experiments(table, scale)[scenes_recipe(table.system)]
        for unit in plan.units:
            assert unit.experiment.data.source.startswith("scenes:") and unit.recipe == base.recipe
            assert unit.experiment.stages == base.stages  # computed once for all rows and seeds
            table_row = table.rows[unit.row]
            changed = base.replace({**table_row.changes, "training.seed": unit.experiment.training.seed})
            assert changed == unit.experiment

    def test_smoke_is_short_and_small(self) -> None:
        for name in PRESENT:
            for unit in make_plan(load_table(name), SMOKE).units:
                experiment = unit.experiment
                assert experiment.training.kimg <= 2 and "size=32" in experiment.data.source
                assert experiment.trainable.resolution(experiment.model) == 32
                assert all(part.training.kimg <= 4 for part in experiment.stages.values())

    def test_every_stage_before_a_row_is_shared(self) -> None:
        stages = {
            json.dumps(unit.experiment.model_dump(mode="json")["stages"]) for unit in make_plan(MIRRORGAN, SMALL).units
        }
        assert len(stages) == 1
        assert len({unit.experiment.reads_as for unit in make_plan(MIRRORGAN, SMALL).units}) == 1

    def test_seed_by_seed(self) -> None:
        plan = make_plan(XMCGAN, SMOKE, Options(seeds=2, rows=("s", "none")))
        assert [(unit.row, unit.seed) for unit in plan.units] == [("none", 0), ("s", 0), ("none", 1), ("s", 1)]
        assert [unit.experiment.training.seed for unit in plan.units] == [0, 0, 1, 1]
        shifted = make_plan(XMCGAN, SMOKE, Options(rows=("s", "none"), assignments=("training.batch_size=16",)))
        assert {unit.experiment.training.batch_size for unit in shifted.units} == {16}

    def test_the_papers_recipes_on_the_papers_data(self) -> None:
        plan = make_plan(MIRRORGAN, PAPER, Options(data=("cub:birds", "coco-2014:coco")))
        assert len(plan.units) == 10
        sources = {unit.recipe: unit.experiment.data.source for unit in plan.units}
        assert sources == {"mirrorgan_cub_paper": "cub:birds", "mirrorgan_coco14_paper": "coco-2014:coco"}
        assert [(m.recipe, m.request, m.figure) for m in plan.measures] == [
            ("mirrorgan_cub_paper", "is/cub/inception-cub", "inception_score/cub/inception-cub"),
            ("mirrorgan_coco14_paper", "is/openai/inception-2015", "inception_score/openai/inception-2015"),
            ("mirrorgan_cub_paper", "r_precision/1+99", "r_precision/1+99/top-1"),
            ("mirrorgan_coco14_paper", "r_precision/1+99", "r_precision/1+99/top-1"),
        ]
        assert not any(measure.stands_for for measure in plan.measures)
        one = make_plan(MIRRORGAN, PAPER, Options(data=("cub:birds",)))
        assert len(one.units) == 5 and {m.recipe for m in one.measures} == {"mirrorgan_cub_paper"}
        ablation = make_plan(XMCGAN, PAPER, Options(data=("coco-2014:coco",)))
        assert {unit.experiment.model.model_dump()["channels"] for unit in ablation.units} == {64}
        assert {unit.experiment.training.batch_size for unit in ablation.units} == {256}

    def test_an_unknown_protocol_is_judged_by_the_nearest(self) -> None:
        plan = make_plan(XMCGAN, PAPER, Options(data=("coco-2014:coco",)))
        assert [(m.request, m.figure) for m in plan.measures] == [
            ("is/xmcgan/inception-imagenet", "inception_score/xmcgan/inception-imagenet"),
            ("fid/inception-imagenet", "fid/inception-imagenet"),
            ("r_precision/dual/1+99", "r_precision/dual-*/1+99/top-1"),
            ("soa/yolov3", "soa_c/yolov3-*"),
            ("soa/yolov3", "soa_i/yolov3-*"),
        ]
        assert all(measure.nearest and measure.stands_for for measure in plan.measures)
        dual = record(0.5, figure="r_precision/dual-milan/1+99/top-1")
        assert plan.measures[2].record([record(1.0), dual]) is dual

    def test_stand_ins(self) -> None:
        found = measures_of(MIRRORGAN, SMOKE, ["mirrorgan_scenes"])
        assert [(m.columns, m.request) for m in found] == [
            (("inception_score_cub", "inception_score_coco"), "is/scenes-net"),
            (("r_precision_cub", "r_precision_coco"), "r_precision"),
        ]
        assert found[0].stands_for == ("inception_score/cub/inception-cub", "inception_score/openai/inception-2015")
        xmcgan = measures_of(XMCGAN, SMOKE, ["xmcgan_scenes32"])
        # XMC-GAN trains no encoder of its own that could find captions.
        assert [(m.columns, m.figure) for m in xmcgan] == [
            (("inception_score",), "inception_score/openai/scenes-net"),
            (("fid",), "fid/scenes-net"),
            (("r_precision",), "accuracy/colour"),
            (("soa_c", "soa_i"), "accuracy/thing"),
        ]
        assert [m.better for m in xmcgan] == ["higher", "lower", "higher", "higher"]

    def test_every_metric_of_the_tables_has_a_stand_in_and_a_request(self) -> None:
        for name in table_names():
            for column in load_table(name).columns.values():
                assert column.metric in STAND_INS or column.metric == "recall"
        for choices in STAND_INS.values():
            assert all(choice.request.partition("/")[0] in FAMILIES for choice in choices)


class TestRefusals:
    def test_an_unknown_table(self) -> None:
        with pytest.raises(RequestError, match=r"no table 'mirrorgan-table4'; near it: mirrorgan-table3, .*--list"):
            find_table("mirrorgan-table4")
        assert find_table("mirrorgan-table3") == find_table("mirrorgan_table3") == MIRRORGAN

    def test_an_unknown_scale(self) -> None:
        with pytest.raises(RequestError, match="no scale 'tiny': there are smoke, small, paper"):
            find_scale("tiny")
        assert find_scale("smoke") is SMOKE

    @pytest.mark.parametrize("name", sorted(set(table_names()) - set(PRESENT)))
    def test_a_system_that_is_to_come(self, name: str) -> None:
        table = load_table(name)
        told = refused(table, SMOKE)
        assert f"{table.label} needs the system {table.system}, which is to come" in told and f"{name}.yaml" in told

    @pytest.mark.parametrize(
        ("scale", "options", "sentence"),
        [
            (PAPER, {}, "--scale paper needs the paper's data: add --data cub:PATH and --data coco-2014:PATH"),
            (PAPER, {"data": ("coco:x",)}, "has no column on --data coco:x: give cub:PATH or coco-2014:PATH"),
            (PAPER, {"data": ("cub:x", "cub:y")}, "--data names cub twice: give it once"),
            (PAPER, {"data": ("nothing:x",)}, "nothing"),
            (SMOKE, {"data": ("cub:x",)}, "--data is for --scale paper: at --scale smoke rows are trained on scenes"),
            (SMOKE, {"weights": {"inception-2015": "x"}}, "--weights is for --scale paper"),
            (SMOKE, {"rows": ("lambda_7", "lambda_5")}, "has no row 'lambda_7'; near it: lambda_5"),
            (SMOKE, {"rows": ("lambda_5",)}, "one row is nothing to compare: name two or more of"),
            (
                SMOKE,
                {"assignments": ("model.stream_weight=3",)},
                "the rows of mirrorgan-table3 set model.stream_weight",
            ),
            (SMOKE, {"assignments": ("training.seed=3",)}, "set training.seed themselves: leave it out"),
            (SMOKE, {"assignments": ("data.source=scenes",)}, "the scale says what rows are trained on: use --data"),
            (SMOKE, {"assignments": ("training.kim=3",)}, "near it: training.kimg"),
            (SMOKE, {"assignments": ("training.kimg=-3",)}, "training.kimg: input should be greater than 0"),
        ],
    )
    def test_a_request_that_cannot_be_met(self, scale: Any, options: dict[str, Any], sentence: str) -> None:
        assert sentence in refused(MIRRORGAN, scale, **options)

    def test_data_that_is_not_there(self, tmp_path: Path) -> None:
        plan = make_plan(XMCGAN, PAPER, Options(data=(f"coco-2014:{tmp_path / 'none'}",), rows=("none", "s")))
        with pytest.raises(RequestError, match="none"):
            check_ready(plan, Home(tmp_path))

    def test_weights_of_a_late_row_are_missed_before_the_first(self, tmp_path: Path) -> None:
        plan = make_plan(XMCGAN, PAPER, Options(data=(f"coco-2014:{tmp_path / 'none'}",)))
        with pytest.raises(RequestError, match="vgg19 needs its ImageNet weights by path"):
            check_ready(plan, Home(tmp_path))
        scenes = make_plan(XMCGAN, replace(SMOKE, changes={}), Options(rows=("none", "vgg")))
        with pytest.raises(RequestError, match="resnet50 needs its ImageNet weights by path"):
            check_ready(scenes, Home(tmp_path))


class TestWeights:
    """At the paper's scale, on data in the published layout but tiny: what judging needs is asked for first."""

    @pytest.fixture(scope="class")
    def plan(self, tmp_path_factory: pytest.TempPathFactory) -> Plan:
        folder = tmp_path_factory.mktemp("papers")
        coco = write_tiny_coco(folder / "coco")
        for path in [*coco.glob("*2017"), *coco.glob("annotations/*2017.json")]:
            path.rename(path.with_name(path.name.replace("2017", "2014")))
        texts = (f"text.name={write_tiny_bert(folder / 'bert')}", f"model.text_dim={TINY_DIM}")
        options = Options((f"coco-2014:{coco}",), texts, ("none", "s"))
        return make_plan(XMCGAN, PAPER, options)

    @pytest.mark.parametrize(
        ("place", "weights", "sentence"),
        [
            (0, {}, "inception-imagenet needs its weights by path: --weights inception-imagenet=PATH"),
            (1, {}, "inception-imagenet needs its weights by path: --weights inception-imagenet=PATH"),
            (1, {"inception-imagenet": "nowhere.h5"}, "no weights of inception-imagenet at nowhere.h5"),
            (2, {}, "an independent dual encoder comes by its folder: add --weights dual-encoder=FOLDER"),
            (3, {}, "soa/yolov3 needs the detector's weights: add --weights yolov3=PATH"),
            (3, {"yolo": "x"}, "no weights are called 'yolo'; near it: yolov3"),
        ],
    )
    def test_missing(self, plan: Plan, tmp_path: Path, place: int, weights: dict[str, str], sentence: str) -> None:
        with pytest.raises(RequestError) as caught:
            check_ready(replace(plan, measures=plan.measures[place : place + 1], weights=weights), Home(tmp_path))
        assert sentence in str(caught.value) and not (tmp_path / "runs").exists()

    def test_present(self, plan: Plan, tmp_path: Path) -> None:
        """The net that is installed, in the place of Inception."""
        fid = replace(plan.measures[1], request="fid/efficientnet-lite0", figure="fid/efficientnet-lite0")
        check_ready(replace(plan, measures=(fid,)), Home(tmp_path))
        assert not (tmp_path / "runs").exists()


def made_report(values: Mapping[str, float | Sequence[float]], seeds: int = 1, **changes: Any) -> Report:
    """MirrorGAN's table at smoke scale with the same value in every figure of a row."""
    measures = measures_of(MIRRORGAN, SMOKE, ["mirrorgan_scenes"])
    found: dict[tuple[str, int], Cell] = {}
    runs = []
    for row, value in values.items():
        several = [value] if isinstance(value, float | int) else value
        runs += [Run(row, "mirrorgan_scenes", seed, f"run-{row}", "c") for seed in range(len(several))]
        for place, figure in enumerate(("inception_score/openai/scenes-net", "r_precision/1+99/top-1")):
            found[row, place] = Cell(tuple(record(one, 0.01, figure) for one in several))
    options: dict[str, Any] = {"rows": tuple(MIRRORGAN.rows), "shared": ("damsm", "stream")} | changes
    return Report(MIRRORGAN, SMOKE, tuple(measures), seeds=seeds, runs=tuple(runs), cells=found, **options)


RISING = dict(zip(MIRRORGAN.rows, (0.1, 0.3, 0.2, 0.205, 0.4), strict=True))


class TestReports:
    def test_numbers_beside_each_other(self) -> None:
        text = made_report(RISING).text()
        assert all(len(line) <= WIDTH for line in text.splitlines())
        assert "r_precision/1+99/top-1 ↑, in percent, the paper's metric on other data" in text
        assert "stand-in for inception_score/cub/inception-cub, inception_score/openai/inception-2015" in " ".join(
            text.split()
        )
        [ours, percent] = [line for line in text.splitlines() if line.startswith("MirrorGAN w/o GA, lambda = 20")]
        assert ours.split()[6:] == ["4.47", "±", "0.07", "25.99", "±", "0.41", "0.300", "[0.290,", "0.310]"]
        assert percent.split()[6:] == ["55.67", "73.28", "30.0", "[29.0,", "31.0]"]

    def test_claims_and_what_they_rest_on(self) -> None:
        report = made_report(RISING)
        assert [one.verdict.verdict for one in report.judgements] == [HOLDS] * 6
        assert report.counts == {HOLDS: 6, REVERSED: 0, WITHIN_NOISE: 0, NOT_JUDGED: 0}
        text = " ".join(report.text().split())
        assert "lambda_20 over lambda_10 over lambda_5" in text and "+20 ± 1.4" in text
        assert "How trainings of the same row differ is not in it" in text and "--seeds 3" in text
        assert "the paper's numbers are of cub and coco-2014, ours of scenes: they do not compare" in text
        assert "on the paper: Inception Score of the last row on CUB" in text

    def test_a_step_back_is_named(self) -> None:
        report = made_report({**RISING, "lambda_10": 0.6})
        assert "reversed (lambda_10 to lambda_20)" in report.text()
        assert report.counts[REVERSED] == 2

    def test_several_trainings(self) -> None:
        report = made_report({row: (value - 0.1, value + 0.1) for row, value in RISING.items()}, seeds=2)
        text = " ".join(report.text().split())
        assert "noise: 2 trainings a row, their spread pooled over rows" in text
        assert "damsm, stream and their seeds are shared by all" in text and "0.14 of 2" in text
        assert {one.verdict.critical for one in report.judgements} == {2.571}

    def test_a_row_that_failed(self) -> None:
        values = {row: value for row, value in RISING.items() if row != "lambda_20"}
        failed = Run("lambda_20", "mirrorgan_scenes", 0, "run", failure="it diverged")
        report = replace(made_report(values), runs=(*made_report(values).runs, failed))
        assert report.failures == [failed] and report.counts[NOT_JUDGED] == 4
        assert "lambda_20, seed 0: no figure: it diverged" in report.text() and "lambda_20: no figure" in report.text()

    def test_nothing_at_all(self) -> None:
        report = made_report({})
        assert report.counts[NOT_JUDGED] == 6 and "r_precision/1+*/top-1" in report.text()
        json.dumps(report.to_json(), allow_nan=False)

    def test_rows_that_were_left_out(self) -> None:
        report = made_report(RISING, rows=("lambda_5", "lambda_20"))
        assert "rows left out: without_global_lambda_0" in " ".join(report.text().split())
        assert report.counts[NOT_JUDGED] == 6

    def test_markdown_has_whole_tables(self, tmp_path: Path) -> None:
        made_report(RISING).write(tmp_path / "table.md")
        text = (tmp_path / "table.md").read_text()
        lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
        tables = [line.count(" | ") for line in lines]
        assert len(tables) == 2 * (1 + 5) + 1 + 6 and tables == [3] * len(tables)

    def test_csv_has_numbers_and_verdicts(self) -> None:
        lines = list(csv.DictReader(io.StringIO(made_report(RISING).csv())))
        kinds = [line["kind"] for line in lines]
        assert (kinds.count("number"), kinds.count("claim")) == (20, 6)
        [line] = [one for one in lines if one["row"] == "lambda_20" and one["column"] == "r_precision_cub"]
        assert (float(line["paper"]), float(line["value"]), line["paper_spread"]) == (0.5767, 0.4, "")
        assert {line["verdict"] for line in lines if line["kind"] == "claim"} == {HOLDS}

    def test_json(self) -> None:
        values = json.loads(json.dumps(made_report(RISING).to_json(), allow_nan=False))
        row = values["rows"]["lambda_20"]
        assert row["paper"]["inception_score_cub"] == {"value": 4.54, "spread": 0.17}
        assert row["ours"]["r_precision/1+99/top-1"]["value"] == 0.4 and row["changes"]["model.stream_weight"] == 20
        assert values["claims"][0]["rows"] == ["lambda_5", "lambda_10", "lambda_20"]
        assert values["claims"][0]["verdict"] == HOLDS and values["verdicts"][HOLDS] == 6

    def test_a_form_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"table\.pdf is neither \.md nor \.csv"):
            made_report(RISING).write(tmp_path / "table.pdf")
        with pytest.raises(RequestError, match="cannot be written"):
            made_report(RISING).write(tmp_path / "none" / "table.md")

    def test_two_data_sets_of_one_metric_are_told_apart(self) -> None:
        measures = measures_of(MIRRORGAN, PAPER, MIRRORGAN.recipes)
        ours = {("lambda_5", place): Cell((record(float(place), figure="r_precision/1+99/top-1"),)) for place in (2, 3)}
        report = Report(MIRRORGAN, PAPER, tuple(measures), tuple(MIRRORGAN.rows), 1, (), ours)
        found = report.to_json()["rows"]["lambda_5"]["ours"]
        assert found["r_precision/1+99/top-1 on cub"]["value"] == 2
        assert found["r_precision/1+99/top-1 on coco-2014"]["value"] == 3
        assert "r_precision/1+99/top-1 on cub ↑, in percent\n" in report.text()

    def test_at_the_papers_scale_it_says_what_compares(self) -> None:
        table, measures = XMCGAN, measures_of(XMCGAN, PAPER, ["xmcgan_coco14"])
        ours = record(20.0, figure="fid/inception-imagenet", data="coco-2014:x", split="val")
        report = Report(table, PAPER, tuple(measures), ("none", "s"), 1, (), {("s", 1): Cell((ours,))})
        text = " ".join(report.text().split())
        assert "fid/inception-imagenet ↓, nearest to fid (measured by the paper's own code in TensorFlow)" in text
        assert "fid/inception-imagenet does not compare with the paper's: measured by the paper's own code" in text


class TestRunning:
    """The order of work, with training and judging replaced."""

    @pytest.fixture
    def world(self, tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> "World":
        return World(Home(tmp_path / "home"), tracker, monkeypatch)

    def test_rows_are_trained_judged_and_found_again(self, world: "World") -> None:
        report = world.run("none", "s")
        assert [run.row for run in report.runs] == ["none", "s"] and not report.failures
        assert [line for line in world.said if "of 2" in line][1] == "2 of 2: S (xmcgan_scenes32)"
        assert world.judged == [run.run for run in report.runs]
        again = world.run("none", "s")
        assert world.judged == [run.run for run in report.runs] and again == report
        whole = json.loads((world.home.root / "reproductions/xmcgan-table4-smoke/reproduction.json").read_text())
        assert whole["rows"]["s"]["runs"][0]["run"] == report.runs[1].run
        # Other numbers of pictures are judged anew.
        world.run("none", "s", scale=replace(SMOKE, samples=64))
        assert len(world.judged) == 4

    def test_rows_stand_below_the_table_in_mlflow(self, world: "World") -> None:
        world.run("none", "s")
        [parent] = [one for one in world.tracker.run_summaries("xmcgan") if one.tags.get("t2i.reproduces")]
        assert (parent.status, parent.tags["t2i.reproduces"]) == ("FINISHED", "xmcgan-table4")
        assert world.parents == [parent.run_id] * 2
        assert "s/fid/scenes-net" in parent.metrics and "claims/holds" in parent.metrics

    def test_a_row_that_fails_stops_no_other(self, world: "World") -> None:
        world.failing = {"model.lambda_1": 0.0}
        report = world.run("none", "s")
        assert [bool(run.failure) for run in report.runs] == [True, False]
        assert any(line.strip() == "no figure: it diverged" for line in world.said)
        [parent] = world.tracker.run_summaries("xmcgan")
        assert parent.status == "FAILED" and "1 of 2 trainings" in parent.tags["t2i.reason"]
        world.failing = {}
        assert not world.run("none", "s").failures

    def test_pictures_that_cannot_be_judged_are_that_rows_alone(self, world: "World") -> None:
        world.unfit = True
        report = world.run("none", "s")
        assert [run.failure for run in report.runs] == ["pictures drawn hold NaN"] * 2

    def test_two_at_a_time_are_refused(self, world: "World") -> None:
        told = pytest.raises(RequestError, match="is being worked on by another process")
        with exclusive(world.home.root / "reproductions" / "xmcgan-table4-smoke"), told:
            world.run("none", "s")
        assert not world.judged


class World:
    """A home where training and judging take no time."""

    def __init__(self, home: Home, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.tracker = home, tracker
        self.said: list[str] = []
        self.judged: list[str] = []
        self.parents: list[str | None] = []
        self.failing: dict[str, float] = {}
        self.unfit = False
        monkeypatch.setattr(module, "train", self._train)
        monkeypatch.setattr(module, "judge_runs", self._judge)
        monkeypatch.setattr(module, "check_ready", lambda plan, home, progress: None)
        monkeypatch.setattr(module, "_ray_if_needed", lambda plan, home: nullcontext())

    def run(self, *rows: str, scale: Any = SMOKE) -> Report:
        options = Options(rows=rows)
        return module.reproduce(XMCGAN, scale, self.home, self.tracker, options, self.said.append)

    def _train(self, experiment: Any, home: Home, tracker: Any, progress: Any, parent: str | None) -> Any:
        if self.failing and experiment.model.lambda_1 == self.failing["model.lambda_1"]:
            raise RunError("it diverged")
        self.parents.append(parent)
        checkpoint = type("Checkpoint", (), {"digest": experiment.identity})
        return type("Finished", (), {"folder": home.runs / experiment.run_name, "checkpoint": checkpoint})

    def _judge(self, home: Home, tracker: Any, runs: Sequence[str], request: Any, progress: Any) -> Any:
        if self.unfit:
            raise RequestError("pictures drawn hold NaN")
        self.judged += [Path(run).name for run in runs]
        figures = ("fid/scenes-net", "inception_score/openai/scenes-net", "accuracy/colour", "accuracy/thing")
        return {run: [record(0.1 * len(self.judged), 0.01, figure) for figure in figures] for run in runs}


def command(*arguments: str) -> None:
    group = click.Group()
    add_to(group)
    group.main(["reproduce", *arguments], standalone_mode=False)


class TestCommand:
    def test_the_list(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command("--list", "--json", "--home", str(tmp_path))
        captured = capsys.readouterr()
        found = json.loads(captured.out.splitlines()[-1])
        assert found["tables"].keys() == {name.replace("_", "-") for name in table_names()}
        assert found["tables"]["mirrorgan-table3"]["runs_now"] and not found["tables"]["trecs-table2"]["runs_now"]
        assert found["scales"].keys() == SCALES.keys()
        assert "lambda_20 over lambda_10 over lambda_5 in" in captured.err and "trecs is to come" in captured.err

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ((), "no table to reproduce: name one, such as mirrorgan-table3"),
            (("mirrorgan-table9",), "no table 'mirrorgan-table9'; near it: mirrorgan-table3"),
            (("cpgan-figure6",), "cpgan-figure6 needs the system cpgan, which is to come"),
            (("xmcgan-table5", "--scale", "huge"), "no scale 'huge'"),
            (("xmcgan-table5", "--scale", "paper"), "--scale paper needs the paper's data: add --data coco-2014:PATH"),
            (("xmcgan-table5", "--out", "table.pdf"), "--out table.pdf is neither .md nor .csv"),
            (("xmcgan-table5", "--weights", "x"), "--weights 'x' is none: write it as NAME=PATH"),
            (("xmcgan-table5", "--workers", "3"), "cannot be divided among 3 workers"),
        ],
    )
    def test_a_wrong_request_is_a_sentence(self, arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
        with pytest.raises(RequestError) as caught:
            command(*arguments, "--home", str(tmp_path))
        assert sentence in str(caught.value) and not (tmp_path / "reproductions").exists()

    def test_a_row_without_a_figure_is_a_failure_with_a_result(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failed = Run("lambda_20", "mirrorgan_scenes", 0, "run", failure="it diverged")
        report = replace(made_report({"lambda_5": 0.1}), runs=(failed,))
        monkeypatch.setattr(module, "reproduce", lambda *arguments: report)
        with pytest.raises(RunError, match="1 of 1 trainings have no figure .*it diverged.*repeat the command"):
            command("mirrorgan-table3", "--json", "--out", str(tmp_path / "t.csv"), "--home", str(tmp_path))
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["table"] == "mirrorgan-table3"
        assert (tmp_path / "t.csv").is_file()


def test_a_plan_is_asked_once_for_each_figure() -> None:
    plan: Plan = make_plan(XMCGAN, SMOKE)
    assert plan.request("xmcgan_scenes32").metrics == ("is/scenes-net", "fid/scenes-net", "accuracy")
    assert plan.request("xmcgan_scenes32").samples == 500 and plan.folder == "xmcgan-table4-smoke"
