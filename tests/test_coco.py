"""The reader of COCO, on folders in its published layout."""

import gc
import shutil
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestration.data.captions import caption_problem, checked_caption
from orchestration.data.coco import PUBLISHED_SIZES, coco_splits, read_coco
from orchestration.data.problems import Findings, Kind, Problem, refuse
from orchestration.data.records import Dataset, PanopticSegment
from tests.data_files import (
    Json,
    captions_json,
    graph_json,
    instances_json,
    make_coco,
    panoptic_json,
    picture,
    refusal,
    sentence,
    stuff_json,
    table,
    told,
    write_json,
    write_lines,
    write_panoptic,
)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return make_coco(tmp_path / "coco")


def narrative(image_id: int | str, annotator_id: int = 1, caption: str = "A cat sits.") -> Json:
    return {
        "dataset_id": "mscoco_train2017",
        "image_id": str(image_id),
        "annotator_id": annotator_id,
        "caption": caption,
        "timed_caption": [{"utterance": caption, "start_time": 0.1, "end_time": 0.9}],
        "traces": [[{"x": 0.2, "y": 0.5, "t": 0.0}, {"x": 0.4, "y": 0.5, "t": 0.5}]],
    }


# --- what is read -------------------------------------------------------------------------------------------------


def test_listed_images_become_records_in_file_order(coco: Path) -> None:
    dataset = read_coco(coco, "train")
    assert (dataset.name, dataset.split, dataset.root) == ("coco", "train", coco)
    assert [record.image_id for record in dataset.records] == [4, 2, 9]
    assert dataset.carries == {"images", "captions"}
    first, _, last = dataset.records
    assert (first.width, first.height, first.file) == (8, 6, coco / "train2017/000000000004.png")
    assert [(caption.id, caption.text) for caption in first.captions or ()] == [
        (10, "a picture of 4, again 0 "),
        (12, "a picture of 4, again 2 "),
        (14, "a picture of 4, again 4 "),
    ]
    assert (first.instances, first.stuff, first.stuff_map, first.panoptic) == (None, None, None, None)
    assert (first.graph, first.narratives, last.captions) == (None, None, ())


def test_records_are_the_union_of_all_files_those_of_captions_first(coco: Path) -> None:
    for image_id in (1, 5, 7):
        picture(coco / f"train2017/{image_id:012d}.png")
    write_json(table(coco, "instances"), instances_json((5, 2)))
    write_json(table(coco, "stuff"), stuff_json((1, 5)))
    write_panoptic(coco, image_id=7)
    dataset = read_coco(coco, "train")
    assert [record.image_id for record in dataset.records] == [4, 2, 9, 5, 1, 7]
    of = {record.image_id: record for record in dataset.records}
    assert (of[4].instances, of[2].instances, len(of[5].instances or ())) == (None, (), 1)
    assert (of[5].captions, of[7].captions) == (None, None)
    assert (of[2].stuff, of[5].stuff, len(of[1].stuff or ())) == (None, (), 2)
    assert dataset.carries == {"images", "captions", "boxes", "masks", "stuff", "panoptic", "labels"}


@pytest.mark.parametrize("name", ["instances", "stuff", "panoptic"])
def test_a_folder_without_captions_is_read_too(tmp_path: Path, name: str) -> None:
    contents = {"instances": instances_json((2,)), "stuff": stuff_json((2,)), "panoptic": panoptic_json(2)}
    write_panoptic(tmp_path)
    table(tmp_path, "panoptic").unlink()
    write_json(table(tmp_path, name), contents[name])
    picture(tmp_path / "train2017/000000000002.png")
    (record,) = read_coco(tmp_path, "train").records
    assert record.captions is None and getattr(record, name)


def test_what_the_files_say_is_joined_by_image(coco: Path) -> None:
    write_json(table(coco, "instances"), instances_json())
    write_json(table(coco, "stuff"), stuff_json())
    write_panoptic(coco)
    write_json(table(coco, "scene_graphs"), [graph_json(4)])
    stuff_map = picture(coco / "stuffthingmaps/train2017/000000000002.png", "L")

    dataset = read_coco(coco, "train")

    assert dataset.carries == {"images", "captions", "boxes", "masks", "stuff", "panoptic", "labels", "graph"}
    first, second, _ = dataset.records
    (cat,) = first.instances or ()
    assert (cat.category, cat.category_id, cat.box) == ("cat", 17, (0.0, 0.0, 4.0, 3.5))
    assert (cat.area, cat.crowd, cat.segmentation) == (6.0, False, b"[[0, 0, 4, 0, 4, 3]]")
    assert [(region.category, region.category_id) for region in first.stuff or ()] == [("grass", 124), ("other", 183)]
    assert type(cat.segmentation) is bytes and (first.stuff or ())[0].segmentation is not None
    assert second.panoptic is not None
    assert second.panoptic.map == coco / "annotations/panoptic_train2017/000000000002.png"
    assert second.panoptic.segments == (
        PanopticSegment(197_121, "grass-merged", 193, False, (0.0, 0.0, 8.0, 6.0), 48.0, False),
    )
    assert first.graph is not None and second.graph is None
    assert (first.stuff_map, second.stuff_map) == (None, stuff_map)


