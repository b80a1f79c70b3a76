"""SPADE's nets and losses against their definitions, written again and slowly. Parity: tests/parity."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from models.blocks.label_maps import instance_edges, label_channels, label_input, one_hot, resized
from models.blocks.norm import BatchStatistics
from models.blocks.semantic import StoredSpectralConv2d
from models.contract import Batch, Given, LabelMaps, Objective, StepContext, parameter_count
from models.encoders.perceptual_trunks import PerceptualTrunk
from models.encoders.trunk import ImageTrunk
from models.losses.feature_matching import ScaleJudgement, discriminator_objective, feature_matching, hinge_fooling
from models.losses.lpips import scaled
from models.losses.perceptual import LEVEL_WEIGHTS, PerceptualDistance, PerceptualSettings
from models.parallel import OneRank
from models.spade import RELEASED, Discriminator, Generator, Spade, SpadeConfig
from models.spade.encoder import ImageEncoder, kl_divergence
from models.spade.networks import SpadeBlock
from models.spade.system import judge_both
from search_spaces.space import load_space
from tests.tiny import small_pretrained_nets

CLASSES, ROWS, SIDE = 5, 4, 32
NAMES = Given(classes=CLASSES)
SMALL: dict[str, Any] = {
    "resolution": SIDE,
    "generator_channels": 2,
    "upsamplings": 3,
    "hidden_dim": 6,
    "noise_dim": 4,
    "discriminator_channels": 2,
    "init_gain": 1.0,
    "perceptual": {"net": "efficientnet-lite0", "weights": "random", "side": 32, "map_weights": "spade"},
}
FORMS: list[dict[str, Any]] = [{}, {"noise": "normal"}, {"use_vae": True}]


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """The same random weights each time, and one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(**changes: Any) -> SpadeConfig:
    return SpadeConfig(**{**SMALL, **changes})


def some_maps(count: int = ROWS, side: int = SIDE, seed: int = 0) -> LabelMaps:
    """Blocks of 4 px, "don't care" among them."""
    generator = torch.Generator().manual_seed(seed)
    shape = count, side // 4, side // 4
    labels = torch.randint(0, CLASSES + 1, shape, generator=generator)
    instances = torch.randint(0, 3, shape, generator=generator)
    return LabelMaps(*(values.repeat_interleave(4, 1).repeat_interleave(4, 2) for values in (labels, instances)))


def some_batch(count: int = ROWS, seed: int = 0) -> Batch:
    images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Batch(torch.arange(count), images, labels=some_maps(count, seed=seed))


def context(rows: int, seed: int = 0) -> StepContext:
    return StepContext(OneRank(), lambda width: torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))


def built(config: SpadeConfig) -> dict[str, nn.Module]:
    with small_pretrained_nets():
        return Spade().build(config, NAMES)


class Workers:
    """So many ranks, of which one is asked: nothing is exchanged."""

    def __init__(self, size: int) -> None:
        self.rank, self.size = 0, size

    def gather(self, local: Tensor) -> Tensor:
        raise AssertionError("nothing is gathered")

    def average_(self, tensors: Iterable[Tensor]) -> None:
        raise AssertionError("nothing is averaged")


# Label maps


def test_label_maps_are_channels() -> None:
    maps = some_maps()
    found = label_input(maps, CLASSES)
    assert found.shape == (ROWS, label_channels(CLASSES), SIDE, SIDE) and found.dtype == torch.float32
    assert found[:, :-1].argmax(1).equal(maps.labels) and found[:, :-1].sum(1).eq(1).all()
    assert found[:, CLASSES].bool().equal(maps.labels == CLASSES) and found[:, CLASSES].any()
    assert found[:, :-1].equal(one_hot(maps, CLASSES)) and found[:, -1:].equal(instance_edges(maps))


def test_edges_are_where_a_neighbour_is_another_instance() -> None:
    maps = some_maps(2, 16)
    expected = torch.zeros(2, 1, 16, 16)
    for picture in range(2):
        for y in range(16):
            for x in range(16):
                near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                own = maps.instances[picture, y, x]
                expected[picture, 0, y, x] = float(
                    any(maps.instances[picture, i, j] != own for i, j in near if 0 <= i < 16 and 0 <= j < 16)
                )
    assert instance_edges(maps).equal(expected) and 0 < expected.mean() < 1
    assert not instance_edges(replace(maps, instances=torch.full_like(maps.instances, 3))).any()


