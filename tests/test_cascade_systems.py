"""AttnGAN, MirrorGAN and the parts trained before them, each through its own phases by a bare loop."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.abilities import Captioner, Matcher
from models.attngan import DAMSM, AttnGAN, AttnGANConfig, DAMSMConfig, TextEncoderSettings
from models.attngan.damsm import evaluating
from models.contract import Batch, Given, Objective, StageMissing, StepContext, TextFeatures, Tokens
from models.encoders.image import WeightsMissing
from models.encoders.trunk import ImageTrunkSettings
from models.mirrorgan import STREAM, MirrorGAN, MirrorGANConfig, Stream, StreamConfig
from models.parallel import OneRank

WORDS, LONGEST, BATCH, WIDTH = 12, 5, 6, 8
TRUNK = ImageTrunkSettings(name="efficientnet-lite0", weights="random", side=32)
DAMSM_CONFIG = DAMSMConfig(
    text=TextEncoderSettings(embedding_dim=6, text_dim=WIDTH, dropout=0.25), trunk=TRUNK, resolution=32
)
STREAM_CONFIG = StreamConfig(trunk=TRUNK, embedding_dim=6, hidden_dim=7, resolution=32)
SMALL: dict[str, Any] = {
    "resolution": 32,
    "generator_channels": 4,
    "discriminator_channels": 2,
    "text_dim": WIDTH,
    "noise_dim": 4,
    "condition_dim": 3,
    "residual_blocks": 1,
    "trunk": TRUNK,
}
ATTNGAN_CONFIG = AttnGANConfig(**SMALL)
MIRRORGAN_CONFIG = MirrorGANConfig(**SMALL, stream=STREAM_CONFIG, damsm_weight=2.0)
GANS: list[tuple[Any, Any]] = [(AttnGAN(), ATTNGAN_CONFIG), (MirrorGAN(), MIRRORGAN_CONFIG)]
PARTS: list[tuple[Any, Any]] = [(DAMSM(), DAMSM_CONFIG), (STREAM(), STREAM_CONFIG)]
both_gans = pytest.mark.parametrize(("system", "config"), GANS, ids=["attngan", "mirrorgan"])


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """The same random weights each time."""
    torch.manual_seed(0)


def some_tokens(count: int = BATCH, seed: int = 0) -> Tokens:
    """Random captions that differ in their first word."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (count,), generator=generator)
    ids = torch.randint(1, WORDS, (count, LONGEST), generator=generator)
    ids[:, 0] = 1 + torch.arange(count)
    return Tokens(ids * (torch.arange(LONGEST)[None, :] < lengths[:, None]), lengths, "d" * 64)


def some_batch(count: int = BATCH, seed: int = 0) -> Batch:
    """Random pictures of 32 px, captions as features and as words, no two of one class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1
    tokens = some_tokens(count, seed)
    words = torch.randn(count, LONGEST, WIDTH, generator=generator)
    text = TextFeatures(words, tokens.lengths, torch.randn(count, WIDTH, generator=generator))
    return Batch(torch.arange(count), images, text, tokens, torch.arange(count))


def of_text(text: TextFeatures) -> Batch:
    """Captions as what pictures are conditioned on."""
    return Batch(torch.arange(len(text.lengths)), text=text)


def context(seed: int = 0, count: int = BATCH) -> StepContext:
    return StepContext(
        OneRank(), lambda width: torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    )


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def unchanged(net: nn.Module, before: Mapping[str, Tensor]) -> bool:
    return all(value.equal(before[name]) for name, value in net.state_dict().items())


def train(
    trainable: Any, config: Any, nets: dict[str, nn.Module], steps: int, rate: float
) -> list[dict[str, Objective]]:
    """What every step's phases gave, on one batch; all nets are put in training mode, as the real loop does."""
    optimizers = {
        name: torch.optim.Adam(nets[name].parameters(), rate, (found.beta_1, found.beta_2))
        for name, found in trainable.optimizers(config).items()
    }
    for net in nets.values():
        net.train()
    batch, told = some_batch(), []
    for step in range(steps):
        seen: dict[str, Objective] = {}
        for phase in trainable.phases(config):
            objectives = phase.losses(nets, batch, context(step))
            assert objectives.keys() == set(phase.trains)
            gradients = {
                name: torch.autograd.grad(
                    objectives[name].loss, list(nets[name].parameters()), retain_graph=True, materialize_grads=True
                )
                for name in phase.trains
            }
            for name, found in gradients.items():
                for parameter, gradient in zip(nets[name].parameters(), found, strict=True):
                    parameter.grad = gradient
                optimizers[name].step()
                optimizers[name].zero_grad(set_to_none=True)
            seen |= objectives
        told.append(seen)
    return told


