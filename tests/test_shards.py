"""Prepared splits: what is written is what was published, whoever writes it, however often it is killed."""

import contextlib
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from orchestration.data import shard_writing
from orchestration.data.problems import Kind, Problem
from orchestration.data.records import Dataset, ImageRecord
from orchestration.data.shard_form import LEFT_OUT, MANIFEST, PLAN, Codec, LeftOut, ShardOptions
from orchestration.data.shards import open_shards, prepared_splits, read_prepared, write_shards
from orchestration.data.transforms import decode, get_transform
from orchestration.errors import RequestError, RunError

from .prepared_support import DIGEST, contents, make_dataset, small_shards

OPTIONS = small_shards()
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "published")


@pytest.fixture
def own(tmp_path: Path) -> Dataset:
    """A data set that a test may break."""
    return make_dataset(tmp_path / "published")


@pytest.fixture(scope="module")
def undisturbed(published: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(published, OPTIONS, tmp_path_factory.mktemp("prepared") / "train")


@pytest.fixture
def prepared(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(undisturbed, tmp_path / "train"))


def with_maps(record: ImageRecord, root: Path) -> Any:
    """What a record should be once it is prepared, traces apart."""
    panoptic = record.panoptic and replace(record.panoptic, map=Path(str(record.panoptic.map)).read_bytes())
    stuff = Path(str(record.stuff_map)).read_bytes() if record.stuff_map else None
    return traceless(replace(record, file=record.file.relative_to(root), panoptic=panoptic, stuff_map=stuff))


def traceless(record: ImageRecord) -> Any:
    said = record.narratives and tuple(
        replace(one, traces=tuple(trace.tolist() for trace in one.traces), utterances=tuple(one.utterances))
        for one in record.narratives
    )
    return replace(record, narratives=said)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", ["raw", "png", "none"])
@pytest.mark.parametrize("transform", ["xmcgan", "attngan", "spade"])
def test_pictures_and_records_come_back_exactly(
    published: Dataset, transform: str, codec: Codec, tmp_path: Path
) -> None:
    options = small_shards(transform, codec)
    steps: list[tuple[int, int]] = []
    folder = write_shards(published, options, tmp_path / "train", progress=lambda *step: steps.append(step))
    assert steps == sorted(steps) and steps[-1] == (10, 10)
    shards = open_shards(folder)
    assert (len(shards), shards.options, len(shards.manifest.shards)) == (10, options, 3)
    np.testing.assert_array_equal(shards.image_ids, [record.image_id for record in published.records])
    expected = [with_maps(record, published.root) for record in published.records]
    assert [traceless(record) for record in shards.records] == expected
    assert [traceless(shards.records[place]) for place in (7, -1, 0)] == [expected[7], expected[9], expected[0]]
    assert [traceless(record) for record in shards.records[1:9:3]] == expected[1:9:3]
    assert [traceless(record) for record in shards.records.take([8, 3, 3, 4])] == [expected[i] for i in (8, 3, 3, 4)]
    rows = [9, 0, 4, 4, 3, 1, 2, 5, 6, 7, 8]
    how = get_transform(transform)
    for row, picture in zip(rows, shards.pictures(rows), strict=True):
        record = published.records[row]
        np.testing.assert_array_equal(picture, how.store(decode(record.file), record, 16))
    again = copy.copy(shards)  # by __reduce__, as it travels to worker processes
    np.testing.assert_array_equal(again.pictures([5])[0], shards.pictures([5])[0])


def test_raw_pictures_of_one_shape_are_one_array(undisturbed: Path) -> None:
    shards = open_shards(undisturbed)
    pictures = shards.pictures(np.array([9, 2, 2]))
    assert isinstance(pictures, np.ndarray) and pictures.shape == (3, 3, 16, 16)
    assert len(shards.pictures([])) == 0
    with pytest.raises(IndexError, match=r"rows 3\.\.10 of a prepared split of 10 images"):
        shards.pictures([3, 10])
    with pytest.raises(IndexError):
        shards.records[10]


def test_a_whole_split_is_the_published_data_set(published: Dataset, undisturbed: Path) -> None:
    dataset = open_shards(undisturbed).dataset()
    assert (dataset.name, dataset.split, dataset.digest) == ("coco", "train", DIGEST)
    assert (dataset.root, dataset.carries) == (published.root, published.carries)
    assert dataset.having({"captions"}) is dataset
    assert [record.image_id for record in dataset.having({"panoptic"}).records] == [7, 19]
    assert (undisturbed / LEFT_OUT).read_bytes() == b""
    manifest = open_shards(undisturbed).manifest
    assert manifest.contents == {
        "boxes": 10, "captions": 10, "images": 10, "labels": 5, "masks": 6, "narratives": 2, "panoptic": 2, "stuff": 3,
        "subject-box": 5, "traces": 2,
    }  # fmt: skip


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def repaint(width: int, height: int) -> Callable[[Path], None]:
    return lambda file: Image.new("RGB", (width, height)).save(file)


FAULTS: list[tuple[Callable[[Path], Any], Kind, str]] = [
    (Path.unlink, Kind.PICTURE_MISSING, r"005\.png is not there; put it there or remove its entry\."),
    (truncate, Kind.PICTURE_TRUNCATED, r"005\.png is cut short: it stops after \d+ bytes, before .*; fetch it again\."),
    (
        lambda file: file.write_bytes(file.read_bytes()[:10]),
        Kind.PICTURE_TRUNCATED,
        r"005\.png is cut short: it stops after 10 bytes",
    ),
    (lambda file: file.write_bytes(b""), Kind.PICTURE_TRUNCATED, r"005\.png is an empty file; fetch it again\."),
    (
        lambda file: file.write_bytes(b"<html>no picture</html>"),
        Kind.PICTURE_UNDECODABLE,
        r"005\.png does not decode \(it is of no known picture format\); fetch it again or remove it",
    ),
    (repaint(7, 9), Kind.PICTURE_SIZE, r"005\.png is 7 x 9 px and annotated as \d+ x \d+ px, so boxes and masks"),
    (repaint(1, 30), Kind.PICTURE_TINY, r"005\.png is 1 x 30 px; replace it or remove it from the data set\."),
]


@pytest.mark.parametrize("codec", ["raw", "none"])
@pytest.mark.parametrize(("damage", "kind", "sentence"), FAULTS)
def test_a_picture_that_cannot_be_used_is_refused_or_left_out_and_written_down(
    own: Dataset, damage: Callable[[Path], Any], kind: Kind, sentence: str, codec: Codec, tmp_path: Path
) -> None:
    options = small_shards(codec=codec)
    file = own.records[5].file
    sound = file.read_bytes()
    damage(file)
    strict, lenient = tmp_path / "strict", tmp_path / "lenient"
    for _ in range(2):
        with pytest.raises(RequestError, match=sentence):
            write_shards(own, options, strict)
    with pytest.raises(RequestError, match=r"holds no finished preparation \(manifest.json: No such file"):
        open_shards(strict)

    left_out = LeftOut()
    left_out(Problem(Kind.CAPTION_EMPTY, "a caption was empty."))  # heard from the reader
    left_out(Problem(Kind.CAPTION_LONG, "a remark."))
    write_shards(own, options, lenient, left_out)
    lines = [json.loads(line) for line in (lenient / LEFT_OUT).read_text().splitlines()]
    assert [(line["kind"], line["image_id"]) for line in lines] == [("CAPTION_EMPTY", None), (kind.name, 16)]
    assert [problem.kind for problem in left_out.problems] == [Kind.CAPTION_EMPTY, kind]
    shards = open_shards(lenient)
    assert shards.image_ids.tolist() == [record.image_id for record in own.records if record.image_id != 16]
    assert shards.manifest.left_out == {"CAPTION_EMPTY": 1, kind.name: 1}
    digest = shards.dataset().digest
    assert digest != DIGEST
    finished = contents(lenient)
    with pytest.raises(RequestError, match=sentence):  # asked again, strictly
        write_shards(own, options, lenient)
    assert contents(lenient) == finished

    file.write_bytes(sound)
    write_shards(own, options, strict)
    assert open_shards(strict).dataset().digest == DIGEST


def test_what_the_reader_left_out_changes_no_digest(published: Dataset, tmp_path: Path) -> None:
    left_out = LeftOut()
    left_out(Problem(Kind.CAPTION_EMPTY, "a caption was empty."))
    assert open_shards(write_shards(published, OPTIONS, tmp_path / "train", left_out)).dataset().digest == DIGEST


def test_an_image_whose_map_is_lost_is_left_out(own: Dataset, tmp_path: Path) -> None:
    (own.root / "panoptic-2.png").unlink()
    with pytest.raises(RequestError, match=r"panoptic-2\.png cannot be read \(No such file or directory\); check"):
        write_shards(own, OPTIONS, tmp_path / "train")
    left_out = LeftOut()
    write_shards(own, OPTIONS, tmp_path / "train", left_out)
    assert [problem.kind for problem in left_out.problems] == [Kind.MASK_BROKEN]
    assert 7 not in open_shards(tmp_path / "train").image_ids


def test_a_whole_shard_may_be_left_out_but_not_all(own: Dataset, tmp_path: Path) -> None:
    for record in own.records[:4]:
        record.file.unlink()
    shards = open_shards(write_shards(own, OPTIONS, tmp_path / "train", LeftOut()))
    assert [entry.rows for entry in shards.manifest.shards] == [0, 4, 2]
    np.testing.assert_array_equal(shards.pictures([0])[0], np.asarray(
        decode(own.records[4].file).resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1))  # fmt: skip
    assert shards.records[0].image_id == 13
    for record in own.records[4:]:
        record.file.unlink()
    with pytest.raises(RequestError, match=r"^none of the 10 images of coco train can be used, the first because pict"):
        write_shards(own, OPTIONS, tmp_path / "other", LeftOut())


def test_the_number_of_threads_does_not_show(published: Dataset, undisturbed: Path, tmp_path: Path) -> None:
    def one_thread(work: Any, units: Any, finished: Any) -> None:
        for unit in reversed(units):
            finished(unit, work(unit, threads=1))

    assert contents(write_shards(published, OPTIONS, tmp_path / "train", parallel=one_thread)) == contents(undisturbed)


def test_workers_need_not_share_the_current_folder(
    own: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    records = tuple(moved(record, own.root, Path("published")) for record in own.records)

    def elsewhere(work: Any, units: Any, finished: Any) -> None:
        (tmp_path / "elsewhere").mkdir()
        for unit in units:
            with contextlib.chdir("elsewhere"):
                summary = work(unit)
            finished(unit, summary)

    write_shards(replace(own, root=Path("published"), records=records), OPTIONS, Path("train"), parallel=elsewhere)
    assert contents(Path("train")) == contents(write_shards(own, OPTIONS, tmp_path / "other"))


def slow_writing(root: str, folder: str) -> None:
    """What the killed child runs: its third shard never gets done."""
    dataset = make_dataset(Path(root), seed=1)
    write_shards(dataset, OPTIONS, Path(folder), progress=lambda done, _: time.sleep(60 if done == 9 else 0))


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    root, folder = tmp_path / "published", tmp_path / "killed"
    call = f"from tests.test_shards import slow_writing; slow_writing({str(root)!r}, {str(folder)!r})"
    child = subprocess.Popen([sys.executable, "-c", call], cwd=REPOSITORY, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (folder / "shard-00001.json").exists():
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.02)
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert list(folder.glob(".records.arrow-*")) and not (folder / MANIFEST).exists()
    (folder / ".shard-00002.arrow-0123abcd").write_bytes(b"half")
    (folder / "shard-00001.arrow").write_bytes(b"whole once")  # a disk that lost what was written last
    first = (folder / "shard-00000.arrow").stat().st_mtime_ns

    dataset = make_dataset(tmp_path / "same", seed=1)
    dataset = replace(
        dataset, root=root, records=tuple(moved(record, dataset.root, root) for record in dataset.records)
    )
    write_shards(dataset, OPTIONS, folder)
    assert (folder / "shard-00000.arrow").stat().st_mtime_ns == first
    assert contents(folder) == contents(write_shards(dataset, OPTIONS, tmp_path / "undisturbed"))


def moved(record: ImageRecord, old: Path, new: Path) -> ImageRecord:
    panoptic = record.panoptic and replace(record.panoptic, map=new / Path(str(record.panoptic.map)).relative_to(old))
    stuff = record.stuff_map and new / Path(str(record.stuff_map)).relative_to(old)
    return replace(record, file=new / record.file.relative_to(old), stuff_map=stuff, panoptic=panoptic)


def test_a_finished_split_is_left_as_it_is_and_a_damaged_one_is_mended(published: Dataset, prepared: Path) -> None:
    before = contents(prepared)
    written = {file.name: file.stat().st_mtime_ns for file in prepared.glob("shard-*")}
    write_shards(published, OPTIONS, prepared)
    assert {file.name: file.stat().st_mtime_ns for file in prepared.glob("shard-*")} == written
    content = bytearray(before["shard-00001.arrow"])
    content[-2000] ^= 1
    (prepared / "shard-00001.arrow").write_bytes(content)
    (prepared / "shard-00002.arrow").unlink()
    write_shards(published, OPTIONS, prepared)
    assert contents(prepared) == before


def test_a_published_folder_that_moved_is_found_again_by_preparing_once_more(own: Dataset, tmp_path: Path) -> None:
    folder = write_shards(own, OPTIONS, tmp_path / "train")
    before = contents(folder)
    own.root.rename(tmp_path / "moved")
    records = tuple(moved(record, own.root, tmp_path / "moved") for record in own.records)
    write_shards(replace(own, root=tmp_path / "moved", records=records), OPTIONS, folder)
    assert open_shards(folder).root == tmp_path / "moved"
    assert {name for name, content in contents(folder).items() if content != before[name]} == {MANIFEST}


def test_data_that_changed_since_it_was_begun_is_begun_again(published: Dataset, prepared: Path) -> None:
    (prepared / MANIFEST).unlink()
    (prepared / "shard-00002.arrow").unlink()
    first = (prepared / "shard-00000.arrow").stat().st_mtime_ns
    write_shards(replace(published, digest="f" * 64), OPTIONS, prepared)
    assert open_shards(prepared).dataset().digest == "f" * 64
    assert (prepared / "shard-00000.arrow").stat().st_mtime_ns != first


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({"digest": "f" * 64}, OPTIONS, r"not coco train \(data ffffffffffff, xmcgan, 16 px, raw, 4 images a shard"),
        ({"split": "val"}, OPTIONS, "not coco val "),
        ({}, replace(OPTIONS, codec="png"), "16 px, png"),
        ({}, replace(OPTIONS, transform="sg2im"), "sg2im, 16 px"),
        ({}, replace(OPTIONS, size=8), "xmcgan, 8 px"),
    ],
)
def test_another_split_or_form_is_refused(
    published: Dataset, prepared: Path, changes: dict[str, str], options: ShardOptions, sentence: str
) -> None:
    before = contents(prepared)
    with pytest.raises(RequestError, match=rf"train holds coco train \(data 0123.*{sentence}.*delete it or name anoth"):
        write_shards(replace(published, **changes), options, prepared)  # type: ignore[arg-type]
    assert contents(prepared) == before


