"""The nearest patches of a class by the L2 distance of their features: exactly, or by an index of faiss.

RetrieveGAN (Tseng et al., 2020), section 3.2, patch pre-filtering. Whatever index proposes, distances are computed anew
in float64, and patches at the same distance come in the order of their places. So "exact" and "flat" give the same
neighbours to the last place, and no result depends on how queries are batched, on threads or on the library's rounding.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from orchestration.data.vector_search import IndexSettings, Propose, by_faiss, by_torch
from orchestration.errors import RequestError

MOST = 1000
"""Neighbours of a query at most: GPU indices give 2048 at once, and more than k are fetched."""
_SPARE = 8
_NUMBERS = 2**22  # of a temporary array


class PreFilterSettings(IndexSettings):
    """How each object's candidates are found among the patches of its class, each class by an index of its own.

    k: candidates of an object, not published; 10 are PasteGAN's (Li et al., 2019, released code). small: of patches
    equal ones count once. The rest as `IndexSettings` has it.
    """

    k: int = Field(default=10, ge=1, le=MOST)


class ByClass:
    """Where the members of each class are."""

    def __init__(self, classes: NDArray[np.int64]) -> None:
        self._order = np.argsort(classes, kind="stable")
        self._numbers, bounds = np.unique(classes[self._order], return_index=True)
        self._bounds = np.append(bounds, len(classes))

    def places(self, number: int) -> NDArray[np.int64]:
        """Ascending; none for a class that nothing is of."""
        at = int(np.searchsorted(self._numbers, number))
        if at == len(self._numbers) or self._numbers[at] != number:
            return self._order[:0]
        return self._order[self._bounds[at] : self._bounds[at + 1]]


@dataclass(frozen=True, slots=True, eq=False)
class _Class:
    """The patches of a class. Those with the very same feature are one row: objects of equal graphs have it, and there
    are many.

    firsts: (U,) a place for each row; members: (n,) places, a row's together and ascending, row u's are bounds[u] to
    bounds[u+1]; centre: (D,) float64, what features are moved by so that their differences are not lost in rounding;
    reach: of the longest moved one; shared: patches of one picture at most; propose: for centred queries; whole:
    whether it misses none.
    """

    firsts: NDArray[np.int64]
    members: NDArray[np.int64]
    bounds: NDArray[np.int64]
    centre: NDArray[np.float64]
    reach: float
    shared: int
    propose: Propose
    whole: bool


class PatchIndex:
    """Searches M patches, each class by an index of its own that is built when it is first asked."""

    def __init__(
        self,
        features: NDArray[np.float32],
        classes: NDArray[np.int64],
        image_ids: NDArray[np.int64],
        settings: PreFilterSettings | None = None,
    ) -> None:
        """features: (M,D) finite, may be memory-mapped; classes, image_ids: (M,)."""
        self.features, self.classes, self.image_ids = np.asarray(features), classes, image_ids
        self.settings = settings or PreFilterSettings()
        self._by_class = ByClass(classes)
        self._built: dict[int, _Class | None] = {}

    @property
    def device(self) -> str:
        """Where faiss searches: "gpu" or "cpu"."""
        return self.settings.device

    def search(
        self,
        queries: NDArray[np.float32],
        classes: NDArray[np.int64],
        k: int,
        not_of_image: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k nearest patches of each query's class, the nearest first: places (Q,k), and L2 distances (Q,k).

        queries: (Q,D); classes: (Q,); not_of_image: (Q,), patches of that image are passed over. Where a class has
        fewer, the rest is -1 and infinity. Never fewer than k where the class has so many, whatever the index. Raises
        RequestError for k out of 1 to MOST, for queries of another width, or that are no numbers.
        """
        if not 1 <= k <= MOST:
            raise RequestError(f"{k} candidates of an object are asked for: choose 1 to {MOST}")
        if queries.ndim != 2 or queries.shape[1] != self.features.shape[1]:
            raise RequestError(
                f"objects with features of the shape {queries.shape} are looked for among patches with features of "
                f"{self.features.shape[1]} numbers: describe both with one graph encoder"
            )
        if not np.isfinite(queries).all():
            raise RequestError("objects are looked for by features that are NaN or infinite: train the graph encoder")
        queries = np.ascontiguousarray(queries, np.float32)
        places = np.full((len(queries), k), -1, np.int64)
        distances = np.full((len(queries), k), np.inf, np.float32)
        for number in np.unique(classes).tolist():
            rows = np.flatnonzero(classes == number)
            if (found := self._class(number)) is not None:
                images = None if not_of_image is None else not_of_image[rows]
                places[rows], distances[rows] = self._search(found, queries[rows], k, images)
        return places, distances

    def _search(
        self, found: _Class, queries: NDArray[np.float32], k: int, images: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        places = np.full((len(queries), k), -1, np.int64)
        distances = np.full((len(queries), k), np.inf, np.float32)
        pending, fetch, propose, whole = np.arange(len(queries)), 2 * k + _SPARE, found.propose, found.whole
        while len(pending):
            fetch = min(fetch, len(found.firsts))
            left = []
            at_once = max(1, _NUMBERS // (fetch * queries.shape[1]))
            for start in range(0, len(pending), at_once):
                some = pending[start : start + at_once]
                moved = (queries[some] - found.centre).astype(np.float32)
                rows, about = propose(moved, fetch)
                apart = None if images is None else images[some]
                places[some], distances[some] = self._rank(found, queries[some], rows, k, apart)
                left.append(some[~_settled(found, moved, rows, about, places[some], distances[some], whole)])
            # Few are left, and for them nothing may be missed.
            pending, fetch = np.concatenate(left), 4 * fetch
            propose, whole = self._through_all(found.firsts, found.centre), True
        return places, distances

    def _rank(
        self,
        found: _Class,
        queries: NDArray[np.float32],
        rows: NDArray[np.int64],
        k: int,
        images: NDArray[np.int64] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k nearest members of the rows (Q,m), which are some or none (-1) of the class."""
        there = rows >= 0
        differences = self.features[found.firsts[rows]].astype(np.float64)
        differences -= queries[:, None, :]
        squares = np.einsum("qmd,qmd->qm", differences, differences)
        # Of a row's members no more are of use, those of the query's own image among them.
        enough = k if images is None else k + found.shared
        sizes = np.where(there, np.minimum(np.diff(found.bounds)[rows], enough), 0).ravel()
        ends = sizes.cumsum()
        within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        places = found.members[np.repeat(found.bounds[:-1][rows].ravel(), sizes) + within]
        squares = np.repeat(squares.ravel(), sizes)
        owners = np.repeat(np.arange(len(rows)).repeat(rows.shape[1]), sizes)
        if images is not None:
            kept = self.image_ids[places] != images[owners]
            places, squares, owners = places[kept], squares[kept], owners[kept]
        order = np.lexsort((places, squares, owners))
        counts = np.bincount(owners, minlength=len(rows))
        ranks = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        order, ranks = order[ranks < k], ranks[ranks < k]
        nearest = np.full((len(rows), k), -1, np.int64)
        distances = np.full((len(rows), k), np.inf, np.float32)
        nearest[owners[order], ranks] = places[order]
        distances[owners[order], ranks] = np.sqrt(squares[order])
        return nearest, distances

    def _class(self, number: int) -> _Class | None:
        """None where the bank has no patch of it."""
        if number not in self._built:
            places = self._by_class.places(number)
            self._built[number] = self._build(places) if len(places) else None
        return self._built[number]

    def _build(self, places: NDArray[np.int64]) -> _Class:
        features = np.ascontiguousarray(self.features[places], np.float32) + np.float32(0)  # one zero, not two
        _, first, row_of = np.unique(
            features.view(np.dtype((np.void, features.shape[1] * 4))).ravel(), return_index=True, return_inverse=True
        )
        # In the order of their first members: by their bytes, neighbours would come together.
        order = np.argsort(first)
        row_of = np.argsort(order)[row_of]
        members = np.argsort(row_of, kind="stable")
        bounds = np.append(0, np.bincount(row_of).cumsum())
        centre = features.mean(0, dtype=np.float64)
        rows = (features[first[order]] - centre).astype(np.float32)
        reach = float(np.linalg.norm(rows.astype(np.float64), axis=1).max())
        shared = int(np.unique(self.image_ids[places], return_counts=True)[1].max())
        kind = self.settings.kind_for(len(rows))
        firsts = places[first[order]]
        propose = self._through_all(firsts, centre) if kind == "exact" else by_faiss(rows, self.settings, kind)
        return _Class(firsts, places[members], bounds, centre, reach, shared, propose, kind in ("exact", "flat"))

    def _through_all(self, firsts: NDArray[np.int64], centre: NDArray[np.float64]) -> Propose:
        """By torch, some rows at a time, which are not kept."""
        moved = lambda some: (self.features[firsts[some]] - centre).astype(np.float32)  # noqa: E731
        return by_torch(moved, len(firsts), numbers=_NUMBERS)


def _settled(
    found: _Class,
    queries: NDArray[np.float32],
    rows: NDArray[np.int64],
    about: NDArray[np.float32],
    places: NDArray[np.int64],
    distances: NDArray[np.float32],
    whole: bool,
) -> NDArray[np.bool_]:
    """(Q,) whether nobody who was not proposed can belong to the k nearest.

    A squared distance computed as |q|^2 + |x|^2 - 2qx in float32 is off by at most about D units in the last place of
    (|q| + |x|)^2. An index that may miss some is believed once it gives k.
    """
    enough = places[:, -1] >= 0
    everything = (rows.shape[1] == len(found.firsts)) & (rows >= 0).all(1)
    if not whole:
        return everything | enough
    units = (queries.shape[1] + 8) * float(np.finfo(np.float32).eps)
    error = units * (np.linalg.norm(queries.astype(np.float64), axis=1) + found.reach) ** 2
    last = np.where(enough, distances[:, -1], np.inf).astype(np.float64) * (1 + 1e-6)  # it was rounded
    return everything | (enough & (last**2 < about[:, -1].astype(np.float64) - error))


def recall(index: PatchIndex, sample: int, k: int, seed: int) -> float:
    """The share of the exact k nearest neighbours that the index finds, 1 where there are none.

    The queries are so many patches of the bank itself (all, where it has fewer), which are drawn by the seed; those of
    a patch's own image are passed over.
    """
    count = len(index.classes)
    drawn = np.sort(np.random.default_rng(seed).permutation(count)[:sample])
    exact = PatchIndex(
        index.features, index.classes, index.image_ids, index.settings.model_copy(update={"index": "exact"})
    )
    asked = np.asarray(index.features[drawn]), index.classes[drawn], k, index.image_ids[drawn]
    (found, _), (wanted, _) = index.search(*asked), exact.search(*asked)
    hits = (found[:, :, None] == wanted[:, None, :]) & (wanted >= 0)[:, None, :]
    return float(hits.sum() / total) if (total := int((wanted >= 0).sum())) else 1.0
