"""CUB-200-2011 (Wah et al. 2011) as published, with the captions of Reed et al. (CVPR 2016).

    ROOT/images.txt                               <image id> <image name>
    ROOT/image_class_labels.txt                   <image id> <class id>
    ROOT/classes.txt                              <class id> <class name>
    ROOT/bounding_boxes.txt                       <image id> <x> <y> <width> <height>
    ROOT/images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg
    text_c10/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.txt   one caption a line
    trainvalclasses.txt, testclasses.txt          one class name a line

ROOT is the folder CUB_200_2011, or the one that holds it. The captions may also be in `text/`, as AttnGAN's metadata
have them. Captions and class lists are looked for in ROOT, beside it, and in the folder `cvpr2016_cub` of Reed's
archive in either place; trainclasses.txt and valclasses.txt together stand for trainvalclasses.txt.

The split is the one of the papers, by class: 150 classes (8,855 pictures) train, the other 50 (2,933) test (Reed et
al. 2016; AttnGAN, table 1). The published train_test_split.txt, by picture, is not used.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from orchestration.data.captions import checked_caption
from orchestration.data.folders import check_folder, digest_of, file_sizes, measure
from orchestration.data.json_files import read_bytes
from orchestration.data.problems import Kind, Notice, Problem, refuse
from orchestration.data.records import Box, Caption, Dataset, ImageRecord, carried
from orchestration.errors import RequestError

T = TypeVar("T")

SPLITS = ("train", "test")
_WANTED = "the folder CUB_200_2011 of the published archive, or the one that holds it"
_ARCHIVE = "cvpr2016_cub"
_TEXTS = ("text_c10", "text")


def cub_splits(root: Path) -> tuple[str, ...]:
    """Always ("train", "test"). Raises RequestError for a folder of another layout or without class lists."""
    _class_lists(_base(root))
    return SPLITS


def read_cub(root: Path, split: str, notice: Notice = refuse) -> Dataset:
    """Read and check "train" or "test". Records are in the order of images.txt.

    Caption ids count the caption lines of the split from 0, those left out included; class ids are the published 1 to
    200. Raises RequestError for a folder, file or split that is not there, and what `notice` raises.
    """
    if split not in SPLITS:
        hint = " (the papers choose on test: set data.validation_split=test)" if split == "val" else ""
        raise RequestError(f"CUB has no split {split!r}{hint}; ask for train or test.")
    base = _base(root)
    lists = _class_lists(base)
    texts = _texts(base)
    tables = _read_tables(base, notice)
    split_of = _split_of_classes(lists, tables, notice)
    wanted = {image: name for image, name in tables.images(notice) if split_of.get(tables.labels[image]) == split}
    if not wanted:
        raise RequestError(
            f"{base / 'images.txt'} lists no picture of the {split} classes; check {lists[split][0].name}."
        )
    pictures = base / "images"
    sizes = file_sizes(pictures, list(wanted.values()), base / "images.txt", notice)
    measured = measure([pictures / name for name in sizes], notice)
    records = []
    said: list[Path] = []
    place = 0
    for image, name in wanted.items():
        text = texts / PurePosixPath(name).with_suffix(".txt")
        captions, lines = _captions(text, name, place, notice)
        place += lines
        if lines:
            said.append(text)
        if (size := measured.get(pictures / name)) is None:
            continue
        records.append(
            ImageRecord(
                image_id=image,
                file=pictures / name,
                width=size[0],
                height=size[1],
                captions=captions or None,
                class_id=tables.labels[image],
                class_name=tables.classes[tables.labels[image]],
                subject_box=tables.box(image, size, notice),
            )
        )
    if not records:
        raise RequestError(f"no {split} picture in {pictures} can be used; unpack the published archive there again.")
    return Dataset(
        name="cub",
        split=split,
        root=base,
        records=tuple(records),
        carries=carried(records),
        digest=digest_of([*tables.files, *lists["train"], *lists["test"], *said], sizes.items()),
    )


def _base(root: Path) -> Path:
    """The folder with images.txt."""
    check_folder(root, _WANTED)
    for folder in (root, root / "CUB_200_2011"):
        if (folder / "images.txt").is_file():
            return folder.absolute()
    raise RequestError(f"{root} is no CUB folder: neither it nor CUB_200_2011 in it has images.txt; give {_WANTED}.")


def _places(base: Path) -> tuple[Path, ...]:
    return base, base.parent, base / _ARCHIVE, base.parent / _ARCHIVE


def _texts(base: Path) -> Path:
    """The captions' folder. One of that name without a class folder is something else."""
    for folder in (place / name for place in _places(base) for name in _TEXTS):
        if any(inner.is_dir() and inner.name[:3].isdecimal() for inner in folder.glob("*.*")):
            return folder
    raise RequestError(
        f"{base} has no captions: there is no {_TEXTS[0]}/<class name>/<image name>.txt in it or beside it; unpack the "
        "captions of Reed et al. (2016) there."
    )


