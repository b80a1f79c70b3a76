"""Noise shapes: each turns standard normal numbers into what a generator reads, so that noise stays a seed's own."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

NoiseShape = Literal["normal", "truncated", "truncated_first_of_four"]
CANDIDATES = 4


def drawn_numbers(width: int, shape: NoiseShape) -> int:
    """How many standard normal numbers one row of `width` shaped numbers needs."""
    return width * CANDIDATES if shape == "truncated_first_of_four" else width


def shape_noise(drawn: Tensor, shape: NoiseShape, threshold: float) -> Tensor:
    """(B,drawn_numbers(width)) standard normal numbers to (B,width).

    "normal" leaves them. "truncated" is exactly the normal distribution given |z| < threshold, through its inverse
    distribution function (CPGAN, section 4; the paper names the distribution alone). "truncated_first_of_four" is
    CPGAN's released form: the first of four numbers inside the threshold, the first of all where none is, so that a
    few lie outside.
    """
    if shape == "normal":
        return drawn
    if shape == "truncated":
        # Distribution functions near 0 and 1 need float64's digits.
        wide = drawn.double()
        low, high = torch.special.ndtr(wide.new_tensor([-threshold, threshold]))
        shaped = torch.special.ndtri(low + (high - low) * torch.special.ndtr(wide))
        return shaped.clamp(-threshold, threshold).to(drawn.dtype)
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
