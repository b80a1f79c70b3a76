"""What the doctor looks at, on this machine, and how it asks several nodes."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.clusters.knocking import checked_address, find_token
from orchestration.doctor import collecting, hands, probes, storage_probes
from orchestration.doctor.facts import (
    MIB,
    Asked,
    Failed,
    FailedRing,
    Jobs,
    Ring,
    Storage,
)
from orchestration.doctor.finding import REFUSE
from orchestration.doctor.findings import find
from orchestration.doctor.hands import HERE, Here, OnCluster, Place, places_of
from orchestration.doctor.joining import joined
from orchestration.errors import RequestError
from orchestration.stages import quiet

from .doctor_faults import LATE
from .doctor_support import BOTH, HEAD, WORKER, healthy


class TestFolder:
    SIZE = 2 * MIB

    def leave(self, folder: Path, parent: bool = False) -> dict[str, Any]:
        return storage_probes.leave_in_folder(str(folder), "abc", "a/node", self.SIZE, parent)

    def test_written_seen_removed(self, tmp_path: Path) -> None:
        found = self.leave(tmp_path)
        assert found["status"] == "ok" and found["write_speed"] > 0 and found["read_speed"] > 0 and found["free"] > 0
        assert storage_probes.seen_in_folder(str(tmp_path), "abc", ["a/node"]) == ["a/node"]
        storage_probes.remove_from_folder(str(tmp_path), "abc", "a/node")
        assert not list(tmp_path.iterdir())

    def test_absent_and_no_folder(self, tmp_path: Path) -> None:
        assert self.leave(tmp_path / "x" / "y")["status"] == "absent"
        found = self.leave(tmp_path / "x" / "y", parent=True)
        assert (found["status"], found["tried"]) == ("ok", str(tmp_path)) and not (tmp_path / "x").exists()
        (tmp_path / "file").touch()
        assert self.leave(tmp_path / "file")["status"] == "not a folder"
        assert self.leave(tmp_path / "file" / "below", parent=True)["status"] in ("not a folder", "failed")

    @pytest.mark.parametrize(
        ("number", "status"),
        [
            (errno.EROFS, "read-only"),
            (errno.EACCES, "denied"),
            (errno.EPERM, "denied"),
            (errno.ENOSPC, "full"),
            (errno.EDQUOT, "full"),
            (errno.ESTALE, "failed"),
        ],
    )
    def test_what_the_system_says(
        self, number: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> None:
            (tmp_path / storage_probes.mark_name("abc", "a/node")).touch()  # half-written
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(storage_probes, "_write_and_read", refuse)
        found = self.leave(tmp_path)
        assert found["status"] == status and found["reason"] == os.strerror(number)
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is denied to root")
    def test_no_permission(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        assert self.leave(tmp_path)["status"] == "denied"

    def test_another_nonce_is_another_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage_probes, "LOOK_S", 0.0)
        (tmp_path / storage_probes.mark_name("abc", "n")).write_bytes(b"old n\n")
        assert storage_probes.seen_in_folder(str(tmp_path), "abc", ["n"]) == []


class TestUrl:
    def test_memory(self) -> None:
        assert storage_probes.leave_at_url("memory://t2i-doctor", "abc", "n", 1000, False)["status"] == "ok"
        assert storage_probes.seen_at_url("memory://t2i-doctor", "abc", ["n", "other"]) == ["n"]
        storage_probes.remove_from_url("memory://t2i-doctor", "abc", "n")
        assert storage_probes.seen_at_url("memory://t2i-doctor", "abc", ["n"]) == []

    def test_a_file_url_is_a_folder(self, tmp_path: Path) -> None:
        url = f"file://{tmp_path}"
        assert storage_probes.leave_at_url(url, "abc", "n", MIB, False)["filesystem"]
        assert storage_probes.seen_at_url(url, "abc", ["n"]) == ["n"]
        assert storage_probes.leave_at_url(f"{url}/absent", "abc", "n", MIB, False)["status"] == "absent"

    def test_what_nothing_opens(self, closed_uri: str) -> None:
        assert storage_probes.leave_at_url("nothing://x", "abc", "n", 10, False)["status"] == "failed"
        assert storage_probes.leave_at_url("dbfs2://x", "abc", "n", 10, False)["reason"]
        closed = storage_probes.leave_at_url(closed_uri.replace("http", "ftp"), "abc", "n", 10, False)
        assert closed["status"] == "failed" and "refused" in closed["reason"]

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (ImportError("Install s3fs to access S3"), "no driver"),
            (PermissionError("Forbidden"), "denied"),
            (FileNotFoundError("bucket"), "absent"),
            (OSError(errno.ENOSPC, "No space"), "full"),
            (RuntimeError("endpoint"), "failed"),
        ],
    )
    def test_each_kind_of_failure(self, error: Exception, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: str) -> None:
            raise error

        monkeypatch.setattr(storage_probes, "_open_url", refuse)
        assert storage_probes.leave_at_url("s3://b", "abc", "n", 10, False)["status"] == status


class TestReached:
    def test_mlflow_closed(self, closed_uri: str, tmp_path: Path) -> None:
        found = storage_probes.reach_mlflow(str(tmp_path / "home"), closed_uri)
        assert found["status"] == "unreachable" and "refused" in found["reason"]
        assert not (tmp_path / "home").exists()

    def test_no_home_is_made_for_mlflow(self, migrated: Path, tmp_path: Path) -> None:
        assert storage_probes.reach_mlflow(str(tmp_path / "home"), f"sqlite:///{migrated}")["status"] == "ok"
        assert not (tmp_path / "home").exists()

    def test_mlflow_of_the_home(self, migrated: Path, tmp_path: Path) -> None:
        assert storage_probes.reach_mlflow(str(tmp_path), None) == {"status": "not yet"}
        assert not list(tmp_path.iterdir())
        assert storage_probes.reach_mlflow(str(migrated.parent), None)["status"] == "ok"

    def test_database(self, migrated: Path, tmp_path: Path) -> None:
        assert storage_probes.reach_database(f"sqlite:///{migrated}", 3)["status"] == "ok"
        assert storage_probes.reach_database(f"sqlite:///{tmp_path}/o.db", 3) == {"status": "not yet"}
        assert not list(tmp_path.iterdir())
        assert storage_probes.reach_database(f"sqlite:///{tmp_path}/x/o.db", 3)["status"] == "unreachable"
        (tmp_path / "text").write_text("no database " * 100)
        assert storage_probes.reach_database(f"sqlite:///{tmp_path}/text", 3)["status"] == "unreachable"
        assert storage_probes.reach_database("nothing://u:hush@h/x", 3)["status"] == "no driver"


@pytest.fixture
def answering() -> Iterator[Callable[[int], str]]:
    """URL of a server that answers every request with one status."""
    servers = []

    def start(code: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.headers.get("Authorization") is None
                self.send_response(code)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("code", "refused"), [(200, True), (401, False), (403, False), (500, False)])
def test_the_jobs_api_is_asked_without_a_token(
    code: int, refused: bool, answering: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 32)
    jobs = Jobs(**probes.ask_jobs(answering(code), 5))
    assert jobs.code == code
    found = [each for each in find(replace(healthy(), jobs=jobs)) if each.check == "tokens"]
    assert any(each.severity == REFUSE for each in found) == refused
    # An answer of another kind says nothing of tokens, and nothing can be submitted there.
    assert any("cannot be asked (it answers HTTP 500)" in each.what for each in found) == (code == 500)


def test_a_closed_jobs_api(closed_uri: str) -> None:
    assert "refused" in probes.ask_jobs(closed_uri, 5)["reason"]


def test_the_token_file_of_a_process(tmp_path: Path) -> None:
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    file.chmod(0o640)
    assert probes.look_at_token_file({"HOME": str(tmp_path)}) == {"token_file": str(file), "token_mode": 0o640}
    assert probes.look_at_token_file({"HOME": str(tmp_path), "RAY_AUTH_TOKEN": "x"})["token_file"] == ""
    assert probes.look_at_token_file({"HOME": "/nowhere", "RAY_AUTH_TOKEN_PATH": "/nowhere/t"})["token_file"] == ""


def test_the_token_that_ray_would_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    on = {"RAY_AUTH_MODE": "token"}
    assert find_token(on) is None
    (tmp_path / "t").write_text("abc\n")
    assert find_token({**on, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "t")}) == "abc"
    assert find_token({**on, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "t"), "RAY_AUTH_TOKEN": "env"}) == "env"
    assert find_token({"RAY_AUTH_TOKEN": "env", "RAY_AUTH_MODE": "disabled"}) is None
    assert find_token({"RAY_AUTH_TOKEN": "env"}) is None, "tokens are off unless they are turned on"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("http://h:8265", "t2i submit --address http://h:8265 -- doctor"),
        ("host", "give HOST:PORT"),
        ("host:0", "give HOST:PORT"),
        ("host:99999", "give HOST:PORT"),
        (":6379", "give HOST:PORT"),
        ("ray://host", "give HOST:PORT"),
        ("", "give HOST:PORT"),
    ],
)
def test_addresses_that_are_none(text: str, part: str) -> None:
    with pytest.raises(RequestError, match="--address") as refused:
        checked_address(text)
    assert part in str(refused.value)


def test_addresses_that_are() -> None:
    for text in ("auto", "10.0.0.1:6379", "ray://head:10001", "[::1]:6379"):
        assert checked_address(text) == text


def test_no_cluster_there(closed_uri: str, answering: Callable[[int], str]) -> None:
    with pytest.raises(RequestError, match="no Ray cluster answers at 127.0.0.1:"), joined(closed_uri[7:]):
        raise AssertionError
    with pytest.raises(RequestError, match="is no Ray cluster"), joined(answering(200)[7:]):
        raise AssertionError


def entry(host: str, identity: str, head: bool = False) -> dict[str, Any]:
    """An entry of Ray's table of nodes."""
    resources = {"CPU": 1.0, **({hands.HEAD: 1.0} if head else {})}
    return {
        "NodeManagerHostname": host,
        "NodeID": identity,
        "NodeManagerAddress": "10.0.0.1",
        "Resources": resources,
        "MetricsExportPort": 8080,
        "DashboardAgentListenPort": 0,
    }


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8))
def test_nodes_have_names_of_their_own(hosts: list[str]) -> None:
    table = [entry(host, f"{number:06x}ffff", number == 2) for number, host in enumerate(hosts)]
    places = places_of(table)
    assert len({place.name for place in places}) == len(hosts)
    assert all(place.name == host for place in places for host in [place.name[0]] if hosts.count(host) == 1)
    assert len(hosts) < 3 or places[0].head
    assert places[0].ports == {8080: "metrics"}


