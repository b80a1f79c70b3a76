"""Finding figures: by hand, by their definition, and against MS-COCO's own evaluation."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from models.contract import Objects
from models.detectors.boxes import pairwise_iou
from models.detectors.contract import Detections
from orchestration.errors import RequestError
from orchestration.evaluation.finding import found_figures

Thing = tuple[list[float], int]
Found = tuple[list[float], float, int]

LEFT, RIGHT, BELOW = [0.0, 0.0, 0.4, 0.4], [0.6, 0.0, 1.0, 0.4], [0.3, 0.6, 0.7, 1.0]
RATHER_LEFT = [0.0, 0.0, 0.4, 0.3]  # overlaps LEFT by 0.75


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def things(*pictures: Sequence[Thing]) -> Objects:
    most = max([1, *map(len, pictures)])
    boxes, classes = torch.zeros(len(pictures), most, 4), torch.zeros(len(pictures), most, dtype=torch.int64)
    for row, picture in enumerate(pictures):
        for place, (box, number) in enumerate(picture):
            boxes[row, place], classes[row, place] = torch.tensor(box), number
    return Objects(boxes, classes, torch.tensor([len(picture) for picture in pictures]))


def detections(*found: Found) -> Detections:
    boxes = torch.tensor([box for box, _, _ in found]).view(-1, 4)
    scores, classes = torch.tensor([score for _, score, _ in found]), torch.tensor([kind for _, _, kind in found])
    return Detections(boxes, scores.float(), classes.long())


def test_figures_by_hand() -> None:
    """Three things in two pictures: one is found, one as another class, one not; a detection repeats, one is unsure."""
    truth = things([(LEFT, 0), (RIGHT, 1)], [(BELOW, 1)])
    first = detections((RATHER_LEFT, 0.9, 0), (LEFT, 0.8, 0), (RIGHT, 0.7, 0))
    second = detections((LEFT, 0.6, 1), (BELOW, 0.2, 1))
    found = found_figures([first, second], truth)
    assert found["finding/recall@0.5"] == pytest.approx(1 / 3)
    assert found["finding/recall-any-class@0.5"] == pytest.approx(2 / 3)
    assert found["finding/precision@0.5"] == pytest.approx(1 / 4)
    # Class 0: found first, precision 1 at every recall. Class 1: the second of two is right, so 1/2 up to recall 1/2:
    # 51 of 101 recalls.
    assert found["finding/average-precision@0.5"] == pytest.approx((1 + 0.5 * 51 / 101) / 2)
    # Against the other picture's things nothing fits but the left box, as which the second picture's was taken.
    assert found["finding_mismatched/recall@0.5"] == 0
    for name in ("recall", "recall-any-class", "precision"):
        low, high = found[f"finding_low/{name}@0.5"], found[f"finding_high/{name}@0.5"]
        assert 0 <= low < found[f"finding/{name}@0.5"] < high <= 1
    assert len(found) == 12


def test_guessing_the_usual_place_is_found_out() -> None:
    truth = things(*[[(LEFT, 0)]] * 4)
    found = found_figures([detections((LEFT, 0.9, 0))] * 4, truth)
    assert found["finding/recall@0.5"] == found["finding_mismatched/recall@0.5"] == 1
    assert found["finding_mismatched/average-precision@0.5"] == 1


def test_a_thing_is_found_once_by_the_surest() -> None:
    """The first takes the box that it overlaps most; the second what is left, though less."""
    truth = things([(LEFT, 0), (RATHER_LEFT, 0)])
    found = found_figures([detections((LEFT, 0.5, 0), (LEFT, 0.9, 0))], truth)
    assert found["finding/recall@0.5"] == found["finding/precision@0.5"] == 1
    strict = found_figures([detections((LEFT, 0.5, 0), (LEFT, 0.9, 0))], truth, overlap=0.8)
    assert strict["finding/recall@0.8"] == strict["finding/precision@0.8"] == 0.5


def test_the_threshold_itself_is_enough() -> None:
    half = [0.0, 0.0, 0.5, 0.25]
    truth = things([([0.0, 0.0, 0.5, 0.5], 0)])
    assert found_figures([detections((half, 0.3, 0))], truth)["finding/recall@0.5"] == 1
    assert found_figures([detections((half, 0.3, 0))], truth, overlap=0.51)["finding/recall@0.51"] == 0
    assert found_figures([detections((half, 0.29, 0))], truth)["finding/recall@0.5"] == 0


def test_where_nothing_is_found_every_figure_is_zero() -> None:
    found = found_figures([detections(), detections()], things([(LEFT, 0)], []))
    assert {name: value for name, value in found.items() if value} == {
        "finding_high/recall@0.5": pytest.approx(0.793, abs=1e-3),
        "finding_high/recall-any-class@0.5": pytest.approx(0.793, abs=1e-3),
        "finding_high/precision@0.5": 1.0,
    }


def test_one_picture_has_no_picture_before() -> None:
    assert not any("mismatched" in name for name in found_figures([detections()], things([(LEFT, 0)])))


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        found_figures([detections((LEFT, 1.0, 0))], things([]))
    assert str(caught.value) == (
        "the held-out pictures have no annotated thing to be found: choose a larger split as data.validation_split"
    )
    with pytest.raises(ValueError, match="1 pictures were looked at and 2 have objects: give the same ones"):
        found_figures([detections()], things([(LEFT, 0)], []))


def random_case(seed: int, pictures: int = 6, classes: int = 3) -> tuple[list[Detections], Objects]:
    """Things, and detections near them, elsewhere, doubled and mistaken; no two scores are equal."""
    numbers = np.random.default_rng(seed)
    rows: list[list[Thing]] = []
    found: list[Detections] = []
    for _ in range(pictures):
        row: list[Thing] = []
        told: list[Found] = []
        for _ in range(numbers.integers(0, 5)):
            row.append((_box(numbers), int(numbers.integers(0, classes))))
            for _ in range(numbers.integers(0, 3)):
                near = (np.array(row[-1][0]) + numbers.uniform(-0.05, 0.05, 4)).tolist()
                kind = row[-1][1] if numbers.random() < 0.8 else int(numbers.integers(0, classes))
                told.append((near, float(numbers.random()), kind))
        for _ in range(numbers.integers(0, 3)):
            told.append((_box(numbers), float(numbers.random()), int(numbers.integers(0, classes))))
        rows.append(row)
        found.append(detections(*sorted(told, key=lambda one: -one[1])))
    rows[0] = rows[0] or [(LEFT, 0)]
    return found, things(*rows)


def _box(numbers: np.random.Generator) -> list[float]:
    low = numbers.uniform(0, 0.7, 2)
    return [*low, *(low + numbers.uniform(0.1, 0.3, 2))]


def coco_average_precision(found: Sequence[Detections], truth: Objects) -> float:
    """AP at 0.5 of MS-COCO's published evaluation."""
    images = [{"id": 1 + row} for row in range(len(found))]
    categories = [{"id": 1 + number} for number in range(int(truth.classes.max()) + 1)]
    annotations: list[dict[str, Any]] = []
    for row, count in enumerate(truth.counts.tolist()):
        for box, number in zip(truth.boxes[row, :count], truth.classes[row, :count].tolist(), strict=True):
            shape = {"bbox": _coco_box(box), "area": 1e4, "iscrowd": 0, "id": 1 + len(annotations)}
            annotations.append({"image_id": 1 + row, "category_id": 1 + number, **shape})
    results = [
        {"image_id": 1 + row, "category_id": 1 + kind, "bbox": _coco_box(box), "score": score}
        for row, one in enumerate(found)
        for box, score, kind in zip(one.boxes, one.scores.tolist(), one.classes.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {"images": images, "categories": categories, "annotations": annotations}
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(results), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [1000]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, 0]
    return float(precision[precision > -1].mean())


def _coco_box(box: Tensor) -> list[float]:
    x0, y0, x1, y1 = (1000 * box.double()).tolist()
    return [x0, y0, x1 - x0, y1 - y0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_average_precision_is_that_of_coco(seed: int) -> None:
    found, truth = random_case(seed)
    if not sum(map(len, found)):
        return
    figure = found_figures(found, truth)["finding/average-precision@0.5"]
    assert figure == pytest.approx(coco_average_precision(found, truth), abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_recall_and_precision_by_their_definition(seed: int, least: float) -> None:
    found, truth = random_case(seed)
    figures = found_figures(found, truth, least_score=least)
    for name, agree in (("recall", True), ("recall-any-class", False)):
        hits = sum(_hits(one, truth, row, least, agree) for row, one in enumerate(found))
        assert figures[f"finding/{name}@0.5"] == pytest.approx(hits / int(truth.counts.sum()))
    told = sum(int((one.scores >= least).sum()) for one in found)
    right = sum(_hits(one, truth, row, least, True) for row, one in enumerate(found))
    assert figures["finding/precision@0.5"] == (pytest.approx(right / told) if told else 0)
    assert figures["finding/recall@0.5"] <= figures["finding/recall-any-class@0.5"] + 1e-9


def _hits(one: Detections, truth: Objects, row: int, least: float, agree: bool) -> int:
    free = set(range(int(truth.counts[row])))
    hits = 0
    for place in sorted(range(len(one)), key=lambda place: -one.scores[place].item()):
        if one.scores[place] < least:
            continue
        fitting = {
            thing: overlap
            for thing in free
            if (overlap := pairwise_iou(one.boxes[place][None], truth.boxes[row, thing][None]).item()) >= 0.5
            and (not agree or truth.classes[row, thing] == one.classes[place])
        }
        if fitting:
            free.remove(max(fitting, key=lambda thing: fitting[thing]))
            hits += 1
    return hits


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_figures_do_not_depend_on_the_order(seed: int) -> None:
    """Of pictures, but for the mismatched ones, nor of detections; and the things themselves are all found."""
    found, truth = random_case(seed)
    turn = np.random.default_rng(seed).permutation(len(found)).tolist()
    turned = [
        found[row][torch.randperm(len(found[row]), generator=torch.Generator().manual_seed(seed))] for row in turn
    ]
    there = Objects(truth.boxes[turn], truth.classes[turn], truth.counts[turn])
    before, after = found_figures(found, truth), found_figures(turned, there)
    for name, value in before.items():
        if "mismatched" not in name:
            assert after[name] == pytest.approx(value)
    perfect = [
        Detections(truth.boxes[row, :count], torch.ones(count), truth.classes[row, :count])
        for row, count in enumerate(truth.counts.tolist())
    ]
    figures = found_figures(perfect, truth)
    assert figures["finding/recall@0.5"] == figures["finding/precision@0.5"] == 1
    assert figures["finding/average-precision@0.5"] == 1
