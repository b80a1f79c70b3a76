"""The readers of COCO, Localized Narratives and Visual Genome, and the names of data."""

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestration.data.coco import CocoDataset, read_coco
from orchestration.data.localized_narratives import read_narratives
from orchestration.data.records import Dataset, SceneGraph, SceneObject
from orchestration.data.sources import READERS, Source, open_source, parse_source
from orchestration.data.visual_genome import read_scene_graphs
from orchestration.errors import RequestError

Json = dict[str, Any]


def refusal(call: Callable[[], object]) -> str:
    """The message of the RequestError that `call` must end in: one line, one sentence."""
    with pytest.raises(RequestError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message
    return message


def captions_json(ids: tuple[int, ...] = (4, 2, 9)) -> Json:
    """Three images, of which the last has no caption."""
    return {
        "images": [{"id": i, "file_name": f"{i:012d}.png", "width": 8, "height": 6, "license": 1} for i in ids],
        "annotations": [
            {"id": 10 + n, "image_id": i, "caption": f"a picture of {i}, again {n} "}
            for n, i in enumerate([*ids[:2], *ids[:2], ids[0]])
        ],
    }


def instances_json() -> Json:
    thing = {"segmentation": [[0, 0, 4, 0, 4, 3]], "area": 6.0, "iscrowd": 0, "bbox": [0, 0, 4, 3.5]}
    return {
        "images": [{"id": 4}, {"id": 2}],
        "annotations": [{**thing, "id": 1, "image_id": 4, "category_id": 17}],
        "categories": [{"id": 17, "name": "cat", "supercategory": "animal"}],
    }


def graphs_json() -> list[Json]:
    box = {"x": 1, "y": 2, "w": 3, "h": 4}
    return [
        {
            "image_id": 4,
            "objects": [
                {"object_id": 7, "names": ["cat", "animal"], "attributes": ["grey"], **box},
                {"object_id": 8, "names": ["mat"], "merged_object_ids": [80], **box},
            ],
            "relationships": [
                {"relationship_id": 1, "subject_id": 7, "predicate": "ON", "object_id": 80},
                {"relationship_id": 2, "subject_id": 7, "predicate": "near", "object_id": 999},
            ],
        }
    ]


def narrative_line(image_id: int | str = "4", annotator_id: int = 1) -> Json:
    return {
        "dataset_id": "mscoco_train2017",
        "image_id": image_id,
        "annotator_id": annotator_id,
        "caption": "A cat sits on a mat.",
        "timed_caption": [
            {"utterance": "A cat", "start_time": 0.1, "end_time": 0.9},
            {"utterance": "sits on a mat.", "start_time": 0.9, "end_time": 2.0},
        ],
        "traces": [
            [{"x": -0.05, "y": 0.5, "t": 0.0}, {"x": 0.2, "y": 1.25, "t": 0.5}],
            [{"x": 0.5, "y": 0.5, "t": 1}],
            [],
        ],
        "voice_recording": "coco_train/coco_train_4_1.ogg",
    }


def write_json(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def write_lines(file: Path, lines: list[Json]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def make_coco(root: Path, split: str = "train", year: int = 2017) -> Path:
    captions = captions_json()
    write_json(root / f"annotations/captions_{split}{year}.json", captions)
    (root / f"{split}{year}").mkdir()
    for image in captions["images"]:
        Image.new("RGB", (8, 6), (image["id"], 0, 0)).save(root / f"{split}{year}" / image["file_name"])
    return root


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return make_coco(tmp_path / "coco")


# --- COCO ---------------------------------------------------------------------------------------------------------


def test_captioned_images_become_records_in_file_order(coco: Path) -> None:
    dataset: Dataset = read_coco(coco, "train")
    assert (dataset.name, dataset.split) == ("coco", "train")
    assert [record.image_id for record in dataset.records] == [4, 2]
    assert dataset.carries == {"images", "captions"}
    first = dataset.records[0]
    assert (first.width, first.height, first.file) == (8, 6, coco / "train2017/000000000004.png")
    assert [(caption.id, caption.text) for caption in first.captions or ()] == [
        (10, "a picture of 4, again 0 "),
        (12, "a picture of 4, again 2 "),
        (14, "a picture of 4, again 4 "),
    ]
    assert (first.instances, first.stuff_map, first.graph, first.narratives) == (None, None, None, None)


def test_optional_files_are_joined_by_image(coco: Path) -> None:
    write_json(coco / "annotations/instances_train2017.json", instances_json())
    write_json(coco / "annotations/scene_graphs_train2017.json", graphs_json())
    shard = "annotations/coco_train_localized_narratives-0000{}-of-00002.jsonl"
    write_lines(coco / shard.format(0), [narrative_line("4", 1), narrative_line("2", 1)])
    write_lines(coco / shard.format(1), [narrative_line("4", 2), narrative_line("555", 1)])
    write_lines(coco / "annotations/coco_val_localized_narratives.jsonl", [narrative_line("4", 3)])
    (coco / "stuffthingmaps/train2017").mkdir(parents=True)
    Image.new("L", (8, 6)).save(coco / "stuffthingmaps/train2017/000000000002.png")

    dataset = read_coco(coco, "train")

    assert dataset.carries == {"images", "captions", "instances", "graph", "narratives", "stuff"}
    first, second = dataset.records
    (cat,) = first.instances or ()
    assert (cat.category, cat.box, cat.area, cat.crowd) == ("cat", (0.0, 0.0, 4.0, 3.5), 6.0, False)
    assert cat.segmentation == [[0, 0, 4, 0, 4, 3]]
    assert second.instances == ()
    assert first.graph is not None and second.graph is None
    assert [narrative.annotator_id for narrative in first.narratives or ()] == [1, 2]
    assert first.stuff_map is None
    assert second.stuff_map == coco / "stuffthingmaps/train2017/000000000002.png"


def test_an_image_that_the_instances_file_does_not_list_has_none(coco: Path) -> None:
    content = instances_json()
    content["images"] = [{"id": 4}]
    write_json(coco / "annotations/instances_train2017.json", content)
    first, second = read_coco(coco, "train").records
    assert first.instances is not None and len(first.instances) == 1
    assert second.instances is None


def test_labels_named_like_thing_maps_are_stuff_too(coco: Path) -> None:
    folder = coco / "annotations/stuffthing_train2017"
    folder.mkdir()
    Image.new("L", (8, 6)).save(folder / "000000000004_label.png")
    Image.new("L", (8, 6)).save(folder / "000000000004_inst.png")
    assert read_coco(coco, "train").records[0].stuff_map == folder / "000000000004_label.png"


def test_one_year_serves_all_splits(coco: Path) -> None:
    make_coco(coco, "val", 2014)
    assert read_coco(coco, "train").year == 2017
    make_coco(coco, "train", 2014)
    assert read_coco(coco, "train").year == 2014
    assert read_coco(coco, "train").records[0].file.parent.name == "train2014"
    make_coco(coco, "val", 2017)
    assert (read_coco(coco, "train").year, read_coco(coco, "val").year) == (2017, 2017)


def test_the_digest_follows_annotations_and_image_sizes_not_the_place(coco: Path, tmp_path: Path) -> None:
    digest = read_coco(coco, "train").digest
    assert len(digest) == 64 and read_coco(coco, "train").digest == digest
    elsewhere = shutil.copytree(coco, tmp_path / "elsewhere")
    assert read_coco(elsewhere, "train").digest == digest

    with (elsewhere / "train2017/000000000004.png").open("ab") as image:
        image.write(b"!")
    resized = read_coco(elsewhere, "train").digest
    assert resized != digest
    write_json(elsewhere / "annotations/instances_train2017.json", instances_json())
    extended = read_coco(elsewhere, "train").digest
    assert extended not in (digest, resized)
    content = captions_json()
    content["annotations"][0]["caption"] = "another text"
    write_json(elsewhere / "annotations/captions_train2017.json", content)
    assert read_coco(elsewhere, "train").digest != extended


def test_what_is_no_coco_folder_is_refused(tmp_path: Path) -> None:
    message = refusal(lambda: read_coco(tmp_path / "nowhere", "train"))
    assert str(tmp_path / "nowhere") in message and "annotations/" in message
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in refusal(lambda: read_coco(tmp_path / "file", "train"))
    assert "not a possible path" in refusal(lambda: read_coco(Path("a\0b"), "train"))
    message = refusal(lambda: read_coco(tmp_path, "train"))
    assert "is no COCO folder" in message and f"{tmp_path}/annotations/captions_train2017.json" in message


@pytest.mark.parametrize("split", ["test", "val", "trian", ""])
def test_an_absent_split_is_refused_with_those_found(coco: Path, split: str) -> None:
    message = refusal(lambda: read_coco(coco, split))
    assert f"no split {split!r}" in message and "found: train2017" in message


WHOLE = json.dumps(captions_json()).encode()


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, len(WHOLE) - 1))
def test_a_captions_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    root = tmp_path_factory.getbasetemp() / "cut-captions"
    file = root / "annotations/captions_val2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(WHOLE[:cut])
    message = refusal(lambda: read_coco(root, "val"))
    assert str(file) in message and "not whole JSON" in message and f"line 1 column {cut}" in message


@settings(deadline=None, max_examples=60)
@given(position=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_captions_file_with_a_changed_byte_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "changed-captions"
    if not root.exists():
        make_coco(root, "val")
    changed = WHOLE[:position] + bytes([byte]) + WHOLE[position + 1 :]
    (root / "annotations/captions_val2017.json").write_bytes(changed)
    try:
        assert len(read_coco(root, "val").records) >= 1
    except RequestError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c.pop("images"), "images is missing"),
        (lambda c: c["annotations"][1].pop("caption"), "annotations[1].caption is missing"),
        (lambda c: c["annotations"][1].update(caption=None), "annotations[1].caption: input should be"),
        (lambda c: c["annotations"][0].update(image_id="4"), "annotations[0].image_id: input should be"),
        (lambda c: c["images"][0].update(id=2**63), "images[0].id: input should be less than"),
        (lambda c: c["images"][2].update(width=0), "images[2].width: input should be greater"),
        (lambda c: c["images"][0].update(file_name=""), "images[0].file_name"),
        (lambda c: c["images"][0].update(file_name="a\0b"), "lacks 1 of the 2"),
        (lambda c: c["images"].append(c["images"][0]), "lists image 4 twice"),
        (lambda c: c["annotations"][2].update(image_id=77), "caption 12 is of image 77"),
        (lambda c: c["annotations"][3].update(caption=" \n\t"), "caption 13 of image 2 is empty"),
        (lambda c: c.update(annotations=[]), "no captioned image"),
        (lambda c: c.update(images=[], annotations=[]), "no captioned image"),
    ],
)
def test_a_wrong_captions_file_is_refused_at_the_place(coco: Path, edit: Callable[[Json], object], said: str) -> None:
    content = captions_json()
    edit(content)
    write_json(coco / "annotations/captions_train2017.json", content)
    message = refusal(lambda: read_coco(coco, "train"))
    assert said in message and "captions_train2017.json" in message
    write_json(coco / "annotations/captions_train2017.json", [content])
    assert "input should be an object" in refusal(lambda: read_coco(coco, "train"))


