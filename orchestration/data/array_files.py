"""Folders of arrays with a description beside them: regions, patches, candidates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from orchestration.data.json_files import StructT, clause, read_bytes
from orchestration.errors import RequestError

Forms = Mapping[str, tuple[str, str]]
"""By array: its type, and its shape in letters, such as "N,4"."""


def read_about(file: Path, layout: type[StructT], form: int, what: str, again: str) -> StructT:
    """A folder's description, of this `form`. Raises RequestError that ends in `again`."""
    content = read_bytes(file)
    try:
        found = msgspec.json.decode(content, type=_Form).format
        about = msgspec.json.decode(content, type=layout) if found == form else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{file} does not describe {what}: {clause(content, error)}; {again}") from error
    if about is None:
        raise RequestError(f"{file} is of format {found}, and this version reads {form}: {again}")
    return about


class _Form(msgspec.Struct):
    format: int


def map_array(file: Path, dtype: str, again: str) -> Any:
    """A memory-mapped .npy file of that type. Raises RequestError that ends in `again`."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise RequestError(f"{file} is missing: {again}") from error
    except (OSError, ValueError, EOFError) as error:
        raise RequestError(f"{file} is cut short or no .npy file ({error}): {again}") from error
    if array.dtype != np.dtype(dtype):
        raise RequestError(f"{file} holds {array.dtype}, and {dtype} is read: {again}")
    return array


def map_arrays(folder: Path, forms: Forms, sizes: Mapping[str, int], said: str, again: str) -> dict[str, Any]:
    """The arrays of a folder, memory-mapped: NAME.npy for each of forms.

    sizes: what the letters stand for, and `said` by whom. Raises RequestError that ends in `again`.
    """
    arrays = {name: map_array(folder / f"{name}.npy", dtype, again) for name, (dtype, _) in forms.items()}
    for name, (_, form) in forms.items():
        shape = tuple(sizes[letter] if letter in sizes else int(letter) for letter in form.split(","))
        if arrays[name].shape != shape:
            raise RequestError(
                f"{folder / f'{name}.npy'} has the shape {arrays[name].shape}, and by {said} it is ({form}) = {shape}: "
                f"{again}"
            )
    return arrays


def require_parts(file: Path, starts: NDArray[np.int64], end: int, what: str, again: str) -> None:
    """RequestError, which ends in `again`, where starts (N+1,) of a file do not part `end` of what it says."""
    if starts[0] != 0 or starts[-1] != end or (np.diff(starts) < 0).any():
        raise RequestError(f"{file} does not part {end} {what}: {again}")
