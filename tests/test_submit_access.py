"""The cluster that `t2i submit` is to reach, and the token that opens it."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.clusters import jobs
from orchestration.clusters.access import Access, find_access, read_token
from orchestration.clusters.job_log import Follower
from orchestration.clusters.jobs import JobServer, LostConnection, UnknownJob
from orchestration.errors import RequestError, RunError

from .cli_support import T2i
from .job_support import TOKEN, FakeCluster, FakeJob, fake_cluster, submitter


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as cluster:
        yield cluster


@pytest.fixture
def t2i(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    return submitter(tmp_path, monkeypatch, capsys)


@pytest.fixture
def submit(t2i: T2i, cluster: FakeCluster) -> T2i:
    return lambda *words: t2i("submit", "--address", cluster.address, *words)


def test_a_wrong_address(t2i: T2i, closed_uri: str) -> None:
    t2i("submit", "--address", closed_uri, "--list").refused(closed_uri, "refused", "check --address")


@pytest.mark.parametrize(
    "address", ["head:8265", "ray://head:10001", "http://", "http://head", "ftp://h:1", "http://h:x", ""]
)
def test_no_address(t2i: T2i, address: str) -> None:
    t2i("submit", "--address", address, "--list").refused("no address of a Jobs API", "http://HOST:8265")


def test_an_address_with_a_secret_in_it(t2i: T2i) -> None:
    ended = t2i("submit", "--address", "http://me:pw@head:8265", "--list")
    ended.refused("more than an address")
    assert "pw" not in ended.err


def test_an_address_that_takes_connections_and_is_silent(t2i: T2i, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        t2i("submit", "--address", address, "--list").refused(address, "timed out")


def test_something_else_answers(t2i: T2i) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            taken, _ = server.accept()
            with taken:
                taken.recv(4096)
                taken.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        t2i("submit", "--address", address, "--list").refused(address, "no Ray cluster")
        thread.join()


def test_a_wrong_token(submit: T2i, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    ended = submit("models")
    ended.refused("refuses the token", "RAY_AUTH_TOKEN")
    assert "another'" not in ended.err and TOKEN not in ended.err


@pytest.mark.parametrize("mode", ["token", ""])
def test_no_token(submit: T2i, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    submit("models").refused("wants a token and there is none", "RAY_AUTH_TOKEN_PATH")


def test_a_token_file_below_the_home_of_nobody(submit: T2i, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "~nobody-of-this-name/token")
    submit("models").refused("RAY_AUTH_TOKEN_PATH names ~nobody-of-this-name/token", "write it out")


def test_a_token_that_is_changed_under_the_client(submit: T2i, cluster: FakeCluster) -> None:
    cluster.jobs["one"] = FakeJob(endless=True, pending=2)
    cluster.on_ask = lambda name: setattr(cluster, "token", "new") if cluster.jobs["one"].pending == 1 else None
    ended = submit("--attach", "one")
    assert ended.code == 2 and "refuses the token" in ended.err and "the job one goes on: t2i submit" in ended.err


def test_a_cluster_without_tokens(submit: T2i, cluster: FakeCluster) -> None:
    cluster.token = None
    ended = submit("models")
    assert ended.code == 0 and "runs jobs for anyone who reaches it" in ended.err
    cluster.token = TOKEN
    assert "anyone" not in submit("--list").err


def test_another_ray(submit: T2i, cluster: FakeCluster) -> None:
    cluster.ray_version = "2.40.1"
    assert "runs Ray 2.40.1, and here is" in submit("--list").err


def test_the_given_address_counts(submit: T2i, closed_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed_uri)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", closed_uri)
    assert submit("--list").code == 0
    assert os.environ["RAY_ADDRESS"] == os.environ["RAY_API_SERVER_ADDRESS"] == closed_uri


def test_where_the_address_is_from(t2i: T2i, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_access().address == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find_access().address == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://a:1/")
    assert find_access().address == "http://a:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://b:2/ray/")
    assert find_access().address == "https://b:2/ray"
    assert find_access("http://c:3") == Access("http://c:3", TOKEN)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "auto")
    with pytest.raises(RequestError, match="RAY_API_SERVER_ADDRESS 'auto' is no address"):
        find_access()


def test_a_token_is_not_shown() -> None:
    assert TOKEN not in repr(Access("http://a:1", TOKEN))


def test_where_the_token_is_from(t2i: T2i, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_token() == TOKEN
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert read_token() is None
    home_file, named = tmp_path / "user" / ".ray" / "auth_token", tmp_path / "named"
    home_file.parent.mkdir(parents=True)
    for path, text in ((home_file, "at-home\n"), (named, "named\n")):
        path.touch(0o600)
        path.write_text(text)
    assert read_token() == "at-home"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    assert read_token() == "named"


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("token", 0o644, "open to other users (mode 0644): chmod 600"),
        ("token", 0o620, "mode 0620"),
        ("", 0o600, "is empty"),
        ("two words", 0o600, "more than one word"),
        (None, 0o600, "which is not there"),
    ],
)
def test_a_token_file_that_will_not_do(
    submit: T2i, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, mode: int, said: str
) -> None:
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    submit("--list").refused(str(path), said)


def test_a_token_file_that_is_a_folder(submit: T2i, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
    submit("--list").refused(str(tmp_path), "cannot be read")


def test_what_a_server_raises(cluster: FakeCluster) -> None:
    """For those who use it without the command."""
    server = JobServer(Access(cluster.address, TOKEN))
    assert not server.is_open()
    with pytest.raises(UnknownJob):
        server.job("nobody")
    cluster.deaf = 5
    with pytest.raises(LostConnection):
        server.jobs()
    cluster.deaf = 0
    with pytest.raises(RunError, match="one"):
        Follower(server, "one", print, print, "again").follow()
