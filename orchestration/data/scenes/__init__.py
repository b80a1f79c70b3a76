"""Scenes: small generated pictures with every annotation the papers need, and nothing to download.

`generate` writes them in the layouts of COCO, COCO-Stuff, Visual Genome and Localized Narratives, so the readers of
those data sets read them unchanged.
"""

from orchestration.data.scenes.options import ScenesOptions, parse_options
from orchestration.data.scenes.sheet import contact_sheet
from orchestration.data.scenes.vocabulary import BACKGROUNDS, COLOURS, RELATIONS, THINGS
from orchestration.data.scenes.write import VERSION, folder_name, generate

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "RELATIONS",
    "THINGS",
    "VERSION",
    "ScenesOptions",
    "contact_sheet",
    "folder_name",
    "generate",
    "parse_options",
]
