"""Every choice of XMC-GAN, with the paper's and the released code's value where they differ.

Defaults are the released configuration at 256 px, since that code trained the published models; where the paper says
otherwise the field says so. Paper: Zhang et al., "Cross-Modal Contrastive Learning for Text-to-Image Generation", 2021.
"""

from typing import Literal

from pydantic import Field

from models.contract import AdamSettings, AverageSettings, Settings
from models.encoders.image import PretrainedImageSettings


class XMCGANConfig(Settings):
    """XMC-GAN. Sections and tables are the paper's."""

    resolution: Literal[32, 64, 128, 256] = Field(
        256,
        description="side of the pictures in pixels; 256 is the paper's (table 8), 128 the released default; 64 and 32 "
        "drop the outer levels of the 128 px form",
    )
    channels: int = Field(96, ge=1, description="ch; 96 for the main results, 64 for the ablations (appendix A)")
    text_dim: int = Field(768, ge=1, description="width of the text features; 768 for BERT base (table 8)")
    noise_dim: int = Field(128, ge=1, description="width of z ~ N(0, I) (table 8)")
    sentence_dim: int = Field(128, ge=1, description="width of the projected sentence embedding (table 8a)")

    first_layer: Literal["noise", "noise_and_sentence"] = Field(
        "noise",
        description='input of the first linear layer: "noise" (released) or "noise_and_sentence" (table 8a)',
    )
    modulation: Literal["attentional", "self"] = Field(
        "attentional", description="normalisation of the blocks above 16 px (table 5)"
    )
    word_context: Literal["once", "every_block"] = Field(
        "once",
        description='"once" attends at 16x16 and upsamples (released, table 8a); "every_block" attends with the '
        "features of each block (section 4.2, h_j of every layer)",
    )
    attention_values: Literal["normalised", "raw"] = Field(
        "normalised", description="what the word context averages: unit-length words (released) or words (section 4.2)"
    )
    rho_0: float = Field(15.0, gt=0, description="sharpness of the generator's attention; no value in the paper")
    batch_norm: Literal["global", "rank"] = Field(
        "global", description='batch statistics over all workers, or "rank": of each alone (released)'
    )

    region_side: Literal[8, 16] = Field(
        16, description="side of the region map of the word loss: 16 (section 4.3); 8 is for the 32 px form"
    )
    head_layers: int = Field(
        0, ge=0, le=2, description="layers of the contrastive projection head; 0 is best and released (figure 5)"
    )

    lambda_1: float = Field(1.0, ge=0, description="weight of the sentence loss (section 4.3: 1)")
    lambda_2: float = Field(1.0, ge=0, description="weight of the word-region loss (section 4.3: 1)")
    lambda_3: float = Field(1.0, ge=0, description="weight of the image-image losses (section 4.3: 1)")
    image_losses: Literal["none", "discriminator", "pretrained", "both"] = Field(
        "both", description="features of the image-image loss: D, VGG or D + VGG (table 4)"
    )
    pretrained_loss: Literal["contrastive", "l2"] = Field(
        "contrastive", description="loss on pretrained features (table 6)"
    )
    contrastive_on: Literal["both", "generator", "discriminator"] = Field(
        "both", description="the nets trained by sentence and word losses (table 7)"
    )
    tau: float = Field(0.1, gt=0, description="temperature of sentence and image losses (released 0.1)")
    tau_word: float = Field(
        0.02,
        gt=0,
        description="temperature of the word loss: 0.02 is the released gamma_3 = 50; section 4.1 has one tau",
    )
    rho_1: float = Field(5.0, gt=0, description="sharpness of a word's attention over regions (released gamma_1 = 5)")
    rho_2: float = Field(5.0, gt=0, description="weight of the best-matching word (released gamma_2 = 5)")
    region_values: Literal["normalised", "raw"] = Field(
        "normalised", description="what a word's region context averages: unit-length (released) or raw (section 4.1)"
    )
    directions: Literal["both", "image_to_text"] = Field(
        "both", description='contrastive directions: sum of "both" (released) or one (section 4.1)'
    )

    discriminator_steps: int = Field(
        2, ge=1, description="N_D, discriminator steps to one of the generator (appendix A)"
    )
    step_order: Literal["released", "paper"] = Field(
        "released",
        description='"released": the last discriminator step and the generator step share a batch and neither sees '
        'the other\'s update; "paper": N_D discriminator steps, then the generator on a batch of its own (algorithm 1)',
    )
    generator_optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=1e-4, beta_1=0.5, beta_2=0.999), description="appendix A"
    )
    discriminator_optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=4e-4, beta_1=0.5, beta_2=0.999), description="appendix A"
    )
    average: AverageSettings = Field(
        AverageSettings(decay=0.999), description="moving average of the generator, used to sample (appendix A)"
    )
    pretrained: PretrainedImageSettings = Field(
        PretrainedImageSettings(),
        description="frozen net of the pretrained image-image loss: VGG-19 (paper), ResNet-50 logits (released)",
    )

    @property
    def uses_pretrained(self) -> bool:
        """Whether a pretrained net is part of the generator's loss."""
        return self.image_losses in ("pretrained", "both") and self.lambda_3 > 0

    @property
    def generator_widths(self) -> tuple[int, ...]:
        """Output channels of the up-sampling blocks 4 -> resolution, in units of ch (table 8a; released at 128 px)."""
        return {32: (16, 8, 4), 64: (16, 8, 4, 2), 128: (16, 8, 4, 2, 1), 256: (16, 8, 8, 4, 2, 1)}[self.resolution]

    @property
    def discriminator_widths(self) -> tuple[int, ...]:
        """Output channels of the down-sampling blocks resolution -> 4 and of the last block (table 8b)."""
        return {
            32: (4, 8, 16, 16),
            64: (2, 4, 8, 16, 16),
            128: (1, 2, 4, 8, 16, 16),
            256: (1, 2, 4, 8, 8, 16, 16),
        }[self.resolution]
