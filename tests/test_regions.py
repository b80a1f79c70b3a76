"""Features of boxes, and the frozen net that finds salient ones and describes them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from models.blocks.boxes import sample_boxes
from models.contract import Given, StageMissing
from models.detectors import Detections, DetectorSettings
from models.detectors.contract import OnePassDetector
from models.detectors.grid import GridDetector, GridDetectorConfig, GridNet
from models.detectors.yolov3 import YOLOv3, YOLOv3Detector
from models.encoders.image import WeightsMissing
from models.encoders.regions import RegionNet, RegionSettings, open_region_net
from models.encoders.trunk import ImageTrunk, ImageTrunkSettings

CONFIG = GridDetectorConfig(resolution=32, classes=3, channels=2, residual_blocks=1, feature_dim=6)
TRUNK = ImageTrunkSettings(name="efficientnet-lite0", weights="random", side=32)


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


# Features of boxes


def read_by_definition(maps: Tensor, box: list[float], samples: int) -> Tensor:
    """(samples^2,C), row by row; a map's number stands at the middle of its cell, the outer ones go on for ever."""
    _, height, width = maps.shape
    read = []
    for row in range(samples):
        for column in range(samples):
            x = (box[0] + (box[2] - box[0]) * (column + 0.5) / samples) * width - 0.5
            y = (box[1] + (box[3] - box[1]) * (row + 0.5) / samples) * height - 0.5
            x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            across, down = x - left, y - top
            upper = (1 - across) * maps[:, top, left] + across * maps[:, top, left + 1]
            lower = (1 - across) * maps[:, top + 1, left] + across * maps[:, top + 1, left + 1]
            read.append((1 - down) * upper + down * lower)
    return torch.stack(read)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_boxes_are_read_bilinearly(seed: int, samples: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, 4, 5, generator=numbers, dtype=torch.float64)
    low = torch.rand(2, 3, 2, generator=numbers, dtype=torch.float64) * 1.2 - 0.2  # also beyond the map
    boxes = torch.cat([low, low + torch.rand(2, 3, 2, generator=numbers, dtype=torch.float64)], -1)
    read = sample_boxes(maps, boxes, samples)
    assert read.shape == (2, 3, samples**2, 3)
    for row in range(2):
        for place in range(3):
            torch.testing.assert_close(
                read[row, place], read_by_definition(maps[row], boxes[row, place].tolist(), samples)
            )


def test_gradient_flows_to_the_maps() -> None:
    maps = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[[0.1, 0.2, 0.8, 0.7]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda maps: sample_boxes(maps, boxes, 2), (maps,))


# Boxes and features of pictures


@dataclass(eq=False)
class StandIn:
    """Finds, in a picture, as many boxes as its first byte says, least sure first; its map is the picture itself."""

    net: nn.Module = field(default_factory=lambda: nn.Linear(1, 1))
    name: str = "stand-in"
    digest: str = "a" * 64
    names: tuple[str, ...] = ("thing",)
    feature_dim: int = 3

    def detect(self, pictures: Tensor) -> list[Detections]:
        assert pictures.dtype == torch.uint8
        found = []
        for picture in pictures:
            count = int(picture[0, 0, 0])
            edges = torch.linspace(0.1, 0.9, count) if count else torch.zeros(0)
            boxes = torch.stack([edges / 2, torch.zeros(count), edges, edges], 1)
            found.append(Detections(boxes, edges, torch.zeros(count, dtype=torch.int64)))
        return found

    def features(self, pictures: Tensor) -> Tensor:
        return pictures if pictures.is_floating_point() else pictures.float() / 255

    def on_map(self, boxes: Tensor, height: int, width: int) -> Tensor:
        return boxes


@dataclass(eq=False)
class NoMap:
    name: str = "blind"
    digest: str = "b" * 64
    names: tuple[str, ...] = ("thing",)

    def detect(self, pictures: Tensor) -> list[Detections]:
        return StandIn().detect(pictures)


def images_with(*counts: int) -> Tensor:
    """In [-1, 1]; the stand-in finds so many boxes in each."""
    images = torch.rand(len(counts), 3, 16, 16) * 2 - 1
    images[:, 0, 0, 0] = torch.tensor(counts) / 127.5 - 1
    return images


