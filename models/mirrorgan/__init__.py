"""MirrorGAN: `config` holds every choice, `networks` the generator, `stream` the captioner, `captioner` its training,
`losses` the losses, `system` the GAN's training."""

from models.blocks.discriminator import Discriminators
from models.mirrorgan.captioner import STREAM
from models.mirrorgan.config import PAPER, RELEASED, MirrorGANConfig, StreamConfig
from models.mirrorgan.networks import Generator
from models.mirrorgan.stream import CaptionDecoder, Stream
from models.mirrorgan.system import MirrorGAN

__all__ = [
    "PAPER",
    "RELEASED",
    "STREAM",
    "CaptionDecoder",
    "Discriminators",
    "Generator",
    "MirrorGAN",
    "MirrorGANConfig",
    "Stream",
    "StreamConfig",
]
