"""Semantic object accuracy: the view, the metric, and real photographs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.detectors import Detections, DetectorSettings
from models.detectors.coco import NAMES
from orchestration.data.coco import read_coco
from orchestration.data.features import open_caption_index, write_caption_index
from orchestration.data.records import ImageRecord, Instance
from orchestration.errors import RequestError
from orchestration.evaluation.metric import Asked, Result, Seen
from orchestration.evaluation.soa import DetectedObjects, Soa, Truth, grid_iou, open_detected_objects, true_boxes
from orchestration.evaluation.soa_captions import Counts, captions_by_words, labels_plan

CAT, DOG, BED = (NAMES.index(name) for name in ("cat", "dog", "bed"))


def asked_for(labels: list[int], images: list[int] | None = None, first: int = 0) -> Asked:
    places = np.arange(first, first + len(labels))
    ids = places if images is None else np.array(images)
    return Asked(places, ids, ids, np.array(labels, np.int64), [""] * len(labels))


def seen(asked: Asked, *found: set[int]) -> Seen:
    present = np.zeros((len(found), len(NAMES)), np.bool_)
    for row, labels in zip(present, found, strict=True):
        row[list(labels)] = True
    return Seen(asked, {"objects-d/present": present})


def results(metric: Soa) -> dict[str, Result]:
    return {result.name: result for result in metric.compute()}


def part(portion: Seen, rows: np.ndarray) -> Seen:
    asked = portion.asked
    places, images, classes, groups = asked.places, asked.image_ids, asked.class_ids, asked.groups
    texts = [asked.texts[row] for row in rows]
    arrays = {name: array[rows] for name, array in portion.arrays.items()}
    return Seen(Asked(places[rows], images[rows], classes[rows], groups[rows], texts), arrays)


class FakeDetector:
    """Finds in a picture the class that its first pixel's red says, twice; nothing where red is 255."""

    name, digest = "fake", "d1"

    def __init__(self, names: tuple[str, ...] = NAMES) -> None:
        self.names = names

    def detect(self, pictures: Tensor) -> list[Detections]:
        return [self.one(int(picture[0, 0, 0])) for picture in pictures]

    def one(self, label: int) -> Detections:
        count = 0 if label == 255 else 2
        boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
        return Detections(boxes[:count], torch.tensor([0.9, 0.8])[:count], torch.full((count,), label))


def pictures_of(*reds: int) -> Tensor:
    return torch.tensor(reds, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)


class TestView:
    def test_labels_present(self) -> None:
        view = DetectedObjects(FakeDetector())
        assert (view.name, view.digest) == ("objects-fake", "d1")
        arrays = view.look(pictures_of(CAT, 255, DOG), asked_for([CAT] * 3))
        assert list(arrays) == ["objects-fake/present"]
        present = arrays["objects-fake/present"]
        assert present.dtype == np.bool_
        assert [np.flatnonzero(row).tolist() for row in present] == [[CAT], [], [DOG]]

    def test_boxes_are_padded(self) -> None:
        for keep in (1, 3):
            boxes = DetectedObjects(FakeDetector(), keep).look(pictures_of(CAT, 255), asked_for([CAT] * 2))[
                "objects-fake/boxes"
            ]
            assert boxes.shape == (2, keep, 6)
            assert boxes.dtype == np.float32
            assert boxes[0, 0].tolist() == pytest.approx([0, 0, 0.5, 0.5, 0.9, CAT])
            assert boxes[1, :, 5].tolist() == [-1] * keep
        assert boxes[0, :, 5].tolist() == [CAT, CAT, -1]

    def test_a_detector_of_more_classes_in_another_order(self) -> None:
        names = ("street sign", *reversed(NAMES))
        arrays = DetectedObjects(FakeDetector(names)).look(pictures_of(0, 1), asked_for([CAT] * 2))
        assert [np.flatnonzero(row).tolist() for row in arrays["objects-fake/present"]] == [[], [79]]

    def test_a_detector_with_other_classes(self) -> None:
        with pytest.raises(RequestError, match=r"asks for COCO's 80 things: .* 79 of COCO's 80 are not among them"):
            DetectedObjects(FakeDetector(("cat", "flower")))

    def test_a_detector_without_weights(self, tmp_path: Path) -> None:
        settings = DetectorSettings(kind="onnx-fastestdet", weights=str(tmp_path / "none.onnx"))
        with pytest.raises(RequestError, match=r"object accuracy needs a detector: no weights .*none\.onnx"):
            open_detected_objects(settings, 0, torch.device("cpu"))

    def test_view_and_metric_together(self) -> None:
        truth: Truth = {0: (np.array([CAT]), np.array([[0.5, 0.5, 1.0, 1.0]])), 1: (np.array([DOG]), np.eye(1, 4))}
        metric, asked = Soa("fake", "words/hinz", truth), asked_for([CAT, CAT, DOG], [0, 1, 2])
        metric.update(Seen(asked, DetectedObjects(FakeDetector(), 5).look(pictures_of(CAT, CAT, 255), asked)))
        found = results(metric)
        assert found["soa_c"].estimate.value == pytest.approx(0.5)
        # Image 1 has no true cat and no picture a dog found: its label's overlap is 0.
        assert found["soa_c_iou"].details["iou/cat"] == 1.0
        assert found["soa_c_iou"].estimate.value == pytest.approx(0.5)
        assert found["soa_i_iou"].estimate.value == pytest.approx(2 / 3)


