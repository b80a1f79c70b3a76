"""RetrieveGAN's retrieval: one patch an object, whatever the groups, k and tau; gradients that are numbers; and every
reading of the paper against itself written again and slowly. The relaxed top k: tests/parity."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.blocks.noise import seeded_noise
from models.retrievegan.retrieval import (
    RetrievalSettings,
    Selection,
    chosen_of,
    distances,
    gumbel_noise,
    mix,
    noise_width,
    random_places,
    relaxed_top_k,
    retrieve,
)

WIDTH = 5
CPU = torch.device("cpu")
# Of every option of the paper's that has another reading.
READINGS: list[dict[str, Any]] = [
    {},
    {"distance": "norm"},
    {"gumbel": "each_step"},
    {"exclusion": "accumulated"},
    {"exclusion": "last_step"},
    {"query": "running_mean"},
    {"result": "last"},
    {"selection": "soft"},
    {"selection": "threshold", "threshold": 0.2},
    {"iterations": 2},
]
# As algorithm 1 is printed.
PRINTED: dict[str, Any] = {
    "distance": "norm",
    "gumbel": "each_step",
    "exclusion": "last_step",
    "query": "running_mean",
    "selection": "soft",
}
GROUPS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=4)
# Numbers of candidates: pictures of several objects, some without candidates, one without any object.
SIZES = [[3, 1, 4, 2], [2], [0, 5, 0], []]


def padded(sizes: list[list[int]], scale: float = 1.0, more: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (B,N,K,C), which differ for each picture and are no numbers where no patch is, and valid."""
    groups = max(1, *(len(each) for each in sizes)) + more
    size = max([1, *(count for each in sizes for count in each)])
    features, valid = torch.full((len(sizes), groups, size, WIDTH), torch.nan), torch.zeros(len(sizes), groups, size)
    for b, each in enumerate(sizes):
        draw = torch.Generator().manual_seed(seed + b)
        for n, count in enumerate(each):
            features[b, n, :count] = scale * torch.randn(count, WIDTH, generator=draw)
            valid[b, n, :count] = 1
    return features, valid.bool()


def rows(valid: Tensor, setting: RetrievalSettings, seed: int = 0) -> Tensor:
    """Noise for these groups; a picture's is its own seed's."""
    return seeded_noise(
        [100 * seed + b for b in range(len(valid))], noise_width(valid.shape[1], valid.shape[2], setting), CPU
    )


def slow(features: Tensor, valid: Tensor, setting: RetrievalSettings, noise: Tensor) -> tuple[Tensor, list[int]]:
    """Section 3.3 and algorithm 1 for one picture, a loop over everything: s (N,K) and the objects in order."""
    groups, size = valid.shape
    places = [(n, k) for n in range(groups) for k in range(size) if valid[n, k]]
    objects = {n for n, _ in places}
    steps = min(len(objects), setting.iterations or len(objects))
    result = features.new_zeros(groups, size)
    if not places:
        return result, []
    uniform = 0.5 * (1 + math.erf(noise[0].item() / math.sqrt(2)))
    n, k = places[int(uniform * len(places))]
    query = features[n, k]
    penalty = dict.fromkeys(places, 0.0)
    gone: set[int] = set()
    picked: list[Tensor] = []
    order: list[int] = []
    for t in range(steps):
        scores = []
        for n, k in places:
            block = 0 if setting.gumbel == "once" else max(t, n) ** 2 + (t if n >= t else t + 1 + n)
            number = noise[1 + (block if setting.gumbel == "each_step" else n) * size + k].double()
            g = -torch.log(-torch.log(torch.special.ndtr(number)))
            d = (features[n, k] - query).norm() if setting.distance == "norm" else ((features[n, k] - query) ** 2).sum()
            scores.append(-math.inf if n in gone else g - d + penalty[n, k])
        pi = torch.stack([torch.as_tensor(score, dtype=torch.float64) for score in scores])
        s = (pi / setting.temperature).softmax(0)
        used = s
        if setting.selection == "hard":
            used = torch.nn.functional.one_hot(s.argmax(), len(s)).double()
        elif setting.selection == "threshold":
            kept = torch.where(s >= min(setting.threshold, s.max().item()), s, 0.0)
            used = kept / kept.sum()
        if setting.result == "last":
            result.zero_()
        new = torch.zeros_like(query)
        for weight, (n, k) in zip(used, places, strict=True):
            result[n, k] += weight
            new = new + weight * features[n, k]
        picked.append(new)
        query = torch.stack(picked).mean(0) if setting.query == "mean_of_all" else (query + new) / 2
        order.append(places[int(s.argmax())][0])
        if setting.exclusion == "group_mask":
            gone.add(order[-1])
        else:
            for n, k in places:
                most = max(weight.item() for weight, (m, _) in zip(s, places, strict=True) if m == n)
                term = math.log(max(1 - most, setting.epsilon))
                penalty[n, k] = term + (penalty[n, k] if setting.exclusion == "accumulated" else 0.0)
    return result, order


