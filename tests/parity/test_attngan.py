"""AttnGAN's mathematics against the numbers of its released code."""

import re

import pytest
import torch
from torch import Tensor, nn

from models.attngan import AttnGANConfig, Discriminators, Generator, TextEncoder, TextEncoderSettings
from models.attngan.losses import generator_objective
from models.blocks.attention import WordAttention
from models.blocks.cascade import CascadeOutput
from models.contract import TextFeatures
from models.losses.adversarial import condition_kl, discriminator_loss, generator_loss
from models.losses.cascade import discriminator_objective
from models.losses.contrastive import contrast_scores
from models.losses.damsm import (
    MatchingSettings,
    PictureEmbedding,
    matching_losses,
    own_attention,
    same_class,
    sentence_scores,
)
from models.parallel import OneRank

from .conftest import Golden, Load

ONE = OneRank()
LENGTHS, ID_KINDS = "in.cap_lens", ("no_class_ids", "class_ids")


def load(net: nn.Module, weights: dict[str, Tensor], patterns: list[tuple[str, str]]) -> None:
    """Golden weights under our names; a 1x1 convolution of theirs may be a linear layer of ours."""
    state = net.state_dict()
    found = {}
    for name, value in weights.items():
        for pattern, ours in patterns:
            name = re.sub(pattern, ours, name)
        found[name] = value.flatten(1) if value.dim() == 4 and state[name].dim() == 2 else value
    net.load_state_dict(found, strict=True)


def text_of(numbers: Golden, words: Tensor | None = None) -> TextFeatures:
    """The file's text; padding comes as lengths or as a mask."""
    words = numbers["in.words"].transpose(1, 2) if words is None else words
    lengths = numbers[LENGTHS] if LENGTHS in numbers.arrays else (~numbers["in.mask"]).sum(1)
    sentence = numbers["in.sentence"] if "in.sentence" in numbers.arrays else words[:, 0]
    text = TextFeatures(words, lengths, sentence)
    if "in.mask" in numbers.arrays:
        assert torch.equal(text.padding(), numbers["in.mask"])
    return text


def strided(x: Tensor, key: str) -> Tensor:
    """The part of a map that a key's name says is stored."""
    found = re.search(r"stride(\d+)(?:_offset(\d+))?", key)
    if found is None:
        return x
    step, first = int(found[1]), int(found[2] or 0)
    return x[..., first::step, first::step]


def test_word_attention(golden: Load) -> None:
    numbers = golden("attngan_attention")
    words, mask = numbers["in.words"].transpose(1, 2), numbers["in.mask"]
    channels, text_dim = numbers["w.word_proj.weight"].shape[:2]
    for kind in ("legacy", "correct", "no_mask"):
        net = WordAttention(channels, text_dim, legacy_mask=kind == "legacy")
        load(net, numbers.group("w"), [])
        context, weights = net(numbers["in.hidden"], words, mask & (kind != "no_mask"))
        numbers.check(f"out.{kind}.context", context)
        numbers.check(f"out.{kind}.attention", weights)


GENERATOR_NAMES = [
    (r"^stage0\.image_conv", "to_rgb.0"),
    (r"^stage1\.image_conv", "to_rgb.1"),
    (r"^stage2\.image_conv", "to_rgb.2"),
    (r"^stage0\.up(\d)", lambda found: f"first.ups.{int(found[1]) - 1}"),
    (r"^stage0\.", "first."),
    (r"^stage(\d)\.", lambda found: f"later.{int(found[1]) - 1}."),
    (r"\.word_proj", ".attention.word_proj"),
    (r"\.res(\d)\.", r".residual.\1."),
]


@pytest.mark.parametrize("legacy", [True, False])
def test_generator(golden: Load, legacy: bool) -> None:
    numbers = golden("attngan_generator_small")
    constants = numbers.meta["constants"]
    config = AttnGANConfig(
        resolution=256,
        generator_channels=constants["gf"],
        text_dim=constants["text_dim"],
        condition_dim=constants["cond_dim"],
        noise_dim=constants["z_dim"],
        residual_blocks=constants["r_num"],
        legacy_mask=legacy,
    )
    net = Generator(config).eval()
    load(net, numbers.group("w"), GENERATOR_NAMES)
    with torch.no_grad():
        output = net(text_of(numbers), torch.cat([numbers["in.z"], numbers["in.ca_noise"]], 1))
    numbers.check("out.mu", output.mu)
    numbers.check("out.logvar", output.log_variance)
    numbers.check("out.image64", output.images[0])
    checked = 0
    kind = "legacy" if legacy else "correct"
    for key in numbers.arrays:
        if not key.startswith(f"out.{kind}."):
            continue
        checked += 1
        if found := re.search(r"attention(\d)", key):
            numbers.check(key, strided(output.attention[int(found[1]) - 1], key))
            continue
        image = output.images[{128: 1, 256: 2}[int(re.search(r"image(\d+)", key)[1])]]
        if key.endswith("_mean"):
            numbers.check(key, image.mean((2, 3)))
        elif key.endswith("_std"):
            numbers.check(key, image.std((2, 3), correction=0))
        else:
            numbers.check(key, strided(image, key))
    assert checked == 8


