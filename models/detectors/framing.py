"""Pictures of any size into a net's square input, and boxes back."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.detectors.contract import Fit

# Darknet's grey beside a letterboxed picture.
GREY = 0.5


@dataclass(frozen=True, slots=True)
class Frame:
    """A square input of `side` pixels.

    "squash" changes the picture's proportions (SOA's code), "letterbox" keeps them and pads with grey on both sides
    (darknet's own program). Bilinear, pixel centres at halves, no smoothing before shrinking.
    """

    side: int
    fit: Fit

    def enter(self, pictures: Tensor) -> Tensor:
        """(B,3,H,W), uint8 or float32 in [0, 1], to float32 (B,3,side,side) in [0, 1].

        A picture of that very size keeps its pixels.
        """
        x = pictures if pictures.is_floating_point() else pictures.float() / 255
        top, left, height, width = self._place(*pictures.shape[-2:])
        if (height, width) != tuple(pictures.shape[-2:]):
            x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
        below, right = self.side - height - top, self.side - width - left
        return F.pad(x, (left, right, top, below), value=GREY)

    def leave(self, boxes: Tensor, height: int, width: int) -> Tensor:
        """Boxes (N,4) in pixels of the input, in [0, 1] of the picture of that size; cut where they reach beyond it."""
        top, left, inner_height, inner_width = self._place(height, width)
        start = boxes.new_tensor([left, top, left, top])
        size = boxes.new_tensor([inner_width, inner_height, inner_width, inner_height])
        return ((boxes - start) / size).clamp(0, 1)

    def enclose(self, boxes: Tensor, height: int, width: int) -> Tensor:
        """Boxes (N,4) in [0, 1] of the picture of that size, in [0, 1] of the input."""
        top, left, inner_height, inner_width = self._place(height, width)
        start = boxes.new_tensor([left, top, left, top])
        size = boxes.new_tensor([inner_width, inner_height, inner_width, inner_height])
        return (start + boxes * size) / self.side

    def _place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the picture within the input."""
        if self.fit == "squash":
            return 0, 0, self.side, self.side
        longer = max(height, width)
        inner_height, inner_width = (max(1, self.side * length // longer) for length in (height, width))
        return (self.side - inner_height) // 2, (self.side - inner_width) // 2, inner_height, inner_width


def check_pictures(pictures: Tensor) -> None:
    """Raises ValueError for anything but uint8 (B,3,H,W)."""
    if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[1] != 3:
        raise ValueError(f"detectors take uint8 pictures (B,3,H,W), not {pictures.dtype} {tuple(pictures.shape)}")
