"""The Ray Serve application: an ingress that speaks HTTP and replicas that draw in batches.

`build_app` is the import path of a Serve configuration file: `import_path: orchestration.serving.app:build_app`.
"""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from orchestration.config import first_problem
from orchestration.errors import RequestError
from orchestration.serving.endpoint import Painted, create_http_app, internal_error, log_failure
from orchestration.serving.painting import InvariantBatches, PainterLike, probes_of, prompt_fault
from orchestration.serving.pictures import encode_png, picture_metadata
from orchestration.serving.requests import ModelIdentity, ServeError

TOKEN_VARIABLE = "T2I_SERVE_TOKEN"
# Drawing is a pure function of the request, so a request whose replica died is simply sent again.
ATTEMPTS = 3
# Batches that a replica gathers while one is drawn.
GATHERING = 8

Pixels = NDArray[np.uint8]
Item = tuple[str, int, str]  # prompt, seed, request id

PartT = TypeVar("PartT", "PainterSettings", "BatchSettings")

logger = logging.getLogger(__name__)


class BatchSettings(BaseModel):
    """What `user_config` of the deployment `painter` holds; it can be changed while serving."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch: int = Field(16, ge=1, le=1024, description="pictures drawn at once, at most")
    wait_s: float = Field(0.01, ge=0, le=10, description="how long a picture waits for company")


class PainterSettings(BaseModel):
    """What a replica is built from; a change restarts it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Path
    home: Path
    name: str = Field(min_length=1, max_length=200, description="of the model, as registered")
    version: str = Field(min_length=1, max_length=200, coerce_numbers_to_str=True)
    device: str = Field("cpu", pattern=r"^(cpu|cuda)$", description="cuda takes one GPU a replica")
    cpus: float = Field(1.0, gt=0, description="CPUs a replica, and its threads")
    painter: str = Field("orchestration.painter:Painter", pattern=r"^[\w.]+:\w+$", description="module:Class")


class ServeSettings(PainterSettings, BatchSettings):
    """The `args` of the application."""

    replicas: int = Field(1, ge=1, le=1024)
    max_queued: int = Field(256, ge=1, description="requests that may wait; one more is refused as busy")
    timeout_s: float = Field(60.0, gt=0, description="longest time a request may take")

    def part(self, kind: type[PartT]) -> PartT:
        """The fields of one of the classes this one is made of."""
        return kind.model_validate(self.model_dump(include=set(kind.model_fields)))


