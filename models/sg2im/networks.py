"""sg2im's generator: a scene graph to boxes and masks, those to a layout, the layout to a picture (section 3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.graphs import FlatGraphs, GraphEncoder, Perceptron
from models.blocks.layout import boxes_to_layout, masks_to_layout
from models.blocks.norm import BatchNorm, StatisticsScope
from models.blocks.refinement import RefinementNetwork
from models.sg2im.config import Sg2imConfig


class MaskHead(nn.Module):
    """Object vectors (O,D) to soft masks (O,side,side) in (0, 1): for each doubling nearest up-sampling, batch norm,
    3x3 convolution, ReLU (released; the paper speaks of transposed convolutions)."""

    def __init__(self, width: int, side: int, scope: StatisticsScope) -> None:
        super().__init__()
        doublings = side.bit_length() - 1
        self.bns = nn.ModuleList([BatchNorm(width, scope) for _ in range(doublings)])
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(doublings)])
        self.out_conv = nn.Conv2d(width, 1, 1)

    def forward(self, vectors: Tensor) -> Tensor:
        h = vectors[:, :, None, None]
        for bn, conv in zip(self.bns, self.convs, strict=True):
            h = F.relu(conv(bn(F.interpolate(h, scale_factor=2, mode="nearest"))))
        logits: Tensor = self.out_conv(h)
        return logits.squeeze(1).sigmoid()


@dataclass(frozen=True, slots=True)
class Drawing:
    """images: (B,3,S,S), normalised by ImageNet's statistics; boxes: (O,4) as predicted; masks: (O,M,M) in (0, 1), or
    None where the generator has no mask head."""

    images: Tensor
    boxes: Tensor
    masks: Tensor | None


class Generator(nn.Module):
    """Scene graphs and noise to pictures, and the boxes it would give the objects.

    classes, predicates: how many the data has.
    """

    def __init__(self, config: Sg2imConfig, classes: int, predicates: int) -> None:
        super().__init__()
        self.config = config
        width, scope = config.object_dim, config.batch_norm
        self.encoder = GraphEncoder(config, classes, predicates)
        self.box_head = Perceptron(width, config.hidden_dim, 4, config.box_relu)
        self.mask_head = MaskHead(width, config.mask_side, scope) if config.mask_side else None
        self.refinement = RefinementNetwork(
            width + config.noise_dim, config.refinement_widths, config.refinement_slope, scope
        )

    def forward(self, flat: FlatGraphs, noise: Tensor, boxes: Tensor | None = None) -> Drawing:
        """noise: (B, config.drawn_noise) standard normal numbers; boxes: (O,4) to draw by, its own where not given."""
        config = self.config
        vectors, _ = self.encoder(flat)
        predicted: Tensor = self.box_head(vectors)
        chosen = predicted if boxes is None else boxes
        count, side = flat.pictures_count, config.resolution
        if self.mask_head is None:
            masks = None
            layout = boxes_to_layout(vectors, chosen, flat.pictures, count, side, config.align_corners)
        else:
            masks = self.mask_head(vectors)
            layout = masks_to_layout(vectors, chosen, masks, flat.pictures, count, side, config.align_corners)
        noise = noise.view(count, config.noise_dim, side, side).to(layout.dtype)
        return Drawing(self.refinement(torch.cat([layout, noise], 1)), predicted, masks)
