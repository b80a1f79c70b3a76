"""The label map of every narrative of a split, composed once: what TReCS's generator paints.

A folder holds canvases.json (`About`) and, of C narratives and L label maps: image_ids (C,), the picture that each
narrative is of; rows (C,), its label map; run_starts (L+1,) into labels, instances and lengths, the runs of pixels that
`orchestration.narratives.runs` has. figures.json says how well masks were found. Narratives are in the order of the
split's captions: record after record, each record's one after the other.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import LabelMaps
from orchestration.data.array_files import Forms, require_parts
from orchestration.data.label_maps import LabelReader
from orchestration.data.records import Dataset
from orchestration.errors import RequestError
from orchestration.mapping import join_blocks, read_block
from orchestration.narratives.composed import Composed
from orchestration.narratives.composer import Composer, has_trace
from orchestration.narratives.record_blocks import (
    ReadRecords,
    forget_blocks,
    map_records,
    with_labels,
    with_narratives,
)
from orchestration.narratives.runs import from_runs, to_runs
from orchestration.narratives.stored_maps import AGAIN, AboutMaps, StoredMaps, open_arrays, read_maps_about
from orchestration.stages import Progress, Stage, short_hash, write_atomically

VERSION = 1
FORMAT = 1
ABOUT = "canvases.json"
FIGURES = "figures.json"
BLOCK = 64  # pictures, with all their narratives, between two files
ARRAYS: Forms = {
    "image_ids": ("int64", "C"),
    "rows": ("int64", "C"),
    "run_starts": ("int64", "L+1"),
    "labels": ("uint16", "R"),
    "instances": ("uint16", "R"),
    "lengths": ("uint16", "R"),
}
"""Type and shape of each array."""
_MAPPED = ("labels", "instances", "lengths")


class About(AboutMaps, frozen=True, forbid_unknown_fields=True):
    """What canvases.json says. narratives: C; maps: L; runs: R."""

    narratives: int
    maps: int
    runs: int


@dataclass(frozen=True, eq=False)
class StoredCanvases(StoredMaps[About]):
    """The label maps (S,S) of C narratives: arrays as the module says, the large ones memory-mapped."""

    image_ids: NDArray[np.int64] = field(repr=False)
    rows: NDArray[np.int64] = field(repr=False)
    run_starts: NDArray[np.int64] = field(repr=False)
    labels: NDArray[np.uint16] = field(repr=False)
    instances: NDArray[np.uint16] = field(repr=False)
    lengths: NDArray[np.uint16] = field(repr=False)

    def __len__(self) -> int:
        return len(self.image_ids)

    def take(self, captions: NDArray[np.int64]) -> LabelMaps:
        """The label maps of B narratives, by their places among the C."""
        shown = np.empty((2, len(captions), self.size, self.size), np.int64)
        for place, row in enumerate(self.rows[captions].tolist()):
            own = slice(self.run_starts[row], self.run_starts[row + 1])
            for layer, numbers in zip(shown, (self.labels, self.instances), strict=True):
                layer[place] = from_runs(numbers[own], self.lengths[own], self.size, self.size)
        return LabelMaps(*map(torch.from_numpy, shown))


def open_canvases(folder: Path) -> StoredCanvases:
    """What a stage wrote. Raises RequestError for all that is not as the module says."""
    about = read_maps_about(folder / ABOUT, About, FORMAT, "canvases")
    sizes = {"C": about.narratives, "L+1": about.maps + 1, "R": about.runs}
    arrays = open_arrays(folder, ARRAYS, sizes, ABOUT, _MAPPED)
    starts, rows = arrays["run_starts"], arrays["rows"]
    require_parts(folder / "run_starts.npy", starts, about.runs, "runs", AGAIN)
    if len(rows) and not (rows.min() >= 0 and rows.max() < about.maps):
        raise RequestError(f"{folder / 'rows.npy'} names label maps outside 0 to {about.maps - 1}: {AGAIN}")
    return StoredCanvases(folder, about, **arrays)


class ReadTags(Protocol):
    """The tags of a split's narratives."""

    def __call__(self, captions: range) -> Sequence[NDArray[np.int64]]:
        """For each of these narratives (places among the C) one class a word."""
        ...


@dataclass(frozen=True, slots=True)
class Composing:
    """What canvases are composed with, opened in any process: functions or classes of a module, or `partial`s of them.

    own: whether the pictures are those of the mask bank itself, so that nothing is taken from a narrative's own.
    """

    open_composer: Callable[[], Composer]
    open_tags: Callable[[], ReadTags]
    own: bool


