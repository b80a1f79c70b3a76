"""The object-aware image encoder, OAIE: salient boxes and a grid of places in the text features' space (section
3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attngan.image import ImageEncoder, PictureEncoder
from models.contract import Regions
from models.cpgan.config import ImageEncoderSettings
from models.encoders.trunk import ImageTrunk, TrunkFeatures
from models.losses.damsm import PictureEmbedding


class ObjectAwareImageEncoder(PictureEncoder):
    """Salient boxes, the trunk's map as a grid, and the whole picture; each by a linear map with a bias (equation 10).

    The trunk and what finds boxes are nets of their own. The whole is f of equation 22: the trunk's pooled vector,
    brought to the text features' width by a linear map as in AttnGAN, which the paper does not say.
    """

    def __init__(self, settings: ImageEncoderSettings, trunk: ImageTrunk, text_dim: int) -> None:
        super().__init__(trunk, text_dim, bias=True)
        self.grid_side, self.objects_first = settings.grid_side, settings.order == "objects_first"
        self.object_proj = nn.Linear(settings.region_dim, text_dim)
        nn.init.uniform_(self.object_proj.weight, -0.1, 0.1)

    def forward(self, features: TrunkFeatures, boxes: Regions) -> PictureEmbedding:
        """The trunk's regions (B,C,h,w) and R boxes to (B,R+g*g,D), g at most grid_side; pooled (B,F) to (B,D).

        Places where a picture has no box are absent; of one without any box the grid is left.
        """
        grid = self.places(coarse(features.regions, self.grid_side))
        objects, padding = self.object_proj(boxes.features), boxes.padding()
        regions, absent = [objects, grid], [padding, padding.new_zeros(grid.shape[:2])]
        if not self.objects_first:
            regions, absent = regions[::-1], absent[::-1]
        return PictureEmbedding(torch.cat(regions, 1), self.whole(features), torch.cat(absent, 1))


def coarse(regions: Tensor, side: int) -> Tensor:
    """Maps (B,C,h,w) as maxima over at most `side` places along each side, as released; smaller maps as they are."""
    size = (min(side, regions.shape[2]), min(side, regions.shape[3]))
    return regions if size == regions.shape[2:] else F.adaptive_max_pool2d(regions, size)


def image_encoder(settings: ImageEncoderSettings, trunk: ImageTrunk, text_dim: int) -> PictureEncoder:
    """The object-aware encoder, or AttnGAN's where it is switched off."""
    return ObjectAwareImageEncoder(settings, trunk, text_dim) if settings.oaie else ImageEncoder(trunk, text_dim)
