"""Prepared splits: Arrow files that are mapped, not parsed, each row one image, whole, with its picture made ready."""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast, overload

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from orchestration.data.arrow_records import from_batch, to_numpy
from orchestration.data.folders import check_folder
from orchestration.data.picture_files import read_picture
from orchestration.data.problems import Notice, Problem, refuse
from orchestration.data.records import Dataset, ImageRecord
from orchestration.data.shard_form import (
    MANIFEST,
    VERSION,
    LeftOut,
    Manifest,
    ShardOptions,
    damaged,
    decode_json,
    other_version,
    schema_of,
    shard_file,
)
from orchestration.data.shard_writing import write_shards
from orchestration.data.transforms import get_transform
from orchestration.errors import RequestError

__all__ = [
    "LeftOut",
    "Rows",
    "ShardOptions",
    "Shards",
    "open_shards",
    "prepared_splits",
    "read_prepared",
    "write_shards",
]

_READ_ROWS = 64  # records turned into objects at a time
_THREADS_FROM = 8  # pictures; fewer are decoded sooner than threads start


class Rows(Sequence[ImageRecord]):
    """Records of a prepared split, made when they are asked for. A slice is another view."""

    def __init__(self, shards: "Shards", rows: NDArray[np.int64]) -> None:
        self._shards, self._rows = shards, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, place: slice) -> "Rows": ...
    def __getitem__(self, place: int | slice) -> "ImageRecord | Rows":
        if isinstance(place, slice):
            return Rows(self._shards, self._rows[place])
        shard, row = self._shards.locate(self._rows[place])
        return from_batch(self._shards.batches[shard].slice(row, 1))[0]

    def __iter__(self) -> Iterator[ImageRecord]:
        for batch in self._runs():
            yield from from_batch(batch)

    def take(self, places: Sequence[int] | NDArray[np.int64]) -> "Rows":
        """A view of some of them."""
        return Rows(self._shards, self._rows[np.asarray(places, np.int64)])

    def _runs(self) -> Iterator[pa.RecordBatch]:
        """Batches of rows that lie one after the other in a shard: quicker than row by row."""
        start = 0
        while start < len(self._rows):
            shard, first = self._shards.locate(self._rows[start])
            batch = self._shards.batches[shard]
            most = min(_READ_ROWS, len(self._rows) - start, batch.num_rows - first)
            following = np.flatnonzero(np.diff(self._rows[start : start + most]) != 1)
            count = int(following[0]) + 1 if len(following) else most
            yield batch.slice(first, count)
            start += count


