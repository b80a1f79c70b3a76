"""The HTTP interface as a FastAPI application. It knows nothing of Ray: who draws is given to it."""

import asyncio
import base64
import hmac
import json
import logging
import re
import traceback
import uuid
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestration.serving.requests import (
    BODY_LIMIT,
    PROMPT_LIMIT,
    STATUS,
    ErrorReply,
    HealthReply,
    ImageReply,
    ImageRequest,
    ImagesReply,
    ModelIdentity,
    ServeError,
    parse_image_request,
    wants_json,
)

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
ReplyT = TypeVar("ReplyT")

_PLAIN_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Painted:
    """PNG files in the order of the seeds, and the model that drew them."""

    model: ModelIdentity
    pictures: Sequence[bytes]


class Backend(Protocol):
    """Who draws."""

    async def paint(self, prompt: str, seeds: Sequence[int], request_id: str) -> Painted:
        """One PNG a seed. Raises ServeError."""
        ...

    async def describe(self) -> ModelIdentity:
        """The model that is being served. Raises ServeError."""
        ...


class RequestEnvelope:
    """Gives every request an id, and makes an unforeseen failure an `internal` error without a traceback.

    `adds_header` is off behind Ray Serve's proxy, which sets X-Request-ID on the reply itself.
    """

    def __init__(self, app: ASGIApp, adds_header: bool) -> None:
        self.app = app
        self.adds_header = adds_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(REQUEST_ID, "")
        if not _PLAIN_ID.fullmatch(request_id):
            request_id = str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if self.adds_header:
                    headers[REQUEST_ID] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            log_failure("request", request_id, error)
            if started:
                # Half a reply is out: the connection has to break, and the message may hold a prompt.
                raise RuntimeError(f"request {request_id} failed") from None
            await error_response(internal_error(request_id))(scope, receive, send_with_headers)


def create_http_app(
    backend: Backend, token: str | None = None, timeout_s: float = 60.0, adds_request_id: bool = True
) -> FastAPI:
    """POST /v1/images, GET /healthz and /openapi.json.

    token: what POST must carry as `Authorization: Bearer`, if anything. timeout_s: from the first byte of the body to
    the last picture.
    """
    app = _Application(title="t2i", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(RequestEnvelope, adds_header=adds_request_id)

    @app.exception_handler(ServeError)
    async def refuse(request: Request, error: ServeError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        return error_response(_routing_error(request, error))

    @app.get("/healthz", responses=_documented("not_ready", "timed_out"))
    async def health() -> HealthReply:
        model = await _before(timeout_s, backend.describe())
        return HealthReply(model=model.name, version=model.version, checkpoint_digest=model.checkpoint_digest)

    @app.post(
        "/v1/images",
        response_class=Response,
        responses={**_IMAGES_CONTENT, **_documented(*STATUS)},
        dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [],
    )
    async def create_images(request: Request) -> Response:
        if token is not None:
            check_token(request.headers.get("authorization", ""), token)
        return await _before(timeout_s, _paint(backend, request))

    return app


async def _paint(backend: Backend, request: Request) -> Response:
    wanted = parse_image_request(await read_body(request))
    painted = await backend.paint(wanted.prompt, wanted.seeds, request.state.request_id)
    if wanted.images == 1 and not wants_json(request.headers.get("accept", "")):
        return Response(painted.pictures[0], media_type="image/png")
    replies = [
        ImageReply(png=base64.b64encode(png).decode(), seed=seed)
        for png, seed in zip(painted.pictures, wanted.seeds, strict=True)
    ]
    return Response(ImagesReply(images=replies, model=painted.model).model_dump_json(), media_type="application/json")


async def _before(timeout_s: float, work: Awaitable[ReplyT]) -> ReplyT:
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise ServeError(
            "timed_out", f"no picture within {timeout_s:g} seconds: repeat the request, it is safe to"
        ) from None


def check_token(authorization: str, token: str) -> None:
    """ServeError unless the Authorization header is `Bearer` and the token; takes the same time for any wrong one."""
    scheme, _, given = authorization.partition(" ")
    # Headers are Latin-1 on the wire; bytes, since compare_digest refuses other than ASCII in strings.
    right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode())
    if scheme.lower() != "bearer" or not right:
        message = "the bearer token is missing or wrong: send the header Authorization: Bearer TOKEN"
        raise ServeError("unauthorized", message, {"WWW-Authenticate": "Bearer"})


async def read_body(request: Request) -> bytes:
    """The body, refused as soon as it is known to be larger than BODY_LIMIT."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > BODY_LIMIT:
        raise _too_large()
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_LIMIT:
                raise _too_large()
    except ClientDisconnect:
        raise ServeError("incomplete_body", "the body broke off: send it whole") from None
    return bytes(body)


def error_response(error: ServeError) -> Response:
    """The JSON reply of a refusal; ASCII, so that no echoed name can fail to be encoded."""
    body = json.dumps({"error": {"code": error.code, "message": error.message}})
    return Response(body, error.status, error.headers, "application/json")


def internal_error(request_id: str) -> ServeError:
    """What a person sees of a failure that is ours."""
    return ServeError(
        "internal", f"request {request_id} failed on the server: repeat it, or report this id to who runs the server"
    )


def log_failure(what: str, request_id: str, error: BaseException) -> None:
    """Where it failed and with which exception; never the exception's text, which may hold a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s %s failed with %s at\n%s", what, request_id, type(error).__qualname__, frames)


def _too_large() -> ServeError:
    # The unread rest of the body would be taken for the next request of the connection.
    return ServeError(
        "body_too_large",
        f"the body is larger than {BODY_LIMIT:,} bytes: a prompt has at most {PROMPT_LIMIT:,} characters, shorten it",
        {"Connection": "close"},
    )


def _routing_error(request: Request, error: HTTPException) -> ServeError:
    path = ascii(request.url.path[:80])
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return ServeError("method_not_allowed", f"{path} takes no {request.method[:16]}: use {allowed}", error.headers)
    if error.status_code == 404:
        return ServeError("not_found", f"there is nothing at {path}: use POST /v1/images or GET /healthz")
    return internal_error(request.state.request_id)


def _documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    statuses: dict[int, list[str]] = {}
    for code in codes:
        statuses.setdefault(STATUS[code], []).append(code)
    return {
        status: {"model": ErrorReply, "description": ", ".join(sorted(names))} for status, names in statuses.items()
    }


_IMAGES_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "a PNG, or JSON when several pictures or JSON are asked for",
        "model": ImagesReply,
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_REQUEST_CONTENT: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": ImageRequest.model_json_schema()}},
}


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; the body's limits are put in last, since FastAPI rounds the largest seed to a float."""
        document = super().openapi()
        document["paths"]["/v1/images"]["post"]["requestBody"] = _REQUEST_CONTENT
        return document
