"""Stages that read regions: their keys, their order, regions of one's own, how parts are judged, and refusals."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from models.contract import Given
from models.detectors.contract import Detections
from models.detectors.yolov3 import YOLOv3
from models.encoders.regions import RegionSettings, open_region_net
from orchestration.config import parse_experiment
from orchestration.data.batches import CaptionedPictures, TrainingStream
from orchestration.data.objects import open_objects
from orchestration.data.regions import _open_worker, digest_regions, open_regions
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.matcher_views import open_captioner_view, open_matcher_view
from orchestration.evaluation.metric import Asked
from orchestration.evaluation.parts import PartJudge
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.prepared import Prepared, PreparedSplit
from orchestration.stages import is_finished
from tests.case_names import case_name
from tests.region_support import (
    CAPTIONER,
    COUNT,
    DAMSM,
    PART,
    PARTS,
    captioner,
    experiment,
    own_folder,
    prepare,
    write_own,
)
from tests.tiny import tiny_data
from tests.tiny_inputs import write_tiny_coco


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Shared: what one test had made, others find."""
    return Home(tmp_path_factory.mktemp("home"))


def find_here(maker: Callable[[], Callable[[range], dict[str, Any]]]) -> dict[str, Any]:
    """What a worker that is made here finds in the first pictures."""
    torch.set_num_threads(1)
    return maker()(range(20))


