"""SPADE's mathematics against the numbers of its released code."""

import torch
from torch import Tensor, nn

from models.blocks.semantic import SpatiallyAdaptiveNorm
from models.spade.networks import SpadeBlock

from .conftest import Golden, Load
from .test_attngan import load

PATTERNS = [(r"weight_orig$", "weight"), (r"weight_(u|v)$", r"\1")]


def both_modes(numbers: Golden, net: nn.Module) -> None:
    """What it gives in evaluation, then in training, and every buffer that the pass in training leaves."""
    x, label_map = numbers["in.x"], numbers["in.segmap"]
    with torch.no_grad():
        numbers.check("out.eval", net.eval()(x, label_map))
        numbers.check("out.train", net.train()(x, label_map))
    state: dict[str, Tensor] = net.state_dict()
    for name in numbers.group("out.after_train"):
        numbers.check(f"out.after_train.{name}", state[name.replace("weight_u", "u")])


def test_spatially_adaptive_norm(golden: Load) -> None:
    numbers = golden("spade_norm")
    net = SpatiallyAdaptiveNorm(6, 7)
    load(net, numbers.group("w"), PATTERNS)
    both_modes(numbers, net)


def test_residual_block(golden: Load) -> None:
    numbers = golden("spade_resblock")
    sizes = numbers.meta["constants"]
    net = SpadeBlock(sizes["fin"], sizes["fout"], 5, 128, sizes["leaky_slope"], "global")
    load(net, numbers.group("w"), PATTERNS)
    both_modes(numbers, net)
