"""What folders of label maps have in common, the mask bank and the canvases: what their maps show."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from orchestration.data.array_files import Forms, map_arrays, read_about
from orchestration.errors import RequestError

AGAIN = "delete that folder and repeat what wrote it"


class AboutMaps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the description says first.

    data: digest of the data whose pictures they are of; size: S; classes: names; stuff: which of them are no things.
    """

    format: int
    data: str
    size: int
    classes: tuple[str, ...]
    stuff: tuple[bool, ...]


AboutT = TypeVar("AboutT", bound=AboutMaps)


@dataclass(frozen=True, eq=False)
class StoredMaps(Generic[AboutT]):
    """Label maps (S,S) in a folder, as its description says."""

    folder: Path
    about: AboutT = field(repr=False)

    @property
    def size(self) -> int:
        """S, in pixels."""
        return self.about.size

    @property
    def classes(self) -> tuple[str, ...]:
        """K names; K itself is "don't care"."""
        return self.about.classes

    @property
    def stuff(self) -> tuple[bool, ...]:
        """Which classes are no things."""
        return self.about.stuff


def read_maps_about(file: Path, layout: type[AboutT], form: int, what: str) -> AboutT:
    """The description in a file. Raises RequestError, see `read_about`."""
    about = read_about(file, layout, form, what, AGAIN)
    if len(about.stuff) != len(about.classes) or about.size < 1:
        raise RequestError(f"{file} has a size below 1, or not one kind for each class: {AGAIN}")
    return about


def open_arrays(
    folder: Path, forms: Forms, sizes: dict[str, int], said: str, mapped: tuple[str, ...]
) -> dict[str, Any]:
    """As `map_arrays`, but all except `mapped` are read into memory."""
    arrays = map_arrays(folder, forms, sizes, said, AGAIN)
    return {name: array if name in mapped else np.array(array) for name, array in arrays.items()}
