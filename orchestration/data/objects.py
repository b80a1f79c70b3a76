"""The annotated things of a split, and where they are in the pictures that training shows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import Objects
from orchestration.data.records import Dataset, ImageRecord
from orchestration.data.transforms import Placement, Transform, get_transform
from orchestration.errors import RequestError
from orchestration.stages import Progress, Stage

VERSION = 1
# Less than this share of a thing's box, or than a pixel of a side, is nothing that could be found.
LEAST_SHARE, LEAST_PIXELS = 0.1, 1.0
_ARRAYS = ("image_ids", "stored", "starts", "boxes", "numbers")
_DESCRIPTION = "objects.json"


@dataclass(frozen=True, slots=True, eq=False)
class StoredObjects:
    """The things of N pictures, crowds left out.

    image_ids: (N,) int64, as the records stand; classes: names; stored: (N,2) int64, width and height of each stored
    picture; starts: (N+1,) int64, picture i owns things starts[i] to starts[i+1]; boxes: (M,4) float32, x0, y0, x1, y1
    in pixels of the stored picture, which they may reach beyond; numbers: (M,) int64, places in `classes`; size: side
    of the square pictures that are shown.
    """

    image_ids: NDArray[np.int64]
    classes: tuple[str, ...]
    stored: NDArray[np.int64]
    starts: NDArray[np.int64]
    boxes: NDArray[np.float32]
    numbers: NDArray[np.int64]
    transform: Transform
    size: int
    most: int = field(init=False)
    """Things of the fullest picture, at least 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "most", max([1, *np.diff(self.starts).tolist()]))

    def __len__(self) -> int:
        return len(self.image_ids)

    def take(self, items: NDArray[np.int64], draws: NDArray[np.float64] | None = None, flip: bool = False) -> Objects:
        """What is to be seen in B pictures, padded to `most`; items: (B,) places among the N, draws: (B,3) in [0, 1).

        Cut and mirrored as `Pictures.drawn` does with these draws and flip, and without draws as `Pictures.still`.
        Boxes are cut where the picture ends; those of which less than a tenth, or a pixel of a side, is left are not
        there.
        """
        boxes = np.zeros((len(items), self.most, 4), np.float32)
        numbers = np.zeros((len(items), self.most), np.int64)
        counts = np.zeros(len(items), np.int64)
        for row, item in enumerate(items):
            own = slice(self.starts[item], self.starts[item + 1])
            drawn = None if draws is None else draws[row]
            shown, kept = self._place(item, self.boxes[own].astype(np.float64), drawn, flip)
            counts[row] = len(shown)
            boxes[row, : len(shown)] = shown
            numbers[row, : len(shown)] = self.numbers[own][kept]
        return Objects(torch.from_numpy(boxes), torch.from_numpy(numbers), torch.from_numpy(counts))

    def _place(
        self, item: np.int64, boxes: NDArray[np.float64], draws: NDArray[np.float64] | None, flip: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Boxes in [0, 1] of the shown picture, those that are there, and which of all are."""
        width, height = self.stored[item].tolist()
        # A stored picture is what its transform makes of itself, so that only the random half is left to do.
        place = self.transform.place(ImageRecord(0, Path(), width, height), self.size, draws, flip)
        moved = _moved(place, boxes)
        cut = moved.clip(0, self.size)
        left, whole = cut[:, 2:] - cut[:, :2], moved[:, 2:] - moved[:, :2]
        kept = (left >= LEAST_PIXELS).all(1) & (left.prod(1) >= LEAST_SHARE * whole.prod(1))
        return cut[kept] / self.size, kept


def _moved(place: Placement, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M,4) x0, y0, x1, y1, in both."""
    ends = place.points(boxes.reshape(-1, 2)).reshape(-1, 2, 2)
    return np.concatenate([ends.min(1), ends.max(1)], 1)


def objects_stage(dataset: Dataset, transform: Transform, size: int, classes: Sequence[str] | None = None) -> Stage:
    """The stage that writes what `open_objects` reads.

    size: side of the training pictures; classes: the names that count, in order, such as the training split's; things
    of others are left out. None: all that the split has, sorted. `run` raises RequestError where that is none.
    """

    def run(folder: Path, progress: Progress) -> None:
        _write(dataset, transform, size, classes, folder, progress)

    settings = {
        "split": dataset.split,
        "transform": transform.name,
        "size": size,
        "classes": None if classes is None else list(classes),
    }
    return Stage("objects", VERSION, settings, {"data": dataset.digest}, run)


def _write(
    dataset: Dataset, transform: Transform, size: int, classes: Sequence[str] | None, folder: Path, progress: Progress
) -> None:
    records = dataset.records
    wanted = None if classes is None else frozenset(classes)
    image_ids, stored, starts, boxes, names = [], [], [0], [], []
    for done, record in enumerate(records, 1):
        # The identity of the random half: only where the stored picture lies in the published one.
        place = transform.place(record, size)
        uncut = Placement(place.region, place.stored, 0, 0, size, False)
        things = [thing for thing in record.instances or () if not thing.crowd and min(thing.box[2:]) > 0]
        if wanted is not None:
            things = [thing for thing in things if thing.category in wanted]
        edges = np.array([thing.box for thing in things], np.float64).reshape(-1, 4)
        boxes.append(_moved(uncut, np.concatenate([edges[:, :2], edges[:, :2] + edges[:, 2:]], 1)).astype(np.float32))
        names += [thing.category for thing in things]
        image_ids.append(record.image_id)
        stored.append(place.stored)
        starts.append(len(names))
        progress("objects", done, len(records))
    known = sorted(set(names)) if classes is None else list(classes)
    if not known:
        raise RequestError(
            f"no image of {dataset.name} ({dataset.split}) has an annotated thing: choose data with boxes, such as "
            "scenes or coco:PATH"
        )
    number = {name: place for place, name in enumerate(known)}
    arrays: dict[str, NDArray[Any]] = {
        "image_ids": np.array(image_ids, np.int64),
        "stored": np.array(stored, np.int64).reshape(-1, 2),
        "starts": np.array(starts, np.int64),
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        "numbers": np.array([number[name] for name in names], np.int64),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    description = {"transform": transform.name, "size": size, "classes": known}
    (folder / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")


def open_objects(folder: Path) -> StoredObjects:
    """What the stage wrote. Raises RequestError."""
    try:
        described = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _ARRAYS}
        found = StoredObjects(
            transform=get_transform(described["transform"]),
            size=int(described["size"]),
            classes=tuple(map(str, described["classes"])),
            **arrays,
        )
        _check(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"objects in {folder} cannot be read ({error}): delete that folder and repeat") from error
    return found


def _check(found: StoredObjects) -> None:
    count, things = len(found.image_ids), len(found.numbers)
    shapes = {"stored": (count, 2), "starts": (count + 1,), "boxes": (things, 4)}
    for name, shape in shapes.items():
        if (array := getattr(found, name)).shape != shape:
            raise ValueError(f"{name} has the shape {array.shape} and not {shape}")
    if found.starts[0] != 0 or found.starts[-1] != things or (np.diff(found.starts) < 0).any():
        raise ValueError(f"starts do not part {things} things")
    if things and not (found.numbers.min() >= 0 and found.numbers.max() < len(found.classes)):
        raise ValueError("there are class numbers without a name")
