"""SPADE's generator: the label map modulates every normalisation on the way from a small map to the picture."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.label_maps import label_channels, resized
from models.blocks.norm import StatisticsScope
from models.blocks.semantic import SpatiallyAdaptiveNorm, StoredSpectralConv2d, initialise
from models.spade.config import SpadeConfig
from models.spade.encoder import ImageEncoder


class SpadeBlock(nn.Module):
    """Residual block: SPADE, leaky ReLU, 3x3 convolution, twice, as wide between as the narrower end.

    Where the widths differ the shortcut is SPADE and a 1x1 convolution without bias. Convolutions have spectral norm.
    """

    def __init__(
        self, width: int, out: int, label_channels: int, hidden_dim: int, slope: float, scope: StatisticsScope
    ) -> None:
        super().__init__()
        self.slope = slope
        middle = min(width, out)
        self.spade1 = SpatiallyAdaptiveNorm(width, label_channels, hidden_dim, scope)
        self.conv1 = StoredSpectralConv2d(width, middle, 3, padding=1)
        self.spade2 = SpatiallyAdaptiveNorm(middle, label_channels, hidden_dim, scope)
        self.conv2 = StoredSpectralConv2d(middle, out, 3, padding=1)
        self.spade_shortcut: SpatiallyAdaptiveNorm | None = None
        self.conv_shortcut: StoredSpectralConv2d | None = None
        if width != out:
            self.spade_shortcut = SpatiallyAdaptiveNorm(width, label_channels, hidden_dim, scope)
            self.conv_shortcut = StoredSpectralConv2d(width, out, 1, bias=False)

    def forward(self, x: Tensor, label_map: Tensor) -> Tensor:
        """x: (B,C,h,w), label_map: (B,L,H,W) of any size, to (B,out,h,w)."""
        h = self.conv1(F.leaky_relu(self.spade1(x, label_map), self.slope))
        h = self.conv2(F.leaky_relu(self.spade2(h, label_map), self.slope))
        if self.spade_shortcut is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.spade_shortcut(x, label_map))
        return x + h


class Generator(nn.Module):
    """Label maps, and z where the configuration reads it, to pictures (released: netG "spade", "normal" up-sampling).

    Two blocks follow the first doubling, one each of the others. With use_vae the encoder is a part of it: both step
    together, by one optimizer.
    """

    def __init__(self, config: SpadeConfig, classes: int) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        channels = label_channels(classes)
        widths = [config.generator_channels << level for level in reversed(range(config.upsamplings))]
        self.first: nn.Linear | nn.Conv2d
        if config.reads_noise:
            self.first = nn.Linear(config.noise_dim, widths[0] * config.first_side**2)
        else:
            self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            [
                SpadeBlock(width, out, channels, config.hidden_dim, config.generator_slope, config.batch_norm)
                for width, out in pairwise([*widths[:1] * 3, *widths])
            ]
        )
        self.to_rgb = nn.Conv2d(widths[-1], 3, 3, padding=1)
        self.encoder = ImageEncoder(config) if config.use_vae else None
        initialise(self, config.init_gain)

    def forward(self, label_map: Tensor, z: Tensor | None = None) -> Tensor:
        """label_map: (B,L,H,W), see `label_input`; z: (B,noise_dim); pictures (B,3,S,S) in [-1, 1]."""
        side, slope = self.config.first_side, self.config.generator_slope
        # Resized once a level: every block of it reads the same map.
        level = resized(label_map, (side, side))
        if isinstance(self.first, nn.Linear):
            assert z is not None
            h: Tensor = self.first(z).view(len(z), -1, side, side)
        else:
            h = self.first(level)
        for place, block in enumerate(self.blocks):
            # Of the three widest blocks the first stands before the first doubling, the others behind it.
            if place not in (0, 2):
                h = F.interpolate(h, scale_factor=2, mode="nearest")
                level = resized(label_map, (h.shape[2], h.shape[3]))
            h = block(h, level)
        return torch.tanh(self.to_rgb(F.leaky_relu(h, slope)))
