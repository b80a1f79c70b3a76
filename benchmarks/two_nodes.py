"""A Ray cluster of two nodes on this machine, as separate `ray start` processes with a token.

Every process carries the mark of who started it, and each of the three (head, worker, driver) has a temporary folder
of its own, so that whatever is left can be counted and named: see `inventory`.
"""

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from inventory import Inventory
from ports import PORTS, free_ports

from orchestration.campaigns.execution import SLOT
from orchestration.cluster import QUIET_ENVIRONMENT

HEAD, WORKER, DRIVER = "head", "worker", "driver"
ADDRESSES = {HEAD: "127.0.0.1", WORKER: "127.0.0.2"}  # all of 127.0.0.0/8 is this machine
MARK = "T2I_BENCHMARK_PROCESS"
START_S, END_S = 180.0, 30.0


@dataclass
class TwoNodes:
    """The cluster. environment: of a driver's process, which finds the cluster and its token by it."""

    folder: Path
    environment: dict[str, str]
    inventory: Inventory
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def log(self, who: str) -> Path:
        """What it prints."""
        return self.folder / f"{who}.log"

    def start(self, who: str, *words: str) -> subprocess.Popen[bytes]:
        """Begin `python -m WORDS` as head, worker or driver."""
        name, _, mark = self.inventory.marks[who].partition("=")
        with self.log(who).open("ab") as log:
            self.started[who] = subprocess.Popen(
                [sys.executable, "-m", *words],
                env={**self.environment, name: mark, "TMPDIR": str(self.inventory.temporary[who])},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.inventory.sessions[who] = self.started[who].pid
        return self.started[who]

    def wait(self, nodes: int) -> None:
        """Until so many nodes are alive."""
        until = time.monotonic() + START_S
        while True:
            with suppress(OSError, urllib.error.URLError, ValueError, KeyError):
                summary = self.inventory.asked("/nodes?view=summary")["summary"]
                if sum(one.get("raylet", {}).get("state") == "ALIVE" for one in summary) == nodes:
                    return
            if any(one.poll() is not None for one in self.started.values()) or time.monotonic() > until:
                logs = "\n".join(self.log(who).read_text() for who in self.started)
                raise SystemExit(f"the cluster does not start:\n{logs}")
            time.sleep(0.5)

    def stop(self) -> None:
        """End all, and by force whatever is left after some seconds."""
        for one in reversed(self.started.values()):
            if one.poll() is None:
                one.terminate()
                with suppress(subprocess.TimeoutExpired):
                    one.wait(END_S)
        until = time.monotonic() + END_S
        while time.monotonic() < until and (
            left := [one for who in self.started for one in self.inventory.processes(who)]
        ):
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.2)


@contextmanager
def two_nodes(cpus: int = 1, slots: int = 1, environment: Mapping[str, str] | None = None) -> Iterator[TwoNodes]:
    """A head and a worker with `cpus` and `slots` each; slots are the resource that campaigns need."""
    # Ray's sockets lie in its temporary folder, and a socket's path is at most 107 characters.
    folder, token = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp")), secrets.token_hex(24)
    (folder / "token").touch(0o600)
    (folder / "token").write_text(token)
    gcs, dashboard, client, *rest = free_ports(3 + 2 * len(PORTS))
    base = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "T2I_"))}
    base |= QUIET_ENVIRONMENT | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ADDRESS": f"{ADDRESSES[HEAD]}:{gcs}",
        **(environment or {}),
    }
    mark = secrets.token_hex(8)
    temporary = {who: folder / f"tmp-{who}" for who in (HEAD, WORKER, DRIVER)}
    inventory = Inventory(
        f"http://{ADDRESSES[HEAD]}:{dashboard}",
        token,
        {who: f"{MARK}={mark}-{who}" for who in temporary},
        rays={who: folder / who for who in ADDRESSES},
        temporary=temporary,
    )
    cluster = TwoNodes(folder, base, inventory)
    for own in temporary.values():
        own.mkdir()

    def words(who: str, ports: list[int]) -> list[str]:
        # Nodes that share a folder delete each other's runtime environments.
        return [
            f"--num-cpus={cpus}",
            "--num-gpus=0",
            "--object-store-memory=100000000",
            f"--resources={json.dumps({SLOT: slots})}",
            "--disable-usage-stats",
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--node-ip-address={ADDRESSES[who]}",
            f"--temp-dir={folder / who}",
            *(f"--{port}={number}" for port, number in zip(PORTS, ports, strict=True)),
        ]

    start = ("ray.scripts.scripts", "start", "--block")
    of_head = ["--head", f"--port={gcs}", f"--dashboard-host={ADDRESSES[HEAD]}", f"--dashboard-port={dashboard}"]
    of_head += ["--include-dashboard=true", f"--ray-client-server-port={client}"]
    try:
        cluster.start(HEAD, *start, *words(HEAD, rest[: len(PORTS)]), *of_head)
        cluster.wait(1)
        cluster.start(WORKER, *start, *words(WORKER, rest[len(PORTS) :]), f"--address={ADDRESSES[HEAD]}:{gcs}")
        cluster.wait(2)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
