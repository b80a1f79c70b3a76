"""What the log says of a request: one line of JSON each, and never what a person wrote unless that was asked for."""

import json
import logging
import traceback
from dataclasses import asdict, dataclass

REQUESTS = logging.getLogger("orchestration.serving.requests")
logger = logging.getLogger("orchestration.serving.endpoint")

OK = "ok"
CANCELLED = "cancelled"
"""The code of a request that ended without a reply."""


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request once it is over.

    path: of the route, so that no address can hold a prompt; none where there is no route. kind, model, version and
    count: of pictures; code: ok, or one of `requests.STATUS`; ms: until the reply was out; batch: pictures in the batch
    that the first was drawn in; client: its address.
    """

    id: str
    method: str
    client: str = ""
    path: str = ""
    kind: str = ""
    model: str = ""
    version: str = ""
    count: int = 0
    status: int = 0
    code: str = OK
    ms: float = 0.0
    batch: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


def log_request(record: RequestRecord, text: str | None) -> None:
    """The line of a request: a JSON object as the message, and its fields as those of the log record.

    text: what was asked for, where it may be told.
    """
    fields = asdict(record)
    if text is not None:
        fields["text"] = text
    REQUESTS.info("%s", json.dumps({"event": "request", **fields}), extra=fields)


def log_failure(what: str, request_id: str, error: BaseException) -> None:
    """Where it failed and with which exception; never the exception's text, which may hold a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s %s failed with %s at\n%s", what, request_id, type(error).__qualname__, frames)
