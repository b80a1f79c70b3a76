"""The textures of the backgrounds. Lengths are 1024ths of the side, so a scene looks the same at every size."""

import math
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from orchestration.data.scenes.chance import below
from orchestration.data.scenes.shapes import RGB

_WAVE = tuple(round(1024 * math.sin(math.pi * k / 8)) for k in range(17))  # one period, in whole numbers


class _Brush:
    """Draws on a square canvas in 1024ths of its side."""

    def __init__(self, side: int, top: RGB, bottom: RGB, rng: Random) -> None:
        self._rng = rng
        shift = self.below(17) - 8  # a slightly different light each time
        steps = np.arange(side, dtype=np.int64)[:, None]
        ends = np.clip(np.array([top, bottom], dtype=np.int64) + shift, 0, 255)
        ramp = (ends[0] * (side - 1 - steps) + ends[1] * steps) // (side - 1)
        self.image = Image.fromarray(np.repeat(ramp.astype(np.uint8)[:, None], side, axis=1))
        self._draw = ImageDraw.Draw(self.image)
        self._side = side

    def below(self, stop: int) -> int:
        """A whole number from 0 to stop - 1."""
        return below(self._rng, stop)

    def around(self, colour: RGB, spread: int) -> RGB:
        """The colour, a little lighter or darker."""
        shift = self.below(2 * spread + 1) - spread
        red, green, blue = (min(255, max(0, c + shift)) for c in colour)
        return red, green, blue

    def _scaled(self, numbers: list[int]) -> list[int]:
        side = self._side
        return [side * n >> 10 for n in numbers]

    def line(self, points: list[int], colour: RGB, width: int) -> None:
        self._draw.line(self._scaled(points), colour, max(1, self._side * width >> 10))

    def box(self, x0: int, y0: int, x1: int, y1: int, colour: RGB) -> None:
        left, top, right, bottom = self._scaled([x0, y0, x1, y1])
        if right > left and bottom > top:
            self._draw.rectangle((left, top, right - 1, bottom - 1), colour)

    def ellipse(self, x: int, y: int, rx: int, ry: int, colour: RGB) -> None:
        self._draw.ellipse(tuple(self._scaled([x - rx, y - ry, x + rx, y + ry])), colour)


