"""What a prepared split consists of: its options, the summaries of its shards, its manifest, and what was left out.

A folder holds `shard-00000.arrow` ... with a small JSON summary each, `plan.json` (what is being written), and, once
all is there, `left-out.jsonl` and `manifest.json`. `shard_writing` writes it, `shards` reads it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

import msgspec
import pyarrow as pa

from orchestration.data.arrow_records import SCHEMA
from orchestration.data.json_files import clause
from orchestration.data.problems import Kind, Problem
from orchestration.data.transforms import TRANSFORMS, get_transform
from orchestration.errors import RequestError

VERSION = 1
MANIFEST, PLAN, LEFT_OUT = "manifest.json", "plan.json", "left-out.jsonl"
Layout = TypeVar("Layout", bound=msgspec.Struct)
Codec = Literal["png", "raw", "none"]
_MOST_ROWS = 4096  # with maps and traces, records of small pictures outweigh their pixels

PIXELS = (
    pa.field("pixels", pa.large_binary()),  # a shard of long pictures may pass 2 GiB
    pa.field("stored_height", pa.int32()),
    pa.field("stored_width", pa.int32()),
)
"""The columns beside the record's: bytes of a PNG, or of uint8 (3,h,w)."""


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """What is stored.

    transform: of `orchestration.data.transforms`; size: side of the training picture in pixels; codec: "png" is
    lossless and compressed, "raw" is bytes that need no decoding, "none" leaves the pictures in their published files,
    decoded at each access; shard_bytes: raw pixels a shard, about.
    Raises RequestError for a value out of range.
    """

    transform: str
    size: int
    codec: Codec
    shard_bytes: int = 128 * 2**20

    def __post_init__(self) -> None:
        get_transform(self.transform)
        if self.size < 1:
            raise RequestError(f"size {self.size} is no picture size; give a number of pixels of at least 1.")
        if self.codec not in get_args(Codec):
            raise RequestError(f"codec {self.codec!r} is unknown; give one of {', '.join(get_args(Codec))}.")
        if self.shard_bytes < 1:
            raise RequestError(f"shard_bytes {self.shard_bytes} is no size; give a number of at least 1.")

    @property
    def rows(self) -> int:
        """Source images a shard."""
        side = int(self.size * TRANSFORMS[self.transform].margin)
        return max(1, min(_MOST_ROWS, self.shard_bytes // (3 * side * side)))


class Fault(msgspec.Struct, frozen=True):
    """Why one image was left out. `kind` is the name of a `Kind`; without an id, the reader left it out."""

    kind: str
    sentence: str
    image_id: int | None = None

    def problem(self) -> Problem:
        return Problem(Kind[self.kind], self.sentence)


class ShardSummary(msgspec.Struct, frozen=True):
    """What a shard holds. `shape` is (height, width) of its stored pictures when all have the same."""

    rows: int
    bytes: int
    sha256: str
    shape: tuple[int, int] | None
    contents: dict[str, int]
    faults: list[Fault]


class Plan(msgspec.Struct, frozen=True):
    """What a folder is for."""

    options: ShardOptions
    dataset: str
    split: str
    source_digest: str
    version: int = VERSION


class ShardEntry(msgspec.Struct, frozen=True):
    """A shard in the manifest."""

    rows: int
    bytes: int
    sha256: str
    shape: tuple[int, int] | None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a prepared split holds, written last.

    source: the published folder; data_digest: of what is left of the data set; contents: images that carry each of
    `records.CONTENTS`; left_out: entries of left-out.jsonl by kind; digest: sha256 of the content and the options.
    """

    plan: Plan
    source: str
    data_digest: str
    rows: int
    contents: dict[str, int]
    left_out: dict[str, int]
    digest: str
    shards: list[ShardEntry]


class LeftOut:
    """A `Notice` that lets faults of items pass and keeps them, so that nothing disappears unsaid.

    A whole annotation file that cannot be read is refused: without it the data would be other data.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def __call__(self, problem: Problem) -> None:
        if problem.kind is Kind.FILE_BROKEN:
            raise RequestError(problem.sentence)
        if problem.kind.is_fault:
            self.problems.append(problem)


def shard_file(folder: Path, index: int) -> Path:
    """The Arrow file of a shard."""
    return folder / f"shard-{index:05d}.arrow"


def schema_of(codec: Codec) -> pa.Schema:
    """The columns of a shard."""
    return SCHEMA if codec == "none" else pa.schema([*SCHEMA, *PIXELS])


def decode_json(file: Path, content: bytes, layout: type[Layout]) -> Layout:
    """A JSON file of a prepared folder. Raises RequestError when it is damaged."""
    try:
        return msgspec.json.decode(content, type=layout)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(file, clause(content, error)) from error
    except RequestError as error:  # options out of range
        raise damaged(file, str(error).rstrip(".")) from error


def other_version(folder: Path) -> RequestError:
    """The sentence about a layout that this version does not read."""
    return RequestError(f"{folder} was prepared by another version of t2i; delete it and prepare it again.")


def damaged(file: Path, reason: str) -> RequestError:
    """The sentence about a file of a prepared folder."""
    return RequestError(f"prepared data {file} is damaged: {reason}; delete {file.parent} and prepare it again.")
