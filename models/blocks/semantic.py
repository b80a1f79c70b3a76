"""Layers of nets that draw label maps: spatially-adaptive normalisation, and spectral normalisation by torch's rule.

Paper: Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization" (SPADE), 2019.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.label_maps import resized
from models.blocks.norm import BatchStatistics, StatisticsScope

UNIT_EPSILON = 1e-12

SETTLING = 15  # power iterations before the first step


class StoredSpectralConv2d(nn.Conv2d):
    """`nn.Conv2d` whose kernel is divided by u^T W v, an estimate of its largest singular value (Miyato et al., 2018).

    u and v are stored. A forward pass in training iterates once first; one in evaluation takes them as they are. That
    is `torch.nn.utils.spectral_norm`, which SPADE and CC-FPSE were released with; `SpectralConv2d` iterates in
    evaluation too.
    """

    u: Tensor
    v: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rows, columns = self.weight.flatten(1).shape
        self.register_buffer("u", _unit(torch.randn(rows)))
        self.register_buffer("v", _unit(torch.randn(columns)))

    def forward(self, x: Tensor) -> Tensor:
        # The estimate needs float32's digits, whatever the convolution is done in.
        with torch.autocast(x.device.type, enabled=False):
            matrix, u, v = self.weight.flatten(1), self.u, self.v
            if self.training:
                with torch.no_grad():
                    v = _unit(matrix.t() @ u)
                    u = _unit(matrix @ v)
                    self.u.copy_(u)
                    self.v.copy_(v)
            weight = self.weight / (u @ (matrix @ v))
        return self._conv_forward(x, weight, self.bias)


def _unit(vector: Tensor) -> Tensor:
    return F.normalize(vector, dim=0, eps=UNIT_EPSILON)


class SpatiallyAdaptiveNorm(nn.Module):
    """h' = (1 + gamma) * normalise(h) + beta, gamma and beta made of the label map at every pixel (SPADE).

    Batch norm without affine; the map, resized to h's size, through a 3x3 convolution and ReLU (`hidden_dim` wide;
    released: 128), then one 3x3 convolution for each of gamma and beta.
    """

    def __init__(
        self, channels: int, label_channels: int, hidden_dim: int = 128, scope: StatisticsScope = "global"
    ) -> None:
        super().__init__()
        self.norm = BatchStatistics(channels, scope, unbiased=True)
        self.shared = nn.Conv2d(label_channels, hidden_dim, 3, padding=1)
        self.gamma = nn.Conv2d(hidden_dim, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden_dim, channels, 3, padding=1)

    def forward(self, h: Tensor, label_map: Tensor) -> Tensor:
        """h: (B,C,h,w), label_map: (B,L,H,W) of any size, to (B,C,h,w)."""
        shared = F.relu(self.shared(resized(label_map, (h.shape[2], h.shape[3]))))
        return torch.addcmul(self.beta(shared), self.norm(h), 1 + self.gamma(shared))


def initialise(net: nn.Module, gain: float) -> None:
    """Kernels of every convolution and linear layer as Glorot and Bengio (2010) have them, normal, times `gain`; biases
    0 (released SPADE: gain 0.02). Spectral norms fit them: a net in evaluation divides by those before its first step,
    and what two random vectors make of a kernel may be near 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, StoredSpectralConv2d) and not module.weight.is_meta:
            with torch.no_grad():
                matrix = module.weight.flatten(1)
                for _ in range(SETTLING):
                    module.v.copy_(F.normalize(matrix.t() @ module.u, dim=0))
                    module.u.copy_(F.normalize(matrix @ module.v, dim=0))
