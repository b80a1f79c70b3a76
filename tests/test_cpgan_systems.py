"""CPGAN and its DAMSM, each through its own phases by a bare loop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.abilities import Matcher
from models.attngan import DAMSM, DAMSMConfig, TextEncoder, TextEncoderSettings
from models.attngan.system import image_judge
from models.blocks.discriminator import Discriminator
from models.contract import Given, StageMissing
from models.cpgan.config import CPGANConfig, CPGANDAMSMConfig, MemoryTextSettings
from models.cpgan.damsm import CPGANDAMSM
from models.cpgan.discriminator import FineGrainedDiscriminator
from models.cpgan.image import ObjectAwareImageEncoder
from models.cpgan.system import CPGAN
from models.cpgan.text import MemoryTextEncoder
from models.losses.damsm import MatchingSettings
from tests.test_cascade_systems import (
    BATCH,
    TRUNK,
    WIDTH,
    WORDS,
    context,
    of_text,
    snapshot,
    some_batch,
    some_tokens,
    train,
    unchanged,
)
from tests.test_cpgan_models import REGION_DIM, SMALL, SomeRegions

TEXT: dict[str, Any] = {
    "embedding_dim": 6,
    "text_dim": WIDTH,
    "dropout": 0.25,
    "memory_hidden_dim": 7,
    "memory_dim": 4,
}
CONFIG = CPGANConfig(**SMALL, trunk=TRUNK)


@pytest.fixture(autouse=True)
def found_boxes() -> Iterator[list[SomeRegions]]:
    """Every detector that is opened finds what `SomeRegions` does; the same random weights each time."""
    torch.manual_seed(0)
    opened: list[SomeRegions] = []

    def open_some(given: Given) -> nn.Module:
        if torch.empty(0).device.type != "meta":
            opened.append(SomeRegions())
            return opened[-1]
        return nn.Module()

    with patch("models.cpgan.damsm.open_region_net", open_some):
        yield opened


def damsm_config(mate: bool = True, oaie: bool = True, **text: Any) -> CPGANDAMSMConfig:
    settings = MemoryTextSettings(**{**TEXT, "mate": mate, **text})
    return CPGANDAMSMConfig(text=settings, trunk=TRUNK, resolution=32, oaie=oaie, region_dim=REGION_DIM, grid_side=2)


def a_memory(folder: Path, words: int = WORDS, width: int = REGION_DIM, key: str = "memory") -> Path:
    """A stage's folder with a memory of random vectors, 0 for padding."""
    folder.mkdir(exist_ok=True)
    vectors = torch.randn(words, width, generator=torch.Generator().manual_seed(5))
    vectors[0] = 0
    save_file({key: vectors}, folder / "memory.safetensors")
    return folder


def trained(folder: Path, config: CPGANDAMSMConfig, steps: int = 0) -> tuple[dict[str, nn.Module], Given]:
    """A DAMSM after so many steps, and on disk as the loop leaves it, with its memory."""
    given = Given(WORDS, {"memory": a_memory(folder / "memory")})
    part = CPGANDAMSM()
    nets = part.build(config, given)
    train(part, config, nets, steps, 0.02)
    (folder / "damsm").mkdir()
    for name in part.optimizers(config):
        save_file(nets[name].state_dict(), folder / "damsm" / f"{name}.safetensors")
    return nets, Given(WORDS, {"damsm": folder / "damsm"})


# The DAMSM