@pytest.mark.parametrize("nothing", [None, []])
def test_an_instance_may_have_a_box_only(coco: Path, nothing: object) -> None:
    content = instances_json()
    content["annotations"][0].update(segmentation=nothing, iscrowd=1)
    content["annotations"].append({**content["annotations"][0], "id": 2})
    del content["annotations"][1]["segmentation"]
    write_json(table(coco, "instances"), content)
    dataset = read_coco(coco, "train")
    assert [thing.segmentation for thing in dataset.records[0].instances or ()] == [None, None]
    assert (dataset.records[0].instances or ())[0].crowd
    assert dataset.carries == {"images", "captions", "boxes"}


def test_labels_named_like_thing_maps_are_stuff_too(coco: Path) -> None:
    folder = coco / "annotations/stuffthing_train2017"
    picture(folder / "000000000004_label.png", "L")
    picture(folder / "000000000004_inst.png", "L")
    dataset = read_coco(coco, "train")
    assert [record.stuff_map for record in dataset.records] == [folder / "000000000004_label.png", None, None]
    assert "stuff" in dataset.carries


def test_only_files_are_stuff_maps(coco: Path) -> None:
    (coco / "stuffthingmaps/train2017/000000000004.png").mkdir(parents=True)
    (coco / "stuffthingmaps/train2017/000000000002.png").symlink_to(coco / "nowhere.png")
    assert "stuff" not in read_coco(coco, "train").carries


def test_narratives_come_from_the_layout_that_says_most(coco: Path) -> None:
    folder = coco / "annotations"
    tagged = {"image_id": 4, "annotator_id": 9, "words": ["a", "cat"], "tags": ["cat", "cat"]}
    write_lines(folder / "localized_narratives_tags_val2017.jsonl", [tagged])
    assert read_coco(coco, "train").records[0].narratives is None
    write_lines(folder / "localized_narratives_tags_train2017.jsonl", [tagged])
    (said,) = read_coco(coco, "train").records[0].narratives or ()
    assert (said.annotator_id, said.tags) == (9, ("cat", "cat"))
    short = {key: narrative(4, 8)[key] for key in ("dataset_id", "image_id", "annotator_id", "caption")}
    write_lines(folder / "coco_train_captions.jsonl", [short])
    assert [said.annotator_id for said in read_coco(coco, "train").records[0].narratives or ()] == [8]
    shard = "coco_train_localized_narratives-0000{}-of-00002.jsonl"
    write_lines(folder / shard.format(1), [narrative(4, 2), narrative(555)])
    write_lines(folder / shard.format(0), [narrative(4, 1), narrative(2)])
    write_lines(folder / "coco_val_localized_narratives.jsonl", [narrative(4, 3)])
    write_lines(folder / "flickr30k_train_localized_narratives.jsonl", [narrative(4, 5)])
    dataset = read_coco(coco, "train")
    assert [said.annotator_id for said in dataset.records[0].narratives or ()] == [1, 2]
    assert dataset.records[2].narratives is None
    assert {"narratives", "traces"} <= dataset.carries


def test_the_digest_follows_annotations_and_file_sizes_not_the_place(coco: Path, tmp_path: Path) -> None:
    digest = read_coco(coco, "train").digest
    assert len(digest) == 64 and read_coco(coco, "train").digest == digest
    elsewhere = shutil.copytree(coco, tmp_path / "elsewhere")
    assert read_coco(elsewhere, "train").digest == digest
    seen = {digest}

    def changed() -> bool:
        digest = read_coco(elsewhere, "train").digest
        fresh = digest not in seen
        seen.add(digest)
        return fresh

    def lengthen(file: Path) -> None:
        file.write_bytes(file.read_bytes() + b"!")

    lengthen(elsewhere / "train2017/000000000004.png")
    assert changed()
    write_json(table(elsewhere, "instances"), instances_json())
    assert changed()
    write_json(table(elsewhere, "stuff"), stuff_json())
    assert changed()
    write_panoptic(elsewhere)
    assert changed()
    lengthen(elsewhere / "annotations/panoptic_train2017/000000000002.png")
    assert changed()
    stuff_map = picture(elsewhere / "stuffthingmaps/train2017/000000000004.png", "L")
    assert changed()
    lengthen(stuff_map)
    assert changed()
    write_json(table(elsewhere, "scene_graphs"), [graph_json(4)])
    assert changed()
    write_lines(elsewhere / "annotations/coco_train_localized_narratives.jsonl", [narrative(4)])
    assert changed()
    content = captions_json()
    content["annotations"][0]["caption"] = "another text"
    write_json(table(elsewhere, "captions"), content)
    assert changed()


