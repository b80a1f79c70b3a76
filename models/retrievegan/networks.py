"""RetrieveGAN's generator: a scene graph and candidate patches to a picture (sections 3.2 to 3.4).

The image generation is in the manner of PasteGAN (section 3.4), whose supplement says the rest: each object's patch
becomes a map, joined with the object's vector, put on a canvas by its box; where boxes overlap, the picture's own node
attends to the objects; residual blocks and a refinement network draw.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.cascade import ResidualBlock
from models.blocks.graphs import FlatGraphs, GraphEncoder, Perceptron
from models.blocks.layout import maps_to_layout
from models.blocks.norm import BatchNorm, StatisticsScope
from models.blocks.refinement import RefinementNetwork
from models.contract import Candidates, after_counts
from models.precision import at_least_float32
from models.retrievegan.config import RetrieveGANConfig
from models.retrievegan.retrieval import Selection, mix, retrieve

SLOPE = 0.1  # of leaky ReLU in PasteGAN's crop encoder
LEAST_LOGIT = -30.0  # below a picture's largest: a share of 1e-13
EDGE = 1e-3  # px: an edge so near a pixel's is on it, as in the patch bank


class PatchMaps(nn.Module):
    """Patches (M,3,S,S) to maps (M,4C,S/8,S/8): three 3x3 convolutions of stride 2, each twice as wide (PasteGAN)."""

    def __init__(self, channels: int, scope: StatisticsScope) -> None:
        super().__init__()
        widths = (3, channels, 2 * channels, 4 * channels)
        self.convs = nn.ModuleList([nn.Conv2d(before, after, 3, 2, 1) for before, after in pairwise(widths)])
        self.bns = nn.ModuleList([BatchNorm(width, scope) for width in widths[1:]])

    def forward(self, patches: Tensor) -> Tensor:
        h = patches
        for conv, bn in zip(self.convs, self.bns, strict=True):
            h = F.leaky_relu(bn(conv(h)), SLOPE)
        return h


class PatchEmbedding(nn.Module):
    """E_p: patches (M,3,S,S) to features (M,C) (section 3.3; its layers are not given in the paper)."""

    def __init__(self, channels: int, query_dim: int, scope: StatisticsScope) -> None:
        super().__init__()
        self.maps = PatchMaps(channels, scope)
        self.linear = nn.Linear(4 * channels, query_dim)

    def forward(self, patches: Tensor) -> Tensor:
        features: Tensor = self.linear(self.maps(patches).mean((2, 3)))
        return features


class CropEncoder(nn.Module):
    """Patches (M,3,S,S) to the maps (M,D,S/8,S/8) that are drawn with (PasteGAN)."""

    def __init__(self, channels: int, crop_dim: int, scope: StatisticsScope) -> None:
        super().__init__()
        self.maps = PatchMaps(channels, scope)
        self.out_conv, self.out_bn = nn.Conv2d(4 * channels, crop_dim, 1), BatchNorm(crop_dim, scope)

    def forward(self, patches: Tensor) -> Tensor:
        return F.leaky_relu(self.out_bn(self.out_conv(self.maps(patches))), SLOPE)


class CanvasFuser(nn.Module):
    """Objects' vectors and maps to one map (B,D+C,s,s): each object fills its box, and where several do, the picture's
    node says how much of each (PasteGAN's object-image fuser).

    The node fills the whole canvas itself, so that no place is empty.
    """

    def __init__(self, width: int, side: int, align_corners: bool) -> None:
        super().__init__()
        self.side, self.align_corners = side, align_corners
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, vectors: Tensor, maps: Tensor, boxes: Tensor, flat: FlatGraphs) -> Tensor:
        """vectors: (O,D); maps: (R,C,m,m) of the R objects that are no picture's node; boxes: (O,4)."""
        count = flat.pictures_count
        nodes = torch.empty_like(flat.pictures[:count]).index_put(
            (flat.pictures[~flat.objects],), (~flat.objects).nonzero().squeeze(1)
        )
        asked = self.query(vectors[nodes])[flat.pictures]
        logits = at_least_float32((asked * self.key(vectors)).sum(1)) / vectors.shape[1] ** 0.5
        largest = logits.detach().new_full((count,), -torch.inf)
        largest = largest.scatter_reduce(0, flat.pictures, logits.detach(), "amax")
        # Where nobody else is the node is all there is, and what it is divided by must not vanish.
        weights = (logits - largest[flat.pictures]).clamp(min=LEAST_LOGIT).exp()
        own = maps.new_zeros(len(vectors), *maps.shape[1:]).index_put((flat.objects.nonzero().squeeze(1),), maps)
        spread = vectors.to(maps.dtype)[:, :, None, None].expand(-1, -1, *maps.shape[2:])
        counted = torch.cat([spread, own, torch.ones_like(own[:, :1])], 1)
        weighted = weights.to(counted.dtype)[:, None, None, None] * counted
        canvas = maps_to_layout(weighted, boxes, flat.pictures, count, self.side, self.align_corners)
        return canvas[:, :-1] / canvas[:, -1:]


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What was drawn for B pictures of up to N objects with up to K candidates each.

    images: (B,3,S,S), normalised by ImageNet's statistics; boxes: (O,4) as predicted, of the pictures' nodes too;
    vectors: (O,D); valid: (B,N,K) bool, which patches there are; patches: (M,3,S,S), they themselves, in the order of
    `valid.nonzero()`; features: (B,N,K,C) of E_p, zero where no patch is; selection: what was chosen.
    """

    images: Tensor
    boxes: Tensor
    vectors: Tensor
    valid: Tensor
    patches: Tensor
    features: Tensor
    selection: Selection


class Generator(nn.Module):
    """Scene graphs and candidate patches to pictures.

    classes, predicates: how many the data has.
    """

    def __init__(self, config: RetrieveGANConfig, classes: int, predicates: int) -> None:
        super().__init__()
        self.config = config
        width, scope = config.object_dim, config.batch_norm
        self.encoder = GraphEncoder(config, classes, predicates)
        self.box_head = Perceptron(width, config.hidden_dim, 4, config.box_relu)
        self.patch_embedding = PatchEmbedding(config.patch_channels, config.query_dim, scope)
        self.crop_encoder = CropEncoder(config.patch_channels, config.crop_dim, scope)
        self.fuser = CanvasFuser(width, config.canvas_side, config.align_corners)
        canvas = width + config.crop_dim
        self.residuals = nn.Sequential(*[ResidualBlock(canvas, scope) for _ in range(config.residual_blocks)])
        self.refinement = RefinementNetwork(canvas, config.refinement_widths, scope=scope)

    def forward(
        self,
        flat: FlatGraphs,
        candidates: Candidates,
        noise: Tensor,
        boxes: Tensor | None = None,
        truth: Tensor | None = None,
    ) -> Retrieved:
        """noise: (B, `noise_width`) standard normal numbers; boxes: (O,4) to draw by, its own where not given or
        without an extent; truth: (R,3,S,S), patches of the R objects themselves, the last candidate of each."""
        vectors, _ = self.encoder(flat)
        # Half precision knows places in a picture to a 256th.
        predicted = at_least_float32(self.box_head(vectors))
        chosen_boxes = predicted if boxes is None else _where_given(boxes, predicted)
        # The node is the whole picture, whatever is predicted for it.
        chosen_boxes = torch.where(flat.objects[:, None], chosen_boxes, flat.boxes.to(chosen_boxes.dtype))
        valid, patches = shown(flat, candidates, truth)
        places = valid.nonzero(as_tuple=True)
        embedded = self.patch_embedding(patches)
        features = embedded.new_zeros(*valid.shape, embedded.shape[1]).index_put(places, embedded)
        open_to_choice = valid
        if truth is not None and self.config.truth_among_candidates == "selection_loss":
            open_to_choice = torch.cat([valid[:, :, :-1], torch.zeros_like(valid[:, :, -1:])], 2)
        selection = retrieve(features, open_to_choice, self.config.retrieval, noise, training=self.training)
        weights = selection.weights.to(embedded.dtype)
        if self.config.retrieval.mixture == "pixels":
            pixels = patches.new_zeros(*valid.shape, *patches.shape[1:]).index_put(places, patches)
            # One that has no patch has no map either: it is not drawn as a grey one.
            picked = has_patch(selection)
            encoded = self.crop_encoder(mix(pixels, weights)[picked])
            maps = encoded.new_zeros(*picked.shape, *encoded.shape[1:]).index_put((picked,), encoded)
            maps = maps[flat.pictures[flat.objects], flat.places[flat.objects]]
        else:
            encoded = self.crop_encoder(patches)
            # Of each object's patches, which stand one after the other in `places`.
            owners = torch.full_like(valid[:, :, 0], 0, dtype=torch.int64)
            owners[flat.pictures[flat.objects], flat.places[flat.objects]] = torch.arange(
                int(flat.objects.sum()), device=owners.device
            )
            shares = weights[places][:, None, None, None] * encoded
            maps = encoded.new_zeros(int(flat.objects.sum()), *encoded.shape[1:])
            maps = maps.index_add(0, owners[places[0], places[1]], shares)
        images = self.draw(vectors, maps, chosen_boxes, flat)
        return Retrieved(images, predicted, vectors, valid, patches, features, selection)

    def reconstruct(self, vectors: Tensor, truth: Tensor, flat: FlatGraphs) -> Tensor:
        """Pictures (B,3,S,S) of the objects' own patches (R,3,S,S) in their own boxes (section 3.5)."""
        return self.draw(vectors, self.crop_encoder(truth), flat.boxes, flat)

    def draw(self, vectors: Tensor, maps: Tensor, boxes: Tensor, flat: FlatGraphs) -> Tensor:
        """Pictures of objects' vectors (O,D) and maps (R,C,m,m) in boxes (O,4)."""
        canvas: Tensor = self.residuals(self.fuser(vectors, maps, boxes, flat))
        side = self.config.resolution
        if canvas.shape[-1] != side:
            canvas = F.interpolate(canvas, (side, side), mode="bilinear", align_corners=False)
        images: Tensor = self.refinement(canvas)
        return images


def shown(flat: FlatGraphs, candidates: Candidates, truth: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which candidates there are, (B,N,K) bool, and they themselves, (M,3,S,S), in the order of `valid.nonzero()`.

    With truth each object has one more place, the last, which is its own patch. What stands in the padding does not
    matter.
    """
    rows = flat.pictures[flat.objects], flat.places[flat.objects]
    batch, most, size = candidates.patches.shape[:3]
    there = torch.zeros(batch, most, dtype=torch.bool, device=flat.boxes.device)
    there = there.index_put(rows, there.new_tensor(True))[..., None]
    valid = ~after_counts(candidates.counts, size) & there
    if truth is None:
        return valid, candidates.patches[valid]
    own = truth.new_zeros(batch, most, 1, *truth.shape[1:]).index_put((*rows, torch.zeros_like(rows[0])), truth)
    valid = torch.cat([valid, there], 2)
    return valid, torch.cat([candidates.patches.to(own.dtype), own], 2)[valid]


def own_patches(images: Tensor, flat: FlatGraphs, side: int) -> Tensor:
    """(R,3,side,side): what is in the boxes of the R objects of pictures (B,3,H,W), cut as the patch bank is.

    By the whole pixels that a box touches, resized bilinearly with antialias: cut otherwise, or in half precision, the
    ground truth would be told from the other candidates by that alone.
    """
    boxes, pictures = flat.boxes[flat.objects], flat.pictures[flat.objects]
    with torch.autocast(images.device.type, enabled=False):
        across = _cut_weights(boxes[:, 0::2], images.shape[3], side).to(images.dtype)
        down = _cut_weights(boxes[:, 1::2], images.shape[2], side).to(images.dtype)
        return down[:, None] @ images[pictures] @ across[:, None].transpose(2, 3)


def _cut_weights(edges: Tensor, length: int, side: int) -> Tensor:
    """How much each of `side` pixels between edges (R,2) in [0, 1] has of each of `length` pixels: (R,side,length)."""
    low, high = (edges * length).unbind(1)
    first = (low + EDGE).floor().clamp(0, length - 1)
    last = (high - EDGE).ceil().clamp(max=length).maximum(first + 1)
    scale = ((last - first) / side)[:, None]
    middles = first[:, None] + (torch.arange(side, device=edges.device) + 0.5) * scale
    pixels = torch.arange(length, device=edges.device) + 0.5
    weights = F.relu(1 - (pixels - middles[..., None]).abs() / scale.clamp(min=1)[..., None])
    weights = weights * ((pixels > first[:, None]) & (pixels < last[:, None]))[:, None]
    return weights / weights.sum(2, keepdim=True)


def has_patch(selection: Selection) -> Tensor:
    """(B,N) bool: objects that are made of a patch; one that was picked in a step that does not count is not."""
    return (selection.chosen >= 0) & (selection.weights.detach().sum(2) > 0)


def _where_given(boxes: Tensor, predicted: Tensor) -> Tensor:
    """Boxes that have an extent, and the predicted ones where they have none."""
    given = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1, keepdim=True)
    return torch.where(given, boxes.to(predicted.dtype), predicted)
