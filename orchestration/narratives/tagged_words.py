"""A split's narratives as a BERT tagger is taught: word pieces, and each word's label at its first piece.

A folder holds tagged_words.json (`_About`) and the arrays of `ARRAYS`, of N narratives with P pieces in all, narrative
i's from starts[i] to starts[i + 1], in the order of the split's caption index.
"""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.contract import TaggedWords
from models.encoders.bert import BEGIN, END, NO_WEIGHTS, BertSettings, cut_words, own_tokenizer, published_tokenizer
from models.encoders.image import WeightsMissing
from orchestration.data.array_files import map_arrays, read_about
from orchestration.errors import RequestError
from orchestration.mapping import join_blocks, map_blocks, read_block
from orchestration.narratives.corpus import NONE, open_corpus
from orchestration.narratives.hmm_tags import Ensure, open_tags, raw_tags
from orchestration.stages import Progress, Stage, short_hash, write_atomically

VERSION = 1
PIECES_VERSION = 1
FORMAT = 1
TOKENIZER = "tokenizer.json"
"""How words are cut, in the tokenizers library's format; a trained tagger's folder has it too."""
BLOCK = 4096  # narratives between two files
MULTIPLE = 16
"""Batches are padded to a multiple of so many pieces: few shapes, and little padding."""
MARKS = 2  # the begin and the end
ARRAYS: Mapping[str, tuple[str, str]] = {
    "pieces": ("int32", "P"),
    "first": ("bool", "P"),
    "labels": ("int32", "P"),
    "starts": ("int64", "N+1"),
}
"""Type and shape of each array."""
_ABOUT, _BLOCKS = "tagged_words.json", "blocks"
_AGAIN = "delete that folder and repeat what wrote it"


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    narratives: int
    pieces: int
    longest: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredTaggedWords:
    """N narratives in word pieces, memory-mapped: pieces, first (a word begins) and labels (-1: none), each (P,).

    longest: pieces of a narrative at most.
    """

    pieces: NDArray[np.int32]
    first: NDArray[np.bool_]
    labels: NDArray[np.int32]
    starts: NDArray[np.int64]
    longest: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, captions: NDArray[np.int64]) -> TaggedWords:
        """These narratives (B places in the caption index), padded to a multiple of `MULTIPLE`."""
        begin, end = self.starts[captions], self.starts[captions + 1]
        counts = end - begin
        steps = np.arange(padded(int(counts.max(initial=1)), self.longest))
        there = steps < counts[:, None]
        places = np.where(there, begin[:, None] + steps, 0)
        arrays = [
            np.where(there, array[places], filler).astype(kind)
            for array, filler, kind in (
                (self.pieces, 0, np.int64),
                (self.first, False, np.bool_),
                (self.labels, NONE, np.int64),
            )
        ]
        pieces, first, labels = map(torch.from_numpy, arrays)
        return TaggedWords(pieces, torch.from_numpy(counts), first, labels)


