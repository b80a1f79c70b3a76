"""Which part of the mouse trace goes with which words, and what it encloses (TReCS, section 2.1).

TReCS labels the words of a phrase by the pixels under the convex hull of the phrase's trace. Here: when each word is
spoken, the trace points of that time, their hull, and its pixels.
"""

import difflib
from collections.abc import Iterable, Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from orchestration.data.records import Narrative, Utterance

_DISC_QUARTER = 8  # segments of a quarter circle


def timed_words(narrative: Narrative) -> tuple[Utterance, ...]:
    """Every word of the utterances, in order, with its time in seconds.

    An utterance of several words gives each of them a share of its time by the word's length in characters; published
    times are of utterances only. () where the narrative is not timed.
    """
    return tuple(word for said in narrative.utterances for word in _share_out(said.text.split(), said.start, said.end))


def timed_caption(narrative: Narrative) -> tuple[Utterance, ...]:
    """Every word of the caption, split at white space and in order, with its time in seconds. () if not timed.

    Utterances and caption are the same words, but may differ in case, punctuation and spaces. Words that are the same
    letters and digits take the spoken word's time; those between two of them share the time that the utterances have
    there, or the pause where they have none.
    """
    spoken = timed_words(narrative)
    written = narrative.caption.split()
    if not spoken:
        return ()
    matcher = difflib.SequenceMatcher(None, _keys(written), _keys(word.text for word in spoken), autojunk=False)
    timed: list[Utterance] = []
    for same, first, last, first_spoken, last_spoken in matcher.get_opcodes():
        words = written[first:last]
        if same == "equal":
            for text, said in zip(words, spoken[first_spoken:last_spoken], strict=True):
                timed.append(Utterance(text, said.start, said.end))
        elif first_spoken < last_spoken:
            timed += _share_out(words, spoken[first_spoken].start, spoken[last_spoken - 1].end)
        else:
            before = spoken[max(first_spoken - 1, 0)]
            after = spoken[min(first_spoken, len(spoken) - 1)]
            start = before.end if first_spoken else after.start
            timed += _share_out(words, start, after.start)
    return tuple(timed)


def phrase_points(narrative: Narrative, start: float, end: float) -> NDArray[np.float64]:
    """(N,2) x and y, in picture widths and heights, of the points of all traces with start <= t <= end (seconds).

    In the order of the file. Parts of the time line that meet at a time share the points of that very time.
    """
    traces = [trace for trace in narrative.traces if len(trace)]
    if not traces:
        return np.empty((0, 2))
    points = np.concatenate(traces)
    return points[(start <= points[:, 2]) & (points[:, 2] <= end), :2]


def convex_hull(
    points: NDArray[np.float64], width: int, height: int, min_radius: float = 1.0
) -> shapely.Polygon | None:
    """The convex hull, in pixels of a picture of width x height, of (N,2) points in picture widths and heights.

    None without points. Points outside of 0..1 are moved to the picture's edge: the mouse leaves the picture while it
    circles what lies there. Each point is a disc of `min_radius` pixels (TReCS says nothing of it), so that one point
    has a disc and points on a line a thick line, and more points never enclose less.
    Raises ValueError for a radius that is not positive.
    """
    if min_radius <= 0:
        raise ValueError(f"min_radius is {min_radius}, but a point needs an area; give a positive number of pixels")
    if not len(points):
        return None
    # To a millionth of a pixel: GEOS divides by the lengths of sides.
    pixels = np.round(np.clip(points, 0, 1) * (width, height), 6)
    # The discs of the corners have the hull of all discs, and are few.
    corners = shapely.get_coordinates(shapely.MultiPoint(pixels).convex_hull)
    discs = shapely.buffer(shapely.points(corners), min_radius, quad_segs=_DISC_QUARTER)
    hull = shapely.convex_hull(shapely.MultiPoint(shapely.get_coordinates(discs)))
    assert isinstance(hull, shapely.Polygon)
    return hull


def hull_mask(hull: shapely.Polygon | None, width: int, height: int) -> NDArray[np.bool_]:
    """bool (H,W): the pixels whose centre is inside of a convex polygon or on its border. None has no pixels."""
    if hull is None:
        return np.zeros((height, width), np.bool_)
    corners = shapely.get_coordinates(hull.exterior)
    (x0, y0), (x1, y1) = corners[:-1].T, corners[1:].T
    rows = np.arange(height)[:, None] + 0.5
    # A level side adds nothing: both its ends are on other sides too.
    crossed = (np.minimum(y0, y1) <= rows) & (rows <= np.maximum(y0, y1)) & (y0 != y1)  # H,M: row by side
    share = np.divide(rows - y0, y1 - y0, out=np.zeros(crossed.shape), where=crossed)
    x = x0 + share * (x1 - x0)
    left = np.where(crossed, x, np.inf).min(1)
    right = np.where(crossed, x, -np.inf).max(1)
    columns = np.arange(width) + 0.5
    return (left[:, None] <= columns) & (columns <= right[:, None])


def _share_out(words: Sequence[str], start: float, end: float) -> list[Utterance]:
    """One after another from start to end, each for a time in proportion to its characters; at once if end < start."""
    end = max(start, end)
    total = sum(map(len, words))
    timed: list[Utterance] = []
    spoken, since = 0, start
    for word in words:
        spoken += len(word)
        until = end if spoken == total else min(end, start + (end - start) * (spoken / total))
        timed.append(Utterance(word, since, until))
        since = until
    return timed


def _keys(words: Iterable[str]) -> list[str]:
    """What two spellings of a word share: its letters and digits; a word without any is itself."""
    return ["".join(filter(str.isalnum, word.casefold())) or word for word in words]
