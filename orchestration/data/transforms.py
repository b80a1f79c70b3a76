"""How each paper made a picture ready for training: one named transform each.

A transform has two halves. The fixed one (crop to the subject, resize, filter) is done once and can be stored; the
random one (crop, flip) is drawn at each access. Both are plain geometry, which boxes and traces follow by `Placement`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from orchestration.data.folders import undecodable
from orchestration.data.records import ImageRecord
from orchestration.errors import RequestError

Region = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are the first ones outside."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Of ImageNet's training pictures in [0, 1], as torchvision documents them.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the published picture's pixels are in the training picture of side `size`."""

    region: Region  # what of the published picture was stored
    stored: tuple[int, int]  # width, height of the stored picture
    left: int  # of the square cut from the stored picture
    top: int
    size: int
    flipped: bool

    def points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,2) x and y in published pixels to training pixels; outside of 0..size where they were cut off."""
        left, top, right, bottom = self.region
        scale = np.array([self.stored[0] / (right - left), self.stored[1] / (bottom - top)])
        moved = (points - np.array([left, top])) * scale - np.array([self.left, self.top])
        if self.flipped:
            moved[:, 0] = self.size - moved[:, 0]
        return moved

    def boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,4) x, y, width, height in published pixels to training pixels, not clipped."""
        first, last = self.points(boxes[:, :2]), self.points(boxes[:, :2] + boxes[:, 2:])
        low = np.minimum(first, last)
        return np.concatenate([low, np.maximum(first, last) - low], 1)


@dataclass(frozen=True, slots=True)
class Transform:
    """One paper's transform.

    margin: the stored picture's (short) side over the training side, the rest being cut off at random; keep_aspect:
    the short side is resized to that and the long one in proportion, else both are; around_subject: cut to the
    picture's one subject first, where it has one; values: of the tensor, "signed" is [-1, 1], "imagenet" is
    normalised by ImageNet's mean and deviation; flip: mirrored half of the time.
    """

    name: str
    source: str
    margin: Fraction = Fraction(1)
    keep_aspect: bool = False
    around_subject: bool = False
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    values: Literal["signed", "imagenet"] = "signed"
    flip: bool = True

    def region(self, record: ImageRecord) -> Region:
        """What of the published picture is used."""
        if self.around_subject and record.subject_box is not None:
            return subject_region(record.subject_box, record.width, record.height)
        return 0, 0, record.width, record.height

    def stored_size(self, region: Region, size: int) -> tuple[int, int]:
        """(width, height) of the stored picture for training pictures of `size` x `size`."""
        short = int(size * self.margin)
        width, height = region[2] - region[0], region[3] - region[1]
        if not self.keep_aspect:
            return short, short
        # The long side is rounded down, as torchvision's Resize does.
        return (short, short * height // width) if width <= height else (short * width // height, short)

    def store(self, picture: Image.Image, record: ImageRecord, size: int) -> NDArray[np.uint8]:
        """The fixed half: uint8 (3,h,w) in 0..255. `picture` is the decoded file, in RGB."""
        region = self.region(record)
        if region != (0, 0, *picture.size):
            picture = picture.crop(region)
        # reducing_gap would make large pictures faster and slightly different.
        resized = picture.resize(self.stored_size(region, size), _FILTERS[self.resample], reducing_gap=None)
        return np.ascontiguousarray(np.asarray(resized, np.uint8).transpose(2, 0, 1))

    def place(
        self, record: ImageRecord, size: int, draws: NDArray[np.float64] | None = None, flip: bool = False
    ) -> Placement:
        """The random half's geometry: `draws` are three numbers in [0, 1) for x, y and flip; None is the centre."""
        region = self.region(record)
        stored = self.stored_size(region, size)
        left, top, flipped = _cut(stored, size, draws, flip)
        return Placement(region, stored, left, top, size, flipped)

    def view(
        self, stored: NDArray[np.uint8], size: int, draws: NDArray[np.float64] | None = None, flip: bool = False
    ) -> NDArray[np.uint8]:
        """The random half: uint8 (3,size,size) of a stored picture; `draws` and `flip` as in `place`."""
        left, top, flipped = _cut((stored.shape[2], stored.shape[1]), size, draws, flip)
        window = stored[:, top : top + size, left : left + size]
        return window[:, :, ::-1] if flipped else window

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (B,3,H,W) to float32 in this transform's values."""
        if self.values == "signed":
            return pixels.float().div_(127.5).sub_(1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
        return pixels.float().div_(255).sub_(mean).div_(std)


def _cut(stored: tuple[int, int], size: int, draws: NDArray[np.float64] | None, flip: bool) -> tuple[int, int, bool]:
    """left, top and whether mirrored. Every place that fits is equally likely."""
    spare_x, spare_y = stored[0] - size, stored[1] - size
    if draws is None:
        return spare_x // 2, spare_y // 2, False
    return int(draws[0] * (spare_x + 1)), int(draws[1] * (spare_y + 1)), bool(flip and draws[2] >= 0.5)


def subject_region(box: tuple[float, float, float, float], width: int, height: int) -> Region:
    """AttnGAN's crop to a bird: the square of half side 0.75 x the box's longer side, clipped to the picture.

    Source: AttnGAN's released code, for CUB's bounding boxes; all numbers are rounded down.
    """
    x, y, box_width, box_height = box
    half = int(max(box_width, box_height) * 0.75)
    centre_x, centre_y = int((2 * x + box_width) / 2), int((2 * y + box_height) / 2)
    left, top = max(0, centre_x - half), max(0, centre_y - half)
    right, bottom = min(width, centre_x + half), min(height, centre_y + half)
    # A box without area, or outside the picture, points at nothing: the whole picture is used.
    return (left, top, right, bottom) if left < right and top < bottom else (0, 0, width, height)


TRANSFORMS: Mapping[str, Transform] = {
    transform.name: transform
    for transform in (
        Transform(
            "xmcgan", "XMC-GAN's released pipeline: resized straight to the square, the aspect not kept, and flipped"
        ),
        Transform(
            "attngan",
            "AttnGAN's released pipeline (MirrorGAN's and CPGAN's too): cut to the bird where there is one, short side "
            "to 76/64 of the training side, random crop, flipped",
            margin=Fraction(76, 64),
            keep_aspect=True,
            around_subject=True,
        ),
        Transform(
            "sg2im",
            "sg2im's released pipeline, which RetrieveGAN follows: resized straight to the square, not flipped, "
            "normalised by ImageNet's mean and deviation",
            values="imagenet",
            flip=False,
        ),
        Transform(
            "spade",
            "SPADE's and CC-FPSE's released pipeline (TReCS's generators): resized straight to 286/256 of the training "
            "side, bicubic, random crop, flipped",
            margin=Fraction(286, 256),
            resample="bicubic",
        ),
    )
}


def get_transform(name: str) -> Transform:
    """Raises RequestError that lists the known ones."""
    if name in TRANSFORMS:
        return TRANSFORMS[name]
    near = difflib.get_close_matches(name, TRANSFORMS, n=1)
    hint = f" (perhaps {near[0]!r} was meant)" if near else ""
    raise RequestError(f"no image transform {name!r}{hint}; there are {', '.join(TRANSFORMS)}.")


def decode(file: Path) -> Image.Image:
    """A picture file in RGB. The EXIF orientation is ignored, as COCO's boxes and masks ignore it.

    Raises RequestError when it does not decode.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise a dozen types on broken bytes, some of them undocumented
        raise RequestError(undecodable(file, error)) from error
