"""What TReCS makes of one narrative, with every step on the way (figure 2 of the paper)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestration.data.composition import Canvas
from orchestration.data.hulls import Phrase
from orchestration.data.mask_choice import Choice
from orchestration.data.records import Narrative


@dataclass(frozen=True, slots=True, eq=False)
class Mention:
    """Neighbouring words of one tag: a thing or a kind of stuff that is to be in the picture.

    label: its class; hull: (H,W) bool, the pixels that its trace encloses, none where it has no trace; choice: the mask
    it got, None for stuff and where there is none, and `why` then says so in a few words.
    """

    phrase: Phrase
    label: int
    thing: bool
    hull: NDArray[np.bool_]
    choice: Choice | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """One retrieved picture: its place in the mask bank, its id, and how well its embedding fits the narrative's."""

    place: int
    image_id: int
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """Every step for one narrative.

    words, tags: one class number a word; mentions: in order; retrieved: best first; stuff: which of them gave the stuff
    layer, and `stuff_fit` how well its stuff fits the hulls (mean IoU), None where nothing was retrieved; canvas: what
    the generator paints.
    """

    narrative: Narrative
    words: tuple[str, ...]
    tags: NDArray[np.int64]
    mentions: tuple[Mention, ...]
    retrieved: tuple[Found, ...]
    stuff: int | None
    stuff_fit: float
    canvas: Canvas
