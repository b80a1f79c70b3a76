"""AttnGAN's generator (section 3.1). Its blocks, and the discriminators, are those of every cascade."""

import torch
from torch import Tensor, nn

from models.attngan.config import AttnGANConfig
from models.blocks.attention import WordAttention
from models.blocks.cascade import CascadeGenerator, CascadeSettings, LaterStage, ResidualBlock, UpBlock
from models.contract import TextFeatures


class AttentionStage(LaterStage):
    """F_i: word attention beside the feature map, residual blocks, up-sampling (AttnGAN, equation 1)."""

    def __init__(self, config: CascadeSettings) -> None:
        super().__init__()
        channels, scope = config.generator_channels, config.batch_norm
        self.attention = WordAttention(channels, config.text_dim, config.legacy_mask)
        self.residual = nn.ModuleList([ResidualBlock(2 * channels, scope) for _ in range(config.residual_blocks)])
        self.up = UpBlock(2 * channels, channels, scope)

    def forward(self, h: Tensor, text: TextFeatures, condition: Tensor) -> tuple[Tensor, Tensor]:
        context, weights = self.attention(h, text.words, text.padding())
        h = torch.cat([h, context.to(h.dtype)], 1)
        for block in self.residual:
            h = block(h)
        return self.up(h), weights


class Generator(CascadeGenerator):
    """G of AttnGAN: caption features and noise to pictures of every stage."""

    def __init__(self, config: AttnGANConfig) -> None:
        super().__init__(config, [AttentionStage(config) for _ in range(config.stages - 1)])
