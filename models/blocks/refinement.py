"""The cascaded refinement network that draws a picture on a layout (sg2im, section 3; Chen and Koltun, 2017)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.norm import BatchNorm, StatisticsScope

SLOPE = 0.2
CHANNELS = 3


class RefinementModule(nn.Module):
    """Layout (B,L,h,w) and features (B,C,h,w) to (B,out,h,w): twice 3x3 convolution, batch norm, leaky ReLU."""

    def __init__(self, width: int, out: int, slope: float, scope: StatisticsScope) -> None:
        super().__init__()
        self.slope = slope
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.bn1 = BatchNorm(out, scope)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.bn2 = BatchNorm(out, scope)

    def forward(self, layout: Tensor, features: Tensor) -> Tensor:
        h = torch.cat([layout, features.to(layout.dtype)], 1)
        h = F.leaky_relu(self.bn1(self.conv1(h)), self.slope)
        return F.leaky_relu(self.bn2(self.conv2(h)), self.slope)


class RefinementNetwork(nn.Module):
    """One module for each width, the side doubling to each, with the layout averaged to its side; then two convolutions
    to a picture. The first module starts from a zero map of one channel (released).

    layout_dim: L; widths: of the modules' maps, published 1024, 512, 256, 128, 64; slope: of the leaky ReLU, published
    0.2, 0 makes it ReLU. Convolutions start as He et al. (2015) have them (released).
    """

    def __init__(
        self, layout_dim: int, widths: Sequence[int], slope: float = SLOPE, scope: StatisticsScope = "global"
    ) -> None:
        super().__init__()
        self.slope = slope
        self.stages = nn.ModuleList(
            [
                RefinementModule(layout_dim + before, width, slope, scope)
                for before, width in zip([1, *widths], widths, strict=False)
            ]
        )
        self.out_conv1 = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.out_conv2 = nn.Conv2d(widths[-1], CHANNELS, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, layout: Tensor) -> Tensor:
        """(B,L,S,S) to pictures (B,3,S,S) in any range; S is a multiple of 2 to the number of modules."""
        batch, _, side, _ = layout.shape
        smallest = side >> len(self.stages)
        features = layout.new_zeros(batch, 1, smallest, smallest)
        for number, stage in enumerate(self.stages, start=1):
            features = F.interpolate(features, scale_factor=2, mode="nearest")
            features = stage(F.avg_pool2d(layout, side // (smallest << number)), features)
        picture: Tensor = self.out_conv2(F.leaky_relu(self.out_conv1(features), self.slope))
        return picture
