"""Localized Narratives in their published JSON Lines layouts (Pont-Tuset et al. 2020).

Three layouts are read, one narrative a line:

    full       {"dataset_id", "image_id", "annotator_id", "caption", "timed_caption", "traces", "voice_recording"}
    captions   {"dataset_id", "image_id", "annotator_id", "caption"}
    tags       {"image_id", "annotator_id", "words", "tags"}

Full and captions-only files are those of google.github.io/localized-narratives; the tags are TReCS's release, one
label a word. Published numbers of narratives (same page): COCO 134,272 train, 8,573 val; Open Images 507,444 train,
41,691 validation, 126,020 test; Flickr30k 30,546, 1,009, 1,023; ADE20k 20,476, 2,053.

A narrative has several hundred trace points, so utterances and traces stay in the file: the reader checks them and
keeps their place.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from orchestration.data.captions import checked_caption
from orchestration.data.json_files import Id, Name, clause, unreadable
from orchestration.data.problems import Kind, Notice, Problem, refuse
from orchestration.data.records import Narrative, Utterance
from orchestration.errors import RequestError

T = TypeVar("T")
PointT = TypeVar("PointT")

# Open Images ids are 16 hexadecimal digits, some of them all decimal; every numeric id is shorter.
_LONGEST_NUMBER = 15
_LINES_AT_HAND = 8  # decoded lines kept: a narrative's phrases are asked for one after another
# From the one that says most to the one that says least; several in one folder hold the same narratives.
_LAYOUTS = (r"{}_localized_narratives(?:-\d{{5}}-of-\d{{5}})?\.jsonl", r"{}_captions\.jsonl")
_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
# A line cut in a number or an escape is malformed up to this many bytes before its end, not "truncated".
_CUT_TOKEN = 6
_STRING_OR_NO_NUMBER = re.compile(rb'"(?:\\.|[^"\\])*"|\bNaN\b|-?\bInfinity\b')


# Structs outside the garbage collector: a line has hundreds of them, none of them in a cycle.
class _Timed(msgspec.Struct, gc=False):
    utterance: str
    start_time: float
    end_time: float


class _Point(msgspec.Struct, gc=False):
    x: float
    y: float
    t: float


_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _PointInside(msgspec.Struct, gc=False):
    x: _Share
    y: _Share
    t: float


class _Line(msgspec.Struct, Generic[PointT], gc=False):
    image_id: Id | Name
    annotator_id: Id
    caption: str
    timed_caption: list[_Timed] | msgspec.UnsetType = msgspec.UNSET
    traces: list[list[PointT]] | msgspec.UnsetType = msgspec.UNSET


class _TaggedLine(msgspec.Struct, gc=False):
    image_id: Id | Name
    words: list[Annotated[str, msgspec.Meta(pattern=r"^\S+$")]]
    tags: list[Name]
    annotator_id: Id = 0


class _WrongError(Exception):
    """A line whose fields do not belong together; says so in a clause."""


_LINE = msgspec.json.Decoder(_Line[_Point])
_LINE_INSIDE = msgspec.json.Decoder(_Line[_PointInside])
_TAGGED_LINE = msgspec.json.Decoder(_TaggedLine)


def narrative_files(folders: Iterable[Path], start: str, tags: str | None = None) -> list[Path]:
    """The files of one split in the layout that says most, from the first folder that has any; shards in order.

    `start` is a pattern of how the publisher's names begin, e.g. "coco_train", `tags` one of TReCS's whole names.
    """
    patterns = [layout.format(start) for layout in _LAYOUTS] + ([] if tags is None else [tags])
    for pattern in patterns:
        for folder in folders:
            if files := sorted(file for file in folder.glob("*.jsonl") if re.fullmatch(pattern, file.name)):
                return files
    return []


def read_narratives(
    path_or_paths: Path | Iterable[Path], notice: Notice = refuse
) -> Mapping[int | str, tuple[Narrative, ...]]:
    """Narratives by image id, those of one image in file order; several paths are the shards of one set.

    The published ids are text: one that is a decimal number becomes an int (COCO, Flickr30k), any other stays
    as it is (Open Images, ADE20k). Trace points are x and y in picture widths and heights and t in seconds;
    points outside 0..1 are kept and remarked on, as the mouse does leave the picture. Annotator 0 stands for none
    published. Every line is checked in one pass that keeps captions only: utterances and traces are read from the
    file again when they are touched (RequestError if it has changed by then).
    `notice` hears of anything broken with its file and line. Raises what it raises: for `refuse`, RequestError.
    """
    found: dict[int | str, list[Narrative]] = {}
    for image_id, narrative in each_narrative(path_or_paths, notice):
        found.setdefault(image_id, []).append(narrative)
    return {image_id: tuple(narratives) for image_id, narratives in found.items()}


def each_narrative(
    path_or_paths: Path | Iterable[Path], notice: Notice = refuse
) -> Iterator[tuple[int | str, Narrative]]:
    """(image id, narrative) in file order; as `read_narratives`, one line at a time."""
    seen: set[int] = set()  # hashes, for memory's sake: a million captions have two alike once in 4 million readings
    for path in [path_or_paths] if isinstance(path_or_paths, Path) else path_or_paths:
        for where, image_id, narrative in _read_file(path, notice):
            key = hash((image_id, narrative.annotator_id, narrative.caption))
            if key in seen:
                sentence = (
                    f"{where} says again what annotator {narrative.annotator_id} said of image {image_id} before; "
                    "remove the line."
                )
                notice(Problem(Kind.DUPLICATE_ID, sentence))
                continue
            seen.add(key)
            yield image_id, narrative


def _read_file(path: Path, notice: Notice) -> Iterator[tuple[str, int | str, Narrative]]:
    offset, holds_any = 0, False
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    holds_any = True
                    where = f"{path}, line {number}"
                    entry = _read_line(line, where, _Place(path, offset, len(line)), notice)
                    if entry is not None:
                        yield where, *entry
                offset += len(line)
    except OSError as error:
        notice(Problem(Kind.FILE_BROKEN, unreadable(path, error)))
        return
    if not holds_any:
        notice(Problem(Kind.FILE_BROKEN, f"{path} holds no narrative; fetch the file again or remove it."))


def _read_line(line: bytes, where: str, place: "_Place", notice: Notice) -> tuple[int | str, Narrative] | None:
    try:
        image_id, narrative, remarks = _decode(line, place)
    except (*_BROKEN, _WrongError) as error:
        kind, fault = _fault(line, error, place)
        notice(Problem(kind, f"{where} is no Localized Narrative: {fault}; fetch the file again or remove the line."))
        return None
    if not checked_caption(narrative.caption, f"{where}: the caption of image {image_id}", notice):
        return None
    for kind, remark in remarks:
        notice(Problem(kind, f"{where}: {remark}."))
    return image_id, narrative


def _decode(line: bytes, place: "_Place") -> tuple[int | str, Narrative, list[tuple[Kind, str]]]:
    """Image id, narrative and remarks. Raises one of `_BROKEN`, or `_WrongError`."""
    item: _Line[_Point] | _Line[_PointInside]
    remarks: list[tuple[Kind, str]] = []
    try:
        item = _LINE_INSIDE.decode(line)
    except _BROKEN as error:
        try:
            item = _LINE.decode(line)
        except msgspec.ValidationError:
            if b'"words"' not in line:
                raise
            return _tagged(_TAGGED_LINE.decode(line))
        point = str(error).rpartition("$.")[2].rstrip("`")
        remarks.append((Kind.TRACE_OUTSIDE, f"{point} is outside of the picture; such points are kept"))
    image_id = _image_id(item.image_id)
    if item.timed_caption is msgspec.UNSET and item.traces is msgspec.UNSET:
        return image_id, Narrative(item.annotator_id, item.caption, (), ()), remarks
    if item.timed_caption is msgspec.UNSET or item.traces is msgspec.UNSET:
        missing = "traces" if item.traces is msgspec.UNSET else "timed_caption"
        raise _WrongError(f"{missing} is missing")
    utterances, traces = len(item.timed_caption), len(item.traces)
    if not any(item.traces):
        traces = 0
        remarks.append((Kind.TRACE_EMPTY, "it has no trace point; its words are used without a place"))
    narrative = Narrative(
        item.annotator_id,
        item.caption,
        StoredUtterances(place, utterances) if utterances else (),
        StoredTraces(place, traces) if traces else (),
    )
    return image_id, narrative, remarks


def _tagged(item: _TaggedLine) -> tuple[int | str, Narrative, list[tuple[Kind, str]]]:
    if len(item.words) != len(item.tags):
        raise _WrongError(f"it has {len(item.words)} words but {len(item.tags)} tags")
    return _image_id(item.image_id), Narrative(item.annotator_id, " ".join(item.words), (), (), tuple(item.tags)), []


def _fault(line: bytes, error: Exception, place: "_Place") -> tuple[Kind, str]:
    """What is wrong with a line that `_decode` gave up, as a kind and a clause."""
    if isinstance(error, _WrongError):
        return Kind.ENTRY_BROKEN, str(error)
    if isinstance(error, UnicodeDecodeError):
        return Kind.CAPTION_ENCODING, clause(line, error)
    try:  # Python and JavaScript write NaN where JSON has no word for it
        _LINE.decode(_STRING_OR_NO_NUMBER.sub(lambda match: match[0] if match[0][:1] == b'"' else b"null", line))
    except _BROKEN as without:
        number = re.fullmatch(r"(?:.*, got `null`|Number out of range) - at `\$\.(traces.*)`", str(without))
        if number is not None:
            return Kind.TRACE_NAN, f"{number[1]} is no finite number but NaN, Infinity or null"
    if not line.endswith(b"\n") and not isinstance(error, msgspec.ValidationError):
        malformed = re.search(r"\(byte (\d+)\)$", str(error))
        if malformed is None or int(malformed[1]) >= len(line) - _CUT_TOKEN:
            return Kind.ENTRY_BROKEN, f"the file ends in the middle of it, at byte {place.offset + len(line)}"
    return Kind.ENTRY_BROKEN, clause(line, error)


def _image_id(published: int | str) -> int | str:
    if isinstance(published, str) and published.isascii() and published.isdecimal():
        return int(published) if len(published) <= _LONGEST_NUMBER else published
    return published


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a line is: bytes `offset` to `offset + length` of the file."""

    file: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Stored(Sequence[T]):
    """What one line holds, read when it is touched. Equal where the place in the same file is equal."""

    place: _Place
    size: int

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[T]:
        return iter(self._items())

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items()[index]

    def _items(self) -> Sequence[T]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class StoredUtterances(_Stored[Utterance]):
    """The utterances of a narrative, in its file."""

    def _items(self) -> Sequence[Utterance]:
        return _load(self.place)[0]


