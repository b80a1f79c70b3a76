"""Narratives that a person gives: what is written is read back, and what cannot be drawn is said in a sentence."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.data.hulls import spoken_phrases
from orchestration.data.records import Narrative, Utterance
from orchestration.errors import RequestError
from orchestration.narratives.narrative_text import (
    EXAMPLE,
    MOST_POINTS,
    MOST_SECONDS,
    MOST_WORDS,
    describe,
    narrative_json,
    read_narrative,
)
from tests.data_files import refusal

Json = dict[str, Any]


def same(one: Narrative, other: Narrative) -> bool:
    return (
        (one.annotator_id, one.caption, one.tags, tuple(one.utterances))
        == (other.annotator_id, other.caption, other.tags, tuple(other.utterances))
        and len(one.traces) == len(other.traces)
        and all(np.array_equal(*traces) for traces in zip(one.traces, other.traces, strict=True))
    )


def published() -> Json:
    """As Localized Narratives has it."""
    return {
        "dataset_id": "mscoco_val2017",
        "image_id": "137576",
        "annotator_id": 93,
        "caption": "In this, a dog.",
        "timed_caption": [
            {"utterance": "In this,", "start_time": 0.0, "end_time": 0.4},
            {"utterance": "a dog.", "start_time": 0.3, "end_time": 2},
        ],
        "traces": [[{"x": 0.2, "y": -0.1, "t": 0.02}, {"x": 1.2, "y": 0.5, "t": 0.02}], [{"x": 0, "y": 1, "t": 0.01}]],
        "voice_recording": "coco_val/137576_93.ogg",
    }


def short() -> Json:
    return {"words": ["a", "dog."], "times": [[0, 0.5], [0.5, 2]], "trace": [[0.2, 0.3, 0.1], [7, -7, 1]]}


def changed(layout: Json, *place: Any, to: object) -> str:
    """The layout as text, with another value (or with a new field) at a place."""
    where: Any = layout
    for key in place[:-1]:
        where = where[key]
    where[place[-1]] = to
    return json.dumps(layout)


def test_plain_words_have_no_trace() -> None:
    assert same(read_narrative(" A dog\n on\tgrass. \r\n"), Narrative(0, "A dog\n on\tgrass.", (), ()))
    assert read_narrative('[["words"]]').caption == '[["words"]]'


def test_the_published_form() -> None:
    found = read_narrative("\n" + json.dumps(published()))
    said = (Utterance("In this,", 0.0, 0.4), Utterance("a dog.", 0.3, 2.0))
    traces = (np.array([[0.2, -0.1, 0.02], [1.2, 0.5, 0.02]]), np.array([[0.0, 1.0, 0.01]]))
    assert same(found, Narrative(0, "In this, a dog.", said, traces))
    assert found.traces[1].dtype == np.float64


def test_the_short_form_has_one_time_a_word() -> None:
    found = read_narrative(json.dumps(short()))
    said = (Utterance("a", 0.0, 0.5), Utterance("dog.", 0.5, 2.0))
    assert same(found, Narrative(0, "a dog.", said, (np.array([[0.2, 0.3, 0.1], [7.0, -7.0, 1.0]]),)))
    assert [phrase.points.tolist() for phrase in spoken_phrases(found)] == [[[0.2, 0.3]], [[7, -7]]]


@pytest.mark.parametrize("given", ['{"caption": "a dog"}', '{"words": ["a", "dog"], "image_id": 7}'])
def test_json_without_a_trace(given: str) -> None:
    assert same(read_narrative(given), Narrative(0, "a dog", (), ()))


def test_times_without_a_trace_and_traces_without_a_point() -> None:
    timed = {"caption": "dog", "timed_caption": [{"utterance": "dog", "start_time": 1, "end_time": 1}]}
    assert same(read_narrative(json.dumps(timed)), Narrative(0, "dog", (Utterance("dog", 1.0, 1.0),), ()))
    assert read_narrative('{"caption": "dog", "traces": [[], []]}').traces == ()


def test_the_example_of_the_help_text() -> None:
    assert EXAMPLE in describe() and len(read_narrative(EXAMPLE).traces[0]) == 4


TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12)
WORDS = TEXTS.map(lambda text: "".join(text.split())).filter(bool)
TIMES = st.floats(-MOST_SECONDS, MOST_SECONDS)
PLACES = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def narratives(draw: st.DrawFn) -> Narrative:
    utterances, traces = [], []
    for start in sorted(draw(st.lists(TIMES, max_size=4))):
        text = " ".join(draw(st.lists(WORDS, min_size=1, max_size=3)))
        utterances.append(Utterance(text, start, draw(st.floats(start, MOST_SECONDS))))
    for _ in range(draw(st.integers(0, 3)) if utterances else 0):
        times = sorted(draw(st.lists(TIMES, min_size=1, max_size=4)))
        traces.append(np.array([(draw(PLACES), draw(PLACES), time) for time in times]))
    caption = draw(TEXTS) + draw(WORDS) + draw(st.sampled_from(["", " ", "\n{"]))
    return Narrative(0, caption, tuple(utterances), tuple(traces))


@settings(deadline=None, max_examples=150)
@given(narrative=narratives())
def test_what_is_written_is_read_back(narrative: Narrative) -> None:
    """And what is read passes the checks of what comes after it."""
    found = read_narrative(narrative_json(narrative))
    assert same(found, narrative)
    assert spoken_phrases(found)


@settings(deadline=None, max_examples=150)
@given(text=st.text() | st.text('{}[]":,.-01 eENaInfity\\').map("{".__add__))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = read_narrative(text)
    except RequestError as error:
        assert str(error)
    else:
        assert 0 < len(found.caption.split()) <= MOST_WORDS


def test_annotator_tags_and_empty_traces_are_not_written() -> None:
    traced = read_narrative(json.dumps(published()))
    full = Narrative(7, traced.caption, traced.utterances, [*traced.traces, np.empty((0, 3))], ("dog",) * 4)
    text = narrative_json(full)
    assert same(read_narrative(text), traced) and "[]" not in text and "tags" not in text


NO_WORDS = "the narrative has no words; write what the picture should show."
TRACE_ONLY = "the narrative has a trace and no words; write or say what the trace shows."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", NO_WORDS),
        (" \n", NO_WORDS),
        ("{}", NO_WORDS),
        ('{"caption": " "}', NO_WORDS),
        (changed(published(), "caption", to=""), TRACE_ONLY),
        ('{"traces": [[{"x": 0, "y": 0, "t": 0}]]}', TRACE_ONLY),
        ('{"trace": [[0, 0, 0]]}', TRACE_ONLY),
        (
            changed(published(), "timed_caption", to=[]),
            "the narrative has a trace and no times of its words; add timed_caption, or leave out traces.",
        ),
        (
            changed(short(), "times", to=[]),
            "the narrative has a trace and no times of its words; add times, or leave out trace.",
        ),
        (
            changed(short(), "times", to=[[0, 1]]),
            "the narrative has 2 words and 1 time; give each word its start and end.",
        ),
        (
            '{"times": [[0, 1]]}',
            "the narrative has 0 words and 1 time; give each word its start and end.",
        ),
        (
            changed(short(), "words", 1, to=""),
            "words[1] of the narrative is empty; give each word a place of its own.",
        ),
        (
            changed(short(), "words", 1, to="a dog"),
            "words[1] of the narrative is 'a dog', which is not one word; give each word a place of its own.",
        ),
        (
            changed(published(), "timed_caption", 1, "utterance", to=" "),
            "timed_caption[1].utterance of the narrative is empty; write what is said, or leave it out.",
        ),
        ("w " * (MOST_WORDS + 1), "the narrative has 501 words; write at most 500."),
        (
            changed(published(), "timed_caption", 1, "utterance", to="w " * (MOST_WORDS + 1)),
            "the narrative has 503 words; write at most 500.",
        ),
        (
            changed(short(), "trace", to=[[0, 0, 0]] * (MOST_POINTS + 1)),
            "the narrative has a trace of 10,001 points; keep at most 10,000 of them.",
        ),
        (
            changed(published(), "timed_caption", 1, "start_time", to=-0.5),
            "the narrative: the times run backwards at 'a dog.', from 0 s to -0.5 s; give utterances and points in the "
            "order of time.",
        ),
        (
            changed(short(), "times", 1, to=[2, 1]),
            "the narrative: the times run backwards at 'dog.', from 2 s to 1 s; give utterances and points in the "
            "order of time.",
        ),
        (
            changed(published(), "traces", 0, 1, "t", to=0.01),
            "the narrative: the times run backwards at trace 0, from 0.02 s to 0.01 s; give utterances and points in "
            "the order of time.",
        ),
        (
            changed(short(), "trace", 1, 2, to=1.7e9),
            "the narrative: trace 0 has the time 1.7e+09 s; count seconds from the start of the recording, at most "
            "86,400.",
        ),
        ("a\x07 dog", "the narrative has the control character U+0007 in 'a\\x07 dog'; remove it."),
        ("a dog\ud800", "the narrative has the control character U+D800 in 'a dog\\ud800'; remove it."),
        (
            changed(published(), "timed_caption", 0, "utterance", to="a\x1bb"),
            "the narrative has the control character U+001B in 'a\\x1bb'; remove it.",
        ),
    ],
)
def test_narratives_that_cannot_be_drawn(text: str, message: str) -> None:
    assert refusal(partial(read_narrative, text)) == message


def unread(what: str) -> str:
    return f"the narrative cannot be read: {what}."


PLAIN = "mend it, or write plain words"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", unread(f"it is cut short: the JSON is not closed at its end, byte 1; {PLAIN}")),
        ("{a dog}", unread(f"it is not JSON from byte 1 on (object keys must be strings); {PLAIN}")),
        ('{"caption": "a"} b', unread(f"it is not JSON from byte 18 on (trailing characters); {PLAIN}")),
        ('{"caption": "\ud800"}', unread(f"byte 13 is not UTF-8; {PLAIN}")),
        (changed(published(), "caption", to=3), unread(f"caption: expected `str`, got `int`; {PLAIN}")),
        (changed(short(), "words", 0, to=3), unread(f"words[0]: expected `str`, got `int`; {PLAIN}")),
        (changed(short(), "times", 1, to=[0]), unread(f"times[1]: expected `array` of length 2; {PLAIN}")),
        (changed(published(), "traces", to={}), unread(f"traces: expected `array`, got `object`; {PLAIN}")),
        (
            changed(published(), "traces", 0, 0, to={"x": 1, "y": 1}),
            unread(f"t is missing in traces[0][0]; {PLAIN}"),
        ),
        (
            changed(published(), "traces", 0, 0, "z", to=1),
            unread("traces[0][0] has the unknown field 'z'; leave it out"),
        ),
        (
            changed(published(), "tags", to=[]),
            "the narrative has the unknown field 'tags'; leave it out, its fields are caption, timed_caption, traces.",
        ),
        (
            changed(short(), "caption", to="a dog"),
            "the narrative has the unknown field 'caption'; leave it out, its fields are words, times, trace.",
        ),
    ],
)
def test_json_that_is_no_narrative(text: str, message: str) -> None:
    assert refusal(partial(read_narrative, text)) == message


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf"), None, "too large"])
@pytest.mark.parametrize(
    ("layout", "place", "name"),
    [
        (published, ("traces", 0, 1, "y"), "traces[0][1].y"),
        (published, ("timed_caption", 1, "end_time"), "timed_caption[1].end_time"),
        (short, ("trace", 1, 0), "trace[1][0]"),
        (short, ("times", 0, 1), "times[0][1]"),
    ],
)
def test_numbers_that_are_none(layout: Callable[[], Json], place: tuple[Any, ...], name: str, wrong: object) -> None:
    text = changed(layout(), *place, to=wrong).replace('"too large"', "-1e999")
    told = f"prompt 3 cannot be read: {name} is no finite number but NaN, Infinity or null; leave that out."
    assert refusal(partial(read_narrative, text, "prompt 3")) == told


def test_words_that_are_called_nan_are_words() -> None:
    assert read_narrative('{"words": ["NaN", "Infinity\\""]}').caption == 'NaN Infinity"'
