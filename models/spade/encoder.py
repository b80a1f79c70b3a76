"""SPADE's encoder: a picture to the normal distribution that its z is drawn from (released option use_vae)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.semantic import StoredSpectralConv2d
from models.precision import at_least_float32
from models.spade.config import SpadeConfig

LAST_SIDE = 4


class ImageEncoder(nn.Module):
    """Pictures (B,3,S,S) to mean and log-variance, (B,noise_dim) each.

    3x3 convolutions of stride 2, with spectral and instance norm, down to 4 px: at 256 px six, of 64, 128, 256 and
    three times 512 (released, which resizes every picture to 256 px); smaller pictures have fewer. Leaky ReLU follows
    each.
    """

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.slope = config.generator_slope
        halvings = (config.resolution // LAST_SIDE).bit_length() - 1
        widths = [3, *(config.generator_channels * min(1 << place, 8) for place in range(halvings))]
        # A bias would be taken away by the norm.
        self.convs = nn.ModuleList(
            [StoredSpectralConv2d(width, out, 3, stride=2, padding=1, bias=False) for width, out in pairwise(widths)]
        )
        self.mean = nn.Linear(widths[-1] * LAST_SIDE**2, config.noise_dim)
        self.log_variance = nn.Linear(widths[-1] * LAST_SIDE**2, config.noise_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h = images
        for conv in self.convs:
            h = F.leaky_relu(F.instance_norm(conv(h)), self.slope)
        h = h.flatten(1)
        return at_least_float32(self.mean(h)), at_least_float32(self.log_variance(h))


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B,): of each picture's N(mean, exp(log_variance)) from N(0, I)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
