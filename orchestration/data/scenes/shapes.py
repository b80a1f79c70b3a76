"""What each thing looks like: polygons in whole numbers, about 1000 units across, y downwards.

Parts are painted in order. Every coordinate is a whole number so that a picture has the same bytes everywhere.
"""

import math
from dataclasses import dataclass
from typing import Literal

RGB = tuple[int, int, int]
Tone = Literal["base", "light", "dark", "spot"]  # a shade of the thing's own colour; spot contrasts with it
Points = tuple[tuple[int, int], ...]

INK: RGB = (38, 30, 46)  # outlines
_WOOD: RGB = (122, 78, 48)
_LEAF: RGB = (58, 148, 62)
_CREAM: RGB = (250, 236, 208)
_GLASS: RGB = (186, 228, 246)
_LAMP: RGB = (255, 238, 150)
_BEAK: RGB = (255, 170, 30)
_PAPER: RGB = (255, 255, 255)
_TYRE: RGB = (58, 54, 66)
_STEEL: RGB = (216, 220, 228)
_COFFEE: RGB = (110, 66, 40)


@dataclass(frozen=True, slots=True)
class Part:
    """One polygon. `paint` is a shade of the thing's colour or a colour of its own; `edged` draws its contour."""

    points: Points
    paint: Tone | RGB
    edged: bool = False


def _ellipse(cx: int, cy: int, rx: int, ry: int, start: int = 0, stop: int = 360, corners: int = 28) -> Points:
    """Corners of an ellipse or of its arc, in degrees clockwise from the right (y points down)."""
    angles = [math.radians(start + (stop - start) * k / corners) for k in range(corners + 1)]
    if stop - start == 360:
        angles.pop()
    return tuple((cx + round(rx * math.cos(a)), cy + round(ry * math.sin(a))) for a in angles)


def _box(x0: int, y0: int, x1: int, y1: int) -> Points:
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _ring(cx: int, cy: int, outer: tuple[int, int], inner: tuple[int, int], start: int, stop: int) -> Points:
    """A bent bar: the outer arc and the inner arc walked back."""
    return _ellipse(cx, cy, *outer, start, stop) + _ellipse(cx, cy, *inner, start, stop)[::-1]


def _house() -> tuple[Part, ...]:
    return (
        Part(_box(170, -430, 300, -150), "dark", True),
        Part(_box(-370, -80, 370, 480), "base"),
        Part(((-500, -40), (0, -480), (500, -40)), "dark", True),
        Part(_box(-100, 150, 100, 480), _WOOD, True),
        Part(_box(-300, 80, -170, 230), _LAMP, True),
        Part(_box(170, 80, 300, 230), _LAMP, True),
    )


def _tree() -> tuple[Part, ...]:
    return (
        Part(_box(-85, 300, 85, 500), _WOOD, True),
        Part(((0, -120), (-420, 350), (420, 350)), "dark", True),
        Part(((0, -320), (-350, 110), (350, 110)), "base", True),
        Part(((0, -500), (-260, -130), (260, -130)), "light", True),
    )


def _fish() -> tuple[Part, ...]:
    return (
        Part(((180, 0), (500, -280), (420, 0), (500, 280)), "dark", True),
        Part(((-180, -220), (30, -400), (190, -150)), "dark", True),
        Part(((-120, 240), (40, 390), (120, 200)), "dark", True),
        Part(_ellipse(-90, 0, 400, 300), "base", True),
        Part(_ellipse(-110, 120, 300, 140), "light"),
        Part(((30, -40), (190, -110), (150, 10), (190, 130)), "dark"),
        Part(_ellipse(-300, -70, 80, 80), _PAPER),
        Part(_ellipse(-315, -65, 45, 45, corners=16), INK),
    )


def _star() -> tuple[Part, ...]:
    tips = [math.radians(-90 + 36 * k) for k in range(10)]
    rim = [
        (round((500 if k % 2 == 0 else 225) * math.cos(a)), round((500 if k % 2 == 0 else 225) * math.sin(a)))
        for k, a in enumerate(tips)
    ]
    facets = tuple(Part(((0, 0), rim[k], rim[(k + 1) % 10]), "light") for k in range(0, 10, 2))
    return (Part(tuple(rim), "base"), *facets)


