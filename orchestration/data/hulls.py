"""The phrases of a narrative, the hull that each one's mouse trace encloses, and the label seen most in it.

TReCS, section 2.1: a phrase's noisy label is the one assigned to most pixels under the convex hull of its trace, and
every word of the phrase gets it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray

from orchestration.data.records import Narrative, Utterance
from orchestration.data.traces import convex_hull, hull_mask, phrase_points, timed_caption
from orchestration.errors import RequestError

MIN_RADIUS = 1.0
"""Pixels around each point of a trace, so that one point or a straight line has an area; the paper says nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Phrase:
    """Words first to last (places in the caption split at white space, `end` the first one after) and their trace.

    start, stop: seconds, None where the narrative is not timed; points: (N,2) x and y in picture widths and heights;
    tag: what the words were tagged with, where that made the phrase.
    """

    first: int
    end: int
    start: float | None
    stop: float | None
    points: NDArray[np.float64]
    tag: str | None = None


def spoken_phrases(narrative: Narrative, where: str = "the narrative") -> tuple[Phrase, ...]:
    """The phrases as they were spoken: one for each utterance that has words of the caption.

    Words of the caption that nobody says, in a pause, belong to the utterance before it. A narrative without times is
    one phrase with all points. where: how a message calls it. Raises RequestError for a narrative without words, times
    that run backwards, and points or times that are no numbers.
    """
    narrative, words = _checked(narrative, where)
    if not words:
        return (Phrase(0, len(narrative.caption.split()), None, None, _all_points(narrative)),)
    starts = np.array([said.start for said in narrative.utterances if said.text.split()])
    middles = np.array([(word.start + word.end) / 2 for word in words])
    owners = np.maximum.accumulate(np.searchsorted(starts, middles, "right") - 1).clip(0)
    edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(words)]
    return tuple(_phrase(narrative, words, first, end) for first, end in pairwise(edges))


def tagged_phrases(
    narrative: Narrative, tags: Sequence[str], left_out: Collection[str] = (), where: str = "the narrative"
) -> tuple[Phrase, ...]:
    """Neighbouring words of one tag, in order of mention; each is one mention of one thing, or of stuff.

    tags: one a word of the caption split at white space; left_out: tags that mention nothing. A narrative without times
    gives every phrase all points. Raises RequestError as `spoken_phrases` does, and for another number of tags.
    """
    narrative, words = _checked(narrative, where)
    count = len(narrative.caption.split())
    if len(tags) != count:
        raise RequestError(f"{where} has {count} words and {len(tags)} tags; give one tag for each word.")
    edges = [place for place in range(count) if place == 0 or tags[place] != tags[place - 1]]
    found = []
    for first, end in pairwise([*edges, count]):
        if tags[first] in left_out:
            continue
        phrase = (
            _phrase(narrative, words, first, end) if words else Phrase(first, end, None, None, _all_points(narrative))
        )
        found.append(replace(phrase, tag=tags[first]))
    return tuple(found)


def phrase_hull(
    points: NDArray[np.float64], width: int, height: int, min_radius: float = MIN_RADIUS, where: str = "the trace"
) -> shapely.Polygon | None:
    """The convex hull of (N,2) points in picture widths and heights, in pixels of a picture; None without points.

    Points outside of the picture count as at its edge. One point, or points on a line, become a disc or a thick line
    of min_radius pixels (see `convex_hull`). Raises RequestError for points that are no numbers.
    """
    _finite(points, where)
    return convex_hull(points, width, height, min_radius)


def phrase_mask(
    points: NDArray[np.float64], width: int, height: int, min_radius: float = MIN_RADIUS, where: str = "the trace"
) -> NDArray[np.bool_]:
    """bool (H,W): the pixels of `phrase_hull`; all False without points, and at least one pixel with points."""
    hull = phrase_hull(points, width, height, min_radius, where)
    inside = hull_mask(hull, width, height)
    if hull is not None and not inside.any():  # smaller than a pixel, and between their middles
        inside[min(int(hull.centroid.y), height - 1), min(int(hull.centroid.x), width - 1)] = True
    return inside


