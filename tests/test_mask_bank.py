"""Masks and maps of the training pictures: as they were drawn, whatever killed the writing, in any process."""

import hashlib
import json
from dataclasses import replace
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.data.label_maps import LabelReader
from orchestration.data.mask_choice import decoded, picture_masks
from orchestration.data.records import Dataset
from orchestration.data.sources import open_source
from orchestration.errors import RequestError, RunError
from orchestration.narratives import mask_bank
from orchestration.narratives.mask_bank import ABOUT, MaskBank, mask_bank_stage, write_mask_bank
from orchestration.narratives.record_blocks import RecordBlocks, with_labels, write_records
from orchestration.narratives.runs import MOST, from_runs, to_runs
from orchestration.stages import ensure, quiet
from tests.composing_support import scenes
from tests.data_files import refusal
from tests.test_label_maps import CAT, DOG, GRASS, SKY, dataset_of, quarters, region, stuffed

S = 24


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_bank, "BLOCK", 5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return scenes(tmp_path_factory.mktemp("scenes"), 18, 32)


def written(folder: Path, dataset: Dataset, size: int = S, workers: int | None = 1) -> MaskBank:
    folder.mkdir(exist_ok=True)
    return write_mask_bank(folder, dataset, size, None, quiet, workers)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@settings(deadline=None, max_examples=80)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 300)),
    most=st.sampled_from([0, 1, 5, MOST]),
    seed=st.integers(0, 10_000),
)
def test_runs_give_the_layers_back(shape: tuple[int, int, int], most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = rng.integers(0, most + 1, shape).repeat(rng.integers(1, 5), 2)[:, :, : shape[2]]
    numbers, lengths = to_runs(*layers)
    assert numbers.dtype == lengths.dtype == np.uint16 and numbers.shape == (shape[0], len(lengths))
    for layer, own in zip(layers, numbers, strict=True):
        np.testing.assert_array_equal(from_runs(own, lengths, *shape[1:]), layer)
    changes = (layers[:, :, 1:] != layers[:, :, :-1]).any(0).sum()
    assert len(lengths) == shape[1] + changes


def test_numbers_that_runs_cannot_hold() -> None:
    for strange in (-1, MOST + 1):
        with pytest.raises(ValueError, match="outside 0 to 65535"):
            to_runs(np.array([[0, strange]]))
    with pytest.raises(ValueError):
        from_runs(np.array([1], np.uint16), np.array([3], np.uint16), 2, 2)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 7), size=st.sampled_from([9, 16, 31]))