@pytest.fixture(scope="module")
def parts() -> dict[str, tuple[dict[str, nn.Module], list[dict[str, Objective]]]]:
    """Both parts after some steps, and what those steps gave."""
    torch.manual_seed(0)
    found = {}
    for part, config in PARTS:
        nets = part.build(config, Given(WORDS))
        found[part.name] = nets, train(part, config, nets, 40, 0.02)
    return found


@pytest.fixture(scope="module")
def given(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Given:
    """The trained parts on disk, as the loop leaves them: a file for each trained net."""
    folders = {}
    for part, config in PARTS:
        folders[part.name] = tmp_path_factory.mktemp(part.name)
        for name in part.optimizers(config):
            save_file(parts[part.name][0][name].state_dict(), folders[part.name] / f"{name}.safetensors")
    return Given(WORDS, folders)


# The parts


@pytest.mark.parametrize(("name", "net"), [("damsm", "image_encoder"), ("stream", "stream")])
def test_a_part_learns_a_batch(parts: dict[str, Any], name: str, net: str) -> None:
    losses = [objectives[net].loss.item() for objectives in parts[name][1]]
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


def test_the_parts_keep_their_promises(parts: dict[str, Any]) -> None:
    assert isinstance(DAMSM(), Matcher) and isinstance(STREAM(), Captioner)
    assert not isinstance(DAMSM(), Captioner) and not isinstance(STREAM(), Matcher)
    for part, config in PARTS:
        nets, _ = parts[part.name]
        [phase] = part.phases(config)
        assert set(phase.trains) == set(part.optimizers(config)) == nets.keys() - {"trunk"}
        assert not any(parameter.requires_grad for parameter in nets["trunk"].parameters())
        assert part.averages(config) == {} and part.stages(config) == {} and part.resolution(config) == 32
    assert DAMSM().text_dim(DAMSM_CONFIG) == WIDTH
    assert parts["damsm"][0]["text_encoder"].embedding.num_embeddings == WORDS
    # The trunk is no part of what is saved.
    assert {name.partition(".")[0] for name in parts["damsm"][0]["image_encoder"].state_dict()} == {
        "region_proj",
        "pooled_proj",
    }


def test_damsm_optimizers_are_the_released() -> None:
    found = DAMSM().optimizers(DAMSMConfig())
    assert (found["text_encoder"].gradient_norm, found["image_encoder"].gradient_norm) == (0.25, None)
    for settings in found.values():
        assert [round(settings.rate_after(passes), 9) for passes in (0, 1, 2, 1000)] == [2e-3, 1.96e-3, 1.9208e-3, 2e-4]


def test_damsm_dropout_follows_the_context(parts: dict[str, Any]) -> None:
    nets = parts["damsm"][0]
    [phase] = DAMSM().phases(DAMSM_CONFIG)
    losses = [phase.losses(nets, some_batch(), context(seed))["text_encoder"].loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_pictures_of_one_class_are_no_false_pairs(parts: dict[str, Any]) -> None:
    nets, batch = parts["damsm"][0], some_batch()
    [phase] = DAMSM().phases(DAMSM_CONFIG)
    alike = Batch(batch.image_ids, batch.images, batch.text, batch.tokens, torch.zeros(BATCH, dtype=torch.int64))
    assert phase.losses(nets, batch, context())["text_encoder"].loss > 1e-3
    assert phase.losses(nets, alike, context())["text_encoder"].loss.item() == pytest.approx(0, abs=1e-5)


def test_captions_are_encoded_without_dropout(parts: dict[str, Any]) -> None:
    nets, part, tokens = parts["damsm"][0], DAMSM(), some_tokens()
    net = nets["text_encoder"]
    assert net.training
    first = part.encode({"text_encoder": net}, tokens)
    assert all(module.training for module in net.modules())
    net.eval()
    again = net(tokens.ids, tokens.lengths)
    assert first.words.equal(again.words) and first.sentence.equal(again.sentence)
    assert first.lengths.equal(tokens.lengths) and not first.words[first.padding()].any()
    pictures, sentences = part.embed(nets, some_batch())
    assert not net.training
    assert sentences.equal(first.sentence) and pictures.shape == (BATCH, WIDTH)
    net.train()
    # What was trained is found again: each caption's picture is the nearest.
    cosines = torch.nn.functional.normalize(pictures) @ torch.nn.functional.normalize(sentences).t()
    assert (cosines.argmax(1) == torch.arange(BATCH)).float().mean() > 0.8


def test_descriptions_end_with_zeros(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    nets, images = parts["stream"][0], some_batch().images
    assert images is not None
    stream, before = nets["stream"], snapshot(nets["stream"])
    batch = Batch(torch.arange(len(images)), images)
    told = STREAM().describe(nets, batch)
    assert told.dtype == torch.int64 and len(told) == BATCH
    assert stream.image_bn.training and unchanged(stream, before)
    with evaluating(stream):
        assert told.equal(stream.describe(nets["trunk"](images)))
    monkeypatch.setattr(
        Stream, "describe", lambda *_: torch.tensor([[3, 0, 4, 0, 5], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    )
    assert STREAM().describe(nets, batch).tolist() == [[3, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]]


def test_a_part_without_words_is_refused() -> None:
    for (part, config), reader in zip(PARTS, ("the text encoder", "the captioner"), strict=True):
        with pytest.raises(ValueError, match=f"{reader} reads word indices but the vocabulary has 0 words"):
            part.build(config, Given())


# The GANs


@both_gans
def test_a_gan_trains(system: Any, config: Any, given: Given) -> None:
    nets = system.build(config, given)
    before = {name: snapshot(net) for name, net in nets.items()}
    told = train(system, config, nets, 3, 1e-3)
    trained = system.optimizers(config)
    for name, net in nets.items():
        assert all(torch.isfinite(value).all() for value in net.state_dict().values())
        if name in trained:
            assert not any(value.equal(before[name][key]) for key, value in net.named_parameters())
        else:
            assert unchanged(net, before[name]), f"{name} is frozen, its statistics too"
            assert not any(parameter.requires_grad for parameter in net.parameters())
    assert told[0].keys() == {"discriminators", "generator"}
    expected = {"stage_0", "stage_1", "stage_2", "kl", "damsm_word", "damsm_sentence"}
    if system.name == "mirrorgan":
        expected |= {"stream", "stream_accuracy"}
    assert expected <= told[0]["generator"].terms.keys()
    # Without the weights of the frozen parts nothing of them is paid.
    terms = told[0]["generator"].terms
    paid = sum(terms[f"stage_{i}"] for i in range(3)) + terms["kl"]
    paid = paid + config.damsm_weight * (terms["damsm_word"] + terms["damsm_sentence"])
    paid = paid + (config.stream_weight * terms["stream"] if system.name == "mirrorgan" else 0)
    torch.testing.assert_close(told[0]["generator"].loss.detach(), paid)


@both_gans
def test_the_generator_is_asked_for_what_the_discriminators_saw(system: Any, config: Any, given: Given) -> None:
    """The same fakes from the same noise; only its own turn moves its statistics; scored by the new discriminators."""
    nets, made = system.build(config, given), []
    nets["generator"].register_forward_hook(lambda *call: made.append(call[-1]))
    first, second = system.phases(config)
    assert (first.trains, second.trains) == (("discriminators",), ("generator",))
    assert first.fresh_batch and not second.fresh_batch
    before = snapshot(nets["generator"])
    first.losses(nets, some_batch(), context())
    assert unchanged(nets["generator"], before)
    score = second.losses(nets, some_batch(), context())["generator"].loss
    assert not unchanged(nets["generator"], before)
    seen, own = made
    assert all(
        fake.equal(again) and not fake.requires_grad for fake, again in zip(seen.images, own.images, strict=True)
    )
    with torch.no_grad():
        for parameter in nets["discriminators"].parameters():
            parameter.mul_(1.5)
    assert second.losses(nets, some_batch(), context())["generator"].loss != score
    second.losses(nets, some_batch(), context(7))
    assert not made[-1].images[0].equal(own.images[0])


def test_the_captioner_counts_its_own_words(given: Given) -> None:
    """Features may have other lengths than tokens; what lies behind a caption's end, and train mode, do not count."""
    system, batch = MirrorGAN(), some_batch()
    nets = system.build(MIRRORGAN_CONFIG, given)
    _, phase = system.phases(MIRRORGAN_CONFIG)
    assert batch.text is not None and batch.tokens is not None

    def loss(text: TextFeatures, tokens: Tokens) -> float:
        changed = Batch(batch.image_ids, batch.images, text, tokens, batch.class_ids)
        return phase.losses(nets, changed, context())["generator"].terms["stream"].item()

    nets["generator"].eval()
    text, tokens = batch.text, batch.tokens
    usual = loss(text, tokens)
    wider = TextFeatures(nn.functional.pad(text.words, (0, 0, 0, 3)), text.lengths, text.sentence)
    assert loss(wider, tokens) == pytest.approx(usual, rel=1e-5)
    behind = tokens.ids + (tokens.ids == 0) * 3
    assert loss(text, Tokens(behind, tokens.lengths, tokens.vocabulary)) == pytest.approx(usual, rel=1e-5)
    assert loss(text, Tokens(tokens.ids, tokens.lengths.clamp(max=1), tokens.vocabulary)) != pytest.approx(usual)
    stream = nets["stream"].train()
    assert isinstance(stream, Stream)
    assert loss(text, tokens) == pytest.approx(usual, rel=1e-5)
    assert stream.image_bn.training


@both_gans
def test_samples_are_a_function_of_caption_and_seed(system: Any, config: Any, given: Given) -> None:
    net, text = system.build(config, given)["generator"], some_batch(4).text
    assert text is not None
    before = snapshot(net)

    def draw(seeds: list[int]) -> Tensor:
        pictures: Tensor = system.sample({"generator": net}, config, of_text(text), seeds)
        return pictures

    first = draw([1, 2, 3, 4])
    torch.manual_seed(9)
    assert draw([1, 2, 3, 4]).equal(first)
    assert first.shape == (4, 3, 32, 32) and first.abs().max() <= 1
    assert all(not old.equal(new) for old, new in zip(first, draw([5, 6, 7, 8]), strict=True))
    # The net was in training mode: it still is, its statistics are as before, and no picture knew its neighbours.
    assert net.training and unchanged(net, before)
    alone = TextFeatures(text.words[2:3], text.lengths[2:3], text.sentence[2:3])
    torch.testing.assert_close(
        system.sample({"generator": net}, config, of_text(alone), [3]), first[2:3], atol=1e-5, rtol=1e-5
    )
    assert torch.equal(net.eval() and draw([1, 2, 3, 4]), first)


@pytest.mark.parametrize("noise", ["truncated", "truncated_first_of_four"])
def test_samples_of_each_noise(noise: str) -> None:
    config = ATTNGAN_CONFIG.model_copy(update={"noise": noise, "damsm_weight": 0.0})
    text = some_batch(2).text
    assert text is not None
    nets = AttnGAN().build(config)
    assert nets.keys() == {"generator", "discriminators"}
    assert AttnGAN().sample(nets, config, of_text(text), [1, 2]).shape == (2, 3, 32, 32)


# What was trained before


def test_frozen_nets_are_the_trained_ones(given: Given, parts: dict[str, Any]) -> None:
    nets = MirrorGAN().build(MIRRORGAN_CONFIG, given)
    assert nets.keys() == {"generator", "discriminators", "stream_trunk", "stream", "trunk", "image_encoder"}
    assert unchanged(nets["image_encoder"], parts["damsm"][0]["image_encoder"].state_dict())
    assert unchanged(nets["stream"], parts["stream"][0]["stream"].state_dict())
    assert AttnGAN().build(ATTNGAN_CONFIG, given).keys() == {"generator", "discriminators", "trunk", "image_encoder"}
    without = MIRRORGAN_CONFIG.model_copy(update={"damsm_weight": 0.0, "stream_weight": 0.0})
    assert MirrorGAN().build(without).keys() == {"generator", "discriminators"}
    phase = MirrorGAN().phases(without)[1]
    terms = phase.losses(MirrorGAN().build(without), some_batch(), context())["generator"].terms
    assert not {"stream", "damsm_word"} & terms.keys()


def test_starting_weights_do_not_depend_on_the_parts(given: Given) -> None:
    made: list[dict[str, nn.Module]] = []
    for weight in (0.0, 5.0):
        torch.manual_seed(4)
        made.append(AttnGAN().build(ATTNGAN_CONFIG.model_copy(update={"damsm_weight": weight}), given))
    assert unchanged(made[0]["generator"], made[1]["generator"].state_dict())


def test_a_missing_stage_is_named(given: Given) -> None:
    with pytest.raises(StageMissing, match="image_encoder comes from the trained stage 'damsm', which was not given"):
        AttnGAN().build(ATTNGAN_CONFIG, Given(WORDS))
    for vocabulary in (0, WORDS):
        with pytest.raises(StageMissing, match="stream comes from the trained stage 'stream', which was not given"):
            MirrorGAN().build(MIRRORGAN_CONFIG, Given(vocabulary, {"damsm": given.folders["damsm"]}))
    with pytest.raises(StageMissing, match="stage 'damsm'"):
        MirrorGAN().build(MIRRORGAN_CONFIG, Given(WORDS, {"stream": given.folders["stream"]}))


def other(**changes: Any) -> Callable[[Any], Any]:
    return lambda config: type(config)(**{**dict(config), **changes})


@pytest.mark.parametrize(
    ("system", "config", "change", "words", "sentence"),
    [
        (
            AttnGAN(),
            ATTNGAN_CONFIG,
            other(text_dim=16),
            WORDS,
            "model.text_dim is 16, but the trained stage 'damsm' makes text features of width 8: set model.text_dim=8, "
            "or train the stage with text.text_dim=16",
        ),
        (
            MirrorGAN(),
            MIRRORGAN_CONFIG,
            other(text_dim=16, damsm_weight=0.0),
            WORDS,
            "model.text_dim is 16, but the trained stage 'damsm' makes text features of width 8: set model.text_dim=8, "
            "or train the stage with text.text_dim=16",
        ),
        (
            AttnGAN(),
            ATTNGAN_CONFIG,
            other(trunk=ImageTrunkSettings(name="resnet50", weights="random", side=32)),
            WORDS,
            "the trained stage 'damsm' does not fit: pooled_proj.weight of its image_encoder has the shape (8, 1280), "
            "here (8, 2048): make model.trunk as the stage was trained, or train it again",
        ),
        (
            MirrorGAN(),
            MIRRORGAN_CONFIG,
            other(stream=STREAM_CONFIG.model_copy(update={"hidden_dim": 9})),
            WORDS,
            "the trained stage 'stream' does not fit: decoder.linear.weight of its stream has the shape (12, 7), here "
            "(12, 9): make the data's vocabulary and model.stream as the stage was trained, or train it again",
        ),
        (
            MirrorGAN(),
            MIRRORGAN_CONFIG,
            other(),
            WORDS + 3,
            "the trained stage 'stream' does not fit: decoder.embedding.weight of its stream has the shape (12, 6), "
            "here (15, 6): make the data's vocabulary and model.stream as the stage was trained, or train it again",
        ),
        (
            MirrorGAN(),
            MIRRORGAN_CONFIG,
            other(),
            0,
            "the captioner reads word indices but the vocabulary has 0 words, padding counted: give the size of the "
            "data's vocabulary, at least 2",
        ),
    ],
    ids=["width", "width without weight", "trunk", "captioner", "vocabulary", "no vocabulary"],
)
def test_a_stage_that_does_not_fit_is_refused(
    system: Any, config: Any, change: Callable[[Any], Any], words: int, sentence: str, given: Given
) -> None:
    with pytest.raises(ValueError) as error:
        system.build(change(config), Given(words, given.folders))
    assert str(error.value) == sentence


@pytest.mark.parametrize("part", [DAMSM(), STREAM(), AttnGAN(), MirrorGAN()], ids=lambda part: part.name)
def test_published_settings_build_on_meta(part: Any) -> None:
    """Without weights, stages or vocabulary; elsewhere the trunk's weights are asked for."""
    with torch.device("meta"):
        nets = part.build(part.Config())
        known = part.build(part.Config(), Given(5450))
    for net in (*nets.values(), *known.values()):
        assert all(tensor.is_meta for tensor in [*net.parameters(), *net.buffers()])
    assert part.optimizers(part.Config()).keys() <= nets.keys()
    if not part.stages(part.Config()):
        assert known.keys() == nets.keys()
        with pytest.raises(WeightsMissing, match="needs its ImageNet weights by path"):
            part.build(part.Config(), Given(5450))
    if "stream" in known:
        assert known["stream"].decoder.linear.weight.shape == (5450, 512)


def test_a_generator_from_meta_samples(given: Given) -> None:
    """What serving does: build empty, fill the generator, sample."""
    net, text = AttnGAN().build(ATTNGAN_CONFIG, given)["generator"], some_batch(2).text
    assert text is not None
    with torch.device("meta"):
        empty = AttnGAN().build(ATTNGAN_CONFIG)["generator"]
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(net.state_dict())
    own = AttnGAN().sample({"generator": net}, ATTNGAN_CONFIG, of_text(text), [1, 2])
    assert torch.equal(AttnGAN().sample({"generator": filled}, ATTNGAN_CONFIG, of_text(text), [1, 2]), own)
