"""FID and KID of generated pictures, always named with the net whose features they compare."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

KID_SUBSETS, KID_SUBSET_SIZE = 50, 100


@dataclass(frozen=True, slots=True)
class Distances:
    """Frechet and kernel distance (mean and standard deviation over subsets), with the sample counts."""

    fid: float
    kid: float
    kid_std: float
    real: int
    fake: int


@torch.inference_mode()
def features_of(net: nn.Module, pictures: Iterable[Tensor]) -> Tensor:
    """Features (N,F), on the CPU, of a stream of uint8 pictures (B,3,H,W), computed where the net is."""
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    return torch.cat([net(portion.to(device)).cpu() for portion in pictures])


@torch.inference_mode()
def distances(real: Tensor, fake: Tensor, seed: int = 0) -> Distances:
    """Distances between the features (N,F) and (M,F) of two sets of pictures.

    At least four pictures on each side. KID's subsets are drawn with the seed. With fewer pictures than features the
    covariance is singular and FID is biased upwards: compare equal counts only.
    """
    counts = (len(real), len(fake))
    # The metrics take features as they are, so that pictures pass through the net once.
    given = nn.Identity()
    given.num_features = real.shape[1]  # type: ignore[assignment]
    # No syncing: inside a training group these metrics would wait for ranks that do not judge.
    alone: dict[str, Any] = {"feature": given, "sync_on_compute": False}
    fid = FrechetInceptionDistance(**alone)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all extracted features")
        kid = KernelInceptionDistance(subsets=KID_SUBSETS, subset_size=min(KID_SUBSET_SIZE, min(counts) // 2), **alone)
    for metric in (fid, kid):
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kid_mean, kid_std = kid.compute()
    return Distances(fid.compute().item(), kid_mean.item(), kid_std.item(), *counts)


def to_bytes(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] to uint8, rounded to the nearest level."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
