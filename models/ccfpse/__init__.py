"""CC-FPSE: `config` is every choice, `layers` the convolutions whose kernels are predicted from the label map,
`networks` the generator, `discriminator` what judges it, `system` the training, which is SPADE's."""

from models.ccfpse.config import RELEASED, CCFPSEConfig
from models.ccfpse.discriminator import Discriminator
from models.ccfpse.networks import Generator
from models.ccfpse.system import CCFPSE

__all__ = [
    "CCFPSE",
    "RELEASED",
    "CCFPSEConfig",
    "Discriminator",
    "Generator",
]
