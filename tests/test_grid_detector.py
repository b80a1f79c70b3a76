"""The grid detector: which cells learn from which box, its loss on any number of ranks, that it learns, its files."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from models.abilities import Finder
from models.blocks.boxes import paired_overlaps
from models.contract import Batch, Objects, StepContext
from models.detectors import Detector, RegionDetector
from models.detectors.boxes import pairwise_iou
from models.detectors.grid import GridDetector, GridDetectorConfig, GridDetectorPart, GridNet, open_grid_detector
from models.detectors.grid_loss import GridPrediction, assign_cells, detector_objective
from models.encoders.image import WeightsMissing
from models.parallel import OneRank
from orchestration.data.objects import objects_stage, open_objects
from orchestration.data.sources import open_source
from orchestration.data.transforms import TRANSFORMS, decode
from orchestration.evaluation.finding import found_figures
from orchestration.stages import ensure

SMALL = GridDetectorConfig(resolution=32, classes=3, channels=2, residual_blocks=1, feature_dim=6)
WEIGHTS = (5.0, 1.0, 1.0)


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def no_noise(width: int) -> Tensor:
    raise AssertionError("a detector needs no noise")


ALONE = StepContext(OneRank(), no_noise)


def random_boxes(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Boxes in [0, 1] with an area."""
    numbers = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=numbers) * 0.8
    return torch.cat([low, low + 0.02 + torch.rand(*shape, 2, generator=numbers) * (0.98 - low)], -1)


def random_objects(count: int, most: int = 4, classes: int = 3, seed: int = 0) -> Objects:
    numbers = torch.Generator().manual_seed(seed)
    there = torch.randint(0, most + 1, (count,), generator=numbers)
    padding = torch.arange(most)[None, :] >= there[:, None]
    boxes = random_boxes((count, most), seed).masked_fill(padding[..., None], 0)
    kinds = torch.randint(0, classes, (count, most), generator=numbers).masked_fill(padding, 0)
    return Objects(boxes, kinds, there)


def random_prediction(count: int, classes: int = 3, seed: int = 0) -> GridPrediction:
    numbers = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 12, 1 + classes, generator=numbers)
    return GridPrediction(random_boxes((count, 12), seed + 1), logits[..., 0], logits[..., 1:], (3, 4))


# Overlaps


def test_overlaps_by_hand() -> None:
    square = torch.tensor([0.0, 0.0, 2.0, 2.0])
    for other, overlap, generalised in [
        ([0.0, 0.0, 2.0, 2.0], 1.0, 1.0),
        ([1.0, 1.0, 3.0, 3.0], 1 / 7, 1 / 7 - 2 / 9),
        ([3.0, 0.0, 4.0, 2.0], 0.0, -2 / 8),
        ([1.0, 1.0, 1.0, 1.0], 0.0, 0.0),
    ]:
        found = paired_overlaps(square, torch.tensor(other))
        assert [value.item() for value in found] == pytest.approx([overlap, generalised])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_overlaps_are_those_of_pairs(seed: int) -> None:
    first, second = random_boxes((5,), seed), random_boxes((5,), seed + 1)
    overlap, generalised = paired_overlaps(first, second)
    torch.testing.assert_close(overlap, pairwise_iou(first, second).diagonal())
    assert (generalised <= overlap + 1e-6).all() and (generalised >= -1).all()