@pytest.mark.parametrize("changes", [*READINGS, PRINTED], ids=str)
def test_every_reading_is_the_papers_loop(changes: dict[str, Any]) -> None:
    """For a batch at once what the loop gives for each picture."""
    setting = RetrievalSettings(**{"temperature": 0.5, **changes})
    features, valid = padded(SIZES, 0.7)
    features = features.double()
    noise = rows(valid, setting).double()
    found = retrieve(features, valid, setting, noise)
    for b in range(len(SIZES)):
        weights, order = slow(features[b], valid[b], setting, noise[b])
        torch.testing.assert_close(found.weights[b], weights, rtol=1e-9, atol=1e-9)
        assert [step for step in found.order[b].tolist() if step >= 0] == order
    assert found.order.shape == found.places.shape == found.queries.shape[:2] == found.logits.shape[:2]


def check_one_each(found: Selection, valid: Tensor) -> None:
    """Every object with candidates has exactly one, which is there; the others none."""
    has = valid.any(2)
    assert has.equal(found.chosen >= 0)
    assert valid.gather(2, found.chosen.clamp(min=0)[..., None]).squeeze(2)[has].all()
    for b, objects in enumerate(has):
        steps = int(objects.sum())
        assert sorted(found.order[b, :steps].tolist()) == objects.nonzero().flatten().tolist()
        assert (found.order[b, steps:] == -1).all() and (found.places[b, steps:] == -1).all()
        assert found.chosen[b, found.order[b, :steps]].equal(found.places[b, :steps])