def test_folders_that_are_no_place_for_a_split_are_refused(published: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="file is a file; name a folder for the prepared data"):
        write_shards(published, OPTIONS, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "novel.txt").write_text("")
    with pytest.raises(RequestError, match=r"mine holds other files, 'novel\.txt' first; name an empty or new folder"):
        write_shards(published, OPTIONS, tmp_path / "mine")
    (tmp_path / "taken").mkdir()
    with (
        FileLock(tmp_path / "taken" / ".lock"),
        pytest.raises(RequestError, match="taken is being written by another process; wait for it, or name another"),
    ):
        write_shards(published, OPTIONS, tmp_path / "taken")
    with pytest.raises(RequestError, match="'coco' has no image in split 'train'; name another split"):
        write_shards(replace(published, records=()), OPTIONS, tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"transform": "attngam"}, r"no image transform 'attngam' \(perhaps 'attngan' was meant\)"),
        ({"size": 0}, "size 0 is no picture size; give a number of pixels of at least 1"),
        ({"codec": "jpeg"}, "codec 'jpeg' is unknown; give one of png, raw, none"),
        ({"shard_bytes": 0}, "shard_bytes 0 is no size; give a number of at least 1"),
    ],
)
def test_wrong_options_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        replace(OPTIONS, **change)


