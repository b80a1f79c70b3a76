"""A person's own pictures: a folder with captions.jsonl, and the pictures anywhere below it.

    ROOT/captions.jsonl        one JSON object a line:
        {"image": "cats/1.jpg", "captions": ["a grey cat on a mat", "a cat asleep"]}
        {"image": "cats/2.jpg", "caption": "two cats", "split": "test"}

`split` is "train", "val" or "test", in every line or in none. In none, the images are dealt out by name.
"""

import codecs
import hashlib
import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from orchestration.data.captions import checked_caption
from orchestration.data.folders import check_folder, digest_of, file_sizes, is_below, measure
from orchestration.data.json_files import Name, clause, read_bytes
from orchestration.data.problems import Kind, Notice, Problem, refuse
from orchestration.data.records import Caption, Dataset, ImageRecord, carried
from orchestration.errors import RequestError

SPLITS = ("train", "val", "test")
LISTING = "captions.jsonl"
_EXAMPLE = '{"image": "cats/1.jpg", "captions": ["a grey cat on a mat"]}'
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    image: Name
    captions: list[str] | None = None
    caption: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int  # of the line, from 1
    image: str
    captions: tuple[str, ...]
    split: str | None


def folder_splits(root: Path) -> tuple[str, ...]:
    """The splits that have an image. Raises RequestError for a folder without a usable captions.jsonl."""
    found = set(_dealt(_entries(root, _deaf)).values())
    return tuple(split for split in SPLITS if split in found)


def read_folder(root: Path, split: str, notice: Notice = refuse) -> Dataset:
    """Read and check one split. Records are in file order; `key` is an image's name, `image_id` its line's number.

    Where no line has a split, an image goes to train, val or test (80, 10 and 10 in 100) by the sha256 of its name, so
    that an image never moves when others are added; a set too small to fill all three so has one image in val and one
    in test, and one of fewer than three images is all train. Caption ids count the captions of the whole file from 0.
    Raises RequestError for a folder, file or split that is not there, and what `notice` raises.
    """
    root = root.absolute()
    listing = root / LISTING
    entries = _entries(root, notice)
    dealt = _dealt(entries)
    present = [name for name in SPLITS if name in dealt.values()]
    if split not in present:
        raise RequestError(
            f"{listing} gives no image to split {split!r} (found: {', '.join(present)}); ask for one of these, or add "
            f'"split": "{split}" to some lines and a split to all others.'
        )
    if split == present[0]:  # once, and not for each split
        _tell_unlisted(root, dealt, notice)
    wanted = [entry for entry in entries if dealt[entry.image] == split]
    sizes = file_sizes(root, [entry.image for entry in wanted], listing, notice)
    measured = measure([root / name for name in sizes], notice)
    records = []
    place = 0
    for entry in entries:
        first, place = place, place + len(entry.captions)
        if dealt[entry.image] != split:
            continue
        captions = _captions(entry, first, listing, notice)
        if (size := measured.get(root / entry.image)) is not None:
            records.append(
                ImageRecord(entry.number, root / entry.image, *size, key=entry.image, captions=captions or None)
            )
    if not records:
        raise RequestError(f"no {split} picture that {listing} lists can be used; put the pictures below {root}.")
    return Dataset("folder", split, root, tuple(records), carried(records), digest_of([listing], sizes.items()))


def _deaf(problem: Problem) -> None:
    """For a look at the splits: `read_folder` says what is wrong."""


class _LineFault(Exception):
    """Why a line cannot be used: a clause that follows "line 3"."""

    def __init__(self, kind: Kind, clause: str) -> None:
        super().__init__(clause)
        self.kind = kind


