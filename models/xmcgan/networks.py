"""The two networks of XMC-GAN (section 4.2, 4.3, figure 6, table 8)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.norm import AttentionalSelfModulation, SelfModulation
from models.blocks.spectral import SpectralConv2d, SpectralLinear
from models.contract import TextFeatures
from models.losses.contrastive import PADDING_LOGIT
from models.xmcgan.config import XMCGANConfig


def attend_to_words(
    regions: Tensor, words: Tensor, padding: Tensor, rho_0: float, values: str
) -> tuple[Tensor, Tensor]:
    """Word context of each region: sum_i softmax_i(rho_0 cos(e_wi, h_j)) e_wi (XMC-GAN, section 4.2).

    regions: (B,R,D); words: (B,T,D); padding: (B,T) bool. "raw" averages the words (paper), "normalised" the
    unit-length words (released code). Returns the context (B,R,D) and the attention (B,R,T).
    """
    unit_words = F.normalize(words, dim=2, eps=1e-12)
    similarity = F.normalize(regions, dim=2, eps=1e-12) @ unit_words.transpose(1, 2)
    attention = (rho_0 * similarity).masked_fill(padding[:, None, :], PADDING_LOGIT).softmax(2)
    return attention @ (unit_words if values == "normalised" else words), attention


class UpBlock(nn.Module):
    """Residual block that doubles the side: norm, ReLU, up, conv, norm, ReLU, conv; shortcut up, 1x1 conv (fig. 6b)."""

    def __init__(
        self,
        norm: type[SelfModulation] | type[AttentionalSelfModulation],
        width: int,
        out: int,
        condition: int,
        scope: str,
    ) -> None:
        super().__init__()
        self.cbn1 = norm(width, condition, scope)  # type: ignore[arg-type]
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.cbn2 = norm(out, condition, scope)  # type: ignore[arg-type]
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B,C,H,W) to (B,out,2H,2W)."""
        h = self.conv1(_double(F.relu(self.cbn1(x, condition))))
        h = self.conv2(F.relu(self.cbn2(h, condition)))
        # A 1x1 convolution commutes with nearest upsampling: a quarter of the work, the same numbers.
        return h + _double(self.shortcut(x))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Generator(nn.Module):
    """One-stage generator with self-modulation up to 16x16 and attentional self-modulation above (table 8a)."""

    def __init__(self, config: XMCGANConfig) -> None:
        super().__init__()
        self.config = config
        widths = [width * config.channels for width in config.generator_widths]
        attentional = config.modulation == "attentional"
        global_dim = config.sentence_dim + config.noise_dim
        local_dim = global_dim + config.text_dim

        self.sentence_proj = nn.Linear(config.text_dim, config.sentence_dim)
        first_dim = config.noise_dim if config.first_layer == "noise" else global_dim
        self.noise_linear = nn.Linear(first_dim, 4 * 4 * widths[0])

        self.blocks = nn.ModuleList()
        self.attention_queries = nn.ModuleList()
        for index, (width, out) in enumerate(pairwise([widths[0], *widths])):
            local = attentional and index >= 2
            norm = AttentionalSelfModulation if local else SelfModulation
            self.blocks.append(UpBlock(norm, width, out, local_dim if local else global_dim, config.batch_norm))
            if local and (index == 2 or config.word_context == "every_block"):
                self.attention_queries.append(nn.Conv2d(width, config.text_dim, 1))
        last_norm = AttentionalSelfModulation if attentional else SelfModulation
        self.final_norm = last_norm(widths[-1], local_dim if attentional else global_dim, config.batch_norm)
        self.to_rgb = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, text: TextFeatures, noise: Tensor) -> Tensor:
        """Noise (B,noise_dim) and text to pictures (B,3,H,W) in [-1, 1]."""
        config = self.config
        condition = torch.cat([self.sentence_proj(text.sentence), noise], 1)
        # The released first layer numbers its outputs row, column, channel.
        first = self.noise_linear(noise if config.first_layer == "noise" else condition)
        h = first.view(len(noise), 4, 4, -1).permute(0, 3, 1, 2).contiguous()
        for index, block in enumerate(self.blocks):
            if config.modulation == "attentional" and index >= 2:
                query = index - 2
                if query < len(self.attention_queries):
                    local = self._local_condition(self.attention_queries[query], h, text, condition)
                h = block(h, local)
            else:
                h = block(h, condition)
        h = self.final_norm(h, local if config.modulation == "attentional" else condition)
        return torch.tanh(self.to_rgb(F.relu(h)))

    def _local_condition(self, query: nn.Module, h: Tensor, text: TextFeatures, condition: Tensor) -> Tensor:
        batch, _, height, width = h.shape
        regions = query(h).flatten(2).transpose(1, 2)
        context, _ = attend_to_words(
            regions, text.words, text.padding(), self.config.rho_0, self.config.attention_values
        )
        context = context.transpose(1, 2).reshape(batch, -1, height, width)
        tiled = condition[:, :, None, None].expand(-1, -1, height, width)
        return torch.cat([context, tiled.to(context.dtype)], 1)


