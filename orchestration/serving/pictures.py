"""PNG files that say what they are: the request and the model that drew them."""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo

from orchestration.errors import RequestError
from orchestration.serving.replies import ModelIdentity

IMAGE_ID: Final = re.compile("^[0-9a-f]{16}-[0-9a-f]{16}$")
"""What `image_id` makes."""
LONG = 2_000
"""Characters of a text that is not compressed."""


def image_id(digest: str, kind: str, text: str, seed: int, truncation: float | None) -> str:
    """Names a picture by what it is drawn from: 16 hex digits of the checkpoint's digest, and 16 of the request."""
    request = json.dumps([kind, text, seed, truncation])
    return f"{digest[:16]}-{hashlib.sha256(request.encode()).hexdigest()[:16]}"


def picture_metadata(
    kind: str, text: str, seed: int, truncation: float | None, model: ModelIdentity, image: str
) -> dict[str, str]:
    """What a served PNG carries; image: its `image_id`. No time stamp: the same request gives the same bytes."""
    return {
        "kind": kind,
        "prompt": text,
        "seed": str(seed),
        **({} if truncation is None else {"truncation": repr(float(truncation))}),
        "model": model.name,
        "version": model.version,
        "checkpoint_digest": model.checkpoint_digest,
        "image": image,
        # The one keyword of these that the PNG specification (11.3.4.2) registers, with its capital.
        "Software": _software(),
    }


def encode_png(pixels: NDArray[np.uint8], metadata: Mapping[str, str]) -> bytes:
    """A PNG of pixels (H,W,3). Texts become tEXt chunks, or iTXt (UTF-8) where Latin-1 cannot hold them; long ones,
    such as a narrative with its trace, are compressed."""
    info = PngInfo()
    for key, text in metadata.items():
        info.add_text(key, text, zip=len(text) > LONG)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def read_metadata(png: bytes) -> dict[str, str]:
    """The texts in a PNG; RequestError when it is none."""
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            assert isinstance(image, PngImageFile)
            return {key: str(text) for key, text in image.text.items()}
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise RequestError(f"this is no PNG that can be read ({error}): give the bytes of a PNG file") from error


def _software() -> str:
    try:
        return f"t2i {version('t2i')}"
    except PackageNotFoundError:
        return "t2i"