def test_missing_images_are_counted_and_the_first_is_named(coco: Path) -> None:
    (coco / "train2017/000000000009.png").unlink()  # has no caption: not missed
    assert len(read_coco(coco, "train").records) == 2
    (coco / "train2017/000000000002.png").unlink()
    message = refusal(lambda: read_coco(coco, "train"))
    assert "lacks 1 of the 2 captioned images" in message and "'000000000002.png' first" in message
    (coco / "train2017/000000000004.png").unlink()
    (coco / "train2017/000000000004.png").mkdir()
    assert "lacks 2 of the 2" in refusal(lambda: read_coco(coco, "train"))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c["annotations"][0].update(image_id=9), "instance 1 is of image 9"),
        (lambda c: c["annotations"][0].update(category_id=3), "instance 1 is of category 3"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotations[0].bbox[3] is missing"),
        (lambda c: c["annotations"][0].update(area=float("nan")), "annotations[0].area: input should be a finite"),
    ],
)
def test_a_wrong_instances_file_is_refused(coco: Path, edit: Callable[[Json], object], said: str) -> None:
    content = instances_json()
    edit(content)
    write_json(coco / "annotations/instances_train2017.json", content)
    message = refusal(lambda: read_coco(coco, "train"))
    assert said in message and "instances_train2017.json" in message


