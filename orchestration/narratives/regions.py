"""How the regions of a narrative's label map are named and coloured, wherever one is shown: on sheets and in replies.

A mention has one number and one colour throughout. Stuff has the colour of its first mention, and what nobody mentions
is greyish.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestration.data.lettering import PAPER, Colour
from orchestration.data.overlays import colour_of
from orchestration.narratives.composed import Composed, Mention

UNKNOWN: Colour = (190, 190, 190)
_GREY: Colour = (200, 200, 200)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Pixels (H,W) bool of a label map that show one thing, or one class. label: its class; mentions: their places."""

    pixels: NDArray[np.bool_]
    label: int
    colour: Colour
    mentions: tuple[int, ...]
    thing: bool


def class_name(label: int, classes: Sequence[str]) -> str:
    """Of a class; the number of classes is "unknown"."""
    return classes[label] if 0 <= label < len(classes) else "unknown"


def class_colour(composed: Composed, label: int, classes: Sequence[str]) -> Colour:
    """Of what is no thing of its own."""
    for place, mention in enumerate(composed.mentions):
        if mention.label == label:
            return colour_of(place)
    return mixed(colour_of(label), 0.25, _GREY) if 0 <= label < len(classes) else UNKNOWN


def mixed(colour: Colour, share: float, other: Colour = PAPER) -> Colour:
    """`share` of the colour and the rest of the other one."""
    red, green, blue = (round(share * mine + (1 - share) * its) for mine, its in zip(colour, other, strict=True))
    return red, green, blue


def regions_of(
    composed: Composed, classes: Sequence[str], labels: NDArray[np.integer], instances: NDArray[np.integer]
) -> list[Region]:
    """The things of a label map in order of mention, then its other classes in theirs.

    labels, instances: (H,W), as a canvas of `composed` has them; without instances every class is one region.
    """
    pasted = [place for place, mention in enumerate(composed.mentions) if mention.choice is not None]
    found = []
    for number in np.unique(instances[instances > 0]).tolist():
        place = pasted[number - 1]
        label = composed.mentions[place].label
        found.append(Region(instances == number, label, colour_of(place), (place,), True))
    rest = instances == 0
    for label in np.unique(labels[rest]).tolist():
        said = tuple(place for place, mention in enumerate(composed.mentions) if mention.label == label)
        found.append(Region((labels == label) & rest, label, class_colour(composed, label, classes), said, False))
    return found


def coloured(regions: Sequence[Region], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """(H,W,3): each region in its colour, and paper where none is."""
    pixels = np.empty((*shape, 3), np.uint8)
    pixels[:] = PAPER
    for region in regions:
        pixels[region.pixels] = region.colour
    return pixels


def mask_fit(mention: Mention) -> float | None:
    """How well its mask fits its hull (IoU); None where either is missing."""
    return mention.choice.iou if mention.choice is not None and mention.hull.any() else None


def stuff_fit(composed: Composed) -> float | None:
    """How well the stuff fits its hulls (mean IoU); None where nothing was retrieved, and where no stuff has a hull."""
    hulls = any(mention.hull.any() for mention in composed.mentions if not mention.thing)
    return composed.stuff_fit if hulls and composed.stuff is not None else None
