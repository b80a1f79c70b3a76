"""The candidates of every object of a split: the patches of its class whose features are nearest, found once.

A folder holds candidates.json (`About`) and five arrays: image_ids (N,) int64; starts (N+1,) int64, and picture i owns
the objects starts[i] to starts[i+1]; places (O,k) int32 in the patch bank, the nearest first, -1 where there are no
more; distances (O,k) float32, L2, infinite there; counts (O,) int32, how many there are.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestration.data.array_files import map_arrays, read_about, require_parts
from orchestration.data.patch_search import PatchIndex, PreFilterSettings, recall
from orchestration.data.patches import (
    ObjectSource,
    OpenObjects,
    PatchBank,
    check_same_encoder,
    described,
    open_bank,
)
from orchestration.errors import RequestError
from orchestration.mapping import join_blocks, map_blocks, read_block
from orchestration.stages import Progress, short_hash, write_atomically

VERSION = 1
FORMAT = 1
ABOUT = "candidates.json"
BLOCK = 1024  # pictures between two files: many objects of a class are searched faster at once
ARRAYS: Mapping[str, tuple[str, str]] = {
    "image_ids": ("int64", "N"),
    "starts": ("int64", "N+1"),
    "places": ("int32", "O,k"),
    "distances": ("float32", "O,k"),
    "counts": ("int32", "O"),
}
"""Type and shape of each array."""
RECALL_QUERIES, RECALL_SEED = 1000, 0
_OWNED = "owned"  # of a block: how many objects each of its pictures owns
_AGAIN = "delete that folder and repeat what wrote it"


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What candidates.json says.

    data: digest of the split's data; bank: digest of the patch bank, which has so many patches; own: whether the bank
    was cut from this very split, and patches of an object's own picture are passed over; settings: the
    `PreFilterSettings`; device: "cpu" or "gpu"; pictures: N; objects: O; recall: the share of the exact neighbours
    that the index finds for recall_queries patches of the bank.
    """

    format: int
    data: str
    bank: str
    patches: int
    own: bool
    settings: dict[str, Any]
    device: str
    pictures: int
    objects: int
    recall: float
    recall_queries: int

    @property
    def k(self) -> int:
        """The most candidates of an object."""
        return int(self.settings["k"])


@dataclass(frozen=True, slots=True, eq=False)
class StoredCandidates:
    """Candidates of a split's objects: arrays as the module says, the two large ones memory-mapped."""

    folder: Path
    about: About
    image_ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    places: NDArray[np.int32]
    distances: NDArray[np.float32]
    counts: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.image_ids)

    def take(self, items: NDArray[np.int64], most: int, k: int | None = None) -> tuple[Tensor, Tensor]:
        """The candidates of B pictures: places (B,most,k) int64 in the bank and counts (B,most) int64; the rest is 0.

        items: (B,) places among the N; most: objects a picture is padded to; k: only so many, the nearest. Raises
        RequestError for more candidates, or fewer objects, than there are.
        """
        k = self.about.k if k is None else k
        if not 1 <= k <= self.about.k:
            raise RequestError(
                f"{k} candidates of an object are asked for, and {self.folder} holds up to {self.about.k}: choose 1 to "
                f"{self.about.k}, or have more found"
            )
        owned = self.starts[items + 1] - self.starts[items]
        if (owned > most).any():
            raise RequestError(
                f"image {self.image_ids[items[int(owned.argmax())]]} has candidates for {owned.max()} objects, and "
                f"{most} are asked for: find candidates for the objects that are read"
            )
        there = np.arange(most) < owned[:, None]
        counts = np.zeros(there.shape, np.int64)
        places = np.zeros((*there.shape, k), np.int64)
        rows = (self.starts[items][:, None] + np.arange(most))[there]
        counts[there] = np.minimum(self.counts[rows], k)
        places[there] = self.places[rows, :k].clip(0)
        return torch.from_numpy(places), torch.from_numpy(counts)

    def check_of(self, data: str, bank: PatchBank) -> None:
        """RequestError where the candidates are of other data than this digest says, or in another bank."""
        said = f"{self.folder / ABOUT} says that the candidates"
        if data != self.about.data:
            raise RequestError(
                f"{said} are those of the data {self.about.data[:12]}, and these are {data[:12]}: find candidates for "
                "this data"
            )
        if bank.digest != self.about.bank:
            raise RequestError(
                f"{said} are in the patch bank {self.about.bank[:12]}, and {bank.folder} is {bank.digest[:12]}: find "
                "candidates in this bank"
            )


