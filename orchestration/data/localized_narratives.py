"""Localized Narratives in their published JSON Lines layout (Pont-Tuset et al. 2020)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from orchestration.data.json_files import Id, first_fault
from orchestration.data.records import Narrative, Utterance
from orchestration.errors import RequestError

# Open Images ids are 16 hexadecimal digits, some of them all decimal; every numeric id is shorter.
_LONGEST_NUMBER = 15


@dataclass(frozen=True, slots=True)
class _TimedCaption:
    utterance: str
    start_time: FiniteFloat
    end_time: FiniteFloat


@dataclass(frozen=True, slots=True)
class _Point:
    x: FiniteFloat
    y: FiniteFloat
    t: FiniteFloat


@dataclass(frozen=True, slots=True)
class _Line:
    image_id: Id | str
    annotator_id: Id
    caption: str
    timed_caption: tuple[_TimedCaption, ...]
    traces: tuple[tuple[_Point, ...], ...]


_LINE = TypeAdapter(_Line)


def read_narratives(path_or_paths: Path | Iterable[Path]) -> Mapping[int | str, tuple[Narrative, ...]]:
    """Narratives by image id, those of one image in file order; several paths are the shards of one set.

    The published ids are text: one that is a decimal number becomes an int (COCO, Flickr30k), any other stays
    as it is (Open Images, ADE20K). Trace points are x and y in picture widths and heights and t in seconds;
    points outside 0..1 are kept, as the mouse does leave the picture.
    Raises RequestError that names the file and the line of anything broken, and for a file without
    narratives.
    """
    paths = [path_or_paths] if isinstance(path_or_paths, Path) else list(path_or_paths)
    found: dict[int | str, list[Narrative]] = {}
    for path in paths:
        count = 0
        for image_id, narrative in _read_file(path):
            found.setdefault(image_id, []).append(narrative)
            count += 1
        if not count:
            raise RequestError(f"{path} holds no narrative; fetch the file again or remove it.")
    return {image_id: tuple(narratives) for image_id, narratives in found.items()}


def _read_file(path: Path) -> Iterable[tuple[int | str, Narrative]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _read_line(line, f"{path}, line {number}")
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); check that it is there and readable.") from error


def _read_line(line: bytes, where: str) -> tuple[int | str, Narrative]:
    try:
        item = _LINE.validate_json(line, strict=True)
    except ValidationError as error:
        raise RequestError(
            f"{where} is no Localized Narrative: {first_fault(error)}; fetch the file again or remove the line."
        ) from error
    narrative = Narrative(
        annotator_id=item.annotator_id,
        caption=item.caption,
        utterances=tuple(Utterance(said.utterance, said.start_time, said.end_time) for said in item.timed_caption),
        traces=tuple(_trace(points) for points in item.traces),
    )
    return _image_id(item.image_id), narrative


def _image_id(published: int | str) -> int | str:
    if isinstance(published, str) and published.isascii() and published.isdecimal():
        return int(published) if len(published) <= _LONGEST_NUMBER else published
    return published


def _trace(points: tuple[_Point, ...]) -> NDArray[np.float64]:
    return np.array([(point.x, point.y, point.t) for point in points], dtype=np.float64).reshape(-1, 3)
