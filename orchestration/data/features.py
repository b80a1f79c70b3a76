"""Text features of every caption, computed once by a stage and memory-mapped by all who train."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import TextFeatures
from models.encoders.text import TextEncoder
from orchestration.data.records import Dataset
from orchestration.errors import RequestError
from orchestration.stages import Progress

VERSION = 1
ENCODE_BATCH = 64


@dataclass(frozen=True, slots=True)
class CaptionFeatures:
    """Captions of a split, image by image, with features stored once for each distinct text.

    starts: (N+1,) image i owns captions starts[i] to starts[i+1]; texts: every caption in that order; rows: (captions,)
    feature row of each; words: (tokens, C) float16, row r owns offsets[r] to offsets[r+1]; sentence: (rows, C) float32.
    """

    image_ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    texts: tuple[str, ...]
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


def write_caption_features(dataset: Dataset, encoder: TextEncoder, folder: Path, progress: Progress) -> None:
    """Encode every distinct caption of the split into `folder`."""
    texts: list[str] = []
    starts = [0]
    for record in dataset.records:
        texts += [caption.text for caption in record.captions or ()]
        starts.append(len(texts))
    # The texts themselves decide the order: that of a set changes from process to process.
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
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
    np.save(folder / "rows.npy", np.array([row_of[text] for text in texts], np.int64))
    np.save(folder / "starts.npy", np.array(starts, np.int64))
    np.save(folder / "image_ids.npy", np.array([record.image_id for record in dataset.records], np.int64))
    (folder / "captions.json").write_text(json.dumps(texts))


def open_caption_features(folder: Path) -> CaptionFeatures:
    """What `write_caption_features` wrote, memory-mapped."""

    def array(name: str) -> NDArray[np.generic]:
        loaded: NDArray[np.generic] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return loaded

    try:
        texts = tuple(json.loads((folder / "captions.json").read_text()))
        # Small index arrays live in memory; the features stay on disk until touched.
        small = {name: np.array(array(name)) for name in ("image_ids", "starts", "rows", "offsets")}
        return CaptionFeatures(texts=texts, words=array("words"), sentence=array("sentence"), **small)  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        raise RequestError(
            f"text features in {folder} cannot be read ({error}): delete that folder and repeat"
        ) from error


def check_encodable(texts: Sequence[str]) -> None:
    """RequestError for the first caption that says nothing."""
    for index, text in enumerate(texts):
        if not text.strip():
            raise RequestError(f"caption {index} is empty: write what the picture should show")
