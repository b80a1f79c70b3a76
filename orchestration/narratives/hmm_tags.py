"""The constrained HMM over data: its tables, of the training split, and the tags of every narrative of a split.

TReCS, section 2.1. A tag is a class number a word; the narratives of a split are constrained to their pictures' labels.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from models.trecs.tagger import Narratives, NarrativeTagger, TaggerSettings, TaggerTables, fit_tables
from orchestration.data.array_files import map_arrays, read_about
from orchestration.errors import RequestError
from orchestration.narratives.corpus import NONE, Corpus, open_corpus, word_key
from orchestration.stages import Progress, Stage, write_atomically

VERSION = 1
TAGS_VERSION = 1
FORMAT = 1
FITTED = frozenset(
    {
        "word_weight",
        "label_weight",
        "label_documents",
        "idf",
        "term_frequency",
        "alignment_words",
        "null_word",
        "iterations",
        "within_phrases",
    }
)
"""The settings that the tables depend on; the others are read where words are tagged."""
CHUNK = 2048  # narratives that are tagged at once
_ABOUT, _KEYS, _TABLES, _TAGS = "hmm.json", "keys.json", "tables.safetensors", "tags.json"
_AGAIN = "delete that folder and repeat what wrote it"

Ensure = Callable[[Stage], Path]
"""The folder of a stage, computed now where it is missing."""


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """settings: those of `FITTED`."""

    format: int
    classes: list[str]
    settings: dict[str, Any]


class _TagsAbout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    narratives: int
    words: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredTags:
    """The tags of N narratives of W words: tags (W,), class numbers or -1, narrative i's from starts[i] to
    starts[i + 1]."""

    tags: NDArray[np.int32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, narrative: int) -> NDArray[np.int64]:
        """(T,), of one narrative."""
        return self.tags[self.starts[narrative] : self.starts[narrative + 1]].astype(np.int64)


def raw_tags(corpus: Corpus) -> StoredTags:
    """The noisy labels themselves."""
    return StoredTags(corpus.noisy_labels, corpus.word_starts)


@dataclass(frozen=True, slots=True, eq=False)
class HMMTagger:
    """A fitted HMM with its names. classes: names, by number; places: of each `word_key` that it knows."""

    classes: tuple[str, ...]
    places: Mapping[str, int]
    tagger: NarrativeTagger

    def tag(
        self, narratives: Sequence[Sequence[str]], bags: Sequence[Sequence[int]] | None = None
    ) -> list[NDArray[np.int64]]:
        """The class of each word of each narrative; of all classes, or of those in its bag.

        A word that the HMM does not know has the tag that its neighbours suggest. Raises RequestError for a narrative
        without a word that it knows, and for an empty bag.
        """
        known = [[self.places.get(word_key(word), NONE) for word in words] for words in narratives]
        for number, places in enumerate(known, 1):
            if not any(place >= 0 for place in places):
                raise RequestError(
                    f"narrative {number} has no word that the HMM knows; say what the picture shows in words of its "
                    "training narratives, or use a BERT tagger."
                )
        if bags is not None and (empty := [number for number, bag in enumerate(bags, 1) if not len(bag)]):
            raise RequestError(f"narrative {empty[0]} has no label to choose from; give it those of its picture.")
        starts = np.cumsum([0, *map(len, known)], dtype=np.int64)
        ids = np.array([place for places in known for place in places], np.int64)
        if bags is None:
            tags = self.tagger.tag(ids, starts)
        else:
            flat = np.array([label for bag in bags for label in bag], np.int64)
            tags = self.tagger.tag(ids, starts, flat, np.cumsum([0, *map(len, bags)], dtype=np.int64))
        return [tags[first:end] for first, end in pairwise(starts)]

    def word_ids(self, corpus: Corpus) -> NDArray[np.int64]:
        """(W,), the corpus' words by the HMM's numbers."""
        # The last place, -1, is that of words without a key.
        table = np.array([*(self.places.get(key, NONE) for key in corpus.keys), NONE], np.int64)
        return table[corpus.key_ids]


def hmm_stage(corpus: Stage, ensure: Ensure, settings: TaggerSettings) -> Stage:
    """The stage that fits the HMM to a training split; corpus: its `noisy_labels_stage`.

    `run` raises RequestError where no word has a noisy label: transitions are counted of those.
    """
    fitted = _fitted(settings)

    def run(folder: Path, progress: Progress) -> None:
        found = open_corpus(ensure(corpus))
        if not (found.noisy_labels >= 0).any():
            raise RequestError(
                f"no word of the {len(found)} narratives has a noisy label, and the HMM counts its transitions in "
                "those; choose data with mouse traces, or simulate them with --set narratives.traces=simulated."
            )
        progress("fitting the HMM", 0, 1)
        tables = fit_tables(_narratives(found), settings)
        write_atomically(folder / _TABLES, save(tables.to_arrays()))
        write_atomically(folder / _KEYS, json.dumps(found.keys))
        write_atomically(folder / _ABOUT, msgspec.json.encode(_About(FORMAT, list(found.classes), fitted)))
        progress("fitting the HMM", 1, 1)

    return Stage("hmm", VERSION, fitted, {"corpus": corpus.key}, run)


def hmm_tags_stage(hmm: Stage, corpus: Stage, ensure: Ensure, settings: TaggerSettings) -> Stage:
    """The stage that tags every narrative of a split, each constrained to the labels of its picture.

    A narrative without a known word, or of a picture without a label, has no tags (-1).
    """

    def run(folder: Path, progress: Progress) -> None:
        tagger, found = open_hmm(ensure(hmm), settings), open_corpus(ensure(corpus))
        tags = np.lib.format.open_memmap(folder / "tags.npy", "w+", np.int32, found.key_ids.shape)
        ids = tagger.word_ids(found)
        for first in range(0, len(found), CHUNK):
            end = min(first + CHUNK, len(found))
            tags[found.word_starts[first] : found.word_starts[end]] = _tagged(tagger.tagger, found, ids, first, end)
            progress("tagging narratives", end, len(found))
        tags.flush()
        np.save(folder / "starts.npy", found.word_starts)
        write_about_tags(folder, len(found), len(ids))

    said = settings.model_dump(mode="json", exclude=set(FITTED))
    return Stage("hmm-tags", TAGS_VERSION, said, {"hmm": hmm.key, "corpus": corpus.key}, run)


def open_hmm(folder: Path, settings: TaggerSettings) -> HMMTagger:
    """What `hmm_stage` wrote, to be used with these settings. Raises RequestError where it was fitted with others."""
    about = read_about(folder / _ABOUT, _About, FORMAT, "an HMM", _AGAIN)
    if wrong := sorted(name for name, value in _fitted(settings).items() if about.settings.get(name) != value):
        raise RequestError(
            f"the HMM in {folder} was fitted with another {wrong[0]}: {about.settings.get(wrong[0])!r}, not "
            f"{getattr(settings, wrong[0])!r}; fit it again, or give it its own."
        )
    try:
        keys = json.loads((folder / _KEYS).read_text(encoding="utf-8"))
        tables = TaggerTables.from_arrays(load_file(folder / _TABLES))
        if (len(keys), len(about.classes)) != (len(tables.word_weights), len(tables.label_weights)):
            raise ValueError(f"there are {len(keys)} words and {len(about.classes)} classes of other tables")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise RequestError(f"the HMM in {folder} cannot be read ({error}): {_AGAIN}") from error
    places = {str(key): place for place, key in enumerate(keys)}
    return HMMTagger(tuple(about.classes), places, NarrativeTagger(settings, tables))


def write_about_tags(folder: Path, narratives: int, words: int) -> None:
    """What `open_tags` reads first, beside tags.npy and starts.npy."""
    write_atomically(folder / _TAGS, msgspec.json.encode(_TagsAbout(FORMAT, narratives, words)))


def open_tags(folder: Path) -> StoredTags:
    """What `hmm_tags_stage` or `bert_tags_stage` wrote, memory-mapped. Raises RequestError."""
    about = read_about(folder / _TAGS, _TagsAbout, FORMAT, "tags", _AGAIN)
    sizes = {"W": about.words, "N+1": about.narratives + 1}
    forms = {"tags": ("int32", "W"), "starts": ("int64", "N+1")}
    return StoredTags(**map_arrays(folder, forms, sizes, _TAGS, _AGAIN))


def _fitted(settings: TaggerSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(FITTED))


def _narratives(corpus: Corpus) -> Narratives:
    arrays = ("key_ids", "word_starts", "noisy_labels", "bags", "bag_starts", "phrases")
    wide = [np.asarray(getattr(corpus, name), np.int64) for name in arrays]
    return Narratives(max(len(corpus.keys), 1), len(corpus.classes), *wide)


def _tagged(tagger: NarrativeTagger, corpus: Corpus, ids: NDArray[np.int64], first: int, end: int) -> NDArray[np.int64]:
    """The tags of narratives first to end, flat."""
    starts, bag_starts = (array[first : end + 1] for array in (corpus.word_starts, corpus.bag_starts))
    words, bags = ids[starts[0] : starts[-1]], corpus.bags[bag_starts[0] : bag_starts[-1]].astype(np.int64)
    starts, bag_starts = starts - starts[0], bag_starts - bag_starts[0]
    known = np.add.reduceat(np.append(words >= 0, False).astype(np.int64), starts[:-1]) > 0
    kept = known & (np.diff(bag_starts) > 0)
    tags = np.full(len(words), NONE, np.int64)
    of_words, of_bags = (np.repeat(kept, np.diff(each)) for each in (starts, bag_starts))
    sizes, bag_sizes = np.diff(starts)[kept], np.diff(bag_starts)[kept]
    if kept.any():
        tags[of_words] = tagger.tag(
            words[of_words],
            np.concatenate([[0], np.cumsum(sizes)]),
            bags[of_bags],
            np.concatenate([[0], np.cumsum(bag_sizes)]),
        )
    return tags
