"""Batches by position: the samples of the global batch at any point of training, or a rank's part of them."""

from collections.abc import Iterable, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import (
    Batch,
    Candidates,
    Graphs,
    LabelMaps,
    Objects,
    Regions,
    TaggedWords,
    TextFeatures,
    Tokens,
)
from orchestration.data.features import CaptionFeatures, CaptionIndex, CaptionTokens
from orchestration.data.graphs import StoredGraphs
from orchestration.data.label_maps import StoredLabelMaps
from orchestration.data.objects import StoredObjects
from orchestration.data.pictures import Pictures
from orchestration.data.regions import RegionFeatures
from orchestration.data.sampler import SeededOrder, derive_seed, mix
from orchestration.errors import RequestError, RunError

# Streams of the data seed: what is drawn must not depend on what else is drawn.
ORDER, CAPTION, FLIP, CUT_X, CUT_Y, WORDS = 0, 1, 2, 3, 4, 5


class CandidateStore(Protocol):
    """The candidate patches of every object of a split."""

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """(N,) the images, in order."""
        ...

    def take(self, items: NDArray[np.int64]) -> Candidates:
        """Of B pictures; patches are bytes."""
        ...


class TaggedStore(Protocol):
    """The captions of a split as a tagger reads them."""

    def __len__(self) -> int:
        """How many captions."""
        ...

    def take(self, captions: NDArray[np.int64]) -> TaggedWords:
        """Of B captions, by their places in the index."""
        ...


class CanvasStore(Protocol):
    """The label maps that were composed for the captions of a split."""

    def __len__(self) -> int:
        """How many captions."""
        ...

    def take(self, captions: NDArray[np.int64]) -> LabelMaps:
        """Of B captions, by their places in the index."""
        ...


class CaptionedPictures:
    """Pixels and captions of one split: the images that have both, in the order of the captions.

    pictures: may hold more images; index: every one of its images must be in `pictures` and have a caption; features,
    tokens: how systems read the captions of the index, None where none does; objects, regions, graphs, candidates,
    labels: of the index's images, None where no system reads them; there may be regions of more images. tagged,
    canvases: of the captions; where there are canvases they are the label maps, whatever cut of a picture is shown.
    Raises RunError or RequestError where that does not hold.
    """

    def __init__(
        self,
        pictures: Pictures,
        index: CaptionIndex,
        features: CaptionFeatures | None = None,
        tokens: CaptionTokens | None = None,
        objects: StoredObjects | None = None,
        regions: RegionFeatures | None = None,
        graphs: StoredGraphs | None = None,
        candidates: "CandidateStore | None" = None,
        labels: StoredLabelMaps | None = None,
        tagged: TaggedStore | None = None,
        canvases: CanvasStore | None = None,
    ) -> None:
        self.pictures, self.index, self.features, self.tokens = pictures, index, features, tokens
        self.objects, self.regions = objects, regions and regions.of(index.image_ids)
        self.graphs, self.candidates, self.labels = graphs, candidates, labels
        self.tagged, self.canvases = tagged, canvases
        place = {image_id: row for row, image_id in enumerate(pictures.image_ids.tolist())}
        try:
            self._rows = np.array([place[image_id] for image_id in index.image_ids.tolist()], np.int64)
        except KeyError as error:
            raise RunError(
                "pictures and captions were prepared from different data: delete the stages folder and repeat"
            ) from error
        by_caption: dict[str, Sized | None] = {
            "features": None if features is None else features.rows,
            "tagged words": tagged,
            "canvases": canvases,
        }
        for name, counted in by_caption.items():
            if counted is not None and len(counted) != len(index.texts):
                raise RunError(
                    f"captions and {name} were prepared from different data: delete the stages folder and repeat"
                )
        for name, stored in (
            ("objects", objects),
            ("graphs", graphs),
            ("candidates", candidates),
            ("label maps", labels),
        ):
            if stored is not None and not np.array_equal(stored.image_ids, index.image_ids):
                raise RunError(
                    f"captions and {name} were prepared from different data: delete the stages folder and repeat"
                )
        silent = np.flatnonzero(np.diff(index.starts) < 1)
        if len(silent):
            raise RequestError(
                f"image {index.image_ids[silent[0]]} has no caption: leave it out of the data or add one"
            )

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """(N,) the images, in order."""
        return self.index.image_ids

    def text(self, captions: NDArray[np.int64]) -> TextFeatures:
        """Features of these captions (B places in the index). Raises RunError where none were prepared."""
        if self.features is None:
            raise RunError("no text features were prepared for this system: it does not read them")
        return self.features.take(captions)

    def pixels(self, items: NDArray[np.int64], seed: int | None = None) -> torch.Tensor:
        """uint8 (B,3,H,W): the centre of each picture; with a seed, cut and flipped at random as in training."""
        rows = self._rows[items]
        if seed is None:
            return torch.from_numpy(self.pictures.still(rows))
        return torch.from_numpy(self.drawn(items, _draws(seed, items), self.pictures.transform.flip))

    def still_of(self, image_ids: Iterable[int]) -> dict[int, NDArray[np.uint8]]:
        """(H,W,3) bytes by id: the centre of each of these pictures that is here."""
        items = np.flatnonzero(np.isin(self.image_ids, list(image_ids)))
        pixels = self.pixels(items).permute(0, 2, 3, 1).numpy()
        return dict(zip(self.image_ids[items].tolist(), pixels, strict=True))

    def still(self, items: NDArray[np.int64], captions: NDArray[np.int64]) -> Batch:
        """Held-out samples: the centre of these pictures, and of one caption each (B places in the index) the first
        words."""
        images = self.pictures.transform.normalise(self.pixels(items))
        return replace(self.without_pixels(items, captions), images=images)

    def without_pixels(self, items: NDArray[np.int64], captions: NDArray[np.int64]) -> Batch:
        """The same, but for the pictures."""
        return Batch(
            torch.from_numpy(self.image_ids[items]),
            None,
            self.features.take(captions) if self.features else None,
            self.tokens.take(captions) if self.tokens else None,
            torch.from_numpy(self.index.class_ids[items]),
            self.objects.take(items) if self.objects else None,
            self.regions.batch(items) if self.regions else None,
            self.graphs.take(items) if self.graphs else None,
            self.normalised(self.candidates.take(items)) if self.candidates else None,
            self.canvases.take(captions) if self.canvases else self.labels.take(items) if self.labels else None,
            self.tagged.take(captions) if self.tagged else None,
        )

    def normalised(self, candidates: Candidates) -> Candidates:
        """Patches of bytes, with values as the pictures'."""
        return replace(candidates, patches=self.pictures.transform.normalise(candidates.patches))

    def drawn(self, items: NDArray[np.int64], draws: NDArray[np.float64], flip: bool) -> NDArray[np.uint8]:
        """uint8 (B,3,H,W), cut and flipped by `draws` (B,3)."""
        return self.pictures.drawn(self._rows[items], draws, flip)


