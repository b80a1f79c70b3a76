"""Blocks of systems that read scene graphs, against their definitions, written again and slowly."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.blocks.graphs import GraphEncoder, GraphEncoderSettings, TripleConvolution, flatten
from models.blocks.layout import LEAST_SIDE, boxes_to_layout, crop_boxes, maps_to_layout, masks_to_layout
from models.blocks.pixels import from_signed, to_signed
from models.blocks.refinement import RefinementNetwork
from models.contract import Graphs
from orchestration.data.transforms import TRANSFORMS

CLASSES, PREDICATES = 3, 2


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """The same random weights each time."""
    torch.manual_seed(0)


def some_graphs(batch: int, most: int = 5, seed: int = 0, junk: bool = True) -> Graphs:
    """Random graphs; what stands in the padding is junk, or zero."""
    generator = torch.Generator().manual_seed(seed)
    links = 6
    counts = torch.randint(1, most + 1, (batch,), generator=generator)
    related = torch.randint(0, links + 1, (batch,), generator=generator)
    low = torch.rand(batch, most, 2, generator=generator) * 0.6
    boxes = torch.cat([low, low + 0.1 + 0.3 * torch.rand(batch, most, 2, generator=generator)], 2)
    classes = torch.randint(1, CLASSES + 1, (batch, most), generator=generator)
    ends = torch.randint(0, 1000, (batch, links, 2), generator=generator) % counts[:, None, None]
    predicates = torch.randint(1, PREDICATES + 1, (batch, links), generator=generator)
    relations = torch.stack([ends[..., 0], predicates, ends[..., 1]], 2)
    found = Graphs(classes, boxes, counts, relations, related)
    fill = 77 if junk else 0
    hidden = torch.arange(links) >= related[:, None]
    return replace(
        found,
        classes=classes.masked_fill(found.padding(), fill),
        boxes=boxes.masked_fill(found.padding()[..., None], float(fill)),
        relations=relations.masked_fill(hidden[..., None], fill),
    )


def graph_of(classes: list[int], relations: Iterable[tuple[int, int, int]] = (), seed: int = 0) -> Graphs:
    """One picture's."""
    low = torch.rand(len(classes), 2, generator=torch.Generator().manual_seed(seed)) * 0.5
    rows = list(relations)
    return Graphs(
        torch.tensor([classes]),
        torch.cat([low, low + 0.4], 1)[None],
        torch.tensor([len(classes)]),
        torch.tensor(rows, dtype=torch.int64).view(1, len(rows), 3),
        torch.tensor([len(rows)]),
    )


# Graphs


def naive_flat(graphs: Graphs, image_node: bool) -> dict[str, list[Any]]:
    """`flatten`, object by object."""
    found: dict[str, list[Any]] = {key: [] for key in ("classes", "boxes", "pictures", "objects", "places", "triples")}
    inside = []
    for picture in range(len(graphs.counts)):
        start, count = len(found["classes"]), int(graphs.counts[picture])
        for place in range(count + image_node):
            real = place < count
            found["classes"].append(int(graphs.classes[picture, place]) if real else 0)
            found["boxes"].append(graphs.boxes[picture, place].tolist() if real else [0, 0, 1, 1])
            found["pictures"].append(picture)
            found["objects"].append(real)
            found["places"].append(place)
            if real and image_node:
                inside.append([start + place, 0, start + count])
        for subject, predicate, other in graphs.relations[picture, : graphs.links[picture]].tolist():
            found["triples"].append([start + subject, predicate, start + other])
    found["triples"] += inside
    return found


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10_000), st.booleans())
def test_flat_graphs_are_the_graphs_one_by_one(batch: int, most: int, seed: int, image_node: bool) -> None:
    graphs = some_graphs(batch, most, seed)
    flat = flatten(graphs, image_node)
    for name, values in naive_flat(graphs, image_node).items():
        assert getattr(flat, name).tolist() == values, name
    assert flat.pictures_count == batch and flat.triples.shape[1] == 3


