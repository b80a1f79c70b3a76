"""Name -> system or part, imported only when asked for."""

from importlib import import_module
from typing import Any

from models.contract import System, Trainable

_SYSTEMS = {
    "attngan": "models.attngan.system:AttnGAN",
    "mirrorgan": "models.mirrorgan.system:MirrorGAN",
    "xmcgan": "models.xmcgan:XMCGAN",
}
# Trained before a GAN that needs them; by themselves they draw nothing.
_PARTS = {"damsm": "models.attngan.damsm:DAMSM", "stream": "models.mirrorgan.captioner:STREAM"}


def system_names() -> list[str]:
    """Every registered system."""
    return sorted(_SYSTEMS)


def part_names() -> list[str]:
    """Every part that systems need trained first."""
    return sorted(_PARTS)


def get_system(name: str) -> System[Any]:
    """The system called `name`; KeyError when there is none."""
    system: System[Any] = _load(_SYSTEMS[name])
    return system


def get_trainable(name: str) -> Trainable[Any]:
    """The system or part called `name`; KeyError when there is none."""
    trainable: Trainable[Any] = _load((_SYSTEMS | _PARTS)[name])
    return trainable


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)()