class DownBlock(nn.Module):
    """Residual block with spectral norm: ReLU, conv, ReLU, conv, average pool (figure 6c).

    `first`: the block on the image, without the ReLU before and with the pooling before the shortcut's convolution.
    """

    def __init__(self, width: int, out: int, down: bool, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1 = SpectralConv2d(width, out, 3, padding=1)
        self.conv2 = SpectralConv2d(out, out, 3, padding=1)
        self.shortcut = SpectralConv2d(width, out, 1) if down or width != out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) to (B,out,H/2,W/2), or (B,out,H,W) without `down`."""
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        # Pooling and a 1x1 convolution commute, so where the shortcut pools is a matter of cost alone.
        skip = F.avg_pool2d(x, 2) if self.down else x
        if self.shortcut is not None:
            skip = self.shortcut(skip)
        return (F.avg_pool2d(h, 2) if self.down else h) + skip


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the discriminator says of n*B pictures and B sentences.

    logits: (n*B,); features: (n*B,F) for the sentence and image contrastive losses; sentence: (B,F) the projected
    sentences; regions: (n*B,R,text_dim) for the word-region loss.
    """

    logits: Tensor
    features: Tensor
    sentence: Tensor
    regions: Tensor


class Discriminator(nn.Module):
    """Critic and encoder at once: logit, sentence and image features, 16x16 regions (section 4.3, table 8b)."""

    def __init__(self, config: XMCGANConfig) -> None:
        super().__init__()
        widths = [width * config.channels for width in config.discriminator_widths]
        self.blocks = nn.ModuleList([DownBlock(3, widths[0], down=True, first=True)])
        self.region_block = -1
        side = config.resolution // 2
        for index, (width, out) in enumerate(pairwise(widths)):
            if side == config.region_side:
                self.region_block = index
            down = side > 4
            self.blocks.append(DownBlock(width, out, down=down))
            side = side // 2 if down else side
        self.word_proj = SpectralConv2d(widths[self.region_block], config.text_dim, 1)
        self.logit_linear = SpectralLinear(widths[-1], 1)
        self.sentence_proj = SpectralLinear(config.text_dim, widths[-1])
        self.head = nn.Sequential()
        for layer in range(config.head_layers):
            if layer:
                self.head.append(nn.ReLU())
            self.head.append(SpectralLinear(widths[-1], widths[-1]))

    def forward(self, images: Tensor, sentence: Tensor) -> Judgement:
        """Pictures (n*B,3,H,W) in [-1, 1], picture i with sentence i % B of (B,text_dim).

        The released net sees [0, 1]: the shift is made here.
        """
        h = (images + 1) / 2
        regions = h
        for index, block in enumerate(self.blocks):
            h = block(h)
            if index == self.region_block:
                regions = self.word_proj(h).flatten(2).transpose(1, 2)
        pooled = F.relu(h).sum((2, 3))
        projected = self.sentence_proj(sentence)
        tiled = projected.repeat(len(pooled) // len(projected), 1)
        logits = self.logit_linear(pooled).squeeze(1) + (pooled * tiled).sum(1)
        return Judgement(logits, self.head(pooled), projected, regions)
