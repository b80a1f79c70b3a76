"""InfoNCE losses between pictures, sentences, regions and words (XMC-GAN, section 4.1; TReCS, section 2.2).

All of them take the features of the WHOLE batch (gathered over ranks, with gradient) and are pure functions. They
compute in float32 or, given it, float64, whatever the surrounding precision: a temperature of 0.1 or 0.02 magnifies
rounding.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import at_least_float32

Directions = Literal["both", "image_to_text"]
PADDING_LOGIT = -1e9


@dataclass(frozen=True, slots=True)
class Contrast:
    """A contrastive loss (scalar), its retrieval accuracy in [0, 1] and the entropy of its softmax (nats), detached."""

    loss: Tensor
    accuracy: Tensor
    entropy: Tensor


def contrast_scores(scores: Tensor, directions: Directions = "both", excluded: Tensor | None = None) -> Contrast:
    """Cross-entropy of (M,M) scores whose diagonal holds the true pairs.

    "both" adds the row and the column direction (the released code); "image_to_text" keeps the rows alone (the paper's
    equations: one picture against all sentences). Accuracy and entropy are means over the directions used. `excluded`
    (M,M) bool marks pairs that are neither true nor false, and take no part.
    """
    if excluded is not None:
        scores = scores.masked_fill(excluded, PADDING_LOGIT)
    target = torch.arange(scores.shape[0], device=scores.device)
    ways = [scores, scores.t()] if directions == "both" else [scores]
    log_probabilities = [way.log_softmax(1) for way in ways]
    loss = torch.stack([F.nll_loss(way, target) for way in log_probabilities]).sum()
    with torch.no_grad():
        accuracy = torch.stack([(way.argmax(1) == target).float().mean() for way in log_probabilities]).mean()
        entropy = torch.stack([-(way.exp() * way).sum(1).mean() for way in log_probabilities]).mean()
    return Contrast(loss, accuracy, entropy)


def margin_contrast(scores: Tensor, margin: float = 0.0, excluded: Tensor | None = None) -> Contrast:
    """In-batch softmax with an additive margin, the mean of both directions (TReCS, section 2.2; Yang et al.,
    "Improving Multilingual Sentence Embedding using Bi-directional Dual Encoder with Additive Margin Softmax", 2019).

    scores: (M,M), true pairs on the diagonal; the margin is taken off theirs, so that they must be so much better than
    all others. The released code weighs each direction with one half. Accuracy and entropy are those without margin;
    `excluded` is as in `contrast_scores`.
    """
    plain = contrast_scores(scores, "both", excluded)
    loss = plain.loss
    if margin:
        handicap = margin * torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
        loss = contrast_scores(scores - handicap, "both", excluded).loss
    return Contrast(loss / 2, plain.accuracy, plain.entropy)


def nt_xent(first: Tensor, second: Tensor, tau: float, directions: Directions = "both") -> Contrast:
    """Normalised temperature-scaled cross-entropy: S = cos(first_i, second_j) / tau.

    first, second: (M,D), row i of one belongs to row i of the other. XMC-GAN: L_sent with pictures first, L_img with
    real pictures first.
    """
    with torch.autocast(first.device.type, enabled=False):
        unit_first = F.normalize(at_least_float32(first), dim=1, eps=1e-12)
        unit_second = F.normalize(at_least_float32(second), dim=1, eps=1e-12)
        return contrast_scores(unit_first @ unit_second.t() / tau, directions)


def word_region_scores(
    regions: Tensor,
    words: Tensor,
    padding: Tensor,
    rho_1: float,
    rho_2: float,
    tau: float,
    values: Literal["normalised", "raw"] = "normalised",
) -> Tensor:
    """S_word of every picture with every sentence (XMC-GAN, section 4.1).

    regions: (M,R,D); words: (N,T,D); padding: (N,T) bool. Each word attends over the regions of a picture with
    softmax(rho_1 cos); its region context is the weighted sum of the regions ("raw", the paper) or of the unit-length
    regions ("normalised", the released code); the score is log(sum_t exp(rho_2 cos(w_t, c_t))) / (rho_2 tau).
    The paper uses one tau = 0.1; the released code's factor gamma_3 = 50 is tau = 0.02. Returns (M,N).

    All M*N pairs are a few matrix products: no loop over captions, and no product for padding.
    """
    with torch.autocast(regions.device.type, enabled=False):
        regions, words = at_least_float32(regions), at_least_float32(words)
        unit_regions = F.normalize(regions, dim=2, eps=1e-12)
        unit_words = F.normalize(words[~padding], dim=1, eps=1e-12)  # K,D
        cosines = unit_words @ unit_regions.transpose(1, 2)  # M,K,R
        attention = (rho_1 * cosines).softmax(2)
        # A raw region is its unit vector times its length: the lengths go to the weights.
        weights = attention if values == "normalised" else attention * regions.norm(dim=2)[:, None, :]
        product, length = region_contexts(weights, cosines, unit_words, unit_regions)
        return log_sum_over_words(rho_2 * product / length, padding) / (rho_2 * tau)


def log_sum_over_words(logits: Tensor, padding: Tensor) -> Tensor:
    """log(sum_t exp(logits)) of each caption: (M,K) of the K words that are no padding, in order, to (M,N).

    padding: (N,T) bool, False K times.
    """
    by_caption = logits.new_full((len(logits), *padding.shape), PADDING_LOGIT)
    by_caption[:, ~padding] = logits
    return by_caption.logsumexp(2)


def region_contexts(weights: Tensor, products: Tensor, words: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Each word's product with its region context c = sum_r weights_r regions_r, and the length of c, at least 1e-12.

    weights: (M,K,R) of K words over the R regions of M pictures; products: (M,K,R) dot products of words and regions;
    words: (K,D); regions: (M,R,D). Returns two (M,K).

    With gradients the contexts cost 6KRD multiply-adds, and the regions' Gram matrix, which gives both results without
    them, about 4KRR: it serves where a picture has no more regions than they are wide.
    """
    if regions.shape[1] > regions.shape[2]:
        contexts = weights @ regions
        return (contexts * words).sum(2), contexts.norm(dim=2).clamp_min(1e-12)
    product, length = _RegionContexts.apply(weights, products, regions)  # type: ignore[no-untyped-call]
    return product, length


class _RegionContexts(torch.autograd.Function):
    """By hand, because the tensors are large: the Gram matrix is symmetric, which spares a product of the gradient's,
    and what is cheap to compute again is not kept."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, products: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        product = (weights * products).sum(2)
        length = (weights @ (regions @ regions.transpose(1, 2))).mul_(weights).sum(2).clamp_min_(1e-24).sqrt_()
        ctx.save_for_backward(weights, products, regions, length)
        return product, length

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_product: Tensor, by_length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, products, regions, length = ctx.saved_tensors
        by_product, by_square = by_product[:, :, None], (by_length / length)[:, :, None]
        # length^2 = w' G w, so d length / dw = G w / length and d length / dG = w w' / (2 length).
        grad_weights = weights @ (regions @ regions.transpose(1, 2))
        grad_weights.mul_(by_square).addcmul_(products, by_product)
        grad_gram = (weights * by_square).transpose(1, 2) @ weights
        return grad_weights, weights * by_product, grad_gram @ regions
