"""COCO's masks drawn: polygons, run-length codes (RLE), COCO-Stuff's label maps and panoptic maps.

Formats: cocodataset.org (data format), Caesar et al. 2018 (COCO-Stuff), Kirillov et al. 2019 (panoptic).
"""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from orchestration.data.coco_stuff import LABELS, UNLABELLED
from orchestration.data.json_files import clause, read_bytes
from orchestration.data.records import ImageRecord, Instance
from orchestration.errors import RequestError

_LARGEST = 2**28  # pixels; what is larger would not fit into memory either, and overflows pycocotools' 32 bits
_OTHER = 183  # stuff files put all pixels of things under this category

_Run = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class _Rle(msgspec.Struct):
    size: tuple[int, int]
    counts: str | list[_Run]


class _RleSize(msgspec.Struct):
    size: tuple[int, int]


_SEGMENTATION = msgspec.json.Decoder(list[list[float]] | _Rle)
_RLE_SIZE = msgspec.json.Decoder(_RleSize)


class _Fault(Exception):
    """Its text is a clause."""


def draw_mask(segmentation: bytes, width: int, height: int) -> NDArray[np.bool_]:
    """(H,W): the union of polygons as pycocotools fills them, or the pixels of an RLE, compressed or not.

    `segmentation` is COCO's JSON text. Raises RequestError for one that is broken or of another size than the image.
    """
    try:
        shape = _decoded(segmentation, width, height)
    except _Fault as fault:
        raise RequestError(f"the segmentation cannot be drawn: {fault}; mend its annotation or remove it.") from fault
    if isinstance(shape, list):
        codes = coco_mask.frPyObjects(shape, height, width)
        return np.ascontiguousarray(coco_mask.decode(coco_mask.merge(codes)), np.bool_)
    inside = np.arange(len(shape)) % 2 == 1  # runs alternate, from outside, down the columns
    return np.ascontiguousarray(np.repeat(inside, shape).reshape(width, height).T)


def draw_region(record: ImageRecord, region: Instance) -> NDArray[np.bool_]:
    """(H,W): the mask of one of the record's things or regions. RequestError, with its name, for a broken one."""
    try:
        return draw_mask(region.segmentation or b"null", record.width, record.height)
    except RequestError as error:
        raise RequestError(f"image {record.image_id}: {region.category!r}: {error}") from error


def mask_fault(segmentation: bytes, width: int, height: int) -> str | None:
    """What keeps `draw_mask` from drawing this, as a clause; None where it can be drawn."""
    try:
        _decoded(segmentation, width, height)
    except _Fault as fault:
        return str(fault)
    return None


def size_fault(segmentation: bytes, width: int, height: int) -> str | None:
    """The clause about an RLE of another size than its image; None for any other segmentation. Quick."""
    if segmentation[:1] != b"{":
        return None
    try:
        size = _RLE_SIZE.decode(segmentation).size
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return None if size == (height, width) else _sizes(size, width, height)


def label_map(record: ImageRecord) -> NDArray[np.uint8]:
    """COCO-Stuff's 182 labels, (H,W): a category id less one; 255 is unlabelled.

    The published map where the record has one. Else it is drawn: first the stuff, in file order and without "other"
    (category 183, the pixels of things); then the things over it, crowds first and then the larger ones first, so
    that what is small stays in sight.
    Raises RequestError for a record without stuff, and for a map or region that is broken or of another size.
    """
    if record.stuff_map is not None:
        return _published_labels(record, record.stuff_map)
    if record.stuff is None:
        raise RequestError(
            f"image {record.image_id} has no stuff, so there is no label map of it; add stuffthingmaps/ or the "
            "stuff_*.json of its split to the data set."
        )
    labels = np.full((record.height, record.width), UNLABELLED, np.uint8)
    _paint(labels, record, (region for region in record.stuff if region.category_id != _OTHER))
    _paint(labels, record, sorted(record.instances or (), key=lambda thing: (not thing.crowd, -thing.area)))
    return labels


def panoptic_ids(record: ImageRecord) -> NDArray[np.int32]:
    """Segment ids of the panoptic map, (H,W): R + 256 G + 65536 B; 0 is unlabelled.

    Raises RequestError for a record without one, and for a map that is broken or of another size than the image.
    """
    if record.panoptic is None:
        raise RequestError(f"image {record.image_id} has no panoptic map; add panoptic_*.json and its maps.")
    colours = _pixels(record, record.panoptic.map, ("RGB",), "panoptic map").astype(np.int32)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


