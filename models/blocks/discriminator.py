"""One discriminator for each stage of a cascade, each with an unconditional and a conditional head (AttnGAN)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.cascade import CascadeSettings
from models.blocks.initial import initialise
from models.blocks.norm import BatchNorm, StatisticsScope
from models.contract import TextFeatures

SLOPE = 0.2
MAP_SIDE = 4


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm unless it is the first, leaky ReLU 0.2; stride 2 halves the side."""

    def __init__(self, width: int, out: int, down: bool, scope: StatisticsScope, norm: bool = True) -> None:
        super().__init__()
        kernel, stride = (4, 2) if down else (3, 1)
        self.conv = nn.Conv2d(width, out, kernel, stride, padding=1, bias=False)
        self.bn = BatchNorm(out, scope) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return F.leaky_relu(h if self.bn is None else self.bn(h), SLOPE)


class UnconditionalHead(nn.Module):
    """Real or not: (B,C,S,S) to logits (B,); side: S."""

    def __init__(self, width: int, side: int = MAP_SIDE) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, 1, side)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.out_conv(features)
        return logits.flatten()


class ConditionalHead(nn.Module):
    """Real and of that sentence or not: (B,C,4,4) and captions, of which only the sentence is read, to logits (B,)."""

    def __init__(self, width: int, text_dim: int, scope: StatisticsScope) -> None:
        super().__init__()
        self.joint = ConvBlock(width + text_dim, width, down=False, scope=scope)
        self.out_conv = nn.Conv2d(width, 1, MAP_SIDE)

    def forward(self, features: Tensor, text: TextFeatures) -> Tensor:
        tiled = text.sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
        logits: Tensor = self.out_conv(self.joint(torch.cat([features, tiled.to(features.dtype)], 1)))
        return logits.flatten()


@dataclass(frozen=True, slots=True)
class StageJudgement:
    """What one stage's discriminator says of B pictures.

    features: (B,8df,S,S), what its conditional head reads of the pictures; unconditional: logits (B,) of the pictures
    alone; conditional: (B,) or, of each place, (B,S,S) with their captions.
    """

    features: Tensor
    unconditional: Tensor
    conditional: Tensor


class StageDiscriminator(nn.Module):
    """What a cascade asks of the discriminator of one stage; its trunk has `halvings` halvings and ends 8 df wide.

    Four halvings have the widths df, 2df, 4df, 8df. More double the width and 3x3 convolutions bring it back to 8df
    (released AttnGAN). Fewer drop the outer levels of that form.
    """

    cond_head: nn.Module
    """Features of pictures and `TextFeatures` to conditional logits, see `StageJudgement`."""

    def __init__(self, config: CascadeSettings, halvings: int) -> None:
        super().__init__()
        scope, final = config.batch_norm, 8 * config.discriminator_channels
        # The fourth halving, or the last one of fewer, gives 8 df.
        widths = [final << i >> 3 for i in range(4)][-halvings:]
        widths += [final << i for i in range(1, halvings - 3)]
        self.downs = halving_blocks(widths, scope)
        self.reductions = nn.ModuleList(
            [ConvBlock(final << i, final << i >> 1, down=False, scope=scope) for i in range(halvings - 4, 0, -1)]
        )

    def features(self, images: Tensor) -> Tensor:
        """Pictures (B,3,S,S) in [-1, 1] to (B,8df,s,s), s = S / 2**halvings."""
        h = images
        for block in (*self.downs, *self.reductions):
            h = block(h)
        return h

    def forward(self, images: Tensor, text: TextFeatures) -> StageJudgement:
        """Pictures (B,3,S,S) in [-1, 1] with their captions."""
        raise NotImplementedError


def halving_blocks(widths: list[int], scope: StatisticsScope) -> nn.ModuleList:
    """Convolutions that each halve the side of a picture's map, to these widths."""
    return nn.ModuleList(
        [
            ConvBlock(width, out, down=True, scope=scope, norm=index > 0)
            for index, (width, out) in enumerate(zip([3, *widths], widths, strict=False))
        ]
    )


class Discriminator(StageDiscriminator):
    """AttnGAN's: pictures of one side to a 4x4 map, and the two heads that judge it."""

    def __init__(self, config: CascadeSettings, side: int) -> None:
        super().__init__(config, (side // MAP_SIDE).bit_length() - 1)
        final = 8 * config.discriminator_channels
        self.uncond_head = UnconditionalHead(final)
        self.cond_head = ConditionalHead(final, config.text_dim, config.batch_norm)
        initialise(self)

    def forward(self, images: Tensor, text: TextFeatures) -> StageJudgement:
        features = self.features(images)
        return StageJudgement(features, self.uncond_head(features), self.cond_head(features, text))


class Discriminators(nn.Module):
    """The discriminators of every stage, lowest side first: the given ones, or AttnGAN's."""

    def __init__(self, config: CascadeSettings, stages: Sequence[StageDiscriminator] = ()) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages or [Discriminator(config, side) for side in config.sides])

    def forward(self, images: tuple[Tensor, ...], text: TextFeatures) -> list[StageJudgement]:
        """Pictures of every stage, lowest side first, with their captions."""
        return [stage(pictures, text) for stage, pictures in zip(self.stages, images, strict=True)]
