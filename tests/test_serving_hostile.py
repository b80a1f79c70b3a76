"""Clients that mean harm or are broken, over real sockets: nothing fails, nothing hangs, the next one is served."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from orchestration.serving.endpoint import HttpSettings, create_http_app
from tests.serving_support import FakeBackend, serve_in_thread

TIMEOUT_S = 1.0
BODY = json.dumps({"prompt": "a red boat"}).encode()


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(scope="module")
def url(backend: FakeBackend) -> Iterator[str]:
    with serve_in_thread(create_http_app(backend, HttpSettings(timeout_s=TIMEOUT_S))) as url:
        yield url


@pytest.fixture(autouse=True)
def _served_on(url: str, backend: FakeBackend) -> Iterator[None]:
    """Whatever was done, the next request is drawn and nothing is left at work."""
    yield
    png = ask(url, BODY)
    assert png.startswith(b"HTTP/1.1 200") and b"\x89PNG" in png
    ended = time.monotonic() + 10
    while backend.unfinished or "t2i_requests_in_flight 0.0" not in get(url, "/metrics")[1]:
        assert time.monotonic() < ended, "a request hangs"
        time.sleep(0.05)


def connect(url: str) -> closing[socket.socket]:
    parts = urlsplit(url)
    return closing(socket.create_connection((parts.hostname, parts.port), timeout=10))


def head(length: int | None = None, *more: str) -> bytes:
    sized = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join(["POST /v1/images HTTP/1.1", "Host: t2i", *sized, *more, "", ""]).encode()


def received(client: socket.socket) -> bytes:
    """All until the server closes the connection."""
    parts = []
    try:
        while part := client.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def ask(url: str, body: bytes) -> bytes:
    with connect(url) as client:
        client.sendall(head(len(body), "Connection: close") + body)
        return received(client)


def get(url: str, path: str) -> tuple[int, str]:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)) as connection:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()


def refused(reply: bytes, status: int, code: str) -> None:
    first, _, rest = reply.partition(b"\r\n")
    assert first.split()[1] == str(status).encode()
    error = json.loads(rest.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == code


def test_a_body_that_never_ends_is_given_up(url: str) -> None:
    with connect(url) as client:
        began = time.monotonic()
        client.sendall(head(len(BODY)) + BODY[:-1])
        refused(received(client), 408, "slow_body")
        assert time.monotonic() - began > TIMEOUT_S * 0.9


def test_a_body_that_trickles_is_given_up(url: str) -> None:
    with connect(url) as client:
        client.sendall(head(10_000))
        for _ in range(20):
            client.sendall(b" ")
            time.sleep(0.02)
        # Others are served meanwhile.
        assert b"\x89PNG" in ask(url, BODY)
        refused(received(client), 408, "slow_body")


def test_a_connection_that_is_cut_within_the_body(url: str, backend: FakeBackend) -> None:
    before = len(backend.jobs)
    with connect(url) as client:
        client.sendall(head(len(BODY)) + BODY[:5])
    with connect(url) as client:
        client.sendall(head(len(BODY)) + BODY[:5])
        # A reset, not an end.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    ended = time.monotonic() + 5
    while 't2i_refused_total{code="incomplete_body"} 2.0' not in get(url, "/metrics")[1]:
        assert time.monotonic() < ended
        time.sleep(0.05)
    assert len(backend.jobs) == before


def test_a_client_that_is_gone_before_the_reply(url: str) -> None:
    for _ in range(5):
        with connect(url) as client:
            client.sendall(head(len(BODY)) + BODY)


def test_a_half_closed_connection(url: str) -> None:
    with connect(url) as client:
        client.sendall(head(len(BODY)) + BODY)
        client.shutdown(socket.SHUT_WR)
        reply = received(client)
    assert reply == b"" or reply.startswith(b"HTTP/1.1 200")
    with connect(url) as client:
        client.sendall(head(len(BODY)) + BODY[:3])
        client.shutdown(socket.SHUT_WR)
        assert not received(client).startswith(b"HTTP/1.1 5")


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        # More is said than sent, less, none at all.
        (head(len(BODY) + 50) + BODY, 408, "slow_body"),
        (head(5, "Connection: close") + BODY, 400, "bad_json"),
        (head(None, "Connection: close") + BODY, 400, "bad_json"),
        (head(0, "Connection: close"), 400, "bad_json"),
        (head(2**40, "Expect: 100-continue"), 413, "body_too_large"),
    ],
)
def test_a_length_that_is_not_true(url: str, sent: bytes, status: int, code: str) -> None:
    with connect(url) as client:
        client.sendall(sent)
        refused(received(client), status, code)


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "5, 6", "²", "1" + "0" * 30])
def test_a_length_that_is_no_number(url: str, length: str) -> None:
    with connect(url) as client:
        lines = ["POST /v1/images HTTP/1.1", "Host: t2i", f"Content-Length: {length}", "Connection: close", "", ""]
        client.sendall("\r\n".join(lines).encode() + BODY)
        client.shutdown(socket.SHUT_WR)
        assert not received(client).startswith((b"HTTP/1.1 5", b"HTTP/1.1 2"))


def test_ten_megabytes_are_heard_out_and_refused(url: str) -> None:
    with connect(url) as client:
        client.sendall(head(10 * 2**20) + b" " * (10 * 2**20))
        refused(received(client), 413, "body_too_large")
    with connect(url) as client:
        client.sendall(head(None, "Transfer-Encoding: chunked"))
        for _ in range(160):
            client.sendall(b"10000\r\n" + b" " * 65_536 + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        refused(received(client), 413, "body_too_large")


def test_what_does_not_end_is_cut_off(url: str) -> None:
    sent = 0
    with connect(url) as client:
        client.sendall(head(None, "Transfer-Encoding: chunked"))
        with pytest.raises(OSError):
            for _ in range(2_000):
                client.sendall(b"10000\r\n" + b" " * 65_536 + b"\r\n")
                sent += 65_536
    # 16 MiB are read, and what the sockets hold besides.
    assert 2**20 < sent < 60 * 2**20


def test_requests_in_one_go(url: str) -> None:
    with connect(url) as client:
        client.sendall((head(len(BODY)) + BODY) * 3 + head(len(BODY), "Connection: close") + BODY)
        assert received(client).count(b"HTTP/1.1 200") == 4


def test_garbage_after_requests(url: str) -> None:
    with connect(url) as client:
        client.sendall((head(len(BODY)) + BODY) * 3 + b"\x00\xff\x16\x03\x01 garbage\r\n\r\n")
        assert b"HTTP/1.1 5" not in received(client)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"POST /v1/images HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        b"GET /page/../endpoint.py HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        b"GET //v1/images HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: t\r\nX-Request-ID: \xff\xfe\r\nConnection: close\r\n\r\n",
        b"POST /v1/images HTTP/1.1\r\nHost: t\r\nAuthorization: \xff\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"\xc3\xa4\xc3\xb6 /healthz HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
    ],
)
def test_garbage(url: str, sent: bytes) -> None:
    with connect(url) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert b"HTTP/1.1 5" not in received(client)


def test_many_slow_clients_keep_nobody_waiting(url: str) -> None:
    clients = [socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=10) for _ in range(100)]
    for client in clients:
        client.sendall(head(1_000) + b"{")
    assert b"\x89PNG" in ask(url, BODY)
    replies = [received(client) for client in clients]
    for client in clients:
        client.close()
    assert {reply.split(None, 2)[1] for reply in replies} == {b"408"}
