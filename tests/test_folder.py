"""The reader of a person's own pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestration.data.folder import LISTING, SPLITS, folder_splits, read_folder
from orchestration.data.problems import Findings, Kind
from orchestration.data.records import Caption, Dataset
from orchestration.errors import RequestError

quick = settings(deadline=None, max_examples=100)
LINES: tuple[dict[str, Any], ...] = (
    {"image": "cats/1.jpg", "captions": ["a grey cat on a mat", "a cat asleep"], "split": "train"},
    {"image": "cats/2.png", "caption": "two cats", "split": "val"},
    {"image": "dog.webp", "captions": ["a dog that runs "], "split": "train"},
    {"image": "deep/er/bird.jpg", "caption": "ein Vogel im Schnee, größer als er", "split": "test"},
)


def write_folder(root: Path, entries: tuple[Any, ...] = LINES) -> Path:
    """Pictures of the entries, and captions.jsonl. A string is written as it is."""
    root.mkdir(exist_ok=True)
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("image"), str):
            picture(root, entry["image"])
    lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in entries]
    (root / LISTING).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def picture(root: Path, name: str, size: tuple[int, int] = (12, 8)) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(root / name)


def without_split(*entries: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple({key: value for key, value in entry.items() if key != "split"} for entry in entries)


def refusal(call: Callable[[], object]) -> str:
    """The message of the RequestError that `call` must end in: one line, one sentence."""
    with pytest.raises(RequestError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def keys(dataset: Dataset) -> list[str | None]:
    return [record.key for record in dataset.records]


def read_all(root: Path) -> dict[str, list[str | None]]:
    return {split: keys(read_folder(root, split)) for split in folder_splits(root)}


def test_a_folder_with_splits(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine")
    assert folder_splits(root) == SPLITS
    train = read_folder(root, "train")
    assert (train.name, train.split, train.root) == ("folder", "train", root)
    assert train.carries == {"images", "captions"}
    assert keys(train) == ["cats/1.jpg", "dog.webp"]
    first, third = train.records
    assert (first.image_id, third.image_id) == (1, 3)
    assert (first.file, first.width, first.height) == (root / "cats/1.jpg", 12, 8)
    assert first.captions == (Caption(0, "a grey cat on a mat"), Caption(1, "a cat asleep"))
    assert third.captions == (Caption(3, "a dog that runs "),)
    assert read_folder(root, "val").records[0].captions == (Caption(2, "two cats"),)
    (bird,) = read_folder(root, "test").records
    assert bird.captions == (Caption(4, "ein Vogel im Schnee, größer als er"),)


def test_only_the_splits_that_are_there(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", (LINES[0], LINES[3]))
    assert folder_splits(root) == ("train", "test")
    assert "no image to split 'val' (found: train, test)" in refusal(lambda: read_folder(root, "val"))
    assert "no image to split 'dev'" in refusal(lambda: read_folder(root, "dev"))


def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine")
    wanted = read_folder(root, "test").records[0]
    listing = root / LISTING
    listing.write_bytes(b"\xef\xbb\xbf" + listing.read_bytes().replace(b"\n", b"\r\n") + b"\r\n \n")
    assert read_folder(root, "test").records == (wanted,)


def test_a_relative_folder_gives_absolute_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert read_folder(Path("mine"), "train") == read_folder(root, "train")


def test_the_digest_is_of_what_is_read_and_not_of_where_it_lies(tmp_path: Path) -> None:
    first, second = write_folder(tmp_path / "one"), write_folder(tmp_path / "two")
    digest = read_folder(first, "train").digest
    assert read_folder(second, "train").digest == digest != read_folder(first, "val").digest
    picture(second, "dog.webp", (80, 60))
    assert read_folder(second, "train").digest != digest
    (first / LISTING).write_text((first / LISTING).read_text().replace("grey", "black"))
    assert read_folder(first, "train").digest != digest


def test_shares_of_a_large_folder(tmp_path: Path) -> None:
    names = [f"{number:04}.png" for number in range(1000)]
    tmp_path.joinpath(LISTING).write_text("\n".join(json.dumps({"image": n, "caption": "a b"}) for n in names))
    picture(tmp_path, "one.png")
    for name in names:
        (tmp_path / name).hardlink_to(tmp_path / "one.png")
    (tmp_path / "one.png").unlink()
    dealt = read_all(tmp_path)
    assert sorted(name for split in dealt.values() for name in split if name) == names
    assert 760 < len(dealt["train"]) < 840 and 70 < len(dealt["val"]) < 130 and 70 < len(dealt["test"]) < 130
    # For good: an image that changes its split would be trained on and judged.
    assert dealt["test"][:4] == ["0000.png", "0002.png", "0006.png", "0007.png"]
    # The order of the lines does not matter, nor do other lines.
    tmp_path.joinpath(LISTING).write_text("\n".join(json.dumps({"image": n, "caption": "a b"}) for n in names[:50:-1]))
    wanted = {split: sorted(name for name in found if name and name > "0050.png") for split, found in dealt.items()}
    assert {split: sorted(filter(None, found)) for split, found in read_all(tmp_path).items()} == wanted


@quick
@given(names=st.lists(st.text("abcxyz0123", min_size=1), min_size=1, max_size=30, unique=True))
def test_every_split_has_an_image_where_there_are_three(
    names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("some")
    (root / LISTING).write_text("\n".join(json.dumps({"image": name, "caption": "a b"}) for name in names))
    assert folder_splits(root) == (SPLITS if len(names) > 2 else ("train",))


def test_three_images_are_dealt_one_each(tmp_path: Path) -> None:
    dealt = read_all(write_folder(tmp_path / "mine", without_split(*LINES[:3])))
    assert [len(dealt[split]) for split in SPLITS] == [1, 1, 1]
    assert len({key for split in dealt.values() for key in split}) == 3


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, 'has no captions.jsonl; write one, with a line such as {"image": "cats/1.jpg"'),
        (b"", "captions.jsonl has no usable line"),
        (b"\n \n", "captions.jsonl has no usable line"),
    ],
)
def test_a_folder_that_is_none_is_refused(tmp_path: Path, content: bytes | None, wanted: str) -> None:
    if content is not None:
        (tmp_path / LISTING).write_bytes(content)
    assert wanted in refusal(lambda: folder_splits(tmp_path))
    assert wanted in refusal(lambda: read_folder(tmp_path, "train", Findings()))
    assert "cannot be opened" in refusal(lambda: folder_splits(tmp_path / "absent"))


def test_a_folder_of_which_no_line_is_sound_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", ('["cats/1.jpg"]', "cats/1.jpg: a cat"))
    wanted = "captions.jsonl has no usable line; line 1 cannot be used: the whole of it: expected `object`, got `array`"
    assert wanted in refusal(lambda: read_folder(root, "train", Findings()))
    (root / LISTING).write_text('{"image": "1.png", "caption": "a cat"}', encoding="utf-16")
    assert "no usable line; line 1 cannot be used: it is not JSON from byte 0" in refusal(lambda: folder_splits(root))


MINE = {"image": "mine.png", "caption": "my own", "split": "train"}
# A last line that is wrong: (the line, kind, part of the sentence).
LINE_FAULTS: dict[str, tuple[Any, Kind, str]] = {
    "not JSON": ("cats/1.jpg: a cat", Kind.ENTRY_BROKEN, "it is not JSON from byte 0 on"),
    "cut short": ('{"image": "mine.png", "cap', Kind.ENTRY_BROKEN, "it is cut short"),
    "a list": ('["mine.png"]', Kind.ENTRY_BROKEN, "expected `object`, got `array`"),
    "no image": ({"caption": "my own"}, Kind.ENTRY_BROKEN, "image is missing"),
    "empty image": ('{"image": "", "caption": "my own"}', Kind.ENTRY_BROKEN, "image: expected `str` of length >= 1"),
    "image that is a number": (MINE | {"image": 7}, Kind.ENTRY_BROKEN, "image: expected `str`, got `int`"),
    "caption that is a number": (MINE | {"caption": 7}, Kind.ENTRY_BROKEN, "caption: expected `str | null`, got `int`"),
    "captions that are a text": (
        {"image": "mine.png", "captions": "my own", "split": "train"},
        Kind.ENTRY_BROKEN,
        "captions: expected `array | null`, got `str`",
    ),
    "a number among captions": (
        {"image": "mine.png", "captions": ["my own", 7], "split": "train"},
        Kind.ENTRY_BROKEN,
        "captions[1]: expected `str`, got `int`",
    ),
    "misspelt field": (
        {"image": "mine.png", "captoins": ["my own"], "split": "train"},
        Kind.ENTRY_BROKEN,
        "object contains unknown field `captoins`",
    ),
    "unknown split": (MINE | {"split": "dev"}, Kind.ENTRY_BROKEN, "has split 'dev'; write train, val or test"),
    "no caption field": (
        {"image": "mine.png", "split": "train"},
        Kind.ENTRY_BROKEN,
        "has neither captions nor caption; write one of the two",
    ),
    "both caption fields": (MINE | {"captions": ["more of it"]}, Kind.ENTRY_BROKEN, "has both captions and caption"),
    "half a character": (
        '{"image": "mine.png", "caption": "a \\ud83d", "split": "train"}',
        Kind.ENTRY_BROKEN,
        "cannot be used",
    ),
    "above the folder": (
        {"image": "../mine.png", "caption": "my own", "split": "train"},
        Kind.ENTRY_BROKEN,
        "names image '../mine.png', which is not below the folder",
    ),
    "above the folder on a detour": (
        '{"image": "cats/../../mine.png", "caption": "my own", "split": "train"}',
        Kind.ENTRY_BROKEN,
        "which is not below the folder",
    ),
    "an absolute path": (
        '{"image": "/etc/hostname", "caption": "my own", "split": "train"}',
        Kind.ENTRY_BROKEN,
        "names image '/etc/hostname', which is not below the folder",
    ),
    "the folder itself": (
        '{"image": ".", "caption": "my own", "split": "train"}',
        Kind.ENTRY_BROKEN,
        "names image '.', which is not below the folder",
    ),
    "image twice": (LINES[2], Kind.DUPLICATE_ID, "has image 'dog.webp' of line 3 again"),
    "image twice, written in another way": (
        '{"image": "./cats//1.jpg", "caption": "my own", "split": "val"}',
        Kind.DUPLICATE_ID,
        "has image 'cats/1.jpg' of line 1 again",
    ),
    "no split": (
        {"image": "mine.png", "caption": "my own"},
        Kind.ENTRY_BROKEN,
        "has no split, as 4 of the others have",
    ),
}


@pytest.mark.parametrize("case", LINE_FAULTS)
def test_a_wrong_line_is_said_and_left_out(tmp_path: Path, case: str) -> None:
    line, kind, wanted = LINE_FAULTS[case]
    before = write_folder(tmp_path / "mine")
    sound = [record.key for split in SPLITS for record in read_folder(before, split).records]
    root = write_folder(before, (*LINES, line))
    findings = Findings()
    assert [record.key for split in SPLITS for record in read_folder(root, split, findings).records] == sound
    sentence = findings.examples[kind][0]
    assert sentence.startswith(f"{root / LISTING}: line 5 ") and wanted in sentence
    for split in SPLITS:
        assert refusal(lambda split=split: read_folder(root, split)) == sentence  # type: ignore[misc]
    assert folder_splits(root) == SPLITS


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine")
    listing = root / LISTING
    listing.write_bytes(listing.read_bytes().replace("ö".encode(), b"\xf6"))
    sentence = refusal(lambda: read_folder(root, "train"))
    assert "line 4 cannot be used: byte" in sentence and "is not UTF-8; save it as UTF-8" in sentence
    findings = Findings()
    assert keys(read_folder(root, "train", findings)) == ["cats/1.jpg", "dog.webp"]
    assert findings.counts == {Kind.CAPTION_ENCODING: 1, Kind.UNLISTED_PICTURE: 1}


def change_caption(*captions: str) -> tuple[dict[str, Any], ...]:
    return (*LINES[:2], LINES[2] | {"captions": list(captions)}, LINES[3])


@pytest.mark.parametrize(
    ("captions", "kind", "wanted", "left"),
    [
        ((), Kind.IMAGE_WITHOUT_ANNOTATION, "line 3 has no caption for image 'dog.webp'", None),
        (("", "a dog"), Kind.CAPTION_EMPTY, "line 3, caption 1", (Caption(4, "a dog"),)),
        ((" \t",), Kind.CAPTION_EMPTY, "line 3, caption 1", None),
        (("a dog", "dog"), Kind.CAPTION_ONE_WORD, "line 3, caption 2", (Caption(3, "a dog"), Caption(4, "dog"))),
        (("a dog " * 51,), Kind.CAPTION_LONG, "line 3, caption 1", (Caption(3, "a dog " * 51),)),
    ],
)
def test_captions_that_are_wrong_or_odd(
    tmp_path: Path, captions: tuple[str, ...], kind: Kind, wanted: str, left: tuple[Caption, ...] | None
) -> None:
    root = write_folder(tmp_path / "mine", change_caption(*captions))
    findings = Findings()
    train = read_folder(root, "train", findings)
    assert train.records[1].captions == left
    assert wanted in findings.examples[kind][0] and findings.counts == {kind: 1}
    if kind.is_fault:
        assert wanted in refusal(lambda: read_folder(root, "train"))
    assert read_folder(root, "val").split == "val"  # which has another caption


def test_pictures_that_are_missing_or_broken(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine")
    (root / "cats/1.jpg").unlink()
    sentence = refusal(lambda: read_folder(root, "train"))
    assert "lacks 1 of the 2 images that captions.jsonl lists, 'cats/1.jpg' among them" in sentence
    findings = Findings()
    assert keys(read_folder(root, "train", findings)) == ["dog.webp"]
    assert findings.counts == {Kind.PICTURE_MISSING: 1}
    (root / "dog.webp").write_bytes(b"no picture")
    findings = Findings()
    assert "no train picture that" in refusal(lambda: read_folder(root, "train", findings))
    assert findings.counts == {Kind.PICTURE_MISSING: 1, Kind.PICTURE_UNDECODABLE: 1}
    assert keys(read_folder(root, "val")) == ["cats/2.png"]


def test_unlisted_pictures_are_remarked_once(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine")
    for name in ("cats/3.JPG", "new.png", ".hidden.png", ".thumbnails/1.png"):
        picture(root, name)
    (root / "notes.txt").write_text("no picture")
    findings = Findings()
    for split in SPLITS:
        read_folder(root, split, findings)
    assert findings.counts == {Kind.UNLISTED_PICTURE: 2}
    assert all("is in no line of captions.jsonl" in sentence for sentence in findings.examples[Kind.UNLISTED_PICTURE])
    read_folder(root, "train")  # a remark, and no fault
