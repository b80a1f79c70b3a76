"""Blocks, losses and nets against their own mathematics, written again and slowly. Parity is in tests/parity."""

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.blocks.noise import seeded_noise
from models.blocks.norm import AttentionalSelfModulation, BatchStatistics, SelfModulation, frozen_statistics
from models.blocks.spectral import SpectralConv2d, SpectralLinear
from models.contract import TextFeatures, parameter_count
from models.losses.adversarial import hinge_discriminator, hinge_generator
from models.losses.contrastive import Contrast, contrast_scores, nt_xent, word_region_scores
from models.xmcgan import XMCGAN, Discriminator, Generator, XMCGANConfig
from models.xmcgan.networks import UpBlock, attend_to_words
from tests.tiny import small_pretrained_nets, some_text, tensors_of, terms_of, tiny_experiment, tiny_trainer

Values = Literal["normalised", "raw"]


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """The same random weights each time, and no pretrained ones."""
    torch.manual_seed(0)
    with small_pretrained_nets():
        yield


# Spectral normalisation


@pytest.mark.parametrize(
    "layer", [lambda: SpectralConv2d(5, 7, 3, padding=1), lambda: SpectralLinear(6, 9)], ids=["conv", "linear"]
)
def test_spectral_norm_converges_to_the_largest_singular_value(layer: Any) -> None:
    net: SpectralConv2d | SpectralLinear = layer()
    x = torch.randn(2, 5, 4, 4) if isinstance(net, SpectralConv2d) else torch.randn(2, 6)
    with torch.no_grad():
        for _ in range(300):
            net(x)
        assert net.bias is not None
        net.bias.zero_()
        sigma = torch.linalg.matrix_norm(net.weight.flatten(1), ord=2)
        plain = net._conv_forward(x, net.weight, None) if isinstance(net, SpectralConv2d) else F.linear(x, net.weight)
        torch.testing.assert_close(net(x), plain / sigma, rtol=1e-4, atol=1e-5)


def test_spectral_norm_keeps_u_in_evaluation() -> None:
    net, x = SpectralLinear(6, 9), torch.randn(2, 6)
    before = net.u.clone()
    first = net.eval()(x)
    assert net.u.equal(before) and net(x).equal(first)
    trained = net.train()(x)
    # Evaluation iterates as training does, and forgets.
    assert trained.equal(first) and not net.u.equal(before)


