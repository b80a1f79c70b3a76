"""Residual nets as trunks, with torchvision's parameter names so that published ImageNet weights load.

He et al., "Deep Residual Learning for Image Recognition", 2015: table 1, bottleneck form. The published files put the
stride on the 3x3 convolution. The classifier is left out.
"""

import torch.nn.functional as F
from torch import Tensor, nn

REGION_DIM, POOLED_DIM = 1024, 2048
UNUSED = ("fc.",)
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with batch norm, and a shortcut: (B,width,H,W) to (B,4*inner,H/stride,W/stride)."""

    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__()
        out = EXPANSION * inner
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)
        changes = stride != 1 or width != out
        self.downsample = (
            nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if changes else None
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn3(self.conv3(h)) + shortcut)


class ResNet(nn.Module):
    """ResNet of the given blocks a level, (3, 8, 36, 3) for ResNet-152, (3, 4, 6, 3) for ResNet-50."""

    def __init__(self, blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.layer1 = _level(64, 64, blocks[0], 1)
        self.layer2 = _level(256, 128, blocks[1], 2)
        self.layer3 = _level(512, 256, blocks[2], 2)
        self.layer4 = _level(1024, 512, blocks[3], 2)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B,3,S,S) to the map at a sixteenth of the side (B,1024,S/16,S/16) and the pooled vector (B,2048)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(pixels))), 3, stride=2, padding=1)
        regions: Tensor = self.layer3(self.layer2(self.layer1(x)))
        last: Tensor = self.layer4(regions)
        return regions, last.mean((2, 3))

    def balance_branches(self) -> None:
        """Scale the branches down by their number, so that untrained sums do not grow with the depth."""
        branches = [module for module in self.modules() if isinstance(module, Bottleneck)]
        for branch in branches:
            nn.init.constant_(branch.bn3.weight, len(branches) ** -0.5)


def _level(width: int, inner: int, count: int, stride: int) -> nn.Sequential:
    first = Bottleneck(width, inner, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * inner, inner, 1) for _ in range(count - 1)))