def test_shards_hold_about_as_many_bytes_as_wanted() -> None:
    assert [ShardOptions("xmcgan", size, "png").rows for size in (32, 256, 8192)] == [4096, 682, 1]
    assert ShardOptions("attngan", 256, "png").rows == 484  # stored at 304 px


def test_a_disk_without_space_is_seen_before_the_work(
    published: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9000, 1320, 7680))
    with pytest.raises(
        RunError, match=r"^10 pictures need about \d+ bytes \(7680 of pixels, and \d{4,} of annotations\)"
    ):
        write_shards(published, OPTIONS, tmp_path / "train")
    png = r"\(7680 of pixels, of which png takes about 60%, and \d+ of annotations\) and .* has 4608 free; free"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9000, 4392, 4608))
    with pytest.raises(RunError, match=png):
        write_shards(published, replace(OPTIONS, codec="png"), tmp_path / "png")


def test_a_disk_that_fills_up_leaves_what_is_whole(
    published: Dataset, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "train"
    calls = iter(range(100))
    flush = os.fsync

    def fail_later(file: int) -> None:
        if next(calls) == 3:  # the plan, a shard, its summary, a shard
            raise OSError(28, "No space left on device")
        flush(file)

    monkeypatch.setattr(os, "fsync", fail_later)
    with pytest.raises(
        RunError, match=r"train \(\[Errno 28\] No space left on device\); free the disk.*where it stopped"
    ):
        write_shards(published, OPTIONS, folder)
    monkeypatch.undo()
    assert sorted(contents(folder)) == [PLAN, "shard-00000.arrow", "shard-00000.json"]
    assert contents(write_shards(published, OPTIONS, folder)) == contents(undisturbed)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda at: truncate(at / "shard-00001.arrow"), r"shard-00001\.arrow is damaged: it has \d+ bytes and manifest"),
    (lambda at: (at / "shard-00001.arrow").unlink(), r"shard-00001\.arrow is damaged: .*No such file"),
    (
        lambda at: (at / "shard-00001.arrow").write_bytes(bytes((at / "shard-00001.arrow").stat().st_size)),
        r"shard-00001\.arrow is damaged: Not an Arrow file",
    ),
    (lambda at: truncate(at / MANIFEST), r"manifest\.json is damaged: it is cut short"),
    (lambda at: (at / MANIFEST).write_bytes(b"\xff"), r"manifest\.json is damaged: it is not JSON from byte 0|UTF-8"),
    (lambda at: change_manifest(at, lambda said: said.pop("rows")), r"manifest\.json is damaged: rows is missing"),
    (
        lambda at: change_manifest(at, lambda said: said["plan"]["options"].update(codec="jpeg")),
        r"manifest\.json is damaged: plan\.options\.codec: invalid enum value 'jpeg'",
    ),
    (
        lambda at: change_manifest(at, lambda said: said["plan"]["options"].update(transform="art")),
        r"manifest\.json is damaged: no image transform 'art'",
    ),
    (
        lambda at: change_manifest(at, lambda said: said["shards"][1].update(rows=3)),
        r"shard-00001\.arrow is damaged: it has 4 images and manifest\.json says 3",
    ),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES)
