"""A replica of the deployment `painter`: every version that answers, loaded beside the others, on one share of the
machine."""

import asyncio
import logging
import os
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve

from orchestration.errors import RequestError, RunError
from orchestration.serving.backend import Job, Painted
from orchestration.serving.catalogue import Release
from orchestration.serving.directory import SYNC_S
from orchestration.serving.following import Table
from orchestration.serving.loaded import Counts, LoadedModel, Refusal, prepare_thread
from orchestration.serving.settings import BatchSettings, ServeSettings

NO_TABLE = Table({}, {})

logger = logging.getLogger(__name__)


class PainterReplica:
    """Loads what the directory's table wants and drops the rest; draws on one thread, and loads on another."""

    def __init__(self, settings: ServeSettings, directory: Any) -> None:
        log_with_serve()
        threads = max(1, int(settings.cpus))
        self._settings, self._directory = settings, directory
        self._name = uuid.uuid4().hex
        self._drawing = ThreadPoolExecutor(1, "painter", initializer=prepare_thread, initargs=(threads,))
        self._loading = ThreadPoolExecutor(1, "loader", initializer=prepare_thread, initargs=(threads,))
        self._batching = settings.batches
        self._counts = Counts()
        self._table = NO_TABLE
        self._loaded: dict[str, LoadedModel] = {}
        self._failed: dict[str, str] = {}
        self._on_demand: dict[str, Release] = {}

        async def fetch(id: str) -> LoadedModel:
            return await self._load(self._on_demand[id])

        # A function, since Serve keeps what is loaded as its attribute.
        self._load_on_demand = serve.multiplexed(max_num_models_per_replica=settings.models_per_replica)(fetch)
        self._syncing: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Takes BatchSettings. The first time, before the replica gets requests, all models are loaded."""
        self._batching = BatchSettings.model_validate(user_config)
        if self._syncing is None:
            await self._start()
            self._syncing = asyncio.create_task(self._keep_synced())
        for model in list(self._loaded.values()):
            await model.rebatch(self._batching)

    async def paint(self, job: Job, release: Release) -> Painted | Refusal:
        """One PNG a seed, by one version."""
        model = self._loaded.get(release.id)
        if model is None:
            self._on_demand[release.id] = release
            try:
                model = await self._load_on_demand(release.id)
            except (RequestError, RunError) as error:
                return Refusal("unknown_model", f"{release.id} cannot be loaded: {error}")
        return await model.paint(job)

    def statistics(self) -> dict[str, Any]:
        """How many batches and pictures were drawn, the batch sizes in use, by version, and the process."""
        sizes = {id: list(model.sizes) for id, model in self._loaded.items()}
        drawn = {"batches": self._counts.batches, "pictures": self._counts.pictures}
        return {**drawn, "sizes": sizes, "pid": os.getpid()}

    async def check_health(self) -> None:
        """Raises where a model that failed to draw fails at a probe too, so that the replica is restarted."""
        for model in list(self._loaded.values()):
            await model.check()

    async def _start(self) -> None:
        while True:
            await self._report()
            wanted = [id for id in self._table.wanted if id not in self._loaded and id not in self._failed]
            if not wanted:
                break
            await self._load_wanted()
        if not self._loaded:
            raise RequestError(next(iter(self._failed.values()), "there is no model to serve"))

    async def _keep_synced(self) -> None:
        while True:
            await asyncio.sleep(SYNC_S)
            try:
                await self._load_wanted()
                await self._report()
            except Exception as error:
                # The directory is being restarted: what is loaded goes on drawing.
                logger.warning("the directory does not answer (%s)", type(error).__name__)

    async def _report(self) -> None:
        loaded = {id: model.abilities for id, model in self._loaded.items()}
        self._table = await self._directory.report.remote(self._name, loaded, self._failed, self._table.ids)
        # What is not wanted any more may be mended before it is wanted again.
        self._failed = {id: why for id, why in self._failed.items() if id in self._table.wanted}
        for id in [id for id in self._loaded if id not in self._table.wanted]:
            logger.info("%s is dropped", id)
            del self._loaded[id]

    async def _load_wanted(self) -> None:
        for id, release in self._table.wanted.items():
            if id in self._loaded or id in self._failed:
                continue
            try:
                self._loaded[id] = await self._load(release)
            except Exception as error:
                # Whatever a checkpoint does when it is loaded, the versions that draw go on drawing.
                known = isinstance(error, RequestError | RunError)
                self._failed[id] = str(error) if known else f"{type(error).__name__}: {error}"
                logger.warning("%s cannot be loaded: %s", id, self._failed[id])

    async def _load(self, release: Release) -> LoadedModel:
        logger.info("%s is being loaded", release.id)
        arguments = release, self._settings, self._batching, self._drawing, self._counts
        model = await asyncio.get_running_loop().run_in_executor(self._loading, LoadedModel.load, *arguments)
        logger.info("%s is loaded; batch sizes in use: %s", release.id, list(model.sizes))
        return model


def log_with_serve() -> None:
    """The project's log goes where Serve's does."""
    ours = logging.getLogger("orchestration")
    ours.handlers = logging.getLogger("ray.serve").handlers
    ours.setLevel(logging.INFO)
