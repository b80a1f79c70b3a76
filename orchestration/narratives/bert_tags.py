"""The tags that a trained tagger gives every narrative of a split."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestration.mapping import join_blocks, map_blocks, read_block
from orchestration.narratives.corpus import NONE, Corpus, open_corpus, word_key
from orchestration.narratives.hmm_tags import Ensure, write_about_tags
from orchestration.narratives.tagging import TrainedTagger, open_tagger
from orchestration.stages import Progress, Stage

VERSION = 1
BLOCK = 256  # narratives between two files
_BLOCKS = "blocks"


def bert_tags_stage(
    tagger: Stage, corpus: Stage, ensure: Ensure, processes: Callable[[], int | None] = lambda: 1, device: str = "cpu"
) -> Stage:
    """The stage that writes what `open_tags` reads.

    tagger: the part's; corpus: the split's `noisy_labels_stage`, whose words alone are read; processes: asked for
    `map_blocks`' workers when it runs. A narrative without a letter or digit has no tags (-1).
    """

    def run(folder: Path, progress: Progress) -> None:
        words, part = ensure(corpus).resolve(), ensure(tagger).resolve()
        count, blocks = len(open_corpus(words)), folder / _BLOCKS
        make = partial(_open_tagging, words, part, device)
        files = map_blocks(blocks, count, BLOCK, make, progress, processes(), "tagging narratives", identity=tagger.key)
        join_blocks(files, "tags", folder / "tags.npy")
        counts = np.concatenate([read_block(file)["counts"] for file in files])
        np.save(folder / "starts.npy", np.cumsum(np.concatenate([[0], counts]), dtype=np.int64))
        write_about_tags(folder, count, int(counts.sum()))
        shutil.rmtree(blocks)

    return Stage("bert-tags", VERSION, {}, {"tagger": tagger.key, "corpus": corpus.key}, run, resumable=True)


@dataclass(frozen=True, slots=True)
class _Tagging:
    """Narratives of a block to their tags."""

    corpus: Corpus
    tagger: TrainedTagger

    def __call__(self, items: range) -> dict[str, NDArray[np.int32] | NDArray[np.int64]]:
        said = [self.corpus.words(narrative) for narrative in items]
        tags = [np.full(len(words), NONE, np.int64) for words in said]
        known = [row for row, words in enumerate(said) if any(map(word_key, words))]
        for row, found in zip(known, self.tagger.tag([said[row] for row in known]), strict=True):
            tags[row] = found
        flat = np.concatenate([np.zeros(0, np.int64), *tags]).astype(np.int32)
        return {"tags": flat, "counts": np.array([len(words) for words in said], np.int64)}


def _open_tagging(corpus: Path, tagger: Path, device: str) -> _Tagging:
    return _Tagging(open_corpus(corpus), open_tagger(tagger, device))
