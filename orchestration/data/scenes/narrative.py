"""A spoken description in the form of Localized Narratives, whose mouse follows the voice."""

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestration.data.scenes.chance import below, pick
from orchestration.data.scenes.geometry import relation
from orchestration.data.scenes.language import PLACES, Seen, article
from orchestration.data.scenes.vocabulary import BACKGROUNDS

_BACKGROUND = 0  # labels: 0 background, k the k-th object
_POINT_MS = 100  # the mouse is read this often
_SHOWING_MS = 300  # a person who shows something speaks slower
_CHOICES = 4
_SUBPIXELS = 8


@dataclass(frozen=True, slots=True)
class _Phrase:
    """Words said in one breath, and the label the mouse shows meanwhile (None: it rests)."""

    text: str
    label: int | None = None


def narrate(rng: Random, objects: list[Seen], background: int, labels: NDArray[np.uint8]) -> dict[str, Any]:
    """The keys `caption`, `timed_caption` and `traces` of a Localized Narrative.

    `labels` is (H,W): 0 background, k the k-th object. While an object's or the background's phrase is spoken, every
    point of the trace lies on its visible pixels; x and y are shares of the width and height, times are seconds.
    """
    phrases = _phrases(rng, objects, background)
    clock = 100 + below(rng, 300)  # milliseconds
    timed: list[dict[str, Any]] = []
    traces: list[list[dict[str, float]]] = []
    for phrase in phrases:
        shows = phrase.label is not None
        end = clock + 120 * len(phrase.text.split()) + 45 * len(phrase.text) + _SHOWING_MS * shows + below(rng, 160)
        timed.append({"utterance": phrase.text, "start_time": clock / 1000, "end_time": end / 1000})
        if phrase.label is not None:
            traces.append(_stroke(rng, labels == phrase.label, clock, end))
        clock = end + 20 + below(rng, 180)
    return {"caption": " ".join(p.text for p in phrases), "timed_caption": timed, "traces": traces}


def _phrases(rng: Random, objects: list[Seen], background: int) -> list[_Phrase]:
    main = objects[0]
    seeing = ("there is", "we can see", "I can see")
    phrases = [
        _Phrase(pick(rng, ("In this picture", "In this image", "Here", "In the front"))),
        _Phrase(pick(rng, seeing)),
        _Phrase(f"{article(main.size)} {main.name}.", 1),
    ]
    for label, other in enumerate(objects[1:], start=2):
        place = pick(rng, PLACES[relation(other.box, main.box)])
        phrases += [
            _Phrase(f"{place[0].upper()}{place[1:]}"),
            _Phrase(pick(rng, seeing)),
            _Phrase(f"{article(other.size)} {other.name}.", label),
        ]
    ending = (("In the background", "there is"), ("Behind all this", "we can see"), ("The background", "is"))
    phrases += [_Phrase(words) for words in pick(rng, ending)]
    return [*phrases, _Phrase(f"{BACKGROUNDS[background].noun}.", _BACKGROUND)]


def _stroke(rng: Random, mask: NDArray[np.bool_], start: int, end: int) -> list[dict[str, float]]:
    """Points inside the mask, once around its middle, evenly from start to end (milliseconds)."""
    height, width = mask.shape
    pixels = np.flatnonzero(mask)
    count = (end - start) // _POINT_MS
    drawn = [divmod(int(pixels[below(rng, len(pixels))]), width) for _ in range(_CHOICES * count)]
    middle_y, middle_x = sum(y for y, _ in drawn) // len(drawn), sum(x for _, x in drawn) // len(drawn)
    drawn.sort(key=lambda yx: _bearing(yx[1] - middle_x, yx[0] - middle_y))
    y, x = drawn[0]
    stroke = []
    for k in range(count):
        choices = drawn[_CHOICES * k : _CHOICES * (k + 1)]
        y, x = min(choices, key=lambda yx: (yx[0] - y) ** 2 + (yx[1] - x) ** 2)  # a hand moves smoothly
        stroke.append(
            {
                "x": _inside_pixel(rng, x, width),
                "y": _inside_pixel(rng, y, height),
                "t": (start + (2 * k + 1) * (end - start) // (2 * count)) / 1000,
            }
        )
    return stroke


def _inside_pixel(rng: Random, pixel: int, pixels: int) -> float:
    """A place in that pixel, as a share of all; clear of its edges, so that rounding does not leave it."""
    return round((_SUBPIXELS * pixel + 1 + below(rng, _SUBPIXELS - 1)) / (_SUBPIXELS * pixels), 5)


def _bearing(dx: int, dy: int) -> float:
    """Grows from 0 to 4 once around; exact where atan2 may differ in its last bit."""
    if dx == 0 and dy == 0:
        return 0.0
    share = dy / (abs(dx) + abs(dy))
    return 2.0 - share if dx < 0 else share % 4.0
