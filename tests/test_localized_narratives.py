"""Localized Narratives: their three layouts, what can be wrong with a line, and the folders they caption."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestration.data.ln_folders import (
    ln_ade20k_splits,
    ln_coco_splits,
    ln_flickr30k_splits,
    ln_open_images_splits,
    read_ln_ade20k,
    read_ln_coco,
    read_ln_flickr30k,
    read_ln_open_images,
)
from orchestration.data.localized_narratives import StoredTraces, each_narrative, read_narratives
from orchestration.data.problems import Findings, Kind
from orchestration.data.records import Caption, Narrative, Utterance
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


def caption_line(image_id: int | str = "4", annotator_id: int = 1) -> Json:
    whole = narrative_line(image_id, annotator_id)
    return {name: whole[name] for name in ("dataset_id", "image_id", "annotator_id", "caption")}


def tags_line(image_id: int | str = 4, annotator_id: int = 1) -> Json:
    return {
        "image_id": image_id,
        "annotator_id": annotator_id,
        "words": ["a", "cat", "sits"],
        "tags": ["cat", "cat", "playing field"],
    }


def write_lines(file: Path, lines: list[Json]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def picture(file: Path, width: int = 8, height: int = 6) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 40, 200)).save(file)
    return file


# --- the three layouts --------------------------------------------------------------------------------------------


def test_narratives_keep_times_and_points_outside_the_picture(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "n.jsonl", [narrative_line("4", 1), narrative_line("9", 2), narrative_line("4", 3)])
    narratives = read_narratives(file)
    assert list(narratives) == [4, 9]
    assert [narrative.annotator_id for narrative in narratives[4]] == [1, 3]
    (first, _) = narratives[4]
    assert first.caption == "A cat sits on a mat."
    assert tuple(first.utterances) == (Utterance("A cat", 0.1, 0.9), Utterance("sits on a mat.", 0.9, 2.0))
    assert [trace.shape for trace in first.traces] == [(2, 3), (1, 3), (0, 3)]
    np.testing.assert_array_equal(first.traces[0], [[-0.05, 0.5, 0.0], [0.2, 1.25, 0.5]])
    assert first.traces[0].dtype == np.float64
    assert first.tags is None


def test_shards_are_one_set_in_their_order(tmp_path: Path) -> None:
    shards = [
        write_lines(tmp_path / "a.jsonl", [narrative_line("9"), narrative_line("4", 2)]),
        write_lines(tmp_path / "b.jsonl", [narrative_line("4", 1)]),
    ]
    assert {key: [said.annotator_id for said in told] for key, told in read_narratives(shards).items()} == {
        9: [1],
        4: [2, 1],
    }
    assert [image_id for image_id, _ in each_narrative(shards)] == [9, 4, 4]
    assert read_narratives([]) == {}


def test_captions_without_times_and_tags_of_words_are_narratives_too(tmp_path: Path) -> None:
    tags = tags_line(9)
    del tags["annotator_id"]
    file = write_lines(tmp_path / "n.jsonl", [caption_line("000a1249af2bc5f0", 7), tags_line(), tags])
    assert read_narratives(file) == {
        "000a1249af2bc5f0": (Narrative(7, "A cat sits on a mat.", (), ()),),
        4: (Narrative(1, "a cat sits", (), (), ("cat", "cat", "playing field")),),
        9: (Narrative(0, "a cat sits", (), (), ("cat", "cat", "playing field")),),
    }


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


# --- utterances and traces stay in the file -----------------------------------------------------------------------


def test_utterances_and_traces_are_sequences_that_can_be_sent_and_compared(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "n.jsonl", [narrative_line("4", 1), narrative_line("é", 2)])
    ((first,), (second,)) = read_narratives(file).values()
    assert (len(second.traces), len(second.utterances)) == (3, 2)
    assert (second.utterances[-1], second.utterances[:1]) == (
        Utterance("sits on a mat.", 0.9, 2.0),
        (Utterance("A cat", 0.1, 0.9),),
    )
    assert [len(trace) for trace in second.traces[1:]] == [1, 0]
    with pytest.raises(IndexError):
        second.traces[3]
    assert copy.deepcopy(second) == second  # by the protocol that workers send it with
    assert isinstance(second.traces, StoredTraces)
    length = len(file.read_bytes().splitlines(keepends=True)[0])
    place = {"file": file, "offset": length, "length": file.stat().st_size - length}
    assert asdict(second.traces) == {"place": place, "size": 3}  # no more than this is kept and sent
    assert read_narratives(file)[4] == (first,)
    assert first != second
    assert first.traces != second.traces
    second.traces[0][:] = 7  # one's own copy
    assert second.traces[0][0, 0] == -0.05


def test_the_places_of_lines_hold_with_blank_lines_windows_ends_and_wide_letters(tmp_path: Path) -> None:
    lines = [narrative_line(str(number), number) for number in range(3)]
    for number, line in enumerate(lines):
        line["traces"][0][0]["x"] = number / 4
        line["caption"] = "ein Kätzchen, 猫"
    texts = [json.dumps(line, ensure_ascii=False).encode() for line in lines]
    file = tmp_path / "n.jsonl"
    file.write_bytes(b"\n" + texts[0] + b"\r\n  \n" + texts[1] + b"\n\n\n" + texts[2])
    narratives = read_narratives(file)
    assert [narratives[number][0].traces[0][0, 0] for number in range(3)] == [0, 0.25, 0.5]
    assert narratives[2][0].caption == "ein Kätzchen, 猫"


def test_a_file_changed_after_reading_is_noticed(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "n.jsonl", [narrative_line("4", 1), narrative_line("4", 2)])
    (first, second) = read_narratives(file)[4]
    assert len(list(second.traces)) == 3
    write_lines(file, [narrative_line("12345678", 1)])
    assert "at byte 0 cannot be read again (it was changed since it was read)" in refusal(lambda: first.traces[0])
    assert "it was changed" in refusal(lambda: second.utterances[0])
    file.unlink()
    message = refusal(lambda: list(second.traces))
    assert "(No such file or directory); put the file back" in message


# --- what can be wrong --------------------------------------------------------------------------------------------


def number_of(text: str) -> Callable[[Json], object]:
    """An edit that gives a point the value `text`, which may be no JSON."""
    return lambda line: line["traces"][1][0].update(y=f"<{text}>")


WRONG: list[tuple[Callable[[Json], object], Kind, str]] = [
    (lambda n: n.pop("traces"), Kind.ENTRY_BROKEN, "traces is missing"),
    (lambda n: n.pop("timed_caption"), Kind.ENTRY_BROKEN, "timed_caption is missing"),
    (lambda n: n.pop("caption"), Kind.ENTRY_BROKEN, "caption is missing"),
    (lambda n: n["traces"][0][1].pop("t"), Kind.ENTRY_BROKEN, "t is missing in traces[0][1]"),
    (lambda n: n["traces"][0][1].update(x="0"), Kind.ENTRY_BROKEN, "traces[0][1].x: expected `float`, got `str`"),
    (lambda n: n["timed_caption"][1].update(start_time="0"), Kind.ENTRY_BROKEN, "timed_caption[1].start_time: exp"),
    (lambda n: n["timed_caption"][1].update(end_time=None), Kind.ENTRY_BROKEN, "timed_caption[1].end_time: expected"),
    (lambda n: n.update(caption=3), Kind.ENTRY_BROKEN, "caption: expected `str`"),
    (lambda n: n.update(image_id=""), Kind.ENTRY_BROKEN, "image_id: expected `str` of length >= 1"),
    (lambda n: n.update(image_id=-4), Kind.ENTRY_BROKEN, "image_id: expected `int` >= 0"),
    (lambda n: n.update(annotator_id=None), Kind.ENTRY_BROKEN, "annotator_id: expected `int`, got `null`"),
    (number_of("NaN"), Kind.TRACE_NAN, "traces[1][0].y is no finite number but NaN, Infinity or null"),
    (number_of("Infinity"), Kind.TRACE_NAN, "traces[1][0].y is no finite number"),
    (number_of("-Infinity"), Kind.TRACE_NAN, "traces[1][0].y is no finite number"),
    (number_of("null"), Kind.TRACE_NAN, "traces[1][0].y is no finite number"),
    (number_of("1e999"), Kind.TRACE_NAN, "traces[1][0].y is no finite number"),
    (number_of("nan"), Kind.ENTRY_BROKEN, "it is not JSON from byte"),
    (lambda n: n["timed_caption"][0].update(end_time="<NaN>"), Kind.ENTRY_BROKEN, "NaN is no JSON number"),
    (lambda n: n.update(caption=" \t"), Kind.CAPTION_EMPTY, "the caption of image 4 is empty"),
    (lambda n: n.update(caption="<\udcff>"), Kind.CAPTION_ENCODING, "is not UTF-8"),
    (lambda n: n["timed_caption"][0].update(utterance="<\udcff>"), Kind.CAPTION_ENCODING, "is not UTF-8"),
]


def as_published(line: Json) -> bytes:
    """A line of JSON, whose <...> strings are put in as they are."""
    text = json.dumps(line, ensure_ascii=False).replace('"<\udcff>"', '"\udcff"')
    return text.replace('"<', "").replace('>"', "").encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(("edit", "kind", "said"), WRONG)
def test_a_wrong_line_is_refused_with_its_number_or_left_out(
    tmp_path: Path, edit: Callable[[Json], object], kind: Kind, said: str
) -> None:
    line = narrative_line()
    edit(line)
    file = tmp_path / "n.jsonl"
    whole = [json.dumps(narrative_line("4", number)).encode() for number in range(3)]
    file.write_bytes(b"\n".join([*whole[:2], as_published(line), whole[2], b""]))
    message = refusal(lambda: read_narratives(file))
    assert said in message
    assert f"{file}, line 3" in message
    findings = Findings()
    assert [narrative.annotator_id for narrative in read_narratives(file, findings)[4]] == [0, 1, 2]
    assert findings.counts == {kind: 1, Kind.TRACE_OUTSIDE: 3}


def test_words_and_tags_go_together(tmp_path: Path) -> None:
    short, spaced, empty = tags_line(), tags_line(), tags_line()
    short["tags"].pop()
    spaced["words"][1] = "tabby cat"
    empty.update(words=[], tags=[])
    file = tmp_path / "n.jsonl"
    assert "line 1 is no Localized Narrative: it has 3 words but 2 tags;" in refusal(
        lambda: read_narratives(write_lines(file, [short]))
    )
    assert "line 1 is no Localized Narrative: words[1]: expected `str` matching" in refusal(
        lambda: read_narratives(write_lines(file, [spaced]))
    )
    assert "caption of image 4 is empty" in refusal(lambda: read_narratives(write_lines(file, [empty])))


def test_the_same_words_of_the_same_annotator_again_are_refused(tmp_path: Path) -> None:
    other = narrative_line("4", 1)
    other["caption"] = "Another cat."
    first = write_lines(tmp_path / "a.jsonl", [narrative_line("4", 1), other, narrative_line("5", 1)])
    second = write_lines(tmp_path / "b.jsonl", [narrative_line("4", 2), narrative_line("4", 1)])
    message = refusal(lambda: read_narratives([first, second]))
    assert f"{second}, line 2 says again what annotator 1 said of image 4 before" in message
    findings = Findings()
    assert [said.annotator_id for said in read_narratives([first, second], findings)[4]] == [1, 1, 2]
    assert findings.counts[Kind.DUPLICATE_ID] == findings.faults == 1


def test_remarks_do_not_refuse(tmp_path: Path) -> None:
    inside, silent = narrative_line("4", 1), narrative_line("4", 2)
    inside["traces"] = [[{"x": 0, "y": 1, "t": 0}, {"x": 1.0, "y": 0.0, "t": -1}]]
    silent.update(traces=[[], []], caption="Cat")
    file = write_lines(tmp_path / "n.jsonl", [inside, silent, narrative_line("4", 3)])
    assert len(read_narratives(file)[4]) == 3
    findings = Findings()
    read = read_narratives(file, findings)[4]
    assert (findings.counts, findings.faults) == (
        {Kind.CAPTION_ONE_WORD: 1, Kind.TRACE_EMPTY: 1, Kind.TRACE_OUTSIDE: 1},
        0,
    )
    assert [len(narrative.traces) for narrative in read] == [1, 0, 3]
    (outside,) = findings.examples[Kind.TRACE_OUTSIDE]
    assert outside == f"{file}, line 3: traces[0][0].x is outside of the picture; such points are kept."


def test_a_missing_and_an_empty_file_of_narratives_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "n.jsonl"
    assert "cannot be read (No such file" in refusal(lambda: read_narratives(file))
    file.write_text("\n")
    assert "holds no narrative" in refusal(lambda: read_narratives(file))
    findings = Findings()
    good = write_lines(tmp_path / "good.jsonl", [narrative_line()])
    assert list(read_narratives([file, tmp_path / "none.jsonl", good], findings)) == [4]
    assert findings.counts[Kind.FILE_BROKEN] == 2


LINES = [json.dumps(narrative_line(str(number))).encode() for number in range(2)]
JOINED = b"\n".join(LINES)


def test_narratives_cut_anywhere_are_refused_or_end_at_a_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "cut.jsonl"
    for cut in range(len(JOINED)):
        file.write_bytes(JOINED[:cut])
        kept = JOINED[:cut].split(b"\n")
        whole = [line for line in kept if line in LINES]
        if kept[-1] in (b"", *LINES) and whole:
            assert list(read_narratives(file)) == list(range(len(whole)))
            continue
        with pytest.raises(RequestError) as caught:
            read_narratives(file)
        place = f"line {len(kept)} is no Localized Narrative: the file ends in the middle of it, at byte {cut};"
        assert str(file) in str(caught.value)
        assert not kept[-1] or place in str(caught.value)


def test_a_line_cut_within_the_file_is_no_end_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "n.jsonl"
    file.write_bytes(LINES[0][:300] + b"\n" + LINES[1])
    message = refusal(lambda: read_narratives(file))
    assert "line 1 is no Localized Narrative: it is cut short: the JSON is not closed at its end, byte 301;" in message
    file.write_bytes(LINES[0] + b"\n" + LINES[1].replace(b":", b"?", 1))
    assert "line 2 is no Localized Narrative: it is not JSON from byte 13" in refusal(lambda: read_narratives(file))


@settings(deadline=None, max_examples=150)
@given(position=st.integers(0, len(LINES[0]) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "changed.jsonl"
    file.write_bytes(LINES[0][:position] + bytes([byte]) + LINES[0][position + 1 :] + b"\n")
    findings = Findings()
    for narratives in read_narratives(file, findings).values():
        for narrative in narratives:
            assert len(list(narrative.traces)) == len(narrative.traces)
            assert len(list(narrative.utterances)) == len(narrative.utterances)
    try:
        assert read_narratives(file)
    except RequestError as error:
        assert findings.faults
        assert "\n" not in str(error)


# --- folders ------------------------------------------------------------------------------------------------------


def coco_captions(root: Path, split: str, ids: tuple[int, ...]) -> None:
    """COCO's captions of pictures that are there."""
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 8, "height": 6} for i in ids]
    written = [{"id": 70 + i, "image_id": i, "caption": f"a picture of {i}"} for i in ids]
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"annotations/captions_{split}2017.json").write_text(
        json.dumps({"images": images, "annotations": written, "categories": []}), encoding="utf-8"
    )
    for i in ids:
        picture(root / f"{split}2017/{i:012d}.jpg")


