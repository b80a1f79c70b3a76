"""Pictures made ready: decoding, resizing, the array on disk and its refusals."""

import hashlib
import json
import os
import shutil
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from orchestration.data import pictures
from orchestration.data.coco import CocoDataset, read_coco
from orchestration.data.pictures import load_picture, open_pictures, prepare_pictures
from orchestration.data.records import ImageRecord
from orchestration.errors import RequestError, RunError


def make_dataset(folder: Path, count: int, digest: str = "d") -> CocoDataset:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        file = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).save(file)
        records.append(ImageRecord(image_id=1000 - number, file=file, width=9, height=6))
    return CocoDataset("coco", "train", 2017, tuple(records), frozenset({"images"}), digest)


def refusal(call: Callable[[], object], kind: type[Exception] = RequestError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and ". " not in message
    return message


def leftovers(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if item.name.startswith(".")]


def test_a_picture_is_squashed_to_the_square_channels_first(tmp_path: Path) -> None:
    left_red = np.zeros((4, 12, 3), dtype=np.uint8)
    left_red[:, :6, 0] = 255
    Image.fromarray(left_red).save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png", 4)
    assert picture.shape == (3, 4, 4) and picture.dtype == np.uint8 and picture.flags.c_contiguous
    # Bilinear with antialiasing: the support of an outer column stays inside its own half.
    assert (picture[0, :, 0] == 255).all() and (picture[0, :, 3] == 0).all()
    assert (picture[1:] == 0).all()


def test_bilinear_resizing_matches_a_direct_sum(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 256, (5, 8), dtype=np.uint8)
    Image.fromarray(np.stack([values] * 3, axis=-1)).save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png", 4)

    def weights(size: int, wanted: int) -> NDArray[np.float64]:  # triangle filter, as wide as the shrinking
        scale = max(size / wanted, 1.0)
        centres = (np.arange(wanted) + 0.5) * size / wanted
        distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / scale
        rows = np.clip(1 - distance, 0, None)
        return np.asarray(rows / rows.sum(axis=1, keepdims=True), dtype=np.float64)

    expected = weights(5, 4) @ values @ weights(8, 4).T
    assert np.abs(picture[0] - expected).max() <= 1.5  # two roundings to 8 bits


def test_grey_palette_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "LA", "1"):
        Image.new(mode, (5, 5)).save(tmp_path / f"{mode}.png")
        assert load_picture(tmp_path / f"{mode}.png", 2).shape == (3, 2, 2)


def test_the_exif_orientation_is_ignored(tmp_path: Path) -> None:
    halves = np.zeros((8, 8, 3), dtype=np.uint8)
    halves[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(halves).save(tmp_path / "a.jpg", quality=95, exif=exif)
    picture = load_picture(tmp_path / "a.jpg", 8)
    assert picture[:, :, 1].min() > 200 and picture[:, :, 6].max() < 50


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_does_not_decode_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    message = refusal(lambda: load_picture(tmp_path / "bad.jpg", 8))
    assert str(tmp_path / "bad.jpg") in message and "does not decode" in message


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_cut_anywhere_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    for cut in range(0, len(content) - 20, 37):
        (tmp_path / f"cut.{suffix}").write_bytes(content[:cut])
        assert f"cut.{suffix}" in refusal(lambda: load_picture(tmp_path / f"cut.{suffix}", 8))


def test_prepared_pictures_are_those_of_the_records(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "images", 5)
    heard: list[tuple[int, int]] = []
    folder = prepare_pictures(dataset, 8, tmp_path / "below" / "ready", lambda *step: heard.append(step))
    ready = open_pictures(folder)
    assert ready.pixels.shape == (5, 3, 8, 8) and ready.pixels.dtype == np.uint8
    assert isinstance(ready.pixels, np.memmap)
    assert ready.image_ids.tolist() == [1000, 999, 998, 997, 996] and ready.image_ids.dtype == np.int64
    for row, record in zip(ready.pixels, dataset.records, strict=True):
        np.testing.assert_array_equal(row, load_picture(record.file, 8))
    with pytest.raises(ValueError, match="read-only"):
        ready.pixels[0] = 0
    assert heard == [(done, 5) for done in range(1, 6)]
    header = json.loads((folder / "pictures.json").read_text())
    assert header["sha256"] == hashlib.sha256((folder / "pictures.npy").read_bytes()).hexdigest()
    assert (header["resolution"], header["dataset_digest"], header["resize"]) == (8, "d", "squash-bilinear-pillow")
    assert leftovers(folder.parent) == []


def test_the_pool_keeps_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tmp_path / "images", 23)
    alone = open_pictures(prepare_pictures(dataset, 6, tmp_path / "alone"))
    monkeypatch.setattr(pictures, "_POOL_FROM", 4)
    monkeypatch.setattr(pictures, "_CHUNK", 5)
    pooled = open_pictures(prepare_pictures(dataset, 6, tmp_path / "pooled"))
    np.testing.assert_array_equal(alone.pixels, pooled.pixels)


