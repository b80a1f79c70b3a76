"""Which trace points go with which words, their hull and its pixels."""

from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from orchestration.data.records import Narrative, Utterance
from orchestration.data.traces import convex_hull, hull_mask, phrase_points, timed_caption, timed_words

Points = NDArray[np.float64]
WIDTH, HEIGHT = 40, 30


def told(*utterances: Utterance, caption: str = "", traces: tuple[Points, ...] = ()) -> Narrative:
    return Narrative(1, caption, utterances, traces)


def points(*pairs: tuple[float, float]) -> Points:
    return np.array(pairs, np.float64).reshape(-1, 2)


# --- words --------------------------------------------------------------------------------------------------------


def test_the_words_of_an_utterance_share_its_time_by_their_length() -> None:
    narrative = told(Utterance("A cat", 1.0, 3.0), Utterance("sits.", 3.5, 4.0), Utterance(" ", 4.0, 5.0))
    assert timed_words(narrative) == (
        Utterance("A", 1.0, 1.5),
        Utterance("cat", 1.5, 3.0),
        Utterance("sits.", 3.5, 4.0),
    )


def test_the_caption_is_timed_through_case_punctuation_and_spaces() -> None:
    narrative = told(
        Utterance("a Cat", 0.0, 2.0),
        Utterance("Lies on", 3.0, 4.2),
        Utterance("the", 5.0, 6.0),
        Utterance("foot ball field", 6.0, 12.5),
        caption="A cat, lies\n on - the football  field.",
    )
    assert timed_caption(narrative) == (
        Utterance("A", 0.0, 0.5),
        Utterance("cat,", 0.5, 2.0),
        Utterance("lies", 3.0, 3.8),
        Utterance("on", 3.8, 4.2),
        Utterance("-", 4.2, 5.0),  # the pause: nobody says it
        Utterance("the", 5.0, 6.0),
        Utterance("football", 6.0, 10.0),
        Utterance("field.", 10.0, 12.5),
    )


def test_words_that_only_the_caption_or_only_the_voice_has() -> None:
    spoken = (Utterance("um", 0.0, 1.0), Utterance("a", 1.0, 2.0), Utterance("dog", 2.0, 3.0))
    assert timed_caption(told(*spoken, caption="a dog")) == spoken[1:]
    assert timed_caption(told(*spoken, caption="Here: um a dog !")) == (
        Utterance("Here:", 0.0, 0.0),
        *spoken,
        Utterance("!", 3.0, 3.0),
    )
    assert timed_caption(told(caption="a dog")) == timed_words(told(caption="a dog")) == ()


WORDS = st.lists(st.text("abcXYZ.,ß猫", min_size=1, max_size=6), max_size=4).map(" ".join)
TIMES = st.floats(0, 100, allow_subnormal=False)


@st.composite
def utterances(draw: st.DrawFn) -> tuple[Utterance, ...]:
    """One after another, as people speak."""
    said: list[Utterance] = []
    for text in draw(st.lists(WORDS, max_size=6)):
        start = (said[-1].end if said else 0.0) + draw(TIMES)
        said.append(Utterance(text, start, start + draw(TIMES)))
    return tuple(said)


@settings(deadline=None, max_examples=150)
@given(said=utterances())
def test_every_word_is_timed_once_in_order_and_within_its_utterance(said: tuple[Utterance, ...]) -> None:
    words = timed_words(told(*said))
    assert [word.text for word in words] == " ".join(part.text for part in said).split()
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    rest = list(words)
    for part in said:
        of_part, rest = rest[: len(part.text.split())], rest[len(part.text.split()) :]
        if of_part:
            assert (of_part[0].start, of_part[-1].end) == (part.start, part.end)


@settings(deadline=None, max_examples=150)
@given(said=utterances(), caption=WORDS, data=st.data())
def test_the_caption_s_words_are_timed_once_and_in_order(
    said: tuple[Utterance, ...], caption: str, data: st.DataObject
) -> None:
    spoken = " ".join(part.text for part in said)
    same = data.draw(st.sampled_from([spoken, spoken.upper(), spoken.replace(" ", "  "), f"{spoken} {caption}"]))
    for text in (same, caption):
        words = timed_caption(told(*said, caption=text))
        if not spoken.split():
            assert words == ()
            continue
        assert [word.text for word in words] == text.split()
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert all(said[0].start <= time <= said[-1].end for time in times)
    if same == spoken and spoken:
        assert timed_caption(told(*said, caption=same)) == timed_words(told(*said))


# --- trace points of a phrase -------------------------------------------------------------------------------------

TRACES = (
    np.array([[0.1, 0.2, 0.0], [0.3, 0.4, 1.0]]),
    np.empty((0, 3)),
    np.array([[-0.1, 1.2, 2.0], [0.7, 0.8, 3.5]]),
)


def test_the_points_of_a_phrase_are_those_of_its_time_in_all_traces() -> None:
    narrative = told(traces=TRACES)
    np.testing.assert_array_equal(phrase_points(narrative, 1.0, 2.0), [[0.3, 0.4], [-0.1, 1.2]])
    for empty in (phrase_points(narrative, 2.1, 3.4), phrase_points(told(), 0, 9), phrase_points(narrative, 2, 1)):
        assert empty.shape == (0, 2)
        assert empty.dtype == np.float64


