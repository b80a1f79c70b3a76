"""CPGAN as a system: AttnGAN's cascade with a carried map, discriminators of patches, and its own encoders."""

from collections.abc import Mapping

from torch import nn

from models.attngan.damsm import STAGE, check_text_dim
from models.attngan.system import AttnGANLosses, CascadeGAN
from models.contract import NOTHING, Given
from models.cpgan.config import CPGANConfig
from models.cpgan.damsm import CPGANDAMSM, frozen_judge
from models.cpgan.discriminator import discriminators
from models.cpgan.networks import Generator
from models.encoders.regions import DETECTOR


class CPGAN(CascadeGAN[CPGANConfig]):
    """Liang et al., "CPGAN: Full-Spectrum Content-Parsing Generative Adversarial Networks for Text-to-Image Synthesis",
    2020."""

    name = "cpgan"
    title = "CPGAN: Full-Spectrum Content-Parsing Generative Adversarial Networks for Text-to-Image Synthesis (2020)"
    Config = CPGANConfig
    reads = frozenset({"features"})

    def stages(self, config: CPGANConfig) -> Mapping[str, str]:
        looks = config.oaie and config.damsm_weight > 0
        return {STAGE: CPGANDAMSM.name} | ({DETECTOR: "grid_detector"} if looks else {})

    def build(self, config: CPGANConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """A "generator", "discriminators" and, where TISCL has a weight, the frozen "trunk", "image_encoder" and, with
        oaie, "regions".

        Raises StageMissing, and ValueError where the trained stage does not fit.
        """
        check_text_dim(given, config.text_dim)
        nets: dict[str, nn.Module] = {"generator": Generator(config), "discriminators": discriminators(config)}
        return nets | frozen_judge(config, given) if config.damsm_weight > 0 else nets

    def losses(self, config: CPGANConfig) -> AttnGANLosses[CPGANConfig]:
        """Equations 3 to 6, with AttnGAN's KL term."""
        return AttnGANLosses(config)