def test_the_garbage_collector_is_left_as_it_was(coco: Path) -> None:
    assert gc.isenabled()
    read_coco(coco, "train", lambda problem: None)
    assert gc.isenabled()
    table(coco, "captions").write_text("{")
    refusal(lambda: read_coco(coco, "train"))
    assert gc.isenabled()


# --- which split, which year --------------------------------------------------------------------------------------


def test_splits_are_named_in_their_usual_order(coco: Path) -> None:
    assert coco_splits(coco) == ("train",)
    make_coco(coco, "val")
    write_json(table(coco, "instances", "test2017"), instances_json())
    write_json(table(coco, "captions", "restval2017"), captions_json())
    assert coco_splits(coco) == ("train", "val", "test")


def year_of(dataset: Dataset) -> str:
    return dataset.records[0].file.parent.name[-4:]


def test_one_year_serves_all_splits(coco: Path) -> None:
    make_coco(coco, "val", 2014)
    assert year_of(read_coco(coco, "train")) == "2017"
    make_coco(coco, "train", 2014)
    assert year_of(read_coco(coco, "train")) == "2014"
    make_coco(coco, "val", 2017)
    assert (year_of(read_coco(coco, "train")), year_of(read_coco(coco, "val"))) == ("2017", "2017")
    shutil.rmtree(coco / "val2017")  # annotations of both years, pictures of one
    assert year_of(read_coco(coco, "train")) == "2014"
    shutil.rmtree(coco / "train2014")
    assert year_of(read_coco(coco, "train")) == "2017"
    write_json(table(coco, "captions", "test2014"), captions_json())  # one split more
    assert "train2014 lacks 3" in refusal(lambda: read_coco(coco, "train"))


def test_a_year_can_be_asked_for(coco: Path) -> None:
    make_coco(coco, "train", 2014)
    make_coco(coco, "val", 2014)
    assert (coco_splits(coco), coco_splits(coco, 2017)) == (("train", "val"), ("train",))
    read = partial(read_coco, year=2017)
    assert year_of(read(coco, "train", refuse)) == "2017"
    message = refusal(lambda: read(coco, "val", refuse))
    assert "no split 'val' (found: train2017)" in message and "annotations/captions_val2017.json" in message


def test_an_absent_year_is_refused_with_what_is_there(coco: Path) -> None:
    for call in (lambda: read_coco(coco, "train", year=2014), lambda: coco_splits(coco, 2014)):
        message = refusal(call)
        assert "holds nothing of COCO 2014 (found: train2017)" in message and "coco:PATH" in message


def test_what_is_no_coco_folder_is_refused(tmp_path: Path) -> None:
    message = refusal(lambda: read_coco(tmp_path / "nowhere", "train"))
    assert str(tmp_path / "nowhere") in message and "annotations/" in message
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in refusal(lambda: read_coco(tmp_path / "file", "train"))
    assert "not a possible path" in refusal(lambda: read_coco(Path("a\0b"), "train"))
    for call in (lambda: read_coco(tmp_path, "train"), lambda: coco_splits(tmp_path)):
        message = refusal(call)
        assert "is no COCO folder" in message and f"{tmp_path}/annotations/captions_train2017.json" in message


@pytest.mark.parametrize(("split", "mend"), [("test", True), ("val", True), ("trian", False), ("", False)])
def test_an_absent_split_is_refused_with_those_found(coco: Path, split: str, mend: bool) -> None:
    message = refusal(lambda: read_coco(coco, split))
    assert f"no split {split!r}" in message and "found: train2017" in message
    assert (f"add annotations/captions_{split}2017.json" in message) == mend


# --- remarks ------------------------------------------------------------------------------------------------------


def remarks(root: Path) -> dict[Kind, list[str]]:
    """What is said of a folder that strict reading takes."""
    assert read_coco(root, "train").records == told(root)[0].records
    return told(root)[1]