class Shards:
    """A prepared split, mapped. Processes that open the same one share its memory; pickled, it is opened anew.

    image_ids: int64 (N,); records: N `ImageRecord`, read when touched, `file` relative to the published folder.
    """

    def __init__(self, folder: Path, root: Path, manifest: Manifest, batches: list[pa.RecordBatch]) -> None:
        self.folder, self.root, self.manifest, self.batches = folder, root, manifest, batches
        self.options = manifest.plan.options
        self._transform = get_transform(self.options.transform)
        ends = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._starts: NDArray[np.int64] = ends[:-1]
        ids = [to_numpy(batch.column("image_id")) for batch in batches]
        self.image_ids: NDArray[np.int64] = np.concatenate(ids)
        self.image_ids.setflags(write=False)
        self.records = Rows(self, np.arange(ends[-1]))
        shapes = {entry.shape for entry in manifest.shards if entry.rows}
        self._shape = shapes.pop() if len(shapes) == 1 else None

    def __len__(self) -> int:
        return len(self.image_ids)

    def __reduce__(self) -> tuple[Callable[..., "Shards"], tuple[Path, Path]]:
        return open_shards, (self.folder, self.root)

    def locate(self, row: int | np.int64) -> tuple[int, int]:
        """(shard, row within it)."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, int(row - self._starts[shard])

    def dataset(self, root: Path | None = None) -> Dataset:
        """The split as a data set, its pictures below `root`: where they were published, unless told otherwise."""
        plan = self.manifest.plan
        carries = frozenset(name for name, count in self.manifest.contents.items() if count)
        complete = frozenset(name for name, count in self.manifest.contents.items() if count == len(self))
        return Dataset(
            plan.dataset, plan.split, root or self.root, self.records, carries, self.manifest.data_digest, complete
        )

    def pictures(self, rows: Sequence[int] | NDArray[np.int64]) -> Sequence[NDArray[np.uint8]]:
        """The stored pictures, uint8 (3,h,w) in 0..255 each: one array (B,3,h,w) for raw ones of one shape.

        Raises RequestError when one is damaged or, for "none", not what it was when it was prepared.
        """
        wanted = np.asarray(rows, np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()}..{wanted.max()} of a prepared split of {len(self)} images")
        if self.options.codec == "raw" and self._shape is not None:
            return cast(Sequence[NDArray[np.uint8]], self._gather(wanted, self._shape))
        one = {"raw": self._raw, "png": self._png, "none": self._published}[self.options.codec]
        threads = torch.get_num_threads()  # what this process may use, as its trainer set it
        if self.options.codec == "raw" or threads == 1 or len(wanted) < _THREADS_FROM:
            return [one(row) for row in wanted]
        with ThreadPoolExecutor(threads) as pool:  # Pillow lets go of the interpreter lock
            return list(pool.map(one, wanted))

    def _gather(self, rows: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.uint8]:
        pictures = np.empty((len(rows), 3, *shape), np.uint8)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(owners):
            places = np.flatnonzero(owners == shard)
            pixels = _content(self.batches[shard])
            try:
                pictures[places] = pixels.reshape(-1, 3, *shape)[rows[places] - self._starts[shard]]
            except (ValueError, IndexError) as error:
                raise damaged(shard_file(self.folder, int(shard)), "its pixels are not of the size it says") from error
        return pictures

    def _raw(self, row: np.int64) -> NDArray[np.uint8]:
        shard, place = self.locate(row)
        batch = self.batches[shard]
        height, width = (batch.column(name)[place].as_py() for name in ("stored_height", "stored_width"))
        try:
            return np.frombuffer(batch.column("pixels")[place].as_buffer(), np.uint8).reshape(3, height, width)
        except ValueError as error:
            raise damaged(shard_file(self.folder, shard), "its pixels are not of the size it says") from error

    def _png(self, row: np.int64) -> NDArray[np.uint8]:
        shard, place = self.locate(row)
        content = io.BytesIO(self.batches[shard].column("pixels")[place].as_buffer())
        try:
            with Image.open(content, formats=["PNG"]) as picture:
                return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
        except (OSError, SyntaxError, ValueError) as error:
            raise damaged(shard_file(self.folder, shard), f"picture {place} of it does not decode") from error

    def _published(self, row: np.int64) -> NDArray[np.uint8]:
        record = self.records[int(row)]
        picture = read_picture(record, self.root)
        if isinstance(picture, Problem):
            raise RequestError(picture.sentence)
        return self._transform.store(picture, record, self.options.size)


def _content(batch: pa.RecordBatch) -> NDArray[np.uint8]:
    """The bytes of all pictures of a shard, one after the other."""
    column = batch.column("pixels")
    _, offsets, content = column.buffers()
    ends = np.frombuffer(offsets, np.int64)[[column.offset, column.offset + len(column)]]
    return np.frombuffer(content, np.uint8)[ends[0] : ends[1]]


def open_shards(folder: Path, root: Path | None = None) -> Shards:
    """Map a prepared split. Sizes and layouts are checked; the bytes are not all read.

    `root` is the published folder, if it lies elsewhere now. Raises RequestError when something is missing, damaged or
    of another version.
    """
    check_folder(folder, "the folder of a prepared split")
    manifest = read_manifest(folder)
    batches = [_map_shard(folder, index, manifest) for index in range(len(manifest.shards))]
    return Shards(folder, root or Path(manifest.source), manifest, batches)


def read_manifest(folder: Path) -> Manifest:
    """Raises RequestError when it is missing or damaged."""
    file = folder / MANIFEST
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{folder} holds no finished preparation ({MANIFEST}: {error.strerror}); repeat the `t2i data prepare` "
            "command that writes there, or name another folder."
        ) from error
    manifest = decode_json(file, content, Manifest)
    if manifest.plan.version != VERSION:
        raise other_version(folder)
    return manifest


def _map_shard(folder: Path, index: int, manifest: Manifest) -> pa.RecordBatch:
    file, entry = shard_file(folder, index), manifest.shards[index]
    wanted = schema_of(manifest.plan.options.codec)
    try:
        if (size := file.stat().st_size) != entry.bytes:
            raise damaged(file, f"it has {size} bytes and {MANIFEST} says {entry.bytes}")
        # Closed at once, the mapping lives on in the buffer: many shards do not use up the open files.
        with pa.memory_map(str(file)) as mapped:
            content = mapped.read_buffer()
        reader = pa.ipc.open_file(pa.BufferReader(content))
        if reader.schema != wanted:
            raise other_version(folder)
        batch = reader.get_batch(0)
        batch.validate()
    except (OSError, pa.ArrowException) as error:
        raise damaged(file, " ".join(str(error).split()).rstrip(".")) from error
    if batch.num_rows != entry.rows:
        raise damaged(file, f"it has {batch.num_rows} images and {MANIFEST} says {entry.rows}")
    return batch


def prepared_splits(root: Path) -> tuple[str, ...]:
    """The splits that lie prepared in `root`. Raises RequestError when there is none."""
    check_folder(root, "the folder that `t2i data prepare` wrote")
    splits = tuple(split for split in ("train", "val", "test") if (root / split / MANIFEST).is_file())
    if not splits:
        raise RequestError(f"{root} holds no finished split (no SPLIT/{MANIFEST}); run `t2i data prepare` to the end.")
    return splits


def read_prepared(root: Path, split: str, notice: Notice = refuse) -> Dataset:
    """One prepared split as a data set; its pictures lie in `root`/`split` (`open_shards`).

    `notice` hears nothing: what was wrong was left out, or refused, when it was prepared.
    Raises RequestError when the split is missing or damaged.
    """
    splits = prepared_splits(root)
    if split not in splits:
        raise RequestError(f"{root} holds no finished split {split!r}; it holds {', '.join(splits)}.")
    return open_shards(root / split).dataset()