def canvases_stage(
    dataset: Dataset,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    composing: Callable[[], Composing],
    processes: Callable[[], int | None] = lambda: 1,
) -> Stage:
    """The stage that writes what `open_canvases` reads, composed from tags and masks.

    dataset: as it is told (see `orchestration.narratives.telling`), with the traces that are meant; inputs: what its
    tags, the mask bank and the retrieval index depend on; settings: JSON values that change what is composed, such as
    those of `TReCSConfig`; composing, processes: asked when it runs, once all these are there. `run` raises as
    `write_canvases` does.
    """

    def run(folder: Path, progress: Progress) -> None:
        write_canvases(folder, dataset, composing(), short_hash(dict(inputs)), progress, processes())

    told = {"split": dataset.split, "masks": "retrieved", **settings}
    return Stage("canvases", VERSION, told, {"data": dataset.digest, **inputs}, run, resumable=True)


def true_canvases_stage(
    dataset: Dataset,
    size: int,
    classes: Sequence[str] | None = None,
    processes: Callable[[], int | None] = lambda: 1,
) -> Stage:
    """The stage that writes the pictures' own label maps in the place of composed ones (table 3's upper bound).

    dataset: as it is told, its records with label maps; size: S; classes: as `LabelReader` takes them. `run` raises as
    `write_true_canvases` does.
    """

    def run(folder: Path, progress: Progress) -> None:
        write_true_canvases(folder, dataset, size, classes, progress, processes())

    told = {
        "split": dataset.split,
        "masks": "true_masks",
        "size": size,
        "classes": None if classes is None else list(classes),
    }
    return Stage("canvases", VERSION, told, {"data": dataset.digest}, run, resumable=True)


class _Composing:
    """Pictures of a block to the canvases of their narratives."""

    def __init__(
        self, records: ReadRecords, starts: NDArray[np.int64], composer: Composer, tags: ReadTags, own: bool
    ) -> None:
        """starts: (N+1,) of each picture's narratives among all."""
        self.records, self.starts, self.composer, self.tags, self.own = records, starts, composer, tags, own

    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        records, owners, names, narratives = self.records(items), [], [], []
        for record in records:
            for number, narrative in enumerate(record.narratives or (), 1):
                owners.append(record.image_id)
                names.append(f"narrative {number} of image {record.image_id}")
                narratives.append(narrative)
        captions = range(int(self.starts[items.start]), int(self.starts[items.stop]))
        composed = self.composer.compose(narratives, self.tags(captions), owners if self.own else None, names)
        figures = np.array([_figures(one) for one in composed], np.float64).reshape(-1, len(_FIGURES))
        runs = [to_runs(one.canvas.labels, one.canvas.instances) for one in composed]
        return {"image_ids": np.array(owners, np.int64), "figures": figures, **_flat(runs)}


class _Reading:
    """Pictures of a block to their own label maps; each narrative's is that of its picture."""

    def __init__(self, records: ReadRecords, reader: LabelReader, size: int) -> None:
        self.records, self.reader, self.size = records, reader, size

    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        records = self.records(items)
        runs = [to_runs(*self.reader.read(record, None, (self.size, self.size))) for record in records]
        return {"picture_ids": np.array([record.image_id for record in records], np.int64), **_flat(runs)}


def _flat(runs: Sequence[tuple[NDArray[np.uint16], NDArray[np.uint16]]]) -> dict[str, NDArray[Any]]:
    numbers = np.concatenate([np.empty((2, 0), np.uint16), *(found for found, _ in runs)], 1)
    lengths = [found for _, found in runs]
    return {
        "run_counts": np.array(list(map(len, lengths)), np.int64),
        "labels": numbers[0],
        "instances": numbers[1],
        "lengths": np.concatenate([np.empty(0, np.uint16), *lengths]),
    }


_FIGURES = ("mentions", "things", "found", "iou", "traced_found", "stuff_fit", "traced_stuff", "untraced")


def _figures(one: Composed) -> tuple[float, ...]:
    things = [mention for mention in one.mentions if mention.thing]
    found = [mention.choice for mention in things if mention.choice is not None]
    traced = has_trace(one.narrative)
    stuff = traced and any(not mention.thing and mention.hull.any() for mention in one.mentions)
    overlap = sum(choice.iou for choice in found)
    return (
        len(one.mentions),
        len(things),
        len(found),
        overlap,
        len(found) * traced,
        one.stuff_fit * stuff,
        stuff,
        not traced,
    )


