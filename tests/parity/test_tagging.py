"""TReCS's tagging against programs of the same mathematics: IBM Model 1 and Viterbi."""

import itertools
import json

import numpy as np
import torch
from numpy.typing import NDArray

from models.trecs.alignment import align
from models.trecs.hmm import path_scores, viterbi

from .conftest import Golden, Load


def flat(rows: list[list[str]], names: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    numbers = {name: place for place, name in enumerate(names)}
    ids = np.array([numbers[name] for row in rows for name in row])
    return ids, np.cumsum([0, *map(len, rows)])


def test_ibm_model1(golden: Load) -> None:
    """Every pair that occurs, and no other."""
    numbers = golden("ibm_model1")
    corpus = json.loads(str(numbers.arrays["in.corpus_json"]))
    words = json.loads(str(numbers.arrays["in.target_vocab_json"]))
    null, *labels = json.loads(str(numbers.arrays["in.source_vocab_json"]))
    constants = numbers.meta["constants"]
    assert null is None and constants["null_word"]
    found = align(
        *flat(corpus["words"], words),
        *flat(corpus["labels"], labels),
        len(words),
        len(labels),
        iterations=constants["iterations"],
    )
    ours = dict(zip(zip(found.words.tolist(), found.labels.tolist(), strict=True), found.probabilities(), strict=True))
    pairs = [(word, label - 1 if label else len(labels)) for word, label in numbers.arrays["in.pairs"].tolist()]
    assert set(pairs) == set(ours)
    numbers.check("out.prob", torch.tensor([ours[pair] for pair in pairs]))


def tables(numbers: Golden) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """log start (K,), log emission (V,K) and log transition (K,K)."""
    names = ("start", "emission", "transition")
    start, emission, transition = (np.log(numbers.arrays[f"in.{name}"]) for name in names)
    return start, emission.T, transition


def test_hmm_viterbi(golden: Load) -> None:
    numbers = golden("hmm_viterbi")
    observations = numbers.arrays["in.observations"]
    path, scores = viterbi(*tables(numbers), observations, np.array([0, len(observations)]))
    assert path.tolist() == numbers.arrays["out.path"].tolist()
    numbers.check("out.log_prob", torch.from_numpy(scores))


def test_hmm_viterbi_constrained(golden: Load) -> None:
    """Transitions to a power, some labels only; the second best of all paths shows that the best is no near tie."""
    numbers = golden("hmm_viterbi")
    allowed, constants = numbers.arrays["in.allowed_states"], numbers.meta["constants"]
    power, length = constants["transition_power"], constants["constrained_length"]
    words = numbers.arrays["in.observations"][:length]
    ends = np.array([0, length]), allowed, np.array([0, len(allowed)])
    path, scores = viterbi(*tables(numbers), words, *ends, power=power)
    assert path.tolist() == numbers.arrays["out.constrained.path"].tolist()
    numbers.check("out.constrained.score", torch.from_numpy(scores))
    paths = np.array(list(itertools.product(allowed.tolist(), repeat=length)))
    ordered = np.sort(path_scores(*tables(numbers), words, paths, power=power))
    numbers.check("out.constrained.second_best_score", torch.tensor(ordered[-2]))
