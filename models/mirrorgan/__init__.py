"""MirrorGAN: `config` holds every choice, `networks` the generator, `stream` the captioner, `losses` the losses."""

from models.blocks.discriminator import Discriminators
from models.mirrorgan.config import PAPER, RELEASED, MirrorGANConfig, StreamConfig
from models.mirrorgan.networks import Generator
from models.mirrorgan.stream import CaptionDecoder, Stream

__all__ = [
    "PAPER",
    "RELEASED",
    "CaptionDecoder",
    "Discriminators",
    "Generator",
    "MirrorGANConfig",
    "Stream",
    "StreamConfig",
]