def test_masks_and_maps_are_those_of_the_pictures(seed: int, count: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    records = []
    for number in range(count):
        height, width = rng.integers(5, 40, 2).tolist()
        labels = rng.choice([CAT, DOG, GRASS, SKY, 255], (height, width)).astype(np.uint8)
        labels = labels.repeat(rng.integers(1, 9), 1)[:, :width]
        cats = labels == CAT
        halves = [cats & (np.arange(width) < width // 2), cats & (np.arange(width) >= width // 2)]
        things = [region("cat", half) for half in halves if half.any()]
        records.append(stuffed(labels, *things, image_id=50 + 3 * number))
    dataset = dataset_of(*records)
    reader = LabelReader(dataset)
    with TemporaryDirectory() as folder:
        bank = written(Path(folder), dataset, size)
        assert bank.image_ids.tolist() == [record.image_id for record in records] and len(bank) == count
        assert bank.size == size and bank.classes == reader.classes and bank.stuff == reader.stuff
        shown = set()
        for place, record in enumerate(records):
            drawn, instances = reader.read(record, None, (size, size))
            wanted, found = picture_masks(drawn, instances, range(reader.dont_care)), bank.masks(place)
            assert found.codes == wanted.codes
            assert found.labels.tolist() == wanted.labels.tolist() == bank.labels_of(place).tolist()
            assert found.instances.tolist() == wanted.instances.tolist()
            for code, label, instance in zip(found.codes, found.labels, found.instances, strict=True):
                np.testing.assert_array_equal(decoded(code), (drawn == label) & (instances == instance))
            segmentation = bank.segmentation(place)
            assert segmentation.dtype == np.int64
            np.testing.assert_array_equal(segmentation, drawn)
            shown |= set(np.unique(drawn).tolist())
        assert [label for label in range(reader.dont_care) if bank.has(label)] == sorted(shown - {reader.dont_care})


def test_generated_scenes(data: Dataset, tmp_path: Path) -> None:
    bank = written(tmp_path / "made", data)
    assert len(bank) == 18 and isinstance(bank.codes, np.memmap) and isinstance(bank.run_labels, np.memmap)
    for place in range(len(bank)):
        kinds = bank.masks(place)
        things = ~np.array(bank.stuff)[kinds.labels]
        assert ((kinds.instances > 0) == things).all() and not things.all()
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted(
        [ABOUT, *(f"{name}.npy" for name in mask_bank.ARRAYS)]
    )


def test_a_killed_stage_goes_on(data: Dataset, tmp_path: Path) -> None:
    whole = ensure(mask_bank_stage(data, S), tmp_path / "one")
    done: list[int] = []

    def stop(what: str, count: int, total: int) -> None:
        done.append(count)
        if count > 9:
            raise RunError("stopped")

    with pytest.raises(RunError):
        ensure(mask_bank_stage(data, S), tmp_path / "two", stop)
    again: list[int] = []
    resumed = ensure(mask_bank_stage(data, S), tmp_path / "two", lambda what, count, total: again.append(count))
    assert done[:3] == [0, 5, 10] and again[0] == 10
    assert contents(resumed) == contents(whole)


def test_other_processes_read_the_same_records(data: Dataset, tmp_path: Path) -> None:
    file, reader = tmp_path / "records.arrow", LabelReader(data)
    write_records(data, 5, file, with_labels)
    before = file.stat().st_mtime_ns
    write_records(data, 5, file, with_labels)
    assert file.stat().st_mtime_ns == before
    make = partial(mask_bank._Masking, RecordBlocks(file, 5), reader, S)
    there = ForkingPickler.loads(ForkingPickler.dumps(make))()  # as it crosses processes
    here = mask_bank._Masking(lambda items: list(data.records[items.start : items.stop]), reader, S)
    for items in (range(5, 10), range(15, 18)):
        one, other = here(items), there(items)
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert contents(written(tmp_path / "a", data).folder) == contents(written(tmp_path / "b", data, workers=2).folder)


def test_a_stage_knows_what_it_depends_on(data: Dataset) -> None:
    stages = [
        mask_bank_stage(data, 24),
        mask_bank_stage(data, 32),
        mask_bank_stage(data, 24, ["grass"]),
        mask_bank_stage(replace(data, digest="e" * 64), 24),
        mask_bank_stage(replace(data, split="val"), 24),
    ]
    assert len({stage.key for stage in stages}) == len(stages)
    assert mask_bank_stage(data, 24, None, lambda: 4).key == stages[0].key


def test_only_the_classes_that_count(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    bank = write_mask_bank(tmp_path / "made", data, S, ["grass", "nothing"], quiet)
    assert bank.classes == ("grass", "nothing") and set(bank.labels.tolist()) == {0}
    assert bank.has(0) and not bank.has(1) and set(np.unique(bank.segmentation(0)).tolist()) <= {0, 2}


class TestRefusals:
    def test_nothing_to_keep(self, data: Dataset, tmp_path: Path) -> None:
        assert refusal(lambda: write_mask_bank(tmp_path, data, S, ["nothing"], quiet)) == (
            "no picture of scenes (train) shows one of the 1 classes; name splits of one data set."
        )
        with pytest.raises(RequestError, match="has no pictures to take masks from: choose another split"):
            write_mask_bank(tmp_path, replace(data, records=()), S, None, quiet)
        plain = dataset_of(replace(stuffed(quarters(8, 8)), stuff_map=None))
        assert refusal(lambda: write_mask_bank(tmp_path, plain, S, None, quiet)).startswith("image 7 has no labels")

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("labels", "labels outside its 20 classes"),
            ("mask_starts", " masks: "),
            ("code_starts", " bytes of codes: "),
            ("run_starts", " runs: "),
        ],
    )
    def test_damaged_arrays(self, data: Dataset, tmp_path: Path, name: str, said: str) -> None:
        folder = written(tmp_path / "made", data).folder
        array = np.load(folder / f"{name}.npy")
        array[-1] = 1000
        np.save(folder / f"{name}.npy", array)
        with pytest.raises(RequestError) as caught:
            MaskBank.open(folder)
        assert said in str(caught.value) and "delete that folder and repeat" in str(caught.value)
        (folder / f"{name}.npy").unlink()
        with pytest.raises(RequestError, match="is missing: delete that folder"):
            MaskBank.open(folder)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"format": 2}, "is of format 2, and this version reads 1"),
            ({"masks": 3}, "has the shape"),
            ({"stuff": [True]}, "not one kind for each class"),
            ({"size": 0}, "a size below 1"),
            ({"more": 1}, "does not describe a mask bank"),
        ],
    )
    def test_damaged_descriptions(self, data: Dataset, tmp_path: Path, changes: dict[str, object], said: str) -> None:
        folder = written(tmp_path / "made", data).folder
        about = json.loads((folder / ABOUT).read_text())
        (folder / ABOUT).write_text(json.dumps(about | changes))
        with pytest.raises(RequestError) as caught:
            MaskBank.open(folder)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_photographs(shared_data: Path, tmp_path: Path) -> None:
    dataset = open_source(f"coco:{shared_data / 'coco-mini'}", "train", tmp_path).having({"labels"})
    bank = written(tmp_path / "made", dataset, 256)
    bytes_each = sum(path.stat().st_size for path in bank.folder.iterdir()) / len(bank)
    print(f"{bytes_each:.0f} bytes a picture at 256 px, and {256 * 256} of its map alone as pixels")
    assert len(bank) == 26 and bytes_each < 256 * 256 / 4
    assert np.mean([len(bank.masks(place).codes) for place in range(26)]) > 5
