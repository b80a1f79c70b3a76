"""The hidden Markov model over a narrative's words: scaled distributions, and Viterbi in log space over the labels that
each picture has (TReCS section 2.1)."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Smoothing = Literal["before", "after", "share"]
BUDGET = 1 << 21


def log_scaled(
    counts: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    add: float = 1.0,
    smoothing: Smoothing = "before",
    renormalise: bool = True,
) -> NDArray[np.float64]:
    """log of distributions that are proportional to weight times count, smoothed by adding `add` to each count.

    counts: (R,M), a distribution a row; weights: (M,). With c a count, C its row's sum and a the weight, "before" is
    a (c + add) / (C + M add); "after" is (a c + add) / (C + M add); "share" is (a c / C + add) / (1 + M add), which
    leaves rows almost flat. renormalise: rows then sum to 1. What is impossible is -inf; so is a row of nothing.

    "before" without renormalising multiplies all labels of a word alike: the weights of words then change no tag.
    """
    if smoothing == "share":
        totals = counts.sum(1, keepdims=True)
        counts = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    scaled = (counts + add) * weights if smoothing == "before" else counts * weights + add
    rows = scaled.sum(1) if renormalise else counts.sum(1) + add * counts.shape[1]
    np.divide(scaled, rows[:, None], out=scaled, where=rows[:, None] > 0)
    with np.errstate(divide="ignore"):
        return np.log(scaled, out=scaled)


def transition_counts(
    labels: NDArray[np.int64],
    starts: NDArray[np.int64],
    states: int,
    phrases: NDArray[np.int64] | None = None,
    *,
    within_phrases: bool = True,
) -> NDArray[np.float64]:
    """(K,K), rows from: how often a word of one label is followed, in its narrative, by a word of another.

    labels: (W,), -1 is none; phrases: (W,), the number of each word's phrase; None: a phrase is a run of one label.
    within_phrases: neighbours of one phrase count too; else only the steps from phrase to phrase.
    """
    if len(labels) < 2:
        return np.zeros((states, states))
    first, second = labels[:-1], labels[1:]
    kept = (first >= 0) & (second >= 0)
    borders = starts[1:-1] - 1
    kept[borders[(borders >= 0) & (borders < len(kept))]] = False
    if not within_phrases:
        of = labels if phrases is None else phrases
        kept &= of[:-1] != of[1:]
    pairs = np.bincount(first[kept] * states + second[kept], minlength=states * states)
    return pairs.reshape(states, states).astype(np.float64)


def viterbi(
    log_start: NDArray[np.float64],
    log_emission: NDArray[np.float64],
    log_transition: NDArray[np.float64],
    words: NDArray[np.int64],
    starts: NDArray[np.int64],
    bags: NDArray[np.int64] | None = None,
    bag_starts: NDArray[np.int64] | None = None,
    *,
    power: float = 1.0,
    budget: int = BUDGET,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The most probable labels (W,) of N narratives, and their log-probabilities (N,), 0 for a narrative of no word.

    log_start: (K,); log_emission: (V,K), a row a word; log_transition: (K,K), rows from; words: (W,) in [0, V), flat;
    starts: (N+1,). bags, bag_starts: flat labels that each narrative may have; None: all K. The score of a path is
    log start + sum of log emissions + power times the sum of log transitions.

    The best last label is the lowest of equals, and so is each label before it. A narrative to which nothing is
    possible has score -inf and its lowest label throughout. budget: numbers at once.

    Raises ValueError where a narrative with words has no label to choose from.
    """
    lengths = np.diff(starts)
    allowed, sizes = _allowed(len(lengths), len(log_start), bags, bag_starts)
    without = np.flatnonzero((sizes == 0) & (lengths > 0))
    if len(without):
        raise ValueError(
            f"narrative {without[0]} of {len(lengths)} has no label to choose from: give it the labels of its picture, "
            f"or tag it without a constraint"
        )
    steps = power * log_transition if power else np.zeros_like(log_transition)
    path, scores = np.zeros(int(starts[-1]), np.int64), np.zeros(len(lengths))
    order = np.argsort(-lengths, kind="stable")
    order = order[: int((lengths > 0).sum())]
    place = 0
    while place < len(order):
        most, size = int(lengths[order[place]]), int(sizes[order[place]])
        ahead = order[place : place + max(budget // (size * (size + most)), 1)]
        widest = np.maximum.accumulate(sizes[ahead])
        rows = int(np.searchsorted(np.arange(1, len(ahead) + 1) * widest * (widest + most), budget, "right"))
        own = ahead[: max(rows, 1)]
        place += len(own)
        states = _padded(allowed, sizes, own)
        _decode(log_start, log_emission, steps, words, starts, own, states, path, scores)
    return path, scores


def path_scores(
    log_start: NDArray[np.float64],
    log_emission: NDArray[np.float64],
    log_transition: NDArray[np.float64],
    words: NDArray[np.int64],
    paths: NDArray[np.int64],
    *,
    power: float = 1.0,
) -> NDArray[np.float64]:
    """(P,), the log-probability of each of P paths (P,T) over the words (T,) of one narrative, as `viterbi` has it."""
    scores = log_start[paths[:, 0]] + log_emission[words, paths].sum(1)
    if power:
        scores = scores + power * log_transition[paths[:, :-1], paths[:, 1:]].sum(1)
    return np.asarray(scores, np.float64)


def _allowed(
    narratives: int, states: int, bags: NDArray[np.int64] | None, bag_starts: NDArray[np.int64] | None
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]] | None, NDArray[np.int64]]:
    """Each narrative's labels in order, once each, flat with where they start; and how many. None: all labels."""
    if bags is None or bag_starts is None:
        return None, np.full(narratives, states)
    owners = np.repeat(np.arange(narratives), np.diff(bag_starts))
    keys = np.unique(owners * states + bags)
    sizes = np.bincount(keys // states, minlength=narratives)
    return (keys % states, np.cumsum(sizes) - sizes), sizes


def _padded(
    allowed: tuple[NDArray[np.int64], NDArray[np.int64]] | None, sizes: NDArray[np.int64], own: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(B,A), each narrative's labels; all labels: (1,K), of every narrative.

    Padding repeats the last label: it ties with it and comes later, so that it is never chosen.
    """
    columns = np.arange(int(sizes[own].max()))
    if allowed is None:
        return columns[None]
    labels, firsts = allowed
    return labels[firsts[own, None] + np.minimum(columns, sizes[own, None] - 1)]


def _decode(
    log_start: NDArray[np.float64],
    log_emission: NDArray[np.float64],
    steps: NDArray[np.float64],
    words: NDArray[np.int64],
    starts: NDArray[np.int64],
    own: NDArray[np.int64],
    states: NDArray[np.int64],
    path: NDArray[np.int64],
    scores: NDArray[np.float64],
) -> None:
    """Fills in path and scores of the narratives `own`, longest first."""
    lengths, firsts = np.diff(starts)[own], starts[own]
    shared = len(states) == 1
    between = steps[states[:, :, None], states[:, None, :]]
    best = log_start[states] + log_emission[words[firsts][:, None], states]
    active = [int(np.searchsorted(-lengths, -t)) for t in range(int(lengths[0]))]
    back = []
    for t in range(1, int(lengths[0])):
        rows = active[t]
        options = best[:rows, :, None] + (between if shared else between[:rows])
        from_ = options.argmax(1)
        back.append(from_.astype(np.int16))
        emitted = log_emission[words[firsts[:rows] + t][:, None], states if shared else states[:rows]]
        best[:rows] = np.take_along_axis(options, from_[:, None], 1)[:, 0] + emitted
    state = best.argmax(1)
    everyone = np.arange(len(own))
    scores[own] = best[everyone, state]
    lost = scores[own] == -np.inf
    for t in range(int(lengths[0]) - 1, -1, -1):
        rows = active[t]
        path[firsts[:rows] + t] = states[0, state[:rows]] if shared else states[everyone[:rows], state[:rows]]
        if t:
            state[:rows] = np.where(lost[:rows], 0, back[t - 1][everyone[:rows], state[:rows]])
