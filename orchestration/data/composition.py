"""A segmentation put together from masks of other pictures: things on their traces, over one picture's stuff.

TReCS, section 2.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from models.contract import LabelMaps
from orchestration.data.mask_choice import Centre, centred


@dataclass(frozen=True, slots=True, eq=False)
class Thing:
    """A mentioned thing: its class, its mask (H,W) where its own picture has it, and the hull (H,W) of its trace."""

    label: int
    mask: NDArray[np.bool_]
    hull: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """A composed segmentation.

    labels: (H,W) int64, the number of classes where there is nothing near to go by; instances: (H,W) int64, the place
    of each pasted thing among those mentioned, from 1, and 0 in stuff; stuff: (H,W) int64, the layer under the things.
    """

    labels: NDArray[np.int64]
    instances: NDArray[np.int64]
    stuff: NDArray[np.int64]


def compose(
    things: Sequence[Thing], segmentation: NDArray[np.integer], stuff: Sequence[bool], centre: Centre = "box"
) -> Canvas:
    """The canvas of things in order of mention over the stuff of a segmentation (H,W).

    Each thing's middle is put on its hull's, what leaves the canvas is cut off, and the first one mentioned is on top.
    stuff: for each class, whether it is no thing; the segmentation's things are not taken over. A segmentation that is
    "don't care" (the number of classes) everywhere stands for none: pixels without a thing then stay so.
    Raises ValueError for masks and hulls of another size, and for a label that is no class.
    """
    under = stuff_layer(segmentation, stuff)
    labels, instances = under.copy(), np.zeros_like(under)
    for number, thing in reversed(list(enumerate(things, 1))):
        if thing.mask.shape != under.shape or thing.hull.shape != under.shape:
            raise ValueError(f"thing {number} is {thing.mask.shape} on {thing.hull.shape}, the canvas {under.shape}")
        if not 0 <= thing.label < len(stuff):
            raise ValueError(f"thing {number} has label {thing.label}, which is none of {len(stuff)} classes")
        shown = centred(thing.mask, thing.hull, centre)
        labels[shown], instances[shown] = thing.label, number
    return Canvas(labels, instances, under)


def stuff_layer(segmentation: NDArray[np.integer], stuff: Sequence[bool]) -> NDArray[np.int64]:
    """(H,W) int64: the stuff of a segmentation; other pixels take the nearest stuff pixel's label.

    A segmentation without stuff gives "don't care" (the number of classes) everywhere.
    """
    known = np.array([*stuff, False])[segmentation]
    if not known.any():
        return np.full(segmentation.shape, len(stuff), np.int64)
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return segmentation[tuple(nearest)].astype(np.int64)


def choose_stuff(
    wanted: Sequence[tuple[int, NDArray[np.bool_]]], segmentations: NDArray[np.integer]
) -> tuple[int, float]:
    """Which of K segmentations (K,H,W) has the stuff that fits best, and how well.

    wanted: each mention of stuff, its class with its hull (H,W). How well is the mean over the mentions of the IoU of
    the hull with all pixels of its class, 0 where there are none. Of those that fit as well, and without a mention of
    stuff, the first: segmentations are in the order of retrieval. Raises ValueError for none.
    """
    if not len(segmentations):
        raise ValueError("there is no segmentation to take stuff from")
    if not wanted:
        return 0, 0.0
    fits = np.zeros((len(wanted), len(segmentations)))
    for row, (label, hull) in enumerate(wanted):
        own = segmentations == label
        shared, either = (own & hull).sum((1, 2)), (own | hull).sum((1, 2))
        fits[row] = shared / np.maximum(either, 1)
    means = fits.mean(0)
    best = int(means.argmax())
    return best, float(means[best])


def label_maps_of(canvases: Sequence[Canvas]) -> LabelMaps:
    """Canvases of one size as generators read them."""
    labels, instances = ([getattr(canvas, name) for canvas in canvases] for name in ("labels", "instances"))
    return LabelMaps(torch.from_numpy(np.stack(labels)), torch.from_numpy(np.stack(instances)))
