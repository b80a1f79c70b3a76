"""Pixels: generator output to bytes, checked bytes, and bytes to what a feature net sees.

The same pictures get Frechet distances some points apart under two ways of resizing, so each way has a name.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from orchestration.errors import RequestError

INCEPTION_SIDE, EFFICIENTNET_SIDE = 299, 224
# Half a grey level: what rounding to bytes forgives anyway.
TOLERANCE = 1 / 255


def to_bytes(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] to uint8, rounded to the nearest level; what lies outside becomes black or white."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def checked_bytes(pictures: Tensor) -> Tensor:
    """A generator's pictures (B,3,H,W) to uint8, as `to_bytes`.

    Raises RequestError for NaN, and for values further outside [-1, 1] than half a grey level.
    """
    _check_shape(pictures)
    if not pictures.is_floating_point():
        raise RequestError(f"pictures drawn are of {pictures.dtype}, and must be of a floating type in [-1, 1]")
    low, high = (value.item() for value in pictures.float().aminmax())
    if math.isnan(low) or math.isnan(high):
        raise RequestError("pictures drawn hold NaN: training has diverged, judge an earlier checkpoint")
    if low < -1 - TOLERANCE or high > 1 + TOLERANCE:
        raise RequestError(f"pictures drawn lie in [{low:.4g}, {high:.4g}], and must lie in [-1, 1]: scale them")
    return to_bytes(pictures)


def check_pictures(pictures: Tensor) -> None:
    """Raises RequestError for anything but uint8 (B,3,H,W)."""
    _check_shape(pictures)
    if pictures.dtype != torch.uint8:
        raise RequestError(
            f"pictures to look at are of {pictures.dtype}, and must be uint8: turn [-1, 1] into bytes by checked_bytes"
        )


def _check_shape(pictures: Tensor) -> None:
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.numel():
        raise RequestError(f"pictures are of shape {tuple(pictures.shape)}, and must be (B,3,H,W) with none of them 0")


Preparation = Callable[[Tensor], Tensor]
"""uint8 pictures (B,3,H,W) to float pixels (B,3,S,S) on the same device."""


def tf1_bilinear(pixels: Tensor, side: int) -> Tensor:
    """Float (B,3,H,W) to (B,3,S,S) by TensorFlow 1's bilinear resizing with align_corners off, in its float32 steps.

    Output pixel i lies at i * H / S, without the half-pixel shift of later versions and without antialiasing; its
    neighbours are at the floor of that and one further, the last row and column repeated.
    """
    (top, bottom, down), (left, right, across) = (_tf1_taps(length, side, pixels) for length in pixels.shape[2:])
    first, second = pixels.index_select(3, left), pixels.index_select(3, right)
    rows = first + (second - first) * across
    upper, lower = rows.index_select(2, top), rows.index_select(2, bottom)
    return upper + (lower - upper) * down[:, None]


def _tf1_taps(length: int, side: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(S,) first and second neighbours, and the second's weight."""
    places = np.arange(side, dtype=np.float32) * (np.float32(length) / np.float32(side))
    first = places.astype(np.int64)
    second = np.minimum(first + 1, length - 1)
    on_device = (torch.from_numpy(values).to(like.device) for values in (first, second, places - first))
    near, far, weight = on_device
    return near, far, weight.to(like.dtype)


def torch_fidelity(pictures: Tensor) -> Tensor:
    """What torch-fidelity does, bit for bit as the graph of 2015: TensorFlow 1's resizing, (x - 128) / 128."""
    return (tf1_bilinear(pictures.float(), INCEPTION_SIDE) - 128) / 128


def pytorch_fid(pictures: Tensor) -> Tensor:
    """What pytorch-fid does: [0, 1], bilinear with half-pixel centres and no antialiasing, [-1, 1]."""
    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    return 2 * F.interpolate(pictures.float() / 255, size, mode="bilinear", align_corners=False, antialias=False) - 1


def clean(pictures: Tensor) -> Tensor:
    """clean-fid's (Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", 2022): Pillow's
    antialiased bicubic of each channel in float, never rounded to bytes; (x - 128) / 128."""
    channels = pictures.cpu().numpy().astype(np.float32).reshape(-1, *pictures.shape[2:])
    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    resized = [np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC)) for channel in channels]
    pixels = torch.from_numpy(np.stack(resized)).to(pictures.device).reshape(-1, 3, *size)
    return (pixels - 128) / 128


def pillow_bilinear(pictures: Tensor) -> Tensor:
    """Pillow's antialiased bilinear on bytes, then [-1, 1]: what CPGAN's and StackGAN's Inception Score code does."""
    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    rows = [Image.fromarray(picture) for picture in pictures.permute(0, 2, 3, 1).cpu().numpy()]
    resized = np.stack([np.asarray(picture.resize(size, Image.Resampling.BILINEAR)) for picture in rows])
    return torch.from_numpy(resized).to(pictures.device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def jax_bilinear(pictures: Tensor) -> Tensor:
    """What XMC-GAN's code does: [0, 1], jax.image.resize "bilinear" (antialiased when it shrinks), clipped [-1, 1]."""
    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    pixels = F.interpolate(pictures.float() / 255, size, mode="bilinear", align_corners=False, antialias=True)
    return (pixels * 2 - 1).clamp(-1, 1)


def efficientnet_lite(pictures: Tensor) -> Tensor:
    """Bilinear to 224 px without antialiasing, then the port's own range, (x - 127) / 128 of bytes x."""
    # By way of [-1, 1], so that figures stay to the last bit what they were when pictures came in that range.
    pixels = ((pictures.float() / 127.5 - 1) + 1) / 2
    size = (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE)
    return (F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=False) * 255 - 127) / 128


def as_they_are(pictures: Tensor) -> Tensor:
    """For a net that takes bytes."""
    return pictures
