"""Objects put into their boxes on a canvas, and cut out of pictures by them (sg2im, section 3: scene layout).

Bilinear, what lies outside is zero. An axis-aligned box is read along each axis by itself: the weight of a cell at a
point is 1 minus their distance in cells, at least 0. So a layout is a few matrix products, whose sums over objects
never need a canvas for each object, and they are the same on every run.

align_corners: a map's outer cells have their middles on the box's edges (True), or half a cell inside them (False).
torch's `grid_sample`, which the released code calls without it, meant True until 1.2 and means False since; published
weights are for True.

Boxes are x0, y0, x1, y1, where [0, 1] is the picture; any numbers will do. One that reaches outside is cut off, one
that lies outside gives zeros, one with x1 < x0 (or y1 < y0) is mirrored, as in the released code. Putting something
into a box divides by its sides: one shorter than LEAST_SIDE counts as that long, so that values and gradients stay
finite, where the released code has NaN.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_SIDE = 1e-3
INNER_CELLS = 8
"""A whole box is laid out as a map of so many equal cells a side (released), which says how blurred its edges are."""


def boxes_to_layout(
    vectors: Tensor, boxes: Tensor, pictures: Tensor, count: int, side: int, align_corners: bool = True
) -> Tensor:
    """Vectors (O,D) fill their boxes (O,4), and are summed over each picture's: (count,D,side,side).

    pictures: (O,) int64 in [0, count), in any order.
    """
    across, down = _canvas_weights(boxes, side, INNER_CELLS, align_corners)
    covers = down.sum(2)[:, :, None] * across.sum(2)[:, None, :]
    return _summed(vectors, covers, pictures, count)


def masks_to_layout(
    vectors: Tensor, boxes: Tensor, masks: Tensor, pictures: Tensor, count: int, side: int, align_corners: bool = True
) -> Tensor:
    """As `boxes_to_layout`, each vector times its mask (O,M,M), which is stretched over the box."""
    across, down = _canvas_weights(boxes, side, masks.shape[-1], align_corners)
    covers = down.to(masks.dtype) @ masks @ across.to(masks.dtype).transpose(1, 2)
    return _summed(vectors, covers, pictures, count)


def maps_to_layout(
    maps: Tensor, boxes: Tensor, pictures: Tensor, count: int, side: int, align_corners: bool = True
) -> Tensor:
    """As `boxes_to_layout`, of a whole map (O,D,M,M) for each object, which is stretched over the box."""
    width, cells = maps.shape[1], maps.shape[-1]
    across, down = (weights.to(maps.dtype) for weights in _canvas_weights(boxes, side, cells, align_corners))
    stretched = down[:, None] @ maps  # O,D,side,M
    stretched, across = (_by_picture(values, pictures, count) for values in (stretched, across))  # B,N,...
    # Along the other axis the product sums over cells and objects at once.
    left = stretched.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)  # B,D*side,N*M
    right = across.transpose(2, 3).flatten(1, 2)  # B,N*M,side
    return (left @ right).view(count, width, side, side)


def crop_boxes(images: Tensor, boxes: Tensor, pictures: Tensor, side: int, align_corners: bool = True) -> Tensor:
    """What is in the boxes (O,4) of pictures (B,C,H,W), as squares (O,C,side,side).

    pictures: (O,) int64 in [0, B), in any order. The outer points lie on the box's edges, whatever align_corners is. A
    box without width repeats one column: nothing is divided by its sides.
    """
    steps = torch.linspace(0, 1, side, device=boxes.device, dtype=boxes.dtype)
    low, high = boxes[:, :2], boxes[:, 2:]
    points = low[:, :, None] * (1 - steps) + high[:, :, None] * steps  # O,2,side
    height, width = images.shape[2:]
    across = _weights(points[:, 0], width, align_corners).to(images.dtype)
    down = _weights(points[:, 1], height, align_corners).to(images.dtype)
    return down[:, None] @ images[pictures] @ across[:, None].transpose(2, 3)


def _canvas_weights(boxes: Tensor, side: int, cells: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """How much each canvas point reads of each cell in a box, across and down: each (O,side,cells).

    The outer points lie on the canvas's edges, whatever align_corners is (released).
    """
    low, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    size = torch.where(size < 0, size.clamp(max=-LEAST_SIDE), size.clamp(min=LEAST_SIDE))
    steps = torch.linspace(0, 1, side, device=boxes.device, dtype=boxes.dtype)
    within = (steps - low[:, :, None]) / size[:, :, None]  # O,2,side
    across, down = _weights(within, cells, align_corners).unbind(1)
    return across, down


def _weights(points: Tensor, cells: int, align_corners: bool) -> Tensor:
    """Points (...,P), 0 at one edge and 1 at the other, to the weights of the cells between: (...,P,cells)."""
    places = points * (cells - 1) if align_corners else points * cells - 0.5
    return F.relu(1 - (places[..., None] - torch.arange(cells, device=points.device)).abs())


def _summed(vectors: Tensor, covers: Tensor, pictures: Tensor, count: int) -> Tensor:
    """Vectors (O,D) times covers (O,side,side), summed over each picture's objects: (count,D,side,side)."""
    vectors, flat = (_by_picture(values, pictures, count) for values in (vectors, covers.to(vectors.dtype).flatten(1)))
    return (vectors.transpose(1, 2) @ flat).view(count, -1, *covers.shape[1:])


def _by_picture(values: Tensor, pictures: Tensor, count: int) -> Tensor:
    """(O,...) to (count,N,...), N the most objects of a picture; the rest is zero."""
    sizes = torch.bincount(pictures, minlength=count)
    order = pictures.argsort(stable=True)
    starts = (sizes.cumsum(0) - sizes)[pictures[order]]
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device) - starts
    padded = values.new_zeros(count, int(sizes.max()), *values.shape[1:])
    return padded.index_put((pictures, places), values)
