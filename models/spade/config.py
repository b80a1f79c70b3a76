"""Every choice of SPADE, with the released code's value.

Defaults are the released configuration for COCO-Stuff. Paper: Park et al., "Semantic Image Synthesis with
Spatially-Adaptive Normalization", CVPR 2019.

What is not built. Learning rates stay as they are; the released training can lower them over its last passes. The
perceptual loss compares VGG-16's last maps before each pooling, where the released code has VGG-19.
"""

from typing import Literal

from pydantic import Field, model_validator

from models.blocks.norm import StatisticsScope
from models.contract import AdamSettings, AverageSettings, Settings
from models.losses.perceptual import PerceptualSettings


class SpadeConfig(Settings):
    """SPADE's generator, discriminator, encoder and their training."""

    resolution: Literal[32, 64, 128, 256] = Field(256, description="side of pictures and label maps in pixels (256)")
    generator_channels: int = Field(
        64,
        ge=1,
        description="width of the generator's last block; each level before it is twice as wide (released: 1024 in the "
        "first three blocks, then 512, 256, 128, 64), and of the encoder's first map",
    )
    upsamplings: int = Field(
        5, ge=1, le=7, description="doublings between the first map and the picture (released: 5, from 8 px to 256)"
    )
    hidden_dim: int = Field(
        128, ge=1, description="width of the label map's features in every SPADE layer (released: 128)"
    )
    generator_slope: float = Field(0.2, ge=0, le=1, description="of leaky ReLU in generator and encoder (released)")
    use_vae: bool = Field(
        False,
        description="the first map is made of z, which in training an encoder draws from the real picture (released "
        "option use_vae, off), and which is standard normal when sampling",
    )
    noise: Literal["none", "normal"] = Field(
        "none",
        description='without the encoder: "none", the first map is a convolution of the label map, and seeds change '
        'nothing (released), or "normal", it is made of standard normal z; not read with use_vae',
    )
    noise_dim: int = Field(256, ge=1, description="width of z (released: 256)")
    batch_norm: StatisticsScope = Field(
        "global", description='batch statistics over all workers (released: synchronised), or "rank": of each alone'
    )

    discriminator_channels: int = Field(
        64, ge=1, description="width of the discriminator's first map, doubled by each of the next three (released: 64)"
    )
    discriminator_layers: int = Field(
        4, ge=2, le=6, description="maps before the logits, the last one not halved (released: 4)"
    )
    discriminator_scales: int = Field(
        2, ge=1, le=3, description="discriminators, each of pictures half as large (released: 2)"
    )
    discriminator_slope: float = Field(0.2, ge=0, le=1, description="of its leaky ReLU (released: 0.2)")
    init_gain: float = Field(
        0.02, gt=0, description="of Glorot's initialisation, of all kernels; biases start at 0 (released: 0.02)"
    )

    feature_matching_weight: float = Field(
        10.0, ge=0, description="of the distance of the discriminator's maps (released: lambda_feat, 10)"
    )
    perceptual_weight: float = Field(
        10.0, ge=0, description="of the perceptual distance (released: lambda_vgg, 10); 0 leaves its net out"
    )
    kl_weight: float = Field(
        0.05, ge=0, description="of the encoder's divergence from the standard normal (released: lambda_kld, 0.05)"
    )
    kl_reduction: Literal["sum", "mean"] = Field(
        "sum",
        description='the divergence of a micro-batch\'s pictures: their "sum", over all workers (released: a sum), or '
        'their "mean", which does not depend on how many there are',
    )
    perceptual: PerceptualSettings = Field(
        PerceptualSettings(map_weights="spade"), description="the net that compares (released: VGG-19)"
    )

    generator_optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=1e-4, beta_1=0.0, beta_2=0.9),
        description="of generator and encoder (released: Adam (0, 0.9), half of the learning rate 2e-4)",
    )
    discriminator_optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=4e-4, beta_1=0.0, beta_2=0.9),
        description="released: Adam (0, 0.9), twice the learning rate 2e-4",
    )
    average: AverageSettings = Field(
        AverageSettings(decay=0.0),
        description="moving average of the generator, used to sample; none is published, and decay 0 is none: the "
        "generator as it is",
    )

    @model_validator(mode="after")
    def _has_a_first_map(self) -> "SpadeConfig":
        if self.resolution >> self.upsamplings < 1:
            raise ValueError(
                f"upsamplings is {self.upsamplings}, each of which doubles the side, but pictures have "
                f"{self.resolution} px: set it to {self.resolution.bit_length() - 1} or less"
            )
        return self

    @property
    def first_side(self) -> int:
        """Of the generator's first map (released: 8)."""
        return self.resolution >> self.upsamplings

    @property
    def reads_noise(self) -> bool:
        """Whether the first map is made of z."""
        return self.use_vae or self.noise == "normal"

    @property
    def uses_perceptual(self) -> bool:
        """Whether the perceptual distance has a weight."""
        return self.perceptual_weight > 0


RELEASED = SpadeConfig()
