"""A label for every word of a narrative, from noisy ones (TReCS section 2.1): tf-idf, IBM Model 1 and an HMM.

The paper fixes the parts and leaves many points of their joining open; each is an option, with both readings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.contract import Settings
from models.trecs.alignment import Alignment, align
from models.trecs.hmm import Smoothing, log_scaled, transition_counts, viterbi
from models.trecs.weighting import Idf, TermFrequency, Weight, weights

UNKNOWN = -1
"""The id of a word that the vocabulary does not have, and of a word without a noisy label."""


class TaggerSettings(Settings):
    """How words are tagged. What is called open is not said in the paper.

    Readings of the weights and of smoothing decide whether transitions to the power 10 let tags change at all. With 1
    added to the counts themselves, a step to another label is so much rarer than staying that its 10th power keeps one
    tag throughout. The defaults are a reading in which everything said holds: tf-idf of documents scaled to length 1,
    and 1 added to the scaled distribution.
    """

    word_weight: Weight = Field(
        "mean_tf_idf",
        description='alpha of a word: "mean_tf_idf", averaged over the narratives that have it; "idf", one number a '
        'word as it is; "none": 1. Section 2.1 has one tf-idf score for each word; its form is open',
    )
    label_weight: Weight = Field("mean_tf_idf", description='alpha of a label, "computed similarly" (section 2.1)')
    label_documents: Literal["words", "bags"] = Field(
        "words",
        description='what a narrative has of a label: the noisy labels of its "words", or its picture\'s "bags". Open',
    )
    idf: Idf = Field(
        "plus_one",
        description='"plus_one": ln(N/df) + 1, so that what every narrative has still weighs; "plain": ln(N/df); '
        '"smooth": ln((1 + N)/(1 + df)) + 1. Open',
    )
    term_frequency: TermFrequency = Field(
        "unit",
        description='tf of "mean_tf_idf": a term\'s "count" in a narrative, its "share" of it, or "unit": its count, '
        "where a narrative's tf-idf is then scaled to length 1. Open",
    )
    alignment_words: Literal["types", "tokens"] = Field(
        "types",
        description="whether IBM Model 1 sees a word once a narrative or as often as it is said; with tokens, function "
        "words are the likeliest of a frequent label. Open",
    )
    null_word: bool = Field(True, description="whether NULL is a label of every narrative in IBM Model 1. Open")
    iterations: int = Field(5, ge=1, description="of IBM Model 1. Open")
    emission_smoothing: Smoothing = Field(
        "before",
        description='where 1 is added: to expected counts, "before" or "after" alpha scales them, or to the scaled '
        '"share" that a word has of its label. Open',
    )
    transition_smoothing: Smoothing = Field(
        "share", description="the same of transitions; at power 10 only a share lets tags change. Open"
    )
    add: float = Field(1.0, ge=0, description="what is added in smoothing (section 2.1: 1)")
    renormalise: bool = Field(
        True,
        description='whether scaled rows sum to 1 again. Open; without it and with smoothing "before", the weights of '
        "words change no tag",
    )
    transition_power: float = Field(10.0, ge=0, description="power of each transition (section 2.1: 10)")
    within_phrases: bool = Field(
        True,
        description="whether steps from word to word within a phrase are counted as transitions. Open; they are most "
        "of all, and make tags stay",
    )
    start: Literal["uniform", "first", "labels"] = Field(
        "uniform",
        description='the first label\'s distribution: "uniform", that of the "first" words\' noisy labels, or that of '
        'all noisy "labels". Open',
    )


@dataclass(frozen=True, slots=True, eq=False)
class Narratives:
    """N narratives of W words, flat. All arrays int64.

    words, labels: sizes of the vocabularies; word_ids: (W,) in [0, words), or -1, unknown; word_starts: (N+1,),
    narrative i owns words word_starts[i] to word_starts[i + 1]; noisy_labels: (W,) in [0, labels), or -1, none;
    bags: the labels of each narrative's picture, flat, in [0, labels); bag_starts: (N+1,); phrases: (W,), the number of
    each word's phrase, or None: a phrase is a run of one noisy label.

    Raises ValueError where these do not fit together.
    """

    words: int
    labels: int
    word_ids: NDArray[np.int64]
    word_starts: NDArray[np.int64]
    noisy_labels: NDArray[np.int64]
    bags: NDArray[np.int64]
    bag_starts: NDArray[np.int64]
    phrases: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.words < 1 or self.labels < 1:
            raise ValueError(f"{self.words} words and {self.labels} labels: tagging needs at least one of each")
        _check_flat("words", self.word_ids, self.word_starts, self.words, UNKNOWN)
        _check_flat("bags", self.bags, self.bag_starts, self.labels, 0)
        if len(self.word_starts) != len(self.bag_starts):
            raise ValueError(
                f"{len(self.word_starts) - 1} narratives and {len(self.bag_starts) - 1} bags of labels: give one bag a "
                f"narrative"
            )
        of_words = {"noisy labels": self.noisy_labels, "phrases": self.phrases}
        for name, array in of_words.items():
            if array is not None and array.shape != self.word_ids.shape:
                raise ValueError(f"{len(array)} {name} for {len(self.word_ids)} words: give one a word")
        _check_range("noisy labels", self.noisy_labels, self.labels, UNKNOWN)


@dataclass(frozen=True, slots=True, eq=False)
class TaggerTables:
    """What a corpus says, before it is smoothed and scaled. Floats are float64, integers int64.

    word_weights: (V,) alpha of each word; label_weights: (K,); pair_words, pair_labels, pair_counts: (P,), the pairs of
    IBM Model 1 and how often each is expected, label K being NULL; transitions: (K,K) counts, rows from; first_labels,
    all_labels: (K,), how often a label is the first of a narrative, and at all.
    """

    word_weights: NDArray[np.float64]
    label_weights: NDArray[np.float64]
    pair_words: NDArray[np.int64]
    pair_labels: NDArray[np.int64]
    pair_counts: NDArray[np.float64]
    transitions: NDArray[np.float64]
    first_labels: NDArray[np.float64]
    all_labels: NDArray[np.float64]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in _COUNTS | _PLACES}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Raises ValueError where an array is missing, of another type or shape, or has what cannot be a count."""
        if set(arrays) != _COUNTS | _PLACES:
            wrong = sorted(set(arrays) ^ (_COUNTS | _PLACES))
            raise ValueError(f"tagger tables have or lack {', '.join(wrong)}: fit the tagger again")
        labels, pairs = len(arrays["label_weights"]), len(arrays["pair_words"])
        shapes = {"transitions": (labels, labels), "first_labels": (labels,), "all_labels": (labels,)}
        shapes |= {"pair_labels": (pairs,), "pair_counts": (pairs,)}
        for name, array in arrays.items():
            kind = np.float64 if name in _COUNTS else np.int64
            wanted = shapes.get(name, (len(array),))
            if array.dtype != kind or array.shape != wanted:
                raise ValueError(
                    f"tagger table {name} is {array.dtype} {array.shape}, not {np.dtype(kind)} {wanted}: "
                    f"fit the tagger again"
                )
            if name in _COUNTS and not (np.isfinite(array) & (array >= 0)).all():
                raise ValueError(f"tagger table {name} has negative or infinite numbers: fit the tagger again")
        _check_range("pair_words", arrays["pair_words"], len(arrays["word_weights"]), 0)
        _check_range("pair_labels", arrays["pair_labels"], labels + 1, 0)
        return cls(**arrays)

    @property
    def alignment(self) -> Alignment:
        """IBM Model 1's pairs."""
        return Alignment(self.pair_words, self.pair_labels, self.pair_counts, len(self.label_weights), ())


