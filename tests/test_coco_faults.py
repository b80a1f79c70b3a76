"""What is wrong with a COCO folder: refused with a sentence, or left out and told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.data.coco import read_coco
from orchestration.data.problems import Findings, Kind, refuse
from orchestration.errors import RequestError
from tests.data_files import (
    Json,
    captions_json,
    graph_json,
    image_json,
    instances_json,
    make_coco,
    panoptic_json,
    refusal,
    stuff_json,
    table,
    told,
    write_json,
    write_panoptic,
)

Edit = Callable[[Json], object]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return make_coco(tmp_path / "coco")


WHOLE = json.dumps(captions_json()).encode()


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, len(WHOLE) - 1))
def test_a_captions_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    root = tmp_path_factory.getbasetemp() / "cut-captions"
    file = table(root, "captions", "val2017")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(WHOLE[:cut])
    message = refusal(lambda: read_coco(root, "val"))
    assert f"{file} cannot be used as COCO captions" in message
    said = f"it is cut short: the JSON is not closed at its end, byte {cut}" if cut else "it is empty"
    assert said in message or "is not JSON" in message


@settings(deadline=None, max_examples=60)
@given(position=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_captions_file_with_a_changed_byte_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "changed-captions"
    if not root.exists():
        make_coco(root, "val")
    changed = WHOLE[:position] + bytes([byte]) + WHOLE[position + 1 :]
    table(root, "captions", "val2017").write_bytes(changed)
    for notice in (refuse, Findings()):
        try:
            assert len(read_coco(root, "val", notice).records) >= 1
        except RequestError as error:
            assert "\n" not in str(error)


def break_captions(edit: Edit) -> Callable[[Path], object]:
    return lambda root: _edit(root, "captions", captions_json(), edit)


def break_instances(edit: Edit) -> Callable[[Path], object]:
    return lambda root: _edit(root, "instances", instances_json(), edit)


def break_stuff(edit: Edit) -> Callable[[Path], object]:
    return lambda root: _edit(root, "stuff", stuff_json(), edit)


def break_panoptic(edit: Edit) -> Callable[[Path], object]:
    def edited(root: Path) -> None:
        write_panoptic(root)
        _edit(root, "panoptic", panoptic_json(), edit)

    return edited


def _edit(root: Path, name: str, content: Json, edit: Edit) -> None:
    edit(content)
    write_json(table(root, name), content)


def again(entries: list[Json], **changes: object) -> None:
    entries.append({**entries[0], **changes})


def break_graphs(root: Path) -> None:
    write_json(table(root, "scene_graphs"), [graph_json(4), graph_json(77)])


FAULTS = [
    # captions
    (break_captions(lambda c: c.pop("images")), Kind.FILE_BROKEN, "images is missing"),
    (break_captions(lambda c: c.update(annotations={})), Kind.FILE_BROKEN, "annotations: expected `array`"),
    (break_captions(lambda c: c["annotations"][1].pop("caption")), Kind.ENTRY_BROKEN, "caption is missing"),
    (break_captions(lambda c: c["annotations"][1].update(caption=None)), Kind.ENTRY_BROKEN, "caption: expected `str`"),
    (break_captions(lambda c: c["annotations"][0].update(image_id="4")), Kind.ENTRY_BROKEN, "image_id: expected `int`"),
    (break_captions(lambda c: c["images"][2].update(id=2**63)), Kind.ENTRY_BROKEN, "images[2]"),
    (break_captions(lambda c: c["images"][2].update(width=0)), Kind.ENTRY_BROKEN, "width: expected `int` >= 1"),
    (break_captions(lambda c: c["images"][2].update(file_name="")), Kind.ENTRY_BROKEN, "file_name: expected `str`"),
    (break_captions(lambda c: c["images"][2].update(file_name="a\0b")), Kind.PICTURE_MISSING, "lacks 1 of the 3"),
    (
        break_captions(lambda c: c["images"][2].update(file_name="../val2017/1.png")),
        Kind.ENTRY_BROKEN,
        "names the picture '../val2017/1.png', which is not below",
    ),
    (break_captions(lambda c: c["images"][2].update(file_name="/etc/hostname")), Kind.ENTRY_BROKEN, "is not below"),
    (break_captions(lambda c: c["images"].append(c["images"][0])), Kind.DUPLICATE_ID, "lists image 4 twice"),
    (break_captions(lambda c: c["annotations"][2].update(id=10)), Kind.DUPLICATE_ID, "lists caption 10 twice"),
    (
        break_captions(lambda c: c["annotations"][2].update(image_id=77)),
        Kind.ANNOTATION_WITHOUT_IMAGE,
        "caption 12 is of image 77, which is not under `images`",
    ),
    (
        break_captions(lambda c: c["annotations"][3].update(caption=" \n\t")),
        Kind.CAPTION_EMPTY,
        "caption 13 of image 2 is empty",
    ),
    # instances
    (
        break_instances(lambda c: c["annotations"][0].update(image_id=9)),
        Kind.ANNOTATION_WITHOUT_IMAGE,
        "instance 1 is of image 9",
    ),
    (
        break_instances(lambda c: c["annotations"][0].update(category_id=3)),
        Kind.CATEGORY_UNKNOWN,
        "instance 1 is of category 3, which is not under `categories`",
    ),
    (
        break_instances(lambda c: c["annotations"][0].update(bbox=[1, 2, 3])),
        Kind.ENTRY_BROKEN,
        "bbox: expected `array`",
    ),
    (
        break_instances(lambda c: c["annotations"][0].update(area=float("nan"))),
        Kind.FILE_BROKEN,
        "NaN is no JSON number",
    ),
    (break_instances(lambda c: again(c["annotations"])), Kind.DUPLICATE_ID, "lists instance 1 twice"),
    (break_instances(lambda c: again(c["images"])), Kind.DUPLICATE_ID, "lists image 4 twice"),
    (break_instances(lambda c: again(c["categories"], name="dog")), Kind.DUPLICATE_ID, "lists category 17 twice"),
    (
        break_instances(lambda c: c["images"][0].update(width=9)),
        Kind.ENTRY_BROKEN,
        "image 4 is '000000000004.png', 9 x 6 px, but '000000000004.png', 8 x 6 px, in another file of train2017",
    ),
    (
        break_instances(lambda c: c["images"][0].update(file_name="4.png")),
        Kind.ENTRY_BROKEN,
        "image 4 is '4.png', 8 x 6 px, but '000000000004.png'",
    ),
    # stuff
    (
        break_stuff(lambda c: c["annotations"][0]["segmentation"].update(size=[8, 6])),
        Kind.MASK_SIZE,
        "region 20 of image 4 has an RLE whose size is [8, 6], but its image is 6 px high and 8 px wide",
    ),
    # panoptic
    (
        break_panoptic(lambda c: again(c["annotations"], image_id=5)),
        Kind.ANNOTATION_WITHOUT_IMAGE,
        "map 5 is of image 5",
    ),
    (break_panoptic(lambda c: again(c["annotations"])), Kind.DUPLICATE_ID, "lists map 2 twice"),
    (
        break_panoptic(lambda c: c["annotations"][0].update(file_name="3.png")),
        Kind.PICTURE_MISSING,
        "panoptic_train2017 lacks 1 of the 1 images that panoptic_train2017.json lists, '3.png' among them",
    ),
    (
        break_panoptic(lambda c: c["annotations"][0]["segments_info"][0].update(id=2**24)),
        Kind.ENTRY_BROKEN,
        "segments_info[0].id",
    ),
    (
        break_panoptic(lambda c: c["annotations"][0]["segments_info"][0].update(category_id=3)),
        Kind.CATEGORY_UNKNOWN,
        "segment 197121 of image 2 is of category 3",
    ),
    (
        break_panoptic(lambda c: again(c["annotations"][0]["segments_info"])),
        Kind.DUPLICATE_ID,
        "lists segment 197121 of image 2 twice",
    ),
    (
        break_panoptic(lambda c: c["annotations"][0].update(file_name="../../train2017/000000000002.png")),
        Kind.ENTRY_BROKEN,
        "panoptic_train2017.json names the picture '../../train2017/000000000002.png', which is not below",
    ),
    # graphs
    (break_graphs, Kind.ANNOTATION_WITHOUT_IMAGE, "the graph of image 77 is of no image that train2017 lists"),
]


@pytest.mark.parametrize(("damage", "kind", "said"), FAULTS, ids=[said for _, _, said in FAULTS])
def test_a_fault_is_refused_at_its_place_or_left_out(
    coco: Path, damage: Callable[[Path], object], kind: Kind, said: str
) -> None:
    write_json(table(coco, "instances"), instances_json())  # so that images remain without captions
    damage(coco)
    message = refusal(lambda: read_coco(coco, "train"))
    assert said in message and str(coco) in message
    dataset, found = told(coco)
    assert message in found[kind]
    assert {told for told in found if told.is_fault} <= {kind, Kind.ANNOTATION_WITHOUT_IMAGE}
    assert all(record.file.is_file() for record in dataset.records) and dataset.records


def test_a_file_of_another_layout_is_refused(coco: Path) -> None:
    write_json(table(coco, "captions"), [captions_json()])
    assert "the whole of it: expected `object`, got `array`" in refusal(lambda: read_coco(coco, "train"))


def test_what_is_faulty_is_left_out_and_the_rest_is_kept(coco: Path) -> None:
    captions = captions_json()
    again(captions["images"])
    captions["annotations"][2].update(image_id=77)
    captions["annotations"][3].update(caption="")
    del captions["annotations"][4]["id"]
    again(captions["annotations"], id=11)
    write_json(table(coco, "captions"), captions)
    instances = instances_json()
    again(instances["annotations"], id=2, category_id=5)
    again(instances["annotations"], id=3, segmentation={"size": [6, 9], "counts": "0"})
    again(instances["annotations"], id=4, image_id=2, bbox=[0, 0, 0, 3])
    write_json(table(coco, "instances"), instances)
    dataset, found = told(coco)
    assert [[caption.id for caption in record.captions or ()] for record in dataset.records] == [[10], [11], []]
    assert [len(record.instances or ()) for record in dataset.records] == [1, 1, 0]
    assert {kind: len(said) for kind, said in found.items()} == {
        Kind.DUPLICATE_ID: 2,
        Kind.ANNOTATION_WITHOUT_IMAGE: 1,
        Kind.CAPTION_EMPTY: 1,
        Kind.ENTRY_BROKEN: 1,
        Kind.CATEGORY_UNKNOWN: 1,
        Kind.MASK_SIZE: 1,
        Kind.BOX_EMPTY: 1,
        Kind.IMAGE_WITHOUT_ANNOTATION: 1,
    }


def test_a_caption_that_is_not_utf8_is_left_out(coco: Path) -> None:
    content = json.dumps(captions_json()).encode().replace(b"a picture of 2, again 1", b"a picture \xff\xfe of 2")
    table(coco, "captions").write_bytes(content)
    message = refusal(lambda: read_coco(coco, "train"))
    assert "annotations[1]" in message and "is not UTF-8" in message
    dataset, found = told(coco)
    assert found[Kind.CAPTION_ENCODING] == [message]
    assert [len(record.captions or ()) for record in dataset.records] == [3, 1, 0]


def test_an_image_that_the_files_disagree_on_is_left_out_of_all(coco: Path) -> None:
    instances = instances_json()
    instances["images"][0].update(width=9)
    write_json(table(coco, "instances"), instances)
    dataset, found = told(coco)
    assert [record.image_id for record in dataset.records] == [2, 9]
    assert set(found) == {Kind.ENTRY_BROKEN, Kind.IMAGE_WITHOUT_ANNOTATION}


def test_a_broken_file_leaves_the_others(coco: Path) -> None:
    write_json(table(coco, "instances"), instances_json())
    table(coco, "captions").write_bytes(WHOLE[:200])
    assert "it is cut short: the JSON is not closed at its end, byte 200" in refusal(lambda: read_coco(coco, "train"))
    dataset, found = told(coco)
    assert len(found[Kind.FILE_BROKEN]) == 1
    assert [(record.image_id, record.captions) for record in dataset.records] == [(4, None), (2, None)]
    table(coco, "instances").write_text("")
    with pytest.raises(RequestError, match="has no usable image in train2017"):
        read_coco(coco, "train", Findings())


@pytest.mark.parametrize("name", ["captions", "scene_graphs"])
@pytest.mark.parametrize("link", [True, False])
def test_a_file_that_cannot_be_read_is_not_one_that_is_not_there(coco: Path, name: str, link: bool) -> None:
    write_json(table(coco, "instances"), instances_json())
    file = table(coco, name)
    file.unlink(missing_ok=True)
    if link:
        file.symlink_to(coco / "moved away.json")
    else:
        file.mkdir()
    message = refusal(lambda: read_coco(coco, "train"))
    assert f"{file} cannot be read (" in message
    dataset, found = told(coco)
    assert found[Kind.FILE_BROKEN] == [message] and dataset.records


def test_equal_broken_entries_are_told_at_their_own_places(coco: Path) -> None:
    captions = captions_json()
    captions["annotations"] += [{"id": "x"}, {"id": "x"}]
    write_json(table(coco, "captions"), captions)
    content = table(coco, "captions").read_bytes()
    first = content.find(b'{"id": "x"}')
    places = [first, content.find(b'{"id": "x"}', first + 1)]
    _, found = told(coco)
    assert [f"(at byte {place})" in said for place, said in zip(places, found[Kind.ENTRY_BROKEN], strict=True)] == [
        True,
        True,
    ]


@pytest.mark.parametrize("images", [[], [image_json(77)]])
def test_a_split_without_a_usable_image_is_refused(coco: Path, images: list[Json]) -> None:
    write_json(table(coco, "captions"), {"images": images, "annotations": []})
    with pytest.raises(RequestError, match="has no usable image in train2017"):
        read_coco(coco, "train", Findings())


def test_missing_pictures_are_counted_and_named(coco: Path) -> None:
    (coco / "train2017/000000000002.png").unlink()
    message = refusal(lambda: read_coco(coco, "train"))
    assert "train2017 lacks 1 of the 3 images that captions_train2017.json lists, '000000000002.png'" in message
    (coco / "train2017/000000000004.png").unlink()
    (coco / "train2017/000000000004.png").mkdir()
    assert "lacks 2 of the 3" in refusal(lambda: read_coco(coco, "train"))
    dataset, found = told(coco)
    assert [record.image_id for record in dataset.records] == [9]
    assert len(found[Kind.PICTURE_MISSING]) == 2


def test_a_missing_panoptic_map_leaves_the_image(coco: Path) -> None:
    write_panoptic(coco)
    shutil.rmtree(coco / "annotations/panoptic_train2017")  # published in an archive of their own
    assert "unpack" in refusal(lambda: read_coco(coco, "train"))
    dataset, found = told(coco)
    assert len(dataset.records) == 3 and "panoptic" not in dataset.carries
    assert set(found) == {Kind.PICTURE_MISSING, Kind.IMAGE_WITHOUT_ANNOTATION}