DISCRIMINATOR_NAMES = [
    (r"^down(\d)\.", lambda found: f"downs.{int(found[1]) - 1}."),
    (r"^reduce(\d)\.", lambda found: f"reductions.{int(found[1]) - 1}."),
    (r"cond_head\.joint_", "cond_head.joint."),
]


def test_discriminators(golden: Load) -> None:
    numbers = golden("attngan_discriminators_small")
    constants = numbers.meta["constants"]
    config = AttnGANConfig(discriminator_channels=constants["df"], text_dim=constants["text_dim"])
    sentence, nets = numbers["in.sentence"], Discriminators(config).eval()
    text = TextFeatures(sentence[:, None], torch.ones(len(sentence), dtype=torch.int64), sentence)
    for side, net in zip(config.sides, nets.stages, strict=True):
        load(net, numbers.group(f"w.d{side}"), DISCRIMINATOR_NAMES)
        with torch.no_grad():
            real, fake = (net(numbers[f"in.{kind}{side}"], text) for kind in ("real", "fake"))
        out = f"out.d{side}."
        numbers.check(f"{out}real_features", real.features)
        for kind, judged in (("real", real), ("fake", fake)):
            numbers.check(f"{out}{kind}_uncond_logit", judged.unconditional)
            numbers.check(f"{out}{kind}_cond_logit", judged.conditional)
        # A cascade of this one stage, through the objective that training uses.
        alone = AttnGANConfig(
            resolution=side, stages=1, discriminator_channels=constants["df"], text_dim=constants["text_dim"]
        )
        holder = Discriminators(alone).eval()
        holder.load_state_dict({f"stages.0.{name}": value for name, value in net.state_dict().items()})
        objective = discriminator_objective(
            alone, holder, numbers[f"in.real{side}"], (numbers[f"in.fake{side}"],), text, ONE
        )
        numbers.check(f"{out}loss", objective.loss)


def test_discriminator_loss(golden: Load) -> None:
    numbers = golden("attngan_discriminator_loss")
    logits = {name: value.requires_grad_() for name, value in numbers.group("in.logit").items()}
    real = [logits["real_uncond"], logits["real_cond"]]
    fake = [logits["fake_uncond"], logits["fake_cond"], logits["wrong_cond"]]
    loss = discriminator_loss(real, fake, "bce")
    loss.backward()
    numbers.check("out.loss", loss)
    for name, value in logits.items():
        numbers.check(f"grad.logit.{name}", value.grad)
    numbers.check("out.loss_without_unconditional_head", discriminator_loss(real[1:], fake[1:], "bce"))


def matching_settings(numbers: Golden) -> MatchingSettings:
    constants = numbers.meta["constants"]
    return MatchingSettings(**{f"gamma_{i}": constants[f"gamma{i}"] for i in (1, 2, 3) if f"gamma{i}" in constants})


class Judge(nn.Module):
    """Answers with given logits."""

    def __init__(self, stages: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, images: tuple[Tensor, ...], sentence: Tensor) -> list[object]:
        class Said:
            def __init__(self, logits: tuple[Tensor, Tensor]) -> None:
                self.unconditional, self.conditional = logits

        return [Said(logits) for logits in self.stages]


