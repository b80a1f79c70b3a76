"""Are the things of held-out pictures found, where they are and as what they are?

Exact definitions, one implementation: boxes are corners without extra pixels, overlap is intersection over union.

matched: detections are taken in the order of their scores, the highest first (equal ones as they stand); each takes,
among the things of its picture (and, unless said otherwise, of its class) that are still free, the one it overlaps
most, if that is at least the threshold (the greedy matching of MS-COCO's evaluation: Lin et al., 2014).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import Objects
from models.detectors.boxes import pairwise_iou
from models.detectors.contract import Detections
from orchestration.errors import RequestError
from orchestration.evaluation.estimates import Estimate, figures, wilson

OVERLAP = 0.5
# Of recall and precision alone. A score is overlap times class, so that a sure find is well below 1.
LEAST_SCORE = 0.3
# MS-COCO's evaluation reads precision at recalls 0, 0.01 ... 1.
RECALLS = np.linspace(0, 1, 101)


def found_figures(
    found: Sequence[Detections], objects: Objects, overlap: float = OVERLAP, least_score: float = LEAST_SCORE
) -> dict[str, float]:
    """Figures of what was found in B pictures against their things, at one overlap, such as "@0.5".

    finding/recall: the share of things that some detection of at least `least_score` is matched to;
    finding/recall-any-class: the same where the class need not agree; finding/precision: the share of these detections
    that are matched, 0 where there are none; each of all pictures together, with _low and _high (Wilson).
    finding/average-precision: of all detections, whatever their score, for each class that has a thing the mean of 101
    precisions, at recalls 0 to 1 the best one that is reached there or later, 0 where none is; then the mean of classes
    (MS-COCO's AP at one overlap). finding_mismatched/...: recall and average precision against the things of the
    picture before, which say how far guessing the usual places goes; for B >= 2. Raises ValueError where B differs,
    RequestError where there is nothing to be found.
    """
    truths = _truths(objects)
    if len(found) != len(truths):
        raise ValueError(f"{len(found)} pictures were looked at and {len(truths)} have objects: give the same ones")
    count = sum(len(truth) for truth in truths)
    if not count:
        raise RequestError(
            "the held-out pictures have no annotated thing to be found: choose a larger split as data.validation_split"
        )
    sure = [one[one.scores >= least_score] for one in found]
    hits = sum(int(matched.sum()) for matched in _match(sure, truths, overlap))
    anywhere = sum(int(matched.sum()) for matched in _match(_classless(sure), _classless(truths), overlap))
    told = sum(len(one) for one in sure)
    at = f"@{overlap:g}"
    shares = {
        f"finding/recall{at}": wilson(hits / count, count),
        f"finding/recall-any-class{at}": wilson(anywhere / count, count),
        f"finding/precision{at}": wilson(hits / told, told) if told else Estimate(0.0, 0.0, 1.0, 0),
    }
    known = {**figures(shares), f"finding/average-precision{at}": average_precision(found, truths, overlap)}
    if len(truths) < 2:
        return known
    rolled = [truths[-1], *truths[:-1]]
    wrong = sum(int(matched.sum()) for matched in _match(sure, rolled, overlap))
    return known | {
        f"finding_mismatched/recall{at}": wrong / count,
        f"finding_mismatched/average-precision{at}": average_precision(found, rolled, overlap),
    }


def average_precision(found: Sequence[Detections], truths: Sequence[Detections], overlap: float) -> float:
    """The mean over classes that have a thing, see `found_figures`; truths: things, as detections of score 1."""
    scores = np.concatenate([one.scores.numpy() for one in found])
    classes = np.concatenate([one.classes.numpy() for one in found])
    hits = np.concatenate(_match(found, truths, overlap))
    wanted = np.concatenate([truth.classes.numpy() for truth in truths])
    each = []
    for number in np.unique(wanted):
        own = np.flatnonzero(classes == number)
        order = own[np.argsort(-scores[own], kind="stable")]
        each.append(_area(hits[order], int((wanted == number).sum())))
    return float(np.mean(each))


def _area(hits: NDArray[np.bool_], count: int) -> float:
    """Mean precision at the recalls; hits in the order of their scores, of `count` things."""
    right = hits.cumsum()
    precision = right / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / count, RECALLS, side="left")
    return float(np.append(best, 0.0)[places].mean())


def _truths(objects: Objects) -> list[Detections]:
    rows = zip(objects.boxes.cpu(), objects.classes.cpu(), objects.counts.tolist(), strict=True)
    return [Detections(boxes[:count], torch.ones(count), classes[:count]) for boxes, classes, count in rows]


def _classless(pictures: Sequence[Detections]) -> list[Detections]:
    return [Detections(one.boxes, one.scores, torch.zeros_like(one.classes)) for one in pictures]


def _match(found: Sequence[Detections], truths: Sequence[Detections], overlap: float) -> list[NDArray[np.bool_]]:
    """For each picture which of its detections are matched, as they stand."""
    matched = []
    for one, truth in zip(found, truths, strict=True):
        overlaps = pairwise_iou(one.boxes, truth.boxes).numpy()
        fits = (overlaps >= overlap) & (one.classes[:, None] == truth.classes[None, :]).numpy()
        free = np.ones(len(truth), np.bool_)
        hits = np.zeros(len(one), np.bool_)
        for place in np.argsort(-one.scores.numpy(), kind="stable"):
            open_to = np.where(fits[place] & free, overlaps[place], -1.0)
            if len(open_to) and open_to.max() >= 0:
                free[open_to.argmax()] = False
                hits[place] = True
        matched.append(hits)
    return matched
