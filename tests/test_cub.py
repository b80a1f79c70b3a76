"""The reader of CUB-200-2011, on folders in its published layout."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from orchestration.data.cub import cub_splits, read_cub
from orchestration.data.problems import Findings, Kind
from orchestration.data.records import Caption
from orchestration.data.transforms import TRANSFORMS
from orchestration.errors import RequestError

CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
PICTURES = {
    1: "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
    2: "001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg",
    3: "002.Laysan_Albatross/Laysan_Albatross_0044_784.jpg",
    4: "003.Sooty_Albatross/Sooty_Albatross_0040_796375.jpg",
}
SIZE = (60, 40)
TRAIN_LIST, TEST_LIST = "trainvalclasses.txt", "testclasses.txt"


def lines(file: Path, *wanted: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in wanted))


def write_cub(folder: Path) -> Path:
    """CUB_200_2011 in `folder`: classes 1 and 2 train, 3 tests; two captions a picture. Returns CUB_200_2011."""
    root = folder / "CUB_200_2011"
    lines(root / "images.txt", *(f"{image} {name}" for image, name in PICTURES.items()))
    lines(root / "image_class_labels.txt", *(f"{image} {int(name[:3])}" for image, name in PICTURES.items()))
    lines(root / "classes.txt", *(f"{int(name[:3])} {name}" for name in CLASSES))
    lines(root / "bounding_boxes.txt", *(f"{image} {image}.0 2.0 20.5 30.0" for image in PICTURES))
    lines(root / "train_test_split.txt", *(f"{image} {image % 2}" for image in PICTURES))
    for image, name in PICTURES.items():
        file = root / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (image, 2, 3)).save(file)
        lines(caption_file(folder, image), f"a bird numbered {image} .", f"again {image}, with a black bill")
    lines(root / TRAIN_LIST, *CLASSES[:2])
    lines(root / TEST_LIST, CLASSES[2])
    return root


def caption_file(folder: Path, image: int) -> Path:
    return (folder / "text_c10" / PICTURES[image]).with_suffix(".txt")


def refusal(call: Callable[[], object]) -> str:
    """The message of the RequestError that `call` must end in: one line, one sentence."""
    with pytest.raises(RequestError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_published_folder(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    assert cub_splits(root) == ("train", "test")
    train, test = read_cub(root, "train"), read_cub(root, "test")
    assert [record.image_id for record in train.records] == [1, 2, 3]
    assert [record.image_id for record in test.records] == [4]
    assert train.carries == test.carries == {"images", "captions", "class", "subject-box"}
    assert (train.name, train.split, train.root) == ("cub", "train", root)
    third = train.records[2]
    assert third.file == root / "images" / PICTURES[3] and third.file.is_absolute()
    assert (third.width, third.height) == SIZE
    assert (third.class_id, third.class_name) == (2, "002.Laysan_Albatross")
    assert third.subject_box == (3.0, 2.0, 20.5, 30.0)
    assert third.captions == (Caption(4, "a bird numbered 3 ."), Caption(5, "again 3, with a black bill"))
    only = test.records[0].captions
    assert only is not None and [caption.id for caption in only] == [0, 1]
    # AttnGAN's crop: half side int(0.75 x 30) around the middle of the box, clipped.
    assert TRANSFORMS["attngan"].region(third) == (0, 0, 35, 39)


def test_the_folder_that_holds_it_is_the_same_data(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    inner, outer = read_cub(root, "train"), read_cub(tmp_path, "train")
    assert outer == inner


def test_a_relative_folder_is_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = read_cub(write_cub(tmp_path), "train")
    monkeypatch.chdir(wanted.root)
    assert read_cub(Path(), "train") == wanted


@pytest.mark.parametrize(
    "place",
    ["text_c10", "text", "cvpr2016_cub/text_c10", "CUB_200_2011/text_c10", "CUB_200_2011/cvpr2016_cub/text_c10"],
)
def test_where_captions_may_be(tmp_path: Path, place: str) -> None:
    root = write_cub(tmp_path)
    wanted = read_cub(root, "train")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / "text_c10").rename(tmp_path / place)
    assert read_cub(root, "train") == wanted
    assert read_cub(tmp_path, "train") == wanted


def test_a_folder_named_text_that_is_something_else_is_passed_over(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    lines(root / "text_c10" / "001.readme.txt", "nothing")
    assert "captions" in read_cub(root, "train").carries


@pytest.mark.parametrize("place", [".", "cvpr2016_cub", "CUB_200_2011/cvpr2016_cub"])
def test_where_class_lists_may_be(tmp_path: Path, place: str) -> None:
    root = write_cub(tmp_path)
    wanted = read_cub(root, "train").records
    (tmp_path / place).mkdir(exist_ok=True)
    for name in (TRAIN_LIST, TEST_LIST):
        (root / name).rename(tmp_path / place / name)
    assert read_cub(root, "train").records == wanted


def test_train_and_val_lists_together_are_trainval(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    wanted = read_cub(root, "train").records
    (root / TRAIN_LIST).unlink()
    lines(root / "trainclasses.txt", CLASSES[1])
    assert "no class lists" in refusal(lambda: cub_splits(root))
    lines(root / "valclasses.txt", CLASSES[0])
    assert read_cub(root, "train").records == wanted


def test_line_ends_of_another_system(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    wanted = read_cub(root, "train").records
    for file in (*root.glob("*.txt"), *tmp_path.glob("text_c10/*/*.txt")):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\n")
    assert read_cub(root, "train").records == wanted


def test_the_digest_is_of_what_is_read_and_not_of_where_it_lies(tmp_path: Path) -> None:
    first, second = write_cub(tmp_path / "one"), write_cub(tmp_path / "two")
    digest = read_cub(first, "train").digest
    assert read_cub(second, "train").digest == digest != read_cub(first, "test").digest
    edit(caption_file(tmp_path / "two", 4), "bird", "fish")
    assert read_cub(second, "train").digest == digest  # a test picture's caption
    for change in (
        lambda: edit(caption_file(tmp_path / "two", 1), "bird", "fish"),
        lambda: edit(second / "bounding_boxes.txt", "20.5", "20.6"),
        lambda: Image.new("RGB", (600, 400)).save(second / "images" / PICTURES[2]),
    ):
        before = read_cub(second, "train").digest
        change()
        assert read_cub(second, "train").digest != before


# Whole-folder faults: (what is done to a sound folder, what its sentence says).
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no images.txt": (lambda root: (root / "images.txt").unlink(), "is no CUB folder"),
    "no classes.txt": (lambda root: (root / "classes.txt").unlink(), "classes.txt cannot be read"),
    "no boxes": (lambda root: (root / "bounding_boxes.txt").unlink(), "bounding_boxes.txt cannot be read"),
    "no labels": (lambda root: (root / "image_class_labels.txt").unlink(), "image_class_labels.txt cannot be read"),
    "no lists": (lambda root: (root / TEST_LIST).unlink(), "no class lists in it or beside it"),
    "no captions": (lambda root: (root.parent / "text_c10").rename(root.parent / "words"), "has no captions"),
    "empty classes.txt": (lambda root: lines(root / "classes.txt"), "has no line '<class id> <class name>'"),
    "empty list": (lambda root: lines(root / TRAIN_LIST), f"no picture of the train classes; check {TRAIN_LIST}"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_none_is_refused(tmp_path: Path, case: str) -> None:
    root = write_cub(tmp_path)
    change, wanted = REFUSED[case]
    change(root)
    assert wanted in refusal(lambda: read_cub(root, "train"))
    with pytest.raises(RequestError):
        read_cub(root, "train", Findings())


def test_no_folder_at_all(tmp_path: Path) -> None:
    for call in (cub_splits, lambda root: read_cub(root, "train")):
        assert "give the folder CUB_200_2011" in refusal(lambda call=call: call(tmp_path / "absent"))  # type: ignore[misc]
        assert "is no CUB folder" in refusal(lambda call=call: call(tmp_path))  # type: ignore[misc]


def test_pickled_lists_are_never_opened(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    (root / TRAIN_LIST).unlink()
    pickled = tmp_path / "train" / "filenames.pickle"
    pickled.parent.mkdir()
    pickled.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    sentence = refusal(lambda: read_cub(root, "train"))
    assert "filenames.pickle is not opened, because a pickle can run any code" in sentence
    assert f"put {TRAIN_LIST} and {TEST_LIST}" in sentence and CLASSES[0] in sentence


@pytest.mark.parametrize("split", ["val", "dev", ""])
def test_other_splits_are_refused(tmp_path: Path, split: str) -> None:
    sentence = refusal(lambda: read_cub(write_cub(tmp_path), split))
    assert "ask for train or test" in sentence
    assert ("the papers choose on test: set data.validation_split=test" in sentence) == (split == "val")


def rewrite(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda root: edit(root / name, old, new)


def caption(content: bytes, image: int = 2) -> Callable[[Path], object]:
    return lambda root: caption_file(root.parent, image).write_bytes(content)


# Faults and remarks: (change, kind, part of the sentence, image ids of the train split that are left).
PROBLEMS: dict[str, tuple[Callable[[Path], object], Kind, str, list[int]]] = {
    "image line without name": (
        rewrite("images.txt", f"2 {PICTURES[2]}", "2"),
        Kind.ENTRY_BROKEN,
        "line 2, '2', is not '<image id> <image name>'",
        [1, 3],
    ),
    "image outside": (
        rewrite("images.txt", PICTURES[2], "../secret.jpg"),
        Kind.ENTRY_BROKEN,
        "line 2, '2 ../secret.jpg'",
        [1, 3],
    ),
    "id that is none": (rewrite("images.txt", "2 0", "two 0"), Kind.ENTRY_BROKEN, "line 2, 'two 0", [1, 3]),
    "negative id": (rewrite("images.txt", "2 0", "-2 0"), Kind.ENTRY_BROKEN, "line 2, '-2 0", [1, 3]),
    "not UTF-8": (
        lambda root: (root / "images.txt").write_bytes(
            (root / "images.txt").read_bytes().replace(b"\n2 ", b"\n2 \xff")
        ),
        Kind.ENTRY_BROKEN,
        "line 2, '2 \ufffd001.",
        [1, 3],
    ),
    "image id twice": (
        rewrite("images.txt", "2 001", "1 001"),
        Kind.DUPLICATE_ID,
        "line 2 has id 1 for the second time",
        [1, 3],
    ),
    "image name twice": (
        rewrite("images.txt", PICTURES[2], PICTURES[1]),
        Kind.DUPLICATE_ID,
        f"images 1 and 2 are both '{PICTURES[1]}'",
        [1, 3],
    ),
    "label line broken": (
        rewrite("image_class_labels.txt", "2 1", "2 one"),
        Kind.ENTRY_BROKEN,
        "line 2, '2 one', is not '<image id> <class id>'",
        [1, 3],
    ),
    "no label": (
        rewrite("image_class_labels.txt", "2 1\n", ""),
        Kind.CATEGORY_UNKNOWN,
        f"image_class_labels.txt has no line for image 2 ('{PICTURES[2]}')",
        [1, 3],
    ),
    "unknown class": (
        rewrite("image_class_labels.txt", "2 1", "2 201"),
        Kind.CATEGORY_UNKNOWN,
        "gives image 2 class 201, which classes.txt does not list",
        [1, 3],
    ),
    "label of no image": (
        rewrite("image_class_labels.txt", "1 1\n", "1 1\n77 1\n"),
        Kind.ANNOTATION_WITHOUT_IMAGE,
        "image_class_labels.txt is about image 77, which images.txt does not list",
        [1, 2, 3],
    ),
    "box of no image": (
        rewrite("bounding_boxes.txt", "1 1.0", "77 1 1 2 2\n1 1.0"),
        Kind.ANNOTATION_WITHOUT_IMAGE,
        "bounding_boxes.txt is about image 77",
        [1, 2, 3],
    ),
    "unlisted class in a list": (
        rewrite(TRAIN_LIST, CLASSES[1], "002.Laysan_Albatros"),
        Kind.CATEGORY_UNKNOWN,
        f"{TRAIN_LIST}: line 2 names class '002.Laysan_Albatros', which classes.txt does not list",
        [1, 2],
    ),
    "class in both lists": (
        rewrite(TEST_LIST, CLASSES[2], f"{CLASSES[2]}\n{CLASSES[1]}"),
        Kind.DUPLICATE_ID,
        f"{TEST_LIST}: line 2 names class '{CLASSES[1]}', which is in train already",
        [1, 2, 3],
    ),
    "class without name": (
        rewrite("classes.txt", f"2 {CLASSES[1]}", "2"),
        Kind.ENTRY_BROKEN,
        "line 2, '2', is not '<class id> <class name>'",
        [1, 2],
    ),
    "box of three numbers": (
        rewrite("bounding_boxes.txt", "2 2.0 2.0 20.5 30.0", "2 2.0 2.0 20.5"),
        Kind.ENTRY_BROKEN,
        "line 2, '2 2.0 2.0 20.5', is not '<image id> <x> <y> <width> <height>'",
        [1, 2, 3],
    ),
    "box of no number": (
        rewrite("bounding_boxes.txt", "2 2.0 2.0 20.5 30.0", "2 2.0 nan 20.5 30.0"),
        Kind.ENTRY_BROKEN,
        "line 2, '2 2.0 nan 20.5 30.0'",
        [1, 2, 3],
    ),
    "no box": (
        rewrite("bounding_boxes.txt", "2 2.0 2.0 20.5 30.0\n", ""),
        Kind.IMAGE_WITHOUT_ANNOTATION,
        "bounding_boxes.txt has no line for image 2",
        [1, 2, 3],
    ),
    "empty box": (
        rewrite("bounding_boxes.txt", "2 2.0 2.0 20.5 30.0", "2 2.0 2.0 0 30.0"),
        Kind.BOX_EMPTY,
        "the box of image 2, 0 x 30 at (2, 2), has no area",
        [1, 2, 3],
    ),
    "box outside": (
        rewrite("bounding_boxes.txt", "2 2.0 2.0 20.5 30.0", "2 50 2.0 20.5 30.0"),
        Kind.BOX_OUTSIDE,
        "the box of image 2, 20.5 x 30 at (50, 2), is not inside its picture of 60 x 40 px",
        [1, 2, 3],
    ),
    "picture missing": (
        lambda root: (root / "images" / PICTURES[2]).unlink(),
        Kind.PICTURE_MISSING,
        f"lacks 1 of the 3 images that images.txt lists, '{PICTURES[2]}' among them",
        [1, 3],
    ),
    "picture broken": (
        lambda root: (root / "images" / PICTURES[2]).write_bytes(b"no picture"),
        Kind.PICTURE_UNDECODABLE,
        "Black_Footed_Albatross_0009_34.jpg does not decode",
        [1, 3],
    ),
    "captions missing": (
        lambda root: caption_file(root.parent, 2).unlink(),
        Kind.IMAGE_WITHOUT_ANNOTATION,
        "0009_34.txt is not there, so picture",
        [1, 2, 3],
    ),
    "captions blank": (caption(b" \n\n"), Kind.IMAGE_WITHOUT_ANNOTATION, "0009_34.txt is empty", [1, 2, 3]),
    "caption empty": (caption(b"one bird\n \ntwo birds\n"), Kind.CAPTION_EMPTY, "0009_34.txt: line 2", [1, 2, 3]),
    "caption of one word": (caption(b"bird\ntwo birds\n"), Kind.CAPTION_ONE_WORD, "0009_34.txt: line 1", [1, 2, 3]),
    "caption long": (caption(b"a bird " * 51), Kind.CAPTION_LONG, "0009_34.txt: line 1", [1, 2, 3]),
    "caption not UTF-8": (
        caption(b"one bird\ntwo \xff birds\n"),
        Kind.CAPTION_ENCODING,
        "0009_34.txt: line 2 is not UTF-8 from its byte 4 on",
        [1, 2, 3],
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_is_wrong_is_said_and_left_out(tmp_path: Path, case: str) -> None:
    change, kind, wanted, left = PROBLEMS[case]
    root = write_cub(tmp_path)
    change(root)
    findings = Findings()
    dataset = read_cub(root, "train", findings)
    assert [record.image_id for record in dataset.records] == left
    (sentence,) = findings.examples[kind]
    assert wanted in sentence and sentence.endswith(".") and "\n" not in sentence
    if kind.is_fault:
        assert refusal(lambda: read_cub(root, "train")) == sentence
    else:
        assert read_cub(root, "train") == dataset
        assert findings.counts == {kind: 1}


def test_a_caption_that_is_left_out_moves_no_other_id(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    caption(b"\xff\none bird\n", image=1)(root)
    train = read_cub(root, "train", Findings())
    assert [[one.id for one in record.captions or ()] for record in train.records] == [[1], [2, 3], [4, 5]]


def test_an_image_without_captions_or_box_has_none(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    caption_file(tmp_path, 2).unlink()
    edit(root / "bounding_boxes.txt", "3 3.0", "9 3.0")
    train = read_cub(root, "train", Findings())
    assert train.records[1].captions is None and train.records[2].subject_box is None
    assert [record.image_id for record in train.having({"captions"}).records] == [1, 3]


def test_a_split_without_a_usable_picture_is_refused(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    (root / "images" / PICTURES[4]).unlink()
    assert "no test picture in" in refusal(lambda: read_cub(root, "test", Findings()))
