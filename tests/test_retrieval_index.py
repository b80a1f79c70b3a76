"""Pictures that fit narratives: a search that is exact where it says so, in an index of the encoder that reads."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from models.contract import TextFeatures
from models.encoders.trunk import RANDOM, ImageTrunkSettings
from models.trecs.dual_encoder import DualEncoder, DualEncoderConfig
from orchestration.data.batches import CaptionedPictures
from orchestration.data.vector_search import IndexSettings, Kind, ProductIndex
from orchestration.data.word_encoder import describe_part
from orchestration.errors import RequestError, RunError
from orchestration.narratives import retrieval_index
from orchestration.narratives.retrieval_index import (
    ABOUT,
    EncodedPictures,
    Retriever,
    open_dual_encoder,
    retrieval_index_stage,
    write_retrieval_index,
)
from orchestration.stages import ensure, quiet
from tests.tiny_data import tiny_data

DATA, DIM, WIDTH = "d" * 64, 8, 12
CONFIG = DualEncoderConfig(
    text_dim=DIM,
    heads=2,
    hidden_dim=16,
    transformer_dim=16,
    joint_dim=WIDTH,
    fine_tuned=False,
    resolution=32,
    trunk=ImageTrunkSettings(name="efficientnet-lite0", weights=RANDOM, side=32),
)
TEXTS = ("a dog on the grass", "two cats", "the sky above a kite", "so a bird, and a bird")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def read_texts(texts: Sequence[str]) -> TextFeatures:
    """Drawn by each text alone."""
    words = torch.zeros(len(texts), 6, DIM)
    lengths = torch.tensor([min(6, len(text.split())) for text in texts])
    for row, text in enumerate(texts):
        seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
        words[row, : lengths[row]] = torch.randn(int(lengths[row]), DIM, generator=torch.Generator().manual_seed(seed))
    return TextFeatures(words, lengths, words.mean(1))


def part(folder: Path, config: DualEncoderConfig = CONFIG, seed: int = 0) -> Path:
    """The folder of a trained dual encoder."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    nets = DualEncoder().build(config)
    for name in ("text", "image"):
        nets[name].longest.fill_(3.0)  # type: ignore[operator]
        save_file(nets[name].state_dict(), folder / f"{name}.safetensors")
    describe_part(folder, "dual_encoder", config.model_dump(mode="json"))
    return folder


@dataclass(frozen=True)
class Split:
    """Opens drawn pictures."""

    images: int = 24

    def open(self) -> CaptionedPictures:
        return tiny_data(self.images)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return part(tmp_path_factory.mktemp("part") / "dual_encoder")


@pytest.fixture(scope="module")
def index(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    write_retrieval_index(folder, partial(EncodedPictures, Split(), encoder), DATA, IndexSettings(), quiet)
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_index, "BLOCK", 7)
    monkeypatch.setattr(retrieval_index, "BATCH", 4)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def brute_force(
    vectors: NDArray[np.float32], query: NDArray[np.float32], k: int, left_out: int
) -> tuple[list[int], list[float]]:
    products = [
        (-float(vector.astype(np.float64) @ query.astype(np.float64)), row) for row, vector in enumerate(vectors)
    ]
    ranked = sorted(pair for pair in products if pair[1] != left_out)[:k]
    return [row for _, row in ranked], [-product for product, _ in ranked]