@settings(deadline=None, max_examples=60)
@given(
    sizes=GROUPS,
    tau=st.sampled_from([1e-4, 0.01, 0.1, 1.0, 10.0]),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
    selection=st.sampled_from(["hard", "soft", "threshold"]),
    gumbel=st.sampled_from(["once", "each_step"]),
    distance=st.sampled_from(["squared", "norm"]),
    training=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_run_picks_one_patch_an_object(
    sizes: list[list[int]],
    tau: float,
    scale: float,
    selection: str,
    gumbel: str,
    distance: str,
    training: bool,
    seed: int,
) -> None:
    """Of any groups, also where every patch is the query's very own; the n-hot vector sums to n, padding has none."""
    setting = RetrievalSettings(temperature=tau, selection=selection, gumbel=gumbel, distance=distance)
    features, valid = padded(sizes, scale, seed=seed)
    features.requires_grad_()
    found = retrieve(features, valid, setting, rows(valid, setting, seed), training=training)
    check_one_each(found, valid)
    count = valid.any(2).sum(1)
    torch.testing.assert_close(found.weights.sum((1, 2)), count.float(), rtol=1e-4, atol=1e-4)
    assert not found.weights[~valid].any() and (found.weights >= 0).all()
    if selection == "hard" or not training:
        assert found.weights.sum(2).equal(valid.any(2).float()) and set(found.weights.flatten().tolist()) <= {0.0, 1.0}
        assert mix(features.nan_to_num(), found.weights).equal(chosen_of(features, found.chosen))
    empty = count == 0
    assert found.start[empty].eq(-1).all() and valid.flatten(1)[~empty].gather(1, found.start[~empty, None]).all()
    if not training:
        assert not found.weights.requires_grad
        return
    (gradient,) = torch.autograd.grad((found.weights * torch.randn(found.weights.shape)).sum(), features)
    assert gradient.isfinite().all() and not gradient[~valid].any()


@pytest.mark.parametrize("changes", [*READINGS, PRINTED], ids=str)
@pytest.mark.parametrize("tau", [1e-4, 1e-2, 0.1])
def test_gradients_are_numbers_at_zero_distance_and_small_tau(changes: dict[str, Any], tau: float) -> None:
    """In float32, where the query is a candidate, where two candidates are one, and where all of them are."""
    setting = RetrievalSettings(**{**changes, "temperature": tau})
    for scale in (1.0, 0.0):
        features, valid = padded([[3, 2, 3], [1, 1, 1], [4, 4, 4]], scale)
        features[0, 1, 0] = features[0, 0, 0]
        features = features.nan_to_num().requires_grad_()
        for query in (None, features[:, 0, 0]):
            found = retrieve(features, valid, setting, rows(valid, setting), query)
            values = (found.weights * torch.arange(float(valid[0].numel())).view(valid.shape[1:])).sum()
            (gradient,) = torch.autograd.grad(values + found.queries.square().sum(), features)
            assert found.weights.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("exclusion", ["group_mask", "accumulated"])
def test_without_temperature_soft_is_hard(exclusion: str) -> None:
    """Also for equation 4, whose patches may be of one object twice: s near 1 keeps it out by the logarithm alone."""
    for seed in range(20):
        features, valid = padded([[4, 4, 4], [3, 1, 2, 5]], seed=seed)
        hard, soft = (
            retrieve(features, valid, setting, rows(valid, setting, seed))
            for setting in (
                RetrievalSettings(temperature=1e-4, exclusion=exclusion, selection=selection)
                for selection in ("hard", "soft")
            )
        )
        torch.testing.assert_close(hard.weights, soft.weights, rtol=0, atol=1e-5)
        assert hard.order.equal(soft.order) and hard.chosen.equal(soft.chosen)


def test_hard_selection_has_the_gradient_of_the_softmax() -> None:
    """One retrieval from two groups: straight-through is the soft form's gradient at the hard form's value."""
    features, valid = padded([[3, 2]])
    features = features.nan_to_num().double().requires_grad_()
    found = []
    for selection in ("hard", "soft", "threshold"):
        setting = RetrievalSettings(temperature=1.0, iterations=1, selection=selection, threshold=1.0)
        weights = retrieve(features, valid, setting, rows(valid, setting)).weights
        found.append((weights, torch.autograd.grad((weights * torch.arange(6.0).view(1, 2, 3)).sum(), features)[0]))
    (hard, by_hard), (soft, by_soft), (threshold, by_threshold) = found
    assert by_soft.any() and by_hard.equal(by_soft) and by_threshold.equal(by_soft)
    # No softmax reaches 1, so that of it its largest is left: the hard form.
    assert threshold.equal(hard) and not hard.equal(soft)


@pytest.mark.parametrize("changes", [*READINGS, PRINTED], ids=str)
def test_a_picture_depends_on_no_neighbour_and_no_padding(changes: dict[str, Any]) -> None:
    """Each picture alone, in a batch, and with room for more objects: the same choice, weights and gradient."""
    setting = RetrievalSettings(**{"temperature": 0.3, **changes})
    sizes = [[3, 1, 4, 2], [4, 2], [0, 4, 0]]

    def run(chosen: list[int], more: int) -> list[tuple[Tensor, ...]]:
        features, valid = padded(sizes, 0.5, more)
        # A picture's seeds, with numbers for all the room there is.
        features, valid, noise = features[chosen].double(), valid[chosen], rows(valid, setting)[chosen].double()
        features.requires_grad_()
        found = retrieve(features, valid, setting, noise)
        values = torch.arange(float(4 * features.shape[2])).view(4, -1)
        (gradient,) = torch.autograd.grad((found.weights[:, :4] * values).sum(), features)
        told = (found.weights, found.chosen, gradient.nan_to_num(), found.start[:, None])
        return [tuple(tensor[row, :4] for tensor in told) for row in range(len(chosen))]

    together = run([0, 1, 2], 0)
    for found in ([run([b], 0)[0] for b in range(3)], run([0, 1, 2], 5), run([2, 1, 0], 0)[::-1]):
        for ours, theirs in zip(found, together, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def share_with_an_object_picked_twice(**changes: Any) -> float:
    setting = RetrievalSettings(**{**PRINTED, **changes})
    features = torch.randn(500, 8, 10, WIDTH, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(500, 8, 10, dtype=torch.bool)
    noise = torch.randn(500, noise_width(8, 10, setting), generator=torch.Generator().manual_seed(1))
    order = retrieve(features, valid, setting, noise, training=False).order
    return sum(len(set(each)) < 8 for each in order.tolist()) / 500


def test_the_printed_algorithm_picks_an_object_twice() -> None:
    """In nearly every run, as only the last step's object is kept out; equation 4's sum in fewer; the mask in none."""
    assert share_with_an_object_picked_twice() > 0.9
    assert 0.02 < share_with_an_object_picked_twice(exclusion="accumulated") < 0.7
    assert share_with_an_object_picked_twice(exclusion="group_mask") == 0


def test_equation_3_is_the_relaxed_top_k() -> None:
    """Groups of one patch, all the same to the query: what is left is reservoir sampling."""
    setting = RetrievalSettings(exclusion="accumulated", selection="soft", temperature=0.5)
    features, valid = torch.ones(3, 4, 1, WIDTH, dtype=torch.float64), torch.ones(3, 4, 1, dtype=torch.bool)
    noise = rows(valid, setting).double()
    expected, _ = relaxed_top_k(gumbel_noise(noise[:, 1:5]), 4, 0.5, setting.epsilon)
    torch.testing.assert_close(retrieve(features, valid, setting, noise).weights.squeeze(2), expected)


def test_patches_are_drawn_by_their_probability() -> None:
    """P(x = i) is proportional to exp(-d) whatever tau is, each patch is as often the first query, and seeds differ."""
    features = torch.tensor([[0.0], [0.5], [1.0]]).view(1, 1, 3, 1).expand(4000, -1, -1, -1)
    valid, setting = torch.ones(4000, 1, 3, dtype=torch.bool), RetrievalSettings(temperature=0.01)
    noise = seeded_noise(range(4000), noise_width(1, 3, setting), CPU)
    found = retrieve(features, valid, setting, noise, torch.zeros(4000, 1))
    expected = (-features[0, 0, :, 0].square()).softmax(0)
    torch.testing.assert_close(found.weights.mean((0, 1)), expected, rtol=0, atol=0.03)
    assert found.start.eq(-1).all()
    starts = retrieve(features, valid, setting, noise).start.bincount(minlength=3) / 4000
    torch.testing.assert_close(starts, torch.full((3,), 1 / 3), rtol=0, atol=0.03)


def test_a_given_query_picks_what_is_near_it() -> None:
    """Then what is near to that: without noise each step is the nearest patch to the mean of those before."""
    features = torch.zeros(1, 3, 2, WIDTH)
    features[0, :, :, 0] = torch.tensor([[0.0, 10.0], [1.0, 9.0], [2.0, 8.0]])
    valid, setting = torch.ones(1, 3, 2, dtype=torch.bool), RetrievalSettings(gumbel_when_sampling=False)
    noise = rows(valid, setting)
    for number, order in ((0.0, [0, 1, 2]), (10.0, [0, 1, 2]), (8.0, [2, 1, 0])):
        query = torch.full((1, WIDTH), 0.0)
        query[0, 0] = number
        found = retrieve(features, valid, setting, noise, query, training=False)
        assert found.order.tolist() == [order]
        assert found.chosen.tolist() == [[int(number > 5)] * 3]
    assert found.queries[0, :, 0].tolist() == [8.0, 8.0, 8.5]
    # Noise is there in training all the same.
    assert not retrieve(features, valid, setting, noise, query).logits.equal(found.logits)


def test_fewer_iterations_leave_objects_without_a_patch() -> None:
    features, valid = padded([[3, 3, 3, 3], [2, 2]])
    setting = RetrievalSettings(iterations=3)
    found = retrieve(features, valid, setting, rows(valid, setting))
    assert (found.chosen >= 0).sum(1).tolist() == [3, 2] and found.weights.sum((1, 2)).tolist() == [3, 2]
    assert found.order.shape == (2, 3) and found.order[1, 2] == -1
    none = chosen_of(features, found.chosen)[found.chosen < 0]
    assert len(none) and not none.any()


def test_noise_of_less_room_is_the_beginning_of_noise_of_more() -> None:
    """Torch draws rows in blocks: a seed's objects have the same noise however many the batch's largest graph has."""
    for gumbel in ("once", "each_step"):
        setting = RetrievalSettings(gumbel=gumbel)
        short, long = (noise_width(groups, 3, setting) for groups in (4, 9))
        assert short >= 1 + 3 * (16 if gumbel == "each_step" else 4)
        assert seeded_noise([7], long, CPU)[:, :short].equal(seeded_noise([7], short, CPU))
    features, valid = padded([[3, 2]])
    with pytest.raises(ValueError, match="each row of noise has 3 numbers and needs 16: ask noise_width"):
        retrieve(features, valid, RetrievalSettings(), torch.zeros(1, 3))


def test_gumbel_noise_is_that_of_uniform_numbers_even_far_out() -> None:
    normal = torch.tensor([-6.0, -1.0, 0.0, 2.0, 6.0])
    found = gumbel_noise(normal)
    uniform = torch.special.ndtr(normal.double())
    torch.testing.assert_close(found.double(), -(-uniform.log()).log(), rtol=1e-5, atol=1e-5)
    assert gumbel_noise(torch.tensor([40.0, -40.0])).isfinite().all()


def test_distances() -> None:
    first, second = torch.randn(2, 3, WIDTH), torch.randn(2, 4, WIDTH)
    slow_squared = (first[:, :, None] - second[:, None]).square().sum(3)
    torch.testing.assert_close(distances(first, second, "squared"), slow_squared)
    torch.testing.assert_close(distances(first, second, "norm"), slow_squared.sqrt())
    far = torch.full((1, 1, WIDTH), 1e3)
    assert not distances(far, far, "norm").any()


def test_random_places_are_of_those_that_are_there() -> None:
    there = torch.tensor([[False, True, False, True], [False] * 4, [True] * 4])
    normal = torch.linspace(-9, 9, 401).expand(3, -1)
    found = random_places(there, normal)
    assert set(found[0].tolist()) == {1, 3} and set(found[1].tolist()) == {-1}
    assert set(found[2].tolist()) == {0, 1, 2, 3}


def test_half_precision_around_it_changes_nothing() -> None:
    features, valid = padded([[3, 2], [1, 3]])
    setting = RetrievalSettings()
    noise = rows(valid, setting)
    exact = retrieve(features.double(), valid, setting, noise.double())
    with torch.autocast("cpu", torch.bfloat16):
        around = retrieve(features, valid, setting, noise)
    torch.testing.assert_close(around.logits.double(), exact.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(around.queries.double(), exact.queries, rtol=1e-6, atol=1e-6)
    assert retrieve(features.bfloat16(), valid, setting, noise).weights.dtype == torch.float32
