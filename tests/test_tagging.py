"""TReCS's tags: weights, IBM Model 1 and the HMM against plain loops, and on real narratives."""

import gzip
import itertools
import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.trecs import Narratives, NarrativeTagger, TaggerSettings, TaggerTables
from models.trecs.alignment import align
from models.trecs.hmm import log_scaled, path_scores, transition_counts, viterbi
from models.trecs.tagger import fit_tables
from models.trecs.weighting import weights

WORDS, LABELS = 6, 4
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
rows_of_words = st.lists(st.lists(st.integers(0, WORDS - 1), max_size=6), min_size=1, max_size=6)
QUICK = settings(deadline=None, max_examples=60)


def flat(rows: list[list[int]]) -> tuple[Ints, Ints]:
    return np.array([each for row in rows for each in row], np.int64), np.cumsum([0, *map(len, rows)])


def bags_for(rows: list[list[int]], seed: int, least: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.permutation(LABELS)[: draw.integers(least, LABELS + 1)].tolist() for _ in rows]


def corpus(rows: list[list[int]], seed: int = 0, **changes: Any) -> Narratives:
    ids, starts = flat(rows)
    noisy = np.random.default_rng(seed).integers(-1, LABELS, len(ids))
    bags, bag_starts = flat(bags_for(rows, seed, least=1))
    arrays = {"word_ids": ids, "word_starts": starts, "noisy_labels": noisy, "bags": bags, "bag_starts": bag_starts}
    return Narratives(**({"words": WORDS, "labels": LABELS} | arrays | changes))


@QUICK
@given(
    rows=rows_of_words,
    kind=st.sampled_from(["idf", "mean_tf_idf"]),
    idf=st.sampled_from(["plus_one", "plain", "smooth"]),
    term_frequency=st.sampled_from(["count", "share", "unit"]),
)
def test_weights_are_the_formula(rows: list[list[int]], kind: Any, idf: Any, term_frequency: Any) -> None:
    ids, starts = flat(rows)
    ours = weights(ids, starts, WORDS, kind, idf, term_frequency, most=4)
    having = Counter(word for row in rows for word in set(row))
    n = len(rows)
    forms = {
        "plus_one": lambda df: math.log(n / df) + 1,
        "plain": lambda df: math.log(n / df),
        "smooth": lambda df: math.log((1 + n) / (1 + df)) + 1,
    }
    alpha = {word: forms[idf](df) for word, df in having.items()}
    expected = dict(alpha)
    if kind == "mean_tf_idf":
        found = defaultdict(list)
        for row in rows:
            counts = Counter(row)
            length = math.sqrt(sum((counts[word] * alpha[word]) ** 2 for word in counts)) or 1.0
            divisor = {"count": 1, "share": len(row), "unit": length}[term_frequency]
            for word, count in counts.items():
                found[word].append(count / divisor * alpha[word])
        expected = {word: sum(each) / len(each) for word, each in found.items()}
    heaviest = max(expected.values(), default=1.0)
    np.testing.assert_allclose(ours, [expected.get(word, heaviest) for word in range(WORDS)], rtol=1e-12, atol=1e-12)


def plain_ibm1(
    rows: list[list[int]], bags: list[list[int]], iterations: int, null: bool
) -> dict[tuple[int, int], float]:
    """P(word | label) of pairs that occur, by dictionaries; label LABELS is NULL."""
    bags = [[*bag, LABELS] if null else bag for bag in bags]
    table = {(w, c): 1 / WORDS for row, bag in zip(rows, bags, strict=True) for w in row for c in bag}
    for _ in range(iterations):
        counts: dict[tuple[int, int], float] = defaultdict(float)
        totals: dict[int, float] = defaultdict(float)
        for row, bag in zip(rows, bags, strict=True):
            for word in row:
                whole = sum(table[word, label] for label in bag)
                for label in bag:
                    counts[word, label] += table[word, label] / whole
                    totals[label] += table[word, label] / whole
        table = {pair: count / totals[pair[1]] for pair, count in counts.items()}
    return table


