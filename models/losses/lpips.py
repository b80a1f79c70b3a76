"""LPIPS: how different two pictures look (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric", 2018, section 3.1, equation 1), in the form of its published version 0.1."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from models.contract import Settings
from models.encoders.image import WeightsMissing, existing, fill
from models.encoders.perceptual_trunks import PerceptualName, PerceptualTrunk
from models.precision import at_least_float32

EPSILON = 1e-10
# ImageNet's mean and deviation, (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225), for pixels in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LpipsSettings(Settings):
    """Which net looks, and the files of its weights."""

    net: PerceptualName = Field("alex", description="alex (the papers' choice for diversity), vgg or squeeze")
    weights: str | None = Field(
        None,
        description="path of the net's ImageNet weights in torchvision's names (.pth or .safetensors); "
        '"random": untrained, the same on every machine',
    )
    heads: str | None = Field(
        None,
        description="path of the linear layers, published as lpips v0.1 (.pth or .safetensors); none: those that "
        "torchmetrics carries",
    )


class LpipsHead(nn.Module):
    """Weights of one map's channels. `model.1` is the published name: what stands before it serves training alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, squared: Tensor) -> Tensor:
        """Squared differences (B,C,h,w) to their weighted sum over channels, averaged over places: (B,)."""
        weighted: Tensor = self.model(squared)
        return weighted.mean((1, 2, 3))


class LpipsHeads(nn.Module):
    """Maps of two pictures to distances, map by map. Its parameters are called lin0.model.1.weight and so on."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.count = len(widths)
        for place, width in enumerate(widths):
            self.add_module(f"lin{place}", LpipsHead(width))

    def forward(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Two lists of L maps (B,C,h,w) to (B,L): of each map, channels scaled to length 1, the squared differences,
        weighted, and averaged over places. In float32 or, given it, float64."""
        distances = []
        with torch.autocast(first[0].device.type, enabled=False):
            for place, (one, other) in enumerate(zip(first, second, strict=True)):
                head = self.get_submodule(f"lin{place}")
                distances.append(head((of_unit_length(one) - of_unit_length(other)).square()))
        return torch.stack(distances, 1)


def of_unit_length(maps: Tensor) -> Tensor:
    """Maps (B,C,h,w) whose channels have length 1 at each place; zeros stay zeros, with a gradient of 0."""
    maps = at_least_float32(maps)
    # vector_norm's gradient at 0 is 0, that of the square root of a sum is infinite.
    return maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + EPSILON)


def scaled(images: Tensor) -> Tensor:
    """Pictures (B,3,H,W) in [-1, 1] to ImageNet's mean 0 and deviation 1."""
    shift, scale = (images.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
    return (images - shift) / scale


class Lpips(nn.Module):
    """Two times pictures (B,3,H,W) in [-1, 1] to their perceptual distances (B,), 0 for equal ones.

    Always in evaluation mode, parameters frozen; gradient flows to the pictures, so it is a loss as well as a metric.
    Nothing is resized. Under `torch.device("meta")` it is an empty module. Raises WeightsMissing when files are
    missing or another net's.
    """

    trunk: PerceptualTrunk
    heads: LpipsHeads

    def __init__(self, settings: LpipsSettings) -> None:
        super().__init__()
        self.settings = settings
        if torch.empty(0).device.type != "meta":
            self.trunk = PerceptualTrunk(settings.net, settings.weights)
            self.heads = load_heads(self.trunk.widths, find_heads(settings), settings.net)
        super().train(False)

    def train(self, mode: bool = True) -> "Lpips":
        """Stays in evaluation mode."""
        return self

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """The trunk's maps of pictures (B,3,H,W) in [-1, 1]. Raises ValueError for pictures too small for it."""
        least = self.trunk.least_side
        if min(images.shape[2:]) < least:
            height, width = images.shape[2:]
            raise ValueError(
                f"pictures of {width} x {height} px are too small for {self.settings.net}: it needs {least} px or more"
            )
        return self.trunk(scaled(images))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.between(self.maps(first), self.maps(second))

    def between(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Distances (B,) from maps that `maps` gave: each picture's are computed once however many it meets."""
        return self.heads(first, second).sum(1)


def find_heads(settings: LpipsSettings) -> Path:
    """The file that holds the linear layers. Raises WeightsMissing when there is none."""
    name = f"the linear layers of LPIPS for {settings.net}"
    if settings.heads is not None:
        return existing(Path(settings.heads), name)
    package = find_spec("torchmetrics")
    if package is None or package.origin is None:
        raise WeightsMissing(f"{name} are not installed: pip install torchmetrics, or set lpips.heads=PATH")
    return existing(Path(package.origin).parent / "functional/image/lpips_models" / f"{settings.net}.pth", name)


def load_heads(widths: Sequence[int], path: Path, net: PerceptualName) -> LpipsHeads:
    """The published linear layers, frozen. Raises WeightsMissing for those of another net, or weights below 0."""
    with torch.device("cpu"):
        heads = LpipsHeads(widths)
    fill(heads, path, f"the linear layers of LPIPS for {net}")
    if not all(bool((weight >= 0).all()) for weight in heads.parameters()):
        raise WeightsMissing(f"{path} has weights that are negative or not numbers: LPIPS has none, check the file")
    return heads.requires_grad_(False).eval()
