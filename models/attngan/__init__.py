"""AttnGAN: `config` is every choice, `text` and `image` DAMSM's encoders, `networks` the generator, `losses`."""

from models.attngan.config import ATTNGAN_PLUS, COCO, CUB, AttnGANConfig, DAMSMConfig, TextEncoderSettings
from models.attngan.image import ImageEncoder
from models.attngan.networks import Generator
from models.attngan.text import TextEncoder
from models.blocks.discriminator import Discriminators

__all__ = [
    "ATTNGAN_PLUS",
    "COCO",
    "CUB",
    "AttnGANConfig",
    "DAMSMConfig",
    "Discriminators",
    "Generator",
    "ImageEncoder",
    "TextEncoder",
    "TextEncoderSettings",
]
