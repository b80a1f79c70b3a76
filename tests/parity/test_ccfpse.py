"""CC-FPSE's mathematics against the numbers of its released code."""

import re

import pytest
import torch
import torch.nn.functional as F

from models.ccfpse import CCFPSEConfig, Discriminator
from models.ccfpse.layers import TAPS, ConditionalBlock, depthwise_by_pixel

from .conftest import Load
from .test_attngan import load
from .test_spade import PATTERNS

# Its scales are counted from 1, or from the second strided convolution, which is the first that has a lateral.
LEVELS = {"enc": ("down", 1), "lat": ("laterals", 2), "final": ("heads", 2)}
SLOPE = 0.2


def test_depthwise_convolution_by_pixel(golden: Load) -> None:
    numbers = golden("ccfpse_depthconv")
    x, kernels = numbers["in.x"], numbers["in.kernels"]
    numbers.check("out.y", depthwise_by_pixel(x, kernels))
    count, channels, height, width = x.shape
    unfolded = F.unfold(x, 3, padding=1).view(count, channels, TAPS, height, width)
    numbers.check("out.y", (unfolded * kernels.view_as(unfolded)).sum(2))


@pytest.mark.parametrize("kind", ["identity", "shortcut"])
def test_block(golden: Load, kind: str) -> None:
    numbers = golden("ccfpse_block")
    x, label_map, weights = numbers[f"in.{kind}.x"], numbers["in.segmap"], numbers.group(f"w.{kind}")
    hidden = weights["kernel_pred1.conv1.weight"].shape[0]
    out = weights["pointwise2.weight"].shape[0]
    net = ConditionalBlock(x.shape[1], out, label_map.shape[1], hidden, SLOPE, "global")
    load(net, weights, PATTERNS)
    condition = F.interpolate(label_map, x.shape[2:], mode="nearest")
    # In this order: a pass in training leaves other statistics and norms behind.
    stored = {"eval": net.eval, "train": net.train}
    assert numbers.group(f"out.{kind}").keys() == stored.keys()
    for mode, switch in stored.items():
        with torch.no_grad():
            numbers.check(f"out.{kind}.{mode}", switch()(x, condition))


def test_discriminator(golden: Load) -> None:
    numbers = golden("ccfpse_discriminator_small")
    weights = {
        re.sub(r"^(enc|lat|final)(\d)", lambda found: _place(found[1], int(found[2])), name): value
        for name, value in numbers.group("w").items()
    }
    classes = weights["label_embedding.weight"].shape[1] - 2
    config = CCFPSEConfig(discriminator_channels=weights["down.0.conv.weight_orig"].shape[0])
    net = Discriminator(config, classes).eval()
    load(net, weights, PATTERNS)
    with torch.no_grad():
        scales = net(numbers["in.segmap"], numbers["in.image"])
    maps = [found for scale in scales for found in scale.features]
    ours = {f"out.logit_level{level}": scale.logits for level, scale in enumerate(scales, 2)}
    ours |= {f"out.feature_enc{level}": found for level, found in enumerate(maps, 2)}
    assert {key for key in numbers.arrays if key.startswith("out.")} == ours.keys()
    for key, value in ours.items():
        numbers.check(key, value)


def _place(kind: str, number: int) -> str:
    name, first = LEVELS[kind]
    return f"{name}.{number - first}"
