"""sg2im's nets and losses against their definitions, written again and slowly. Parity: tests/parity."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from models.blocks.graphs import FlatGraphs, flatten
from models.blocks.object_discriminator import Discriminators, ImageDiscriminator, Judgement
from models.contract import Batch, Given, StepContext, parameter_count
from models.losses.scene_graphs import discriminator_objective
from models.parallel import OneRank
from models.sg2im import RELEASED, Sg2im, Sg2imConfig
from models.sg2im.losses import generator_objective
from models.sg2im.networks import Drawing, Generator
from search_spaces.space import load_space
from tests.test_graph_blocks import CLASSES, PREDICATES, graph_of, repeatable, some_graphs

__all__ = ["repeatable"]

ONE = OneRank()
NAMES = Given(classes=CLASSES, predicates=PREDICATES)
SMALL: dict[str, Any] = {
    "resolution": 32,
    "embedding_dim": 6,
    "object_dim": 5,
    "hidden_dim": 7,
    "generator_channels": 2,
    "discriminator_channels": 2,
    "noise_dim": 2,
    "mask_side": 4,
    "feature_dim": 5,
}


def small(**changes: Any) -> Sg2imConfig:
    return Sg2imConfig(**{**SMALL, **changes})


def some_batch(count: int = 4, seed: int = 0) -> Batch:
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch(torch.arange(count), images, graphs=some_graphs(count, seed=seed))


def context(rows: int, seed: int = 0) -> StepContext:
    return StepContext(ONE, lambda width: torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))


# Settings


def test_every_setting_has_a_source_and_the_defaults_are_the_released_ones() -> None:
    assert all(info.description for info in Sg2imConfig.model_fields.values()) and Sg2imConfig() == RELEASED
    assert RELEASED.refinement_widths == (1024, 512, 256, 128, 64)
    released = {"pixel": 1.0, "box": 10.0, "image": 0.01, "object": 0.01, "classification": 0.1}
    assert {name: getattr(RELEASED, f"{name}_weight") for name in released} == released
    assert RELEASED.align_corners and RELEASED.patch_score == "map" and RELEASED.box_loss == "mse"
    for optimizer in (RELEASED.generator_optimizer, RELEASED.discriminator_optimizer):
        assert (optimizer.learning_rate, optimizer.beta_1, optimizer.beta_2) == (1e-4, 0.9, 0.999)
    for parameter in load_space("sg2im").parameters.values():
        for field in parameter.fields:
            if field.startswith("model."):
                value: Any = RELEASED
                for part in field.split(".")[1:]:
                    value = getattr(value, part)
                assert value == (parameter.paper if parameter.released is None else parameter.released)


def test_wrong_settings_say_what_to_do() -> None:
    with pytest.raises(ValidationError, match="refinement_modules is 7, .* have 64 px: set it to 6 or less"):
        Sg2imConfig(refinement_modules=7)
    with pytest.raises(ValidationError, match="greater than or equal to 22"):
        Sg2imConfig(crop_side=16)
    small(refinement_modules=5), small(refinement_modules=1)


def test_without_a_vocabulary_there_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="sg2im reads scene graphs but the data has 0 classes of objects: give"):
        Sg2im().build(small())


# Nets


def test_the_published_model_has_its_size() -> None:
    with torch.device("meta"):
        nets = Sg2im().build(RELEASED, Given(classes=171, predicates=6))
    assert {name: parameter_count(net) for name, net in nets.items()} == {
        "generator": 28_017_288,
        "discriminators": 1_759_021,
    }


@pytest.mark.parametrize("mask_side", [0, 2, 4])
def test_the_generator_draws_by_boxes(mask_side: int) -> None:
    config, flat = small(mask_side=mask_side), flatten(some_graphs(3))
    net = Generator(config, CLASSES, PREDICATES).eval()
    noise = torch.randn(3, config.drawn_noise)
    drawing = net(flat, noise)
    assert drawing.images.shape == (3, 3, 32, 32) and drawing.boxes.shape == (len(flat.classes), 4)
    assert (drawing.boxes >= 0).all()
    assert (drawing.masks is None) == (mask_side == 0)
    if drawing.masks is not None:
        assert drawing.masks.shape == (len(flat.classes), mask_side, mask_side)
        assert ((drawing.masks > 0) & (drawing.masks < 1)).all()
    torch.testing.assert_close(net(flat, noise, drawing.boxes).images, drawing.images)
    assert (net(flat, noise, flat.boxes).images - drawing.images).abs().max() > 1e-4
    linear = Generator(small(box_relu=False), CLASSES, PREDICATES)
    assert (linear(flat, noise).boxes < 0).any()


def test_patches_are_scored_by_the_map_itself_or_by_the_classifier() -> None:
    images = torch.randn(2, 3, 32, 32)
    as_map = ImageDiscriminator(4, 0.2, "map", "global")
    classified = ImageDiscriminator(4, 0.2, "classifier", "global")
    assert as_map(images).shape == (2, 16, 2, 2) and classified(images).shape == (2, 1, 2, 2)
    assert not any("classifier" in name for name, _ in as_map.named_parameters())
    assert parameter_count(classified) == parameter_count(as_map) + 17


def test_objects_are_judged_by_their_crops() -> None:
    """A picture that changes outside an object's box leaves the object's judgement as it was."""
    graphs = graph_of([1, 2])
    graphs = replace(graphs, boxes=torch.tensor([[[0.0, 0.0, 0.45, 0.45], [0.55, 0.55, 1.0, 1.0]]]))
    flat, net, images = flatten(graphs), Discriminators(small(), CLASSES).eval(), torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 18:, 18:] += 1
    before, after = net(images, flat), net(changed, flat)
    assert before.objects.shape == (3,) and before.classes.shape == (3, CLASSES + 1)
    assert [bool(abs(a - b) > 1e-5) for a, b in zip(before.objects, after.objects, strict=True)] == [False, True, True]


# Losses and training


def slow_bce(logits: Tensor, real: bool) -> Tensor:
    return F.binary_cross_entropy(torch.sigmoid(logits), torch.full_like(logits, float(real)))


@pytest.mark.parametrize("box_loss", ["mse", "l1"])
def test_losses_are_their_definitions(box_loss: str) -> None:
    config, flat, images = small(box_loss=box_loss), flatten(some_graphs(3)), torch.randn(3, 3, 32, 32)
    objects = len(flat.classes)

    def judgement() -> Judgement:
        return Judgement(torch.randn(3, 4, 2, 2), torch.randn(objects), torch.randn(objects, CLASSES + 1))

    real, fake = judgement(), judgement()
    drawing = Drawing(torch.randn(3, 3, 32, 32), torch.rand(objects, 4), None)
    found = generator_objective(config, drawing, fake, images, flat, ONE)
    difference = drawing.boxes - flat.boxes
    expected = {
        "pixel": (drawing.images - images).abs().mean(),
        "box": difference.square().mean() if box_loss == "mse" else difference.abs().mean(),
        "image": slow_bce(fake.patches, True),
        "object": slow_bce(fake.objects, True),
        "classification": F.cross_entropy(fake.classes, flat.classes),
    }
    torch.testing.assert_close(dict(found.terms), expected)
    weights = (1, 10, 0.01, 0.01, 0.1)
    torch.testing.assert_close(found.loss, sum(w * part for w, part in zip(weights, expected.values(), strict=True)))

    found = discriminator_objective(real, fake, flat, ONE)
    expected = {
        "image": slow_bce(real.patches, True) + slow_bce(fake.patches, False),
        "object": slow_bce(real.objects, True) + slow_bce(fake.objects, False),
        "classification_real": F.cross_entropy(real.classes, flat.classes),
        "classification_fake": F.cross_entropy(fake.classes, flat.classes),
    }
    torch.testing.assert_close(dict(found.terms), expected)
    torch.testing.assert_close(found.loss, torch.stack(list(expected.values())).sum())


def test_workers_with_different_numbers_of_objects_pay_what_one_pays() -> None:
    class Halves:
        """Two ranks of which one is asked at a time: the mean count is known, nothing else is exchanged."""

        rank, size = 0, 2

        def __init__(self, lengths: list[int]) -> None:
            mean = sum(lengths) / len(lengths)
            self.means = {width * length: width * mean for length in lengths for width in (1, 4)}

        def gather(self, local: Tensor) -> Tensor:
            raise AssertionError("nothing is gathered")

        def average_(self, tensors: Iterable[Tensor]) -> None:
            for count in tensors:
                count.fill_(self.means[int(count)])

    graphs, images = some_graphs(4, 5, seed=1), torch.randn(4, 3, 32, 32).double()
    parts = [Batch(torch.arange(4), images, graphs=graphs)[rows] for rows in (slice(0, 2), slice(2, 4))]
    flats = [flatten(part.graphs) for part in parts if part.graphs is not None]
    lengths = [len(flat.classes) for flat in flats]
    assert lengths[0] != lengths[1]
    ranks = Halves(lengths)
    config = small()
    net = Generator(config, CLASSES, PREDICATES).double().eval()
    judge = Discriminators(config, CLASSES).double().eval()
    noise = torch.randn(4, config.drawn_noise).double()

    def objectives(flat: FlatGraphs, rows: slice, ranks: Any) -> Tensor:
        drawing = net(flat, noise[rows], flat.boxes)
        fake, real = judge(drawing.images, flat), judge(images[rows], flat)
        generator = generator_objective(config, drawing, fake, images[rows], flat, ranks)
        discriminators = discriminator_objective(real, fake, flat, ranks)
        terms = [*generator.terms.values(), *discriminators.terms.values()]
        return torch.stack([generator.loss, discriminators.loss, *terms])

    whole = objectives(flatten(graphs), slice(0, 4), ONE)
    halves = [objectives(flat, rows, ranks) for flat, rows in zip(flats, (slice(0, 2), slice(2, 4)), strict=True)]
    torch.testing.assert_close(torch.stack(halves).mean(0), whole)


def test_both_nets_step_on_one_drawing_and_every_parameter_is_reached() -> None:
    for changes in ({}, {"patch_score": "classifier"}, {"mask_side": 0, "pooling": "sum"}):
        config, system = small(**changes), Sg2im()
        nets, batch = system.build(config, NAMES), some_batch()
        [phase] = system.phases(config)
        objectives = phase.losses(nets, batch, context(4))
        assert set(phase.trains) == set(system.optimizers(config)) == objectives.keys()
        for name in phase.trains:
            gradients = torch.autograd.grad(
                objectives[name].loss, list(nets[name].parameters()), retain_graph=True, allow_unused=True
            )
            assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
        # The discriminators' gradient is that of drawn pictures cut off from the generator.
        flat = flatten(batch.graphs) if batch.graphs is not None else None
        assert flat is not None and batch.images is not None
        drawn = nets["generator"](flat, context(4).noise(config.drawn_noise), flat.boxes).images.detach()
        judge = nets["discriminators"]
        apart = discriminator_objective(judge(batch.images, flat), judge(drawn, flat), flat, ONE)
        for first, second in zip(torch.autograd.grad(apart.loss, list(judge.parameters())), gradients, strict=True):
            torch.testing.assert_close(first, second)


def test_it_learns_the_pictures_and_the_boxes() -> None:
    config, system = small(generator_channels=4, box_relu=False), Sg2im()
    nets, batch = system.build(config, NAMES), some_batch()
    [phase] = system.phases(config)
    optimizers = {name: torch.optim.Adam(net.parameters(), 3e-3) for name, net in nets.items()}
    first: dict[str, float] = {}
    for _ in range(25):
        objectives = phase.losses(nets, batch, context(4))
        for name in phase.trains:
            for parameter, gradient in zip(
                nets[name].parameters(),
                torch.autograd.grad(objectives[name].loss, list(nets[name].parameters()), retain_graph=True),
                strict=True,
            ):
                parameter.grad = gradient
        for optimizer in optimizers.values():
            optimizer.step()
        terms = {name: float(value) for name, value in objectives["generator"].terms.items()}
        first = first or terms
    assert terms["pixel"] < 0.9 * first["pixel"] and terms["box"] < 0.5 * first["box"]


# Sampling


@pytest.mark.parametrize("boxes", ["predicted", "given"])
def test_a_sample_is_its_graphs_and_its_seeds(boxes: str) -> None:
    config, system = small(boxes=boxes), Sg2im()
    nets, graphs = system.build(config, NAMES), some_graphs(4)
    conditions = Batch(torch.arange(4), graphs=graphs)
    seeds = [3, 4, 5, 6]
    with torch.inference_mode():
        together = system.sample({"generator": nets["generator"]}, config, conditions, seeds)
        assert together.shape == (4, 3, 32, 32) and together.abs().max() <= 1 and nets["generator"].training
        assert system.sample(nets, config, conditions, seeds).equal(together)
        for row in range(4):
            alone = system.sample(nets, config, conditions[row : row + 1], seeds[row : row + 1])
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
        wider = replace(
            graphs,
            classes=F.pad(graphs.classes, (0, 3), value=9),
            boxes=F.pad(graphs.boxes, (0, 0, 0, 3), value=9.0),
            relations=F.pad(graphs.relations, (0, 0, 0, 3), value=9),
        )
        padded = system.sample(nets, config, replace(conditions, graphs=wider), seeds)
        torch.testing.assert_close(padded, together, rtol=0, atol=1e-5)
        other = system.sample(nets, config, conditions, [13, 14, 15, 16])
        assert ((other - together).flatten(1).abs().amax(1) > 1e-3).all()
        moved = replace(graphs, boxes=graphs.boxes + 0.1)
        elsewhere = system.sample(nets, config, replace(conditions, graphs=moved), seeds)
        assert elsewhere.equal(together) == (boxes == "predicted")