def test_a_graph_without_relations_or_with_odd_ones() -> None:
    """A lone object, one related to itself, one that nothing points at, and thirty."""
    alone = flatten(graph_of([2]))
    assert alone.classes.tolist() == [2, 0] and alone.triples.tolist() == [[0, 0, 1]]
    assert flatten(graph_of([2]), image_node=False).triples.shape == (0, 3)
    odd = flatten(graph_of([1, 2, 3], [(1, 2, 1)]))
    assert odd.triples.tolist() == [[1, 2, 1], [0, 0, 3], [1, 0, 3], [2, 0, 3]]
    many = flatten(graph_of([1] * 30, [(place, 1, (place + 1) % 30) for place in range(30)]))
    assert many.triples.shape == (60, 3) and many.objects.sum() == 30
    encoder = GraphEncoder(GraphEncoderSettings(embedding_dim=4, object_dim=3, hidden_dim=5), CLASSES, PREDICATES)
    for flat in (alone, flatten(graph_of([2]), image_node=False), odd, many):
        objects, predicates = encoder(flat)
        assert objects.shape == (len(flat.classes), 3) and predicates.shape == (len(flat.triples), 3)
        assert torch.isfinite(objects).all() and torch.isfinite(predicates).all()


@pytest.mark.parametrize("pooling", ["average", "sum"])
def test_a_graph_convolution_is_its_definition(pooling: Any) -> None:
    net = TripleConvolution(4, 3, 5, pooling)
    objects, predicates = torch.randn(5, 4), torch.randn(5, 4)
    # 1 is related to itself, 3 is in no triple, 4 in one.
    triples = torch.tensor([[0, 1, 1], [0, 1, 1], [1, 1, 1], [2, 1, 0], [4, 1, 2]])
    found, new_predicates = net(objects, predicates, triples)
    candidates: list[list[Tensor]] = [[] for _ in objects]
    for place, (subject, _, other) in enumerate(triples.tolist()):
        h = torch.cat([objects[subject], predicates[place], objects[other]])
        h = net.triple_mlp.fc2(net.triple_mlp.fc1(h).clamp(min=0)).clamp(min=0)
        candidates[subject].append(h[:5])
        candidates[other].append(h[8:])
        torch.testing.assert_close(new_predicates[place], h[5:8])
    for place, rows in enumerate(candidates):
        pooled = torch.stack(rows).sum(0) if rows else torch.zeros(5)
        pooled = pooled / max(len(rows), 1) if pooling == "average" else pooled
        expected = net.object_mlp.fc2(net.object_mlp.fc1(pooled).clamp(min=0)).clamp(min=0)
        torch.testing.assert_close(found[place], expected)


def test_a_pictures_vectors_are_its_own() -> None:
    graphs = some_graphs(5)
    encoder = GraphEncoder(GraphEncoderSettings(embedding_dim=6, object_dim=5, hidden_dim=7), CLASSES, PREDICATES)
    flat = flatten(graphs)
    together, _ = encoder(flat)
    for picture in range(5):
        rows = slice(picture, picture + 1)
        parts = (graphs.classes, graphs.boxes, graphs.counts, graphs.relations, graphs.links)
        alone, _ = encoder(flatten(Graphs(*(part[rows] for part in parts))))
        torch.testing.assert_close(together[flat.pictures == picture], alone)


# Layouts