def test_ln_coco_without_cocos_own_annotations(tmp_path: Path) -> None:
    shard = "coco_train_localized_narratives-0000{}-of-00002.jsonl"
    write_lines(tmp_path / shard.format(0), [narrative_line("9"), narrative_line("4", 2)])
    write_lines(tmp_path / shard.format(1), [narrative_line("9", 3)])
    for other in ("flickr30k_train_localized_narratives.jsonl", "old_coco_train_localized_narratives.jsonl"):
        write_lines(tmp_path / other, [narrative_line("77")])
    picture(tmp_path / "train2017/000000000004.jpg", 5, 3)
    picture(tmp_path / "train2017/000000000009.jpg", 2, 7)
    assert ln_coco_splits(tmp_path) == ("train",)
    dataset = read_ln_coco(tmp_path, "train")
    assert (dataset.name, dataset.split, dataset.root) == ("ln-coco", "train", tmp_path)
    assert dataset.carries == {"images", "captions", "narratives", "traces"}
    assert [(record.image_id, record.width, record.height, record.key) for record in dataset.records] == [
        (9, 2, 7, None),
        (4, 5, 3, None),
    ]
    text = "A cat sits on a mat."
    assert [record.captions for record in dataset.records] == [
        (Caption(0, text), Caption(1, text)),
        (Caption(2, text),),
    ]
    moved = tmp_path.rename(tmp_path.parent / "moved")
    assert read_ln_coco(moved, "train").digest == dataset.digest
    picture(moved / "train2017/000000000009.jpg", 64, 64)
    assert read_ln_coco(moved, "train").digest != dataset.digest
    (moved / shard.format(0)).unlink()
    assert "has 1 of the 2 shards of LN-COCO train, number 00000 is missing" in refusal(
        lambda: read_ln_coco(moved, "train")
    )
    findings = Findings()
    left = read_ln_coco(moved, "train", findings)
    assert ([record.image_id for record in left.records], findings.faults) == ([9], 1)
    assert left.digest != dataset.digest