def _entries(root: Path, notice: Notice) -> list[_Entry]:
    """The sound lines, each image once, all with a split or none. RequestError when there are none."""
    check_folder(root, f"the folder that holds {LISTING} and the pictures")
    listing = root / LISTING
    if not listing.is_file():
        raise RequestError(f"{root} has no {LISTING}; write one, with a line such as {_EXAMPLE} for each picture.")
    entries: dict[str, _Entry] = {}
    first_fault = ""
    for number, line in enumerate(read_bytes(listing).removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        try:
            if line.strip():
                entry = _entry(number, line, entries)
                entries[entry.image] = entry
        except _LineFault as fault:
            first_fault = first_fault or f"line {number} {fault}"
            notice(Problem(fault.kind, f"{listing}: line {number} {fault}."))
    told = sum(entry.split is not None for entry in entries.values())
    if 0 < told < len(entries):
        for entry in [entry for entry in entries.values() if entry.split is None]:
            sentence = (
                f"{listing}: line {entry.number} has no split, as {told} of the others have; write train, val or test "
                "there, or take the splits out of all lines."
            )
            notice(Problem(Kind.ENTRY_BROKEN, sentence))
            del entries[entry.image]
    if not entries:
        advice = first_fault or f"write a line such as {_EXAMPLE} for each picture"
        raise RequestError(f"{listing} has no usable line; {advice}.")
    return list(entries.values())


def _entry(number: int, content: bytes, known: Mapping[str, _Entry]) -> _Entry:
    """One line, taken apart and checked. Raises _LineFault."""
    try:
        line = msgspec.json.decode(content, type=_Line)
    except UnicodeDecodeError as error:
        raise _LineFault(
            Kind.CAPTION_ENCODING, f"cannot be used: {clause(content, error)}; save it as UTF-8"
        ) from error
    except (msgspec.MsgspecError, RecursionError) as error:
        advice = f"write a line such as {_EXAMPLE}"
        raise _LineFault(Kind.ENTRY_BROKEN, f"cannot be used: {clause(content, error)}; {advice}") from error
    if not is_below(line.image):
        raise _LineFault(
            Kind.ENTRY_BROKEN,
            f"names image {line.image!r}, which is not below the folder; write its path from there on",
        )
    image = PurePosixPath(line.image).as_posix()
    if image in known:
        first = known[image].number
        raise _LineFault(Kind.DUPLICATE_ID, f"has image {image!r} of line {first} again; put its captions in one line")
    if (line.caption is None) == (line.captions is None):
        fault = "has neither captions nor caption" if line.caption is None else "has both captions and caption"
        raise _LineFault(Kind.ENTRY_BROKEN, f"{fault}; write one of the two")
    if line.split is not None and line.split not in SPLITS:
        raise _LineFault(Kind.ENTRY_BROKEN, f"has split {line.split!r}; write train, val or test")
    captions = (line.caption,) if line.caption is not None else tuple(line.captions or ())
    return _Entry(number, image, captions, line.split)


def _dealt(entries: Iterable[_Entry]) -> dict[str, str]:
    """The split of each image."""
    published = {entry.image: entry.split for entry in entries if entry.split is not None}
    if published:
        return published
    shares = {entry.image: _share(entry.image) for entry in entries}
    dealt = {image: "train" if share < 0.8 else "val" if share < 0.9 else "test" for image, share in shares.items()}
    if len(set(dealt.values())) == len(SPLITS):
        return dealt
    last = sorted(shares, key=shares.__getitem__)[-2:] if len(shares) >= len(SPLITS) else []
    return dict.fromkeys(shares, "train") | dict(zip(last, ("val", "test"), strict=False))


def _share(image: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(image.encode()).digest()[:6]) / 2**48


def _captions(entry: _Entry, first: int, listing: Path, notice: Notice) -> tuple[Caption, ...]:
    """The usable captions of an image, ids from `first`."""
    if not entry.captions:
        sentence = f"{listing}: line {entry.number} has no caption for image {entry.image!r}; write one."
        notice(Problem(Kind.IMAGE_WITHOUT_ANNOTATION, sentence))
    return tuple(
        Caption(first + place, text)
        for place, text in enumerate(entry.captions)
        if checked_caption(text, f"{listing}: line {entry.number}, caption {place + 1}", notice)
    )


def _tell_unlisted(root: Path, listed: Container[str], notice: Notice) -> None:
    """Pictures below the folder that no line names; hidden files are none."""
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(files):
            file = Path(folder, name)
            if file.suffix.lower() not in _PICTURES or name.startswith("."):
                continue
            if file.relative_to(root).as_posix() not in listed:
                sentence = f"picture {str(file)!r} is in no line of {LISTING} and is not used; add a line or remove it."
                notice(Problem(Kind.UNLISTED_PICTURE, sentence))