def test_a_box_without_area_has_a_finite_gradient() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    overlap, generalised = paired_overlaps(boxes, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    assert overlap.item() == 0
    (gradient,) = torch.autograd.grad(generalised.sum(), boxes)
    assert gradient.isfinite().all()


# Which cell learns from which box


def assigned_by_definition(objects: Objects, row: int, grid: tuple[int, int], radius: float) -> dict[int, set[int]]:
    """Cell to the objects that may be its own; in plain numbers."""
    height, width = grid
    found: dict[int, set[int]] = {}
    for cell in range(height * width):
        x, y = cell % width, cell // width
        claims: list[tuple[bool, float, int]] = []
        for place in range(int(objects.counts[row])):
            x0, y0, x1, y1 = (objects.boxes[row, place] * torch.tensor([width, height, width, height])).tolist()
            centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
            own = (x, y) == (min(int(centre_x), width - 1), min(int(centre_y), height - 1))
            inside = x0 < x + 0.5 < x1 and y0 < y + 0.5 < y1
            near = abs(x + 0.5 - centre_x) < radius and abs(y + 0.5 - centre_y) < radius
            if own or (inside and near):
                claims.append((not own, (x1 - x0) * (y1 - y0), place))
        if claims:
            best = min(claims)
            found[cell] = {claim[2] for claim in claims if abs(claim[1] - best[1]) < 1e-5 and claim[0] == best[0]}
    return found


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([(4, 4), (3, 5), (1, 1)]), st.sampled_from([0.0, 0.8, 1.5, 9.0]))
def test_cells_answer_for_what_the_definition_says(seed: int, grid: tuple[int, int], radius: float) -> None:
    objects = random_objects(3, seed=seed)
    assigned = assign_cells(objects, grid, radius)
    for row in range(3):
        wanted = assigned_by_definition(objects, row, grid, radius)
        assert set(torch.nonzero(assigned.found[row]).flatten().tolist()) == wanted.keys()
        for cell, places in wanted.items():
            assert assigned.objects[row, cell].item() in places


def test_an_own_cell_comes_before_a_smaller_neighbour() -> None:
    """In a 2 x 2 grid a box of the whole picture's left half has its centre below the middle, a small one beside it."""
    boxes = torch.tensor([[[0.0, 0.1, 0.45, 1.0], [0.15, 0.1, 0.9, 0.3]]])
    assigned = assign_cells(Objects(boxes, torch.zeros(1, 2).long(), torch.tensor([2])), (2, 2), 2.0)
    assert assigned.found.tolist() == [[True, True, True, False]]
    assert assigned.objects[0, [1, 2]].tolist() == [1, 0]
    # The upper left cell is neither's own: the smaller box has it.
    assert assigned.objects[0, 0].item() == 1


# Loss


def test_the_loss_by_hand() -> None:
    """One object in a 1 x 2 grid; the right cell answers for it, the left one for nothing, though its box overlaps."""
    boxes = torch.tensor([[[0.0, 0.0, 0.9, 1.0], [0.5, 0.0, 1.0, 0.5]]])
    objectness, classes = torch.tensor([[0.3, -0.2]]), torch.tensor([[[9.0, 1.0], [0.4, 1.4]]])
    objects = Objects(torch.tensor([[[0.5, 0.0, 1.0, 1.0]]]), torch.tensor([[0]]), torch.tensor([1]))
    found = detector_objective(GridPrediction(boxes, objectness, classes, (1, 2)), objects, 1.5, WEIGHTS, OneRank())
    sigmoid = torch.tensor([0.3, -0.2]).sigmoid()
    confidence = -(1 - sigmoid[0]).log() - 0.5 * sigmoid[1].log() - 0.5 * (1 - sigmoid[1]).log()
    wanted = {"box": 0.5, "class": np.log(1 + np.exp(1.0)), "objectness": confidence.item(), "overlap": 0.5}
    assert {name: value.item() for name, value in found.terms.items()} == pytest.approx(wanted, rel=1e-5)
    assert found.loss.item() == pytest.approx(5 * wanted["box"] + wanted["class"] + wanted["objectness"], rel=1e-5)


def test_padding_says_nothing() -> None:
    objects, prediction = random_objects(6), random_prediction(6)
    padding = torch.arange(4)[None, :] >= objects.counts[:, None]
    assert padding.any()
    spoiled = Objects(
        objects.boxes.masked_fill(padding[..., None], 0.7), objects.classes.masked_fill(padding, 2), objects.counts
    )
    losses = [detector_objective(prediction, one, 1.5, WEIGHTS, OneRank()).loss for one in (objects, spoiled)]
    assert losses[0].equal(losses[1])


@dataclass(frozen=True)
class TwoRanks:
    """Rank `rank` of two; what the other one sends is known."""

    rank: int
    other: Tensor
    size: int = 2

    def gather(self, local: Tensor) -> Tensor:
        return torch.cat([local, self.other])

    def average_(self, tensors: Iterable[Tensor]) -> None:
        raise AssertionError("a loss averages nothing in place")


