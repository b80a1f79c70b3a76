"""CC-FPSE's conditional convolution: a depthwise kernel of its own for every pixel, predicted from the label map.

Paper: Liu et al., "Learning to Predict Layout-to-image Conditional Convolutions for Semantic Image Synthesis", NeurIPS
2019; what it leaves open is as in the released code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.norm import BatchNorm, StatisticsScope
from models.blocks.semantic import SpatiallyAdaptiveNorm, StoredSpectralConv2d

SIDE = 3
TAPS = SIDE * SIDE


def depthwise_by_pixel(x: Tensor, kernels: Tensor) -> Tensor:
    """Each channel of each pixel by its own 3x3 kernel, zeros around the map.

    x: (B,C,H,W); kernels: (B,9C,H,W), read as (C,9) with the taps row by row (released). Gives (B,C,H,W). It cannot be
    differentiated twice.
    """
    if kernels.shape != (len(x), TAPS * x.shape[1], *x.shape[2:]):
        raise ValueError(
            f"{tuple(kernels.shape)} kernels do not fit a map of {tuple(x.shape)}: {TAPS} numbers are needed for each "
            "channel of each pixel"
        )
    filtered: Tensor = _DepthwiseByPixel.apply(x.to(kernels.dtype), kernels)  # type: ignore[no-untyped-call]
    return filtered


def _windows(padded: Tensor) -> list[Tensor]:
    """The nine maps that a padded one holds, a view a tap."""
    height, width = padded.shape[2] - SIDE + 1, padded.shape[3] - SIDE + 1
    return [padded[:, :, row : row + height, column : column + width] for row in range(SIDE) for column in range(SIDE)]


def _taps(kernels: Tensor) -> tuple[Tensor, ...]:
    """Nine of (B,C,H,W), views."""
    count, numbers, height, width = kernels.shape
    return kernels.view(count, numbers // TAPS, TAPS, height, width).unbind(2)


class _DepthwiseByPixel(torch.autograd.Function):
    # The kernels are nine times as large as the map. Nothing else of that size is made, forward or backward, but their
    # gradient; unfolding has three such maps at once, and autograd of nine products two.
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernels)
        taps = _taps(kernels)
        result = torch.zeros_like(x)
        for window, tap in zip(_windows(F.pad(x, (1, 1, 1, 1))), taps, strict=True):
            result.addcmul_(window, tap)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, kernels = ctx.saved_tensors
        padded = F.pad(x, (1, 1, 1, 1))
        padded_gradient = torch.zeros_like(padded)
        kernel_gradient = torch.empty_like(kernels)
        windows, into_windows = _windows(padded), _windows(padded_gradient)
        taps, tap_gradients = _taps(kernels), _taps(kernel_gradient)
        for window, into, tap, tap_gradient in zip(windows, into_windows, taps, tap_gradients, strict=True):
            torch.mul(window, gradient, out=tap_gradient)
            into.addcmul_(gradient, tap)
        return padded_gradient[:, :, 1:-1, 1:-1], kernel_gradient


class WeightPredictor(nn.Sequential):
    """A condition (B,K,H,W) to numbers for every pixel (B,out,H,W): 3x3 convolution, ReLU, 3x3 convolution."""

    def __init__(self, condition_channels: int, hidden_dim: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(condition_channels, hidden_dim, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(hidden_dim, out_channels, 3, padding=1)


class ConditionalBlock(nn.Module):
    """Two depthwise separable convolutions by predicted kernels and gates, and a shortcut (section 3.1).

    Each: batch norm, depthwise convolution by the pixel's own kernels, 1x1 convolution, times a gate in (0, 1), leaky
    ReLU. The shortcut is the map itself or, where widths differ, a spectrally normalised 1x1 convolution of it after
    SPADE's normalisation (released).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        condition_channels: int,
        hidden_dim: int,
        slope: float,
        scope: StatisticsScope,
    ) -> None:
        super().__init__()
        self.slope = slope
        middle = min(in_channels, out_channels)
        self.kernel_pred1 = WeightPredictor(condition_channels, hidden_dim, TAPS * in_channels)
        self.kernel_pred2 = WeightPredictor(condition_channels, hidden_dim, TAPS * middle)
        self.gate_pred1 = WeightPredictor(condition_channels, hidden_dim, middle)
        self.gate_pred2 = WeightPredictor(condition_channels, hidden_dim, out_channels)
        self.bn1 = BatchNorm(in_channels, scope)
        self.bn2 = BatchNorm(middle, scope)
        self.pointwise1 = nn.Conv2d(in_channels, middle, 1)
        self.pointwise2 = nn.Conv2d(middle, out_channels, 1)
        self.spade_shortcut: SpatiallyAdaptiveNorm | None = None
        self.conv_shortcut: StoredSpectralConv2d | None = None
        if in_channels != out_channels:
            self.spade_shortcut = SpatiallyAdaptiveNorm(in_channels, condition_channels, hidden_dim, scope)
            self.conv_shortcut = StoredSpectralConv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B,C,H,W), condition: (B,K,H,W), to (B,out,H,W)."""
        h = depthwise_by_pixel(self.bn1(x), self.kernel_pred1(condition))
        h = F.leaky_relu(self.pointwise1(h) * self.gate_pred1(condition).sigmoid(), self.slope)
        h = depthwise_by_pixel(self.bn2(h), self.kernel_pred2(condition))
        h = F.leaky_relu(self.pointwise2(h) * self.gate_pred2(condition).sigmoid(), self.slope)
        if self.spade_shortcut is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.spade_shortcut(x, condition))
        return x + h


class LabelConvolution(nn.Module):
    """Spectrally normalised convolution without bias, batch norm, leaky ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, side: int, stride: int, slope: float, scope: StatisticsScope
    ) -> None:
        super().__init__()
        self.slope = slope
        self.conv = StoredSpectralConv2d(in_channels, out_channels, side, stride=stride, padding=side // 2, bias=False)
        self.bn = BatchNorm(out_channels, scope)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.conv(x)), self.slope, inplace=True)


class LabelEncoder(nn.Module):
    """A label map (B,L,S,S) to what surrounds each pixel, at every scale: a feature pyramid (section 3.1).

    `doublings` strided 3x3 convolutions after an unstrided one; from the coarsest map back up, each is doubled
    (nearest) and added to a 1x1 convolution of the finer one, then a 3x3 convolution. Every map has `channels`.
    """

    def __init__(
        self, label_channels: int, channels: int, doublings: int, slope: float, scope: StatisticsScope
    ) -> None:
        super().__init__()

        def layers(side: int, stride: int) -> list[LabelConvolution]:
            return [LabelConvolution(channels, channels, side, stride, slope, scope) for _ in range(doublings)]

        finest = LabelConvolution(label_channels, channels, 3, 1, slope, scope)
        self.down = nn.ModuleList([finest, *layers(3, 2)])
        self.laterals = nn.ModuleList(layers(1, 1))
        self.heads = nn.ModuleList(layers(3, 1))

    def forward(self, labels: Tensor) -> list[Tensor]:
        """Maps of sides S / 2**doublings, ..., S / 2, S. The coarsest is the last strided convolution's (released)."""
        bottom_up = [labels]
        for layer in self.down:
            bottom_up.append(layer(bottom_up[-1]))
        maps = [bottom_up.pop()]
        for lateral, head, finer in zip(self.laterals, self.heads, reversed(bottom_up[1:]), strict=True):
            maps.append(head(F.interpolate(maps[-1], scale_factor=2, mode="nearest") + lateral(finer)))
        return maps