def test_ready_pictures_are_left_and_others_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "ready"
    dataset = make_dataset(tmp_path / "images", 3)
    prepare_pictures(dataset, 8, folder)
    before = (folder / "pictures.npy").stat().st_ino
    prepare_pictures(dataset, 8, folder)
    assert (folder / "pictures.npy").stat().st_ino == before

    prepare_pictures(dataset, 4, folder)
    assert open_pictures(folder).pixels.shape == (3, 3, 4, 4)
    (folder / "pictures.npy").write_bytes(b"damaged")
    prepare_pictures(dataset, 4, folder)
    assert open_pictures(folder).pixels.shape == (3, 3, 4, 4)
    prepare_pictures(make_dataset(tmp_path / "images", 3, digest="e"), 4, folder)
    assert json.loads((folder / "pictures.json").read_text())["dataset_digest"] == "e"
    prepare_pictures(make_dataset(tmp_path / "images", 2, digest="e"), 4, folder)
    assert open_pictures(folder).image_ids.tolist() == [1000, 999]
    assert leftovers(tmp_path) == []


def test_an_empty_folder_is_filled_and_one_with_other_files_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "images", 2)
    (tmp_path / "empty").mkdir()
    assert len(open_pictures(prepare_pictures(dataset, 4, tmp_path / "empty")).image_ids) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    assert "'thesis.txt' first" in refusal(lambda: prepare_pictures(dataset, 4, tmp_path / "full"))
    assert (tmp_path / "full/thesis.txt").read_text() == "mine"
    assert "is a file" in refusal(lambda: prepare_pictures(dataset, 4, tmp_path / "full/thesis.txt"))


def test_a_broken_picture_leaves_nothing_behind(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "images", 3)
    dataset.records[1].file.write_bytes(b"broken")
    assert "1.png" in refusal(lambda: prepare_pictures(dataset, 8, tmp_path / "ready"))
    assert not (tmp_path / "ready").exists() and leftovers(tmp_path) == []


def test_what_a_killed_run_left_is_cleared_and_a_living_one_spared(tmp_path: Path) -> None:
    for name, age in (("a" * 32, 7200), ("b" * 32, 60)):
        (tmp_path / f".ready-{name}").mkdir()
        (tmp_path / f".ready-{name}/pictures.npy").write_bytes(b"half")
        then = time.time() - age
        os.utime(tmp_path / f".ready-{name}/pictures.npy", (then, then))
    prepare_pictures(make_dataset(tmp_path / "images", 1), 4, tmp_path / "ready")
    assert leftovers(tmp_path) == [f".ready-{'b' * 32}"]


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tmp_path / "images", 3)
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 423, 577))
    message = refusal(lambda: prepare_pictures(dataset, 8, tmp_path / "ready"), RunError)
    assert f"{3 * 3 * 8 * 8 + 300} bytes" in message and "577 free" in message
    assert not (tmp_path / "ready").exists() and leftovers(tmp_path) == []


def test_a_disk_that_fills_up_meanwhile_is_a_run_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tmp_path / "images", 3)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refusal(lambda: prepare_pictures(dataset, 8, tmp_path / "ready"), RunError)
    assert "No space left on device" in message and "run the same command again" in message
    assert not (tmp_path / "ready").exists() and leftovers(tmp_path) == []


def test_no_picture_and_no_size_are_refused(tmp_path: Path) -> None:
    assert "no picture" in refusal(lambda: prepare_pictures(make_dataset(tmp_path / "i", 0), 8, tmp_path / "r"))
    assert "resolution 0" in refusal(lambda: prepare_pictures(make_dataset(tmp_path / "i", 1), 0, tmp_path / "r"))


def _damage_header(folder: Path, **changes: object) -> None:
    header = json.loads((folder / "pictures.json").read_text())
    (folder / "pictures.json").write_text(json.dumps(header | changes))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "pictures.json").unlink(), "holds no prepared pictures"),
        (lambda f: (f / "pictures.json").write_text('{"resolution": '), "not whole JSON"),
        (lambda f: _damage_header(f, resolution="8"), "resolution: input should be"),
        (lambda f: _damage_header(f, resolution=16), "is not the uint8 array of shape (3, 3, 16, 16)"),
        (lambda f: _damage_header(f, image_ids=[1, 2]), "is not the uint8 array of shape (2, 3, 8, 8)"),
        (lambda f: (f / "pictures.npy").unlink(), "missing or cut short"),
        (lambda f: (f / "pictures.npy").write_bytes(b""), "missing or cut short"),
        (lambda f: (f / "pictures.npy").write_bytes((f / "pictures.npy").read_bytes()[:-1]), "cut short"),
        (lambda f: (f / "pictures.npy").write_bytes((f / "pictures.npy").read_bytes()[:40]), "cut short"),
        (lambda f: (f / "pictures.npy").write_bytes((f / "pictures.npy").read_bytes() + b"x"), "is not the uint8"),
        (lambda f: np.save(f / "pictures.npy", np.zeros((3, 3, 8, 8), np.float32)), "is not the uint8 array"),
        (lambda f: np.save(f / "pictures.npy", np.array([{}], dtype=object)), "missing or cut short"),
    ],
)
def test_damaged_pictures_are_refused(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    folder = prepare_pictures(make_dataset(tmp_path / "images", 3), 8, tmp_path / "ready")
    damage(folder)
    assert said in refusal(lambda: open_pictures(folder))


def test_real_photographs_are_prepared(shared_data: Path, tmp_path: Path) -> None:
    dataset = read_coco(shared_data / "coco-mini", "train")
    ready = open_pictures(prepare_pictures(dataset, 64, tmp_path / "ready"))
    assert ready.pixels.shape == (38, 3, 64, 64)
    assert ready.image_ids.tolist() == [record.image_id for record in dataset.records]
    assert ready.pixels.std(axis=(1, 2, 3)).min() > 5  # photographs, not flat fields
