"""`t2i evaluate`: the same figures however the work is divided, what is kept is not done again, constant generators."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Given
from orchestration.cli import run_cli
from orchestration.config import Experiment
from orchestration.data.batches import CaptionedPictures
from orchestration.errors import RequestError
from orchestration.evaluation import evaluate as module
from orchestration.evaluation import scenes_net
from orchestration.evaluation.evaluate import Evaluation, Request, judge_runs
from orchestration.evaluation.looking import Take, Untrained
from orchestration.evaluation.plans import Plan, every_caption, one_a_caption, real_images, repeats
from orchestration.evaluation.record import MetricRecord, by_figure, compare, from_json, noise_floor, to_json
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.readers import checkpoint_encoder
from orchestration.stages import begun_folder, read_records
from orchestration.tracking import Tracker
from orchestration.training.state import Checkpoint, Provenance, initial_state, open_checkpoint, save_checkpoint
from tests.evaluate_drill import SMALL_JUDGE, small_experiment
from tests.tiny_inputs import write_tiny_bert

CPU = torch.device("cpu")
SCENES = "scenes:size=32,things=3,colours=3,backgrounds=2,objects=1,train=96,val=16,test=96"
SAMPLES, KILLED_SAMPLES = 240, 230


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Easy scenes need a small judge."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL_JUDGE.items():
            patch.setattr(scenes_net, name, value)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def experiment(home: Home) -> Experiment:
    return small_experiment(home, SCENES)


@pytest.fixture(scope="module")
def checkpoint(home: Home, experiment: Experiment) -> Checkpoint:
    """Of the untrained net."""
    preparation = Preparation(experiment, home)
    provenance = Provenance(preparation.dataset("train").digest, preparation.encoder.digest)
    run = home.runs / experiment.run_name
    return open_checkpoint(save_checkpoint(initial_state(experiment, CPU), experiment, provenance, run / "checkpoints"))


def evaluation(home: Home, checkpoint: Checkpoint, request: Request) -> Evaluation:
    return Evaluation(checkpoint.experiment, home, request, checkpoint_encoder(checkpoint, home))


def values(records: list[MetricRecord]) -> dict[str, tuple[float, float, float]]:
    return {record.figure: (record.value, record.low, record.high) for record in records}


@pytest.fixture(scope="module")
def judged(home: Home, checkpoint: Checkpoint) -> list[MetricRecord]:
    return evaluation(home, checkpoint, Request(samples=SAMPLES)).checkpoint(checkpoint, "run")


class TestRecords:
    def test_a_record_says_what_was_judged_and_how(
        self, judged: list[MetricRecord], checkpoint: Checkpoint, experiment: Experiment
    ) -> None:
        fid = by_figure(judged)["fid/scenes-net"]
        assert (fid.real, fid.drawn) == (96, SAMPLES)
        assert fid.low < fid.value < fid.high
        assert set(fid.views) == {"scenes-net"}
        assert fid.seconds > 0
        assert fid.judged.checkpoint == checkpoint.digest
        assert fid.judged.data == SCENES
        assert fid.judged.split == "test"
        assert fid.judged.pictures == "xmcgan 32 centre"
        assert fid.judged.seed == experiment.evaluation.seed
        expected = {"fid", "kid", "precision", "recall", "density", "coverage", "accuracy", "duplicates"}
        assert {record.metric for record in judged} == expected

    def test_they_come_back_from_their_file(self, judged: list[MetricRecord]) -> None:
        assert from_json(to_json(judged), "file") == judged

    @pytest.mark.parametrize("content", [b"{}", b"nonsense", b'{"metric": 1}'])
    def test_what_is_no_record(self, content: bytes) -> None:
        with pytest.raises(RequestError, match="file, line 1, is no record"):
            from_json(content, "file")

    def test_a_record_of_another_form(self, judged: list[MetricRecord]) -> None:
        changed = to_json(judged[:1]).replace(b'"format":1', b'"format":9')
        with pytest.raises(RequestError, match="is of format 9"):
            from_json(changed, "file")

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"protocol": "inception-2015"}, "fid/scenes-net is not fid/inception-2015"),
            ({"views": {"scenes-net": "another"}}, "weights of scenes-net differ"),
            ({"real": 95}, "number of real pictures"),
            ({"drawn": 7}, "number of pictures drawn"),
        ],
    )
    def test_what_does_not_compare(self, judged: list[MetricRecord], changes: dict[str, Any], reason: str) -> None:
        import msgspec

        one = by_figure(judged)["fid/scenes-net"]
        with pytest.raises(RequestError, match=reason):
            compare(one, msgspec.structs.replace(one, **changes))

    def test_a_difference_within_the_noise_is_none(self, judged: list[MetricRecord]) -> None:
        import msgspec

        one = by_figure(judged)["fid/scenes-net"]
        half = (one.high - one.low) / 2
        near, far = (msgspec.structs.replace(one, value=one.value + step * half) for step in (1, 3))
        assert not compare(one, near).beyond_noise
        assert compare(one, far).beyond_noise
        assert not compare(one, far, noise=4 * half).beyond_noise


class TestPlans:
    def test_groups_are_never_divided(self, home: Home, checkpoint: Checkpoint) -> None:
        data = evaluation(home, checkpoint, Request(samples=16)).data
        plan = repeats(data.index, 30, 7, 0)
        assert plan.portion % 7 == 0 and len(plan) == 210
        assert np.array_equal(plan.groups, np.repeat(np.arange(30), 7))
        assert plan.seeds is not None and len(set(plan.seeds.tolist())) == 210

    def test_real_images_are_the_same_whatever_is_drawn(self, home: Home, checkpoint: Checkpoint) -> None:
        data = evaluation(home, checkpoint, Request(samples=16)).data
        few, all_of_them = real_images(data.index, 10), real_images(data.index, 5000)
        assert len(few) == 10 and len(set(few.items.tolist())) == 10
        assert np.array_equal(all_of_them.items, np.arange(96))
        assert len(every_caption(data.index)) == len(data.index.texts)

    def test_equal_plans_have_one_digest(self, home: Home, checkpoint: Checkpoint) -> None:
        data = evaluation(home, checkpoint, Request(samples=16)).data
        one, same, other = (one_a_caption(data.index, 40, seed) for seed in (3, 3, 4))
        assert one.digest == same.digest != other.digest


class TestKept:
    def test_a_second_evaluation_looks_at_nothing_again(
        self, home: Home, checkpoint: Checkpoint, judged: list[MetricRecord]
    ) -> None:
        before = len(read_records(home.stages))
        again = evaluation(home, checkpoint, Request(samples=SAMPLES)).checkpoint(checkpoint, "run")
        assert len(read_records(home.stages)) == before
        assert values(again) == values(judged)

    def test_other_noise_shares_the_real_pictures(
        self, home: Home, checkpoint: Checkpoint, judged: list[MetricRecord]
    ) -> None:
        before = len(read_records(home.stages))
        other = evaluation(home, checkpoint, Request(samples=SAMPLES, seed=77)).checkpoint(checkpoint, "run")
        assert {line["stage"] for line in read_records(home.stages)[before:]} == {"drawn"}
        assert by_figure(other)["fid/scenes-net"].value != by_figure(judged)["fid/scenes-net"].value
        floor = noise_floor([by_figure(records)["fid/scenes-net"] for records in (judged, other)])
        assert 0 < floor < by_figure(judged)["fid/scenes-net"].value

    def test_a_killed_evaluation_goes_on(self, home: Home, checkpoint: Checkpoint, tmp_path: Path) -> None:
        """SIGKILL in the middle of drawing; the blocks that were there are kept, and the figures are the same."""
        request, before = Request(samples=KILLED_SAMPLES), set(home.stages.glob("drawn-*"))
        calm = evaluation(home, checkpoint, request).checkpoint(checkpoint, "run")
        drawn = sorted(set(home.stages.glob("drawn-*")) - before)[0]
        kept = drawn.rename(tmp_path / drawn.name)
        command = [sys.executable, "-m", "tests.evaluate_drill", str(home.root), str(checkpoint.folder)]
        process = subprocess.Popen([*command, str(KILLED_SAMPLES)], env={**os.environ, "T2I_SLOW_DRAWING": "0.5"})
        working = begun_folder(drawn) / "blocks"
        deadline = time.time() + 120
        while time.time() < deadline and not (working.is_dir() and list(working.glob("block-*"))):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        begun = {path.name: path.stat().st_mtime_ns for path in working.glob("block-*")}
        assert begun and len(begun) < 3
        again = evaluation(home, checkpoint, request).checkpoint(checkpoint, "run")
        assert values(again) == values(calm)
        for name, written in begun.items():
            assert (drawn / "blocks" / name).stat().st_mtime_ns == written
        for file in (kept / "blocks").iterdir():
            assert (drawn / "blocks" / file.name).read_bytes() == file.read_bytes()


class Constant:
    """A generator that always draws the same."""

    def open(self, device: torch.device) -> Take:
        picture = torch.arange(3 * 32 * 32).reshape(3, 32, 32).remainder(251).to(torch.uint8)

        def take(data: CaptionedPictures, plan: Plan, places: NDArray[np.int64]) -> Tensor:
            return picture.expand(len(places), 3, 32, 32)

        return take


class TestWhatTheyDeserve:
    def test_a_constant_generator(self, home: Home, checkpoint: Checkpoint) -> None:
        judged = evaluation(home, checkpoint, Request(("duplicates", "coverage", "accuracy"), samples=100))
        found = by_figure(judged._judge(Constant(), "constant", "constant", 0))
        assert found["duplicates/rms-8"].value == 1
        assert found["duplicates/rms-8"].details["equal_to_another_captions"] == 1
        assert found["recall/scenes-net"].value == 0
        assert found["coverage/scenes-net"].value < 0.1
        for name in ("colour", "thing"):
            # What it shows is there as often as in a picture for another caption.
            assert found[f"accuracy/{name}"].value == found[f"accuracy/{name}"].details["mismatched"] < 0.8

    def test_real_pictures(self, home: Home, checkpoint: Checkpoint) -> None:
        """Judged as if they were drawn: no distance, and every object there."""
        found = by_figure(evaluation(home, checkpoint, Request(("fid", "kid", "accuracy"), samples=96)).real())
        assert abs(found["fid/scenes-net"].value) < 1e-3
        assert found["accuracy/thing"].value > 0.9

    def test_untrained_nets_are_named_so(self, home: Home, checkpoint: Checkpoint) -> None:
        """The checkpoint here is of the untrained net: its averages are the nets themselves."""
        request = Request(("kid",), samples=32)
        one, other = evaluation(home, checkpoint, request), evaluation(home, checkpoint, request)
        (untrained,), (trained,) = one.untrained(), other.checkpoint(checkpoint, "run")
        assert untrained.value == trained.value
        assert untrained.judged.checkpoint.startswith("untrained-") and untrained.judged.kimg == 0


class TestRequests:
    @pytest.mark.parametrize(
        ("request_", "sentence"),
        [
            (Request(("fud",)), "there is no metric 'fud'; near it: fid"),
            (Request(("fid/",)), "names no protocol after the slash"),
            (Request(("fid/inception",)), "no feature net is called 'inception'"),
            (Request(("fid/inception-2015",)), "inception-2015"),
            (Request(("fid/inception-2015",), weights={"inception-2015": "nowhere.pth"}), "nowhere.pth"),
            (Request(("soa",)), "captions that name|needs the detector's weights"),
            (Request(("soa/yolo",), weights={"yolov3": "x"}), "no detector is called 'yolo'"),
            (Request(("lpips/resnet",)), "LPIPS has no net 'resnet'"),
            (Request(("r_precision",)), "r_precision/dual"),
            (Request(("r_precision/dual",)), "--weights dual-encoder=FOLDER"),
            (Request(("captioning",)), "trains no captioner"),
            (Request(split="dev"), "has no split 'dev'"),
            (Request(source="coco:nowhere"), "nowhere"),
        ],
    )
    def test_nonsense_is_a_sentence_before_anything_is_drawn(
        self, home: Home, checkpoint: Checkpoint, request_: Request, sentence: str
    ) -> None:
        before = len(read_records(home.stages))
        with pytest.raises(RequestError, match=sentence):
            evaluation(home, checkpoint, replace(request_, samples=32)).checkpoint(checkpoint, "run")
        assert not [line for line in read_records(home.stages)[before:] if line["stage"] == "drawn"]

    def test_nets_that_draw_nan_are_refused(self, home: Home, checkpoint: Checkpoint) -> None:
        class Broken:
            def open(self, device: torch.device) -> Take:
                from orchestration.evaluation.looking import drawn_by

                return drawn_by(lambda text, seeds: torch.full((len(seeds), 3, 32, 32), float("nan")))

        with pytest.raises(RequestError, match="NaN"):
            evaluation(home, checkpoint, Request(("fid",), samples=16))._judge(Broken(), "broken", "broken", 0)


class TestCommand:
    def test_runs_side_by_side(
        self, home: Home, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = checkpoint.folder.parent.parent
        table = tmp_path / "table.md"
        command = ["evaluate", run.name, "--home", str(home.root), "--samples", "32", "--metrics", "fid,duplicates"]
        extra = ["--seeds", "2", "--untrained", "--real-row", "--workers", "1", "--out", str(table), "--json"]
        assert run_cli([*command, *extra]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert set(result["records"]) == {"real pictures", "untrained", run.name}
        assert len(result["records"][run.name]) == 4
        assert run.name in table.read_text() and "fid/scenes-net" in table.read_text()
        kept = list((run / "evaluations").glob("test-*.jsonl"))
        assert len(kept) == 2
        assert {record.metric for record in from_json(kept[0].read_bytes(), "kept")} == {"fid", "duplicates"}

    def test_mlflow_has_the_records(self, home: Home, checkpoint: Checkpoint) -> None:
        run = checkpoint.folder.parent.parent
        tracker = Tracker(home.root)
        judge_runs(home, tracker, [run.name], Request(("fid",), samples=32))
        (summary,) = tracker.run_summaries(checkpoint.experiment.system)
        assert "test/fid/scenes-net" in summary.metrics

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ([], "no run to judge"),
            (["nobody"], "no checkpoint in 'nobody'"),
            (["nobody", "--weights", "inception"], "write it as NAME=PATH"),
            (["nobody", "--out", "table.txt"], "neither .md nor .csv"),
            (["nobody", "--samples", "3"], "x>=16"),
        ],
    )
    def test_wrong_requests(
        self, home: Home, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run_cli(["evaluate", *arguments, "--home", str(home.root)]) == 2
        assert sentence in capsys.readouterr().err

    def test_the_metrics_are_explained(self, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_cli(["evaluate", "--metrics", "list", "--home", str(home.root)]) == 0
        told = capsys.readouterr().out
        assert "r_precision/1+99" in told and "inception-2015" in told

    def test_another_text_encoder_is_refused(
        self, home: Home, checkpoint: Checkpoint, experiment: Experiment, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = Path(experiment.text.name)
        kept = folder.rename(folder.with_name("kept"))
        try:
            write_tiny_bert(folder, seed=1)
            assert run_cli(["evaluate", str(checkpoint.folder), "--home", str(home.root), "--samples", "16"]) == 2
        finally:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
            kept.rename(folder)
        assert "trained with another text encoder" in capsys.readouterr().err


def test_the_untrained_source_crosses_processes(experiment: Experiment) -> None:
    source = Untrained(experiment, Given())
    assert source.experiment.identity == experiment.identity
    assert module.SAMPLES == 30_000