class TestStages:
    @pytest.fixture(scope="class")
    def prepared(self, home: Home) -> Prepared:
        return prepare(captioner(), home).everything()

    def test_the_stage_says_what_the_net_finds_in_the_centre(self, home: Home, prepared: Prepared) -> None:
        data = prepared.train.open()
        assert data.regions is not None
        net = open_region_net(prepared.given)
        items = np.array([3, 0])
        found = net(data.pixels(items).float() / 127.5 - 1)
        batch = data.regions.batch(items)
        assert batch.counts.min() > 0 and batch.counts.equal(found.counts)
        assert torch.allclose(batch.boxes, found.boxes, atol=1e-6)
        assert torch.allclose(batch.features, found.features, rtol=2**-10, atol=1e-3)
        assert data.regions.about.digest == net.digest and data.regions.about.feature_dim == 6
        assert prepared.given.regions == RegionSettings(count=COUNT)

    def test_regions_are_never_cut_and_objects_always(self, home: Home, prepared: Prepared) -> None:
        split = prepare(captioner(), home).below("detector").everything().train
        assert split.objects is not None
        boxes = open_objects(Path(split.objects))
        plain = prepared.train.open()
        data = CaptionedPictures(plain.pictures, plain.index, None, plain.tokens, boxes, plain.regions)
        stream, place = TrainingStream(data, seed=4), {name: row for row, name in enumerate(data.image_ids.tolist())}
        batch = stream.batch(0, 20)
        items = np.array([place[image_id] for image_id in batch.image_ids.tolist()])
        still = data.still(items, data.index.starts[items])
        assert batch.images is not None and still.images is not None and not batch.images.equal(still.images)
        assert batch.regions is not None and still.regions is not None and plain.regions is not None
        for name in ("boxes", "features", "scores", "counts"):
            assert getattr(batch.regions, name).equal(getattr(plain.regions.batch(items), name))
            assert getattr(still.regions, name).equal(getattr(batch.regions, name))
        assert batch.objects is not None and still.objects is not None
        assert still.objects.boxes.equal(boxes.take(items).boxes) and not still.objects.boxes.equal(batch.objects.boxes)
        assert stream.batch(0, 20).objects.boxes.equal(batch.objects.boxes)  # type: ignore[union-attr]

    def test_objects_follow_the_very_cut_of_the_pixels(self) -> None:
        """The same draws and flips, and none for the centre."""
        calls: list[tuple[NDArray[np.float64] | None, bool]] = []
        data = tiny_data()

        class Things:
            image_ids = data.image_ids

            def take(self, items: Any, draws: Any = None, flip: bool = False) -> Any:
                calls.append((draws, flip))
                return None

        drawn: list[tuple[NDArray[np.float64], bool]] = []
        pictured = CaptionedPictures(data.pictures, data.index, objects=Things())  # type: ignore[arg-type]
        pictured.drawn = lambda items, draws, flip: (  # type: ignore[method-assign]
            drawn.append((draws, flip)) or data.drawn(items, draws, flip)  # type: ignore[func-returns-value]
        )
        TrainingStream(pictured, 3, flip=True).batch(5, 4)
        pictured.still(np.arange(2), data.index.starts[:2])
        [(draws, flip), (none, unflipped)] = calls
        assert drawn[0][0] is draws and flip and drawn[0][1] and none is None and not unflipped

    def test_another_process_finds_the_same(self, home: Home, prepared: Prepared) -> None:
        """What Ray is handed crosses processes."""
        again = Given(folders=prepare(captioner(), home).below("captioner").parts, regions=prepared.given.regions)
        maker = partial(_open_worker, prepared.train.open, again, open_region_net(again).digest, "cpu")
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(find_here, maker).result(timeout=120)
        kept = open_regions(Path(str(prepared.train.regions)))
        for name in ("boxes", "features", "scores", "counts"):
            assert np.array_equal(found[name], getattr(kept, name))

    def test_it_crosses_processes_as_json(self, prepared: Prepared) -> None:
        again = Prepared.from_json(json.loads(json.dumps(prepared.to_json())))
        assert again == prepared and again.given == prepared.given
        assert prepared.train.regions is not None and prepared.train.objects is None

    def test_all_is_in_the_graph_each_after_what_it_reads(self, home: Home, prepared: Prepared) -> None:
        preparation = prepare(captioner(), home)
        stages = preparation.graph()
        names = [stage.folder_name for stage in stages]
        assert all(is_finished(home.stages / name) for name in names)
        keys = {stage.key: place for place, stage in enumerate(stages)}
        for place, stage in enumerate(stages):
            assert all(keys[value] < place for value in stage.inputs.values() if value in keys)
        of = {name: [stage for stage in stages if stage.name == name] for name in ("regions", "objects", "detector")}
        assert [len(found) for found in of.values()] == [2, 2, 1]
        assert all(stage.inputs["detector"] == of["detector"][0].key for stage in of["regions"])
        assert of["detector"][0].inputs["objects"] == of["objects"][0].key

    def test_the_memory_shares_the_captioners_regions(self, home: Home) -> None:
        preparation = prepare(captioner(), home)
        train_set = preparation.dataset("train")
        keys = [preparation.below(name).regions.stage(train_set).key for name in ("captioner", "memory")]  # type: ignore[union-attr]
        assert keys[0] == keys[1] == preparation.part_stage("memory").inputs["regions"]
        assert preparation.part_stage("memory").inputs["captioner"] == preparation.part_stage("captioner").key
        graph = preparation.below("memory").graph()
        assert [stage.settings["split"] for stage in graph if stage.name == "regions"] == [
            "train",
            "val",
        ]  # captioner's
        assert not any("training" in stage.settings for stage in [preparation.part_stage("memory")])

    @pytest.mark.parametrize(
        ("change", "anew"),
        [
            ({"regions.pooling": "max"}, {"regions", "captioner", "memory"}),
            ({"stages.detector.training.kimg": 0.064}, {"detector", "regions", "captioner", "memory"}),
            ({"stages.captioner.training.kimg": 0.064}, {"captioner", "memory"}),
            ({"stages.memory.model.top_k": 3}, {"memory"}),
            ({"training.kimg": 0.5}, set()),
            ({"words.min_count": 2}, {"vocabulary", "captioner", "memory"}),
        ],
        ids=case_name,
    )
    def test_what_a_change_makes_anew(self, home: Home, change: dict[str, Any], anew: set[str]) -> None:
        before, after = (self.keys(prepare(captioner(**changes), home)) for changes in ({}, change))
        assert {name.partition("-")[0] for name in after - before} == anew

    def keys(self, preparation: Preparation) -> set[str]:
        stages = [*preparation.graph(), preparation.part_stage("captioner"), preparation.part_stage("memory")]
        return {stage.folder_name for stage in stages}

    def test_a_published_detector_is_in_the_keys(self, home: Home, tmp_path: Path) -> None:
        chosen = [write_yolo(tmp_path / f"{seed}", seed) for seed in (0, 1)]
        width = open_region_net(Given(regions=RegionSettings.model_validate({"detector": chosen[0]}))).feature_dim
        widths = {"model.region_dim": width, "stages.captioner.model.region_dim": width}
        keys = []
        for detector in chosen:
            one = captioner(regions={"detector": detector}, **widths)
            preparation = prepare(one, home)
            preparation.check()
            assert preparation.needed == () and "detector" not in {stage.name for stage in preparation.graph()}
            keys.append({stage.name: stage.key for stage in preparation.graph()})
        assert keys[0].keys() == keys[1].keys() and keys[0]["regions"] != keys[1]["regions"]
        moved = Path(chosen[1]["weights"]).rename(tmp_path / "moved.safetensors")
        again = one.replace({"regions.detector": {**chosen[1], "weights": str(moved)}})
        assert {stage.name: stage.key for stage in prepare(again, home).graph()} == keys[1]

    def test_the_weights_are_not_there(self, home: Home, tmp_path: Path) -> None:
        missing = {"kind": "yolov3", "weights": str(tmp_path / "none")}
        with pytest.raises(RequestError, match=r"regions\.detector: no weights of a detector \(yolov3\) at .*none"):
            prepare(captioner(regions={"detector": missing}), home).everything()


