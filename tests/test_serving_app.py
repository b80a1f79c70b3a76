"""What a server refuses before Ray is touched, and the application's settings."""

import socket
from pathlib import Path
from typing import Any

import pytest

from orchestration.errors import RequestError
from orchestration.serving import server
from orchestration.serving.app import build_app
from orchestration.serving.server import check_port, start_server
from orchestration.serving.settings import TOKEN_VARIABLE, ServeSettings, is_loopback


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(server, "_start_ray", never)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("127.0.0.1", 70_000, "port 70000 does not exist: choose one from 1 to 65535"),
        ("192.0.2.77", 0, "host '192.0.2.77' is no address of this machine"),
        ("no host", 0, "host 'no host' is no address"),
        ("0.0.0.0", 0, f"host 0.0.0.0 can be reached from other machines, .*: set {TOKEN_VARIABLE} to a token"),
        ("::", 0, "host :: can be reached from other machines"),
    ],
)
def test_addresses_that_are_refused(tmp_path: Path, host: str, port: int, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        start_server(ServeSettings(home=tmp_path), host, port)


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port} on 127.0.0.1 is in use"):
            start_server(ServeSettings(home=tmp_path), port=port)
    assert check_port("127.0.0.1", port) == port


@pytest.mark.parametrize("token", [" ", "\t\n"])
def test_a_blank_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(RequestError, match="set but blank"):
        start_server(ServeSettings(home=tmp_path), port=0)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example", False),
        ("localhost.example", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_on_a_cluster_there_is_always_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=f"{TOKEN_VARIABLE} is not set where the application is built"):
        build_app({"home": "home"})
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    app = build_app({"home": "home", "models": ["xmcgan", "trecs@2"], "max_replicas": 4})
    assert app is not None


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"home": None}, "home"),
        ({"max_batch": 0}, "max_batch"),
        ({"models": ["../xmcgan"]}, "models"),
        ({"models": ["xmcgan@0"]}, "models"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas is 2, below replicas, 3"),
        ({"keep_warm_s": 1}, "keep_warm_s"),
        ({"device": "tpu"}, "device"),
        ({"batch": 3}, "batch"),
    ],
)
def test_wrong_settings(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], part: str) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    with pytest.raises(RequestError, match="^args of the Serve application: ") as caught:
        build_app({"home": "home", **wrong})
    assert part in str(caught.value)