@pytest.mark.parametrize("folder", ["", "annotations"])
def test_ln_coco_takes_the_records_of_coco_where_they_are(tmp_path: Path, folder: str) -> None:
    coco_captions(tmp_path, "val", (2, 4, 9))
    write_lines(
        tmp_path / folder / "coco_val_localized_narratives.jsonl", [narrative_line("9"), narrative_line("4", 2)]
    )
    assert ln_coco_splits(tmp_path) == ("val",)
    dataset = read_ln_coco(tmp_path, "val")
    assert [record.image_id for record in dataset.records] == [4, 9]
    assert [record.captions for record in dataset.records] == [
        (Caption(0, "A cat sits on a mat."),),
        (Caption(1, "A cat sits on a mat."),),
    ]
    assert dataset.records[0].narratives is not None
    assert dataset.name == "ln-coco"
    assert {"captions", "narratives", "traces"} <= dataset.carries


def test_ln_coco_passes_over_narratives_of_images_that_coco_does_not_list(tmp_path: Path) -> None:
    coco_captions(tmp_path, "val", (2, 4))
    file = write_lines(tmp_path / "coco_val_localized_narratives.jsonl", [narrative_line("9"), narrative_line("4", 2)])
    assert [record.image_id for record in read_ln_coco(tmp_path, "val").records] == [4]
    digest = read_ln_coco(tmp_path, "val").digest
    write_lines(file, [narrative_line("4", 2)])
    assert read_ln_coco(tmp_path, "val").digest != digest
    write_lines(file, [narrative_line("9")])
    assert "has no picture with a narrative in split 'val'" in refusal(lambda: read_ln_coco(tmp_path, "val"))


