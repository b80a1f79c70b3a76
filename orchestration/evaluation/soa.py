"""Semantic object accuracy: does a detector find in a picture the thing that its caption names?

Hinz, Heinrich and Wermter, "Semantic Object Accuracy for Generative Text-to-Image Synthesis", arXiv 1910.13321,
section 4, and the evaluation code released with it. `orchestration.evaluation.soa_captions` says which pictures are
drawn.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.detectors.coco import NAMES, as_coco80, coco_index, to_coco80
from models.detectors.contract import Detections, Detector, DetectorSettings
from models.detectors.opening import open_detector
from models.encoders.image import WeightsMissing
from orchestration.data.records import ImageRecord
from orchestration.errors import RequestError
from orchestration.evaluation.estimates import Estimate, bootstrapped, resample_weights, share
from orchestration.evaluation.metric import Array, Asked, Result, Seen
from orchestration.evaluation.plans import LABELS

PROTOCOLS = {
    "soa_c/DETECTOR/CAPTIONS/COUNTS": "recall of the label, mean over labels (Hinz et al., section 4)",
    "soa_i/DETECTOR/CAPTIONS/COUNTS": "share of all pictures that show their label (Hinz et al., section 4)",
    "soa_c_top40/..., soa_c_bot40/...": "SOA-C without, and of, the 40 labels with the fewest pictures",
    "soa_c_iou/..., soa_i_iou/...": "overlap of the best pair of a box found and a true box of the label, where "
    "pictures were drawn for known boxes",
}

Truth = Mapping[int, tuple[NDArray[np.int64], NDArray[np.float64]]]
"""By image id: labels (T,) and boxes (T,4), x0, y0, x1, y1 in [0, 1], that the pictures of its captions should show."""

GRID = 256
"""Side of the whole-pixel grid on which the released code measures overlap."""
HALF = 40
FEW_IMAGES = 5
SOA_RESAMPLES, SOA_SEED = 100, 0


class DetectedObjects:
    """View: which of COCO's 80 things a detector finds.

    Arrays: NAME/present (B,80) bool, a label among the detections; with `keep`, NAME/boxes (B,keep,6) float32 too:
    x0, y0, x1, y1, score, label of the `keep` best detections, label -1 where there are fewer. Raises RequestError
    for a detector that does not know all 80.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, detector: Detector, keep: int = 0) -> None:
        self.detector, self.keep = detector, keep
        self.name, self.digest = objects_view(detector.name), detector.digest
        try:
            self.places = as_coco80(detector.names)
        except WeightsMissing as error:
            raise RequestError(f"object accuracy asks for COCO's 80 things: {error}") from error

    def look(self, pictures: Tensor, asked: Asked) -> Mapping[str, Array]:
        found = [to_coco80(one, self.places) for one in self.detector.detect(pictures)]
        present = np.zeros((len(found), len(NAMES)), np.bool_)
        for row, one in zip(present, found, strict=True):
            row[one.classes.numpy()] = True
        arrays: dict[str, Array] = {f"{self.name}/present": present}
        if self.keep:
            arrays[f"{self.name}/boxes"] = np.stack([_padded(one, self.keep) for one in found])
        return arrays


def open_detected_objects(settings: DetectorSettings, keep: int, device: torch.device) -> DetectedObjects:
    """The view through the detector of these settings; with `functools.partial` an `OpenView`.

    Raises RequestError for weights that are missing or another detector's, and for other classes.
    """
    try:
        detector = open_detector(settings, device)
    except WeightsMissing as error:
        raise RequestError(f"object accuracy needs a detector: {error}") from error
    return DetectedObjects(detector, keep)


def objects_view(detector: str) -> str:
    """Name of the view through a detector of that name."""
    return f"objects-{detector}"


def _padded(found: Detections, keep: int) -> NDArray[np.float32]:
    rows = np.zeros((keep, 6), np.float32)
    rows[:, 5] = -1
    best = found[:keep]
    rows[: len(best), :4] = best.boxes.numpy()
    rows[: len(best), 4], rows[: len(best), 5] = best.scores.numpy(), best.classes.numpy()
    return rows


def true_boxes(records: Iterable[ImageRecord]) -> Truth:
    """The published boxes of COCO's 80 things, for systems that draw where the images' own things are.

    Crowds and other categories are left out, and images without instances.
    """
    truth: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
    for record in records:
        things = [(coco_index(thing.category), thing.box) for thing in record.instances or () if not thing.crowd]
        known = [(label, (x, y, x + width, y + height)) for label, (x, y, width, height) in things if label is not None]
        if known:
            sides = np.array([record.width, record.height] * 2, np.float64)
            boxes = np.array([box for _, box in known], np.float64) / sides
            truth[record.image_id] = np.array([label for label, _ in known], np.int64), boxes
    return truth