@pytest.mark.parametrize("seed", range(4))
def test_two_ranks_are_the_same_mathematics(seed: int) -> None:
    """However unevenly the objects are spread, the mean over ranks is the loss of the whole batch, terms too."""
    objects, prediction = random_objects(8, seed=seed), random_prediction(8, seed=seed)
    whole = detector_objective(prediction, objects, 1.5, WEIGHTS, OneRank())
    halves = []
    for rank, (own, others) in enumerate([(slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4))]):
        count = assign_cells(_objects(objects, others), (3, 4), 1.5).found.sum()[None]
        part = GridPrediction(prediction.boxes[own], prediction.objectness[own], prediction.classes[own], (3, 4))
        halves.append(detector_objective(part, _objects(objects, own), 1.5, WEIGHTS, TwoRanks(rank, count)))
    torch.testing.assert_close((halves[0].loss + halves[1].loss) / 2, whole.loss)
    for name, term in whole.terms.items():
        torch.testing.assert_close((halves[0].terms[name] + halves[1].terms[name]) / 2, term)


def _objects(objects: Objects, rows: slice) -> Objects:
    return Objects(objects.boxes[rows], objects.classes[rows], objects.counts[rows])


def test_pictures_without_objects_only_say_that_nothing_is_there() -> None:
    nothing = Objects(torch.zeros(2, 4, 4), torch.zeros(2, 4).long(), torch.zeros(2).long())
    prediction = random_prediction(2)
    found = detector_objective(prediction, nothing, 1.5, WEIGHTS, OneRank())
    assert found.terms["box"] == found.terms["class"] == found.terms["overlap"] == 0
    expected = torch.nn.functional.softplus(prediction.objectness).sum()
    torch.testing.assert_close(found.loss, expected)


def test_more_classes_than_the_net_tells_apart_are_refused() -> None:
    objects = Objects(random_boxes((1, 2)), torch.tensor([[0, 3]]), torch.tensor([2]))
    with pytest.raises(ValueError) as caught:
        detector_objective(random_prediction(1), objects, 1.5, WEIGHTS, OneRank())
    assert str(caught.value) == (
        "the detector is built for 3 classes and the data has an object of class number 3: set classes=4 or more in "
        "the model of the detector's stage"
    )


# The net


def test_a_prediction_of_zeros_is_a_box_of_one_cell_in_its_middle() -> None:
    net = GridNet(SMALL).eval()
    torch.nn.init.zeros_(net.out.weight)
    with torch.no_grad():
        found = net(torch.rand(1, 3, 32, 48))
    assert found.grid == (4, 6) and found.classes.shape == (1, 24, 3)
    boxes = found.boxes.view(4, 6, 4)
    torch.testing.assert_close(boxes[0, 0], torch.tensor([0.0, 0.0, 1 / 6, 1 / 4]))
    torch.testing.assert_close(boxes[3, 1], torch.tensor([1 / 6, 3 / 4, 2 / 6, 1.0]))
    assert found.objectness.sigmoid().mean().item() == pytest.approx(0.01)


def test_it_is_what_it_says() -> None:
    part = GridDetectorPart()
    assert isinstance(part, Finder) and part.needs == {"images", "boxes"} and part.stages(SMALL) == {}
    detector = GridDetector(GridNet(SMALL), ("a", "b", "c"), "d" * 64)
    assert isinstance(detector, Detector) and isinstance(detector, RegionDetector)
    assert not any(parameter.requires_grad for parameter in detector.net.parameters())


def sure_net(config: GridDetectorConfig = SMALL) -> GridNet:
    """Random, but with something to find in every picture, and statistics that are not those of the start."""
    net = GridNet(config)
    with torch.no_grad():
        net(torch.rand(8, 3, 32, 32) * 2 - 1)
        net.out.weight.mul_(40)
        assert net.out.bias is not None
        net.out.bias[4] = 1.0
    return net.eval()


def test_what_is_found_does_not_depend_on_the_batch() -> None:
    detector = GridDetector(sure_net(), ("a", "b", "c"), "d" * 64)
    pictures = torch.randint(0, 256, (5, 3, 40, 56), dtype=torch.uint8)
    together = detector.detect(pictures)
    assert sum(len(one) for one in together) > 5
    for row in range(5):
        [alone] = detector.detect(pictures[row : row + 1])
        for name in ("boxes", "scores", "classes"):
            assert getattr(alone, name).equal(getattr(together[row], name))
        assert (alone.boxes >= 0).all() and (alone.boxes <= 1).all()
        assert (alone.scores.diff() <= 0).all() and alone.boxes.dtype == torch.float32
    assert detector.detect(pictures[:0]) == [] and detector.features(pictures[:0]).shape == (0, 6, 4, 4)