def test_ln_coco_is_of_2017_wherever_2014_lies_beside_it(tmp_path: Path) -> None:
    coco_captions(tmp_path, "val", (4,))
    for split in ("train", "val", "test"):
        captions = (tmp_path / "annotations/captions_val2017.json").read_text(encoding="utf-8")
        (tmp_path / f"annotations/captions_{split}2014.json").write_text(captions, encoding="utf-8")
    write_lines(tmp_path / "annotations/coco_val_localized_narratives.jsonl", [narrative_line("4")])
    (record,) = read_ln_coco(tmp_path, "val").records
    assert record.file == tmp_path / "val2017/000000000004.jpg"


def test_ln_open_images(tmp_path: Path) -> None:
    ids = ["000a1249af2bc5f0", "1234567890123456"]
    for split, stem in (("train", "train_v6"), ("validation", "validation"), ("test", "test")):
        name = f"open_images_{stem}_localized_narratives" + ("-00000-of-00001" if split == "train" else "")
        write_lines(tmp_path / f"annotations/{name}.jsonl", [narrative_line(i) for i in ids])
        for i in ids:
            picture(tmp_path / f"{split}/{i}.jpg")
    assert ln_open_images_splits(tmp_path) == ("train", "val", "test")
    for split in ("train", "val", "test"):
        dataset = read_ln_open_images(tmp_path, split)
        assert (dataset.name, dataset.split) == ("ln-openimages", split)
        assert [(record.image_id, record.key) for record in dataset.records] == list(enumerate(ids))
    assert read_ln_open_images(tmp_path, "val").records[0].file == tmp_path / "validation/000a1249af2bc5f0.jpg"
    (tmp_path / f"validation/{ids[0]}.jpg").unlink()
    message = refusal(lambda: read_ln_open_images(tmp_path, "val"))
    assert "lacks 1 of the 2 images that open_images_validation_localized_narratives.jsonl lists" in message
    kept = read_ln_open_images(tmp_path, "val", Findings())
    (tmp_path / "annotations/open_images_test_localized_narratives.jsonl").unlink()
    (tmp_path / "annotations/open_images_test_localized_narratives.jsonl").mkdir()
    with pytest.raises(RequestError, match="has no picture with a narrative in split 'test'"):
        read_ln_open_images(tmp_path, "test", Findings())
    assert [(record.image_id, record.key) for record in kept.records] == [(1, ids[1])]


