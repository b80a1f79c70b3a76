"""The Ray Serve application: an ingress that speaks HTTP, a directory that follows the registry, replicas that draw.

`build_app` is the import path of a Serve configuration file: `import_path: orchestration.serving.app:build_app`.
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import SecretStr, ValidationError
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from orchestration.config import first_problem
from orchestration.errors import RequestError
from orchestration.serving.backend import Job, Painted, kinds_in_words
from orchestration.serving.catalogue import Release
from orchestration.serving.directory import SYNC_S, Directory
from orchestration.serving.endpoint import HttpSettings, create_http_app, internal_error, log_failure
from orchestration.serving.following import CHAMPION, Table
from orchestration.serving.loaded import Refusal
from orchestration.serving.replica import NO_TABLE, PainterReplica, log_with_serve
from orchestration.serving.replies import Lineage, ModelsReply
from orchestration.serving.requests import ServeError
from orchestration.serving.settings import TOKEN_VARIABLE, ServeSettings

# Drawing is a pure function of the request, so a request whose replica died is simply sent again.
ATTEMPTS = 3
# Batches that may wait at a replica while one is drawn.
GATHERING = 8
NO_MODELS = ModelsReply(models=[], default={})

logger = logging.getLogger(__name__)


class Ingress:
    """The HTTP interface, in front of every replica. A request goes by the table that stands when it comes."""

    def __init__(self, settings: ServeSettings, painter: Any, directory: Any, token: SecretStr | None) -> None:
        log_with_serve()
        self._settings, self._painter, self._directory, self._token = settings, painter, directory, token
        self._table: Table = NO_TABLE
        self._models = NO_MODELS
        self._releases: dict[str, Release] = {}
        self._following: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve on the replica, so that no application is pickled."""
        token = self._token.get_secret_value() if self._token else None
        # Serve's proxy puts X-Request-ID on the reply.
        settings = HttpSettings(
            token=token,
            timeout_s=self._settings.timeout_s,
            log_prompts=self._settings.log_prompts,
            adds_request_id=False,
        )
        return create_http_app(self, settings)

    async def paint(self, job: Job) -> Painted:
        """See `endpoint.Backend`."""
        await self._follow()
        release = await self._release(job)
        painter = self._painter
        if release.id not in self._table.wanted:
            # Serve sends it to a replica that has it already, if there is one.
            painter = painter.options(multiplexed_model_id=release.id)
        painted: Painted | Refusal = await self._call(painter.paint, job.request_id, job, release)
        if isinstance(painted, Painted):
            return painted
        if painted.code == "internal":
            raise internal_error(job.request_id)
        if painted.code == "unknown_model":
            # Its files may lie elsewhere when it is asked for again.
            self._releases.pop(release.id, None)
            if job.model != release.id:
                # The client did not name it: the directory is about to let another version answer.
                raise ServeError("not_ready", painted.message, {"Retry-After": "1"})
        if painted.code == "timed_out":
            raise ServeError(painted.code, "nothing could be drawn before the deadline: repeat the request")
        raise ServeError(painted.code, painted.message)

    async def models(self) -> ModelsReply:
        """See `endpoint.Backend`; what was last heard while the directory is being restarted."""
        await self._follow()
        return self._models

    async def lineage(self, image: str) -> Lineage:
        """See `endpoint.Backend`."""
        found: Lineage | tuple[str, str] = await self._call(self._directory.lineage, image, image)
        if isinstance(found, Lineage):
            return found
        raise ServeError(*found)

    async def _release(self, job: Job) -> Release:
        asked = job.model
        if asked is None:
            served = await self.models()
            if not served.models:
                raise ServeError("not_ready", "no model is loaded yet: repeat in a moment", {"Retry-After": "5"})
            default = served.default.get(job.kind)
            if default is None:
                raise ServeError(
                    "wrong_input",
                    f"no model here takes {kinds_in_words([job.kind])}: GET /v1/models says what each takes",
                )
            asked = default
        name, _, which = asked.partition("@")
        if which in ("", CHAMPION):
            release = self._table.answering.get(name)
            if release is None:
                raise self._unknown(name)
            return release
        known = self._table.wanted.get(asked) or self._releases.get(asked)
        if known is not None:
            return known
        if name not in self._table.answering:
            raise self._unknown(name)
        # A version never changes, so it is asked for once.
        found: Release | tuple[str, str] = await self._call(
            self._directory.release, job.request_id, name, int(which), self._table.ids
        )
        if not isinstance(found, Release):
            raise ServeError(*found)
        self._releases[asked] = found
        return found

    def _unknown(self, name: str) -> ServeError:
        there = ", ".join(sorted(self._table.answering))
        return ServeError("unknown_model", f"there is no model {name!a} here: name one of {there}, or leave it out")

    async def _follow(self) -> None:
        """Sees to it that the table is kept up to date."""
        if self._following is None or self._following.done():
            await self._ask()
            # Others may have waited for the same answer.
            if self._following is None or self._following.done():
                self._following = asyncio.create_task(self._keep_asking())

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(SYNC_S)
            try:
                await self._ask()
            except Exception as error:
                # What answered goes on answering.
                logger.warning("the directory does not answer (%s)", type(error).__name__)

    async def _ask(self) -> None:
        models: ModelsReply
        self._table, models = await self._call(self._directory.served, "table", self._table.ids)
        # A directory that was restarted knows of no model until replicas report what they have.
        if models.models or not self._models.models:
            self._models = models

    async def _call(self, method: Any, request_id: str, *arguments: Any) -> Any:
        for _ in range(ATTEMPTS):
            try:
                return await method.remote(*arguments)
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
    """The Serve application for the fields of ServeSettings, on a cluster.

    Only those who send the token in T2I_SERVE_TOKEN, set where this runs, are answered. Raises RequestError for wrong
    fields, and without a token: whoever reaches the port could draw.
    """
    token = token_of(os.environ)
    if token is None:
        raise RequestError(
            f"{TOKEN_VARIABLE} is not set where the application is built: set it in the environment that Ray is "
            "started in, on every machine, since a cluster's endpoint can be reached from others"
        )
    return application(read_settings(args), token)


