"""Which mask of a retrieved picture a mentioned class gets: the one that fits the hull of its trace best.

TReCS, section 2.2: of the masks of the class in the k pictures that best match the narrative, the one with the highest
intersection over union (IoU) with the hull. Masks are compared as run-length codes, without being drawn.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Code = dict[str, Any]
"""pycocotools' compressed run-length code of a mask."""
Centre = Literal["box", "centroid"]
"""Where the middle of a mask is: of the box around it, or of its pixels."""
Place = Literal["original", "centred"]
"""Where a mask lies when it is compared: where its picture has it, or with its middle on the hull's."""


@dataclass(frozen=True, slots=True, eq=False)
class PictureMasks:
    """The M masks of one picture: one for each thing, and one for each kind of stuff.

    codes: of masks (H,W); labels, instances: (M,) int64, as its label map has them; stuff has instance 0.
    """

    codes: tuple[Code, ...]
    labels: NDArray[np.int64]
    instances: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """A mask: its picture's place among the retrieved ones, its place among that picture's masks, and its IoU."""

    picture: int
    place: int
    iou: float
    code: Code

    def mask(self) -> NDArray[np.bool_]:
        """(H,W), where its picture has it."""
        return decoded(self.code)


def picture_masks(labels: NDArray[np.integer], instances: NDArray[np.integer], wanted: Collection[int]) -> PictureMasks:
    """The masks of the classes in `wanted`, by class and then by instance; labels and instances: (H,W).

    A thing without a number of its own, such as a crowd, has one mask for all pixels of its class.
    """
    # One number a pixel: its class and its instance.
    numbers = labels.astype(np.int64) * (int(instances.max(initial=0)) + 1) + instances
    inside = np.isin(labels, list(wanted))
    found, first = np.unique(numbers[inside], return_index=True)
    return PictureMasks(
        tuple(encoded([numbers == number for number in found])),
        labels[inside][first].astype(np.int64),
        instances[inside][first].astype(np.int64),
    )


def choose_masks(
    wanted: Sequence[tuple[int, NDArray[np.bool_]]],
    pictures: Sequence[PictureMasks],
    place: Place = "original",
    centre: Centre = "box",
) -> list[Choice | None]:
    """For each mention, the class with its hull (H,W), the best mask of that class; None where no picture has one.

    pictures: the retrieved ones, best first, with masks of the hulls' size; of masks that fit as well the first one of
    the better picture. The paper compares masks where their pictures have them ("original") as far as it says; centre:
    for "centred". Raises ValueError for a hull of another size than the masks.
    """
    where = [(picture, one) for picture, masks in enumerate(pictures) for one in range(len(masks.codes))]
    codes = [code for masks in pictures for code in masks.codes]
    labels = np.concatenate([np.empty(0, np.int64), *(masks.labels for masks in pictures)])
    if any(tuple(codes[0]["size"]) != hull.shape for _, hull in wanted if codes):
        raise ValueError(f"masks are {codes[0]['size']} and not as high and wide as every hull")
    hulls = encoded([hull for _, hull in wanted])
    found: list[Choice | None] = []
    for (label, hull), code in zip(wanted, hulls, strict=True):
        own = np.flatnonzero(labels == label)
        candidates = [codes[one] for one in own]
        if not candidates:
            found.append(None)
            continue
        if place == "centred":
            compared = encoded([centred(decoded(candidate), hull, centre) for candidate in candidates])
        else:
            compared = candidates
        overlaps = intersection_over_union(compared, code)
        best = int(overlaps.argmax())
        picture, one = where[own[best]]
        found.append(Choice(picture, one, float(overlaps[best]), candidates[best]))
    return found


def intersection_over_union(codes: Sequence[Code], hull: Code) -> NDArray[np.float64]:
    """(M,) of each code with the hull's; 0 where they share no pixel."""
    if not codes:
        return np.empty(0)
    return np.asarray(coco_mask.iou(list(codes), [hull], [0]), np.float64).reshape(-1)


def encoded(masks: Sequence[NDArray[np.bool_]]) -> list[Code]:
    """The codes of masks (H,W) of one size."""
    if not masks:
        return []
    found: list[Code] = coco_mask.encode(np.asfortranarray(np.stack(masks, -1), np.uint8))
    return found


def decoded(code: Code) -> NDArray[np.bool_]:
    """(H,W) of a code."""
    return np.ascontiguousarray(coco_mask.decode(code), np.bool_)


def middle(mask: NDArray[np.bool_], centre: Centre = "box") -> NDArray[np.float64] | None:
    """(2,) y and x of a mask's middle, in pixels; None where it has no pixel."""
    if not mask.any():
        return None
    return _MIDDLES[centre](mask)


def _box_middle(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    edges = [np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0)]
    return np.array([(first + last + 1) / 2 for first, last in edges])


def _centroid(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.array([places.mean() + 0.5 for places in np.nonzero(mask)])


_MIDDLES: dict[Centre, Callable[[NDArray[np.bool_]], NDArray[np.float64]]] = {
    "box": _box_middle,
    "centroid": _centroid,
}


def centred(mask: NDArray[np.bool_], hull: NDArray[np.bool_], centre: Centre = "box") -> NDArray[np.bool_]:
    """The mask moved by whole pixels so that its middle is on the hull's; what leaves the picture is cut off.

    Half a pixel goes down and to the right. A mask or a hull without a pixel leaves the mask where it is.
    """
    start, end = middle(mask, centre), middle(hull, centre)
    if start is None or end is None:
        return mask
    down, right = np.floor(end - start + 0.5).astype(int).tolist()
    return _moved(mask, down, right)


def _moved(mask: NDArray[np.bool_], down: int, right: int) -> NDArray[np.bool_]:
    moved = np.zeros_like(mask)
    height, width = mask.shape
    source = mask[max(-down, 0) : max(height - down, 0), max(-right, 0) : max(width - right, 0)]
    rows, columns = source.shape
    moved[max(down, 0) :, max(right, 0) :][:rows, :columns] = source
    return moved
