"""Captions of a split as systems read them: features of a frozen encoder, computed once by a stage, or word indices."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import TextFeatures, Tokens
from orchestration.data.records import Dataset
from orchestration.data.vocabulary import Vocabulary
from orchestration.errors import RequestError
from orchestration.stages import Progress

VERSION = 2
INDEX_VERSION = 1
ENCODE_BATCH = 64


class Encoder(Protocol):
    """A frozen text encoder."""

    @property
    def digest(self) -> str:
        """sha256 (hex) of all that its features depend on."""
        ...

    @property
    def dim(self) -> int:
        """Width C of its features."""
        ...

    def __call__(self, texts: Sequence[str]) -> TextFeatures:
        """Features of B captions."""
        ...


@dataclass(frozen=True, slots=True)
class CaptionIndex:
    """Captions of a split, image by image.

    image_ids: (N,); class_ids: (N,) the published class, or the image's id where there is none; starts: (N+1,) image i
    owns captions starts[i] to starts[i+1]; texts: every caption in that order.
    """

    image_ids: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CaptionTokens:
    """Captions as indices of a vocabulary's words, at most `longest` of them.

    shortening: "random" keeps words of longer captions by draws, "first" the first ones.
    """

    index: CaptionIndex
    vocabulary: Vocabulary
    longest: int
    shortening: str

    def take(self, captions: NDArray[np.int64], draws: NDArray[np.uint64] | None = None) -> Tokens:
        """These captions (B indices into `texts`), padded to `longest`; without draws the first words are kept.

        Raises RequestError for a caption without a known word.
        """
        texts = [self.index.texts[caption] for caption in captions]
        chosen = None if draws is None or self.shortening == "first" else draws.tolist()
        return self.vocabulary.tokens(texts, self.longest, chosen)


@dataclass(frozen=True, slots=True)
class CaptionFeatures:
    """Features of a split's captions, stored once for each distinct text.

    rows: (captions,) feature row of each caption of the index; words: (tokens, C) float16, row r owns offsets[r] to
    offsets[r+1]; sentence: (rows, C) float32.
    """

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    words: NDArray[np.float16]
    sentence: NDArray[np.float32]

    @property
    def dim(self) -> int:
        """Width C."""
        return int(self.sentence.shape[1])

    @property
    def longest(self) -> int:
        """Tokens of the longest caption."""
        return int(np.diff(self.offsets).max())

    def take(self, captions: NDArray[np.int64]) -> TextFeatures:
        """Features of these captions (B indices into `texts`), padded with zeros to the longest of the split."""
        rows = self.rows[captions]
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        steps = np.arange(self.longest)
        inside = steps[None, :] < lengths[:, None]
        places = np.where(inside, self.offsets[rows][:, None] + steps[None, :], 0)
        words = np.where(inside[:, :, None], self.words[places], np.float16(0)).astype(np.float32)
        return TextFeatures(
            torch.from_numpy(words), torch.from_numpy(lengths), torch.from_numpy(self.sentence[rows].astype(np.float32))
        )


def write_caption_index(dataset: Dataset, folder: Path) -> None:
    """Write what `open_caption_index` reads."""
    texts: list[str] = []
    starts = [0]
    for record in dataset.records:
        texts += [caption.text for caption in record.captions or ()]
        starts.append(len(texts))
    np.save(folder / "starts.npy", np.array(starts, np.int64))
    np.save(folder / "image_ids.npy", np.array([record.image_id for record in dataset.records], np.int64))
    classes = [record.image_id if record.class_id is None else record.class_id for record in dataset.records]
    np.save(folder / "class_ids.npy", np.array(classes, np.int64))
    (folder / "captions.json").write_text(json.dumps(texts))


def write_caption_features(index: CaptionIndex, encoder: Encoder, folder: Path, progress: Progress) -> None:
    """Encode every distinct caption of the split into `folder`."""
    # The texts themselves decide the order: that of a set changes from process to process.
    distinct = sorted(set(index.texts), key=lambda text: (len(text), text))
    row_of = {text: row for row, text in enumerate(distinct)}
    offsets, sentence, pieces = [0], [], []
    for start in range(0, len(distinct), ENCODE_BATCH):
        features = encoder(distinct[start : start + ENCODE_BATCH])
        for words, length in zip(features.words, features.lengths.tolist(), strict=True):
            pieces.append(words[:length].half().cpu().numpy())
            offsets.append(offsets[-1] + length)
        sentence.append(features.sentence.cpu().numpy())
        progress("text features", min(start + ENCODE_BATCH, len(distinct)), len(distinct))
    np.save(folder / "words.npy", np.concatenate(pieces))
    np.save(folder / "sentence.npy", np.concatenate(sentence))
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    np.save(folder / "rows.npy", np.array([row_of[text] for text in index.texts], np.int64))


def open_caption_index(folder: Path) -> CaptionIndex:
    """What `write_caption_index` wrote. Raises RequestError."""
    try:
        texts = tuple(json.loads((folder / "captions.json").read_text()))
        arrays = {name: np.array(_array(folder, name)) for name in ("image_ids", "class_ids", "starts")}
    except (OSError, ValueError) as error:
        raise _unreadable("captions", folder, error) from error
    return CaptionIndex(texts=texts, **arrays)


def open_caption_features(folder: Path) -> CaptionFeatures:
    """What `write_caption_features` wrote, memory-mapped. Raises RequestError."""
    try:
        # Small index arrays live in memory; the features stay on disk until touched.
        small = {name: np.array(_array(folder, name)) for name in ("rows", "offsets")}
        return CaptionFeatures(words=_array(folder, "words"), sentence=_array(folder, "sentence"), **small)
    except (OSError, ValueError) as error:
        raise _unreadable("text features", folder, error) from error


def _array(folder: Path, name: str) -> Any:
    return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def _unreadable(what: str, folder: Path, error: Exception) -> RequestError:
    return RequestError(f"{what} in {folder} cannot be read ({error}): delete that folder and repeat")


def check_encodable(texts: Sequence[str]) -> None:
    """RequestError for the first caption that says nothing."""
    for index, text in enumerate(texts):
        if not text.strip():
            raise RequestError(f"caption {index} is empty: write what the picture should show")
