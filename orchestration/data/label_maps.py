"""What every pixel of a split's pictures shows, and which of its things it belongs to.

The class of a pixel comes from COCO-Stuff where a picture has it (its map, or the regions of stuff with the things
over them), else from the panoptic map. Things are numbered by their own masks.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import LabelMaps
from orchestration.data.coco_stuff import FIRST_STUFF_LABEL, LABEL_OF, LABELS, UNLABELLED
from orchestration.data.masks import draw_region, label_map, panoptic_ids
from orchestration.data.records import Dataset, ImageRecord, Instance
from orchestration.data.transforms import Region, Transform, get_transform
from orchestration.errors import RequestError
from orchestration.stages import Progress, Stage

VERSION = 1
_DESCRIPTION = "label_maps.json"
_OTHER = 183  # stuff files put all pixels of things under this category
_MERGED = "-merged"  # ends the names under which panoptic maps put several of COCO-Stuff's together
_NAMELESS = -1


class LabelReader:
    """Draws label maps of a split's records in numbers of its classes.

    classes: their names. Where the split calls its categories as COCO-Stuff does these are COCO-Stuff's 182, and
    panoptic stuff goes by COCO-Stuff's name ("grass-merged" is grass, "ceiling-merged" is ceiling-other); else the
    split's own names, sorted. stuff: which of them are no things; so are those that this split lacks, outside of
    COCO-Stuff.
    """

    classes: tuple[str, ...]
    stuff: tuple[bool, ...]

    def __init__(self, dataset: Dataset, classes: Sequence[str] | None = None) -> None:
        """classes: the names that count, in order, such as the training split's; other pixels become "don't care".

        Raises RequestError for a category with two names.
        """
        categories, things, panoptic = _names(dataset)
        published = all(LABELS[label : label + 1] == (name,) for label, name in categories.items())
        published = published and all(map(_coco_stuff, panoptic))
        own = {*categories.values(), *panoptic}
        self.classes = tuple(classes) if classes is not None else LABELS if published else tuple(sorted(own))
        stuff = frozenset(LABELS[FIRST_STUFF_LABEL:]) if published else frozenset(self.classes) - things
        self.stuff = tuple(name in stuff for name in self.classes)
        self._places = {name: place for place, name in enumerate(self.classes)}
        self._numbers = np.full(UNLABELLED + 1, _NAMELESS, np.int32)
        self._numbers[UNLABELLED] = self.dont_care
        for label, name in enumerate(LABELS) if published else categories.items():
            if 0 <= label < len(LABELS):
                self._numbers[label] = self._number(name)

    @property
    def dont_care(self) -> int:
        """The label of a pixel of no known class."""
        return len(self.classes)

    def read(
        self, record: ImageRecord, region: Region | None = None, size: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Labels and instances, (h,w) each, as `models.contract.LabelMaps` has them.

        region: what of the picture, in its pixels; size: width and height that this is resampled to, each pixel being
        the one nearest to its middle. Without them the whole picture in its own size.
        A pixel of a thing has the thing's place among the record's instances (or the panoptic map's segments), from 1;
        of two instances of one class the later is on top, and a crowd has none.
        Raises RequestError for a record without labels, a label that has no name, and maps or masks that are broken or
        of another size than the picture.
        """
        left, top, right, bottom = region or (0, 0, record.width, record.height)
        width, height = size or (right - left, bottom - top)
        pixels = np.ix_(_nearest(top, bottom, height), _nearest(left, right, width))
        if record.stuff_map is None and not record.stuff:
            return self._panoptic(record, pixels)
        labels = self._labels(record)[pixels]
        instances = np.zeros_like(labels)
        for number, thing in enumerate(record.instances or (), 1):
            label = self._numbers[thing.category_id - 1] if 1 <= thing.category_id <= len(LABELS) else self.dont_care
            if not thing.crowd and thing.segmentation is not None and 0 <= label < self.dont_care:
                instances[draw_region(record, thing)[pixels] & (labels == label)] = number
        return labels, instances

    def _labels(self, record: ImageRecord) -> NDArray[np.int32]:
        labels = label_map(record)
        numbers = self._numbers[labels]
        if (nameless := labels[numbers == _NAMELESS]).size:
            raise RequestError(
                f"image {record.image_id}: its label map shows category {nameless[0] + 1}, which no annotation of the "
                "split names; add the category to its instances or stuff file, or fetch the map again."
            )
        return numbers

    def _panoptic(
        self, record: ImageRecord, pixels: tuple[NDArray[np.int64], ...]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        if record.panoptic is None:
            raise RequestError(
                f"image {record.image_id} has no labels: add its COCO-Stuff map, the stuff file of its split or its "
                "panoptic map, or leave the picture out."
            )
        ids = panoptic_ids(record)[pixels]
        labels = np.full_like(ids, self.dont_care)
        instances = np.zeros_like(ids)
        for number, segment in enumerate(record.panoptic.segments, 1):
            own = ids == segment.id
            labels[own] = label = self._number(segment.category)
            if segment.thing and not segment.crowd and label < self.dont_care:
                instances[own] = number
        return labels, instances

    def _number(self, name: str) -> int:
        """A name's place; `dont_care` for one that does not count."""
        return self._places.get(name, self._places.get(_coco_stuff(name) or name, self.dont_care))


def _names(dataset: Dataset) -> tuple[dict[int, str], set[str], set[str]]:
    """The split's categories by label (id less one), which names are things, and the names of panoptic segments."""
    categories: dict[int, str] = {}
    things: set[str] = set()
    panoptic: set[str] = set()
    for record in dataset.records:
        for region in _regions(record):
            known = categories.setdefault(region.category_id - 1, region.category)
            if known != region.category:
                raise RequestError(
                    f"{dataset.name} ({dataset.split}): category {region.category_id} is both {known!r} and "
                    f"{region.category!r}; give each a number of its own."
                )
        things.update(thing.category for thing in record.instances or ())
        if record.panoptic is not None:
            panoptic.update(segment.category for segment in record.panoptic.segments)
            things.update(segment.category for segment in record.panoptic.segments if segment.thing)
    return categories, things, panoptic


def _regions(record: ImageRecord) -> Iterator[Instance]:
    yield from record.instances or ()
    yield from (region for region in record.stuff or () if region.category_id != _OTHER)


def _coco_stuff(name: str) -> str | None:
    """COCO-Stuff's name of a panoptic category (Kirillov et al. 2019), None where it has none."""
    plain = name.removesuffix(_MERGED)
    return next((known for known in (plain, f"{plain}-other") if known in LABEL_OF), None)


def _nearest(first: int, end: int, count: int) -> NDArray[np.int64]:
    """(count,) the pixels of first..end in which the middles of `count` equal parts lie."""
    return first + (2 * np.arange(count) + 1) * (end - first) // (2 * count)


@dataclass(frozen=True, slots=True, eq=False)
class StoredLabelMaps:
    """The label maps of N pictures.

    image_ids: (N,) int64, as the records stand; classes: names; stuff: which of them are no things; stored: (N,2)
    int64, width and height of each stored picture; maps: flat, unsigned and memory-mapped, picture by picture its
    labels (height, width) and then its instances; starts: (N+1,) int64, where each begins; size: side of the square
    pictures that are shown.
    """

    image_ids: NDArray[np.int64]
    classes: tuple[str, ...]
    stuff: tuple[bool, ...]
    stored: NDArray[np.int64]
    starts: NDArray[np.int64]
    maps: NDArray[Any]
    transform: Transform
    size: int

    def __len__(self) -> int:
        return len(self.image_ids)

    def take(self, items: NDArray[np.int64], draws: NDArray[np.float64] | None = None, flip: bool = False) -> LabelMaps:
        """The maps of B pictures; items: (B,) places among the N, draws: (B,3) in [0, 1).

        Cut and mirrored as `Pictures.drawn` does with these draws and flip, and without draws as `Pictures.still`.
        """
        shown = np.zeros((2, len(items), self.size, self.size), np.int64)
        for row, item in enumerate(items):
            width, height = self.stored[item].tolist()
            stored = self.maps[self.starts[item] : self.starts[item + 1]].reshape(2, height, width)
            shown[:, row] = self.transform.view(stored, self.size, None if draws is None else draws[row], flip)
        return LabelMaps(*map(torch.from_numpy, shown))


def label_maps_stage(dataset: Dataset, transform: Transform, size: int, classes: Sequence[str] | None = None) -> Stage:
    """The stage that writes what `open_label_maps` reads.

    size: side of the training pictures; classes: as `LabelReader` takes them. `run` raises what that raises, and
    RequestError where no pixel of any picture shows one of the classes.
    """

    def run(folder: Path, progress: Progress) -> None:
        _write(dataset, transform, size, classes, folder, progress)

    settings = {
        "split": dataset.split,
        "transform": transform.name,
        "size": size,
        "classes": None if classes is None else list(classes),
    }
    return Stage("label-maps", VERSION, settings, {"data": dataset.digest}, run)


def _write(
    dataset: Dataset, transform: Transform, size: int, classes: Sequence[str] | None, folder: Path, progress: Progress
) -> None:
    reader = LabelReader(dataset, classes)
    image_ids, stored, most = [], [], reader.dont_care
    for record in dataset.records:
        image_ids.append(record.image_id)
        stored.append(transform.stored_size(transform.region(record), size))
        segments = () if record.panoptic is None else record.panoptic.segments
        most = max(most, len(record.instances or ()), len(segments))
    sizes = np.array(stored, np.int64).reshape(-1, 2)
    starts = np.concatenate([[0], np.cumsum(2 * sizes.prod(1))])
    kind = np.min_scalar_type(most)
    maps = np.lib.format.open_memmap(folder / "maps.npy", mode="w+", dtype=kind, shape=(int(starts[-1]),))
    known = False
    for place, record in enumerate(dataset.records):
        labels, instances = reader.read(record, transform.region(record), stored[place])
        maps[starts[place] : starts[place + 1]] = np.concatenate([labels, instances], None)
        known = known or bool((labels < reader.dont_care).any())
        progress("label maps", place + 1, len(image_ids))
    maps.flush()
    if not known:
        raise RequestError(
            f"no picture of {dataset.name} ({dataset.split}) shows one of the {reader.dont_care} classes; name "
            "splits of one data set."
        )
    np.save(folder / "image_ids.npy", np.array(image_ids, np.int64))
    np.save(folder / "stored.npy", sizes)
    description = {
        "transform": transform.name,
        "size": size,
        "classes": list(reader.classes),
        "stuff": list(reader.stuff),
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")


def open_label_maps(folder: Path) -> StoredLabelMaps:
    """What the stage wrote. Raises RequestError."""
    try:
        described = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        image_ids, stored = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("image_ids", "stored"))
        maps = np.load(folder / "maps.npy", mmap_mode="r", allow_pickle=False)
        if stored.shape != (len(image_ids), 2):
            raise ValueError(f"stored has the shape {stored.shape} and not {(len(image_ids), 2)}")
        found = StoredLabelMaps(
            image_ids=image_ids,
            classes=tuple(map(str, described["classes"])),
            stuff=tuple(map(bool, described["stuff"])),
            stored=stored,
            starts=np.concatenate([[0], np.cumsum(2 * stored.prod(1))]).astype(np.int64),
            maps=maps,
            transform=get_transform(described["transform"]),
            size=int(described["size"]),
        )
        _check(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"label maps in {folder} cannot be read ({error}): delete that folder and repeat") from error
    return found


def _check(found: StoredLabelMaps) -> None:
    if len(found.stuff) != len(found.classes):
        raise ValueError(f"there are {len(found.classes)} classes and {len(found.stuff)} kinds of them")
    if found.maps.shape != (found.starts[-1],) or found.maps.dtype.kind != "u":
        raise ValueError(f"maps is {found.maps.dtype} {found.maps.shape} and not unsigned {(int(found.starts[-1]),)}")
    if len(found.stored) and found.stored.min() < found.size:
        raise ValueError(f"there are stored pictures smaller than {found.size} px")
