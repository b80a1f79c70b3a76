"""A campaign on two nodes of which one is lost and comes back ends as the undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.campaigns.campaign import read_campaign
from orchestration.campaigns.ledger import State

from .cluster_support import Cluster, Node, two_nodes
from .ray_support import assignments

pytestmark = pytest.mark.ray_cluster
PATIENCE_S = 300.0
SEARCH = ["--trials", "2", "--kimg", "1.6", "--parameter", "tau", "--range", "tau=0.05:0.2", "--scheduler", "none"]
TINY = assignments(
    training__kimg=1.6,
    training__checkpoint_kimg=0.064,
    training__log_kimg=0.064,
    evaluation__protocol="auto",
    evaluation__every_kimg=1.6,
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp("cluster")) as running:
        yield running


class Campaign:
    """`t2i tune` on the cluster, as a driver on its head has it."""

    def __init__(self, cluster: Cluster, home: Path, name: str) -> None:
        self.folder = home / "campaigns" / name
        words = ["tune", "xmcgan_scenes32", *SEARCH, *TINY, "--name", name, "--home", str(home), "--json"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestration", *words],
            # A driver waits so long for a head that is gone: Ray's own minute would be the whole test's.
            env={**cluster.environment, "RAY_ADDRESS": cluster.gcs, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def saved(self) -> list[int]:
        """Checkpoints of each trial."""
        return [len(list(trial.glob("checkpoints/kimg-*"))) for trial in sorted(self.folder.glob("trials/*"))]

    def wait_for(self, look: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not look():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, self.saved()
            time.sleep(0.1)

    def result(self) -> Any:
        try:
            out, err = self.process.communicate(timeout=PATIENCE_S)
            assert self.process.returncode == 0, err
            return json.loads(out.splitlines()[-1])
        finally:
            self.end()

    def ledger(self) -> list[Any]:
        """What it says, but for times and places: checkpoints too, to the last bit."""
        return [(trial.number, trial.values, trial.state, trial.digest) for trial in read_campaign(self.folder).trials]

    def kill_in_the_middle(self, *nodes: Node) -> None:
        """SIGKILL of all processes of nodes while both trials train."""
        self.wait_for(lambda: len(self.saved()) == 2 and min(self.saved()) >= 1)
        assert {trial.state for trial in read_campaign(self.folder).trials} <= {State.WAITING, State.RUNNING}
        for node in nodes:
            node.kill()

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture(scope="module")
def calm(cluster: Cluster, home: Path) -> list[Any]:
    """The ledger of one that nothing happens to."""
    undisturbed = Campaign(cluster, home, "calm")
    undisturbed.result()
    return undisturbed.ledger()


def test_a_worker_node_that_is_killed_and_comes_back_changes_nothing(
    cluster: Cluster, home: Path, calm: list[Any]
) -> None:
    lost = Campaign(cluster, home, "lost")
    lost.kill_in_the_middle(cluster.worker)
    cluster.worker.start()
    lost.result()
    assert lost.ledger() == calm
    cluster.wait(2)


def test_a_head_that_is_killed_is_replaced_and_the_same_command_goes_on(
    cluster: Cluster, home: Path, calm: list[Any]
) -> None:
    """The last test: the nodes are others afterwards."""
    beheaded = Campaign(cluster, home, "beheaded")
    try:
        beheaded.kill_in_the_middle(cluster.head, cluster.worker)
        _, err = beheaded.process.communicate(timeout=PATIENCE_S)
        assert beheaded.process.returncode not in (0, None) and "Traceback" not in err
    finally:
        beheaded.end()
    cluster.head.start()
    cluster.wait(1)
    cluster.worker.start()
    cluster.wait(2)
    again = Campaign(cluster, home, "beheaded")
    again.result()
    assert again.ledger() == calm
