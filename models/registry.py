"""Name -> system or part, imported only when asked for."""

from importlib import import_module
from typing import Any

from models.contract import Gathered, System, Trainable

_SYSTEMS = {
    "attngan": "models.attngan.system:AttnGAN",
    "ccfpse": "models.ccfpse:CCFPSE",
    "cpgan": "models.cpgan.system:CPGAN",
    "mirrorgan": "models.mirrorgan.system:MirrorGAN",
    "retrievegan": "models.retrievegan.system:RetrieveGAN",
    "sg2im": "models.sg2im.system:Sg2im",
    "spade": "models.spade.system:Spade",
    "trecs": "models.trecs.system:TReCS",
    "xmcgan": "models.xmcgan:XMCGAN",
}
# Trained before a GAN that needs them; by themselves they draw nothing.
_PARTS = {
    "attention_captioner": "models.cpgan.captioner:AttentionCaptioner",
    "bert_tagger": "models.trecs.bert_tagger:BertTagger",
    "co_occurrence": "models.retrievegan.co_occurrence:CoOccurrence",
    "cpgan_damsm": "models.cpgan.damsm:CPGANDAMSM",
    "damsm": "models.attngan.damsm:DAMSM",
    "dual_encoder": "models.trecs.dual_encoder:DualEncoder",
    "grid_detector": "models.detectors.grid:GridDetectorPart",
    "stream": "models.mirrorgan.captioner:STREAM",
}
# Gathered from the training data in one pass, with nothing to learn.
_GATHERED = {"memory": "models.cpgan.memory:Memory"}


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


def gathered_names() -> list[str]:
    """Every part that is gathered in one pass over the data."""
    return sorted(_GATHERED)


def get_gathered(name: str) -> Gathered[Any]:
    """The gathered part called `name`; KeyError when there is none."""
    gathered: Gathered[Any] = _load(_GATHERED[name])
    return gathered


def get_part(name: str) -> Trainable[Any] | Gathered[Any]:
    """The system, trained part or gathered part called `name`; KeyError when there is none."""
    return get_gathered(name) if name in _GATHERED else get_trainable(name)


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)()