def test_maps_are_resized_by_the_nearest_pixel() -> None:
    found = label_input(some_maps(), CLASSES)
    assert resized(found, (8, 8)).equal(found[:, :, ::4, ::4]) and resized(found, (SIDE, SIDE)) is found
    torch.testing.assert_close(resized(found, (8, 8)), F.interpolate(found, size=(8, 8), mode="nearest"))


def test_a_class_that_is_not_there_is_an_error() -> None:
    maps = some_maps()
    for label in (-1, CLASSES + 1):
        with pytest.raises(RuntimeError, match="index"):
            one_hot(replace(maps, labels=torch.full_like(maps.labels, label)), CLASSES)


# Settings


def test_every_setting_has_a_source_and_the_defaults_are_the_released_ones() -> None:
    assert all(info.description for info in SpadeConfig.model_fields.values()) and SpadeConfig() == RELEASED
    released = {"feature_matching": 10.0, "perceptual": 10.0, "kl": 0.05}
    assert {name: getattr(RELEASED, f"{name}_weight") for name in released} == released
    assert RELEASED.first_side == 8 and not RELEASED.use_vae and not RELEASED.reads_noise
    rates = [RELEASED.generator_optimizer, RELEASED.discriminator_optimizer]
    assert [(one.learning_rate, one.beta_1, one.beta_2) for one in rates] == [(1e-4, 0.0, 0.9), (4e-4, 0.0, 0.9)]
    parameters = load_space("spade").parameters
    assert parameters.keys() >= {"use_vae", "kl_weight", "feature_matching_weight", "perceptual_weight", "beta_1"}
    for parameter in parameters.values():
        for field in parameter.fields:
            if field.startswith("model."):
                value: Any = RELEASED
                for part in field.split(".")[1:]:
                    value = getattr(value, part)
                assert value == parameter.released


def test_wrong_settings_say_what_to_do() -> None:
    with pytest.raises(ValidationError, match="upsamplings is 7, .* have 64 px: set it to 6 or less"):
        SpadeConfig(resolution=64, upsamplings=7)
    with pytest.raises(ValidationError, match="map_weights=spade has weights for 5 maps and squeeze has seven: take"):
        SpadeConfig(perceptual=PerceptualSettings(net="squeeze", map_weights="spade"))
    for upsamplings in range(1, 6):
        net = Generator(small(upsamplings=upsamplings), CLASSES)
        assert net(label_input(some_maps(2), CLASSES)).shape == (2, 3, SIDE, SIDE)


def test_without_classes_there_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="spade reads label maps but the data has 0 classes of pixels: give"):
        Spade().build(small())


# Nets


@pytest.mark.parametrize(("use_vae", "size"), [(True, 112_626_883), (False, 97_480_899)])
def test_the_published_model_has_its_size(use_vae: bool, size: int) -> None:
    config = SpadeConfig(use_vae=use_vae)
    with torch.device("meta"):
        nets = Spade().build(config, Given(classes=182))
        generator, encoder = nets["generator"], parameter_count(ImageEncoder(config))
    assert nets.keys() == {"generator", "discriminator", "perceptual"}
    assert parameter_count(generator) - use_vae * encoder == size
    assert parameter_count(nets["discriminator"]) == 5_904_514


def test_the_published_widths() -> None:
    with torch.device("meta"):
        generator, encoder = Generator(RELEASED, 182), ImageEncoder(RELEASED)
    blocks = [module for module in generator.modules() if isinstance(module, SpadeBlock)]
    assert [block.conv2.out_channels for block in blocks] == [1024, 1024, 1024, 512, 256, 128, 64]
    assert [block.conv_shortcut is not None for block in blocks] == [False] * 3 + [True] * 4
    convs = [module for module in encoder.modules() if isinstance(module, StoredSpectralConv2d)]
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 512, 512]
    small_maps = label_input(some_maps(1, 64), CLASSES)
    found = Discriminator(small(resolution=64), CLASSES)(small_maps, torch.zeros(1, 3, 64, 64))
    assert [tuple(maps.shape[1:]) for maps in found[0].features] == [(2, 33, 33), (4, 17, 17), (8, 9, 9), (16, 10, 10)]
    assert [tuple(scale.logits.shape) for scale in found] == [(1, 1, 11, 11), (1, 1, 7, 7)]


