"""RetrieveGAN's co-occurrence embedding: which triplets count, on any number of workers, and what training does."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from models.contract import Batch, Given, Graphs, StageMissing, StepContext, Trainable
from models.parallel import OneRank, Ranks
from models.retrievegan.co_occurrence import (
    CoOccurrence,
    CoOccurrenceConfig,
    CoOccurrenceNet,
    all_triplets,
    embed_objects,
    hardest_triplets,
    open_co_occurrence,
    random_triplets,
    triplet_objective,
)

ONE = OneRank()
PART = CoOccurrence()
SMALL = CoOccurrenceConfig(resolution=32, patch_side=16, channels=4, embedding_dim=6)


def some_embeddings(counts: list[int], most: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(B,N,E) in double precision and which are there."""
    draw = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(counts), most, 3, generator=draw, dtype=torch.float64)
    there = torch.arange(most) < torch.tensor(counts)[:, None]
    return embeddings.masked_fill(~there[..., None], 0), there


def slow_triplets(embeddings: Tensor, there: Tensor, squared: bool) -> dict[tuple[int, int, int], dict[Any, Any]]:
    """By (picture, first, second of it): both distances for each patch of the others."""
    found: dict[tuple[int, int, int], dict[Any, Any]] = {}
    places = [(b, n) for b in range(len(there)) for n in range(there.shape[1]) if there[b, n]]

    def apart(one: tuple[int, int], other: tuple[int, int]) -> float:
        d: float = (embeddings[one] - embeddings[other]).norm().item()
        return d * d if squared else d

    for b, n in places:
        for c, m in places:
            if b == c and n != m:
                far = {place: apart((b, n), place) for place in places if place[0] != b}
                found[b, n, m] = {place: (apart((b, n), (b, m)), value) for place, value in far.items()}
    return found


def sorted_pairs(near: Tensor, far: Tensor) -> Tensor:
    return torch.tensor(sorted(zip(near.tolist(), far.tolist(), strict=True)), dtype=torch.float64).view(-1, 2)


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    distance=st.sampled_from(["squared", "norm"]),
    seed=st.integers(0, 100),
)
def test_triplets_are_those_of_the_loop(counts: list[int], distance: Any, seed: int) -> None:
    """Two patches of one picture and one of another: all; the hardest of each patch; one of each pair."""
    embeddings, there = some_embeddings(counts, seed=seed)
    slow = slow_triplets(embeddings, there, distance == "squared")
    near, far = all_triplets(embeddings, there, ONE, distance)
    everything = [pair for each in slow.values() for pair in each.values()]
    expected = torch.tensor(sorted(everything), dtype=torch.float64).view(-1, 2)
    torch.testing.assert_close(sorted_pairs(near, far), expected)

    near, far = hardest_triplets(embeddings, there, ONE, distance)
    hardest: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for (b, n, _), each in slow.items():
        hardest.setdefault((b, n), []).extend(each.values())
    worst = [(max(x for x, _ in each), min(y for _, y in each)) for each in hardest.values() if each]
    torch.testing.assert_close(sorted_pairs(near, far), torch.tensor(sorted(worst), dtype=torch.float64).view(-1, 2))

    normal = torch.randn(len(counts), 16, generator=torch.Generator().manual_seed(seed))
    near, far = random_triplets(embeddings, there, ONE, distance, normal)
    pairs = [each for each in slow.values() if each]
    assert len(near) == len(pairs)
    for (x, y), each in zip(zip(near.tolist(), far.tolist(), strict=True), pairs, strict=True):
        assert min(abs(x - one) + abs(y - other) for one, other in each.values()) < 1e-6


def test_random_triplets_take_every_patch_of_other_pictures() -> None:
    embeddings, there = some_embeddings([2, 3, 1])
    far: set[float] = set()
    for seed in range(60):
        normal = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
        far |= {round(each, 6) for each in random_triplets(embeddings, there, ONE, "squared", normal)[1][:2].tolist()}
    slow = slow_triplets(embeddings, there, True)
    assert far == {round(y, 6) for key in ((0, 0, 1), (0, 1, 0)) for _, y in slow[key].values()}


