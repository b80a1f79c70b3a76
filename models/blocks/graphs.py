"""Scene graphs as nets read them: all objects of a batch in one row, and convolutions along their relations.

Paper: Johnson, Gupta and Fei-Fei, "Image Generation from Scene Graphs" (sg2im), 2018, section 3. Where its released
code says more, that is followed.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.contract import Given, Graphs, Settings, after_counts
from models.precision import at_least_float32

IMAGE_CLASS = 0
IN_IMAGE = 0
Pooling = Literal["average", "sum"]


class GraphEncoderSettings(Settings):
    """The graph encoder. Defaults are sg2im's released ones."""

    embedding_dim: int = Field(128, ge=1, description="width of the embeddings of classes and predicates (released)")
    object_dim: int = Field(
        128, ge=1, description="D, width of the vectors that a graph convolution gives (released: gconv_dim, 128)"
    )
    hidden_dim: int = Field(
        512, ge=1, description="width inside a graph convolution, and of the box head's hidden layer (released: 512)"
    )
    graph_layers: int = Field(5, ge=1, description="graph convolutions (released: 5)")
    pooling: Pooling = Field(
        "average",
        description='what an object gets of its relations: their "average" (section 3, released) or "sum"',
    )


@dataclass(frozen=True, slots=True)
class FlatGraphs:
    """The scene graphs of B pictures without padding: O objects in order of pictures, T triples.

    classes: (O,) int64; boxes: (O,4), x0, y0, x1, y1 in [0, 1]; pictures: (O,) int64, whose object it is; triples:
    (T,3) int64, subject and object as places in O, the predicate between them; objects: (O,) bool, False for the node
    `__image__`; places: (O,) int64, which of its picture's objects it is; pictures_count: B.
    """

    classes: Tensor
    boxes: Tensor
    pictures: Tensor
    triples: Tensor
    objects: Tensor
    places: Tensor
    pictures_count: int


def flatten(graphs: Graphs, image_node: bool = True) -> FlatGraphs:
    """Padded graphs to flat ones; what stands in the padding does not matter.

    image_node: each picture's objects are followed by a node `__image__` (class 0, its box the whole picture) to which
    every object stands in relation `__in_image__` (predicate 0), as in section 3. Triples: the data's, in order of
    pictures, then those with `__in_image__`.
    """
    batch, most = graphs.classes.shape
    slots = torch.arange(most + 1, device=graphs.classes.device).expand(batch, -1)
    real = slots < graphs.counts[:, None]
    rows, places = (slots <= graphs.counts[:, None] if image_node else real).nonzero(as_tuple=True)
    objects = real[rows, places]
    # The image node's slot may lie behind the padding: it is filled here, not read.
    classes = F.pad(graphs.classes, (0, 1))[rows, places].masked_fill(~objects, IMAGE_CLASS)
    boxes = F.pad(graphs.boxes, (0, 0, 0, 1))[rows, places]
    boxes = torch.where(objects[:, None], boxes, boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))
    sizes = graphs.counts + int(image_node)
    starts = sizes.cumsum(0) - sizes
    related, links = (~after_counts(graphs.links, graphs.relations.shape[1])).nonzero(as_tuple=True)
    subject, predicate, other = graphs.relations[related, links].unbind(1)
    triples = torch.stack([starts[related] + subject, predicate, starts[related] + other], 1)
    if image_node:
        inside = objects.nonzero().squeeze(1)
        nodes = (starts + graphs.counts)[rows[inside]]
        triples = torch.cat([triples, torch.stack([inside, torch.full_like(inside, IN_IMAGE), nodes], 1)])
    return FlatGraphs(classes, boxes, rows, triples, objects, places, batch)


def known_names(given: Given, reader: str) -> tuple[int, int]:
    """How many classes and predicates the data's graphs have. ValueError where there are none; on "meta", where nothing
    is read, any number will do."""
    if given.classes < 1 and torch.empty(0).device.type != "meta":
        raise ValueError(
            f"{reader} reads scene graphs but the data has {given.classes} classes of objects: give the number of "
            "names in the data's vocabulary of scene graphs, at least 1"
        )
    return given.classes, given.predicates


