"""What a detector of objects is to whoever uses one: pictures in, boxes with classes and scores out."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.contract import Settings

Kind = Literal["yolov3", "transformers", "onnx-fastestdet"]
Fit = Literal["squash", "letterbox"]
Suppression = Literal["merge", "greedy", "none"]


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one picture, the highest score first.

    boxes: (M,4) float32, x0, y0, x1, y1 in [0, 1] of the picture; scores: (M,) in [0, 1]; classes: (M,) int64, places
    in the detector's `names`. On the CPU, whatever device the net is on.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Tensor | slice) -> "Detections":
        """Those detections that `rows` (a mask, places or a slice) picks."""
        return Detections(self.boxes[rows], self.scores[rows], self.classes[rows])


@runtime_checkable
class Detector(Protocol):
    """Finds objects. What it finds in a picture does not depend on the other pictures of the batch."""

    name: str
    """Kind and preparation, such as "yolov3-256-squash"."""
    digest: str
    """Hex sha256 of the weights and of every setting that changes what is found."""
    names: tuple[str, ...]
    """Its classes."""

    def detect(self, pictures: Tensor) -> list[Detections]:
        """uint8 pictures (B,3,H,W), RGB, to one `Detections` each. Raises WeightsMissing where the weights give NaN."""
        ...


@runtime_checkable
class RegionDetector(Detector, Protocol):
    """A detector that also gives the map its deepest layer sees, for features of boxes."""

    feature_dim: int
    """Channels of the map."""

    def features(self, pictures: Tensor) -> Tensor:
        """Pictures (B,3,H,W), uint8 or float32 in [0, 1], to the map (B,feature_dim,h,w) on the net's device. Weights
        are frozen; gradient flows to float pictures."""
        ...

    def on_map(self, boxes: Tensor, height: int, width: int) -> Tensor:
        """Boxes (M,4) in [0, 1] of a picture of that size, in [0, 1] of the map: it may reach beyond the picture."""
        ...


@runtime_checkable
class OnePassDetector(RegionDetector, Protocol):
    """One whose boxes are read from the very map that it gives."""

    def find(self, pictures: Tensor) -> tuple[list[Detections], Tensor]:
        """`detect` and `features` of float32 pictures (B,3,H,W) in [0, 1] for one pass. Gradient flows to the map, none
        to the boxes."""
        ...


# What each kind's own publication or released code uses. Hinz, Heinrich and Wermter's evaluation code of Semantic
# Object Accuracy runs YOLOv3 at 256 (its paper's own cfg says 416), without a threshold on the class score.
# FastestDet's released test program keeps scores above 0.65 and suppresses at 0.45.
PUBLISHED: Mapping[Kind, Mapping[str, Any]] = {
    "yolov3": {
        "side": 256,
        "fit": "squash",
        "objectness": 0.5,
        "least_score": 0.0,
        "suppression": "merge",
        "overlap": 0.4,
        "whole_pixels": True,
        "width": 32,
    },
    "onnx-fastestdet": {
        "side": 352,
        "fit": "squash",
        "objectness": 0.0,
        "least_score": 0.65,
        "suppression": "greedy",
        "overlap": 0.45,
        "whole_pixels": False,
        "width": 0,
    },
    "transformers": {
        "side": 0,
        "fit": "squash",
        "objectness": 0.0,
        "least_score": 0.5,
        "suppression": "none",
        "overlap": 0.5,
        "whole_pixels": False,
        "width": 0,
    },
}
# Fields that mean nothing for a kind: only the value above is taken.
_FIXED: Mapping[Kind, tuple[str, ...]] = {
    "yolov3": (),
    "onnx-fastestdet": ("side", "fit", "width"),
    "transformers": ("side", "fit", "objectness", "width", "names"),
}


class DetectorSettings(Settings):
    """Which detector, its weights, and what counts as found. A field left out has its kind's value in `PUBLISHED`."""

    kind: Kind
    weights: str = Field(
        min_length=1,
        description="path: darknet's .weights or our .safetensors (yolov3), an .onnx file (onnx-fastestdet), a folder "
        "with config.json, preprocessor_config.json and .safetensors (transformers)",
    )
    names: str | None = Field(
        None, description="path of a text file, one class a line in the net's order; none: COCO's 80, or the folder's"
    )
    side: int = Field(256, ge=0, description="side of the net's square input in pixels; published for YOLOv3: 416")
    fit: Fit = Field(
        "squash", description='a picture that is not square is squashed, or padded with grey ("letterbox")'
    )
    objectness: float = Field(0.5, ge=0, le=1, description="boxes whose objectness is below are left out")
    least_score: float = Field(0.0, ge=0, le=1, description="detections whose score is below are left out")
    suppression: Suppression = Field(
        "merge",
        description='boxes of one class that overlap: "merge" averages them by objectness (SOA\'s code), "greedy" '
        'keeps the best, "none" keeps all',
    )
    overlap: float = Field(0.4, ge=0, le=1, description="intersection over union above which boxes are one object")
    whole_pixels: bool = Field(True, description="overlaps count both end pixels of a side, as SOA's code does")
    most: int | None = Field(None, ge=1, description="only so many detections of a picture, the best first; none: all")
    width: int = Field(
        32, ge=0, description="channels of YOLOv3's first layer; the others grow with it (published: 32)"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {**PUBLISHED.get(given.get("kind"), {}), **given}  # type: ignore[arg-type]

    @model_validator(mode="after")
    def _check(self) -> "DetectorSettings":
        for name in _FIXED[self.kind]:
            value, only = getattr(self, name), PUBLISHED[self.kind].get(name)
            if value != only:
                raise ValueError(f"{name} is {value!r}, which {self.kind} does not take: leave it out")
        if self.kind == "yolov3":
            if self.side < 32 or self.side % 32:
                raise ValueError(f"side is {self.side}: give a multiple of 32, YOLOv3's coarsest stride")
            if self.width < 2 or self.width % 2:
                raise ValueError(f"width is {self.width}: give an even number from 2 on (published: 32)")
        elif self.suppression == "merge":
            raise ValueError(
                f"suppression is 'merge', which needs YOLOv3's objectness: {self.kind} takes greedy or none"
            )
        return self


def settings_digest(settings: DetectorSettings, names: tuple[str, ...], weights: str) -> str:
    """Hex sha256 of the weights' digest, the class names and every setting but the paths."""
    said = {"weights": weights, "names": names, "settings": settings.model_dump(exclude={"weights", "names"})}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_by_one(device: torch.device) -> bool:
    """Whether pictures go through a net alone. On the CPU kernels differ by batch size in the last bit, and a score at
    a threshold would hang on its neighbours; on a GPU one by one would be slow."""
    return device.type == "cpu"
