"""One record type for every data set: what an image carries; what it lacks is None."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the published picture."""


@dataclass(frozen=True, slots=True)
class Caption:
    """One written description. `id` is the published caption id, or the caption's place where none is published."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Instance:
    """One thing or one region of stuff in a picture.

    `segmentation` is COCO's own JSON text (polygons or RLE), undecoded: `orchestration.data.masks` draws it. None
    where only a box is published.
    """

    category: str
    category_id: int
    box: Box
    segmentation: bytes | None
    area: float
    crowd: bool


@dataclass(frozen=True, slots=True)
class PanopticSegment:
    """One segment of a panoptic map: its id is R + 256 G + 65536 B of its pixels."""

    id: int
    category: str
    category_id: int
    thing: bool
    box: Box
    area: float
    crowd: bool


@dataclass(frozen=True, slots=True)
class Panoptic:
    """A panoptic segmentation. `map` is an RGB PNG: a file, or its bytes."""

    map: Path | bytes
    segments: tuple[PanopticSegment, ...]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A node of a scene graph. `other_names` are those published beside its first one."""

    id: int
    name: str
    attributes: tuple[str, ...]
    box: Box
    other_names: tuple[str, ...] = ()


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

    Each trace is float64 (N,3): x and y in picture widths and heights (published files have values outside 0..1), t
    in seconds. Utterances and traces may be read from disk when they are touched. `tags` is one label a word of the
    caption, as TReCS released them.
    """

    annotator_id: int
    caption: str
    utterances: Sequence[Utterance]
    traces: Sequence[NDArray[np.float64]]
    tags: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image and all that its data set says about it.

    `image_id` is the published id where that is a number; elsewhere it is the image's place in its split, and `key` is
    the published id. `file` is absolute, or relative to the data set's folder once prepared.
    """

    image_id: int
    file: Path
    width: int
    height: int
    key: str | None = None
    captions: tuple[Caption, ...] | None = None
    class_id: int | None = None
    class_name: str | None = None
    subject_box: Box | None = None  # the picture's one subject (CUB's bird)
    instances: tuple[Instance, ...] | None = None
    stuff: tuple[Instance, ...] | None = None  # COCO-Stuff's JSON
    stuff_map: Path | bytes | None = None  # PNG, one COCO-Stuff label a pixel: a file, or its bytes
    panoptic: Panoptic | None = None
    graph: SceneGraph | None = None
    narratives: tuple[Narrative, ...] | None = None

    @property
    def carries(self) -> frozenset[str]:
        """What of `CONTENTS` this image has."""
        return frozenset(name for name, present in CONTENTS.items() if present(self))


CONTENTS: Mapping[str, Callable[[ImageRecord], bool]] = {
    "images": lambda record: True,
    "captions": lambda record: bool(record.captions),
    "class": lambda record: record.class_id is not None,
    "subject-box": lambda record: record.subject_box is not None,
    "boxes": lambda record: record.instances is not None,
    "masks": lambda record: any(thing.segmentation is not None for thing in record.instances or ()),
    "stuff": lambda record: record.stuff_map is not None or record.stuff is not None,
    "panoptic": lambda record: record.panoptic is not None,
    "labels": lambda record: any((record.stuff_map, record.stuff, record.panoptic)),
    "graph": lambda record: record.graph is not None,
    "narratives": lambda record: bool(record.narratives),
    "traces": lambda record: any(len(said.traces) for said in record.narratives or ()),
}
"""What a record may carry, and so what a system may need, each with its test."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One split of one data set, read and checked.

    `carries` names what at least one record has; `digest` (sha256, hex) depends on the annotations' bytes and the
    images' names and sizes, not on where the folder lies; `complete` names what every record is known to have.
    """

    name: str  # the format it was published in, e.g. "coco"; "scenes" for generated ones
    split: str  # "train", "val" or "test"
    root: Path
    records: Sequence[ImageRecord]
    carries: frozenset[str]
    digest: str
    complete: frozenset[str] = frozenset({"images"})

    def having(self, needs: Iterable[str]) -> "Dataset":
        """The records that carry all of `needs`. Where none is left out, this very data set."""
        wanted = frozenset(needs)
        if wanted <= self.complete:
            return self
        kept = tuple(record for record in self.records if wanted <= record.carries)
        if len(kept) == len(self.records):
            return self
        digest = hashlib.sha256(f"{self.digest} having {sorted(wanted)}".encode()).hexdigest()
        return replace(self, records=kept, carries=carried(kept), digest=digest, complete=self.complete | wanted)


def carried(records: Iterable[ImageRecord]) -> frozenset[str]:
    """What at least one of the records carries."""
    found: frozenset[str] = frozenset()
    for record in records:
        if len(found) == len(CONTENTS):
            break
        found |= record.carries
    return found