def write_yolo(folder: Path, seed: int) -> dict[str, Any]:
    """A YOLOv3 of two channels with random weights."""
    folder.mkdir()
    weights, names = folder / "yolov3.safetensors", folder / "names"
    names.write_text("red\ngreen\n")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_file(YOLOv3(2, 2).state_dict(), weights)
    return {"kind": "yolov3", "weights": str(weights), "names": str(names), "side": 64, "width": 2}


class TestOwn:
    """Regions that a person brings."""

    def test_they_are_read_and_no_detector_is_trained(self, home: Home, tmp_path: Path) -> None:
        plain = prepare(captioner(), home)
        folder = own_folder(tmp_path / "own", plain)
        preparation = prepare(captioner(**{"regions.folder": str(folder)}), home)
        names = {stage.name for stage in preparation.graph()}
        assert names.isdisjoint({"detector", "regions", "objects"}) and preparation.needed == ()
        prepared = preparation.everything()
        assert prepared.train.regions == str(folder / "train") and prepared.parts == ()
        data = prepared.train.open()
        batch = TrainingStream(data, 0).batch(0, 4)
        assert batch.regions is not None and batch.regions.features.shape == (4, COUNT, 6)
        stage = preparation.part_stage("captioner")
        assert stage.inputs["regions"] == digest_regions(folder / "train")
        assert stage.key != plain.part_stage("captioner").key

    def test_a_changed_number_is_another_captioner(self, home: Home, tmp_path: Path) -> None:
        plain, keys = prepare(captioner(), home), []
        for seed in (0, 1):
            folder = own_folder(tmp_path / "own", plain, seed=seed)
            keys.append(prepare(captioner(**{"regions.folder": str(folder)}), home).part_stage("captioner").key)
        moved = (tmp_path / "own").rename(tmp_path / "moved")
        keys.append(prepare(captioner(**{"regions.folder": str(moved)}), home).part_stage("captioner").key)
        assert keys[0] != keys[1] == keys[2]

    def test_another_detector_looks_at_pictures(self, home: Home, tmp_path: Path) -> None:
        """Once the detector is trained its digest is known: the regions are to be of the same."""
        plain = prepare(experiment("cpgan_damsm", DAMSM, **{"model.text.mate": False}), home)
        folder = own_folder(tmp_path / "own", plain)
        own = prepare(plain.experiment.replace({"regions.folder": str(folder)}), home)
        with pytest.raises(
            RequestError, match=r"found by by hand with the digest by-hand, and the detector in use has"
        ):
            own.everything()
        digest = open_region_net(own.given).digest
        own_folder(tmp_path / "same", plain, about={"digest": digest})
        prepare(plain.experiment.replace({"regions.folder": str(tmp_path / "same")}), home).everything()

    def test_another_published_detector_is_refused_before_any_work(self, tmp_path: Path) -> None:
        detector = write_yolo(tmp_path / "yolo", 0)
        width = open_region_net(Given(regions=RegionSettings.model_validate({"detector": detector}))).feature_dim
        model = {**DAMSM, "region_dim": width, "text": {**DAMSM["text"], "mate": False}}  # type: ignore[dict-item]
        fresh = Home(tmp_path / "home")
        chosen = experiment("cpgan_damsm", model, regions={"detector": detector})
        folder = own_folder(tmp_path / "own", prepare(chosen, fresh), int(width))
        with pytest.raises(RequestError, match="use the same weights and settings for both"):
            prepare(chosen.replace({"regions.folder": str(folder)}), fresh).everything()
        assert not fresh.stages.exists()