_PLACES = frozenset({"pair_words", "pair_labels"})
_COUNTS = frozenset(TaggerTables.__slots__) - _PLACES


def fit_tables(corpus: Narratives, settings: TaggerSettings) -> TaggerTables:
    """Count, weigh and align a whole corpus. Raises ValueError where it has no narrative."""
    starts, bag_starts = corpus.word_starts, corpus.bag_starts
    if len(starts) < 2:
        raise ValueError("no narrative to learn tags from: give at least one")
    alignment = align(
        corpus.word_ids,
        starts,
        corpus.bags,
        bag_starts,
        corpus.words,
        corpus.labels,
        iterations=settings.iterations,
        null_word=settings.null_word,
        tokens=settings.alignment_words == "tokens",
    )
    forms = (settings.idf, settings.term_frequency)
    noisy = corpus.noisy_labels
    of_labels = (corpus.bags, bag_starts) if settings.label_documents == "bags" else (noisy, starts)
    first = noisy[starts[:-1][np.diff(starts) > 0]]
    return TaggerTables(
        weights(corpus.word_ids, starts, corpus.words, settings.word_weight, *forms),
        weights(*of_labels, corpus.labels, settings.label_weight, *forms),
        alignment.words,
        alignment.labels,
        alignment.counts,
        transition_counts(noisy, starts, corpus.labels, corpus.phrases, within_phrases=settings.within_phrases),
        np.bincount(first[first >= 0], minlength=corpus.labels).astype(np.float64),
        np.bincount(noisy[noisy >= 0], minlength=corpus.labels).astype(np.float64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class NarrativeTagger:
    """The HMM of fitted tables. Of the settings, those of weights, alignment and counting are in the tables already.

    log_start: (K,); log_emission: (V+1,K), the last row an unknown word's; log_transition: (K,K), rows from, not yet to
    the power.
    """

    settings: TaggerSettings
    tables: TaggerTables
    log_start: NDArray[np.float64] = field(init=False)
    log_emission: NDArray[np.float64] = field(init=False)
    log_transition: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        tables, settings = self.tables, self.settings
        words, labels = len(tables.word_weights), len(tables.label_weights)
        real = tables.pair_labels < labels
        expected = np.zeros((labels, words + 1))
        expected[tables.pair_labels[real], tables.pair_words[real]] = tables.pair_counts[real]
        # An unknown word is as rare as can be.
        alpha = np.append(tables.word_weights, tables.word_weights.max())
        emission = self._scaled(expected, alpha, settings.emission_smoothing)
        first = {"uniform": np.ones(labels), "first": tables.first_labels, "labels": tables.all_labels}
        start = log_scaled(first[settings.start][None], np.ones(labels), add=settings.add)[0]
        transition = self._scaled(tables.transitions, tables.label_weights, settings.transition_smoothing)
        object.__setattr__(self, "log_start", start)
        object.__setattr__(self, "log_emission", np.ascontiguousarray(emission.T))
        object.__setattr__(self, "log_transition", transition)

    def _scaled(
        self, counts: NDArray[np.float64], alpha: NDArray[np.float64], smoothing: Smoothing
    ) -> NDArray[np.float64]:
        settings = self.settings
        return log_scaled(counts, alpha, add=settings.add, smoothing=smoothing, renormalise=settings.renormalise)

    @classmethod
    def fit(cls, corpus: Narratives, settings: TaggerSettings | None = None) -> Self:
        settings = settings or TaggerSettings()
        return cls(settings, fit_tables(corpus, settings))

    def tag(
        self,
        word_ids: NDArray[np.int64],
        word_starts: NDArray[np.int64],
        bags: NDArray[np.int64] | None = None,
        bag_starts: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """(W,), the label of each word of N narratives, laid out as in `Narratives`; without bags, of all labels.

        Raises ValueError where the arrays do not fit together, and where a narrative's bag is empty.
        """
        words, labels = len(self.tables.word_weights), len(self.log_start)
        _check_flat("words", word_ids, word_starts, words, UNKNOWN)
        if (bags is None) != (bag_starts is None):
            raise ValueError("labels and where they start go together: give both, or neither for all labels")
        if bags is not None and bag_starts is not None:
            _check_flat("bags", bags, bag_starts, labels, 0)
            if len(bag_starts) != len(word_starts):
                raise ValueError(
                    f"{len(word_starts) - 1} narratives and {len(bag_starts) - 1} bags of labels: give one bag a "
                    f"narrative"
                )
        path, _ = viterbi(
            self.log_start,
            self.log_emission,
            self.log_transition,
            np.where(word_ids == UNKNOWN, words, word_ids),
            word_starts,
            bags,
            bag_starts,
            power=self.settings.transition_power,
        )
        return path


def _check_flat(name: str, ids: NDArray[np.int64], starts: NDArray[np.int64], size: int, least: int) -> None:
    good = starts.ndim == ids.ndim == 1 and len(starts) and starts[0] == 0 and starts[-1] == len(ids)
    if not good or (np.diff(starts) < 0).any():
        raise ValueError(f"where each narrative's {name} start must rise from 0 to {len(ids)}, how many there are")
    _check_range(name, ids, size, least)


def _check_range(name: str, ids: NDArray[np.int64], size: int, least: int) -> None:
    wrong = np.flatnonzero((ids < least) | (ids >= size))
    if len(wrong):
        raise ValueError(f"{name}: number {ids[wrong[0]]} at place {wrong[0]} is not in {least} to {size - 1}")
