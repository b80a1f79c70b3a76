"""TReCS's dual encoder: narratives and pictures in one space, so that a narrative finds pictures to borrow masks from.

Koh et al., "Text-to-Image Generation Grounded by Fine-Grained User Attention", WACV 2021, section 2.2 and figure 5. It
was trained with the code of Parekh et al., "Crisscrossed Captions", 2021: "released" below is that code and its recipe.

Not built: the random crops (of two thirds of the area at least) and colour jitter of the released training, and the
central crop of its evaluation: pictures are whole, squashed to a square and mirrored. Nor the training on Conceptual
Captions that comes first in the paper.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.attngan.damsm import evaluating
from models.blocks.noise import drop
from models.contract import (
    NOTHING,
    AdamSettings,
    Batch,
    Given,
    Nets,
    Objective,
    Phase,
    Settings,
    StepContext,
    TextFeatures,
    Trainable,
)
from models.encoders.trunk import RANDOM, EfficientNetLite0, ImageTrunk, ImageTrunkSettings
from models.losses.contrastive import margin_contrast
from models.losses.damsm import same_class
from models.precision import at_least_float32

TEXT, IMAGE, TRUNK = "text", "image", "trunk"
HEADROOM = 2.0
"""Embeddings may be so many times longer than the longest of training, and are still compared exactly."""


class DualEncoderConfig(Settings):
    """Both towers, their loss and their training."""

    text_dim: int = Field(
        768, ge=1, description="width of the frozen BERT's features (figure 5; 768 is BERT base's, which is not named)"
    )
    layers: int = Field(1, ge=1, description="transformer layers over the features (section 2.2: 1; released: 3)")
    heads: int = Field(8, ge=1, description="attention heads of each (section 2.2: 8)")
    hidden_dim: int = Field(
        128,
        ge=1,
        description="width of their feed-forward layers: section 2.2 has a hidden dimension of 128, and in the code "
        "that it used a transformer's hidden_dim is this width (released: 3072)",
    )
    transformer_dim: int = Field(
        768,
        ge=1,
        description="width of the transformer, to which features are mapped first: not given (released: 768). For 128 "
        "as this width, set transformer_dim=128 and hidden_dim=512",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share dropped of what each sub-layer adds; not given (released: none)"
    )
    pooling: Literal["cls", "mean"] = Field(
        "cls", description='a narrative\'s vector: "cls" at its first token (released), or the "mean" of its tokens'
    )
    joint_dim: int = Field(2048, ge=1, description="width of the joint space (section 2.2)")
    trunk: ImageTrunkSettings = Field(
        ImageTrunkSettings(),
        description="the pretrained net of the pictures: Inception-v3 (section 2.2). It stays in evaluation mode; the "
        "released training lets its batch-norm statistics drift",
    )
    fine_tuned: bool = Field(
        True, description="whether the pictures' net is trained further (section 2.2), or stays as it is, which is fast"
    )
    resolution: int = Field(
        299,
        ge=32,
        description="side of the pictures it is shown, which the trunk resizes to its own (Inception-v3: 299)",
    )
    similarity: Literal["dot", "cosine"] = Field(
        "dot", description='what a picture and a narrative score: "dot" (released) or "cosine" times `scale`'
    )
    scale: float = Field(
        30.0,
        gt=0,
        description='of the "cosine" alone, whose softmax would be flat without; not given: that of Wang et al., '
        '"Additive Margin Softmax for Face Verification", 2018',
    )
    margin: float = Field(
        0.0,
        ge=0,
        description="taken off the score of true pairs, or off their cosine before it is scaled. The paper says "
        "softmax margin loss and gives no value, which is open; released: no margin",
    )
    mask_same_image: bool = Field(
        True,
        description="whether other narratives of a picture in the batch are neither true nor false for it (released: "
        "left to the data set); off, they are false",
    )
    optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=1e-4, beta_1=0.9, beta_2=0.999, decay=0.998, gradient_norm=1.0),
        description="of each tower (released rates and norm, there of both towers' gradient as one). decay is for a "
        "pass over the data: released .999 after 1,000 steps of 64, which LN-COCO's 118 thousand pictures make .998",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.transformer_dim % self.heads:
            raise ValueError(
                f"transformer_dim {self.transformer_dim} cannot be divided among {self.heads} heads: make it a "
                f"multiple of {self.heads}"
            )
        return self


class TransformerLayer(nn.Module):
    """Self-attention, then a feed-forward layer with ReLU (Vaswani et al., 2017), each on normalised input and added.

    (B,T,D) to (B,T,D). Normalising first, and not the sum, is not given: it needs no warm-up of the learning rate.
    """

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        width = config.transformer_dim
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.fed = nn.Linear(width, config.hidden_dim), nn.Linear(config.hidden_dim, width)

    def forward(self, h: Tensor, padding: Tensor, noise: Tensor | None = None) -> Tensor:
        """padding: (B,T) bool, not attended to; noise: (B,2*T*D) standard normal numbers for dropout."""
        first, second = (None, None) if noise is None else noise.chunk(2, 1)
        h = h + self._drop(self._attend(self.attention_norm(h), padding), first)
        return h + self._drop(self.fed(F.relu(self.hidden(self.feed_norm(h)))), second)

    def _attend(self, h: Tensor, padding: Tensor) -> Tensor:
        split = self.queries_keys_values(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = split.unbind(0)
        seen = ~padding[:, None, None, :]
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        attended: Tensor = self.attended(found.transpose(1, 2).flatten(2))
        return attended

    def _drop(self, added: Tensor, noise: Tensor | None) -> Tensor:
        if not self.training or self.dropout == 0:
            return added
        return drop(added, self.dropout, noise if noise is None else noise.view_as(added))


class Tower(nn.Module):
    """What both towers have: a map into the joint space, and the length of the longest vector seen in training.

    longest: (), 0 where cosines are compared. See `comparable`.
    """

    longest: Tensor

    def __init__(self, config: DualEncoderConfig, width: int) -> None:
        super().__init__()
        self.similarity = config.similarity
        self.projection = nn.Linear(width, config.joint_dim)
        self.register_buffer("longest", torch.zeros(()))

    @torch.no_grad()
    def remember(self, vectors: Tensor) -> None:
        """Vectors (M,D) of all ranks, in training: each rank remembers the same."""
        if self.similarity == "dot":
            self.longest.copy_(torch.maximum(self.longest, vectors.norm(dim=1).amax().to(self.longest.dtype)))

    def comparable(self, vectors: Tensor, first: bool) -> Tensor:
        """Vectors (B,D) such that inner product, cosine and distance put pictures and narratives in one order: that of
        the trained similarity.

        "cosine": of length 1. "dot": (B,D+2), with two numbers more that make all pictures (`first`) equally long, and
        all narratives too, and change no product: a picture's second and a narrative's first of them are 0. Vectors
        longer than HEADROOM times the longest of training are too long for that: only their product is exact.
        """
        vectors = at_least_float32(vectors)
        if self.similarity == "cosine":
            return F.normalize(vectors, dim=1)
        bound = HEADROOM * self.longest.to(vectors.dtype)
        rest = (bound.square() - vectors.square().sum(1)).clamp_min(0).sqrt()
        more = (rest, torch.zeros_like(rest)) if first else (torch.zeros_like(rest), rest)
        return torch.cat([vectors, torch.stack(more, 1)], 1)


class TextTower(Tower):
    """Features of narratives to the joint space (B,J); builds without the pictures' net."""

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config, config.transformer_dim)
        self.pooling, self.width = config.pooling, config.transformer_dim
        self.input = nn.Linear(config.text_dim, config.transformer_dim)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.transformer_dim)

    def noise_width(self, steps: int) -> int:
        """Standard normal numbers a narrative of `steps` positions needs for dropout."""
        return 2 * len(self.layers) * steps * self.width

    def forward(self, text: TextFeatures, noise: Tensor | None = None) -> Tensor:
        """noise: (B, noise_width(T)), so that the number of workers does not change what is dropped; None: torch's own
        generator decides. What is in padding changes nothing."""
        padding = text.padding()
        h = self.input(text.words.masked_fill(padding[:, :, None], 0))
        parts = [None] * len(self.layers) if noise is None else noise.chunk(len(self.layers), 1)
        for layer, part in zip(self.layers, parts, strict=True):
            h = layer(h, padding, part)
        h = self.norm(h)
        if self.pooling == "cls":
            pooled = h[:, 0]
        else:
            pooled = h.masked_fill(padding[:, :, None], 0).sum(1) / text.lengths[:, None]
        vectors: Tensor = self.projection(pooled)
        return vectors


