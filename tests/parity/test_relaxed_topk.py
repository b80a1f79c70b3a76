"""The relaxed top k of Xie and Ermon (2019), which RetrieveGAN's equation 3 is, in float64 as the file recommends."""

import torch

from models.retrievegan.retrieval import gumbel_noise, relaxed_top_k

from .conftest import Golden, Load


def top_k(numbers: Golden, with_noise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    constants = numbers.meta["constants"]
    log_weights = numbers["in.weights"].double()
    if with_noise:
        log_weights = log_weights + gumbel_noise(torch.special.ndtri(numbers["in.uniform"].double()))
    return relaxed_top_k(log_weights, constants["k"], constants["t"], constants["eps"])


def test_relaxed_top_k(golden: Load) -> None:
    numbers = golden("relaxed_topk")
    k_hot, separate = top_k(numbers, with_noise=False)
    assert {key for key in numbers.arrays if key.startswith("out.")} == {
        "out.khot",
        "out.separate",
        "out.khot_with_gumbel",
    }
    numbers.check("out.khot", k_hot)
    numbers.check("out.separate", separate)
    torch.testing.assert_close(k_hot.sum(1), torch.full((4,), 4.0, dtype=torch.float64))


def test_with_gumbel_noise(golden: Load) -> None:
    numbers = golden("relaxed_topk")
    numbers.check("out.khot_with_gumbel", top_k(numbers, with_noise=True)[0])