def padded(count: int, longest: int) -> int:
    """The next multiple of `MULTIPLE`, and no more than the longest."""
    return max(min(-(-count // MULTIPLE) * MULTIPLE, longest), count)


def tokenizer_stage(train: Stage, ensure: Ensure, bert: BertSettings, encoders: Path) -> Stage:
    """The stage that keeps how words are cut into pieces.

    train: the training split's `noisy_labels_stage`, whose words a BERT without published weights goes by; encoders:
    where packaged encoders are unpacked. Raises RequestError where there is no such BERT.
    """
    if bert.name == NO_WEIGHTS:

        def write_own(folder: Path, progress: Progress) -> None:
            corpus = open_corpus(ensure(train))
            counts = np.bincount(corpus.key_ids[corpus.key_ids >= 0], minlength=len(corpus.keys)).tolist()
            tokenizer = own_tokenizer(dict(zip(corpus.keys, counts, strict=True)), bert.pieces)
            write_atomically(folder / TOKENIZER, tokenizer.to_str())

        return Stage("word-pieces", PIECES_VERSION, {"pieces": bert.pieces}, {"corpus": train.key}, write_own)
    try:
        tokenizer = published_tokenizer(bert.name, encoders)
    except WeightsMissing as error:
        raise RequestError(f"bert.name: {error}") from error
    if (size := tokenizer.get_vocab_size()) > bert.pieces:
        raise RequestError(
            f"the tokenizer of {bert.name!r} has {size} word pieces, and bert.pieces is {bert.pieces}: set "
            f"bert.pieces={size}"
        )
    text = tokenizer.to_str()

    def write(folder: Path, progress: Progress) -> None:
        write_atomically(folder / TOKENIZER, text)

    return Stage("word-pieces", PIECES_VERSION, {}, {"tokenizer": short_hash(json.loads(text))}, write)


def tagged_words_stage(
    tokenizer: Stage,
    corpus: Stage,
    tags: Stage | None,
    ensure: Ensure,
    max_pieces: int,
    excluded: Collection[str],
    processes: int | None = None,
) -> Stage:
    """The stage that writes what `open_tagged_words` reads, of a split.

    tokenizer: a `tokenizer_stage`; corpus: the split's `noisy_labels_stage`; tags: its `hmm_tags_stage`, None for the
    noisy labels; excluded: names of classes that are not taught; processes: as `map_blocks`' workers. Of a narrative of
    more than max_pieces the first whole words are kept.
    """

    def run(folder: Path, progress: Progress) -> None:
        corpus_folder, tokenizer_file = ensure(corpus).resolve(), (ensure(tokenizer) / TOKENIZER).resolve()
        tags_folder = ensure(tags).resolve() if tags else None
        for left_over in folder.glob(".*-????????"):  # of a killed process
            left_over.unlink()
        make_worker = partial(_Cutting, corpus_folder, tokenizer_file, tags_folder, max_pieces, tuple(excluded))
        count, blocks = len(open_corpus(corpus_folder)), folder / _BLOCKS
        files = map_blocks(blocks, count, BLOCK, make_worker, progress, processes, "tagged words")
        for name in ("pieces", "first", "labels"):
            join_blocks(files, name, folder / f"{name}.npy")
        counts = np.concatenate([read_block(file)["counts"] for file in files])
        np.save(folder / "starts.npy", np.cumsum(np.concatenate([[0], counts]), dtype=np.int64))
        about = _About(FORMAT, count, int(counts.sum()), int(counts.max(initial=0)))
        write_atomically(folder / _ABOUT, msgspec.json.encode(about))
        shutil.rmtree(blocks)

    settings = {"max_pieces": max_pieces, "excluded": sorted(excluded)}
    inputs = {"corpus": corpus.key, "tags": tags.key if tags else "noisy", "pieces": tokenizer.key}
    return Stage("tagged-words", VERSION, settings, inputs, run, resumable=True)


def open_tagged_words(folder: Path) -> StoredTaggedWords:
    """What the stage wrote, memory-mapped. Raises RequestError."""
    about = read_about(folder / _ABOUT, _About, FORMAT, "tagged words", _AGAIN)
    sizes = {"P": about.pieces, "N+1": about.narratives + 1}
    return StoredTaggedWords(**map_arrays(folder, ARRAYS, sizes, _ABOUT, _AGAIN), longest=about.longest)


def read_tokenizer(file: Path) -> Tokenizer:
    """Raises RequestError."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no type of its own
        raise RequestError(f"{file} cannot be read ({error}): {_AGAIN}") from error
    return tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class CutNarrative:
    """A narrative of T words in P pieces, without marks: ids (P,); sizes: (T,), the pieces of each word."""

    ids: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def ends(self) -> NDArray[np.int64]:
        """(T,) where the pieces of each word end."""
        return np.cumsum(self.sizes)


def cut(tokenizer: Tokenizer, narratives: Sequence[Sequence[str]], longest: int) -> list[CutNarrative]:
    """Narratives in pieces; of a word no more than the `longest` first pieces are kept."""
    found = []
    for words, (ids, of) in zip(narratives, cut_words(tokenizer, narratives), strict=True):
        sizes = np.bincount(of, minlength=len(words))
        within = np.arange(len(of)) - (np.cumsum(sizes) - sizes)[of]
        found.append(CutNarrative(ids[within < longest], np.minimum(sizes, longest)))
    return found


def windows(sizes: NDArray[np.int64], longest: int) -> list[tuple[int, int]]:
    """First word and the one after the last of stretches of whole words, each of at most `longest` pieces.

    They cover all words in order; each begins in the middle of the one before, or as far behind it as the next word
    needs. sizes: (T,), none above the longest.
    """
    ends, found, first = np.cumsum(sizes), list[tuple[int, int]](), 0
    starts = ends - sizes
    while True:
        end = int(np.searchsorted(ends, starts[first] + longest, "right"))
        found.append((first, end))
        if end == len(sizes):
            return found
        middle = (starts[first] + ends[end - 1]) / 2
        first = int(np.searchsorted(starts, max(middle, ends[end] - longest)))


class _Cutting:
    """Narratives of a block to their pieces and labels."""

    def __init__(
        self, corpus: Path, tokenizer: Path, tags: Path | None, max_pieces: int, excluded: Sequence[str]
    ) -> None:
        self.corpus, self.tokenizer = open_corpus(corpus), read_tokenizer(tokenizer)
        self.tags = raw_tags(self.corpus) if tags is None else open_tags(tags)
        self.longest = max_pieces - MARKS
        self.excluded = [place for place, name in enumerate(self.corpus.classes) if name in excluded]
        self.begin, self.end = marks(self.tokenizer)

    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        narratives = [self.corpus.words(item) for item in items]
        pieces, first, labels, counts = [], [], [], []
        for item, found in zip(items, cut(self.tokenizer, narratives, self.longest), strict=True):
            end = windows(found.sizes, self.longest)[0][1]
            sizes, kept = found.sizes[:end], int(found.sizes[:end].sum())
            begins = np.zeros(kept + MARKS, np.bool_)
            places = 1 + np.cumsum(sizes)[sizes > 0] - sizes[sizes > 0]
            begins[places] = True
            taught = np.full(kept + MARKS, NONE, np.int32)
            tags = self.tags.take(item)[:end]
            taught[places] = np.where(np.isin(tags, self.excluded), NONE, tags)[sizes > 0]
            pieces.append(np.array([self.begin, *found.ids[:kept], self.end], np.int32))
            first.append(begins)
            labels.append(taught)
            counts.append(kept + MARKS)
        return {
            "pieces": np.concatenate(pieces),
            "first": np.concatenate(first),
            "labels": np.concatenate(labels),
            "counts": np.array(counts, np.int64),
        }


def marks(tokenizer: Tokenizer) -> tuple[int, int]:
    """The numbers of the pieces that begin and end a text. Raises RequestError for a tokenizer that has none."""
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    if begin is None or end is None:
        raise RequestError(f"the tokenizer has no {BEGIN} and {END}: give that of a BERT")
    return begin, end
