"""What a part can do beside being trained, by which it is judged and used: whatever has the method has the ability."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from models.contract import Batch, Nets, TextFeatures, Tokens

if TYPE_CHECKING:
    from models.detectors.contract import Detections


@runtime_checkable
class Matcher(Protocol):
    """A part that says how well pictures and captions fit: judged by R-precision and recall."""

    def embed(self, nets: Nets, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,C) of the pictures and (B,C) of their captions: the cosine says how well two fit."""
        ...


@runtime_checkable
class CaptionReader(Protocol):
    """A part that reads captions for the nets that come after it, in the place of a pretrained text encoder."""

    def encode(self, nets: Nets, tokens: Tokens) -> TextFeatures:
        """Captions as later nets read them."""
        ...


@runtime_checkable
class Captioner(Protocol):
    """A part that describes pictures: judged by whether it names what they show."""

    def describe(self, nets: Nets, batch: Batch) -> Tensor:
        """B pictures, or their regions, to word indices (B,T) int64, 0 after the description."""
        ...


@runtime_checkable
class Tagger(Protocol):
    """A part that gives each word of a narrative a class: judged by whether it is the one that it was taught."""

    def tag(self, nets: Nets, batch: Batch) -> Tensor:
        """(B,T) int64, the likeliest class at each piece of `batch.tagged`; of no meaning where no word begins."""
        ...


@runtime_checkable
class Comparer(Protocol):
    """A part that says which patches go together: judged by whether those of one picture are nearer to each other."""

    def compare(self, nets: Nets, batch: Batch) -> tuple[Tensor, Tensor]:
        """Squared distances (P,) of two patches of one picture, and (P,) of the first and a patch of another
        picture."""
        ...


@runtime_checkable
class Finder(Protocol):
    """A part that finds objects: judged by whether it finds those that were annotated."""

    def find(self, nets: Nets, images: Tensor) -> "list[Detections]":
        """Pictures (B,3,H,W), as training shows them, to what was found in each."""
        ...
