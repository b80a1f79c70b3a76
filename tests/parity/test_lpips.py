"""The perceptual distance against the numbers of its released code."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from models.losses.lpips import EPSILON, Lpips, LpipsHeads, LpipsSettings, load_heads, scaled

from .conftest import Load


class Given(nn.Module):
    """A trunk that answers with maps it was given, one list after the other."""

    def __init__(self, *answers: list[torch.Tensor]) -> None:
        super().__init__()
        self.least_side, self.answers = 1, list(answers)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return self.answers.pop(0)


def test_lpips_head(golden: Load, tmp_path: Path) -> None:
    numbers = golden("lpips_head")
    constants = numbers.meta["constants"]
    assert constants["eps"] == EPSILON
    weights = {f"{name}.model.1.weight": value for name, value in numbers.group("w").items()}
    first, second = ([numbers[f"in.features{side}.layer{layer}"] for layer in range(len(weights))] for side in (0, 1))
    file = tmp_path / "heads.safetensors"
    save_file(weights, file)

    net = Lpips(LpipsSettings(net=constants["net"], weights="random"))
    heads: LpipsHeads = load_heads(net.trunk.widths, file, constants["net"])
    layers = heads(first, second)
    checked = {"out.distance", "out.scaled_image"}
    for layer in range(layers.shape[1]):
        numbers.check(f"out.per_layer{layer}", layers[:, layer])
        checked.add(f"out.per_layer{layer}")
    net.heads, net.trunk = heads, Given(first, second)  # type: ignore[assignment]
    still = torch.zeros(len(first[0]), 3, 8, 8)
    numbers.check("out.distance", net(still, still))
    numbers.check("out.scaled_image", scaled(numbers["in.image"]))
    assert checked == {key for key in numbers.arrays if key.startswith("out.")}
