"""CPGAN's discriminators: each patch of a picture is compared with the words (FGCD, section 3.4), and a net of its own
judges pictures alone (section 6.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.attention import attend
from models.blocks.discriminator import (
    SLOPE,
    Discriminators,
    StageDiscriminator,
    StageJudgement,
    UnconditionalHead,
    halving_blocks,
)
from models.blocks.initial import initialise
from models.blocks.norm import BatchNorm
from models.contract import TextFeatures
from models.cpgan.config import CPGANConfig

HALVINGS, LEAST_SIDE = 5, 2


class PatchHead(nn.Module):
    """Real and of that caption or not, patch by patch: (B,C,N,N) and captions to logits (B,N,N) (equation 11).

    A patch's v, of the words' width, attends to the words by un-scaled dot products; the logit is of v, the words'
    mean p and the sentence s, side by side. How is not in the paper: here by a hidden layer, which like AttnGAN's joint
    convolution has batch norm and a leaky ReLU but sees one patch alone, as without it s could not meet v.
    """

    def __init__(self, config: CPGANConfig) -> None:
        super().__init__()
        width, text_dim = 8 * config.discriminator_channels, config.text_dim
        self.patch_proj = nn.Conv2d(width, text_dim, 1, bias=False)
        self.joint_conv = nn.Conv2d(3 * text_dim, width, 1, bias=False)
        self.joint_bn = BatchNorm(width, config.batch_norm)
        self.out_conv = nn.Conv2d(width, 1, 1)

    def forward(self, features: Tensor, text: TextFeatures) -> Tensor:
        patches = self.patch_proj(features)
        means, _ = attend(patches.flatten(2), text.words.to(patches.dtype), text.padding()[:, :, None])
        sentence = text.sentence.to(patches.dtype)[:, :, None, None].expand_as(patches)
        joined = torch.cat([patches, means.view_as(patches).to(patches.dtype), sentence], 1)
        logits: Tensor = self.out_conv(F.leaky_relu(self.joint_bn(self.joint_conv(joined)), SLOPE))
        return logits.squeeze(1)


class UnconditionalDiscriminator(nn.Module):
    """Real or not: pictures (B,3,S,S) to logits (B,), by five halvings and a linear layer (section 6.2).

    Its widths are not in the paper: df doubled up to AttnGAN's 8 df. Pictures below 64 px are halved to 2x2.
    """

    def __init__(self, config: CPGANConfig, side: int) -> None:
        super().__init__()
        halvings = min(HALVINGS, (side // LEAST_SIDE).bit_length() - 1)
        widths = [config.discriminator_channels << min(i, 3) for i in range(halvings)]
        self.downs = halving_blocks(widths, config.batch_norm)
        self.linear = nn.Linear(widths[-1] * (side >> halvings) ** 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        h = images
        for block in self.downs:
            h = block(h)
        logits: Tensor = self.linear(h.flatten(1))
        return logits.squeeze(1)


class FineGrainedDiscriminator(StageDiscriminator):
    """Pictures of one side to features of N x N patches, judged with the caption, and the judgement of pictures alone:
    of the pictures by a net of its own, or of the same features."""

    def __init__(self, config: CPGANConfig, side: int) -> None:
        patches = config.patches_at(side)
        super().__init__(config, (side // patches).bit_length() - 1)
        self.own = config.unconditional == "own"
        self.uncond_head = (
            UnconditionalDiscriminator(config, side)
            if self.own
            else UnconditionalHead(8 * config.discriminator_channels, patches)
        )
        self.cond_head = PatchHead(config)
        initialise(self)

    def forward(self, images: Tensor, text: TextFeatures) -> StageJudgement:
        features = self.features(images)
        return StageJudgement(
            features, self.uncond_head(images if self.own else features), self.cond_head(features, text)
        )


def discriminators(config: CPGANConfig) -> Discriminators:
    """Fine-grained ones for every stage, or AttnGAN's where they are switched off."""
    return Discriminators(config, [FineGrainedDiscriminator(config, side) for side in config.sides if config.fgcd])
