"""CC-FPSE's discriminator: a feature pyramid of the picture alone, judged at three scales by itself and by how it fits
the label map (section 3.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.label_maps import label_channels
from models.blocks.semantic import StoredSpectralConv2d, initialise
from models.losses.feature_matching import ScaleJudgement
from models.spade.config import SpadeConfig

LEVELS = 5
WIDEST = 8
SCALES = 3
MATCHED = LEVELS - 1
"""Maps that a generator is to match: all but the first convolution's."""


class PictureConvolution(nn.Module):
    """Convolution with spectral norm, instance norm (so no bias), leaky ReLU."""

    def __init__(self, width: int, out: int, side: int, stride: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.conv = StoredSpectralConv2d(width, out, side, stride=stride, padding=side // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        # One pixel is its own mean; torch's instance norm refuses it in place of giving 0.
        h = h - h if h.shape[2:].numel() == 1 else F.instance_norm(h)
        return F.leaky_relu(h, self.slope)


class Discriminator(nn.Module):
    """Logits of patches of 4, 8 and 16 pixels' stride, and the maps that a generator is to match.

    Five 3x3 convolutions of stride 2; from the coarsest map back up, each is doubled (bilinear) and added to a 1x1
    convolution of the finer one; a 3x3 convolution of each of the three finest gives features. A logit is a 1x1
    convolution of the features plus the inner product of another one with the label map's embedding there.
    """

    def __init__(self, config: SpadeConfig, classes: int) -> None:
        super().__init__()
        channels, slope = config.discriminator_channels, config.discriminator_slope
        embedded, pyramid = 2 * channels, 4 * channels
        widths = [3, *(channels * min(1 << level, WIDEST) for level in range(LEVELS))]

        def layer(width: int, out: int, side: int, stride: int = 1) -> PictureConvolution:
            return PictureConvolution(width, out, side, stride, slope)

        self.down = nn.ModuleList([layer(width, widths[level + 1], 3, 2) for level, width in enumerate(widths[:-1])])
        self.laterals = nn.ModuleList([layer(width, pyramid, 1) for width in widths[-MATCHED:]])
        self.heads = nn.ModuleList([layer(pyramid, embedded, 3) for _ in range(SCALES)])
        self.real_fake = nn.Conv2d(embedded, 1, 1)
        self.feature_proj = nn.Conv2d(embedded, embedded, 1)
        self.label_embedding = nn.Conv2d(label_channels(classes), embedded, 1)
        initialise(self, config.init_gain)

    def forward(self, label_map: Tensor, images: Tensor) -> list[ScaleJudgement]:
        """label_map: (B,L,S,S), see `label_input`; images: (B,3,S,S) in [-1, 1], S a multiple of 32; the finest scale
        first. Each scale's feature is the strided convolution's map of its size; the coarsest has the next one too."""
        maps = [images]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        maps = maps[-MATCHED:]
        laterals = [lateral(found) for lateral, found in zip(self.laterals, maps, strict=True)]
        pyramid = [laterals.pop()]
        for lateral in reversed(laterals):
            pyramid.append(F.interpolate(pyramid[-1], scale_factor=2, mode="bilinear", align_corners=False) + lateral)
        # The 1x1 convolution of averages is the average of its results, at a sixteenth of the cost.
        embedding = self.label_embedding(F.avg_pool2d(label_map.to(images.dtype), 4))
        judgements = []
        for scale, head in enumerate(self.heads):
            if scale:
                embedding = F.avg_pool2d(embedding, 2)
            features = head(pyramid[-1 - scale])
            logits = self.real_fake(features) + (self.feature_proj(features) * embedding).sum(1, keepdim=True)
            judgements.append(ScaleJudgement(logits, tuple(maps[scale : scale + 1 + (scale == SCALES - 1)])))
        return judgements
