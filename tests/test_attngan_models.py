"""AttnGAN's nets, blocks and losses against their own mathematics, written again and slowly. Parity: tests/parity."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from models.attngan import (
    ATTNGAN_PLUS,
    COCO,
    CUB,
    AttnGANConfig,
    DAMSMConfig,
    Discriminators,
    Generator,
    ImageEncoder,
    TextEncoder,
    TextEncoderSettings,
)
from models.attngan.losses import generator_objective
from models.blocks.attention import WordAttention, interleaved_padding
from models.blocks.cascade import CascadeGenerator
from models.blocks.noise import CANDIDATES, drawn_numbers, shape_noise
from models.blocks.norm import BatchNorm, frozen_statistics
from models.contract import TextFeatures, parameter_count
from models.encoders.trunk import ImageTrunkSettings, TrunkFeatures
from models.losses.adversarial import condition_kl, discriminator_loss, generator_loss
from models.losses.cascade import discriminator_objective, following_captions, mismatched_logits, picture_pyramid
from models.losses.damsm import (
    MatchingSettings,
)
from models.parallel import OneRank, Ranks, current_ranks
from tests.tiny import some_text

ONE = OneRank()
SMALL: dict[str, Any] = {
    "resolution": 32,
    "generator_channels": 2,
    "discriminator_channels": 2,
    "text_dim": 8,
    "noise_dim": 4,
    "condition_dim": 3,
    "residual_blocks": 1,
}


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """The same random weights each time."""
    torch.manual_seed(0)


def small(**changes: Any) -> AttnGANConfig:
    return AttnGANConfig(**{**SMALL, **changes})


class PlainTrunk(nn.Module):
    """A trunk without weights: block means of the picture."""

    region_dim, pooled_dim = 3, 12

    def forward(self, images: Tensor) -> TrunkFeatures:
        return TrunkFeatures(F.adaptive_avg_pool2d(images, 4), F.adaptive_avg_pool2d(images, 2).flatten(1))


# The nets


@pytest.mark.parametrize(
    ("config", "generator", "discriminators"),
    [
        (CUB, 7_084_592, [6_313_730, 19_424_002, 71_858_946]),
        (COCO, 13_811_456, [13_304_450, 42_800_258, 160_774_274]),
        (ATTNGAN_PLUS, 13_811_456, [13_304_450, 42_800_258, 160_774_274]),
    ],
    ids=["CUB", "COCO", "AttnGAN+"],
)
def test_published_sizes(config: AttnGANConfig, generator: int, discriminators: list[int]) -> None:
    with torch.device("meta"):
        assert parameter_count(Generator(config)) == generator
        assert [parameter_count(stage) for stage in Discriminators(config).stages] == discriminators


@pytest.mark.parametrize(("resolution", "stages"), [(8, 1), (32, 1), (32, 3), (64, 3), (128, 2), (64, 4)])
def test_any_number_of_stages(resolution: int, stages: int) -> None:
    config = small(resolution=resolution, stages=stages)
    text, nets = some_text(2), Discriminators(config)
    output = Generator(config)(text, torch.randn(2, config.drawn_noise))
    assert config.sides[-1] == resolution and len(config.sides) == stages
    assert [tuple(image.shape) for image in output.images] == [(2, 3, side, side) for side in config.sides]
    assert all(image.abs().max() <= 1 for image in output.images)
    assert [tuple(weights.shape) for weights in output.attention] == [(2, 6, side, side) for side in config.sides[:-1]]
    for judged in nets(output.images, text):
        assert judged.features.shape == (2, 16, 4, 4)
        assert judged.unconditional.shape == judged.conditional.shape == (2,)


def test_wrong_settings_say_what_to_do() -> None:
    with pytest.raises(
        ValidationError, match="3 stages up to 16 px start below 8 px: set fewer stages or a resolution"
    ):
        AttnGANConfig(resolution=16)
    with pytest.raises(ValidationError, match="text_dim is 7: give an even number"):
        TextEncoderSettings(text_dim=7)
    with pytest.raises(ValueError, match="3 stages need 2 later stages, not 0"):
        CascadeGenerator(small(), [])


def test_every_setting_has_a_source() -> None:
    for config in (AttnGANConfig, DAMSMConfig, TextEncoderSettings, MatchingSettings, ImageTrunkSettings):
        assert all(info.description for info in config.model_fields.values()), config


def test_a_picture_depends_on_its_own_caption_alone() -> None:
    """With the right mask; the released one mixes samples of different lengths, and says so only by its pictures."""
    words = torch.randn(3, 6, 8)
    text = TextFeatures(words, torch.tensor([6, 2, 4]), torch.randn(3, 8))
    noise = torch.randn(3, small().drawn_noise)
    nets = {legacy: Generator(small(legacy_mask=legacy)).eval() for legacy in (False, True)}
    nets[True].load_state_dict(nets[False].state_dict())
    with torch.no_grad():
        for legacy, net in nets.items():
            together = net(text, noise).images[-1]
            alone = torch.cat(
                [
                    net(
                        TextFeatures(words[i : i + 1], text.lengths[i : i + 1], text.sentence[i : i + 1]),
                        noise[i : i + 1],
                    ).images[-1]
                    for i in range(3)
                ]
            )
            assert torch.allclose(together, alone, atol=1e-5) == (not legacy)
        padded = torch.where(text.padding()[:, :, None], 100.0, words)
        other = TextFeatures(padded, text.lengths, text.sentence)
        assert nets[False](other, noise).images[-1].equal(nets[False](text, noise).images[-1])


def test_word_attention_is_the_papers() -> None:
    net, text, h = WordAttention(5, 8), some_text(3), torch.randn(3, 5, 4, 2)
    context, weights = net(h, text.words, text.padding())
    for b, length in enumerate(text.lengths.tolist()):
        projected = text.words[b, :length] @ net.word_proj.weight.t()
        for y, x in np.ndindex(4, 2):
            own = (projected @ h[b, :, y, x]).softmax(0)
            torch.testing.assert_close(weights[b, :length, y, x], own)
            torch.testing.assert_close(context[b, :, y, x], own @ projected)
    assert (weights.permute(0, 2, 3, 1)[text.padding()[:, None, None, :].expand(-1, 4, 2, -1)] == 0).all()


def test_the_interleaved_mask() -> None:
    padding = torch.tensor([[False, False], [False, True]])
    rows = interleaved_padding(padding, 3)
    # Rows 0..5 meet the masks of samples 0, 1, 0, 1, 0, 1.
    assert rows[..., 1].tolist() == [[False, True, False], [True, False, True]]


def test_batch_norm_is_torchs() -> None:
    for shape in ((6, 5), (3, 5, 4, 2)):
        ours, theirs = BatchNorm(5), nn.BatchNorm1d(5) if len(shape) == 2 else nn.BatchNorm2d(5)
        nn.init.normal_(ours.weight)
        nn.init.normal_(ours.bias)
        theirs.load_state_dict(ours.state_dict(), strict=False)
        x = torch.randn(shape) * 3 + 1
        for train in (True, True, False):
            mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
            got, expected = ours.train(train)(mine), theirs.train(train)(other)
            torch.testing.assert_close(got, expected)
            got.square().sum().backward()
            expected.square().sum().backward()
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)


# Noise


def test_truncated_noise_is_exactly_truncated() -> None:
    from scipy import stats

    drawn = torch.randn(100, 400)
    shaped = shape_noise(drawn, "truncated", 2.0)
    assert shaped.abs().max() <= 2 and shaped.shape == drawn.shape
    assert stats.kstest(shaped.flatten().numpy(), stats.truncnorm(-2, 2).cdf).pvalue > 0.01
    assert shaped.std().item() == pytest.approx(0.8796, abs=0.01)
    # An increasing map: rows keep their order, extreme numbers stay inside.
    assert shaped.flatten()[drawn.flatten().argsort()].diff().min() >= 0
    assert shape_noise(torch.tensor([[-40.0, 0.0, 40.0]]), "truncated", 2.0).tolist() == [[-2.0, 0.0, 2.0]]
    assert shape_noise(drawn, "normal", 2.0) is drawn


def test_the_released_truncation_takes_the_first_inside() -> None:
    drawn = torch.tensor([[2.5, -3.0, 0.5, 1.0, 1.5, 9.0, 9.0, 9.0, 2.5, 3.0, -2.5, 4.0]])
    assert drawn_numbers(3, "truncated_first_of_four") == 3 * CANDIDATES == 12
    assert shape_noise(drawn, "truncated_first_of_four", 2.0).tolist() == [[0.5, 1.5, 2.5]]


@pytest.mark.parametrize("noise", ["normal", "truncated", "truncated_first_of_four"])
def test_the_generator_takes_each_noise(noise: str) -> None:
    config, text = small(noise=noise), some_text(2)
    drawn = torch.randn(2, config.drawn_noise)
    net = Generator(config).eval()
    first = net(text, drawn)
    drawn[:, 0] += 0.1
    assert not net(text, drawn).images[0].equal(first.images[0])
    drawn[:, -1] += 0.1
    assert net(text, drawn).mu.equal(first.mu)


# The text encoder


def encoder(**changes: Any) -> TextEncoder:
    return TextEncoder(TextEncoderSettings(**{"embedding_dim": 5, "text_dim": 6, **changes}), vocabulary_size=11)


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_each_caption_is_read_alone(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    net = encoder().eval()
    tokens = torch.randint(1, 11, (len(lengths), 7))
    tokens[torch.arange(7)[None, :] >= torch.tensor(lengths)[:, None]] = 0
    text = net(tokens, torch.tensor(lengths))
    assert text.words.shape == (len(lengths), 7, 6)
    for row, length in enumerate(lengths):
        states, (last, _) = net.lstm(net.embedding(tokens[row : row + 1, :length]))
        torch.testing.assert_close(text.words[row, :length], states[0])
        torch.testing.assert_close(text.sentence[row], last[:, 0].flatten())
        assert not text.words[row, length:].any()


def test_dropout_follows_the_noise() -> None:
    net, tokens, lengths = encoder(dropout=0.25).train(), torch.randint(1, 11, (3, 4)), torch.tensor([4, 2, 3])
    noise = torch.randn(3, net.noise_width(4))
    text = net(tokens, lengths, noise)
    assert text.words.equal(net(tokens, lengths, noise).words)
    assert not text.words.equal(net(tokens, lengths, -noise).words)
    # A caption's features do not depend on who else is in its batch.
    torch.testing.assert_close(net(tokens[1:2], lengths[1:2], noise[1:2]).words[0], text.words[1])
    many = torch.randn(1, net.noise_width(4000))
    dropped = net._drop(torch.ones(1, 4000, 5), many)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert net.eval()(tokens, lengths, noise).words.equal(net(tokens, lengths).words)


# Adversarial losses


def test_adversarial_terms_by_hand() -> None:
    u, c, w = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.5]), torch.tensor([0.25])
    log_sigmoid = F.logsigmoid
    bce = (-log_sigmoid(u).mean() - log_sigmoid(c).mean()) / 2
    bce = bce - (log_sigmoid(-u).mean() + log_sigmoid(-c).mean() + log_sigmoid(-w).mean()) / 3
    torch.testing.assert_close(discriminator_loss([u, c], [u, c, w], "bce"), bce)
    hinge = ((0 + 2.0) / 2 + (0.5 + 0) / 2) / 2 + ((3.0 + 0) / 2 + (1.5 + 2.5) / 2) / 2
    assert discriminator_loss([u, c], [u, c], "hinge").item() == pytest.approx(hinge)
    assert generator_loss([u, c], "hinge", "mean").item() == pytest.approx(-(0.5 + 1.0) / 2)
    torch.testing.assert_close(generator_loss([u, c], "bce", "sum"), -(log_sigmoid(u).mean() + log_sigmoid(c).mean()))
    extreme = torch.tensor([1e4, -1e4])
    assert torch.isfinite(discriminator_loss([extreme, extreme], [extreme, extreme], "bce"))


def test_kl_is_a_mean_of_the_divergence() -> None:
    mu, log_variance = torch.randn(4, 5), torch.randn(4, 5)
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(mu, (0.5 * log_variance).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(condition_kl(mu, log_variance), divergence.mean())


def test_mismatched_pairs_are_each_picture_with_the_next_sentence() -> None:
    stage = Discriminators(small()).stages[0].eval()
    features, text = torch.randn(4, 16, 4, 4), some_text(4)
    found = mismatched_logits(stage, features, following_captions(text, ONE), ONE)
    tiled = text.sentence[:, :, None, None].expand(-1, -1, 4, 4)
    joint, out = stage.cond_head.joint, stage.cond_head.out_conv
    expected = [out(joint(torch.cat([features[i], tiled[i + 1]])[None])).flatten() for i in range(3)]
    torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize("form", ["bce", "hinge"])
@pytest.mark.parametrize("pairs", [True, False])
def test_the_discriminators_objective(form: str, pairs: bool) -> None:
    config = small(adversarial=form, mismatched_pairs=pairs)
    nets, text = Discriminators(config), some_text(4)
    fakes = tuple(torch.randn(4, 3, side, side, requires_grad=True) for side in config.sides)
    objective = discriminator_objective(config, nets, torch.rand(4, 3, 32, 32), fakes, text, ONE)
    objective.loss.backward()
    assert all(fake.grad is None for fake in fakes)
    # The last bias moves real and fake logits alike: under the unsaturated hinge that changes nothing.
    weights = [parameter.grad for name, parameter in nets.named_parameters() if not name.endswith("out_conv.bias")]
    assert all(gradient is not None and gradient.any() for gradient in weights)
    stages = [objective.terms[f"stage_{i}"] for i in range(3)]
    torch.testing.assert_close(objective.loss.detach(), torch.stack(stages).sum())


def test_the_generators_objective() -> None:
    config, text = small(damsm_weight=2.0, kl_weight=3.0), some_text(4)
    net, nets = Generator(config), Discriminators(config)
    judge = nn.Sequential(PlainTrunk(), ImageEncoder(PlainTrunk(), 8))  # type: ignore[arg-type]
    output = net(text, torch.randn(4, config.drawn_noise))
    objective = generator_objective(config, nets, judge, output, text, torch.arange(4), ONE)
    terms = objective.terms
    adversarial = terms["stage_0"] + terms["stage_1"] + terms["stage_2"]
    expected = adversarial + 3 * terms["kl"] + 2 * (terms["damsm_word"] + terms["damsm_sentence"])
    torch.testing.assert_close(objective.loss.detach(), expected)
    gradients = torch.autograd.grad(objective.loss, list(net.parameters()))
    assert all(gradient.any() for gradient in gradients)
    with pytest.raises(ValueError, match="there is no image encoder: give DAMSM's"):
        generator_objective(config, nets, None, output, text, None, ONE)
    without = generator_objective(small(damsm_weight=0.0), nets, None, output, text, None, ONE)
    assert "damsm_word" not in without.terms


def test_the_pyramid_is_what_pil_makes() -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    low, same = picture_pyramid(images, (16, 32))
    assert same is images
    theirs = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR)).astype(np.float32)
    assert np.abs((low[0].permute(1, 2, 0).numpy() + 1) * 127.5 - theirs).max() < 1.01


# The number of ranks


def one_step(ranks: Ranks, rows: slice) -> dict[str, Tensor]:
    """Every loss, gradient and running statistic of one step on these rows of a batch of six, in float64."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    config = small(adversarial="bce", damsm_weight=2.0)
    net, nets = Generator(config), Discriminators(config)
    judge = nn.Sequential(PlainTrunk(), ImageEncoder(PlainTrunk(), 8))  # type: ignore[arg-type]
    words, sentence, noise = torch.randn(6, 5, 8), torch.randn(6, 8), torch.randn(6, config.drawn_noise)
    text = TextFeatures(words[rows], torch.tensor([5, 3, 1, 4, 2, 5])[rows], sentence[rows])
    images, classes = torch.rand(6, 3, 32, 32)[rows], torch.tensor([0, 1, 2, 0, 3, 4])[rows]
    with torch.no_grad(), frozen_statistics(net):
        fakes = net(text, noise[rows]).images
    d_objective = discriminator_objective(config, nets, images, fakes, text, ranks)
    d_gradients = torch.autograd.grad(d_objective.loss, list(nets.parameters()))
    output = net(text, noise[rows])
    g_objective = generator_objective(config, nets, judge, output, text, classes, ranks)
    g_gradients = torch.autograd.grad(g_objective.loss, list(net.parameters()))
    found = {"d": d_objective.loss.detach().clone(), "g": g_objective.loss.detach().clone()}
    found |= {f"d{i}": gradient for i, gradient in enumerate(d_gradients)}
    found |= {f"g{i}": gradient for i, gradient in enumerate(g_gradients)}
    ranks.average_(found.values())
    found |= {f"state d {name}": value.clone() for name, value in nets.named_buffers()}
    return found | {f"state g {name}": value.clone() for name, value in net.named_buffers()}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-point", rank=rank, world_size=2)
    found = one_step(current_ranks(), slice(3 * rank, 3 * rank + 3))
    if rank == 0:
        from safetensors.torch import save_file

        save_file(found, f"{folder}/found.safetensors")
    dist.destroy_process_group()


@pytest.fixture
def plain_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def test_two_ranks_step_as_one(tmp_path: Path, plain_precision: None) -> None:
    """Losses, gradients and statistics of 2 ranks x 3 are those of 1 x 6, mismatched pairs across the ranks too."""
    from safetensors.torch import load_file

    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    found, expected = load_file(tmp_path / "found.safetensors"), one_step(ONE, slice(0, 6))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