class Perceptron(nn.Module):
    """Two linear layers, each followed by ReLU, the last one too unless `last_relu` is off (released sg2im)."""

    def __init__(self, width: int, hidden_dim: int, out: int, last_relu: bool = True) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden_dim), nn.Linear(hidden_dim, out)
        self.last_relu = last_relu

    def forward(self, x: Tensor) -> Tensor:
        """(...,width) to (...,out)."""
        h: Tensor = self.fc2(F.relu(self.fc1(x)))
        return F.relu(h) if self.last_relu else h


class TripleConvolution(nn.Module):
    """One graph convolution (section 3, equations 1 and 2; the released GraphTripleConv).

    Of each triple's three vectors one net makes a candidate for the subject, the new predicate and a candidate for the
    object; an object's new vector is a net's of all its candidates, pooled. One that is in no triple pools zeros.
    Weights start as He et al. (2015) have them, biases as torch has them (released).
    """

    def __init__(self, width: int, out: int, hidden_dim: int, pooling: Pooling = "average") -> None:
        super().__init__()
        self.hidden_dim, self.out, self.pooling = hidden_dim, out, pooling
        self.triple_mlp = Perceptron(3 * width, hidden_dim, 2 * hidden_dim + out)
        self.object_mlp = Perceptron(hidden_dim, hidden_dim, out)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, objects: Tensor, predicates: Tensor, triples: Tensor) -> tuple[Tensor, Tensor]:
        """objects: (O,width), predicates: (T,width), triples: (T,3) int64, of which the middle is not read. Returns
        objects (O,out) and predicates (T,out)."""
        subject, other = triples[:, 0], triples[:, 2]
        joined = self.triple_mlp(torch.cat([objects[subject], predicates, objects[other]], 1))
        of_subject, new_predicates, of_other = joined.split([self.hidden_dim, self.out, self.hidden_dim], 1)
        # A node that all objects are related to sums many: not in half precision.
        candidates = at_least_float32(torch.cat([of_subject, of_other]))
        owners = torch.cat([subject, other])
        pooled = candidates.new_zeros(len(objects), self.hidden_dim).index_add(0, owners, candidates)
        if self.pooling == "average":
            pooled = pooled / torch.bincount(owners, minlength=len(objects)).clamp(min=1)[:, None]
        return self.object_mlp(pooled), new_predicates


class GraphConvolutions(nn.Module):
    """Several in a row; the first takes the embeddings' width."""

    def __init__(self, settings: GraphEncoderSettings) -> None:
        super().__init__()
        widths = [settings.embedding_dim] + [settings.object_dim] * (settings.graph_layers - 1)
        self.layers = nn.ModuleList(
            [TripleConvolution(width, settings.object_dim, settings.hidden_dim, settings.pooling) for width in widths]
        )

    def forward(self, objects: Tensor, predicates: Tensor, triples: Tensor) -> tuple[Tensor, Tensor]:
        """As one convolution."""
        for layer in self.layers:
            objects, predicates = layer(objects, predicates, triples)
        return objects, predicates


class GraphEncoder(nn.Module):
    """Embeddings and graph convolutions: a scene graph to vectors (section 3).

    classes, predicates: how many the data has; 0, for `__image__` and `__in_image__`, comes on top.
    """

    def __init__(self, settings: GraphEncoderSettings, classes: int, predicates: int) -> None:
        super().__init__()
        self.class_embedding = nn.Embedding(classes + 1, settings.embedding_dim)
        self.predicate_embedding = nn.Embedding(predicates + 1, settings.embedding_dim)
        self.convolutions = GraphConvolutions(settings)

    def forward(self, flat: FlatGraphs) -> tuple[Tensor, Tensor]:
        """Vectors of objects (O,D) and of triples' predicates (T,D); a picture's do not depend on the others."""
        objects, predicates = self.class_embedding(flat.classes), self.predicate_embedding(flat.triples[:, 1])
        vectors: tuple[Tensor, Tensor] = self.convolutions(objects, predicates, flat.triples)
        return vectors
