"""CC-FPSE as a system: SPADE's training (released), of nets of its own."""

from collections.abc import Sequence

from torch import nn

from models.blocks.label_maps import known_classes
from models.ccfpse.config import CCFPSEConfig
from models.ccfpse.discriminator import MATCHED, SCALES, Discriminator
from models.ccfpse.networks import Generator
from models.contract import NOTHING, Given, Phase
from models.losses.perceptual import PerceptualDistance
from models.spade.config import SpadeConfig
from models.spade.system import Spade


class CCFPSE(Spade):
    """Liu et al., "Learning to Predict Layout-to-image Conditional Convolutions for Semantic Image Synthesis", NeurIPS
    2019."""

    name = "ccfpse"
    title = "CC-FPSE: Learning to Predict Layout-to-image Conditional Convolutions (2019)"
    Config = CCFPSEConfig

    def build(self, config: SpadeConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """As SPADE's: a "generator", a "discriminator" and, where it has a weight, the frozen "perceptual"."""
        classes = known_classes(given, self.name)
        nets: dict[str, nn.Module] = {
            "generator": Generator(config, classes),
            "discriminator": Discriminator(config, classes),
        }
        if config.uses_perceptual:
            nets["perceptual"] = PerceptualDistance(config.perceptual)
        return nets

    def phases(self, config: SpadeConfig) -> Sequence[Phase]:
        """SPADE's, the generator's turn and then the discriminator's, with the mean over matched maps in place of that
        over scales: the recorded term is the latter, the weight makes it the former."""
        weight = config.feature_matching_weight * SCALES / MATCHED
        return super().phases(config.model_copy(update={"feature_matching_weight": weight}))