class ThreadRanks:
    """Workers that are threads of one process, so that one gradient goes through all of them."""

    def __init__(self, rank: int, slots: list[Any], barrier: Barrier) -> None:
        self.rank, self.size, self.slots, self.barrier = rank, len(slots), slots, barrier

    def _everyones(self, mine: Any) -> list[Any]:
        self.slots[self.rank] = mine
        self.barrier.wait(10)
        found = list(self.slots)
        self.barrier.wait(10)
        return found

    def gather(self, local: Tensor) -> Tensor:
        return torch.cat(self._everyones(local))

    def average_(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(torch.stack([each.clone() for each in self._everyones(tensor.clone())]).mean(0))


def on_two(work: Callable[[int, Ranks], Any]) -> list[Any]:
    """What two workers say."""
    slots, barrier = [None, None], Barrier(2)
    told: list[Any] = [None, None]

    def run(rank: int) -> None:
        told[rank] = work(rank, ThreadRanks(rank, slots, barrier))

    threads = [Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return told


@pytest.mark.parametrize("mining", ["all", "hardest", "random"])
@pytest.mark.parametrize("counts", [[4, 2, 1, 3], [1, 1, 4, 4], [1, 1, 1, 1]], ids=str)
def test_two_workers_are_one(mining: str, counts: list[int]) -> None:
    """In loss, terms and gradient, however unequal their objects are."""
    config = replace_config(mining=mining, margin=2.0)
    embeddings, there = some_embeddings(counts)
    embeddings.requires_grad_()
    normal = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    alone = triplet_objective(config, embeddings, there, ONE, normal)

    def work(rank: int, ranks: Ranks) -> Any:
        own = slice(2 * rank, 2 * rank + 2)
        return triplet_objective(config, embeddings[own], there[own], ranks, normal[own])

    together = on_two(work)
    torch.testing.assert_close((together[0].loss + together[1].loss) / 2, alone.loss)
    for name, value in alone.terms.items():
        torch.testing.assert_close((together[0].terms[name] + together[1].terms[name]) / 2, value)
    (wanted,) = torch.autograd.grad(alone.loss, embeddings)
    (found,) = torch.autograd.grad((together[0].loss + together[1].loss) / 2, embeddings)
    torch.testing.assert_close(found, wanted)
    assert (alone.loss > 0) == (max(counts) > 1)


def replace_config(**changes: Any) -> CoOccurrenceConfig:
    return SMALL.model_copy(update=changes)


def test_the_loss_is_the_mean_of_what_is_short_of_the_margin() -> None:
    """On a line: 0 and 1 of one picture, 3 of another, and of a third the same as the first's."""
    embeddings = torch.zeros(3, 2, 1)
    embeddings[:, :, 0] = torch.tensor([[0.0, 1.0], [3.0, 99.0], [0.0, 99.0]])
    there = torch.tensor([[True, True], [True, False], [True, False]])
    found = triplet_objective(replace_config(margin=0.5, distance="norm"), embeddings, there, ONE)
    # From 0: 1 against 3 and 0. From 1: 1 against 2 and 1.
    assert found.loss.item() == pytest.approx((0 + 1.5 + 0 + 0.5) / 4)
    assert found.terms["co_occurrence_order"].item() == 0.5


def some_batch(counts: list[int], most: int = 4, resolution: int = 32, seed: int = 0) -> Batch:
    """Pictures of one colour each, with noise, and boxes anywhere."""
    draw = torch.Generator().manual_seed(seed)
    count = len(counts)
    colours = 2 * torch.rand(count, 3, 1, 1, generator=draw) - 1
    images = colours + 0.3 * torch.randn(count, 3, resolution, resolution, generator=draw)
    low = 0.5 * torch.rand(count, most, 2, generator=draw)
    boxes = torch.cat([low, low + 0.25 + 0.25 * torch.rand(count, most, 2, generator=draw)], 2)
    graphs = Graphs(
        torch.ones(count, most, dtype=torch.int64),
        boxes,
        torch.tensor(counts),
        torch.zeros(count, 1, 3, dtype=torch.int64),
        torch.zeros(count, dtype=torch.int64),
    )
    return Batch(torch.arange(count), images, graphs=graphs)


def context() -> StepContext:
    def noise(width: int) -> Tensor:
        return torch.randn(8, width, generator=torch.Generator().manual_seed(0))

    return StepContext(ONE, noise)


@pytest.mark.parametrize("mining", ["all", "hardest", "random"])
@pytest.mark.parametrize("normalised", [True, False])
def test_training_puts_patches_of_a_picture_together(mining: str, normalised: bool) -> None:
    """Pictures of one colour each: in a few steps nearly all triplets of others are in the right order."""
    torch.manual_seed(0)
    config = replace_config(mining=mining, normalised=normalised)
    nets = PART.build(config)
    assert nets.keys() == PART.optimizers(config).keys()
    unseen = some_batch([3, 1, 2, 4, 3, 2, 4, 4], seed=99)
    optimizer = torch.optim.Adam(nets["co_occurrence"].parameters(), 0.01)
    losses = []
    (phase,) = PART.phases(config)
    for step in range(25):
        batch = some_batch([3, 1, 2, 4, 3, 2, 4, 4], seed=step)
        objective = phase.losses(nets, batch, context())["co_occurrence"]
        optimizer.zero_grad()
        torch.autograd.backward(objective.loss)
        optimizer.step()
        losses.append(objective.loss.item())
    before = {name: value.clone() for name, value in nets["co_occurrence"].state_dict().items()}
    near, far = PART.compare(nets, unseen)
    assert nets["co_occurrence"].training
    assert all(value.equal(before[name]) for name, value in nets["co_occurrence"].state_dict().items())
    assert near.shape == far.shape and len(near) > 100
    assert (near < far).float().mean() > 0.9
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_embeddings_stand_where_their_objects_do() -> None:
    """Each object's is that of its own crop, whatever else is in the batch; padding, even if no number, has none."""
    torch.manual_seed(0)
    net = CoOccurrenceNet(SMALL).eval()
    batch = some_batch([2, 4, 1])
    graphs = batch.graphs
    assert graphs is not None
    padding = graphs.padding()[..., None].expand_as(graphs.boxes)
    spoilt = replace(batch, graphs=replace(graphs, boxes=graphs.boxes.masked_fill(padding, torch.nan)))
    with torch.no_grad():
        embeddings, there = embed_objects(net, spoilt)
        alone, _ = embed_objects(net, batch[1:2])
    assert there.equal(~graphs.padding()) and not embeddings[~there].any()
    torch.testing.assert_close(embeddings[1:2], alone)
    torch.testing.assert_close(embeddings[there].norm(dim=1), torch.ones(7))
    assert torch.pdist(embeddings[there]).min() > 0


def test_patches_of_any_size_have_an_embedding() -> None:
    """Those of a bank need not be as large as those it was trained on."""
    net = CoOccurrenceNet(SMALL)
    assert [net(torch.randn(2, 3, side, side)).shape for side in (16, 24, 64)] == [(2, 6)] * 3


def test_the_frozen_net_is_the_trained_one(tmp_path: Path) -> None:
    """Built as its folder says."""
    torch.manual_seed(0)
    net = CoOccurrenceNet(SMALL)
    save_file(net.state_dict(), tmp_path / "co_occurrence.safetensors")
    given, described = Given(folders={"co_occurrence": tmp_path}), tmp_path / "part.json"
    with pytest.raises(ValueError, match=r"part.json does not describe a co_occurrence .*train it again"):
        open_co_occurrence(given)
    described.write_text(json.dumps({"system": "co_occurrence", "model": SMALL.model_dump(mode="json")}))
    loaded = open_co_occurrence(given)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    patches = torch.randn(2, 3, 16, 16)
    assert loaded(patches).equal(net.eval()(patches))
    with pytest.raises(StageMissing, match="co_occurrence comes from the trained stage 'co_occurrence', which was not"):
        open_co_occurrence(Given())
    with torch.device("meta"):
        assert open_co_occurrence(Given())(patches.to("meta")).is_meta


def test_it_is_a_part() -> None:
    part: Trainable[CoOccurrenceConfig] = PART
    assert not part.stages(SMALL) and not part.averages(SMALL) and part.resolution(SMALL) == 32
    with torch.device("meta"):
        assert part.build(CoOccurrenceConfig()).keys() == part.optimizers(CoOccurrenceConfig()).keys()
    with pytest.raises(ValueError, match="patch_side"):
        CoOccurrenceConfig(patch_side=8)