def majority_labels(
    labels: NDArray[np.integer], hulls: Sequence[shapely.Polygon | None], classes: int, known_only: bool = True
) -> NDArray[np.int64]:
    """(P,) the label of most pixels in each hull, of labels (H,W) from 0 to `classes`, which is "don't care".

    The lower one of two labels with as many pixels. A hull without a pixel, or without a pixel of a known class, has
    "don't care". known_only: False lets "don't care" win where it has most pixels.
    """
    height, width = labels.shape
    counts = np.zeros((len(hulls), classes + 1), np.int64)
    for row, hull in enumerate(hulls):
        if hull is not None:
            left, top, right, bottom = _window(hull, width, height)
            moved = shapely.transform(hull, lambda ends, corner=(left, top): ends - corner)
            inside = labels[top:bottom, left:right][hull_mask(moved, right - left, bottom - top)]
            counts[row] = np.bincount(inside, minlength=classes + 1)
    if known_only:
        counts[:, classes] = 0
    return np.where(counts.any(1), counts.argmax(1), classes)


def _window(hull: shapely.Polygon, width: int, height: int) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the pixels that a hull may have."""
    left, top, right, bottom = hull.bounds
    return max(int(left), 0), max(int(top), 0), min(int(right) + 1, width), min(int(bottom) + 1, height)


def noisy_labels(
    narrative: Narrative,
    labels: NDArray[np.integer],
    classes: int,
    min_radius: float = MIN_RADIUS,
    known_only: bool = True,
    where: str = "the narrative",
) -> NDArray[np.int64]:
    """(T,) one label a word of the caption split at white space: the majority label of its phrase's hull.

    labels: (H,W), of the picture in any size. TReCS, section 2.1. Raises RequestError as `spoken_phrases` does.
    """
    phrases, found = phrase_labels(narrative, labels, classes, min_radius, known_only, where)
    return np.repeat(found, [phrase.end - phrase.first for phrase in phrases])


def phrase_labels(
    narrative: Narrative,
    labels: NDArray[np.integer],
    classes: int,
    min_radius: float = MIN_RADIUS,
    known_only: bool = True,
    where: str = "the narrative",
) -> tuple[tuple[Phrase, ...], NDArray[np.int64]]:
    """The phrases as they were spoken, and (P,) the majority label of each one's hull; as `noisy_labels`."""
    height, width = labels.shape
    phrases = spoken_phrases(narrative, where)
    hulls = [convex_hull(phrase.points, width, height, min_radius) for phrase in phrases]
    return phrases, majority_labels(labels, hulls, classes, known_only)


def _checked(narrative: Narrative, where: str) -> tuple[Narrative, tuple[Utterance, ...]]:
    """The narrative with its times and traces in memory, and its timed words; () where it has no times."""
    narrative = replace(narrative, utterances=tuple(narrative.utterances), traces=tuple(narrative.traces))
    if not narrative.caption.split():
        raise RequestError(f"{where} has no words; write or say what the trace shows.")
    for place, trace in enumerate(narrative.traces):
        _finite(trace, f"trace {place} of {where}")
    for text, before, after in _backwards(narrative.utterances):
        raise RequestError(
            f"{where}: the times run backwards at {text!r}, from {before:g} s to {after:g} s; give each utterance its "
            "start and end in the order of speech."
        )
    return narrative, timed_caption(narrative)


def _backwards(utterances: Sequence[Utterance]) -> Iterator[tuple[str, float, float]]:
    """Text, earlier and later time of every utterance that does not end after it starts, or starts before the last."""
    since = -np.inf
    for said in utterances:
        for before, after in ((since, said.start), (said.start, said.end)):
            if not before <= after:
                yield said.text, before, after
        since = said.start


def _finite(points: NDArray[np.float64], where: str) -> None:
    if not np.isfinite(points).all():
        raise RequestError(
            f"{where} has a point that is no number (point {int(np.argmin(np.isfinite(points).all(1)))}); leave that "
            "point out."
        )


def _all_points(narrative: Narrative) -> NDArray[np.float64]:
    return np.concatenate([np.empty((0, 2)), *(trace[:, :2] for trace in narrative.traces)])


def _phrase(narrative: Narrative, words: Sequence[Utterance], first: int, end: int) -> Phrase:
    start, stop = words[first].start, words[end - 1].end
    return Phrase(first, end, start, stop, phrase_points(narrative, start, stop))
