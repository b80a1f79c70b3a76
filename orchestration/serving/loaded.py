"""One version of a model, ready to draw: its painter, the batches it can be drawn in, and who waits for it."""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from orchestration.errors import RequestError
from orchestration.serving.backend import IN_WORDS, Job, Painted, kinds_in_words
from orchestration.serving.batching import Batcher, Drawn, Pixels, Wanted
from orchestration.serving.catalogue import Release
from orchestration.serving.endpoint import log_failure
from orchestration.serving.painting import InvariantBatches, PainterLike, probes_of, prompt_fault
from orchestration.serving.pictures import encode_png, image_id, picture_metadata
from orchestration.serving.replies import Abilities, ModelIdentity
from orchestration.serving.settings import BatchSettings, ServeSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not drawn: a code of `requests.STATUS`, and a sentence; none for what is not to be told."""

    code: str
    message: str = ""


@dataclass(slots=True)
class Counts:
    """What was drawn."""

    batches: int = 0
    pictures: int = 0


class LoadedModel:
    """Draws on one thread, which all models of a replica share; what waits is counted by model."""

    def __init__(
        self,
        release: Release,
        painter: PainterLike,
        batches: InvariantBatches,
        settings: BatchSettings,
        thread: ThreadPoolExecutor,
        counts: Counts,
    ) -> None:
        self.release, self.painter, self.counts = release, painter, counts
        self.abilities: Abilities = painter.abilities
        self.identity = ModelIdentity(
            name=release.model, version=str(release.version), checkpoint_digest=painter.checkpoint_digest
        )
        self.failed = False
        self._thread = thread
        self._batches = batches
        self._batcher = Batcher(self._draw_batch, _within(settings, batches))

    @classmethod
    def load(
        cls,
        release: Release,
        settings: ServeSettings,
        batching: BatchSettings,
        thread: ThreadPoolExecutor,
        counts: Counts,
    ) -> "LoadedModel":
        """From its folder, on whatever thread this is called. Raises RequestError where that is damaged, or is not the
        checkpoint that was registered."""
        module, _, name = settings.painter.partition(":")
        kind: type[PainterLike] = getattr(import_module(module), name)
        assert release.folder is not None
        painter = kind.load(release.folder, settings.home, settings.device)
        if painter.checkpoint_digest != release.digest:
            raise RequestError(
                f"the checkpoint of {release.id} is another one than was registered: register it again, or choose "
                "another version"
            )
        return cls(release, painter, InvariantBatches(painter, batching.max_batch), batching, thread, counts)

    @property
    def sizes(self) -> Sequence[int]:
        """Batch sizes in use."""
        return self._batches.sizes

    async def rebatch(self, settings: BatchSettings) -> None:
        """Other batches from now on; a new max_batch is probed before it is used."""
        if settings.max_batch != self._batches.max_batch:
            self._batches = await self._on_thread(InvariantBatches, self.painter, settings.max_batch)
        self._batcher.settings = _within(settings, self._batches)

    async def paint(self, job: Job) -> Painted | Refusal:
        """One PNG a seed."""
        until = time.monotonic() + job.seconds
        refusal = self._unable(job) or await asyncio.to_thread(self._unreadable, job)
        if refusal is not None:
            return refusal
        waiting = [self._batcher(Wanted(job.text, seed, job.truncation, job.request_id, until)) for seed in job.seeds]
        try:
            drawings = await asyncio.gather(*waiting)
        except TimeoutError:
            return Refusal("timed_out")
        reasons = None
        if job.explain:
            try:
                reasons = await self._on_thread(self.painter.explain, job.text, job.seeds, job.truncation)
            except Exception as error:
                log_failure("explaining request", job.request_id, error)
                return Refusal("internal")
        if any(drawn.pixels is None for drawn in drawings):
            return Refusal("internal")
        digest = self.identity.checkpoint_digest
        ids = [image_id(digest, job.kind, job.text, seed, job.truncation) for seed in job.seeds]
        pictures = await asyncio.gather(
            *(asyncio.to_thread(self._png, job, place, drawn, ids[place]) for place, drawn in enumerate(drawings))
        )
        first = drawings[0]
        return Painted(self.identity, pictures, ids, reasons, first.batched, first.seconds)

    async def check(self) -> None:
        """Draws a probe if the last drawing failed, so that a broken device is found out. Raises what that raises."""
        if self.failed:
            prompt, seed = probes_of(self.painter)[0]
            await self._on_thread(self._batches.draw, [prompt], [seed])
            self.failed = False

    def _unable(self, job: Job) -> Refusal | None:
        able, name = self.abilities, self.release.id
        if job.kind not in able.accepts:
            takes = kinds_in_words(able.accepts) or "nothing that a person can write"
            mend = f"send type {able.accepts[0]}, or name" if able.accepts else "name"
            return Refusal("wrong_input", f"{name} takes {takes}, not {IN_WORDS[job.kind]}: {mend} another model")
        if job.truncation is not None and not able.truncation:
            return Refusal("wrong_field", f"truncation: {name} draws from no latent to truncate: leave it out")
        return None

    def _unreadable(self, job: Job) -> Refusal | None:
        fault = prompt_fault(self.painter, job.text)
        return None if fault is None else Refusal("wrong_prompt", fault)

    def _png(self, job: Job, place: int, drawn: Drawn, name: str) -> bytes:
        assert drawn.pixels is not None
        metadata = picture_metadata(job.kind, job.text, job.seeds[place], job.truncation, self.identity, name)
        return encode_png(drawn.pixels, metadata)

    async def _draw_batch(self, batch: Sequence[Wanted]) -> Sequence[Pixels | None]:
        self.counts.batches += 1
        self.counts.pictures += len(batch)
        try:
            return list(await self._draw(batch))
        except Exception as error:
            log_failure("a batch with request", batch[0].request_id, error)
        # One bad prompt must not take its neighbours down.
        return [await self._draw_alone(wanted) for wanted in batch]

    async def _draw_alone(self, wanted: Wanted) -> Pixels | None:
        try:
            pictures = await self._draw([wanted])
        except Exception as error:
            self.failed = True
            log_failure("request", wanted.request_id, error)
            return None
        return pictures[0]

    async def _draw(self, batch: Sequence[Wanted]) -> Pixels:
        prompts, seeds = [wanted.prompt for wanted in batch], [wanted.seed for wanted in batch]
        pictures: Pixels = await self._on_thread(self._batches.draw, prompts, seeds, batch[0].truncation)
        return pictures

    async def _on_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


def prepare_thread(threads: int) -> None:
    """For a thread that draws: its share of the machine, and sums that are always done in one order."""
    torch.set_num_threads(threads)
    # A convolution that is chosen by timing, or adds up in any order, gives other bits each time.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _within(settings: BatchSettings, batches: InvariantBatches) -> BatchSettings:
    return BatchSettings(max_batch=min(settings.max_batch, batches.sizes[-1]), wait_s=settings.wait_s)