def _grass(side: int, rng: Random) -> Image.Image:
    brush = _Brush(side, (126, 196, 84), (82, 160, 62), rng)
    for k in range(56):
        y = 40 + k * 1024 // 56
        x, tall, lean = brush.below(1024), 70 + brush.below(50), brush.below(40)
        colour = (58, 128, 46) if k % 2 else (164, 220, 104)
        brush.line([x - 26 - lean, y - tall * 3 // 4, x, y, x + lean, y - tall], colour, 16)
    return brush.image


def _night_sky(side: int, rng: Random) -> Image.Image:
    brush = _Brush(side, (14, 16, 52), (44, 42, 108), rng)
    for k in range(34):
        x, y = brush.below(1024), brush.below(1024)
        if k % 4:
            brush.ellipse(x, y, 8, 8, (206, 210, 244))
        else:
            brush.ellipse(x, y, 13, 13, (255, 250, 214))
            brush.line([x - 28, y, x + 28, y], (255, 250, 214), 7)
            brush.line([x, y - 28, x, y + 28], (255, 250, 214), 7)
    return brush.image


def _sand(side: int, rng: Random) -> Image.Image:
    brush = _Brush(side, (246, 224, 168), (224, 190, 124), rng)
    for row in range(5):
        y, start = 110 + row * 205 + brush.below(60), brush.below(16)
        ripple = [c for k in range(17) for c in (k * 64, y + _WAVE[(start + k) % 16] * 22 // 1024)]
        brush.line(ripple, (206, 166, 100), 16)
        brush.line([c + 16 if i % 2 else c for i, c in enumerate(ripple)], (255, 238, 196), 12)
    for k in range(44):
        grain = (188, 146, 88) if k % 3 else (255, 244, 214)
        brush.ellipse(brush.below(1024), brush.below(1024), 9, 9, grain)
    return brush.image


def _sea(side: int, rng: Random) -> Image.Image:
    brush = _Brush(side, (92, 190, 214), (28, 124, 166), rng)
    for row in range(8):
        y, start = 50 + row * 130, brush.below(16)
        swell = [c for k in range(33) for c in (k * 32, y + _WAVE[(start + 2 * k) % 16] * 20 // 1024)]
        brush.line(swell, (20, 108, 152) if row % 2 else (56, 152, 188), 26)
        for _ in range(2):
            first = brush.below(25)
            brush.line(
                [c - 22 if i % 2 else c for i, c in enumerate(swell[2 * first : 2 * first + 14])], (214, 244, 248), 20
            )
    return brush.image


def _brick_wall(side: int, rng: Random) -> Image.Image:
    brush = _Brush(side, (222, 206, 190), (196, 178, 162), rng)
    drop, slide = brush.below(128), brush.below(256)
    for row in range(9):
        y = row * 128 - drop
        for column in range(6):
            x = column * 256 - slide - 128 * (row % 2)
            colour = brush.around((172, 92, 76), 16)
            brush.box(x + 14, y + 14, x + 242, y + 114, colour)
            brush.box(x + 14, y + 94, x + 242, y + 114, (140, 70, 60))
    return brush.image


def _snow(side: int, rng: Random) -> Image.Image:
    brush = _Brush(side, (198, 214, 238), (212, 226, 244), rng)
    for row, shade in enumerate(((214, 226, 244), (226, 235, 248), (238, 244, 252))):
        x, y = brush.below(1024), 280 + row * 240 + brush.below(60)
        for centre in (x, x + 1024, x - 1024):
            brush.ellipse(centre, y + 420, 640, 430, shade)
    for _ in range(40):
        brush.ellipse(brush.below(1024), brush.below(1024), 18, 18, (255, 255, 255))
    for _ in range(14):
        brush.ellipse(brush.below(1024), brush.below(1024), 12, 12, (160, 188, 226))
    return brush.image


def _wooden_floor(side: int, rng: Random) -> Image.Image:
    brush = _Brush(side, (206, 158, 106), (206, 158, 106), rng)
    slide = brush.below(170)
    for plank in range(8):
        x, joint = plank * 170 - slide, brush.below(1024)
        colour = brush.around((204, 152, 98), 20)
        brush.box(x, 0, x + 170, 1024, colour)
        for _ in range(3):
            grain, top = x + 30 + brush.below(110), brush.below(900)
            brush.line([grain, top, grain + 8, top + 110, grain, top + 220], (170, 120, 72), 10)
        brush.box(x, joint, x + 170, joint + 18, (128, 84, 50))
        brush.box(x, 0, x + 18, 1024, (128, 84, 50))
    return brush.image


def _cloudy_sky(side: int, rng: Random) -> Image.Image:
    brush = _Brush(side, (96, 176, 246), (186, 226, 255), rng)
    for row in range(5):
        x, y, wide = brush.below(1024), 60 + row * 220 + brush.below(90), 90 + brush.below(50)
        for centre in (x, x + 1024, x - 1024):  # a cloud that leaves on one side comes back on the other
            brush.ellipse(centre, y + 16, 2 * wide, wide * 5 // 8, (206, 224, 240))
            brush.ellipse(centre, y, 2 * wide, wide // 2, (252, 253, 255))
            brush.ellipse(centre - wide // 2, y - wide // 2, wide * 7 // 8, wide * 3 // 4, (252, 253, 255))
            brush.ellipse(centre + wide * 3 // 4, y - wide // 4, wide * 3 // 4, wide * 5 // 8, (252, 253, 255))
    return brush.image


PAINTERS: dict[str, Callable[[int, Random], Image.Image]] = {
    "grass": _grass,
    "night sky": _night_sky,
    "sand": _sand,
    "sea": _sea,
    "brick wall": _brick_wall,
    "snow": _snow,
    "wooden floor": _wooden_floor,
    "cloudy sky": _cloudy_sky,
}
