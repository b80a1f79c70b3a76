"""Draws that give the same numbers in every version of Python: only `random()` itself is promised to stay."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def below(rng: Random, stop: int) -> int:
    """A whole number from 0 to stop - 1."""
    return int(rng.random() * stop)


def pick(rng: Random, items: Sequence[T]) -> T:
    """One of the items."""
    return items[below(rng, len(items))]


def shuffled(rng: Random, items: Sequence[T]) -> list[T]:
    """The items in another order."""
    keyed = sorted((rng.random(), index) for index in range(len(items)))
    return [items[index] for _, index in keyed]
