"""Batch normalisation over all ranks: plain, and modulated by a condition as XMC-GAN and later systems use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parallel import current_ranks, normalise_over_ranks

StatisticsScope = Literal["global", "rank"]
LayerT = TypeVar("LayerT", nn.Linear, nn.Conv2d)


class BatchStatistics(nn.Module):
    """Batch normalisation without affine parameters.

    In training the statistics are those of the batch: over all ranks ("global") or of this rank alone ("rank", the
    released XMC-GAN code). Running estimates move by `momentum` towards the batch's mean and BIASED variance (flax's
    convention and XMC-GAN's released code) or, with `unbiased`, the unbiased one (torch's own layer), unless `tracking`
    is off.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        scope: StatisticsScope = "global",
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        unbiased: bool = False,
    ) -> None:
        super().__init__()
        self.scope, self.momentum, self.epsilon, self.unbiased = scope, momentum, epsilon, unbiased
        self.tracking = True
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,...) to (B,C,...)."""
        return self._normalise(x, None, None)

    def _normalise(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, eps=self.epsilon)
        ranks = current_ranks()
        count = x.numel() // x.shape[1]
        if self.scope == "global" and ranks.size > 1:
            normalised, mean, variance, all_counts = normalise_over_ranks(x, self.epsilon, ranks)
            if weight is not None and bias is not None:
                shape = (1, -1) + (1,) * (x.dim() - 2)
                weight, bias = weight.to(x.dtype).view(shape), bias.to(x.dtype).view(shape)
                normalised = torch.addcmul(bias, normalised, weight)
            if self.unbiased:
                variance = variance * (all_counts / (all_counts - 1))
        else:
            # With momentum 1 the fused kernel leaves the batch's own statistics in these buffers.
            mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
            normalised = F.batch_norm(x, mean, variance, weight, bias, training=True, momentum=1.0, eps=self.epsilon)
            if not self.unbiased:
                variance = variance * ((count - 1) / count)
        if self.tracking:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance, self.momentum)
        return normalised


@contextmanager
def frozen_statistics(net: nn.Module) -> Iterator[None]:
    """Train-mode forward passes in here leave the running estimates of `net` as they are."""
    before = [(module, module.tracking) for module in net.modules() if isinstance(module, BatchStatistics)]
    for layer, _ in before:
        layer.tracking = False
    try:
        yield
    finally:
        for layer, tracking in before:
            layer.tracking = tracking


@contextmanager
def own_statistics(net: nn.Module) -> Iterator[None]:
    """Batch statistics in here are each rank's own: for inputs that hold the batches of all ranks already."""
    before = [(module, module.scope) for module in net.modules() if isinstance(module, BatchStatistics)]
    for layer, _ in before:
        layer.scope = "rank"
    try:
        yield
    finally:
        for layer, scope in before:
            layer.scope = scope


class BatchNorm(BatchStatistics):
    """Batch normalisation with weight and bias, in torch's conventions; (B,C) or (B,C,H,W)."""

    def __init__(self, channels: int, scope: StatisticsScope = "global", momentum: float = 0.1) -> None:
        super().__init__(channels, scope, momentum, unbiased=True)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self._normalise(x, self.weight, self.bias)


class SelfModulation(nn.Module):
    """h' = (1 + gamma(c)) * normalise(h) + beta(c), one condition vector a sample (XMC-GAN, section 4.2).

    The paper writes gamma without the 1; the released code adds it, so that a zero projection is the identity.
    """

    def __init__(self, channels: int, condition_dim: int, scope: StatisticsScope) -> None:
        super().__init__()
        self.bn = BatchStatistics(channels, scope)
        self.gamma = _glorot(nn.Linear(condition_dim, channels))
        self.beta = _glorot(nn.Linear(condition_dim, channels))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """h: (B,C,H,W), condition: (B,K) to (B,C,H,W)."""
        gamma, beta = self.gamma(condition), self.beta(condition)
        return torch.addcmul(beta[:, :, None, None], self.bn(h), 1 + gamma[:, :, None, None])


class AttentionalSelfModulation(nn.Module):
    """As `SelfModulation`, with a condition of its own for every region (XMC-GAN, section 4.2).

    gamma and beta are 1x1 convolutions. They are applied at the condition's own resolution and nearest-upsampled to
    h's: for a nearest-upsampled condition that is the same function at a fraction of the cost.
    """

    def __init__(self, channels: int, condition_dim: int, scope: StatisticsScope) -> None:
        super().__init__()
        self.bn = BatchStatistics(channels, scope)
        self.gamma = _glorot(nn.Conv2d(condition_dim, channels, 1))
        self.beta = _glorot(nn.Conv2d(condition_dim, channels, 1))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """h: (B,C,H,W), condition: (B,K,h,w) with H a multiple of h, to (B,C,H,W)."""
        gamma, beta = self.gamma(condition), self.beta(condition)
        if gamma.shape[2:] != h.shape[2:]:
            gamma = F.interpolate(gamma, h.shape[2:], mode="nearest")
            beta = F.interpolate(beta, h.shape[2:], mode="nearest")
        return torch.addcmul(beta, self.bn(h), 1 + gamma)


def _glorot(layer: LayerT) -> LayerT:
    nn.init.xavier_normal_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
