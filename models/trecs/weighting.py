"""How much a word, or a label, says: tf-idf over narratives (TReCS section 2.1).

The paper has one weight alpha_w a word, while tf-idf is a number a word and document: which of its forms is meant is
an option. Terms and documents are flat: ids (W,) of all documents in turn, and starts (N+1,), document i owns
ids[starts[i]] to ids[starts[i + 1]]. An id of -1 is a term that counts nowhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Weight = Literal["idf", "mean_tf_idf", "none"]
Idf = Literal["plus_one", "plain", "smooth"]
TermFrequency = Literal["count", "share", "unit"]
PLACES = 1 << 19


@dataclass(frozen=True, slots=True, eq=False)
class Occurrences:
    """Each term once a document that has it, sorted by term and then by document: terms, documents and counts, (U,)."""

    terms: NDArray[np.int64]
    documents: NDArray[np.int64]
    counts: NDArray[np.int64]


def documents_of(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(W,), which document owns each place."""
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts))


def occurrences(ids: NDArray[np.int64], starts: NDArray[np.int64]) -> Occurrences:
    """The distinct (term, document)."""
    documents = max(len(starts) - 1, 1)
    known = ids >= 0
    keys, counts = np.unique(ids[known] * documents + documents_of(starts)[known], return_counts=True)
    terms, owners = np.divmod(keys, documents)
    return Occurrences(terms, owners, counts)


def portions(sizes: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about `most` together; sizes: (N,)."""
    if not len(sizes):
        return
    borders = (np.flatnonzero(np.diff(np.cumsum(sizes) // most)) + 1).tolist()
    yield from pairwise([0, *borders, len(sizes)])


def weights(
    ids: NDArray[np.int64],
    starts: NDArray[np.int64],
    terms: int,
    kind: Weight,
    idf: Idf = "plus_one",
    term_frequency: TermFrequency = "count",
    *,
    most: int = PLACES,
) -> NDArray[np.float64]:
    """(terms,) float64: alpha of each term; all 1 for "none".

    With N documents and df of them with the term, idf is ln(N/df) + 1 ("plus_one"), ln(N/df) ("plain") or
    ln((1 + N)/(1 + df)) + 1 ("smooth"). "idf" is that number; "mean_tf_idf" times the mean, over the documents that
    have the term, of its count there ("count"), of its share of the document's terms ("share"), or of its count where
    each document's tf-idf is scaled to length 1 ("unit", so that no weight is above 1). A term of no document weighs as
    much as the heaviest. most: places at once. Manning, Raghavan and Schuetze, "Introduction to Information Retrieval",
    sections 6.2 and 6.3.
    """
    documents, having = len(starts) - 1, np.zeros(terms)
    if kind == "none":
        return np.ones(terms)
    for found, _ in _by_portion(ids, starts, most):
        having += np.bincount(found.terms, minlength=terms)
    if not having.any():
        return np.ones(terms)
    seen = np.maximum(having, 1)
    alpha = np.log((1 + documents) / (1 + seen)) + 1 if idf == "smooth" else np.log(documents / seen)
    if idf == "plus_one":
        alpha += 1
    if kind == "mean_tf_idf":
        sums = np.zeros(terms)
        for found, lengths in _by_portion(ids, starts, most):
            sums += np.bincount(found.terms, _frequencies(found, lengths, alpha, term_frequency), terms)
        alpha = alpha * sums / seen
    alpha[having == 0] = alpha[having > 0].max()
    return np.asarray(alpha, np.float64)


def _by_portion(
    ids: NDArray[np.int64], starts: NDArray[np.int64], most: int
) -> Iterator[tuple[Occurrences, NDArray[np.int64]]]:
    """Occurrences of some documents at a time, counted from 0, and the lengths of those documents."""
    lengths = np.diff(starts)
    for low, high in portions(lengths, most):
        yield occurrences(ids[starts[low] : starts[high]], starts[low : high + 1] - starts[low]), lengths[low:high]


def _frequencies(
    found: Occurrences, lengths: NDArray[np.int64], idf: NDArray[np.float64], form: TermFrequency
) -> NDArray[np.float64]:
    counts = found.counts.astype(np.float64)
    if form == "count":
        return counts
    if form == "share":
        return counts / lengths[found.documents]
    squares = np.bincount(found.documents, (counts * idf[found.terms]) ** 2, len(lengths))
    norms = np.sqrt(squares)[found.documents]
    return np.divide(counts, norms, out=counts, where=norms > 0)
