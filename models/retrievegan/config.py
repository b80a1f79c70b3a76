"""Every choice of RetrieveGAN's GAN, with what the paper says of it.

The paper leaves its sizes and weights to a supplement that is not at hand. Defaults are those of sg2im and PasteGAN, on
which it stands, where they have the part; the rest is this project's choice and says so. Paper: Tseng et al.,
"RetrieveGAN: Image Synthesis via Differentiable Patch Retrieval", 2020; sections and equations are the paper's.
"""

from typing import Literal

from pydantic import Field, model_validator

from models.blocks.graphs import GraphEncoderSettings
from models.blocks.object_discriminator import ObjectDiscriminatorSettings
from models.contract import AdamSettings, AverageSettings
from models.losses.perceptual import PerceptualSettings
from models.retrievegan.retrieval import RetrievalSettings
from models.retrievegan.selection import SelectionLossSettings

_ADAM = AdamSettings(learning_rate=1e-4, beta_1=0.9, beta_2=0.999)
NOT_GIVEN = "not given in the paper"


class RetrieveGANConfig(GraphEncoderSettings, ObjectDiscriminatorSettings):
    """RetrieveGAN's generator with its retrieval, its discriminators and their training."""

    resolution: Literal[32, 64, 128, 256] = Field(128, description="side of pictures in pixels (section 4: 128)")
    retrieval: RetrievalSettings = Field(RetrievalSettings(), description="how patches are chosen (section 3.3)")
    selection_losses: SelectionLossSettings = Field(
        SelectionLossSettings(), description="forms of the losses on what was chosen (section 3.3)"
    )
    truth_among_candidates: Literal["always", "selection_loss"] = Field(
        "always",
        description='the ground-truth patch in training: among the candidates of every retrieval, "always" (section '
        '3.3: it is added to M), or of the ground-truth "selection_loss" alone. Sampling never has it',
    )
    query_dim: int = Field(128, ge=1, description=f"width of E_p's patch features ({NOT_GIVEN})")
    patch_channels: int = Field(
        64, ge=1, description="width of the patch nets' first map; the next two double it (PasteGAN: 64, 128, 256)"
    )
    crop_dim: int = Field(128, ge=1, description="width of a patch's map as it is drawn with (PasteGAN: 128)")
    canvas_side: Literal[8, 16, 32, 64, 128] = Field(
        32, description=f"side of the canvas that objects' maps are put on by their boxes ({NOT_GIVEN})"
    )
    residual_blocks: int = Field(6, ge=0, description="on the canvas (PasteGAN: 6)")
    generator_channels: int = Field(
        64, ge=1, description="width of the last refinement module's map; each module before it is twice as wide"
    )
    refinement_modules: int = Field(5, ge=1, description="refinement modules, one for each doubling (sg2im: 5)")
    box_relu: bool = Field(
        False,
        description="a ReLU ends the box head too, as sg2im's and PasteGAN's; section 3.2 says fully connected layers. "
        "Under the boxes' L1 distance it was seen to die, and boxes with it",
    )
    training_boxes: Literal["given", "predicted"] = Field(
        "given", description="boxes that pictures are drawn by in training (PasteGAN: the graph's own)"
    )
    boxes: Literal["predicted", "given"] = Field(
        "predicted",
        description="boxes that pictures are drawn by when sampling: the generator's own, or the graph's (table 1, "
        "GT); an object without one has the generator's",
    )

    lambda_gt_selection: float = Field(1.0, ge=0, description=f"of the ground-truth selection loss ({NOT_GIVEN})")
    lambda_cooccurrence: float = Field(0.1, ge=0, description=f"of equation 5 ({NOT_GIVEN})")
    lambda_image_adversarial: float = Field(
        0.01, ge=0, description=f"of equation 6 for pictures ({NOT_GIVEN}; PasteGAN and sg2im: 0.01)"
    )
    lambda_image_reconstruction: float = Field(
        1.0, ge=0, description=f"of the L1 distance of the reconstruction ({NOT_GIVEN}; PasteGAN: 1)"
    )
    lambda_image_perceptual: float = Field(
        1.0, ge=0, description=f"of the perceptual distance of pictures ({NOT_GIVEN}; PasteGAN: 1)"
    )
    lambda_object_adversarial: float = Field(
        0.01, ge=0, description=f"of equation 6 for objects ({NOT_GIVEN}; PasteGAN and sg2im: 0.01)"
    )
    lambda_object_classification: float = Field(
        0.1, ge=0, description=f"of being recognised by the object discriminator ({NOT_GIVEN}; PasteGAN and sg2im: 0.1)"
    )
    lambda_object_perceptual: float = Field(
        0.5, ge=0, description=f"of the perceptual distance of objects ({NOT_GIVEN}; PasteGAN: 0.5)"
    )
    lambda_box: float = Field(
        10.0, ge=0, description=f"of the boxes' L1 distance ({NOT_GIVEN}; PasteGAN and sg2im: 10, of a squared one)"
    )
    perceptual: PerceptualSettings = Field(PerceptualSettings(), description="the net that compares (section 3.5: VGG)")
    perceptual_of: Literal["both", "retrieved", "reconstructed"] = Field(
        "both",
        description="which pictures the perceptual losses are of: those drawn from retrieved patches, those "
        "reconstructed from the ground truth, or both (section 3.5 does not say; PasteGAN: both)",
    )

    generator_optimizer: AdamSettings = Field(_ADAM, description=f"{NOT_GIVEN}; sg2im: 1e-4, torch's own betas")
    discriminator_optimizer: AdamSettings = Field(_ADAM, description=f"{NOT_GIVEN}; sg2im: 1e-4, torch's own betas")
    average: AverageSettings = Field(
        AverageSettings(decay=0.0),
        description="moving average of the generator, used to sample; none is published, and decay 0 is none",
    )

    @model_validator(mode="after")
    def _fits(self) -> "RetrieveGANConfig":
        if self.canvas_side > self.resolution:
            raise ValueError(
                f"canvas_side is {self.canvas_side} and pictures have {self.resolution} px: set it to "
                f"{self.resolution} or less"
            )
        if self.resolution >> self.refinement_modules < 1:
            raise ValueError(
                f"refinement_modules is {self.refinement_modules}, each of which doubles the side from 1 px at least, "
                f"but pictures have {self.resolution} px: set it to {self.resolution.bit_length() - 1} or less"
            )
        return self

    @property
    def refinement_widths(self) -> tuple[int, ...]:
        """Widths of the refinement modules, in order."""
        return tuple(self.generator_channels << module for module in reversed(range(self.refinement_modules)))

    @property
    def uses_perceptual(self) -> bool:
        """Whether a perceptual distance has a weight."""
        return self.lambda_image_perceptual > 0 or self.lambda_object_perceptual > 0


PAPER = RetrieveGANConfig()
