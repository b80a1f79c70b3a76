"""YOLOv3: its size by arithmetic, its file forms, its decoding, and what it does with pictures of any shape."""

import struct
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from models.contract import parameter_count
from models.detectors import DetectorSettings, RegionDetector, open_detector
from models.detectors.darknet_weights import load_yolov3
from models.detectors.framing import Frame
from models.detectors.yolov3 import ANCHORS, Conv, Residual, YOLOv3, decode
from models.encoders.image import WeightsMissing

CPU, WIDTH, CLASSES = torch.device("cpu"), 2, 4
NAMES = ("ball", "box", "cup", "key")


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def random_net(classes: int = CLASSES, width: int = WIDTH) -> YOLOv3:
    """A narrow net with every number random, running statistics too, and predictions of moderate size."""
    net = YOLOv3(classes, width).eval()
    for module in net.modules():
        if isinstance(module, Conv):
            nn.init.kaiming_normal_(module.conv.weight, a=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    for module in net.modules():
        if isinstance(module, Residual):
            # 23 sums in a row must not grow beyond what exp can take.
            nn.init.uniform_(module.expand.bn.weight, 0.1, 0.3)
    return net


Layer = tuple[Any, ...]


def cfg(classes: int, width: int) -> list[Layer]:
    """The published cfg as a list: ("conv", channels in, out, kernel, stride, with batch norm), ("add", which layer),
    ("route", which layers), ("double",), ("yolo",). Layers are counted from the first or back from the next."""
    found: list[Layer] = [("conv", 3, width, 3, 1, True)]
    for level, count in enumerate((1, 2, 8, 8, 4)):
        w = width * 2 ** (level + 1)
        found.append(("conv", w // 2, w, 3, 2, True))
        found += [("conv", w, w // 2, 1, 1, True), ("conv", w // 2, w, 3, 1, True), ("add", -3)] * count
    for came, inner, route in ((32, 16, ()), (24, 8, (-1, 61)), (12, 4, (-1, 36))):
        came, inner = came * width, inner * width
        if route:
            found += [("route", -4), ("conv", 2 * inner, inner, 1, 1, True), ("double",), ("route", *route)]
        for place in range(3):
            found.append(("conv", 2 * inner if place else came, inner, 1, 1, True))
            found.append(("conv", inner, 2 * inner, 3, 1, True))
        found += [("conv", 2 * inner, 3 * (5 + classes), 1, 1, False), ("yolo",)]
    return found


def layers(classes: int, width: int) -> list[tuple[int, int, int, bool]]:
    """The convolutions of the cfg: channels in and out, kernel, with batch norm."""
    return [(layer[1], layer[2], layer[3], layer[5]) for layer in cfg(classes, width) if layer[0] == "conv"]


def interpreted(content: bytes, layers: list[Layer], x: Tensor) -> list[Tensor]:
    """The heads' raw numbers, by a darknet that reads its file as it goes."""
    numbers, start = torch.from_numpy(np.frombuffer(content[20:], dtype="<f4").copy()), 0

    def take(*shape: int) -> Tensor:
        nonlocal start
        start += int(np.prod(shape))
        return numbers[start - int(np.prod(shape)) : start].view(shape)

    maps: list[Tensor] = []
    heads: list[Tensor] = []
    for kind, *rest in layers:
        if kind == "conv":
            width, out, kernel, stride, normed = rest
            shift = take(out, 1, 1)
            scale, mean, variance = [take(out, 1, 1) for _ in range(3)] if normed else [torch.ones(())] * 3
            x = nn.functional.conv2d(x, take(out, width, kernel, kernel), stride=stride, padding=kernel // 2)
            x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift if normed else x + shift
            x = torch.where(x > 0, x, x / 10) if normed else x
        elif kind == "add":
            x = x + maps[rest[0]]
        elif kind == "route":
            x = torch.cat([maps[place] for place in rest], 1)
        elif kind == "double":
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        else:
            heads.append(x)
        maps.append(x)
    assert start == len(numbers)
    return heads


def darknet_file(net: YOLOv3, version: tuple[int, int, int] = (0, 2, 0)) -> bytes:
    """The published form, written from its description alone; the net gives the values by its own names."""
    # By shape and order of the cfg, so that a net that registers its modules in another order is found out.
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    norms = iter([module for module in net.modules() if isinstance(module, nn.BatchNorm2d)])
    parts: list[Tensor] = []
    for (width, out, kernel, normed), conv in zip(layers(net.classes, net.width), convolutions, strict=True):
        assert conv.weight.shape == (out, width, kernel, kernel)
        if normed:
            norm = next(norms)
            assert norm.running_mean is not None and norm.running_var is not None
            parts += [norm.bias, norm.weight, norm.running_mean, norm.running_var]
        else:
            assert conv.bias is not None
            parts.append(conv.bias)
        parts.append(conv.weight)
    seen = struct.pack("<q", 32013312) if version[0] * 10 + version[1] >= 2 else struct.pack("<i", 32013312)
    numbers = b"".join(part.detach().numpy().astype("<f4").tobytes() for part in parts)
    return struct.pack("<3i", *version) + seen + numbers


@pytest.fixture
def names_file(tmp_path: Path) -> str:
    path = tmp_path / "things.names"
    path.write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return str(path)


def settings(weights: Path, names: str, **others: Any) -> DetectorSettings:
    chosen = {"side": 64, "width": WIDTH, **others}
    return DetectorSettings(kind="yolov3", weights=str(weights), names=names, **chosen)


@pytest.fixture
def detector(tmp_path: Path, names_file: str) -> RegionDetector:
    path = tmp_path / "small.weights"
    path.write_bytes(darknet_file(random_net()))
    found = open_detector(settings(path, names_file), CPU)
    assert isinstance(found, RegionDetector)
    return found


# Size


def test_published_number_of_parameters() -> None:
    """61,949,149 by the layers of the cfg; yolov3.weights has 248,007,048 bytes, its header 20."""
    counted = sum(i * o * k * k + (2 * o if normed else o) for i, o, k, normed in layers(80, 32))
    statistics = sum(2 * o for _, o, _, normed in layers(80, 32) if normed)
    assert counted == 61_949_149
    assert 20 + 4 * (counted + statistics) == 248_007_048
    with torch.device("meta"):
        net = YOLOv3()
    assert parameter_count(net) == counted
    assert sum(value.numel() for value in net.buffers() if value.dim()) == statistics
    # Table 1: 52 convolutions in Darknet-53 before its classifier.
    assert sum(isinstance(module, Conv) for module in net.backbone.modules()) == 52


# Files


@pytest.mark.parametrize("version", [(0, 2, 0), (0, 1, 0)])
def test_darknet_file_is_read_back_equal(tmp_path: Path, version: tuple[int, int, int]) -> None:
    net, path = random_net(), tmp_path / "net.weights"
    path.write_bytes(darknet_file(net, version))
    read = load_yolov3(path, CLASSES, WIDTH)
    assert read.state_dict().keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        assert read.state_dict()[name].equal(value), name
    x = torch.rand(1, 3, 64, 64)
    assert read(x).equal(net(x))


def test_safetensors_are_read_back_equal(tmp_path: Path) -> None:
    net, path = random_net(), tmp_path / "net.safetensors"
    save_file(net.state_dict(), path)
    x = torch.rand(1, 3, 64, 64)
    assert load_yolov3(path, CLASSES, WIDTH)(x).equal(net(x))


GOOD = darknet_file(random_net())
NAN = struct.pack("<f", float("nan"))
# The first layer's running variance stands after its shift, scale and running mean.
VARIANCE = 20 + 4 * 3 * WIDTH


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has 0 bytes, less than a darknet file's header: fetch the file again"),
        (GOOD[:-2], "ends within a number .* so it is cut short: fetch the file again"),
        (GOOD[:-400], "numbers, YOLOv3 for 4 classes has .*: it is cut short or of another cfg"),
        (GOOD[:20], "holds 0 numbers, .*: it is cut short or of another cfg"),
        (GOOD + b"\0" * 400, ": it is too long or of another cfg .tiny, spp, a bare backbone., so give yolov3.weights"),
        (darknet_file(random_net(classes=7)), ": it fits 7 classes, so name a file of their names"),
        (darknet_file(random_net(classes=1)), ": it fits 1 classes, so name a file of their names"),
        (b"<!DOCTYPE html><html>" * 40, "does not begin as a darknet .weights file does"),
        (GOOD[:-4] + NAN, "holds values that are no numbers at head_8.out.weight: fetch the file again"),
        (GOOD[:20] + NAN + GOOD[24:], "holds values that are no numbers at backbone.stem.bn.bias"),
        (
            GOOD[:VARIANCE] + struct.pack("<f", -1.0) + GOOD[VARIANCE + 4 :],
            "holds a negative variance at backbone.stem",
        ),
    ],
    ids=[
        *("empty", "odd", "short", "header", "long", "more-classes", "fewer-classes"),
        *("html", "nan", "nan-first", "variance"),
    ],
)
def test_other_darknet_files_are_refused(tmp_path: Path, content: bytes, sentence: str, names_file: str) -> None:
    path = tmp_path / "other.weights"
    path.write_bytes(content)
    with pytest.raises(WeightsMissing, match=sentence) as caught:
        open_detector(settings(path, names_file), CPU)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_safetensors_are_refused(tmp_path: Path, names_file: str) -> None:
    path, state = tmp_path / "net.safetensors", random_net().state_dict()
    name = "head_16.out.bias"

    def refused(changed: dict[str, Tensor], sentence: str) -> None:
        save_file(changed, path)
        with pytest.raises(WeightsMissing, match=sentence):
            open_detector(settings(path, names_file), CPU)

    refused({key: value for key, value in state.items() if key != name}, "lacks head_16.out.bias: give a file of this")
    refused(state | {"more": torch.zeros(1)}, "has more, which YOLOv3 for 4 classes has not")
    refused(random_net(classes=5).state_dict(), r"of shape \(30,\), YOLOv3 for 4 classes and width 2 has \(27,\)")
    refused(state | {name: torch.full_like(state[name], torch.nan)}, "no numbers at head_16.out.bias: write the file")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsMissing, match="is no whole safetensors file .*: fetch or write it again"):
        open_detector(settings(path, names_file), CPU)


# The net


def test_the_net_is_that_of_the_cfg() -> None:
    net, x = random_net(), torch.rand(2, 3, 64, 96)
    heads = interpreted(darknet_file(net), cfg(CLASSES, WIDTH), x)
    assert [head.shape[1:] for head in heads] == [(27, 2, 3), (27, 4, 6), (27, 8, 12)]
    expected = [
        decode(head, anchors, stride) for head, anchors, stride in zip(heads, ANCHORS, (32, 16, 8), strict=True)
    ]
    torch.testing.assert_close(net(x), torch.cat(expected, 1), rtol=1e-4, atol=1e-4)


def test_decoding_by_hand() -> None:
    """Figure 2 of the paper for one cell of a 2 x 3 map: sigmoid plus cell, exponential times anchor."""
    raw = torch.zeros(1, 3 * 7, 2, 3)
    raw[0, 7:14, 1, 2] = torch.tensor([0.3, -0.7, 0.2, -0.4, 1.5, -2.0, 0.5])
    rows = decode(raw, ANCHORS[1], 16)
    assert rows.shape == (1, 18, 7)
    t = raw[0, 7:14, 1, 2].double()
    width, height = ANCHORS[1][1]
    centre = [(2 + 1 / (1 + np.exp(-t[0]))) * 16, (1 + 1 / (1 + np.exp(-t[1]))) * 16]
    scores = [1 / (1 + np.exp(-value)) for value in t[4:]]
    expected = [*centre, width * np.exp(t[2]), height * np.exp(t[3]), *scores]
    # Row by row of the map, then by anchor.
    np.testing.assert_allclose(rows[0, (1 * 3 + 2) * 3 + 1], expected, rtol=1e-6)
    np.testing.assert_allclose(rows[0, 0], [8, 8, *ANCHORS[1][0], 0.5, 0.5, 0.5], rtol=1e-6)


def blinded(net: YOLOv3) -> YOLOv3:
    """The net with heads that say nothing but their biases, and find nothing."""
    for head in (net.head_32, net.head_16, net.head_8):
        assert head.out.bias is not None
        nn.init.zeros_(head.out.weight)
        nn.init.zeros_(head.out.bias)
        head.out.bias.data.view(3, -1)[:, 4] = -20
    return net


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_boxes_come_back_to_the_picture(tmp_path: Path, names_file: str, fit: str) -> None:
    """One cell of the coarsest map sees its anchor everywhere; the picture is 64 x 32 and the input 64 x 64."""
    net, path = blinded(random_net()), tmp_path / "net.weights"
    bias = net.head_32.out.bias
    assert bias is not None
    rows = bias.data.view(3, -1)
    rows[0, 4], rows[0, 5 + 2] = 20, 20  # anchor 116 x 90: class "cup", sure
    rows[0, 2:4] = torch.tensor([16 / 116, 16 / 90]).log()  # 16 x 16 pixels
    path.write_bytes(darknet_file(net))
    found = open_detector(settings(path, names_file, fit=fit, side=64), CPU)
    (seen,) = found.detect(torch.zeros(1, 3, 32, 64, dtype=torch.uint8))
    assert {found.names[place] for place in seen.classes} == {"cup"}
    boxes = sorted(tuple(round(number, 4) for number in box) for box in seen.boxes.tolist())
    # Centres at 16 and 48 of 64 in both directions. A letterbox has grey above 16 and below 48.
    if fit == "squash":
        assert boxes == [(x, y, x + 0.25, y + 0.25) for x in (0.125, 0.625) for y in (0.125, 0.625)]
    else:
        assert boxes == [(x, y, x + 0.25, y + 0.25) for x in (0.125, 0.625) for y in (0.0, 0.75)]
    torch.testing.assert_close(seen.scores, torch.ones(4), atol=1e-4, rtol=0)


# Framing


@hypothesis.settings(deadline=None, max_examples=30)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["squash", "letterbox"]))
def test_boxes_go_in_and_come_out(height: int, width: int, fit: Any) -> None:
    frame, boxes = Frame(64, fit), torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0]])
    entered = frame.enter(torch.full((1, 3, height, width), 255, dtype=torch.uint8))
    assert entered.shape == (1, 3, 64, 64)
    inside = frame.enclose(boxes, height, width)
    torch.testing.assert_close(frame.leave(inside * 64, height, width), boxes)
    # The picture is white and stands where `enclose` says; grey is elsewhere.
    x0, y0, x1, y1 = (inside[1] * 64).round().int().tolist()
    white = entered > 0.99
    assert white[0, :, y0:y1, x0:x1].all() and entered[~white].eq(0.5).all()
    assert (~white).sum() == 3 * (64 * 64 - (y1 - y0) * (x1 - x0))


