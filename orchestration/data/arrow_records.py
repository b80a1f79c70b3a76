"""Image records as Arrow tables: every field, exactly, in files that are mapped and not parsed.

The Arrow type of each field follows from its Python type, so a field that `ImageRecord` gains is stored too. What is
None is null, which is not the same as empty. All floats are float64.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestration.data.json_files import read_bytes
from orchestration.data.records import ImageRecord
from orchestration.errors import RequestError


@dataclass(frozen=True, slots=True)
class _Column:
    """How one Python type is kept: its Arrow type, a value as `pyarrow.array` takes it, an array without nulls back."""

    arrow: pa.DataType
    plain: Callable[[Any], Any]
    values: Callable[[pa.Array], list[Any]]
    nullable: bool = False

    def field(self, name: str) -> pa.Field:
        return pa.field(name, self.arrow, self.nullable)


def _column(hint: Any) -> _Column:
    """The column of a type hint, of those that records are made of."""
    if hint in _LEAVES:
        return _LEAVES[hint]
    if get_origin(hint) in (Union, UnionType):
        return _optional(_column(Union[tuple(kind for kind in get_args(hint) if kind is not NoneType)]))  # noqa: UP007
    if get_origin(hint) is tuple:
        return _tuple(get_args(hint))
    if get_origin(hint) is Sequence:
        return _list(_column(get_args(hint)[0]))
    if isinstance(hint, type) and is_dataclass(hint):
        hints = get_type_hints(hint)
        return _struct(hint, {field.name: _column(hints[field.name]) for field in fields(hint)})
    raise TypeError(f"records have a field of type {hint}, for which there is no Arrow column")


def to_numpy(array: pa.Array) -> NDArray[Any]:
    """Numbers without nulls, as a view. Arrow's own way would load pandas, 27 MB in each process."""
    if pa.types.is_boolean(array.type):
        return np.from_dlpack(array.cast(pa.uint8())).astype(bool)
    return np.from_dlpack(array)


def _numbers(array: pa.Array) -> list[Any]:
    return to_numpy(array).tolist()


def _same(value: Any) -> Any:
    return value


def _optional(column: _Column) -> _Column:
    def values(array: pa.Array) -> list[Any]:
        if not array.null_count:
            return column.values(array)
        present = iter(column.values(array.drop_null()))
        return [next(present) if valid else None for valid in _numbers(array.is_valid())]

    return _Column(column.arrow, lambda value: None if value is None else column.plain(value), values, True)


def _tuple(kinds: tuple[Any, ...]) -> _Column:
    if kinds[-1] is Ellipsis:
        return _list(_column(kinds[0]))
    if set(kinds) == {float}:
        return _Column(
            pa.list_(pa.field("item", pa.float64(), False), len(kinds)),
            _same,
            lambda array: list(map(tuple, to_numpy(array.flatten()).reshape(-1, len(kinds)).tolist())),
        )
    columns = {str(place): _column(kind) for place, kind in enumerate(kinds)}
    return _Column(
        pa.struct([column.field(name) for name, column in columns.items()]),
        lambda value: {name: column.plain(value[int(name)]) for name, column in columns.items()},
        lambda array: list(zip(*_children(array, columns.values()), strict=True)),
    )


def _list(item: _Column) -> _Column:
    def values(array: pa.Array) -> list[Any]:
        flat = item.values(array.flatten())
        return [tuple(flat[start:stop]) for start, stop in _bounds(array)]

    return _Column(pa.list_(item.field("item")), lambda value: [item.plain(part) for part in value], values)


def _struct(kind: type[Any], columns: dict[str, _Column]) -> _Column:
    return _Column(
        pa.struct([column.field(name) for name, column in columns.items()]),
        lambda value: {name: column.plain(getattr(value, name)) for name, column in columns.items()},
        lambda array: [kind(*row) for row in zip(*_children(array, columns.values()), strict=True)],
    )


def _children(array: pa.StructArray, columns: Iterable[_Column]) -> list[list[Any]]:
    return [column.values(array.field(place)) for place, column in enumerate(columns)]


