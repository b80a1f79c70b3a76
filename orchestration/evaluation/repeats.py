"""Several pictures of one caption: which of them are compared, and one value a pair, summed up over captions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestration.errors import RequestError
from orchestration.evaluation import estimates
from orchestration.evaluation.estimates import Estimate
from orchestration.evaluation.metric import Array

LEAST_GROUPS = 2


def next_of_group(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """For B pictures whose groups follow each other, the place (B,) of the picture each is compared with; -1 for none.

    It is the next of the same group, and for the last the first: n pairs of n pictures, of two pictures one, of one
    none. Each picture then counts the same, and the pairs grow with n and not with its square. Raises ValueError where
    a group's pictures do not follow each other.
    """
    found = np.full(len(groups), -1, np.int64)
    edges = np.flatnonzero(np.diff(groups)) + 1
    runs = np.split(np.arange(len(groups)), edges)
    if len(groups) and len(runs) != len(np.unique(groups)):
        raise ValueError("pictures of one group do not follow each other")
    for run in runs:
        if len(run) == 2:
            found[run[0]] = run[1]
        elif len(run) > 2:
            found[run] = np.roll(run, -1)
    return found


@dataclass(frozen=True, slots=True)
class Pairs:
    """values, groups: (P,) of each pair; drawn: pictures seen, with or without a pair."""

    values: NDArray[np.float64]
    groups: NDArray[np.int64]
    drawn: int

    @property
    def group_count(self) -> int:
        return len(np.unique(self.groups))

    def mean(self) -> Estimate:
        """The mean over pairs. Its interval takes groups as what is sampled: pairs of one caption are alike.

        Standard error of a ratio of sums over groups, linearised (Cochran, "Sampling Techniques", 3rd edition, 1977,
        section 2.11); with as many pairs in each group it is that of the groups' means.
        """
        _, places = np.unique(self.groups, return_inverse=True)
        pairs = np.bincount(places).astype(np.float64)
        value = self.values.mean()
        deviations = np.bincount(places, self.values) - value * pairs
        return estimates.mean(value + deviations / pairs.mean())

    def share(self, hits: NDArray[np.bool_]) -> Estimate:
        """The share of hits among pairs, with Wilson's interval (1927) for as many trials as there are groups: exact
        for one pair a group, and wide enough where pairs of a group are alike."""
        return estimates.wilson(float(hits.mean()), self.group_count)


class Table:
    """Columns of numbers by the pictures' places, from portions in any order. At most 8 bytes a number: 1 MB for 30,000
    pictures and their three columns."""

    def __init__(self) -> None:
        self._portions: list[tuple[Array, ...]] = []

    def add(self, places: NDArray[np.int64], *columns: Array) -> None:
        """Columns (B,) of the pictures at places (B,)."""
        self._portions.append((places.copy(), *(column.copy() for column in columns)))

    def merge(self, other: "Table") -> None:
        self._portions += other._portions

    def __len__(self) -> int:
        return sum(len(places) for places, *_ in self._portions)

    def read(self) -> list[Array]:
        """The columns, in the order of places; of no pictures none. A place that came twice counts once.

        Raises ValueError where it came with other numbers.
        """
        if not self._portions:
            return []
        places, *columns = (np.concatenate(column) for column in zip(*self._portions, strict=True))
        _, first, again = np.unique(places, return_index=True, return_inverse=True)
        for column in columns:
            if not np.array_equal(column[first][again], column, equal_nan=column.dtype.kind == "f"):
                raise ValueError("a picture came twice with different numbers")
        return [column[first] for column in columns]


def pairs_of(groups: Array, values: Array, figure: str) -> Pairs:
    """Pairs of N pictures: groups (N,), values (N,) with NaN where a picture has no next one.

    Raises RequestError naming the figure where fewer than two captions have a pair.
    """
    has_pair = ~np.isnan(values)
    found = Pairs(values[has_pair].astype(np.float64), groups[has_pair], len(values))
    if found.group_count < LEAST_GROUPS:
        raise RequestError(
            f"{figure} compares pictures of one caption, and {found.group_count} of the captions drawn have two or "
            f"more: draw two pictures or more for each of at least {LEAST_GROUPS} captions"
        )
    return found
