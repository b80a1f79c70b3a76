"""SPADE: `config` is every choice, `networks` the generator, `discriminator` and `encoder` what trains it, `system` the
training. Its normalisation is in `models.blocks.semantic`."""

from models.spade.config import RELEASED, SpadeConfig
from models.spade.discriminator import Discriminator
from models.spade.encoder import ImageEncoder
from models.spade.networks import Generator
from models.spade.system import Spade

__all__ = [
    "RELEASED",
    "Discriminator",
    "Generator",
    "ImageEncoder",
    "Spade",
    "SpadeConfig",
]
