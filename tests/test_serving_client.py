"""The client of the endpoint, against a server that answers what the test says."""

import base64
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.errors import RequestError, RunError
from orchestration.serving import T2IClient
from orchestration.serving import client as module
from orchestration.serving.client import _backoff, _retry_after, request_image
from orchestration.serving.pictures import encode_png, image_id, picture_metadata
from orchestration.serving.replies import DataLineage, ImageReply, ImagesReply, Lineage, ModelIdentity, ModelsReply
from orchestration.serving.requests import image_seed

MODEL = ModelIdentity(name="bird", version="3", checkpoint_digest="cd" * 32)
Answer = tuple[int, bytes, dict[str, str]] | None


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    body: Any
    headers: Mapping[str, str]


@dataclass
class Scripted:
    """Gives its answers in turn, then draws. None breaks the connection off."""

    answers: list[Answer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    draw: Callable[[Asked], Answer] = lambda asked: drawn(asked)
    url: str = ""
    connections: int = 0
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, asked: Asked) -> Answer:
        with self._lock:
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            scripted, answer = bool(self.answers), self.answers.pop(0) if self.answers else None
        try:
            return answer if scripted else self.draw(asked)
        finally:
            with self._lock:
                self._at_once -= 1


def picture(text: str, seed: int) -> bytes:
    image = image_id(MODEL.checkpoint_digest, "prompt", text, seed, None)
    return encode_png(np.zeros((2, 2, 3), np.uint8), picture_metadata("prompt", text, seed, None, MODEL, image))


def drawn(asked: Asked) -> Answer:
    return 200, picture(str(asked.body.get("prompt")), asked.body["seed"]), {"Content-Type": "image/png"}


def refused(status: int, sentence: str = "this is the sentence", **headers: str) -> Answer:
    body = json.dumps({"error": {"code": "some", "message": sentence}}).encode()
    return status, body, {name.replace("_", "-"): text for name, text in headers.items()}


@pytest.fixture
def server() -> Iterator[Scripted]:
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def setup(self) -> None:
            super().setup()
            script.connections += 1

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            answer = script.answer(Asked(self.command, self.path, body, dict(self.headers)))
            if answer is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, content, headers = answer
            self.send_response(status)
            for name, text in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        script.url = f"http://127.0.0.1:{http.server_address[1]}"
        yield script
        http.shutdown()


