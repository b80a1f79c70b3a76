"""Jobs on a real Ray cluster of two nodes, with a token: Ray's own client and `t2i submit`."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.inventory import Inventory
from orchestration import submit_commands
from orchestration.campaigns.campaign import read_campaign
from orchestration.clusters.access import Access
from orchestration.clusters.job_code import ROOT
from orchestration.clusters.job_log import Follower
from orchestration.clusters.jobs import Job, JobServer
from orchestration.errors import RunError

from .cli_support import T2i, runner
from .cluster_support import MARK, Cluster, two_nodes
from .ray_support import assignments

pytestmark = pytest.mark.ray_cluster
PATIENCE_S = 120.0
"""Ray ends the processes of a job that is over in its own time."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder, own = tmp_path_factory.mktemp("cluster"), tmp_path_factory.mktemp("own")
    with two_nodes(folder, environment={"TMPDIR": str(own)}) as cluster:
        yield cluster


@pytest.fixture
def inventory(cluster: Cluster) -> Inventory:
    """Of all that lives on the cluster."""
    nodes = cluster.nodes
    return Inventory(
        cluster.address,
        cluster.token,
        {node.name: f"{MARK}={node.mark}" for node in nodes},
        {node.name: node.pid for node in nodes},
        {"head": cluster.folder / "h", "worker": cluster.folder / "w"},
        {"temporary": Path(cluster.head.environment["TMPDIR"])},
    )


