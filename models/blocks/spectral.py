"""Spectral normalisation with one power iteration a forward pass (Miyato et al., 2018)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _unit(vector: Tensor, epsilon: float) -> Tensor:
    return vector * torch.rsqrt(vector.square().sum() + epsilon)


def spectrally_normalised(weight: Tensor, u: Tensor, update: bool, epsilon: float) -> Tensor:
    """`weight` divided by an estimate of its largest singular value, after one power iteration from `u`.

    weight: (out,...) read as an (out, rest) matrix; u: (out,), overwritten by the new vector when `update`. No gradient
    flows through the vectors. The released XMC-GAN code iterates in evaluation as well and stores u in training only;
    torch's own parametrisation does not iterate in evaluation.
    """
    matrix = weight.flatten(1)
    with torch.no_grad():
        v = _unit(matrix.t() @ u, epsilon)
        new_u = _unit(matrix @ v, epsilon)
        if update:
            u.copy_(new_u)
    return weight / (new_u @ (matrix @ v) + epsilon)


class SpectralConv2d(nn.Conv2d):
    """`nn.Conv2d` with a spectrally normalised kernel; arguments are those of `nn.Conv2d`."""

    u: Tensor

    def __init__(self, *args: Any, epsilon: float = 1e-10, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epsilon = epsilon
        self.register_buffer("u", torch.randn(self.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        weight = spectrally_normalised(self.weight, self.u, self.training, self.epsilon)
        return self._conv_forward(x, weight, self.bias)


class SpectralLinear(nn.Linear):
    """`nn.Linear` with a spectrally normalised weight."""

    u: Tensor

    def __init__(self, in_features: int, out_features: int, epsilon: float = 1e-10) -> None:
        super().__init__(in_features, out_features)
        self.epsilon = epsilon
        self.register_buffer("u", torch.randn(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, spectrally_normalised(self.weight, self.u, self.training, self.epsilon), self.bias)
