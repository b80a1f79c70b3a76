"""What scenes are made of and called: things, colours, backgrounds, spatial relations.

The order matters: options take the first N of each list, so the most distinct come first.
"""

from dataclasses import dataclass
from typing import Final

from orchestration.data.scenes.shapes import INK, PARTS, RGB, Part


@dataclass(frozen=True, slots=True)
class Thing:
    """A class of objects. `tilt` is the largest rotation in degrees to either side."""

    name: str
    supercategory: str
    tilt: int

    @property
    def parts(self) -> tuple[Part, ...]:
        return PARTS[self.name]


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour word and its four shades."""

    name: str
    base: RGB
    light: RGB
    dark: RGB
    spot: RGB


@dataclass(frozen=True, slots=True)
class Background:
    """Stuff that fills a picture. `where` are phrases for an object in it, `noun` names it alone.

    `outline` is the contour of the objects: light where a dark one would be lost.
    """

    name: str
    supercategory: str
    colour: str
    noun: str
    where: tuple[str, ...]
    outline: RGB = INK


THINGS: Final = (
    Thing("house", "building", 7),
    Thing("tree", "plant", 7),
    Thing("fish", "animal", 20),
    Thing("star", "shape", 30),
    Thing("car", "vehicle", 10),
    Thing("boat", "vehicle", 10),
    Thing("flower", "plant", 14),
    Thing("mushroom", "plant", 12),
    Thing("umbrella", "accessory", 22),
    Thing("bird", "animal", 12),
    Thing("cup", "kitchen", 10),
    Thing("kite", "toy", 24),
    Thing("rocket", "vehicle", 26),
    Thing("butterfly", "animal", 22),
    Thing("balloon", "vehicle", 9),
    Thing("crown", "accessory", 12),
)

_WHITE: RGB = (255, 255, 255)

COLOURS: Final = (
    Colour("red", (226, 34, 44), (255, 112, 104), (168, 16, 38), _WHITE),
    Colour("yellow", (255, 220, 30), (255, 244, 150), (240, 188, 0), _WHITE),
    Colour("blue", (38, 84, 226), (112, 156, 255), (20, 48, 156), _WHITE),
    Colour("white", (246, 246, 250), (255, 255, 255), (196, 202, 220), (150, 158, 184)),
    Colour("purple", (138, 48, 190), (194, 122, 236), (92, 22, 136), _WHITE),
    Colour("orange", (255, 116, 10), (255, 172, 88), (222, 82, 0), _WHITE),
    Colour("pink", (255, 128, 186), (255, 192, 222), (226, 70, 142), _WHITE),
    Colour("green", (36, 190, 84), (138, 232, 152), (14, 130, 58), _WHITE),
    Colour("brown", (140, 86, 48), (190, 138, 94), (94, 54, 28), (250, 236, 208)),
    Colour("turquoise", (26, 200, 200), (144, 240, 232), (6, 136, 146), _WHITE),
)

BACKGROUNDS: Final = (
    Background("grass", "ground", "green", "grass", ("on the grass", "on green grass", "on a field of grass")),
    Background(
        "night sky",
        "sky",
        "dark",
        "the night sky",
        ("in the night sky", "under a starry night sky", "in a dark night sky"),
        (160, 164, 220),
    ),
    Background("sand", "ground", "beige", "sand", ("on the sand", "on dry sand", "on a beach of sand")),
    Background("sea", "water", "blue", "the sea", ("on the sea", "out at sea", "on a calm sea")),
    Background(
        "brick wall",
        "wall",
        "brown",
        "a brick wall",
        ("in front of a brick wall", "by a brick wall", "against a brick wall"),
    ),
    Background("snow", "ground", "white", "snow", ("in the snow", "on white snow", "in deep snow")),
    Background(
        "wooden floor",
        "floor",
        "brown",
        "a wooden floor",
        ("on a wooden floor", "on the wooden floor", "on an old wooden floor"),
    ),
    Background(
        "cloudy sky", "sky", "light", "a cloudy sky", ("in a cloudy sky", "under a cloudy sky", "in the cloudy sky")
    ),
)

# The six of sg2im (Johnson et al. 2018, section 4.1: scene graphs from COCO-Stuff).
RELATIONS: Final = ("left of", "right of", "above", "below", "inside", "surrounding")

FIRST_STUFF_ID: Final = 92  # COCO-Stuff: things are 1..91, stuff is 92..182
OTHER_ID: Final = 183  # COCO-Stuff's stuff files put every thing pixel under "other"
OTHER_NAME: Final = "other"


def thing_id(index: int) -> int:
    """COCO category id of the thing at `index` in THINGS."""
    return index + 1


def stuff_id(index: int) -> int:
    """COCO-Stuff category id of the background at `index` in BACKGROUNDS."""
    return FIRST_STUFF_ID + index
