"""IBM Model 1 between narratives and the labels of their pictures: P(word | label) (TReCS section 2.1; Brown and
others, "The Mathematics of Statistical Machine Translation", 1993, section 4.4).

Labels are the source and words the target. A cell is a word of a narrative beside one of its labels. Cells are made a
few narratives at a time and forgotten: memory grows with the vocabularies, not with the corpus.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.trecs.weighting import occurrences, portions

CELLS = 1 << 19


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """What EM ends with.

    words, labels: (P,) int64, the pairs that some narrative has together, sorted by word and then by label; label
    `null` is the NULL label. counts: (P,) float64, how often the last E step expects the pair. log_likelihood: of the
    corpus before each iteration, without the constant of the lengths; it never falls.
    """

    words: NDArray[np.int64]
    labels: NDArray[np.int64]
    counts: NDArray[np.float64]
    null: int
    log_likelihood: tuple[float, ...]

    def totals(self) -> NDArray[np.float64]:
        """(labels + 1,), how often each label is expected; NULL last."""
        return np.asarray(np.bincount(self.labels, self.counts, self.null + 1), np.float64)

    def probabilities(self) -> NDArray[np.float64]:
        """(P,), P(word | label) of each pair; 0 of every other."""
        return np.asarray(self.counts / self.totals()[self.labels], np.float64)

    def best_words(self, label: int, count: int) -> NDArray[np.int64]:
        """The words that a label most probably says, best first; ties by lowest word."""
        own = np.flatnonzero(self.labels == label)
        return self.words[own[np.argsort(-self.counts[own], kind="stable")[:count]]]


def align(
    word_ids: NDArray[np.int64],
    word_starts: NDArray[np.int64],
    bags: NDArray[np.int64],
    bag_starts: NDArray[np.int64],
    words: int,
    labels: int,
    *,
    iterations: int = 5,
    null_word: bool = True,
    tokens: bool = False,
    cells: int = CELLS,
) -> Alignment:
    """EM from a uniform start.

    word_ids: flat words of N narratives, -1 is none; bags: flat labels of each; word_starts, bag_starts: (N+1,). words,
    labels: how many there are. null_word: NULL belongs to every bag; tokens: a word counts as often as it is said, not
    once a narrative. cells: how many at once. A narrative without a label says nothing, but to NULL.
    """
    if null_word:
        bags = np.insert(bags, bag_starts[1:], labels)
        bag_starts = bag_starts + np.arange(len(bag_starts))
    corpus = _Corpus(word_ids, word_starts, bags, bag_starts, labels + 1, tokens, cells)
    probabilities, likelihoods = np.full(words * (labels + 1), 1 / words), []
    for turn in range(iterations):
        counts, likelihood = np.zeros(len(probabilities)), 0.0
        for part in corpus.portions():
            likelihood += part.expect(probabilities, counts)
        likelihoods.append(likelihood)
        if turn < iterations - 1:
            by_word = counts.reshape(words, -1)
            totals = by_word.sum(0)
            np.divide(by_word, totals, out=probabilities.reshape(words, -1), where=totals > 0)
    pairs = np.flatnonzero(counts)
    pair_words, pair_labels = np.divmod(pairs, labels + 1)
    return Alignment(pair_words, pair_labels, counts[pairs], labels, tuple(likelihoods))


@dataclass(frozen=True, slots=True, eq=False)
class _Corpus:
    word_ids: NDArray[np.int64]
    word_starts: NDArray[np.int64]
    bags: NDArray[np.int64]
    bag_starts: NDArray[np.int64]
    width: int
    tokens: bool
    cells: int

    def portions(self) -> Iterator["_Portion"]:
        sizes = np.diff(self.bag_starts)
        for low, high in portions(np.diff(self.word_starts) * sizes, self.cells):
            own = slice(self.word_starts[low], self.word_starts[high])
            found = occurrences(self.word_ids[own], self.word_starts[low : high + 1] - self.word_starts[low])
            kept = sizes[found.documents + low] > 0
            documents = found.documents[kept] + low
            counts = found.counts[kept] if self.tokens else np.ones(len(documents), np.int64)
            if len(documents):
                yield self._portion(found.terms[kept], documents, counts, sizes[documents])

    def _portion(
        self,
        words: NDArray[np.int64],
        documents: NDArray[np.int64],
        counts: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> "_Portion":
        starts = np.cumsum(sizes) - sizes
        places = np.repeat(self.bag_starts[documents] - starts, sizes)
        places += np.arange(len(places))
        keys = np.repeat(words * self.width, sizes)
        keys += self.bags[places]
        return _Portion(keys, starts, sizes, counts)


@dataclass(frozen=True, slots=True, eq=False)
class _Portion:
    """The key of each cell; where each word's cells start, how many they are, how often it counts."""

    keys: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]

    def expect(self, probabilities: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
        """The E step: adds to `counts`, returns the log-likelihood."""
        shares = probabilities[self.keys]
        totals = np.add.reduceat(shares, self.starts)
        shares *= np.repeat(self.counts / totals, self.sizes)
        counts += np.bincount(self.keys, shares, len(counts))
        return float(self.counts @ np.log(totals / self.sizes))
