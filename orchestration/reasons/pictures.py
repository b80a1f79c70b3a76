"""Pictures inside of JSON."""

import base64

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestration.training.recorder import png_bytes


def base64_png(pixels: NDArray[np.uint8]) -> str:
    """base64 of a PNG of (H,W,3) bytes; the same pixels give the same text."""
    return _encoded(Image.fromarray(pixels))


def base64_stencil(mask: NDArray[np.bool_]) -> str:
    """base64 of a PNG of one bit a pixel, white where the mask (H,W) is true."""
    return _encoded(Image.fromarray(mask.astype(np.uint8) * 255).convert("1"))


def _encoded(image: Image.Image) -> str:
    return base64.b64encode(png_bytes(image)).decode("ascii")
