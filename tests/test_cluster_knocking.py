"""Commands that work on a cluster which is not there: refused at once, where Ray tries for minutes and says nothing."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestration.cluster import head_answers, ray_cluster, require_cluster
from orchestration.clusters import knocking
from orchestration.errors import RequestError, RunError

from .cli_support import T2i, made, runner

COMMANDS = (("train", "xmcgan_scenes32"), ("tune", "xmcgan_scenes32", "--trials", "1"))


@pytest.fixture
def t2i(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    return runner(tmp_path / "home", tmp_path / "here", monkeypatch, capsys)


@pytest.mark.parametrize("words", COMMANDS, ids=[words[0] for words in COMMANDS])
def test_an_address_where_nothing_answers(
    words: tuple[str, ...], t2i: T2i, closed_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is prepared, which may take hours."""
    monkeypatch.setenv("RAY_ADDRESS", closed_uri.removeprefix("http://"))
    ended = t2i(*words)
    ended.refused(
        f"no Ray cluster answers at {closed_uri[7:]} (Connection refused)", "RAY_ADDRESS", "start the cluster"
    )
    assert not [name for name in made(tmp_path / "home") if name.startswith(("data", "stages", "runs"))]


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("http://head:8265", "run t2i submit --address http://head:8265 -- COMMAND, or give HOST:PORT"),
        ("head", "RAY_ADDRESS 'head' is none: give HOST:PORT of its head"),
        ("head:0", "RAY_ADDRESS 'head:0' is none"),
        ("head..cluster:6379", "no Ray cluster answers at head..cluster:6379 (encoding with 'idna' codec failed"),
    ],
)
def test_an_address_that_is_none(address: str, part: str, t2i: T2i, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    t2i("train", "xmcgan_scenes32").refused(part)


@contextmanager
def head(takes_s: float = 0.0, token: str | None = None) -> Iterator[str]:
    """Where something answers what is asked of a head, after so long, and to whoever has this token."""
    import grpc  # type: ignore[import-untyped]
    from ray.core.generated.gcs_service_pb2 import GetClusterIdReply
    from ray.core.generated.gcs_service_pb2_grpc import (
        NodeInfoGcsServiceServicer,
        add_NodeInfoGcsServiceServicer_to_server,
    )

    class Answers(NodeInfoGcsServiceServicer):  # type: ignore[misc]
        def GetClusterId(self, request: Any, context: Any) -> Any:
            time.sleep(takes_s)
            if token and ("authorization", f"Bearer {token}") not in context.invocation_metadata():
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or incorrect")
            return GetClusterIdReply()

    server = grpc.server(ThreadPoolExecutor(1))
    add_NodeInfoGcsServiceServicer_to_server(Answers(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_a_proxy_is_not_asked_for_the_way(closed_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray does not use it either."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with head() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setenv("http_proxy", closed_uri)
        require_cluster()


def test_a_head_that_is_busy_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than for a connection, which its machine takes for it."""
    monkeypatch.setattr(knocking, "KNOCK_S", 0.5)
    with head(takes_s=1.5) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        require_cluster()


def test_a_token_that_ray_would_not_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray has tokens turned off by itself."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with head(token="secret") as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RequestError, match="wants a token, and RAY_AUTH_MODE is not set here: set RAY_AUTH_MODE"):
            require_cluster()
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        require_cluster()


def test_local_is_a_private_cluster_with_room_for_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    began: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **options: began.update(options))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with ray_cluster(2, {"trial_slot": 3.0}):
        pass
    assert began["address"] == "local" and began["resources"] == {"trial_slot": 3.0} and began["num_cpus"] >= 2


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "[::1]")])
def test_a_head_that_answers(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as listening:
        try:
            listening.bind((host.strip("[]"), 0))
        except OSError as error:
            pytest.skip(f"{host} is none of this machine: {error}")
        address = f"{host}:{listening.getsockname()[1]}"
        ray = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(gcs_address=address))
        assert not head_answers(ray)
        listening.listen()
        assert head_answers(ray)


def test_a_node_of_ray_that_does_not_start_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    class Other(Exception):
        pass

    def init(error: Exception) -> None:
        def raised(**options: Any) -> None:
            raise error

        monkeypatch.setattr(ray, "init", raised)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    init(Exception("The current node timed out during startup."))
    with (
        pytest.raises(RunError, match=r"Ray did not start on this machine .* too busy, .* /tmp/ray\); repeat"),
        ray_cluster(),
    ):
        pass
    init(Other("a fault of our own"))
    with pytest.raises(Other), ray_cluster():
        pass
