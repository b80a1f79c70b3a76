"""Asks a running endpoint for pictures, and for what it says about them."""

import json
import os
import random
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from orchestration.errors import RequestError, RunError
from orchestration.serving.pictures import IMAGE_ID, read_metadata
from orchestration.serving.replies import ImagesReply, Lineage, ModelsReply
from orchestration.serving.requests import image_seed
from orchestration.serving.settings import TOKEN_VARIABLE, is_loopback

BUSY: Final = 429
PASSING: Final = frozenset({500, 502, 503, 504})
"""Statuses of failures that another try may not meet."""
CONNECT_S: Final = 10.0
EVERYWHERE: Final = ("0.0.0.0", "::")
"""What a server listens on to be reached at every address; asked by its own machine, it is that machine."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0

ReplyT = TypeVar("ReplyT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG file and what it says of itself. model: NAME@VERSION; metadata: all texts in the file."""

    png: bytes = field(repr=False)
    id: str
    seed: int
    model: str
    metadata: Mapping[str, str] = field(repr=False)


class T2IClient:
    """An endpoint at `url` (http://host:port). It can be used by several threads, and in a `with` block.

    token: by default T2I_SERVE_TOKEN of the environment. timeout: seconds for one picture, all tries and waits
    included. The same request gives the same picture, so one that fails is sent again: up to `retries` times where the
    connection broke or the status is 500, 502, 503 or 504; and until `timeout` where the endpoint was busy (429), when
    it says, unless `retries` is 0.

    Every method raises RequestError with the endpoint's sentence where it refuses the request, and RunError where it
    fails or does not answer.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 60.0, retries: int = 3) -> None:
        """Nothing is sent here. Raises RequestError for what is no address."""
        self.url = url.rstrip("/")
        self.timeout, self.retries = timeout, retries
        host = _host(url)
        token = (token or os.environ.get(TOKEN_VARIABLE) or "").strip()
        if token and not token.isprintable():
            raise RequestError("the token holds a control character, which no header can carry: remove it")
        # The endpoint reads the token as UTF-8.
        headers = {b"Authorization": f"Bearer {token}".encode()} if token else {}
        self._http = httpx2.Client(
            headers=headers,
            # A proxy of the environment is not for this machine.
            trust_env=not (is_loopback(host) or host in EVERYWHERE),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30.0),
        )

    def image(
        self,
        prompt: str | None = None,
        *,
        narrative: str | Mapping[str, Any] | None = None,
        graph: str | Mapping[str, Any] | None = None,
        seed: int = 0,
        model: str | None = None,
        truncation: float | None = None,
    ) -> Picture:
        """The picture of a prompt, a narrative or a scene graph; exactly one of them.

        model: NAME, NAME@champion or NAME@VERSION, by default the endpoint's choice. truncation: of the latent.
        """
        given = {"prompt": prompt, "narrative": narrative, "graph": graph}
        [*kinds] = [kind for kind, value in given.items() if value is not None]
        if len(kinds) != 1:
            raise RequestError(f"{' and '.join(kinds) or 'nothing'} is given: give one of prompt, narrative and graph")
        request = {"type": kinds[0], kinds[0]: given[kinds[0]], "seed": seed}
        chosen = {"model": model, "truncation": truncation}
        return self._picture(request | {name: value for name, value in chosen.items() if value is not None})

    def images(
        self, requests: Iterable[str | Mapping[str, Any]], workers: int = 8, progress: bool = True, seed: int = 0
    ) -> Iterator[Picture]:
        """One picture a request, in their order, `workers` at a time; each is a prompt, or a body of POST /v1/images.

        A request that names no seed has `image_seed(seed, place)`, so that the same prompt many times gives many
        pictures. The requests are read as they are needed, a few ahead. With `progress` there is a bar if a person is
        watching. The first that fails raises in its place, and no further ones are sent.
        """
        if isinstance(requests, str | bytes | Mapping):
            raise RequestError("requests is a single one: give a list of requests, or use image or draw")
        if workers < 1:
            raise RequestError(f"workers is {workers}: give at least 1")
        return self._in_order(requests, workers, progress, seed)

    def draw(self, request: Mapping[str, Any]) -> ImagesReply:
        """The JSON reply to a body of POST /v1/images: several pictures, and with `explain` their reasons."""
        return self._parsed(ImagesReply, "POST", "/v1/images", _encoded({**request, "format": "json"}))

    def models(self) -> ModelsReply:
        """What the endpoint draws with."""
        return self._parsed(ModelsReply, "GET", "/v1/models")

    def lineage(self, picture: Picture | bytes | str) -> Lineage:
        """Where a picture comes from: one that was drawn, the bytes of a PNG file, or an id."""
        if isinstance(picture, Picture):
            picture = picture.id
        elif isinstance(picture, bytes):
            texts = read_metadata(picture)
            if "image" not in texts:
                raise RequestError("the PNG does not say where it is from (no text `image`): give one of an endpoint")
            picture = texts["image"]
        if not IMAGE_ID.fullmatch(picture):
            raise RequestError(f"{picture[:40]!a} is no id of a picture: give two groups of 16 hex digits")
        return self._parsed(Lineage, "GET", f"/v1/lineage/{picture}")

    def healthy(self) -> bool:
        """Whether the endpoint would draw now; it is asked once."""
        try:
            self._send("GET", "/readyz", retries=0)
        except (RequestError, RunError):
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _in_order(
        self, requests: Iterable[str | Mapping[str, Any]], workers: int, progress: bool, seed: int
    ) -> Iterator[Picture]:
        from orchestration.progress import person_watching

        total = len(requests) if isinstance(requests, Sized) else None
        bar = tqdm(
            total=total,
            desc="pictures",
            file=sys.stderr,
            leave=False,
            dynamic_ncols=True,
            disable=not (progress and person_watching()),
        )
        waiting: deque[Future[Picture]] = deque()
        pool = ThreadPoolExecutor(workers, "t2i-client")
        try:
            for place, request in enumerate(requests):
                waiting.append(pool.submit(self._numbered, request, place, seed))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            bar.close()

    def _numbered(self, request: str | Mapping[str, Any], place: int, seed: int) -> Picture:
        if not isinstance(request, str | Mapping):
            raise RequestError(f"request {place} is no request: give a prompt, or a body of POST /v1/images")
        body: Mapping[str, Any] = {"prompt": request} if isinstance(request, str) else request
        if body.get("count", body.get("images", 1)) != 1 or body.get("explain"):
            raise RequestError(
                f"request {place} asks for more than one picture (count) or for reasons (explain): use draw"
            )
        return self._picture({"seed": image_seed(seed, place), **body})

    def _picture(self, request: Mapping[str, Any]) -> Picture:
        png = self._send("POST", "/v1/images", _encoded({**request, "format": "png"}))
        try:
            texts = read_metadata(png)
            model = f"{texts['model']}@{texts['version']}"
            return Picture(png, texts.get("image", ""), int(texts["seed"]), model, texts)
        except (RequestError, KeyError, ValueError) as error:
            raise RunError(
                f"{self.url} answered with something other than a picture of t2i: check its address"
            ) from error

    def _parsed(self, kind: type[ReplyT], method: str, path: str, body: bytes | None = None) -> ReplyT:
        reply = self._send(method, path, body)
        try:
            return kind.model_validate_json(reply)
        except ValidationError as error:
            raise RunError(
                f"{self.url}{path} answered what this version of t2i does not know: use the same version on both sides"
            ) from error

    def _send(self, method: str, path: str, body: bytes | None = None, retries: int | None = None) -> bytes:
        """The body of a reply of status 200, after as many tries as are due."""
        retries = self.retries if retries is None else retries
        deadline = time.monotonic() + self.timeout
        failed = 0
        while True:
            reply = self._try(method, path, body, deadline)
            if isinstance(reply, bytes):
                return reply
            error, wait, busy = reply
            failed += not busy
            wait += _backoff(failed)
            if not retries or failed > retries or time.monotonic() + wait >= deadline:
                raise error
            time.sleep(wait)

    def _try(self, method: str, path: str, body: bytes | None, deadline: float) -> bytes | tuple[RunError, float, bool]:
        """The reply, or why there is none yet: the error, seconds to wait at least, and whether it was only busy."""
        url = f"{self.url}{path}"
        left = max(deadline - time.monotonic(), 0.001)
        limits = httpx2.Timeout(left, connect=min(left, CONNECT_S))
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            with self._http.stream(method, url, content=body, headers=headers, timeout=limits) as reply:
                content = _read(reply, deadline)
        except (httpx2.RequestError, OSError) as error:
            reason = str(error) or type(error).__name__
            return RunError(f"no answer from {url} ({reason}): check that the server runs, then repeat"), 0.0, False
        if reply.status_code == 200:
            return content
        message = f"{url} answered {reply.status_code}: {_sentence(content)}"
        if reply.status_code == BUSY or reply.status_code in PASSING:
            return RunError(message), _retry_after(reply.headers), reply.status_code == BUSY
        raise (RequestError if 400 <= reply.status_code < 500 else RunError)(message)


def request_image(url: str, prompt: str, seed: int = 0, timeout: float = 60.0, token: str | None = None) -> bytes:
    """The PNG that the endpoint at `url` (http://host:port) draws; see `T2IClient`."""
    with T2IClient(url, token, timeout) as client:
        return client.image(prompt, seed=seed).png


def _host(url: str) -> str:
    try:
        parts, _ = urlsplit(url), httpx2.URL(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc:
            return parts.hostname
    except (ValueError, httpx2.InvalidURL):
        pass
    # What stands before an @ may be a password.
    raise RequestError(f"{url.rpartition('@')[2]!r} is no address of an endpoint: write it as http://host:port")


def _encoded(request: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(request, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"the request cannot be sent as JSON ({error}): give strings and finite numbers") from error


def _read(reply: httpx2.Response, deadline: float) -> bytes:
    """The body; a server that sends a little now and then must not hold the caller for ever."""
    content = bytearray()
    for chunk in reply.iter_bytes():
        content += chunk
        if time.monotonic() > deadline:
            raise httpx2.ReadTimeout("the reply was not whole in time")
    return bytes(content)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a reply asks to wait (RFC 9110, 10.2.3: a number or a date), 0 where it says nothing."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _backoff(failed: int) -> float:
    """Seconds before the next try, longer each time, and not the same for all clients of a server that fell."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**failed)


def _sentence(body: bytes) -> str:
    try:
        reply: Any = json.loads(body)
        return str(reply["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:200].decode(errors="replace")