def _class_lists(base: Path) -> Mapping[str, tuple[Path, ...]]:
    """The files that name each split's classes."""
    for place in _places(base):
        test = place / "testclasses.txt"
        for names in (("trainvalclasses.txt",), ("trainclasses.txt", "valclasses.txt")):
            train = tuple(place / name for name in names)
            if all(file.is_file() for file in (*train, test)):
                return {"train": train, "test": (test,)}
    advice = (
        "put trainvalclasses.txt and testclasses.txt of Reed et al. (2016) there, one class name such as "
        "001.Black_footed_Albatross a line."
    )
    for place in _places(base):
        if (pickled := place / "train" / "filenames.pickle").is_file():
            raise RequestError(
                f"{pickled} is not opened, because a pickle can run any code, so the split of {base} is not known; "
                f"{advice}"
            )
    raise RequestError(f"{base} has no class lists in it or beside it, so its split is not known; {advice}")


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and content of every line that is not blank."""
    for number, line in enumerate(read_bytes(file).split(b"\n"), 1):
        if line.strip():
            yield number, line.strip()


def _table(file: Path, layout: str, parse: Callable[[str], T], notice: Notice) -> dict[int, T]:
    """A published table: the id each line begins with, and the rest. `parse` raises ValueError."""
    entries: dict[int, T] = {}
    for number, line in _lines(file):
        try:
            first, _, rest = line.decode().partition(" ")
            key, value = _number(first), parse(rest.strip())
        except ValueError:
            shown = line.decode(errors="replace")[:80]
            sentence = f"{file}: line {number}, {shown!r}, is not {layout!r}; mend the line or remove it."
            notice(Problem(Kind.ENTRY_BROKEN, sentence))
            continue
        if key in entries:
            sentence = f"{file}: line {number} has id {key} for the second time; leave one of the lines."
            notice(Problem(Kind.DUPLICATE_ID, sentence))
            continue
        entries[key] = value
    if not entries:
        raise RequestError(f"{file} has no line {layout!r}; fetch the published file again.")
    return entries


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):  # ids become int64
        raise ValueError(text)
    return int(text)


def _class_name(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


def _picture_name(text: str) -> str:
    """<class folder>/<picture>, and nothing outside of images/."""
    parts = text.split("/")
    if len(parts) != 2 or any(part in ("", ".", "..") for part in parts):
        raise ValueError(text)
    return text


def _box(text: str) -> Box:
    x, y, width, height = (float(number) for number in text.split())
    if not all(math.isfinite(number) for number in (x, y, width, height)):
        raise ValueError(text)
    return x, y, width, height


@dataclass(frozen=True, slots=True)
class _Tables:
    """The four published tables, each by image id or class id."""

    base: Path
    names: Mapping[int, str]
    labels: Mapping[int, int]
    classes: Mapping[int, str]
    boxes: Mapping[int, Box]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(
            self.base / name for name in ("images.txt", "image_class_labels.txt", "classes.txt", "bounding_boxes.txt")
        )

    def images(self, notice: Notice) -> Iterator[tuple[int, str]]:
        """Id and name of every image that has a class and a name of its own."""
        owners: dict[str, int] = {}
        for image, name in self.names.items():
            if owners.setdefault(name, image) != image:
                sentence = (
                    f"{self.base / 'images.txt'}: images {owners[name]} and {image} are both {name!r}; "
                    "leave one of the lines."
                )
                notice(Problem(Kind.DUPLICATE_ID, sentence))
            elif self.labels.get(image) in self.classes:
                yield image, name
            else:
                fault = (
                    f"gives image {image} class {self.labels[image]}, which classes.txt does not list; mend the line"
                    if image in self.labels
                    else f"has no line for image {image} ({name!r}); add its class or remove it from images.txt"
                )
                notice(Problem(Kind.CATEGORY_UNKNOWN, f"{self.base / 'image_class_labels.txt'} {fault}."))

    def box(self, image: int, size: tuple[int, int], notice: Notice) -> Box | None:
        """The image's box as published; one that is empty or not inside the picture is told."""
        file = self.base / "bounding_boxes.txt"
        if image not in self.boxes:
            sentence = f"{file} has no line for image {image}, so its picture is not cut to the bird; add its box."
            notice(Problem(Kind.IMAGE_WITHOUT_ANNOTATION, sentence))
            return None
        x, y, width, height = self.boxes[image]
        where = f"{file}: the box of image {image}, {width:g} x {height:g} at ({x:g}, {y:g}),"
        if width <= 0 or height <= 0:
            notice(Problem(Kind.BOX_EMPTY, f"{where} has no area; mend its line."))
        elif x < 0 or y < 0 or x + width > size[0] or y + height > size[1]:
            sentence = f"{where} is not inside its picture of {size[0]} x {size[1]} px; mend its line."
            notice(Problem(Kind.BOX_OUTSIDE, sentence))
        return self.boxes[image]


