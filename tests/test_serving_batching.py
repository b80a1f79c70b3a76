"""Waiting pictures become batches of one truncation; what nobody waits for is not drawn."""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.serving.batching import Batcher, Drawn, Pixels, Wanted
from orchestration.serving.settings import BatchSettings


class Painter:
    """Draws a picture whose every byte is its seed."""

    def __init__(self) -> None:
        self.batches: list[list[Wanted]] = []
        self.at_once = 0

    async def __call__(self, batch: Sequence[Wanted]) -> Sequence[Pixels | None]:
        self.at_once += 1
        assert self.at_once == 1, "two batches at once"
        self.batches.append(list(batch))
        await asyncio.sleep(0.002)
        self.at_once -= 1
        return [None if each.prompt == "fail" else np.full((2, 2, 3), each.seed, np.uint8) for each in batch]


def wanted(seed: int = 0, prompt: str = "a", truncation: float | None = None, seconds: float = 60.0) -> Wanted:
    return Wanted(prompt, seed, truncation, "id", time.monotonic() + seconds)


def gathered(requests: Sequence[Wanted], max_batch: int = 4, wait_s: float = 0.001) -> tuple[list[Drawn], Painter]:
    painter = Painter()

    async def run() -> list[Drawn]:
        batcher = Batcher(painter, BatchSettings(max_batch=max_batch, wait_s=wait_s))
        return list(await asyncio.gather(*(batcher(each) for each in requests)))

    return asyncio.run(run()), painter


@given(
    requests=st.lists(st.tuples(st.integers(0, 255), st.sampled_from([None, 0.5, 2.0])), min_size=1, max_size=30),
    max_batch=st.integers(1, 8),
)
@settings(deadline=None, max_examples=40)
def test_everyone_gets_their_own(requests: list[tuple[int, float | None]], max_batch: int) -> None:
    drawn, painter = gathered([wanted(seed, truncation=t) for seed, t in requests], max_batch)
    assert [int(one.pixels[0, 0, 0]) for one in drawn if one.pixels is not None] == [seed for seed, _ in requests]
    assert all(len({each.truncation for each in batch}) == 1 for batch in painter.batches)
    assert all(len(batch) <= max_batch for batch in painter.batches)
    least = sum(-(-[t for _, t in requests].count(kind) // max_batch) for kind in (None, 0.5, 2.0))
    assert len(painter.batches) == least, "as few batches as can be"
    assert sum(map(len, painter.batches)) == len(requests)


def test_a_failure_is_told_apart_from_its_neighbours() -> None:
    drawn, _ = gathered([wanted(1), wanted(2, "fail"), wanted(3)])
    assert [one.pixels is None for one in drawn] == [False, True, False]
    assert {one.batched for one in drawn} == {3}


def test_what_is_too_late_is_not_drawn() -> None:
    painter = Painter()

    async def run() -> None:
        batcher = Batcher(painter, BatchSettings(max_batch=1, wait_s=0.05))
        late, early = batcher(wanted(1, seconds=0.01)), batcher(wanted(2))
        outcomes = await asyncio.gather(late, early, return_exceptions=True)
        assert isinstance(outcomes[0], TimeoutError) and isinstance(outcomes[1], Drawn)

    asyncio.run(run())
    assert [each.seed for batch in painter.batches for each in batch] == [2]


def test_what_nobody_waits_for_any_more_is_not_drawn() -> None:
    painter = Painter()

    async def run() -> None:
        batcher = Batcher(painter, BatchSettings(max_batch=4, wait_s=0.02))
        left = asyncio.create_task(batcher(wanted(1)))
        await asyncio.sleep(0)
        left.cancel()
        await batcher(wanted(2))
        assert len(batcher) == 0
        await batcher(wanted(3))

    asyncio.run(run())
    assert [each.seed for batch in painter.batches for each in batch] == [2, 3]


def test_a_painter_that_raises_does_not_leave_anyone_waiting() -> None:
    async def broken(batch: Sequence[Wanted]) -> Sequence[Pixels | None]:
        raise OSError("the device is gone")

    async def run() -> None:
        batcher = Batcher(broken, BatchSettings(max_batch=4, wait_s=0.0))
        async with asyncio.timeout(5):
            for _ in range(2):
                outcomes = await asyncio.gather(batcher(wanted(1)), batcher(wanted(2)), return_exceptions=True)
                assert [type(outcome) for outcome in outcomes] == [OSError, OSError]

    asyncio.run(run())


@pytest.mark.parametrize("wait_s", [0.0, 0.01])
def test_what_comes_while_a_batch_is_drawn_is_the_next_one(wait_s: float) -> None:
    painter = Painter()

    async def run() -> None:
        batcher = Batcher(painter, BatchSettings(max_batch=8, wait_s=wait_s))
        first = asyncio.create_task(batcher(wanted(0)))
        while not painter.batches:
            await asyncio.sleep(0)
        await asyncio.gather(first, *(batcher(wanted(seed)) for seed in range(1, 6)))

    asyncio.run(run())
    assert [len(batch) for batch in painter.batches] == [1, 5]