def test_weights_start_small() -> None:
    net = Generator(small(init_gain=0.02, use_vae=True), CLASSES)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 1 + 5 * 8 + 2 * 4 + 1 + 5
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 100:
            taps = layer.weight[0, 0].numel()
            expected = 0.02 * (2 / (taps * (layer.in_channels + layer.out_channels))) ** 0.5
            assert abs(layer.weight.std().item() / expected - 1) < 0.3
        assert layer.bias is None or not layer.bias.any()


def test_spectral_norm_finds_the_largest_singular_value_and_stands_still_in_evaluation() -> None:
    conv, x = StoredSpectralConv2d(3, 5, 3, padding=1), torch.randn(2, 3, 8, 8)
    for _ in range(200):
        conv(x)
    largest = torch.linalg.matrix_norm(conv.weight.flatten(1), 2)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight / largest, conv.bias, padding=1))
    stored = conv.u.clone(), conv.v.clone()
    with torch.no_grad():
        conv.weight.mul_(3.0).add_(torch.randn_like(conv.weight))
    first = conv.eval()(x)
    assert conv.u.equal(stored[0]) and conv.v.equal(stored[1]) and conv(x).equal(first)
    sigma = stored[0] @ conv.weight.flatten(1) @ stored[1]
    torch.testing.assert_close(first, F.conv2d(x, conv.weight / sigma, conv.bias, padding=1))
    other = StoredSpectralConv2d(3, 5, 3, padding=1).eval()
    other.load_state_dict(conv.state_dict())
    assert other(x).equal(first)
    # In bfloat16 the estimate is float32's.
    with torch.autocast("cpu", torch.bfloat16):
        conv.train()(x)
    assert conv.u.dtype == torch.float32 and abs(conv.u.norm() - 1) < 1e-6


def test_the_first_map_is_of_the_label_map_or_of_z() -> None:
    label_map, z = label_input(some_maps(), CLASSES), torch.randn(ROWS, 4)
    by_labels = Generator(small(), CLASSES).eval()
    assert isinstance(by_labels.first, nn.Conv2d) and by_labels(label_map).equal(by_labels(label_map, z))
    for form in FORMS[1:]:
        net = Generator(small(**form), CLASSES).eval()
        assert (net(label_map, z) - net(label_map, -z)).abs().max() > 1e-3
        assert (net(label_map, z) - net(label_map.roll(1, 0), z)).abs().max() > 1e-3
        assert net(label_map, z).abs().max() <= 1


def test_a_pixels_class_changes_the_picture_there() -> None:
    """And farther away only by the few pixels that convolutions see."""
    maps, net = some_maps(1), Generator(small(), CLASSES).eval()
    labels = maps.labels.clone()
    labels[:, 12:20, 12:20] = (labels[:, 12:20, 12:20] + 1) % CLASSES
    with torch.no_grad():
        before, after = (net(label_input(one, CLASSES)) for one in (maps, replace(maps, labels=labels)))
    apart = (after - before).abs().amax(1)[0]
    assert apart[12:20, 12:20].mean() > 2 * apart[:4, :4].mean()


def test_the_discriminator_sees_the_label_map_and_each_picture_by_itself() -> None:
    net, batch = Discriminator(small(), CLASSES).eval(), some_batch()
    assert batch.images is not None and batch.labels is not None
    label_map = label_input(batch.labels, CLASSES)
    together = net(label_map, batch.images)
    assert len(together) == 2
    alone = net(label_map[:1], batch.images[:1])
    turned = net(label_map.roll(1, 0), batch.images)
    for one, all_of_them, other in zip(alone, together, turned, strict=True):
        torch.testing.assert_close(one.logits, all_of_them.logits[:1], rtol=0, atol=1e-5)
        assert (other.logits - all_of_them.logits).abs().max() > 1e-3