@pytest.mark.parametrize("oaie", [True, False])
@pytest.mark.parametrize("mate", [True, False])
def test_each_module_can_be_switched_off(mate: bool, oaie: bool, tmp_path: Path) -> None:
    part, config = CPGANDAMSM(), damsm_config(mate, oaie)
    stages = part.stages(config)
    assert dict(stages) == ({"memory": "memory"} if mate else {}) | ({"detector": "grid_detector"} if oaie else {})
    nets = part.build(config, Given(WORDS, {"memory": a_memory(tmp_path)}))
    assert nets.keys() == {"text_encoder", "image_encoder", "trunk"} | ({"regions"} if oaie else set())
    assert isinstance(nets["text_encoder"], MemoryTextEncoder) == mate
    assert isinstance(nets["image_encoder"], ObjectAwareImageEncoder) == oaie
    assert isinstance(part, Matcher) and part.averages(config) == {}
    assert (part.text_dim(config), part.resolution(config)) == (WIDTH, 32)
    frozen = {name: snapshot(net) for name, net in nets.items() if name in ("trunk", "regions")}
    before = snapshot(nets["text_encoder"])
    losses = [told["image_encoder"].loss.item() for told in train(part, config, nets, 40, 0.02)]
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]
    assert all(unchanged(nets[name], weights) for name, weights in frozen.items())
    assert not mate or nets["text_encoder"].memory.equal(before["memory"])
    free, clipped = part.optimizers(config)["image_encoder"], part.optimizers(config)["text_encoder"]
    assert (free.gradient_norm, clipped.gradient_norm) == (None, 0.25)


def test_with_both_off_it_is_attngans() -> None:
    """The same weights give the same numbers, as do the same seeds."""
    matching = MatchingSettings(gamma2_root=True)
    theirs = DAMSMConfig(
        text=TextEncoderSettings(embedding_dim=6, text_dim=WIDTH, dropout=0.25),
        trunk=TRUNK,
        resolution=32,
        matching=matching,
    )
    ours, given, batch = damsm_config(mate=False, oaie=False), Given(WORDS), some_batch()
    torch.manual_seed(1)
    plain = DAMSM().build(theirs, given)
    torch.manual_seed(1)
    found = CPGANDAMSM().build(ours, given)
    assert found.keys() == plain.keys() and type(found["text_encoder"]) is TextEncoder
    for name, net in plain.items():
        assert net.state_dict().keys() == found[name].state_dict().keys()
        assert unchanged(found[name], net.state_dict())
    [mine], [other] = CPGANDAMSM().phases(ours), DAMSM().phases(theirs)
    for net in (*found.values(), *plain.values()):
        net.train()
    losses = [phase.losses(nets, batch, context())["text_encoder"] for phase, nets in ((mine, found), (other, plain))]
    assert losses[0].loss.equal(losses[1].loss)
    embedded, expected = CPGANDAMSM().embed(found, batch), DAMSM().embed(plain, batch)
    assert all(one.equal(two) for one, two in zip(embedded, expected, strict=True))
    assert CPGANDAMSM().encode(found, some_tokens()).words.equal(DAMSM().encode(plain, some_tokens()).words)


