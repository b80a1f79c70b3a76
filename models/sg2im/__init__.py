"""sg2im: `config` is every choice, `networks` the generator, `losses` what it minimises,
`system` the training. Its graph convolutions, layouts, refinement network and discriminators are in `models.blocks`."""

from models.sg2im.config import RELEASED, Sg2imConfig
from models.sg2im.networks import Generator
from models.sg2im.system import Sg2im

__all__ = [
    "RELEASED",
    "Generator",
    "Sg2im",
    "Sg2imConfig",
]
