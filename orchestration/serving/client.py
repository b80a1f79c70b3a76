"""Asks a running endpoint for a picture."""

import http.client
import json
import os
import urllib.error
import urllib.request
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from orchestration.errors import RequestError, RunError


def request_image(url: str, prompt: str, seed: int = 0, timeout: float = 60.0, token: str | None = None) -> bytes:
    """The PNG that the endpoint at `url` (http://host:port) draws; `token` defaults to T2I_SERVE_TOKEN.

    timeout: seconds. Raises RequestError when the endpoint refuses the request, RunError when it fails or is not there.
    """
    token = token or os.environ.get("T2I_SERVE_TOKEN")
    headers = {"Content-Type": "application/json", "Accept": "image/png"}
    if token:
        # The library sends headers as Latin-1; the server reads the token as UTF-8.
        headers["Authorization"] = f"Bearer {token}".encode().decode("latin-1")
    body = json.dumps({"prompt": prompt, "seed": seed}).encode()
    return fetch(url.rstrip("/") + "/v1/images", timeout, headers, body)


def fetch(url: str, timeout: float, headers: dict[str, str] | None = None, body: bytes | None = None) -> bytes:
    """The body of the reply to GET, or to POST when there is a body; errors as in `request_image`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(f"{url!r} is no address of an endpoint: write it as http://host:port")
    # A proxy of the environment is not for this machine.
    handlers = [urllib.request.ProxyHandler({})] if _is_loopback(parts.hostname) else []
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(urllib.request.Request(url, body, headers or {}), timeout=timeout) as reply:
            data: bytes = reply.read()
            return data
    except urllib.error.HTTPError as error:
        with error:
            sentence = _sentence(error.read())
        message = f"{url} answered {error.code}: {sentence}"
        raise (RequestError if error.code < 500 else RunError)(message) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise RunError(f"no answer from {url} ({reason}): check that the server runs, then repeat") from error


def _sentence(body: bytes) -> str:
    try:
        reply: Any = json.loads(body)
        return str(reply["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
