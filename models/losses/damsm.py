"""DAMSM: how well pictures and captions match, word by word and as a whole (AttnGAN, section 3.2).

All pairs of the whole batch are scored at once; with several ranks each scores its own pictures against every caption,
and only the scores travel. Everything is computed in float32 or, given it, float64.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from models.contract import Settings, TextFeatures
from models.losses.contrastive import PADDING_LOGIT, contrast_scores, log_sum_over_words, region_contexts
from models.parallel import OneRank, Ranks
from models.precision import at_least_float32

EPSILON = 1e-8
# Entries of the table of one block of pictures by all words: more leave a processor's cache, fewer make more kernels.
BLOCK_ELEMENTS = 2**21


class MatchingSettings(Settings):
    """The temperatures of DAMSM, and which pairs count as false."""

    gamma_1: float = Field(
        4.0, gt=0, description="sharpness of a word's attention over regions (AttnGAN, equation 8; released: 4)"
    )
    gamma_2: float = Field(
        5.0, gt=0, description="weight of the best-matching word (AttnGAN, equation 10; released: 5)"
    )
    gamma_3: float = Field(
        10.0, gt=0, description="smoothing factor of the softmax over pairs (AttnGAN, equation 11; released: 10)"
    )
    gamma2_root: bool = Field(
        False,
        description="take the power 1/gamma_2 of the sum over words: AttnGAN's equation 10 and CPGAN's equation 19 do, "
        "the released code does not, which makes its scores gamma_2 times as sharp",
    )
    mask_same_class: bool = Field(
        True,
        description="pairs of the same class other than the true one take no part (released, with CUB's classes; "
        "elsewhere the class is the picture)",
    )


@dataclass(frozen=True, slots=True)
class PictureEmbedding:
    """What an image encoder says of B pictures: regions (B,R,D) and the whole (B,D).

    absent: (B,R) bool, True where a picture has no such region, never everywhere in one; None: all are there.
    """

    regions: Tensor
    whole: Tensor
    absent: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """The four cross-entropies (scalars), their sum, and retrieval accuracies in [0, 1], detached."""

    words_image_to_text: Tensor
    words_text_to_image: Tensor
    sentence_image_to_text: Tensor
    sentence_text_to_image: Tensor
    word_accuracy: Tensor
    sentence_accuracy: Tensor

    @property
    def loss(self) -> Tensor:
        """L_DAMSM (AttnGAN, equation 13)."""
        words = self.words_image_to_text + self.words_text_to_image
        return words + self.sentence_image_to_text + self.sentence_text_to_image

    def terms(self, name: str = "damsm") -> dict[str, Tensor]:
        """Everything by name, detached."""
        return {
            f"{name}_word": (self.words_image_to_text + self.words_text_to_image).detach(),
            f"{name}_sentence": (self.sentence_image_to_text + self.sentence_text_to_image).detach(),
            f"{name}_word_accuracy": self.word_accuracy,
            f"{name}_sentence_accuracy": self.sentence_accuracy,
        }


def word_region_attention(products: Tensor, padding: Tensor, gamma_1: float, absent: Tensor | None = None) -> Tensor:
    """Weights of a word over regions: softmax over WORDS of the dot products, then over regions of gamma_1 times that.

    products: (...,T,R); padding: (...,T) bool; absent: (...,R) bool, see `PictureEmbedding`. AttnGAN, equations 8 and
    9; CPGAN, equations 16 and 17. Returns (...,T,R).
    """
    over_words = products.masked_fill(padding[..., None], PADDING_LOGIT).softmax(-2)
    logits = gamma_1 * over_words
    return (logits if absent is None else logits.masked_fill(absent[..., None, :], PADDING_LOGIT)).softmax(-1)


def own_attention(
    regions: Tensor, words: Tensor, padding: Tensor, gamma_1: float, absent: Tensor | None = None
) -> Tensor:
    """Attention (B,T,R) of each caption over its own picture, zero at padding: for looking at.

    regions: (B,R,D); words: (B,T,D); padding: (B,T) bool; absent: (B,R) bool, see `PictureEmbedding`.
    """
    weights = word_region_attention(words @ regions.transpose(1, 2), padding, gamma_1, absent)
    return weights.masked_fill(padding[:, :, None], 0.0)


def word_scores(
    regions: Tensor, words: Tensor, padding: Tensor, settings: MatchingSettings, absent: Tensor | None = None
) -> Tensor:
    """gamma_3 R(Q, D) of every picture with every caption (AttnGAN, equations 7 to 11; CPGAN, 15 to 20).

    regions: (M,R,D); words: (N,T,D); padding: (N,T) bool; absent: (M,R) bool, see `PictureEmbedding`. Returns (M,N).
    Similarities are un-normalised dot products; each word is compared with its region context by the cosine.

    Padding costs nothing: the captions are put in order of length, and only their K words are kept.
    """
    with torch.autocast(regions.device.type, enabled=False):
        regions, words = at_least_float32(regions), at_least_float32(words)
        lengths, order = (~padding).sum(1).sort(stable=True)
        words, padding = words[order], padding[order]
        words = words[~padding]  # K,D
        groups = list(Counter(lengths.tolist()).items())
        size = max(1, BLOCK_ELEMENTS // (len(words) * regions.shape[1]))
        blocks = torch.split(regions, size)
        hidden = [None] * len(blocks) if absent is None else torch.split(absent, size)
        cosines = torch.cat(
            [
                _word_cosines(block, words, groups, settings.gamma_1, missing)
                for block, missing in zip(blocks, hidden, strict=True)
            ]
        )
        logits = log_sum_over_words(settings.gamma_2 * cosines, padding)[:, order.argsort()]
        return logits * (settings.gamma_3 / settings.gamma_2 if settings.gamma2_root else settings.gamma_3)


def _word_cosines(
    regions: Tensor, words: Tensor, groups: list[tuple[int, int]], gamma_1: float, absent: Tensor | None
) -> Tensor:
    """Of K words with their region contexts in M pictures: (K,D) and (M,R,D) to (M,K).

    groups: (length, count) of captions of one length, whose words follow one another; absent: (M,R).
    """
    pictures, count = regions.shape[:2]
    table = words @ regions.flatten(0, 1).t()  # K,M*R: each caption's words are one piece of memory
    pieces = torch.split(table, [length * captions for length, captions in groups])
    over_words = [
        piece.view(captions, length, -1).softmax(1).view_as(piece)
        for piece, (length, captions) in zip(pieces, groups, strict=True)
    ]
    logits = (gamma_1 * torch.cat(over_words)).view(-1, pictures, count)
    if absent is not None:
        logits = logits.masked_fill(absent, PADDING_LOGIT)
    weights = logits.softmax(2).transpose(0, 1)
    products = table.view(-1, pictures, count).transpose(0, 1)
    product, length = region_contexts(weights, products, words, regions)
    return product / (length * words.norm(dim=1)).clamp_min(EPSILON)


def sentence_scores(whole: Tensor, sentence: Tensor, gamma_3: float) -> Tensor:
    """gamma_3 cos(whole_i, sentence_j): (M,D) and (N,D) to (M,N) (AttnGAN, section 3.2)."""
    with torch.autocast(whole.device.type, enabled=False):
        whole, sentence = at_least_float32(whole), at_least_float32(sentence)
        lengths = whole.norm(dim=1)[:, None] * sentence.norm(dim=1)[None, :]
        return gamma_3 * (whole @ sentence.t()) / lengths.clamp_min(EPSILON)


def matching_losses(
    pictures: PictureEmbedding,
    text: TextFeatures,
    settings: MatchingSettings,
    class_ids: Tensor | None = None,
    ranks: Ranks | None = None,
) -> Matching:
    """DAMSM's losses of B pictures and their captions, against those of all ranks.

    class_ids: (B,) int64, read when `settings.mask_same_class`; None masks nothing.
    """
    gather = (ranks or OneRank()).gather
    excluded = None
    if class_ids is not None and settings.mask_same_class:
        excluded = same_class(gather(class_ids))
    by_word = gather(
        word_scores(pictures.regions, gather(text.words), gather(text.padding()), settings, pictures.absent)
    )
    by_sentence = sentence_scores(gather(pictures.whole), gather(text.sentence), settings.gamma_3)
    (word_1, word_2), (sentence_1, sentence_2) = (
        [contrast_scores(scores, "image_to_text", excluded) for scores in (table, table.t())]
        for table in (by_word, by_sentence)
    )
    return Matching(
        word_1.loss,
        word_2.loss,
        sentence_1.loss,
        sentence_2.loss,
        (word_1.accuracy + word_2.accuracy) / 2,
        (sentence_1.accuracy + sentence_2.accuracy) / 2,
    )


def same_class(class_ids: Tensor) -> Tensor:
    """(M,M) bool: pairs of one class, other than the true pairs on the diagonal."""
    same = class_ids[:, None] == class_ids[None, :]
    return same.fill_diagonal_(False)
