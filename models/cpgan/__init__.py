"""CPGAN: `config` is every choice of the GAN and its DAMSM, `captioner` and `memory` the parts before (each with its
own settings), `text` and `image` the encoders, `damsm` their training, `networks` the generator, `discriminator` what
judges it, `system` the GAN's training."""

from models.cpgan.captioner import AttentionCaptioner, AttentionCaptionerConfig
from models.cpgan.config import (
    DAMSM_PAPER,
    DAMSM_RELEASED,
    PAPER,
    RELEASED,
    CPGANConfig,
    CPGANDAMSMConfig,
    MemoryTextSettings,
)
from models.cpgan.damsm import CPGANDAMSM
from models.cpgan.image import ObjectAwareImageEncoder
from models.cpgan.memory import Memory, MemoryConfig
from models.cpgan.networks import Generator
from models.cpgan.system import CPGAN
from models.cpgan.text import MemoryTextEncoder

__all__ = [
    "CPGAN",
    "CPGANDAMSM",
    "DAMSM_PAPER",
    "DAMSM_RELEASED",
    "PAPER",
    "RELEASED",
    "AttentionCaptioner",
    "AttentionCaptionerConfig",
    "CPGANConfig",
    "CPGANDAMSMConfig",
    "Generator",
    "Memory",
    "MemoryConfig",
    "MemoryTextEncoder",
    "MemoryTextSettings",
    "ObjectAwareImageEncoder",
]