def test_real_photographs(shared_data: Path) -> None:
    root = shared_data / "coco-mini"
    val, train = read_coco(root, "val"), read_coco(root, "train")
    assert (len(val.records), len(train.records)) == (99, 38)
    assert sum(len(record.captions or ()) for record in val.records) == 495
    assert sum(len(record.captions or ()) for record in train.records) == 169
    assert sum(record.stuff_map is not None for record in val.records) == 2
    assert val.carries == {"images", "captions", "instances", "stuff"}
    listed = [record.instances for record in val.records if record.instances is not None]
    assert (len(listed), sum(map(len, listed))) == (66, 552)
    assert sum(thing.crowd for things in listed for thing in things) == 7
    for record in val.records:
        with Image.open(record.file) as image:
            assert image.size == (record.width, record.height)
    message = refusal(lambda: read_coco(root, "test"))
    assert "found: train2017, val2017" in message


# --- Localized Narratives -----------------------------------------------------------------------------------------


def test_narratives_keep_times_and_points_outside_the_picture(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "n.jsonl", [narrative_line("4", 1), narrative_line("9", 2), narrative_line("4", 3)])
    narratives = read_narratives(file)
    assert list(narratives) == [4, 9]
    assert [narrative.annotator_id for narrative in narratives[4]] == [1, 3]
    (first, _) = narratives[4]
    assert first.caption == "A cat sits on a mat."
    assert [(said.text, said.start, said.end) for said in first.utterances] == [
        ("A cat", 0.1, 0.9),
        ("sits on a mat.", 0.9, 2.0),
    ]
    assert [trace.shape for trace in first.traces] == [(2, 3), (1, 3), (0, 3)]
    np.testing.assert_array_equal(first.traces[0], [[-0.05, 0.5, 0.0], [0.2, 1.25, 0.5]])
    assert first.traces[0].dtype == np.float64