def _draws(seed: int, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """(B,3) in [0, 1) for each position: cut in x and y, flip."""
    bits = np.stack([mix(seed, stream, positions) for stream in (CUT_X, CUT_Y, FLIP)], 1)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class TrainingStream:
    """What training sees: shuffled passes, one random caption an image, random cuts and flips; by position and seed.

    flip: None is as the pictures' transform was published. stride: where it is given, a thread loads the batch that
    starts so many samples later while this one is used.
    """

    def __init__(self, data: CaptionedPictures, seed: int, flip: bool | None = None, stride: int = 0) -> None:
        self.data, self.seed, self.stride = data, seed, stride
        self.flip = data.pictures.transform.flip if flip is None else flip
        self.order = SeededOrder(len(data), derive_seed(seed, ORDER))
        self._loader = ThreadPoolExecutor(1, "next-batch") if stride else None
        self._coming: dict[tuple[int, int], Future[_Loaded]] = {}

    def batch(self, start: int, count: int) -> Batch:
        """Samples start .. start+count-1 of the run (counted in images seen)."""
        coming = self._coming.pop((start, count), None)
        loaded = coming.result() if coming else self._load(start, count)
        if self._loader:
            for passed in [ahead for ahead in self._coming if ahead[0] <= start]:  # the run went on elsewhere
                del self._coming[passed]
            self._coming[start + self.stride, count] = self._loader.submit(self._load, start + self.stride, count)
        # Here and not in the thread: torch would start a second set of compute threads there.
        images = self.data.pictures.transform.normalise(torch.from_numpy(loaded.pixels))
        return Batch(
            torch.from_numpy(loaded.image_ids),
            images,
            loaded.text,
            loaded.tokens,
            torch.from_numpy(loaded.class_ids),
            loaded.objects,
            loaded.regions,
            loaded.graphs,
            self.data.normalised(loaded.candidates) if loaded.candidates else None,
            loaded.labels,
            loaded.tagged,
        )

    def _load(self, start: int, count: int) -> "_Loaded":
        positions = np.arange(start, start + count, dtype=np.int64)
        items = self.order.items(positions)
        data, index, draws = self.data, self.data.index, _draws(self.seed, positions)
        owned = index.starts[items + 1] - index.starts[items]
        captions = index.starts[items] + (mix(self.seed, CAPTION, positions) % owned.astype(np.uint64)).astype(np.int64)
        shown = data.labels.take(items, draws, self.flip) if data.labels else None
        return _Loaded(
            data.image_ids[items],
            index.class_ids[items],
            data.drawn(items, draws, self.flip),
            data.features.take(captions) if data.features else None,
            data.tokens.take(captions, mix(self.seed, WORDS, positions)) if data.tokens else None,
            data.objects.take(items, draws, self.flip) if data.objects else None,
            data.regions.batch(items) if data.regions else None,
            data.graphs.take(items, draws) if data.graphs else None,
            data.candidates.take(items) if data.candidates else None,
            data.canvases.take(captions) if data.canvases else shown,
            data.tagged.take(captions) if data.tagged else None,
        )


@dataclass(frozen=True, slots=True)
class _Loaded:
    image_ids: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    text: TextFeatures | None
    tokens: Tokens | None
    objects: Objects | None
    regions: Regions | None
    graphs: Graphs | None
    candidates: Candidates | None
    labels: LabelMaps | None
    tagged: TaggedWords | None


def held_out_captions(captions: CaptionIndex, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(images, captions), `count` of each, drawn with the seed: images in shuffled passes, one random caption each.

    More than there are images oversamples them (XMC-GAN, section 5.2).
    """
    positions = np.arange(count, dtype=np.int64)
    items = SeededOrder(len(captions.image_ids), derive_seed(seed, ORDER)).items(positions)
    owned = (captions.starts[items + 1] - captions.starts[items]).astype(np.uint64)
    return items, captions.starts[items] + (mix(seed, CAPTION, positions) % owned).astype(np.int64)
