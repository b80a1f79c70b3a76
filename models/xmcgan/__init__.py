"""XMC-GAN: `config` holds every choice, `networks` the two nets, `system` the losses and the training algorithm."""

from models.xmcgan.config import XMCGANConfig
from models.xmcgan.networks import Discriminator, Generator
from models.xmcgan.system import XMCGAN

__all__ = ["XMCGAN", "Discriminator", "Generator", "XMCGANConfig"]
