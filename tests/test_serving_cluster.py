"""The endpoint on a real Ray cluster: one start, every check."""

import base64
import http.client
import io
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import ray
from PIL import Image
from ray import serve

from orchestration.errors import RequestError, RunError
from orchestration.serving import T2IClient, request_image
from orchestration.serving.pictures import read_metadata
from orchestration.serving.server import ServerHandle, start_server
from orchestration.serving.settings import ServeSettings
from tests.serving_fakes import CATALOGUE, PAINTER, FakePainter, digest, register, set_champions

TOKEN = "a token with an ü"
DIGEST = digest("bird", 1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    register(folder, "bird", 1, 2, 3)
    register(folder, "fish", 1)
    set_champions(folder, bird=1, fish=1)
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[ServerHandle]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("T2I_SERVE_TOKEN", TOKEN)
        patch.delenv("RAY_ADDRESS", raising=False)
        settings = ServeSettings(
            home=home,
            painter=PAINTER,
            catalogue=CATALOGUE,
            max_batch=8,
            max_queued=32,
            timeout_s=120.0,  # of a busy machine
            replicas=2,
            cpus=0.5,
            poll_s=0.2,
            keep_warm_s=10.0,
        )
        with start_server(settings, port=0) as handle:
            yield handle
        assert not ray.is_initialized(), "what was started is stopped"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", urlsplit(handle.url).port or 0)) != 0


def send(
    server: ServerHandle, body: Any, path: str = "/v1/images", method: str = "POST", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=180)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"Authorization": f"Bearer {TOKEN}".encode()} | {
        key.replace("_", "-"): text for key, text in headers.items()
    }
    connection.request(method, path, data, sent)
    reply = connection.getresponse()
    result = reply.status, reply.headers, reply.read()
    connection.close()
    return result


def statistics() -> dict[str, Any]:
    """Of one of the replicas."""
    found: dict[str, Any] = serve.get_deployment_handle("painter", "t2i").statistics.remote().result()
    return found


def pids(deployment: str = "painter") -> list[int]:
    """The processes of a deployment's replicas, by their titles, of those that this process's Ray started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
            if title.startswith("ray::ServeReplica:t2i:") and f":{deployment}" in title and ours(int(folder.name)):
                found.append(int(folder.name))
    return sorted(found)


def ours(pid: int) -> bool:
    """Whether this process started another, or what did."""
    while pid > 1:
        if pid == os.getpid():
            return True
        after_its_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pid = int(after_its_name[1])
    return False


def models(server: ServerHandle) -> dict[str, Any]:
    status, _, body = send(server, None, "/v1/models", "GET")
    assert status == 200
    return {f"{model['name']}": model for model in json.loads(body)["models"]}


def batches(server: ServerHandle) -> tuple[float, float]:
    """How many pictures were drawn, and how many batches."""
    text = send(server, None, "/metrics", "GET")[2].decode()
    batched = [line.split() for line in text.splitlines() if "batch" in line and ("_sum" in line or "_count" in line)]
    pictures, drawn = (sum(float(value) for name, value in batched if kind in name) for kind in ("_sum", "_count"))
    return pictures, drawn


def until(what: Callable[[], bool], seconds: float = 120.0) -> None:
    """Raises TimeoutError when it does not come true."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError("it did not come true")
        time.sleep(0.1)


@contextmanager
def at_a_stand(server: ServerHandle, folder: Path) -> Iterator[None]:
    """No replica draws anything meanwhile; at the end all that was held up is drawn."""
    go_on = folder / "go on"
    with ThreadPoolExecutor(32) as clients:
        bodies = [{"prompt": f"wait for {go_on}", "seed": seed} for seed in range(32)]
        held = [clients.submit(send, server, body) for body in bodies]
        try:
            until(lambda: len(list(folder.glob("go on awaited by *"))) == 2)
            yield
        finally:
            go_on.touch()
    assert {each.result()[0] for each in held} == {200}


@pytest.mark.ray_cluster
def test_health_is_open_and_models_are_not(server: ServerHandle) -> None:
    for path in ("/healthz", "/readyz"):
        status, _, body = send(server, None, path, "GET", Authorization="")
        assert status == 200 and sorted(json.loads(body)["models"]) == ["bird@1", "fish@1"]
    assert send(server, None, "/v1/models", "GET", Authorization="")[0] == 401
    assert {name: model["version"] for name, model in models(server).items()} == {"bird": "1", "fish": "1"}


