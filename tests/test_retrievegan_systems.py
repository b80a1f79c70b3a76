"""RetrieveGAN as a system: the nine terms of its loss and where each has a gradient, one step, and sampling."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from models.blocks.graphs import flatten
from models.blocks.layout import crop_boxes
from models.blocks.pixels import to_signed
from models.contract import Batch, Given, Objective, StageMissing, StepContext
from models.losses.perceptual import PerceptualDistance
from models.parallel import OneRank
from models.retrievegan import RetrieveGAN, RetrieveGANConfig
from models.retrievegan import losses as losses_module
from models.retrievegan import networks as networks_module
from models.retrievegan.co_occurrence import CoOccurrenceNet
from models.retrievegan.retrieval import distances, noise_width, retrieve
from models.retrievegan.system import draw, training_noise_width
from orchestration.data.word_encoder import describe_part
from tests.case_names import case_name
from tests.graph_support import (
    GRAPH,
    LAMBDAS,
    NAMES,
    SIDE,
    TOGETHER,
    context,
    graph_of,
    in_double,
    only,
    small,
    some_batch,
    some_candidates,
)
from tests.tiny import float64, small_pretrained_nets, tensors_of, tiny_experiment, tiny_trainer

SYSTEM = RetrieveGAN()
DRAWN = {"encoder", "crop_encoder", "fuser", "residuals", "refinement"}


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """The same random weights each time."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """With an untrained co-occurrence embedding."""
    folder = tmp_path_factory.mktemp("co_occurrence")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        save_file(CoOccurrenceNet(TOGETHER).state_dict(), folder / "co_occurrence.safetensors")
    describe_part(folder, "co_occurrence", TOGETHER.model_dump(mode="json"))
    return replace(NAMES, folders={"co_occurrence": folder})


def build(config: RetrieveGANConfig, given: Given) -> dict[str, nn.Module]:
    """In training; predicted boxes have an extent."""
    with small_pretrained_nets():
        nets = SYSTEM.build(config, given)
    with torch.no_grad():
        head: Any = nets["generator"].box_head
        head.fc2.bias.copy_(torch.tensor([0.05, 0.05, 0.8, 0.9]))
    return nets


def losses(config: RetrieveGANConfig, nets: Mapping[str, nn.Module], batch: Batch) -> Mapping[str, Objective]:
    [phase] = SYSTEM.phases(config)
    return phase.losses(nets, batch, context(len(batch.image_ids)))


def moved(nets: Mapping[str, nn.Module], loss: Tensor) -> set[str]:
    """The generator's parts that a loss has a gradient for."""
    generator = nets["generator"]
    names = [name for name, _ in generator.named_parameters()]
    found = torch.autograd.grad(loss, list(generator.parameters()), materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in found)
    return {name.split(".")[0] for name, one in zip(names, found, strict=True) if one.abs().max() > 1e-9}


# The nine terms


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("gt_selection", {}, {"patch_embedding"}),
        ("gt_selection", {"selection_losses": {"truth_query": "random"}}, {"patch_embedding"}),
        ("gt_selection", {"truth_among_candidates": "selection_loss"}, {"patch_embedding"}),
        ("cooccurrence", {}, {"patch_embedding"}),
        ("image_adversarial", {}, {*DRAWN, "patch_embedding"}),
        ("image_adversarial", {"training_boxes": "predicted"}, {*DRAWN, "patch_embedding", "box_head"}),
        ("image_reconstruction", {}, DRAWN),
        ("image_perceptual", {}, {*DRAWN, "patch_embedding"}),
        ("image_perceptual", {"perceptual_of": "reconstructed"}, DRAWN),
        ("image_perceptual", {"perceptual_of": "retrieved"}, {*DRAWN, "patch_embedding"}),
        ("object_adversarial", {}, {*DRAWN, "patch_embedding"}),
        ("object_classification", {}, {*DRAWN, "patch_embedding"}),
        ("object_perceptual", {}, {*DRAWN, "patch_embedding"}),
        ("object_perceptual", {"perceptual_of": "reconstructed"}, DRAWN),
        ("box", {}, {"encoder", "box_head"}),
    ],
    ids=case_name,
)
def test_each_term_alone_moves_what_it_should(given: Given, name: str, changes: Any, parts: set[str]) -> None:
    with float64():
        config = small(**only(**{name: 1.0}), retrieval={"temperature": 1.0}, **changes)
        nets = build(config, given)
        objective = losses(config, nets, in_double(some_batch(4)))["generator"]
        assert objective.loss.item() == pytest.approx(objective.terms[name].item()) and objective.loss != 0
        assert moved(nets, objective.loss) == parts