def open_candidates(folder: Path) -> StoredCandidates:
    """Map the candidates in a folder. Raises RequestError for all that is not as the module says."""
    about = read_about(folder / ABOUT, About, FORMAT, "candidates", _AGAIN)
    try:
        k = PreFilterSettings.model_validate(about.settings).k
    except ValueError as error:
        raise RequestError(f"{folder / ABOUT} has settings that cannot be: {_AGAIN}") from error
    sizes = {"N": about.pictures, "N+1": about.pictures + 1, "O": about.objects, "k": k}
    arrays = map_arrays(folder, ARRAYS, sizes, ABOUT, _AGAIN)
    arrays |= {name: np.array(arrays[name]) for name in ("image_ids", "starts", "counts")}
    starts, counts, places = arrays["starts"], arrays["counts"], arrays["places"]
    require_parts(folder / "starts.npy", starts, about.objects, "objects", _AGAIN)
    if not ((counts >= 0) & (counts <= k)).all():
        raise RequestError(f"{folder / 'counts.npy'} has counts outside 0 to {k}: {_AGAIN}")
    there = np.arange(k) < counts[:, None]
    if not np.where(there, (places >= 0) & (places < about.patches), places == -1).all():
        raise RequestError(
            f"{folder / 'places.npy'} has places outside the bank's 0 to {about.patches - 1}, or not as many as "
            f"counts.npy says: {_AGAIN}"
        )
    return StoredCandidates(folder, about, **arrays)


class _Seeking:
    """Pictures of a block to their objects' candidates."""

    def __init__(self, source: ObjectSource, index: PatchIndex, k: int, own: bool) -> None:
        self.source, self.index, self.k, self.own = source, index, k, own

    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        pictures = np.arange(items.start, items.stop, dtype=np.int64)
        found = self.source.objects(pictures)
        features = described(self.source, pictures, found)
        places, distances = self.index.search(features, found.classes, self.k, found.owners if self.own else None)
        return {
            "image_ids": found.image_ids.astype(np.int64),
            "places": places.astype(np.int32),
            "distances": distances,
            "counts": (places >= 0).sum(1, dtype=np.int32),
            _OWNED: np.diff(found.starts),
        }


def write_candidates(
    folder: Path,
    count: int,
    open_source: OpenObjects,
    data: str,
    bank_folder: Path,
    own: bool,
    settings: PreFilterSettings,
    progress: Progress,
    workers: int | None = 1,
) -> dict[str, float]:
    """Find the candidates of the objects of pictures 0 to count-1 of a split; repeated after a kill, it goes on.

    open_source: opens the split's objects with the graph encoder that described the bank, in any process; data: digest
    of the split's data; own: the bank is cut from this very split, so that a patch of an object's own picture is none
    of its candidates, as in training; workers: as `map_blocks`' says, and each builds the index. Returns the figures:
    how many objects there are, have none, or fewer than k; the recall of the index. Raises RequestError for a bank of
    other data (if own) or another encoder and as `PatchIndex` does, RunError for what fails in another process.
    """
    for left_over in folder.glob(".*.npy-*"):  # of a killed process
        left_over.unlink()
    bank, source, blocks = open_bank(bank_folder), open_source(), folder / "blocks"
    bank.check_of(data if own else None, source.encoder)
    index = index_bank(bank, settings)
    told = settings.model_dump(mode="json")
    identity = short_hash([VERSION, data, bank.digest, own, told])
    elsewhere = partial(_open_seeking, open_source, source.encoder, bank_folder.resolve(), own, settings)
    here = partial(_Seeking, source, index, settings.k, own)
    files = map_blocks(blocks, count, BLOCK, elsewhere, progress, workers, "candidates", here, identity)
    if not files:
        raise RequestError("there are no pictures to find candidates for: choose a split that has some")
    for name in ("image_ids", "places", "distances", "counts"):
        join_blocks(files, name, folder / f"{name}.npy")
    starts = np.concatenate([[0], *(read_block(file)[_OWNED] for file in files)]).cumsum(dtype=np.int64)
    np.save(folder / "starts.npy", starts)
    found, queries = recall(index, RECALL_QUERIES, settings.k, RECALL_SEED), min(RECALL_QUERIES, len(bank))
    objects = int(starts[-1])
    about = About(FORMAT, data, bank.digest, len(bank), own, told, index.device, count, objects, found, queries)
    write_atomically(folder / ABOUT, msgspec.json.format(msgspec.json.encode(about)))
    shutil.rmtree(blocks)
    counts = open_candidates(folder).counts
    return {
        "objects": float(objects),
        "objects_without_candidates": float((counts == 0).sum()),
        "objects_with_fewer_candidates": float((counts < settings.k).sum()),
        "candidates_per_object": float(settings.k),
        "patches": float(len(bank)),
        "recall": found,
        "recall_queries": float(queries),
    }


def index_bank(bank: PatchBank, settings: PreFilterSettings) -> PatchIndex:
    """Searches the bank's patches by their features."""
    return PatchIndex(bank.features, bank.classes, bank.image_ids, settings)


def _open_seeking(
    open_source: OpenObjects, encoder: str, bank_folder: Path, own: bool, settings: PreFilterSettings
) -> _Seeking:
    """In another process, where the weights may be other ones."""
    source = open_source()
    check_same_encoder(source, encoder)
    return _Seeking(source, index_bank(open_bank(bank_folder), settings), settings.k, own)
