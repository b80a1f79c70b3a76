"""What is in a scene, decided in whole numbers before anything is drawn."""

from dataclasses import dataclass
from itertools import product
from random import Random

from orchestration.data.scenes.chance import below, shuffled
from orchestration.data.scenes.geometry import ONE, UNIT, Box, overlap, scaled, span
from orchestration.data.scenes.options import ScenesOptions
from orchestration.data.scenes.vocabulary import THINGS

Triple = tuple[int, int, int]  # thing, colour, background: indices into the vocabulary

_MARGIN = 40  # kept free along every side of the picture
_HELD_OUT_PERCENT = 5
_ALONE = (700, 900)  # longer side of the main object's box
_IN_COMPANY = (490, 610)
_OTHERS = (250, 390)
_TRIES = 24


@dataclass(frozen=True, slots=True)
class Placed:
    """An object: vocabulary indices, anchor and size in 1024ths of the side, turn in degrees clockwise."""

    thing: int
    colour: int
    x: int
    y: int
    size: int
    turn: int
    mirror: bool

    @property
    def box(self) -> Box:
        left, top, width, height = (scaled(edge, self.size) for edge in span(self.thing, self.turn, self.mirror))
        return self.x + left, self.y + top, width, height


@dataclass(frozen=True, slots=True)
class Scene:
    """`objects[0]` is the main one; each lies over those after it. `texture` seeds the background's details."""

    background: int
    texture: int
    objects: tuple[Placed, ...]

    @property
    def main(self) -> Triple:
        return self.objects[0].thing, self.objects[0].colour, self.background

    @property
    def key(self) -> tuple[int, tuple[Placed, ...]]:
        """The composition; two pictures that share it differ in texture only."""
        return self.background, self.objects


def split_triples(options: ScenesOptions) -> tuple[tuple[Triple, ...], tuple[Triple, ...]]:
    """All (thing, colour, background), parted into those to train on and about 5% kept for the test.

    Any two members of a held-out triple are still seen together in training: no two held-out triples share a pair.
    """
    triples = list(product(range(options.things), range(options.colours), range(options.backgrounds)))
    wanted = max(1, len(triples) * _HELD_OUT_PERCENT // 100)
    held_out: set[Triple] = set()
    pairs: set[tuple[str, int, int]] = set()
    for triple in shuffled(Random(f"scenes held out {options.seed}"), triples):
        thing, colour, background = triple
        its = {("no background", thing, colour), ("no colour", thing, background), ("no thing", colour, background)}
        if len(held_out) < wanted and not its & pairs:
            held_out.add(triple)
            pairs |= its
    return tuple(t for t in triples if t not in held_out), tuple(sorted(held_out))


def compose(rng: Random, options: ScenesOptions, main: Triple, forbidden: frozenset[Triple]) -> Scene:
    """A scene about `main`; no other object with its colour on this background is in `forbidden`."""
    thing, colour, background = main
    count = 1 + below(rng, options.objects)
    texture = below(rng, 1 << 30)
    objects = [_place(rng, thing, colour, _ALONE if count == 1 else _IN_COMPANY)]
    while len(objects) < count:
        other = _beside(rng, options, background, forbidden, objects)
        if other is None:
            break
        objects.append(other)
    return Scene(background, texture, tuple(objects))


def _place(rng: Random, thing: int, colour: int, sides: tuple[int, int]) -> Placed:
    """A thing with a box of that longer side, anywhere wholly inside the picture."""
    tilt = THINGS[thing].tilt
    turn = below(rng, 2 * tilt + 1) - tilt
    mirror = rng.random() < 0.5
    box = span(thing, turn, mirror)
    size = (sides[0] + below(rng, sides[1] - sides[0])) * ONE // max(box[2:])
    left, top, width, height = (scaled(edge, size) for edge in box)
    room = UNIT - 2 * _MARGIN
    x = _MARGIN - left + below(rng, room - width + 1)
    y = _MARGIN - top + below(rng, room - height + 1)
    return Placed(thing, colour, x, y, size, turn, mirror)


def _beside(
    rng: Random, options: ScenesOptions, background: int, forbidden: frozenset[Triple], above: list[Placed]
) -> Placed | None:
    """One more object, smaller than the main one, under those already there but at least half in sight.

    None if no place was found.
    """
    taken = {(placed.thing, placed.colour) for placed in above}
    for _ in range(_TRIES):
        thing, colour = below(rng, options.things), below(rng, options.colours)
        if (thing, colour) in taken or (thing, colour, background) in forbidden:
            continue
        placed = _place(rng, thing, colour, _OTHERS)
        box, main = placed.box, above[0].box
        covered = sum(overlap(box, other.box) for other in above)
        if 2 * covered <= box[2] * box[3] and 10 * box[2] * box[3] <= 8 * main[2] * main[3]:
            return placed
    return None