def test_a_picture_of_the_right_side_keeps_its_pixels() -> None:
    picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    for fit in ("squash", "letterbox"):
        assert Frame(64, fit).enter(picture).equal(picture.float() / 255)


# As a detector


def test_what_is_found_does_not_depend_on_the_batch(detector: RegionDetector) -> None:
    pictures = torch.randint(0, 256, (5, 3, 40, 56), dtype=torch.uint8)
    together = detector.detect(pictures)
    assert any(len(found) for found in together)
    for row, found in enumerate(together):
        (alone,) = detector.detect(pictures[row : row + 1])
        assert alone.boxes.equal(found.boxes) and alone.scores.equal(found.scores)
        assert alone.classes.equal(found.classes)
        assert found.scores.equal(found.scores.sort(descending=True).values)
        assert found.boxes.min() >= 0 and found.boxes.max() <= 1
    assert detector.detect(pictures[:0]) == []
    assert detector.features(pictures[:0]).shape == (0, 64, 2, 2)


def test_region_features_are_the_deepest_map(detector: RegionDetector) -> None:
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    maps = detector.features(pictures)
    assert detector.feature_dim == 32 * WIDTH and maps.shape == (2, 32 * WIDTH, 2, 2)
    floats = (pictures.float() / 255).requires_grad_()
    again = detector.features(floats)
    torch.testing.assert_close(again, maps)
    (gradient,) = torch.autograd.grad(again.square().sum(), floats)
    assert gradient.abs().sum() > 0


