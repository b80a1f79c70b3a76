"""CC-FPSE's generator: SPADE's sequence of blocks and doublings, its convolutions predicted from the label map."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.label_maps import label_channels, resized
from models.blocks.semantic import initialise
from models.ccfpse.layers import ConditionalBlock, LabelEncoder
from models.spade.config import SpadeConfig
from models.spade.encoder import ImageEncoder
from models.spade.networks import Generator as SpadeGenerator


class Generator(SpadeGenerator):
    """Label maps and, where the configuration reads it, z to pictures (released: netG "condconv").

    Every block reads the label map at its own scale, and beside it the label encoder's map of that scale. Without z it
    starts as SPADE's does; the released code has a start of another width there, which its first block cannot read.
    """

    def __init__(self, config: SpadeConfig, classes: int) -> None:
        # Not SPADE's own: its blocks would be built and thrown away.
        nn.Module.__init__(self)
        self.config, self.classes = config, classes
        labels, slope, scope = label_channels(classes), config.generator_slope, config.batch_norm
        narrowest = config.generator_channels
        widths = [narrowest << level for level in reversed(range(config.upsamplings))]
        if config.reads_noise:
            self.first = nn.Linear(config.noise_dim, widths[0] * config.first_side**2)
        else:
            self.first = nn.Conv2d(labels, widths[0], 3, padding=1)
        self.label_encoder = LabelEncoder(labels, narrowest, config.upsamplings, slope, scope)
        self.blocks = nn.ModuleList(
            [
                ConditionalBlock(width, out, labels + narrowest, config.hidden_dim, slope, scope)
                for width, out in pairwise([*widths[:1] * 3, *widths])
            ]
        )
        self.to_rgb = nn.Conv2d(widths[-1], 3, 3, padding=1)
        self.encoder = ImageEncoder(config) if config.use_vae else None
        initialise(self, config.init_gain)

    def forward(self, label_map: Tensor, z: Tensor | None = None) -> Tensor:
        """label_map: (B,L,S,S), see `label_input`; z: (B,noise_dim); pictures (B,3,S,S) in [-1, 1]."""
        side = self.config.first_side
        if isinstance(self.first, nn.Linear):
            assert z is not None
            h: Tensor = self.first(z).view(len(z), -1, side, side)
        else:
            h = self.first(resized(label_map, (side, side)))
        contexts = iter(self.label_encoder(label_map))
        condition = _beside(label_map, next(contexts))
        for place, block in enumerate(self.blocks):
            # Of the three widest blocks the first stands before the first doubling, the others behind it.
            if place not in (0, 2):
                h = F.interpolate(h, scale_factor=2, mode="nearest")
                condition = _beside(label_map, next(contexts))
            h = block(h, condition)
        return torch.tanh(self.to_rgb(F.leaky_relu(h, self.config.generator_slope)))


def _beside(label_map: Tensor, context: Tensor) -> Tensor:
    """Both as channels of one map of the context's size."""
    return torch.cat([resized(label_map, (context.shape[2], context.shape[3])).to(context.dtype), context], 1)