def test_a_damaged_split_is_refused_with_its_file(prepared: Path, damage: Callable[[Path], Any], sentence: str) -> None:
    damage(prepared)
    with pytest.raises(
        RequestError, match=rf"^prepared data {prepared}.*({sentence}).*; delete {prepared} and prepare"
    ):
        open_shards(prepared)


def test_another_version_and_another_place_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nowhere' cannot be opened .* give the folder of a prepared split"):
        open_shards(tmp_path / "nowhere")
    change_manifest(prepared, lambda said: said["plan"].update(version=2))
    with pytest.raises(
        RequestError, match=r"train was prepared by another version of t2i; delete it and prepare it ag"
    ):
        open_shards(prepared)


def test_a_shard_of_other_columns_is_refused(published: Dataset, prepared: Path, tmp_path: Path) -> None:
    other = write_shards(published, replace(OPTIONS, codec="none"), tmp_path / "none")
    shutil.copy(other / "shard-00001.arrow", prepared)
    size = (prepared / "shard-00001.arrow").stat().st_size
    change_manifest(prepared, lambda said: said["shards"][1].update(bytes=size))
    with pytest.raises(RequestError, match="train was prepared by another version of t2i"):
        open_shards(prepared)


def test_pixels_that_are_none_are_refused_when_they_are_touched(published: Dataset, tmp_path: Path) -> None:
    folder = write_shards(published, replace(OPTIONS, codec="png"), tmp_path / "train")
    content = (folder / "shard-00000.arrow").read_bytes()
    (folder / "shard-00000.arrow").write_bytes(content.replace(b"IHDR", b"XXXX"))
    shards = open_shards(folder)
    with pytest.raises(RequestError, match=r"shard-00000\.arrow is damaged: picture 1 of it does not decode; delete"):
        shards.pictures([1])
    shards.pictures([4])


