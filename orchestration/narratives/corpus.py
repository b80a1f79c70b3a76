"""A split's narratives as tagging reads them: words, phrases, noisy labels, and the labels of each one's picture.

TReCS, section 2.1: all words of a phrase get the label that most pixels under the convex hull of its trace have.
A folder holds corpus.json (`_About`), keys.json and the arrays of `ARRAYS`: of N narratives with W words in all, in the
order of the split's caption index; B labels of their pictures, and T bytes of text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from orchestration.data.array_files import map_arrays, read_about
from orchestration.data.hulls import phrase_labels
from orchestration.data.label_maps import LabelReader
from orchestration.data.records import Dataset, ImageRecord, Narrative
from orchestration.errors import RequestError
from orchestration.mapping import join_blocks, read_block
from orchestration.narratives.record_blocks import ReadRecords, forget_blocks, map_records
from orchestration.narratives.settings import NarrativeSettings
from orchestration.narratives.simulated import simulate_traces
from orchestration.stages import Progress, Stage, write_atomically

STAGE = "noisy-labels"
VERSION = 1
FORMAT = 1
BLOCK = 256  # pictures between two files
NONE = -1
"""Of a word without a noisy label, and the key of a word without a letter or digit."""
ARRAYS: Mapping[str, tuple[str, str]] = {
    "image_ids": ("int64", "N"),
    "word_starts": ("int64", "N+1"),
    "key_ids": ("int32", "W"),
    "noisy_labels": ("int32", "W"),
    "phrases": ("int32", "W"),
    "bag_starts": ("int64", "N+1"),
    "bags": ("int32", "B"),
    "text_starts": ("int64", "N+1"),
    "text": ("uint8", "T"),
}
"""Type and shape of each array."""
_ABOUT, _KEYS = "corpus.json", "keys.json"
_AGAIN = "delete that folder and repeat what wrote it"
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_COUNTS = {"word_starts": "word_counts", "bag_starts": "bag_counts", "text_starts": "text_counts"}


def word_key(word: str) -> str:
    """What statistics know a word by: case folded, without punctuation at its edges; "" where nothing is left."""
    return _EDGES.sub("", word.casefold())


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    classes: list[str]
    narratives: int
    words: int
    bags: int
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """N narratives of W words, memory-mapped; narrative i owns words word_starts[i] to word_starts[i + 1].

    classes: names; keys: every `word_key` of the split, sorted; image_ids: (N,), each one's picture; key_ids: (W,),
    places among keys, -1 for a word without a letter or digit; noisy_labels: (W,), places among classes, -1 for none;
    phrases: (W,), the number of each word's phrase in its narrative; bags: the labels of each one's picture, sorted,
    narrative i's from bag_starts[i] to bag_starts[i + 1]; text: UTF-8, the words with spaces between, cut by
    text_starts.
    """

    classes: tuple[str, ...]
    keys: tuple[str, ...]
    image_ids: NDArray[np.int64]
    word_starts: NDArray[np.int64]
    key_ids: NDArray[np.int32]
    noisy_labels: NDArray[np.int32]
    phrases: NDArray[np.int32]
    bag_starts: NDArray[np.int64]
    bags: NDArray[np.int32]
    text_starts: NDArray[np.int64]
    text: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.image_ids)

    def words(self, narrative: int) -> tuple[str, ...]:
        """The words of one narrative, as they are written."""
        first, end = self.text_starts[narrative : narrative + 2]
        return tuple(self.text[first:end].tobytes().decode("utf-8", "surrogatepass").split())


def noisy_labels_stage(
    dataset: Dataset, classes: Sequence[str], settings: NarrativeSettings, processes: int | None = None
) -> Stage:
    """The stage that writes what `open_corpus` reads, of the narratives of a split whose pictures have labels.

    classes: the training split's names, in order; processes: as `map_blocks`' workers. A narrative without traces has
    no noisy labels. `run` raises RequestError for a narrative whose trace or times are broken, with its place among its
    picture's narratives from 1, and as `LabelReader` does.
    """
    dataset = simulate_traces(dataset, settings)

    def run(folder: Path, progress: Progress) -> None:
        _write(dataset, classes, settings, processes, folder, progress)

    told = {
        "split": dataset.split,
        "classes": list(classes),
        "min_radius": settings.min_radius,
        "known_only": settings.known_only,
    }
    return Stage(STAGE, VERSION, told, {"data": dataset.digest}, run, resumable=True)


def _write(
    dataset: Dataset,
    classes: Sequence[str],
    settings: NarrativeSettings,
    processes: int | None,
    folder: Path,
    progress: Progress,
) -> None:
    if not any(record.narratives for record in dataset.records):
        raise RequestError(
            f"no picture of {dataset.name} ({dataset.split}) has a narrative; choose data that has some."
        )
    label = partial(
        _Labelling,
        reader=LabelReader(dataset, classes),
        min_radius=settings.min_radius,
        known_only=settings.known_only,
    )
    files = map_records(folder, dataset, BLOCK, _kept, label, progress, processes, "noisy labels", dataset.digest)
    _join(files, classes, folder)
    forget_blocks(folder)


def _kept(record: ImageRecord) -> ImageRecord:
    return replace(record, captions=None, graph=None)


@dataclass(frozen=True, slots=True)
class _Labelling:
    """Pictures of a block to the arrays of their narratives; keys are numbered within the block."""

    records: ReadRecords
    reader: LabelReader
    min_radius: float
    known_only: bool

    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        told, bags, numbers = list[_Told](), list[NDArray[np.int32]](), dict[str, int]()
        keys: list[int] = []
        for record in self.records(items):
            if not record.narratives:
                continue
            labels, _ = self.reader.read(record)
            bag = np.unique(labels)
            for place, narrative in enumerate(record.narratives):
                told.append(self._told(record, labels, narrative, f"narrative {place + 1} of image {record.image_id}"))
                bags.append(bag[bag < self.reader.dont_care].astype(np.int32))
                found = map(word_key, told[-1].words)
                keys += [numbers.setdefault(key, len(numbers)) if key else NONE for key in found]
        texts = [" ".join(one.words).encode("utf-8", "surrogatepass") for one in told]
        return {
            "image_ids": np.array([one.image_id for one in told], np.int64),
            "word_counts": np.array([len(one.words) for one in told], np.int64),
            "key_ids": np.array(keys, np.int32),
            "keys": np.frombuffer("\n".join(numbers).encode("utf-8", "surrogatepass"), np.uint8),
            "noisy_labels": _joined([one.labels for one in told]),
            "phrases": _joined([one.phrases for one in told]),
            "bag_counts": np.array([len(bag) for bag in bags], np.int64),
            "bags": _joined(bags),
            "text_counts": np.array([len(text) for text in texts], np.int64),
            "text": np.frombuffer(b"".join(texts), np.uint8),
        }

    def _told(self, record: ImageRecord, labels: NDArray[np.int32], narrative: Narrative, where: str) -> "_Told":
        phrases, found = phrase_labels(
            narrative, labels, self.reader.dont_care, self.min_radius, self.known_only, where
        )
        counts = [phrase.end - phrase.first for phrase in phrases]
        return _Told(
            record.image_id,
            narrative.caption.split(),
            np.repeat(np.where(found < self.reader.dont_care, found, NONE), counts).astype(np.int32),
            np.repeat(np.arange(len(phrases)), counts).astype(np.int32),
        )


@dataclass(frozen=True, slots=True)
class _Told:
    """One narrative, its words' noisy labels and the number of each word's phrase."""

    image_id: int
    words: list[str]
    labels: NDArray[np.int32]
    phrases: NDArray[np.int32]


def _joined(arrays: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([np.empty(0, np.int32), *arrays])


def _join(files: Sequence[Path], classes: Sequence[str], folder: Path) -> None:
    """One block at a time is in memory."""
    for name in ("image_ids", "noisy_labels", "phrases", "bags", "text"):
        join_blocks(files, name, folder / f"{name}.npy")
    sizes = {}
    for name, counts in _COUNTS.items():
        starts = np.cumsum(np.concatenate([[0], *(read_block(file)[counts] for file in files)]), dtype=np.int64)
        np.save(folder / f"{name}.npy", starts)
        sizes[name], narratives = int(starts[-1]), len(starts) - 1
    keys = sorted({key for file in files for key in _keys(file)})
    places = {key: place for place, key in enumerate(keys)}
    ids = np.lib.format.open_memmap(folder / "key_ids.npy", "w+", np.int32, (sizes["word_starts"],))
    done = 0
    for file in files:
        # The last place, -1, is that of words without a key.
        table = np.array([*(places[key] for key in _keys(file)), NONE], np.int32)
        found = read_block(file)["key_ids"]
        ids[done : done + len(found)] = table[found]
        done += len(found)
    ids.flush()
    (folder / _KEYS).write_bytes(json.dumps(keys).encode())
    about = _About(FORMAT, list(classes), narratives, *(sizes[name] for name in _COUNTS))
    write_atomically(folder / _ABOUT, msgspec.json.encode(about))


def _keys(file: Path) -> list[str]:
    text = read_block(file)["keys"].tobytes().decode("utf-8", "surrogatepass")
    return text.split("\n") if text else []


def open_corpus(folder: Path) -> Corpus:
    """What the stage wrote, memory-mapped. Raises RequestError."""
    about = read_about(folder / _ABOUT, _About, FORMAT, "narratives", _AGAIN)
    try:
        keys = tuple(map(str, json.loads((folder / _KEYS).read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"{folder / _KEYS} cannot be read ({error}): {_AGAIN}") from error
    n = about.narratives
    sizes = {"N": n, "N+1": n + 1, "W": about.words, "B": about.bags, "T": about.bytes}
    return Corpus(tuple(about.classes), keys, **map_arrays(folder, ARRAYS, sizes, _ABOUT, _AGAIN))
