"""Boxes and their suppression, class names, settings, and the detectors of other libraries."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from models.detectors import Detections, Detector, DetectorSettings, as_coco80, open_detector, to_coco80
from models.detectors.boxes import corners, greedy_nms, merge_by_objectness, pairwise_iou
from models.detectors.coco import IDS, INDEX_OF_ID, NAMES, coco_index
from models.detectors.onnx_fastestdet import decode
from models.encoders.image import WeightsMissing
from orchestration.data.sources import open_source

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


# Boxes


def iou_by_counting(first: Tensor, second: Tensor) -> float:
    """Share of whole pixels, each box from its first to its last pixel."""
    grids = []
    for box in (first, second):
        grid = np.zeros((40, 40), dtype=bool)
        x0, y0, x1, y1 = (int(number) for number in box)
        grid[y0 : y1 + 1, x0 : x1 + 1] = True
        grids.append(grid)
    return float((grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum())


whole_boxes = st.tuples(*[st.integers(0, 18)] * 4).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


@settings(deadline=None, max_examples=50)
@given(st.lists(whole_boxes, min_size=1, max_size=4), st.lists(whole_boxes, min_size=1, max_size=4))
def test_overlap_of_whole_pixels_is_their_count(first: list[list[int]], second: list[list[int]]) -> None:
    a, b = torch.tensor(first, dtype=torch.float32), torch.tensor(second, dtype=torch.float32)
    counted = torch.tensor([[iou_by_counting(x, y) for y in b] for x in a])
    torch.testing.assert_close(pairwise_iou(a, b, whole_pixels=True), counted)
    # Without the ends it is the count of boxes one pixel shorter.
    shorter = [torch.cat([boxes[:, :2], boxes[:, 2:] + 1], 1) for boxes in (a, b)]
    torch.testing.assert_close(pairwise_iou(shorter[0], shorter[1]), counted)


def test_overlap_by_hand() -> None:
    a, b = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    torch.testing.assert_close(pairwise_iou(a, b), torch.tensor([[1 / 7, 0.0]]))
    torch.testing.assert_close(pairwise_iou(a, b, whole_pixels=True), torch.tensor([[4 / 14, 0.0]]))
    assert pairwise_iou(b[1:], b[1:]).item() == 0


def random_boxes(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=numbers) * 60
    size = torch.rand(count, 2, generator=numbers) * 30 + 10
    return (
        corners(torch.cat([centre, size], 1)),
        torch.rand(count, generator=numbers),
        torch.randint(0, 3, (count,), generator=numbers),
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 25), st.sampled_from([0.0, 0.3, 0.6, 1.0]))
def test_greedy_suppression_is_the_definition(seed: int, count: int, overlap: float) -> None:
    boxes, scores, classes = random_boxes(seed, count)
    expected: list[int] = []
    for place in sorted(range(count), key=lambda place: -scores[place].item()):
        rivals = [other for other in expected if classes[other] == classes[place]]
        if not any(pairwise_iou(boxes[place : place + 1], boxes[other : other + 1]) > overlap for other in rivals):
            expected.append(place)
    assert greedy_nms(boxes, scores, classes, overlap).tolist() == expected


def test_merging_by_hand() -> None:
    """Two boxes of class 1 become one, weighted 0.6 : 0.9; one of class 0 at their place stays; one is too unsure."""
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [1.0, 1.0, 10.0, 10.0], [0.0, 0.0, 9.0, 9.0], [30.0, 30.0, 39.0, 39.0]])
    objectness = torch.tensor([0.6, 0.9, 0.8, 0.49])
    class_scores = torch.tensor([[0.1, 0.9], [0.2, 0.5], [0.01, 0.001], [0.9, 0.1]])
    found = merge_by_objectness(boxes, objectness, class_scores, 0.5, 0.4)
    # 0.6 x 0.9 is more than 0.9 x 0.5, so the first box is the one that stays.
    torch.testing.assert_close(found.boxes[0], torch.tensor([0.6, 0.6, 9.6, 9.6]))
    torch.testing.assert_close(found.boxes[1], boxes[2])
    # A class score of 0.01 is no reason to leave a box out.
    assert found.classes.tolist() == [1, 0] and found.objectness.tolist() == pytest.approx([0.6, 0.8])
    assert found.class_scores.tolist() == pytest.approx([0.9, 0.01])


def test_an_objectness_at_the_threshold_stays() -> None:
    found = merge_by_objectness(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([0.5]), torch.ones(1, 1), 0.5, 0.4)
    assert len(found.boxes) == 1
    none = merge_by_objectness(torch.zeros(3, 4), torch.zeros(3), torch.ones(3, 2), 0.5, 0.4)
    assert none.boxes.shape == (0, 4) and none.classes.dtype == torch.int64


def test_boxes_without_area_end() -> None:
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]]).repeat(3, 1)
    assert greedy_nms(point, torch.tensor([0.1, 0.3, 0.2]), torch.zeros(3), 0.5).tolist() == [1, 2, 0]


# Class names


def test_coco_is_complete() -> None:
    assert len(NAMES) == len(IDS) == len(set(NAMES)) == 80
    assert (IDS[0], IDS[11], IDS[12], IDS[79]) == (1, 13, 14, 90)
    named = {
        1: "person",
        13: "stop sign",
        27: "backpack",
        44: "bottle",
        62: "chair",
        67: "dining table",
        90: "toothbrush",
    }
    assert {number: NAMES[INDEX_OF_ID[number]] for number in named} == named


def test_names_of_the_annotations_are_these(shared_data: Path) -> None:
    categories = json.loads((shared_data / "coco-mini/annotations/instances_val2017.json").read_text())["categories"]
    assert [(INDEX_OF_ID[one["id"]], one["name"]) for one in categories] == list(enumerate(NAMES))


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ("aeroplane", "airplane"),
        ("Motorbike", "motorcycle"),
        ("sofa", "couch"),
        ("pottedplant", "potted plant"),
        ("diningtable", "dining table"),
        ("tvmonitor", "tv"),
        ("tv monitor", "tv"),
        ("Hot_Dog", "hot dog"),
        ("doughnut", "donut"),
        ("hair dryer", "hair drier"),
        ("cell-phone", "cell phone"),
    ],
)
def test_other_spellings(other: str, name: str) -> None:
    assert coco_index(other) == NAMES.index(name)


def test_classes_that_are_none() -> None:
    assert coco_index("N/A") is None and coco_index("") is None and coco_index("zebra crossing") is None


def test_every_class_finds_its_place() -> None:
    assert as_coco80(NAMES) == tuple(range(80))
    backwards = ("N/A", *reversed(NAMES), "background")
    places = as_coco80(backwards)
    assert places == (-1, *reversed(range(80)), -1)
    found = Detections(torch.rand(3, 4), torch.rand(3), torch.tensor([0, 1, 80]))
    mapped = to_coco80(found, places)
    assert mapped.classes.tolist() == [79, 0] and mapped.scores.equal(found.scores[1:])


def test_a_detector_of_other_classes_is_refused() -> None:
    lacking = [name for name in NAMES if name not in ("zebra", "kite")]
    with pytest.raises(
        WeightsMissing, match=r"knows 78 classes, 2 of COCO's 80 are not among them \(zebra, kite\): give"
    ):
        as_coco80(lacking)
    with pytest.raises(
        WeightsMissing, match=r"80 of COCO's 80 .* \(person, bicycle, car, motorcycle, airplane and 75 more"
    ):
        as_coco80([f"LABEL_{place}" for place in range(80)])


# Settings and opening


def test_a_kind_brings_its_published_choices() -> None:
    soa = DetectorSettings(kind="yolov3", weights="w")
    assert (soa.side, soa.fit, soa.objectness, soa.overlap) == (256, "squash", 0.5, 0.4)
    assert (soa.suppression, soa.least_score, soa.whole_pixels) == ("merge", 0.0, True)
    assert DetectorSettings(kind="onnx-fastestdet", weights="w").least_score == 0.65
    assert DetectorSettings(kind="transformers", weights="w").suppression == "none"
    for kind in ("yolov3", "onnx-fastestdet", "transformers"):
        made = DetectorSettings(kind=kind, weights="w", most=3)
        assert DetectorSettings.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"kind": "yolo"}, "Input should be 'yolov3', 'transformers' or 'onnx-fastestdet'"),
        ({"kind": "yolov3", "side": 100}, "side is 100: give a multiple of 32"),
        ({"kind": "yolov3", "side": 0}, "side is 0: give a multiple of 32"),
        ({"kind": "yolov3", "width": 3}, "width is 3: give an even number from 2 on"),
        ({"kind": "yolov3", "overlap": 1.5}, "less than or equal to 1"),
        ({"kind": "yolov3", "most": 0}, "greater than or equal to 1"),
        ({"kind": "yolov3", "weights": ""}, "at least 1 character"),
        ({"kind": "yolov3", "treshold": 1}, "Extra inputs are not permitted"),
        ({"kind": "onnx-fastestdet", "side": 416}, "side is 416, which onnx-fastestdet does not take: leave it out"),
        ({"kind": "onnx-fastestdet", "suppression": "merge"}, "which needs YOLOv3's objectness"),
        ({"kind": "transformers", "names": "n"}, "names is 'n', which transformers does not take"),
        ({"kind": "transformers", "objectness": 0.3}, "objectness is 0.3, which transformers does not take"),
    ],
)
def test_settings_that_mean_nothing(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        DetectorSettings.model_validate({"weights": "w", **wrong})


@pytest.mark.parametrize("kind", ["yolov3", "onnx-fastestdet", "transformers"])
def test_weights_that_are_not_there(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(WeightsMissing, match=r"there is no folder .*nowhere|no weights of a detector .* at .*nowhere"):
        open_detector(DetectorSettings(kind=kind, weights=str(tmp_path / "nowhere")), CPU)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no class names at .*: give a text file, one name a line"),
        (b"\n \n", "names no class: write one name a line"),
        (b"cat\n\ndog\n", "line 2 is blank: write one class name a line"),
        (b"cat\ndog\ncat\n", "line 3 names 'cat' again: give every class its own name"),
        (b"\xff\xfe", "is no text in UTF-8"),
    ],
)
def test_class_names_that_are_none(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    weights, names = tmp_path / "w.weights", tmp_path / "c.names"
    weights.write_bytes(b"")
    if content is not None:
        names.write_bytes(content)
    with pytest.raises(WeightsMissing, match=sentence):
        open_detector(DetectorSettings(kind="yolov3", weights=str(weights), names=str(names)), CPU)


# Detectors of transformers


def save_yolos(folder: Path, size: dict[str, int] | None = None) -> None:
    from transformers import YolosConfig, YolosForObjectDetection
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=[32, 32],
        patch_size=16,
        num_detection_tokens=5,
        id2label=dict(enumerate(NAMES)),
        label2id={name: place for place, name in enumerate(NAMES)},
    )
    net = YolosForObjectDetection(config)
    # Queries that differ, so that there is something to sort.
    torch.nn.init.normal_(net.vit.embeddings.detection_tokens)
    for part in net.class_labels_classifier.parameters():
        torch.nn.init.normal_(part)
    net.save_pretrained(folder)
    YolosImageProcessorPil(size=size or {"height": 32, "width": 32}).save_pretrained(folder)


@pytest.fixture
def tiny_yolos(tmp_path: Path) -> Path:
    save_yolos(tmp_path / "yolos")
    return tmp_path / "yolos"


def test_a_detector_of_transformers(tiny_yolos: Path) -> None:
    found = open_detector(DetectorSettings(kind="transformers", weights=str(tiny_yolos), least_score=0.0), CPU)
    assert isinstance(found, Detector)
    assert found.name == "transformers-yolos" and as_coco80(found.names) == tuple(range(80))
    pictures = torch.randint(0, 256, (3, 3, 24, 48), dtype=torch.uint8)
    together = found.detect(pictures)
    for row, seen in enumerate(together):
        (alone,) = found.detect(pictures[row : row + 1])
        assert len(seen) == 5
        assert alone.boxes.equal(seen.boxes) and alone.scores.equal(seen.scores)
        assert seen.boxes.min() >= 0 and seen.boxes.max() <= 1 and seen.classes.dtype == torch.int64
        assert seen.scores.equal(seen.scores.sort(descending=True).values)
    assert found.detect(pictures[:0]) == []


@pytest.mark.parametrize("pictures", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_detectors_take_pictures(pictures: Tensor, tiny_yolos: Path) -> None:
    found = open_detector(DetectorSettings(kind="transformers", weights=str(tiny_yolos)), CPU)
    with pytest.raises(ValueError, match="detectors take uint8 pictures"):
        found.detect(pictures)


@pytest.mark.parametrize("shape", [(32, 32), (24, 48)])
def test_boxes_of_transformers_are_the_nets_own(tiny_yolos: Path, shape: tuple[int, int]) -> None:
    """Against the bare net on pixels made ready by hand; a picture of another shape has one colour."""
    from transformers import YolosForObjectDetection

    net = YolosForObjectDetection.from_pretrained(tiny_yolos).eval()
    random = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    picture = random if shape == (32, 32) else random[:, :, :1, :1].expand(1, 3, *shape).contiguous()
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        ready = picture if shape == (32, 32) else picture[:, :, :1, :1].expand(1, 3, 32, 32)
        said = net((ready / 255 - mean) / std)
    scores, classes = said.logits[0].softmax(-1)[:, :-1].max(-1)
    order = scores.argsort(descending=True)
    settings = DetectorSettings(kind="transformers", weights=str(tiny_yolos), least_score=0.0)
    (found,) = open_detector(settings, CPU).detect(picture)
    assert found.classes.equal(classes[order])
    torch.testing.assert_close(found.scores, scores[order], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.boxes, corners(said.pred_boxes[0])[order].clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_suppression_of_transformers_by_option(tiny_yolos: Path) -> None:
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def seen(**others: Any) -> Detections:
        chosen = {"least_score": 0.0, **others}
        return open_detector(DetectorSettings(kind="transformers", weights=str(tiny_yolos), **chosen), CPU).detect(
            picture
        )[0]

    everything = seen()
    middle = everything.scores.sort().values[2].item()
    assert len(seen(least_score=middle)) == 3 and len(seen(most=2)) == 2
    kept = seen(suppression="greedy", overlap=0.0)
    assert sorted(set(kept.classes.tolist())) == sorted(set(everything.classes.tolist()))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def drop_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["vit.embeddings.cls_token"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def change(name: str, **fields: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return write


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without("config.json"), "has no config.json: give the folder of a detector"),
        (without("preprocessor_config.json"), "has no preprocessor_config.json: give the folder"),
        (without("model.safetensors"), "has no .safetensors weights, and no other kind is read"),
        (pickled, "has no .safetensors weights, and no other kind is read"),
        (cut, "no detector could be loaded from"),
        (drop_a_weight, "lacks 1 weights of its net, vit.embeddings.cls_token first: give the folder of a whole"),
        (change("config.json", model_type="bert"), "no detector could be loaded from"),
        (change("config.json", hidden_size=16), "no detector could be loaded from"),
        (
            change("preprocessor_config.json", image_processor_type="ViTImageProcessor"),
            "wants ViTImageProcessorPil, which reads no boxes",
        ),
        (
            change("preprocessor_config.json", image_processor_type="EomtDinov3ImageProcessor"),
            "no detector could be loaded from",
        ),
    ],
)
def test_folders_that_hold_no_detector(tiny_yolos: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    spoil(tiny_yolos)
    with pytest.raises(WeightsMissing, match=sentence) as caught:
        open_detector(DetectorSettings(kind="transformers", weights=str(tiny_yolos)), CPU)
    assert str(tiny_yolos) in str(caught.value) and "\n" not in str(caught.value)


def test_a_digest_of_a_folder_knows_every_file(tmp_path: Path) -> None:
    digests = set()
    for place, size in enumerate((32, 48)):
        save_yolos(tmp_path / str(place), {"height": size, "width": size})
        digests.add(
            open_detector(DetectorSettings(kind="transformers", weights=str(tmp_path / str(place))), CPU).digest
        )
    assert len(digests) == 2


# FastestDet


def test_fastestdet_decoding_by_hand() -> None:
    numbers = torch.zeros(5 + 2, 22, 22)
    numbers[:, 3, 7] = torch.tensor([0.9, 0.5, -0.25, 0.0, 2.0, 0.3, 0.7])
    row = decode(numbers)[3 * 22 + 7]
    centre = [16 * (7 + np.tanh(0.5)), 16 * (3 + np.tanh(-0.25))]
    np.testing.assert_allclose(row, [*centre, 176, 352 / (1 + np.exp(-2.0)), 0.9, 0.3, 0.7], rtol=1e-6)


def fastestdet(shared_data: Path, **others: Any) -> Detector:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    folder = shared_data / "weights"
    path, names = folder / "fastestdet_coco_352.onnx", folder / "coco.names"
    return open_detector(DetectorSettings(kind="onnx-fastestdet", weights=str(path), names=str(names), **others), CPU)


def test_fastestdet_finds_what_is_in_the_photographs(shared_data: Path, tmp_path: Path) -> None:
    """Labels found at score 0.4 among those annotated, against the annotations of the next photograph; and boxes of
    things larger than 96 x 96 pixels (COCO's "large") that overlap one found of their class by 0.5."""
    found = fastestdet(shared_data, least_score=0.4)
    places = as_coco80(found.names)
    spec = f"coco:{shared_data / 'coco-mini'}"
    records = [one for one in open_source(spec, "val", tmp_path, notice=lambda *_: None).records if one.instances]
    labels = [{INDEX_OF_ID[thing.category_id] for thing in record.instances or ()} for record in records]
    seen, large, covered = [], 0, 0
    for record in records:
        with Image.open(record.file) as file:
            picture = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
        objects = to_coco80(found.detect(picture[None])[0], places)
        seen.append(set(objects.classes.tolist()))
        for thing in record.instances or ():
            if thing.crowd or thing.area < 96**2:
                continue
            x, y, w, h = thing.box
            size = torch.tensor([record.width, record.height] * 2)
            same = objects.boxes[objects.classes == INDEX_OF_ID[thing.category_id]]
            overlaps = pairwise_iou(torch.tensor([[x, y, x + w, y + h]]) / size, same)
            large, covered = large + 1, covered + int((overlaps >= 0.5).any())

    def recall(true: list[set[int]]) -> float:
        return sum(len(a & b) for a, b in zip(seen, true, strict=True)) / sum(map(len, true))

    right, shuffled = recall(labels), recall(labels[1:] + labels[:1])
    precision = sum(len(a & b) for a, b in zip(seen, labels, strict=True)) / sum(map(len, seen))
    figures = f"recall {right:.3f}, of shuffled ones {shuffled:.3f}, precision {precision:.3f}"
    print(f"{len(records)} photographs: {figures}, large boxes {covered}/{large}")
    assert right > 0.6 and precision > 0.55 and right > 3.5 * shuffled
    assert covered > 0.7 * large


def test_fastestdet_sees_red_as_red(shared_data: Path) -> None:
    """The net's channels are BGR. What it finds in a photograph with red and blue changed is less sure."""
    found = fastestdet(shared_data, least_score=0.0, most=1)
    true = swapped = 0.0
    for path in sorted((shared_data / "coco-mini/val2017").glob("*.jpg"))[:30]:
        with Image.open(path) as file:
            picture = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
        both = [found.detect(each[None])[0].scores.item() for each in (picture, picture.flip(0))]
        true, swapped = true + both[0], swapped + both[1]
    assert true > swapped


def test_fastestdet_takes_pictures_alone(shared_data: Path) -> None:
    found = fastestdet(shared_data, least_score=0.01)
    pictures = torch.randint(0, 256, (3, 3, 40, 30), dtype=torch.uint8)
    together = found.detect(pictures)
    assert all(len(seen) for seen in together)
    for row, seen in enumerate(together):
        assert found.detect(pictures[row : row + 1])[0].boxes.equal(seen.boxes)
    assert found.detect(pictures[:0]) == []
    assert found.digest != fastestdet(shared_data, least_score=0.2).digest


def test_other_onnx_files_are_refused(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "weights/fastestdet_coco_352.onnx"
    fastestdet(shared_data)
    path, names = tmp_path / "net.onnx", tmp_path / "two.names"
    names.write_text("cat\ndog\n")
    for content in (b"", b"no graph", source.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(WeightsMissing, match="is no whole .onnx file .*: fetch it again"):
            open_detector(DetectorSettings(kind="onnx-fastestdet", weights=str(path)), CPU)
    with pytest.raises(WeightsMissing, match="finds 80 classes, but 2 are named: give the file of its class names"):
        open_detector(DetectorSettings(kind="onnx-fastestdet", weights=str(source), names=str(names)), CPU)


class OtherNet:
    """What another net's session says of its shapes."""

    def get_inputs(self) -> list[Any]:
        return [type("Value", (), {"name": "x", "shape": [1, 3, 224, 224]})]

    def get_outputs(self) -> list[Any]:
        return [type("Value", (), {"name": "y", "shape": [1, 1000]})]


def test_onnx_files_of_other_nets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    monkeypatch.setattr("models.detectors.onnx_fastestdet._open", lambda *_: OtherNet())
    with pytest.raises(
        WeightsMissing, match=r"takes \[\[1, 3, 224, 224\]\] .*: give a FastestDet exported at 352 pixels"
    ):
        open_detector(DetectorSettings(kind="onnx-fastestdet", weights=str(path)), CPU)


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    monkeypatch.setattr("models.detectors.onnx_fastestdet.find_spec", lambda _: None)
    with pytest.raises(WeightsMissing, match="needs onnxruntime, which is not installed: pip install onnxruntime"):
        open_detector(DetectorSettings(kind="onnx-fastestdet", weights=str(path)), CPU)