@pytest.mark.parametrize(
    ("published", "key"),
    [
        ("137576", 137576),
        (137576, 137576),
        ("000a1249af2bc5f0", "000a1249af2bc5f0"),
        ("ADE_val_1", "ADE_val_1"),
        ("1234567890123456", "1234567890123456"),
        ("²", "²"),
    ],
)
def test_numeric_image_ids_become_numbers(tmp_path: Path, published: int | str, key: int | str) -> None:
    assert list(read_narratives(write_lines(tmp_path / "n.jsonl", [narrative_line(published)]))) == [key]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda n: n.pop("traces"), "traces is missing"),
        (lambda n: n["traces"][0][1].pop("t"), "traces[0][1].t is missing"),
        (lambda n: n["traces"][0][1].update(x=float("inf")), "traces[0][1].x: input should be a finite number"),
        (lambda n: n["timed_caption"][1].update(start_time="0"), "timed_caption[1].start_time: input should be"),
        (lambda n: n.update(caption=3), "caption: input should be"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, edit: Callable[[Json], object], said: str) -> None:
    line = narrative_line()
    edit(line)
    file = write_lines(tmp_path / "n.jsonl", [narrative_line(), narrative_line(), line])
    message = refusal(lambda: read_narratives(file))
    assert said in message and f"{file}, line 3 " in message


def test_a_missing_and_an_empty_file_of_narratives_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(lambda: read_narratives(tmp_path / "n.jsonl"))
    (tmp_path / "n.jsonl").write_text("\n")
    assert "holds no narrative" in refusal(lambda: read_narratives(tmp_path / "n.jsonl"))


LINES = [json.dumps(narrative_line(str(number))).encode() for number in range(3)]
JOINED = b"\n".join(LINES)


@settings(deadline=None, max_examples=80)
@given(cut=st.integers(0, len(JOINED)))
def test_narratives_cut_anywhere_are_refused_or_end_at_a_whole_line(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "cut.jsonl"
    file.write_bytes(JOINED[:cut])
    kept = JOINED[:cut].split(b"\n")
    whole = [line for line in kept if line in LINES]
    if kept[-1] in (b"", *LINES) and whole:
        assert list(read_narratives(file)) == list(range(len(whole)))
    else:
        message = refusal(lambda: read_narratives(file))
        assert str(file) in message
        assert not kept[-1] or f"line {len(kept)} " in message


# --- Visual Genome ------------------------------------------------------------------------------------------------


def test_scene_graphs(tmp_path: Path) -> None:
    graphs = read_scene_graphs(write_json(tmp_path / "scene_graphs.json", graphs_json()))
    box = (1.0, 2.0, 3.0, 4.0)
    assert graphs == {
        4: SceneGraph(
            objects=(SceneObject(7, "cat", ("grey",), box), SceneObject(8, "mat", (), box)),
            relationships=((7, "ON", 8),),
        )
    }


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda g: g.append(g[0]), "lists image 4 twice"),
        (lambda g: g[0]["objects"][0].update(names=[]), "object 7 of image 4 has no name"),
        (lambda g: g[0]["objects"][0].pop("w"), "[0].objects[0].w is missing"),
        (lambda g: g[0]["relationships"][1].pop("predicate"), "[0].relationships[1].predicate is missing"),
    ],
)
def test_wrong_scene_graphs_are_refused(tmp_path: Path, edit: Callable[[list[Json]], object], said: str) -> None:
    graphs = graphs_json()
    edit(graphs)
    file = write_json(tmp_path / "scene_graphs.json", graphs)
    message = refusal(lambda: read_scene_graphs(file))
    assert said in message and str(file) in message
    assert "cannot be read" in refusal(lambda: read_scene_graphs(tmp_path / "none.json"))


