"""A real Ray cluster of two nodes on one machine, as separate `ray start` processes, with the token on."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.ports import PORTS, free_ports
from orchestration.campaigns.execution import SLOT
from orchestration.cluster import QUIET_ENVIRONMENT

LOOPBACK, WORKER = "127.0.0.1", "127.0.0.2"
"""Where the nodes are: all of 127.0.0.0/8 is this machine."""
MARK = "T2I_TEST_NODE"
START_S = 300.0
JOINED = "Ray runtime started."
"""What `ray start` says when its node has joined."""
STARVED = ("The current node timed out during startup", "mistakenly been marked as dead")
"""And when it ends because that took more than 30 seconds, or because the head did not reach it for 15."""


@dataclass
class Node:
    """One `ray start --block`: it and all that it started can be ended and started again.

    words: of `ray start`. mark: in the environment of every process of this node, by which they are found. within:
    the words of a command that runs another one elsewhere, such as in a network of its own.
    """

    name: str
    words: list[str]
    environment: dict[str, str]
    log: Path
    mark: str = field(default_factory=lambda: f"node-{secrets.token_hex(8)}")
    process: subprocess.Popen[bytes] | None = None
    within: Sequence[str] = ()
    log_before: int = 0

    @property
    def pid(self) -> int:
        """Of the `ray start` process, which is also its session."""
        assert self.process is not None
        return self.process.pid

    @property
    def pids(self) -> list[int]:
        """Every process of this node that is alive: its session's, and those that carry its mark."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                told = (folder / "stat").read_text().rpartition(")")[2].split()
                if told[0] == "Z":
                    continue
                marked = f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
                if marked or (self.process is not None and int(told[3]) == self.process.pid):
                    found.append(int(folder.name))
        return found

    @property
    def wanted(self) -> bool:
        """Whether it was started, and not killed since."""
        return self.process is not None and self.process.poll() != -signal.SIGKILL

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def told(self) -> str:
        """What it has said since it was started last."""
        return self.log.read_bytes()[self.log_before :].decode(errors="replace") if self.log.exists() else ""

    def start(self) -> None:
        """Begin it; `Cluster.wait` says when it has joined.

        Again, at other ports: gRPC waits longer and longer, up to two minutes, before it tries an address again at
        which nobody answered, and a head that does not reach a node for 15 seconds gives it up, which ends it. Where
        nobody asks for ports Ray takes any, other ones each time.
        """
        assert not self.pids, f"{self.name} runs already"
        if self.process is not None:
            self.words = _at_other_ports(self.words)
        self.log_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, sys.executable, "-m", "ray.scripts.scripts", "start", *self.words],
                env={**self.environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End every process at once, as when the machine is gone."""
        self._end(signal.SIGKILL, 0.0)

    def stop(self) -> None:
        """End it as an administrator would, and whatever is left after some seconds by force."""
        self._end(signal.SIGTERM, 10.0)

    def _end(self, how: signal.Signals, patience_s: float) -> None:
        if self.process is None:
            return
        if how == signal.SIGTERM and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
        until = time.monotonic() + 20
        # Whoever is killed may just have started another.
        while pids := self.pids:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < until, f"{self.name} cannot be ended: {pids}"
            time.sleep(0.05)
        self.process.wait(10)


@dataclass(frozen=True)
class Cluster:
    """What a test needs of it. address: of the Jobs API; gcs: HOST:PORT for `ray start --address` and RAY_ADDRESS.

    environment: of a client's process, the token's file included. token_file: None without tokens.
    """

    head: Node
    worker: Node
    address: str
    gcs: str
    environment: dict[str, str]
    token: str | None
    token_file: Path | None
    folder: Path

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.head, self.worker

    def alive(self) -> int:
        """How many nodes the head counts as alive; 0 when it does not answer."""
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"{self.address}/nodes?view=summary", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                summary = json.load(answer)["data"]["summary"]
        except (OSError, urllib.error.URLError, ValueError, KeyError):
            return 0
        return sum(one.get("raylet", {}).get("state") == "ALIVE" for one in summary)

    def wait(self, nodes: int = 2, patience_s: float = START_S) -> None:
        """Until so many nodes are alive, and those that were started last are among them.

        Of a node that was killed the head says for 15 seconds that it lives. A node that Ray gave up because the
        machine has too much to do is started again, as a machine's service manager would.
        """
        until = time.monotonic() + patience_s
        while not (all(JOINED in node.told for node in self.nodes if node.wanted) and self.alive() == nodes):
            for node in self.nodes:
                if node.wanted and not node.running:
                    assert any(reason in node.told for reason in STARVED), f"{node.name} ended:\n{node.told}"
                    node.kill()
                    node.start()
            assert time.monotonic() < until, self.story()
            time.sleep(0.25)

    def story(self) -> str:
        """For a message: what became of the nodes, and what each said since it was started last."""
        ended = {node.name: node.process and node.process.poll() for node in self.nodes}
        said = "\n".join(f"{node.name} said:\n{node.told[-3000:]}" for node in self.nodes)
        return f"{self.alive()} nodes are alive; ended with {ended}\n{said}"


@contextmanager
def two_nodes(
    folder: Path,
    *,
    token: bool = True,
    cpus: int = 1,
    slots: int = 1,
    environment: Mapping[str, str] | None = None,
    worker_environment: Mapping[str, str] | None = None,
    addresses: tuple[str, str] = (LOOPBACK, WORKER),
    worker_within: Sequence[str] = (),
) -> Iterator[Cluster]:
    """A head and a worker with `cpus` and `slots` each; slots are the resource that campaigns need.

    folder: for the token's file and the nodes' output. environment: of all nodes; worker_environment: of the worker
    on top. addresses: of head and worker; worker_within: see `Node`. At the end no process and no folder of Ray is
    left: that is asserted.
    """
    # Ray's sockets lie in its temporary folder, and a socket's path is at most 107 characters.
    temporary = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    secret = secrets.token_hex(24) if token else None
    token_file = _write_token(folder / "token", secret) if secret else None
    base = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "T2I_"))}
    base |= QUIET_ENVIRONMENT | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    if token_file:
        base |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    # A busy machine starts slowly: Ray's own 30 seconds are too few.
    base["RAY_raylet_start_wait_time_s"] = "120"
    gcs_port, dashboard_port, client_port, *rest = free_ports(3 + 2 * len(PORTS))
    shared = ["--block", f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=100000000"]
    shared += [
        f"--resources={json.dumps({SLOT: slots})}",
        "--disable-usage-stats",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]

    def words(name: str, ip: str, ports: list[int]) -> list[str]:
        # Nodes that share a folder delete each other's runtime environments.
        own = [f"--node-ip-address={ip}", f"--temp-dir={temporary / name}"]
        return [*shared, *own, *(f"--{port}={number}" for port, number in zip(PORTS, ports, strict=True))]

    of_head = [*words("h", addresses[0], rest[: len(PORTS)]), "--head", f"--port={gcs_port}"]
    of_head += ["--include-dashboard=true", f"--dashboard-host={LOOPBACK}", f"--dashboard-port={dashboard_port}"]
    of_head += [f"--ray-client-server-port={client_port}"]
    gcs = f"{addresses[0]}:{gcs_port}"
    of_worker = [*words("w", addresses[1], rest[len(PORTS) :]), f"--address={gcs}"]
    theirs = {**base, **(environment or {})}
    head = Node("head", of_head, theirs, folder / "head.log")
    worker = Node("worker", of_worker, {**theirs, **(worker_environment or {})}, folder / "worker.log")
    worker.within = worker_within
    cluster = Cluster(
        head,
        worker,
        f"http://{LOOPBACK}:{dashboard_port}",
        gcs,
        base,
        secret,
        token_file,
        temporary,
    )
    try:
        head.start()
        cluster.wait(1)
        worker.start()
        cluster.wait(2)
        yield cluster
    finally:
        for node in (worker, head):
            node.stop()
        shutil.rmtree(temporary, ignore_errors=True)
    assert not [pid for node in (head, worker) for pid in node.pids]
    assert not temporary.exists()


def _at_other_ports(words: list[str]) -> list[str]:
    """`ray start`'s words with another number for each of `PORTS`."""
    names = [word.partition("=")[0].removeprefix("--") for word in words]
    others = iter(free_ports(len(PORTS)))
    return [f"--{name}={next(others)}" if name in PORTS else word for name, word in zip(names, words, strict=True)]


def _write_token(path: Path, secret: str) -> Path:
    path.touch(0o600)
    path.write_text(secret)
    return path
