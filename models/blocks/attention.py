"""Attention of picture regions over words, as AttnGAN and the systems built on it use it."""

import torch
from torch import Tensor, nn

from models.losses.contrastive import PADDING_LOGIT


def interleaved_padding(padding: Tensor, regions: int) -> Tensor:
    """The padding that the released AttnGAN code applies: region q of sample b gets the padding of another sample.

    padding: (B,T) bool. The code tiles the masks with samples innermost and the logits with regions innermost, so row
    r = b * regions + q meets the mask of sample r mod B. Returns (B,regions,T). MirrorGAN's, CPGAN's and DM-GAN's
    released code does the same; published weights were trained so.
    """
    batch = padding.shape[0]
    rows = torch.arange(batch * regions, device=padding.device) % batch
    return padding[rows].view(batch, regions, -1)


def attend(queries: Tensor, words: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """For each query a mean of words, weighted by softmax over words of un-scaled dot products.

    queries: (B,C,Q); words: (B,T,C); hidden: (B,T,1) or (B,T,Q) bool, True where a word does not count. Returns the
    means (B,C,Q) and the weights (B,T,Q).
    """
    # Words first: the result then needs no transposition back to maps.
    weights = (words @ queries).masked_fill(hidden, PADDING_LOGIT).softmax(1)
    return words.transpose(1, 2) @ weights.to(words.dtype), weights


class WordAttention(nn.Module):
    """For each region a mean of projected words, weighted by softmax over words of un-scaled dot products.

    AttnGAN, equation 2; MirrorGAN, equation 4. `legacy_mask` repeats the released code's fault, see
    `interleaved_padding`.
    """

    def __init__(self, channels: int, text_dim: int, legacy_mask: bool = False) -> None:
        super().__init__()
        self.legacy_mask = legacy_mask
        self.word_proj = nn.Linear(text_dim, channels, bias=False)

    def forward(self, h: Tensor, words: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """h: (B,C,H,W), words: (B,T,D), padding: (B,T) bool. Returns the context (B,C,H,W) and weights (B,T,H,W)."""
        height, width = h.shape[2:]
        projected = self.word_proj(words)
        if self.legacy_mask:
            hidden = interleaved_padding(padding, height * width).transpose(1, 2)
        else:
            hidden = padding[:, :, None]
        context, weights = attend(h.flatten(2), projected, hidden)
        return context.view(len(h), -1, height, width), weights.view(len(h), -1, height, width)
