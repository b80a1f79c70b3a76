"""Boxes as numbers that gradient flows through: features under them, and how far two of them agree."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import at_least_float32


def sample_boxes(maps: Tensor, boxes: Tensor, samples: int) -> Tensor:
    """Features at samples x samples points of every box, row by row: (B,R,samples^2,C).

    maps: (B,C,h,w); boxes: (B,R,4), x0, y0, x1, y1 in [0, 1] of the map. In the manner of RoIAlign (He et al., "Mask
    R-CNN", 2017, section 3): the box is cut into equal bins, no edge is rounded, and the middle of each bin is read
    bilinearly; a map's number stands at the middle of its cell, and beyond the outer ones the nearest counts. Gradient
    flows to the maps.
    """
    count = boxes.shape[1]
    steps = (torch.arange(samples, device=boxes.device, dtype=boxes.dtype) + 0.5) / samples
    low, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    xs, ys = (low[..., axis, None] + size[..., axis, None] * steps for axis in (0, 1))  # B,R,s
    shape = (len(boxes), count, samples, samples)
    points = torch.stack([xs[:, :, None, :].expand(shape), ys[:, :, :, None].expand(shape)], -1)
    points = points.reshape(len(boxes), count, samples**2, 2).to(maps.dtype) * 2 - 1
    read = F.grid_sample(maps, points, mode="bilinear", padding_mode="border", align_corners=False)  # B,C,R,s^2
    return read.permute(0, 2, 3, 1)


def paired_overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union in [0, 1] and generalised intersection over union in [-1, 1], each (...), of boxes
    (...,4) one by one, x0, y0, x1, y1 with x0 <= x1 and y0 <= y1.

    Rezatofighi et al., "Generalized Intersection over Union", 2019, algorithm 1: IoU less the share of the smallest
    enclosing box that neither covers. Where both boxes have no area, IoU is 0. Computed in float32 at least.
    """
    first, second = at_least_float32(first), at_least_float32(second)
    shared = _area(torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:]))
    hull = _area(torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:]))
    union = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - shared
    least = torch.finfo(shared.dtype).tiny
    overlap = shared / union.clamp(min=least)
    return overlap, overlap - (hull - union).clamp(min=0) / hull.clamp(min=least)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(-1)
