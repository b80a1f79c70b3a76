"""Name -> system, imported only when asked for."""

from importlib import import_module
from typing import Any

from models.contract import System

_SYSTEMS = {"xmcgan": "models.xmcgan:XMCGAN"}


def system_names() -> list[str]:
    """Every registered system."""
    return sorted(_SYSTEMS)


def get_system(name: str) -> System[Any]:
    """The system called `name`; KeyError when there is none."""
    module, _, attribute = _SYSTEMS[name].partition(":")
    system: System[Any] = getattr(import_module(module), attribute)()
    return system
