"""What a grid detector learns from the data's boxes: which cells answer for which object, and how far off they are."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.boxes import paired_overlaps
from models.contract import Objective, Objects
from models.parallel import Ranks


@dataclass(frozen=True, slots=True)
class GridPrediction:
    """What a grid detector says of B pictures, cell by cell, row by row: P = h w.

    boxes: (B,P,4), x0, y0, x1, y1 in [0, 1] of the picture, or beyond it; objectness: (B,P) logits; classes: (B,P,C)
    logits; grid: h, w. All in float32 at least.
    """

    boxes: Tensor
    objectness: Tensor
    classes: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which object each cell answers for. found: (B,P) bool; objects: (B,P) int64, its place where found, else any."""

    found: Tensor
    objects: Tensor


def cell_centres(grid: tuple[int, int], like: Tensor) -> Tensor:
    """(P,2), x and y of the cells' middles in cells, row by row; of `like`'s device and type."""
    ys, xs = (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5 for side in grid)
    return torch.stack([xs.repeat(grid[0]), ys.repeat_interleave(grid[1])], 1)


def assign_cells(objects: Objects, grid: tuple[int, int], radius: float) -> Assignment:
    """The cells that answer for an object: the one that its centre is in (YOLO: Redmon et al., 2016, section 2), and
    those whose middle is in the box and less than `radius` cells from its centre in x and in y (the centre sampling of
    FCOS, Tian et al., 2019, released with radius 1.5).

    A cell that several could claim answers for one whose centre it holds, else for the smallest (FCOS, section 3.2).
    """
    height, width = grid
    boxes = objects.boxes * objects.boxes.new_tensor([width, height, width, height])
    middles = cell_centres(grid, boxes)  # P,2
    centre = ((boxes[..., :2] + boxes[..., 2:]) / 2)[:, :, None, :]  # B,N,1,2
    inside = ((middles > boxes[:, :, None, :2]) & (middles < boxes[:, :, None, 2:])).all(-1)
    near = ((middles - centre).abs() < radius).all(-1)
    last = boxes.new_tensor([width - 1, height - 1])
    own = (middles.floor() == torch.minimum(centre.floor().clamp(min=0), last)).all(-1)
    places = torch.arange(boxes.shape[1], device=boxes.device)
    there = places[None, :, None] < objects.counts[:, None, None]
    sides = objects.boxes[..., 2:] - objects.boxes[..., :2]
    # Areas are at most 1 here, so that an own cell comes first.
    cost = sides.prod(-1)[:, :, None] + 2.0 * ~own
    cost = cost.masked_fill(~(there & (own | (inside & near))), torch.inf)
    best = cost.argmin(1)
    return Assignment(cost.gather(1, best[:, None])[:, 0].isfinite(), best)


def detector_objective(
    prediction: GridPrediction,
    objects: Objects,
    radius: float,
    weights: tuple[float, float, float],
    ranks: Ranks,
) -> Objective:
    """Sums over the cells of all ranks, divided by how many of them answer for an object (1 where none does).

    weights: of three terms. "box": 1 - GIoU (Rezatofighi et al., 2019, section 3.1); "class": cross-entropy; both of
    cells with an object. "objectness": binary cross-entropy of every cell, towards the overlap of its box with its
    object, 0 where it has none (YOLO's confidence: Redmon et al., 2016, equation 1). "overlap": the mean of that.
    Raises ValueError for objects of a class that the detector does not know.
    """
    known = prediction.classes.shape[2]
    if objects.classes.numel() and (highest := int(objects.classes.max())) >= known:
        raise ValueError(
            f"the detector is built for {known} classes and the data has an object of class number {highest}: set "
            f"classes={highest + 1} or more in the model of the detector's stage"
        )
    objectness = prediction.objectness
    there = Objects(objects.boxes.to(objectness.dtype), objects.classes, objects.counts)
    assigned = assign_cells(there, prediction.grid, radius)
    wanted = there.boxes.gather(1, assigned.objects[..., None].expand(-1, -1, 4))
    classes = there.classes.gather(1, assigned.objects)
    overlap, generalised = paired_overlaps(prediction.boxes, wanted)
    target = overlap.detach().masked_fill(~assigned.found, 0.0)
    each = {
        "box": (1 - generalised).masked_fill(~assigned.found, 0.0),
        "class": F.cross_entropy(prediction.classes.transpose(1, 2), classes, reduction="none").masked_fill(
            ~assigned.found, 0.0
        ),
        "objectness": F.binary_cross_entropy_with_logits(objectness, target, reduction="none"),
    }
    # The mean of this over ranks is the quotient of the sums over all pictures, however they are spread.
    share = ranks.size / ranks.gather(assigned.found.sum()[None]).sum().clamp(min=1)
    terms = {name: value.sum() * share for name, value in each.items()}
    loss = (torch.stack(list(terms.values())) * objectness.new_tensor(weights)).sum()
    shown = {name: term.detach() for name, term in terms.items()}
    return Objective(loss, {**shown, "overlap": target.sum() * share})