@pytest.mark.ray_cluster
def test_a_picture_says_what_it_is(server: ServerHandle) -> None:
    status, headers, png = send(server, {"prompt": "a bird", "seed": 7}, X_Request_ID="my-id")
    assert (status, headers["Content-Type"], headers.get_all("X-Request-ID")) == (200, "image/png", ["my-id"])
    told = read_metadata(png)
    assert (told["prompt"], told["seed"], told["model"], told["version"]) == ("a bird", "7", "bird", "1")
    assert told["checkpoint_digest"] == DIGEST and told["image"] == headers["X-Image-Id"]
    assert request_image(server.url, "a bird", 7, token=TOKEN) == png


@pytest.mark.ray_cluster
def test_many_clients_share_batches_and_nobody_sees_it(server: ServerHandle, tmp_path: Path) -> None:
    alone = {seed: send(server, {"prompt": f"bird {seed}", "seed": seed})[2] for seed in range(16)}
    assert statistics()["sizes"]["bird@1"] == [1, 2, 4, 8]
    bodies = [
        {"prompt": f"bird {k % 16}", "seed": k % 16, **({"model": "fish"} if k % 3 == 0 else {})} for k in range(96)
    ]
    sums, counts = batches(server)
    with ThreadPoolExecutor(64) as clients:
        with at_a_stand(server, tmp_path):
            sent = [clients.submit(send, server, body) for body in bodies]
            # However slow the machine is, these wait together.
            wait(sent, timeout=2.0)
        together = [each.result() for each in sent]
    assert [status for status, _, _ in together] == [200] * 96
    for body, (_, _, png) in zip(bodies, together, strict=True):
        assert (png == alone[body["seed"]]) == ("model" not in body)
    more, later = batches(server)
    assert (mean := (more - sums) / (later - counts)) > 2, f"mean batch {mean}"


@pytest.mark.ray_cluster
def test_several_pictures_hold_the_single_one(server: ServerHandle) -> None:
    single = send(server, {"prompt": "a bird", "seed": 5})[2]
    status, _, body = send(server, {"prompt": "a bird", "seed": 5, "count": 3, "explain": True})
    reply = json.loads(body)
    pictures = [base64.b64decode(image["png"]) for image in reply["images"]]
    assert status == 200 and len(set(pictures)) == 3 and pictures[0] == single
    assert reply["model"] == {"name": "bird", "version": "1", "checkpoint_digest": DIGEST}
    assert reply["reasons"]["words"] == [{"word": "a", "known": True}, {"word": "bird", "known": True}]
    assert send(server, {"prompt": "a bird", "seed": reply["images"][2]["seed"]})[2] == pictures[2]
    # Another truncation is another batch, and another picture.
    with ThreadPoolExecutor(8) as clients:
        bodies = [{"prompt": "a bird", "seed": 5, **({"truncation": 0.5} if k % 2 else {})} for k in range(16)]
        drawn = list(clients.map(lambda body: send(server, body)[2], bodies))
    assert {png == single for png in drawn[::2]} == {True} and len(set(drawn[1::2])) == 1 and drawn[1] != single


@pytest.mark.ray_cluster
@pytest.mark.parametrize(
    ("body", "path", "method", "status", "code"),
    [
        (b"{not json", "/v1/images", "POST", 400, "bad_json"),
        ({"prompt": " \t"}, "/v1/images", "POST", 422, "empty_prompt"),
        ({"prompt": "unreadable"}, "/v1/images", "POST", 422, "wrong_prompt"),
        ({"type": "graph", "graph": "sheep"}, "/v1/images", "POST", 422, "wrong_input"),
        ({"type": "graph", "graph": "sheep", "model": "bird"}, "/v1/images", "POST", 422, "wrong_input"),
        ({"prompt": "x" * 2_000_000}, "/v1/images", "POST", 413, "body_too_large"),
        ({"prompt": "x", "model": "../bird"}, "/v1/images", "POST", 404, "unknown_model"),
        ({"prompt": "x", "model": "cat"}, "/v1/images", "POST", 404, "unknown_model"),
        ({"prompt": "x", "model": "bird@99"}, "/v1/images", "POST", 404, "unknown_model"),
        (None, "/v1/images", "GET", 405, "method_not_allowed"),
        (None, "/v2", "GET", 404, "not_found"),
        (None, "/v1/lineage/" + "0" * 16 + "-" + "0" * 16, "GET", 404, "unknown_image"),
        ({"prompt": "fail"}, "/v1/images", "POST", 500, "internal"),
    ],
)
def test_refusals(server: ServerHandle, body: Any, path: str, method: str, status: int, code: str) -> None:
    found, headers, reply = send(server, body, path, method)
    assert (found, json.loads(reply)["error"]["code"]) == (status, code)
    assert len(headers.get_all("X-Request-ID") or []) == 1
    assert b"Traceback" not in reply and b"secret" not in reply


