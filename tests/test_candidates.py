"""The candidates of a split's objects: which they are, what is written and read again after a kill, what is refused."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from orchestration.data import candidates as candidates_module
from orchestration.data.candidates import (
    ABOUT,
    ARRAYS,
    StoredCandidates,
    open_candidates,
    write_candidates,
)
from orchestration.data.patch_search import PreFilterSettings
from orchestration.data.patches import PatchBank, PictureObjects, write_bank
from orchestration.errors import RequestError, RunError
from orchestration.mapping import map_blocks
from orchestration.stages import quiet

DATA, OTHER, ENCODER = "d" * 64, "b" * 64, "e" * 64
PICTURES, K, WIDTH = 40, 4, 5
NAMES = ("many", "some", "few", "lonely", "never")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class Source:
    """Pictures of 0 to 4 objects with drawn features: 3 of class 3, and one of class 4, or in another split of 5."""

    seed: int = 0
    encoder: str = ENCODER
    fail_at: int = 10**9
    width: int = WIDTH
    first_id: int = 100
    most: int = 4
    seen: list[int] = field(default_factory=list)

    def objects(self, items: NDArray[np.int64]) -> PictureObjects:
        drawn = [np.random.default_rng((self.seed, item)) for item in items]
        counts = items % (self.most + 1)
        classes = [draw.integers(1, 3, count) for draw, count in zip(drawn, counts, strict=True)]
        for place, item in enumerate(items.tolist()):
            if item in (6, 11, 16) and self.most == 4:
                classes[place][0] = 3
            if item == 21 and self.most == 4:
                classes[place][0] = 4 if self.seed == 0 else 5
        starts = np.concatenate([[0], counts.cumsum()])
        boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (starts[-1], 1))
        return PictureObjects(items + self.first_id, starts, np.concatenate([*classes, np.zeros(0, int)]), boxes)

    def features(self, items: NDArray[np.int64]) -> Tensor:
        if items.max() >= self.fail_at:
            raise RunError("stopped")
        self.seen += items.tolist()
        rows = [
            np.random.default_rng((self.seed, item, 1)).normal(size=(item % (self.most + 1), self.width))
            for item in items
        ]
        return torch.from_numpy(np.concatenate(rows))

    def pixels(self, items: NDArray[np.int64]) -> Tensor:
        return torch.zeros(len(items), 3, 8, 8, dtype=torch.uint8)


def find_there(maker: Callable[[], Callable[[range], dict[str, Any]]]) -> dict[str, Any]:
    """What a worker that is made in this process finds."""
    torch.set_num_threads(1)
    return maker()(range(PICTURES))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates_module, "BLOCK", 9)


@pytest.fixture
def bank(tmp_path: Path) -> PatchBank:
    (tmp_path / "bank").mkdir()
    return write_bank(tmp_path / "bank", PICTURES, Source, DATA, NAMES, 2, quiet)


def write(
    folder: Path, bank: PatchBank, source: Source, own: bool = True, count: int = PICTURES, **chosen: Any
) -> tuple[StoredCandidates, dict[str, float]]:
    folder.mkdir(exist_ok=True)
    settings = PreFilterSettings(**{"k": K, **chosen})
    data = DATA if own else OTHER
    figures = write_candidates(folder, count, lambda: source, data, bank.folder, own, settings, quiet)
    return open_candidates(folder), figures


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


class TestFinding:
    def test_each_object_has_the_nearest_of_its_class(self, tmp_path: Path, bank: PatchBank) -> None:
        found, figures = write(tmp_path / "made", bank, Source())
        items = np.arange(PICTURES)
        objects, features = Source().objects(items), Source().features(items).float().numpy()
        assert found.image_ids.tolist() == (items + 100).tolist() and found.starts.tolist() == objects.starts.tolist()
        for row, (owner, number) in enumerate(zip(objects.owners, objects.classes, strict=True)):
            fit = bank.of_class(number)
            fit = fit[bank.image_ids[fit] != owner]
            apart = np.linalg.norm(bank.features[fit].astype(np.float64) - features[row], axis=1)
            order = np.argsort(apart, kind="stable")[:K]
            assert found.counts[row] == len(order)
            assert found.places[row, : len(order)].tolist() == fit[order].tolist()
            assert np.allclose(found.distances[row, : len(order)], apart[order], rtol=1e-6)
            assert (found.places[row, len(order) :] == -1).all() and np.isinf(found.distances[row, len(order) :]).all()
        few = objects.classes == 3
        assert found.counts[few].tolist() == [2, 2, 2] and found.counts[objects.classes == 4].tolist() == [0]
        assert figures == {
            "objects": len(few),
            "objects_without_candidates": 1,
            "objects_with_fewer_candidates": 4,
            "candidates_per_object": K,
            "patches": len(bank),
            "recall": 1,
            "recall_queries": len(bank),
        }

    def test_another_split_may_have_any_patch(self, tmp_path: Path, bank: PatchBank) -> None:
        """Its image ids are the bank's, and its pictures others."""
        found, figures = write(tmp_path / "made", bank, Source(seed=1), own=False)
        objects = Source(seed=1).objects(np.arange(PICTURES))
        assert found.counts[objects.classes == 3].tolist() == [3, 3, 3]
        assert found.counts[objects.classes == 5].tolist() == [0] and figures["objects_without_candidates"] == 1
        shared = bank.image_ids[found.places.clip(0)] == objects.owners[:, None]
        assert (shared & (found.places >= 0)).any()

    def test_what_is_said_of_it(self, tmp_path: Path, bank: PatchBank, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []
        monkeypatch.setattr(candidates_module, "RECALL_QUERIES", 70)

        def judged(*given: Any) -> float:
            asked.extend(given)
            return 0.5

        monkeypatch.setattr(candidates_module, "recall", judged)
        found, figures = write(tmp_path / "made", bank, Source(), index="ivf", probes=1)
        about = found.about
        assert (about.data, about.bank, about.patches, about.own) == (DATA, bank.digest, len(bank), True)
        assert about.settings["index"] == "ivf" and about.settings["probes"] == 1 and about.k == K
        assert asked[0].settings.index == "ivf" and asked[1:] == [70, K, 0]
        assert (about.device, about.recall, about.recall_queries) == ("cpu", 0.5, 70)
        assert (figures["recall"], figures["recall_queries"]) == (0.5, 70)
        assert {path.name for path in found.folder.iterdir()} == {ABOUT, *(f"{name}.npy" for name in ARRAYS)}
        found.check_of(DATA, bank)

    @pytest.mark.parametrize("fail_at", [0, 20, 39])
    def test_one_that_was_stopped_goes_on(self, tmp_path: Path, bank: PatchBank, fail_at: int) -> None:
        whole, _ = write(tmp_path / "whole", bank, Source())
        with pytest.raises(RunError, match="stopped"):
            write(tmp_path / "stopped", bank, Source(fail_at=fail_at))
        (tmp_path / "stopped" / ".places.npy-12345678").write_bytes(b"half")
        again = Source()
        found, _ = write(tmp_path / "stopped", bank, again)
        assert contents(found.folder) == contents(whole.folder)
        assert again.seen == list(range(fail_at // 9 * 9, PICTURES))

    def test_blocks_of_other_settings_are_not_kept(self, tmp_path: Path, bank: PatchBank) -> None:
        with pytest.raises(RunError, match="stopped"):
            write(tmp_path / "stopped", bank, Source(fail_at=39))
        again = Source()
        write(tmp_path / "stopped", bank, again, k=3)
        assert again.seen == list(range(PICTURES))

    def test_a_split_without_objects(self, tmp_path: Path, bank: PatchBank) -> None:
        found, figures = write(tmp_path / "made", bank, Source(most=0), own=False)
        assert figures["objects"] == 0 and found.take(np.array([1]), 2)[1].tolist() == [[0, 0]]

    def test_another_process(self, tmp_path: Path, bank: PatchBank, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[Any] = []

        def note(*given: Any) -> list[Path]:
            sent.append(given[3])
            return map_blocks(*given)

        monkeypatch.setattr(candidates_module, "map_blocks", note)
        settings = PreFilterSettings(k=K)
        write_candidates(tmp_path / "made", PICTURES, Source, DATA, bank.folder, True, settings, quiet)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            arrays = pool.submit(find_there, sent[0]).result(timeout=120)
        found = open_candidates(tmp_path / "made")
        for name in ("places", "distances", "counts", "image_ids"):
            assert np.array_equal(arrays[name], getattr(found, name))
        with pytest.raises(RequestError, match="put the same weights on every machine"):
            candidates_module._open_seeking(partial(Source, encoder="f" * 64), ENCODER, bank.folder, True, settings)


class TestTaking:
    def test_a_batch(self, tmp_path: Path, bank: PatchBank) -> None:
        found, _ = write(tmp_path / "made", bank, Source())
        items = np.array([21, 0, 4])
        places, counts = found.take(items, 6)
        assert places.shape == (3, 6, K) and places.dtype == counts.dtype == torch.int64
        for row, item in enumerate(items):
            own = slice(found.starts[item], found.starts[item + 1])
            owned = own.stop - own.start
            assert counts[row].tolist() == [*found.counts[own], *[0] * (6 - owned)]
            assert (places[row, :owned].numpy() == found.places[own].clip(0)).all() and not places[row, owned:].any()
        assert counts[0, 0] == 0 and not places[0, 0].any() and not counts[1].any()
        bank.take(places.numpy())

    @settings(max_examples=25, deadline=None)
    @given(chosen=st.lists(st.integers(0, PICTURES - 1), min_size=1, max_size=9), k=st.integers(1, K))
    def test_fewer_are_the_nearest(self, chosen: list[int], k: int, tmp_path_factory: pytest.TempPathFactory) -> None:
        found = self.made(tmp_path_factory)
        (places, counts), (fewer, fewer_counts) = found.take(np.array(chosen), 4), found.take(np.array(chosen), 4, k)
        assert fewer.equal(places[:, :, :k]) and fewer_counts.equal(counts.clamp(max=k))

    kept: list[StoredCandidates] = []  # noqa: RUF012

    def made(self, folders: pytest.TempPathFactory) -> StoredCandidates:
        if not self.kept:
            folder = folders.mktemp("kept")
            (folder / "bank").mkdir()
            bank = write_bank(folder / "bank", PICTURES, Source, DATA, NAMES, 2, quiet)
            self.kept.append(write(folder / "made", bank, Source())[0])
        return self.kept[0]

    @pytest.mark.parametrize("k", [0, -1, K + 1])
    def test_more_than_there_are(self, tmp_path: Path, bank: PatchBank, k: int) -> None:
        found, _ = write(tmp_path / "made", bank, Source())
        with pytest.raises(
            RequestError, match=rf"^{k} candidates of an object are asked for, and .* up to 4: choose 1"
        ):
            found.take(np.array([0]), 4, k)
        with pytest.raises(RequestError, match=r"^image 104 has candidates for 4 objects, and 3 are asked for: find"):
            found.take(np.array([3, 4]), 3)


class TestRefused:
    def test_a_bank_of_another_encoder(self, tmp_path: Path, bank: PatchBank) -> None:
        for own in (True, False):
            with pytest.raises(
                RequestError, match="described by the graph encoder eeeeeeeeeeee, and the one in use is f"
            ):
                write(tmp_path / "made", bank, Source(encoder="f" * 64), own)

    def test_a_bank_of_other_data(self, tmp_path: Path, bank: PatchBank) -> None:
        with pytest.raises(RequestError, match="were cut from the data dddddddddddd, and these are bbbbbbbbbbbb"):
            write_candidates(tmp_path, PICTURES, Source, OTHER, bank.folder, True, PreFilterSettings(), quiet)

    def test_features_of_another_width(self, tmp_path: Path, bank: PatchBank) -> None:
        with pytest.raises(
            RequestError, match=r"features of the shape \(\d+, 6\) are looked for .* features of 5 numbers"
        ):
            write(tmp_path / "made", bank, Source(width=6))

    def test_no_picture(self, tmp_path: Path, bank: PatchBank) -> None:
        with pytest.raises(RequestError, match="there are no pictures to find candidates for"):
            write(tmp_path / "made", bank, Source(), count=0)

    def test_no_bank(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"bank\.json cannot be read"):
            write_candidates(tmp_path, 1, Source, DATA, tmp_path / "none", True, PreFilterSettings(), quiet)

    def test_candidates_of_others(self, tmp_path: Path, bank: PatchBank) -> None:
        found, _ = write(tmp_path / "made", bank, Source())
        with pytest.raises(RequestError) as refused:
            found.check_of(OTHER, bank)
        assert str(refused.value) == (
            f"{found.folder / ABOUT} says that the candidates are those of the data dddddddddddd, and these are "
            "bbbbbbbbbbbb: find candidates for this data"
        )
        (tmp_path / "other").mkdir()
        other = write_bank(tmp_path / "other", PICTURES, partial(Source, seed=1), DATA, NAMES, 2, quiet)
        with pytest.raises(RequestError) as refused:
            found.check_of(DATA, other)
        assert str(refused.value) == (
            f"{found.folder / ABOUT} says that the candidates are in the patch bank {bank.digest[:12]}, and "
            f"{other.folder} is {other.digest[:12]}: find candidates in this bank"
        )

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            ({"format": 2}, [ABOUT, "is of format 2, and this version reads 1"]),
            ({"pictures": 39}, ["image_ids.npy has the shape (40,)", "(N) = (39,)"]),
            ({"objects": 9}, ["places.npy has the shape (80, 4)", "(O,k) = (9, 4)"]),
            ({"settings": {"k": 3}}, ["places.npy has the shape (80, 4)", "(80, 3)"]),
            ({"settings": {"k": 0}}, [ABOUT, "has settings that cannot be"]),
            ({"settings": {"colour": 0}}, [ABOUT, "has settings that cannot be"]),
            ({"patches": 3}, ["places.npy has places outside the bank's 0 to 2, or not as many as counts.npy says"]),
            ({"colour": 1}, [ABOUT, "does not describe candidates", "colour"]),
            ({"counts": np.full(80, 5, np.int32)}, ["counts.npy has counts outside 0 to 4"]),
            ({"counts": np.full(80, 0, np.int32)}, ["places.npy has places outside", "or not as many as counts.npy"]),
            ({"counts": np.zeros(80, np.int64)}, ["counts.npy holds int64, and int32 is read"]),
            ({"starts": np.arange(41)}, ["starts.npy does not part 80 objects"]),
            ({"distances": None}, ["distances.npy is missing"]),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_is_damaged_is_a_sentence(
        self, tmp_path: Path, bank: PatchBank, change: dict[str, Any], parts: list[str]
    ) -> None:
        folder = write(tmp_path / "made", bank, Source())[0].folder
        about = json.loads((folder / ABOUT).read_text())
        for name, value in change.items():
            if name in ARRAYS:
                (folder / f"{name}.npy").unlink()
                if value is not None:
                    np.save(folder / f"{name}.npy", value)
            else:
                about[name] = value
        (folder / ABOUT).write_text(json.dumps(about))
        with pytest.raises(RequestError) as refused:
            open_candidates(folder)
        sentence = str(refused.value)
        assert str(folder) in sentence and "\n" not in sentence
        assert sentence.endswith("delete that folder and repeat what wrote it"), sentence
        for part in parts:
            assert part in sentence, sentence

    @pytest.mark.parametrize("name", list(ARRAYS))
    def test_a_short_file(self, tmp_path: Path, bank: PatchBank, name: str) -> None:
        folder = write(tmp_path / "made", bank, Source())[0].folder
        file = folder / f"{name}.npy"
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(RequestError, match=rf"{name}\.npy is cut short or no \.npy file"):
            open_candidates(folder)
