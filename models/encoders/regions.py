"""Salient boxes of pictures and their features, as CPGAN reads pictures (sections 3.2.1 and 3.3)."""

import hashlib
import json
from functools import cached_property
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.blocks.boxes import sample_boxes
from models.contract import Given, Regions, Settings, StageMissing, after_counts
from models.detectors.contract import (
    Detections,
    Detector,
    DetectorSettings,
    OnePassDetector,
    RegionDetector,
    file_digest,
)
from models.detectors.grid import open_grid_detector
from models.detectors.opening import open_detector
from models.encoders.trunk import RANDOM, ImageTrunk, ImageTrunkSettings, find_trunk_weights
from models.precision import at_least_float32

DETECTOR = "detector"
"""The trained part that finds boxes, where no published detector does."""


class RegionSettings(Settings):
    """Which boxes count as salient, and what is kept of them."""

    detector: DetectorSettings | None = Field(
        None, description="a published detector, such as YOLOv3 (CPGAN, section 3.2.1); none: the trained part"
    )
    trunk: ImageTrunkSettings | None = Field(
        None,
        description="the frozen net whose regions are pooled over each box; none: the detector's own deepest map, as "
        "CPGAN's 1024 numbers from YOLOv3 (section 3.2.1)",
    )
    count: int = Field(36, ge=1, description="boxes of a picture, the most confident ones (CPGAN, section 3.2.1: 36)")
    pooling: Literal["mean", "max"] = Field(
        "mean", description="how the samples of a box become its feature; the paper does not say"
    )
    samples: int = Field(
        3, ge=1, le=14, description="bilinear samples along each side of a box; the paper does not say"
    )
    folder: str | None = Field(
        None,
        min_length=1,
        description="boxes and features of your own, one folder a split in it, instead of the detector's "
        "(docs/data.md)",
    )

    @model_validator(mode="after")
    def _check(self) -> "RegionSettings":
        # With a folder of their own a person may never look at another picture.
        if self.detector is not None and self.detector.kind != "yolov3" and not (self.trunk or self.folder):
            raise ValueError(_no_features(self.detector.kind))
        return self


def _no_features(detector: str) -> str:
    return (
        f"{detector} finds boxes but gives no map to read their features from: give regions.trunk, such as "
        "--set regions.trunk.name=efficientnet-lite0, or a detector that does (yolov3, or the trained part)"
    )