@pytest.mark.ray_cluster
def test_one_failing_prompt_does_not_take_its_neighbours_down(server: ServerHandle) -> None:
    prompts = ["a bird", "fail"] * 6
    with ThreadPoolExecutor(12) as clients:
        statuses = list(clients.map(lambda prompt: send(server, {"prompt": prompt})[0], prompts))
    assert statuses == [200, 500] * 6


@pytest.mark.ray_cluster
def test_a_wrong_token_is_refused(server: ServerHandle) -> None:
    status, headers, reply = send(server, {"prompt": "a bird"}, Authorization="Bearer wrong")
    assert (status, json.loads(reply)["error"]["code"]) == (401, "unauthorized")
    assert headers["WWW-Authenticate"] == "Bearer"
    with pytest.raises(RequestError, match="bearer token is missing or wrong"):
        request_image(server.url, "a bird", token="wrong")


@pytest.mark.ray_cluster
def test_a_full_queue_is_busy_and_says_when_to_come_back(server: ServerHandle, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    # 64 requests are at each of two replicas, 32 wait: none is drawn before somebody was refused.
    with ThreadPoolExecutor(220) as clients:
        body = {"prompt": f"wait for {go_on}"}
        sent = [clients.submit(send, server, {**body, "seed": seed}) for seed in range(220)]
        try:
            wait(sent, timeout=60, return_when=FIRST_COMPLETED)
        finally:
            go_on.touch()
        replies = [each.result() for each in sent]
    refused = [(headers, body) for status, headers, body in replies if status != 200]
    assert {status for status, _, _ in replies} == {200, 429}
    assert all(json.loads(body)["error"]["code"] == "busy" and headers["Retry-After"] for headers, body in refused)


@pytest.mark.ray_cluster
def test_what_misses_its_deadline_is_not_drawn(server: ServerHandle, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    with at_a_stand(server, tmp_path), ThreadPoolExecutor(16) as clients:
        body = {"prompt": f"note {drawn}", "deadline_s": 1}
        replies = list(clients.map(lambda seed: send(server, {**body, "seed": seed}), range(16)))
        # A replica counts from when it is asked, a little later than whoever waits.
        time.sleep(1.0)
    assert {(status, json.loads(body)["error"]["code"]) for status, _, body in replies} == {(504, "timed_out")}
    # Whoever comes later is drawn, and what was before is not.
    with ThreadPoolExecutor(16) as clients:
        later = list(clients.map(lambda seed: send(server, {"prompt": "a bird", "seed": seed}), range(16)))
    assert {status for status, _, _ in later} == {200}
    assert not drawn.exists()


@pytest.mark.ray_cluster
def test_a_taken_port_is_refused(server: ServerHandle, home: Path) -> None:
    port = urlsplit(server.url).port or 0
    with pytest.raises(RequestError, match=f"port {port} on 127.0.0.1 is in use: choose another with --port"):
        start_server(ServeSettings(home=home), port=port)


@pytest.mark.ray_cluster
def test_batching_can_change_without_a_restart(server: ServerHandle) -> None:
    before, png = pids(), send(server, {"prompt": "a bird"})[2]
    painter = serve.get_deployment_handle("painter", "t2i")
    for size, sizes in ((4, [1, 2, 4]), (8, [1, 2, 4, 8])):
        # Serve calls this when `user_config` changes in its configuration file.
        painter.reconfigure.remote({"max_batch": size, "wait_s": 0.0}).result()
        until(lambda sizes=sizes: statistics()["sizes"]["bird@1"] == sizes)
        assert send(server, {"prompt": "a bird"})[2] == png
    assert pids() == before


@pytest.mark.ray_cluster
def test_a_version_is_drawn_by_number_when_it_is_asked_for(server: ServerHandle) -> None:
    body = {"prompt": "a bird", "seed": 3, "model": "bird@3"}
    status, headers, png = send(server, body)
    assert (status, headers["X-Model"], read_metadata(png)["version"]) == (200, "bird@3", "3")
    assert send(server, body)[2] == png and send(server, {**body, "model": "bird@1"})[2] != png
    assert models(server)["bird"]["version"] == "1"


@pytest.mark.ray_cluster
def test_a_request_outlives_its_replica(server: ServerHandle, tmp_path: Path) -> None:
    poison = tmp_path / "poison"
    poison.touch()
    assert send(server, {"prompt": f"exit {poison}", "seed": 1})[0] == 200
    assert not poison.exists()
    until(lambda: len(pids()) == 2)


@dataclass
class Load:
    """Clients that ask without a pause."""

    server: ServerHandle
    clients: int = 8
    replies: list[tuple[float, int, bytes, int]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._ask, args=(each,)) for each in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int) -> None:
        seed = client
        while not self._stop.is_set():
            try:
                status, _, body = send(self.server, {"prompt": "a bird", "seed": seed, "model": "bird"})
            except (OSError, http.client.HTTPException) as error:
                status, body = 0, repr(error).encode()
            self.replies.append((time.monotonic(), status, body, seed))
            seed += self.clients

    def versions(self) -> Counter[str]:
        return Counter(read_metadata(body)["version"] for _, status, body, _ in self.replies if status == 200)


@pytest.mark.ray_cluster
def test_under_load_replicas_die_and_versions_change_and_no_request_fails(server: ServerHandle, home: Path) -> None:
    until(lambda: len(pids()) == 2)
    with Load(server) as load:
        until(lambda: len(load.replies) > 50)
        os.kill(pids()[0], signal.SIGKILL)
        until(lambda: len(pids()) == 2)
        set_champions(home, bird=2)
        until(lambda: models(server)["bird"]["version"] == "2")
        promoted = len(load.replies)
        until(lambda: len(load.replies) > promoted + 50)
        # On a busy machine the one that came for the first may be away once more.
        until(lambda: len(pids()) == 2)
        os.kill(pids()[1], signal.SIGKILL)
        set_champions(home, bird=1)
        until(lambda: models(server)["bird"]["version"] == "1")
        rolled_back = len(load.replies)
        until(lambda: len(load.replies) > rolled_back + 50)
    failed = [(status, body[:300]) for _, status, body, _ in load.replies if status != 200]
    assert not failed, f"{len(failed)} of {len(load.replies)}: {failed[:3]}"
    assert set(load.versions()) == {"1", "2"} and min(load.versions().values()) > 40
    painters = {version: FakePainter(digest("bird", int(version))) for version in ("1", "2")}
    for _, _, png, seed in load.replies:
        told = read_metadata(png)
        # Not only is a version named: it is that version's picture, whole.
        expected = painters[told["version"]].draw(["a bird"], [seed])[0]
        assert (told["seed"], told["checkpoint_digest"]) == (str(seed), digest("bird", int(told["version"])))
        assert (np.asarray(Image.open(io.BytesIO(png))) == expected).all()


@pytest.mark.ray_cluster
@pytest.mark.parametrize("fault", ["altered", "unloadable"])
def test_a_champion_that_cannot_be_served_is_refused(server: ServerHandle, home: Path, fault: str) -> None:
    version = {"altered": 4, "unloadable": 5}[fault]
    register(home, "bird", version, whole=fault != "altered", loadable=fault != "unloadable")
    set_champions(home, bird=version)
    until(lambda: models(server)["bird"]["note"] is not None)
    model = models(server)["bird"]
    reason = {"altered": "was altered", "unloadable": "newer text encoder"}[fault]
    assert model["version"] == "1" and f"version {version} is the champion and was refused" in model["note"]
    assert reason in model["note"]
    assert send(server, {"prompt": "a bird", "model": "bird"})[1]["X-Model"] == "bird@1"
    if fault == "altered":
        status, _, body = send(server, {"prompt": "a bird", "model": f"bird@{version}"})
        assert status == 404 and b"was altered" in body
    set_champions(home, bird=1)
    until(lambda: models(server)["bird"]["note"] is None)


@pytest.mark.ray_cluster
def test_what_was_replaced_is_dropped_after_its_time(server: ServerHandle, home: Path) -> None:
    until(lambda: models(server)["bird"]["warm"] == [])
    until(lambda: set(statistics()["sizes"]) == {"bird@1", "fish@1"})


@pytest.mark.ray_cluster
def test_a_model_that_gets_its_first_champion_is_served_too(server: ServerHandle, home: Path) -> None:
    register(home, "cow", 1)
    set_champions(home, cow=1)
    until(lambda: "cow" in models(server))
    assert send(server, {"prompt": "a cow", "model": "cow"})[1]["X-Model"] == "cow@1"


@pytest.mark.ray_cluster
def test_the_client_outlives_the_ingress_and_the_directory(server: ServerHandle) -> None:
    with T2IClient(server.url, TOKEN, timeout=60) as client:
        before = client.image("a bird", seed=9)
        for name in ("directory", "ingress"):
            [pid] = pids(name)
            with ThreadPoolExecutor(4) as pool:
                drawn = pool.map(lambda seed: client.image("a bird", seed=seed), range(40))
                os.kill(pid, signal.SIGKILL)
                assert len({picture.id for picture in drawn}) == 40
        assert client.image("a bird", seed=9).png == before.png


@pytest.mark.ray_cluster
def test_nothing_is_served_at_the_wrong_address() -> None:
    with pytest.raises(RunError, match="check that the server runs"):
        request_image("http://127.0.0.1:9", "a bird", timeout=2)
