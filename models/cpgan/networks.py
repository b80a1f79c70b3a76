"""CPGAN's generator: AttnGAN's, whose first map is also carried past the later stages (sections 3.1 and 6.1)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.attngan.networks import AttentionStage
from models.blocks.cascade import CascadeGenerator, UpBlock
from models.blocks.initial import initialise
from models.cpgan.config import CPGANConfig


class Generator(CascadeGenerator):
    """G of CPGAN: caption features and noise to pictures of every stage."""

    def __init__(self, config: CPGANConfig) -> None:
        super().__init__(config, [AttentionStage(config) for _ in range(config.stages - 1)])
        channels = config.generator_channels
        self.residuals = config.residuals
        if self.residuals == "shared" and config.stages > 1:
            self.residual_up = UpBlock(channels, channels, config.batch_norm)
            self.residual_conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            initialise(self.residual_up)
            initialise(self.residual_conv)

    def join(self, h: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        if self.residuals == "none":
            return h, carried
        if self.residuals == "plain":
            carried = F.interpolate(carried, scale_factor=2, mode="nearest")
            return h + carried, carried
        carried = self.residual_up(carried)
        return self.residual_conv(h + carried), carried