# --- names of data ------------------------------------------------------------------------------------------------


def test_sources() -> None:
    assert parse_source("scenes") == Source("scenes", "")
    assert parse_source("scenes:size=32,train=64") == Source("scenes", "size=32,train=64")
    assert parse_source("coco:/data/a:b") == Source("coco", "/data/a:b")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("coc:/data", "perhaps 'coco' was meant"),
        ("COCO:/data", "perhaps 'coco' was meant"),
        ("scene", "perhaps 'scenes' was meant"),
        ("coco", "names no folder; write coco:PATH"),
        ("coco: ", "names no folder; write coco:PATH"),
        ("/data/coco-mini", "write one of scenes[:options], coco:PATH"),
        ("", "write one of scenes[:options], coco:PATH"),
    ],
)
def test_wrong_sources_are_refused_with_the_known_ones(spec: str, said: str) -> None:
    message = refusal(lambda: parse_source(spec))
    assert said in message and repr(spec) in message


ALPHABET = string.ascii_letters + string.digits + ":=/_-~ \n\t\0é"


@settings(deadline=None, max_examples=200)
@given(
    spec=st.one_of(
        st.text(ALPHABET),
        st.builds("{}:{}".format, st.sampled_from(["scenes", "coco", "cocoo"]), st.text(ALPHABET)),
    )
)
def test_every_text_is_a_source_or_refused_with_one_sentence(spec: str) -> None:
    kind, _, argument = spec.partition(":")
    if kind == "scenes" or (kind in READERS and argument.strip()):
        assert parse_source(spec) == Source(kind, argument)
    else:
        assert repr(spec) in refusal(lambda: parse_source(spec))


def test_a_coco_source_is_opened(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_source(f"coco:{coco}", "train", tmp_path / "home") == read_coco(coco, "train")
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset = open_source("coco:~/coco", "train", tmp_path / "home")
    assert dataset.digest == read_coco(coco, "train").digest
    assert "no known user" in refusal(lambda: open_source("coco:~nobody-by-this-name/x", "train", tmp_path))


def test_scenes_are_generated_below_home_and_read_as_coco(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, Path]] = []

    def generate(options: object, root: Path, progress: Callable[[int, int], None] | None) -> Path:
        asked.append((options, root))
        assert progress is not None
        progress(1, 1)
        return coco

    heard: list[tuple[int, int]] = []
    monkeypatch.setattr("orchestration.data.scenes.parse_options", lambda spec: f"parsed {spec}")
    monkeypatch.setattr("orchestration.data.scenes.generate", generate)
    dataset = open_source("scenes:size=32", "train", tmp_path / "home", lambda *step: heard.append(step))
    assert asked == [("parsed size=32", tmp_path / "home" / "data")]
    assert heard == [(1, 1)]
    assert isinstance(dataset, CocoDataset)
    assert (dataset.name, dataset.digest) == ("scenes", read_coco(coco, "train").digest)


def test_generated_scenes_carry_everything(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        dataset = open_source("scenes:size=32,train=5,val=5,test=5", split, tmp_path)
        assert (dataset.name, dataset.split, len(dataset.records)) == ("scenes", split, 5)
        assert dataset.carries == {"images", "captions", "instances", "stuff", "graph", "narratives"}
    with pytest.raises(RequestError, match="sise"):
        open_source("scenes:sise=32", "train", tmp_path)


def test_a_new_format_is_one_line(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "like-coco", read_coco)
    assert open_source(f"like-coco:{coco}", "train", tmp_path).split == "train"
    assert "like-coco:PATH" in refusal(lambda: parse_source("other:x"))
