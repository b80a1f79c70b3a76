"""What discriminators of several scales say, and what they and generators pay for it: hinge losses over scales, and
the distance of the discriminator's own maps (SPADE and CC-FPSE, released)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contract import Objective
from models.losses.adversarial import fake_term, fooling_term, real_term
from models.precision import at_least_float32


@dataclass(frozen=True, slots=True)
class ScaleJudgement:
    """What a discriminator says of B pictures at one scale.

    logits: (B,1,h,w), one a patch; features: the maps before it, (B,C,h,w) each.
    """

    logits: Tensor
    features: tuple[Tensor, ...]

    def halves(self) -> "tuple[ScaleJudgement, ScaleJudgement]":
        """Of the first and of the last B/2 pictures."""
        first, last = self.logits.chunk(2)
        maps = [features.chunk(2) for features in self.features]
        return ScaleJudgement(first, tuple(one for one, _ in maps)), ScaleJudgement(last, tuple(two for _, two in maps))


Judgement = Sequence[ScaleJudgement]


def over_scales(judgement: Judgement, term: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean over scales of a term of their logits, each the mean over its own patches."""
    return torch.stack([term(scale.logits) for scale in judgement]).mean()


def hinge_fooling(fake: Judgement) -> Tensor:
    """What a generator pays for its pictures: -E D, mean over scales."""
    return over_scales(fake, lambda logits: fooling_term(logits, "hinge"))


def discriminator_objective(real: Judgement, fake: Judgement) -> Objective:
    """E relu(1 - D(x)) + E relu(1 + D(G)), each the mean over scales."""
    terms = {
        "real": over_scales(real, lambda logits: real_term(logits, "hinge")),
        "fake": over_scales(fake, lambda logits: fake_term(logits, "hinge")),
    }
    return Objective(terms["real"] + terms["fake"], {name: term.detach() for name, term in terms.items()})


def feature_matching(fake: Judgement, real: Judgement) -> Tensor:
    """The mean absolute difference of each map of drawn and real pictures, summed over the maps, mean over scales.

    No gradient flows to the real ones: they are what the others should be.
    """
    distances = [
        torch.stack(
            [
                F.l1_loss(at_least_float32(one), at_least_float32(other.detach()))
                for one, other in zip(drawn.features, shown.features, strict=True)
            ]
        ).sum()
        for drawn, shown in zip(fake, real, strict=True)
    ]
    return torch.stack(distances).mean()