def grid_layout(maps: Tensor, boxes: Tensor, pictures: Tensor, count: int, side: int, align: bool) -> Tensor:
    """Object by object, by torch's own sampling."""
    canvas = maps.new_zeros(count, maps.shape[1], side, side)
    steps = torch.linspace(0, 1, side, dtype=maps.dtype)
    for one, (x0, y0, x1, y1), picture in zip(maps, boxes, pictures.tolist(), strict=True):
        xs, ys = ((steps - x0) / (x1 - x0)).expand(side, -1), ((steps - y0) / (y1 - y0))[:, None].expand(-1, side)
        points = torch.stack([xs, ys], 2)[None] * 2 - 1
        part = F.grid_sample(one[None], points, mode="bilinear", padding_mode="zeros", align_corners=align)
        canvas = canvas.index_add(0, torch.tensor([picture]), part)
    return canvas


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(2, 9), st.integers(0, 10_000), st.booleans())
def test_a_layout_is_the_sum_over_objects(count: int, pictures: int, cells: int, seed: int, align: bool) -> None:
    """In any order of objects, some pictures with none, boxes that reach outside or are mirrored; and its gradients."""
    torch.manual_seed(seed)
    owners = torch.randint(0, pictures, (count,))
    low = torch.rand(count, 2, dtype=torch.float64) * 1.4 - 0.4
    boxes = torch.cat([low, low + 0.1 + torch.rand(count, 2, dtype=torch.float64)], 1)
    boxes = torch.where(torch.rand(count, 1) < 0.2, boxes[:, [2, 1, 0, 3]], boxes)
    vectors = torch.randn(count, 3, dtype=torch.float64)
    masks = torch.rand(count, cells, cells, dtype=torch.float64)
    maps = torch.randn(count, 3, cells, cells, dtype=torch.float64)
    args, given_values = (owners, pictures, 7, align), [vectors, masks, maps, boxes]
    weights = torch.randn(pictures, 3, 7, 7, dtype=torch.float64)

    def compare(ours: Any, slow: Any) -> None:
        for first, second in zip(outcome(ours), outcome(slow), strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=1e-9)

    def outcome(draw: Any) -> list[Tensor]:
        leaves = [value.clone().requires_grad_() for value in given_values]
        layout = draw(*leaves)
        gradients = torch.autograd.grad((layout * weights).sum(), leaves, allow_unused=True, materialize_grads=True)
        return [layout, *gradients]

    compare(
        lambda v, m, f, b: boxes_to_layout(v, b, *args),
        lambda v, m, f, b: grid_layout(v[:, :, None, None].expand(-1, -1, 8, 8), b, *args),
    )
    compare(
        lambda v, m, f, b: masks_to_layout(v, b, m, *args),
        lambda v, m, f, b: grid_layout(v[:, :, None, None] * m[:, None], b, *args),
    )
    compare(lambda v, m, f, b: maps_to_layout(f, b, *args), lambda v, m, f, b: grid_layout(f, b, *args))


@pytest.mark.parametrize("align", [True, False])
def test_crops_are_what_torch_samples(align: bool) -> None:
    images = torch.randn(3, 2, 9, 11, dtype=torch.float64)
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9], [-0.3, 0.5, 0.4, 1.2], [0, 0, 1, 1], [0.8, 0.1, 0.3, 0.4]]).double()
    pictures = torch.tensor([2, 0, 1, 2])
    crops = crop_boxes(images, boxes, pictures, 5, align)
    for crop, (x0, y0, x1, y1), picture in zip(crops, boxes, pictures, strict=True):
        steps = torch.linspace(0, 1, 5, dtype=torch.float64)
        xs, ys = (x0 + (x1 - x0) * steps).expand(5, -1), (y0 + (y1 - y0) * steps)[:, None].expand(-1, 5)
        points = torch.stack([xs, ys], 2)[None] * 2 - 1
        torch.testing.assert_close(crop, F.grid_sample(images[picture][None], points, align_corners=align)[0])


BAD_BOXES = {
    "a point": [0.5, 0.5, 0.5, 0.5],
    "a line": [0.2, 0.1, 0.2, 0.9],
    "all zero, as a box head's ReLU gives": [0.0, 0.0, 0.0, 0.0],
    "mirrored": [0.8, 0.9, 0.1, 0.2],
    "a hair": [0.5, 0.5, 0.5 + 1e-30, 0.5 - 1e-30],
    "outside": [1.5, 1.2, 2.5, 3.0],
    "far outside": [1e20, 1e20, 2e20, 2e20],
    "huge": [-1e20, -1e20, 1e20, 1e20],
}