def test_the_coarse_scale_is_the_mean_of_pixels_that_are_there() -> None:
    net, seen = Discriminator(small(), CLASSES), []
    net.scales[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    label_map, images = label_input(some_maps(1), CLASSES), torch.randn(1, 3, SIDE, SIDE)
    net(label_map, images)
    [pixels] = seen
    assert pixels.shape == (1, CLASSES + 2 + 3, SIDE // 2, SIDE // 2)
    torch.testing.assert_close(pixels[0, -3:, 0, 0], images[0, :, :2, :2].mean((1, 2)))
    torch.testing.assert_close(pixels[0, -3:, 5, 7], images[0, :, 9:12, 13:16].mean((1, 2)))


def test_a_block_is_as_wide_between_as_its_narrower_end() -> None:
    for width, out in ((6, 4), (4, 6), (4, 4)):
        block = SpadeBlock(width, out, 3, 5, 0.2, "global")
        assert block.conv1.out_channels == 4 and (block.conv_shortcut is None) == (width == out)
        assert block(torch.randn(2, width, 8, 8), torch.randn(2, 3, 32, 32)).shape == (2, out, 8, 8)


def test_the_encoder_is_an_encoder_of_one_picture() -> None:
    for side, halvings in ((32, 3), (64, 4), (256, 6)):
        net = ImageEncoder(small(resolution=side)).eval()
        images = torch.randn(2, 3, side, side)
        mean, log_variance = net(images)
        assert len(net.convs) == halvings and mean.shape == log_variance.shape == (2, 4)
        torch.testing.assert_close(net(images[:1])[0], mean[:1], rtol=0, atol=1e-5)


# Losses and training


def some_judgement() -> list[ScaleJudgement]:
    return [
        ScaleJudgement(2 * torch.randn(3, 1, side, side), tuple(torch.randn(3, width, 6, 6) for width in (2, 4)))
        for side in (6, 4)
    ]


def test_losses_are_their_definitions() -> None:
    real, fake = some_judgement(), some_judgement()
    shown = [F.relu(1 - scale.logits).mean() for scale in real]
    drawn = [F.relu(1 + scale.logits).mean() for scale in fake]
    found = discriminator_objective(real, fake)
    torch.testing.assert_close(dict(found.terms), {"real": sum(shown) / 2, "fake": sum(drawn) / 2})
    torch.testing.assert_close(found.loss, (sum(shown) + sum(drawn)) / 2)
    torch.testing.assert_close(hinge_fooling(fake), -sum(scale.logits.mean() for scale in fake) / 2)
    apart = [
        (one - other).abs().mean()
        for first, second in zip(fake, real, strict=True)
        for one, other in zip(first.features, second.features, strict=True)
    ]
    assert len(apart) == 4
    torch.testing.assert_close(feature_matching(fake, real), sum(apart) / 2)
    assert feature_matching(real, real) == 0


def test_only_drawn_maps_learn_from_matching() -> None:
    maps = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2)]
    fake, real = ([ScaleJudgement(torch.zeros(2, 1, 3, 3), (one,))] for one in maps)
    feature_matching(fake, real).backward()  # type: ignore[no-untyped-call]
    assert maps[0].grad is not None and maps[0].grad.any() and maps[1].grad is None


def test_divergence_is_its_definition() -> None:
    mean, log_variance = torch.randn(3, 4), torch.randn(3, 4)
    here = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    there = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
    torch.testing.assert_close(kl_divergence(mean, log_variance), torch.distributions.kl_divergence(here, there).sum(1))


@pytest.mark.parametrize("net", ["vgg", "alex", "efficientnet-lite0"])
def test_perceptual_maps_are_weighed(net: Any) -> None:
    first, second = (torch.rand(2, 3, SIDE, SIDE) * 2 - 1 for _ in range(2))
    with small_pretrained_nets():
        compare = PerceptualDistance(PerceptualSettings(net=net, weights="random", map_weights="spade", side=32))
    maps = []
    for images in (first, second):
        if isinstance(compare.trunk, ImageTrunk):
            seen = compare.trunk(images)
            maps.append((seen.regions, seen.pooled))
        else:
            assert isinstance(compare.trunk, PerceptualTrunk)
            maps.append(compare.trunk(scaled(images)))
    apart = [(one - other).abs().flatten(1).mean(1) for one, other in zip(*maps, strict=True)]
    weights = LEVEL_WEIGHTS if net != "efficientnet-lite0" else (1 / 4, 1.0)
    assert len(apart) == len(weights) and LEVEL_WEIGHTS == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)
    torch.testing.assert_close(compare(first, second), sum(w * one for w, one in zip(weights, apart, strict=True)))


