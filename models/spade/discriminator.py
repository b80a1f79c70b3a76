"""SPADE's discriminator: patches of a picture beside its label map, at several scales (released: pix2pixHD's, with
spectral norm)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.label_maps import label_channels
from models.blocks.semantic import StoredSpectralConv2d, initialise
from models.losses.feature_matching import ScaleJudgement
from models.spade.config import SpadeConfig

WIDEST = 8


class PatchDiscriminator(nn.Module):
    """One scale: 4x4 convolutions with padding 2, stride 2, the last two stride 1; leaky ReLU between them.

    All but the first and the last have spectral and instance norm (each picture's own), and so no bias.
    """

    def __init__(self, config: SpadeConfig, classes: int) -> None:
        super().__init__()
        self.slope = config.discriminator_slope
        widths = [
            config.discriminator_channels * min(1 << place, WIDEST) for place in range(config.discriminator_layers)
        ]
        strides = [*[2] * (len(widths) - 2), 1]
        self.first = nn.Conv2d(label_channels(classes) + 3, widths[0], 4, stride=2, padding=2)
        self.convs = nn.ModuleList(
            [
                StoredSpectralConv2d(width, out, 4, stride=stride, padding=2, bias=False)
                for (width, out), stride in zip(pairwise(widths), strides, strict=True)
            ]
        )
        self.last = nn.Conv2d(widths[-1], 1, 4, padding=2)

    def forward(self, pixels: Tensor) -> ScaleJudgement:
        """(B,L+3,H,W), the label map and then the picture."""
        maps = [F.leaky_relu(self.first(pixels), self.slope)]
        for conv in self.convs:
            maps.append(F.leaky_relu(F.instance_norm(conv(maps[-1])), self.slope))
        return ScaleJudgement(self.last(maps[-1]), tuple(maps))


class Discriminator(nn.Module):
    """The same net at every scale, with weights of its own; each scale is the mean of 3x3 pixels of the one before."""

    def __init__(self, config: SpadeConfig, classes: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList([PatchDiscriminator(config, classes) for _ in range(config.discriminator_scales)])
        initialise(self, config.init_gain)

    def forward(self, label_map: Tensor, images: Tensor) -> list[ScaleJudgement]:
        """label_map: (B,L,H,W), see `label_input`; images: (B,3,H,W) in [-1, 1]; the finest scale first."""
        pixels = torch.cat([label_map.to(images.dtype), images], 1)
        found = []
        for place, scale in enumerate(self.scales):
            if place:
                pixels = F.avg_pool2d(pixels, 3, stride=2, padding=1, count_include_pad=False)
            found.append(scale(pixels))
        return found
