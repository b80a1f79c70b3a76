"""Label maps as nets read them: a channel for each class, one for "don't care", one for the edges of instances.

SPADE's and CC-FPSE's released form: 182 classes of COCO-Stuff make 184 channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contract import Given, LabelMaps


def known_classes(given: Given, reader: str) -> int:
    """How many classes the data's label maps have. ValueError where there are none; on "meta", where nothing is read,
    any number will do."""
    if given.classes < 1 and torch.empty(0).device.type != "meta":
        raise ValueError(
            f"{reader} reads label maps but the data has {given.classes} classes of pixels: give the number of classes "
            "in the data's label maps, at least 1"
        )
    return given.classes


def label_channels(classes: int) -> int:
    """How many channels `label_input` gives."""
    return classes + 2


def one_hot(maps: LabelMaps, classes: int) -> Tensor:
    """(B,classes+1,H,W) of 0 and 1 in the default type; the last channel is "don't care"."""
    labels = maps.labels[:, None]
    shape = len(labels), classes + 1, *labels.shape[2:]
    return torch.zeros(shape, device=labels.device).scatter_(1, labels, 1.0)


def instance_edges(maps: LabelMaps) -> Tensor:
    """(B,1,H,W), 1 where a pixel above, below, left or right belongs to another instance, else 0, in the default
    type."""
    instances = maps.instances
    edges = torch.zeros_like(instances, dtype=torch.bool)
    rows, columns = instances[:, 1:] != instances[:, :-1], instances[:, :, 1:] != instances[:, :, :-1]
    edges[:, 1:] |= rows
    edges[:, :-1] |= rows
    edges[:, :, 1:] |= columns
    edges[:, :, :-1] |= columns
    return edges[:, None].to(torch.get_default_dtype())


def label_input(maps: LabelMaps, classes: int) -> Tensor:
    """(B,classes+2,H,W): classes, "don't care", edges of instances."""
    return torch.cat([one_hot(maps, classes), instance_edges(maps)], 1)


def resized(label_map: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,L,H,W) to (B,L,*size), each pixel its nearest one's (rounded down)."""
    return label_map if label_map.shape[2:] == size else F.interpolate(label_map, size, mode="nearest")
