"""MirrorGAN's generator: a cascade whose later stages attend to words and to the sentence (GLAM, section 3.2)."""

import torch
from torch import Tensor, nn

from models.blocks.attention import WordAttention
from models.blocks.cascade import CascadeGenerator, LaterStage, ResidualBlock, UpBlock
from models.contract import TextFeatures
from models.mirrorgan.config import MirrorGANConfig


class SentenceAttention(nn.Module):
    """(V s) * softmax(f * (V s)), element by element (MirrorGAN, equation 5).

    The released form gives V a bias and puts a 1x1 convolution before the softmax. The softmax's axis is not in the
    paper: channels of a place (released), or places of a channel ("space").
    """

    def __init__(self, config: MirrorGANConfig) -> None:
        super().__init__()
        channels, released = config.generator_channels, config.extra_convolutions
        self.axis = config.sentence_axis
        self.sentence_proj = nn.Linear(config.condition_dim, channels, bias=released)
        self.visual_conv = nn.Conv2d(channels, channels, 1, bias=False) if released else nn.Identity()

    def forward(self, h: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """h: (B,C,H,W), condition: (B,K). Returns the context and the weights, both (B,C,H,W)."""
        projected = self.sentence_proj(condition)[:, :, None, None].to(h.dtype)
        logits = self.visual_conv(h * projected)
        weights = logits.softmax(1) if self.axis == "channel" else logits.flatten(2).softmax(2).view_as(logits)
        return projected * weights.to(h.dtype), weights


class GlobalLocalAttention(nn.Module):
    """GLAM: the feature map with its word and its sentence context (MirrorGAN, section 3.2).

    The released form brings the three maps of width C to 2C by a 1x1 convolution; the paper's equation 3 concatenates
    them, 3C wide. Without global attention (table 3) there are two maps, 2C wide.
    """

    def __init__(self, config: MirrorGANConfig) -> None:
        super().__init__()
        channels = config.generator_channels
        self.word = WordAttention(channels, config.text_dim, config.legacy_mask)
        self.sentence = SentenceAttention(config) if config.global_attention else None
        fuses = config.global_attention and config.extra_convolutions
        self.out_channels = (3 if config.global_attention and not fuses else 2) * channels
        self.fusion_conv = nn.Conv2d(3 * channels, self.out_channels, 1, bias=False) if fuses else nn.Identity()

    def forward(self, h: Tensor, words: Tensor, padding: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """h: (B,C,H,W), words: (B,T,D), condition: (B,K). Returns (B,out_channels,H,W) and word weights (B,T,H,W)."""
        word_context, weights = self.word(h, words, padding)
        maps = [h, word_context.to(h.dtype)]
        if self.sentence is not None:
            maps.append(self.sentence(h, condition)[0])
        return self.fusion_conv(torch.cat(maps, 1)), weights


class AttentionStage(LaterStage):
    """F_i, i > 0: GLAM, residual blocks, up-sampling (MirrorGAN, equation 3)."""

    def __init__(self, config: MirrorGANConfig) -> None:
        super().__init__()
        self.attention = GlobalLocalAttention(config)
        width, scope = self.attention.out_channels, config.batch_norm
        self.residual = nn.ModuleList([ResidualBlock(width, scope) for _ in range(config.residual_blocks)])
        self.up = UpBlock(width, config.generator_channels, scope)

    def forward(self, h: Tensor, text: TextFeatures, condition: Tensor) -> tuple[Tensor, Tensor]:
        h, weights = self.attention(h, text.words, text.padding(), condition)
        for block in self.residual:
            h = block(h)
        return self.up(h), weights


class Generator(CascadeGenerator):
    """G of MirrorGAN: caption features and noise to pictures of every stage."""

    def __init__(self, config: MirrorGANConfig) -> None:
        super().__init__(config, [AttentionStage(config) for _ in range(config.stages - 1)])