def test_true_boxes() -> None:
    def thing(category: str, crowd: bool = False) -> Instance:
        return Instance(category, 1, (2.0, 1.0, 4.0, 2.0), None, 8.0, crowd)

    def record(number: int, *things: Instance) -> ImageRecord:
        return ImageRecord(number, Path("x.png"), 8, 4, instances=things)

    found = true_boxes(
        [record(5, thing("tree"), thing("cat"), thing("dog", True)), record(6, thing("tree")), record(7)]
    )
    assert list(found) == [5]
    assert found[5][0].tolist() == [CAT]
    assert found[5][1].tolist() == [[0.25, 0.25, 0.75, 0.75]]


class TestGrid:
    def test_overlaps(self) -> None:
        boxes = np.array([[0, 0, 0.5, 0.5], [0.25, 0, 0.75, 0.5], [0.5, 0.5, 1, 1], [0.1, 0.1, 0.1, 0.1]])
        overlaps = grid_iou(boxes, boxes)
        assert overlaps[0].tolist() == pytest.approx([1, 1 / 3, 0, 1 / 128**2])
        assert overlaps.diagonal().tolist() == [1, 1, 1, 1]  # without area: one pixel
        assert np.array_equal(overlaps, overlaps.T)

    def test_sides_are_cut_by_themselves(self) -> None:
        # From 1.5 to 3.4 pixels: 1, and 1 wide.
        assert grid_iou(np.array([[1.5, 0, 3.4, 2]]) / 256, np.array([[1, 0, 2, 2]]) / 256).item() == 1
        # Over the left edge: 4 of its 8 pixels are in the picture.
        assert grid_iou(np.array([[-4, 0, 4, 4]]) / 256, np.array([[0, 0, 8, 4]]) / 256).item() == 0.5