class PainterReplica:
    """One painter on one share of the machine; every drawing happens on its one thread."""

    def __init__(self, settings: PainterSettings) -> None:
        _log_with_serve()
        threads = max(1, int(settings.cpus))
        self._thread = ThreadPoolExecutor(1, "painter", initializer=_prepare_thread, initargs=(threads,))
        self._painter: PainterLike = self._thread.submit(_load_painter, settings).result()
        self._model = ModelIdentity(
            name=settings.name, version=settings.version, checkpoint_digest=self._painter.checkpoint_digest
        )
        self._batches: InvariantBatches | None = None
        self._waiting: list[tuple[Item, asyncio.Future[Pixels | None]]] = []
        self._turn = asyncio.Lock()
        self._failed = False
        self._drawn = {"batches": 0, "pictures": 0}

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Takes BatchSettings; a new max_batch is probed before it is used."""
        settings = BatchSettings.model_validate(user_config)
        if self._batches is None or self._batches.max_batch != settings.max_batch:
            self._batches = await self._on_thread(InvariantBatches, self._painter, settings.max_batch)
        self._draw_one.set_max_batch_size(self._batches.sizes[-1])
        self._draw_one.set_batch_wait_timeout_s(settings.wait_s)

    async def paint(self, prompt: str, seeds: Sequence[int], request_id: str) -> Painted | str | None:
        """One PNG a seed; a sentence where the prompt cannot be drawn; None, after a line in the log, when the painter
        failed at one."""
        fault = await asyncio.to_thread(prompt_fault, self._painter, prompt)
        if fault is not None:
            return fault
        drawings = await asyncio.gather(*(self._draw_one((prompt, seed, request_id)) for seed in seeds))
        if any(pixels is None for pixels in drawings):
            return None
        pictures = [
            asyncio.to_thread(encode_png, pixels, picture_metadata(prompt, seed, self._model))
            for pixels, seed in zip(drawings, seeds, strict=True)
        ]
        return Painted(self._model, await asyncio.gather(*pictures))

    def describe(self) -> ModelIdentity:
        """The model this replica draws with."""
        return self._model

    def statistics(self) -> dict[str, Any]:
        """How many batches and pictures were drawn, and the batch sizes in use."""
        return {**self._drawn, "sizes": list(self._batches.sizes) if self._batches else []}

    async def check_health(self) -> None:
        """Draws a probe if the last drawing failed, so that a broken device restarts the replica."""
        if self._failed:
            prompt, seed = probes_of(self._painter)[0]
            await self._draw([prompt], [seed])
            self._failed = False

    @serve.batch(max_concurrent_batches=GATHERING)
    async def _draw_one(self, items: list[Item]) -> list[Pixels | None]:
        # Serve closes a batch after wait_s, while the one before is still being drawn; what has been closed meanwhile
        # is drawn together, or a busy server would draw many small batches.
        drawings: list[asyncio.Future[Pixels | None]] = [asyncio.Future() for _ in items]
        self._waiting += zip(items, drawings, strict=True)
        async with self._turn:
            while not all(drawing.done() for drawing in drawings):
                await self._draw_waiting()
        return [drawing.result() for drawing in drawings]

    async def _draw_waiting(self) -> None:
        assert self._batches is not None, "Serve calls reconfigure before the first request"
        limit = self._batches.sizes[-1]
        taken, self._waiting = self._waiting[:limit], self._waiting[limit:]
        results: list[Pixels | None] = [None] * len(taken)
        try:
            if taken:
                results = await self._draw_batch([item for item, _ in taken])
        finally:
            for (_, drawing), pixels in zip(taken, results, strict=True):
                drawing.set_result(pixels)

    async def _draw_batch(self, items: list[Item]) -> list[Pixels | None]:
        self._drawn["batches"] += 1
        self._drawn["pictures"] += len(items)
        try:
            return list(await self._draw([item[0] for item in items], [item[1] for item in items]))
        except Exception as error:
            log_failure("a batch with request", items[0][2], error)
        # One bad prompt must not take its neighbours down.
        return [await self._draw_alone(*item) for item in items]

    async def _draw_alone(self, prompt: str, seed: int, request_id: str) -> Pixels | None:
        try:
            pictures = await self._draw([prompt], [seed])
        except Exception as error:
            self._failed = True
            log_failure("request", request_id, error)
            return None
        return pictures[0]

    async def _draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> Pixels:
        assert self._batches is not None
        pictures: Pixels = await self._on_thread(self._batches.draw, prompts, seeds)
        return pictures

    async def _on_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


class Ingress:
    """The HTTP interface, in front of every replica."""

    def __init__(self, painter: Any, timeout_s: float, token: SecretStr | None) -> None:
        _log_with_serve()
        self._painter = painter
        self._timeout_s = timeout_s
        self._token = token
        self._model: ModelIdentity | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve on the replica, so that no application is pickled."""
        token = self._token.get_secret_value() if self._token else None
        # Serve's proxy puts X-Request-ID on the reply.
        return create_http_app(self, token, self._timeout_s, adds_request_id=False)

    async def paint(self, prompt: str, seeds: Sequence[int], request_id: str) -> Painted:
        """See `endpoint.Backend`."""
        painted: Painted | str | None = await self._call("paint", request_id, prompt, list(seeds), request_id)
        if painted is None:
            raise internal_error(request_id)
        if isinstance(painted, str):
            raise ServeError("wrong_prompt", painted)
        return painted

    async def describe(self) -> ModelIdentity:
        """See `endpoint.Backend`; what was last heard while every replica is busy."""
        try:
            self._model = await self._call("describe", "healthz")
        except ServeError as error:
            if error.code != "busy" or self._model is None:
                raise
        assert self._model is not None
        return self._model

    async def _call(self, method: str, request_id: str, *arguments: Any) -> Any:
        for _ in range(ATTEMPTS):
            try:
                return await getattr(self._painter, method).remote(*arguments)
            except BackPressureError:
                message = "too many requests are waiting: repeat this one in a second"
                raise ServeError("busy", message, {"Retry-After": "1"}) from None
            except DeploymentUnavailableError:
                message = "the model could not be started: ask who runs the server to read its log"
                raise ServeError("not_ready", message, {"Retry-After": "30"}) from None
            except (RayActorError, ReplicaUnavailableError):
                logger.warning("a replica died under request %s: it is sent again", request_id)
            except Exception as error:
                log_failure("request", request_id, error)
                break
        raise internal_error(request_id)


def build_app(args: dict[str, Any]) -> serve.Application:
    """The Serve application for the fields of ServeSettings. Raises RequestError.

    If T2I_SERVE_TOKEN is set where this runs, pictures are drawn only for those who send it.
    """
    try:
        settings = ServeSettings.model_validate(args)
    except ValidationError as error:
        raise RequestError(f"args of the Serve application: {first_problem(error)}") from error
    painter = serve.deployment(PainterReplica, name="painter").options(
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": 1 if settings.device == "cuda" else 0},
        user_config=settings.part(BatchSettings).model_dump(),
        max_ongoing_requests=GATHERING * settings.max_batch,
        max_queued_requests=settings.max_queued,
        max_constructor_retry_count=2,
        health_check_period_s=5,
        graceful_shutdown_wait_loop_s=0.2,
        # The ingress has logged the request already.
        logging_config={"enable_access_log": False},
    )
    ingress = serve.deployment(serve.ingress()(Ingress), name="ingress").options(
        ray_actor_options={"num_cpus": 0.1},
        # Requests wait at the painter, where a full queue is refused in the project's own words.
        max_ongoing_requests=2 * (settings.max_queued + GATHERING * settings.max_batch * settings.replicas),
        graceful_shutdown_wait_loop_s=0.2,
    )
    app: serve.Application = ingress.bind(painter.bind(settings.part(PainterSettings)), settings.timeout_s, _token())
    return app


def _token() -> SecretStr | None:
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return None
    if not token.strip():
        raise RequestError(f"{TOKEN_VARIABLE} is set but blank: give it a token, or unset it to serve without one")
    return SecretStr(token.strip())


def _load_painter(settings: PainterSettings) -> PainterLike:
    module, _, name = settings.painter.partition(":")
    painter: type[PainterLike] = getattr(import_module(module), name)
    return painter.load(settings.checkpoint, settings.home, settings.device)


def _prepare_thread(threads: int) -> None:
    torch.set_num_threads(threads)
    # A convolution that is chosen by timing, or adds up in any order, gives other bits each time.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _log_with_serve() -> None:
    ours = logging.getLogger("orchestration")
    ours.handlers = logging.getLogger("ray.serve").handlers
    ours.setLevel(logging.INFO)
