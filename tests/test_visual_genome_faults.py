"""What the reader of Visual Genome does about broken files, entries and folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.data.problems import Findings, Kind, refuse
from orchestration.data.visual_genome import (
    read_visual_genome,
    visual_genome_splits,
)
from orchestration.errors import RequestError
from tests.visual_genome_release import (
    NAMES,
    SPLITS,
    Json,
    refusal,
    release_json,
    sentence,
    write_json,
    write_release,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_release(tmp_path / "vg")


@pytest.mark.parametrize(
    ("file", "edit", "kind", "said"),
    [
        ("image_data", lambda c: c[0].update(width=0), Kind.ENTRY_BROKEN, "width: expected `int` >= 1"),
        ("image_data", lambda c: c.append(c[1]), Kind.DUPLICATE_ID, "image_data.json lists image 2 twice"),
        ("objects", lambda c: c.append(c[0]), Kind.DUPLICATE_ID, "objects.json lists image 1 twice"),
        ("attributes", lambda c: c.append(c[0]), Kind.DUPLICATE_ID, "attributes.json lists image 1 twice"),
        ("relationships", lambda c: c.append(c[0]), Kind.DUPLICATE_ID, "relationships.json lists image 1 twice"),
        ("objects", lambda c: c[1].update(image_id=9), Kind.ANNOTATION_WITHOUT_IMAGE, "image 9 is not in image_data"),
        (
            "attributes",
            lambda c: c[1].update(image_id=9),
            Kind.ANNOTATION_WITHOUT_IMAGE,
            "image 9 is not in image_data",
        ),
        (
            "relationships",
            lambda c: c[1].update(image_id=9),
            Kind.ANNOTATION_WITHOUT_IMAGE,
            "relationships.json: image 9 is not in image_data",
        ),
        (
            "objects",
            lambda c: c[0].pop("objects"),
            Kind.ENTRY_BROKEN,
            "[0] (at byte 1) cannot be used as Visual Genome",
        ),
        ("objects", lambda c: c[0].update(objects={}), Kind.ENTRY_BROKEN, "objects of image 1 cannot be used"),
        (
            "objects",
            lambda c: c[0]["objects"][1].update(names=[]),
            Kind.ENTRY_BROKEN,
            "object 1058508 of image 1 has no name; give it one under `names`",
        ),
        ("objects", lambda c: c[0]["objects"][1].update(names=[" "]), Kind.ENTRY_BROKEN, "of image 1 has no name"),
        (
            "objects",
            lambda c: c[0]["objects"][1].pop("h"),
            Kind.ENTRY_BROKEN,
            "objects[1] of image 1 cannot be used: h is missing",
        ),
        (
            "objects",
            lambda c: c[0]["objects"].append(c[0]["objects"][0]),
            Kind.DUPLICATE_ID,
            "object 1058498 of image 1 is listed twice",
        ),
        (
            "attributes",
            lambda c: c[0]["attributes"][0].update(attributes="green"),
            Kind.ENTRY_BROKEN,
            "attributes[0] of image 1 cannot be used: attributes: expected",
        ),
        (
            "relationships",
            lambda c: c[0]["relationships"][0].pop("subject"),
            Kind.ENTRY_BROKEN,
            "relationships[0] of image 1 cannot be used: subject is missing",
        ),
        (
            "relationships",
            lambda c: c[0]["relationships"][0]["object"].pop("object_id"),
            Kind.ENTRY_BROKEN,
            "object_id is missing in object",
        ),
    ],
)
def test_a_broken_part_is_refused_or_left_out(
    tmp_path: Path, file: str, edit: Callable[[list[Json]], object], kind: Kind, said: str
) -> None:
    content = release_json()
    edit(content[file])
    root = write_release(tmp_path / "vg", content, {"train": [2], "val": [1], "test": [3]})
    message = refusal(lambda: [read_visual_genome(root, split) for split in SPLITS])
    assert said in message and str(root / f"{file}.json") in message
    findings = Findings()
    for split in ("train", "val"):
        try:
            (record,) = read_visual_genome(root, split, findings).records
        except RequestError as error:
            assert file == "image_data" and "no picture in split 'val'" in str(error)
        else:
            assert record.graph is None or len(record.graph.objects) <= 2
    assert kind in findings.counts
    assert any(said in sentence(example) for example in findings.examples[kind])


def test_faults_of_another_splits_pictures_are_not_told(tmp_path: Path) -> None:
    content = release_json()
    content["objects"][0]["objects"][0].pop("h")
    content["objects"].append(content["objects"][0])
    root = write_release(tmp_path / "vg", content, {"train": [2], "val": [1], "test": [3]})
    assert len(read_visual_genome(root, "train").records) == 1
    read_visual_genome(root, "val", findings := Findings())
    assert findings.counts[Kind.DUPLICATE_ID] == findings.counts[Kind.ENTRY_BROKEN] == 1


def test_missing_pictures_are_counted(root: Path) -> None:
    (root / "VG_100K/2.jpg").unlink()
    message = refusal(lambda: read_visual_genome(root, "train"))
    assert f"{root} lacks 1 of the 2 images that image_data.json lists, 'VG_100K/2.jpg' among them" in message
    (record,) = read_visual_genome(root, "train", findings := Findings()).records
    assert record.image_id == 1
    assert findings.counts == {Kind.PICTURE_MISSING: 1}
    (root / "VG_100K_2/1.jpg").unlink()
    assert "no picture of its train split" in refusal(lambda: read_visual_genome(root, "train", Findings()))


@pytest.mark.parametrize(
    ("splits", "kind", "said"),
    [
        ({**SPLITS, "val": [3, 1]}, Kind.DUPLICATE_ID, "lists image 1 in train and again in val"),
        ({**SPLITS, "train": [2, 1, 2]}, Kind.DUPLICATE_ID, "lists image 2 in train and again in train"),
        ({**SPLITS, "test": [2407890, 5]}, Kind.ANNOTATION_WITHOUT_IMAGE, "image 5 of test is not in image_data.json"),
        ({**SPLITS, "val": ["3", 3]}, Kind.ENTRY_BROKEN, "val[0]"),
    ],
)
def test_wrong_splits_are_refused_or_mended(tmp_path: Path, splits: Json, kind: Kind, said: str) -> None:
    root = write_release(tmp_path / "vg", splits=splits)
    message = refusal(lambda: read_visual_genome(root, "train"))
    assert said in message and "vg_splits.json" in message
    for split, ids in SPLITS.items():
        findings = Findings()
        assert [record.image_id for record in read_visual_genome(root, split, findings).records] == ids
        assert findings.counts[kind] == 1


def test_a_broken_split_file_never_becomes_another_split(root: Path) -> None:
    (root / "vg_splits.json").write_text('{"train": [1, 2], "val"')
    assert "vg_splits.json cannot be used as Visual Genome splits: it is cut short" in refusal(
        lambda: visual_genome_splits(root)
    )
    assert "no picture in split 'train' (found: none)" in refusal(lambda: read_visual_genome(root, "train", Findings()))
    write_json(root / "vg_splits.json", {"train": [1], "test": []})
    assert "val is missing" in refusal(lambda: read_visual_genome(root, "train"))
    write_json(root / "vg_splits.json", {"train": [], "val": [], "test": []})
    assert "name no picture" in refusal(lambda: visual_genome_splits(root))
    write_json(root / "vg_splits.json", {"train": [2], "val": [], "test": []})
    assert visual_genome_splits(root) == ("train",)


def test_a_folder_of_another_layout_is_refused(root: Path, tmp_path: Path) -> None:
    for call in (visual_genome_splits, lambda folder: read_visual_genome(folder, "train")):
        assert "cannot be opened" in refusal(lambda call=call: call(tmp_path / "none"))  # type: ignore[misc]
        assert "is not a folder" in refusal(lambda call=call: call(root / "objects.json"))  # type: ignore[misc]
    (root / "attributes.json").unlink()
    (root / "objects.json").unlink()
    message = refusal(lambda: visual_genome_splits(root))
    assert "is no Visual Genome folder: it lacks objects.json, attributes.json;" in message
    assert "no picture in split 'dev' (found: train, val, test)" in refusal(
        lambda: read_visual_genome(write_release(tmp_path / "whole"), "dev")
    )


def test_one_broken_entry_does_not_hide_the_splits(tmp_path: Path) -> None:
    content = release_json()
    content["image_data"][3].pop("width")
    assert visual_genome_splits(write_release(tmp_path / "vg", content)) == ("train", "val")


TEXTS = {name: json.dumps(release_json()[name]).encode() for name in NAMES}


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(NAMES), place=st.floats(0, 0.999))
def test_a_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, name: str, place: float) -> None:
    root = tmp_path_factory.getbasetemp() / "cut-release"
    write_release(root)
    cut = int(place * len(TEXTS[name]))
    (root / f"{name}.json").write_bytes(TEXTS[name][:cut])
    message = refusal(lambda: read_visual_genome(root, "train"))
    assert f"{name}.json cannot be used as" in message and ("it is empty", f"byte {cut}")[cut > 0] in message


@settings(deadline=None, max_examples=150)
@given(name=st.sampled_from(NAMES), place=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_a_changed_byte_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, byte: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "changed-release"
    write_release(root)
    text = bytearray(TEXTS[name])
    text[int(place * len(text))] = byte
    (root / f"{name}.json").write_bytes(text)
    for notice in (refuse, Findings()):
        try:
            assert len(read_visual_genome(root, "train", notice).records) >= 1
        except RequestError as error:
            sentence(str(error))