@pytest.fixture
def client(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> Iterator[T2IClient]:
    monkeypatch.delenv("T2I_SERVE_TOKEN", raising=False)
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    with T2IClient(server.url, timeout=5) as made:
        yield made


class TestOnePicture:
    def test_a_prompt(self, server: Scripted, client: T2IClient) -> None:
        found = client.image("a bird", seed=7)
        assert found.png == picture("a bird", 7) and (found.seed, found.model) == (7, "bird@3")
        assert re.fullmatch("cdcdcdcdcdcdcdcd-[0-9a-f]{16}", found.id) and found.metadata["prompt"] == "a bird"
        [asked] = server.asked
        assert (asked.method, asked.path) == ("POST", "/v1/images")
        assert asked.body == {"type": "prompt", "prompt": "a bird", "seed": 7, "format": "png"}
        assert "Authorization" not in asked.headers and asked.headers["Content-Type"] == "application/json"

    def test_every_kind_and_field(self, server: Scripted, client: T2IClient) -> None:
        client.image(narrative={"words": ["a"]}, model="trecs@2", truncation=0.5)
        client.image(graph="sheep left of tree")
        first, second = (asked.body for asked in server.asked)
        assert first == {
            "type": "narrative",
            "narrative": {"words": ["a"]},
            "seed": 0,
            "model": "trecs@2",
            "truncation": 0.5,
            "format": "png",
        }
        assert second == {"type": "graph", "graph": "sheep left of tree", "seed": 0, "format": "png"}

    @pytest.mark.parametrize(
        ("given", "part"),
        [
            ({}, "nothing is given: give one of prompt, narrative and graph"),
            ({"prompt": "a", "graph": "b"}, "prompt and graph is given"),
            ({"prompt": "a", "truncation": float("nan")}, "cannot be sent as JSON"),
            ({"narrative": {"words": [b"a"]}}, "cannot be sent as JSON"),
        ],
    )
    def test_what_is_never_sent(self, server: Scripted, client: T2IClient, given: Any, part: str) -> None:
        with pytest.raises(RequestError, match=part):
            client.image(**given)
        assert server.asked == []

    def test_the_token(self, server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("T2I_SERVE_TOKEN", " from outside ")
        T2IClient(server.url).image("a")
        T2IClient(server.url, "a token with an ü").image("a")
        sent = [asked.headers["Authorization"].encode("latin-1").decode() for asked in server.asked]
        assert sent == ["Bearer from outside", "Bearer a token with an ü"]
        with pytest.raises(RequestError, match="the token holds a control character"):
            T2IClient(server.url, "a\nb")

    @pytest.mark.parametrize(
        "url",
        [
            "file:///etc",
            "localhost:8000",
            "",
            "http://",
            "http://host:port",
            "http://host:99999",
            "http://host:0",
            "http://ho\x00st",
            "http://user:secret@host",
        ],
    )
    def test_a_wrong_address(self, url: str) -> None:
        with pytest.raises(RequestError, match="is no address of an endpoint: write it as http://host:port") as told:
            T2IClient(url)
        assert "secret" not in str(told.value)

    def test_loopback_needs_no_proxy(self, server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
        assert T2IClient(server.url, retries=0).image("a").seed == 0

    def test_connections_are_used_again(self, server: Scripted, client: T2IClient) -> None:
        for seed in range(5):
            client.image("a", seed=seed)
        assert len(server.asked) == 5 and server.connections == 1

    @pytest.mark.parametrize("body", [b"", b"<html>", encode_png(np.zeros((2, 2, 3), np.uint8), {"seed": "1"})])
    def test_something_else_answers(self, server: Scripted, client: T2IClient, body: bytes) -> None:
        server.answers = [(200, body, {})]
        with pytest.raises(RunError, match="something other than a picture of t2i"):
            client.image("a")


class TestTryingAgain:
    @pytest.mark.parametrize(
        "failure", [None, refused(500), refused(502), refused(503), refused(504), refused(429)], ids=str
    )
    def test_what_passes(self, server: Scripted, client: T2IClient, failure: Answer) -> None:
        server.answers = [failure, failure, failure]
        assert client.image("a bird", seed=2).png == picture("a bird", 2)
        assert len(server.asked) == 4 and len({json.dumps(asked.body) for asked in server.asked}) == 1

    @pytest.mark.parametrize("status", [400, 401, 404, 405, 408, 413, 422])
    def test_a_refusal_is_final(self, server: Scripted, client: T2IClient, status: int) -> None:
        server.answers = [refused(status)]
        with pytest.raises(RequestError, match=rf"/v1/images answered {status}: this is the sentence"):
            client.image("a")
        assert len(server.asked) == 1

    @pytest.mark.parametrize("status", [301, 204, 501])
    def test_what_makes_no_sense_is_final(self, server: Scripted, client: T2IClient, status: int) -> None:
        server.answers = [(status, b"" if status == 204 else b"not JSON", {"Location": "http://elsewhere"})]
        with pytest.raises(RunError, match=f"answered {status}: "):
            client.image("a")
        assert len(server.asked) == 1

    @pytest.mark.parametrize("failure", [None, refused(503)], ids=["broken", "503"])
    def test_not_for_ever(self, server: Scripted, client: T2IClient, failure: Answer) -> None:
        server.draw = lambda asked: failure
        with pytest.raises(RunError, match=r"no answer from http.*check that the server runs|answered 503"):
            client.image("a")
        assert len(server.asked) == 1 + client.retries

    def test_never(self, server: Scripted) -> None:
        server.draw = lambda asked: refused(429, Retry_After="0")
        with pytest.raises(RunError, match="answered 429: this is the sentence"):
            T2IClient(server.url, retries=0).image("a")
        assert len(server.asked) == 1

    def test_a_busy_endpoint_is_waited_for(self, server: Scripted, client: T2IClient) -> None:
        server.answers = [refused(429)] * 9
        assert client.image("a").seed == 0 and len(server.asked) == 10

    def test_the_endpoint_says_when(self, server: Scripted, client: T2IClient) -> None:
        server.answers = [refused(429, Retry_After="1")]
        start = time.monotonic()
        client.image("a")
        assert 1 <= time.monotonic() - start < 3

    def test_too_late_is_told_at_once(self, server: Scripted, client: T2IClient) -> None:
        server.answers = [refused(503, "come later", Retry_After="30")]
        start = time.monotonic()
        with pytest.raises(RunError, match="come later"):
            client.image("a")
        assert time.monotonic() - start < 2 and len(server.asked) == 1

    @pytest.mark.parametrize("slow", ["silent", "dripping"])
    def test_the_deadline(self, server: Scripted, monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            stop = threading.Event()

            def serve() -> None:
                connection, _ = listening.accept()
                connection.recv(1 << 16)
                with connection:
                    if slow == "dripping":
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                    while not stop.wait(0.05):
                        if slow == "dripping":
                            connection.sendall(b"x")

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            start = time.monotonic()
            with pytest.raises(RunError, match="no answer from .*check that the server runs"):
                T2IClient(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.3).image("a")
            assert time.monotonic() - start < 2
            stop.set()
            thread.join(5)

    def test_nobody_there(self, closed_uri: str) -> None:
        with pytest.raises(RunError, match="check that the server runs"):
            request_image(closed_uri, "a bird")

    @given(failed=st.integers(0, 200))
    @settings(deadline=None, max_examples=50)
    def test_waits_grow_and_end(self, failed: int) -> None:
        whole = min(module.LONGEST_WAIT_S, module.FIRST_WAIT_S * 2 ** min(failed, 60))
        assert whole / 2 <= _backoff(failed) <= whole

    @given(text=st.text(max_size=40))
    @settings(deadline=None, max_examples=200)
    def test_any_header_is_read(self, text: str) -> None:
        assert 0 <= _retry_after({"Retry-After": text}) < 1e12

    def test_headers(self) -> None:
        assert _retry_after({"Retry-After": " 7 "}) == 7
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
        assert 55 < _retry_after({"Retry-After": later}) <= 60
        assert _retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
        # A date without a zone cannot be compared with now.
        assert _retry_after({"Retry-After": "Wed, 21 Oct 2035 07:28:00 -0000"}) == 0
        assert _retry_after({}) == 0


class TestManyPictures:
    def test_in_order_and_together(self, server: Scripted, client: T2IClient) -> None:
        def slower_first(asked: Asked) -> Answer:
            time.sleep(0.02 if asked.body["prompt"].endswith("0") else 0.002)
            return drawn(asked)

        server.draw = slower_first
        found = list(client.images([f"bird {k}" for k in range(40)], workers=4))
        assert [each.metadata["prompt"] for each in found] == [f"bird {k}" for k in range(40)]
        assert [each.seed for each in found] == [image_seed(0, k) for k in range(40)]
        assert 1 < server.most_at_once <= 4

    def test_seeds(self, client: T2IClient) -> None:
        found = list(client.images(["a", {"prompt": "b", "seed": 5}, {"type": "prompt", "prompt": "c"}], seed=9))
        assert [each.seed for each in found] == [9, 5, image_seed(9, 2)]
        assert found[2].png == client.image("c", seed=image_seed(9, 2)).png

    def test_endless_requests_are_read_as_needed(self, server: Scripted, client: T2IClient) -> None:
        pictures = client.images((f"bird {k}" for k in itertools.count()), workers=2)
        assert [next(pictures).metadata["prompt"] for _ in range(3)] == ["bird 0", "bird 1", "bird 2"]
        pictures.close()  # type: ignore[attr-defined]
        assert len(server.asked) <= 8

    def test_the_first_failure_raises_in_its_place(self, server: Scripted, client: T2IClient) -> None:
        server.draw = lambda asked: refused(422, "no such bird") if asked.body["prompt"] == "2" else drawn(asked)
        pictures = client.images(map(str, range(1_000)), workers=2)
        assert [next(pictures).metadata["prompt"] for _ in range(2)] == ["0", "1"]
        with pytest.raises(RequestError, match="no such bird"):
            next(pictures)
        assert len(server.asked) < 20 and list(pictures) == []

    def test_after_a_failure_nothing_more_is_sent(self, server: Scripted, client: T2IClient) -> None:
        def slow_but_first(asked: Asked) -> Answer:
            if asked.body["prompt"] == "0":
                return refused(422)
            time.sleep(0.2)
            return drawn(asked)

        server.draw = slow_but_first
        with pytest.raises(RequestError):
            next(client.images(map(str, range(100)), workers=4))
        time.sleep(0.4)
        # Those that were under way, and the one that took the place of the first.
        assert len(server.asked) <= 5

    def test_none(self, client: T2IClient) -> None:
        assert list(client.images([])) == []

    @pytest.mark.parametrize(
        ("requests", "workers", "part"),
        [
            ("a bird", 8, "requests is a single one"),
            ({"prompt": "a"}, 8, "requests is a single one"),
            (["a"], 0, "workers is 0: give at least 1"),
        ],
    )
    def test_wrong_calls(self, client: T2IClient, requests: Any, workers: int, part: str) -> None:
        with pytest.raises(RequestError, match=part):
            client.images(requests, workers)

    @pytest.mark.parametrize(
        ("request_", "part"),
        [
            ({"prompt": "a", "count": 2}, r"request 1 asks for more than one picture \(count\)"),
            ({"prompt": "a", "images": 2}, "request 1 asks for more than one"),
            ({"prompt": "a", "explain": True}, "use draw"),
            (5, "request 1 is no request"),
        ],
    )
    def test_wrong_requests(self, server: Scripted, client: T2IClient, request_: Any, part: str) -> None:
        with pytest.raises(RequestError, match=part):
            list(client.images(["b", request_]))
        assert len(server.asked) == 1

    @pytest.mark.parametrize(("watched", "wanted"), [(True, True), (True, False), (False, True)])
    def test_a_bar_only_for_a_person(
        self,
        client: T2IClient,
        watched: bool,
        wanted: bool,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("orchestration.progress.person_watching", lambda: watched)
        assert len(list(client.images(["a"] * 5, progress=wanted))) == 5
        shown = capsys.readouterr()
        assert ("pictures" in shown.err) == (watched and wanted) and shown.out == ""


class TestTheRest:
    def test_draw(self, server: Scripted, client: T2IClient) -> None:
        png = base64.b64encode(picture("a", 1)).decode()
        reply = ImagesReply(images=[ImageReply(id="1" * 16, png=png, seed=1)], model=MODEL)
        server.answers = [(200, reply.model_dump_json().encode(), {})]
        assert client.draw({"prompt": "a", "count": 1, "explain": True}) == reply
        assert server.asked[0].body == {"prompt": "a", "count": 1, "explain": True, "format": "json"}

    def test_models(self, server: Scripted, client: T2IClient) -> None:
        server.answers = [(200, b'{"models": [], "default": {"prompt": "bird@3"}}', {})]
        assert client.models() == ModelsReply(models=[], default={"prompt": "bird@3"})
        assert (server.asked[0].method, server.asked[0].path) == ("GET", "/v1/models")

    def test_a_reply_of_another_version(self, server: Scripted, client: T2IClient) -> None:
        server.answers = [(200, b'{"models": 3}', {})]
        with pytest.raises(RunError, match="what this version of t2i does not know"):
            client.models()

    def test_lineage(self, server: Scripted, client: T2IClient) -> None:
        drawn_one = client.image("a", seed=1)
        reply = Lineage(
            image=drawn_one.id,
            model="bird",
            versions=[3],
            champion=True,
            checkpoint_digest=MODEL.checkpoint_digest,
            system="bird",
            recipe="r",
            experiment="e",
            images_seen=1,
            data=DataLineage(source="scenes", digest="d"),
            text_digest="t",
            run="r",
            run_name="n",
            campaign=None,
            trial=None,
            figures={},
            history=[],
        )
        server.answers = [(200, reply.model_dump_json().encode(), {})] * 3
        assert [client.lineage(each) for each in (drawn_one, drawn_one.png, drawn_one.id)] == [reply] * 3
        assert {asked.path for asked in server.asked[1:]} == {f"/v1/lineage/{drawn_one.id}"}

    @pytest.mark.parametrize(
        ("asked", "part"),
        [
            ("../models", "'../models' is no id of a picture"),
            ("", "is no id of a picture"),
            (b"no PNG", "no PNG that can be read"),
            (encode_png(np.zeros((2, 2, 3), np.uint8), {}), "does not say where it is from"),
        ],
    )
    def test_lineage_of_nothing(self, server: Scripted, client: T2IClient, asked: Any, part: str) -> None:
        with pytest.raises(RequestError, match=part):
            client.lineage(asked)
        assert server.asked == []

    def test_healthy(self, server: Scripted, client: T2IClient, closed_uri: str) -> None:
        server.answers = [(200, b"{}", {}), refused(503)]
        assert client.healthy() and not client.healthy()
        assert len(server.asked) == 2 and server.asked[0].path == "/readyz"
        assert not T2IClient(closed_uri).healthy()

    def test_a_picture_can_be_shown_without_its_bytes(self, client: T2IClient) -> None:
        assert "png" not in repr(client.image("a")) and "bird@3" in repr(client.image("a"))