@pytest.fixture
def t2i(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    """Runs `t2i` as the cluster's user does."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token_file))
    return runner(tmp_path / "home", tmp_path / "here", monkeypatch, capsys)


def ray_job_submit(cluster: Cluster, environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit --working-dir . -- python -m orchestration WORDS`, from a checkout."""
    line = f"job submit --address {cluster.address} --working-dir . -- python -m orchestration {shlex.join(words)}"
    ray = [sys.executable, "-m", "ray.scripts.scripts", *shlex.split(line)]
    return subprocess.run(ray, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)


def test_rays_own_client(cluster: Cluster) -> None:
    """What is documented first: from a checkout, with the token's file and RAY_AUTH_MODE=token."""
    ended = ray_job_submit(cluster, cluster.environment, "models")
    assert ended.returncode == 0 and "xmcgan_scenes32" in ended.stdout, ended
    without = {name: value for name, value in cluster.environment.items() if not name.startswith("RAY_AUTH")}
    refused = ray_job_submit(cluster, without, "models")
    assert refused.returncode != 0 and "uthenti" in refused.stdout + refused.stderr


def test_submit(t2i: T2i) -> None:
    """A job's lines, result and exit code; then it is listed, read and cannot be stopped any more."""
    ended = t2i("submit", "--json", "--name", "models", "--", "models", "--json")
    assert "xmcgan" in ended.json["result"]["systems"] and ended.json["exit_code"] == 0
    assert "xmcgan_scenes32" in ended.err and "anyone" not in ended.err
    listed = {job["name"]: job for job in t2i("submit", "--list", "--json").json["jobs"]}
    assert listed["models"]["status"] == "SUCCEEDED" and listed["models"]["words"] == "t2i models --json"
    assert "xmcgan_scenes32" in t2i("submit", "--logs", "models").out
    assert t2i("submit", "--stop", "models", "--json").json["had_ended"] is True
    t2i("submit", "--name", "models", "models").refused("has a job of this name")


def test_it_is_this_code_that_runs(cluster: Cluster, t2i: T2i) -> None:
    """Of the folder that was sent, on the node that works, not what its image has installed."""
    ended = t2i("submit", "--json", "train", "nothing")
    assert ended.code == 2 and "ended with exit code 2" in ended.err and "nothing" in ended.err
    told = JobServer(Access(cluster.address, cluster.token))
    [job] = [job for job in told.jobs() if job.words == "t2i train nothing"]
    assert job.exit_code == 2


def test_a_wrong_and_no_token(t2i: T2i, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    t2i("submit", "models").refused("refuses the token")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", "/nonexistent")
    t2i("submit", "models").refused("wants a token and there is none")


ENDLESS = "import time\nwhile True:\n    print(1, flush=True)\n    time.sleep(0.2)\n"
COUNT = "import time\nfor n in range(40):\n    print('line', n, flush=True)\n    time.sleep(0.25)\n"


def test_a_connection_that_is_cut_loses_no_line(cluster: Cluster) -> None:
    """Twice, once with the port closed for a while; through a proxy, while the job writes four lines a second."""
    assert cluster.token is not None
    with Proxy(cluster.address).open() as proxy:
        server = JobServer(Access(proxy.address, cluster.token))
        server.submit(Job("counts", shlex.join([sys.executable, "-c", COUNT])))
        lines: list[str] = []
        notes: list[str] = []

        def say(line: str) -> None:
            lines.append(line)
            if line == "line 8":
                proxy.cut()
            if line == "line 16":
                proxy.close()
                threading.Timer(2.5, proxy.listen).start()

        state = Follower(server, "counts", say, notes.append, "again").follow()
    assert state.status == "SUCCEEDED"
    assert [line for line in lines if line.startswith("line")] == [f"line {number}" for number in range(40)]
    assert [note.split()[0] for note in notes] == ["lost", "connected"], notes


def test_a_job_is_stopped(cluster: Cluster, t2i: T2i) -> None:
    server = JobServer(Access(cluster.address, cluster.token))
    server.submit(Job("sleeps", "sleep 600", cpus=1))
    assert t2i("submit", "--stop", "sleeps", "--json").json["status"] == "STOPPED"
    ended = t2i("submit", "--attach", "sleeps")
    assert ended.code == 1 and "the job sleeps was stopped" in ended.err


def test_a_driver_that_no_node_has_room_for(cluster: Cluster, t2i: T2i, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_commands, "BEGIN_S", 1.0)
    assert t2i("submit", "--detach", "--gpus", "8", "--name", "big", "models").code == 0
    server = JobServer(Access(cluster.address, cluster.token))
    assert server.job("big").status == "PENDING" and "resources" in server.job("big").message
    t2i("submit", "--stop", "big").refused("was told to stop and waits to begin", "resources", code=1)


def test_a_campaign(cluster: Cluster, inventory: Inventory, home: Path) -> None:
    """By Ray's own client: two trials at a time, each on a node of its own, where the code was sent. The second leaves
    nothing behind that the first had not made for all: no actor, placement group, process or file on any node.

    `t2i submit` runs one in tests/test_ray_storage.py.
    """
    tiny = assignments(training__kimg=0.1, evaluation__protocol="auto", evaluation__every_kimg=0.1)

    def tuned(name: str, trials: int) -> None:
        search = ["--trials", f"{trials}", "--kimg", "0.1", "--parameter", "tau", "--range", "tau=0.05:0.2"]
        words = ["tune", "xmcgan_scenes32", *search, "--scheduler", "none", *tiny, "--name", name]
        ended = ray_job_submit(cluster, cluster.environment, *words, "--home", str(home), "--json")
        assert ended.returncode == 0, ended
        found = json.loads(next(line for line in reversed(ended.stdout.splitlines()) if line.startswith("{")))
        assert found["trials"] == trials
        campaign = read_campaign(Path(found["campaign"]))
        assert [trial.state for trial in campaign.trials] == ["finished"] * trials

    tuned("submitted", 2)
    for node in ("h", "w"):
        assert list((cluster.folder / node).glob("session_2*/runtime_resources/working_dir_files/*/orchestration")), (
            node
        )
    before = inventory.stock()
    tuned("left-nothing", 6)
    assert inventory.left_over(before, PATIENCE_S) == []
    assert not list((home / "campaigns").glob("*/.tune-*"))


PLANT = """
import ray, sys, time
ray.init(namespace="left")
@ray.remote(num_cpus=0)
class Forgotten:
    def pid(self):
        import subprocess
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        ray.put("an object that stays")
left = Forgotten.options(name="forgotten", lifetime="detached").remote()
ray.get(left.pid.remote())
group = ray.util.placement_group([{"CPU": 0.01}], lifetime="detached", name="kept")
ray.get(group.ready())
"""
UPROOT = """
import ray
ray.init(namespace="left")
ray.kill(ray.get_actor("forgotten"))
ray.util.remove_placement_group(ray.util.get_placement_group("kept"))
"""


def test_what_is_left_is_told(cluster: Cluster, inventory: Inventory) -> None:
    """An actor, a placement group, a process of its own session, and files of Ray's and of a process's own."""
    server = JobServer(Access(cluster.address, cluster.token))
    before = inventory.stock()

    def carried_out(name: str, code: str) -> None:
        server.submit(Job(name, shlex.join([sys.executable, "-c", code])))
        assert Follower(server, name, print, print, "again").follow().status == "SUCCEEDED"

    carried_out("plants", PLANT)
    own = Path(cluster.head.environment["TMPDIR"]) / "tmp1234"
    of_ray = (cluster.folder / "w" / "session_latest").resolve() / "artifacts" / "of-a-trial"
    own.mkdir()
    of_ray.mkdir(parents=True)
    told = inventory.left_over(before, 0)
    kinds = [re.sub(r"^process \w+", "process NODE", one) for one in told if not one.startswith("file head")]
    assert set(kinds) >= {
        "actor Forgotten",
        "placement group, CREATED",
        "process NODE: sleep",
        "file temporary: tmp1234",
        "file worker: artifacts/of-a-trial",
    }, told
    carried_out("uproots", UPROOT)
    # Ray may have ended it with its actor.
    for process in [one for who in inventory.marks for one in inventory.processes(who) if one.name == "sleep"]:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    own.rmdir()
    shutil.rmtree(of_ray.parent)
    assert inventory.left_over(before, PATIENCE_S) == []


def test_the_head_goes_away(cluster: Cluster, t2i: T2i) -> None:
    """The last test: there is no cluster afterwards."""
    server = JobServer(Access(cluster.address, cluster.token))
    server.submit(Job("endless", shlex.join([sys.executable, "-c", ENDLESS])))

    def say(line: str) -> None:
        if line == "1":
            cluster.head.kill()

    with pytest.raises(RunError, match="out of reach for 2 s.*: come back"):
        Follower(server, "endless", say, print, "come back", patience_s=2).follow()
    t2i("submit", "--list").refused("no Jobs API answers", cluster.address)


class Proxy:
    """Passes connections on to an address until it is told not to."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._target = (parts.hostname or "", parts.port or 0)
        self._server: socket.socket | None = None
        self._open: list[socket.socket] = []
        self.port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def open(self) -> Iterator["Proxy"]:
        self.listen()
        try:
            yield self
        finally:
            self.close()

    def listen(self) -> None:
        """Take connections, on the same port as before."""
        self._server = socket.create_server(("127.0.0.1", self.port))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, args=[self._server], daemon=True).start()

    def close(self) -> None:
        """Take none, and cut those there are."""
        if self._server is not None:
            # A thread that waits in accept() keeps the port open otherwise.
            with suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Cut every connection; new ones are taken."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                taken, _ = server.accept()
                there = socket.create_connection(self._target)
            except OSError:
                return
            self._open += [taken, there]
            for source, target in ((taken, there), (there, taken)):
                threading.Thread(target=self._pass_on, args=[source, target], daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
