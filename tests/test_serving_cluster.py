"""The endpoint on a real Ray cluster: one start, every check."""

import base64
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import pytest
import ray
import torch
from numpy.typing import NDArray
from ray import serve

from orchestration.errors import RequestError, RunError
from orchestration.serving.client import request_image
from orchestration.serving.pictures import read_metadata
from orchestration.serving.server import ServerHandle, start_server

TOKEN = "a token with an ü"
DIGEST = "ab" * 32
OPTIONS: dict[str, Any] = {"painter": f"{__name__}:FakePainter", "max_batch": 8, "max_queued": 32}


class FakePainter:
    """Loaded by the replicas by its import path. A batch takes 20 ms, so that requests find company.

    "exit" in a prompt ends the replica's process if the file named after it is still there, and removes it.
    """

    resolution = 8
    checkpoint_digest = DIGEST
    experiment_name = "fake"

    @classmethod
    def load(cls, checkpoint: Path, home: Path, device: str = "cpu") -> Self:
        if (checkpoint / "broken").exists():
            raise RequestError(f"{checkpoint} holds no manifest: give the folder of a whole checkpoint")
        return cls()

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        pixels = self.draw_float(prompts, seeds).permute(0, 2, 3, 1)
        return ((pixels + 1) * 127.5).to(torch.uint8).numpy()

    def draw_float(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        time.sleep(0.15 if "slow" in prompts else 0.02)
        for prompt in prompts:
            if prompt.startswith("exit ") and Path(prompt[5:]).exists():
                Path(prompt[5:]).unlink()
                os._exit(1)
            if prompt == "fail":
                raise ValueError("secret prompt text")
        rows = [torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows) * 2 - 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[ServerHandle]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("T2I_SERVE_TOKEN", TOKEN)
        patch.delenv("RAY_ADDRESS", raising=False)
        options: dict[str, Any] = {
            "painter": f"{__name__}:FakePainter",
            "max_batch": 8,
            "max_queued": 32,
            "timeout_s": 30.0,
        }
        with start_server(checkpoint, checkpoint, "bird", "3", port=0, **options) as handle:
            yield handle
        assert not ray.is_initialized(), "what was started is stopped"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", urlsplit(handle.url).port or 0)) != 0


def send(
    server: ServerHandle, body: Any, path: str = "/v1/images", method: str = "POST", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"Authorization": f"Bearer {TOKEN}".encode()} | {
        key.replace("_", "-"): text for key, text in headers.items()
    }
    connection.request(method, path, data, sent)
    reply = connection.getresponse()
    result = reply.status, reply.headers, reply.read()
    connection.close()
    return result


def call(method: str, *arguments: Any) -> Any:
    return getattr(serve.get_deployment_handle("painter", "t2i"), method).remote(*arguments).result()


def statistics() -> dict[str, Any]:
    found: dict[str, Any] = call("statistics")
    return found


@pytest.mark.ray_cluster
def test_healthz_is_open_and_names_the_model(server: ServerHandle) -> None:
    status, _, body = send(server, None, "/healthz", "GET", Authorization="")
    assert (status, json.loads(body)) == (
        200,
        {"status": "ok", "model": "bird", "version": "3", "checkpoint_digest": DIGEST},
    )


@pytest.mark.ray_cluster
def test_a_picture_says_what_it_is(server: ServerHandle) -> None:
    status, headers, png = send(server, {"prompt": "a bird", "seed": 7}, X_Request_ID="my-id")
    assert (status, headers["Content-Type"], headers.get_all("X-Request-ID")) == (200, "image/png", ["my-id"])
    told = read_metadata(png)
    assert (told["prompt"], told["seed"], told["model"], told["version"]) == ("a bird", "7", "bird", "3")
    assert told["checkpoint_digest"] == DIGEST
    assert request_image(server.url, "a bird", 7, token=TOKEN) == png


@pytest.mark.ray_cluster
def test_many_clients_share_batches_and_nobody_sees_it(server: ServerHandle) -> None:
    alone = {seed: send(server, {"prompt": f"bird {seed}", "seed": seed})[2] for seed in range(16)}
    before = statistics()
    assert before["sizes"] == [1, 2, 4, 8]
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(lambda k: send(server, {"prompt": f"bird {k % 16}", "seed": k % 16}), range(96)))
    after = statistics()
    assert [status for status, _, _ in together] == [200] * 96
    assert all(png == alone[k % 16] for k, (_, _, png) in enumerate(together))
    mean = (after["pictures"] - before["pictures"]) / (after["batches"] - before["batches"])
    assert mean > 1.5, f"mean batch {mean}"