@st.composite
def searches(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], int, NDArray[np.int64]]:
    """Small whole numbers, so that many products are equal, or real ones with equal rows among them."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    count, queries, width = draw(st.integers(1, 60)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 3, 20]))
    if draw(st.booleans()):
        vectors, asked = (rng.integers(-2, 3, (rows, width)).astype(float) for rows in (count, queries))
    else:
        vectors = rng.standard_normal((count, width))[rng.integers(0, count, count)]
        asked = rng.standard_normal((queries, width)) * 10.0 ** rng.integers(-3, 4)
    left_out = rng.integers(-1, count, queries)
    return vectors.astype(np.float32), asked.astype(np.float32), draw(st.integers(1, 70)), left_out


class TestSearch:
    @settings(deadline=None, max_examples=80)
    @given(given=searches(), kind=st.sampled_from(["flat", "exact"]))
    def test_it_is_as_going_through_all(
        self, given: tuple[NDArray[np.float32], NDArray[np.float32], int, NDArray[np.int64]], kind: Kind
    ) -> None:
        vectors, asked, k, left_out = given
        places, products = ProductIndex(vectors, IndexSettings(index=kind)).search(asked, k, left_out)
        assert places.shape == products.shape == (len(asked), k)
        for row, query in enumerate(asked):
            wanted, fits = brute_force(vectors, query, k, int(left_out[row]))
            there = len(wanted)
            assert there == min(k, len(vectors) - (left_out[row] >= 0))
            np.testing.assert_allclose(products[row, :there], fits, rtol=1e-9, atol=1e-12)
            if float(np.abs(vectors % 1).sum()) == 0:  # else sums in another order part equal ones
                assert places[row, :there].tolist() == wanted
            equal = np.flatnonzero(np.diff(products[row, :there]) == 0)
            assert (places[row, equal] < places[row, equal + 1]).all()
            assert (places[row, there:] == -1).all() and np.isneginf(products[row, there:]).all()

    @settings(deadline=None, max_examples=40)
    @given(given=searches(), seed=st.integers(0, 1000))
    def test_no_query_depends_on_the_others(
        self, given: tuple[NDArray[np.float32], NDArray[np.float32], int, NDArray[np.int64]], seed: int
    ) -> None:
        vectors, asked, k, left_out = given
        flat, exact = (ProductIndex(vectors, IndexSettings(index=kind)) for kind in ("flat", "exact"))
        places, products = flat.search(asked, k, left_out)
        order = np.random.default_rng(seed).permutation(len(asked))
        permuted = exact.search(asked[order], k, left_out[order])
        np.testing.assert_array_equal(permuted[0], places[order])
        np.testing.assert_array_equal(permuted[1], products[order])
        alone = flat.search(asked[:1], k, left_out[:1])
        np.testing.assert_array_equal(alone[0][0], places[0])
        more = flat.search(asked, k + 3, left_out)
        np.testing.assert_array_equal(more[0][:, :k], places)

    def test_equal_vectors_come_by_their_places(self) -> None:
        vectors = np.ones((5000, 4), np.float32)
        places, _ = ProductIndex(vectors).search(vectors[:2], 6, np.array([-1, 2]))
        assert places.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 3, 4, 5, 6]]

    @pytest.mark.parametrize("kind", ["flat", "exact"])
    def test_products_that_float32_cannot_tell_apart(self, kind: Kind) -> None:
        """They differ by less than its rounding, so that more must be looked at than are first proposed."""
        vectors = 1e4 + np.random.default_rng(0).uniform(-0.05, 0.05, (3000, 64)).astype(np.float32)
        query = np.ones((1, 64), np.float32)
        places, _ = ProductIndex(vectors, IndexSettings(index=kind)).search(query, 5)
        assert places[0].tolist() == brute_force(vectors, query[0], 5, -1)[0]

    @pytest.mark.parametrize("kind", ["ivf", "hnsw"])
    def test_others_find_most_and_never_too_few(self, kind: Kind) -> None:
        rng = np.random.default_rng(0)
        vectors = rng.standard_normal((2000, 16)).astype(np.float32)
        asked = vectors[:50] + 0.1 * rng.standard_normal((50, 16)).astype(np.float32)
        chosen = IndexSettings(index=kind, small=100, probes=2)
        found, _ = ProductIndex(vectors, chosen).search(asked, 10)
        wanted, _ = ProductIndex(vectors).search(asked, 10)
        shared = np.mean([len({*one} & {*other}) / 10 for one, other in zip(found, wanted, strict=True)])
        assert 0.3 < shared < 1 or (kind == "hnsw" and shared > 0.9)
        many, _ = ProductIndex(vectors, chosen).search(asked[:2], 1900)
        assert (many >= 0).all() and all(len(set(row)) == 1900 for row in many.tolist())
        few = ProductIndex(vectors[:90], chosen)
        assert few.search(asked, 5)[0].tolist() == ProductIndex(vectors[:90]).search(asked, 5)[0].tolist()

    def test_refusals(self) -> None:
        index = ProductIndex(np.ones((3, 4), np.float32))
        for k in (0, -1):
            with pytest.raises(RequestError, match=f"{k} neighbours are asked for: choose 1 or more"):
                index.search(np.ones((1, 4), np.float32), k)
        with pytest.raises(RequestError, match="encode both by one encoder"):
            index.search(np.ones((1, 5), np.float32), 1)
        with pytest.raises(RequestError, match="NaN or infinity"):
            index.search(np.full((1, 4), np.nan, np.float32), 1)


class TestIndex:
    def test_pictures_are_embedded_by_the_part(self, encoder: Path, index: Path) -> None:
        stored = np.load(index / "embeddings.npy")
        assert stored.shape == (24, WIDTH + 2) and stored.dtype == np.float32
        data, dual = tiny_data(24), open_dual_encoder(encoder)
        assert np.load(index / "image_ids.npy").tolist() == data.image_ids.tolist()
        images = data.pictures.transform.normalise(data.pixels(np.arange(24)))
        np.testing.assert_allclose(stored, dual.pictures(images), rtol=1e-4, atol=1e-5)
        assert sorted(path.name for path in index.iterdir()) == ["embeddings.npy", "image_ids.npy", ABOUT]

    def test_the_best_pictures_of_each_text(self, encoder: Path, index: Path) -> None:
        retriever, dual = Retriever.open(index, encoder, read_texts), open_dual_encoder(encoder)
        assert len(retriever) == 24
        stored, ids = np.load(index / "embeddings.npy"), np.load(index / "image_ids.npy")
        found = retriever.search(TEXTS, 5)
        for text, pictures in zip(TEXTS, found, strict=True):
            wanted, fits = brute_force(stored, dual.texts(read_texts([text]))[0], 5, -1)
            assert [picture.place for picture in pictures] == wanted
            assert [picture.image_id for picture in pictures] == ids[wanted].tolist()
            assert [picture.score for picture in pictures] == pytest.approx(fits)
        assert retriever.search([], 5) == []
        assert [len(each) for each in retriever.search(TEXTS, 100)] == [24] * 4

    def test_a_text_s_pictures_do_not_depend_on_other_texts(self, encoder: Path, index: Path) -> None:
        retriever = Retriever.open(index, encoder, read_texts)
        together = retriever.search(TEXTS, 4)
        for row in reversed(range(len(TEXTS))):
            (alone,) = retriever.search([TEXTS[row]], 4)
            assert [(each.place, each.score) for each in alone] == [(each.place, each.score) for each in together[row]]

    def test_the_own_picture_is_passed_over(self, encoder: Path, index: Path) -> None:
        retriever = Retriever.open(index, encoder, read_texts)
        (free,) = retriever.search(TEXTS[:1], 4)
        (found,) = retriever.search(TEXTS[:1], 3, [free[1].image_id])
        assert [each.place for each in found] == [free[0].place, free[2].place, free[3].place]
        assert len(retriever.search(TEXTS[:1], 24, [free[1].image_id])[0]) == 23
        assert len(retriever.search(TEXTS[:1], 24, [-5])[0]) == 24  # the split is another one

    def test_only_pictures_that_have_masks(self, encoder: Path, index: Path) -> None:
        ids = np.load(index / "image_ids.npy")
        free = Retriever.open(index, encoder, read_texts).search(TEXTS, 24)
        of = np.array([7, *ids[[20, 3, 11, 4]], 9])
        retriever = Retriever.open(index, encoder, read_texts, of=of)
        for pictures, all_of_them in zip(retriever.search(TEXTS, 10), free, strict=True):
            ranked = [each.image_id for each in all_of_them if each.image_id in of]
            assert [each.image_id for each in pictures] == ranked and len(ranked) == 4
            assert all(of[each.place] == each.image_id for each in pictures)
        with pytest.raises(RequestError, match="none of the 2 pictures that masks are taken from is in"):
            Retriever.open(index, encoder, read_texts, of=np.array([1, 2]))

    @pytest.mark.parametrize("fine_tuned", [False, True])
    @pytest.mark.parametrize("similarity", ["dot", "cosine"])
    def test_the_part_is_opened_as_it_was_saved(self, tmp_path: Path, fine_tuned: bool, similarity: str) -> None:
        """A net of pictures that was trained further is not looked for elsewhere."""
        made = CONFIG.model_copy(update={"fine_tuned": fine_tuned, "similarity": similarity})
        folder = part(tmp_path / "part", made)
        torch.manual_seed(0)
        nets = DualEncoder().build(made)
        if fine_tuned:
            config = made.model_copy(update={"trunk": made.trunk.model_copy(update={"weights": "gone.pth"})})
            describe_part(folder, "dual_encoder", config.model_dump(mode="json"))
        for name in ("text", "image"):
            nets[name].longest.fill_(3.0)  # type: ignore[operator]
        dual, images = open_dual_encoder(folder), torch.rand(3, 3, 32, 32) * 2 - 1
        np.testing.assert_allclose(dual.pictures(images), DualEncoder().embed_images(nets, images).numpy(), rtol=1e-5)
        texts = DualEncoder().embed_captions(nets, read_texts(TEXTS)).numpy()
        np.testing.assert_allclose(dual.texts(read_texts(TEXTS)), texts, rtol=1e-5)

    def test_a_killed_stage_goes_on(self, encoder: Path, tmp_path: Path) -> None:
        def stage() -> object:
            opened = partial(EncodedPictures, Split(), encoder)
            return retrieval_index_stage({"encoder": "a" * 16}, DATA, lambda: opened)

        whole = ensure(stage(), tmp_path / "one")  # type: ignore[arg-type]

        def stop(what: str, count: int, total: int) -> None:
            if count > 7:
                raise RunError("stopped")

        with pytest.raises(RunError):
            ensure(stage(), tmp_path / "two", stop)  # type: ignore[arg-type]
        again: list[int] = []
        said = lambda what, count, total: again.append(count)  # noqa: E731
        resumed = ensure(stage(), tmp_path / "two", said)  # type: ignore[arg-type]
        assert again[0] == 14 and contents(resumed) == contents(whole)

    def test_a_stage_knows_what_it_depends_on(self) -> None:
        def never() -> partial[EncodedPictures]:
            raise AssertionError("asked before it runs")

        keys = {
            retrieval_index_stage({"encoder": "a"}, DATA, never).key,
            retrieval_index_stage({"encoder": "b"}, DATA, never).key,
            retrieval_index_stage({"encoder": "a"}, "e" * 64, never).key,
            retrieval_index_stage({"encoder": "a"}, DATA, never, IndexSettings(index="hnsw")).key,
        }
        assert len(keys) == 4


class TestRefusals:
    def test_an_index_of_another_encoder(self, index: Path, tmp_path: Path) -> None:
        other = part(tmp_path / "other", seed=1)
        message = refused(lambda: Retriever.open(index, other, read_texts))
        assert message.startswith(f"{index} is an index of another encoder: ")
        assert message.endswith("; build the index with this one")
        changed = part(tmp_path / "changed", CONFIG.model_copy(update={"similarity": "cosine"}))
        assert "another encoder" in refused(lambda: Retriever.open(index, changed, read_texts))

    def test_folders_that_hold_no_dual_encoder(self, tmp_path: Path) -> None:
        def message(folder: Path) -> str:
            said = refused(lambda: open_dual_encoder(folder))
            assert said.endswith("): restore that folder, or train it again")
            return said

        assert "No such file" in message(tmp_path / "nothing")
        folder = part(tmp_path / "part")
        (folder / "image.safetensors").unlink()
        assert "image.safetensors is missing" in message(folder)
        described = json.loads((folder / "part.json").read_text())
        (folder / "part.json").write_text(json.dumps(described | {"system": "damsm"}))
        assert "it is of the part damsm" in message(folder)

    def test_weights_that_are_not_the_part_s(self, tmp_path: Path) -> None:
        folder = part(tmp_path / "part")
        weights = load_file(folder / "text.safetensors")
        weights.pop("projection.bias")
        save_file(weights, folder / "text.safetensors")
        message = refused(lambda: open_dual_encoder(folder).texts(read_texts(TEXTS)))
        assert "text.safetensors is not the net that part.json describes" in message
        (folder / "text.safetensors").write_bytes(b"nothing")
        assert "is not the net" in refused(lambda: open_dual_encoder(folder).texts(read_texts(TEXTS)))

    def test_a_pretrained_net_that_is_gone(self, tmp_path: Path) -> None:
        folder = part(tmp_path / "part")
        config = CONFIG.model_copy(update={"trunk": ImageTrunkSettings(name="inception-v3", weights="gone.pth")})
        describe_part(folder, "dual_encoder", config.model_dump(mode="json"))
        assert "gone.pth" in refused(lambda: open_dual_encoder(folder).image_nets)

    def test_text_features_of_another_width(self, encoder: Path, index: Path) -> None:
        def wide(texts: Sequence[str]) -> TextFeatures:
            text = read_texts(texts)
            return TextFeatures(torch.cat([text.words, text.words], 2), text.lengths, text.sentence)

        message = refused(lambda: Retriever.open(index, encoder, wide).search(TEXTS, 2))
        assert "reads text features of 8 numbers, and these have 16: choose the text encoder" in message

    def test_embeddings_that_are_no_numbers(self, encoder: Path, index: Path, tmp_path: Path) -> None:
        folder = part(tmp_path / "part")
        for name in ("text", "image"):
            weights = load_file(folder / f"{name}.safetensors")
            weights["projection.bias"][0] = torch.nan
            save_file(weights, folder / f"{name}.safetensors")
        opened = partial(EncodedPictures, Split(), folder)
        message = refused(lambda: write_retrieval_index(tmp_path, opened, DATA, IndexSettings(), quiet))
        assert "gives NaN or infinity for image 100: train it anew, with a lower learning rate" in message
        retriever = Retriever(
            ProductIndex(np.ones((2, 3), np.float32)), np.arange(2), lambda texts: np.full((1, 3), np.nan)
        )
        assert "a query holds NaN" in refused(lambda: retriever.search(TEXTS[:1], 1))

    def test_other_machines_have_the_same_weights(self, encoder: Path) -> None:
        with pytest.raises(RequestError, match="is not the one that the command was started with"):
            retrieval_index._open_encoding(partial(EncodedPictures, Split(), encoder), "f" * 64)
        made = retrieval_index._open_encoding(
            partial(EncodedPictures, Split(), encoder), open_dual_encoder(encoder).digest
        )
        assert made(range(3, 5))["embeddings"].shape == (2, WIDTH + 2)

    def test_damaged_folders(self, encoder: Path, tmp_path: Path) -> None:
        opened = partial(EncodedPictures, Split(), encoder)
        write_retrieval_index(tmp_path, opened, DATA, IndexSettings(), quiet)
        said = json.loads((tmp_path / ABOUT).read_text())

        def message(**changes: object) -> str:
            (tmp_path / ABOUT).write_text(json.dumps(said | changes))
            return refused(lambda: Retriever.open(tmp_path, encoder, read_texts))

        assert "is of format 3, and this version reads 1" in message(format=3)
        assert "has the shape" in message(dim=3)
        assert "has settings that cannot be" in message(settings={"index": "nothing"})
        (tmp_path / "embeddings.npy").unlink()
        assert "is missing: delete that folder" in message()

    def test_no_pictures(self, tmp_path: Path) -> None:
        class Nobody:
            encoder, image_ids = "e" * 64, np.zeros(0, np.int64)

            def __call__(self, items: range) -> NDArray[np.float32]:
                raise AssertionError

        assert refused(lambda: write_retrieval_index(tmp_path, Nobody, DATA, IndexSettings(), quiet)) == (
            "there are no pictures to retrieve: choose a split that has some"
        )


def refused(call: object) -> str:
    """The message, which need not end in a full stop."""
    with pytest.raises(RequestError) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)
