"""Every choice of CC-FPSE, with the released code's value.

Defaults are the released training for COCO-Stuff. Paper: Liu et al., "Learning to Predict Layout-to-image Conditional
Convolutions for Semantic Image Synthesis", NeurIPS 2019. What it has of SPADE has SPADE's settings, which are read as
there; so are the notes on what is not built.
"""

from typing import ClassVar

from pydantic import Field

from models.spade.config import SpadeConfig


class CCFPSEConfig(SpadeConfig):
    """CC-FPSE's generator, discriminator, encoder and their training."""

    generator_channels: int = Field(
        64,
        ge=1,
        description="width of the generator's last block; each level before it is twice as wide (released: 1024 in the "
        "first three blocks, then 512, 256, 128, 64), of the label encoder's maps and of the encoder's first map",
    )
    hidden_dim: int = Field(
        128,
        ge=1,
        description="width of the label map's features that kernels, gates and the shortcut's SPADE layer are each "
        "predicted from (released: 128)",
    )
    use_vae: bool = Field(
        True,
        description="the first map is made of z, which in training an encoder draws from the real picture (released "
        "training option use_vae, on), and which is standard normal when sampling",
    )
    discriminator_channels: int = Field(
        64,
        ge=1,
        description="width of the discriminator's first map (released: 64, 128, 256, 512, 512; laterals 256, features "
        "128)",
    )
    feature_matching_weight: float = Field(
        20.0,
        ge=0,
        description="of the mean distance of the discriminator's last four maps (released training: lambda_feat, 20)",
    )

    # Its discriminator has no such choices, so these of SPADE's are no settings here.
    discriminator_layers: ClassVar[int] = 5  # type: ignore[misc]
    discriminator_scales: ClassVar[int] = 3  # type: ignore[misc]


RELEASED = CCFPSEConfig()
