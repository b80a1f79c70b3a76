"""Adversarial losses: the hinge loss of one logit (XMC-GAN, section 3.2), and those of a cascade's two heads.

All logits are taken in float32 or, given it, float64.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import at_least_float32

AdversarialForm = Literal["bce", "hinge"]
Mean = Callable[[Tensor], Tensor]
"""What stands for E, any shape to (): `mean_over_ranks` where ranks have different numbers, such as of objects."""


def mean_of_all(values: Tensor) -> Tensor:
    """The plain mean, right where every rank has as many."""
    return values.mean()


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E relu(1 - D(x)) + E relu(1 + D(G(z))): exactly the paper's -E min(0, -1 + D(x)) - E min(0, -1 - D(G(z)))."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def hinge_generator(fake_logits: Tensor) -> Tensor:
    """-E D(G(z))."""
    return -fake_logits.mean()


def real_term(logits: Tensor, form: AdversarialForm, mean: Mean = mean_of_all) -> Tensor:
    """What a discriminator pays for real pictures: -E log sigmoid(D) ("bce") or E relu(1 - D) ("hinge")."""
    logits = at_least_float32(logits)
    return mean(F.softplus(-logits) if form == "bce" else F.relu(1 - logits))


def fake_term(logits: Tensor, form: AdversarialForm, mean: Mean = mean_of_all) -> Tensor:
    """What a discriminator pays for fakes: -E log(1 - sigmoid(D)) ("bce") or E relu(1 + D) ("hinge")."""
    logits = at_least_float32(logits)
    return mean(F.softplus(logits) if form == "bce" else F.relu(1 + logits))


def fooling_term(logits: Tensor, form: AdversarialForm, mean: Mean = mean_of_all) -> Tensor:
    """What a generator pays for its pictures: -E log sigmoid(D) ("bce") or -E D ("hinge")."""
    logits = at_least_float32(logits)
    return mean(F.softplus(-logits) if form == "bce" else -logits)


def discriminator_loss(real: list[Tensor], fake: list[Tensor], form: AdversarialForm) -> Tensor:
    """The mean of the real terms plus the mean of the fake terms, one a head.

    real: unconditional and conditional logits. fake: unconditional, conditional and, where real pictures are shown
    with another sentence, mismatched logits. So the weights are 1/2 and 1/3 (released AttnGAN; CPGAN, equation 5), or
    1/2 and 1/2 without mismatched pairs (AttnGAN, equation 6; MirrorGAN, equation 10).
    """
    real_terms = torch.stack([real_term(logits, form) for logits in real])
    fake_terms = torch.stack([fake_term(logits, form) for logits in fake])
    return real_terms.mean() + fake_terms.mean()


def generator_loss(heads: list[Tensor], form: AdversarialForm, terms: Literal["sum", "mean"]) -> Tensor:
    """One term a head, of its logits of the generator's pictures: their sum (released AttnGAN), or their mean (AttnGAN,
    equation 5; MirrorGAN, equation 7; CPGAN, equation 4)."""
    paid = torch.stack([fooling_term(logits, form) for logits in heads])
    return paid.sum() if terms == "sum" else paid.mean()


def condition_kl(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of N(mu, sigma) from N(0, I), as a MEAN over samples and dimensions (released AttnGAN).

    mu, log_variance: (B,K). StackGAN's regulariser (section 3.2) is the divergence itself: K times this.
    """
    mu, log_variance = at_least_float32(mu), at_least_float32(log_variance)
    return -0.5 * (1 + log_variance - mu.square() - log_variance.exp()).mean()