@settings(deadline=None, max_examples=100)
@given(
    traces=st.lists(
        st.integers(0, 8).flatmap(lambda n: arrays(np.float64, (n, 3), elements=st.floats(-1, 50))), max_size=3
    ),
    cuts=st.lists(st.floats(-2, 60), max_size=5),
)
def test_parts_of_the_time_line_share_out_the_points(traces: list[Points], cuts: list[float]) -> None:
    everything = np.concatenate([*traces, np.empty((0, 3))])
    assume(not np.isin(cuts, everything[:, 2]).any())
    narrative = told(traces=tuple(traces))
    ends = [-np.inf, *sorted(cuts), np.inf]
    parts = [phrase_points(narrative, start, end) for start, end in pairwise(ends)]
    assert sorted(map(tuple, np.concatenate(parts))) == sorted(map(tuple, everything[:, :2]))


# --- hulls --------------------------------------------------------------------------------------------------------


def test_a_hull_is_in_pixels() -> None:
    hull = convex_hull(points((0.25, 0.5), (0.75, 0.5), (0.5, 1.0), (0.5, 0.7)), WIDTH, HEIGHT, 1.0)
    assert hull is not None
    assert hull.bounds == pytest.approx((9, 14, 31, 31))
    triangle = shapely.Polygon([(10, 15), (30, 15), (20, 30)])
    assert hull.covers(triangle)
    assert triangle.buffer(1.01).covers(hull)


def test_few_points_and_straight_lines_have_an_area() -> None:
    assert convex_hull(points(), WIDTH, HEIGHT) is None
    disc = convex_hull(points((0.5, 0.5), (0.5, 0.5)), WIDTH, HEIGHT, 3.0)
    line = convex_hull(points((0.25, 0.5), (0.5, 0.5), (0.75, 0.5)), WIDTH, HEIGHT, 3.0)
    assert disc is not None and line is not None
    assert disc.area == pytest.approx(np.pi * 9, rel=0.02)
    assert disc.centroid.coords[0] == pytest.approx((20, 15))
    assert line.area == pytest.approx(np.pi * 9 + 20 * 6, rel=0.02)
    with pytest.raises(ValueError, match="min_radius is 0"):
        convex_hull(points((0.5, 0.5)), WIDTH, HEIGHT, 0)


def test_points_outside_of_the_picture_are_drawn_at_its_edge() -> None:
    outside = convex_hull(points((-0.5, 0.5), (2, 3)), WIDTH, HEIGHT)
    at_edge = convex_hull(points((0, 0.5), (1, 1)), WIDTH, HEIGHT)
    assert outside is not None and at_edge is not None
    assert outside.equals(at_edge)
    assert hull_mask(convex_hull(points((7, -7)), WIDTH, HEIGHT), WIDTH, HEIGHT)[0, -1]


def test_a_mask_has_the_pixels_whose_centre_is_inside() -> None:
    assert hull_mask(None, 3, 2).tolist() == [[False] * 3] * 2
    mask = hull_mask(shapely.Polygon([(0.5, 0.5), (2.5, 0.5), (2.5, 2.6), (0.5, 2.6)]), 4, 3)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [[True, True, True, False]] * 3
    triangle = hull_mask(shapely.Polygon([(0, 0), (4, 0), (0, 4)]), 5, 5)
    assert triangle.sum(1).tolist() == [4, 3, 2, 1, 0]
    assert not hull_mask(shapely.Polygon([(-9, -9), (-2, -9), (-2, -2)]), 5, 5).any()


PLACES = st.floats(-0.3, 1.3, allow_subnormal=False) | st.sampled_from([0.0, 0.25, 0.5, 1.0])
CLOUDS = st.integers(1, 12).flatmap(lambda n: arrays(np.float64, (n, 2), elements=PLACES))
RADII = st.floats(0.8, 5)


@settings(deadline=None, max_examples=150)
@given(cloud=CLOUDS, radius=RADII)
def test_a_hull_contains_its_points_and_its_mask_is_the_pixels_it_covers(cloud: Points, radius: float) -> None:
    hull = convex_hull(cloud, WIDTH, HEIGHT, radius)
    assert hull is not None
    assert hull.is_valid
    assert shapely.covers(hull, shapely.points(np.clip(cloud, 0, 1) * (WIDTH, HEIGHT))).all()
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    centres = shapely.points(x, y)
    clear = shapely.distance(hull.exterior, centres) > 1e-9  # on the border itself either answer is right
    mask = hull_mask(hull, WIDTH, HEIGHT)
    np.testing.assert_array_equal(mask[clear], shapely.covers(hull, centres)[clear])
    assert mask.any()


@settings(deadline=None, max_examples=150)
@given(cloud=CLOUDS, more=CLOUDS, radius=RADII)
def test_more_points_never_cover_fewer_pixels(cloud: Points, more: Points, radius: float) -> None:
    before = convex_hull(cloud, WIDTH, HEIGHT, radius)
    after = convex_hull(np.concatenate([cloud, more]), WIDTH, HEIGHT, radius)
    assert before is not None and after is not None
    lost = hull_mask(before, WIDTH, HEIGHT) & ~hull_mask(after, WIDTH, HEIGHT)
    rows, columns = np.nonzero(lost)
    assert (shapely.distance(before.exterior, shapely.points(columns + 0.5, rows + 0.5)) < 1e-9).all()


@settings(deadline=None, max_examples=100)
@given(cloud=CLOUDS, radius=RADII, seed=st.integers(0, 99))
def test_the_order_of_the_points_does_not_matter(cloud: Points, radius: float, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(cloud)
    first, second = (convex_hull(some, WIDTH, HEIGHT, radius) for some in (cloud, shuffled))
    assert first is not None and second is not None
    assert first.normalize().equals_exact(second.normalize())