def test_the_surest_boxes_are_kept_and_the_rest_is_zero() -> None:
    regions = RegionNet(RegionSettings(count=4), StandIn())(images_with(2, 0, 9))
    assert regions.counts.tolist() == [2, 0, 4] and regions.counts.dtype == torch.int64
    torch.testing.assert_close(regions.scores[0], torch.tensor([0.9, 0.1, 0, 0]))
    torch.testing.assert_close(regions.scores[2], torch.tensor([0.9, 0.8, 0.7, 0.6]))
    torch.testing.assert_close(regions.boxes[2, 1], torch.tensor([0.4, 0.0, 0.8, 0.8]))
    assert regions.boxes.shape == (3, 4, 4) and regions.features.shape == (3, 4, 3)
    for padded in (regions.boxes, regions.scores, regions.features):
        assert not padded[0, 2:].any() and not padded[1].any()
    assert regions.features[2].abs().min() > 0
    assert regions.padding().tolist() == [[False, False, True, True], [True] * 4, [False] * 4]


def test_nothing_found_anywhere_is_fine() -> None:
    images = images_with(0, 0).requires_grad_()
    regions = RegionNet(RegionSettings(), StandIn())(images)
    assert regions.features.shape == (2, 36, 3) and not regions.features.any()
    (gradient,) = torch.autograd.grad(regions.features.sum(), images)
    assert not gradient.any()
    assert RegionNet(RegionSettings(), StandIn())(images[:0]).features.shape == (0, 36, 3)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_features_are_pooled_samples(pooling: Any) -> None:
    net = RegionNet(RegionSettings(count=3, pooling=pooling, samples=2), StandIn())
    images = images_with(3, 1)
    regions = net(images)
    read = sample_boxes((images + 1) / 2, regions.boxes, 2)
    wanted = read.mean(2) if pooling == "mean" else read.max(2).values
    torch.testing.assert_close(regions.features[0], wanted[0])
    torch.testing.assert_close(regions.features[1, 0], wanted[1, 0])
    assert net.describe(images, regions.boxes, regions.counts).equal(regions.features)


def test_boxes_are_of_bytes_and_features_of_the_images() -> None:
    """A change of less than half a byte moves no box, but features."""
    images = images_with(3, 5)
    moved = (images + 0.4 / 127.5).clamp(-1, 1)
    net = RegionNet(RegionSettings(count=4), StandIn())
    first, second = net(images), net(moved)
    assert first.boxes.equal(second.boxes) and first.scores.equal(second.scores)
    assert (first.features - second.features).abs().max() > 1e-3


def sure_net() -> GridNet:
    """Random, but with something to find in every picture."""
    net = GridNet(CONFIG)
    with torch.no_grad():
        net(torch.rand(8, 3, 32, 32) * 2 - 1)
        net.out.weight.mul_(40)
        assert net.out.bias is not None
        net.out.bias[4] = 1.0
    return net


def grid_detector() -> GridDetector:
    return GridDetector(sure_net(), ("a", "b", "c"), "d" * 64)


@pytest.mark.parametrize("trunk", [None, TRUNK])
def test_gradient_flows_to_the_images_by_features_alone(trunk: ImageTrunkSettings | None) -> None:
    net = RegionNet(RegionSettings(count=4, trunk=trunk), grid_detector(), ImageTrunk(trunk) if trunk else None)
    images = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    regions = net(images)
    assert regions.features.shape == (2, 4, net.feature_dim) and regions.counts.min() > 0
    assert not regions.boxes.requires_grad and not regions.scores.requires_grad
    for row in range(2):
        (gradient,) = torch.autograd.grad(regions.features[row].sum(), images, retain_graph=True)
        assert gradient[row].abs().sum() > 0 and not gradient[1 - row].any()
    assert not any(parameter.requires_grad for parameter in net.parameters())


def yolo_detector() -> YOLOv3Detector:
    """Random, with some boxes in every picture."""
    torch.manual_seed(5)
    settings = DetectorSettings(
        kind="yolov3", weights="none", side=32, width=2, objectness=0.0, suppression="none", most=20
    )
    return YOLOv3Detector(YOLOv3(3, 2), settings, ("a", "b", "c"), "d" * 64, torch.device("cpu"))


