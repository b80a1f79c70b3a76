"""CPGAN's mathematics against the numbers of its released code."""

import re

import pytest
import torch
from torch import Tensor

from models.cpgan.config import CPGANConfig, MemoryTextSettings
from models.cpgan.networks import Generator
from models.cpgan.text import MemoryTextEncoder

from .conftest import Golden, Load
from .test_attngan import GENERATOR_NAMES, LENGTHS, load, strided, text_of

RESIDUAL_NAMES = [(r"^shared_residual_", "residual_")]


@pytest.mark.parametrize("legacy", [True, False])
def test_generator(golden: Load, legacy: bool) -> None:
    numbers = golden("cpgan_generator_small")
    constants = numbers.meta["constants"]
    config = CPGANConfig(
        resolution=256,
        generator_channels=constants["gf"],
        text_dim=constants["text_dim"],
        condition_dim=constants["cond_dim"],
        noise_dim=constants["z_dim"],
        residual_blocks=constants["r_num"],
        noise="normal",
        legacy_mask=legacy,
    )
    net = Generator(config).eval()
    load(net, numbers.group("w"), [*RESIDUAL_NAMES, *GENERATOR_NAMES])
    with torch.no_grad():
        output = net(text_of(numbers), torch.cat([numbers["in.z"], numbers["in.ca_noise"]], 1))
    numbers.check("out.mu", output.mu)
    numbers.check("out.logvar", output.log_variance)
    numbers.check("out.image64", output.images[0])
    keys = [key for key in numbers.arrays if key.startswith("out.legacy." if legacy else "out.correct.")]
    assert len(keys) == 6
    for key in keys:
        side = int(re.search(r"image(\d+)", key)[1])
        image = output.images[config.sides.index(side)]
        if key.endswith("_mean"):
            numbers.check(key, image.mean((2, 3)))
        elif key.endswith("_std"):
            numbers.check(key, image.std((2, 3), correction=0))
        else:
            numbers.check(key, strided(image, key))


def memory_encoder(numbers: Golden, sentence: str) -> MemoryTextEncoder:
    """With a memory of its own that is nowhere used: the file gives every position's."""
    constants, weights = numbers.meta["constants"], numbers.group("w")
    hidden, width, _ = weights["memory_fc1.weight"].shape
    settings = MemoryTextSettings(
        embedding_dim=constants["ninput"],
        text_dim=constants["nhidden"],
        memory_hidden_dim=hidden,
        memory_dim=len(weights["memory_fc2.weight"]),
        fusion="released",
        sentence=sentence,
    )
    net = MemoryTextEncoder(settings, torch.full((constants["vocab"], width), torch.nan)).eval()
    # 1x1 convolutions over positions are linear maps of ours.
    linear = {name: value.squeeze(2) if value.dim() == 3 else value for name, value in weights.items()}
    load(net, {**linear, "memory": net.memory}, [])
    return net


@pytest.mark.parametrize(("sentence", "key"), [("final_states", "out.sentence"), ("last_word", "out.last_word")])
def test_memory_text_encoder(golden: Load, sentence: str, key: str) -> None:
    """And the same captions in another order give the same: the released code wants them sorted."""
    numbers = golden("cpgan_memory_text_encoder")
    net = memory_encoder(numbers, sentence)
    tokens, lengths, recalled = numbers["in.captions"], numbers[LENGTHS], numbers["in.memory"]
    orders: list[Tensor] = [torch.arange(len(lengths)), torch.arange(len(lengths)).flip(0)]
    with torch.no_grad():
        numbers.check("out.projected_memory", net.project(recalled))
        for order in orders:
            text = net.read(net.join(tokens[order], recalled[order]), lengths[order])
            back = order.argsort()
            longest = int(lengths.max())
            numbers.check("out.words", text.words[back, :longest].transpose(1, 2))
            numbers.check(key, text.sentence[back])
            assert not text.words[:, longest:].any()