def read_settings(args: Mapping[str, Any]) -> ServeSettings:
    """The settings. Raises RequestError."""
    try:
        return ServeSettings.model_validate(args)
    except ValidationError as error:
        raise RequestError(f"args of the Serve application: {first_problem(error)}") from error


def application(settings: ServeSettings, token: SecretStr | None) -> serve.Application:
    """The Serve application; without a token it may listen on loopback only, which is for the caller to see to."""
    logging_config = {"encoding": "JSON", "enable_access_log": False}  # the ingress logs each request
    directory = serve.deployment(Directory, name="directory").options(
        ray_actor_options={"num_cpus": 0}, max_ongoing_requests=10_000, logging_config=logging_config
    )
    scale: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas is not None and settings.max_replicas > settings.replicas:
        scale = {
            "autoscaling_config": {
                "min_replicas": settings.replicas,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": settings.max_batch,
            }
        }
    painter = serve.deployment(PainterReplica, name="painter").options(
        **scale,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": 1 if settings.device == "cuda" else 0},
        user_config=settings.batches.model_dump(),
        max_ongoing_requests=GATHERING * settings.max_batch,
        max_queued_requests=settings.max_queued,
        max_constructor_retry_count=2,
        health_check_period_s=5,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=logging_config,
    )
    ingress = serve.deployment(serve.ingress()(Ingress), name="ingress").options(
        ray_actor_options={"num_cpus": 0.1},
        # Requests wait at the painter, where a full queue is refused in the project's own words.
        max_ongoing_requests=2
        * (settings.max_queued + GATHERING * settings.max_batch * (settings.max_replicas or settings.replicas)),
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=logging_config,
    )
    following = directory.bind(settings)
    app: serve.Application = ingress.bind(settings, painter.bind(settings, following), following, token)
    return app


def token_of(environment: Mapping[str, str]) -> SecretStr | None:
    """The token that requests must carry. Raises RequestError for a blank one."""
    token = environment.get(TOKEN_VARIABLE)
    if token is None:
        return None
    if not token.strip():
        raise RequestError(f"{TOKEN_VARIABLE} is set but blank: give it a token, or unset it to serve without one")
    return SecretStr(token.strip())