def _decoded(segmentation: bytes, width: int, height: int) -> list[list[float]] | NDArray[np.int64]:
    """Polygons, or the runs of an RLE, fit to be drawn. Raises _Fault."""
    if width * height > _LARGEST:
        raise _Fault(f"its image of {width} x {height} px is too large to draw masks of")
    try:
        found = _SEGMENTATION.decode(segmentation)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Fault(clause(segmentation, error)) from error
    return _sound_polygons(found, width, height) if isinstance(found, list) else _sound_runs(found, width, height)


def _sound_polygons(polygons: list[list[float]], width: int, height: int) -> list[list[float]]:
    if not polygons:
        raise _Fault("it holds no polygon")
    for place, polygon in enumerate(polygons):
        if len(polygon) < 6 or len(polygon) % 2:
            raise _Fault(f"polygon {place} has {len(polygon)} numbers, not two for each of at least three points")
        for values, side, name in ((polygon[0::2], width, "x"), (polygon[1::2], height, "y")):
            # Published polygons leave the image by a pixel or two; memory for far ones has no bound.
            if min(values) < -side or max(values) > 2 * side:
                far = min(values) if min(values) < -side else max(values)
                raise _Fault(f"polygon {place} has {name} = {far:g}, far outside of its image of {width} x {height} px")
    return polygons


def _sound_runs(rle: _Rle, width: int, height: int) -> NDArray[np.int64]:
    if rle.size != (height, width):
        raise _Fault(_sizes(rle.size, width, height))
    runs = _expanded(rle.counts) if isinstance(rle.counts, str) else np.array(rle.counts, np.int64)
    if (runs < 0).any():
        raise _Fault("counts holds a negative run")
    if runs.sum() != width * height:
        raise _Fault(f"counts covers {runs.sum()} pixels of the image's {width * height}")
    return runs


def _sizes(size: tuple[int, int], width: int, height: int) -> str:
    return f"size is [{size[0]}, {size[1]}], but its image is {height} px high and {width} px wide"


def _expanded(text: str) -> NDArray[np.int64]:
    """Runs from COCO's compressed text.

    A character is 48 plus six bits: five of a number, the low ones first, and one that says whether more follow. The
    top bit of a number is its sign. From the fourth on, a number is told from the last but one before it.
    """
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any():
        raise _Fault("counts holds a character that is of no RLE")
    ends = np.flatnonzero(codes < 32)
    if not len(codes) or ends[-1:].tolist() != [len(codes) - 1]:
        raise _Fault("counts is cut short")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits hold every run
        raise _Fault("counts holds a run longer than any image")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _paint(labels: NDArray[np.uint8], record: ImageRecord, regions: Iterable[Instance]) -> None:
    for region in regions:
        if region.segmentation is None:
            continue
        if not 1 <= region.category_id <= len(LABELS):
            raise RequestError(
                f"image {record.image_id}: {region.category!r} is category {region.category_id}, and COCO-Stuff has 1 "
                f"to {len(LABELS)}; a label map needs COCO-Stuff's own ids."
            )
        labels[draw_region(record, region)] = region.category_id - 1


def _published_labels(record: ImageRecord, content: Path | bytes) -> NDArray[np.uint8]:
    labels = _pixels(record, content, ("L", "P"), "stuff map")
    if (strange := labels[(labels >= len(LABELS)) & (labels != UNLABELLED)]).size:
        raise RequestError(
            f"{_name(record, content, 'stuff map')} holds label {strange[0]}; labels are 0 to {len(LABELS) - 1}, and "
            f"{UNLABELLED} for unlabelled: fetch the file again."
        )
    return labels


def _pixels(record: ImageRecord, content: Path | bytes, modes: tuple[str, ...], what: str) -> NDArray[np.uint8]:
    """(H,W) or (H,W,3) of a map that fits its record."""
    name = _name(record, content, what)
    file = io.BytesIO(read_bytes(content) if isinstance(content, Path) else content)
    try:
        with Image.open(file) as image:
            mode, size = image.mode, image.size
            pixels = np.array(image)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise a dozen types on broken bytes, some of them undocumented
        raise RequestError(f"{name} does not decode; fetch the file again or remove it.") from error
    if mode not in modes:
        raise RequestError(f"{name} has pixels of mode {mode} instead of {modes[0]}; fetch the published file.")
    if size != (record.width, record.height):
        raise RequestError(
            f"{name} is {size[0]} x {size[1]} px, but its image is annotated as {record.width} x {record.height} px; "
            "fetch the published file."
        )
    return pixels


def _name(record: ImageRecord, content: Path | bytes, what: str) -> str:
    return f"{what} {content}" if isinstance(content, Path) else f"the {what} of image {record.image_id}"