class TestRefusals:
    """All of them come before any stage is made."""

    @pytest.fixture
    def fresh(self, tmp_path: Path) -> Iterator[Home]:
        home = Home(tmp_path / "home")
        yield home
        assert not home.stages.exists()

    @pytest.mark.parametrize("system", ["attention_captioner", "cpgan_damsm"])
    @pytest.mark.parametrize(
        ("spoil", "sentence"),
        [
            (lambda root: (root / "val").rename(root / "elsewhere"), r"regions\.folder: there is no folder .*val"),
            (lambda root: (root / "train" / "boxes.npy").unlink(), r"boxes\.npy is missing"),
            (lambda root: spoil_feature(root / "val"), r"val/features\.npy has for image \d+ a feature that is NaN"),
            (
                lambda root: write_own(root / "train", range(900, 920), 6),
                r"lacks 20 of the 20 images.*another image set",
            ),
            (
                lambda root: own_of(root, 5),
                r"region_dim is 6, but .*train gives 5 features a region: add --set stages\.",
            ),
        ],
        ids=["folder", "file", "nan", "images", "width"],
    )
    def test_regions_of_ones_own(
        self, fresh: Home, tmp_path: Path, system: str, spoil: Callable[[Path], object], sentence: str
    ) -> None:
        chosen = captioner() if system == "attention_captioner" else experiment(system, DAMSM)
        root = own_folder(tmp_path / "own", prepare(chosen, fresh))
        spoil(root)
        sentence = sentence.replace("stages\\.", "model") if system == "attention_captioner" else sentence
        with pytest.raises(RequestError, match=sentence):
            prepare(chosen.replace({"regions.folder": str(root)}), fresh).everything()

    def test_settings_for_other_regions(self, fresh: Home) -> None:
        wide = {"stages.captioner.model.region_dim": 9}
        with pytest.raises(
            RequestError, match=r"^stages\.captioner\.model\.region_dim is 9, but the detector gives 6 .*region_dim=6$"
        ):
            prepare(experiment("cpgan_damsm", DAMSM, **wide), fresh).everything()
        with pytest.raises(RequestError, match=r"^model\.region_dim is 7, but the detector gives 6"):
            prepare(
                experiment("cpgan_damsm", DAMSM, **{"model.region_dim": 7, "model.oaie": False}), fresh
            ).everything()
        trunk = {"trunk": {"name": "efficientnet-lite0", "weights": "random", "side": 32}}
        with pytest.raises(RequestError, match=r"the detector gives 112 features a region"):
            prepare(captioner(regions=trunk), fresh).everything()

    def test_a_detector_of_fewer_classes(self, fresh: Home) -> None:
        few = {"stages.detector.model.classes": 2}
        with pytest.raises(
            RequestError, match=r"stages\.detector\.model\.classes is 2, and the things .* are of 3: add"
        ):
            prepare(captioner(**few), fresh).everything()

    def test_data_without_boxes(self, fresh: Home, tmp_path: Path) -> None:
        coco = write_tiny_coco(tmp_path / "coco")
        with pytest.raises(RequestError, match=r"grid_detector needs boxes, which .* does not carry"):
            prepare(captioner(**{"data.source": f"coco:{coco}"}), fresh).everything()

    def test_pictures_without_captions_are_passed_over(self, fresh: Home) -> None:
        """Also where the detector, which reads none, is all that is trained."""
        part = prepare(captioner(), fresh).below("detector")
        whole = part.dataset("train")
        first = replace(whole.records[0], captions=None)
        bare = replace(whole, records=(first, *whole.records[1:]), complete=frozenset({"images"}))
        part.opened.clear()
        part.opened["train", frozenset()] = bare
        assert [record.image_id for record in part.dataset("train").records] == [
            record.image_id for record in whole.records[1:]
        ]

    def test_an_experiment_without_regions(self) -> None:
        values = captioner().model_dump(mode="json")
        with pytest.raises(RequestError, match="attention_captioner looks for salient boxes: say how under regions"):
            parse_experiment({**values, "regions": None})


