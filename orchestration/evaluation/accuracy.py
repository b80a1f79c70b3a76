"""Do pictures of generated scenes show what their captions name? Judged by scenes-net, for generated scenes only."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestration.errors import RequestError
from orchestration.evaluation.estimates import share
from orchestration.evaluation.metric import Result, Seen
from orchestration.evaluation.plans import CAPTIONS
from orchestration.evaluation.scenes_net import ATTRIBUTES

PROTOCOLS = {
    "background": "the background that the caption names",
    "colour": "the colour of its main thing",
    "thing": "its main thing",
}
VIEW = "scenes-net"


class SceneAccuracy:
    """Share of pictures in which scenes-net sees the background, the colour and the thing that their caption names.

    Beside it stand `accuracy_mismatched`, the same pictures against the captions of the pictures before them, and
    `chance`, one over the number of classes.
    """

    name = "accuracy"
    protocol = "scenes"
    looks_at = frozenset({VIEW})
    looks_at_real: frozenset[str] = frozenset()
    plan = CAPTIONS

    def __init__(self, labels: Mapping[str, Sequence[str]], classes: Mapping[str, Sequence[str]]) -> None:
        self.labels, self.classes = labels, classes
        self._seen: dict[int, tuple[int, tuple[int, ...]]] = {}  # by place: image, class indices

    @classmethod
    def open(cls, labels: Path, judge: Path) -> "SceneAccuracy":
        """From the stages' folders."""
        classes = json.loads((judge / "judge.json").read_text())["classes"]
        return cls(json.loads((labels / "labels.json").read_text()), classes)

    def update(self, drawn: Seen) -> None:
        columns = [drawn[f"{VIEW}/{name}"].tolist() for name in ATTRIBUTES]
        places, images = drawn.asked.places.tolist(), drawn.asked.image_ids.tolist()
        for place, image, *indices in zip(places, images, *columns, strict=True):
            self._seen[place] = image, tuple(indices)

    def update_real(self, real: Seen) -> None:
        """Nothing: no real picture plays a part."""

    def merge(self, other: "SceneAccuracy") -> None:
        if (self.labels, self.classes) != (other.labels, other.classes):
            raise ValueError("labels or classes differ")
        self._seen |= other._seen

    def compute(self) -> list[Result]:
        if not self._seen:
            raise RequestError("accuracy has no pictures to judge: draw some")
        rows = [self._seen[place] for place in sorted(self._seen)]
        count, results = len(rows), []
        for column, name in enumerate(ATTRIBUTES):
            shown: NDArray[np.str_] = np.array([self.classes[name][indices[column]] for _, indices in rows])
            named = np.array([self.labels[str(image)][column] for image, _ in rows])
            mismatched, chance = share(shown == np.roll(named, 1)), 1 / len(self.classes[name])
            details = {"mismatched": mismatched.value, "chance": chance}
            results.append(Result("accuracy", name, share(shown == named), 0, count, details=details))
        return results