def test_the_loss_is_the_weighted_sum_of_nine_terms(given: Given) -> None:
    weights = {name.removeprefix("lambda_"): 0.3 + 0.1 * place for place, name in enumerate(LAMBDAS)}
    config = small(**only(**weights))
    objective = losses(config, build(config, given), some_batch())["generator"]
    assert objective.terms.keys() == weights.keys() and len(weights) == 9
    assert not any(term.requires_grad for term in objective.terms.values())
    expected = sum(weight * objective.terms[name].item() for name, weight in weights.items())
    assert objective.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [name.removeprefix("lambda_") for name in LAMBDAS])
def test_without_a_weight_it_costs_nothing(given: Given, name: str) -> None:
    weights = {one.removeprefix("lambda_"): 1.0 for one in LAMBDAS}
    whole, without = small(**only(**weights)), small(**only(**{**weights, name: 0.0}))
    nets, batch = build(whole, given), some_batch()
    all_of_it = losses(whole, nets, batch)["generator"]
    rest = {net: nets[net] for net in SYSTEM.build(without, given) if net in nets}
    less = losses(without, rest, batch)["generator"]
    assert less.loss.item() == pytest.approx((all_of_it.loss - all_of_it.terms[name]).item(), rel=1e-4)


def test_nets_that_no_weight_asks_for_are_not_there(given: Given) -> None:
    config = small(**only(box=1.0))
    assert SYSTEM.stages(config) == {"sg2im": "sg2im"}
    nets = SYSTEM.build(config, NAMES)  # no trunk is read, no stage is there
    assert set(nets) == {"generator", "discriminators"} == set(SYSTEM.optimizers(config))
    together = small(**only(cooccurrence=0.1))
    assert SYSTEM.stages(together) == {"sg2im": "sg2im", "co_occurrence": "co_occurrence"}
    assert set(build(together, given)) == {"generator", "discriminators", "co_occurrence"}
    with pytest.raises(StageMissing, match="co_occurrence"):
        SYSTEM.build(together, NAMES)
    for name in ("image_perceptual", "object_perceptual"):
        assert set(build(small(**only(**{name: 0.1})), NAMES)) == {"generator", "discriminators", "perceptual"}


def test_frozen_nets_stay_as_they_were(given: Given) -> None:
    """Whatever mode the loop leaves them in: batch statistics are those that the embedding was trained with."""
    config = small()
    nets = build(config, given)
    before = {name: value.clone() for name, value in nets["co_occurrence"].state_dict().items()}
    expected = losses(config, nets, some_batch())["generator"].terms["cooccurrence"]
    nets["co_occurrence"].train()
    again = losses(config, nets, some_batch())["generator"].terms["cooccurrence"]
    assert torch.equal(again, expected)
    assert all(torch.equal(value, before[name]) for name, value in nets["co_occurrence"].state_dict().items())
    assert not any(one.requires_grad for name in ("co_occurrence", "perceptual") for one in nets[name].parameters())


