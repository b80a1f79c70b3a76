"""RetrieveGAN's nets: what they draw of which patches, and what must not matter."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from models.blocks import layout
from models.blocks.graphs import FlatGraphs, flatten
from models.blocks.layout import crop_boxes
from models.contract import Candidates, Graphs, parameter_count
from models.retrievegan import PAPER, RetrieveGAN, RetrieveGANConfig
from models.retrievegan.networks import CanvasFuser, Generator, Retrieved
from models.retrievegan.retrieval import noise_width
from tests.graph_support import (
    CLASSES,
    MOST_PATCHES,
    NAMES,
    PATCH,
    PREDICATES,
    SIDE,
    graph_of,
    rows_of,
    small,
    some_candidates,
    some_graphs,
)

BIAS = 0.05


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """The same random weights each time."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


def make(training: bool = False, **changes: Any) -> Generator:
    """A generator whose batch norms have statistics, and whose box head gives boxes of some extent."""
    net = Generator(small(**changes), CLASSES, PREDICATES)
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            buffer.uniform_(0.5, 1.5) if name.endswith("running_var") else buffer.normal_()
        net.box_head.fc2.bias.copy_(torch.tensor([BIAS, BIAS, 0.8, 0.9]))
    return net.train(training)


def noise_for(net: Generator, candidates: Candidates, more: int = 0, seed: int = 0) -> Tensor:
    batch, groups, size = candidates.patches.shape[:3]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, noise_width(groups, size + more, net.config.retrieval), generator=generator)


def own_patches(flat: FlatGraphs, seed: int = 5) -> Tensor:
    return torch.randn(int(flat.objects.sum()), 3, PATCH, PATCH, generator=torch.Generator().manual_seed(seed))


def draw(
    net: Generator, graphs: Graphs, candidates: Candidates, given: bool = True, truth: bool = False, seed: int = 0
) -> Retrieved:
    flat = flatten(graphs)
    found: Retrieved = net(
        flat,
        candidates,
        noise_for(net, candidates, int(truth), seed),
        flat.boxes if given else None,
        own_patches(flat) if truth else None,
    )
    return found


# Settings


def test_every_setting_has_a_source() -> None:
    assert all(info.description for info in RetrieveGANConfig.model_fields.values()) and RetrieveGANConfig() == PAPER
    lambdas = {name.removeprefix("lambda_") for name in RetrieveGANConfig.model_fields if name.startswith("lambda_")}
    assert lambdas == {
        "gt_selection",
        "cooccurrence",
        "image_adversarial",
        "image_reconstruction",
        "image_perceptual",
        "object_adversarial",
        "object_classification",
        "object_perceptual",
        "box",
    }
    assert PAPER.refinement_widths == (1024, 512, 256, 128, 64) and PAPER.resolution == 128


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"canvas_side": 64}, "canvas_side is 64 and pictures have 32 px: set it to 32 or less"),
        ({"refinement_modules": 6}, "refinement_modules is 6, .* have 32 px: set it to 5 or less"),
        ({"lambda_box": -1}, "greater than or equal to 0"),
    ],
)
def test_wrong_settings_say_what_to_do(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        small(**changes)
    small(canvas_side=32), small(refinement_modules=5)


def test_without_a_vocabulary_there_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="retrievegan reads scene graphs but the data has 0 classes of objects: give"):
        RetrieveGAN().build(small())


def test_the_papers_model_has_its_size() -> None:
    """With COCO-Stuff's 171 names and the six relations of sg2im's graphs. No source gives these numbers."""
    with torch.device("meta"):
        nets = RetrieveGAN().build(PAPER, replace(NAMES, classes=171, predicates=6))
    parts: dict[str, Any] = dict(nets["generator"].named_children())
    assert {name: parameter_count(part) for name, part in parts.items()} == PARAMETERS
    assert parameter_count(nets["discriminators"]) == 1_759_021


PARAMETERS = {
    "encoder": 5_604_992,
    "box_head": 68_100,
    "patch_embedding": 404_608,
    "crop_encoder": 404_864,
    "fuser": 33_024,
    "residuals": 10_626_048,
    "refinement": 23_466_883,
}


# What must not matter