def test_boxes_on_the_map(tmp_path: Path, names_file: str) -> None:
    path = tmp_path / "net.weights"
    path.write_bytes(darknet_file(random_net()))
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    for fit, expected in (("squash", [0, 0, 1, 1]), ("letterbox", [0.25, 0, 0.75, 1])):
        found = open_detector(settings(path, names_file, fit=fit), CPU)
        assert isinstance(found, RegionDetector)
        assert found.on_map(whole, height=80, width=40).tolist() == [expected]


def test_a_digest_says_all_that_changes_what_is_found(tmp_path: Path, names_file: str) -> None:
    paths = [tmp_path / f"{name}.weights" for name in ("one", "same", "other")]
    net = random_net()
    for path, written in zip(paths, (net, net, random_net()), strict=True):
        path.write_bytes(darknet_file(written))
    first = open_detector(settings(paths[0], names_file), CPU)
    assert open_detector(settings(paths[1], names_file), CPU).digest == first.digest
    others = [
        open_detector(settings(paths[2], names_file), CPU),
        *(
            open_detector(settings(paths[0], names_file, **change), CPU)
            for change in ({"side": 96}, {"fit": "letterbox"}, {"objectness": 0.6}, {"suppression": "greedy"})
        ),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 6
    assert first.name == "yolov3-64-squash"


def test_suppression_by_option(tmp_path: Path, names_file: str) -> None:
    path = tmp_path / "net.weights"
    path.write_bytes(darknet_file(random_net()))
    picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)

    def found(**others: Any) -> int:
        return len(open_detector(settings(path, names_file, **others), CPU).detect(picture)[0])

    everything = found(suppression="none", objectness=0.0)
    assert everything == 3 * (4 + 16 + 64)
    assert 0 < found() < found(suppression="none") < everything
    assert found(suppression="none", objectness=0.0, most=36) == 36
    assert found(suppression="greedy") == found()
    assert found(suppression="none", least_score=1.0) == 0