class RegionNet(nn.Module):
    """Pictures to their salient boxes with features, both by frozen nets.

    detector: finds; trunk: the net whose regions are read, None for the detector's own map. Without a detector it is a
    placeholder without parameters, for "meta". feature_dim: width F of the features, 0 of a placeholder. What a picture
    gives does not depend on the other pictures of the batch. Raises ValueError for a detector without a map where there
    is no trunk either.
    """

    def __init__(self, settings: RegionSettings, detector: Detector | None, trunk: ImageTrunk | None = None) -> None:
        super().__init__()
        self.settings, self._detector = settings, detector
        # A detector is no module, but most are around one: so it moves with this.
        net = getattr(detector, "net", None)
        self.net = net if isinstance(net, nn.Module) else None
        self.trunk = trunk
        if trunk is not None:
            self.feature_dim = trunk.region_dim
        elif detector is None:
            self.feature_dim = 0
        elif isinstance(detector, RegionDetector):
            self.feature_dim = detector.feature_dim
        else:
            raise ValueError(_no_features(detector.name))
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> "RegionNet":
        """Stays in evaluation mode: its batch-norm statistics are part of its weights."""
        return self

    @property
    def detector(self) -> Detector:
        """What finds the boxes. RuntimeError for a placeholder."""
        if self._detector is None:
            raise RuntimeError("these regions were made under meta: they find nothing")
        return self._detector

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of all that boxes, scores and features depend on: weights and settings. Raises WeightsMissing."""
        kept = self.settings.model_dump(mode="json", include={"count", "pooling", "samples"})
        said = {"detector": self.detector.digest, "trunk": self._trunk_digest(), **kept}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def _trunk_digest(self) -> list[object] | None:
        if self.trunk is None:
            return None
        settings = self.trunk.settings
        path = find_trunk_weights(settings, "regions.trunk")
        return [settings.model_dump(mode="json", exclude={"weights"}), file_digest(path) if path else RANDOM]

    def forward(self, images: Tensor) -> Regions:
        """Images (B,3,H,W) in [-1, 1] to the `count` most confident boxes of each, or as many as there are.

        Boxes, scores and counts are without gradient, the features' gradient flows to the images. A detector whose
        boxes and features come from one map passes once, over the images as they are; else boxes are of the images
        rounded to bytes, which is what other detectors take.
        """
        if self.trunk is None and isinstance(self.detector, OnePassDetector):
            # The same boxes whatever precision the training around it has.
            with torch.autocast(images.device.type, enabled=False):
                found, maps = self.detector.find((at_least_float32(images) + 1) / 2)
            boxes, scores, counts = self._kept(found, images.device)
            return Regions(boxes, self._read(images, maps, boxes, counts), scores, counts)
        boxes, scores, counts = self._find(images)
        return Regions(boxes, self.describe(images, boxes, counts), scores, counts)

    def describe(self, images: Tensor, boxes: Tensor, counts: Tensor) -> Tensor:
        """Features (B,R,F) of boxes (B,R,4) in [0, 1] of the images (B,3,H,W); zero at and after counts (B,).

        Each is pooled over samples x samples points, see `sample_boxes`.
        """
        if self.trunk is not None:
            return self._read(images, self.trunk(images).regions, boxes, counts)
        assert isinstance(self.detector, RegionDetector)
        return self._read(images, self.detector.features((images + 1) / 2), boxes, counts)

    def _read(self, images: Tensor, maps: Tensor, boxes: Tensor, counts: Tensor) -> Tensor:
        placed = boxes
        if self.trunk is None:
            assert isinstance(self.detector, RegionDetector)
            placed = self.detector.on_map(boxes.flatten(0, 1), images.shape[2], images.shape[3]).view_as(boxes)
        read = sample_boxes(maps, placed, self.settings.samples)
        features = read.mean(2) if self.settings.pooling == "mean" else read.amax(2)
        return features.masked_fill(after_counts(counts, boxes.shape[1])[..., None], 0.0)

    @torch.no_grad()
    def _find(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B,R,4), scores (B,R) and counts (B,) on the images' device."""
        pictures = ((images.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        # The same boxes whatever precision the training around it has.
        with torch.autocast(images.device.type, enabled=False):
            found = self.detector.detect(pictures)
        return self._kept(found, images.device)

    def _kept(self, found: list[Detections], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        count = self.settings.count
        boxes, scores = torch.zeros(len(found), count, 4), torch.zeros(len(found), count)
        counts = torch.tensor([min(len(one), count) for one in found], dtype=torch.int64)
        for row, one in enumerate(found):
            best = _best(one, count)
            boxes[row, : len(best)], scores[row, : len(best)] = best.boxes, best.scores
        return boxes.to(device), scores.to(device), counts.to(device)


def _best(found: Detections, count: int) -> Detections:
    """The most confident ones, the best first; of equal ones those that stand first."""
    return found[torch.sort(found.scores, descending=True, stable=True).indices[:count]]


def open_region_net(given: Given) -> RegionNet:
    """The frozen net of `given.regions`, on the CPU: with its published detector, or with the trained stage's.

    Under `torch.device("meta")` a placeholder, for which nothing is opened. Raises ValueError without settings and for
    a detector without features, StageMissing without the stage, WeightsMissing.
    """
    if torch.empty(0).device.type == "meta":
        return RegionNet(RegionSettings(), None)
    settings = given.regions
    if settings is None:
        raise ValueError("salient boxes are looked for and nothing says how: give the experiment's regions")
    if settings.detector is not None:
        detector: Detector = open_detector(settings.detector, torch.device("cpu"))
    elif DETECTOR in given.folders:
        detector = open_grid_detector(given.folders[DETECTOR])
    else:
        raise StageMissing(
            f"salient boxes come from the trained stage {DETECTOR!r}, which was not given, or from a published detector"
        )
    return RegionNet(settings, detector, ImageTrunk(settings.trunk) if settings.trunk else None)
