"""The stored label maps of narratives: those that were composed, or the pictures' own, in the order of captions."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.trecs.config import TReCSConfig
from orchestration.data.label_maps import LabelReader
from orchestration.data.records import Dataset
from orchestration.errors import RequestError, RunError
from orchestration.narratives import canvases
from orchestration.narratives.canvases import (
    ABOUT,
    ARRAYS,
    FIGURES,
    Composing,
    StoredCanvases,
    canvases_stage,
    open_canvases,
    true_canvases_stage,
    write_canvases,
    write_true_canvases,
)
from orchestration.narratives.composer import Composer
from orchestration.narratives.mask_bank import MaskBank, write_mask_bank
from orchestration.narratives.record_blocks import RecordBlocks, with_narratives, write_records
from orchestration.stages import Stage, ensure, quiet
from tests.composing_support import Told, scenes, silent, true_tags
from tests.data_files import refusal

S = 32


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvases, "BLOCK", 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Fourteen pictures with one to three narratives, the last one of which has no trace."""
    made = scenes(tmp_path_factory.mktemp("scenes"), 14, S)
    records = []
    for place, record in enumerate(made.records):
        (said,) = record.narratives or ()
        told = (said, replace(said, annotator_id=1), silent(said))[: 1 + place % 3]
        records.append(replace(record, narratives=told))
    return replace(made, records=tuple(records), digest="c" * 64)


