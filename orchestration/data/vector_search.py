"""The nearest of many vectors, by L2 distance or by inner product: through all of them by torch, or by an index of
faiss.

What is proposed here is about right; whoever asks computes it anew and exactly, such as `ProductIndex` does.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from models.contract import Settings
from orchestration.errors import RequestError

TRAINING = 39
"""Vectors that faiss wants of each list."""
_GPU_MOST = 2048  # neighbours that GPU indices give
_SPARE = 8
_NUMBERS = 2**22  # of a temporary array
_AT_ONCE = 256  # queries

Kind = Literal["exact", "flat", "ivf", "hnsw"]


class IndexSettings(Settings):
    """How the nearest vectors are looked for.

    index: "exact" goes through all by torch and "flat" by faiss, with the same result; "ivf" looks into the nearest
    `probes` of so many `lists` (none: the root of the number of vectors) and "hnsw" walks a graph of so many
    `neighbours` with a beam of `ef`, both faster and not exact. small: fewer vectors (equal ones may count once) are
    searched flat. gpu: by a GPU where faiss was built for one ("flat" and "ivf"); elsewhere it changes nothing.
    """

    index: Kind = "flat"
    lists: int | None = Field(default=None, ge=1)
    probes: int = Field(default=8, ge=1)
    neighbours: int = Field(default=32, ge=2)
    ef: int = Field(default=64, ge=1)
    small: int = Field(default=1000, ge=0)
    gpu: bool = False

    def kind_for(self, count: int) -> Kind:
        """What so many vectors are searched by."""
        least = max(self.small, 2 * TRAINING if self.index == "ivf" else 0)
        return "flat" if self.index in ("ivf", "hnsw") and count < least else self.index

    @property
    def device(self) -> str:
        """Where faiss searches: "gpu" or "cpu"."""
        return "gpu" if self.gpu and self.index in ("flat", "ivf") and _gpus() else "cpu"


Propose = Callable[[NDArray[np.float32], int], tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Queries (Q,D) and a number m to rows (Q,m), the best first and -1 where there is none, and about their squared L2
distances, or inner products."""


