"""Standard normal numbers from seeds, and what becomes of them before a generator reads them: noise stays a seed's
own."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

NoiseShape = Literal["normal", "truncated", "truncated_first_of_four"]
CANDIDATES = 4


def seeded_noise(seeds: Sequence[int], width: int, device: torch.device, truncation: float | None = None) -> Tensor:
    """(len(seeds), width) standard normal numbers, row i from seed i alone; drawn on the CPU so devices agree.

    truncation: see `truncated`; with none every bit is as it was drawn. Raises ValueError.
    """
    rows = [torch.randn(width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    if truncation is not None:
        # Row by row: where a number lies in a larger tensor may decide how a vector instruction rounds it.
        rows = [truncated(row, truncation) for row in rows]
    return torch.stack(rows).to(device)


def truncated(z: Tensor, threshold: float) -> Tensor:
    """Standard normal numbers, of any shape, to those of the normal distribution given |z| <= threshold.

    The truncation trick (Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", 2019,
    section 3.1) draws a number again while it lies beyond the threshold. Here each goes through the distribution
    functions instead, z' = Phi^-1(Phi(-t) + Phi(z) (Phi(t) - Phi(-t))): the same distribution, but a seed's picture
    changes continuously with t, to its own where t is large, and no t takes longer than another. Computed in float64;
    z' is odd and increasing in z, and |z'| <= min(|z|, t), t rounded to the type of z. Raises ValueError unless
    threshold > 0.
    """
    if not threshold > 0:
        raise ValueError(f"truncation is {threshold}: it is a number of standard deviations above 0")
    wide = z.double()
    # By the lower tail alone, and of erfc: a distribution function near 1, or torch's ndtr, has no digits left there.
    beyond, below = (torch.erfc(x / math.sqrt(2)) / 2 for x in (wide.new_tensor(threshold), wide.abs()))
    tail = beyond + (1 - 2 * beyond) * below
    size = (-torch.special.ndtri(tail)).clamp(min=0).minimum(wide.abs().clamp(max=threshold))
    return size.copysign(wide).to(z.dtype)


def untruncated(truncation: float | None) -> None:
    """For systems without a latent. Raises ValueError where there is a truncation."""
    if truncation is not None:
        raise ValueError(f"truncation is {truncation}, but these settings draw from no latent that can be truncated")


def drawn_numbers(width: int, shape: NoiseShape) -> int:
    """How many standard normal numbers one row of `width` shaped numbers needs."""
    return width * CANDIDATES if shape == "truncated_first_of_four" else width


def shape_noise(drawn: Tensor, shape: NoiseShape, threshold: float) -> Tensor:
    """(B,drawn_numbers(width)) standard normal numbers to (B,width).

    "normal" leaves them. "truncated" is exactly the normal distribution given |z| < threshold, see `truncated`
    (CPGAN, section 4; the paper names the distribution alone). "truncated_first_of_four" is
    CPGAN's released form: the first of four numbers inside the threshold, the first of all where none is, so that a
    few lie outside.
    """
    if shape == "normal":
        return drawn
    if shape == "truncated":
        return truncated(drawn, threshold)
    candidates = drawn.view(len(drawn), -1, CANDIDATES)
    inside = (candidates.abs() < threshold).to(torch.uint8)
    return candidates.gather(2, inside.argmax(2, keepdim=True)).squeeze(2)


def drop(values: Tensor, rate: float, noise: Tensor | None) -> Tensor:
    """Dropout in training: values (B,...) with a share `rate` of them 0 and the rest as much larger.

    noise: (B, numbers of a row) standard normal numbers that decide what is dropped, so that the number of workers does
    not change it; None: torch's own generator decides.
    """
    if noise is None:
        return F.dropout(values, rate)
    threshold = torch.special.ndtri(torch.tensor(rate, dtype=torch.float64)).item()
    return values * (noise > threshold).view_as(values) / (1 - rate)
