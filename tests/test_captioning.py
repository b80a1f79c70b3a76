"""Captioning scores: values worked out by hand, sides, and results that do not depend on who saw what."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.data.features import CaptionIndex
from orchestration.data.vocabulary import Vocabulary, words
from orchestration.errors import RequestError
from orchestration.evaluation import captioning
from orchestration.evaluation.captioning import PROTOCOLS, CaptioningScores, captions_of
from orchestration.evaluation.estimates import Estimate
from orchestration.evaluation.metric import Asked, Metric, Seen

pytestmark = pytest.mark.skipif(
    not all(find_spec(library) for library in captioning._NEEDED),
    reason="the libraries of captioning scores are absent: pip install 't2i[captions]'",
)

SAID = (
    "a red bird sits on a tree",
    "two dogs run over the green field",
    "the man rides a brown horse",
    "a small boat on the blue sea",
    "people eat at a long table",
)
NAMES = ["bleu-1", "bleu-2", "bleu-3", "bleu-4", "cider-d", "meteor-exact-stem", "rouge-l"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def vocabulary_of(*texts: str) -> Vocabulary:
    return Vocabulary(("<end>", *sorted({word for text in texts for word in words(text)})))


def seen(
    vocabulary: Vocabulary,
    told: Sequence[str],
    captions: Sequence[str],
    places: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    view: str = "stream",
) -> Seen:
    places = range(len(told)) if places is None else places
    ids = np.array([100 + place for place in places] if image_ids is None else image_ids)
    rows = [vocabulary.encode(text) for text in told]
    indices = np.zeros((len(told), max(len(row) for row in rows) + 2), np.int64)
    for row, known in zip(indices, rows, strict=True):
        row[: len(known)] = known
    return Seen(Asked(np.array(places), ids, ids, ids, captions), {f"{view}/words": indices})


def scored(told: Sequence[str], captions: Sequence[str]) -> dict[str, Estimate]:
    """Of descriptions, each against one caption, by the last part of the name."""
    vocabulary = vocabulary_of(*told, *captions, "x")
    metric = CaptioningScores(vocabulary)
    metric.update(seen(vocabulary, told, captions))
    return {result.protocol.rpartition("/")[2]: result.estimate for result in metric.compute()}


def held_against(told: Mapping[int, str], captions: Mapping[int, Sequence[str]]) -> dict[str, float]:
    """Of real pictures, each against all its captions."""
    vocabulary = vocabulary_of(*told.values(), *(text for texts in captions.values() for text in texts))
    metric = CaptioningScores(vocabulary, captions=captions)
    metric.update_real(seen(vocabulary, list(told.values()), [""] * len(told), range(len(told)), list(told)))
    return {result.protocol.rpartition("/")[2]: result.estimate.value for result in metric.compute()}


class TestByHand:
    def test_the_very_captions(self) -> None:
        found = scored(SAID, SAID)
        assert list(found) == NAMES
        assert [found[f"bleu-{order}"].value for order in (1, 2, 3, 4)] == [1, 1, 1, 1]
        assert found["cider-d"].value == pytest.approx(10)
        assert found["rouge-l"].value == pytest.approx(1)
        # One chunk: the penalty is half the cube of chunks by matches.
        lengths = [len(text.split()) for text in SAID]
        assert found["meteor-exact-stem"].value == pytest.approx(np.mean([1 - 0.5 / n**3 for n in lengths]))

    def test_nothing_in_common(self) -> None:
        found = scored(["x x x x x"] * 5, SAID)
        assert {name: estimate.value for name, estimate in found.items()} == dict.fromkeys(NAMES, 0.0)

    def test_descriptions_without_words(self) -> None:
        assert {estimate.value for estimate in scored(["..."] * 5, SAID).values()} == {0.0}
        assert scored(["", *SAID[1:]], SAID)["cider-d"].value == pytest.approx(8)

    def test_bleu(self) -> None:
        """ "the" seven times has 2 of 7 words right (Papineni et al., section 2.1); the second lacks a word."""
        found = scored(
            ["the the the the the the the", "a man on a horse"], ["the cat is on the mat", "a man on a big horse"]
        )
        said, wanted = 7 + 5, 6 + 6
        assert found["bleu-1"].value == pytest.approx((2 + 5) / said * math.exp(min(0, 1 - wanted / said)))
        # Pairs of words: none of 6, and 3 of 4.
        assert found["bleu-2"].value == pytest.approx(math.sqrt(7 / 12 * 3 / 10))
        short = scored(["a man", "a boat"], ["a man on a horse", "a boat"])
        assert short["bleu-1"].value == pytest.approx(math.exp(1 - 7 / 4))

    def test_bleu_takes_the_caption_nearest_in_length_and_of_two_the_shorter(self) -> None:
        """Three words between captions of four and two: no penalty. Between four and four: one."""
        for first, second in (("a b c d", "a b"), ("a b", "a b c d")):
            assert held_against({1: "a b c", 2: "a b c"}, {1: (first, second), 2: (first, second)})["bleu-1"] == 1
        fewer = held_against({1: "a b c", 2: "a b c"}, {1: ("a b c d",), 2: ("a b c d", "b a d c")})
        assert fewer["bleu-1"] == pytest.approx(math.exp(1 - 4 / 3))

    def test_rouge_l(self) -> None:
        """Longest common subsequences: 3 of 4 words said and of 5 wanted; nothing."""
        found = scored(["a man rides fast", "x"], ["a man slowly rides home", "a boat"])
        precision, recall = 3 / 4, 3 / 5
        expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
        assert found["rouge-l"].value == pytest.approx(expected / 2)

    def test_meteor(self) -> None:
        """Two chunks, one word by its stem: precision 3/3, recall 3/4."""
        found = scored(["dogs run home", "x"], ["dog fast run home", "a boat"])
        f_mean = (3 / 3) * (3 / 4) / (0.9 * (3 / 3) + 0.1 * (3 / 4))
        assert found["meteor-exact-stem"].value == pytest.approx(f_mean * (1 - 0.5 * (2 / 3) ** 3) / 2)

    def test_cider_d(self) -> None:
        """Two pictures: a word that both captions have weighs nothing, one that one has log 2."""
        found = scored(["a cat", "a dog"], ["a dog", "a cat"])
        assert found["cider-d"].value == 0
        # Single words: "cat" alone counts, by its own caption's length 2 and one fewer pair of words; pairs: none said.
        some = scored(["cat", "dog"], ["a cat", "a dog"])
        assert some["cider-d"].value == pytest.approx(10 / 4 * math.exp(-1 / (2 * 6**2)))

    def test_against_all_captions(self) -> None:
        captions = {1: ("a red bird", "the bird sits"), 2: ("a boat", "blue sea")}
        own = held_against({1: "the bird sits", 2: "blue sea"}, captions)
        assert [own["bleu-2"], own["rouge-l"]] == pytest.approx([1, 1])
        assert own["cider-d"] < 10
        assert held_against({1: "blue sea", 2: "the bird sits"}, captions)["bleu-1"] == 0

    @settings(max_examples=20, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(
                st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=9),
                st.lists(
                    st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=9), min_size=1, max_size=3
                ),
            ),
            min_size=2,
            max_size=8,
        )
    )
    def test_bleu_is_the_coco_evaluations(self, rows: list[tuple[list[str], list[list[str]]]]) -> None:
        from pycocoevalcap.bleu.bleu import Bleu

        told = {place: " ".join(row[0]) for place, row in enumerate(rows)}
        captions = {place: [" ".join(text) for text in row[1]] for place, row in enumerate(rows)}
        found = held_against({**told, 99: "a b c d"}, {**captions, 99: ["a b c d"]})
        theirs, _ = Bleu(4).compute_score(
            {**captions, 99: ["a b c d"]}, {**{k: [v] for k, v in told.items()}, 99: ["a b c d"]}, 0
        )
        assert [found[f"bleu-{order}"] for order in (1, 2, 3, 4)] == pytest.approx(theirs, abs=1e-6)


class TestIntervals:
    def test_they_hold_the_value_and_shrink_with_more_pictures(self) -> None:
        told = [SAID[place % 5] if place % 3 else SAID[place % 4] for place in range(200)]
        captions = [SAID[place % 5] for place in range(200)]
        few, many = scored(told[:20], captions[:20]), scored(told, captions)
        for name in NAMES:
            assert few[name].low < few[name].value < few[name].high
            assert many[name].high - many[name].low < few[name].high - few[name].low
            assert many[name].count == 200

    def test_the_seed_is_that_of_the_resamples(self) -> None:
        told = [SAID[place % 5] if place % 3 else SAID[place % 4] for place in range(30)]
        vocabulary = vocabulary_of(*SAID)
        found = []
        for seed in (1, 1, 2):
            metric = CaptioningScores(vocabulary, seed=seed)
            metric.update(seen(vocabulary, told, [SAID[place % 5] for place in range(30)]))
            found.append(metric.compute()[3].estimate)
        assert found[0] == found[1] != found[2]
        assert found[0].value == found[2].value


class TestSides:
    def test_pictures_drawn(self) -> None:
        vocabulary = vocabulary_of(*SAID)
        metric: Metric = CaptioningScores(vocabulary)
        assert (set(metric.looks_at), set(metric.looks_at_real), metric.plan) == ({"stream"}, set(), "captions")
        metric.update_real(seen(vocabulary, SAID, SAID))
        metric.update(seen(vocabulary, SAID[:2], SAID[:2]))
        results = metric.compute()
        assert [result.figure for result in results] == [f"captioning/own-caption/words/{name}" for name in NAMES]
        assert {(result.real, result.drawn, result.details["distinct"]) for result in results} == {(0, 2, 1)}

    def test_real_pictures_count_once_each(self) -> None:
        vocabulary = vocabulary_of(*SAID)
        metric: Metric = CaptioningScores(vocabulary, captions={1: SAID[:2], 2: SAID[2:]})
        assert (set(metric.looks_at), set(metric.looks_at_real)) == (set(), {"stream"})
        metric.update(seen(vocabulary, SAID, SAID))
        metric.update_real(seen(vocabulary, [*SAID[:1] * 2, SAID[2]], [""] * 3, image_ids=[1, 1, 2]))
        results = metric.compute()
        assert results[0].figure == "captioning/all-captions/words/bleu-1"
        assert {(result.real, result.drawn) for result in results} == {(2, 0)}

    def test_another_captioner_is_in_the_protocol(self) -> None:
        vocabulary = vocabulary_of(*SAID)
        metric = CaptioningScores(vocabulary, "other")
        metric.update(seen(vocabulary, SAID, SAID, view="other"))
        assert metric.compute()[0].figure == "captioning/other/own-caption/words/bleu-1"

    def test_one_description_for_everything_is_said(self) -> None:
        vocabulary = vocabulary_of(*SAID)
        metric = CaptioningScores(vocabulary)
        metric.update(seen(vocabulary, [SAID[0]] * 5, SAID))
        result = metric.compute()[0]
        assert result.notes == ("every picture has the same description",)
        assert result.details == {"distinct": 1 / 5}

    def test_all_captions_of_a_split(self) -> None:
        ids = np.array([7, 9])
        index = CaptionIndex(ids, ids, np.array([0, 1, 3]), ("a", "b", "c"))
        assert captions_of(index) == {7: ("a",), 9: ("b", "c")}

    def test_protocols_are_described(self) -> None:
        assert {f"captioning/{side}/words/..." for side in ("own-caption", "all-captions")} <= set(PROTOCOLS)


class TestWhoSawWhat:
    @settings(max_examples=10, deadline=None)
    @given(order=st.permutations(range(15)), cut=st.integers(0, 15), twice=st.integers(0, 14))
    def test_merged_parts_are_the_whole(self, order: list[int], cut: int, twice: int) -> None:
        told = [SAID[place % 5] if place % 3 else SAID[place % 4] for place in range(15)]
        captions = [SAID[place % 5] for place in range(15)]
        vocabulary = vocabulary_of(*SAID)
        metrics = []
        for part in (order[:cut], [*order[cut:], twice]):
            metric = CaptioningScores(vocabulary, seed=3)
            for start in range(0, len(part), 4):
                rows = part[start : start + 4]
                metric.update(seen(vocabulary, [told[row] for row in rows], [captions[row] for row in rows], rows))
            metrics.append(metric)
        whole = CaptioningScores(vocabulary, seed=3)
        whole.update(seen(vocabulary, told, captions))
        metrics[0].merge(metrics[1])
        assert metrics[0].compute() == whole.compute()

    def test_others_are_not_merged(self) -> None:
        mine = CaptioningScores(vocabulary_of(*SAID))
        for other in (
            CaptioningScores(vocabulary_of(*SAID), seed=1),
            CaptioningScores(vocabulary_of(*SAID), captions={}),
            CaptioningScores(vocabulary_of("x")),
        ):
            with pytest.raises(
                ValueError, match="words with seed . and vocabulary .* is not own-caption/words with se"
            ):
                mine.merge(other)


class TestWrongUse:
    def test_too_few(self) -> None:
        vocabulary = vocabulary_of(*SAID)
        metric = CaptioningScores(vocabulary)
        with pytest.raises(
            RequestError, match="captioning weighs words by .*, and no pictures were described: judge two"
        ):
            metric.compute()
        metric.update(seen(vocabulary, SAID[:1], SAID[:1]))
        with pytest.raises(RequestError, match="and 1 picture was described: judge two or more, of a split with capt"):
            metric.compute()

    def test_pictures_without_captions(self) -> None:
        vocabulary = vocabulary_of(*SAID)
        for metric, caption in (
            (CaptioningScores(vocabulary), "!"),
            (CaptioningScores(vocabulary, captions={100: ("!",)}), ""),
            (CaptioningScores(vocabulary, captions={}), ""),
        ):
            with pytest.raises(
                RequestError, match="captioning has no caption with a word for image 100: judge data whose"
            ):
                metric.update(seen(vocabulary, SAID[:1], [caption]))
                metric.update_real(seen(vocabulary, SAID[:1], [caption]))

    def test_shapes_that_do_not_fit(self) -> None:
        vocabulary = vocabulary_of(*SAID)
        right = seen(vocabulary, SAID, SAID)
        for array in (right["stream/words"][:4], right["stream/words"][0]):
            with pytest.raises(ValueError, match="word indices \\(B,T\\) for 5 pictures are wanted, not"):
                CaptioningScores(vocabulary).update(Seen(right.asked, {"stream/words": array}))

    def test_libraries_that_are_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(captioning, "find_spec", lambda library: None)
        with pytest.raises(RequestError, match="needs pycocoevalcap and nltk: pip install 't2i\\[captions\\]'"):
            CaptioningScores(vocabulary_of(*SAID))
