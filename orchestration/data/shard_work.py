"""One shard of the prepared form: made from a batch of records, on any core, and written whole or not at all."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from orchestration.data.arrow_records import from_batch
from orchestration.data.picture_files import read_picture
from orchestration.data.problems import Problem
from orchestration.data.records import ImageRecord
from orchestration.data.shard_form import PIXELS, Fault, ShardOptions, ShardSummary, schema_of, shard_file
from orchestration.data.transforms import get_transform
from orchestration.errors import RunError
from orchestration.stages import file_sha256, hidden_sibling, write_atomically

_CHUNK = 64  # pictures in flight: bounds memory however slow the disk is
_PNG_LEVEL = 1  # photographs: higher levels take several times as long and save some percent

Tick = Callable[[], None]
"""Heard after each picture."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One shard to make: its place, its batch in the file of records, and what is known to be left out of it."""

    index: int
    batch: int
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """Makes a unit's shard, wherever it is called: whoever runs it sees the same folders."""

    options: ShardOptions
    folder: Path
    root: Path
    records: Path

    def __call__(self, unit: Unit, threads: int = 1, tick: Tick | None = None) -> ShardSummary:
        """Raises RunError when a file cannot be read or written."""
        try:
            with pa.memory_map(str(self.records)) as mapped:
                batch = pa.ipc.open_file(mapped).get_batch(unit.batch)
                file = shard_file(self.folder, unit.index)
                return write_shard(batch, self.options, file, self.root, unit.faults, threads, tick)
        except OSError as error:
            raise unwritten(self.folder, error) from error


Runner = Callable[[Work, Sequence[Unit], Callable[[Unit, ShardSummary], None]], None]
"""Runs the work on every unit, in any order, and hands over each summary as it comes."""


def write_shard(
    batch: pa.RecordBatch,
    options: ShardOptions,
    file: Path,
    root: Path,
    known: Sequence[Fault] = (),
    threads: int = 1,
    tick: Tick | None = None,
) -> ShardSummary:
    """Make the pictures of some records ready and write them, with their summary beside them. Repeating it is harmless.

    Images without a usable picture are left out and named in the summary, after those `known` to be left out.
    """
    faults, kept, contents = list(known), [], dict[str, int]()
    pixels, ends, shapes = bytearray(), [0], list[tuple[int, int]]()
    records = from_batch(batch)
    for row, made in enumerate(_made(records, options, root, threads)):
        if tick is not None:
            tick()
        if isinstance(made, Problem):
            faults.append(Fault(made.kind.name, made.sentence, records[row].image_id))
            continue
        kept.append(row)
        for name in records[row].carries:
            contents[name] = contents.get(name, 0) + 1
        pixels += made.content
        ends.append(len(pixels))
        shapes.append(made.shape)
    if len(kept) < len(records):
        batch = batch.take(pa.array(kept, pa.int64()))
    columns = batch.columns
    if options.codec != "none":
        columns += [
            pa.LargeBinaryArray.from_buffers(
                pa.large_binary(), len(kept), [None, pa.py_buffer(np.array(ends, np.int64)), pa.py_buffer(pixels)]
            ),
            *(pa.array([shape[side] for shape in shapes], PIXELS[1 + side].type) for side in (0, 1)),
        ]
    schema = schema_of(options.codec)
    _write_batch(pa.RecordBatch.from_arrays(columns, schema=schema), file)
    summary = ShardSummary(
        rows=len(kept),
        bytes=file.stat().st_size,
        sha256=file_sha256(file),
        shape=shapes[0] if options.codec != "none" and len(set(shapes)) == 1 else None,
        contents=dict(sorted(contents.items())),
        faults=faults,
    )
    write_atomically(file.with_suffix(".json"), msgspec.json.encode(summary))
    return summary


@dataclass(frozen=True, slots=True)
class _Picture:
    content: bytes | memoryview
    shape: tuple[int, int]  # height, width


def _made(
    records: Sequence[ImageRecord], options: ShardOptions, root: Path, threads: int
) -> Iterator[_Picture | Problem]:
    make = partial(_make, options=options, root=root)
    if threads == 1:
        yield from map(make, records)
        return
    with ThreadPoolExecutor(threads) as pool:  # Pillow lets go of the interpreter lock
        for start in range(0, len(records), _CHUNK):
            yield from pool.map(make, records[start : start + _CHUNK])


def _make(record: ImageRecord, options: ShardOptions, root: Path) -> _Picture | Problem:
    picture = read_picture(record, root)
    if isinstance(picture, Problem):
        return picture
    if options.codec == "none":  # decoded all the same: that it can be is what was asked
        return _Picture(b"", (0, 0))
    stored = get_transform(options.transform).store(picture, record, options.size)
    return _Picture(_png(stored) if options.codec == "png" else stored.data.cast("B"), stored.shape[1:])


def _png(stored: NDArray[np.uint8]) -> memoryview:
    content = io.BytesIO()
    Image.fromarray(stored.transpose(1, 2, 0)).save(content, "PNG", compress_level=_PNG_LEVEL)
    return content.getbuffer()


def _write_batch(batch: pa.RecordBatch, file: Path) -> None:
    temporary = hidden_sibling(file)
    try:
        with temporary.open("xb") as output:
            with pa.ipc.new_file(output, batch.schema) as writer:
                writer.write_batch(batch)
            output.flush()
            os.fsync(output.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def unwritten(folder: Path, error: OSError) -> RunError:
    """The sentence about a file of a prepared folder that could not be written."""
    return RunError(
        f"the prepared data could not be written to {folder} ({error}); free the disk or mend that file, then run the "
        "same command again: it goes on where it stopped."
    )