def steps(config: SpadeConfig, nets: dict[str, nn.Module], batch: Batch) -> dict[str, Mapping[str, Objective]]:
    """What each phase asks for, no net stepping between them."""
    return {phase.name: phase.losses(nets, batch, context(ROWS)) for phase in Spade().phases(config)}


@pytest.mark.parametrize("form", FORMS)
def test_the_generator_steps_and_then_the_discriminator(form: dict[str, Any]) -> None:
    config = small(**form)
    nets, batch = built(config), some_batch()
    phases = Spade().phases(config)
    assert [(phase.trains, phase.fresh_batch) for phase in phases] == [
        (("generator",), True),
        (("discriminator",), False),
    ]
    assert set(Spade().optimizers(config)) == {"generator", "discriminator"}
    for phase in phases:
        [name] = phase.trains
        objective = phase.losses(nets, batch, context(ROWS))[name]
        gradients = torch.autograd.grad(objective.loss, list(nets[name].parameters()), allow_unused=True)
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        # A bias or a beta in front of a norm may be 0; no more than these are.
        assert sum(bool(gradient.any()) for gradient in gradients if gradient is not None) > 0.6 * len(gradients)
        parts = {"hinge", "feature_matching", "perceptual"} | ({"kl"} if config.use_vae else set())
        assert objective.terms.keys() == (parts if name == "generator" else {"real", "fake"})


def test_weights_are_of_their_terms_and_0_leaves_out() -> None:
    weights = {"feature_matching_weight": 3.0, "perceptual_weight": 2.0, "kl_weight": 0.7, "use_vae": True}
    config = small(**weights)
    objective = steps(config, built(config), some_batch())["generator"]["generator"]
    terms = objective.terms
    expected = terms["hinge"] + 3 * terms["feature_matching"] + 2 * terms["perceptual"] + 0.7 * terms["kl"]
    torch.testing.assert_close(objective.loss.detach(), expected)
    bare = small(feature_matching_weight=0.0, perceptual_weight=0.0)
    nets = built(bare)
    assert nets.keys() == {"generator", "discriminator"} and not bare.uses_perceptual
    assert steps(bare, nets, some_batch())["generator"]["generator"].terms.keys() == {"hinge"}


def test_the_divergence_is_a_sum_over_all_workers_or_a_mean() -> None:
    """One worker that has every picture twice, and two that have each once."""
    once = some_batch()
    rows = torch.cat([torch.arange(ROWS)] * 2)
    found = {}
    for reduction in ("sum", "mean"):
        for workers, batch in ((1, once[rows]), (2, once)):
            torch.manual_seed(0)
            config = small(use_vae=True, kl_reduction=reduction)
            ready = StepContext(Workers(workers), partial(torch.zeros, len(batch.image_ids)))
            phase = Spade().phases(config)[0]
            found[reduction, workers] = phase.losses(built(config), batch, ready)["generator"].terms["kl"]
    torch.testing.assert_close(found["sum", 1], found["sum", 2])
    torch.testing.assert_close(found["mean", 1], found["mean", 2])
    torch.testing.assert_close(found["sum", 1], 2 * ROWS * found["mean", 1])


@pytest.mark.parametrize("form", FORMS[1:])
def test_the_discriminator_sees_pictures_of_new_z(form: dict[str, Any]) -> None:
    config = small(**form)
    nets, batch = built(config), some_batch()
    generator, seen = nets["generator"], []
    said: list[tuple[Tensor, Tensor]] = [(torch.zeros(()), torch.zeros(()))] * 2
    generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].detach()))
    assert isinstance(generator, Generator) and (generator.encoder is not None) == config.use_vae
    if generator.encoder is not None:
        said.clear()
        generator.encoder.register_forward_hook(lambda *call: said.append(call[-1]))
    steps(config, nets, batch)
    noise = context(ROWS).noise(8)
    for z, (mean, log_variance), drawn in zip(seen, said, (noise[:, :4], noise[:, 4:]), strict=True):
        torch.testing.assert_close(z, mean.detach() + log_variance.detach().exp().sqrt() * drawn)


