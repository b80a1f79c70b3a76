"""The HTTP interface as a FastAPI application. It knows nothing of Ray: who draws is given to it."""

import asyncio
import base64
import hmac
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote

from fastapi import Depends, Request, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, WithJsonSchema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from orchestration.serving.backend import Backend, Painted
from orchestration.serving.envelope import IMAGES, REQUEST_ID, RequestEnvelope, error_response, internal_error
from orchestration.serving.inputs import PROMPT_LIMIT
from orchestration.serving.metrics import CONTENT_TYPE, Metrics
from orchestration.serving.page_files import INDEX, PageFiles
from orchestration.serving.pictures import IMAGE_ID
from orchestration.serving.replies import HealthReply, ImageReply, ImagesReply, Kind, Lineage, ModelsReply
from orchestration.serving.request_log import RequestRecord, log_failure
from orchestration.serving.requests import BODY_LIMIT, STATUS, ImageRequest, ServeError, parse_image_request
from orchestration.serving.schema import IMAGES_CONTENT, METRICS_CONTENT, PublishedApi, refusals
from orchestration.serving.settings import is_loopback

__all__ = ["REQUEST_ID", "HttpSettings", "create_http_app", "error_response", "internal_error", "log_failure"]

HEALTH_S: Final = 1.0
"""How long GET /healthz waits to hear what is served; the server is alive without."""
THREAD_SIZE: Final = 64 * 2**10
"""Bytes of a body that is read beside the event loop: a long trace would hold the others up."""
DISCARD_LIMIT: Final = 16 * 2**20
DISCARD_S: Final = 5.0
"""A body that is too large is read so far: one who is still sending does not hear a refusal."""

ReplyT = TypeVar("ReplyT")
ImageId = Annotated[str, WithJsonSchema({"type": "string", "pattern": IMAGE_ID.pattern})]

_COMMON = ("unauthorized", "busy", "internal", "not_ready", "timed_out")


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How the endpoint behaves, whoever draws.

    token: what /v1 and /metrics must be sent as `Authorization: Bearer`; without one they answer this machine alone.
    timeout_s: from the first byte of a request to the last picture. log_prompts: whether the log may hold what people
    write. adds_request_id: off where something in front of the application puts X-Request-ID on the reply.
    """

    token: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    log_prompts: bool = False
    adds_request_id: bool = True


def create_http_app(backend: Backend, settings: HttpSettings | None = None) -> PublishedApi:
    """The application: pictures, models, lineage, health, metrics, the page, and /openapi.json."""
    settings = settings or HttpSettings()
    app = PublishedApi(title="t2i", docs_url=None, redoc_url=None, redirect_slashes=False)
    metrics = Metrics()
    app.add_middleware(
        RequestEnvelope, metrics=metrics, log_prompts=settings.log_prompts, adds_header=settings.adds_request_id
    )
    _add_refusals(app)
    _add_health(app, backend, settings.timeout_s)
    _add_page(app)

    async def guard(request: Request) -> None:
        check_access(request, settings.token)

    # The second is there for the document: it says that a token is taken.
    guards = [Depends(guard)] + ([Depends(HTTPBearer(auto_error=False))] if settings.token is not None else [])

    @app.post(
        IMAGES,
        response_class=Response,
        responses={**IMAGES_CONTENT, **refusals(*(set(STATUS) - {"not_found", "method_not_allowed", "unknown_image"}))},
        dependencies=guards,
    )
    async def create_images(request: Request) -> Response:
        """Draws pictures of a prompt, a narrative or a scene graph."""
        with metrics.drawing():
            return await _paint(backend, request, settings.timeout_s)

    @app.get(
        "/v1/models", response_class=Response, responses={**_is(ModelsReply), **refusals(*_COMMON)}, dependencies=guards
    )
    async def list_models() -> Response:
        """What is being served, and what can be asked of it."""
        return _json(await _before(settings.timeout_s, backend.models()))

    @app.get(
        "/v1/lineage/{image}",
        response_class=Response,
        responses={**_is(Lineage), **refusals("unknown_image", *_COMMON)},
        dependencies=guards,
    )
    async def tell_lineage(image: ImageId) -> Response:
        """Where a picture comes from, by its id."""
        if not IMAGE_ID.fullmatch(image):
            message = "this is no id of a picture: copy it from X-Image-Id, the reply or the PNG's own text"
            raise ServeError("unknown_image", message)
        return _json(await _before(settings.timeout_s, backend.lineage(image)))

    @app.get(
        "/metrics",
        response_class=Response,
        responses={**METRICS_CONTENT, **refusals("unauthorized", "internal")},
        dependencies=guards,
    )
    async def tell_metrics() -> Response:
        """Counts and times, for Prometheus."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return app


