"""A narrative as a person gives it to be drawn: plain words, or JSON with the times of the words and a mouse trace.

    plain      words only; they are drawn without a place
    published  {"caption", "timed_caption": [{"utterance", "start_time", "end_time"}], "traces": [[{"x", "y", "t"}]]}
    short      {"words": [...], "times": [[start, end], ...], "trace": [[x, y, t], ...]}

A text that begins with "{" is JSON. "published" is the form of Localized Narratives (Pont-Tuset et al. 2020), whose
ids and recording are read over. In "short" each word has a time of its own. x and y are picture widths and heights, t
and times seconds. Points outside of 0..1 are kept: they count as at the picture's edge.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from orchestration.data.json_files import clause
from orchestration.data.records import Narrative, Utterance
from orchestration.errors import RequestError

MOST_WORDS = 500
"""Of a narrative that a person gives: the longest one that TReCS released has 172."""
MOST_POINTS = 10_000
"""Of a mouse trace that a person gives; published ones have some hundred."""
MOST_SECONDS = 86_400
"""Times are at most this far from the recording's start: a clock that counts from elsewhere is found out."""

EXAMPLE = (
    '{"words": ["a", "dog", "on", "grass"], "times": [[0, 0.2], [0.2, 0.8], [0.9, 1], [1, 1.6]], '
    '"trace": [[0.3, 0.4, 0.1], [0.5, 0.6, 0.7], [0.1, 0.9, 1.1], [0.9, 0.8, 1.5]]}'
)
"""For help texts."""

_JSON = "{"  # what such a text begins with
_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # less tab and ends of lines
_STRING_OR_NO_NUMBER = re.compile(rb'"(?:\\.|[^"\\])*"|-?\b(?:NaN|Infinity)\b')
_SHOWN = 40  # characters, in a sentence