@QUICK
@given(
    rows=rows_of_words,
    seed=st.integers(0, 50),
    iterations=st.integers(1, 6),
    null=st.booleans(),
    tokens=st.booleans(),
    cells=st.sampled_from([1, 7, 1000]),
)
def test_ibm1_is_that_of_dictionaries(
    rows: list[list[int]], seed: int, iterations: int, null: bool, tokens: bool, cells: int
) -> None:
    """In portions of any size; its likelihood never falls; each label's words sum to 1."""
    bags = bags_for(rows, seed)
    found = align(
        *flat(rows),
        *flat(bags),
        WORDS,
        LABELS,
        iterations=iterations,
        null_word=null,
        tokens=tokens,
        cells=cells,
    )
    said = rows if tokens else [sorted(set(row)) for row in rows]
    slow = plain_ibm1(said, bags, iterations, null)
    ours = dict(zip(zip(found.words.tolist(), found.labels.tolist(), strict=True), found.probabilities(), strict=True))
    assert ours.keys() == slow.keys()
    for pair, probability in slow.items():
        assert ours[pair] == pytest.approx(probability, abs=1e-9)
    assert (np.diff(found.log_likelihood) >= -1e-9).all() and len(found.log_likelihood) == iterations
    sums = np.bincount(found.labels, found.probabilities(), LABELS + 1)
    np.testing.assert_allclose(sums[found.totals() > 0], 1)


def test_ibm1_is_that_of_nltk() -> None:
    """Which sums over a repeated word as often as it is said, so that a word counts once a narrative."""
    translate = pytest.importorskip("nltk.translate", reason="nltk is not installed")
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 40, draw.integers(1, 12)).tolist() for _ in range(60)]
    bags = [draw.permutation(8)[: draw.integers(1, 5)].tolist() for _ in rows]
    pairs = [translate.AlignedSent([f"w{w}" for w in r], [f"c{c}" for c in b]) for r, b in zip(rows, bags, strict=True)]
    theirs = translate.IBMModel1(pairs, 7).translation_table
    found = align(*flat(rows), *flat(bags), 40, 8, iterations=7)
    for word, label, ours in zip(found.words, found.labels, found.probabilities(), strict=True):
        assert ours == pytest.approx(theirs[f"w{word}"][None if label == 8 else f"c{label}"], abs=1e-9)


def test_best_words_of_a_label() -> None:
    rows, bags = [[0, 1], [0, 2], [3, 1], [3, 2]], [[0], [0], [1], [1]]
    found = align(*flat(rows), *flat(bags), 4, 2, iterations=10)
    assert [found.best_words(label, 1).tolist() for label in (0, 1)] == [[0], [3]]


def random_hmm(seed: int, whole: bool) -> tuple[Floats, Floats, Floats]:
    """log start, emission (V,K) and transition; in quarters, so that ties are exact, some of them -inf."""
    draw = np.random.default_rng(seed)

    def table(*shape: int) -> NDArray[np.float64]:
        found = -draw.integers(0, 5, shape) / 4 if whole else np.log(draw.random(shape))
        return np.where(draw.random(shape) < 0.15, -np.inf, found)

    return table(LABELS), table(WORDS, LABELS), table(LABELS, LABELS)


@QUICK
@given(
    rows=rows_of_words,
    seed=st.integers(0, 300),
    whole=st.booleans(),
    bound=st.booleans(),
    power=st.sampled_from([0.0, 1.0, 10.0]),
    budget=st.sampled_from([1, 60, 10_000]),
)
def test_viterbi_is_brute_force(
    rows: list[list[int]], seed: int, whole: bool, bound: bool, power: float, budget: int
) -> None:
    """The best of all paths; of equals the one whose last label is lowest, then the one before."""
    hmm = random_hmm(seed, whole)
    bags = bags_for(rows, seed, least=1) if bound else [list(range(LABELS)) for _ in rows]
    path, scores = viterbi(*hmm, *flat(rows), *(flat(bags) if bound else (None, None)), power=power, budget=budget)
    starts = flat(rows)[1]
    for place, (row, bag) in enumerate(zip(rows, bags, strict=True)):
        ours = path[starts[place] : starts[place + 1]].tolist()
        if not row:
            assert scores[place] == 0
            continue
        paths = sorted(itertools.product(sorted(bag), repeat=len(row)), key=lambda each: each[::-1])
        every = path_scores(*hmm, np.array(row), np.array(paths), power=power)
        if every.max() == -np.inf:
            assert scores[place] == -np.inf and ours == [min(bag)] * len(row)
            continue
        assert scores[place] == pytest.approx(every.max(), abs=1e-9)
        if whole:
            assert ours == list(paths[int(every.argmax())])
        assert path_scores(*hmm, np.array(row), np.array([ours]), power=power)[0] == pytest.approx(every.max())


