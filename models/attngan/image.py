"""AttnGAN's image encoder: two linear maps on a frozen trunk, into the space of the text features (section 3.2)."""

from torch import Tensor, nn

from models.encoders.trunk import ImageTrunk, TrunkFeatures
from models.losses.damsm import PictureEmbedding


class PictureEncoder(nn.Module):
    """A frozen trunk's features in the text features' space, part by part.

    The trunk is a net of its own, so that what is trained and saved here is trained here. bias: of the regions' map.
    """

    def __init__(self, trunk: ImageTrunk, text_dim: int, bias: bool = False) -> None:
        super().__init__()
        self.region_proj = nn.Conv2d(trunk.region_dim, text_dim, 1, bias=bias)
        self.pooled_proj = nn.Linear(trunk.pooled_dim, text_dim)
        nn.init.uniform_(self.region_proj.weight, -0.1, 0.1)
        nn.init.uniform_(self.pooled_proj.weight, -0.1, 0.1)

    def places(self, regions: Tensor) -> Tensor:
        """A trunk's regions (B,C,h,w) to (B,h*w,D)."""
        projected: Tensor = self.region_proj(regions)
        return projected.flatten(2).transpose(1, 2)

    def whole(self, features: TrunkFeatures) -> Tensor:
        """A trunk's pooled vectors (B,F) to whole pictures (B,D)."""
        projected: Tensor = self.pooled_proj(features.pooled)
        return projected


class ImageEncoder(PictureEncoder):
    """All regions and the whole picture; `nn.Sequential(trunk, encoder)` takes pictures."""

    def __init__(self, trunk: ImageTrunk, text_dim: int) -> None:
        super().__init__(trunk, text_dim)

    def forward(self, features: TrunkFeatures) -> PictureEmbedding:
        """Regions (B,C,h,w) to (B,h*w,D), pooled (B,F) to (B,D)."""
        return PictureEmbedding(self.places(features.regions), self.whole(features))