@pytest.mark.parametrize("make", [grid_detector, yolo_detector])
def test_one_pass_finds_what_two_do(make: Callable[[], OnePassDetector]) -> None:
    """Of pictures that are bytes: the boxes of `detect`, and the map of `features` with its gradient."""
    detector, pictures = make(), torch.randint(0, 256, (3, 3, 40, 48), dtype=torch.uint8)
    images = (pictures.float() / 255).requires_grad_()
    found, maps = detector.find(images)
    for one, two in zip(found, detector.detect(pictures), strict=True):
        assert len(one) > 0 and not one.boxes.requires_grad
        assert one.boxes.equal(two.boxes) and one.scores.equal(two.scores) and one.classes.equal(two.classes)
    assert maps.equal(detector.features(pictures))
    (gradient,) = torch.autograd.grad(maps.square().sum(), images)
    assert gradient.abs().sum() > 0
    nothing, empty = detector.find(images[:0])
    assert nothing == [] and empty.shape == (0, *maps.shape[1:])


def test_a_detector_whose_map_it_reads_passes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, passes = grid_detector(), []
    real = GridNet.features
    monkeypatch.setattr(GridNet, "features", lambda net, images: passes.append(len(images)) or real(net, images))
    regions = RegionNet(RegionSettings(count=4), detector)(torch.rand(3, 3, 32, 32) * 2 - 1)
    assert sum(passes) == 3 and regions.features.abs().sum() > 0


def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    net = RegionNet(RegionSettings(count=5), grid_detector())
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    together = net(images)
    assert together.counts.min() > 0
    for row in range(6):
        alone = net(images[row : row + 1])
        for name in ("boxes", "scores", "counts", "features"):
            assert getattr(alone, name)[0].equal(getattr(together, name)[row]), name


def test_the_trunk_reads_the_whole_picture() -> None:
    """Its features of a box over everything are those of its own map."""
    trunk = ImageTrunk(TRUNK)
    net = RegionNet(RegionSettings(count=1, samples=2, trunk=TRUNK), NoMap(), trunk)
    assert net.feature_dim == trunk.region_dim == 112
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    features = net.describe(images, torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), torch.tensor([1]))
    torch.testing.assert_close(features[0, 0], trunk(images).regions[0].mean((1, 2)))


def test_training_around_it_changes_nothing() -> None:
    net = RegionNet(RegionSettings(count=4), grid_detector())
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    before, state = net(images), {name: value.clone() for name, value in net.state_dict().items()}
    nn.ModuleDict({"regions": net}).train()
    assert not any(module.training for module in net.modules())
    after = net(images)
    assert before.boxes.equal(after.boxes) and before.features.equal(after.features)
    assert all(value.equal(state[name]) for name, value in net.state_dict().items())
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(images)
    assert rough.boxes.equal(before.boxes) and rough.scores.equal(before.scores)


def test_it_moves_with_its_detector() -> None:
    detector = grid_detector()
    RegionNet(RegionSettings(), detector).to("meta")
    assert detector.device.type == "meta"


def test_a_digest_tells_features_apart() -> None:
    def digest(detector: Any = None, trunk: ImageTrunkSettings | None = None, **changes: Any) -> str:
        chosen = RegionSettings(trunk=trunk, **changes)
        return RegionNet(chosen, detector or StandIn(), ImageTrunk(trunk) if trunk else None).digest

    found = [
        digest(),
        digest(StandIn(digest="c" * 64)),
        digest(count=35),
        digest(samples=2),
        digest(pooling="max"),
        digest(trunk=TRUNK),
        digest(trunk=TRUNK.model_copy(update={"side": 64})),
        digest(trunk=ImageTrunkSettings(name="efficientnet-lite0", side=32)),
    ]
    assert len(set(found)) == len(found) and all(len(one) == 64 for one in found)
    assert digest(folder="elsewhere") == digest()


# Opening


def write_part(folder: Path) -> Given:
    save_file(sure_net().state_dict(), folder / "detector.safetensors")
    described = {"system": "grid_detector", "model": CONFIG.model_dump(mode="json")}
    (folder / "part.json").write_text(json.dumps(described))
    return Given(folders={"detector": folder}, regions=RegionSettings(count=4))


