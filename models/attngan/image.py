"""AttnGAN's image encoder: two linear maps on a frozen trunk, into the space of the text features (section 3.2)."""

from torch import nn

from models.encoders.trunk import ImageTrunk, TrunkFeatures
from models.losses.damsm import PictureEmbedding


class ImageEncoder(nn.Module):
    """A frozen trunk's features to regions and a whole picture in the text features' space.

    The trunk is a net of its own, so that what is trained and saved here is trained here; `nn.Sequential(trunk,
    encoder)` takes pictures.
    """

    def __init__(self, trunk: ImageTrunk, text_dim: int) -> None:
        super().__init__()
        self.region_proj = nn.Conv2d(trunk.region_dim, text_dim, 1, bias=False)
        self.pooled_proj = nn.Linear(trunk.pooled_dim, text_dim)
        nn.init.uniform_(self.region_proj.weight, -0.1, 0.1)
        nn.init.uniform_(self.pooled_proj.weight, -0.1, 0.1)

    def forward(self, features: TrunkFeatures) -> PictureEmbedding:
        """Regions (B,C,h,w) to (B,h*w,D), pooled (B,F) to (B,D)."""
        regions = self.region_proj(features.regions).flatten(2).transpose(1, 2)
        return PictureEmbedding(regions, self.pooled_proj(features.pooled))
