"""The patch bank: crops by boxes, what is written and read again after a kill, and what is refused."""

import hashlib
import json
import tracemalloc
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
from PIL import Image
from torch import Tensor

from orchestration.data import patches as patches_module
from orchestration.data.patches import (
    ABOUT,
    ARRAYS,
    PatchBank,
    PictureObjects,
    cut_patch,
    open_bank,
    write_bank,
)
from orchestration.errors import RequestError, RunError
from orchestration.mapping import map_blocks, read_block
from orchestration.stages import quiet

DATA, ENCODER = "d" * 64, "e" * 64
NAMES = ("cat", "dog", "sky")
SIDE, SIZE, WIDTH, PICTURES = 16, 4, 3, 50


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class Source:
    """Picture i, image 7 i + 3, is grey of level 5 i; it has i mod 4 objects, and says so in their features."""

    encoder: str = ENCODER
    fail_at: int = 10**9
    width: int = WIDTH
    empty: bool = False
    change: dict[str, Any] = field(default_factory=dict)
    seen: list[int] = field(default_factory=list)

    def objects(self, items: NDArray[np.int64]) -> PictureObjects:
        counts = items * 0 if self.empty else items % 4
        starts = np.concatenate([[0], counts.cumsum()])
        owners = np.repeat(items, counts)
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        low = np.stack([within * 0.25, within * 0.125], 1)
        boxes = np.concatenate([low, low + 0.3], 1).astype(np.float32)
        classes = (owners + within) % 3 + 1
        if "box" in self.change:
            boxes[owners == 9] = self.change["box"]
        if "class" in self.change:
            classes[owners == 9] = self.change["class"]
        return PictureObjects(items * 7 + 3, starts, classes, boxes)

    def features(self, items: NDArray[np.int64]) -> Tensor:
        found = self.objects(items)
        features = torch.from_numpy(found.owners).double()[:, None] + torch.arange(self.width) / 8
        if "feature" in self.change:
            features[found.owners == 9 * 7 + 3] = self.change["feature"]
        return features[: len(features) - self.change.get("rows", 0)]

    def pixels(self, items: NDArray[np.int64]) -> Tensor:
        if items.max() >= self.fail_at:
            raise RunError("stopped")
        self.seen += items.tolist()
        grey = torch.from_numpy(items * 5).to(torch.uint8)
        return grey[:, None, None, None].expand(-1, 3, SIDE, SIDE)


def write(folder: Path, source: Source, **options: Any) -> PatchBank:
    folder.mkdir(exist_ok=True)
    given: dict[str, Any] = {"data": DATA, "classes": NAMES, "size": SIZE, "count": PICTURES, "progress": quiet}
    given |= options
    return write_bank(folder, open_source=lambda: source, **given)


def cut_there(maker: Callable[[], Callable[[range], dict[str, Any]]]) -> dict[str, Any]:
    """What a worker that is made in this process cuts."""
    torch.set_num_threads(1)
    return maker()(range(PICTURES))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches_module, "BLOCK", 10)
    monkeypatch.setattr(patches_module, "CUT_BATCH", 3)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


class TestCrops:
    def picture(self, width: int = 8, height: int = 6) -> tuple[Image.Image, NDArray[np.uint8]]:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        return Image.fromarray(pixels), pixels

    def test_a_whole_picture_of_its_own_size(self) -> None:
        picture, pixels = self.picture(6, 6)
        assert (cut_patch(picture, np.array([0, 0, 1, 1], np.float32), 6) == pixels.transpose(2, 0, 1)).all()

    @pytest.mark.parametrize(
        ("box", "cut"),
        [
            ((0.25, 0.5, 0.75, 1), (2, 3, 6, 6)),
            ((0.26, 0.49, 0.74, 0.99), (2, 2, 6, 6)),
            ((1 / 8 - 1e-7, 1 / 6 + 1e-7, 2 / 8 + 1e-7, 2 / 6 - 1e-7), (1, 1, 2, 2)),
            ((0.3, 0.3, 0.3, 0.3), (2, 1, 3, 2)),
            ((0.25, 0.5, 0.25, 0.5), (2, 3, 3, 4)),
            ((-3, -0.1, 0.2, 9), (0, 0, 2, 6)),
            ((0.9999999, 0.99, 1, 5), (7, 5, 8, 6)),
        ],
        ids=["whole-pixels", "outward", "nearly-whole", "a-point", "a-corner", "beyond", "last"],
    )
    def test_which_pixels_a_box_has(self, box: tuple[float, ...], cut: tuple[int, int, int, int]) -> None:
        picture, pixels = self.picture()
        left, top, right, bottom = cut
        own = Image.fromarray(pixels[top:bottom, left:right]).resize((5, 5), Image.Resampling.BILINEAR)
        found = cut_patch(picture, np.array(box, np.float32), 5)
        assert found.shape == (3, 5, 5) and found.dtype == np.uint8
        assert (found == np.asarray(own).transpose(2, 0, 1)).all()

    @settings(max_examples=60, deadline=None)
    @given(
        edges=st.lists(st.floats(-1, 2, width=32), min_size=4, max_size=4),
        size=st.integers(1, 9),
        level=st.integers(0, 9),
    )
    def test_any_box_gives_a_patch_of_the_picture_or_a_reason(self, edges: list[float], size: int, level: int) -> None:
        x0, x1, y0, y1 = *sorted(edges[:2]), *sorted(edges[2:])
        box = np.array([x0, y0, x1, y1], np.float32)
        picture = Image.new("RGB", (7, 3), (level, 2 * level, 3 * level))
        if max(x0, y0) >= 1 or min(x1, y1) <= 0:
            with pytest.raises(ValueError, match="lies wholly outside the picture"):
                cut_patch(picture, box, size)
        else:
            found = cut_patch(picture, box, size)
            assert found.shape == (3, size, size)
            assert (found == np.array([level, 2 * level, 3 * level])[:, None, None]).all()

    def test_a_large_one_is_averaged(self) -> None:
        """A chessboard of single pixels is grey from afar."""
        board = ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)
        picture = Image.fromarray(np.repeat(board[:, :, None], 3, 2))
        found = cut_patch(picture, np.array([0, 0, 1, 1], np.float32), 4)
        assert abs(found.astype(int) - 127).max() <= 3