def test_viterbi_of_a_long_narrative() -> None:
    """500 words beside one; a million to one against each, and no number underflows."""
    emission = np.log(np.array([[1e-6, 1e-300], [1e-300, 1e-6]]))
    words = np.array([0] * 250 + [1] * 250 + [1])
    path, scores = viterbi(np.log([0.5, 0.5]), emission, np.log(np.full((2, 2), 0.5)), words, np.array([0, 500, 501]))
    assert path.tolist() == words.tolist()
    assert scores[0] == pytest.approx(500 * math.log(1e-6 * 0.5))


def test_viterbi_of_the_impossible() -> None:
    """A second word that no label says: the first word's only label is not kept either."""
    emission = np.array([[-np.inf, 0.0], [-np.inf, -np.inf]])
    path, scores = viterbi(np.zeros(2), emission, np.zeros((2, 2)), np.array([0, 1, 0]), np.array([0, 2, 3]))
    assert path.tolist() == [0, 0, 1] and scores.tolist() == [-np.inf, 0]


def test_viterbi_refuses_a_narrative_without_labels() -> None:
    """One without words needs none."""
    hmm = random_hmm(0, False)
    with pytest.raises(ValueError, match=r"narrative 1 of 2 has no label to choose from: give it the labels"):
        viterbi(*hmm, *flat([[1], [2]]), *flat([[0], []]))
    path, _ = viterbi(*hmm, *flat([[1], []]), *flat([[3], []]))
    assert path.tolist() == [3]


def test_scaled_distributions() -> None:
    """The three places where 1 is added, and rows that sum to 1 or not; a row of nothing is impossible throughout."""
    counts, alpha = np.array([[3.0, 1.0, 0.0]]), np.array([1.0, 2.0, 4.0])

    def ours(**options: Any) -> list[float]:
        return list(np.exp(log_scaled(counts, alpha, **options))[0])

    assert ours(renormalise=False) == pytest.approx([4 / 7, 2 * 2 / 7, 4 / 7])
    assert ours() == pytest.approx([1 / 3] * 3)
    assert ours(smoothing="after", renormalise=False) == pytest.approx([4 / 7, 3 / 7, 1 / 7])
    assert ours(smoothing="after") == pytest.approx([4 / 8, 3 / 8, 1 / 8])
    assert ours(smoothing="share") == pytest.approx([1.75 / 4.25, 1.5 / 4.25, 1 / 4.25])
    assert ours(smoothing="share", renormalise=False) == pytest.approx([1.75 / 4, 1.5 / 4, 1 / 4])
    assert ours(add=0.0) == pytest.approx([3 / 5, 2 / 5, 0])
    assert (log_scaled(np.zeros((1, 3)), alpha, add=0.0) == -np.inf).all()


def test_transitions_are_counted() -> None:
    """Not over the border of two narratives, not to or from a word without a label; within phrases or not."""
    labels, starts = np.array([0, 0, 1, 1, -1, 1, 1, 0]), np.array([0, 0, 3, 8, 8])
    assert transition_counts(labels, starts, 2).tolist() == [[1, 1], [1, 1]]
    assert transition_counts(labels, starts, 2, within_phrases=False).tolist() == [[0, 1], [1, 0]]
    phrases = np.array([0, 1, 1, 2, 3, 4, 4, 5])
    assert transition_counts(labels, starts, 2, phrases, within_phrases=False).tolist() == [[1, 0], [1, 0]]
    assert transition_counts(labels[:1], np.array([0, 1]), 2).sum() == 0