def test_each_caption_is_dropped_by_its_own_noise(tmp_path: Path) -> None:
    nets, _ = trained(tmp_path, damsm_config())
    nets["text_encoder"].train()
    [phase] = CPGANDAMSM().phases(damsm_config())
    losses = [phase.losses(nets, some_batch(), context(seed))["text_encoder"].loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_a_folder_alone_encodes_captions(tmp_path: Path, found_boxes: list[SomeRegions]) -> None:
    """What serving does: built empty, filled with the file, which holds the memory too."""
    config, part, tokens = damsm_config(), CPGANDAMSM(), some_tokens()
    nets, given = trained(tmp_path, config, 2)
    wanted = part.encode(nets, tokens)
    assert nets["text_encoder"].training
    with torch.device("meta"):
        empty = part.build(config, Given(WORDS))["text_encoder"]
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(load_file(given.folders["damsm"] / "text_encoder.safetensors"))
    found = part.encode({"text_encoder": filled}, tokens)
    assert found.words.equal(wanted.words) and found.sentence.equal(wanted.sentence)
    assert not found.words[found.padding()].any()
    # Whole pictures and sentences need no boxes.
    looked = found_boxes[0].calls
    pictures, sentences = part.embed(nets, some_batch())
    assert found_boxes[0].calls == looked
    assert sentences.equal(wanted.sentence) and pictures.shape == (BATCH, WIDTH)


def test_what_a_damsm_lacks_is_named(tmp_path: Path) -> None:
    def refusal(given: Given, config: CPGANDAMSMConfig | None = None) -> str:
        with pytest.raises(ValueError) as error:
            CPGANDAMSM().build(config or damsm_config(), given)
        return str(error.value)

    with pytest.raises(StageMissing, match="the words' memory comes from the trained stage 'memory', which was not"):
        CPGANDAMSM().build(damsm_config(), Given(WORDS))
    assert refusal(Given()).startswith("the text encoder reads word indices but the vocabulary has 0 words")
    other = a_memory(tmp_path / "other", words=WORDS + 3)
    assert refusal(Given(WORDS, {"memory": other})) == (
        "the stage 'memory' holds a memory of another vocabulary, of 15 words, and the data's has 12: make the stage "
        "again from this data"
    )
    wide = a_memory(tmp_path / "wide", width=7)
    assert refusal(Given(WORDS, {"memory": wide})) == (
        "region_dim is 5, but the stage 'memory' holds a memory of width 7: set the DAMSM's region_dim to 7, or make "
        "the memory from features of width 5"
    )
    strange = a_memory(tmp_path / "strange", key="table")
    assert refusal(Given(WORDS, {"memory": strange})) == (
        f"{strange / 'memory.safetensors'} holds no memory (words, width) under 'memory': make the stage 'memory' again"
    )
    fitting = damsm_config(mate=False).model_copy(update={"region_dim": 9})
    assert refusal(Given(WORDS), fitting) == (
        "region_dim is 9, but the boxes' features are 5 wide: set region_dim=5 for every part and for the GAN, or "
        "choose another detector under regions"
    )


# The GAN


SWITCHES = [
    {},
    {"fgcd": False, "oaie": False, "residuals": "none"},
    {"unconditional": "shared", "residuals": "plain", "order": "grid_first"},
    {"adversarial": "bce", "noise": "truncated_first_of_four", "legacy_mask": True, "mismatched_pairs": False},
]


@pytest.mark.parametrize("changes", SWITCHES, ids=["paper", "AttnGAN+", "other forms", "AttnGAN's losses"])
def test_a_gan_trains(changes: dict[str, Any], tmp_path: Path, found_boxes: list[SomeRegions]) -> None:
    system, config = CPGAN(), CPGANConfig(**{**dict(CONFIG), **changes})
    parts, given = trained(tmp_path, damsm_config(oaie=config.oaie), 2)
    nets = system.build(config, given)
    looks = {"regions"} if config.oaie else set()
    assert nets.keys() == {"generator", "discriminators", "trunk", "image_encoder"} | looks
    assert unchanged(nets["image_encoder"], parts["image_encoder"].state_dict())
    kind = FineGrainedDiscriminator if config.fgcd else Discriminator
    assert all(type(stage) is kind for stage in nets["discriminators"].stages)
    before = {name: snapshot(net) for name, net in nets.items()}
    told = train(system, config, nets, 2, 1e-3)
    for name, net in nets.items():
        assert all(torch.isfinite(value).all() for value in net.state_dict().values())
        if name in system.optimizers(config):
            still = {key for key, value in net.named_parameters() if value.equal(before[name][key])}
            # Real and fake terms of the hinge move a last bias by as much, up and down.
            assert all(key.endswith(("out_conv.bias", "linear.bias")) for key in still)
        else:
            assert unchanged(net, before[name]) and not any(value.requires_grad for value in net.parameters())
    terms = told[0]["generator"].terms
    paid = terms["stage_0"] + terms["stage_1"] + terms["stage_2"] + terms["kl"]
    paid = paid + 50 * (terms["damsm_word"] + terms["damsm_sentence"])
    torch.testing.assert_close(told[0]["generator"].loss.detach(), paid)
    # One pass of the detector a step: over the generator's last pictures.
    assert not config.oaie or found_boxes[-1].calls == 2
    text = some_batch(3).text
    assert text is not None
    pictures = system.sample({"generator": nets["generator"]}, config, of_text(text), [1, 2, 3])
    assert pictures.shape == (3, 3, 32, 32) and pictures.abs().max() <= 1


def test_the_judge_reads_boxes_of_generated_pictures(tmp_path: Path) -> None:
    _, given = trained(tmp_path, damsm_config())
    nets = CPGAN().build(CONFIG, given)
    judge = image_judge(nets)
    assert judge is not None
    images = some_batch().images
    assert images is not None
    embedding = judge(images)
    expected = nets["image_encoder"](nets["trunk"](images), nets["regions"](images))
    assert embedding.regions.equal(expected.regions) and embedding.absent is not None
    assert embedding.absent.equal(expected.absent) and embedding.absent.any()
    # Gradient comes through the boxes' features too.
    images = images.clone().requires_grad_()
    objects = judge(images).regions[:, :4]
    [gradient] = torch.autograd.grad(objects.sum(), [images])
    assert gradient.flatten(1).any(1).tolist() == (~embedding.absent).sum(1).gt(4).tolist()


def test_a_gan_needs_what_its_loss_reads(tmp_path: Path) -> None:
    system = CPGAN()
    assert dict(system.stages(CONFIG)) == {"damsm": "cpgan_damsm", "detector": "grid_detector"}
    for changes in ({"oaie": False}, {"damsm_weight": 0.0}):
        assert dict(system.stages(CONFIG.model_copy(update=changes))) == {"damsm": "cpgan_damsm"}
    with pytest.raises(StageMissing, match="image_encoder comes from the trained stage 'damsm', which was not given"):
        system.build(CONFIG, Given(WORDS))
    unpaid = system.build(CONFIG.model_copy(update={"damsm_weight": 0.0}))
    assert unpaid.keys() == {"generator", "discriminators"} and image_judge(unpaid) is None
    _, given = trained(tmp_path, damsm_config())
    unfit = "the trained stage 'damsm' does not fit: object_proj."
    mend = "make model.oaie, model.trunk and model.region_dim as the stage was trained, or train it again"
    refusals: dict[str, tuple[Any, str]] = {
        "text_dim": (
            16,
            "model.text_dim is 16, but the trained stage 'damsm' makes text features of width 8: set model.text_dim=8, "
            "or train the stage with text.text_dim=16",
        ),
        "oaie": (False, f"{unfit}bias of its image_encoder has the shape (8,), here None: {mend}"),
        "region_dim": (9, f"{unfit}weight of its image_encoder has the shape (8, 5), here (8, 9): {mend}"),
    }
    for field, (value, sentence) in refusals.items():
        with pytest.raises(ValueError) as error:
            system.build(CONFIG.model_copy(update={field: value}), given)
        assert str(error.value) == sentence


def test_starting_weights_do_not_depend_on_the_parts(tmp_path: Path) -> None:
    _, given = trained(tmp_path, damsm_config())
    made: list[dict[str, nn.Module]] = []
    for weight in (0.0, 5.0):
        torch.manual_seed(4)
        made.append(CPGAN().build(CONFIG.model_copy(update={"damsm_weight": weight}), given))
    for name, net in made[0].items():
        assert unchanged(net, made[1][name].state_dict())


@pytest.mark.parametrize("part", [CPGANDAMSM(), CPGAN()], ids=lambda part: part.name)
def test_published_settings_build_on_meta(part: Any) -> None:
    """Without weights, stages or vocabulary."""
    with torch.device("meta"):
        nets = part.build(part.Config())
        known = part.build(part.Config(), Given(27297))
    for net in (*nets.values(), *known.values()):
        tensors: list[Tensor] = [*net.parameters(), *net.buffers()]
        assert all(tensor.is_meta for tensor in tensors)
    assert part.optimizers(part.Config()).keys() <= nets.keys() == known.keys()
    if "text_encoder" in known:
        assert known["text_encoder"].memory.shape == (27297, 1024)
        assert known["text_encoder"].lstm.weight_ih_l0.shape == (4 * 128, 300 + 256)
