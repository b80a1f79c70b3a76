"""sg2im's mathematics against the numbers of its released code."""

import pytest
import torch
from torch import Tensor

from models.blocks.graphs import TripleConvolution
from models.blocks.layout import boxes_to_layout, crop_boxes, maps_to_layout, masks_to_layout
from models.blocks.refinement import RefinementNetwork

from .conftest import Golden, Load
from .test_attngan import load

COUNT = 2
# raw_today: the released call as it stands, in today's torch.
ALIGNED = [("out.align_corners_true", True), ("out.align_corners_false", False)]
TODAY = ("out.raw_today", False)


def placed(numbers: Golden) -> tuple[Tensor, Tensor]:
    return numbers["in.boxes"], numbers["in.obj_to_img"]


@pytest.mark.parametrize(("key", "align_corners"), [*ALIGNED, TODAY])
def test_boxes_to_layout(golden: Load, key: str, align_corners: bool) -> None:
    numbers = golden("sg2im_boxes_to_layout")
    boxes, pictures = placed(numbers)
    side = numbers.meta["constants"]["H"]
    numbers.check(key, boxes_to_layout(numbers["in.vectors"], boxes, pictures, COUNT, side, align_corners))
    ones = torch.ones(len(boxes), *[numbers.meta["constants"]["inner_grid"]] * 2)
    numbers.check(key, masks_to_layout(numbers["in.vectors"], boxes, ones, pictures, COUNT, side, align_corners))


@pytest.mark.parametrize(("key", "align_corners"), ALIGNED)
def test_masks_to_layout(golden: Load, key: str, align_corners: bool) -> None:
    """And so do maps that are each a vector times a mask."""
    numbers = golden("sg2im_masks_to_layout")
    boxes, pictures = placed(numbers)
    side, vectors, masks = numbers.meta["constants"]["H"], numbers["in.vectors"], numbers["in.masks"]
    numbers.check(key, masks_to_layout(vectors, boxes, masks, pictures, COUNT, side, align_corners))
    maps = vectors[:, :, None, None] * masks[:, None]
    numbers.check(key, maps_to_layout(maps, boxes, pictures, COUNT, side, align_corners))


@pytest.mark.parametrize(("key", "align_corners"), ALIGNED)
def test_crop_boxes(golden: Load, key: str, align_corners: bool) -> None:
    numbers = golden("sg2im_crop_bbox")
    boxes, pictures = placed(numbers)
    side = numbers.meta["constants"]["HH"]
    numbers.check(key, crop_boxes(numbers["in.images"], boxes, pictures, side, align_corners))


@pytest.mark.parametrize("prefix", ["avg", "sum"])
def test_graph_convolution(golden: Load, prefix: str) -> None:
    numbers = golden("sg2im_graph_conv")
    sizes = numbers.meta["constants"]
    net = TripleConvolution(
        sizes["input_dim"], sizes["output_dim"], sizes["hidden_dim"], "average" if prefix == "avg" else "sum"
    )
    load(net, numbers.group(f"w.{prefix}"), [])
    subject, other = numbers["in.edges"].unbind(1)
    triples = torch.stack([subject, torch.full_like(subject, 99), other], 1)
    with torch.no_grad():
        objects, predicates = net(numbers["in.object_vectors"], numbers["in.predicate_vectors"], triples)
    numbers.check(f"out.{prefix}.objects", objects)
    numbers.check(f"out.{prefix}.predicates", predicates)


def test_refinement_network(golden: Load) -> None:
    numbers = golden("sg2im_crn_small")
    layout_dim, *widths = numbers.meta["constants"]["dims"]
    net = RefinementNetwork(layout_dim, widths).eval()
    load(net, numbers.group("w"), [(r"^module(\d+)\.", r"stages.\1.")])
    with torch.no_grad():
        numbers.check("out.image", net(numbers["in.layout"]))
