"""How far two pictures are for a net that was trained to recognise things: the perceptual loss of RetrieveGAN (section
3.5) and of the generators that TReCS stands on.

RetrieveGAN names VGG and no layers: every map that LPIPS takes of a net counts the same. SPADE's and CC-FPSE's released
code weighs the maps of five levels, the deepest most.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.contract import Settings
from models.encoders.perceptual_trunks import PerceptualTrunk, find_perceptual_weights
from models.encoders.trunk import ImageTrunk, ImageTrunkSettings, find_trunk_weights
from models.losses.lpips import scaled
from models.precision import at_least_float32

LEVEL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""Of five maps, the first one's first (SPADE and CC-FPSE, released)."""


class PerceptualSettings(Settings):
    """Which frozen net compares."""

    net: Literal["vgg", "alex", "squeeze", "efficientnet-lite0"] = Field(
        "vgg",
        description='"vgg": VGG-16, as RetrieveGAN names it (section 3.5), "alex", "squeeze", or "efficientnet-lite0", '
        "the offline choice: its package carries the weights",
    )
    weights: str | None = Field(
        None,
        description="path of the net's ImageNet weights in torchvision's names; none: the installed package's own, "
        'which only efficientnet-lite0 has; "random": untrained, the same on every machine',
    )
    distance: Literal["l1", "l2"] = Field(
        "l1", description="of two maps: the mean of absolute or of squared differences (the paper does not say)"
    )
    map_weights: Literal["equal", "spade"] = Field(
        "equal",
        description='"equal": the distance is the mean over the net\'s maps; "spade": their sum with weights 1/32, '
        "1/16, 1/8, 1/4, 1, the deepest last (SPADE and CC-FPSE, released); a net of fewer maps has the last of these",
    )
    side: int | None = Field(
        None, ge=32, description="pictures are resized to this side first; none: they are taken as they are"
    )

    @model_validator(mode="after")
    def _has_a_weight_for_each_map(self) -> "PerceptualSettings":
        if self.map_weights == "spade" and self.net == "squeeze":
            raise ValueError(
                f"map_weights=spade has weights for {len(LEVEL_WEIGHTS)} maps and squeeze has seven: take vgg, alex or "
                "efficientnet-lite0, or map_weights=equal"
            )
        return self

    @property
    def trunk(self) -> ImageTrunkSettings:
        """Of EfficientNet-lite0."""
        return ImageTrunkSettings(name="efficientnet-lite0", weights=self.weights, side=self.side or 64)


def require_perceptual_weights(settings: PerceptualSettings, field: str) -> None:
    """Raises WeightsMissing where the net's weights are not here; field: the settings' name in the message."""
    if settings.net == "efficientnet-lite0":
        find_trunk_weights(settings.trunk, field)
    else:
        find_perceptual_weights(settings.net, settings.weights, field)


class PerceptualDistance(nn.Module):
    """Pictures (k*B,3,H,W) and what they should look like (B,3,H,W), in [-1, 1], to distances (k*B,), 0 for equal ones.

    The i-th is compared with the (i modulo B)-th, which is looked at once.

    Always in evaluation mode, parameters frozen; gradient flows to the pictures. Under `torch.device("meta")` it is an
    empty module. Raises WeightsMissing.
    """

    trunk: PerceptualTrunk | ImageTrunk

    def __init__(self, settings: PerceptualSettings) -> None:
        super().__init__()
        self.settings = settings
        if settings.net == "efficientnet-lite0":
            self.trunk = ImageTrunk(settings.trunk)
        elif torch.empty(0).device.type != "meta":
            self.trunk = PerceptualTrunk(settings.net, settings.weights)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """Stays in evaluation mode."""
        return self

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """No gradient is needed of the second: it is what the first should look like."""
        with torch.no_grad():
            times = len(first) // max(1, len(second))
            wanted = tuple(maps.repeat(times, *[1] * (maps.dim() - 1)) for maps in self._maps(second))
        distances = torch.stack(
            [self._between(one, other) for one, other in zip(self._maps(first), wanted, strict=True)]
        )
        if self.settings.map_weights == "equal":
            return distances.mean(0)
        return (distances.new_tensor(LEVEL_WEIGHTS[-len(distances) :])[:, None] * distances).sum(0)

    def _between(self, one: Tensor, other: Tensor) -> Tensor:
        difference = at_least_float32(one) - at_least_float32(other)
        return (difference.abs() if self.settings.distance == "l1" else difference.square()).flatten(1).mean(1)

    def _maps(self, images: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.trunk, ImageTrunk):
            found = self.trunk(images)
            return found.regions, found.pooled
        side = max(self.settings.side or min(images.shape[2:]), self.trunk.least_side)
        if images.shape[2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
        maps: tuple[Tensor, ...] = self.trunk(scaled(images))
        return maps
