"""Tagging of a whole corpus (TReCS, section 2.1): IBM Model 1 and the HMM, over arrays and by nltk.

Narratives are synthetic: 42 words on average (section 1) of 15,000, whose frequencies fall as 1/rank, half of them
drawn from words of their own of the labels of their picture, 4 of 182 on average. Beside nltk, over one sample and
interleaved: its IBMModel1 (5 iterations, word types), and its HMM's best_path with the same tables, all labels allowed,
as it knows no constraint. Each size of the corpus is fitted and tagged alone; peak_mb is the peak of what numpy
and Python take beyond the corpus.

Wanted: minutes for 100,000 narratives; memory that grows less than the corpus does.
"""

import argparse
import time
import tracemalloc
from typing import Any

import numpy as np
from nltk.probability import DictionaryConditionalProbDist, DictionaryProbDist
from nltk.tag.hmm import HiddenMarkovModelTagger
from nltk.translate import AlignedSent, IBMModel1
from numpy.typing import NDArray
from timing import interleaved, report

from models.trecs import Narratives, NarrativeTagger
from models.trecs.alignment import align
from models.trecs.hmm import viterbi

WORDS, LABELS, LENGTH, OWN = 15_000, 182, 42, 60


def starts_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)])


def synthetic(narratives: int) -> Narratives:
    draw = np.random.default_rng(0)
    lengths = draw.poisson(LENGTH, narratives)
    bag_sizes = 1 + draw.poisson(3, narratives)
    starts, bag_starts = starts_of(lengths), starts_of(bag_sizes)
    frequencies = 1 / np.arange(1, LABELS + 1)
    bags = draw.choice(LABELS, bag_starts[-1], p=frequencies / frequencies.sum())
    owner = np.repeat(np.arange(narratives), lengths)
    # A label lasts for phrases of 4 words.
    places = (draw.random(len(owner)) * bag_sizes[owner]).astype(np.int64)
    phrase = np.maximum.accumulate(np.where(np.arange(len(owner)) % 4 == 0, np.arange(len(owner)), 0))
    phrase = np.maximum(phrase, starts[owner])
    labels = bags[bag_starts[owner] + places[phrase]]
    common = np.minimum(draw.zipf(1.3, len(owner)) - 1, WORDS - 1)
    own = (labels * OWN + draw.integers(0, OWN, len(owner)) + 200) % WORDS
    words = np.where(draw.random(len(owner)) < 0.5, own, common)
    return Narratives(WORDS, LABELS, words, starts, labels, bags, bag_starts)


def whole(narratives: int) -> dict[str, float]:
    """Seconds of fitting and of tagging, narratives a second of both, and the peak of memory beyond the corpus."""
    corpus = synthetic(narratives)
    begin = time.perf_counter()
    tagger = NarrativeTagger.fit(corpus)
    fitted = time.perf_counter()
    tagger.tag(corpus.word_ids, corpus.word_starts, corpus.bags, corpus.bag_starts)
    tagged = time.perf_counter()
    tracemalloc.start()
    fresh = NarrativeTagger.fit(corpus)
    fit_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    fresh.tag(corpus.word_ids, corpus.word_starts, corpus.bags, corpus.bag_starts)
    peak = max(fit_peak, tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    arrays = (corpus.word_ids, corpus.word_starts, corpus.noisy_labels, corpus.bags, corpus.bag_starts)
    return {
        "fit_s": fitted - begin,
        "tag_s": tagged - fitted,
        "narratives_s": narratives / (tagged - begin),
        "peak_mb": peak / 1e6,
        "corpus_mb": sum(array.nbytes for array in arrays) / 1e6,
    }


def beside_nltk(sample: int, sentences: int, rounds: int) -> dict[str, float]:
    corpus = synthetic(sample)
    rows = [row.tolist() for row in np.split(corpus.word_ids, corpus.word_starts[1:-1])]
    bags = [bag.tolist() for bag in np.split(corpus.bags, corpus.bag_starts[1:-1])]
    aligned = [AlignedSent(sorted(set(row)), bag) for row, bag in zip(rows, bags, strict=True)]

    def ours() -> Any:
        arrays = corpus.word_ids, corpus.word_starts, corpus.bags, corpus.bag_starts
        return align(*arrays, WORDS, LABELS, iterations=5)

    own, theirs = interleaved(ours, lambda: IBMModel1(aligned, 5), rounds)
    tagger = NarrativeTagger.fit(corpus)
    said = rows[:sentences]
    flat = np.array([word for row in said for word in row]), starts_of(np.array([len(row) for row in said]))
    tables = tagger.log_start, tagger.log_emission, tagger.log_transition
    hmm = nltk_hmm(sorted({word for row in said for word in row}), *tables)
    agree = [hmm.best_path(row) for row in said]
    path, _ = viterbi(*tables, *flat)
    own_path, their_path = interleaved(
        lambda: viterbi(*tables, *flat), lambda: [hmm.best_path(row) for row in said], rounds
    )
    return {
        "sample": sample,
        "ibm1_ratio": theirs / own,
        "ibm1_nltk_s": theirs,
        "viterbi_sample": sentences,
        "viterbi_ratio": their_path / own_path,
        "viterbi_nltk_s": their_path,
        "viterbi_agreement": float((path == np.concatenate(agree)).mean()),
    }


def nltk_hmm(
    words: list[int],
    log_start: NDArray[np.float64],
    log_emission: NDArray[np.float64],
    log_transition: NDArray[np.float64],
) -> HiddenMarkovModelTagger:
    """Of the words asked about; nltk's logarithms are of base 2."""

    def distribution(logs: NDArray[np.float64], names: list[int]) -> DictionaryProbDist:
        return DictionaryProbDist(dict(zip(names, (logs / np.log(2)).tolist(), strict=True)), log=True)

    labels = list(range(LABELS))
    steps = {label: distribution(log_transition[label], labels) for label in labels}
    outputs = {label: distribution(log_emission[words, label], words) for label in labels}
    conditional = DictionaryConditionalProbDist
    return HiddenMarkovModelTagger(
        words, labels, conditional(steps), conditional(outputs), distribution(log_start, labels)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[25_000, 50_000, 100_000], help="narratives")
    parser.add_argument("--sample", type=int, default=4000, help="narratives that nltk aligns")
    parser.add_argument("--sentences", type=int, default=50, help="narratives that nltk decodes")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    asked = parser.parse_args()
    each = [whole(size) for size in asked.sizes]
    report(
        benchmark="tagging",
        narratives=asked.sizes,
        **{name: [round(one[name], 1) for one in each] for name in each[0]},
        **beside_nltk(asked.sample, asked.sentences, asked.rounds),
    )


if __name__ == "__main__":
    main()