def test_ln_flickr30k(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_lines(tmp_path / f"flickr30k_{split}_localized_narratives.jsonl", [narrative_line("1000092795")])
    picture(tmp_path / "flickr30k-images/1000092795.jpg")
    assert ln_flickr30k_splits(tmp_path) == ("train", "val", "test")
    (record,) = read_ln_flickr30k(tmp_path, "test").records
    assert (record.image_id, record.key, record.width) == (1000092795, None, 8)


@pytest.mark.parametrize("folder", ["ADEChallengeData2016/images", "images"])
def test_ln_ade20k(tmp_path: Path, folder: str) -> None:
    for split, name in (("train", "training"), ("validation", "validation")):
        image_id = f"ADE_{split[:5].removesuffix('id')}_00000001"
        write_lines(tmp_path / f"ade20k_{split}_localized_narratives.jsonl", [narrative_line(image_id)])
        picture(tmp_path / f"{folder}/{name}/{image_id}.jpg")
    assert ln_ade20k_splits(tmp_path) == ("train", "val")
    assert [record.key for record in read_ln_ade20k(tmp_path, "train").records] == ["ADE_train_00000001"]
    assert [record.key for record in read_ln_ade20k(tmp_path, "val").records] == ["ADE_val_00000001"]


def test_captions_only_files_serve_where_the_full_ones_are_not(tmp_path: Path) -> None:
    write_lines(tmp_path / "flickr30k_val_captions.jsonl", [caption_line("5")])
    picture(tmp_path / "flickr30k-images/5.jpg")
    assert read_ln_flickr30k(tmp_path, "val").carries == {"images", "captions", "narratives"}
    write_lines(tmp_path / "flickr30k_val_localized_narratives.jsonl", [narrative_line("5")])
    dataset = read_ln_flickr30k(tmp_path, "val")
    assert dataset.carries == {"images", "captions", "narratives", "traces"}
    assert len(dataset.records[0].captions or ()) == 1


def test_wrong_folders_and_splits_are_refused(tmp_path: Path) -> None:
    for splits in (ln_coco_splits, ln_open_images_splits, ln_flickr30k_splits, ln_ade20k_splits):
        assert "is no folder of" in refusal(lambda read=splits: read(tmp_path))  # type: ignore[misc]
        assert "cannot be opened" in refusal(lambda read=splits: read(tmp_path / "none"))  # type: ignore[misc]
    write_lines(tmp_path / "ade20k_train_localized_narratives.jsonl", [narrative_line("ADE_train_1")])
    assert "has no narratives of split 'test' (found: train)" in refusal(lambda: read_ln_ade20k(tmp_path, "test"))
    findings = Findings()
    assert "has no picture with a narrative in split 'train'" in refusal(
        lambda: read_ln_ade20k(tmp_path, "train", findings)
    )
    assert findings.counts[Kind.PICTURE_MISSING] == 1
    broken = tmp_path / "images/training/ADE_train_1.jpg"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no picture")
    assert "does not decode" in refusal(lambda: read_ln_ade20k(tmp_path, "train"))


def test_a_coco_image_id_that_is_no_number_is_a_missing_picture(tmp_path: Path) -> None:
    write_lines(tmp_path / "coco_val_localized_narratives.jsonl", [narrative_line("x\0y")])
    assert "lacks 1 of the 1 images" in refusal(lambda: read_ln_coco(tmp_path, "val"))


def test_real_tags(shared_data: Path) -> None:
    root = shared_data / "coco-mini"
    narratives = read_narratives(root / "annotations/localized_narratives_tags_val2017.jsonl")
    assert (len(narratives), sum(map(len, narratives.values()))) == (99, 170)
    for told in narratives.values():
        for narrative in told:
            assert narrative.tags is not None
            assert len(narrative.caption.split()) == len(narrative.tags)
    assert ln_coco_splits(root) == ("val",)
    dataset = read_ln_coco(root, "val")
    assert (len(dataset.records), sum(len(record.captions or ()) for record in dataset.records)) == (99, 170)
    assert {"captions", "narratives", "boxes", "masks"} <= dataset.carries
    assert "traces" not in dataset.carries