@pytest.fixture(scope="module")
def bank(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> MaskBank:
    return write_mask_bank(tmp_path_factory.mktemp("bank"), data, S, None, quiet)


@dataclass(frozen=True)
class Tags:
    """Held in memory."""

    tags: tuple[NDArray[np.int64], ...]

    def __call__(self, captions: range) -> Sequence[NDArray[np.int64]]:
        return self.tags[captions.start : captions.stop]


def tags_of(data: Dataset, classes: Sequence[str]) -> Tags:
    found = []
    for record in data.records:
        narratives = record.narratives or ()
        found += [true_tags(narratives[0], classes)] * len(narratives)
    return Tags(tuple(found))


def make_composer(folder: Path, **chosen: Any) -> Composer:
    bank = MaskBank.open(folder)
    return Composer(bank, Told(bank), TReCSConfig.model_validate({"resolution": S, **chosen}))


def composing(data: Dataset, bank: MaskBank, own: bool = True, **chosen: Any) -> Composing:
    return Composing(partial(make_composer, bank.folder, **chosen), partial(tags_of, data, bank.classes), own)


def stage(data: Dataset, bank: MaskBank, **chosen: Any) -> Stage:
    return canvases_stage(data, {"bank": "b" * 16}, {"k": 5}, lambda: composing(data, bank, **chosen))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_each_narrative_has_what_is_composed_for_it(data: Dataset, bank: MaskBank, tmp_path: Path) -> None:
    found = open_canvases(ensure(stage(data, bank), tmp_path))
    narratives = [(record.image_id, said) for record in data.records for said in record.narratives or ()]
    assert len(found) == len(narratives) == 27 and found.image_ids.tolist() == [image for image, _ in narratives]
    assert (found.size, found.classes, found.stuff) == (S, bank.classes, bank.stuff)
    tags = list(tags_of(data, bank.classes).tags)
    composed = make_composer(bank.folder).compose(
        [said for _, said in narratives], tags, [image for image, _ in narratives]
    )
    order = np.random.default_rng(0).permutation(27)
    maps = found.take(order)
    assert maps.labels.shape == (27, S, S) and str(maps.labels.dtype) == str(maps.instances.dtype) == "torch.int64"
    for row, place in enumerate(order.tolist()):
        np.testing.assert_array_equal(maps.labels[row].numpy(), composed[place].canvas.labels)
        np.testing.assert_array_equal(maps.instances[row].numpy(), composed[place].canvas.instances)
    assert maps.instances.max() >= 2 and len(found.take(np.zeros(0, np.int64)).labels) == 0
    assert sorted(path.name for path in found.folder.iterdir()) == sorted(
        [ABOUT, FIGURES, "stage.json", *(f"{name}.npy" for name in ARRAYS)]
    )
    assert isinstance(found.labels, np.memmap) and isinstance(found.lengths, np.memmap)


def test_the_figures(data: Dataset, bank: MaskBank, tmp_path: Path) -> None:
    def figures(**chosen: Any) -> dict[str, float]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_canvases(folder, data, composing(data, bank, **chosen), "depends", quiet)
        found: dict[str, float] = json.loads((folder / FIGURES).read_text())
        return found

    first, many, further = figures(k=1), figures(k=5), figures(k=5, missing="next")
    assert first["narratives"] == 27 and first["without_traces"] == pytest.approx(4 / 27)
    assert first["mentions_per_narrative"] == many["mentions_per_narrative"] > 2
    assert first["things_with_a_mask"] < many["things_with_a_mask"] < further["things_with_a_mask"] <= 1
    assert 0 < first["mean_stuff_fit"] < many["mean_stuff_fit"] < 1 and 0 < many["mean_iou"] < 1
    own = figures(k=14, own=False)
    assert own["things_with_a_mask"] == 1 and own["mean_iou"] > further["mean_iou"]
    # By hand: of narratives with traces, all mentions of things that got a mask.
    narratives = [said for record in data.records for said in record.narratives or ()]
    ids = [record.image_id for record in data.records for _ in record.narratives or ()]
    composed = make_composer(bank.folder).compose(narratives, tags_of(data, bank.classes).tags, ids)
    ious = [
        mention.choice.iou
        for one in composed
        for mention in one.mentions
        if mention.choice is not None and one.narrative.traces
    ]
    assert many["mean_iou"] == pytest.approx(np.mean(ious))
    fits = [one.stuff_fit for one in composed if one.narrative.traces]
    assert many["mean_stuff_fit"] == pytest.approx(np.mean(fits))


def test_a_killed_stage_goes_on(data: Dataset, bank: MaskBank, tmp_path: Path) -> None:
    whole = ensure(stage(data, bank), tmp_path / "one")

    def stop(what: str, count: int, total: int) -> None:
        if count > 7:
            raise RunError("stopped")

    with pytest.raises(RunError):
        ensure(stage(data, bank), tmp_path / "two", stop)
    again: list[int] = []
    resumed = ensure(stage(data, bank), tmp_path / "two", lambda what, count, total: again.append(count))
    assert again[0] == 8 and contents(resumed) == contents(whole)


def test_other_processes_compose_the_same(data: Dataset, bank: MaskBank, tmp_path: Path) -> None:
    records = RecordBlocks(tmp_path / "records.arrow", 4)
    write_records(data, 4, records.file, with_narratives)
    starts = np.cumsum([0, *(len(record.narratives or ()) for record in data.records)])
    there = canvases._open_composing(records, starts, composing(data, bank))
    held = composing(data, bank)
    here = canvases._Composing(
        lambda items: list(data.records[items.start : items.stop]), starts, held.open_composer(), held.open_tags(), True
    )
    for items in (range(4, 8), range(12, 14)):
        one, other = here(items), there(items)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    for name, workers in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        write_canvases(tmp_path / name, data, composing(data, bank), "depends", quiet, workers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_pictures_own_maps(data: Dataset, tmp_path: Path) -> None:
    found = open_canvases(ensure(true_canvases_stage(data, S), tmp_path))
    reader, caption = LabelReader(data), 0
    assert found.classes == reader.classes and found.about.maps == 14
    for record in data.records:
        labels, instances = reader.read(record, None, (S, S))
        for _ in record.narratives or ():
            maps = found.take(np.array([caption]))
            np.testing.assert_array_equal(maps.labels[0].numpy(), labels)
            np.testing.assert_array_equal(maps.instances[0].numpy(), instances)
            assert found.image_ids[caption] == record.image_id
            caption += 1
    assert len(found) == caption == 27
    (tmp_path / "more").mkdir()
    again = write_true_canvases(tmp_path / "more", data, S, None, quiet, workers=2)
    assert {name: digest for name, digest in contents(found.folder).items() if name != "stage.json"} == contents(
        again.folder
    )


def test_stages_know_what_they_depend_on(data: Dataset) -> None:
    def never() -> Composing:
        raise AssertionError("asked before it runs")

    def made(dataset: Dataset = data, inputs: Mapping[str, str] | None = None, k: int = 5) -> str:
        return canvases_stage(dataset, inputs or {"tags": "a"}, {"k": k}, never).key

    keys = [
        made(),
        made(k=1),
        made(inputs={"tags": "b"}),
        made(replace(data, digest="e" * 64)),
        true_canvases_stage(data, S).key,
        true_canvases_stage(data, 64).key,
        true_canvases_stage(data, S, ["grass"]).key,
    ]
    assert len(set(keys)) == len(keys)


class TestRefusals:
    def test_a_split_without_narratives(self, data: Dataset, bank: MaskBank, tmp_path: Path) -> None:
        bare = replace(data, records=tuple(replace(record, narratives=None) for record in data.records))
        said = "scenes (train) has no narratives to compose label maps of: choose data that has some"
        writers: list[Callable[[], object]] = [
            lambda: write_canvases(tmp_path, bare, composing(bare, bank), "depends", quiet),
            lambda: write_true_canvases(tmp_path, bare, S, None, quiet),
        ]
        for write in writers:
            with pytest.raises(RequestError) as caught:
                write()
            assert str(caught.value) == said

    def test_a_narrative_is_named_by_its_picture(self, data: Dataset, bank: MaskBank, tmp_path: Path) -> None:
        record = data.records[5]
        assert record.narratives is not None
        broken = replace(record.narratives[1], traces=[np.array([[0.1, np.inf, 0.0]])])
        records = [*data.records]
        records[5] = replace(record, narratives=(record.narratives[0], broken, *record.narratives[2:]))
        changed = replace(data, records=tuple(records))
        assert refusal(lambda: write_canvases(tmp_path, changed, composing(data, bank), "depends", quiet)) == (
            f"trace 0 of narrative 2 of image {record.image_id} has a point that is no number (point 0); leave that "
            "point out."
        )

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("run_starts", 7, "run_starts.npy does not part"),
            ("rows", 99, "rows.npy names label maps outside 0 to 13"),
            ("rows", -1, "rows.npy names label maps outside 0 to 13"),
        ],
    )
    def test_damaged_arrays(self, data: Dataset, tmp_path: Path, name: str, value: int, said: str) -> None:
        folder = written_truth(data, tmp_path).folder
        array = np.load(folder / f"{name}.npy")
        array[-1] = value
        np.save(folder / f"{name}.npy", array)
        with pytest.raises(RequestError) as caught:
            open_canvases(folder)
        assert said in str(caught.value) and "delete that folder and repeat" in str(caught.value)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"format": 2}, "is of format 2, and this version reads 1"),
            ({"runs": 3}, "has the shape"),
            ({"stuff": [True]}, "not one kind for each class"),
            ({"maps": "many"}, "does not describe canvases"),
        ],
    )
    def test_damaged_descriptions(self, data: Dataset, tmp_path: Path, changes: dict[str, object], said: str) -> None:
        folder = written_truth(data, tmp_path).folder
        about = json.loads((folder / ABOUT).read_text())
        (folder / ABOUT).write_text(json.dumps(about | changes))
        with pytest.raises(RequestError) as caught:
            open_canvases(folder)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def written_truth(data: Dataset, folder: Path) -> StoredCanvases:
    return write_true_canvases(folder, data, S, None, quiet)