def test_no_gradient_flows_through_the_power_iteration() -> None:
    """d(W / sigma) with u and v fixed: sigma = u' W v, so its own gradient is u v'."""
    net = SpectralLinear(4, 3).double().eval()
    x, weight = torch.randn(5, 4, dtype=torch.float64), net.weight.detach()
    v = F.normalize(weight.t() @ net.u, dim=0)
    u = F.normalize(weight @ v, dim=0)
    fixed = weight.clone().requires_grad_()
    expected = torch.autograd.grad((F.linear(x, fixed / (u @ fixed @ v), net.bias) ** 2).sum(), fixed)[0]
    found = torch.autograd.grad((net(x) ** 2).sum(), net.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


# Batch statistics


@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (8, 3)])
def test_batch_statistics_are_batch_norm_with_a_biased_running_variance(shape: tuple[int, ...]) -> None:
    net = BatchStatistics(3, momentum=0.1)
    x = torch.randn(shape) * 3 + 5
    dims = [0, *range(2, len(shape))]
    torch.testing.assert_close(net(x), F.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(net.running_mean, 0.1 * x.mean(dims))
    torch.testing.assert_close(net.running_var, 0.9 + 0.1 * x.var(dims, correction=0))
    seen = net.running_var.clone()
    y = torch.randn(shape)
    torch.testing.assert_close(net.eval()(y), F.batch_norm(y, net.running_mean, net.running_var))
    assert net.running_var.equal(seen)


def test_frozen_statistics_stay_and_the_output_does_not_change() -> None:
    net = nn.Sequential(BatchStatistics(3), nn.Conv2d(3, 3, 1), BatchStatistics(3))
    x = torch.randn(4, 3, 2, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(KeyError), frozen_statistics(net):
        with frozen_statistics(net):
            frozen = net(x)
        # The inner one ended; the outer one still holds.
        net(x)
        raise KeyError
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert net(x).equal(frozen)
    assert not all(value.equal(before[name]) for name, value in net.state_dict().items())


# Modulation and up-sampling


def test_a_zero_projection_modulates_nothing() -> None:
    h, condition = torch.randn(4, 3, 2, 2), torch.randn(4, 5)
    net = SelfModulation(3, 5, "global")
    for layer in (net.gamma, net.beta):
        nn.init.zeros_(layer.weight)
    torch.testing.assert_close(net(h, condition), F.batch_norm(h, None, None, training=True))


def test_modulation_at_the_conditions_resolution_is_modulation_by_an_upsampled_condition() -> None:
    net = AttentionalSelfModulation(3, 5, "global")
    h, condition = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)
    upsampled = F.interpolate(condition, scale_factor=2, mode="nearest")
    torch.testing.assert_close(net(h, condition), net(h, upsampled))
    # One condition for all regions is the plain self-modulation.
    plain = SelfModulation(3, 5, "global")
    for name in ("gamma", "beta"):
        getattr(plain, name).weight.data = getattr(net, name).weight.data.flatten(1)
        getattr(plain, name).bias.data = getattr(net, name).bias.data
    everywhere = condition[:, :, :1, :1]
    torch.testing.assert_close(net(h, everywhere.expand(-1, -1, 8, 8)), plain(h, everywhere.flatten(1)))


def test_the_shortcut_may_convolve_before_it_upsamples() -> None:
    """Figure 6b upsamples first."""
    block = UpBlock(SelfModulation, 4, 3, 5, "global")
    x, condition = torch.randn(4, 4, 3, 3), torch.randn(4, 5)

    def up(maps: Tensor) -> Tensor:
        return F.interpolate(maps, scale_factor=2, mode="nearest")

    h = block.conv1(up(F.relu(block.cbn1(x, condition))))
    h = block.conv2(F.relu(block.cbn2(h, condition)))
    torch.testing.assert_close(block(x, condition), h + block.shortcut(up(x)))


@pytest.mark.parametrize("values", ["normalised", "raw"])
def test_attention_to_words_is_the_papers_formula(values: str) -> None:
    """Section 4.2, region by region and word by word; padding has no weight."""
    text, regions = some_text(3, dim=4), torch.randn(3, 5, 4)
    context, attention = attend_to_words(regions, text.words, text.padding(), 15.0, values)
    for sample in range(3):
        words = text.words[sample, : text.lengths[sample]]
        for place in range(5):
            cosines = F.cosine_similarity(words, regions[sample, place][None], dim=1)
            weights = torch.exp(15 * cosines) / torch.exp(15 * cosines).sum()
            own = F.normalize(words, dim=1) if values == "normalised" else words
            torch.testing.assert_close(context[sample, place], weights @ own, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(attention[sample, place, : len(words)], weights, rtol=1e-4, atol=1e-6)
            assert not attention[sample, place, len(words) :].any()


# Losses


def slow_score(regions: Tensor, words: Tensor, rho_1: float, rho_2: float, tau: float, values: Values) -> Tensor:
    """One picture and one caption: section 4.1's alpha, c_i and S_word, one word at a time."""
    total = torch.zeros((), dtype=regions.dtype)
    for word in words:
        cosines = F.cosine_similarity(regions, word[None], dim=1)
        alpha = torch.exp(rho_1 * cosines) / torch.exp(rho_1 * cosines).sum()
        own = F.normalize(regions, dim=1) if values == "normalised" else regions
        context = (alpha[:, None] * own).sum(0)
        total = total + torch.exp(rho_2 * F.cosine_similarity(word, context, dim=0))
    return torch.log(total ** (1 / rho_2)) / tau


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    pictures=st.integers(1, 3),
    values=st.sampled_from(["normalised", "raw"]),
    rhos=st.tuples(st.floats(0.5, 20), st.floats(0.5, 20)),
    seed=st.integers(0, 1000),
)
def test_word_region_scores_are_the_papers_formula(
    lengths: list[int], pictures: int, values: Values, rhos: tuple[float, float], seed: int
) -> None:
    """Every pair at once equals every pair alone, in values and in gradients; and padding has no part in either."""
    random = torch.Generator().manual_seed(seed)
    regions = torch.randn(pictures, 6, 4, generator=random, dtype=torch.float64, requires_grad=True)
    words = torch.randn(len(lengths), 5, 4, generator=random, dtype=torch.float64, requires_grad=True)
    padding = torch.arange(5)[None, :] >= torch.tensor(lengths)[:, None]
    scores = word_region_scores(regions, words, padding, *rhos, 0.1, values)
    assert scores.shape == (pictures, len(lengths)) and scores.dtype == torch.float64
    slow = torch.stack(
        [
            torch.stack([slow_score(own, words[n, :length], *rhos, 0.1, values) for n, length in enumerate(lengths)])
            for own in regions
        ]
    )
    torch.testing.assert_close(scores, slow, rtol=1e-9, atol=1e-9)
    weights = torch.randn(scores.shape, generator=random, dtype=torch.float64)
    found = torch.autograd.grad((weights * scores).sum(), [regions, words])
    expected = torch.autograd.grad((weights * slow).sum(), [regions, words])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
    assert not found[1][padding].any()
    other = torch.where(padding[:, :, None], 100 * torch.randn(words.shape, generator=random).double(), words)
    torch.testing.assert_close(word_region_scores(regions, other, padding, *rhos, 0.1, values), scores)


def test_raw_and_normalised_regions_differ() -> None:
    text = some_text(3, dim=4)
    regions = torch.randn(2, 6, 4) * torch.tensor([0.1, 1, 1, 1, 1, 9])[None, :, None]
    raw, normalised = (
        word_region_scores(regions, text.words, text.padding(), 5, 5, 0.1, values) for values in get_args(Values)[::-1]
    )
    assert (raw - normalised).abs().max() > 0.1
    unit = F.normalize(regions, dim=2)
    torch.testing.assert_close(
        word_region_scores(unit, text.words, text.padding(), 5, 5, 0.1, "raw"),
        word_region_scores(unit, text.words, text.padding(), 5, 5, 0.1, "normalised"),
    )


class CountOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches torch's kernels."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_word_region_scores_do_not_loop_over_captions_or_pictures() -> None:
    """The number of operations, forward and backward, is the same for 2 captions and for 8."""

    def operations(pictures: int, captions: int) -> int:
        text, regions = some_text(captions, dim=4), torch.randn(pictures, 6, 4, requires_grad=True)
        counted = CountOperations()  # type: ignore[no-untyped-call]
        with counted:
            word_region_scores(regions, text.words, text.padding(), 5, 5, 0.1).sum().backward()  # type: ignore[no-untyped-call]
        return int(counted.count)

    assert operations(2, 2) == operations(2, 8) == operations(8, 2) > 10


def slow_cross_entropy(scores: Tensor) -> float:
    """Rows against the diagonal, by hand."""
    rows = scores.double().numpy()
    return float(np.mean([math.log(np.exp(row).sum()) - row[place] for place, row in enumerate(rows)]))


def test_one_direction_and_both() -> None:
    """The paper's equations have rows alone; the released code adds the columns."""
    first, second = torch.randn(5, 3), torch.randn(5, 3)
    scores = F.normalize(first, dim=1) @ F.normalize(second, dim=1).t() / 0.1
    rows, columns = slow_cross_entropy(scores), slow_cross_entropy(scores.t())
    one, both = nt_xent(first, second, 0.1, "image_to_text"), nt_xent(first, second, 0.1, "both")
    assert one.loss.item() == pytest.approx(rows, rel=1e-5)
    assert both.loss.item() == pytest.approx(rows + columns, rel=1e-5)
    assert nt_xent(second, first, 0.1, "image_to_text").loss.item() == pytest.approx(columns, rel=1e-5)
    assert rows != pytest.approx(columns, rel=1e-3)


def test_a_perfect_contrast_costs_nothing_and_a_blind_one_costs_log_m() -> None:
    perfect: Contrast = contrast_scores(100 * torch.eye(8))
    assert perfect.loss < 1e-6 and perfect.accuracy == 1 and perfect.entropy < 1e-6
    blind = contrast_scores(torch.zeros(8, 8), "image_to_text")
    assert blind.loss.item() == pytest.approx(math.log(8)) and blind.entropy.item() == pytest.approx(math.log(8))
    assert contrast_scores(torch.eye(8).roll(1, 0) * 100).accuracy == 0


def test_the_temperature_is_that_of_float32_under_autocast() -> None:
    first, second = torch.randn(6, 16), torch.randn(6, 16)
    text, regions = some_text(6, dim=16), torch.randn(6, 4, 16)
    plain = nt_xent(first, second, 0.02).loss
    scores = word_region_scores(regions, text.words, text.padding(), 5, 5, 0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert nt_xent(first, second, 0.02).loss.equal(plain)
        assert word_region_scores(regions, text.words, text.padding(), 5, 5, 0.02).equal(scores)


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.5, 0.0])
    assert hinge_discriminator(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1.5 + 1) / 3)
    assert hinge_generator(fake).item() == pytest.approx(0.5)


