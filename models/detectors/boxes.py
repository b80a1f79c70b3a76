"""Boxes: overlap, and making one of several that show the same object."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.detectors.contract import Detections, DetectorSettings


@dataclass(frozen=True, slots=True)
class Merged:
    """Boxes after merging, in the order they were kept: boxes (M,4), objectness (M,), class_scores (M,), classes (M,)
    int64."""

    boxes: Tensor
    objectness: Tensor
    class_scores: Tensor
    classes: Tensor


def corners(boxes: Tensor) -> Tensor:
    """(...,4) centre x, centre y, width, height to x0, y0, x1, y1."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def pairwise_iou(first: Tensor, second: Tensor, whole_pixels: bool = False) -> Tensor:
    """Intersection over union (N,M) of boxes (N,4) and (M,4), each x0, y0, x1, y1.

    whole_pixels: corners are pixels that belong to the box, so that a side is x1 - x0 + 1 (the form of PASCAL VOC's
    development kit, and of SOA's code); boxes must be in pixels then. Two boxes without area overlap by 0.
    """
    extra = 1.0 if whole_pixels else 0.0
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low + extra).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + extra).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(shared))


def greedy_nms(boxes: Tensor, scores: Tensor, classes: Tensor, overlap: float, whole_pixels: bool = False) -> Tensor:
    """Places (M,) of the boxes that stay, the best first; boxes (N,4), scores (N,), classes (N,).

    The best box stays and those of its class that overlap it by more than `overlap` go, and so on. Of equal scores the
    one that stands first is the better.
    """
    return torch.tensor(
        [group[0] for group in _groups(boxes, scores, classes, overlap, whole_pixels)], dtype=torch.int64
    )


def merge_by_objectness(
    boxes: Tensor, objectness: Tensor, class_scores: Tensor, least_objectness: float, overlap: float
) -> Merged:
    """Suppression in SOA's evaluation code (Hinz, Heinrich and Wermter, 2020): boxes (N,4) in pixels, objectness (N,),
    class_scores (N,C).

    Boxes of at least `least_objectness` stay, whatever their class score; each belongs to its best class. In the order
    of objectness times class score a box takes in those of its class that overlap it by more than `overlap`, and
    becomes their mean weighted by objectness. Its objectness and class score stay its own.
    """
    kept = objectness >= least_objectness
    boxes, objectness = boxes[kept], objectness[kept]
    best, classes = class_scores[kept].max(1)
    groups = _groups(boxes, objectness * best, classes, overlap, whole_pixels=True)
    first = torch.tensor([group[0] for group in groups], dtype=torch.int64)
    merged = [(objectness[group, None] * boxes[group]).sum(0) / objectness[group].sum() for group in groups]
    return Merged(
        torch.stack(merged) if merged else boxes.new_zeros(0, 4), objectness[first], best[first], classes[first]
    )


def selected(found: Detections, settings: DetectorSettings) -> Detections:
    """What the settings keep of detections with boxes in pixels, the best score first; merging is done before."""
    found = found[found.scores >= settings.least_score]
    if settings.suppression == "greedy":
        kept = greedy_nms(found.boxes, found.scores, found.classes, settings.overlap, settings.whole_pixels)
    else:
        kept = torch.sort(found.scores, descending=True, stable=True).indices
    return found[kept[: settings.most]]


def _groups(boxes: Tensor, scores: Tensor, classes: Tensor, overlap: float, whole_pixels: bool) -> list[Tensor]:
    """Places of boxes that are one object, the best first in each."""
    order = torch.sort(scores, descending=True, stable=True).indices
    groups = []
    while len(order):
        best = order[:1]
        same = pairwise_iou(boxes[best], boxes[order], whole_pixels)[0] > overlap
        same &= classes[order] == classes[best]
        # A box without area does not overlap itself; it must go all the same.
        same[0] = True
        groups.append(order[same])
        order = order[~same]
    return groups