@pytest.mark.parametrize("box", BAD_BOXES.values(), ids=BAD_BOXES.keys())
@pytest.mark.parametrize("align", [True, False])
def test_bad_boxes_give_finite_values_and_gradients(box: list[float], align: bool) -> None:
    boxes = torch.tensor([box, [0.1, 0.1, 0.9, 0.9]], requires_grad=True)
    pictures = torch.tensor([0, 0])
    vectors, masks = torch.ones(2, 3, requires_grad=True), torch.ones(2, 4, 4, requires_grad=True)
    maps, images = torch.ones(2, 3, 4, 4, requires_grad=True), torch.ones(1, 3, 8, 8, requires_grad=True)
    drawn = [
        (boxes_to_layout(vectors, boxes, pictures, 1, 9, align), [vectors]),
        (masks_to_layout(vectors, boxes, masks, pictures, 1, 9, align), [vectors, masks]),
        (maps_to_layout(maps, boxes, pictures, 1, 9, align), [maps]),
        (crop_boxes(images, boxes, pictures, 5, align), [images]),
    ]
    for values, leaves in drawn:
        gradients = torch.autograd.grad(values.square().sum(), [*leaves, boxes])
        for value in (values, *gradients):
            assert torch.isfinite(value).all()
            assert value.abs().max() < 1e6


def test_what_bad_boxes_show() -> None:
    """Nothing outside; what is thinner than the least side counts as that; a mirrored box shows its mask mirrored."""
    vector, pictures = torch.ones(1, 2), torch.tensor([0])
    outside = torch.tensor([BAD_BOXES["outside"]])
    assert not boxes_to_layout(vector, outside, pictures, 1, 9).any()
    assert not crop_boxes(torch.ones(1, 3, 8, 8), outside, pictures, 5).any()
    thin, least = (torch.tensor([[0.5, 0.1, 0.5 + width, 0.9]]) for width in (0.0, LEAST_SIDE))
    assert boxes_to_layout(vector, thin, pictures, 1, 9).equal(boxes_to_layout(vector, least, pictures, 1, 9))
    mask = torch.rand(1, 4, 4)
    upright, mirrored = torch.tensor([[0.1, 0.2, 0.7, 0.9]]), torch.tensor([[0.7, 0.2, 0.1, 0.9]])
    torch.testing.assert_close(
        masks_to_layout(vector, mirrored, mask, pictures, 1, 9),
        masks_to_layout(vector, upright, mask.flip(2), pictures, 1, 9),
    )


def test_pixels_go_there_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    signed = pixels.float() / 127.5 - 1
    read = TRANSFORMS["sg2im"].normalise(pixels)
    torch.testing.assert_close(from_signed(signed), read)
    torch.testing.assert_close(to_signed(read), signed)
    assert to_signed(read * 9).abs().max() == 1


# Drawing


def test_the_refinement_network_is_its_definition() -> None:
    net, layout = RefinementNetwork(3, (4, 2), slope=0.1), torch.randn(2, 3, 8, 8)
    h = torch.zeros(2, 1, 2, 2)
    for stage, side in zip(net.stages, (4, 8), strict=True):
        h = F.interpolate(h, (side, side))
        h = torch.cat([F.adaptive_avg_pool2d(layout, side), h], 1)
        for conv, bn in ((stage.conv1, stage.bn1), (stage.conv2, stage.bn2)):
            h = conv(h)
            h = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
            h = h * bn.weight[:, None, None] + bn.bias[:, None, None]
            h = torch.where(h > 0, h, 0.1 * h)
    h = net.out_conv1(h)
    torch.testing.assert_close(net(layout), net.out_conv2(torch.where(h > 0, h, 0.1 * h)), rtol=1e-4, atol=1e-5)