# The nets


@pytest.mark.parametrize(
    ("resolution", "channels", "generator", "discriminator"),
    [(128, 96, 78_507_779, 87_911_713), (256, 96, 92_865_539, 99_415_585), (256, 64, 44_443_267, 44_582_849)],
)
def test_published_sizes(resolution: Literal[128, 256], channels: int, generator: int, discriminator: int) -> None:
    config = XMCGANConfig(resolution=resolution, channels=channels, text_dim=768, image_losses="discriminator")
    with torch.device("meta"):
        nets = XMCGAN().build(config)
    assert parameter_count(nets["generator"]) == generator
    assert parameter_count(nets["discriminator"]) == discriminator


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
@pytest.mark.parametrize("region_side", [8, 16])
def test_every_resolution_has_its_shapes(resolution: Any, region_side: Any) -> None:
    config = XMCGANConfig(
        resolution=resolution, channels=1, text_dim=4, noise_dim=3, sentence_dim=3, region_side=region_side
    )
    text = some_text(2, dim=4)
    with torch.no_grad():
        pictures = Generator(config).eval()(text, torch.randn(2, 3))
        assert pictures.shape == (2, 3, resolution, resolution) and pictures.abs().max() <= 1
        judgement = Discriminator(config)(torch.cat([pictures, pictures]), text.sentence)
    assert judgement.logits.shape == (4,) and judgement.sentence.shape == (2, 16)
    assert judgement.regions.shape == (4, region_side**2, 4) and judgement.features.shape == (4, 16)
    torch.testing.assert_close(judgement.logits[:2], judgement.logits[2:])