@pytest.mark.ray_cluster
def test_several_pictures_hold_the_single_one(server: ServerHandle) -> None:
    single = send(server, {"prompt": "a bird", "seed": 5})[2]
    status, _, body = send(server, {"prompt": "a bird", "seed": 5, "images": 3})
    reply = json.loads(body)
    pictures = [base64.b64decode(image["png"]) for image in reply["images"]]
    assert status == 200 and len(set(pictures)) == 3 and pictures[0] == single
    assert reply["model"] == {"name": "bird", "version": "3", "checkpoint_digest": DIGEST}
    assert send(server, {"prompt": "a bird", "seed": reply["images"][2]["seed"]})[2] == pictures[2]


@pytest.mark.ray_cluster
@pytest.mark.parametrize(
    ("body", "path", "method", "status", "code"),
    [
        (b"{not json", "/v1/images", "POST", 400, "bad_json"),
        ({"prompt": " \t"}, "/v1/images", "POST", 422, "empty_prompt"),
        ({"prompt": "x" * 2001}, "/v1/images", "POST", 422, "prompt_too_long"),
        ({"prompt": "x" * 100_000}, "/v1/images", "POST", 413, "body_too_large"),
        ({"prompt": "x", "sed": 1}, "/v1/images", "POST", 422, "wrong_field"),
        ({"prompt": "x", "images": 17}, "/v1/images", "POST", 422, "too_many_images"),
        (None, "/v1/images", "GET", 405, "method_not_allowed"),
        (None, "/v2", "GET", 404, "not_found"),
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
def test_a_full_queue_is_busy_and_says_when_to_come_back(server: ServerHandle) -> None:
    # 64 requests are at the replica, 32 wait.
    with ThreadPoolExecutor(140) as clients:
        replies = list(clients.map(lambda k: send(server, {"prompt": "slow", "seed": k}), range(140)))
    refused = [(headers, body) for status, headers, body in replies if status != 200]
    assert {status for status, _, _ in replies} == {200, 503}
    assert all(json.loads(body)["error"]["code"] == "busy" and headers["Retry-After"] for headers, body in refused)


@pytest.mark.ray_cluster
def test_a_taken_port_is_refused(server: ServerHandle, checkpoint: Path) -> None:
    port = urlsplit(server.url).port or 0
    with pytest.raises(RequestError, match=f"port {port} on 127.0.0.1 is in use: choose another with --port"):
        start_server(checkpoint, checkpoint, "bird", "3", port=port)


@pytest.mark.ray_cluster
def test_batching_can_change_without_a_restart(server: ServerHandle) -> None:
    before, png = statistics(), send(server, {"prompt": "a bird"})[2]
    # Serve calls this when `user_config` changes in its configuration file.
    call("reconfigure", {"max_batch": 4, "wait_s": 0.0})
    after = statistics()
    assert after["sizes"] == [1, 2, 4] and after["pictures"] > before["pictures"] > 0
    assert send(server, {"prompt": "a bird"})[2] == png


@pytest.mark.ray_cluster
def test_a_request_outlives_its_replica(server: ServerHandle, tmp_path: Path) -> None:
    poison = tmp_path / "poison"
    poison.touch()
    assert send(server, {"prompt": f"exit {poison}", "seed": 1})[0] == 200
    assert not poison.exists()


@pytest.mark.ray_cluster
def test_nothing_is_served_at_the_wrong_address() -> None:
    with pytest.raises(RunError, match="check that the server runs"):
        request_image("http://127.0.0.1:9", "a bird")