@pytest.mark.parametrize("mixture", ["features", "pixels"])
@pytest.mark.parametrize("truth", [False, True])
def test_what_stands_in_the_padding_does_not_matter(mixture: str, truth: bool) -> None:
    """Not even where it is no number."""
    net = make(training=truth, retrieval={"mixture": mixture})
    graphs = some_graphs(3, junk=False)
    junk = some_graphs(3, junk=True)
    clean = draw(net, graphs, some_candidates(graphs), truth=truth)
    spoilt = draw(net, junk, some_candidates(junk, fill=torch.nan), truth=truth)
    for name in ("images", "boxes", "patches", "features", "valid"):
        assert torch.equal(getattr(spoilt, name), getattr(clean, name)), name
    assert clean.images.isfinite().all() and clean.valid.sum() == len(clean.patches) < clean.valid.numel()
    assert torch.equal(clean.selection.weights[~clean.valid], torch.zeros(int((~clean.valid).sum())))


@pytest.mark.parametrize("gumbel", ["once", "each_step"])
def test_a_picture_depends_on_no_other_and_on_no_room(gumbel: str) -> None:
    net, graphs = make(retrieval={"gumbel": gumbel}), some_graphs(4)
    candidates = some_candidates(graphs)
    together = draw(net, graphs, candidates).images
    for picture in range(4):
        alone = rows_of(graphs, picture)
        count = int(graphs.counts[picture])
        own = Candidates(
            *(
                getattr(candidates, name)[picture : picture + 1, :count].contiguous()
                for name in ("patches", "places", "counts")
            )
        )
        noise = noise_for(net, candidates)[picture : picture + 1]
        flat = flatten(alone)
        torch.testing.assert_close(net(flat, own, noise, flat.boxes).images, together[picture : picture + 1])
        if count > 1:
            other = torch.roll(own.patches, 1, 0).flip(2)
            changed = net(flat, replace(own, patches=other.contiguous()), noise, flat.boxes).images
            assert not torch.allclose(changed, together[picture : picture + 1], atol=1e-4)


