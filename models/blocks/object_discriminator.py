"""Discriminators of pictures that are drawn from scene graphs: one of patches, one of objects cut out (sg2im, section
3).

RetrieveGAN's D_img and D_obj (section 3.4) are taken to be the same; the paper says nothing of them.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.blocks.graphs import FlatGraphs
from models.blocks.layout import crop_boxes
from models.blocks.norm import BatchNorm, StatisticsScope
from models.contract import Settings

LEAST_JUDGED_SIDE = 22
"""Three convolutions of 4 pixels, stride 2, without padding need so many."""
PatchScore = Literal["map", "classifier"]


class ObjectDiscriminatorSettings(Settings):
    """Both discriminators. Defaults are sg2im's released ones."""

    discriminator_channels: int = Field(
        64, ge=1, description="width of both discriminators' first map; the next two double it (released: 64, 128, 256)"
    )
    discriminator_slope: float = Field(
        0.2, ge=0, le=1, description="of leaky ReLU in both discriminators (released: 0.2)"
    )
    feature_dim: int = Field(
        1024, ge=1, description="width of what the object discriminator says both of its judgements by (released: 1024)"
    )
    crop_side: int = Field(
        32, ge=LEAST_JUDGED_SIDE, description="side of the crops that the object discriminator sees (released: 32)"
    )
    patch_score: Literal["map", "classifier"] = Field(
        "map",
        description='what the image discriminator scores patches by: "map": the numbers of its last map itself, every '
        "channel a score, since the released code never applies the 1x1 convolution that it builds; "
        '"classifier": that convolution applied, one score a patch, as it was meant',
    )
    batch_norm: StatisticsScope = Field(
        "global", description='batch statistics over all workers, or "rank": of each alone'
    )
    align_corners: bool = Field(
        True,
        description="whether a map's outer cells have their middles on the edges when it is stretched over a box, and "
        "a picture's when it is cropped: true in the torch of 2018, which published weights were trained with; the "
        "released code does not say it, and today's torch takes false",
    )


class PatchTrunk(nn.Module):
    """Three convolutions of 4 pixels, stride 2, no padding, each twice as wide; batch norm and leaky ReLU between them:
    (B,3,S,S) to (B,4C,s,s), S at least 22 (released: C4-64-2, C4-128-2, C4-256-2)."""

    def __init__(self, channels: int, slope: float, scope: StatisticsScope) -> None:
        super().__init__()
        self.slope, self.width = slope, 4 * channels
        self.conv1 = nn.Conv2d(3, channels, 4, stride=2)
        self.bn1 = BatchNorm(channels, scope)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 4, stride=2)
        self.bn2 = BatchNorm(2 * channels, scope)
        self.conv3 = nn.Conv2d(2 * channels, 4 * channels, 4, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        h = F.leaky_relu(self.bn1(self.conv1(images)), self.slope)
        h = F.leaky_relu(self.bn2(self.conv2(h)), self.slope)
        features: Tensor = self.conv3(h)
        return features


class ImageDiscriminator(nn.Module):
    """Pictures (B,3,S,S) to scores of their patches (B,C,s,s): C is 4 channels' width ("map") or 1 ("classifier")."""

    def __init__(self, channels: int, slope: float, score: PatchScore, scope: StatisticsScope) -> None:
        super().__init__()
        self.trunk = PatchTrunk(channels, slope, scope)
        self.classifier = nn.Conv2d(self.trunk.width, 1, 1) if score == "classifier" else None

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.trunk(images)
        return features if self.classifier is None else self.classifier(features)


class ObjectDiscriminator(nn.Module):
    """Crops (O,3,s,s) to scores of being real (O,), and logits of their classes (O,classes+1), 0 for `__image__`.

    Between the trunk's mean and both heads is a linear layer alone, no activation (released).
    """

    def __init__(self, channels: int, slope: float, feature_dim: int, classes: int, scope: StatisticsScope) -> None:
        super().__init__()
        self.trunk = PatchTrunk(channels, slope, scope)
        self.linear = nn.Linear(self.trunk.width, feature_dim)
        self.real_head = nn.Linear(feature_dim, 1)
        self.class_head = nn.Linear(feature_dim, classes + 1)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        features = self.linear(self.trunk(crops).mean((2, 3)))
        return self.real_head(features).squeeze(1), self.class_head(features)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the discriminators say of B pictures with O objects.

    patches: scores (B,C,s,s); objects: scores (O,), of `__image__` too; classes: logits (O,classes+1).
    """

    patches: Tensor
    objects: Tensor
    classes: Tensor


class Discriminators(nn.Module):
    """Both discriminators."""

    def __init__(self, config: ObjectDiscriminatorSettings, classes: int) -> None:
        super().__init__()
        self.crop_side, self.align_corners = config.crop_side, config.align_corners
        channels, slope, scope = config.discriminator_channels, config.discriminator_slope, config.batch_norm
        self.of_images = ImageDiscriminator(channels, slope, config.patch_score, scope)
        self.of_objects = ObjectDiscriminator(channels, slope, config.feature_dim, classes, scope)

    def forward(self, images: Tensor, flat: FlatGraphs) -> Judgement:
        """Pictures (B,3,S,S), normalised, with their graphs, by whose boxes objects are cut out."""
        crops = crop_boxes(images, flat.boxes, flat.pictures, self.crop_side, self.align_corners)
        return Judgement(self.of_images(images), *self.of_objects(crops))
