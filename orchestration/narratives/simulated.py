"""Mouse traces for narratives that have none but whose words have tags, such as those that TReCS released.

The mouse is where the tag says: while the words of one tag are spoken, it visits pixels of that class. Nothing of this
is in the paper; it lets everything after tagging run on pictures with label maps and released tags.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

from orchestration.data.label_maps import LabelReader
from orchestration.data.records import Dataset, ImageRecord, Narrative, Utterance, carried
from orchestration.errors import RequestError
from orchestration.narratives.settings import NarrativeSettings

VERSION = 1
SECONDS_A_WORD = 0.3
POINTS_A_WORD = 3
_SAID = ", simulated traces"  # ends the name of a data set that has them


def tag_name(name: str) -> str:
    """A class as TReCS's released tags write it: with dashes for spaces."""
    return "-".join(name.split())


def simulated(
    narrative: Narrative,
    labels: NDArray[np.integer],
    classes: Sequence[str],
    seed: int,
    image_id: int,
    place: int,
    where: str = "the narrative",
) -> Narrative:
    """The narrative with made-up times and traces: an utterance and a trace for each run of one tag.

    labels: (H,W), places among classes; place: of the narrative among its picture's. Points are drawn by chance, by
    seed, image_id and place alone, inside of the tag's pixels, and in the order in which a hand would visit them. A tag
    of a class that the picture does not show has an empty trace. Raises RequestError for another number of tags than
    words.
    """
    runs = _runs(narrative, where)
    random = np.random.default_rng((seed, image_id, place))
    numbers = {tag_name(name): number for number, name in enumerate(classes)}
    assert narrative.tags is not None
    traces, hand = [], None
    for first, end in runs:
        number = numbers.get(tag_name(narrative.tags[first]))
        pixels = np.flatnonzero(labels == number) if number is not None else np.empty(0, np.int64)
        trace = _visit(pixels, labels.shape, first, end, hand, random)
        hand = trace[-1, :2] if len(trace) else hand
        traces.append(trace)
    return replace(narrative, utterances=_utterances(narrative, runs), traces=tuple(traces))


def simulate_traces(dataset: Dataset, settings: NarrativeSettings) -> Dataset:
    """The data set in which every narrative with tags and without traces, of a picture with labels, has simulated ones.

    They are drawn when they are touched. The same data set where the settings ask for none, where it has them already,
    and where no narrative is in want of them.
    """
    if settings.traces != "simulated" or not any(map(_wants, dataset.records)):
        return dataset
    reader = LabelReader(dataset)
    records = tuple(_told(record, reader, settings.seed) if _wants(record) else record for record in dataset.records)
    digest = hashlib.sha256(f"{dataset.digest} simulated traces {VERSION} {settings.seed}".encode()).hexdigest()
    return replace(
        dataset, name=dataset.name + _SAID, records=records, carries=dataset.carries | carried(records), digest=digest
    )


def _wants(record: ImageRecord) -> bool:
    return "labels" in record.carries and any(map(_lacks, record.narratives or ()))


def _lacks(narrative: Narrative) -> bool:
    return narrative.tags is not None and not len(narrative.traces) and bool(narrative.caption.split())


def _told(record: ImageRecord, reader: LabelReader, seed: int) -> ImageRecord:
    narratives = []
    for place, narrative in enumerate(record.narratives or ()):
        if _lacks(narrative):
            where = f"narrative {place + 1} of image {record.image_id}"
            runs = _runs(narrative, where)
            drawn = _Drawn(narrative, record, reader, seed, place, where, len(runs))
            narrative = replace(narrative, utterances=_utterances(narrative, runs), traces=drawn)
        narratives.append(narrative)
    return replace(record, narratives=tuple(narratives))


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn(Sequence[NDArray[np.float64]]):
    """The traces of one narrative, drawn at each touch: label maps of all pictures at once would fill the memory."""

    narrative: Narrative
    record: ImageRecord
    reader: LabelReader
    seed: int
    place: int
    where: str
    size: int

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        return iter(self._draw())

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float64]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[np.float64]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.float64] | Sequence[NDArray[np.float64]]:
        return self._draw()[index]

    def _draw(self) -> Sequence[NDArray[np.float64]]:
        labels, _ = self.reader.read(self.record)
        classes, image_id = self.reader.classes, self.record.image_id
        return simulated(self.narrative, labels, classes, self.seed, image_id, self.place, self.where).traces


def _runs(narrative: Narrative, where: str) -> list[tuple[int, int]]:
    """First word and the one after the last of each run of one tag."""
    tags, count = narrative.tags or (), len(narrative.caption.split())
    if len(tags) != count:
        raise RequestError(f"{where} has {count} words and {len(tags)} tags; give one tag for each word.")
    starts = [place for place in range(count) if place == 0 or tags[place] != tags[place - 1]]
    return list(pairwise([*starts, count]))


def _utterances(narrative: Narrative, runs: Sequence[tuple[int, int]]) -> tuple[Utterance, ...]:
    words = narrative.caption.split()
    return tuple(
        Utterance(" ".join(words[first:end]), first * SECONDS_A_WORD, end * SECONDS_A_WORD) for first, end in runs
    )


def _visit(
    pixels: NDArray[np.int64],
    shape: tuple[int, ...],
    first: int,
    end: int,
    hand: NDArray[np.float64] | None,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """(N,3) x, y and t of points in these pixels, while words first to end are spoken; each is the nearest to the one
    before of those that are left, the first the nearest to the hand."""
    if not len(pixels):
        return np.empty((0, 3))
    count = POINTS_A_WORD * (end - first)
    y, x = np.divmod(random.choice(pixels, count), shape[1])
    # Clear of a pixel's edges, so that no rounding moves a point into the next one.
    inside = random.uniform(0.1, 0.9, (count, 2))
    left = (np.stack([x, y], 1) + inside) / (shape[1], shape[0])
    at, path = left[0] if hand is None else hand, []
    for _ in range(count):
        nearest = int(((left - at) ** 2).sum(1).argmin())
        at = left[nearest]
        path.append(at)
        left = np.delete(left, nearest, 0)
    # In the middles of equal parts of the time: a point at its end would be in the next phrase too.
    times = SECONDS_A_WORD * (first + (np.arange(count) + 0.5) / POINTS_A_WORD)
    return np.column_stack([np.array(path), times])
