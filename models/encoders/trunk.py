"""Frozen image nets as trunks: a map of regions and a pooled vector of every picture.

Weights are never fetched and never silently random: they are named by path, come with an installed package, or are
"random" because somebody wrote so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.blocks.pixels import from_signed
from models.contract import Settings
from models.encoders import inception, resnet
from models.encoders.image import WeightsMissing, efficientnet_lite0, efficientnet_lite0_file, existing, fill

TrunkName = Literal["inception-v3", "resnet152", "resnet50", "efficientnet-lite0"]
RANDOM = "random"
RANDOM_SEED = 0


class ImageTrunkSettings(Settings):
    """Which frozen net looks at pictures, and how they are prepared for it."""

    name: TrunkName = Field(
        "inception-v3",
        description='"inception-v3" (AttnGAN), "resnet152" (MirrorGAN\'s STREAM), "resnet50", or "efficientnet-lite0", '
        "the offline choice: its package carries the weights",
    )
    weights: str | None = Field(
        None,
        description="path of the weights in torchvision's names (state dict, .pth or .safetensors); none: the "
        'installed package\'s own; "random": untrained, the same on every machine',
    )
    side: int = Field(299, ge=32, description="pictures are resized to this side before the net; Inception-v3: 299")
    align_corners: bool = Field(
        True,
        description="corner pixels keep their place when pictures are resized: what bilinear resizing did in the torch "
        "that AttnGAN was released with; off is today's meaning",
    )
    pixels: Literal["signed", "unit", "imagenet"] = Field(
        "signed",
        description='range the net sees: "signed" [-1, 1] (Inception-v3; released STREAM), "unit" [0, 1], "imagenet" '
        "ImageNet's mean 0 and deviation 1 (torchvision's ResNets were trained so); EfficientNet-lite0 has its own",
    )


@dataclass(frozen=True, slots=True)
class TrunkFeatures:
    """regions: (B,C,h,w); pooled: (B,F)."""

    regions: Tensor
    pooled: Tensor


class EfficientNetLite0(nn.Module):
    """The packaged net: regions are its 112-wide map at a sixteenth of the side, pooled its last 1280 channels."""

    LAST_REGION_BLOCK = 10

    def __init__(self) -> None:
        super().__init__()
        self.net = efficientnet_lite0()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B,3,S,S) in the port's own range to regions (B,112,S/16,S/16) and pooled (B,1280)."""
        found: list[Tensor] = []
        blocks: nn.ModuleList = self.net._blocks  # type: ignore[assignment]
        hook = blocks[self.LAST_REGION_BLOCK].register_forward_hook(lambda *call: found.append(call[-1]))
        try:
            last: Tensor = self.net.extract_features(pixels)  # type: ignore[operator]
        finally:
            hook.remove()
        return found[0], last.mean((2, 3))


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a net is made, the widths of its regions and its pooled vector, and what its published file has beyond it."""

    make: Callable[[], nn.Module]
    region_dim: int
    pooled_dim: int
    unused: tuple[str, ...] = ()


_KINDS: dict[TrunkName, _Kind] = {
    "inception-v3": _Kind(inception.InceptionV3, inception.REGION_DIM, inception.POOLED_DIM, inception.UNUSED),
    "resnet152": _Kind(lambda: resnet.ResNet((3, 8, 36, 3)), resnet.REGION_DIM, resnet.POOLED_DIM, resnet.UNUSED),
    "resnet50": _Kind(lambda: resnet.ResNet((3, 4, 6, 3)), resnet.REGION_DIM, resnet.POOLED_DIM, resnet.UNUSED),
    "efficientnet-lite0": _Kind(EfficientNetLite0, 112, 1280),
}


class ImageTrunk(nn.Module):
    """Pictures (B,3,H,W) in [-1, 1] to `TrunkFeatures`; `region_dim` and `pooled_dim` are their widths.

    Always in evaluation mode, parameters frozen; gradient flows to the pictures. Under `torch.device("meta")` it is an
    empty module: what is built there is built to sample with. Raises WeightsMissing.
    """

    def __init__(self, settings: ImageTrunkSettings) -> None:
        super().__init__()
        self.settings = settings
        kind = _KINDS[settings.name]
        self.region_dim, self.pooled_dim = kind.region_dim, kind.pooled_dim
        on_meta = torch.empty(0).device.type == "meta"
        self.net = nn.Module() if on_meta else _load(settings).requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> "ImageTrunk":
        """Stays in evaluation mode: its batch-norm statistics are part of its weights."""
        return self

    def forward(self, images: Tensor) -> TrunkFeatures:
        settings = self.settings
        size = (settings.side, settings.side)
        pixels = F.interpolate(images, size, mode="bilinear", align_corners=settings.align_corners, antialias=False)
        regions, pooled = self.net(_prepared(pixels, settings))
        return TrunkFeatures(regions, pooled)


def _prepared(pixels: Tensor, settings: ImageTrunkSettings) -> Tensor:
    """Pixels in [-1, 1] to the range the net sees."""
    if settings.name == "efficientnet-lite0":
        # The port was trained on (x - 127) / 128 of bytes x.
        return ((pixels + 1) * 127.5 - 127) / 128
    if settings.pixels == "signed":
        return pixels
    return (pixels + 1) / 2 if settings.pixels == "unit" else from_signed(pixels)


def find_trunk_weights(settings: ImageTrunkSettings, field: str = "trunk") -> Path | None:
    """The file that holds the trunk's weights; None for an untrained one. `field` is the settings' name in messages.

    Raises WeightsMissing when the file, or the net's code, is not here.
    """
    if settings.name == "efficientnet-lite0":
        path = efficientnet_lite0_file(None if settings.weights == RANDOM else settings.weights)
    elif settings.weights is None:
        raise WeightsMissing(
            f"{settings.name} needs its ImageNet weights by path: set {field}.weights=PATH, or use the installed net "
            f"with {field}.name=efficientnet-lite0, or an untrained one with {field}.weights={RANDOM}"
        )
    else:
        path = Path(settings.weights)
    return None if settings.weights == RANDOM else existing(path, settings.name)


def _load(settings: ImageTrunkSettings) -> nn.Module:
    path, kind = find_trunk_weights(settings), _KINDS[settings.name]
    if path is not None:
        net = kind.make()
        fill(net.net if isinstance(net, EfficientNetLite0) else net, path, settings.name, kind.unused)
        return net
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        net = kind.make()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                # He et al., 2015: activations neither vanish nor grow with the depth.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(net, resnet.ResNet):
            net.balance_branches()
    return net