class ImageTower(Tower):
    """A trunk's pooled vectors (B,F) to the joint space (B,J), with the trunk in it where that is trained."""

    def __init__(self, config: DualEncoderConfig, trunk: ImageTrunk) -> None:
        super().__init__(config, trunk.pooled_dim)
        self.trunk = trunk if config.fine_tuned else None

    def forward(self, pooled: Tensor) -> Tensor:
        vectors: Tensor = self.projection(pooled)
        return vectors


class DualEncoder(Trainable[DualEncoderConfig]):
    """Two towers, trained so that narratives and pictures find each other."""

    name = "dual_encoder"
    title = "TReCS's dual encoder: Text-to-Image Generation Grounded by Fine-Grained User Attention (2021)"
    Config = DualEncoderConfig
    needs = frozenset({"images", "narratives"})
    transform = "xmcgan"
    reads = frozenset({"features"})

    def build(self, config: DualEncoderConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """Trained "text" and "image"; a frozen "trunk" where it is not fine-tuned, else it is in "image".

        Raises WeightsMissing.
        """
        trunk = trainable_trunk(config.trunk) if config.fine_tuned else ImageTrunk(config.trunk)
        towers: dict[str, nn.Module] = {TEXT: TextTower(config), IMAGE: ImageTower(config, trunk)}
        return towers if config.fine_tuned else towers | {TRUNK: trunk}

    def optimizers(self, config: DualEncoderConfig) -> Mapping[str, AdamSettings]:
        return {TEXT: config.optimizer, IMAGE: config.optimizer}

    def text_dim(self, config: DualEncoderConfig) -> int:
        return config.text_dim

    def phases(self, config: DualEncoderConfig) -> Sequence[Phase]:
        """Both towers on one loss, neither seeing the other's step."""

        def losses(nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
            images, text = _required(batch)
            tower = cast(TextTower, nets[TEXT])
            noise = context.noise(tower.noise_width(text.words.shape[1])) if config.dropout > 0 else None
            gather = context.ranks.gather
            pictures, narratives = gather(_look(nets, images)), gather(tower(text, noise))
            cast(ImageTower, nets[IMAGE]).remember(pictures)
            tower.remember(narratives)
            objective = retrieval_objective(config, pictures, narratives, gather(batch.image_ids))
            return {TEXT: objective, IMAGE: objective}

        return [Phase("retrieval", (TEXT, IMAGE), losses)]

    def embed_images(self, nets: Nets, images: Tensor) -> Tensor:
        """Pictures (B,3,H,W) in [-1, 1] to float32 (B,D), see `Tower.comparable`. Nets are in evaluation mode for it,
        and no gradient is kept."""
        tower = cast(ImageTower, nets[IMAGE])
        with torch.no_grad(), evaluating(tower):
            return tower.comparable(_look(nets, images), first=True)

    def embed_captions(self, nets: Nets, text: TextFeatures) -> Tensor:
        """B narratives to float32 (B,D), see `Tower.comparable`. Reads "text" alone."""
        tower = cast(TextTower, nets[TEXT])
        with torch.no_grad(), evaluating(tower):
            return tower.comparable(tower(text), first=False)

    def embed(self, nets: Nets, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,D) of `batch.images` and (B,D) of `batch.text`: the cosine ranks as the trained similarity does."""
        images, text = _required(batch)
        return self.embed_images(nets, images), self.embed_captions(nets, text)


def retrieval_objective(
    config: DualEncoderConfig, pictures: Tensor, narratives: Tensor, image_ids: Tensor
) -> Objective:
    """`margin_contrast` of the pictures (M,J) and narratives (M,J) of all ranks; image_ids: (M,) int64."""
    with torch.autocast(pictures.device.type, enabled=False):
        pictures, narratives = at_least_float32(pictures), at_least_float32(narratives)
        margin = config.margin
        if config.similarity == "cosine":
            pictures, narratives = (F.normalize(vectors, dim=1) for vectors in (pictures, narratives))
            pictures, margin = config.scale * pictures, config.scale * margin
        excluded = same_class(image_ids) if config.mask_same_image else None
        contrast = margin_contrast(pictures @ narratives.t(), margin, excluded)
    terms = {"retrieval": contrast.loss.detach(), "retrieval_accuracy": contrast.accuracy}
    return Objective(contrast.loss, terms)


def trainable_trunk(settings: ImageTrunkSettings) -> ImageTrunk:
    """The pretrained net with parameters that learn; on "meta" it has them too. Raises WeightsMissing."""
    if torch.empty(0).device.type == "meta":
        # There a trunk is empty, as frozen nets are: made untrained elsewhere, this one's size is known.
        with torch.device("cpu"):
            trunk = ImageTrunk(settings.model_copy(update={"weights": RANDOM})).to("meta")
    else:
        trunk = ImageTrunk(settings)
    if isinstance(trunk.net, EfficientNetLite0):
        # The classifier, which no loss reaches.
        trunk.net.net._fc = nn.Identity()
    trunk.net.requires_grad_(True)
    return trunk


def _look(nets: Nets, images: Tensor) -> Tensor:
    """Pictures (B,3,H,W) to (B,J), by the trunk wherever it is."""
    tower = cast(ImageTower, nets[IMAGE])
    trunk = nets[TRUNK] if tower.trunk is None else tower.trunk
    vectors: Tensor = tower(trunk(images).pooled)
    return vectors


def _required(batch: Batch) -> tuple[Tensor, TextFeatures]:
    assert batch.images is not None and batch.text is not None
    return batch.images, batch.text