@pytest.mark.parametrize("start", ["uniform", "first", "labels"])
def test_tagger_survives_its_arrays(start: Any) -> None:
    """Words unknown to it, narratives of no and one word, with labels and without."""
    told = TaggerSettings(start=start)
    tagger = NarrativeTagger.fit(corpus([[0, 1, 2, 0], [], [3], [4, 1]]), told)
    again = NarrativeTagger(told, TaggerTables.from_arrays(tagger.tables.to_arrays()))
    ids, starts = flat([[0, -1, 5], [], [-1]])
    for bags in ((None, None), flat([[1, 2], [], [3]])):
        tags = tagger.tag(ids, starts, *bags)
        assert tags.tolist() == again.tag(ids, starts, *bags).tolist() and tags.shape == (4,)
    assert set(tags[:3].tolist()) <= {1, 2} and tags[3] == 3
    assert np.exp(tagger.log_emission).sum(0) == pytest.approx(np.ones(LABELS))
    assert np.exp(tagger.log_transition).sum(1) == pytest.approx(np.ones(LABELS))
    assert np.exp(tagger.log_start).sum() == pytest.approx(1)


def test_start_is_of_first_or_of_all_labels() -> None:
    fitted = corpus([[0, 1], [2], [3, 3, 3]], noisy_labels=np.array([0, 1, 0, -1, 1, 1]))
    first = NarrativeTagger.fit(fitted, TaggerSettings(start="first", add=0.5))
    assert np.exp(first.log_start) == pytest.approx(np.array([2.5, 0.5, 0.5, 0.5]) / 4)
    labels = NarrativeTagger.fit(fitted, TaggerSettings(start="labels"))
    assert np.exp(labels.log_start) == pytest.approx(np.array([3, 4, 1, 1]) / 9)


def test_every_option_changes_the_tables() -> None:
    """And what the defaults are said to be."""
    draw = np.random.default_rng(1)
    rows = [draw.integers(0, WORDS, draw.integers(2, 7)).tolist() for _ in range(20)]
    base = NarrativeTagger.fit(corpus(rows))
    changes: list[dict[str, Any]] = [
        *({"word_weight": kind} for kind in ("idf", "none")),
        *({"label_weight": kind} for kind in ("idf", "none")),
        {"label_documents": "bags"},
        *({"idf": kind} for kind in ("plain", "smooth")),
        *({"term_frequency": kind} for kind in ("count", "share")),
        {"alignment_words": "tokens"},
        {"null_word": False},
        {"iterations": 6},
        *({"emission_smoothing": kind} for kind in ("after", "share")),
        *({"transition_smoothing": kind} for kind in ("before", "after")),
        {"add": 0.5},
        {"renormalise": False},
        {"within_phrases": False},
        *({"start": kind} for kind in ("first", "labels")),
    ]
    for change in changes:
        other = NarrativeTagger.fit(corpus(rows), TaggerSettings(**change))
        same = [
            np.allclose(getattr(base, name), getattr(other, name))
            for name in ("log_start", "log_emission", "log_transition")
        ]
        assert not all(same), change


