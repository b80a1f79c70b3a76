"""CC-FPSE's nets and losses against their definitions, written again and slowly. Parity: tests/parity."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from models.blocks.label_maps import label_channels, label_input
from models.blocks.norm import BatchNorm
from models.blocks.semantic import StoredSpectralConv2d, initialise
from models.ccfpse import CCFPSE, RELEASED, CCFPSEConfig, Discriminator, Generator
from models.ccfpse.layers import TAPS, ConditionalBlock, LabelEncoder, depthwise_by_pixel
from models.contract import Batch, Given, LabelMaps, StepContext, parameter_count
from models.losses.feature_matching import ScaleJudgement
from models.parallel import OneRank
from models.spade.encoder import ImageEncoder
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
FORMS: list[dict[str, Any]] = [{}, {"use_vae": False}, {"use_vae": False, "noise": "normal"}]


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """The same random weights each time, and one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(**changes: Any) -> CCFPSEConfig:
    return CCFPSEConfig(**{**SMALL, **changes})


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


def built(config: CCFPSEConfig) -> dict[str, nn.Module]:
    with small_pretrained_nets():
        return CCFPSE().build(config, NAMES)


# Settings


def test_every_setting_has_a_source_and_the_defaults_are_the_released_ones() -> None:
    assert all(info.description for info in CCFPSEConfig.model_fields.values()) and CCFPSEConfig() == RELEASED
    released = {"feature_matching": 20.0, "perceptual": 10.0, "kl": 0.05}
    assert {name: getattr(RELEASED, f"{name}_weight") for name in released} == released
    assert RELEASED.use_vae and RELEASED.reads_noise and RELEASED.noise_dim == 256 and RELEASED.first_side == 8
    assert RELEASED.kl_reduction == "sum" and RELEASED.init_gain == 0.02 and RELEASED.resolution == 256
    rates = [RELEASED.generator_optimizer, RELEASED.discriminator_optimizer]
    assert [(one.learning_rate, one.beta_1, one.beta_2) for one in rates] == [(1e-4, 0.0, 0.9), (4e-4, 0.0, 0.9)]
    parameters = load_space("ccfpse").parameters
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
        CCFPSEConfig(resolution=64, upsamplings=7)
    for name in ("discriminator_layers", "discriminator_scales"):
        with pytest.raises(ValidationError, match=f"{name}\n  Extra inputs are not permitted"):
            small(**{name: 2})


def test_without_classes_there_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="ccfpse reads label maps but the data has 0 classes of pixels: give"):
        CCFPSE().build(small())


# Convolutions by predicted kernels


def unfolded(x: Tensor, kernels: Tensor) -> Tensor:
    """The definition: each pixel's nine neighbours times its nine numbers."""
    count, channels, height, width = x.shape
    neighbours = F.unfold(x, 3, padding=1).view(count, channels, TAPS, height, width)
    return (neighbours * kernels.view(count, channels, TAPS, height, width)).sum(2)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)])
