"""Every choice of CPGAN's GAN and of its DAMSM, with the paper's and the released code's value where they differ.

Defaults are the paper's, whose training was never released; what neither says is the value of AttnGAN's release for
COCO, which CPGAN builds on. Paper: Liang et al., "CPGAN: Full-Spectrum Content-Parsing Generative Adversarial Networks
for Text-to-Image Synthesis", 2020; its section 6 is the supplement.
"""

from typing import Literal

from pydantic import Field, model_validator

from models.attngan.config import AttnGANConfig, DAMSMConfig, TextEncoderSettings
from models.blocks.noise import NoiseShape
from models.contract import Settings
from models.losses.damsm import MatchingSettings

# Equation 19 has the power 1/gamma_2, which AttnGAN's release leaves out.
MATCHING = MatchingSettings(gamma2_root=True, mask_same_class=False)


class ImageEncoderSettings(Settings):
    """What the image encoder reads of a picture beside the trunk's pooled vector (section 3.3)."""

    oaie: bool = Field(
        True,
        description="the object-aware image encoder: salient boxes beside the grid (equation 10); off: AttnGAN's, "
        "which reads every place of the trunk's map (figure 6)",
    )
    region_dim: int = Field(
        1024,
        ge=1,
        description="width of a salient box's features, which are also the memory's: 1024 from YOLOv3 (section 3.2.1)",
    )
    order: Literal["objects_first", "grid_first"] = Field(
        "objects_first",
        description='how both kinds of regions follow each other: "objects_first" (equation 10) or "grid_first" '
        "(released); no loss depends on it",
    )
    grid_side: int = Field(
        8,
        ge=1,
        description="the trunk's map is pooled to so many places a side (section 3.3: 8 x 8), by maxima (released); "
        "a smaller map stays as it is",
    )


class MemoryTextSettings(TextEncoderSettings):
    """The memory-attended text encoder (section 3.2.2)."""

    mate: bool = Field(
        True,
        description="read each word's memory beside its embedding (equation 8); off: AttnGAN's encoder, with its "
        "sentence (figure 6)",
    )
    memory_hidden_dim: int = Field(
        512, ge=1, description="inner width of p, the projection of a word's memory (released: 512)"
    )
    memory_dim: int = Field(256, ge=1, description="outer width of p (released: 256)")
    fusion: Literal["paper", "released"] = Field(
        "paper",
        description='what the LSTM reads: "paper": embedding and projected memory side by side (equation 8); '
        '"released": that through tanh and a linear map back to the embedding\'s width, neither that map nor the last '
        "one of p with a bias",
    )
    sentence: Literal["last_word", "final_states"] = Field(
        "last_word",
        description='"last_word": w_T, the features of a caption\'s last word (section 3.2.2); "final_states": the '
        "last state of each direction (released, AttnGAN)",
    )


class CPGANDAMSMConfig(DAMSMConfig, ImageEncoderSettings):
    """The text and the image encoder and how they are trained; the training is AttnGAN's (section 6.3)."""

    text: MemoryTextSettings = Field(MemoryTextSettings(), description="the text encoder")
    matching: MatchingSettings = Field(
        MATCHING, description="the loss: AttnGAN's released gammas, equation 19's root; the tuned gammas are not given"
    )


class CPGANConfig(AttnGANConfig, ImageEncoderSettings):
    """CPGAN's generator, discriminators and their training; sections and equations are the paper's."""

    generator_channels: int = Field(
        48, ge=1, description="width of every stage's last feature map (released: 48, as AttnGAN's for COCO)"
    )
    discriminator_channels: int = Field(
        96, ge=1, description="df, the discriminators' least width (released configuration: 96; no released net)"
    )
    residual_blocks: int = Field(3, ge=0, description="residual blocks in each later stage (section 6.1: 3)")
    residuals: Literal["shared", "plain", "none"] = Field(
        "shared",
        description='what the first stage\'s map adds to the later ones, by up-sampling (section 3.1). "shared": one '
        "up-sampling layer carries it on, one 3x3 convolution follows every sum, both the same for all stages "
        '(released); "plain": repeated pixels are added, nothing is learnt (the least that the paper says); "none": '
        "nothing, as in AttnGAN",
    )
    noise: NoiseShape = Field(
        "truncated",
        description='"truncated": exactly truncated (section 4.1); "truncated_first_of_four": the released form, '
        'where a few numbers lie outside; "normal": AttnGAN',
    )

    adversarial: Literal["bce", "hinge"] = Field("hinge", description='"hinge" (equations 4 and 5) or "bce" (AttnGAN)')
    generator_terms: Literal["sum", "mean"] = Field(
        "mean",
        description="the generator's unconditional and conditional term: each with weight 1/2 (equation 4) or their "
        "sum (released AttnGAN)",
    )
    fgcd: bool = Field(
        True,
        description="the fine-grained conditional discriminator (section 3.4); off: AttnGAN's discriminators (figure "
        "6)",
    )
    patches: int = Field(
        8,
        ge=1,
        description="N: a picture is judged in N x N patches, a power of two; not given in the paper, which tunes it. "
        "Pictures with a side below 2N have patches of two pixels",
    )
    unconditional: Literal["own", "shared"] = Field(
        "own",
        description='with fgcd, the unconditional discriminator: "own": a net of five halvings and a linear layer '
        '(section 6.2; fewer below 64 px, to no less than 2x2); "shared": a head on the conditional one\'s features, '
        "as in AttnGAN",
    )

    damsm_weight: float = Field(
        50.0, ge=0, description="weight of TISCL, equation 6, not given in the paper: AttnGAN's lambda for COCO"
    )
    matching: MatchingSettings = Field(
        MATCHING,
        description="TISCL as the generator pays it (equations 14 to 25): AttnGAN's released gammas, equation 19's "
        "root; the tuned gammas are not given",
    )

    @model_validator(mode="after")
    def _patches_fit(self) -> "CPGANConfig":
        if self.patches & (self.patches - 1):
            raise ValueError(
                f"patches is {self.patches}, and halving a picture leaves a power of two: give 2, 4, 8 ..."
            )
        if self.fgcd and self.patches > self.resolution // 2:
            raise ValueError(
                f"patches is {self.patches}, but pictures of {self.resolution} px have at most {self.resolution // 2} "
                f"patches a side: set patches to {self.resolution // 2} or less, or fgcd to false"
            )
        return self

    def patches_at(self, side: int) -> int:
        """Patches along the side of a stage's pictures."""
        return min(self.patches, side // 2)


PAPER = CPGANConfig()
RELEASED = CPGANConfig(noise="truncated_first_of_four", legacy_mask=True, order="grid_first")
DAMSM_PAPER = CPGANDAMSMConfig()
DAMSM_RELEASED = CPGANDAMSMConfig(
    text=MemoryTextSettings(fusion="released", sentence="final_states"), order="grid_first"
)