ARRAYS = fit_tables(corpus([[0, 1, 2]]), TaggerSettings()).to_arrays()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": np.zeros(1)}, r"tagger tables have or lack more: fit the tagger again"),
        ({"word_weights": None}, r"tagger tables have or lack word_weights: fit"),
        ({"transitions": np.zeros((2, 3))}, r"transitions is float64 \(2, 3\), not float64 \(4, 4\)"),
        ({"pair_words": np.zeros(len(ARRAYS["pair_words"]))}, r"pair_words is float64 .* not int64"),
        ({"word_weights": np.full(WORDS, np.nan)}, r"word_weights has negative or infinite numbers"),
        ({"label_weights": np.full(LABELS, -1.0)}, r"label_weights has negative or infinite numbers"),
        ({"pair_labels": ARRAYS["pair_labels"] + 9}, r"pair_labels: number \d+ at place 0 is not in 0 to 4"),
    ],
)
def test_damaged_tables_are_refused(change: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (ARRAYS | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        TaggerTables.from_arrays(arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": 0}, r"0 words and 4 labels: tagging needs at least one of each"),
        ({"word_starts": np.array([0, 2])}, r"each narrative's words start must rise from 0 to 3"),
        ({"word_starts": np.array([0, 4, 3])}, r"each narrative's words start must rise from 0 to 3"),
        ({"word_ids": np.array([0, 6, 1])}, r"words: number 6 at place 1 is not in -1 to 5"),
        ({"noisy_labels": np.array([0, 1])}, r"2 noisy labels for 3 words: give one a word"),
        ({"noisy_labels": np.array([0, 1, 4])}, r"noisy labels: number 4 at place 2 is not in -1 to 3"),
        ({"phrases": np.array([0])}, r"1 phrases for 3 words: give one a word"),
        ({"bags": np.array([-1]), "bag_starts": np.array([0, 1])}, r"bags: number -1 at place 0 is not in 0 to 3"),
        ({"bags": np.array([1]), "bag_starts": np.array([0, 0, 1])}, r"1 narratives and 2 bags of labels"),
    ],
)
def test_wrong_narratives_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corpus([[0, 1, 2]], **change)


def test_wrong_questions_are_refused() -> None:
    tagger = NarrativeTagger.fit(corpus([[0, 1, 2]]))
    with pytest.raises(ValueError, match="words: number 6 at place 0 is not in -1 to 5"):
        tagger.tag(*flat([[6]]))
    with pytest.raises(ValueError, match="1 narratives and 2 bags of labels"):
        tagger.tag(*flat([[1]]), *flat([[1], [2]]))
    with pytest.raises(ValueError, match="labels and where they start go together"):
        tagger.tag(*flat([[1]]), np.array([1]))
    with pytest.raises(ValueError, match="no narrative to learn tags from"):
        fit_tables(corpus([]), TaggerSettings())


class Released:
    """The narratives of a released file, their tags and a vocabulary of each."""

    def __init__(self, file: Path) -> None:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        self.words = sorted({word for record in records for word in record["words"]})
        self.labels = sorted({tag for record in records for tag in record["tags"]})
        words, labels = ({name: n for n, name in enumerate(names)} for names in (self.words, self.labels))
        self.rows = [[words[word] for word in record["words"]] for record in records]
        self.tags = [[labels[tag] for tag in record["tags"]] for record in records]

    def noisy(self, part: slice, draw: np.random.Generator, wrong: float = 0.5, longest: int = 2) -> list[list[int]]:
        """Phrases of 1 to `longest` words: the tag most of them have, or of so many any of the narrative's."""
        found = []
        for tags in self.tags[part]:
            bag, row = sorted(set(tags)), list[int]()
            while len(row) < len(tags):
                phrase = tags[len(row) : len(row) + int(draw.integers(1, longest + 1))]
                label = int(draw.choice(bag)) if draw.random() < wrong else Counter(phrase).most_common(1)[0][0]
                row += [label] * len(phrase)
            found.append(row)
        return found

    def corpus(self, part: slice, noisy: list[list[int]]) -> Narratives:
        sets = [sorted(set(tags)) for tags in self.tags[part]]
        sizes = len(self.words), len(self.labels)
        return Narratives(*sizes, *flat(self.rows[part]), flat(noisy)[0], *flat(sets))


def test_real_narratives(shared_data: Path) -> None:
    """Fitted on one half, tags of the other; noisy labels are simulated. No gold tags exist: agreement is with what the
    paper's own BERT tagger said."""
    file = shared_data / "trecs-tags" / "val_coco.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"no released tags at {file}")
    released = Released(file)
    learn, ask = slice(0, None, 2), slice(1, None, 2)
    draw = np.random.default_rng(0)
    tagger = NarrativeTagger.fit(released.corpus(learn, released.noisy(learn, draw)))
    asked = released.corpus(ask, released.noisy(ask, draw))
    tags = tagger.tag(asked.word_ids, asked.word_starts, asked.bags, asked.bag_starts)
    truth = flat(released.tags[ask])[0]
    agreement = float((tags == truth).mean())

    frequent = Counter(tag for row in released.tags[learn] for tag in row)
    of_bag = [[max(sorted(set(row)), key=lambda tag: frequent[tag])] * len(row) for row in released.tags[ask]]
    majority = float((flat(of_bag)[0] == truth).mean())
    changes = float(np.mean(np.concatenate([np.diff(row) != 0 for row in np.split(tags, asked.word_starts[1:-1])])))
    print(
        f"agreement {agreement:.3f}, majority of the picture's labels {majority:.3f}, "
        f"noisy {float((asked.noisy_labels == truth).mean()):.3f}, tags change {changes:.3f}"
    )
    assert agreement > 0.57 and agreement > majority + 0.06
    # The released tags change at 0.096 of their steps.
    assert 0.02 < changes < 0.2
    for name in ("snow", "toilet", "giraffe", "pizza"):
        best = tagger.tables.alignment.best_words(released.labels.index(name), 1)
        assert released.words[best[0]] == name