def test_finding_and_detecting_are_one() -> None:
    """The part in training and the opened detector find the same in pictures of the side that it learns from."""
    net = sure_net()
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    told = GridDetectorPart().find({"detector": net}, TRANSFORMS["attngan"].normalise(pictures))
    assert all(module.training for module in net.modules())
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    detected = GridDetector(net, ("a", "b", "c"), "d" * 64).detect(pictures)
    assert sum(len(one) for one in told) > 4
    for one, other in zip(told, detected, strict=True):
        torch.testing.assert_close(one.boxes, other.boxes)
        assert one.classes.equal(other.classes)


def test_settings_choose_what_counts_as_found() -> None:
    images = torch.rand(3, 3, 32, 32) * 2 - 1

    def found(**changes: Any) -> list[int]:
        config = SMALL.model_copy(update=changes)
        torch.manual_seed(3)
        return [len(one) for one in GridDetectorPart().find({"detector": sure_net(config)}, images)]

    loose = found(least_score=0.0, overlap=1.0)
    assert loose == [16, 16, 16]
    assert max(found(least_score=0.0, overlap=1.0, most=2)) == 2
    assert sum(found(least_score=0.0, overlap=0.01)) < 48
    assert found(least_score=1.0) == [0, 0, 0]


def test_region_features_are_the_deepest_map() -> None:
    detector = GridDetector(sure_net(), ("a", "b", "c"), "d" * 64)
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    maps = detector.features(pictures)
    assert maps.shape == (2, detector.feature_dim, 4, 4)
    images = TRANSFORMS["attngan"].normalise(pictures)
    torch.testing.assert_close(maps, detector.net.features(images))
    floats = (pictures.float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(detector.features(floats).sum(), floats)
    assert gradient.abs().sum() > 0
    boxes = torch.tensor([[0.25, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(detector.on_map(boxes, 20, 77), boxes)


def test_it_follows_its_net() -> None:
    detector = GridDetector(GridNet(SMALL), ("a", "b", "c"), "d" * 64)
    detector.net.to("meta")
    assert detector.device.type == "meta"


def test_a_digest_says_all_that_changes_what_is_found() -> None:
    names = ("a", "b", "c")
    base = GridDetector(GridNet(SMALL), names, "d" * 64).digest
    assert len(base) == 64 and base == GridDetector(GridNet(SMALL), names, "d" * 64).digest
    other = [GridDetector(GridNet(SMALL), names, "e" * 64), GridDetector(GridNet(SMALL), ("b", "a", "c"), "d" * 64)]
    for change in ({"least_score": 0.2}, {"overlap": 0.3}, {"most": 7}, {"resolution": 40}, {"feature_dim": 7}):
        other.append(GridDetector(GridNet(SMALL.model_copy(update=change)), names, "d" * 64))
    assert len({base, *(one.digest for one in other)}) == 8
    # How it was trained is in its weights.
    trained = GridDetector(GridNet(SMALL.model_copy(update={"box_weight": 2.0})), names, "d" * 64)
    assert trained.digest == base


def test_a_damaged_net_is_refused() -> None:
    net = GridNet(SMALL)
    torch.nn.init.constant_(net.out.weight, torch.nan)
    detector = GridDetector(net, ("a", "b", "c"), "d" * 64)
    with pytest.raises(WeightsMissing, match="finds boxes that are no numbers: its weights are damaged"):
        detector.detect(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="detectors take uint8 pictures"):
        detector.detect(torch.zeros(1, 3, 32, 32))
    found = GridDetectorPart().find({"detector": net}, torch.zeros(2, 3, 32, 32))
    assert [len(one) for one in found] == [0, 0]


@pytest.mark.parametrize("wrong", [{"resolution": 60}, {"classes": 0}, {"most": 0}, {"width": 3}, {"overlap": 2.0}])
def test_settings_that_make_no_detector(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GridDetectorConfig(**wrong)


# Its folder


def write_part(folder: Path, config: GridDetectorConfig = SMALL) -> Path:
    save_file(sure_net(config).state_dict(), folder / "detector.safetensors")
    described = {"system": "grid_detector", "model": config.model_dump(mode="json")}
    (folder / "part.json").write_text(json.dumps(described))
    return folder


def test_a_trained_part_is_read_back(tmp_path: Path) -> None:
    write_part(tmp_path)
    detector = open_grid_detector(tmp_path)
    torch.manual_seed(0)
    same = GridDetector(sure_net(), detector.names, "")
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for one, other in zip(detector.detect(pictures), same.detect(pictures), strict=True):
        assert len(one) and one.boxes.equal(other.boxes) and one.scores.equal(other.scores)
    assert detector.names == ("class 0", "class 1", "class 2")
    (tmp_path / "classes.json").write_text(json.dumps(["boat", "tree"]))
    named = open_grid_detector(tmp_path)
    assert named.names == ("boat", "tree", "class 2") and named.digest != detector.digest


def _described(**changes: Any) -> str:
    return json.dumps({"system": "grid_detector", "model": SMALL.model_dump(mode="json") | changes})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "detector.safetensors").unlink(), "no weights of the grid detector at"),
        (lambda folder: (folder / "detector.safetensors").write_bytes(b"x"), "holds no readable state dict"),
        (lambda folder: (folder / "part.json").unlink(), "does not describe a grid_detector"),
        (lambda folder: (folder / "part.json").write_text("{"), "does not describe a grid_detector"),
        (lambda folder: (folder / "part.json").write_text("[]"), "does not describe a grid_detector"),
        (lambda folder: (folder / "part.json").write_text('{"system": "damsm"}'), "it is of the part damsm"),
        (lambda folder: (folder / "part.json").write_text('{"system": "grid_detector"}'), "'model'"),
        (lambda folder: (folder / "part.json").write_text(_described(classes=0)), "greater than or equal to 1"),
        (lambda folder: (folder / "part.json").write_text(_described(classes=4)), "does not hold the weights of the"),
        (lambda folder: (folder / "classes.json").write_text("{}"), "is no JSON list of at most 3 class names"),
        (lambda folder: (folder / "classes.json").write_text('["a", "b", "c", "d"]'), "is no JSON list of at most 3"),
        (lambda folder: (folder / "classes.json").write_text("[1]"), "is no JSON list of at most 3 class names"),
        (lambda folder: (folder / "classes.json").write_bytes(b"\xff"), "is no JSON list of at most 3 class names"),
    ],
)
def test_folders_that_hold_no_trained_detector(tmp_path: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    spoil(write_part(tmp_path))
    with pytest.raises(WeightsMissing) as caught:
        open_grid_detector(tmp_path)
    message = str(caught.value)
    assert sentence in message and "\n" not in message and str(tmp_path) in message


# Learning


def test_it_learns_scenes_by_heart(tmp_path: Path) -> None:
    """32 scenes of three kinds of things, shown in the centre, 110 times: nearly all are found where they are."""
    dataset = open_source("scenes:size=32,things=3,backgrounds=2,objects=2,train=32,val=1,test=1", "train", tmp_path)
    transform = TRANSFORMS["attngan"]
    objects = open_objects(ensure(objects_stage(dataset, transform, 32), tmp_path / "stages"))
    stored = [transform.store(decode(record.file), record, 32) for record in dataset.records]
    images = transform.normalise(torch.from_numpy(np.stack([transform.view(picture, 32) for picture in stored])))
    truth = objects.take(np.arange(32))
    part = GridDetectorPart()
    config = GridDetectorConfig(resolution=32, classes=3, channels=8, residual_blocks=1, feature_dim=32)
    nets = part.build(config)
    [phase] = part.phases(config)
    chosen = part.optimizers(config)["detector"]
    optimizer = torch.optim.Adam(nets["detector"].parameters(), 2 * chosen.learning_rate)
    untrained = found_figures(part.find(nets, images), truth)
    for step in range(220):
        rows = slice(16 * (step % 2), 16 * (step % 2) + 16)
        batch = Batch(torch.zeros(16).long(), images, objects=truth)[rows]
        optimizer.zero_grad()
        torch.autograd.backward(phase.losses(nets, batch, ALONE)["detector"].loss)
        optimizer.step()
    found = found_figures(part.find(nets, images), truth)
    assert untrained["finding/recall@0.5"] == 0
    assert found["finding/recall@0.5"] > 0.9 and found["finding/average-precision@0.5"] > 0.9
    assert found["finding_mismatched/recall@0.5"] < 0.4