def test_published_pictures_are_found_where_they_lie_now(own: Dataset, tmp_path: Path) -> None:
    folder = write_shards(own, replace(OPTIONS, codec="none"), tmp_path / "train")
    own.root.rename(tmp_path / "moved")
    with pytest.raises(RequestError, match=r"published/pictures/003\.png is not there; put it there"):
        open_shards(folder).pictures([3])
    shards = open_shards(folder, tmp_path / "moved")
    assert shards.dataset().root == tmp_path / "moved"
    assert copy.copy(shards).pictures([3])[0].shape == (3, 16, 16)
    repaint(5, 5)(tmp_path / "moved" / "pictures" / "003.png")
    with pytest.raises(RequestError, match=r"003\.png is 5 x 5 px and annotated as"):
        shards.pictures([3])


def test_prepared_splits_are_read_as_data(published: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no finished split .no SPLIT/manifest.json.; run `t2i data prepare`"):
        prepared_splits(tmp_path)
    for split in ("val", "train"):
        write_shards(replace(published, split=split), OPTIONS, tmp_path / split)
    assert prepared_splits(tmp_path) == ("train", "val")
    dataset = read_prepared(tmp_path, "val")
    assert (dataset.split, len(dataset.records), dataset.root) == ("val", 10, published.root)
    with pytest.raises(RequestError, match="holds no finished split 'test'; it holds train, val"):
        read_prepared(tmp_path, "test")


def test_a_prepared_split_is_prepared_once_more(undisturbed: Path, tmp_path: Path) -> None:
    """At another size, from the published pictures."""
    smaller = write_shards(open_shards(undisturbed).dataset(), replace(OPTIONS, size=8), tmp_path / "train")
    assert open_shards(smaller).pictures([9])[0].shape == (3, 8, 8)
    assert traceless(open_shards(smaller).records[5]) == traceless(open_shards(undisturbed).records[5])


def test_the_smallest_of_temporary_names_is_known() -> None:
    """Whatever is written here is written under a name that the next run removes."""
    for name in ("shard-00000.arrow", "shard-100000.json", "records.arrow", PLAN, MANIFEST, LEFT_OUT):
        assert shard_writing._TEMPORARY.fullmatch(shard_writing.hidden_sibling(Path(name)).name)


def test_a_whole_file_that_is_broken_is_refused_even_where_items_may_be_left_out() -> None:
    with pytest.raises(RequestError, match=r"^captions\.json is cut short\.$"):
        LeftOut()(Problem(Kind.FILE_BROKEN, "captions.json is cut short."))
