"""YOLOv3: Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018, table 1 and section 2.

What the paper leaves to its published cfg is taken from there: leaky ReLU with slope 0.1, the layers of the three heads
and the nine anchors. Modules stand in the order in which darknet's file holds their numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detectors.boxes import corners, merge_by_objectness, selected
from models.detectors.contract import Detections, DetectorSettings, one_by_one, settings_digest
from models.detectors.framing import Frame, check_pictures
from models.encoders.image import WeightsMissing

SLOPE = 0.1
STRIDES = (32, 16, 8)
# Widths and heights in pixels of a 416 input (section 2.3): for stride 32, 16 and 8.
ANCHORS = (
    ((116, 90), (156, 198), (373, 326)),
    ((30, 61), (62, 45), (59, 119)),
    ((10, 13), (16, 30), (33, 23)),
)
BLOCKS = (1, 2, 8, 8, 4)


class Conv(nn.Module):
    """Convolution without bias, batch norm, leaky ReLU; keeps the side, or halves it with stride 2."""

    def __init__(self, width: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.conv(x)), SLOPE)


class Residual(nn.Module):
    """1x1 to half the channels, 3x3 back, plus the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.expand = Conv(width, width // 2, 1), Conv(width // 2, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.expand(self.squeeze(x))
        return x + y


class Darknet53(nn.Module):
    """Table 1 without its classifier; `width` channels after the first layer (published: 32)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = Conv(3, width, 3)
        self.levels = nn.ModuleList(
            nn.Sequential(Conv(width << i, width << (i + 1), 3, 2), *(Residual(width << (i + 1)) for _ in range(count)))
            for i, count in enumerate(BLOCKS)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,3,S,S) to maps at strides 32, 16 and 8: with width 32 of 1024, 512 and 256 channels."""
        x, maps = self.stem(x), []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps[4], maps[3], maps[2]


class Head(nn.Module):
    """Five convolutions, from which the next finer head takes over, and two more to the numbers of three anchors."""

    def __init__(self, width: int, inner: int, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            Conv(width, inner, 1),
            Conv(inner, 2 * inner, 3),
            Conv(2 * inner, inner, 1),
            Conv(inner, 2 * inner, 3),
            Conv(2 * inner, inner, 1),
        )
        self.last = Conv(inner, 2 * inner, 3)
        self.out = nn.Conv2d(2 * inner, 3 * (5 + classes), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,width,h,w) to the trunk's map (B,inner,h,w) and the raw numbers (B,3*(5+classes),h,w)."""
        trunk: Tensor = self.trunk(x)
        return trunk, self.out(self.last(trunk))


class YOLOv3(nn.Module):
    """Pictures (B,3,S,S), RGB in [0, 1], S a multiple of 32, to boxes.

    61,949,149 parameters with 80 classes and width 32, and 52,608 running statistics beside them.
    """

    def __init__(self, classes: int = 80, width: int = 32) -> None:
        super().__init__()
        self.classes, self.width = classes, width
        deep, middle, fine = 32 * width, 16 * width, 8 * width
        self.backbone = Darknet53(width)
        self.head_32 = Head(deep, middle, classes)
        self.lateral_16 = Conv(middle, fine, 1)
        self.head_16 = Head(fine + middle, fine, classes)
        self.lateral_8 = Conv(fine, fine // 2, 1)
        self.head_8 = Head(fine // 2 + fine, fine // 2, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B,N,5+classes), N = 3 (S/32)^2 (1 + 4 + 16): centre x, centre y, width, height in pixels, objectness and
        class scores in [0, 1]. Rows go by stride from 32 to 8, then row by row of the map, then by anchor."""
        return self.judge(*self.backbone(pictures))

    def judge(self, deep: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """The same of the backbone's maps."""
        trunk, raw_32 = self.head_32(deep)
        trunk, raw_16 = self.head_16(torch.cat([_double(self.lateral_16(trunk)), middle], 1))
        _, raw_8 = self.head_8(torch.cat([_double(self.lateral_8(trunk)), fine], 1))
        raws = zip((raw_32, raw_16, raw_8), ANCHORS, STRIDES, strict=True)
        return torch.cat([decode(raw, anchors, stride) for raw, anchors, stride in raws], 1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def decode(raw: Tensor, anchors: tuple[tuple[int, int], ...], stride: int) -> Tensor:
    """A head's numbers (B,A*(5+C),h,w) to rows (B,h*w*A,5+C): section 2.1 of the paper and its figure 2.

    The centre is sigmoid(t) plus its cell, the size exp(t) times the anchor; objectness and every class are
    independent sigmoids (section 2.2).
    """
    batch, channels, height, width = raw.shape
    rows = raw.view(batch, len(anchors), channels // len(anchors), height, width).permute(0, 3, 4, 1, 2)
    ys, xs = torch.meshgrid(
        torch.arange(height, device=raw.device), torch.arange(width, device=raw.device), indexing="ij"
    )
    cells = torch.stack([xs, ys], -1)[:, :, None, :]
    centre = (rows[..., :2].sigmoid() + cells) * stride
    size = rows[..., 2:4].exp() * raw.new_tensor(anchors)
    return torch.cat([centre, size, rows[..., 4:].sigmoid()], -1).flatten(1, 3)


class YOLOv3Detector:
    """A trained YOLOv3 as a `RegionDetector`; `weights` is the digest of its file."""

    def __init__(
        self, net: YOLOv3, settings: DetectorSettings, names: tuple[str, ...], weights: str, device: torch.device
    ) -> None:
        self.net = net.requires_grad_(False).eval().to(device)
        self.settings, self.names = settings, names
        self.frame = Frame(settings.side, settings.fit)
        self.name = f"yolov3-{settings.side}-{settings.fit}"
        self.digest = settings_digest(settings, names, weights)
        self.feature_dim = 32 * net.width

    @property
    def device(self) -> torch.device:
        """Where its net is now."""
        return next(self.net.parameters()).device

    @torch.no_grad()
    def detect(self, pictures: Tensor) -> list[Detections]:
        """As `Detector.detect`. A score is objectness times the class score; a merged box keeps its best one's."""
        check_pictures(pictures)
        height, width = pictures.shape[-2:]
        return [self._found(rows.cpu(), height, width) for part in self._parts(pictures) for rows in self.net(part)]

    def find(self, pictures: Tensor) -> tuple[list[Detections], Tensor]:
        """As `OnePassDetector.find`."""
        height, width = pictures.shape[-2:]
        found, maps = [], []
        for part in self._parts(pictures):
            levels = self.net.backbone(part)
            maps.append(levels[0])
            with torch.no_grad():
                found += [self._found(rows.cpu(), height, width) for rows in self.net.judge(*levels)]
        return found, torch.cat(maps) if maps else self.features(pictures)

    def features(self, pictures: Tensor) -> Tensor:
        """As `RegionDetector.features`: Darknet-53's last map, a thirty-second of the input's side."""
        maps = [self.net.backbone(part)[0] for part in self._parts(pictures)]
        side = self.settings.side // STRIDES[0]
        return torch.cat(maps) if maps else torch.zeros(0, self.feature_dim, side, side, device=self.device)

    def on_map(self, boxes: Tensor, height: int, width: int) -> Tensor:
        """As `RegionDetector.on_map`."""
        return self.frame.enclose(boxes, height, width)

    def _parts(self, pictures: Tensor) -> list[Tensor]:
        if not len(pictures):
            return []
        whole = self.frame.enter(pictures.to(self.device))
        return list(torch.split(whole, 1)) if one_by_one(self.device) else [whole]

    def _found(self, rows: Tensor, height: int, width: int) -> Detections:
        if not rows.isfinite().all():
            raise WeightsMissing(f"{self.name} finds boxes that are no numbers: its weights are damaged, give others")
        boxes, objectness, class_scores = corners(rows[:, :4]), rows[:, 4], rows[:, 5:]
        if self.settings.suppression == "merge":
            least, overlap = self.settings.objectness, self.settings.overlap
            merged = merge_by_objectness(boxes, objectness, class_scores, least, overlap)
            found = Detections(merged.boxes, merged.objectness * merged.class_scores, merged.classes)
        else:
            best, classes = class_scores.max(1)
            found = Detections(boxes, objectness * best, classes)[objectness >= self.settings.objectness]
        found = selected(found, self.settings)
        return Detections(self.frame.leave(found.boxes, height, width), found.scores, found.classes)
