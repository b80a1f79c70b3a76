"""Papers' tables run: what is planned, by what it is judged, how it is run, and what a wrong request says."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from orchestration.campaigns import reproduce as module
from orchestration.campaigns.reproduce import Options, Plan, check_ready, make_plan
from orchestration.campaigns.reproduce_report import Report, Run
from orchestration.campaigns.reproduce_scales import (
    SCALES,
    STAND_INS,
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
from orchestration.home import Home, exclusive
from orchestration.reproduce_commands import add_to
from orchestration.tracking import Tracker
from search_spaces.tables import Table, load_table, table_names
from tests.reproduce_support import MIRRORGAN, PAPER, SMALL, SMOKE, XMCGAN, made_report, record
from tests.tiny_inputs import TINY_DIM, write_tiny_bert, write_tiny_coco

PRESENT = [name for name in table_names() if why_not_now(load_table(name)) is None]


def refused(table: Table, scale: Scale, **options: Any) -> str:
    """What the request for a plan is told."""
    with pytest.raises(RequestError) as caught:
        make_plan(table, scale, Options(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
            seeds = {"training.seed": base.training.seed + unit.seed}
            if not base.learns:  # its parts are all that is trained
                trained = {part: stage.training.seed for part, stage in base.stages.items() if stage.training}
                seeds |= {f"stages.{part}.training.seed": seed + unit.seed for part, seed in trained.items()}
            elif not any(field.startswith("stages.") for field in table.rows[unit.row].changes):
                assert unit.experiment.stages == base.stages  # computed once for all rows and seeds
            assert base.replace({**table.rows[unit.row].changes, **seeds}) == unit.experiment

    def test_smoke_is_short_and_small(self) -> None:
        for name in PRESENT:
            for unit in make_plan(load_table(name), SMOKE).units:
                experiment = unit.experiment
                assert experiment.training.kimg <= 2 and "size=32" in experiment.data.source
                assert experiment.trainable.resolution(experiment.model) == 32
                assert all(part.training is None or part.training.kimg <= 4 for part in experiment.stages.values())

    def test_what_trains_nothing_itself_has_no_length(self) -> None:
        for scale in (SMOKE, SMALL):
            plan = make_plan(load_table("trecs_table2"), scale, Options(seeds=2))
            assert {unit.experiment.training.kimg for unit in plan.units} == {0}
            for unit in plan.units:
                seeds = {stage.training.seed for stage in unit.experiment.stages.values() if stage.training}
                assert seeds == {unit.seed}
            again = [unit.experiment for unit in plan.units if unit.row == "hmm_spade"]
            assert again[0].stage("spade").identity != again[1].stage("spade").identity
            # Of one seed, every part is trained once for all rows.
            for name in ("spade", "ccfpse", "dual_encoder", "bert_on_hmm", "bert_on_raw"):
                needed = [unit.experiment for unit in plan.units if name in unit.experiment.needed and not unit.seed]
                assert len({experiment.stage(name).identity for experiment in needed}) == 1
        lengths = {stage.training.kimg for stage in plan.units[0].experiment.stages.values() if stage.training}
        assert min(lengths) > 0

    def test_rows_of_trecs_ask_for_what_they_need(self) -> None:
        needed = {unit.row: unit.experiment.needed for unit in make_plan(load_table("trecs_table2"), SMOKE).units}
        assert needed == {
            "bert_raw_ccfpse": ("dual_encoder", "bert_on_raw", "ccfpse"),
            "hmm_spade": ("dual_encoder", "spade"),
            "hmm_ccfpse": ("dual_encoder", "ccfpse"),
            "bert_hmm_spade": ("dual_encoder", "bert_on_hmm", "spade"),
            "bert_hmm_ccfpse": ("dual_encoder", "bert_on_hmm", "ccfpse"),
        }
        plan = make_plan(load_table("trecs_table3"), SMOKE)
        assert plan.units[0].row == "true_masks" and plan.units[0].experiment.needed == ("spade",)
        # Recall is the dual encoder's, of no row.
        assert [measure.columns for measure in plan.measures] == [("inception_score",), ("fid",)]

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

    @pytest.mark.parametrize("changes", [{"to_come": True}, {"system": "dalle"}], ids=["to come", "not there"])
    def test_a_system_that_is_to_come(self, changes: dict[str, Any]) -> None:
        assert table_names() == PRESENT
        table = MIRRORGAN.model_copy(update=changes)
        told = refused(table, SMOKE)
        assert f"{table.label} needs the system {table.system}, which is to come" in told
        assert "search_spaces/tables/mirrorgan_table3.yaml" in told

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
            (
                SMOKE,
                {"assignments": ("training.kimg=-3",)},
                "training.kimg: input should be greater than or equal to 0",
            ),
            (SMOKE, {"assignments": ("training.kimg=0",)}, "training.kimg is 0, and mirrorgan is trained"),
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
    def test_the_list(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        later = MIRRORGAN.model_copy(update={"name": "dalle_table1", "system": "dalle", "to_come": True})
        known = {name: load_table(name) for name in table_names()} | {later.name: later}
        monkeypatch.setattr("search_spaces.tables.table_names", lambda: list(known))
        monkeypatch.setattr("search_spaces.tables.load_table", known.__getitem__)
        command("--list", "--json", "--home", str(tmp_path))
        captured = capsys.readouterr()
        found = json.loads(captured.out.splitlines()[-1])
        assert found["tables"].keys() == {name.replace("_", "-") for name in known}
        assert [label for label, table in found["tables"].items() if not table["runs_now"]] == ["dalle-table1"]
        assert found["scales"].keys() == SCALES.keys()
        assert "lambda_20 over lambda_10 over lambda_5 in" in captured.err and "dalle is to come" in captured.err

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ((), "no table to reproduce: name one, such as mirrorgan-table3"),
            (("mirrorgan-table9",), "no table 'mirrorgan-table9'; near it: mirrorgan-table3"),
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
