"""CPGAN's nets and losses against its equations, written again and slowly. Parity: tests/parity."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from models.attngan import COCO
from models.attngan import Generator as AttnGANGenerator
from models.attngan.damsm import look
from models.attngan.losses import generator_objective
from models.blocks.cascade import CascadeOutput
from models.blocks.discriminator import Discriminators
from models.blocks.norm import frozen_statistics
from models.contract import Regions, TextFeatures, parameter_count
from models.cpgan.config import (
    DAMSM_PAPER,
    DAMSM_RELEASED,
    PAPER,
    RELEASED,
    CPGANConfig,
    CPGANDAMSMConfig,
    ImageEncoderSettings,
    MemoryTextSettings,
)
from models.cpgan.discriminator import FineGrainedDiscriminator, UnconditionalDiscriminator, discriminators
from models.cpgan.image import ObjectAwareImageEncoder
from models.cpgan.networks import Generator
from models.losses.cascade import discriminator_objective, following_captions, mismatched_logits, picture_pyramid
from models.losses.damsm import matching_losses
from models.parallel import OneRank, Ranks, current_ranks
from tests.test_attngan_models import PlainTrunk, plain_precision
from tests.tiny import some_text

__all__ = ["plain_precision"]

ONE = OneRank()
REGION_DIM, BOXES = 5, 4
SMALL: dict[str, Any] = {
    "resolution": 32,
    "generator_channels": 2,
    "discriminator_channels": 2,
    "text_dim": 8,
    "noise_dim": 4,
    "condition_dim": 3,
    "residual_blocks": 1,
    "region_dim": REGION_DIM,
    "grid_side": 2,
    "patches": 4,
}


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """The same random weights each time."""
    torch.manual_seed(0)


def small(**changes: Any) -> CPGANConfig:
    return CPGANConfig(**{**SMALL, **changes})


class SomeRegions(nn.Module):
    """Stands in for a detector: a box for each quarter of a picture, its features a linear map of the quarter's colour.

    How many are found is each picture's own affair, and may be none.
    """

    def __init__(self, feature_dim: int = REGION_DIM) -> None:
        super().__init__()
        self.feature_dim, self.calls = feature_dim, 0
        numbers = torch.arange(3.0 * feature_dim).add(1).mul(12.9898).sin()
        self.weight = nn.Parameter(numbers.view(feature_dim, 3).to(torch.get_default_dtype()), requires_grad=False)

    def forward(self, images: Tensor) -> Regions:
        self.calls += 1
        features = F.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2) @ self.weight.t()
        counts = images.detach().flatten(1).sum(1).abs().floor().long() % (BOXES + 1)
        boxes = torch.rand(len(images), BOXES, 4, generator=torch.Generator().manual_seed(0))
        found = Regions(boxes, features, torch.ones(len(images), BOXES), counts)
        return replace(found, features=features.masked_fill(found.padding()[:, :, None], 0.0))


def object_aware(**changes: Any) -> ObjectAwareImageEncoder:
    return ObjectAwareImageEncoder(small(**changes), PlainTrunk(), 8)  # type: ignore[arg-type]


# The settings


def test_every_setting_has_a_source() -> None:
    for config in (CPGANConfig, CPGANDAMSMConfig, MemoryTextSettings, ImageEncoderSettings):
        assert all(info.description for info in config.model_fields.values()), config
    assert CPGANConfig() == PAPER and CPGANDAMSMConfig() == DAMSM_PAPER
    assert (PAPER.adversarial, PAPER.generator_terms, PAPER.noise) == ("hinge", "mean", "truncated")
    assert (PAPER.residual_blocks, PAPER.damsm_weight, PAPER.matching.gamma2_root) == (3, 50, True)
    assert (PAPER.fgcd, PAPER.oaie, PAPER.order, PAPER.unconditional) == (True, True, "objects_first", "own")
    assert (RELEASED.noise, RELEASED.legacy_mask, RELEASED.order) == ("truncated_first_of_four", True, "grid_first")
    text = DAMSM_PAPER.text
    assert (text.mate, text.fusion, text.sentence, text.memory_hidden_dim, text.memory_dim) == (
        True,
        "paper",
        "last_word",
        512,
        256,
    )
    assert (DAMSM_RELEASED.text.fusion, DAMSM_RELEASED.text.sentence) == ("released", "final_states")
    for config in (PAPER, DAMSM_PAPER):
        assert (config.region_dim, config.grid_side) == (1024, 8)


def test_wrong_settings_say_what_to_do() -> None:
    with pytest.raises(ValidationError, match="patches is 6, and halving a picture leaves a power of two: give 2, 4"):
        small(patches=6)
    with pytest.raises(
        ValidationError,
        match="patches is 32, but pictures of 32 px have at most 16 patches a side: set patches to 16 or",
    ):
        small(patches=32)
    assert small(patches=32, fgcd=False).patches == 32
    with pytest.raises(ValidationError, match="3 stages up to 16 px start below 8 px"):
        small(resolution=16)


# The generator


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert parameter_count(Generator(RELEASED)) == parameter_count(Generator(PAPER)) == 13_873_856
        for residuals in ("plain", "none"):
            config = PAPER.model_copy(update={"residuals": residuals})
            assert parameter_count(Generator(config)) == 13_811_456
        without = discriminators(PAPER.model_copy(update={"fgcd": False}))
        theirs = Discriminators(COCO)
        assert [parameter_count(stage) for stage in without.stages] == [13_304_450, 42_800_258, 160_774_274]
        own = [UnconditionalDiscriminator(PAPER, side) for side in PAPER.sides]
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in without.state_dict().items()} == shapes
    # Five halvings at every side, then one linear layer (section 6.2).
    assert [len(net.downs) for net in own] == [5, 5, 5]
    assert [net.linear.in_features // (8 * 96) for net in own] == [2**2, 4**2, 8**2]


@pytest.mark.parametrize("residuals", ["shared", "plain", "none"])
def test_the_first_map_is_carried_on(residuals: str) -> None:
    """r2 = U(h1), h2 = K(F1(h1) + r2), r3 = U(r2), h3 = K(F2(h2) + r3)."""
    config, text = small(residuals=residuals, noise="normal"), some_text(2)
    net, noise = Generator(config).eval(), torch.randn(2, 7)
    output = net(text, noise)
    condition, _, _ = net.cond_aug(text.sentence, noise[:, 4:])
    h = net.first(condition, noise[:, :4])
    carried, images = h, [torch.tanh(net.to_rgb[0](h))]
    for stage, to_rgb in zip(net.later, net.to_rgb[1:], strict=True):
        h, _ = stage(h, text, condition)
        if residuals == "plain":
            carried = carried.repeat_interleave(2, 2).repeat_interleave(2, 3)
            h = h + carried
        if residuals == "shared":
            carried = net.residual_up(carried)
            h = net.residual_conv(h + carried)
        images.append(torch.tanh(to_rgb(h)))
    torch.testing.assert_close(list(output.images), images)
    if residuals == "none":
        plain = AttnGANGenerator(config).eval()
        plain.load_state_dict(net.state_dict())
        assert plain(text, noise).images[-1].equal(output.images[-1])


@pytest.mark.parametrize(
    ("resolution", "stages", "patches"), [(8, 1, 4), (16, 1, 1), (16, 2, 8), (32, 3, 8), (64, 3, 2), (64, 4, 32)]
)
@pytest.mark.parametrize("unconditional", ["own", "shared"])
def test_any_number_of_stages(resolution: int, stages: int, patches: int, unconditional: str) -> None:
    config = small(resolution=resolution, stages=stages, patches=patches, unconditional=unconditional)
    text, nets, net = some_text(2), discriminators(config), Generator(config)
    output = net(text, torch.randn(2, config.drawn_noise))
    assert [tuple(image.shape) for image in output.images] == [(2, 3, side, side) for side in config.sides]
    judged = nets(output.images, text)
    for side, said in zip(config.sides, judged, strict=True):
        count = min(patches, side // 2)
        assert said.features.shape == (2, 16, count, count)
        assert said.unconditional.shape == (2,) and said.conditional.shape == (2, count, count)
    paid = sum(said.conditional.mean() + said.unconditional.mean() for said in judged)
    gradients = torch.autograd.grad(paid, [*nets.parameters(), *net.parameters()], allow_unused=True)
    assert all(gradient is not None for gradient in gradients)


# The fine-grained conditional discriminator


def test_a_patch_attends_to_words_as_in_equation_11() -> None:
    stage, text = FineGrainedDiscriminator(small(), 16).eval(), some_text(3)
    head, features = stage.cond_head, torch.randn(3, 16, 4, 4)
    nn.init.normal_(head.joint_bn.running_mean)
    logits = head(features, text)
    for b, length in enumerate(text.lengths.tolist()):
        words = text.words[b, :length]
        for i, j in np.ndindex(4, 4):
            v = head.patch_proj.weight[:, :, 0, 0] @ features[b, :, i, j]
            a = torch.stack([(v @ word).exp() for word in words])
            p = (a[:, None] * words).sum(0) / a.sum()
            joined = torch.cat([v, p, text.sentence[b]])
            hidden = head.joint_bn((head.joint_conv.weight[:, :, 0, 0] @ joined)[None])
            expected = head.out_conv(F.leaky_relu(hidden, 0.2)[:, :, None, None])
            torch.testing.assert_close(logits[b, i, j], expected.squeeze())
    padded = TextFeatures(torch.where(text.padding()[:, :, None], 100.0, text.words), text.lengths, text.sentence)
    assert head(features, padded).equal(logits)
    turned = TextFeatures(text.words.flip(2), text.lengths, text.sentence)
    assert not torch.isclose(head(features, turned), logits).any()


def test_a_patch_is_judged_by_itself() -> None:
    head, text = FineGrainedDiscriminator(small(), 16).eval().cond_head, some_text(1)
    features = torch.randn(1, 16, 4, 4)
    other = features.clone()
    other[0, :, 1, 2] += 1
    assert (head(features, text) != head(other, text)).nonzero().tolist() == [[0, 1, 2]]


def test_mismatched_pairs_are_each_picture_with_the_next_caption() -> None:
    """Its words and their number too, not the sentence alone."""
    stage, text = FineGrainedDiscriminator(small(), 16).eval(), some_text(4)
    features = torch.randn(4, 16, 4, 4)
    found = mismatched_logits(stage, features, following_captions(text, ONE), ONE)
    for i in range(3):
        j = slice(i + 1, i + 2)
        alone = TextFeatures(text.words[j, : int(text.lengths[j])], text.lengths[j], text.sentence[j])
        torch.testing.assert_close(found[i], stage.cond_head(features[i : i + 1], alone)[0])


@pytest.mark.parametrize("unconditional", ["own", "shared"])
def test_the_discriminators_pay_equation_5(unconditional: str) -> None:
    """Hinge terms, weights 1/2 and 1/3, means over pictures and patches."""
    config = small(unconditional=unconditional)
    nets, text, images = discriminators(config).eval(), some_text(4), torch.rand(4, 3, 32, 32)
    fakes = tuple(torch.randn(4, 3, side, side, requires_grad=True) for side in config.sides)
    objective = discriminator_objective(config, nets, images, fakes, text, ONE)
    total = torch.zeros(())
    for stage, real, fake in zip(nets.stages, picture_pyramid(images, config.sides), fakes, strict=True):
        of_real, of_fake = stage(real, text), stage(fake, text)
        rolled = TextFeatures(text.words.roll(-1, 0), text.lengths.roll(-1), text.sentence.roll(-1, 0))
        wrong = stage(real, rolled).conditional[:-1]
        total = total + (1 - of_real.unconditional).clamp(min=0).mean() / 2
        total = total + (1 + of_fake.unconditional).clamp(min=0).mean() / 3
        total = total + (1 - of_real.conditional).clamp(min=0).mean() / 2
        total = total + (1 + of_fake.conditional).clamp(min=0).mean() / 3
        total = total + (1 + wrong).clamp(min=0).mean() / 3
    torch.testing.assert_close(objective.loss, total)
    objective.loss.backward()
    assert all(fake.grad is None for fake in fakes)


def test_the_generator_pays_equations_3_4_and_6() -> None:
    config, text = small(damsm_weight=2.0, kl_weight=0.5), some_text(4)
    net, nets = Generator(config), discriminators(config).eval()
    judge = partial(look, {"trunk": PlainTrunk(), "image_encoder": object_aware(), "regions": SomeRegions()})
    output: CascadeOutput = net(text, torch.randn(4, config.drawn_noise))
    objective = generator_objective(config, nets, judge, output, text, None, ONE)
    adversarial = torch.zeros(())
    for judged in nets(output.images, text):
        adversarial = adversarial - judged.unconditional.mean() / 2 - judged.conditional.mean() / 2
    matching = matching_losses(judge(output.images[-1]), text, config.matching)
    kl = objective.terms["kl"]
    torch.testing.assert_close(objective.loss, adversarial + 0.5 * kl + 2 * matching.loss)
    assert all(gradient.any() for gradient in torch.autograd.grad(objective.loss, list(net.parameters())))


# The number of ranks


def one_step(ranks: Ranks, rows: slice) -> dict[str, Tensor]:
    """Every loss, gradient and running statistic of one step on these rows of a batch of six, in float64."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    config = small(damsm_weight=2.0)
    net, nets, encoder = Generator(config), discriminators(config), object_aware()
    words, sentence, noise = torch.randn(6, 5, 8), torch.randn(6, 8), torch.randn(6, config.drawn_noise)
    text = TextFeatures(words[rows], torch.tensor([5, 3, 1, 4, 2, 5])[rows], sentence[rows])
    images = torch.rand(6, 3, 32, 32)[rows]
    with torch.no_grad(), frozen_statistics(net):
        fakes = net(text, noise[rows]).images
    d_objective = discriminator_objective(config, nets, images, fakes, text, ranks)
    d_gradients = torch.autograd.grad(d_objective.loss, list(nets.parameters()))
    output = net(text, noise[rows])
    judge = partial(look, {"trunk": PlainTrunk(), "image_encoder": encoder, "regions": SomeRegions()})
    g_objective = generator_objective(config, nets, judge, output, text, None, ranks)
    g_gradients = torch.autograd.grad(g_objective.loss, list(net.parameters()))
    found = {"d": d_objective.loss.detach().clone(), "g": g_objective.loss.detach().clone()}
    found |= {f"d{i}": gradient for i, gradient in enumerate(d_gradients)}
    found |= {f"g{i}": gradient for i, gradient in enumerate(g_gradients)}
    ranks.average_(found.values())
    return found | {f"state {name}": value.clone() for name, value in nets.named_buffers()}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-point", rank=rank, world_size=2)
    found = one_step(current_ranks(), slice(3 * rank, 3 * rank + 3))
    if rank == 0:
        from safetensors.torch import save_file

        save_file(found, f"{folder}/found.safetensors")
    dist.destroy_process_group()


def test_two_ranks_step_as_one(tmp_path: Path, plain_precision: None) -> None:
    """Losses, gradients and statistics of 2 ranks x 3 are those of 1 x 6, words of mismatched pairs across them too."""
    from safetensors.torch import load_file

    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    found, expected = load_file(tmp_path / "found.safetensors"), one_step(ONE, slice(0, 6))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
