"""What a metric is to the rest: what it looks at, how it adds up, what it says.

Pictures are drawn in portions by any number of workers. `View`s look at each portion once and leave arrays; metrics
add up those arrays, and many metrics share a view. Nothing here knows how pictures come about.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Tokens
from orchestration.evaluation.estimates import Estimate

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What B pictures were drawn for, or which B real pictures they are.

    places: (B,) int64, each picture's place in the whole plan, from 0: it names the sample. image_ids: (B,), of the
    image that the caption belongs to; class_ids: (B,), what images of one class share; groups: (B,), equal where
    pictures were drawn for one caption with other noise, or for one label (SOA); texts: the captions; tokens: the
    captions as word indices, None where nothing here reads them so.
    """

    places: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    groups: NDArray[np.int64]
    texts: Sequence[str]
    tokens: Tokens | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What views saw of B pictures: `arrays` by name, VIEW/ARRAY, each (B,...)."""

    asked: Asked
    arrays: Mapping[str, Array]

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def __len__(self) -> int:
        return len(self.asked.places)


class View(Protocol):
    """Looks at pictures. It must not depend on which other pictures are in the portion, but for those of a group."""

    name: str
    """Such as "inception-2015": its arrays are called NAME/ARRAY."""
    digest: str
    """Hex digest of its weights' file, or of all that makes it what it is. Another digest is another protocol."""
    notes: tuple[str, ...]
    """Sentences that must stand beside every figure from it."""

    def look(self, pictures: Tensor, asked: Asked) -> Mapping[str, Array]:
        """uint8 pictures (B,3,H,W) to arrays (B,...) by full name. Pictures of a group are never divided."""
        ...


OpenView = Callable[[torch.device], View]
"""Opens a view on a device, in any process: a module-level function, or `functools.partial` of one."""


@dataclass(frozen=True, slots=True)
class Result:
    """One figure: NAME/PROTOCOL, its estimate, and how many pictures it is from.

    real: real pictures, 0 where none play a part; drawn: pictures drawn; notes: sentences that must be read with the
    figure, such as a warning; details: further figures without an interval.
    """

    name: str
    protocol: str
    estimate: Estimate
    real: int
    drawn: int
    notes: tuple[str, ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def figure(self) -> str:
        """METRIC/PROTOCOL, as in tables and in MLflow."""
        return f"{self.name}/{self.protocol}"


class Metric(Protocol):
    """One metric under one protocol. However portions come, in any order and from any number of workers, and merged
    in any order, the result is the same to 1e-9."""

    name: str
    """Such as "fid"."""
    protocol: str
    """Such as "inception-2015"."""
    looks_at: frozenset[str]
    """Names of the views it needs of pictures drawn."""
    looks_at_real: frozenset[str]
    """Names of the views it needs of real pictures; empty where it needs none."""
    plan: str
    """Which pictures it is about: "captions", one for each caption; "repeats", several for each; "labels" (SOA)."""

    def update(self, drawn: Seen) -> None:
        """Add a portion of pictures drawn."""
        ...

    def update_real(self, real: Seen) -> None:
        """Add a portion of real pictures."""
        ...

    def merge(self, other: Self) -> None:
        """Add what another worker saw. Raises ValueError for another protocol or seed."""
        ...

    def compute(self) -> Sequence[Result]:
        """The figures. Raises RequestError where there are too few pictures, in a sentence."""
        ...
