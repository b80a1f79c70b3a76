"""Around every request: its id, its line in the log, its place in the metrics, and what is said when it fails."""

import json
import re
import time
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestration.serving.metrics import Metrics
from orchestration.serving.request_log import CANCELLED, RequestRecord, log_failure, log_request
from orchestration.serving.requests import ServeError

REQUEST_ID: Final = "X-Request-ID"
IMAGES: Final = "/v1/images"

_PLAIN_ID = re.compile(r"[!-~]{1,128}")


class RequestEnvelope:
    """Gives every request an id and a record, and makes an unforeseen failure an `internal` error without a traceback.

    The inner application finds both in the request's state, as `record` and `text`: what it learns of the request, and
    what was asked for. HEAD is answered as GET is, without the body. `adds_header` is off behind Ray Serve's proxy,
    which sets X-Request-ID on the reply itself.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log_prompts: bool, adds_header: bool) -> None:
        self.app, self.metrics, self.log_prompts, self.adds_header = app, metrics, log_prompts, adds_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(REQUEST_ID, "")
        if not _PLAIN_ID.fullmatch(request_id):
            request_id = str(uuid.uuid4())
        client = scope.get("client") or ("",)
        record = RequestRecord(request_id, scope["method"][:16], str(client[0]))
        state = scope.setdefault("state", {})
        state["record"], state["text"] = record, None
        head = scope["method"] == "HEAD"
        if head:
            scope["method"] = "GET"
        began = time.monotonic()

        async def receive_counted() -> Message:
            message = await receive()
            record.bytes_in += len(message.get("body", b""))
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
                if self.adds_header:
                    headers[REQUEST_ID] = request_id
            elif head:
                message = {**message, "body": b""}
            record.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self._answer(scope, receive_counted, send_with_headers, record)
        finally:
            record.ms = round((time.monotonic() - began) * 1_000, 3)
            record.path = getattr(scope.get("route"), "path", "")
            if record.status == 0:
                record.code = CANCELLED
            self.metrics.count(record, draws=(record.method, record.path) == ("POST", IMAGES))
            log_request(record, state["text"] if self.log_prompts else None)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            log_failure("request", record.id, error)
            record.code = "internal"
            if record.status:
                # Half a reply is out: the connection has to break, and the message may hold a prompt.
                raise RuntimeError(f"request {record.id} failed") from None
            await error_response(internal_error(record.id))(scope, receive, send)


def error_response(error: ServeError) -> Response:
    """The JSON reply of a refusal; ASCII, so that no echoed name can fail to be encoded."""
    body = json.dumps({"error": {"code": error.code, "message": error.message, "field": error.field}})
    return Response(body, error.status, error.headers, "application/json")


def internal_error(request_id: str) -> ServeError:
    """What a person sees of a failure that is ours."""
    return ServeError(
        "internal", f"request {request_id} failed on the server: repeat it, or report this id to who runs the server"
    )