def test_terms_by_hand(given: Given) -> None:
    """Boxes are summed over a picture's objects, the node not counted; perceptual distances are of both pictures."""
    with float64():
        config = small(selection_losses={"pair_reduction": "mean"})
        nets, batch = build(config, given), in_double(some_batch(4))
        assert batch.graphs is not None and batch.images is not None and batch.candidates is not None
        terms = losses(config, nets, batch)["generator"].terms
        flat = flatten(batch.graphs)
        noise = context(4).noise(training_noise_width(config, batch.candidates) + 1)[:, :-1]
        drawn, rebuilt = draw(config, nets["generator"], batch.images, flat, batch.candidates, noise)  # type: ignore[arg-type]
        assert rebuilt is not None
        apart = (drawn.boxes - flat.boxes).abs().sum(1) * flat.objects
        assert terms["box"].item() == pytest.approx(apart.sum().item() / 4)
        assert terms["image_reconstruction"].item() == pytest.approx((rebuilt - batch.images).abs().mean().item())
        compare = nets["perceptual"]
        assert isinstance(compare, PerceptualDistance)
        real = to_signed(batch.images, clamp=False)
        both = [compare(to_signed(one, clamp=False), real).mean().item() for one in (drawn.images, rebuilt)]
        assert terms["image_perceptual"].item() == pytest.approx(sum(both) / 2)
        cut: Callable[[Tensor], Tensor] = lambda images: to_signed(  # noqa: E731
            crop_boxes(images, flat.boxes, flat.pictures, config.crop_side)[flat.objects], clamp=False
        )
        both = [compare(cut(one), cut(batch.images)).mean().item() for one in (drawn.images, rebuilt)]
        assert terms["object_perceptual"].item() == pytest.approx(sum(both) / 2)
        fake = nets["discriminators"](drawn.images, flat)
        assert terms["image_adversarial"].item() == pytest.approx(F.softplus(-fake.patches).mean().item())
        assert terms["object_adversarial"].item() == pytest.approx(F.softplus(-fake.objects).mean().item())
        named = F.cross_entropy(fake.classes, flat.classes)
        assert terms["object_classification"].item() == pytest.approx(named.item())
        last, asked = drawn.valid.shape[2] - 1, []
        for features, valid, count in zip(drawn.features, drawn.valid, batch.graphs.counts.tolist(), strict=True):
            for query, other in ((one, two) for one in range(count) for two in range(count) if one != two):
                there = valid[other].nonzero().squeeze(1)
                chances = (-(features[other, there] - features[query, last]).square().sum(1)).log_softmax(0)
                asked.append(-chances[-1].item())  # the own patch is the last
        assert terms["gt_selection"].item() == pytest.approx(sum(asked) / len(asked))
        embed = nets["co_occurrence"].eval()
        pairs = []
        for picture in range(4):
            rows = drawn.valid[: picture + 1].sum((1, 2)).tolist()
            of_picture = drawn.patches[sum(rows[:-1]) : sum(rows)]
            own = drawn.valid[picture].nonzero()
            chosen = [
                int(((own[:, 0] == place) & (own[:, 1] == pick)).nonzero())
                for place, pick in enumerate(drawn.selection.chosen[picture].tolist())
                if pick >= 0
            ]
            found = embed(of_picture[chosen])
            apart = distances(found[None], found[None], "squared")[0]
            pairs.append(apart[~torch.eye(len(found), dtype=torch.bool)])
        assert terms["cooccurrence"].item() == pytest.approx(torch.cat(pairs).mean().item())


def test_what_is_not_drawn_goes_together_with_nothing(given: Given) -> None:
    """As printed, the algorithm leaves a picture one patch (line 15): there is no pair of patches."""
    for result in ("last", "sum"):
        config = small(**only(cooccurrence=1.0), retrieval={"result": result})
        loss = losses(config, build(config, given), some_batch(4))["generator"].loss
        assert (loss == 0) == (result == "last")


def test_a_picture_of_one_object_has_no_pair(given: Given) -> None:
    config = small()
    graphs = graph_of([2])
    objective = losses(config, build(config, given), some_batch(graphs=graphs))["generator"]
    assert objective.terms["cooccurrence"] == objective.terms["gt_selection"] == 0 and objective.loss.isfinite()


# Noise


