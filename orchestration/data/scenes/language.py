"""What is written about a scene: words for its objects and five captions."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from orchestration.data.scenes.chance import pick, shuffled
from orchestration.data.scenes.compose import Placed
from orchestration.data.scenes.geometry import UNIT, Box, relation
from orchestration.data.scenes.vocabulary import BACKGROUNDS, COLOURS, THINGS, Background

CAPTIONS = 5

PLACES = {  # said after the other object was named, by its relation to it
    "left of": ("on its left", "to the left of it"),
    "right of": ("on its right", "to the right of it"),
    "above": ("above it", "over it"),
    "below": ("below it", "underneath it"),
    "inside": ("behind it",),
    "surrounding": ("around it",),
}
_VERB = {"left of": "to the left of", "right of": "to the right of", "inside": "behind", "surrounding": "around"}


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it looks in the picture: words for it, and its visible box in pixels."""

    thing: str
    colour: str
    size: str
    box: Box

    @property
    def name(self) -> str:
        return f"{self.colour} {self.thing}"


def seen(placed: Placed, box: Box) -> Seen:
    """Words for an object whose visible box in pixels is `box`; its size word is the same in pictures of any size."""
    share = 100 * max(placed.box[2:]) // UNIT
    size = "tiny" if share < 29 else "small" if share < 42 else "big" if share < 64 else "huge"
    return Seen(THINGS[placed.thing].name, COLOURS[placed.colour].name, size, box)


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


_Wording = Callable[[Random, Seen, Background], str]

# Every wording names colour, thing and background.
_ALONE: tuple[_Wording, ...] = (
    lambda rng, main, back: f"{article(main.name)} {pick(rng, back.where)}",
    lambda rng, main, back: f"there is {article(main.name)} {pick(rng, back.where)}",
    lambda rng, main, back: f"a picture of {article(main.name)} {pick(rng, back.where)}",
    lambda rng, main, back: f"{article(main.size)} {main.colour} {main.thing} {pick(rng, back.where)}",
    lambda rng, main, back: f"{article(main.thing)} that is {main.colour}, {pick(rng, back.where)}",
    lambda rng, main, back: f"this {main.thing} is {main.colour} and the background is {back.noun}",
    lambda rng, main, back: f"{back.noun} with {article(main.name)} in front",
    lambda rng, main, back: f"one {main.size} {main.thing}, {main.colour} in colour, {pick(rng, back.where)}",
    lambda rng, main, back: f"{pick(rng, back.where)} you can see {article(main.name)}",
    lambda rng, main, back: f"the {main.thing} {pick(rng, back.where)} is {main.colour}",
    lambda rng, main, back: f"a simple drawing shows {article(main.name)} {pick(rng, back.where)}",
    lambda rng, main, back: f"{article(main.name)} is {pick(rng, back.where)}",
)


def captions(rng: Random, objects: list[Seen], background: int) -> list[str]:
    """Five different captions; `objects[0]` is the main one."""
    main, others, back = objects[0], objects[1:], BACKGROUNDS[background]
    wanted = 3 if others else CAPTIONS
    texts = [wording(rng, main, back) for wording in shuffled(rng, _ALONE)[:wanted]]
    if others:
        texts += [wording(rng, objects, back) for wording in shuffled(rng, _TOGETHER)[: CAPTIONS - wanted]]
    return [f"{text[0].upper()}{text[1:]}." for text in shuffled(rng, texts)]


def _with_place(rng: Random, objects: list[Seen], back: Background) -> str:
    other = pick(rng, objects[1:])
    place = pick(rng, PLACES[relation(other.box, objects[0].box)])
    return f"{article(objects[0].name)} {pick(rng, back.where)} with {article(other.size)} {other.name} {place}"


def _with_verb(rng: Random, objects: list[Seen], back: Background) -> str:
    other = pick(rng, objects[1:])
    predicate = relation(other.box, objects[0].box)
    verb = _VERB.get(predicate, predicate)
    return f"{article(other.name)} is {verb} {article(objects[0].size)} {objects[0].name} {pick(rng, back.where)}"


def _all_listed(rng: Random, objects: list[Seen], back: Background) -> str:
    names = [article(each.name) for each in objects]
    return f"{', '.join(names[:-1])} and {names[-1]} {pick(rng, back.where)}"


def _place_first(rng: Random, objects: list[Seen], back: Background) -> str:
    other = pick(rng, objects[1:])
    main = objects[0]
    return f"{pick(rng, back.where)} {article(main.size)} {main.name} is next to {article(other.name)}"


_Listing = Callable[[Random, list[Seen], Background], str]
_TOGETHER: tuple[_Listing, ...] = (_with_place, _with_verb, _all_listed, _place_first)