def test_the_generator_reads_words_and_not_their_padding() -> None:
    config = XMCGANConfig(resolution=32, channels=2, text_dim=4, noise_dim=3, sentence_dim=3)
    net, text, noise = Generator(config).eval(), some_text(4, dim=4), torch.randn(4, 3)
    with torch.no_grad():
        pictures = net(text, noise)
        spoiled = torch.where(text.padding()[:, :, None], torch.full_like(text.words, 9.0), text.words)
        torch.testing.assert_close(net(TextFeatures(spoiled, text.lengths, text.sentence), noise), pictures)
        other = TextFeatures(text.words.flip(2), text.lengths, text.sentence)
        assert (net(other, noise) - pictures).abs().max() > 1e-4
        assert (net(text, noise.flip(0)) - pictures).abs().max() > 1e-4


def choices() -> list[tuple[str, object]]:
    """Every value of every field of XMC-GAN's settings that has a fixed few."""
    found: list[tuple[str, object]] = []
    for name, info in XMCGANConfig.model_fields.items():
        if get_origin(info.annotation) is Literal and name != "resolution":
            found += [(name, value) for value in get_args(info.annotation)]
    return [*found, ("head_layers", 2), ("lambda_3", 0.0), ("discriminator_steps", 1), ("discriminator_steps", 3)]


@pytest.mark.parametrize(("name", "value"), choices(), ids=lambda choice: str(choice))
def test_every_choice_trains(name: str, value: object) -> None:
    trainer = tiny_trainer(tiny_experiment("xmcgan", **{f"model__{name}": value}))
    before = tensors_of(trainer)
    trainer.iteration()
    after = tensors_of(trainer)
    assert all(torch.isfinite(term) for _, term in terms_of(trainer))
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())
    for net in ("generator", "discriminator"):
        assert any(not after[key].equal(before[key]) for key in before if key.startswith(f"net/{net}"))


def terms_with(**changes: object) -> set[str]:
    trainer = tiny_trainer(tiny_experiment("xmcgan", **{f"model__{name}": value for name, value in changes.items()}))
    trainer.iteration()
    return {name for name, _ in terms_of(trainer)}


def test_each_choice_has_its_losses() -> None:
    """Tables 4, 6 and 7: which terms there are."""
    everything = terms_with()
    assert {
        "discriminator/real_sentence",
        "generator/fake_word",
        "generator/image",
        "generator/pretrained",
    } <= everything
    assert not any("real_" in name and "logit" not in name for name in terms_with(contrastive_on="generator"))
    assert not any("fake_" in name and "logit" not in name for name in terms_with(contrastive_on="discriminator"))
    assert "generator/pretrained" not in terms_with(image_losses="discriminator")
    assert "generator/image" not in terms_with(image_losses="pretrained")
    assert terms_with(image_losses="none") == terms_with(lambda_3=0.0)
    assert "generator/pretrained_l2" in terms_with(pretrained_loss="l2")


def test_a_discriminator_step_leaves_the_generators_statistics_alone() -> None:
    trainer = tiny_trainer(tiny_experiment("xmcgan", model__step_order="paper"))
    before = tensors_of(trainer)
    trainer._step(0, trainer.phases[0], trainer._micro_batches())
    middle = tensors_of(trainer)
    assert [key for key in before if key.startswith("net/generator") and not middle[key].equal(before[key])] == []
    trainer._step(2, trainer.phases[2], trainer._micro_batches())
    changed = [key for key, value in tensors_of(trainer).items() if key in before and not value.equal(middle[key])]
    assert any("generator" in key and "running_var" in key for key in changed)


def test_seeded_noise_is_row_by_row() -> None:
    noise = seeded_noise([3, 4, 3], 5, torch.device("cpu"))
    assert noise[0].equal(noise[2]) and not noise[0].equal(noise[1])
    assert seeded_noise([4], 5, torch.device("cpu"))[0].equal(noise[1])
