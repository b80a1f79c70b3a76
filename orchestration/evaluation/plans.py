"""Plans: which captions pictures are drawn for, with which noise. A plan is the same whoever carries it out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestration.data.batches import CaptionedPictures, held_out_captions
from orchestration.data.features import CaptionIndex
from orchestration.data.sampler import SeededOrder, derive_seed
from orchestration.evaluation.metric import Asked
from orchestration.stages import short_hash

CAPTIONS, REPEATS, LABELS, EVERY_CAPTION = "captions", "repeats", "labels", "every-caption"
NOISE_STREAM, REAL_STREAM, REPEAT_STREAM, LABEL_STREAM = 200, 201, 202, 203
PORTION = 100
"""Pictures that are drawn and looked at together: fixed, so that no figure depends on the number of workers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """N pictures to draw, or to take.

    items: (N,) images, by place in the split; captions: (N,) places in the split's caption index; groups: (N,) as in
    `Asked`; seeds: (N,) of the noise, None for real pictures; group_size: pictures of a group follow each other, and
    are never divided among portions.
    """

    name: str
    items: NDArray[np.int64]
    captions: NDArray[np.int64]
    groups: NDArray[np.int64]
    seeds: NDArray[np.int64] | None = None
    group_size: int = 1

    def __len__(self) -> int:
        return len(self.items)

    @property
    def portion(self) -> int:
        """Pictures in a portion: whole groups."""
        return max(1, PORTION // self.group_size) * self.group_size

    @property
    def digest(self) -> str:
        """16 hex digits of all of it."""
        columns = (self.items, self.captions, self.groups, self.seeds)
        listed = [None if column is None else column.tolist() for column in columns]
        return short_hash([self.name, self.portion, *listed])

    def asked(self, data: CaptionedPictures, places: NDArray[np.int64]) -> Asked:
        """What the pictures at these places are drawn for."""
        items, captions = self.items[places], self.captions[places]
        return Asked(
            places,
            data.image_ids[items],
            data.index.class_ids[items],
            self.groups[places],
            [data.index.texts[caption] for caption in captions],
            data.tokens.take(captions) if data.tokens else None,
        )


def one_a_caption(index: CaptionIndex, samples: int, seed: int) -> Plan:
    """One picture for each of `samples` held-out captions, drawn with the seed as `held_out_captions` says."""
    items, captions = held_out_captions(index, samples, seed)
    return Plan(CAPTIONS, items, captions, np.arange(samples), _seeds(seed, NOISE_STREAM, samples))


def repeats(index: CaptionIndex, captions: int, times: int, seed: int) -> Plan:
    """`times` pictures with other noise for each of so many held-out captions."""
    items, chosen = held_out_captions(index, captions, derive_seed(seed, REPEAT_STREAM) >> 1)
    count = captions * times
    groups = np.repeat(np.arange(captions), times)
    seeds = _seeds(seed, REPEAT_STREAM, count)
    return Plan(REPEATS, np.repeat(items, times), np.repeat(chosen, times), groups, seeds, times)


def by_label(index: CaptionIndex, captions: NDArray[np.int64], labels: NDArray[np.int64], seed: int) -> Plan:
    """A picture for each of these captions (N,), drawn because they name a label (N,): for object accuracy."""
    items = np.searchsorted(index.starts, captions, side="right") - 1
    return Plan(LABELS, items, captions, labels, _seeds(seed, LABEL_STREAM, len(captions)))


def real_images(index: CaptionIndex, most: int) -> Plan:
    """Every image of the split once, with its first caption; at most so many, the same ones whatever else is drawn."""
    count = len(index.image_ids)
    items = np.arange(count)
    if most < count:
        items = np.sort(SeededOrder(count, REAL_STREAM).items(np.arange(most)))
    return Plan(CAPTIONS, items, index.starts[items], np.arange(len(items)))


def every_caption(index: CaptionIndex) -> Plan:
    """Every caption of the split once, with its image."""
    items = np.repeat(np.arange(len(index.image_ids)), np.diff(index.starts))
    return Plan(EVERY_CAPTION, items, np.arange(len(items)), items)


def _seeds(seed: int, stream: int, count: int) -> NDArray[np.int64]:
    return np.array([derive_seed(seed, stream, place) for place in range(count)], np.int64)


def portions(plan: Plan) -> Sequence[NDArray[np.int64]]:
    """The places of a plan, portion by portion."""
    return [np.arange(start, min(start + plan.portion, len(plan))) for start in range(0, len(plan), plan.portion)]
