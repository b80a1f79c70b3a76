"""Phrases of narratives, their hulls, and the labels seen most in them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from orchestration.data.hulls import (
    majority_labels,
    noisy_labels,
    phrase_hull,
    phrase_mask,
    spoken_phrases,
    tagged_phrases,
)
from orchestration.data.label_maps import LabelReader
from orchestration.data.records import Narrative, Utterance
from orchestration.data.sources import open_source
from orchestration.data.traces import convex_hull, hull_mask
from tests.data_files import refusal

Points = NDArray[np.float64]


def told(caption: str, said: Sequence[tuple[str, float, float]] = (), *traces: Sequence[Sequence[float]]) -> Narrative:
    arrays_of = tuple(np.array(trace, np.float64).reshape(-1, 3) for trace in traces)
    return Narrative(1, caption, tuple(Utterance(*one) for one in said), arrays_of)


SAID = (("In this", 0.0, 1.0), ("a big dog.", 1.0, 3.0), ("Grass", 4.0, 5.0))
STROKES = ([[0.1, 0.1, 0.5]], [[0.2, 0.5, 1.5], [0.4, 0.9, 2.5]], [[0.9, 0.9, 4.5], [0.8, 0.1, 9.0]])


def test_a_phrase_is_an_utterance_with_its_points() -> None:
    phrases = spoken_phrases(told("In this a big DOG. - Grass", SAID, *STROKES))
    assert [(one.first, one.end, one.start, one.stop) for one in phrases] == [
        (0, 2, 0.0, 1.0),
        (2, 6, 1.0, 4.0),  # the dash, which nobody says, fills the pause
        (6, 7, 4.0, 5.0),
    ]
    assert [one.points.tolist() for one in phrases] == [[[0.1, 0.1]], [[0.2, 0.5], [0.4, 0.9]], [[0.9, 0.9]]]


def test_a_narrative_without_times_is_one_phrase() -> None:
    (phrase,) = spoken_phrases(told("a dog", (), *STROKES))
    assert (phrase.first, phrase.end, phrase.start, phrase.stop) == (0, 2, None, None)
    assert len(phrase.points) == 5
    (silent,) = spoken_phrases(told("a dog"))
    assert silent.points.shape == (0, 2)
    dog, grass = tagged_phrases(told("a dog grass", (), *STROKES), ["dog", "dog", "grass"])
    assert (dog.first, dog.end, grass.first, grass.end) == (0, 2, 2, 3) and len(dog.points) == len(grass.points) == 5


def test_neighbouring_words_of_one_tag_are_one_mention() -> None:
    narrative = told("In this a big dog. Grass", SAID, *STROKES)
    tags = ["other", "dog", "dog", "dog", "grass", "dog"]
    phrases = tagged_phrases(narrative, tags, left_out=["other"])
    assert [(one.tag, one.first, one.end) for one in phrases] == [("dog", 1, 4), ("grass", 4, 5), ("dog", 5, 6)]
    assert phrases[0].start == pytest.approx(1 / 3) and phrases[0].points.tolist() == [[0.1, 0.1], [0.2, 0.5]]
    assert phrases[2].points.tolist() == [[0.9, 0.9]]


def test_narratives_that_cannot_be_used() -> None:
    assert refusal(lambda: spoken_phrases(told("  ", SAID, *STROKES))) == (
        "the narrative has no words; write or say what the trace shows."
    )
    assert refusal(lambda: spoken_phrases(told("a dog", (), [[0.1, float("nan"), 0]]), "narrative 3")) == (
        "trace 0 of narrative 3 has a point that is no number (point 0); leave that point out."
    )
    for said, what in (
        ((("a", 2.0, 1.0), ("dog", 2.0, 3.0)), "'a', from 2 s to 1 s"),
        ((("a", 2.0, 3.0), ("dog", 1.0, 3.0)), "'dog', from 2 s to 1 s"),
    ):
        assert refusal(partial(spoken_phrases, told("a dog", said))) == (
            f"the narrative: the times run backwards at {what}; give each utterance its start and end in the order of "
            "speech."
        )
    assert refusal(lambda: tagged_phrases(told("a dog", SAID), ["dog"])) == (
        "the narrative has 2 words and 1 tags; give one tag for each word."
    )


@st.composite
def narratives(draw: st.DrawFn) -> Narrative:
    said, clock = [], 0.0
    for text in draw(st.lists(st.sampled_from(["a dog", "grass", "in the big picture", ""]), min_size=1, max_size=5)):
        start = clock + draw(st.floats(0, 2))
        clock = start + draw(st.floats(0, 2))
        said.append((text, start, clock))
    caption = " ".join(text for text, _, _ in said)
    caption = caption if caption.split() else "dog"
    return told(caption, said, *draw(st.lists(st.lists(st.tuples(*[st.floats(-1, 9)] * 3), max_size=5), max_size=2)))


@settings(deadline=None, max_examples=100)
@given(narrative=narratives(), data=st.data())
def test_phrases_part_the_words(narrative: Narrative, data: st.DataObject) -> None:
    count = len(narrative.caption.split())
    tags = data.draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count))
    for phrases in (spoken_phrases(narrative), tagged_phrases(narrative, tags)):
        assert [word for one in phrases for word in range(one.first, one.end)] == list(range(count))
        assert all(one.first < one.end and one.points.shape[1] == 2 for one in phrases)
    assert all({tags[word] for word in range(one.first, one.end)} == {one.tag} for one in phrases)


# --- hulls --------------------------------------------------------------------------------------------------------


def test_points_and_lines_have_an_area() -> None:
    assert not phrase_mask(np.empty((0, 2)), 40, 30).any()
    for points in ([[0.5, 0.5]], [[0.25, 0.5], [0.5, 0.5], [0.75, 0.5]], [[0.5, 0.5], [0.5, 0.5]]):
        thin, thick = (phrase_mask(np.array(points), 40, 30, radius).sum() for radius in (1.0, 4.0))
        assert 0 < thin < thick
    assert phrase_mask(np.array([[0.5, 0.5]]), 40, 30, 0.1).sum() == 1
    assert phrase_mask(np.array([[7.0, -7.0]]), 40, 30)[0, -1]
    assert phrase_mask(np.array([[1.0, 1.0]]), 40, 30, 0.01)[-1, -1]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_points_that_are_no_numbers_are_refused(wrong: float) -> None:
    points = np.array([[0.1, 0.1], [0.2, wrong]])
    for call in (phrase_hull, phrase_mask):
        assert refusal(partial(call, points, 40, 30)) == (
            "the trace has a point that is no number (point 1); leave that point out."
        )


PLACES = st.floats(-0.3, 1.3, allow_subnormal=False) | st.sampled_from([0.0, 0.25, 0.5, 1.0])
CLOUDS = st.integers(1, 8).flatmap(lambda n: arrays(np.float64, (n, 2), elements=PLACES))


@settings(deadline=None, max_examples=100)
@given(clouds=st.lists(CLOUDS, max_size=4), radius=st.floats(0.8, 5), seed=st.integers(0, 99), known=st.booleans())
def test_the_label_of_most_pixels(clouds: list[Points], radius: float, seed: int, known: bool) -> None:
    classes = 5
    labels = np.random.default_rng(seed).integers(0, classes + 1, (23, 31))
    hulls = [None, *(convex_hull(cloud, 31, 23, radius) for cloud in clouds)]
    found = majority_labels(labels, hulls, classes, known)
    for hull, label in zip(hulls, found, strict=True):
        inside = labels[hull_mask(hull, 31, 23)]
        counts = [(inside == one).sum() for one in range(classes + (not known))]
        assert label == (int(np.argmax(counts)) if any(counts) else classes)


def test_hulls_out_of_the_picture_or_between_its_pixels_see_nothing() -> None:
    far, thin = (shapely.Polygon(ends) for ends in ([(-9, -9), (-2, -9), (-2, -2)], [(1.6, 1), (1.9, 1), (1.9, 1.2)]))
    assert majority_labels(np.zeros((5, 5), np.int64), [far, thin], 3).tolist() == [3, 3]


def test_every_word_gets_its_phrase_s_label() -> None:
    labels = np.full((20, 30), 2)
    labels[:, :15], labels[:1] = 1, 4
    narrative = told("In this a big dog. Grass", SAID, *STROKES)
    assert noisy_labels(narrative, labels, 4).tolist() == [1, 1, 1, 1, 1, 2]
    top = told("sky", [("sky", 0.0, 9.0)], [[0.1, 0.0, 1.0], [0.9, 0.0, 2.0]])
    assert noisy_labels(top, labels, 4).tolist() == [4]
    assert noisy_labels(top, labels, 4, min_radius=1.6).tolist() == [1]
    assert noisy_labels(top, labels, 4, min_radius=1.6, known_only=False).tolist() == [4]
    assert noisy_labels(top, labels, 4, min_radius=8.0).tolist() == [1]
    assert noisy_labels(told("a b"), labels, 4).tolist() == [4, 4]


def test_the_noisy_labels_of_generated_scenes_name_what_is_said(tmp_path: Path) -> None:
    """Their traces lie on what the phrase is about, so that nearly every phrase that shows something gets its label."""
    dataset = open_source("scenes:size=64,train=30,val=1,test=1", "train", tmp_path)
    reader = LabelReader(dataset)
    right = []
    for record in dataset.records:
        labels, _ = reader.read(record)
        for narrative in record.narratives or ():
            found = noisy_labels(narrative, labels, reader.dont_care)
            words = narrative.caption.split()
            assert len(found) == len(words)
            names = [reader.classes[label] if label < reader.dont_care else "" for label in found]
            right += [
                name == word.strip(".")
                for name, word in zip(names, words, strict=True)
                if word.strip(".") in reader.classes
            ]
    print(f"{np.mean(right):.3f} of {len(right)} names have their own label")
    assert len(right) > 40 and np.mean(right) > 0.85