def _car() -> tuple[Part, ...]:
    return (
        Part(((-310, 0), (-200, -340), (190, -340), (330, 0)), "base"),
        Part(((-230, -20), (-155, -270), (-30, -270), (-30, -20)), _GLASS, True),
        Part(((30, -20), (30, -270), (150, -270), (240, -20)), _GLASS, True),
        Part(((-500, 40), (-450, -30), (440, -30), (500, 60), (500, 230), (-500, 230)), "base"),
        Part(_box(-500, 140, 500, 230), "dark"),
        Part(_ellipse(-450, 70, 50, 50, corners=12), _LAMP, True),
        Part(_ellipse(-270, 230, 145, 145), _TYRE, True),
        Part(_ellipse(270, 230, 145, 145), _TYRE, True),
        Part(_ellipse(-270, 230, 65, 65, corners=16), _STEEL),
        Part(_ellipse(270, 230, 65, 65, corners=16), _STEEL),
    )


def _boat() -> tuple[Part, ...]:
    return (
        Part(_box(-28, -500, 28, 240), _WOOD),
        Part(((45, -470), (45, 130), (440, 130)), "base", True),
        Part(((-45, -330), (-45, 130), (-370, 130)), "light", True),
        Part(((-500, 210), (500, 210), (340, 490), (-340, 490)), "dark", True),
        Part(((-500, 210), (500, 210), (460, 280), (-460, 280)), "spot"),
    )


def _flower() -> tuple[Part, ...]:
    petals = [
        (round(225 * math.cos(a)), round(225 * math.sin(a)) - 140)
        for a in (math.radians(-90 + 60 * k) for k in range(6))
    ]
    return (
        Part(_box(-34, 60, 34, 540), _LEAF),
        Part(((0, 480), (-120, 260), (-330, 250), (-230, 430)), _LEAF, True),
        Part(((0, 480), (120, 260), (330, 250), (230, 430)), _LEAF, True),
        *(Part(_ellipse(x, y, 155, 155, corners=20), "base", True) for x, y in petals),
        Part(_ellipse(0, -140, 130, 130, corners=20), _COFFEE, True),
    )


def _mushroom() -> tuple[Part, ...]:
    return (
        Part(((-150, 0), (150, 0), (200, 400), (150, 470), (-150, 470), (-200, 400)), _CREAM),
        Part(((90, 40), (150, 40), (200, 400), (150, 470), (110, 470)), (222, 200, 170)),
        Part((*_ellipse(0, 60, 500, 530, 180, 360), (430, 130), (-430, 130)), "base", True),
        Part(_ellipse(-20, -230, 130, 115, corners=20), "spot"),
        Part(_ellipse(-310, -30, 90, 95, corners=20), "spot"),
        Part(_ellipse(250, -70, 105, 105, corners=20), "spot"),
    )


def _umbrella() -> tuple[Part, ...]:
    def scallops(left: int, right: int) -> Points:
        """The lower rim from right to left, one small arch to a panel of 250."""
        return tuple(
            corner for x in range(right - 125, left, -250) for corner in _ellipse(x, 40, 125, 80, 360, 180, corners=8)
        )

    def side(x: int) -> Points:
        """A seam of the canopy, from the rim to the tip."""
        angles = [math.radians(a) for a in range(0, 91, 15)]
        return tuple((round(x * math.cos(a)), 40 - round(460 * math.sin(a))) for a in angles)

    def panel(left: int) -> Points:
        return side(left) + side(left + 250)[::-1] + scallops(left, left + 250)

    return (
        Part(_box(-30, -490, 30, -380), _WOOD),
        Part(_box(-32, -60, 32, 360), _WOOD),
        Part(_ring(-110, 350, (142, 142), (78, 78), 0, 180), _WOOD),
        Part(_ellipse(0, 40, 500, 460, 180, 360) + scallops(-500, 500), "base", True),
        Part(panel(-500), "dark"),
        Part(panel(0), "light"),
    )


def _bird() -> tuple[Part, ...]:
    return (
        Part(((170, 30), (500, -160), (480, 40), (250, 220)), "dark", True),
        Part(_box(-90, 280, -50, 480), _BEAK),
        Part(_box(50, 280, 90, 480), _BEAK),
        Part(((-330, -250), (-500, -170), (-330, -110)), _BEAK, True),
        Part(_ellipse(0, 80, 320, 260), "base"),
        Part(_ellipse(-220, -190, 190, 190), "base"),
        Part(_ellipse(-90, 170, 180, 130, corners=20), "light"),
        Part((*_ellipse(90, 20, 190, 190, 0, 180, 14), (-60, -60)), "dark", True),
        Part(_ellipse(-260, -220, 60, 60, corners=16), _PAPER),
        Part(_ellipse(-270, -220, 34, 34, corners=12), INK),
    )


def _cup() -> tuple[Part, ...]:
    return (
        Part(_ring(270, 20, (240, 230), (140, 130), -95, 95), "dark", True),
        Part(((-430, -330), (330, -330), (270, 330), (170, 420), (-270, 420), (-370, 330)), "base", True),
        Part(((-330, -220), (-230, -220), (-190, 320), (-270, 320)), "light"),
        Part(_ellipse(-50, -330, 380, 90), "light", True),
        Part(_ellipse(-50, -320, 310, 58), _COFFEE),
    )