def test_a_random_query_is_none_of_the_retrievals_numbers(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(**only(gt_selection=1.0), selection_losses={"truth_query": "random"})
    nets, seen = build(config, given), list[tuple[Tensor, Tensor]]()

    def retrieving(features: Tensor, valid: Tensor, settings: Any, noise: Tensor, **rest: Any) -> Any:
        used.append(noise[:, : noise_width(valid.shape[1], valid.shape[2], settings)])
        return retrieve(features, valid, settings, noise, **rest)

    def asked(*arguments: Any) -> Tensor:
        seen.append((used.pop(), arguments[6]))
        return torch.zeros((), requires_grad=True)

    used: list[Tensor] = []
    monkeypatch.setattr(networks_module, "retrieve", retrieving)
    monkeypatch.setattr(losses_module, "ground_truth_selection_loss", asked)
    batch, seed = some_batch(8), 5
    [phase] = SYSTEM.phases(config)
    for first, last in ((0, 8), (0, 4), (4, 8)):

        def noise(width: int, rows: slice = slice(first, last)) -> Tensor:
            return torch.randn(8, width, generator=torch.Generator().manual_seed(seed))[rows]

        phase.losses(nets, batch[slice(first, last)], StepContext(OneRank(), noise))
    (used_by_all, asked_by_all), *ranks = seen
    assert asked_by_all.shape == (8,) and not torch.isin(asked_by_all, used_by_all).any()
    assert torch.equal(torch.cat([asked for _, asked in ranks]), asked_by_all)
    assert torch.equal(torch.cat([used for used, _ in ranks]), used_by_all)


# A step


def test_one_step_on_tiny_data_changes_every_part() -> None:
    trainer = tiny_trainer(tiny_experiment("retrievegan"))
    before = tensors_of(trainer)
    trainer.iteration()
    changed = {name for name, value in tensors_of(trainer).items() if not torch.equal(value, before.get(name, value))}
    for part in (*DRAWN, "patch_embedding", "box_head"):
        assert any(name.startswith(f"net/generator/{part}") for name in changed), part
    for net in ("of_images", "of_objects"):
        assert any(name.startswith(f"net/discriminators/{net}") for name in changed), net
    assert not any(name.startswith(("net/co_occurrence", "net/perceptual")) for name in changed)


# Sampling


def painting(**changes: Any) -> tuple[RetrieveGANConfig, dict[str, nn.Module]]:
    config = small(**changes)
    generator = build(small(**only(box=1.0)), NAMES)["generator"]
    with torch.no_grad():
        for name, buffer in generator.named_buffers():
            buffer.uniform_(0.5, 1.5) if name.endswith("running_var") else buffer.normal_()
    return config, {"generator": generator}


def asked_for(count: int = 1, **changes: Any) -> Batch:
    """The same graph so many times, without pictures."""
    graphs = graph_of([1, 2, 3], [(0, 1, 1), (2, 2, 0)])
    graphs = replace(graphs, **changes)
    one = Batch(torch.arange(1), graphs=graphs, candidates=some_candidates(graphs))
    return one[torch.zeros(count, dtype=torch.int64)]


def test_a_graph_and_a_seed_are_one_picture_and_other_seeds_others() -> None:
    config, nets = painting()
    pictures = SYSTEM.sample(nets, config, asked_for(6), [3, 4, 5, 6, 7, 3])
    assert pictures.shape == (6, 3, SIDE, SIDE) and pictures.min() >= -1 and pictures.max() <= 1
    assert torch.allclose(pictures[0], pictures[5], atol=1e-5)
    assert torch.allclose(SYSTEM.sample(nets, config, asked_for(), [5]), pictures[2], atol=1e-4)
    retrieved = SYSTEM.retrieve(nets, config, asked_for(6), [3, 4, 5, 6, 7, 3]).selection
    picks = [tuple(row) for row in retrieved.chosen.tolist()]
    assert picks[0] == picks[5] and len(set(picks)) > 1
    for one in range(5):
        for other in range(one):
            assert (picks[one] == picks[other]) == torch.allclose(pictures[one], pictures[other], atol=1e-4)
    assert nets["generator"].training  # as it was


@pytest.mark.parametrize("gumbel", ["once", "each_step"])
def test_more_room_is_no_other_picture(gumbel: str) -> None:
    """Graphs of a person are padded otherwise than those of the data."""
    config, nets = painting(retrieval={"gumbel": gumbel})
    nets["generator"].config = config  # type: ignore[assignment]
    tight = asked_for()
    graphs, candidates = tight.graphs, tight.candidates
    assert graphs is not None and candidates is not None
    room = replace(
        tight,
        graphs=replace(graphs, classes=F.pad(graphs.classes, (0, 4)), boxes=F.pad(graphs.boxes, (0, 0, 0, 4))),
        candidates=replace(
            candidates,
            patches=F.pad(candidates.patches, (0, 0) * 4 + (0, 4)),
            places=F.pad(candidates.places, (0, 0, 0, 4)),
            counts=F.pad(candidates.counts, (0, 4)),
        ),
    )
    for seed in range(4):
        one, other = (SYSTEM.retrieve(nets, config, batch, [seed]) for batch in (tight, room))
        assert torch.equal(one.selection.chosen, other.selection.chosen[:, :3])
        torch.testing.assert_close(one.images, other.images, rtol=1e-4, atol=1e-5)


def test_boxes_are_predicted_or_the_graphs() -> None:
    config, nets = painting()
    elsewhere = asked_for(boxes=torch.tensor([[[0.1, 0.1, 0.4, 0.4], [0.5, 0.1, 0.9, 0.9], [0.0, 0.6, 0.3, 1.0]]]))
    for boxes in ("predicted", "given"):
        chosen = small(boxes=boxes)
        one, other = (SYSTEM.sample(nets, chosen, batch, [2]) for batch in (asked_for(), elsewhere))
        assert torch.equal(one, other) == (boxes == "predicted")
    nowhere = asked_for(boxes=torch.zeros(1, 3, 4))
    one, other = (SYSTEM.sample(nets, small(boxes=boxes), nowhere, [2]) for boxes in ("given", "predicted"))
    assert torch.equal(one, other)
    assert config.boxes == "predicted" and GRAPH["object_dim"] == 5
