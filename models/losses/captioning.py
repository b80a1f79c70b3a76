"""How well a captioner's predictions fit the true captions; the same over any number of ranks."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from models.contract import after_counts
from models.parallel import OneRank, Ranks
from models.precision import at_least_float32


def caption_loss(
    logits: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    reduction: Literal["mean", "sum"] = "mean",
    ranks: Ranks | None = None,
) -> Tensor:
    """Cross-entropy of the true words, each given those before it.

    logits: (B,T,V), step t of word t; tokens: (B,T); lengths: (B,), 1 to T. "mean": over all words of all ranks; "sum":
    over a caption's words, then mean over captions.
    """
    ranks = ranks or OneRank()
    each = F.cross_entropy(at_least_float32(logits).transpose(1, 2), tokens, reduction="none")
    total = each.masked_fill(after_counts(lengths, tokens.shape[1]), 0.0).sum()
    if reduction == "sum":
        return total / len(tokens)
    # The mean of this over ranks is the mean over all words, however they are spread.
    return total * ranks.size / ranks.gather(lengths).sum()


def word_accuracy(logits: Tensor, tokens: Tensor, lengths: Tensor, ranks: Ranks | None = None) -> Tensor:
    """Share of true words that are the likeliest given those before them, scalar; shapes as `caption_loss`.

    Its mean over ranks is the share of all words, in [0, 1].
    """
    ranks = ranks or OneRank()
    right = logits.detach().argmax(2) == tokens
    return (right & ~after_counts(lengths, tokens.shape[1])).sum() * ranks.size / ranks.gather(lengths).sum()
