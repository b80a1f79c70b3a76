"""Inception-v3 as a trunk, with torchvision's parameter names so that its published weights load.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015: figures 5 to 7 and table 1. Widths
that the paper leaves open are read from the published file's shapes. The classifier and its auxiliary head are left
out.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-3
REGION_DIM, POOLED_DIM = 768, 2048
UNUSED = ("fc.", "AuxLogits.")
LEAST_SIDE = 75
Size = int | tuple[int, int]
Pool = Callable[[Tensor], Tensor]
"""A map (B,C,h,w) to another of the same size: what a block's pooling branch begins with."""


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, width: int, out: int, kernel: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def same(width: int, out: int, kernel: int) -> Conv:
    """A square convolution that keeps the side."""
    return Conv(width, out, kernel, padding=kernel // 2)


def row(width: int, out: int, length: int) -> Conv:
    """A 1 x length convolution that keeps the side."""
    return Conv(width, out, (1, length), padding=(0, length // 2))


def column(width: int, out: int, length: int) -> Conv:
    """A length x 1 convolution that keeps the side."""
    return Conv(width, out, (length, 1), padding=(length // 2, 0))


def smooth(x: Tensor) -> Tensor:
    """3x3 means at stride 1; the zeros around the map count, as in the net that was trained."""
    return F.avg_pool2d(x, 3, stride=1, padding=1)


def shrink(x: Tensor) -> Tensor:
    """3x3 maxima at stride 2."""
    return F.max_pool2d(x, 3, stride=2)


class SquareBlock(nn.Module):
    """5x5 and twice 3x3 beside 1x1 (figure 5): Mixed_5b to 5d. (B,width,35,35) to (B,224+pooled,35,35)."""

    def __init__(self, width: int, pooled: int, pool: Pool = smooth) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = same(width, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = same(width, 48, 1), same(48, 64, 5)
        self.branch3x3dbl_1 = same(width, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = same(64, 96, 3), same(96, 96, 3)
        self.branch_pool = same(width, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, threes, self.branch_pool(self.pool(x))], 1)


class FirstReduction(nn.Module):
    """Mixed_6a: (B,288,35,35) to (B,768,17,17), pooling and strided convolutions side by side (figure 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = Conv(288, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = same(288, 64, 1), same(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), threes, shrink(x)], 1)


class FactoredBlock(nn.Module):
    """7x7 convolutions as rows and columns (figure 6, n = 7): Mixed_6b to 6e. (B,768,17,17) to the same."""

    def __init__(self, inner: int, pool: Pool = smooth) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = same(768, 192, 1)
        self.branch7x7_1 = same(768, inner, 1)
        self.branch7x7_2, self.branch7x7_3 = row(inner, inner, 7), column(inner, 192, 7)
        self.branch7x7dbl_1 = same(768, inner, 1)
        self.branch7x7dbl_2, self.branch7x7dbl_3 = column(inner, inner, 7), row(inner, inner, 7)
        self.branch7x7dbl_4, self.branch7x7dbl_5 = column(inner, inner, 7), row(inner, 192, 7)
        self.branch_pool = same(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(self.pool(x))], 1)


class SecondReduction(nn.Module):
    """Mixed_7a: (B,768,17,17) to (B,1280,8,8)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = same(768, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = same(768, 192, 1)
        self.branch7x7x3_2, self.branch7x7x3_3 = row(192, 192, 7), column(192, 192, 7)
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        sevens = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(sevens), shrink(x)], 1)


class ExpandedBlock(nn.Module):
    """Rows and columns side by side (figure 7): Mixed_7b and 7c. (B,width,8,8) to (B,2048,8,8)."""

    def __init__(self, width: int, pool: Pool = smooth) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = same(width, 320, 1)
        self.branch3x3_1 = same(width, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = row(384, 384, 3), column(384, 384, 3)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = same(width, 448, 1), same(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = row(384, 384, 3), column(384, 384, 3)
        self.branch_pool = same(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        threes = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(threes),
                self.branch3x3dbl_3b(threes),
                self.branch_pool(self.pool(x)),
            ],
            1,
        )


class InceptionV3(nn.Module):
    """Pixels (B,3,S,S) in [-1, 1], S at least 75 and 299 as published, to Mixed_6e's map and Mixed_7c's mean.

    pool, last_pool: of the pooling branches, and of that of the last block; other trainings of this net differ there.
    """

    def __init__(self, pool: Pool = smooth, last_pool: Pool = smooth) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = same(32, 64, 3)
        self.Conv2d_3b_1x1 = same(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c = SquareBlock(192, 32, pool), SquareBlock(256, 64, pool)
        self.Mixed_5d = SquareBlock(288, 64, pool)
        self.Mixed_6a = FirstReduction()
        self.Mixed_6b, self.Mixed_6c = FactoredBlock(128, pool), FactoredBlock(160, pool)
        self.Mixed_6d, self.Mixed_6e = FactoredBlock(160, pool), FactoredBlock(192, pool)
        self.Mixed_7a = SecondReduction()
        self.Mixed_7b, self.Mixed_7c = ExpandedBlock(1280, pool), ExpandedBlock(2048, last_pool)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (B,768,h,w), 17x17 at 299 px, and the pooled vector (B,2048)."""
        x = shrink(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels))))
        x = shrink(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        regions = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        last: Tensor = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(regions)))
        return regions, last.mean((2, 3))