def _bounds(array: pa.ListArray) -> Iterable[tuple[int, int]]:
    """Where each list begins and ends in the flattened values."""
    offsets = to_numpy(array.offsets)
    return pairwise((offsets - offsets[0]).tolist())


def _map_bytes(content: Path | bytes) -> bytes:
    return read_bytes(content) if isinstance(content, Path) else content


def _trace_numbers(traces: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    flat = []
    for trace in traces:
        if trace.ndim != 2 or trace.shape[1] != 3:
            raise RequestError(
                f"a mouse trace has the shape {trace.shape}; its points must be x, y and t, which is (N, 3)."
            )
        flat.append(np.ascontiguousarray(trace, np.float64).ravel())
    return flat


def _traces(array: pa.Array) -> list[Any]:
    """Views of the mapped file: a trace is read from disk when it is touched."""
    traces = array.flatten()
    numbers = to_numpy(traces.flatten())
    flat = [numbers[start:stop].reshape(-1, 3) for start, stop in _bounds(traces)]
    return [tuple(flat[start:stop]) for start, stop in _bounds(array)]


_LEAVES: dict[Any, _Column] = {
    int: _Column(pa.int64(), _same, _numbers),
    float: _Column(pa.float64(), _same, _numbers),
    bool: _Column(pa.bool_(), _same, _numbers),
    str: _Column(pa.string(), _same, pa.Array.to_pylist),
    bytes: _Column(pa.binary(), _same, pa.Array.to_pylist),
    Path: _Column(pa.string(), Path.as_posix, lambda array: [Path(text) for text in array.to_pylist()]),
    # Maps of one shard together may pass 2 GiB.
    Path | bytes: _Column(pa.large_binary(), _map_bytes, pa.Array.to_pylist),
    # Each trace is x, y, t, x, y, t ...
    Sequence[NDArray[np.float64]]: _Column(
        pa.list_(pa.field("item", pa.list_(pa.field("item", pa.float64(), False)), False)), _trace_numbers, _traces
    ),
}

_HINTS = get_type_hints(ImageRecord)
_COLUMNS = {field.name: _column(_HINTS[field.name]) for field in fields(ImageRecord)}

SCHEMA = pa.schema([column.field(name) for name, column in _COLUMNS.items()])
"""One row an image: the fields of `ImageRecord`. `file` is a posix path relative to the data set's folder."""


def to_table(records: Sequence[ImageRecord], root: Path) -> pa.Table:
    """The records as one table of `SCHEMA`, in one chunk. Files of maps are read; `file` is told from `root`.

    A picture outside of `root` keeps its whole path. Raises RequestError for a map that cannot be read and for a value
    that Arrow cannot hold.
    """
    try:
        return pa.Table.from_arrays([_array(name, records, root) for name in _COLUMNS], schema=SCHEMA)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        if len(records) > 1:
            for record in records:
                to_table([record], root)  # so that the sentence names the one
        reason = " ".join(str(error).split()).rstrip(".")
        raise RequestError(
            f"image {records[0].image_id} ({str(records[0].file)!a}) cannot be stored ({reason}); mend its annotation."
        ) from error


def to_batch(records: Sequence[ImageRecord], root: Path) -> pa.RecordBatch:
    """The same as one batch, which may be empty."""
    batches = to_table(records, root).combine_chunks().to_batches()
    if len(batches) > 1:
        raise RequestError(
            f"{len(records)} images from {records[0].image_id} on carry more than 2 GiB of text; make smaller shards."
        )
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=SCHEMA)


def from_batch(batch: pa.RecordBatch) -> list[ImageRecord]:
    """Rows of `SCHEMA` (other columns are passed over) as records. Traces are views of the batch's memory."""
    columns = (column.values(batch.column(name)) for name, column in _COLUMNS.items())
    return [ImageRecord(*row) for row in zip(*columns, strict=True)]


def _array(name: str, records: Sequence[ImageRecord], root: Path) -> pa.Array:
    column = _COLUMNS[name]
    if name == "file":
        return pa.array([_relative(record.file, root) for record in records], column.arrow)
    return pa.array([column.plain(getattr(record, name)) for record in records], column.arrow)


def _relative(file: Path, root: Path) -> str:
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()
