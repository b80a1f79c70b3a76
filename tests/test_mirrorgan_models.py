"""MirrorGAN's nets and losses against their own mathematics. Parity: tests/parity."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attngan import ImageEncoder
from models.blocks.cascade import CascadeOutput
from models.contract import parameter_count
from models.encoders.trunk import ImageTrunk, ImageTrunkSettings, TrunkFeatures
from models.losses.captioning import caption_loss, word_accuracy
from models.mirrorgan import (
    PAPER,
    RELEASED,
    CaptionDecoder,
    Discriminators,
    Generator,
    MirrorGANConfig,
    Stream,
    StreamConfig,
)
from models.mirrorgan.losses import generator_objective, stream_objective
from models.mirrorgan.networks import GlobalLocalAttention, SentenceAttention
from models.parallel import OneRank
from tests.tiny import some_text

ONE = OneRank()
WORDS = 11
SMALL: dict[str, Any] = {
    "resolution": 32,
    "generator_channels": 4,
    "discriminator_channels": 2,
    "text_dim": 8,
    "noise_dim": 4,
    "condition_dim": 3,
    "residual_blocks": 1,
}
SMALL_STREAM = StreamConfig(embedding_dim=6, hidden_dim=7)


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """The same random weights each time."""
    torch.manual_seed(0)


def small(**changes: Any) -> MirrorGANConfig:
    return MirrorGANConfig(**{**SMALL, "stream": SMALL_STREAM, **changes})


class PlainTrunk(nn.Module):
    """A trunk without weights: block means of the picture."""

    region_dim, pooled_dim = 3, 12

    def forward(self, images: Tensor) -> TrunkFeatures:
        return TrunkFeatures(F.adaptive_avg_pool2d(images, 4), F.adaptive_avg_pool2d(images, 2).flatten(1))


def small_stream(**changes: Any) -> Stream:
    return Stream(SMALL_STREAM.model_copy(update=changes), PlainTrunk(), WORDS)  # type: ignore[arg-type]


def captions(count: int, longest: int = 5) -> tuple[Tensor, Tensor]:
    """Random word ids (B,T), 0 after the end, and lengths."""
    lengths = torch.randint(1, longest + 1, (count,))
    tokens = torch.randint(1, WORDS, (count, longest))
    return tokens * (torch.arange(longest)[None, :] < lengths[:, None]), lengths


# The generator


def test_without_global_attention_the_sentence_is_not_attended_to() -> None:
    """Table 3, "w/o GA": a feature map and its word context, 2C wide, in either form."""
    for extra in (True, False):
        glam = GlobalLocalAttention(small(global_attention=False, extra_convolutions=extra))
        h, words = torch.randn(2, 4, 5, 5), torch.randn(2, 6, 8)
        padding = torch.zeros(2, 6, dtype=torch.bool)
        joined, _ = glam(h, words, padding, torch.randn(2, 3))
        assert glam.out_channels == 8 and joined.shape == (2, 8, 5, 5)
        assert joined[:, :4].equal(h) and joined[:, 4:].equal(glam.word(h, words, padding)[0])


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert parameter_count(Generator(RELEASED)) == 7_105_392
        nets = Discriminators(RELEASED)
        assert [parameter_count(stage) for stage in nets.stages] == [6_313_730, 19_424_002, 71_858_946]
        paper = Generator(PAPER)
    # Equations 3 and 5: residual blocks are as wide as the three maps together.
    names = dict(paper.named_parameters())
    assert names["later.0.residual.0.conv1.weight"].shape == (6 * 32, 3 * 32, 3, 3)
    assert not any("fusion_conv" in name or "visual_conv" in name or "sentence_proj.bias" in name for name in names)


@pytest.mark.parametrize("axis", ["channel", "space"])
def test_sentence_attention_is_equation_5(axis: str) -> None:
    net = SentenceAttention(small(sentence_axis=axis, extra_convolutions=False))
    h, condition = torch.randn(2, 4, 3, 5), torch.randn(2, 3)
    context, weights = net(h, condition)
    projected = condition @ net.sentence_proj.weight.t()
    logits = h * projected[:, :, None, None]
    expected = logits.exp() / logits.exp().sum((1,) if axis == "channel" else (2, 3), keepdim=True)
    assert expected.sum().item() == pytest.approx(2 * 3 * 5 if axis == "channel" else 2 * 4)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(context, projected[:, :, None, None] * expected)


@pytest.mark.parametrize("extra", [True, False])
def test_glam_joins_three_maps(extra: bool) -> None:
    net, text = GlobalLocalAttention(small(extra_convolutions=extra)), some_text(2)
    h, condition = torch.randn(2, 4, 3, 3), torch.randn(2, 3)
    joined, _ = net(h, text.words, text.padding(), condition)
    assert joined.shape[1] == net.out_channels == (8 if extra else 12)
    maps = [h, net.word(h, text.words, text.padding())[0], net.sentence(h, condition)[0]]
    torch.testing.assert_close(joined, net.fusion_conv(torch.cat(maps, 1)))


@pytest.mark.parametrize(
    "changes", [{}, {"extra_convolutions": False, "sentence_axis": "space"}, {"legacy_mask": True}]
)
def test_pictures_of_every_stage(changes: dict[str, Any]) -> None:
    config, text = small(**changes), some_text(3)
    output = Generator(config)(text, torch.randn(3, config.drawn_noise))
    assert [tuple(image.shape) for image in output.images] == [(3, 3, side, side) for side in (8, 16, 32)]


def test_every_setting_has_a_source() -> None:
    for config in (MirrorGANConfig, StreamConfig):
        assert all(info.description for info in config.model_fields.values()), config
    assert (PAPER.stream_weight, PAPER.kl_weight, PAPER.mismatched_pairs, PAPER.generator_terms) == (
        20,
        0,
        False,
        "mean",
    )
    assert (RELEASED.stream_weight, RELEASED.damsm_weight) == (10, 0)


# STREAM


def test_a_word_is_told_from_the_picture_and_the_words_before() -> None:
    decoder, feature = CaptionDecoder(SMALL_STREAM, WORDS), torch.randn(2, 6)
    tokens = torch.randint(1, WORDS, (2, 5))
    logits = decoder(feature, tokens)
    assert logits.shape == (2, 5, WORDS)
    other = tokens.clone()
    other[:, 2] = (other[:, 2] % (WORDS - 1)) + 1
    changed = decoder(feature, other)
    assert changed[:, :3].equal(logits[:, :3])
    assert not torch.isclose(changed[:, 3:], logits[:, 3:]).all(2).any()
    assert not torch.isclose(decoder(feature + 1, tokens), logits).all(2).any()


def test_caption_loss_by_hand() -> None:
    logits = torch.randn(3, 4, WORDS)
    tokens, lengths = torch.randint(1, WORDS, (3, 4)), torch.tensor([4, 1, 2])
    words = [-logits[b].log_softmax(1)[t, tokens[b, t]] for b in range(3) for t in range(int(lengths[b]))]
    total = torch.stack(words).sum()
    torch.testing.assert_close(caption_loss(logits, tokens, lengths, "mean"), total / 7)
    torch.testing.assert_close(caption_loss(logits, tokens, lengths, "sum"), total / 3)
    spoiled = torch.where((torch.arange(4)[None, :] >= lengths[:, None])[..., None], 100.0, logits)
    torch.testing.assert_close(caption_loss(spoiled, tokens, lengths), total / 7)
    right = F.one_hot(tokens, WORDS).float()
    right[0, 0] = right[0, 0].roll(1)
    assert word_accuracy(right, tokens, lengths).item() == pytest.approx(6 / 7)


class HalfOfTwo:
    """The first of two ranks that hold the same captions count; gathers what it was told the others have."""

    rank, size = 0, 2

    def __init__(self, others: Tensor) -> None:
        self.others = others

    def gather(self, local: Tensor) -> Tensor:
        return torch.cat([local, self.others])

    def average_(self, tensors: Any) -> None:
        raise AssertionError


def test_the_mean_over_ranks_is_the_mean_over_words() -> None:
    logits = torch.randn(4, 5, WORDS)
    tokens, lengths = torch.randint(1, WORDS, (4, 5)), torch.tensor([5, 1, 2, 4])
    for reduction in ("mean", "sum"):
        halves = [
            caption_loss(logits[own], tokens[own], lengths[own], reduction, HalfOfTwo(lengths[rest]))
            for own, rest in ((slice(0, 2), slice(2, 4)), (slice(2, 4), slice(0, 2)))
        ]
        torch.testing.assert_close(torch.stack(halves).mean(), caption_loss(logits, tokens, lengths, reduction))


def test_descriptions_follow_the_likeliest_words() -> None:
    stream, images = small_stream().eval(), torch.rand(3, 3, 8, 8)
    features = PlainTrunk()(images)
    told = stream.describe(features, steps=6)
    assert told.shape == (3, 6) and told.dtype == torch.int64
    # Reading its own words, the decoder finds each of them the likeliest.
    assert stream(features, told).argmax(2).equal(told)


def test_a_frozen_captioner_passes_gradient_to_pictures_alone() -> None:
    """In evaluation mode: batch norm uses its estimates; the LSTM stays in training mode, as cuDNN demands."""
    stream = small_stream().requires_grad_(False).eval()
    assert not stream.image_bn.training and stream.decoder.lstm.training
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    tokens, lengths = captions(3)
    before = {name: value.clone() for name, value in stream.state_dict().items()}
    objective = stream_objective(SMALL_STREAM, stream, PlainTrunk()(images), tokens, lengths, ONE)
    objective.loss.backward()
    assert images.grad is not None and (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(value.equal(before[name]) for name, value in stream.state_dict().items())
    alone = stream(PlainTrunk()(images[:1]), tokens[:1])
    torch.testing.assert_close(alone, stream(PlainTrunk()(images), tokens)[:1])


def test_stream_learns_to_describe() -> None:
    """Four pictures of four colours and a caption each: after training the greedy descriptions begin with them."""
    images = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])[:, :, None, None].expand(-1, -1, 8, 8)
    tokens, lengths = torch.tensor([[1, 2, 3], [4, 2, 5], [4, 6, 0], [7, 0, 0]]), torch.tensor([3, 3, 2, 1])
    stream, features = small_stream(), PlainTrunk()(images)
    optimizer = torch.optim.Adam(stream.parameters(), 0.03)
    for _ in range(80):
        objective = stream_objective(SMALL_STREAM, stream, features, tokens, lengths, ONE)
        optimizer.zero_grad()
        objective.loss.backward()
        optimizer.step()
    assert objective.loss < 0.2 and objective.terms["stream_accuracy"] == 1
    # The estimates of batch norm move slowly (momentum 0.01).
    for _ in range(500):
        stream.encode(features)
    told = stream.eval().describe(features, 3)
    for own, words, length in zip(told, tokens, lengths.tolist(), strict=True):
        assert own[:length].equal(words[:length])


# The generator's loss


def test_the_generators_objective() -> None:
    config, text = small(stream_weight=2.0, kl_weight=0.5), some_text(4, longest=5)
    net, nets, trunk, stream = Generator(config), Discriminators(config), PlainTrunk(), small_stream().eval()
    tokens = torch.randint(1, WORDS, (4, 5))
    output: CascadeOutput = net(text, torch.randn(4, config.drawn_noise))
    objective = generator_objective(config, nets, (trunk, stream), output, text, tokens, ONE)
    terms = objective.terms
    expected = terms["stage_0"] + terms["stage_1"] + terms["stage_2"] + 0.5 * terms["kl"] + 2 * terms["stream"]
    torch.testing.assert_close(objective.loss.detach(), expected)
    assert "damsm_word" not in terms
    # The caption reaches the generator through the captioner.
    told = generator_objective(config, nets, (trunk, stream), output, text, tokens % 10 + 1, ONE)
    gradients = [torch.autograd.grad(one.loss, net.parameters(), retain_graph=True) for one in (objective, told)]
    assert all(gradient.any() for gradient in gradients[0])
    assert not gradients[0][0].equal(gradients[1][0])


def test_what_is_missing_is_named() -> None:
    config, text = small(damsm_weight=5.0), some_text(4, longest=5)
    nets, tokens = Discriminators(config), torch.randint(1, WORDS, (4, 5))
    output = Generator(config)(text, torch.randn(4, config.drawn_noise))
    with pytest.raises(ValueError, match="there is no captioner: give STREAM, or set it to 0"):
        generator_objective(config, nets, None, output, text, tokens, ONE)
    captioner = (PlainTrunk(), small_stream())
    with pytest.raises(ValueError, match="there is no image encoder: give DAMSM's, or set it to 0"):
        generator_objective(config, nets, captioner, output, text, tokens, ONE)
    judge = nn.Sequential(PlainTrunk(), ImageEncoder(PlainTrunk(), 8))  # type: ignore[arg-type]
    both = generator_objective(config, nets, captioner, output, text, tokens, ONE, judge, torch.arange(4))
    assert {"stream", "damsm_word", "kl"} <= both.terms.keys()
    without = generator_objective(small(stream_weight=0.0), nets, None, output, text, tokens, ONE)
    assert "stream" not in without.terms


def test_pixels_of_the_captioners_trunk() -> None:
    """The released form shows ResNet [-1, 1]; the proper one ImageNet's mean 0 and deviation 1."""
    released = ImageTrunkSettings(name="resnet50", side=32, align_corners=False, weights="random")
    proper = released.model_copy(update={"pixels": "imagenet"})
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    shifted = ((images + 1) / 2 - mean) / std
    torch.testing.assert_close(ImageTrunk(proper)(images).pooled, ImageTrunk(released)(shifted).pooled)