def test_every_pixel_has_its_kernel(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(2, 27, *size, dtype=torch.float64, requires_grad=True)
    found, expected = depthwise_by_pixel(x, kernels), unfolded(x, kernels)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, (x, kernels), weights),
        torch.autograd.grad(expected, (x, kernels), weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    # In another memory order they are the same.
    x, kernels = (one.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for one in (x, kernels))
    turned = depthwise_by_pixel(x, kernels)
    torch.testing.assert_close(turned, expected)
    for one, other in zip(
        torch.autograd.grad(turned, (x, kernels), weights),
        torch.autograd.grad(unfolded(x, kernels.contiguous()), (x, kernels), weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_nothing_is_kept_beside_the_map_and_its_kernels() -> None:
    x, kernels = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 27, 8, 8, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: x):
        depthwise_by_pixel(x, kernels)
    assert sum(kept) == x.numel() + kernels.numel()


@pytest.mark.parametrize("shape", [(2, 26, 4, 4), (1, 27, 4, 4), (2, 27, 4, 5), (2, 3, 9, 4, 4)])
def test_kernels_that_do_not_fit_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"kernels do not fit a map of \(2, 3, 4, 4\): 9 numbers are needed for each"):
        depthwise_by_pixel(torch.randn(2, 3, 4, 4), torch.randn(shape))


def test_in_half_precision_the_map_takes_the_kernels_type() -> None:
    net = ConditionalBlock(4, 2, 5, 6, 0.2, "global").eval()
    x, condition = torch.randn(2, 4, 8, 8), torch.rand(2, 5, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(x, condition)
        found.sum().backward()
    torch.testing.assert_close(found.float(), net(x, condition), rtol=0, atol=0.1)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_pixels_condition_changes_the_map_nearby_alone() -> None:
    net = ConditionalBlock(4, 4, 5, 6, 0.2, "global").eval()
    x, condition = torch.randn(1, 4, 24, 24), torch.rand(1, 5, 24, 24)
    changed = condition.clone()
    changed[:, :, 12, 12] += 1
    apart = (net(x, changed) - net(x, condition)).abs().amax(1)[0]
    # Two 3x3 convolutions predict the first kernels; the second depthwise convolution reads one pixel farther.
    assert apart[12, 12] > 0 and apart[9:16, 9:16].count_nonzero() > 25
    apart[9:16, 9:16] = 0
    assert not apart.any()


def test_gates_are_between_0_and_1() -> None:
    """With gates shut a block of one width is the identity; its 1x1 convolutions never see the label map."""
    net = ConditionalBlock(4, 4, 5, 6, 0.2, "global").eval()
    x, condition = torch.randn(2, 4, 8, 8), torch.rand(2, 5, 8, 8)
    biases = [predictor.conv2.bias for predictor in (net.gate_pred1, net.gate_pred2)]
    with torch.no_grad():
        assert (net(x, condition) - x).abs().max() > 1e-2
        for bias in biases:
            assert bias is not None
            bias.fill_(-1e4)
        torch.testing.assert_close(net(x, condition), x)


# Nets


def test_the_published_model_has_its_size() -> None:
    """The released state dict has three batch norms a block that nothing reads: one of the narrower width, and one in
    each depthwise convolution. They are counted here and not built."""
    with torch.device("meta"):
        nets = CCFPSE().build(RELEASED, Given(classes=182))
        generator, encoder = nets["generator"], parameter_count(ImageEncoder(RELEASED))
    assert nets.keys() == {"generator", "discriminator", "perceptual"}
    blocks = [module for module in generator.modules() if isinstance(module, ConditionalBlock)]
    ends = [(block.pointwise1.in_channels, block.pointwise2.out_channels) for block in blocks]
    assert [out for _, out in ends] == [1024, 1024, 1024, 512, 256, 128, 64]
    assert [block.conv_shortcut is not None for block in blocks] == [False] * 3 + [True] * 4
    built_here = parameter_count(generator) - encoder
    unread = sum(2 * min(width, out) + 2 * width + 2 * min(width, out) for width, out in ends)
    assert (built_here, unread) == (141_913_731, 26_112)
    assert built_here + unread == 141_939_843
    assert parameter_count(nets["discriminator"]) == 5_194_817


@pytest.mark.parametrize("doublings", [1, 3, 5])
def test_the_label_encoder_is_a_pyramid(doublings: int) -> None:
    net, label_map = LabelEncoder(7, 3, doublings, 0.2, "global").eval(), torch.rand(2, 7, SIDE, SIDE)
    initialise(net, 1.0)
    found = net(label_map)
    assert [tuple(maps.shape) for maps in found] == [
        (2, 3, SIDE >> level, SIDE >> level) for level in reversed(range(doublings + 1))
    ]

    def layer(module: Any, x: Tensor, stride: int = 1) -> Tensor:
        matrix = module.conv.weight.flatten(1)
        weight = module.conv.weight / (module.conv.u @ matrix @ module.conv.v)
        h = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        bn = module.bn
        assert isinstance(bn, BatchNorm) and module.conv.bias is None
        return F.leaky_relu(F.batch_norm(h, bn.running_mean, bn.running_var, bn.weight, bn.bias), 0.2)

    maps = [layer(net.down[0], label_map)]
    for module in list(net.down)[1:]:
        maps.append(layer(module, maps[-1], 2))
    expected = [maps[-1]]
    for place, finer in enumerate(reversed(maps[:-1])):
        doubled = expected[-1].repeat_interleave(2, 2).repeat_interleave(2, 3)
        expected.append(layer(net.heads[place], doubled + layer(net.laterals[place], finer)))
    torch.testing.assert_close(found, expected)


def test_the_first_map_is_of_the_label_map_or_of_z() -> None:
    label_map, z = label_input(some_maps(), CLASSES), torch.randn(ROWS, 4)
    for form in FORMS:
        config = small(**form)
        net = Generator(config, CLASSES).eval()
        picture = net(label_map, z)
        assert picture.shape == (ROWS, 3, SIDE, SIDE) and picture.abs().max() <= 1
        assert ((net(label_map, -z) - picture).abs().max() > 1e-3) == config.reads_noise
        assert (net(label_map.roll(1, 0), z) - picture).abs().max() > 1e-3
        assert (net.encoder is not None) == config.use_vae
    for upsamplings in range(1, 6):
        net = Generator(small(upsamplings=upsamplings), CLASSES)
        assert net(label_map, z).shape == (ROWS, 3, SIDE, SIDE)
        assert len(net.blocks) == upsamplings + 2


def test_every_block_reads_the_label_map_at_its_own_scale() -> None:
    net, label_map = Generator(small(use_vae=False), CLASSES).eval(), label_input(some_maps(), CLASSES)
    seen: list[tuple[Tensor, Tensor]] = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    net(label_map)
    sides = [4, 8, 8, 16, 32]
    contexts = {maps.shape[2]: maps for maps in net.label_encoder(label_map)}
    assert [h.shape[2] for h, _ in seen] == sides and len(contexts) == 4
    for (_, condition), side in zip(seen, sides, strict=True):
        step = SIDE // side
        torch.testing.assert_close(condition, torch.cat([label_map[:, :, ::step, ::step], contexts[side]], 1))


def test_weights_start_small() -> None:
    config = small(init_gain=0.02)
    for net in (Generator(config, CLASSES), Discriminator(config, CLASSES)):
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 100:
                taps = layer.weight[0, 0].numel()
                expected = 0.02 * (2 / (taps * (layer.in_channels + layer.out_channels))) ** 0.5
                assert abs(layer.weight.std().item() / expected - 1) < 0.3
            if isinstance(layer, nn.Conv2d | nn.Linear):
                assert layer.bias is None or not layer.bias.any()


def test_spectral_norms_fit_the_weights_before_the_first_step() -> None:
    """Else a net in evaluation divides by whatever two random vectors make of a kernel."""
    for seed in range(3):
        torch.manual_seed(seed)
        for net in (Generator(small(init_gain=0.02), CLASSES), Discriminator(small(init_gain=0.02), CLASSES)):
            layers = [module for module in net.modules() if isinstance(module, StoredSpectralConv2d)]
            assert len(layers) > 10
            for layer in layers:
                matrix = layer.weight.flatten(1)
                largest = torch.linalg.matrix_norm(matrix, 2)
                assert 0.9 * largest < layer.u @ matrix @ layer.v < 1.001 * largest


def test_the_picture_is_judged_by_itself_and_by_how_it_fits_its_label_map() -> None:
    """Maps are of the picture alone; a logit is a 1x1 convolution plus an inner product with the mean embedding."""
    side = 64
    net = Discriminator(small(resolution=side), CLASSES).eval()
    label_map, images = label_input(some_maps(2, side), CLASSES), torch.rand(2, 3, side, side) * 2 - 1
    features: list[Tensor] = []
    for head in net.heads:
        head.register_forward_hook(lambda _module, _inputs, found: features.append(found))
    found = net(label_map, images)
    assert [tuple(scale.logits.shape) for scale in found] == [(2, 1, size, size) for size in (16, 8, 4)]
    maps = [tuple(one.shape[1:]) for scale in found for one in scale.features]
    assert maps == [(4, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]
    embedding = net.label_embedding(label_map)
    for scale, h in zip(found, features, strict=True):
        mean = F.avg_pool2d(embedding, side // h.shape[2])
        torch.testing.assert_close(scale.logits, net.real_fake(h) + (net.feature_proj(h) * mean).sum(1, keepdim=True))
    turned = net(label_map.roll(1, 0), images)
    alone = net(label_map[:1], images[:1])
    for scale, other, one in zip(found, turned, alone, strict=True):
        assert (scale.logits - other.logits).abs().max() > 1e-3
        torch.testing.assert_close(scale.features, other.features)
        torch.testing.assert_close(one.logits, scale.logits[:1], rtol=0, atol=1e-5)


def test_pictures_of_32_px_leave_one_pixel_of_mean_0() -> None:
    """Which torch's instance norm would refuse."""
    net, label_map = Discriminator(small(), CLASSES), label_input(some_maps(), CLASSES)
    images = torch.rand(ROWS, 3, SIDE, SIDE)
    found = net(label_map, images)
    assert found[-1].features[-1].shape == (ROWS, 16, 1, 1) and not found[-1].features[-1].any()
    assert all(scale.logits.isfinite().all() and scale.logits.std() > 0 for scale in found)
    assert label_channels(CLASSES) == net.label_embedding.in_channels


# Losses and training


@pytest.mark.parametrize("form", FORMS)
def test_the_generator_steps_and_then_the_discriminator(form: dict[str, Any]) -> None:
    config = small(**form)
    nets, batch = built(config), some_batch()
    phases = CCFPSE().phases(config)
    assert [(phase.trains, phase.fresh_batch) for phase in phases] == [
        (("generator",), True),
        (("discriminator",), False),
    ]
    assert set(CCFPSE().optimizers(config)) == {"generator", "discriminator"}
    for phase in phases:
        [name] = phase.trains
        objective = phase.losses(nets, batch, context(ROWS))[name]
        gradients = torch.autograd.grad(objective.loss, list(nets[name].parameters()), allow_unused=True)
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert sum(bool(gradient.any()) for gradient in gradients if gradient is not None) > 0.8 * len(gradients)
        parts = {"hinge", "feature_matching", "perceptual"} | ({"kl"} if config.use_vae else set())
        assert objective.terms.keys() == (parts if name == "generator" else {"real", "fake"})


def test_the_weight_of_matching_is_of_the_mean_over_four_maps() -> None:
    config = small(perceptual_weight=0.0, use_vae=False, feature_matching_weight=7.0)
    nets, batch = built(config), some_batch()
    assert nets.keys() == {"generator", "discriminator"}
    assert batch.images is not None and batch.labels is not None
    for net in nets.values():
        net.eval()
    label_map = label_input(batch.labels, CLASSES)
    objective = CCFPSE().phases(config)[0].losses(nets, batch, context(ROWS))["generator"]
    shown, drawn = judge_both(nets["discriminator"], label_map, batch.images, nets["generator"](label_map))

    def maps(judgement: list[ScaleJudgement]) -> list[Tensor]:
        return [one for scale in judgement for one in scale.features]

    apart = [(one - other).abs().mean() for one, other in zip(maps(drawn), maps(shown), strict=True)]
    assert len(apart) == 4
    hinge = -sum(scale.logits.mean() for scale in drawn) / 3
    torch.testing.assert_close(objective.loss, hinge + 7.0 * sum(apart) / 4)
    bare = small(perceptual_weight=0.0, use_vae=False, feature_matching_weight=0.0)
    terms = CCFPSE().phases(bare)[0].losses(nets, batch, context(ROWS))["generator"].terms
    assert terms.keys() == {"hinge"}


def test_it_learns_what_the_pictures_look_like() -> None:
    config = small(use_vae=False, generator_channels=4)
    nets, batch = built(config), some_batch()
    [phase, _] = CCFPSE().phases(config)
    parameters = list(nets["generator"].parameters())
    optimizer = torch.optim.Adam(parameters, 3e-3)
    seen = []
    for _ in range(25):
        objective = phase.losses(nets, batch, context(ROWS))["generator"]
        for parameter, gradient in zip(parameters, torch.autograd.grad(objective.loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
        seen.append({name: float(value) for name, value in objective.terms.items()})
    assert seen[-1]["feature_matching"] < 0.85 * seen[0]["feature_matching"]
    assert seen[-1]["perceptual"] < 0.85 * seen[0]["perceptual"]


# Sampling


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_is_its_label_map_and_its_seeds(form: dict[str, Any]) -> None:
    config, system = small(**form), CCFPSE()
    nets, conditions, seeds = built(config), Batch(torch.arange(ROWS), labels=some_maps()), [3, 4, 5, 6]
    with torch.inference_mode():
        together = system.sample({"generator": nets["generator"]}, config, conditions, seeds)
        assert together.shape == (ROWS, 3, SIDE, SIDE) and together.abs().max() <= 1 and nets["generator"].training
        assert system.sample(nets, config, conditions, seeds).equal(together)
        for row in range(ROWS):
            alone = system.sample(nets, config, conditions[row : row + 1], seeds[row : row + 1])
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
        other = system.sample(nets, config, conditions, [13, 14, 15, 16])
        assert other.equal(together) != config.reads_noise
        elsewhere = system.sample(nets, config, replace(conditions, labels=some_maps(seed=1)), seeds)
        assert ((elsewhere - together).flatten(1).abs().amax(1) > 1e-3).all()