def check_access(request: Request, token: str | None) -> None:
    """ServeError unless the request carries the token or, where there is none, comes from this machine."""
    if token is not None:
        check_token(request.headers.get("authorization", ""), token)
    elif (request.client is not None and _is_elsewhere(request.client.host)) or _is_public(request.url.hostname or ""):
        # The server does not listen elsewhere without a token; this holds where it is started by other means, or is
        # reached by a name that someone let point to this machine (a proxy, or a page that rebinds its own name).
        message = "this server has no token and answers its own machine alone: start it with T2I_SERVE_TOKEN set"
        raise ServeError("unauthorized", message, {"WWW-Authenticate": "Bearer"})


def check_token(authorization: str, token: str) -> None:
    """ServeError unless the Authorization header is `Bearer` and the token; takes the same time for any wrong one."""
    scheme, _, given = authorization.partition(" ")
    # Headers are Latin-1 on the wire, where a part of a character in UTF-8 may look like some other blank. Bytes, since
    # compare_digest refuses other than ASCII in strings; an environment may hold what is no UTF-8.
    sent, known = given.strip(" \t").encode("latin-1", "replace"), token.encode("utf-8", "surrogateescape")
    right = hmac.compare_digest(sent, known)
    if scheme.lower() != "bearer" or not right:
        message = "the bearer token is missing or wrong: send the header Authorization: Bearer TOKEN"
        raise ServeError("unauthorized", message, {"WWW-Authenticate": "Bearer"})


async def read_body(request: Request, seconds: float) -> bytes:
    """The body. Raises ServeError when it is larger than BODY_LIMIT, breaks off, or is not whole in time."""
    declared = request.headers.get("content-length", "0")
    large = declared.isdecimal() and int(declared[:20]) > BODY_LIMIT
    if large and "expect" in request.headers:
        raise _too_large()
    clock = asyncio.get_running_loop().time
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(min(seconds, DISCARD_S) if large else seconds) as limit:
            async for chunk in request.stream():
                size += len(chunk)
                if not large and size > BODY_LIMIT:
                    large = True
                    limit.reschedule(min(limit.when() or clock(), clock() + DISCARD_S))
                    body.clear()
                if not large:
                    body += chunk
                elif size > DISCARD_LIMIT:
                    break
    except TimeoutError:
        if not large:
            message = f"the body was not whole within {seconds:g} seconds: send it faster"
            raise ServeError("slow_body", message, {"Connection": "close"}) from None
    except ClientDisconnect:
        if not large:
            raise ServeError("incomplete_body", "the body broke off: send it whole") from None
    if large:
        raise _too_large()
    return bytes(body)


async def _paint(backend: Backend, request: Request, timeout_s: float) -> Response:
    began = time.monotonic()
    record: RequestRecord = request.state.record
    body = await read_body(request, timeout_s)
    wanted = (
        await asyncio.to_thread(parse_image_request, body) if len(body) > THREAD_SIZE else parse_image_request(body)
    )
    record.kind, record.count, request.state.text = wanted.kind, wanted.count, wanted.text
    allowed = min(timeout_s, wanted.deadline_s or timeout_s)
    left = allowed - (time.monotonic() - began)
    if left <= 0:
        raise _timed_out(allowed)
    try:
        async with asyncio.timeout(left):
            painted = await backend.paint(wanted.job(record.id, left))
    except TimeoutError:
        raise _timed_out(allowed) from None
    except ServeError as error:
        error.field = error.field or _blamed(error.code, wanted.kind)
        raise
    record.model, record.version, record.batch = painted.model.name, painted.model.version, painted.batched
    return _images_reply(wanted, painted, request.headers.get("accept", ""))