def test_generator_loss(golden: Load) -> None:
    numbers = golden("attngan_generator_adv_loss")
    logits = {name: value.requires_grad_() for name, value in numbers.group("in.logit").items()}
    names = sorted({name.partition(".")[0] for name in logits})
    stages = [(logits[f"{name}.uncond"], logits[f"{name}.cond"]) for name in names]
    adversarial = torch.stack([generator_loss(list(pair), "bce", "sum") for pair in stages]).sum()
    adversarial.backward()
    numbers.check("out.adversarial_only", adversarial)
    for name, value in logits.items():
        numbers.check(f"grad.logit.{name}", value.grad)

    config = AttnGANConfig(damsm_weight=numbers.meta["constants"]["lambda_damsm"], matching=matching_settings(numbers))
    regions = numbers["in.region_features"].flatten(2).transpose(1, 2)
    embedding = PictureEmbedding(regions, numbers["in.image_code"])
    still = torch.zeros(len(regions), 1)
    output = CascadeOutput((still,), still, still, ())

    class Encoder(nn.Module):
        def forward(self, images: Tensor) -> PictureEmbedding:
            return embedding

    objective = generator_objective(config, Judge(stages), Encoder(), output, text_of(numbers), None, ONE)
    numbers.check("out.total", objective.loss)
    numbers.check("out.adversarial_only", sum(objective.terms[f"stage_{i}"] for i in range(len(stages))))


def test_kl(golden: Load) -> None:
    numbers = golden("attngan_kl")
    mu, log_variance = numbers["in.mu"].requires_grad_(), numbers["in.logvar"].requires_grad_()
    kl = condition_kl(mu, log_variance)
    kl.backward()
    numbers.check("out.kl", kl)
    numbers.check("grad.mu", mu.grad)
    numbers.check("grad.logvar", log_variance.grad)


@pytest.mark.parametrize("kind", ID_KINDS)
def test_sentence_loss(golden: Load, kind: str) -> None:
    numbers = golden("attngan_sentence_loss")
    image, sentence = numbers["in.image_code"].requires_grad_(), numbers["in.sentence"].requires_grad_()
    scores = sentence_scores(image, sentence, numbers.meta["constants"]["gamma3"])
    excluded = same_class(numbers["in.class_ids"]) if kind == "class_ids" else None
    losses = [contrast_scores(table, "image_to_text", excluded).loss for table in (scores, scores.t())]
    numbers.check(f"out.{kind}.loss0_image_to_text", losses[0])
    numbers.check(f"out.{kind}.loss1_text_to_image", losses[1])
    torch.stack(losses).sum().backward()
    numbers.check(f"grad.{kind}.image_code", image.grad)
    numbers.check(f"grad.{kind}.sentence", sentence.grad)


@pytest.mark.parametrize("kind", ID_KINDS)
def test_words_loss(golden: Load, kind: str) -> None:
    numbers = golden("attngan_words_loss")
    settings = matching_settings(numbers)
    maps, words = numbers["in.image_features"].requires_grad_(), numbers["in.words"].requires_grad_()
    regions, by_step = maps.flatten(2).transpose(1, 2), words.transpose(1, 2)
    text = text_of(numbers, by_step)
    classes = numbers["in.class_ids"] if kind == "class_ids" else None
    whole = torch.randn(len(regions), 3)
    matching = matching_losses(
        PictureEmbedding(regions, whole), TextFeatures(text.words, text.lengths, whole), settings, classes
    )
    numbers.check(f"out.{kind}.loss0_image_to_text", matching.words_image_to_text)
    numbers.check(f"out.{kind}.loss1_text_to_image", matching.words_text_to_image)
    (matching.words_image_to_text + matching.words_text_to_image).backward()
    numbers.check(f"grad.{kind}.image_features", maps.grad)
    numbers.check(f"grad.{kind}.words", words.grad)
    attention = own_attention(regions, by_step, text.padding(), settings.gamma_1)
    numbers.check("out.attention_maps_own_pair", attention.unflatten(2, maps.shape[2:]))


def test_text_encoder(golden: Load) -> None:
    """And the same captions in another order give the same: the released code wants them sorted."""
    numbers = golden("attngan_text_encoder")
    constants = numbers.meta["constants"]
    net = TextEncoder(
        TextEncoderSettings(embedding_dim=constants["ninput"], text_dim=constants["nhidden"]),
        vocabulary_size=constants["vocab"],
    ).eval()
    load(net, numbers.group("w"), [])
    with torch.no_grad():
        for order in (torch.arange(len(numbers[LENGTHS])), torch.randperm(len(numbers[LENGTHS]))):
            text = net(numbers["in.captions"][order], numbers[LENGTHS][order])
            back = order.argsort()
            longest = int(numbers[LENGTHS].max())
            numbers.check("out.words", text.words[back, :longest].transpose(1, 2))
            numbers.check("out.sentence", text.sentence[back])
            assert not text.words[:, longest:].any()
