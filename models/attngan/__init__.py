"""AttnGAN: `config` is every choice, `text` and `image` DAMSM's encoders, `damsm` their training, `networks` the
generator, `losses` what they minimise, `system` the GAN's training."""

from models.attngan.config import ATTNGAN_PLUS, COCO, CUB, AttnGANConfig, DAMSMConfig, TextEncoderSettings
from models.attngan.damsm import DAMSM
from models.attngan.image import ImageEncoder
from models.attngan.networks import Generator
from models.attngan.system import AttnGAN
from models.attngan.text import TextEncoder
from models.blocks.discriminator import Discriminators

__all__ = [
    "ATTNGAN_PLUS",
    "COCO",
    "CUB",
    "DAMSM",
    "AttnGAN",
    "AttnGANConfig",
    "DAMSMConfig",
    "Discriminators",
    "Generator",
    "ImageEncoder",
    "TextEncoder",
    "TextEncoderSettings",
]