def _images_reply(wanted: ImageRequest, painted: Painted, accept: str) -> Response:
    headers = {"X-Model": quote(f"{painted.model.name}@{painted.model.version}", safe="@ ")}
    if not wanted.replies_json(accept):
        headers |= {"X-Image-Id": painted.ids[0], "X-Seed": str(wanted.seed)}
        return Response(painted.pictures[0], headers=headers, media_type="image/png")
    replies = [
        ImageReply(id=image, png=base64.b64encode(png).decode(), seed=seed)
        for image, png, seed in zip(painted.ids, painted.pictures, wanted.seeds, strict=True)
    ]
    reasons = painted.reasons if wanted.explain else None
    return _json(ImagesReply(images=replies, model=painted.model, reasons=reasons), headers)


def _blamed(code: str, kind: Kind) -> str | None:
    """The field that a refusal of the backend concerns."""
    return {"wrong_prompt": kind, "wrong_input": "model", "unknown_model": "model"}.get(code)


async def _before(timeout_s: float, work: Awaitable[ReplyT]) -> ReplyT:
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise ServeError(
            "timed_out", f"no answer within {timeout_s:g} seconds: repeat the request, it is safe to"
        ) from None


def _timed_out(seconds: float) -> ServeError:
    return ServeError("timed_out", f"no picture within {seconds:g} seconds: repeat the request, it is safe to")


def _too_large() -> ServeError:
    # The unread rest of the body would be taken for the next request of the connection.
    return ServeError(
        "body_too_large",
        f"the body is larger than {BODY_LIMIT:,} bytes: a prompt has at most {PROMPT_LIMIT:,} characters, shorten it",
        {"Connection": "close"},
    )


def _add_refusals(app: PublishedApi) -> None:
    @app.exception_handler(ServeError)
    async def refuse(request: Request, error: ServeError) -> Response:
        request.state.record.code = error.code
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405 and request.method == "OPTIONS":
            return Response(status_code=204, headers=_allow(error))
        return await refuse(request, _routing_error(request, error))


def _add_health(app: PublishedApi, backend: Backend, timeout_s: float) -> None:
    known = HealthReply(models=[])

    @app.get("/healthz", response_class=Response, responses={**_is(HealthReply), **refusals("internal")})
    async def tell_health() -> Response:
        """Whether the server is alive; models: what was last heard of."""
        nonlocal known
        try:
            known = _names(await _before(min(HEALTH_S, timeout_s), backend.models()))
        except ServeError:
            return _json(known)
        return _json(known)

    @app.get(
        "/readyz",
        response_class=Response,
        responses={**_is(HealthReply), **refusals(*(set(_COMMON) - {"unauthorized"}))},
    )
    async def tell_readiness() -> Response:
        """Whether pictures can be drawn."""
        names = _names(await _before(timeout_s, backend.models()))
        if not names.models:
            message = "no model is loaded: repeat in a moment, or see at GET /v1/models whether one was refused"
            raise ServeError("not_ready", message, {"Retry-After": "1"})
        return _json(names)


def _add_page(app: PublishedApi) -> None:
    page = PageFiles.read()

    @app.get("/", include_in_schema=False)
    @app.get("/page/{file}", include_in_schema=False)
    async def send_file(request: Request, file: str = INDEX) -> Response:
        reply = page.reply(file, request)
        if reply is None:
            raise HTTPException(404)
        return reply


def _routing_error(request: Request, error: HTTPException) -> ServeError:
    path = ascii(request.url.path[:80])
    if error.status_code == 405:
        headers = _allow(error)
        message = f"{path} takes no {request.method[:16]!a}: use {headers['Allow'].split(',')[0]}"
        return ServeError("method_not_allowed", message, headers)
    if error.status_code == 404:
        return ServeError("not_found", f"there is nothing at {path}: use POST {IMAGES} or GET /v1/models")
    return internal_error(request.state.record.id)


def _allow(error: HTTPException) -> dict[str, str]:
    methods = (error.headers or {}).get("Allow", "GET")
    return {"Allow": f"{methods}, HEAD" if methods == "GET" else methods}


def _names(reply: ModelsReply) -> HealthReply:
    return HealthReply(models=[f"{model.name}@{model.version}" for model in reply.models])


def _is(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}}


def _json(reply: BaseModel, headers: dict[str, str] | None = None) -> Response:
    return Response(reply.model_dump_json(), headers=headers, media_type="application/json")


def _is_public(host: str) -> bool:
    """Whether a Host header is one that the internet may have given this machine: no loopback, and no bare name."""
    return ("." in host or ":" in host) and not is_loopback(host)


def _is_elsewhere(host: str) -> bool:
    """Whether an address is one of another machine; a name tells nothing."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return not address.is_loopback
