"""Waiting pictures become batches: whatever waits while one batch is drawn is the next one.

Serve's own decorator for batches keeps a task, and with it the model, for ever, and draws what nobody waits for any
more; here models come and go, and a batch must hold one model and one truncation.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestration.serving.settings import BatchSettings

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One picture. until: on the clock of `time.monotonic`, when nobody waits for it any more."""

    prompt: str
    seed: int
    truncation: float | None
    request_id: str
    until: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """pixels: (H,W,3), None where the painter failed; batched: pictures in the batch, and seconds that it took."""

    pixels: Pixels | None
    batched: int
    seconds: float


DrawBatch = Callable[[Sequence[Wanted]], Awaitable[Sequence[Pixels | None]]]


class Batcher:
    """Gathers pictures of one model. `draw` is called with pictures of one truncation, and never twice at once."""

    def __init__(self, draw: DrawBatch, settings: BatchSettings) -> None:
        self.settings = settings
        self._draw = draw
        self._waiting: list[tuple[Wanted, asyncio.Future[Drawn]]] = []
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Pictures that wait."""
        return len(self._waiting)

    async def __call__(self, wanted: Wanted) -> Drawn:
        """The picture. Raises TimeoutError when it is not begun before `until`."""
        drawn: asyncio.Future[Drawn] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, drawn))
        if self._task is None:
            self._task = asyncio.create_task(self._draw_all())
        return await drawn

    async def _draw_all(self) -> None:
        try:
            await asyncio.sleep(self.settings.wait_s)
            while batch := self._next():
                started = time.monotonic()
                try:
                    pixels = await self._draw([wanted for wanted, _ in batch])
                except Exception as error:
                    for _, drawn in batch:
                        if not drawn.done():
                            drawn.set_exception(error)
                    continue
                seconds = time.monotonic() - started
                for (_, drawn), one in zip(batch, pixels, strict=True):
                    if not drawn.done():
                        drawn.set_result(Drawn(one, len(batch), seconds))
        finally:
            self._task = None

    def _next(self) -> list[tuple[Wanted, asyncio.Future[Drawn]]]:
        """The longest waiting picture, and those that can be drawn with it."""
        there = []
        for wanted, drawn in self._waiting:
            if drawn.done():
                continue
            if wanted.until <= time.monotonic():
                drawn.set_exception(TimeoutError())
                continue
            there.append((wanted, drawn))
        fits = [each for each in there if each[0].truncation == there[0][0].truncation][: self.settings.max_batch]
        taken = {id(drawn) for _, drawn in fits}
        self._waiting = [each for each in there if id(each[1]) not in taken]
        return fits