class TestMetric:
    def test_mean_over_labels_and_over_pictures(self) -> None:
        metric = Soa("d", "words/hinz")
        metric.update(seen(asked_for([CAT, CAT, CAT, DOG]), {CAT}, {CAT, DOG}, {DOG}, {CAT}))
        found = results(metric)
        assert found["soa_c"].estimate.value == pytest.approx((2 / 3 + 0) / 2)
        assert found["soa_i"].estimate.value == pytest.approx(2 / 4)
        assert set(found) == {"soa_c", "soa_i"}
        assert found["soa_c"].figure == "soa_c/d/words/hinz"
        assert (found["soa_c"].drawn, found["soa_c"].real) == (4, 0)
        assert found["soa_c"].details == {
            "recall/cat": pytest.approx(2 / 3),
            "recall/dog": 0,
            "pictures/cat": 3,
            "pictures/dog": 1,
        }

    def test_labels_without_captions_are_noted(self) -> None:
        metric = Soa("d", "words/hinz")
        metric.update(seen(asked_for([label for label in range(80) if label != BED]), *([{1}] * 79)))
        found = results(metric)["soa_c"]
        assert found.notes[0] == "mean over 79 of 80 labels: no caption was drawn for bed"
        assert found.notes[1] == "79 labels have fewer than 5 images: the interval is too narrow"
        assert found.estimate.value == pytest.approx(1 / 79)

    def test_halves(self) -> None:
        metric = Soa("d", "words/hinz")
        # Label 79 has 2 pictures and is left out of the 40 with the fewest; of equals the first go there.
        labels = [*range(80), 79]
        metric.update(seen(asked_for(labels), *({label} if label < 40 or label == 79 else set() for label in labels)))
        found = results(metric)
        assert found["soa_c_bot40"].estimate.value == 1
        assert found["soa_c_top40"].estimate.value == pytest.approx(1 / 40)

    def test_portions_and_merges_do_not_matter(self) -> None:
        generator = np.random.default_rng(0)
        labels = generator.integers(0, 60, 300)
        whole = seen(
            asked_for(labels.tolist(), generator.integers(0, 90, 300).tolist()),
            *(set(generator.integers(0, 80, 40).tolist()) for _ in range(300)),
        )
        one = Soa("d", "words/hinz")
        one.update(whole)
        pieces = np.array_split(generator.permutation(300), 7)
        workers = [Soa("d", "words/hinz") for _ in range(3)]
        for turn, rows in enumerate(pieces):
            workers[turn % 3].update(part(whole, rows))
        workers[2].merge(workers[0])
        workers[2].merge(workers[1])
        # What comes again counts once.
        workers[2].update(part(whole, pieces[0]))
        assert workers[2].compute() == one.compute()

    def test_the_interval_covers_the_truth(self) -> None:
        """Of 60 experiments with known recalls about 95 % of intervals hold the truth, though 3 pictures of an image
        always agree."""
        recalls, covered = np.linspace(0.1, 0.9, 8), {"soa_c": 0, "soa_i": 0}
        for seed in range(60):
            generator = np.random.default_rng(seed)
            labels = np.repeat(np.arange(8), 40)
            hits = generator.random(len(labels)) < recalls[labels]
            thrice, of_hit = np.repeat(labels, 3), np.repeat(hits, 3)
            metric = Soa("d", "words/hinz")
            metric.update(
                seen(
                    asked_for(thrice.tolist(), np.repeat(np.arange(len(labels)), 3).tolist()),
                    *({label} if hit else set() for label, hit in zip(thrice.tolist(), of_hit, strict=True)),
                )
            )
            for name, result in results(metric).items():
                covered[name] += result.estimate.low <= recalls.mean() <= result.estimate.high
                assert result.estimate.count == len(labels)
        assert all(52 <= count <= 60 for count in covered.values()), covered

    def test_nothing_found_is_not_certain(self) -> None:
        for found, low, high in ((set[int](), 0.0, 0.2775), ({CAT}, 0.7225, 1.0)):
            metric = Soa("d", "words/hinz")
            # 10 images, each with 3 pictures.
            metric.update(seen(asked_for([CAT] * 30, [n // 3 for n in range(30)]), *([found] * 30)))
            for result in metric.compute():
                estimate = result.estimate
                assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-4)
                assert estimate.count == 10

    def test_no_pictures(self) -> None:
        metric = Soa("d", "words/hinz")
        with pytest.raises(RequestError, match="no picture was drawn for a label"):
            metric.compute()
        metric.update(seen(asked_for([])))
        with pytest.raises(RequestError, match="no picture was drawn for a label"):
            metric.compute()

    def test_labels_and_views_that_do_not_fit(self) -> None:
        metric = Soa("d", "words/hinz")
        for label in (-1, 80):
            with pytest.raises(ValueError, match=f"label {label} is none of COCO's 80"):
                metric.update(seen(asked_for([label]), set()))
        with pytest.raises(ValueError, match=r"present is \(1, 3\), not \(1, 80\)"):
            metric.update(Seen(asked_for([CAT]), {"objects-d/present": np.zeros((1, 3), np.bool_)}))

    @pytest.mark.parametrize(
        "other",
        [
            partial(Soa, "e", "words/hinz"),
            partial(Soa, "d", "published/hinz"),
            partial(Soa, "d", "words/hinz", seed=1),
            partial(Soa, "d", "words/hinz", {}),
        ],
    )
    def test_parts_of_another(self, other: Callable[[], Soa]) -> None:
        with pytest.raises(ValueError, match="is no part of"):
            Soa("d", "words/hinz").merge(other())
        Soa("d", "words/hinz", {}).merge(Soa("d", "words/hinz", {}))


def test_real_photographs(shared_data: Path, tmp_path: Path) -> None:
    """Photographs show what their captions name: far above the same with the captions of other photographs."""
    weights = shared_data / "weights" / "fastestdet_coco_352.onnx"
    if not weights.is_file() or not (shared_data / "coco-mini").is_dir():
        pytest.skip(f"no photographs or no detector in {shared_data}")
    dataset = read_coco(shared_data / "coco-mini", "val")
    write_caption_index(dataset, tmp_path)
    captions = captions_by_words(open_caption_index(tmp_path))
    plan = labels_plan(captions, Counts(images=1), seed=0)
    settings = DetectorSettings(kind="onnx-fastestdet", weights=str(weights))
    view = open_detected_objects(settings, 20, torch.device("cpu"))
    truth = true_boxes(dataset.records)
    images: dict[int, Tensor] = {}
    for record in dataset.records:
        with Image.open(record.file) as image:
            pixels = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))
        images[record.image_id] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    ids = sorted(images)
    looks = {image: view.look(images[image][None], asked_for([0], [image])) for image in ids}
    shift = dict(zip(ids, np.roll(ids, 7).tolist(), strict=True))
    figures = {}
    for what, shown in (("own", {image: image for image in ids}), ("shuffled", shift)):
        metric = Soa(view.detector.name, plan.protocol, truth)
        owners = captions.image_ids[plan.pairs].tolist()
        arrays = {name: np.concatenate([looks[shown[image]][name] for image in owners]) for name in looks[ids[0]]}
        metric.update(Seen(asked_for(plan.labels.tolist(), owners), arrays))
        figures[what] = results(metric)
        for result in figures[what].values():
            estimate = result.estimate
            print(f"{what}: {result.figure} {estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})")
    print(f"{len(plan)} pairs of {len(ids)} photographs and {80 - len(captions.without_captions)} labels")
    for name in ("soa_c", "soa_i", "soa_c_iou", "soa_i_iou"):
        own, shuffled = figures["own"][name].estimate, figures["shuffled"][name].estimate
        assert own.low > shuffled.high
        assert own.value > 3 * shuffled.value
