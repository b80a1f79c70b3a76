"""The nearest patches of a class: every index against a search by hand, ties, one's own picture, what is refused."""

from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from orchestration.data import patch_search
from orchestration.data.patch_search import ByClass, PatchIndex, PreFilterSettings, recall
from orchestration.errors import RequestError

KINDS = ("exact", "flat", "ivf", "hnsw")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Bank:
    """Patches and queries that are drawn; with `steps` their features are on a grid, where many are the same."""

    def __init__(self, seed: int, count: int, width: int, steps: int = 0, offset: float = 0.0) -> None:
        draw = np.random.default_rng(seed)
        self.classes = draw.integers(1, 5, count)
        self.image_ids = np.sort(draw.integers(0, max(1, count // 4), count)) + 100
        self.features = self.draw(draw, count, width, steps) + np.float32(offset)
        self.queries = self.draw(draw, 12, width, steps) + np.float32(offset)
        self.wanted = draw.integers(1, 6, 12)  # class 5 has no patch
        self.images = draw.choice(self.image_ids, 12)

    @staticmethod
    def draw(draw: np.random.Generator, count: int, width: int, steps: int) -> NDArray[np.float32]:
        found = draw.integers(0, steps, (count, width)) if steps else draw.normal(size=(count, width))
        return found.astype(np.float32)

    def index(self, **settings: Any) -> PatchIndex:
        return PatchIndex(self.features, self.classes, self.image_ids, PreFilterSettings(**settings))


def by_hand(bank: Bank, k: int, apart: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """One query after the other, all patches sorted."""
    places = np.full((len(bank.queries), k), -1)
    distances = np.full((len(bank.queries), k), np.inf, np.float32)
    for row, query in enumerate(bank.queries.astype(np.float64)):
        squares = ((bank.features.astype(np.float64) - query) ** 2).sum(1)
        fit = bank.classes == bank.wanted[row]
        if apart:
            fit &= bank.image_ids != bank.images[row]
        order = [place for _, place in sorted(zip(squares[fit], np.flatnonzero(fit), strict=True))][:k]
        places[row, : len(order)] = order
        distances[row, : len(order)] = np.sqrt(squares[order])
    return places, distances


banks = st.builds(
    Bank,
    seed=st.integers(0, 2**31),
    count=st.integers(1, 120),
    width=st.integers(1, 6),
    steps=st.integers(0, 3),
    offset=st.sampled_from([0.0, 1000.0]),
)


@settings(max_examples=80, deadline=None)
@given(bank=banks, k=st.integers(1, 20), apart=st.booleans())
def test_flat_and_exact_are_the_search_by_hand(bank: Bank, k: int, apart: bool) -> None:
    places, distances = by_hand(bank, k, apart)
    for kind in ("flat", "exact"):
        found, apart_by = bank.index(index=kind).search(bank.queries, bank.wanted, k, bank.images if apart else None)
        assert found.tolist() == places.tolist(), kind
        assert np.allclose(apart_by, distances, rtol=1e-6) and found.dtype == np.int64
        assert apart_by.dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(bank=banks, k=st.integers(1, 20), kind=st.sampled_from(KINDS), seed=st.integers(0, 9))
def test_what_every_index_keeps_to(bank: Bank, k: int, kind: str, seed: int) -> None:
    """Its class, no patch twice, none of the query's own picture, the nearest first, and k where the class has k."""
    index = bank.index(index=kind, small=0, lists=1 + seed, probes=1, ef=1)
    places, distances = index.search(bank.queries, bank.wanted, k, bank.images)
    for row, (own, wanted) in enumerate(zip(bank.images, bank.wanted, strict=True)):
        fit = int(((bank.classes == wanted) & (bank.image_ids != own)).sum())
        found = places[row][places[row] >= 0]
        assert len(found) == len(set(found.tolist())) == min(k, fit)
        assert (bank.classes[found] == wanted).all() and (bank.image_ids[found] != own).all()
        assert (np.diff(distances[row, : len(found)]) >= 0).all()
        assert (places[row, len(found) :] == -1).all() and np.isinf(distances[row, len(found) :]).all()
        true = np.linalg.norm(bank.features[found].astype(np.float64) - bank.queries[row], axis=1)
        assert np.allclose(distances[row, : len(found)], true, rtol=1e-6)


def uniform(count: int, width: int = 8, classes: int = 1) -> PatchIndex:
    draw = np.random.default_rng(7)
    features = draw.normal(size=(count, width)).astype(np.float32)
    return PatchIndex(features, draw.integers(1, classes + 1, count), np.arange(count) // 2)


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_a_picture_full_of_the_class(kind: Any) -> None:
    """The 300 nearest are the query's own: more must be fetched than was at first."""
    features = np.arange(400, dtype=np.float32)[:, None]
    images = np.where(np.arange(400) < 300, 1, 2)
    index = PatchIndex(features, np.ones(400, np.int64), images, PreFilterSettings(index=kind))
    places, distances = index.search(features[:1], np.array([1]), 5, np.array([1]))
    assert places.tolist() == [[300, 301, 302, 303, 304]] and distances.tolist() == [[300, 301, 302, 303, 304]]
    assert index.search(features[:1], np.array([1]), 200, np.array([1]))[0][0, 100:].tolist() == [-1] * 100


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_what_rounding_cannot_tell_apart_is_fetched(kind: Any) -> None:
    """1,000 patches on a sphere around the query: their squared distances differ in the last place of float32."""
    draw = np.random.default_rng(0)
    around = draw.normal(size=(1000, 16))
    features = (around / np.linalg.norm(around, axis=1, keepdims=True)).astype(np.float32)
    index = PatchIndex(features, np.ones(1000, np.int64), np.arange(1000), PreFilterSettings(index=kind))
    places, _ = index.search(np.zeros((1, 16), np.float32), np.array([1]), 10)
    true = np.square(features.astype(np.float64)).sum(1)
    assert places[0].tolist() == np.lexsort((np.arange(1000), true))[:10].tolist()


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_two_far_clusters(kind: Any) -> None:
    """Within one, distances are of the order of 1 and rounding is of lengths of the order of 1000."""
    for seed in range(10):
        draw = np.random.default_rng(seed)
        far = draw.normal(size=(1, 128)) * 1000 / 128**0.5
        sides = np.where(np.arange(300) % 2, 1, -1)[:, None]
        features = (draw.normal(size=(300, 128)) * 0.1 + far * sides).astype(np.float32)
        index = PatchIndex(features, np.ones(300, np.int64), np.arange(300), PreFilterSettings(index=kind))
        places, _ = index.search(far.astype(np.float32), np.array([1]), 1)
        true = np.linalg.norm(features.astype(np.float64) - far.astype(np.float32), axis=1)
        assert places.tolist() == [[true.argmin()]], seed


def test_equal_patches_come_by_place_however_many() -> None:
    """One row stands for all of them."""
    features = np.repeat(np.array([[1.0, -0.0], [1.0, 0.0], [2.0, 0.0]], np.float32), [3000, 3000, 3000], 0)
    order = np.random.default_rng(0).permutation(9000)
    index = PatchIndex(features[order], np.ones(9000, np.int64), np.arange(9000) // 3)
    places, distances = index.search(np.array([[0, 0]], np.float32), np.array([1]), 50)
    assert places[0].tolist() == np.flatnonzero(order < 6000)[:50].tolist() and (distances == 1).all()
    found = index._class(1)
    assert found is not None and len(found.firsts) == 2


def test_an_index_that_finds_too_few_is_helped() -> None:
    """With one list of many to look into, most of the k are elsewhere."""
    whole = uniform(2000)
    index = PatchIndex(
        whole.features, whole.classes, whole.image_ids, PreFilterSettings(index="ivf", small=0, lists=50, probes=1)
    )
    places, _ = index.search(whole.features[:20], whole.classes[:20], 500)
    assert (places >= 0).all()
    assert places.tolist() == whole.search(whole.features[:20], whole.classes[:20], 500)[0].tolist()
    assert 0.2 < recall(index, 50, 10, 0) < 1


def test_how_queries_are_batched_and_threads_change_nothing() -> None:
    index = uniform(3000, 16, 3)
    queries, classes, images = index.features[:300], index.classes[:300], index.image_ids[:300]
    places, distances = index.search(queries, classes, 10, images)
    single = [
        index.search(queries[row : row + 1], classes[row : row + 1], 10, images[row : row + 1]) for row in range(9)
    ]
    assert np.concatenate([found for found, _ in single]).tolist() == places[:9].tolist()
    assert np.concatenate([found for _, found in single]).tolist() == distances[:9].tolist()
    before = faiss.omp_get_max_threads()
    try:
        for kind in KINDS:
            results = []
            for threads in (1, 3):
                faiss.omp_set_num_threads(threads)
                settings = PreFilterSettings(index=kind, small=0)
                again = PatchIndex(index.features, index.classes, index.image_ids, settings)
                results.append([found.tobytes() for found in again.search(queries, classes, 10, images)])
                assert faiss.omp_get_max_threads() == threads
            assert results[0] == results[1], kind
    finally:
        faiss.omp_set_num_threads(before)


def test_faiss_has_one_thread_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    index, told = uniform(50), list[int]()
    before = faiss.omp_get_max_threads()
    monkeypatch.setattr(faiss, "omp_set_num_threads", told.append)
    index.search(index.features[:2], index.classes[:2], 3)
    assert told == [1, before] * 2  # it is built, and asked


def test_patches_and_queries_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = uniform(9000)
    queries, classes = whole.features[:40], whole.classes[:40]
    expected = whole.search(queries, classes, 10)[0].tolist()
    monkeypatch.setattr(patch_search, "_NUMBERS", 1000)
    for kind in ("exact", "flat"):
        settings = PreFilterSettings(index=kind)
        index = PatchIndex(whole.features, whole.classes, whole.image_ids, settings)
        assert index.search(queries, classes, 10)[0].tolist() == expected


class TestRecall:
    def test_an_exact_index_finds_all(self) -> None:
        index = uniform(500, classes=3)
        assert recall(index, 100, 10, 0) == 1 and recall(index, 10**6, 10, 0) == 1

    def test_it_grows_with_what_is_looked_into(self) -> None:
        whole = uniform(4000)
        found = [
            recall(
                PatchIndex(
                    whole.features,
                    whole.classes,
                    whole.image_ids,
                    PreFilterSettings(index="ivf", small=0, lists=64, probes=probes),
                ),
                200,
                10,
                0,
            )
            for probes in (1, 8, 64)
        ]
        assert found[0] < found[1] < found[2] == 1

    def test_hnsw(self) -> None:
        whole = uniform(4000)
        settings = PreFilterSettings(index="hnsw", small=0)
        index = PatchIndex(whole.features, whole.classes, whole.image_ids, settings)
        assert 0.9 < recall(index, 200, 10, 0) <= 1

    def test_it_counts_what_the_index_misses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An index that gives the second to the eleventh of the ten nearest has nine of them."""
        index = uniform(500)
        search = PatchIndex.search

        def shifted(self: PatchIndex, queries: Any, classes: Any, k: int, images: Any) -> Any:
            if self is not index:
                return search(self, queries, classes, k, images)
            places, distances = search(self, queries, classes, k + 1, images)
            return places[:, 1:], distances[:, 1:]

        monkeypatch.setattr(PatchIndex, "search", shifted)
        assert recall(index, 50, 10, 0) == pytest.approx(0.9)

    def test_nothing_to_find(self) -> None:
        lonely = PatchIndex(np.zeros((1, 2), np.float32), np.array([1]), np.array([3]))
        assert recall(lonely, 5, 10, 0) == 1


def test_a_gpu_is_used_where_faiss_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []

    def to_gpu(resources: str, device: int, index: Any) -> Any:
        moved.append((resources, device, type(index).__name__))
        return index

    whole = uniform(100)
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    for present in (False, True):
        if present:
            monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
            monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
            monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
        for kind in KINDS:
            settings = PreFilterSettings(index=kind, small=0, gpu=True)
            index = PatchIndex(whole.features, whole.classes, whole.image_ids, settings)
            index.search(whole.features[:3], whole.classes[:3], 5)
            assert index.device == ("gpu" if present and kind in ("flat", "ivf") else "cpu")
        assert moved == ([("resources", 0, "IndexFlatL2"), ("resources", 0, "IndexIVFFlat")] if present else [])


def test_small_classes_are_searched_flat() -> None:
    whole = uniform(100)
    for small, exact in ((101, True), (100, False)):
        settings = PreFilterSettings(index="hnsw", small=small)
        found = PatchIndex(whole.features, whole.classes, whole.image_ids, settings)._class(1)
        assert found is not None and found.whole is exact


class TestRefused:
    @pytest.mark.parametrize("k", [0, -3, patch_search.MOST + 1])
    def test_k(self, k: int) -> None:
        index = uniform(10)
        with pytest.raises(RequestError, match=rf"^{k} candidates of an object are asked for: choose 1 to 1000$"):
            index.search(index.features, index.classes, k)
        with pytest.raises(ValidationError, match="k\n"):
            PreFilterSettings(k=k)

    @pytest.mark.parametrize("shape", [(3, 7), (3, 9), (8,)])
    def test_another_width(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(RequestError) as refused:
            uniform(10).search(np.zeros(shape, np.float32), np.ones(shape[0], np.int64), 2)
        assert str(refused.value) == (
            f"objects with features of the shape {shape} are looked for among patches with features of 8 numbers: "
            "describe both with one graph encoder"
        )

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_no_number(self, value: float) -> None:
        queries = np.zeros((2, 8), np.float32)
        queries[1, 3] = value
        with pytest.raises(RequestError, match="by features that are NaN or infinite: train the graph encoder"):
            uniform(10).search(queries, np.ones(2, np.int64), 2)

    @pytest.mark.parametrize("change", [{"index": "annoy"}, {"probes": 0}, {"lists": 0}, {"neighbours": 1}, {"ef": 0}])
    def test_settings(self, change: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=next(iter(change))):
            PreFilterSettings(**change)


def test_a_class_that_nothing_is_of() -> None:
    index = uniform(10)
    places, distances = index.search(index.features[:2], np.array([1, 9]), 3)
    assert (places[0] >= 0).all() and places[1].tolist() == [-1, -1, -1] and np.isinf(distances[1]).all()
    places, _ = index.search(index.features[:0], index.classes[:0], 3)
    assert places.shape == (0, 3)


def test_numbers_too_large_to_square() -> None:
    """Their squares are infinite in float32, where faiss and torch compute."""
    draw = np.random.default_rng(0)
    features = (draw.normal(size=(60, 4)) * 1e25).astype(np.float32)
    true = np.linalg.norm(features.astype(np.float64) - features[0], axis=1)
    for kind in ("exact", "flat"):
        index = PatchIndex(features, np.ones(60, np.int64), np.arange(60), PreFilterSettings(index=kind))
        with np.errstate(over="ignore", invalid="ignore"):
            places, _ = index.search(features[:1], np.array([1]), 5)
        assert places[0].tolist() == np.argsort(true)[:5].tolist()


@settings(max_examples=50, deadline=None)
@given(classes=st.lists(st.integers(1, 6), max_size=40))
def test_members_of_a_class(classes: list[int]) -> None:
    found = ByClass(np.array(classes, np.int64))
    for number in range(8):
        assert found.places(number).tolist() == [place for place, one in enumerate(classes) if one == number]
