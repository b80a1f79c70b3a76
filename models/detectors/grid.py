"""A small detector of one map that is trained on the data's own boxes, where no published detector knows its things.

It is no paper's: a convolutional trunk to an eighth of the side, dilated blocks that see whole pictures from there
(YOLOF: Chen et al., "You Only Look One-level Feature", 2021, section 4.1), and for every cell objectness, classes and
one box without anchors (YOLOX: Ge et al., "Exceeding YOLO Series in 2021", section 2.1).
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.blocks.norm import BatchNorm
from models.contract import (
    NOTHING,
    AdamSettings,
    Batch,
    Given,
    Nets,
    Objective,
    Phase,
    Settings,
    StepContext,
    Trainable,
)
from models.detectors.boxes import corners, greedy_nms
from models.detectors.contract import Detections, file_digest, one_by_one
from models.detectors.framing import Frame, check_pictures
from models.detectors.grid_loss import GridPrediction, cell_centres, detector_objective
from models.encoders.image import WeightsMissing, existing, fill
from models.parallel import one_thread
from models.parts import PART, part_settings
from models.precision import at_least_float32

STAGE, NET = "grid_detector", "detector"
CLASSES = "classes.json"
SLOPE = 0.1
STRIDE = 8
# The share of cells that answer for an object before training (Lin et al., "Focal Loss", 2017, section 4.1).
PRIOR = 0.01
# Sides are exp of a number in cells: the largest is 403 cells, beyond any picture.
MOST_LOG_CELLS = 6.0


class GridDetectorConfig(Settings):
    """Sizes and training of the detector. Nothing of it is published as a whole: each choice names its own source."""

    resolution: int = Field(64, ge=32, multiple_of=STRIDE, description="side of the pictures it learns from, in pixels")
    classes: int = Field(
        16, ge=1, description="classes it tells apart, no fewer than the data has; generated scenes have at most 16"
    )
    channels: int = Field(
        16, ge=1, description="width of the first layer; doubled at each of the three halvings of the side"
    )
    residual_blocks: int = Field(
        3,
        ge=0,
        le=6,
        description="residual blocks at an eighth of the side, the first undilated, each next one with twice the "
        "dilation, so that a cell sees a large object whole (YOLOF, section 4.1, dilates 2, 4, 6 and 8)",
    )
    feature_dim: int = Field(128, ge=1, description="channels of the deepest map, which region features are read from")
    radius: float = Field(
        1.5, ge=0, description="cells so near to an object's centre answer for it too (FCOS as released: 1.5 cells)"
    )
    box_weight: float = Field(5.0, ge=0, description="weight of the boxes' GIoU loss (YOLOX as released: 5)")
    class_weight: float = Field(1.0, ge=0, description="weight of the classes' cross-entropy (YOLOX as released: 1)")
    objectness_weight: float = Field(
        1.0, ge=0, description="weight of the binary cross-entropy of objectness (YOLOX as released: 1)"
    )
    least_score: float = Field(
        0.05, ge=0, le=1, description="boxes whose score, objectness times class, is below are left out"
    )
    overlap: float = Field(
        0.5,
        ge=0,
        le=1,
        description="intersection over union above which boxes of one class are one object, of which the best stays",
    )
    most: int = Field(100, ge=1, description="boxes of a picture, the best first (COCO's evaluation reads 100)")
    optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=2e-3, beta_1=0.9, beta_2=0.999), description="Adam's own but for the learning rate"
    )


class Conv(nn.Module):
    """3x3 convolution without bias, batch norm over all ranks, leaky ReLU 0.1; stride 2 halves the side."""

    def __init__(self, width: int, out: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, 3, stride, dilation, dilation, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, SLOPE)
        self.bn = BatchNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.conv(x)), SLOPE)


class Residual(nn.Module):
    """To half the channels and back by 3x3 convolutions, the second dilated, plus the input."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        inner = max(1, width // 2)
        self.squeeze, self.expand = Conv(width, inner), Conv(inner, width, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.expand(self.squeeze(x))
        return x + y


class GridNet(nn.Module):
    """Pictures (B,3,H,W) in [-1, 1], sides multiples of 8, to a `GridPrediction` of H/8 x W/8 cells."""

    def __init__(self, config: GridDetectorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels << level for level in range(4)]
        self.trunk = nn.Sequential(
            Conv(3, widths[0]),
            *(Conv(width, out, stride=2) for width, out in pairwise(widths)),
            *(Residual(widths[-1], 1 << block) for block in range(config.residual_blocks)),
            Conv(widths[-1], config.feature_dim),
        )
        self.out = nn.Conv2d(config.feature_dim, 5 + config.classes, 1)
        nn.init.normal_(self.out.weight, std=0.01)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        nn.init.constant_(self.out.bias[4:5], math.log(PRIOR / (1 - PRIOR)))

    def features(self, images: Tensor) -> Tensor:
        """The deepest map (B,F,H/8,W/8)."""
        found: Tensor = self.trunk(images)
        return found

    def forward(self, images: Tensor) -> GridPrediction:
        return self.judge(self.features(images))

    def judge(self, features: Tensor) -> GridPrediction:
        """The same of the deepest map."""
        raw: Tensor = self.out(features)
        # Half precision would move boxes by a hundredth of the picture.
        rows = at_least_float32(raw).flatten(2).transpose(1, 2)  # B,P,5+C
        grid = (raw.shape[2], raw.shape[3])
        cells = rows.new_tensor([grid[1], grid[0]])
        centre = (cell_centres(grid, rows) + rows[..., :2]) / cells
        size = rows[..., 2:4].clamp(max=MOST_LOG_CELLS).exp() / cells
        return GridPrediction(corners(torch.cat([centre, size], -1)), rows[..., 4], rows[..., 5:], grid)


def found_in(prediction: GridPrediction, config: GridDetectorConfig) -> list[Detections]:
    """One `Detections` a picture: a score is objectness times the probability of the best class, boxes are cut where
    the picture ends. What is not a number is not found."""
    best, classes = prediction.classes.softmax(-1).max(-1)
    scores = (prediction.objectness.sigmoid() * best).float().cpu()
    boxes, classes = prediction.boxes.float().clamp(0, 1).cpu(), classes.cpu()
    found = []
    for one in map(Detections, boxes, scores, classes):
        one = one[one.scores >= config.least_score]
        found.append(one[greedy_nms(one.boxes, one.scores, one.classes, config.overlap)[: config.most]])
    return found


class GridDetector:
    """A trained `GridNet` as a `RegionDetector`; `weights` is the digest of its file, `names` are of its classes.

    Pictures of other sizes are squashed to those it learned from. It is where its net is.
    """

    def __init__(self, net: GridNet, names: tuple[str, ...], weights: str) -> None:
        self.net = net.requires_grad_(False).eval()
        self.names = names
        self.feature_dim = net.config.feature_dim
        self.frame = Frame(net.config.resolution, "squash")
        self.name = f"grid-{net.config.resolution}"
        read = {"resolution", "classes", "channels", "residual_blocks", "feature_dim", "least_score", "overlap", "most"}
        said = {"weights": weights, "names": names, "settings": net.config.model_dump(include=read)}
        self.digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        """Where its net is now."""
        return self.net.out.weight.device

    @torch.no_grad()
    def detect(self, pictures: Tensor) -> list[Detections]:
        """As `Detector.detect`."""
        check_pictures(pictures)
        with one_thread():
            return [one for part in self._parts(pictures) for one in self._found(self.net(part))]

    def find(self, pictures: Tensor) -> tuple[list[Detections], Tensor]:
        """As `OnePassDetector.find`."""
        found: list[Detections] = []
        maps = []
        with one_thread():
            for part in self._parts(pictures):
                maps.append(self.net.features(part))
                with torch.no_grad():
                    found += self._found(self.net.judge(maps[-1]))
        return found, torch.cat(maps) if maps else self.features(pictures)

    def _found(self, prediction: GridPrediction) -> list[Detections]:
        if not all(x.isfinite().all() for x in (prediction.boxes, prediction.objectness, prediction.classes)):
            raise WeightsMissing(
                f"{self.name} finds boxes that are no numbers: its weights are damaged, train it again"
            )
        return found_in(prediction, self.net.config)

    def features(self, pictures: Tensor) -> Tensor:
        """As `RegionDetector.features`: the net's deepest map, an eighth of the side it learned from."""
        maps = [self.net.features(part) for part in self._parts(pictures)]
        side = self.net.config.resolution // STRIDE
        return torch.cat(maps) if maps else torch.zeros(0, self.feature_dim, side, side, device=self.device)

    def on_map(self, boxes: Tensor, height: int, width: int) -> Tensor:
        """As `RegionDetector.on_map`."""
        return self.frame.enclose(boxes, height, width)

    def _parts(self, pictures: Tensor) -> list[Tensor]:
        if not len(pictures):
            return []
        whole = (self.frame.enter(pictures.to(self.device)) * 2 - 1).to(self.net.out.weight.dtype)
        return list(torch.split(whole, 1)) if one_by_one(self.device) else [whole]


def open_grid_detector(folder: Path) -> GridDetector:
    """The detector in a trained part's folder: detector.safetensors, part.json with its settings, and classes.json with
    the names of its classes, where that is there. On the CPU. Raises WeightsMissing."""
    file = existing(folder / f"{NET}.safetensors", "the grid detector")
    config = _described(folder)
    net = GridNet(config)
    fill(net, file, f"the grid detector that {PART} beside it describes")
    return GridDetector(net, _names(folder / CLASSES, config.classes), file_digest(file))


def _described(folder: Path) -> GridDetectorConfig:
    try:
        return part_settings(folder, STAGE, GridDetectorConfig)
    except ValueError as error:
        raise WeightsMissing(
            f"{folder / PART} does not describe a {STAGE} ({error}): restore that folder, or train the part again"
        ) from error


def _names(file: Path, classes: int) -> tuple[str, ...]:
    """The named classes, then numbers for those that the data never had."""
    try:
        named = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        if not isinstance(named, list) or len(named) > classes or not all(isinstance(name, str) for name in named):
            raise ValueError("something else is there")
    except (OSError, ValueError) as error:
        raise WeightsMissing(
            f"{file} is no JSON list of at most {classes} class names ({error}): restore it, or remove it"
        ) from error
    return (*named, *(f"class {number}" for number in range(len(named), classes)))


class GridDetectorPart(Trainable[GridDetectorConfig]):
    """The detector as a part that is trained before those who look for salient boxes."""

    name = STAGE
    title = "A grid detector, trained on the data's boxes: for data whose things no published detector knows"
    Config = GridDetectorConfig
    needs = frozenset({"images", "boxes"})
    transform = "attngan"
    reads = frozenset({"objects"})

    def build(self, config: GridDetectorConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """Trained "detector"."""
        return {NET: GridNet(config)}

    def optimizers(self, config: GridDetectorConfig) -> Mapping[str, AdamSettings]:
        return {NET: config.optimizer}

    def phases(self, config: GridDetectorConfig) -> Sequence[Phase]:
        """Boxes, classes and objectness at once."""
        weights = (config.box_weight, config.class_weight, config.objectness_weight)

        def losses(nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
            assert batch.images is not None and batch.objects is not None
            prediction: GridPrediction = nets[NET](batch.images)
            return {NET: detector_objective(prediction, batch.objects, config.radius, weights, context.ranks)}

        return [Phase(NET, (NET,), losses)]

    def find(self, nets: Nets, images: Tensor) -> list[Detections]:
        """As `models.contract.Finder.find`."""
        net = cast(GridNet, nets[NET])
        training = net.training
        with torch.no_grad():
            prediction: GridPrediction = net.eval()(images)
        net.train(training)
        return found_in(prediction, net.config)
