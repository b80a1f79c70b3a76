"""The JSON files that MS-COCO publishes (cocodataset.org, data format), as far as they are read."""

from typing import Annotated, Protocol

import msgspec

from orchestration.data.json_files import Id, Name, Size


# Structs outside the garbage collector: a file has a million of them, none of them in a cycle.
class Image(msgspec.Struct, gc=False, frozen=True):
    id: Id
    file_name: Name
    width: Size
    height: Size


class CaptionEntry(msgspec.Struct, gc=False):
    id: Id
    image_id: Id
    caption: str


class CaptionsFile(msgspec.Struct):
    images: list[Image]
    annotations: list[CaptionEntry]


class Category(msgspec.Struct, gc=False):
    id: Id
    name: Name
    isthing: int = 1


class RegionEntry(msgspec.Struct, gc=False):
    """A thing, or a region of stuff. The segmentation is a view that keeps the whole file in memory."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: int
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class RegionsFile(msgspec.Struct):
    images: list[Image]
    annotations: list[RegionEntry]
    categories: list[Category]


class SegmentEntry(msgspec.Struct, gc=False):
    id: Annotated[int, msgspec.Meta(ge=1, le=2**24 - 1)]
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: int = 0


class PanopticEntry(msgspec.Struct, gc=False):
    image_id: Id
    file_name: Name
    segments_info: list[SegmentEntry]

    @property
    def id(self) -> int:
        return self.image_id


class PanopticFile(msgspec.Struct):
    images: list[Image]
    annotations: list[PanopticEntry]
    categories: list[Category]


class Owned(Protocol):
    """What belongs to one image."""

    @property
    def id(self) -> int: ...
    @property
    def image_id(self) -> int: ...
