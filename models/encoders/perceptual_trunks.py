"""The convolutions of AlexNet, VGG-16 and SqueezeNet 1.1, as trunks that a perceptual distance looks through.

Parameters carry torchvision's names, so that its published files load; classifiers are left out. Which maps are taken:
Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018, section 3 (VGG: the last
ReLU before each pooling; AlexNet: each ReLU), and the shapes of its published linear layers (SqueezeNet: seven maps).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.image import WeightsMissing, existing, fill
from models.encoders.trunk import RANDOM, RANDOM_SEED

PerceptualName = Literal["alex", "vgg", "squeeze"]
PUBLISHED_FILES = {
    "7be5be79": "alex",
    "397923af": "vgg",
    "b8a52dc0": "squeeze",
    "7b319a6d": "squeeze-caffe",
}
"""First digits of a weights file's sha256, and what it is. Three are torchvision's, which writes the digits into its
files' names; "squeeze-caffe" is SqueezeNet 1.1 as its authors trained it, in half precision and torchvision's names."""


class Fire(nn.Module):
    """1x1 convolution to few channels, then 1x1 and 3x3 side by side (Iandola et al., "SqueezeNet", 2016, figure 1).

    (B,width,h,w) to (B,2*expanded,h,w).
    """

    def __init__(self, width: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


def _alexnet() -> nn.Sequential:
    """The one-tower form (Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def _vgg16() -> nn.Sequential:
    """Configuration D of Simonyan and Zisserman, 2014, table 1, up to its last convolution."""
    layers: list[nn.Module] = []
    width = 3
    for block, (out, convolutions) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if block:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convolutions):
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
    return nn.Sequential(*layers)


def _squeezenet() -> nn.Sequential:
    """SqueezeNet 1.1: pooling earlier than in the paper's 1.0. Its pools count the pixels at the rim (ceil)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a net is made, after which layers maps are taken, their widths, the smallest side that every layer can take,
    and the published file's name."""

    make: Callable[[], nn.Sequential]
    taps: tuple[int, ...]
    widths: tuple[int, ...]
    least_side: int
    file: str


_KINDS: dict[PerceptualName, _Kind] = {
    "alex": _Kind(_alexnet, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31, "alexnet-owt-7be5be79.pth"),
    "vgg": _Kind(_vgg16, (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16, "vgg16-397923af.pth"),
    "squeeze": _Kind(
        _squeezenet,
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
        17,
        "squeezenet1_1-b8a52dc0.pth",
    ),
}


class PerceptualTrunk(nn.Module):
    """Pixels (B,3,H,W), normalised as the net was trained, to its maps: `len(widths)` of (B,width,h,w).

    Always in evaluation mode, parameters frozen, in float32; gradient flows to the pixels. weights: a state dict in
    torchvision's names by path, or "random". Raises WeightsMissing.
    """

    def __init__(self, name: PerceptualName, weights: str | None) -> None:
        super().__init__()
        kind = _KINDS[name]
        self.name, self.taps, self.widths, self.least_side = name, kind.taps, kind.widths, kind.least_side
        path = find_perceptual_weights(name, weights)
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            self.features = kind.make()
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    # He et al., 2015: activations neither vanish nor grow with the depth.
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if path is not None:
            fill(self, path, f"{name} ({kind.file})", unused=("classifier.",))
            if not all(bool(values.isfinite().all()) for values in self.parameters()):
                raise WeightsMissing(f"{path} has weights that are not finite numbers: check the file")
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> "PerceptualTrunk":
        """Stays in evaluation mode."""
        return self

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for place, layer in enumerate(self.features):
            pixels = layer(pixels)
            if place in self.taps:
                maps.append(pixels)
        return tuple(maps)


def find_perceptual_weights(name: PerceptualName, weights: str | None, field: str = "lpips") -> Path | None:
    """The file that holds the trunk's weights; None for an untrained one. `field` is the settings' name in messages.

    Raises WeightsMissing when none is named, or the file is not here.
    """
    if weights == RANDOM:
        return None
    if weights is None:
        raise WeightsMissing(
            f"{name} needs its ImageNet weights by path: set {field}.weights=PATH to the file that torchvision "
            f"publishes as {_KINDS[name].file}, or use an untrained net with {field}.weights={RANDOM}"
        )
    return existing(Path(weights), name)
