"""What tests of retrieval and composition share: banks of drawn maps, a retriever that is told what it finds, and the
true tags of generated scenes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestration.data.mask_choice import picture_masks
from orchestration.data.records import Dataset, Narrative, Utterance
from orchestration.data.sources import open_source
from orchestration.narratives.composed import Found
from orchestration.narratives.mask_bank import FORMAT, About, MaskBank
from orchestration.narratives.runs import to_runs
from orchestration.narratives.telling import told

Layer = NDArray[np.integer]


def bank_of(
    maps: Sequence[tuple[Layer, Layer]], classes: Sequence[str], stuff: Sequence[bool], first_id: int = 100
) -> MaskBank:
    """A bank in memory of square labels and instances; picture i has the id first_id + i."""
    masks = [picture_masks(labels, instances, range(len(classes))) for labels, instances in maps]
    runs = [to_runs(labels) for labels, _ in maps]
    codes = [code["counts"] for found in masks for code in found.codes]
    about = About(FORMAT, "d" * 64, len(maps[0][0]), tuple(classes), tuple(stuff), len(maps), len(codes), 0, 0)
    return MaskBank(
        Path("a bank"),
        about,
        first_id + np.arange(len(maps)),
        starts_of(len(found.codes) for found in masks),
        np.concatenate([found.labels for found in masks]).astype(np.int32),
        np.concatenate([found.instances for found in masks]).astype(np.int32),
        starts_of(map(len, codes)),
        np.frombuffer(b"".join(codes), np.uint8),
        starts_of(len(lengths) for _, lengths in runs),
        np.concatenate([numbers[0] for numbers, _ in runs]),
        np.concatenate([lengths for _, lengths in runs]),
    )


def starts_of(counts: Iterable[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *counts])


@dataclass
class Told:
    """A retriever that ranks the bank's pictures by a list of places, or for each text by its own."""

    bank: MaskBank
    ranks: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    asked: list[int] = field(default_factory=list)

    def search(self, texts: Sequence[str], k: int, not_image_ids: Sequence[int] | None = None) -> list[list[Found]]:
        self.asked.append(k)
        found = []
        for row, text in enumerate(texts):
            ranks = self.ranks[text] if isinstance(self.ranks, Mapping) else self.ranks
            places = range(len(self.bank)) if ranks is None else ranks
            ids = self.bank.image_ids
            kept = [place for place in places if not_image_ids is None or ids[place] != not_image_ids[row]]
            found.append([Found(place, int(ids[place]), -float(rank)) for rank, place in enumerate(kept[:k])])
        return found


def narrative(*phrases: tuple[str, Sequence[tuple[float, float]]]) -> Narrative:
    """Phrases of a second each, with the points (x, y) that the mouse shows meanwhile."""
    said, traces = [], []
    for second, (text, points) in enumerate(phrases):
        said.append(Utterance(text, second + 0.1, second + 0.9))
        times = np.linspace(second + 0.2, second + 0.8, len(points))
        if points:
            traces.append(np.array([(x, y, t) for (x, y), t in zip(points, times, strict=True)]))
    return Narrative(0, " ".join(text for text, _ in phrases), said, traces)


def silent(said: Narrative) -> Narrative:
    """Only its text."""
    return replace(said, utterances=(), traces=())


def scenes(folder: Path, count: int, size: int = 64, split: str = "train") -> Dataset:
    """Told generated scenes, a thing of a kind at most in each narrative."""
    counts = {"train": 1, "val": 1, "test": 1, split: count}
    options = ",".join(f"{name}={number}" for name, number in counts.items())
    return told(open_source(f"scenes:size={size},{options}", split, folder))


def true_tags(said: Narrative, classes: Sequence[str]) -> NDArray[np.int64]:
    """The class that each utterance names, for all its words; the number of classes where it names none."""
    tags: list[int] = []
    for spoken in said.utterances:
        named = [label for label, name in enumerate(classes) if f" {name}" in f" {spoken.text}".replace(".", " ")]
        longest = max(named, key=lambda label: len(classes[label]), default=len(classes))
        tags += [longest] * len(spoken.text.split())
    return np.array(tags)
