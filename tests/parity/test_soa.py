"""Semantic object accuracy against the code released with it, from labels and boxes already found."""

import numpy as np
import torch

from models.detectors.coco import NAMES
from orchestration.evaluation.metric import Asked, Result, Seen
from orchestration.evaluation.soa import Soa, Truth

from .conftest import Golden, Load


def corners(boxes: np.ndarray) -> np.ndarray:
    """x, y, width, height to x0, y0, x1, y1."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def judged(numbers: Golden) -> dict[str, Result]:
    arrays = numbers.arrays
    asked_for, found, true = (arrays[f"in.{name}"] for name in ("image_label", "detected_labels", "true_labels"))
    count, keep = found.shape
    present = np.zeros((count, len(NAMES)), np.bool_)
    for row, labels in zip(present, found, strict=True):
        row[labels[labels >= 0]] = True
    boxes = np.zeros((count, keep, 6))
    boxes[..., :4], boxes[..., 5] = corners(arrays["in.detected_boxes"]), found
    truth: Truth = {place: (true[place], corners(arrays["in.true_boxes"][place])) for place in range(count)}
    metric = Soa("detector", "words/hinz", truth)
    # Each picture is of another image: every one has true boxes of its own.
    for places in np.array_split(np.random.default_rng(0).permutation(count), 7):
        asked = Asked(places, places, places, asked_for[places], [""] * len(places))
        views = {"objects-detector/present": present[places], "objects-detector/boxes": boxes[places]}
        metric.update(Seen(asked, views))
    return {result.name: result for result in metric.compute()}


def test_scores_of_the_released_code(golden: Load) -> None:
    numbers = golden("soa_scores")
    results = judged(numbers)
    for key in numbers.arrays:
        if key.startswith("out.") and not key.startswith("out.per_class."):
            estimate = results[key.removeprefix("out.")].estimate
            numbers.check(key, torch.tensor(estimate.value, dtype=torch.float64))
            assert estimate.low <= estimate.value <= estimate.high
    recalls = [results["soa_c"].details[f"recall/{name}"] for name in NAMES]
    pictures = [results["soa_c"].details[f"pictures/{name}"] for name in NAMES]
    overlaps = [results["soa_c_iou"].details[f"iou/{name}"] for name in NAMES]
    numbers.check("out.per_class.accuracy", torch.tensor(recalls, dtype=torch.float64))
    numbers.check("out.per_class.images_total", torch.tensor(pictures, dtype=torch.float64))
    recognized = np.array(recalls) * np.array(pictures)
    numbers.check("out.per_class.images_recognized", torch.from_numpy(recognized))
    numbers.check("out.per_class.iou", torch.tensor(overlaps, dtype=torch.float64))