def _summary(rows: NDArray[np.float64]) -> dict[str, float]:
    """Means over narratives; a share of nothing is 0."""
    total = dict(zip(_FIGURES, rows.sum(0).tolist(), strict=True))
    count = len(rows)

    def share(name: str, among: float) -> float:
        return float(total[name] / among) if among else 0.0

    return {
        "narratives": float(count),
        "mentions_per_narrative": share("mentions", count),
        "things_with_a_mask": share("found", total["things"]),
        "mean_iou": share("iou", total["traced_found"]),
        "mean_stuff_fit": share("stuff_fit", total["traced_stuff"]),
        "without_traces": share("untraced", count),
    }


def write_canvases(
    folder: Path,
    dataset: Dataset,
    composing: Composing,
    depends: str,
    progress: Progress,
    workers: int | None = 1,
) -> StoredCanvases:
    """Compose the label map of every narrative of a split; repeated after a kill, it goes on.

    depends: digest of all that a canvas depends on beside the split's data; workers: as `map_blocks`' says, and each
    opens its composer. A block is in memory at a time. Raises RequestError as `Composer.compose` does and for a split
    without narratives, RunError for what fails in another process.
    """
    starts = np.concatenate([[0], _narratives(dataset).cumsum()])
    composer, identity = composing.open_composer(), short_hash([VERSION, dataset.digest, depends])
    here = partial(_Composing, starts=starts, composer=composer, tags=composing.open_tags(), own=composing.own)
    elsewhere = partial(_open_composing, starts=starts, composing=composing)
    files = map_records(
        folder, dataset, BLOCK, with_narratives, here, progress, workers, "canvases", identity, elsewhere
    )
    join_blocks(files, "image_ids", folder / "image_ids.npy")
    np.save(folder / "rows.npy", np.arange(starts[-1], dtype=np.int64))
    figures = _summary(np.concatenate([read_block(file)["figures"] for file in files]))
    bank = composer.bank
    return _finish(folder, dataset, files, (bank.size, bank.classes, bank.stuff), figures)


def write_true_canvases(
    folder: Path,
    dataset: Dataset,
    size: int,
    classes: Sequence[str] | None,
    progress: Progress,
    workers: int | None = 1,
) -> StoredCanvases:
    """Keep the own label map of every narrative's picture; repeated after a kill, it goes on.

    Raises RequestError as `LabelReader` does and for a split without narratives, RunError for what fails in another
    process.
    """
    counts = _narratives(dataset)
    reader = LabelReader(dataset, classes)
    identity = short_hash([VERSION, dataset.digest, size, list(reader.classes)])
    make = partial(_Reading, reader=reader, size=size)
    files = map_records(folder, dataset, BLOCK, with_labels, make, progress, workers, "canvases", identity)
    picture_ids = np.concatenate([read_block(file)["picture_ids"] for file in files])
    np.save(folder / "image_ids.npy", np.repeat(picture_ids, counts))
    np.save(folder / "rows.npy", np.repeat(np.arange(len(counts)), counts))
    figures = {"narratives": float(counts.sum())}
    return _finish(folder, dataset, files, (size, reader.classes, reader.stuff), figures)


def _narratives(dataset: Dataset) -> NDArray[np.int64]:
    """(N,) how many each record has. Raises RequestError where there is none at all."""
    counts = np.array([len(record.narratives or ()) for record in dataset.records], np.int64)
    if not counts.sum():
        raise RequestError(
            f"{dataset.name} ({dataset.split}) has no narratives to compose label maps of: choose data that has some"
        )
    return counts


def _open_composing(records: ReadRecords, starts: NDArray[np.int64], composing: Composing) -> _Composing:
    """In another process."""
    return _Composing(records, starts, composing.open_composer(), composing.open_tags(), composing.own)


def _finish(
    folder: Path,
    dataset: Dataset,
    files: Sequence[Path],
    shown: tuple[int, tuple[str, ...], tuple[bool, ...]],
    figures: Mapping[str, float],
) -> StoredCanvases:
    """Join what the blocks hold; shown: size, classes and stuff."""
    for name in _MAPPED:
        join_blocks(files, name, folder / f"{name}.npy")
    counts = np.concatenate([read_block(file)["run_counts"] for file in files])
    starts = np.concatenate([[0], counts]).cumsum(dtype=np.int64)
    np.save(folder / "run_starts.npy", starts)
    narratives = len(np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False))
    about = About(FORMAT, dataset.digest, *shown, narratives, len(counts), int(starts[-1]))
    write_atomically(folder / FIGURES, json.dumps(figures, indent=1))
    write_atomically(folder / ABOUT, msgspec.json.format(msgspec.json.encode(about)))
    forget_blocks(folder)
    return open_canvases(folder)
