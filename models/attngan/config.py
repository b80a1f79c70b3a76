"""Every choice of AttnGAN and of its DAMSM, with the paper's and the released code's value where they differ.

Defaults are the released configuration for CUB at 256 px; `COCO` is the released one for COCO, `ATTNGAN_PLUS` CPGAN's
improved baseline. Paper: Xu et al., "AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative
Adversarial Networks", 2018.
"""

from pydantic import Field, field_validator

from models.blocks.cascade import CascadeSettings
from models.contract import AdamSettings, Settings
from models.encoders.trunk import ImageTrunkSettings
from models.losses.damsm import MatchingSettings


class TextEncoderSettings(Settings):
    """The bidirectional LSTM that reads captions.

    How many words it knows is the data's to say; published, with padding: 5450 for CUB, 27297 for COCO.
    """

    embedding_dim: int = Field(300, ge=1, description="width of a word's embedding (released: 300)")
    text_dim: int = Field(
        256, ge=2, description="D, width of word and sentence features: half from each direction (section 3.2)"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="share of embedding numbers dropped in training (released)")

    @field_validator("text_dim")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"text_dim is {value}: give an even number, half of it for each direction of reading")
        return value


class DAMSMConfig(Settings):
    """The text and the image encoder of DAMSM and how they are trained (section 3.2)."""

    text: TextEncoderSettings = Field(TextEncoderSettings(), description="the text encoder")
    trunk: ImageTrunkSettings = Field(
        ImageTrunkSettings(),
        description="the frozen net under the image encoder: Inception-v3 (section 3.2). It stays in evaluation mode; "
        "the released training lets its batch-norm statistics drift",
    )
    matching: MatchingSettings = Field(MatchingSettings(), description="the loss")
    resolution: int = Field(
        256,
        ge=8,
        description="side of the pictures it is shown, which the trunk resizes to its own: 256 as the GAN's, so that "
        "both read the same prepared pictures (released: cuts of 299)",
    )
    optimizer: AdamSettings = Field(
        AdamSettings(
            learning_rate=2e-3, beta_1=0.5, beta_2=0.999, decay=0.98, least_learning_rate=2e-4, gradient_norm=0.25
        ),
        description="of both encoders (released values); gradient_norm is for the text encoder alone, the image "
        "encoder's is free (released). The released code makes Adam anew each epoch, which forgets its moments; here "
        "they are kept",
    )


class AttnGANConfig(CascadeSettings):
    """AttnGAN's generator, discriminators and their training; sections are the paper's."""

    damsm_weight: float = Field(
        5.0, ge=0, description="lambda, weight of DAMSM's loss of the last picture (section 4: 5 for CUB, 50 for COCO)"
    )
    matching: MatchingSettings = Field(MatchingSettings(), description="DAMSM's loss as the generator pays it")
    trunk: ImageTrunkSettings = Field(
        ImageTrunkSettings(), description="the frozen net under DAMSM's image encoder: that of the trained stage"
    )


CUB = AttnGANConfig()
COCO = AttnGANConfig(generator_channels=48, discriminator_channels=96, residual_blocks=3, damsm_weight=50.0)
# CPGAN, section 4: hinge losses (equations 4 and 5), truncated noise, equation 19's root; the tuned gamma_2 is unknown.
ATTNGAN_PLUS = AttnGANConfig(
    generator_channels=48,
    discriminator_channels=96,
    residual_blocks=3,
    damsm_weight=50.0,
    adversarial="hinge",
    generator_terms="mean",
    noise="truncated",
    matching=MatchingSettings(gamma2_root=True),
)