def spoil_feature(folder: Path) -> None:
    features = np.load(folder / "features.npy")
    features[1, 0, 0] = np.nan
    np.save(folder / "features.npy", features)


def own_of(root: Path, width: int) -> None:
    for split in ("train", "val"):
        write_own(root / split, np.load(root / split / "image_ids.npy"), width)


class Sure:
    """A finder that gives what it was told, and notes which pictures it saw."""

    def __init__(self, told: list[Detections]) -> None:
        self.told, self.seen = told, list[Tensor]()

    def find(self, nets: Any, images: Tensor) -> list[Detections]:
        first = len(self.seen)
        self.seen += list(images)
        return self.told[first : first + len(images)]


class TestJudging:
    def judge(self, part: Any, split: PreparedSplit, samples: int = 16) -> PartJudge:
        told: Any = SimpleNamespace(trainable=part, system="part")
        return PartJudge(told, split, samples, 3)

    def test_a_finder_sees_every_picture_once(self, home: Home) -> None:
        split = prepare(captioner(), home).below("detector").everything().validation
        data = split.open()
        assert data.objects is not None and len(data) == 6
        truths = data.objects.take(np.arange(6))
        rows = zip(truths.boxes, truths.classes, truths.counts.tolist(), strict=True)
        told = [Detections(boxes[:count], torch.ones(count), classes[:count]) for boxes, classes, count in rows]
        perfect, late = Sure(told), Sure([*told[1:], *told[:1]])
        verdict = self.judge(perfect, split)({})
        assert verdict.protocol == "finding"
        assert verdict.figures["finding/recall@0.5"] == verdict.figures["finding/average-precision@0.5"] == 1
        images = data.still(np.arange(6), np.arange(6)).images
        assert images is not None and len(perfect.seen) == 6 and torch.stack(perfect.seen).equal(images)
        assert self.judge(late, split)({}).figures["finding/recall@0.5"] < 0.7

    def test_a_captioner_is_shown_regions(self, home: Home) -> None:
        preparation = prepare(captioner(), home)
        figures = json.loads((preparation.part("captioner") / "figures.json").read_text())
        assert "validation/naming/scenes/thing" in figures
        figures = json.loads((preparation.part("detector") / "figures.json").read_text())
        assert "validation/finding/recall@0.5" in figures

    def test_boxes_that_were_not_prepared(self, home: Home) -> None:
        split = prepare(captioner(), home).everything().validation
        with pytest.raises(RunError, match="no boxes were prepared for part: add objects to what it reads"):
            self.judge(Sure([]), split)

    def test_drawn_pictures_have_no_regions_to_describe(self, home: Home) -> None:
        folder = prepare(captioner(), home).part("captioner")
        with pytest.raises(RequestError, match="attention_captioner describes regions that were found in the data"):
            open_captioner_view(torch.device("cpu"), str(folder))

    def test_a_matcher_is_opened_with_what_it_was_built_on(self, home: Home) -> None:
        preparation = prepare(experiment("attention_captioner", CAPTIONER, stages=self.stages()), home)
        folder, below = preparation.part("damsm"), preparation.below("damsm")
        view = open_matcher_view(torch.device("cpu"), str(folder), given=below.built_on)
        texts = ["a red house", "a blue fish"]
        places = np.arange(2)
        found = view.look(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), Asked(places, places, places, places, texts))
        assert found["damsm/picture"].shape == found["damsm/caption"].shape == (2, 8)
        with pytest.raises(RequestError, match="memory.*was not given"):
            open_matcher_view(torch.device("cpu"), str(folder))

    def stages(self) -> Any:
        damsm = {"system": "cpgan_damsm", "model": DAMSM, "training": PART}
        return {**PARTS, "damsm": damsm}
