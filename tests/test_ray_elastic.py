"""A range of workers on a real cluster of two nodes: one is lost and comes back, then the head is replaced."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.options import chosen_experiment
from orchestration.training.recorder import read_metrics
from orchestration.training.state import checkpoint_folders, open_checkpoint
from orchestration.training.worker import CHECKPOINTS

from .cluster_support import Cluster, Node, free_ports, two_nodes
from .ray_support import assignments

pytestmark = pytest.mark.ray_cluster
PATIENCE_S = 240.0
STEP, STEPS = 32, 64
# There is a checkpoint at every step, and to report it takes until Ray Train's controller looks: that sets the pace,
# slow while there is something to be seen.
PACE, SLOWLY_S, FAST_S = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "5", "0.1"
LENGTHS = {"training__kimg": STEPS * STEP / 1000, "training__checkpoint_kimg": 0.032, "training__log_kimg": 0.032}
CHANGES = assignments(training__seed=11, training__picture_kimg=100, resources__grow_minutes=0.05, **LENGTHS)


class Command:
    """`t2i train --workers 1-2`, as a person gives it who has joined the cluster."""

    def __init__(self, home: Path, environment: Mapping[str, str], gcs: str, pace: str) -> None:
        self.folder = home / "runs" / chosen_experiment("xmcgan_scenes32", None, CHANGES[1::2], (1, 2)).run_name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestration", "train", "xmcgan_scenes32", "--workers", "1-2", "--json", *CHANGES],
            env={**environment, "RAY_ADDRESS": gcs, PACE: pace, "T2I_HOME": str(home), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, look: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not look():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, self.logged()
            time.sleep(0.1)

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def logged(self) -> list[tuple[int, int]]:
        """Images seen and workers, at every step."""
        return logged(self.folder)

    def saved(self) -> int:
        """Images seen at the newest checkpoint, 0 without one."""
        found = checkpoint_folders(self.folder / CHECKPOINTS)
        return round(float(found[-1].name.removeprefix("kimg-")) * 1000) if found else 0


def logged(folder: Path) -> list[tuple[int, int]]:
    lines = [line for line in read_metrics(folder) if "speed/workers" in line["metrics"]]
    return [(line["images"], round(line["metrics"]["speed/workers"])) for line in lines]


def test_a_machine_lost_and_back_and_a_new_head_lose_nothing(tmp_path: Path) -> None:
    """Two workers; one machine dies, and one goes on; it comes back, and two go on; the head dies, and another goes on.

    Nothing is lost but what came after the last checkpoint, and every step is recorded once. Weights are compared in
    `tests.test_elastic`, in double precision: in single precision, so many steps make of a difference of 1e-7 at the
    start one of 0.3 at the end, with one worker too.
    """
    home = tmp_path / "home"
    with two_nodes(tmp_path) as cluster:
        command = Command(home, cluster.environment, cluster.gcs, SLOWLY_S)
        new_head = None
        try:
            command.wait_for(lambda: command.saved() > 0)
            assert {size for _, size in command.logged()} == {2}
            before = command.saved()
            cluster.worker.kill()
            command.wait_for(lambda: any(size == 1 for _, size in command.logged()))
            [went_on, *_] = [images for images, size in command.logged() if size == 1]
            assert before < went_on

            cluster.worker.start()
            command.wait_for(lambda: command.logged()[-1][1] == 2 and command.saved() > command.logged()[0][0])
            sizes = [size for _, size in command.logged()]
            grown = len(sizes) - sizes[::-1].index(1)
            shrunk = sizes.index(1)
            assert sizes == [2] * shrunk + [1] * (grown - shrunk) + [2] * (len(sizes) - grown)

            reached = command.saved()
            assert reached < STEPS * STEP
            cluster.head.kill()
            _, err = command.process.communicate(timeout=PATIENCE_S)
            assert command.process.returncode not in (0, None)
            assert "repeat the command to go on from the last checkpoint" in err
            cluster.worker.kill()

            new_head, gcs = another_head(cluster)
            again = Command(home, cluster.environment, gcs, FAST_S)
            try:
                out, err = again.process.communicate(timeout=PATIENCE_S)
                assert again.process.returncode == 0, err
            finally:
                again.end()
        finally:
            command.end()
            if new_head:
                new_head.stop()
    result = json.loads(out.splitlines()[-1])
    assert Path(result["checkpoint"]).parent == command.folder / CHECKPOINTS
    images = [seen for seen, _ in command.logged()]
    assert images == [STEP * step for step in range(1, STEPS + 1)]
    assert all(size == 1 for seen, size in command.logged() if seen > reached + STEP)
    last = open_checkpoint(checkpoint_folders(command.folder / CHECKPOINTS)[-1])
    assert last.images_seen == STEPS * STEP


def another_head(cluster: Cluster) -> tuple[Node, str]:
    """A head of another cluster, at another port, with one CPU."""
    [port] = free_ports(1)
    words = [f"--port={port}" if word.startswith("--port=") else word for word in cluster.head.words]
    node = replace(cluster.head, name="new head", words=words, mark="new-head", process=None)
    node.start()
    deadline = time.monotonic() + PATIENCE_S
    while cluster.alive() != 1:
        assert time.monotonic() < deadline, node.log.read_text()
        time.sleep(0.25)
    return node, f"{cluster.gcs.partition(':')[0]}:{port}"
