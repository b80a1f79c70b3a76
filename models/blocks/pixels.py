"""Pictures normalised by ImageNet's statistics, as sg2im's are read, and in [-1, 1], as pictures are sampled."""

from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def to_signed(images: Tensor, clamp: bool = True) -> Tensor:
    """Normalised pictures (...,3,H,W) to [-1, 1]; what lies outside is clamped, unless that is off."""
    mean, std = _statistics(images)
    signed = (images * std + mean) * 2 - 1
    return signed.clamp(-1, 1) if clamp else signed


def from_signed(images: Tensor) -> Tensor:
    """Pictures (...,3,H,W) in [-1, 1] to ImageNet's mean 0 and deviation 1."""
    mean, std = _statistics(images)
    return ((images + 1) / 2 - mean) / std


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.new_tensor(IMAGENET_MEAN)[:, None, None], images.new_tensor(IMAGENET_STD)[:, None, None]
