"""One record type for every data set: what an image carries; what it lacks is None."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Caption:
    """One written description. `id` is the published caption id."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Instance:
    """One thing in a picture, as COCO publishes it.

    `box` is x, y, width, height in pixels; `segmentation` is COCO's own form (polygons or RLE, read by pycocotools).
    """

    category: str
    box: tuple[float, float, float, float]
    segmentation: Any
    area: float
    crowd: bool


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A node of a scene graph; `box` is x, y, width, height in pixels."""

    id: int
    name: str
    attributes: tuple[str, ...]
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class SceneGraph:
    """Objects and (subject id, predicate, object id) relationships, as Visual Genome publishes them."""

    objects: tuple[SceneObject, ...]
    relationships: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True, slots=True)
class Utterance:
    """A spoken stretch of a narrative, start and end in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Narrative:
    """A Localized Narrative: spoken caption, timed utterances and mouse traces.

    Each trace is (N,3): x and y in picture widths and heights (published files have values outside 0..1), t in seconds.
    """

    annotator_id: int
    caption: str
    utterances: tuple[Utterance, ...]
    traces: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image and all that its data set says about it."""

    image_id: int
    file: Path
    width: int
    height: int
    captions: tuple[Caption, ...] | None = None
    instances: tuple[Instance, ...] | None = None
    stuff_map: Path | None = None  # PNG, one COCO-Stuff label id a pixel
    graph: SceneGraph | None = None
    narratives: tuple[Narrative, ...] | None = None


class Dataset(Protocol):
    """One split of one data set, read and checked."""

    @property
    def name(self) -> str: ...  # e.g. "coco"

    @property
    def split(self) -> str: ...  # "train", "val" or "test"

    @property
    def records(self) -> Sequence[ImageRecord]: ...

    @property
    def carries(self) -> frozenset[str]: ...  # of "images", "captions", "instances", "stuff", "graph", "narratives"

    @property
    def digest(self) -> str: ...  # sha256 (hex) of the annotation bytes and image names and sizes