def grid_iou(found: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union (K,T) of boxes (K,4) and (T,4), x0, y0, x1, y1 in [0, 1], as the released code has it.

    Corner, width and height are cut to whole pixels of a 256-pixel grid, each by itself; nothing reaches over the left
    or upper edge, and a side is at least one pixel.
    """
    one, other = _on_grid(found)[:, None], _on_grid(true)[None]
    overlap = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared = np.prod(np.maximum(overlap, 0), -1)
    areas = [np.prod(boxes[..., 2:] - boxes[..., :2], -1) for boxes in (one, other)]
    return np.asarray(shared / (areas[0] + areas[1] - shared), np.float64)


def _on_grid(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    low = np.trunc(boxes[:, :2] * GRID)
    high = low + np.trunc((boxes[:, 2:] - boxes[:, :2]) * GRID)
    low, high = np.maximum(low, 0), np.maximum(high, 0)
    return np.concatenate([low, np.where(high > low, high, low + 1)], 1)


class Soa:
    """Semantic object accuracy over pictures drawn for labels (`asked.groups`, 0 to 79 in COCO's order).

    SOA-C is the mean over labels of the share of pictures with the label among the detections; SOA-I that share over
    all pictures. Labels are sorted by number of pictures, the first in COCO's order before its equals: the first 40
    make soa_c_bot40, the others soa_c_top40; both are left out below 41 labels. A label without pictures is left out
    of all means, and a note says so.

    With `truth` the IoU forms too: for each picture with a detection and a true box of its label the best overlap of
    a pair (`grid_iou`); a label's is the mean over such pictures, 0 where there are none, and labels are averaged as
    before. It needs a view that keeps boxes.

    Intervals: bootstrap over images, with the labels fixed: pictures of one image, whatever its caption or noise, come
    together in a resample. They are too narrow for labels with few images; a note counts those. Where every picture
    hits or every one misses, Wilson's interval for as many images stands instead.

    40 bytes a picture: 1.2 MB for 30,000.
    """

    name = "soa"
    looks_at_real: frozenset[str] = frozenset()
    plan = LABELS

    def __init__(self, detector: str, counted: str, truth: Truth | None = None, seed: int = SOA_SEED) -> None:
        """detector: its name; counted: protocol of the plan (`LabelsPlan.protocol`), such as "words/hinz"."""
        self.view = objects_view(detector)
        self.protocol = f"{detector}/{counted}"
        self.looks_at = frozenset({self.view})
        self.truth, self.seed = truth, seed
        self._parts: list[NDArray[np.float64]] = []  # (B,5): place, image, label, hit, overlap

    def update(self, drawn: Seen) -> None:
        labels = drawn.asked.groups
        strange = labels[(labels < 0) | (labels >= len(NAMES))]
        if len(strange):
            raise ValueError(f"label {strange[0]} is none of COCO's {len(NAMES)}")
        present = drawn[f"{self.view}/present"]
        if present.shape != (len(labels), len(NAMES)):
            raise ValueError(f"{self.view}/present is {present.shape}, not {(len(labels), len(NAMES))}")
        hits = present[np.arange(len(labels)), labels].astype(np.float64)
        overlaps = np.full(len(labels), np.nan)
        if self.truth is not None:
            boxes = drawn[f"{self.view}/boxes"].astype(np.float64)
            for row, (image, label) in enumerate(zip(drawn.asked.image_ids.tolist(), labels.tolist(), strict=True)):
                overlaps[row] = _best_overlap(boxes[row], label, self.truth.get(image))
        columns = (drawn.asked.places, drawn.asked.image_ids, labels, hits, overlaps)
        self._parts.append(np.stack([np.asarray(column, np.float64) for column in columns], 1))

    def update_real(self, real: Seen) -> None:
        """Nothing: no real picture plays a part."""

    def merge(self, other: Self) -> None:
        if (self.protocol, self.seed, self.truth is None) != (other.protocol, other.seed, other.truth is None):
            raise ValueError(f"{other.protocol} with seed {other.seed} is no part of {self.protocol}, {self.seed}")
        self._parts += other._parts

    def compute(self) -> Sequence[Result]:
        """The figures; details: recall, overlap and pictures of each label. A place that came twice counts once.

        Raises RequestError for no pictures.
        """
        if not sum(len(part) for part in self._parts):
            raise RequestError(
                f"soa/{self.protocol}: no picture was drawn for a label; draw for captions that name one of COCO's 80 "
                "things"
            )
        rows = np.concatenate(self._parts)
        rows = rows[np.unique(rows[:, 0], return_index=True)[1]]
        images, labels = rows[:, 1].astype(np.int64), rows[:, 2].astype(np.int64)
        pictures = np.bincount(labels, minlength=len(NAMES))
        notes = _notes(images, labels, pictures)
        kinds = [("", "recall", rows[:, 3])]
        if self.truth is not None:
            kinds.append(("_iou", "iou", rows[:, 4]))
        results = []
        for form, what, values in kinds:
            tally = _Tally(values, labels, images)
            recalls = tally.by_label(np.ones(len(tally.images)))
            details = {f"{what}/{NAMES[label]}": float(recalls[label]) for label in np.flatnonzero(pictures)}
            details |= {f"pictures/{NAMES[label]}": float(pictures[label]) for label in np.flatnonzero(pictures)}
            for name, weights in _averages(pictures).items():
                of, _, half = name.partition("_")
                told = details if name == "c" else {}
                full = f"soa_{of}{form}{half and '_'}{half}"
                estimate = self._estimate(tally, recalls, weights)
                results.append(Result(full, self.protocol, estimate, 0, len(rows), notes, told))
        return results

    def _estimate(self, tally: "_Tally", by_label: NDArray[np.float64], weights: NDArray[np.float64]) -> Estimate:
        value, images = float(weights @ by_label), tally.images_of(weights > 0)
        counted = by_label[weights > 0]
        if (counted == 0).all() or (counted == 1).all():
            # No resample differs: Wilson's interval of as many images says how much that means.
            return share(np.full(images, bool(counted[0])))
        draws = resample_weights(tally.images, self.seed, SOA_RESAMPLES).astype(np.float64)
        resampled = np.array([weights @ tally.by_label(draw, by_label) for draw in draws])
        estimate = bootstrapped(value, resampled, images)
        return replace(estimate, low=max(0.0, estimate.low), high=min(1.0, estimate.high))


class _Tally:
    """Sums of values (N,), NaN where there is none, and their numbers, for each pair of label and image.

    images: (I,) the images, each once.
    """

    def __init__(self, values: NDArray[np.float64], labels: NDArray[np.int64], images: NDArray[np.int64]) -> None:
        there = ~np.isnan(values)
        self.images, of_image = np.unique(images, return_inverse=True)
        pairs, of_pair = np.unique(labels * len(self.images) + of_image, return_inverse=True)
        self.labels, self.of_image = np.divmod(pairs, len(self.images))
        self.sums = np.bincount(of_pair, np.where(there, values, 0), len(pairs))
        self.numbers = np.bincount(of_pair, there, len(pairs))

    def images_of(self, labels: NDArray[np.bool_]) -> int:
        """Images with pictures for any of these labels, a mask (80,)."""
        return len(np.unique(self.of_image[labels[self.labels]]))

    def by_label(
        self, weights: NDArray[np.float64], otherwise: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """(80,) mean value of each label, images (I,) weighted; `otherwise`, or 0, where a label has no weight."""
        drawn = weights[self.of_image]
        sums = np.bincount(self.labels, drawn * self.sums, len(NAMES))
        numbers = np.bincount(self.labels, drawn * self.numbers, len(NAMES))
        means = np.zeros(len(NAMES)) if otherwise is None else otherwise.copy()
        return np.divide(sums, numbers, out=means, where=numbers > 0)


def _averages(pictures: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """How much each label counts (80,) in SOA-C, SOA-I and both halves (see `Soa`), by their numbers of pictures."""
    used = np.flatnonzero(pictures)
    averages = {"c": _equal(used), "i": pictures / pictures.sum()}
    if len(used) > HALF:
        fewest_first = used[np.argsort(pictures[used], kind="stable")]
        averages |= {"c_top40": _equal(fewest_first[HALF:]), "c_bot40": _equal(fewest_first[:HALF])}
    return averages


def _equal(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    weights = np.zeros(len(NAMES))
    weights[labels] = 1 / len(labels)
    return weights


def _best_overlap(
    boxes: NDArray[np.float64], label: int, true: tuple[NDArray[np.int64], NDArray[np.float64]] | None
) -> float:
    """Of boxes (K,6) with the label and true ones; NaN without a pair."""
    if true is None:
        return float("nan")
    mine, theirs = boxes[boxes[:, 5] == label, :4], true[1][true[0] == label]
    return float(grid_iou(mine, theirs).max()) if len(mine) and len(theirs) else float("nan")


def _notes(images: NDArray[np.int64], labels: NDArray[np.int64], pictures: NDArray[np.int64]) -> tuple[str, ...]:
    notes = []
    missing = [NAMES[label] for label in np.flatnonzero(pictures == 0)]
    if missing:
        known = len(NAMES) - len(missing)
        notes.append(f"mean over {known} of {len(NAMES)} labels: no caption was drawn for {', '.join(missing)}")
    pairs = np.unique(np.stack([labels, images], 1), axis=0)
    few = np.bincount(pairs[:, 0], minlength=len(NAMES))
    count = int(((few > 0) & (few < FEW_IMAGES)).sum())
    if count:
        notes.append(f"{count} labels have fewer than {FEW_IMAGES} images: the interval is too narrow")
    return tuple(notes)