def test_images_without_annotation_and_unlisted_pictures(coco: Path) -> None:
    unlisted = picture(coco / "train2017/000000000008.PNG")
    (coco / "train2017/Thumbs.db").touch()
    assert remarks(coco) == {
        Kind.IMAGE_WITHOUT_ANNOTATION: [
            f"image 9 of {coco / 'train2017'} has no annotation; it is used for its pixels only."
        ],
        Kind.UNLISTED_PICTURE: [f"{unlisted} is listed in no annotation file of train2017; it is not used."],
    }
    picture(coco / "stuffthingmaps/train2017/000000000009.png", "L")
    unlisted.unlink()
    assert remarks(coco) == {}


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([0, 0, 0, 3], Kind.BOX_EMPTY),
        ([0, 0, 3, -1], Kind.BOX_EMPTY),
        ([-1.5, 0, 3, 3], Kind.BOX_OUTSIDE),
        ([0, -2, 3, 3], Kind.BOX_OUTSIDE),
        ([6, 0, 3.5, 3], Kind.BOX_OUTSIDE),
        ([0, 4, 3, 3.25], Kind.BOX_OUTSIDE),
        ([-1, -1, 10, 8], None),
    ],
)
def test_boxes_without_area_and_outside_of_the_image_are_kept(coco: Path, box: list[float], kind: Kind | None) -> None:
    instances = instances_json()
    instances["annotations"][0].update(bbox=box)
    write_json(table(coco, "instances"), instances)
    content = panoptic_json()
    content["annotations"][0]["segments_info"][0].update(bbox=box)
    write_panoptic(coco)
    write_json(table(coco, "panoptic"), content)
    found = remarks(coco)
    found.pop(Kind.IMAGE_WITHOUT_ANNOTATION)
    if kind is None:
        assert not found
    else:
        (of_instance, of_segment) = found[kind]
        assert "instance 1" in of_instance and "segment 197121 of image 2" in of_segment
    assert (read_coco(coco, "train").records[0].instances or ())[0].box == tuple(map(float, box))


def test_short_and_long_captions_are_kept(coco: Path) -> None:
    content = captions_json()
    content["annotations"][0].update(caption=" cat. ")
    content["annotations"][1].update(caption="cat " * 101)
    write_json(table(coco, "captions"), content)
    found = remarks(coco)
    file = table(coco, "captions")
    assert found[Kind.CAPTION_ONE_WORD] == [f"{file}: caption 10 of image 4 is one word, 'cat.'; it is used as it is."]
    assert found[Kind.CAPTION_LONG][0].startswith(f"{file}: caption 11 of image 2 has 101 words;")


@settings(deadline=None, max_examples=150)
@example(" ".join("a" * 100))
@example(" ".join("a" * 101))
@given(
    st.one_of(
        st.text(st.sampled_from("ab \n\t\u00a0"), max_size=12),
        st.lists(st.sampled_from(["a", "an", " "]), min_size=95, max_size=106).map(" ".join),
    )
)
def test_captions_are_judged_by_their_words(text: str) -> None:
    words = len(text.split())
    kinds = {0: Kind.CAPTION_EMPTY, 1: Kind.CAPTION_ONE_WORD}
    kind = kinds.get(words, Kind.CAPTION_LONG if words > 100 else None)
    assert caption_problem(text) is kind
    heard: list[Problem] = []
    assert checked_caption(text, "FILE: caption 1", heard.append) == (words > 0)
    assert [problem.kind for problem in heard] == ([] if kind is None else [kind])
    for problem in heard:
        assert sentence(problem.sentence).startswith("FILE: caption 1 ")


# --- real data ----------------------------------------------------------------------------------------------------


def test_real_photographs(shared_data: Path) -> None:
    root = shared_data / "coco-mini"
    assert coco_splits(root) == ("train", "val")
    findings = Findings()
    val, train = read_coco(root, "val", findings), read_coco(root, "train", findings)
    assert findings.counts == {}

    def count(dataset: Dataset, name: str) -> tuple[int, int]:
        """Images that have some, and how many in all."""
        some = [len(getattr(record, name)) for record in dataset.records if getattr(record, name)]
        return len(some), sum(some)

    assert (len(val.records), len(train.records)) == (99, 80)
    assert (count(val, "captions"), count(train, "captions")) == ((99, 495), (38, 169))
    assert (count(val, "instances"), count(train, "instances")) == ((65, 552), (79, 770))
    assert sum(record.instances == () for record in (*val.records, *train.records)) == 2
    assert sum(record.panoptic is not None for record in val.records) == 23
    assert sum(record.panoptic is not None for record in train.records) == 26
    assert sum(record.stuff_map is not None for record in val.records) == 2
    assert (count(val, "narratives")[1], count(train, "narratives")[1]) == (170, 0)
    assert val.carries == {"images", "captions", "boxes", "masks", "stuff", "panoptic", "labels", "narratives"}
    assert train.carries == {"images", "captions", "boxes", "masks", "panoptic", "labels"}
    assert sum(thing.crowd for record in val.records for thing in record.instances or ()) == 7
    for record in val.records:
        with Image.open(record.file) as image:
            assert image.size == (record.width, record.height)
    assert len(val.records) < PUBLISHED_SIZES["val2017"]
    assert "found: train2017, val2017" in refusal(lambda: read_coco(root, "test"))
    assert "COCO 2014" in refusal(lambda: read_coco(root, "val", year=2014))
