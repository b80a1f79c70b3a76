"""Scene graphs as a trained graph encoder describes them, and the patches that their objects may be drawn from."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.blocks.graphs import GraphEncoder, flatten
from models.contract import Batch, Candidates, Graphs
from models.encoders.image import WeightsMissing
from models.sg2im.encoder import open_graph_encoder
from orchestration.data.batches import CaptionedPictures
from orchestration.data.candidates import StoredCandidates, index_bank, open_candidates
from orchestration.data.patch_search import PatchIndex, PreFilterSettings
from orchestration.data.patches import PatchBank, PictureObjects, open_bank
from orchestration.errors import RequestError
from orchestration.stages import file_sha256


class OpenSplit(Protocol):
    """Opens a prepared split in any process."""

    def open(self) -> CaptionedPictures: ...


@dataclass(frozen=True)
class EncodedGraphs:
    """A graph encoder in a trained part's folder."""

    folder: Path
    device: str = "cpu"

    @cached_property
    def digest(self) -> str:
        """Of the file that the encoder's weights are in."""
        return file_sha256(self.folder / "generator.safetensors")

    @cached_property
    def net(self) -> GraphEncoder:
        """Frozen. Raises RequestError when the folder is not that of such a part."""
        try:
            return open_graph_encoder(self.folder).to(self.device)
        except (WeightsMissing, ValueError) as error:
            raise RequestError(f"the pre-filter's graph encoder: {error}") from error

    @torch.inference_mode()
    def __call__(self, graphs: Graphs) -> Tensor:
        """(M,D) float32 on the CPU: of every object of B pictures, one picture's after the other's."""
        flat = flatten(graphs)
        vectors, _ = self.net(flat)
        return vectors[flat.objects].float().cpu()


class EncodedObjects:
    """A split's objects, described by an encoder: a `PictureSource`. Other processes open their own."""

    def __init__(self, split: OpenSplit, folder: Path, device: str = "cpu") -> None:
        self.data, self.encode = split.open(), EncodedGraphs(folder, device)

    @property
    def encoder(self) -> str:
        return self.encode.digest

    def objects(self, items: NDArray[np.int64]) -> PictureObjects:
        graphs, there = self._graphs(items)
        starts = np.concatenate([[0], np.cumsum(graphs.counts.numpy())])
        return PictureObjects(
            self.data.image_ids[items], starts, graphs.classes[there].numpy(), graphs.boxes[there].float().numpy()
        )

    def features(self, items: NDArray[np.int64]) -> Tensor:
        graphs, _ = self._graphs(items)
        return self.encode(graphs)

    def pixels(self, items: NDArray[np.int64]) -> Tensor:
        return self.data.pixels(items)

    def _graphs(self, items: NDArray[np.int64]) -> tuple[Graphs, Tensor]:
        assert self.data.graphs is not None
        graphs = self.data.graphs.take(items)
        return graphs, ~graphs.padding()


@dataclass(frozen=True, slots=True)
class CandidatePatches:
    """The candidates of a split's objects with their pixels.

    objects: a picture is padded to so many; count: K, so many candidates of each are shown.
    """

    stored: StoredCandidates
    bank: PatchBank
    objects: int
    count: int

    @classmethod
    def open(cls, folder: Path, bank: Path, objects: int, count: int) -> "CandidatePatches":
        """Raises RequestError for what cannot be read, and for candidates in another bank."""
        stored, patches = open_candidates(folder), open_bank(bank)
        stored.check_of(stored.about.data, patches)
        return cls(stored, patches, objects, count)

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """(N,) the images, in order."""
        return self.stored.image_ids

    def take(self, items: NDArray[np.int64]) -> Candidates:
        """Of B pictures; patches are bytes (B,N,K,3,S,S)."""
        places, counts = self.stored.take(items, self.objects, self.count)
        return _with_pixels(self.bank, places, counts)


class PatchFinder:
    """Candidates for scene graphs that are in no data, such as a person's own."""

    def __init__(self, bank: PatchBank, folder: Path, settings: PreFilterSettings, count: int) -> None:
        self.encode = EncodedGraphs(folder)
        bank.check_of(encoder=self.encode.digest)
        self.bank, self.count = bank, count
        self.index: PatchIndex = index_bank(bank, settings)

    def has(self, number: int) -> bool:
        """Whether there is a patch of a class (from 1)."""
        return bool(len(self.bank.of_class(number)))

    def check(self, graphs: Graphs) -> None:
        """RequestError for an object of a class that the bank has no patch of."""
        for number in dict.fromkeys(graphs.classes[~graphs.padding()].tolist()):
            if not self.has(number):
                raise RequestError(
                    f"the patch bank has no patch of {self.bank.about.classes[number - 1]!r}: name another object, or "
                    "train on data with it"
                )

    def __call__(self, graphs: Graphs) -> Candidates:
        """Patches are bytes (B,N,K,3,S,S), those of a graph the same beside any others. Raises as `check`."""
        self.check(graphs)
        there, batch = ~graphs.padding(), Batch(graphs.counts, graphs=graphs)
        # One by one: in a larger batch features may be rounded otherwise, and another patch be the nearest.
        rows = [batch[row : row + 1].graphs for row in range(len(there))]
        features = torch.cat([self.encode(row) for row in rows if row is not None])
        found, _ = self.index.search(features.numpy(), graphs.classes[there].numpy(), self.count, None)
        places = torch.zeros(*there.shape, self.count, dtype=torch.int64)
        counts = torch.zeros(there.shape, dtype=torch.int64)
        places[there] = torch.from_numpy(found.clip(0)).long()
        counts[there] = torch.from_numpy((found >= 0).sum(1))
        return _with_pixels(self.bank, places, counts)


def _with_pixels(bank: PatchBank, places: Tensor, counts: Tensor) -> Candidates:
    shown = torch.arange(places.shape[2]) < counts[..., None]
    size = bank.about.size
    patches = torch.zeros(*places.shape, 3, size, size, dtype=torch.uint8)
    patches[shown] = bank.take(places[shown].numpy())
    return Candidates(patches, places * shown, counts)