def _kite() -> tuple[Part, ...]:
    return (
        Part(((-20, 240), (20, 230), (-60, 330), (30, 410), (-40, 500), (-80, 480), (-20, 410), (-110, 330)), _WOOD),
        Part(((-60, 350), (-190, 290), (-190, 410)), "dark", True),
        Part(((-60, 350), (70, 290), (70, 410)), "dark", True),
        Part(((0, -500), (390, -130), (0, 260)), "base"),
        Part(((0, -500), (-390, -130), (0, 260)), "light"),
        Part(((0, -500), (390, -130), (0, -130)), "dark"),
        Part(((0, 260), (-390, -130), (0, -130)), "base"),
        Part(((0, 260), (390, -130), (0, -130)), "light"),
    )


def _rocket() -> tuple[Part, ...]:
    return (
        Part(((-120, 290), (0, 540), (120, 290)), _BEAK, True),
        Part(((-60, 290), (0, 430), (60, 290)), _LAMP),
        Part(((-170, 40), (-350, 260), (-350, 430), (-150, 310)), "dark", True),
        Part(((170, 40), (350, 260), (350, 430), (150, 310)), "dark", True),
        Part(
            (
                *((0, -500), (120, -360), (195, -150), (205, 80), (150, 310)),
                *((-150, 310), (-205, 80), (-195, -150), (-120, -360)),
            ),
            "base",
            True,
        ),
        Part(((0, -500), (120, -360), (165, -250), (-165, -250), (-120, -360)), "dark", True),
        Part(_ellipse(0, -60, 105, 105, corners=20), _PAPER, True),
        Part(_ellipse(0, -60, 68, 68, corners=20), _GLASS),
        Part(_box(-170, 215, 170, 262), "light"),
    )


def _butterfly() -> tuple[Part, ...]:
    parts: list[Part] = []
    for side in (-1, 1):
        lower = tuple((side * x, y) for x, y in ((30, 20), (260, 60), (380, 210), (330, 400), (180, 430), (60, 250)))
        upper = tuple(
            (side * x, y)
            for x, y in ((30, 40), (70, -160), (220, -380), (400, -440), (500, -330), (460, -90), (330, 60))
        )
        parts += [
            Part(lower, "dark", True),
            Part(upper, "base", True),
            Part(_ellipse(side * 330, -250, 85, 95, corners=16), "spot"),
            Part(_ellipse(side * 230, 260, 65, 65, corners=16), "spot"),
        ]
    feelers = tuple(Part(((s * 10, -200), (s * 130, -420), (s * 170, -410), (s * 40, -180)), INK) for s in (-1, 1))
    return (*parts, *feelers, Part(_ellipse(0, 40, 58, 300, corners=20), _TYRE, True))


def _balloon() -> tuple[Part, ...]:
    return (
        Part(((-170, 200), (-130, 200), (-70, 400), (-110, 400)), _WOOD),
        Part(((170, 200), (130, 200), (70, 400), (110, 400)), _WOOD),
        Part((*_ellipse(0, -130, 370, 370, 150, 390), (130, 260), (-130, 260)), "base", True),
        Part((*_ellipse(0, -130, 190, 370, 150, 390), (66, 260), (-66, 260)), "light"),
        Part((*_ellipse(0, -130, 72, 370, 150, 390), (26, 260), (-26, 260)), "base"),
        Part(_box(-120, 370, 120, 500), _WOOD, True),
    )


def _crown() -> tuple[Part, ...]:
    return (
        Part(
            ((-420, 340), (-480, -180), (-240, 60), (0, -300), (240, 60), (480, -180), (420, 340)),
            "base",
            True,
        ),
        Part(_box(-430, 220, 430, 360), "dark", True),
        *(Part(_ellipse(x, y, 62, 62, corners=16), "light", True) for x, y in ((-480, -200), (0, -330), (480, -200))),
        *(Part(_ellipse(x, 290, 46, 46, corners=12), "spot") for x in (-250, 0, 250)),
    )


PARTS: dict[str, tuple[Part, ...]] = {
    "house": _house(),
    "tree": _tree(),
    "fish": _fish(),
    "star": _star(),
    "car": _car(),
    "boat": _boat(),
    "flower": _flower(),
    "mushroom": _mushroom(),
    "umbrella": _umbrella(),
    "bird": _bird(),
    "cup": _cup(),
    "kite": _kite(),
    "rocket": _rocket(),
    "butterfly": _butterfly(),
    "balloon": _balloon(),
    "crown": _crown(),
}
