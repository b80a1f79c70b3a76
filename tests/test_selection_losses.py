"""RetrieveGAN's losses on what was retrieved, written again and slowly; what their gradients do."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.parallel import OneRank
from models.retrievegan.retrieval import RetrievalSettings, noise_width, retrieve
from models.retrievegan.selection import (
    SelectionLossSettings,
    co_occurrence_loss,
    ground_truth_selection_loss,
    true_patch_ranks,
)
from tests.test_retrieval import padded

ONE = OneRank()
FORMS = [
    SelectionLossSettings(),
    SelectionLossSettings(truth_mass="all"),
    SelectionLossSettings(truth_temperature=0.3),
    SelectionLossSettings(truth_query="random", truth_mass="all"),
    SelectionLossSettings(truth_query="random"),
]


def some_truth(valid: Tensor, seed: int) -> Tensor:
    """One of each object's candidates, for some objects none."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(valid.shape, generator=draw).masked_fill(~valid, -1)
    best, truth = scores.max(2)
    return truth.masked_fill(best < 0.3, -1)


def slow_loss(
    features: Tensor, valid: Tensor, truth: Tensor, form: SelectionLossSettings, squared: bool, normal: Tensor
) -> Tensor:
    terms = []
    for b in range(len(truth)):
        known = [n for n in range(truth.shape[1]) if truth[b, n] >= 0]
        queries = known
        if form.truth_query == "random" and known:
            uniform = 0.5 * (1 + math.erf(normal[b].item() / math.sqrt(2)))
            queries = [known[int(uniform * len(known))]]
        for q in queries:
            query = features[b, q, truth[b, q]]

            def mass(n: int, k: int, b: int = b, query: Tensor = query) -> Tensor:
                apart = features[b, n, k] - query
                d = apart.square().sum() if squared else apart.norm()
                return torch.exp(-d / form.truth_temperature)

            groups = {n: [k for k in range(valid.shape[2]) if valid[b, n, k]] for n in range(valid.shape[1]) if n != q}
            masses = {n: [mass(n, k) for k in places] for n, places in groups.items() if places}
            everything = sum(sum(each, torch.zeros(())) for each in masses.values())
            for n in known:
                if n != q:
                    whole = sum(masses[n], torch.zeros(())) if form.truth_mass == "group" else everything
                    terms.append(-torch.as_tensor(mass(n, int(truth[b, n])) / whole).log())
    return torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=3),
    form=st.sampled_from(FORMS),
    distance=st.sampled_from(["squared", "norm"]),
    seed=st.integers(0, 1000),
)
def test_the_ground_truth_selection_loss_is_the_loop(
    sizes: list[list[int]], form: SelectionLossSettings, distance: Any, seed: int
) -> None:
    """In value and gradient; padding, even if it is no number, and objects without a true patch have no part."""
    features, valid = padded(sizes, 0.6, seed=seed)
    truth, normal = some_truth(valid, seed), torch.randn(len(valid), generator=torch.Generator().manual_seed(seed))
    features = features.double().requires_grad_()
    found = ground_truth_selection_loss(features, valid, truth, form, distance, ONE, normal)
    expected = slow_loss(features, valid, truth, form, distance == "squared", normal.double())
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    # No number on the way either, that a later product could have hidden.
    with torch.autograd.set_detect_anomaly(True):
        (gradient,) = torch.autograd.grad(found, features)
    if expected.requires_grad:
        (wanted,) = torch.autograd.grad(expected, features)
        torch.testing.assert_close(gradient, wanted.nan_to_num(), rtol=1e-7, atol=1e-9)
    assert gradient.isfinite().all() and not gradient[~valid].any()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("distance", ["squared", "norm"])
def test_its_gradient_makes_true_patches_likelier(form: SelectionLossSettings, distance: Any) -> None:
    """Steps down the loss raise the share of objects whose true patch is retrieved, and its rank."""
    torch.manual_seed(0)
    features, valid = padded([[5, 5, 5, 5]] * 8)
    truth = some_truth(valid, 1).clamp(min=0)
    # An embedding of its own for each patch: nothing but the loss ties them together.
    features = features.requires_grad_()
    setting = RetrievalSettings(distance=distance, gumbel_when_sampling=False)

    def share() -> float:
        query = features[torch.arange(8), 0, truth[:, 0]]
        noise = torch.zeros(8, noise_width(4, 5, setting))
        return (retrieve(features, valid, setting, noise, query, False).chosen == truth).float()[:, 1:].mean().item()

    def rank() -> float:
        before, rivals = true_patch_ranks(features, valid, truth, distance)
        return (before / rivals).mean().item()

    shares, ranks, losses = [share()], [rank()], []
    for _ in range(60):
        loss = ground_truth_selection_loss(features, valid, truth, form, distance, ONE, torch.randn(8))
        (gradient,) = torch.autograd.grad(loss, features)
        features = (features - 2 * gradient).detach().requires_grad_()
        losses.append(loss.item())
    shares, ranks = [*shares, share()], [*ranks, rank()]
    assert shares[0] < 0.5 and shares[1] > 0.9
    assert 0.3 < ranks[0] < 0.7 and ranks[1] < 0.1
    assert losses[-1] < 0.6 * losses[0]