@dataclass(frozen=True, slots=True)
class StoredTraces(_Stored[NDArray[np.float64]]):
    """The traces of a narrative, in its file: float64 (N,3), arrays of one's own at each touch."""

    def _items(self) -> Sequence[NDArray[np.float64]]:
        return [trace.copy() for trace in _load(self.place)[1]]


_Said = tuple[tuple[Utterance, ...], tuple[NDArray[np.float64], ...]]


def _load(place: _Place) -> _Said:
    try:
        return _load_line(place, place.file.stat().st_mtime_ns)
    except (*_BROKEN, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it was changed since it was read"
        raise RequestError(
            f"{place.file}: the narrative at byte {place.offset} cannot be read again ({reason}); "
            "put the file back or read the data set anew."
        ) from error


@functools.lru_cache(_LINES_AT_HAND)
def _load_line(place: _Place, changed: int) -> _Said:
    with place.file.open("rb") as file:
        file.seek(place.offset)
        item = _LINE.decode(file.read(place.length))
    timed, traces = item.timed_caption or [], item.traces or []
    utterances = tuple(Utterance(said.utterance, said.start_time, said.end_time) for said in timed)
    return utterances, tuple(_trace(points) for points in traces)


def _trace(points: Sequence[_Point]) -> NDArray[np.float64]:
    return np.array([(point.x, point.y, point.t) for point in points], dtype=np.float64).reshape(-1, 3)