class TestWriting:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        bank = write(tmp_path / "bank", Source())
        owned = np.arange(PICTURES) % 4
        assert len(bank) == owned.sum() and bank.starts.tolist() == [0, *owned.cumsum()]
        pictures = np.repeat(np.arange(PICTURES), owned)
        assert bank.image_ids.tolist() == (pictures * 7 + 3).tolist()
        wanted = Source().objects(np.arange(PICTURES))
        assert (bank.boxes == wanted.boxes).all() and (bank.classes == wanted.classes).all()
        assert (bank.features == Source().features(np.arange(PICTURES)).float().numpy()).all()
        assert (bank.crops == (pictures * 5)[:, None, None, None]).all() and bank.crops.shape[1:] == (3, SIZE, SIZE)
        about = bank.about
        assert (about.data, about.encoder, about.size, tuple(about.classes)) == (DATA, ENCODER, SIZE, NAMES)
        assert (about.feature_dim, about.count, about.pictures) == (WIDTH, owned.sum(), PICTURES)
        assert set(contents(bank.folder)) == {ABOUT, *(f"{name}.npy" for name in ARRAYS)}
        assert {f"{name}.npy": digest for name, digest in about.sha256.items()} == {
            name: digest for name, digest in contents(bank.folder).items() if name != ABOUT
        }
        bank.check_of(DATA, ENCODER)

    def test_patches_are_taken(self, tmp_path: Path) -> None:
        bank = write(tmp_path / "bank", Source())
        taken = bank.take(np.array([[5, 0], [5, 70]]))
        assert taken.dtype == torch.uint8 and taken.shape == (2, 2, 3, SIZE, SIZE)
        assert taken[0, 0].equal(torch.from_numpy(np.array(bank.crops[5]))) and taken[1, 0].equal(taken[0, 0])
        assert bank.take(np.zeros((0,), np.int64)).shape == (0, 3, SIZE, SIZE)
        for number in range(5):
            assert bank.of_class(number).tolist() == np.flatnonzero(bank.classes == number).tolist()
        assert len(bank.of_class(4)) == 0

    @pytest.mark.parametrize("place", [-1, 10**6])
    def test_a_patch_beyond_the_bank(self, tmp_path: Path, place: int) -> None:
        bank = write(tmp_path / "bank", Source())
        with pytest.raises(RequestError, match=rf"bank has the patches 0 to 72, and patch {place} is asked for: find"):
            bank.take(np.array([0, place]))

    @pytest.mark.parametrize("fail_at", [0, 25, 49])
    def test_one_that_was_stopped_goes_on(self, tmp_path: Path, fail_at: int) -> None:
        whole = write(tmp_path / "whole", Source())
        with pytest.raises(RunError, match="stopped"):
            write(tmp_path / "stopped", Source(fail_at=fail_at))
        (tmp_path / "stopped" / ".crops.npy-12345678").write_bytes(b"half")
        if fail_at == 25:
            (tmp_path / "stopped" / "blocks" / "block-000001.safetensors").write_bytes(b"half")
        again = Source()
        bank = write(tmp_path / "stopped", again)
        assert contents(bank.folder) == contents(whole.folder) and bank.digest == whole.digest
        expected = {0: range(50), 25: range(10, 50), 49: range(40, 50)}[fail_at]
        assert sorted(again.seen) == list(expected)

    def test_one_that_was_killed_while_joining(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = write(tmp_path / "whole", Source())
        calls: list[Path] = []

        def killed(file: Path) -> Any:
            calls.append(file)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return read_block(file)

        monkeypatch.setattr(patches_module, "read_block", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "stopped", Source())
        assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["blocks"]
        again = Source()
        assert contents(write(tmp_path / "stopped", again).folder) == contents(whole.folder)
        assert not again.seen

    @pytest.mark.parametrize(
        "change",
        [{"data": "f" * 64}, {"classes": ("cat", "dog", "sea")}, {"size": 5}, {"source": Source(encoder="f" * 64)}],
        ids=["data", "classes", "size", "encoder"],
    )
    def test_blocks_of_another_bank_are_not_kept(self, tmp_path: Path, change: dict[str, Any]) -> None:
        with pytest.raises(RunError, match="stopped"):
            write(tmp_path / "stopped", Source(fail_at=49))
        other = change.pop("source", Source())
        write(tmp_path / "stopped", other, **change)
        assert len(other.seen) == PICTURES

    def test_a_block_at_a_time_is_in_memory(self, tmp_path: Path) -> None:
        tracemalloc.start()
        bank = write(tmp_path / "bank", Source(), size=96)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert bank.crops.nbytes > 2_000_000 and peak < 1_300_000

    def test_another_process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The worker is sent there with what opens the source, and the source is not."""
        sent: list[Any] = []

        def note(*given: Any) -> list[Path]:
            sent.append(given[3])
            return map_blocks(*given)

        monkeypatch.setattr(patches_module, "map_blocks", note)
        (tmp_path / "bank").mkdir()
        bank = write_bank(tmp_path / "bank", PICTURES, Source, DATA, NAMES, SIZE, quiet)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            arrays = pool.submit(cut_there, sent[0]).result(timeout=120)
        for name in ("crops", "classes", "image_ids", "boxes", "features"):
            assert np.array_equal(arrays[name], getattr(bank, name))
        with pytest.raises(RequestError, match="put the same weights on every machine"):
            patches_module._open_cutter(partial(Source, "f" * 64), ENCODER, SIZE, 3)

    def test_progress_is_told(self, tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        write(tmp_path / "bank", Source(), progress=lambda *step: told.append(step))
        assert told[0] == ("patches", 0, PICTURES) and told[-1] == ("patches", PICTURES, PICTURES)

    @pytest.mark.parametrize(
        ("source", "options", "sentence"),
        [
            (
                Source(change={"box": [1.0, 0.0, 1.5, 0.5]}),
                {},
                "image 66 has a box [1.0, 0.0, 1.5, 0.5] that lies wholly outside the picture: mend the box, or leave "
                "that object out",
            ),
            (Source(change={"box": [0, -0.5, 1, -0.25]}), {}, "that lies wholly outside the picture: mend the box"),
            (
                Source(change={"box": [0.5, 0, 0.25, 1]}),
                {},
                "image 66 has a box [0.5, 0.0, 0.25, 1.0] that has an x1 or y1",
            ),
            (Source(change={"box": [0.5, 0, np.nan, 1]}), {}, "that holds NaN or infinity: mend the box"),
            (
                Source(change={"class": 4}),
                {},
                "image 66 has an object of class 4, and only the classes 1 to 3 have names: give the names of all",
            ),
            (Source(change={"class": 0}), {}, "image 66 has an object of class 0, and only the classes 1 to 3"),
            (Source(change={"feature": np.nan}), {}, "gives NaN or infinity for an object of image 66: train it anew"),
            (Source(change={"rows": 1}), {}, "gives features of the shape (2, 3) for 3 objects: one row for each"),
            (Source(empty=True), {}, "none of the 50 pictures has an object, so there is nothing to cut"),
            (Source(), {"count": 0}, "none of the 0 pictures has an object"),
            (Source(), {"size": 0}, "patches of 0 px are asked for, and a side has 1 or more: give another size"),
        ],
        ids=["right", "above", "falling", "nan-box", "class-4", "class-0", "nan", "rows", "none", "no-picture", "size"],
    )
    def test_what_cannot_be_cut(self, tmp_path: Path, source: Source, options: dict[str, Any], sentence: str) -> None:
        with pytest.raises(RequestError) as refused:
            write(tmp_path / "bank", source, **options)
        assert sentence in str(refused.value) and "\n" not in str(refused.value)
        assert not (tmp_path / "bank" / ABOUT).exists()

    def test_features_of_another_width(self, tmp_path: Path) -> None:
        """An encoder whose digest does not say all."""
        with pytest.raises(RunError, match="stopped"):
            write(tmp_path / "bank", Source(fail_at=30))
        with pytest.raises(RequestError, match=r"block-000003.* has features of the shape \(5,\) a patch.*\(3,\)"):
            write(tmp_path / "bank", Source(width=5))


class TestOpening:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write(tmp_path / "bank", Source()).folder

    def test_another_bank(self, folder: Path) -> None:
        bank = open_bank(folder)
        bank.check_of()
        with pytest.raises(RequestError) as refused:
            bank.check_of("f" * 64, ENCODER)
        assert str(refused.value) == (
            f"{folder / ABOUT} says that the patches were cut from the data dddddddddddd, and these are ffffffffffff: "
            "build a bank of this data"
        )
        with pytest.raises(RequestError) as refused:
            bank.check_of(DATA, "f" * 64)
        assert str(refused.value) == (
            f"{folder / ABOUT} says that the patches were described by the graph encoder eeeeeeeeeeee, and the one in "
            "use is ffffffffffff: build the bank with this encoder, or use the one that it was built with"
        )

    def test_all_is_in_the_digest(self, folder: Path, tmp_path: Path) -> None:
        digests = {open_bank(folder).digest}
        changes: list[dict[str, Any]] = [{"data": "f" * 64}, {"size": 5}, {"count": 49}]
        for number, options in enumerate(changes):
            digests.add(write(tmp_path / str(number), Source(), **options).digest)
        digests.add(write(tmp_path / "box", Source(change={"box": [0, 0, 1, 0.5]})).digest)
        assert len(digests) == 5

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            ({"format": 2}, [ABOUT, "is of format 2, and this version reads 1"]),
            ({"size": 5}, ["crops.npy has the shape (73, 3, 4, 4)", "(M,3,S,S) = (73, 3, 5, 5)"]),
            ({"feature_dim": 5}, ["features.npy has the shape (73, 3)", "(M,D) = (73, 5)"]),
            ({"count": 72}, ["crops.npy has the shape (73, 3, 4, 4)"]),
            ({"pictures": 49}, ["starts.npy has the shape (51,)", "(N+1) = (50,)"]),
            ({"classes": ["cat", "dog"]}, ["classes.npy has classes outside 1 to 2"]),
            ({"size": 0}, [ABOUT, "has a size, feature_dim, count or pictures below 1"]),
            ({"colour": 1}, [ABOUT, "does not describe a patch bank", "colour"]),
            ({"crops": None}, ["crops.npy is missing"]),
            ({"boxes": np.zeros((73, 4))}, ["boxes.npy holds float64, and float32 is read"]),
            ({"classes_": np.zeros(73, np.int64)}, ["classes.npy has classes outside 1 to 3"]),
            ({"starts": np.arange(51)}, ["starts.npy does not part 73 patches"]),
            ({"starts": np.array([0, 2, 1, *[73] * 48])}, ["starts.npy does not part 73 patches"]),
            ({"features": np.zeros((73, 3), object)}, ["features.npy is cut short or no .npy file"]),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_is_damaged_is_a_sentence(self, folder: Path, change: dict[str, Any], parts: list[str]) -> None:
        about = json.loads((folder / ABOUT).read_text())
        for name, value in change.items():
            if (name := name.rstrip("_")) in ARRAYS and not isinstance(value, list):
                (folder / f"{name}.npy").unlink()
                if value is not None:
                    np.save(folder / f"{name}.npy", value)
            else:
                about[name] = value
        (folder / ABOUT).write_text(json.dumps(about))
        with pytest.raises(RequestError) as refused:
            open_bank(folder)
        sentence = str(refused.value)
        assert str(folder) in sentence and "\n" not in sentence
        assert sentence.endswith("delete that folder and repeat what wrote it"), sentence
        for part in parts:
            assert part in sentence, sentence

    @pytest.mark.parametrize("name", list(ARRAYS))
    def test_a_short_file(self, folder: Path, name: str) -> None:
        file = folder / f"{name}.npy"
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(RequestError, match=rf"{name}\.npy is cut short or no \.npy file"):
            open_bank(folder)

    @pytest.mark.parametrize("content", ["", "[", "{}", '{"format": "one"}', "\xff"])
    def test_a_broken_description(self, folder: Path, content: str) -> None:
        (folder / ABOUT).write_bytes(content.encode("latin-1"))
        with pytest.raises(RequestError, match=r"bank\.json does not describe a patch bank: .*; delete that folder"):
            open_bank(folder)
        (folder / ABOUT).unlink()
        with pytest.raises(RequestError, match=r"bank\.json cannot be read"):
            open_bank(folder)