def test_objects_alone_give_no_loss() -> None:
    """A picture with one object, or with one true patch, has nobody to find; nor has one whose true patch is absent."""
    features, valid = padded([[3], [3, 2], [2, 2]])
    features = features.requires_grad_()
    truth = torch.tensor([[0, -1], [1, -1], [0, 2]])  # of the last, a place where no patch is
    loss = ground_truth_selection_loss(features, valid, truth, FORMS[0], "squared", ONE)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, features)[0].any()
    before, rivals = true_patch_ranks(features, valid, truth, "squared")
    assert before.shape == rivals.shape == (0,)


def test_ranks_of_true_patches() -> None:
    """Nearer patches count one, those as near a half; a true patch is no rival of itself."""
    features = torch.tensor([[[0.0], [9.0], [9.0]], [[1.0], [1.0], [0.0]]])[None]
    valid, truth = torch.ones(1, 2, 3, dtype=torch.bool), torch.tensor([[0, 1]])
    before, rivals = true_patch_ranks(features, valid, truth, "squared")
    # From 0: 1 has 0 before it and 1 beside it. From 1: 0 has none before it.
    assert before.tolist() == [1.5, 0.0] and rivals.tolist() == [2, 2]
    same = torch.zeros_like(features)
    assert true_patch_ranks(same, valid, truth, "norm")[0].tolist() == [1.0, 1.0]


def test_the_co_occurrence_loss_is_equation_5() -> None:
    """In all its forms, of hard and of soft weights."""
    torch.manual_seed(0)
    embeddings = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    there = torch.tensor([[True, True, True], [True, False, True]])
    weights = torch.rand(2, 3, 4, dtype=torch.float64)
    embeddings[1, 1] = torch.nan
    pairs = [(0, 0, 1), (0, 0, 2), (0, 1, 2), (1, 0, 2)]

    def place(b: int, n: int) -> Tensor:
        return torch.stack([weights[b, n, k] * embeddings[b, n, k] for k in range(4)]).sum(0)

    squares = torch.stack([(place(b, i) - place(b, j)).square().sum() for b, i, j in pairs])
    for distance in ("squared", "norm"):
        each = squares if distance == "squared" else squares.sqrt()
        for count in ("all", "once"):
            times = 2 if count == "all" else 1
            for reduction, expected in (("sum", times * each.sum() / 2), ("mean", each.mean())):
                form = SelectionLossSettings(pairs=count, pair_reduction=reduction, pair_distance=distance)
                torch.testing.assert_close(co_occurrence_loss(embeddings, weights, there, form, ONE), expected)


@pytest.mark.parametrize("distance", ["squared", "norm"])
def test_its_gradient_moves_weight_to_the_nearer_patch(distance: Any) -> None:
    """Of two patches for the second object the one nearer to the first object's becomes likelier, for soft weights and
    through the features of a hard selection."""
    form = SelectionLossSettings(pair_distance=distance)
    embeddings = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.9, 0.1], [-1.0, 0.5]]])[None]
    there = torch.ones(1, 2, dtype=torch.bool)
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    loss = co_occurrence_loss(embeddings, logits.softmax(2), there, form, ONE)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 1, 0] < 0 < gradient[0, 1, 1]

    features = torch.zeros(1, 2, 2, 3).requires_grad_()
    setting = RetrievalSettings(temperature=1.0, distance=distance)
    valid, query = torch.ones(1, 2, 2, dtype=torch.bool), torch.ones(1, 3)
    for seed in range(10):
        noise = torch.randn(1, noise_width(2, 2, setting), generator=torch.Generator().manual_seed(seed))
        found = retrieve(features, valid, setting, noise, query)
        (gradient,) = torch.autograd.grad(
            co_occurrence_loss(embeddings, found.weights, there, form, ONE), features, retain_graph=True
        )
        # Down the gradient the near patch comes nearer to the query than the far one does.
        moved = -gradient[0, 1] @ query[0]
        assert moved[0] > moved[1]


def test_one_object_costs_nothing() -> None:
    weights = torch.ones(2, 3, 1, requires_grad=True)
    there = torch.tensor([[True, False, False], [False, False, False]])
    for reduction in ("sum", "mean"):
        form = SelectionLossSettings(pair_reduction=reduction)
        loss = co_occurrence_loss(torch.randn(2, 3, 1, 4), weights, there, form, ONE)
        assert loss.item() == 0 and not torch.autograd.grad(loss, weights)[0].any()


def test_half_precision_around_them_changes_nothing() -> None:
    features, valid = padded([[3, 2, 3]])
    truth, weights, there = torch.tensor([[0, 1, 2]]), torch.rand(1, 3, 3), torch.ones(1, 3, dtype=torch.bool)

    def both(values: Tensor) -> tuple[Tensor, Tensor]:
        return (
            ground_truth_selection_loss(values, valid, truth, FORMS[0], "squared", ONE),
            co_occurrence_loss(values.nan_to_num(), weights.to(values.dtype), there, FORMS[0], ONE),
        )

    with torch.autocast("cpu", torch.bfloat16):
        around = both(features)
    for found, exact in zip(around, both(features.double()), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
