"""One discriminator for each stage of a cascade, each with an unconditional and a conditional head (AttnGAN)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.cascade import CascadeSettings
from models.blocks.initial import initialise
from models.blocks.norm import BatchNorm, StatisticsScope

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
    """Real or not: (B,C,4,4) to logits (B,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, 1, MAP_SIDE)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.out_conv(features)
        return logits.flatten()


class ConditionalHead(nn.Module):
    """Real and of that sentence or not: (B,C,4,4) and sentences (B,D) to logits (B,)."""

    def __init__(self, width: int, text_dim: int, scope: StatisticsScope) -> None:
        super().__init__()
        self.joint = ConvBlock(width + text_dim, width, down=False, scope=scope)
        self.out_conv = nn.Conv2d(width, 1, MAP_SIDE)

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        tiled = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
        logits: Tensor = self.out_conv(self.joint(torch.cat([features, tiled.to(features.dtype)], 1)))
        return logits.flatten()


class Discriminator(nn.Module):
    """Pictures of one side to a 4x4 map of width 8 df, and the two heads that judge it.

    At 64 px: four halvings of widths df, 2df, 4df, 8df. Above, further halvings double the width and 3x3 convolutions
    bring it back to 8df (released). Below, the outer levels of the 64 px form are dropped.
    """

    def __init__(self, config: CascadeSettings, side: int) -> None:
        super().__init__()
        scope, final = config.batch_norm, 8 * config.discriminator_channels
        halvings = (side // MAP_SIDE).bit_length() - 1
        # The fourth halving of the 64 px form, or the last one of a smaller form, gives 8 df.
        widths = [final << i >> 3 for i in range(4)][-halvings:]
        widths += [final << i for i in range(1, halvings - 3)]
        self.downs = nn.ModuleList(
            [
                ConvBlock(width, out, down=True, scope=scope, norm=index > 0)
                for index, (width, out) in enumerate(zip([3, *widths], widths, strict=False))
            ]
        )
        self.reductions = nn.ModuleList(
            [ConvBlock(final << i, final << i >> 1, down=False, scope=scope) for i in range(halvings - 4, 0, -1)]
        )
        self.uncond_head = UnconditionalHead(final)
        self.cond_head = ConditionalHead(final, config.text_dim, scope)
        initialise(self)

    def forward(self, images: Tensor, sentence: Tensor) -> "StageJudgement":
        """Pictures (B,3,S,S) in [-1, 1] with their sentences (B,D)."""
        features = images
        for block in (*self.downs, *self.reductions):
            features = block(features)
        return StageJudgement(features, self.uncond_head(features), self.cond_head(features, sentence))


@dataclass(frozen=True, slots=True)
class StageJudgement:
    """What one stage's discriminator says of B pictures.

    features: (B,8df,4,4); unconditional: logits (B,) of the pictures alone; conditional: (B,) with their sentences.
    """

    features: Tensor
    unconditional: Tensor
    conditional: Tensor


class Discriminators(nn.Module):
    """The discriminators of every stage, lowest side first."""

    def __init__(self, config: CascadeSettings) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Discriminator(config, side) for side in config.sides])

    def forward(self, images: tuple[Tensor, ...], sentence: Tensor) -> list[StageJudgement]:
        """Pictures of every stage, lowest side first, with their sentences (B,D)."""
        return [stage(pictures, sentence) for stage, pictures in zip(self.stages, images, strict=True)]