def by_torch(
    rows: Callable[[slice], NDArray[np.float32]], count: int, product: bool = False, numbers: int = _NUMBERS
) -> Propose:
    """Goes through `count` rows, some at a time, which are not kept; numbers: of a temporary array, about."""

    def propose(queries: NDArray[np.float32], m: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        asked = torch.from_numpy(queries)
        lengths = asked.square().sum(1, keepdim=True)
        nearest, found = asked.new_empty(len(asked), 0), torch.empty(len(asked), 0, dtype=torch.int64)
        at_once = max(4096, numbers // max(asked.shape))
        for start in range(0, count, at_once):
            others = torch.from_numpy(rows(slice(start, start + at_once)))
            if product:
                scores = asked @ others.T
            else:
                scores = torch.addmm(lengths + others.square().sum(1), asked, others.T, alpha=-2)
            scores, chosen = scores.topk(min(m, len(others)), largest=product)
            nearest, found = torch.cat([nearest, scores], 1), torch.cat([found, chosen + start], 1)
            nearest, chosen = nearest.topk(min(m, nearest.shape[1]), largest=product)
            found = found.gather(1, chosen)
        return found.numpy(), nearest.numpy()

    return propose


def by_faiss(rows: NDArray[np.float32], settings: IndexSettings, kind: Kind, product: bool = False) -> Propose:
    """By an index of faiss, built with one thread: the bytes that it is built of do not depend on the cores."""
    import faiss  # not for those who only name the settings

    count, width = rows.shape
    metric = faiss.METRIC_INNER_PRODUCT if product else faiss.METRIC_L2
    index: Any = faiss.IndexFlatIP(width) if product else faiss.IndexFlatL2(width)
    if kind == "ivf":
        lists = min(settings.lists or round(math.sqrt(count)), count // TRAINING)
        index = faiss.IndexIVFFlat(index, width, lists, metric)
        index.nprobe = settings.probes
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, settings.neighbours, metric)
        index.hnsw.efSearch = settings.ef  # or what a search is asked for, where that is more
    if settings.device == "gpu" and kind != "hnsw":
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    with _one_faiss_thread():
        index.train(rows)
        index.add(rows)

    def propose(queries: NDArray[np.float32], m: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        with _one_faiss_thread():
            scores, found = index.search(queries, m)
        return found, scores

    return propose


def _gpus() -> bool:
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@contextmanager
def _one_faiss_thread() -> Iterator[None]:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class ProductIndex:
    """Searches N vectors by inner product. What is found is ranked by products in float64, equal ones by their places,
    so "exact" and "flat" agree to the last place, however queries are batched."""

    def __init__(self, vectors: NDArray[np.float32], settings: IndexSettings | None = None) -> None:
        """vectors: (N,D) finite, N at least 1, may be memory-mapped."""
        self.vectors, self.settings = vectors, settings or IndexSettings()
        count = len(vectors)
        kind = self.settings.kind_for(count)
        self._whole = kind in ("exact", "flat")
        self._all = by_torch(lambda some: np.array(vectors[some], np.float32), count, product=True)
        flat = np.ascontiguousarray(vectors, np.float32) if kind != "exact" else None
        self._propose = self._all if flat is None else by_faiss(flat, self.settings, kind, product=True)
        chunks = range(0, count, 4096)
        lengths = [np.linalg.norm(vectors[start : start + 4096].astype(np.float64), axis=1).max() for start in chunks]
        self._reach = float(max(lengths))

    def __len__(self) -> int:
        return len(self.vectors)

    def search(
        self, queries: NDArray[np.float32], k: int, left_out: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The k vectors with the largest inner products: places (Q,k) and products (Q,k), the largest first.

        left_out: (Q,) the place of a vector that a query passes over, -1 for none. Where there are fewer, the rest is
        -1 and minus infinity; never fewer than k where there are so many, whatever the index. Raises RequestError for k
        below 1, and for queries of another width or that are no numbers.
        """
        if k < 1:
            raise RequestError(f"{k} neighbours are asked for: choose 1 or more")
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise RequestError(
                f"queries of the shape {queries.shape} are looked for among vectors of {self.vectors.shape[1]} "
                "numbers: encode both by one encoder"
            )
        if not np.isfinite(queries).all():
            raise RequestError("a query holds NaN or infinity: train the encoder anew, with a lower learning rate")
        queries = np.ascontiguousarray(queries, np.float32)
        passed = np.full(len(queries), -1) if left_out is None else left_out
        places = np.full((len(queries), k), -1, np.int64)
        products = np.full((len(queries), k), -np.inf)
        pending, fetch, propose, whole = np.arange(len(queries)), 2 * k + _SPARE, self._propose, self._whole
        while len(pending):
            fetch = min(fetch, len(self))
            if fetch > _GPU_MOST and self.settings.device == "gpu":
                propose, whole = self._all, True
            left = []
            for start in range(0, len(pending), _AT_ONCE):
                some = pending[start : start + _AT_ONCE]
                found, about = propose(queries[some], fetch)
                for row, rows, least in zip(some.tolist(), found, about[:, -1].tolist(), strict=True):
                    rows = rows[rows >= 0]
                    places[row], products[row] = self._ranked(queries[row], rows, k, int(passed[row]))
                    if not self._settled(queries[row], len(rows), least, places[row], products[row], whole):
                        left.append(row)
            # Few are left, and for them nothing may be missed.
            pending, fetch, propose, whole = np.array(left, np.int64), 4 * fetch, self._all, True
        return places, products

    def _ranked(
        self, query: NDArray[np.float32], rows: NDArray[np.int64], k: int, passed: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        rows = rows[rows != passed]
        products, wide = np.empty(len(rows)), query.astype(np.float64)
        at_once = max(1, _NUMBERS // len(query))
        for start in range(0, len(rows), at_once):
            some = self.vectors[rows[start : start + at_once]].astype(np.float64)
            products[start : start + len(some)] = (some * wide).sum(1)
        order = np.lexsort((rows, -products))[:k]
        places, best = np.full(k, -1, np.int64), np.full(k, -np.inf)
        places[: len(order)], best[: len(order)] = rows[order], products[order]
        return places, best

    def _settled(
        self,
        query: NDArray[np.float32],
        proposed: int,
        about: float,
        places: NDArray[np.int64],
        products: NDArray[np.float64],
        whole: bool,
    ) -> bool:
        """Whether nobody who was not proposed can belong to the k best.

        A product of D terms in float32 is off by at most about D units in the last place of |q| |x|. An index that may
        miss some is believed once it gives k.
        """
        enough = places[-1] >= 0
        if proposed == len(self):
            return True
        if not whole:
            return bool(enough)
        units = (len(query) + 8) * float(np.finfo(np.float32).eps)
        error = units * float(np.linalg.norm(query.astype(np.float64))) * self._reach
        return bool(enough and products[-1] > about + error)