def test_roles_of_processes() -> None:
    assert probes.role_of("gcs_server", ["/ray/gcs/gcs_server", "--x"]) == "GCS"
    assert probes.role_of("python", ["python", "-m", "ray.util.client.server"]) == "Ray client"
    assert probes.role_of("ray::ProxyActor", ["ray::ProxyActor"]) == "Serve proxy"
    assert probes.role_of("raylet", ["/ray/raylet"]) == "raylet"
    assert probes.role_of("ray::f", ["ray::f"]) == "worker"


class Injected:
    """Hands of two nodes; `answers` replaces what a probe returns, by node and probe's name."""

    def __init__(self, folders: dict[str, Path], answers: dict[tuple[str, str], Any] | None = None) -> None:
        self.places: Sequence[Place] = (Place(HEAD, True, "1", "10.0.0.1"), Place(WORKER, False, "2", "10.0.0.2"))
        same = probes.look_at_versions()  # once: source that is being edited is another a moment later
        self.folders = folders
        self.answers = {(name, "look_at_versions"): deepcopy(same) for name in BOTH} | (answers or {})
        self.asked: list[tuple[str, str]] = []

    def run(self, calls: Any, timeout_s: float) -> dict[str, Any]:
        found = {}
        for name, (probe, *arguments) in calls.items():
            self.asked.append((name, probe.__name__))
            key = (name, probe.__name__)
            own = [str(self.folders[name]) if each == "/home" else each for each in arguments]
            found[name] = (
                self.answers[key] if key in self.answers else Here().run({name: (probe, *own)}, timeout_s)[name]
            )
        return found

    def reduce(self, backend: str, timeout_s: float, among: Sequence[str] = ()) -> dict[str, Any]:
        self.asked += [(name, backend) for name in among or BOTH]
        return {name: {"size": 4, "seconds": 0.1, "correct": name != "wrong"} for name in BOTH}