@pytest.mark.parametrize(
    "graphs",
    [
        graph_of([2]),
        graph_of([1, 2], [(0, 1, 0), (1, 2, 1)]),
        graph_of([1, 2, 3]),
        graph_of([1] * 30, [(place, 1, (place + 1) % 30) for place in range(30)]),
    ],
    ids=["one object", "related to itself", "no relation", "thirty objects"],
)
def test_odd_graphs_are_drawn_and_learnt_from(graphs: Graphs) -> None:
    drawn = draw(make(), graphs, some_candidates(graphs), given=False)
    assert drawn.images.shape == (1, 3, SIDE, SIDE) and drawn.images.isfinite().all()
    assert len(drawn.boxes) == len(drawn.vectors) == int(graphs.counts) + 1
    net = make(training=True)
    learnt = draw(net, graphs, some_candidates(graphs), truth=True)
    gradients = torch.autograd.grad(learnt.images.square().mean(), list(net.parameters()), materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert learnt.selection.chosen.min() >= 0


# Which patches


def none_for(graphs: Graphs, picture: int, place: int) -> Candidates:
    """Candidates of which one object has none."""
    counts = torch.full(graphs.classes.shape, MOST_PATCHES)
    counts[picture, place] = 0
    return some_candidates(graphs, counts=counts)


@pytest.mark.parametrize("mixture", ["features", "pixels"])
def test_objects_without_a_candidate_are_drawn_by_their_name_alone(mixture: str) -> None:
    graphs = graph_of([1, 2, 3], [(0, 1, 1)])
    net, candidates = make(retrieval={"mixture": mixture}), none_for(graphs, 0, 1)
    maps: list[Tensor] = []
    net.fuser.register_forward_pre_hook(lambda _, given: maps.append(given[1]))
    drawn = draw(net, graphs, candidates)
    assert (drawn.selection.chosen < 0).tolist() == [[False, True, False]]
    assert not drawn.selection.weights[0, 1].any()
    assert drawn.images.isfinite().all()
    assert not maps[0][1].any() and maps[0][0].any() and maps[0][2].any()
    nothing = some_candidates(graphs, counts=torch.zeros(1, 3, dtype=torch.int64))
    empty = draw(net, graphs, nothing)
    assert len(empty.patches) == 0 and empty.images.isfinite().all() and not maps[1].any()


@pytest.mark.parametrize(
    "retrieval",
    [{}, {"iterations": 2}, {"result": "last"}, {"selection": "soft"}],
    ids=str,
)
def test_whole_patches_mixed_as_features_or_as_pixels_are_one(retrieval: dict[str, Any]) -> None:
    """Where a picture is sampled; objects that have no patch included."""
    graphs = some_graphs(3, seed=2)
    candidates = none_for(graphs, 1, 0)
    features = make(retrieval={**retrieval, "mixture": "features"})
    pixels = make(retrieval={**retrieval, "mixture": "pixels"})
    pixels.load_state_dict(features.state_dict())
    one, other = draw(features, graphs, candidates), draw(pixels, graphs, candidates)
    assert torch.equal(one.selection.weights, other.selection.weights)
    torch.testing.assert_close(one.images, other.images, rtol=1e-3, atol=1e-4)


def test_where_patches_are_mixed_matters_to_soft_ones() -> None:
    graphs = some_graphs(3, seed=2)
    candidates = some_candidates(graphs)
    soft = {"selection": "soft", "temperature": 5.0}
    features, pixels = (make(True, retrieval={**soft, "mixture": mixture}) for mixture in ("features", "pixels"))
    pixels.load_state_dict(features.state_dict())
    one, other = (draw(net, graphs, candidates, truth=True) for net in (features, pixels))
    assert not torch.allclose(one.images, other.images, atol=1e-3)


@pytest.mark.parametrize("selection", ["soft", "threshold", "hard"])
def test_sampled_pictures_are_made_of_whole_patches(selection: str) -> None:
    graphs = some_graphs(3)
    retrieval = {"selection": selection, "temperature": 5.0, "threshold": 0.05}
    drawn = draw(make(retrieval=retrieval), graphs, some_candidates(graphs))
    assert set(drawn.selection.weights.flatten().tolist()) == {0.0, 1.0}
    assert not drawn.selection.weights.requires_grad
    learnt = draw(make(True, retrieval=retrieval), graphs, some_candidates(graphs), truth=True)
    values = set(learnt.selection.weights.flatten().tolist())
    assert (values == {0.0, 1.0}) == (selection == "hard") and learnt.selection.weights.requires_grad


def test_the_ground_truth_is_a_candidate_always_or_for_its_loss_alone() -> None:
    graphs = some_graphs(6, seed=1)
    candidates = some_candidates(graphs, counts=torch.ones(graphs.classes.shape, dtype=torch.int64))
    flat = flatten(graphs)
    there = ~graphs.padding()
    for choice in ("always", "selection_loss"):
        net = make(training=True, truth_among_candidates=choice)
        drawn = draw(net, graphs, candidates, truth=True)
        last = drawn.valid.shape[2] - 1
        assert last == MOST_PATCHES and torch.equal(drawn.valid[:, :, last], there)
        # Each object's own patch is the last that there is of it, in the flat order too.
        own = drawn.patches[(drawn.valid.nonzero()[:, 2] == last)]
        assert torch.equal(own, own_patches(flat))
        assert drawn.features[:, :, last][there].abs().amax(1).min() > 0
        picked_own = (drawn.selection.chosen == last)[there]
        assert picked_own.any() and not picked_own.all() if choice == "always" else not picked_own.any()
    none = draw(net, graphs, some_candidates(graphs, counts=torch.zeros_like(candidates.counts)), truth=True)
    assert (none.selection.chosen == -1).all() and none.images.isfinite().all()


def test_the_losses_on_pictures_reach_the_patch_embedding() -> None:
    """Through the weights of whole patches."""
    graphs = some_graphs(3)
    for mixture in ("features", "pixels"):
        net = make(training=True, retrieval={"mixture": mixture, "temperature": 1.0})
        drawn = draw(net, graphs, some_candidates(graphs), truth=True)
        gradients = torch.autograd.grad(drawn.images.square().mean(), list(net.patch_embedding.parameters()))
        assert max(gradient.abs().max().item() for gradient in gradients) > 1e-6
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_other_noise_picks_other_patches() -> None:
    """Several pictures of one graph, by different queries; without Gumbel noise too."""
    graphs = graph_of([1, 2, 3], [(0, 1, 1)])
    for gumbel in (True, False):
        net = make(retrieval={"gumbel_when_sampling": gumbel})
        candidates = some_candidates(graphs, counts=torch.full((1, 3), MOST_PATCHES))
        drawn = [draw(net, graphs, candidates, seed=seed) for seed in range(12)]
        again = draw(net, graphs, candidates, seed=3)
        assert torch.equal(again.images, drawn[3].images)
        chosen = {tuple(one.selection.chosen[0].tolist()) for one in drawn}
        pictures = {one.images.sum().item() for one in drawn}
        assert len(chosen) == len(pictures) >= (4 if gumbel else 2)


# Where they are drawn


def test_boxes_are_given_or_predicted_and_one_without_extent_is_predicted() -> None:
    net, graphs = make(), graph_of([1, 2, 3])
    candidates = some_candidates(graphs)
    used: list[Tensor] = []
    net.fuser.register_forward_pre_hook(lambda _, given: used.append(given[2]))
    drawn = draw(net, graphs, candidates, given=False)
    flat = flatten(graphs)
    assert torch.equal(used[-1][:3], drawn.boxes[:3]) and used[-1][3].tolist() == [0, 0, 1, 1]
    assert (drawn.boxes[3] != torch.tensor([0.0, 0.0, 1.0, 1.0])).any()
    draw(net, graphs, candidates)
    assert torch.equal(used[-1], flat.boxes)
    boxes = graphs.boxes.clone()
    boxes[0, 0] = 0  # nobody gave one
    boxes[0, 2, 2] = boxes[0, 2, 0]  # no width
    draw(net, replace(graphs, boxes=boxes), candidates)
    assert torch.equal(used[-1][[0, 2]], drawn.boxes[[0, 2]]) and torch.equal(used[-1][1], flat.boxes[1])


def naive_canvas(fuser: CanvasFuser, vectors: Tensor, maps: Tensor, boxes: Tensor, flat: FlatGraphs) -> Tensor:
    """Picture by picture: a softmax over what covers a place, times how much it does."""
    side, width = fuser.side, vectors.shape[1]
    canvases = []
    for picture in range(flat.pictures_count):
        mine = (flat.pictures == picture).nonzero().squeeze(1)
        node = mine[~flat.objects[mine]]
        logits = (fuser.key(vectors[mine]) @ fuser.query(vectors[node])[0]) / width**0.5
        covers, stacked = [], []
        for place in mine.tolist():
            number = int(flat.objects[:place].sum())
            own = maps[number] if flat.objects[place] else torch.zeros_like(maps[0])
            filled = torch.cat(
                [vectors[place][:, None, None].expand(-1, *own.shape[1:]), own, torch.ones_like(own[:1])]
            )
            one = layout.maps_to_layout(filled[None], boxes[place][None], torch.tensor([0]), 1, side, True)[0]
            stacked.append(one[:-1])
            covers.append(one[-1])
        shares = (logits - logits.max()).exp()[:, None, None]
        total = (shares * torch.stack(covers)).sum(0)
        canvases.append((shares[:, None] * torch.stack(stacked)).sum(0) / total)
    return torch.stack(canvases)


def fused(seed: int = 0, scale: float = 1.0) -> tuple[CanvasFuser, Tensor, Tensor, FlatGraphs]:
    generator = torch.Generator().manual_seed(seed)
    flat = flatten(some_graphs(3, seed=seed))
    flat = replace(flat, boxes=flat.boxes.double())
    fuser = CanvasFuser(4, 16, True).double()
    vectors = torch.randn(len(flat.classes), 4, generator=generator, dtype=torch.float64) * scale
    maps = torch.rand(int(flat.objects.sum()), 2, 3, 3, generator=generator, dtype=torch.float64)
    return fuser, vectors, maps, flat


def test_the_canvas_is_the_attention_object_by_object() -> None:
    for seed in range(3):
        fuser, vectors, maps, flat = fused(seed)
        torch.testing.assert_close(
            fuser(vectors, maps, flat.boxes, flat), naive_canvas(fuser, vectors, maps, flat.boxes, flat)
        )


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_canvas_lies_between_what_covers_a_place(scale: float) -> None:
    fuser, vectors, maps, flat = fused(scale=scale)
    canvas = fuser(vectors, maps, flat.boxes, flat)
    for picture in range(flat.pictures_count):
        mine = vectors[flat.pictures == picture]
        low, high = mine.amin(0)[:, None, None], mine.amax(0)[:, None, None]
        shown = canvas[picture, :4]
        assert (shown >= low - 1e-9).all() and (shown <= high + 1e-9).all()
        own = canvas[picture, 4:]
        assert own.min() >= 0 and own.max() <= maps.max()


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_places_that_no_object_covers_show_the_node(scale: float, dtype: torch.dtype) -> None:
    """However little the node cares for itself; and the gradient there is a number."""
    flat = flatten(graph_of([1, 2]))
    boxes = torch.tensor([[0.0, 0.0, 0.3, 0.3], [0.1, 0.1, 0.3, 0.4], [0.0, 0.0, 1.0, 1.0]], dtype=dtype)
    fuser = CanvasFuser(2, 16, True).to(dtype)
    with torch.no_grad():
        for linear in (fuser.query, fuser.key):
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
    # The first object's logit is far above the node's.
    vectors = torch.tensor([[-1.0, 0.0], [-1.5, 0.2], [1.0, 0.5]], dtype=dtype) * scale
    vectors[:2] *= -1
    vectors[2] *= 0.1
    vectors.requires_grad_()
    maps = torch.rand(2, 1, 3, 3, dtype=dtype)
    canvas = fuser(vectors, maps, boxes, flat)
    corner = canvas[0, :, 10:, 10:]
    node = vectors.detach()[2]
    torch.testing.assert_close(corner[:2].detach(), node[:, None, None].expand(2, 6, 6))
    assert not corner[2:].any() and canvas[0, 2, :3, :3].min() > 0
    (gradient,) = torch.autograd.grad(canvas.sum(), vectors)
    assert gradient.isfinite().all() and gradient[2].min() > 6 * 6 * 0.99


def test_half_precision_around_it_moves_no_box() -> None:
    """bfloat16 knows places in the picture to a 256th."""
    net, graphs = make(), graph_of([1])
    graphs = replace(graphs, boxes=torch.tensor([[[0.7035, 0.7035, 0.7612, 0.7612]]]))
    used: list[Tensor] = []
    laid = layout._canvas_weights

    def noted(boxes: Tensor, *rest: Any) -> Any:
        used.append(boxes)
        return laid(boxes, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_canvas_weights", noted)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = draw(net, graphs, some_candidates(graphs))
    assert drawn.images.isfinite().all()
    assert used[0].dtype == torch.float32 and torch.equal(used[0][0], graphs.boxes[0, 0])
    with torch.autocast("cpu", torch.bfloat16):
        learning = make(training=True)
        learnt = draw(learning, graphs, some_candidates(graphs), given=False, truth=True)
        learnt.images.float().square().mean().backward()  # type: ignore[no-untyped-call]
    assert learnt.images.isfinite().all()


def test_the_reconstruction_is_of_the_objects_own_patches_in_their_boxes() -> None:
    """As if each had been picked, whatever the candidates are."""
    graphs = some_graphs(2)
    net = make()
    flat = flatten(graphs)
    own = own_patches(flat)
    vectors, _ = net.encoder(flat)
    rebuilt = net.reconstruct(vectors, own, flat)
    patches = torch.zeros(*graphs.classes.shape, 1, 3, PATCH, PATCH)
    patches[flat.pictures[flat.objects], flat.places[flat.objects], 0] = own
    counts = (~graphs.padding()).long()
    drawn = draw(net, graphs, Candidates(patches, torch.zeros_like(counts)[..., None], counts))
    torch.testing.assert_close(rebuilt, drawn.images, rtol=1e-4, atol=1e-5)
    other = net.reconstruct(vectors, torch.roll(own, 1, 0), flat)
    assert not torch.allclose(other, rebuilt, atol=1e-3)
    assert crop_boxes(torch.zeros(2, 3, SIDE, SIDE), flat.boxes, flat.pictures, 4).shape[0] == len(flat.classes)