def _read_tables(base: Path, notice: Notice) -> _Tables:
    tables = _Tables(
        base,
        _table(base / "images.txt", "<image id> <image name>", _picture_name, notice),
        _table(base / "image_class_labels.txt", "<image id> <class id>", _number, notice),
        _table(base / "classes.txt", "<class id> <class name>", _class_name, notice),
        _table(base / "bounding_boxes.txt", "<image id> <x> <y> <width> <height>", _box, notice),
    )
    for name, images in (("image_class_labels.txt", tables.labels), ("bounding_boxes.txt", tables.boxes)):
        for image in images:
            if image not in tables.names:
                sentence = f"{base / name} is about image {image}, which images.txt does not list; remove its line."
                notice(Problem(Kind.ANNOTATION_WITHOUT_IMAGE, sentence))
    return tables


def _split_of_classes(lists: Mapping[str, tuple[Path, ...]], tables: _Tables, notice: Notice) -> dict[int, str]:
    """The split of each class id; a class that is named twice stays where it was named first."""
    ids = {name: number for number, name in tables.classes.items()}
    found: dict[int, str] = {}
    for split, file in ((split, file) for split, files in lists.items() for file in files):
        for number, line in _lines(file):
            name = line.decode(errors="replace")
            where = f"{file}: line {number} names class {name[:80]!r}"
            if name not in ids:
                sentence = f"{where}, which classes.txt does not list; mend the name or remove the line."
                notice(Problem(Kind.CATEGORY_UNKNOWN, sentence))
            elif ids[name] in found:
                sentence = f"{where}, which is in {found[ids[name]]} already; leave one of the lines."
                notice(Problem(Kind.DUPLICATE_ID, sentence))
            else:
                found[ids[name]] = split
    return found


def _captions(file: Path, picture: str, first: int, notice: Notice) -> tuple[tuple[Caption, ...], int]:
    """The usable captions of one picture, ids from `first`, and how many lines there are."""
    lines = read_bytes(file).split(b"\n") if file.is_file() else []
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        fault = "is empty" if file.is_file() else "is not there"
        sentence = f"{file} {fault}, so picture {picture!r} has no caption; write its captions there, one a line."
        notice(Problem(Kind.IMAGE_WITHOUT_ANNOTATION, sentence))
        return (), 0
    captions = []
    for place, line in enumerate(lines):
        where = f"{file}: line {place + 1}"
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            sentence = f"{where} is not UTF-8 from its byte {error.start} on; save the file as UTF-8."
            notice(Problem(Kind.CAPTION_ENCODING, sentence))
            continue
        if checked_caption(text, where, notice):
            captions.append(Caption(first + place, text))
    return tuple(captions), len(lines)
