"""Captions of a split as systems read them: features of a frozen encoder, computed once by a stage, or word indices."""

import json
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from models.contract import TextFeatures, Tokens
from orchestration.data.records import Dataset
from orchestration.data.vocabulary import Vocabulary
from orchestration.errors import RequestError
from orchestration.mapping import join_blocks, map_blocks, read_block
from orchestration.stages import Progress

VERSION = 2
INDEX_VERSION = 1
ENCODE_BATCH = 64
BLOCK = 512  # captions that are encoded between two files: a multiple of ENCODE_BATCH


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


def write_caption_features(
    index: CaptionIndex,
    encoder: Encoder,
    folder: Path,
    progress: Progress,
    workers: int | None = 1,
    open_encoder: Callable[[], Encoder] | None = None,
) -> None:
    """Encode every distinct caption of the split into `folder`; repeated after a kill, it goes on.

    workers: as `map_blocks`' says; open_encoder: opens the same encoder in other processes, without it all is done
    here. Raises RequestError as the encoder does, RunError for what fails in another process.
    """
    # The texts themselves decide the order: that of a set changes from process to process.
    distinct = sorted(set(index.texts), key=lambda text: (len(text), text))
    blocks, texts = folder / "blocks", folder / "texts.arrow"
    for left_over in folder.glob(".*.npy-*"):  # of a killed process
        left_over.unlink()
    _write_texts(distinct, texts)

    def here() -> _Encoding:
        return _Encoding(texts, BLOCK, encoder)

    elsewhere = open_encoder and partial(_open_worker, texts.resolve(), BLOCK, open_encoder, encoder.digest)
    files = map_blocks(
        blocks,
        len(distinct),
        BLOCK,
        elsewhere or here,
        progress,
        workers if elsewhere else 1,
        "text features",
        here,
        encoder.digest,
    )
    lengths = np.concatenate([read_block(file)["lengths"] for file in files])
    join_blocks(files, "words", folder / "words.npy")
    join_blocks(files, "sentence", folder / "sentence.npy")
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    row_of = {text: row for row, text in enumerate(distinct)}
    np.save(folder / "rows.npy", np.array([row_of[text] for text in index.texts], np.int64))
    shutil.rmtree(blocks)
    texts.unlink()


def _write_texts(texts: Sequence[str], file: Path) -> None:
    """One Arrow batch a block, so that a worker maps no more than it reads."""
    schema = pa.schema([("text", pa.binary())])
    with pa.OSFile(str(file), "wb") as output, pa.ipc.new_file(output, schema) as writer:
        for start in range(0, len(texts), BLOCK):
            encoded = [text.encode("utf-8", "surrogatepass") for text in texts[start : start + BLOCK]]
            writer.write_batch(pa.record_batch([pa.array(encoded, pa.binary())], schema=schema))


class _Encoding:
    """Texts of a block to their features: words (tokens,C) float16, lengths (B,) int64, sentence (B,C) float32."""

    def __init__(self, texts: Path, block: int, encoder: Encoder) -> None:
        self.texts, self.block, self.encoder = texts, block, encoder

    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        with pa.memory_map(str(self.texts)) as mapped:
            column = pa.ipc.open_file(mapped).get_batch(items.start // self.block).column(0)
            texts = [value.decode("utf-8", "surrogatepass") for value in column.to_pylist()]
        words, lengths, sentence = [], [], []
        for start in range(0, len(texts), ENCODE_BATCH):
            features = self.encoder(texts[start : start + ENCODE_BATCH])
            words.append(features.words[~features.padding()].half().cpu().numpy())
            lengths.append(features.lengths.cpu().numpy())
            sentence.append(features.sentence.float().cpu().numpy())
        return {
            "words": np.concatenate(words),
            "lengths": np.concatenate(lengths),
            "sentence": np.concatenate(sentence),
        }


def _open_worker(texts: Path, block: int, open_encoder: Callable[[], Encoder], digest: str) -> _Encoding:
    """In another process, where the encoder may be another one."""
    encoder = open_encoder()
    if encoder.digest != digest:
        raise RequestError(
            f"the text encoder on {socket.gethostname()} is not the one that the command was started with: put the "
            "same weights and vocabulary on every machine"
        )
    return _Encoding(texts, block, encoder)


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
