"""The co-occurrence embedding as a part that is trained before RetrieveGAN, and frozen as RetrieveGAN uses it (section
3.3).

The paper says that it is trained on patches of the training pictures with a triplet loss: patches of one picture near
each other, of different pictures far apart. Net, margin, distance and choice of triplets are not given: each is an
option here.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.attngan.damsm import evaluating
from models.blocks.graphs import flatten
from models.blocks.layout import crop_boxes
from models.blocks.norm import BatchNorm
from models.contract import (
    NOTHING,
    AdamSettings,
    Batch,
    Given,
    Nets,
    Objective,
    Phase,
    Settings,
    StageMissing,
    StepContext,
    Trainable,
)
from models.parallel import OneRank, Ranks, mean_over_ranks
from models.parts import PART, part_settings
from models.precision import at_least_float32
from models.retrievegan.retrieval import Distance, distances, random_places

STAGE = NET = "co_occurrence"
HALVINGS = 4
SLOPE = 0.2


class CoOccurrenceConfig(Settings):
    """The embedding and its training. Nothing of it is given in the paper but the triplet loss."""

    resolution: int = Field(128, ge=16, description="side of the pictures that patches are cut from (section 4: 128)")
    patch_side: int = Field(64, ge=16, description="side of the patches; not given in the paper")
    align_corners: bool = Field(
        True,
        description="whether a picture's outer pixels have their middles on its edges when it is cropped, as in sg2im",
    )
    channels: int = Field(
        64, ge=1, description="width of the first layer, doubled at each further halving of the side; not given"
    )
    embedding_dim: int = Field(128, ge=1, description="width of the embedding; not given")
    normalised: bool = Field(
        True, description="embeddings of length 1, so that the margin has a scale (FaceNet, section 3); not given"
    )
    margin: float = Field(
        0.2,
        gt=0,
        description="how much nearer than a patch of another picture one of the same is to be; not given: FaceNet's "
        "(section 3.3)",
    )
    distance: Distance = Field(
        "squared", description='"squared" (FaceNet, section 3.1) or "norm"; the paper says distance'
    )
    mining: Literal["all", "hardest", "random"] = Field(
        "all",
        description='which triplets of a batch count: "all"; "hardest": for each patch the farthest of its picture and '
        'the nearest of all others; "random": for each pair of a picture one patch of another. Not given',
    )
    optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=1e-4, beta_1=0.9, beta_2=0.999),
        description="not given: sg2im's, which the data's protocol is of",
    )


class CoOccurrenceNet(nn.Module):
    """F_occur: patches (P,3,S,S), ImageNet-normalised, to (P,E); S from 16 on, whatever it was trained with."""

    def __init__(self, config: CoOccurrenceConfig) -> None:
        super().__init__()
        self.config = config
        widths = [3, *(config.channels << level for level in range(HALVINGS))]
        layers: list[nn.Module] = []
        for width, out in pairwise(widths):
            conv = nn.Conv2d(width, out, 4, 2, 1, bias=False)
            nn.init.kaiming_normal_(conv.weight, SLOPE)
            layers += [conv, BatchNorm(out), nn.LeakyReLU(SLOPE)]
        self.trunk = nn.Sequential(*layers)
        self.linear = nn.Linear(widths[-1], config.embedding_dim)

    def forward(self, patches: Tensor) -> Tensor:
        embedding = at_least_float32(self.linear(self.trunk(patches).mean((2, 3))))
        return F.normalize(embedding, dim=1) if self.config.normalised else embedding


class CoOccurrence(Trainable[CoOccurrenceConfig]):
    """The embedding in which patches of one picture are near each other."""

    name = STAGE
    title = "RetrieveGAN's co-occurrence embedding: patches that go together (2020)"
    Config = CoOccurrenceConfig
    needs = frozenset({"images", "graph"})
    transform = "sg2im"
    reads = frozenset({"graphs"})

    def build(self, config: CoOccurrenceConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """Trained "co_occurrence"."""
        return {NET: CoOccurrenceNet(config)}

    def optimizers(self, config: CoOccurrenceConfig) -> Mapping[str, AdamSettings]:
        return {NET: config.optimizer}

    def phases(self, config: CoOccurrenceConfig) -> Sequence[Phase]:
        """The embedding on triplets of all objects of the batch, every rank's."""

        def losses(nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
            embeddings, there = embed_objects(cast(CoOccurrenceNet, nets[NET]), batch)
            normal = context.noise(there.shape[1] ** 2) if config.mining == "random" else None
            return {NET: triplet_objective(config, embeddings, there, context.ranks, normal)}

        return [Phase(NET, (NET,), losses)]

    def compare(self, nets: Nets, batch: Batch) -> tuple[Tensor, Tensor]:
        """Squared distances (P,) of two patches of one picture, and (P,) of the first of them and one of another
        picture: every such triplet of the batch."""
        net = cast(CoOccurrenceNet, nets[NET])
        with torch.no_grad(), evaluating(net):
            embeddings, there = embed_objects(net, batch)
            triplets = all_triplets(embeddings, there, OneRank(), "squared")
        return triplets


def embed_objects(net: CoOccurrenceNet, batch: Batch) -> tuple[Tensor, Tensor]:
    """(B,N,E) of the objects of `batch.graphs`, cut from `batch.images` by their boxes; (B,N) bool, which are there."""
    images, graphs = batch.images, batch.graphs
    assert images is not None and graphs is not None
    flat = flatten(graphs, image_node=False)
    patches = crop_boxes(images, flat.boxes, flat.pictures, net.config.patch_side, net.config.align_corners)
    embeddings = net(patches)
    there = ~graphs.padding()
    padded = embeddings.new_zeros(*there.shape, embeddings.shape[1])
    return padded.index_put((flat.pictures, flat.places), embeddings), there


def triplet_objective(
    config: CoOccurrenceConfig, embeddings: Tensor, there: Tensor, ranks: Ranks, normal: Tensor | None = None
) -> Objective:
    """The mean over triplets of max(0, margin + near - far) (FaceNet, equation 3).

    embeddings: (B,N,E) of a rank's pictures, there: (B,N) bool; normal: (B,N*N) standard normal numbers, for random
    triplets. Terms: the loss and the share of triplets in the right order. 0 without triplets: a picture with one
    object has no two patches that go together.
    """
    if config.mining == "all":
        near, far = all_triplets(embeddings, there, ranks, config.distance)
    elif config.mining == "hardest":
        near, far = hardest_triplets(embeddings, there, ranks, config.distance)
    else:
        assert normal is not None
        near, far = random_triplets(embeddings, there, ranks, config.distance, normal)
    loss = mean_over_ranks(F.relu(config.margin + near - far), ranks)
    right = mean_over_ranks((near < far).to(loss.dtype), ranks)
    return Objective(loss, {"co_occurrence": loss.detach(), "co_occurrence_order": right.detach()})


def all_triplets(embeddings: Tensor, there: Tensor, ranks: Ranks, distance: Distance) -> tuple[Tensor, Tensor]:
    """Every triplet whose first patch is this rank's: distances (P,) within a picture and (P,) to another picture."""
    near, together, far, other = _tables(embeddings, there, ranks, distance)
    picture, anchor, _ = together.nonzero(as_tuple=True)
    count = other[picture]
    return near[together][:, None].expand_as(count)[count], far[picture, anchor][count]


def hardest_triplets(embeddings: Tensor, there: Tensor, ranks: Ranks, distance: Distance) -> tuple[Tensor, Tensor]:
    """One for each of this rank's patches that has both: the farthest of its picture, the nearest of all others."""
    near, together, far, other = _tables(embeddings, there, ranks, distance)
    has = together.any(2) & other.any(1, keepdim=True)
    farthest = near.masked_fill(~together, -torch.inf).amax(2)
    nearest = far.masked_fill(~other[:, None], torch.inf).amin(2)
    return farthest[has], nearest[has]


def random_triplets(
    embeddings: Tensor, there: Tensor, ranks: Ranks, distance: Distance, normal: Tensor
) -> tuple[Tensor, Tensor]:
    """One for each pair of patches of a picture, with a random patch of another; normal: (B,N*N)."""
    near, together, far, other = _tables(embeddings, there, ranks, distance)
    place = random_places(other, normal).view_as(together)
    has = together & (place >= 0)
    return near[has], far.gather(2, place.clamp(min=0))[has]


def _tables(
    embeddings: Tensor, there: Tensor, ranks: Ranks, distance: Distance
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances (B,N,N) within pictures and which are of two patches; distances (B,N,M) to all patches of all ranks,
    and (B,M) which of those are of other pictures."""
    pictures, objects, width = embeddings.shape
    near = distances(embeddings, embeddings, distance)
    alone = torch.eye(objects, dtype=torch.bool, device=there.device)
    together = there[:, :, None] & there[:, None, :] & ~alone
    everyone = ranks.gather(embeddings).view(1, -1, width)
    far = distances(embeddings.view(1, -1, width), everyone, distance).view(pictures, objects, -1)
    present = ranks.gather(there.long()).bool()
    numbers = torch.arange(pictures, device=there.device) + ranks.rank * pictures
    foreign = numbers[:, None] != torch.arange(len(present), device=there.device)
    other = present.flatten() & foreign.repeat_interleave(objects, 1)
    return near, together, far, other


def open_co_occurrence(given: Given) -> nn.Module:
    """The trained stage's net, frozen, as its folder describes it; on "meta" an empty one.

    Raises StageMissing, and ValueError where the folder is not that of such a part.
    """
    if torch.empty(0).device.type == "meta":
        return CoOccurrenceNet(CoOccurrenceConfig()).requires_grad_(False)
    if STAGE not in given.folders:
        raise StageMissing(f"{STAGE} comes from the trained stage {STAGE!r}, which was not given")
    folder = given.folders[STAGE]
    try:
        config = part_settings(folder, CoOccurrence.name, CoOccurrenceConfig)
    except ValueError as error:
        raise ValueError(
            f"{folder / PART} does not describe a {STAGE} ({error}): restore that folder, or train it again"
        ) from error
    return given.load(CoOccurrenceNet(config), STAGE, NET)