@pytest.mark.parametrize("suppression", ["merge", "greedy", "none"])
def test_a_score_is_objectness_times_the_best_class(tmp_path: Path, names_file: str, suppression: str) -> None:
    net, path = blinded(random_net()), tmp_path / "net.weights"
    assert net.head_8.out.bias is not None
    net.head_8.out.bias.data.view(3, -1)[2, 4:] = torch.tensor([0.6, 0.3, 0.2, 0.1, 0.4])
    path.write_bytes(darknet_file(net))
    chosen = settings(path, names_file, suppression=suppression)
    (found,) = open_detector(chosen, CPU).detect(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    expected = torch.tensor([0.6, 0.4]).sigmoid().prod()
    assert len(found) and set(found.classes.tolist()) == {3}
    torch.testing.assert_close(found.scores, expected.expand(len(found)))


def test_weights_that_overflow_are_refused(tmp_path: Path, names_file: str) -> None:
    net, path = random_net(), tmp_path / "net.weights"
    assert net.head_32.out.bias is not None
    net.head_32.out.bias.data.fill_(1e4)
    path.write_bytes(darknet_file(net))
    found = open_detector(settings(path, names_file), CPU)
    with pytest.raises(WeightsMissing, match="finds boxes that are no numbers: its weights are damaged, give others"):
        found.detect(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