class _Said(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    utterance: str
    start_time: float
    end_time: float


class _Point(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    x: float
    y: float
    t: float


class _Form(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Published fields that are read over."""

    dataset_id: Any = None
    image_id: Any = None
    annotator_id: Any = None
    voice_recording: Any = None


class _Published(_Form, forbid_unknown_fields=True, omit_defaults=True):
    caption: str = ""
    timed_caption: list[_Said] = []
    traces: list[list[_Point]] = []


class _Short(_Form, forbid_unknown_fields=True):
    words: list[str] = []
    times: list[tuple[float, float]] = []
    trace: list[tuple[float, float, float]] = []


def describe() -> str:
    """What a person may write, for help texts."""
    return (
        "A narrative is plain words, or JSON: words, times (start and end of each word in seconds) and trace (points "
        "of x, y from 0 to 1 and time), or caption, timed_caption and traces as Localized Narratives has them; for "
        f"example {EXAMPLE}"
    )


def read_narrative(text: str, where: str = "the narrative") -> Narrative:
    """The narrative that a person wrote, as this module says; by annotator 0, and without tags.

    where: how a message calls it. Raises RequestError, one sentence, for a text that is no such JSON, has unknown
    fields or values of another type; without a word, and for a trace without words or times; for an utterance that is
    empty, another number of times than words, times that run backwards or are beyond `MOST_SECONDS`, coordinates or
    times that are no finite numbers, control characters, and more than `MOST_WORDS` or `MOST_POINTS`.
    """
    if not text.lstrip().startswith(_JSON):
        return _checked(Narrative(0, text.strip(), (), ()), where)
    content = text.encode("utf-8", "surrogatepass")
    form: type[_Published] | type[_Short] = _Published
    try:
        fields = msgspec.json.decode(_nulled(content), type=dict[str, msgspec.Raw])
        form = _Short if set(fields) & _own_fields(_Short) else _Published
        _check_fields(fields, form, where)
        decoded: _Published | _Short = msgspec.json.decode(content, type=form)
    except _BROKEN as error:
        raise RequestError(f"{where} cannot be read: {_fault(content, error, form)}.") from error
    return _checked(_short(decoded, where) if isinstance(decoded, _Short) else _published(decoded, where), where)


def narrative_json(narrative: Narrative) -> str:
    """The narrative as published JSON; `read_narrative` makes the same narrative of it, but for annotator and tags.

    Traces without a point are left out. A narrative that `read_narrative` refuses is written all the same.
    """
    said = [_Said(each.text, each.start, each.end) for each in narrative.utterances]
    traces = [[_Point(*point) for point in trace.tolist()] for trace in narrative.traces if len(trace)]
    return msgspec.json.encode(_Published(caption=narrative.caption, timed_caption=said, traces=traces)).decode()


def _published(read: _Published, where: str) -> Narrative:
    traces = [
        np.array([(point.x, point.y, point.t) for point in points], np.float64) for points in read.traces if points
    ]
    said = tuple(Utterance(each.utterance, each.start_time, each.end_time) for each in read.timed_caption)
    for place, each in enumerate(said):
        if not each.text.split():
            raise RequestError(
                f"timed_caption[{place}].utterance of {where} is empty; write what is said, or leave it out."
            )
    if traces and read.caption.split() and not said:
        raise RequestError(f"{where} has a trace and no times of its words; add timed_caption, or leave out traces.")
    return Narrative(0, read.caption, said, tuple(traces))


def _short(read: _Short, where: str) -> Narrative:
    for place, word in enumerate(read.words):
        if len(word.split()) != 1 or word != word.strip():
            what = f"{_shown(word)}, which is not one word" if word.split() else "empty"
            raise RequestError(f"words[{place}] of {where} is {what}; give each word a place of its own.")
    if read.trace and read.words and not read.times:
        raise RequestError(f"{where} has a trace and no times of its words; add times, or leave out trace.")
    if read.times and len(read.times) != len(read.words):
        counted = f"{_counted(len(read.words), 'word')} and {_counted(len(read.times), 'time')}"
        raise RequestError(f"{where} has {counted}; give each word its start and end.")
    said = tuple(Utterance(word, *time) for word, time in zip(read.words, read.times, strict=False))
    trace = (np.array(read.trace, np.float64),) if read.trace else ()
    return Narrative(0, " ".join(read.words), said, trace)


def _checked(narrative: Narrative, where: str) -> Narrative:
    for text in (narrative.caption, *(said.text for said in narrative.utterances)):
        if (odd := _CONTROL.search(text)) is not None:
            shown = _shown(text[max(0, odd.start() - _SHOWN // 2) :])
            raise RequestError(f"{where} has the control character U+{ord(odd[0]):04X} in {shown}; remove it.")
    words = len(narrative.caption.split())
    if not words and narrative.traces:
        raise RequestError(f"{where} has a trace and no words; write or say what the trace shows.")
    if not words:
        raise RequestError(f"{where} has no words; write what the picture should show.")
    most = max(words, sum(len(said.text.split()) for said in narrative.utterances))
    if most > MOST_WORDS:
        raise RequestError(f"{where} has {most:,} words; write at most {MOST_WORDS}.")
    points = sum(map(len, narrative.traces))
    if points > MOST_POINTS:
        raise RequestError(f"{where} has a trace of {points:,} points; keep at most {MOST_POINTS:,} of them.")
    _check_times(narrative, where)
    return narrative


def _check_times(narrative: Narrative, where: str) -> None:
    for what, times in _time_lines(narrative):
        for time in times:
            if abs(time) > MOST_SECONDS:
                raise RequestError(
                    f"{where}: {what} has the time {time:g} s; count seconds from the start of the recording, at most "
                    f"{MOST_SECONDS:,}."
                )
        for before, after in pairwise(times):
            if before > after:
                raise RequestError(
                    f"{where}: the times run backwards at {what}, from {before:g} s to {after:g} s; give utterances "
                    "and points in the order of time."
                )


def _time_lines(narrative: Narrative) -> Iterator[tuple[str, list[float]]]:
    """What has times, and those of it that must not run backwards."""
    since: list[float] = []
    for said in narrative.utterances:
        yield _shown(said.text), [*since, said.start, said.end]
        since = [said.start]  # voices may overlap
    for place, trace in enumerate(narrative.traces):
        yield f"trace {place}", trace[:, 2].tolist()


def _own_fields(form: type[_Form]) -> set[str]:
    return {*form.__struct_fields__} - {*_Form.__struct_fields__}


def _check_fields(fields: dict[str, msgspec.Raw], form: type[_Form], where: str) -> None:
    for name in fields:
        if name not in form.__struct_fields__:
            known = ", ".join(name for name in form.__struct_fields__ if name in _own_fields(form))
            raise RequestError(f"{where} has the unknown field {_shown(name)}; leave it out, its fields are {known}.")


def _nulled(content: bytes) -> bytes:
    """With null for NaN and infinities, which JSON has no word for, but Python and JavaScript write."""
    return _STRING_OR_NO_NUMBER.sub(lambda match: match[0] if match[0][:1] == b'"' else b"null", content)


def _fault(content: bytes, error: Exception, form: type[_Form]) -> str:
    """What is wrong with a JSON text, and how it is mended, as a clause."""
    try:
        msgspec.json.decode(_nulled(content), type=form)
    except _BROKEN as other:
        number = re.fullmatch(r"(?:.*, got `null`|Number out of range) - at `\$\.(t.*)`", str(other))
        if number is not None:
            return f"{number[1]} is no finite number but NaN, Infinity or null; leave that out"
    found = clause(content, error)
    unknown = re.fullmatch(r"(.*): object contains unknown field `(.*)`", found)
    if unknown is not None:
        return f"{unknown[1]} has the unknown field {_shown(unknown[2])}; leave it out"
    return f"{found}; mend it, or write plain words"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