def test_the_trained_detector_is_opened(tmp_path: Path) -> None:
    given = write_part(tmp_path)
    net = open_region_net(given)
    assert net.feature_dim == 6 and net.detector.name == "grid-32"
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.manual_seed(0)
    same = RegionNet(RegionSettings(count=4), GridDetector(sure_net(), (), ""))
    assert net(images).features.equal(same(images).features)
    assert net.digest == open_region_net(given).digest
    pooled = open_region_net(Given(folders=given.folders, regions=RegionSettings(count=4, trunk=TRUNK)))
    assert pooled.feature_dim == 112


def test_a_published_detector_is_opened(tmp_path: Path) -> None:
    """YOLOv3 with its own map, though a trained one is there too."""
    weights, names = tmp_path / "yolov3.safetensors", tmp_path / "names"
    save_file(YOLOv3(2, 2).state_dict(), weights)
    names.write_text("ball\nbox\n")
    chosen = DetectorSettings(kind="yolov3", weights=str(weights), names=str(names), side=64, width=2, least_score=0)
    net = open_region_net(Given(folders=write_part(tmp_path).folders, regions=RegionSettings(detector=chosen)))
    assert net.feature_dim == 64 and net.detector.names == ("ball", "box")
    images = (torch.rand(2, 3, 40, 40) * 2 - 1).requires_grad_()
    features = net.describe(images, torch.tensor([[[0.0, 0.0, 1.0, 1.0]]] * 2), torch.tensor([1, 1]))
    (gradient,) = torch.autograd.grad(features.square().sum(), images)
    assert features.shape == (2, 1, 64) and gradient.abs().sum() > 0


def test_under_meta_nothing_is_opened(tmp_path: Path) -> None:
    missing = RegionSettings(detector=DetectorSettings(kind="yolov3", weights=str(tmp_path / "none")))
    for known in (Given(), Given(regions=RegionSettings()), Given(regions=missing)):
        with torch.device("meta"):
            net = open_region_net(known)
        assert net.feature_dim == 0 and not list(net.parameters()) and not list(net.buffers())
        with pytest.raises(RuntimeError, match="they find nothing"):
            net(torch.zeros(1, 3, 32, 32))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing says how: give the experiment's regions"):
        open_region_net(Given())
    with pytest.raises(StageMissing) as caught:
        open_region_net(Given(regions=RegionSettings()))
    assert str(caught.value) == (
        "salient boxes come from the trained stage 'detector', which was not given, or from a published detector"
    )
    with pytest.raises(WeightsMissing, match="no weights of the grid detector at"):
        open_region_net(Given(folders={"detector": tmp_path}, regions=RegionSettings()))
    missing = RegionSettings(detector=DetectorSettings(kind="yolov3", weights=str(tmp_path / "none")))
    with pytest.raises(WeightsMissing, match="no weights of a detector"):
        open_region_net(Given(regions=missing))


SENTENCE = "finds boxes but gives no map to read their features from: give regions.trunk, such as"


@pytest.mark.parametrize("kind", ["onnx-fastestdet", "transformers"])
def test_a_detector_without_a_map_needs_a_trunk(kind: Any) -> None:
    chosen = DetectorSettings(kind=kind, weights="somewhere")
    with pytest.raises(ValidationError, match=f"{kind} {SENTENCE}"):
        RegionSettings(detector=chosen)
    assert RegionSettings(detector=chosen, trunk=TRUNK).trunk == TRUNK
    # Whoever brings features of their own may never look at another picture.
    assert RegionSettings(detector=chosen, folder="mine").folder == "mine"
    with pytest.raises(ValueError, match=f"blind {SENTENCE}"):
        RegionNet(RegionSettings(), NoMap())


def test_fastestdet_finds_with_a_trunk(shared_data: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 't2i[detectors]'")
    weights = shared_data / "weights/fastestdet_coco_352.onnx"
    chosen = DetectorSettings(kind="onnx-fastestdet", weights=str(weights))
    net = open_region_net(Given(regions=RegionSettings(detector=chosen, trunk=TRUNK, count=2)))
    assert net.feature_dim == 112
    assert net(torch.zeros(1, 3, 64, 64)).features.shape == (1, 2, 112)
    with pytest.raises(ValueError, match=f"fastestdet-352 {SENTENCE}"):
        open_region_net(Given(regions=RegionSettings(detector=chosen, folder="mine")))