def test_the_discriminators_fakes_are_cut_off() -> None:
    """No gradient of its loss reaches the generator, whose statistics move in both turns (released)."""
    config = small()
    nets, batch = built(config), some_batch()
    assert batch.images is not None and batch.labels is not None
    moving = next(module for module in nets["generator"].modules() if isinstance(module, BatchStatistics))
    means = [moving.running_mean.clone()]
    for phase in Spade().phases(config):
        objectives = phase.losses(nets, batch, context(ROWS))
        means.append(moving.running_mean.clone())
    assert not means[0].equal(means[1]) and not means[1].equal(means[2])
    loss = objectives["discriminator"].loss
    assert all(
        gradient is None
        for gradient in torch.autograd.grad(
            loss, list(nets["generator"].parameters()), allow_unused=True, retain_graph=True
        )
    )


def test_real_and_drawn_pictures_are_judged_in_one_pass() -> None:
    net, batch = Discriminator(small(), CLASSES), some_batch()
    assert batch.images is not None and batch.labels is not None
    label_map = label_input(batch.labels, CLASSES)
    before = {name: value.clone() for name, value in net.named_buffers()}
    real, fake = judge_both(net, label_map, batch.images, -batch.images)
    after = {name: value.clone() for name, value in net.named_buffers()}
    net.load_state_dict(before, strict=False)
    alone = net(label_map, batch.images)
    assert all(value.equal(after[name]) for name, value in net.named_buffers())
    net.load_state_dict(before, strict=False)
    other = net(label_map, -batch.images)
    for found, expected in ((real, alone), (fake, other)):
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one.logits, two.logits, rtol=0, atol=1e-5)
            assert len(one.features) == len(two.features) == 4
            torch.testing.assert_close(one.features[-1], two.features[-1], rtol=0, atol=1e-5)


def test_it_learns_its_pictures() -> None:
    """Pictures that are their label maps' colours."""
    config = small(generator_channels=4, hidden_dim=16, discriminator_channels=8, perceptual_weight=0.0)
    nets, batch = built(config), some_batch()
    assert batch.labels is not None
    palette = 1.6 * torch.rand(CLASSES + 1, 3) - 0.8
    images = palette[batch.labels.labels].movedim(3, 1).contiguous()
    batch = replace(batch, images=images)
    optimizers = {
        name: torch.optim.Adam(nets[name].parameters(), 3e-3, (0.0, 0.9)) for name in ("generator", "discriminator")
    }

    def distance() -> float:
        with torch.no_grad():
            return float((Spade().sample(nets, config, batch, list(range(ROWS))) - images).abs().mean())

    before = distance()
    for step in range(60):
        for phase in Spade().phases(config):
            [name] = phase.trains
            objective = phase.losses(nets, batch, context(ROWS, step))[name]
            gradients = torch.autograd.grad(objective.loss, list(nets[name].parameters()))
            for parameter, gradient in zip(nets[name].parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizers[name].step()
    assert distance() < 0.6 * before


# Sampling


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_is_its_label_map_and_its_seed(form: dict[str, Any]) -> None:
    config, system = small(**form), Spade()
    nets = built(config)
    conditions = Batch(torch.arange(ROWS), labels=some_maps())
    seeds = [3, 4, 5, 6]
    with torch.inference_mode():
        together = system.sample({"generator": nets["generator"]}, config, conditions, seeds)
        assert together.shape == (ROWS, 3, SIDE, SIDE) and together.abs().max() <= 1 and nets["generator"].training
        assert system.sample(nets, config, conditions, seeds).equal(together)
        for row in range(ROWS):
            alone = system.sample(nets, config, conditions[row : row + 1], seeds[row : row + 1])
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
        other = system.sample(nets, config, conditions, [13, 14, 15, 16])
        assert other.equal(together) == (not form)
        assert not form or ((other - together).flatten(1).abs().amax(1) > 1e-3).all()
        elsewhere = system.sample(nets, config, replace(conditions, labels=some_maps(seed=1)), seeds)
        assert ((elsewhere - together).flatten(1).abs().amax(1) > 1e-3).all()
