"""Every choice of sg2im, with the paper's and the released code's value where they differ.

Defaults are the released configuration, for COCO and Visual Genome alike. Paper: Johnson, Gupta and Fei-Fei, "Image
Generation from Scene Graphs", 2018; sections are the paper's.

What is not built. After 100,000 iterations the released training puts the generator in evaluation mode, so that its
batch-norm statistics stand still, and makes its optimizer anew; here both go on as they began. On COCO the released
training lays out the published masks, and with its default mask loss of weight 0 the mask head learns nothing there;
here masks are always the generator's own, as in its training on Visual Genome, which has none. The head that classifies
predicates has weight 0 in the release, and is not here.
"""

from typing import Literal

from pydantic import Field, model_validator

from models.blocks.graphs import GraphEncoderSettings
from models.blocks.object_discriminator import ObjectDiscriminatorSettings
from models.contract import AdamSettings, AverageSettings

_ADAM = AdamSettings(learning_rate=1e-4, beta_1=0.9, beta_2=0.999)


class Sg2imConfig(GraphEncoderSettings, ObjectDiscriminatorSettings):
    """sg2im's generator, discriminators and their training."""

    resolution: Literal[32, 64, 128, 256] = Field(
        64, description="side of pictures and of the layout in pixels (section 4: 64)"
    )
    mask_side: Literal[0, 2, 4, 8, 16, 32] = Field(
        16, description="side of an object's mask (released: 16); 0: no masks, objects fill their boxes"
    )
    noise_dim: int = Field(32, ge=1, description="channels of noise beside the layout, a number a pixel (released: 32)")
    generator_channels: int = Field(
        64,
        ge=1,
        description="width of the last refinement module's map; each module before it is twice as wide (released: "
        "1024, 512, 256, 128, 64)",
    )
    refinement_modules: int = Field(5, ge=1, description="refinement modules, one for each doubling (released: 5)")
    refinement_slope: float = Field(
        0.2,
        ge=0,
        le=1,
        description="of leaky ReLU in the refinement network (released: 0.2); 0 is ReLU. The released code's "
        '"relu" means 0.01',
    )
    box_relu: bool = Field(
        True,
        description="a ReLU ends the box head too, so that no predicted coordinate is negative (released: every linear "
        "layer is followed by one); off: the head ends in its linear layer",
    )
    boxes: Literal["predicted", "given"] = Field(
        "predicted",
        description="the boxes that pictures are drawn by when sampling: the generator's own (section 3), or the "
        "graph's, as table 1 has it for a given layout. Training always draws by the graph's (released)",
    )

    pixel_weight: float = Field(1.0, ge=0, description="of the L1 distance of pictures (released: 1)")
    box_weight: float = Field(10.0, ge=0, description="of the boxes' loss (released: 10)")
    box_loss: Literal["mse", "l1"] = Field(
        "mse",
        description='mean over coordinates of the squared difference, "mse" (released), or of the absolute one, "l1" '
        "(section 3)",
    )
    image_weight: float = Field(0.01, ge=0, description="of fooling the image discriminator (released: 0.01)")
    object_weight: float = Field(0.01, ge=0, description="of fooling the object discriminator (released: 0.01)")
    classification_weight: float = Field(
        0.1,
        ge=0,
        description="of being recognised by the object discriminator (released: 0.1, which is not multiplied by 0.01 "
        "as the released guide says). The discriminator itself learns to recognise real and drawn objects, with weight "
        "1 each (released)",
    )

    generator_optimizer: AdamSettings = Field(
        _ADAM, description="section 3: 1e-4; the betas are torch's own (released)"
    )
    discriminator_optimizer: AdamSettings = Field(
        _ADAM, description="section 3: 1e-4; the betas are torch's own (released), for both discriminators"
    )
    average: AverageSettings = Field(
        AverageSettings(decay=0.0),
        description="moving average of the generator, used to sample; none is published, and decay 0 is none: the "
        "generator as it is",
    )

    @model_validator(mode="after")
    def _deep_enough(self) -> "Sg2imConfig":
        if self.resolution >> self.refinement_modules < 1:
            raise ValueError(
                f"refinement_modules is {self.refinement_modules}, each of which doubles the side, but pictures have "
                f"{self.resolution} px: set it to {self.resolution.bit_length() - 1} or less"
            )
        return self

    @property
    def refinement_widths(self) -> tuple[int, ...]:
        """Widths of the refinement modules, in order."""
        return tuple(self.generator_channels << module for module in reversed(range(self.refinement_modules)))

    @property
    def drawn_noise(self) -> int:
        """Standard normal numbers a picture needs."""
        return self.noise_dim * self.resolution**2


RELEASED = Sg2imConfig()
