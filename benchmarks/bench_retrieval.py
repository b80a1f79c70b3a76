"""RetrieveGAN's retrieval by the number of candidates: 8 objects, batch 16, features of width 128, forward and
backward.

Wanted: time linear in n * k. `growth` is the time of 50 candidates over that of 10, where sides take turns and each
round has a ratio of its own, of which it is the median; linear work has 5 (less where a part costs each k the same),
and half as much again for noise is missed.

Floor: each of n steps reads all features for their distances and for the query, and once more each for the gradient of
the query before and of the step's softmax; into the features' own gradient it writes both: 6 passes of 2 operations a
number. `floor_s` is that at the rate at which one such pass, a weighted sum of each picture's features, was best seen.
`floor_mib` is what must wait for the gradient: the features themselves and each step's softmax; `kept_mib` is what did,
each storage that autograd kept counted once.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from timing import report
from torch import Tensor

from models.retrievegan.retrieval import RetrievalSettings, noise_width, retrieve

BATCH, GROUPS, WIDTH = 16, 8, 128
SIZES = (10, 20, 30, 40, 50)
WARM_UP, ROUNDS = 2, 9
PASSES = 6
SETTINGS = RetrievalSettings()
LINEAR, ALLOWED = SIZES[-1] / SIZES[0], 1.5


def task(size: int) -> Callable[[], None]:
    """One retrieval with its gradient."""
    draw = torch.Generator().manual_seed(size)
    features = torch.randn(BATCH, GROUPS, size, WIDTH, generator=draw).mul_(WIDTH**-0.5).requires_grad_()
    valid = torch.ones(BATCH, GROUPS, size, dtype=torch.bool)
    noise = torch.randn(BATCH, noise_width(GROUPS, size, SETTINGS), generator=draw)
    upstream = torch.randn(BATCH, GROUPS, size, generator=draw)

    def run() -> None:
        found = retrieve(features, valid, SETTINGS, noise)
        torch.autograd.grad((found.weights * upstream).sum(), features)

    return run


def kept_mib(size: int) -> float:
    """What autograd keeps of one forward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        task(size)()
    return sum(kept.values()) / 2**20


def one_pass(size: int) -> Callable[[], Tensor]:
    """A weighted sum of each picture's features."""
    features, weights = torch.randn(BATCH, GROUPS * size, WIDTH), torch.rand(BATCH, 1, GROUPS * size)
    return lambda: torch.bmm(weights, features)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    tasks, least = {size: task(size) for size in SIZES}, one_pass(SIZES[-1])
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    passes: list[float] = []
    for turn in range(WARM_UP + ROUNDS):
        for size in SIZES:
            spent = seconds(tasks[size])
            passes.append(seconds(least))
            if turn >= WARM_UP:
                times[size].append(spent)
    smallest, largest = SIZES[0], SIZES[-1]
    growth = median(slow / fast for slow, fast in zip(times[largest], times[smallest], strict=True))
    numbers = BATCH * GROUPS * largest * WIDTH
    floor_s = GROUPS * PASSES * min(passes)
    report(
        benchmark="retrieval",
        batch=BATCH,
        objects=GROUPS,
        width=WIDTH,
        threads=torch.get_num_threads(),
        **{f"k{size}_s": median(times[size]) for size in SIZES},
        growth=growth,
        linear=LINEAR,
        verdict="reached" if growth <= ALLOWED * LINEAR else "missed",
        floor_gflop=2 * GROUPS * PASSES * numbers / 1e9,
        floor_s=floor_s,
        over_floor=min(times[largest]) / floor_s,
        floor_mib=4 * (numbers + GROUPS * BATCH * GROUPS * largest) / 2**20,
        kept_mib=kept_mib(largest),
    )


if __name__ == "__main__":
    main()
