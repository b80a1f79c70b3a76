"""Whether a word's memory points at the things that the word names: a check of the memory, not in the paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.detectors.boxes import pairwise_iou

PointingRule = Literal["overlap", "centre"]
LEAST_OVERLAP = 0.5
"""Intersection over union above which a box is a thing's: the common bar of detection (PASCAL VOC)."""


@dataclass(frozen=True, slots=True)
class PointingShare:
    """share: of entries that point at a named thing; chance: the same for a random region of the same pictures; count:
    of entries. Both shares are in [0, 1], and nan without entries."""

    share: float
    chance: float
    count: int


def pointing_share(
    boxes: Tensor, regions: Sequence[Tensor], things: Sequence[Tensor], rule: PointingRule = "overlap"
) -> PointingShare:
    """How often K entries of a word point at what it names.

    boxes: (K,4), each entry's own; regions: of each entry's picture, all boxes (R,4) that it could have been; things:
    of each entry's picture, the annotated boxes (M,4) of what the word names, none where it is not there. All are x0,
    y0, x1, y1 of one scale. "overlap": by more than half, intersection over union; "centre": the box's centre lies in
    the thing. Raises ValueError where the lengths differ or an entry's picture has no region.
    """
    if not len(boxes) == len(regions) == len(things):
        raise ValueError(f"{len(boxes)} boxes, {len(regions)} pictures' regions and {len(things)} pictures' things")
    if any(not len(found) for found in regions):
        raise ValueError("an entry's picture has no region: give all regions of the picture that the entry is of")
    if not len(boxes):
        return PointingShare(float("nan"), float("nan"), 0)
    right, chance = [], []
    for box, found, named in zip(boxes, regions, things, strict=True):
        right.append(points_at(box[None], named, rule))
        chance.append(points_at(found, named, rule).double().mean())
    return PointingShare(torch.cat(right).double().mean().item(), torch.stack(chance).mean().item(), len(boxes))


def points_at(boxes: Tensor, things: Tensor, rule: PointingRule = "overlap") -> Tensor:
    """(K,) bool: which boxes (K,4) point at one of the things (M,4), see `pointing_share`."""
    if rule == "overlap":
        hits = pairwise_iou(boxes, things) > LEAST_OVERLAP
    else:
        centre = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
        hits = ((centre >= things[None, :, :2]) & (centre <= things[None, :, 2:])).all(2)
    return hits.any(1)
