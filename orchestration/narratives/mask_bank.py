"""The mask bank: what every pixel of the training pictures shows, as masks to choose from and as whole maps.

TReCS (Koh et al., 2021) section 2.2 takes masks from the training pictures that are retrieved. Pictures are whole,
squashed to the canvas. A folder holds mask_bank.json (`About`) and, of N pictures with M masks: image_ids (N,);
mask_starts (N+1,), picture i owns the masks mask_starts[i] to mask_starts[i+1]; labels and instances (M,); code_starts
(M+1,) into codes, the bytes of COCO's run-length codes; run_starts (N+1,) into run_labels and run_lengths, the whole
map as `orchestration.narratives.runs` has it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from orchestration.data.array_files import Forms, require_parts
from orchestration.data.label_maps import LabelReader
from orchestration.data.mask_choice import Code, PictureMasks, picture_masks
from orchestration.data.records import Dataset
from orchestration.errors import RequestError
from orchestration.mapping import join_blocks, read_block
from orchestration.narratives.record_blocks import ReadRecords, forget_blocks, map_records, with_labels
from orchestration.narratives.runs import from_runs, to_runs
from orchestration.narratives.stored_maps import AGAIN, AboutMaps, StoredMaps, open_arrays, read_maps_about
from orchestration.stages import Progress, Stage, short_hash, write_atomically

VERSION = 1
FORMAT = 1
ABOUT = "mask_bank.json"
BLOCK = 256  # pictures between two files
ARRAYS: Forms = {
    "image_ids": ("int64", "N"),
    "mask_starts": ("int64", "N+1"),
    "labels": ("int32", "M"),
    "instances": ("int32", "M"),
    "code_starts": ("int64", "M+1"),
    "codes": ("uint8", "B"),
    "run_starts": ("int64", "N+1"),
    "run_labels": ("uint16", "R"),
    "run_lengths": ("uint16", "R"),
}
"""Type and shape of each array."""
_MAPPED = ("codes", "run_labels", "run_lengths")
_COUNTS = {"mask_starts": "mask_counts", "code_starts": "code_sizes", "run_starts": "run_counts"}  # of blocks


class About(AboutMaps, frozen=True, forbid_unknown_fields=True):
    """What mask_bank.json says. pictures: N; masks: M; bytes: of all codes, B; runs: R."""

    pictures: int
    masks: int
    bytes: int
    runs: int


@dataclass(frozen=True, eq=False)
class MaskBank(StoredMaps[About]):
    """Masks and label maps (S,S) of N pictures: arrays as the module says, the large ones memory-mapped."""

    image_ids: NDArray[np.int64] = field(repr=False)
    mask_starts: NDArray[np.int64] = field(repr=False)
    labels: NDArray[np.int32] = field(repr=False)
    instances: NDArray[np.int32] = field(repr=False)
    code_starts: NDArray[np.int64] = field(repr=False)
    codes: NDArray[np.uint8] = field(repr=False)
    run_starts: NDArray[np.int64] = field(repr=False)
    run_labels: NDArray[np.uint16] = field(repr=False)
    run_lengths: NDArray[np.uint16] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> "MaskBank":
        """What the stage wrote. Raises RequestError for all that is not as the module says."""
        about = read_maps_about(folder / ABOUT, About, FORMAT, "a mask bank")
        sizes = {"N": about.pictures, "M": about.masks, "B": about.bytes, "R": about.runs}
        sizes |= {"N+1": about.pictures + 1, "M+1": about.masks + 1}
        arrays = open_arrays(folder, ARRAYS, sizes, ABOUT, _MAPPED)
        parts = {"mask_starts": (about.masks, "masks"), "code_starts": (about.bytes, "bytes of codes")}
        for name, (end, what) in (parts | {"run_starts": (about.runs, "runs")}).items():
            require_parts(folder / f"{name}.npy", arrays[name], end, what, AGAIN)
        labels = arrays["labels"]
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(about.classes)):
            raise RequestError(f"{folder / 'labels.npy'} has labels outside its {len(about.classes)} classes: {AGAIN}")
        return cls(folder, about, **arrays)

    def __len__(self) -> int:
        return len(self.image_ids)

    def has(self, label: int) -> bool:
        """Whether any picture shows this class."""
        return bool(self._pictures_with[label])

    @cached_property
    def _pictures_with(self) -> NDArray[np.int64]:
        return np.bincount(self.labels, minlength=len(self.classes))

    def labels_of(self, place: int) -> NDArray[np.int32]:
        """(m,) the class of each mask of a picture."""
        return self.labels[self.mask_starts[place] : self.mask_starts[place + 1]]

    def masks(self, place: int) -> PictureMasks:
        """The masks of the picture at a place, by class and then by instance, as `picture_masks` has them."""
        first, end = self.mask_starts[place : place + 2].tolist()
        starts = self.code_starts[first : end + 1]
        content = self.codes[starts[0] : starts[-1]].tobytes()
        edges = (starts - starts[0]).tolist()
        size = [self.size, self.size]
        codes: tuple[Code, ...] = tuple(
            {"size": size, "counts": content[begin:stop]} for begin, stop in pairwise(edges)
        )
        labels, instances = (array[first:end].astype(np.int64) for array in (self.labels, self.instances))
        return PictureMasks(codes, labels, instances)

    def segmentation(self, place: int) -> NDArray[np.int64]:
        """(S,S) the class of every pixel of a picture; the number of classes where none is known."""
        own = slice(self.run_starts[place], self.run_starts[place + 1])
        return from_runs(self.run_labels[own], self.run_lengths[own], self.size, self.size)


def mask_bank_stage(
    dataset: Dataset, size: int, classes: Sequence[str] | None = None, processes: Callable[[], int | None] = lambda: 1
) -> Stage:
    """The stage that writes what `MaskBank.open` reads.

    size: S; classes: as `LabelReader` takes them; processes: asked for `map_blocks`' workers when it runs. `run` raises
    as `write_mask_bank` does.
    """

    def run(folder: Path, progress: Progress) -> None:
        write_mask_bank(folder, dataset, size, classes, progress, processes())

    settings = {"split": dataset.split, "size": size, "classes": None if classes is None else list(classes)}
    return Stage("mask-bank", VERSION, settings, {"data": dataset.digest}, run, resumable=True)


class _Masking:
    """Pictures of a block to their masks and maps."""

    def __init__(self, records: ReadRecords, reader: LabelReader, size: int) -> None:
        self.records, self.reader, self.size = records, reader, size

    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        image_ids, masks, runs = [], [], []
        for record in self.records(items):
            labels, instances = self.reader.read(record, None, (self.size, self.size))
            image_ids.append(record.image_id)
            masks.append(picture_masks(labels, instances, range(self.reader.dont_care)))
            runs.append(to_runs(labels))
        codes = [code["counts"] for found in masks for code in found.codes]
        return {
            "image_ids": np.array(image_ids, np.int64),
            "mask_counts": np.array([len(found.codes) for found in masks], np.int64),
            "labels": np.concatenate([found.labels for found in masks]).astype(np.int32),
            "instances": np.concatenate([found.instances for found in masks]).astype(np.int32),
            "code_sizes": np.array([len(code) for code in codes], np.int64),
            "codes": np.frombuffer(b"".join(codes), np.uint8),
            "run_counts": np.array([len(lengths) for _, lengths in runs], np.int64),
            "run_labels": np.concatenate([numbers[0] for numbers, _ in runs]),
            "run_lengths": np.concatenate([lengths for _, lengths in runs]),
        }


def write_mask_bank(
    folder: Path,
    dataset: Dataset,
    size: int,
    classes: Sequence[str] | None,
    progress: Progress,
    workers: int | None = 1,
) -> MaskBank:
    """Keep the masks and maps of all pictures of a split; repeated after a kill, it goes on.

    workers: as `map_blocks`' says. A block is in memory at a time. Raises RequestError as `LabelReader` does and where
    no picture shows one of the classes, RunError for what fails in another process.
    """
    reader = LabelReader(dataset, classes)
    identity = short_hash([VERSION, dataset.digest, size, list(reader.classes)])
    make = partial(_Masking, reader=reader, size=size)
    files = map_records(folder, dataset, BLOCK, with_labels, make, progress, workers, "mask bank", identity)
    if not files:
        raise RequestError(f"{dataset.name} ({dataset.split}) has no pictures to take masks from: choose another split")
    for name in ARRAYS:
        if name in _COUNTS:
            counts = [read_block(file)[_COUNTS[name]] for file in files]
            np.save(folder / f"{name}.npy", np.concatenate([[0], *counts]).cumsum(dtype=np.int64))
        else:
            join_blocks(files, name, folder / f"{name}.npy")
    lasts = [int(np.load(folder / f"{name}.npy", allow_pickle=False)[-1]) for name in _COUNTS]
    if not lasts[0]:
        raise RequestError(
            f"no picture of {dataset.name} ({dataset.split}) shows one of the {reader.dont_care} classes; name splits "
            "of one data set."
        )
    about = About(FORMAT, dataset.digest, size, reader.classes, reader.stuff, len(dataset.records), *lasts)
    write_atomically(folder / ABOUT, msgspec.json.format(msgspec.json.encode(about)))
    forget_blocks(folder)
    return MaskBank.open(folder)