class TestCollecting:
    ASKED = Asked(home="/home", address="10.0.0.1:6379", timeout_s=30)

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(collecting, "SIZE", MIB)
        monkeypatch.setattr(storage_probes, "LOOK_S", 0.1)
        monkeypatch.setattr(probes, "GPU_PROGRAM", 'print(\'{"seen": [], "cuda": ""}\')')

    def test_one_folder(self, tmp_path: Path) -> None:
        facts = collecting.examine_nodes(Injected(dict.fromkeys(BOTH, tmp_path)), self.ASKED, quiet)
        assert [node.home.seen for node in facts.nodes if isinstance(node.home, Storage)] == [BOTH, BOTH]
        assert not list(tmp_path.iterdir())
        assert not any(each.severity == REFUSE for each in find(facts))

    def test_two_folders_of_one_name(self, tmp_path: Path) -> None:
        folders = {HEAD: tmp_path / "a", WORKER: tmp_path / "b"}
        for folder in folders.values():
            folder.mkdir()
        found = find(collecting.examine_nodes(Injected(folders), self.ASKED, quiet))
        assert [each.where for each in found if each.severity == REFUSE] == [BOTH]
        assert not any(path.is_file() for path in tmp_path.rglob("*"))

    def test_not_mounted_on_one(self, tmp_path: Path) -> None:
        found = find(collecting.examine_nodes(Injected({HEAD: tmp_path, WORKER: tmp_path / "x"}), self.ASKED, quiet))
        assert [(each.where, each.check) for each in found if each.severity == REFUSE] == [((WORKER,), "home")]
        assert not list(tmp_path.iterdir())

    def test_versions_that_differ(self, tmp_path: Path) -> None:
        injected = Injected(dict.fromkeys(BOTH, tmp_path))
        injected.answers[WORKER, "look_at_versions"]["packages"]["torch"] = "2.12.0"
        [finding] = [
            each for each in find(collecting.examine_nodes(injected, self.ASKED, quiet)) if each.severity == REFUSE
        ]
        assert finding.where == (WORKER,) and "torch is 2.12.0 there" in finding.what

    def test_a_silent_node_is_left_alone(self, tmp_path: Path) -> None:
        injected = Injected(dict.fromkeys(BOTH, tmp_path), {(WORKER, "look_at_versions"): LATE})
        facts = collecting.examine_nodes(injected, self.ASKED, quiet, "")
        assert [each for each in injected.asked if each[0] == WORKER] == [(WORKER, "look_at_versions")]
        assert facts.nodes[1].silent and not facts.nodes[0].silent and facts.rings == ()
        assert [each.where for each in find(facts) if each.check == "answers"] == [(WORKER,)]

    @pytest.mark.parametrize(("count", "tried"), [(2, [WORKER]), (1, [])])
    def test_a_head_without_a_gpu_leaves_nccl_to_the_others(self, count: int, tried: list[str], tmp_path: Path) -> None:
        gpus = {"seen": [{"name": "H100", "memory": 80 << 30}] * count, "driver": True, "cuda": "13.0"}
        injected = Injected(dict.fromkeys(BOTH, tmp_path), {(WORKER, "look_at_gpus"): gpus})
        facts = collecting.examine_nodes(injected, self.ASKED, quiet)
        assert [name for name, what in injected.asked if what == "nccl"] == tried
        assert [ring.backend for ring in facts.rings] == ["gloo", *(["nccl"] if tried else [])]

    def test_gpus_that_others_use_are_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ray._private import state

        monkeypatch.setattr(state, "available_resources_per_node", lambda: {"1": {"GPU": 1.0}, "2": {"CPU": 8.0}})
        hands = OnCluster.__new__(OnCluster)
        hands.places = (Place(HEAD, True, "1"), Place(WORKER, False, "2"))
        ring = collecting.ring_of("nccl", hands.reduce("nccl", 1, BOTH))
        assert ring == FailedRing("nccl", {WORKER: "its GPUs are in use"}, busy=True)
        # Two processes of one node want two.
        assert isinstance(hands.reduce("nccl", 1, (HEAD,))[HEAD], Failed)

    def test_ranks_that_fail(self) -> None:
        ring = collecting.ring_of("gloo", {HEAD: {"size": 4, "seconds": 1, "correct": True}, WORKER: Failed("gone")})
        assert ring == FailedRing("gloo", {WORKER: "gone"})
        wrong = {"size": 4, "seconds": 0.5, "correct": False}
        ring = collecting.ring_of("gloo", {HEAD: {"size": 4, "seconds": 1.0, "correct": True}, WORKER: wrong})
        assert ring == Ring("gloo", 2, 4, 1.0, False) and ring.bandwidth == 4.0


class TestHere:
    def test_what_hangs_is_a_fact(self) -> None:
        began = time.monotonic()
        assert Here().run({HERE: (time.sleep, 30)}, 0.2)[HERE] == Failed("no answer within 0.2 s", timed_out=True)
        assert time.monotonic() - began < 10

    def test_what_fails_is_a_fact(self) -> None:
        assert Here().run({HERE: (int, "x")}, 5)[HERE].reason.startswith("ValueError: invalid literal")
        assert Here().run({HERE: (__import__, "no_such_module")}, 5)[HERE].missing == "no_such_module"

    def test_a_real_sum_of_two_processes(self) -> None:
        ring = collecting.ring_of("gloo", Here().reduce("gloo", 60))
        assert isinstance(ring, Ring) and ring.correct and ring.ranks == 2 and ring.size == 16 << 20
        assert isinstance(collecting.ring_of("nothing", Here().reduce("nothing", 60)), FailedRing)
