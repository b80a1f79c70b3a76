"""A range of workers on a real cluster of two nodes: one is lost and comes back, then the head is replaced."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orchestration.config import parse_experiment
from orchestration.data.sampler import SeededOrder
from orchestration.options import chosen_experiment
from orchestration.prepared import Prepared
from orchestration.stage_store import PREPARED
from orchestration.training.launch import EXPERIMENT_FILE
from orchestration.training.recorder import read_metrics
from orchestration.training.state import checkpoint_folders, initial_state, open_checkpoint
from orchestration.training.worker import CHECKPOINTS, Job, train_worker

from .cluster_support import Cluster, Node, free_ports, two_nodes
from .ray_support import assignments

pytestmark = [pytest.mark.ray_cluster, pytest.mark.late]
PATIENCE_S = 240.0
"""So long nothing may happen: a machine that has too much else to do is slow, and goes on."""
STEP, STEPS = 32, 64
# There is a checkpoint at every step, and to report it takes until Ray Train's controller looks: that sets the pace,
# slow while there is something to be seen.
PACE, SLOWLY_S, FAST_S = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "5", "0.1"
LENGTHS = {"training__kimg": STEPS * STEP / 1000, "training__checkpoint_kimg": 0.032, "training__log_kimg": 0.032}
# Adam divides a gradient by its own size, and makes a step of what is nothing but rounding. With an epsilon far above
# every gradient it is gradient descent with momentum, whose steps differ by as much as the gradients do.
SMOOTH = {
    f"model__{net}_optimizer__{field}": value
    for net in ("generator", "discriminator")
    for field, value in (("epsilon", 1e4), ("learning_rate", 1.0))
}
TOLERANCE = 2e-4
"""Of weights, averages and statistics, relative to how far training moved those of their net: 2e-5 was seen, and where
one sample of the 2,048 was another 9e-3."""
ONE_SAMPLE = STEPS * STEP // 4 + 5
CHANGES = assignments(training__seed=11, training__picture_kimg=100, resources__grow_minutes=0.05, **LENGTHS, **SMOOTH)
TRAIN = ("train", "xmcgan_scenes32", "--workers", "1-2", "--json")


class Command:
    """`t2i train --workers 1-2`, as a person gives it who has joined the cluster."""

    def __init__(self, home: Path, cluster: Cluster, gcs: str, pace: str) -> None:
        self.folder = home / "runs" / chosen_experiment("xmcgan_scenes32", None, CHANGES[1::2], (1, 2)).run_name
        self.cluster, self.errors = cluster, cluster.head.log.with_name(f"command-{pace}.log")
        self.output = self.errors.with_suffix(".out")
        with self.errors.open("wb") as errors, self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestration", *TRAIN, *CHANGES],
                env={
                    **cluster.environment,
                    "RAY_ADDRESS": gcs,
                    PACE: pace,
                    "T2I_HOME": str(home),
                    "T2I_PROGRESS": "lines",
                    "HF_HUB_OFFLINE": "1",
                },
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    def wait_for(self, look: Callable[[], bool]) -> None:
        """Until it is so. Nothing may happen for some time, and it may not end before."""
        for _ in self._patiently():
            if look():
                return
            assert self.process.poll() is None, self.story()
            assert all(node.running for node in self.cluster.nodes if node.wanted), self.story()

    def wait(self) -> tuple[str, str]:
        """Standard output and standard error at its end."""
        for _ in self._patiently():
            if self.process.poll() is not None:
                break
        return self.output.read_text(), self.errors.read_text()

    def _patiently(self) -> Iterator[None]:
        seen, deadline = None, 0.0
        while True:
            if (now := (self.logged(), self.errors.stat().st_size)) != seen:
                seen, deadline = now, time.monotonic() + PATIENCE_S
            assert time.monotonic() < deadline, self.story()
            yield
            time.sleep(0.1)

    def story(self) -> str:
        """For a message: what happened, as every part of it tells it."""
        ray = [
            f"{path.name}:\n{path.read_text()[-3000:]}"
            for path in self.cluster.folder.glob("*/session_2*/logs/train/ray-train-app-controller-*")
        ]
        said = f"ended with {self.process.poll()}, standard error:\n{self.errors.read_text()[-3000:]}"
        return "\n".join([f"(images, workers): {self.logged()}", said, *ray, self.cluster.story()])

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def logged(self) -> list[tuple[int, int]]:
        """Images seen and workers, at every step."""
        lines = [line for line in read_metrics(self.folder) if "speed/workers" in line["metrics"]]
        return [(line["images"], round(line["metrics"]["speed/workers"])) for line in lines]

    def saved(self) -> int:
        """Images seen at the newest checkpoint, 0 without one."""
        found = checkpoint_folders(self.folder / CHECKPOINTS)
        return round(float(found[-1].name.removeprefix("kimg-")) * 1000) if found else 0


def test_a_machine_lost_and_back_and_a_new_head_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers; one machine dies, and one goes on; it comes back, and two go on; the head dies, and another goes on.

    Nothing is lost but what came after the last checkpoint, every step is recorded once, and the weights are those of
    one worker that nothing happened to.
    """
    home = tmp_path / "home"
    with two_nodes(tmp_path) as cluster:
        command = Command(home, cluster, cluster.gcs, SLOWLY_S)
        new_head = None
        try:
            command.wait_for(lambda: command.saved() > STEP)
            assert {size for _, size in command.logged()} == {2}
            before = command.saved()
            cluster.worker.kill()
            command.wait_for(lambda: any(size == 1 for _, size in command.logged()))
            [went_on, *_] = [images for images, size in command.logged() if size == 1]
            assert before < went_on

            cluster.worker.start()
            cluster.wait(2)
            command.wait_for(lambda: [size for _, size in command.logged()[-3:]] == [2] * 3)
            sizes = [size for _, size in command.logged()]
            grown = len(sizes) - sizes[::-1].index(1)
            shrunk = sizes.index(1)
            assert sizes == [2] * shrunk + [1] * (grown - shrunk) + [2] * (len(sizes) - grown)

            reached = command.saved()
            assert reached < STEPS * STEP
            cluster.head.kill()
            _, err = command.wait()
            assert command.process.returncode not in (0, None)
            assert "repeat the command to go on from the last checkpoint" in err
            cluster.worker.kill()

            new_head, gcs = another_head(cluster)
            again = Command(home, cluster, gcs, FAST_S)
            try:
                out, err = again.wait()
                assert again.process.returncode == 0, err
            finally:
                again.end()
        finally:
            if new_head:
                new_head.stop()
            command.end()
    result = json.loads(out.splitlines()[-1])
    assert Path(result["checkpoint"]).parent == command.folder / CHECKPOINTS
    images = [seen for seen, _ in command.logged()]
    assert images == [STEP * step for step in range(1, STEPS + 1)]
    assert all(size == 1 for seen, size in command.logged() if seen > reached + STEP)
    assert sum(size == 2 for _, size in command.logged()) >= 4
    undisturbed = calm(command.folder, tmp_path / "calm")
    prepared = Prepared.from_json(json.loads((command.folder / PREPARED).read_text()))
    far = distances(prepared, command.folder, undisturbed)
    assert 0 < max(far.values()) <= TOLERANCE, far
    # So small a fault would be seen.
    items = SeededOrder.items
    monkeypatch.setattr(SeededOrder, "items", lambda order, at: items(order, at - (at == ONE_SAMPLE)))
    far = distances(prepared, calm(command.folder, tmp_path / "spoilt"), undisturbed)
    assert max(far.values()) > 5 * TOLERANCE, far


def calm(run: Path, folder: Path) -> Path:
    """The same run by one worker, to which nothing happens; without Ray."""
    experiment = parse_experiment(json.loads((run / EXPERIMENT_FILE).read_text()))
    prepared = Prepared.from_json(json.loads((run / PREPARED).read_text()))
    before = torch.get_num_threads()
    try:
        train_worker(Job(experiment, prepared, str(folder), 1), lambda _: None, torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    return folder


def distances(prepared: Prepared, run: Path, calm: Path) -> dict[str, float]:
    """How far the last weights, averages and statistics are apart, relative to how far training moved their net's."""
    found, wanted = (open_checkpoint(checkpoint_folders(folder / CHECKPOINTS)[-1]) for folder in (run, calm))
    assert found.images_seen == wanted.images_seen == STEPS * STEP
    start = initial_state(wanted.experiment, torch.device("cpu"), prepared.given)
    nets = {**start.nets, **{f"average_{name}": net for name, net in start.averages.items()}}
    far: dict[str, float] = {}
    for name, net in nets.items():
        one, other = (load_file(checkpoint.folder / f"{name}.safetensors") for checkpoint in (found, wanted))
        for kind, begun in (("weights", dict(net.named_parameters())), ("statistics", dict(net.named_buffers()))):
            moved = max((other[key] - value).abs().max().item() for key, value in begun.items())
            far[f"{kind} of {name}"] = max((one[key] - other[key]).abs().max().item() for key in begun) / moved
    return far


def another_head(cluster: Cluster) -> tuple[Node, str]:
    """A head of another cluster, at another port, with one CPU."""
    [port] = free_ports(1)
    words = [f"--port={port}" if word.startswith("--port=") else word for word in cluster.head.words]
    node = replace(cluster.head, name="new head", words=words, mark=f"{cluster.head.mark}-new", process=None)
    node.start()
    gcs = f"{cluster.gcs.partition(':')[0]}:{port}"
    try:
        replace(cluster, head=node, gcs=gcs).wait(1)
    except BaseException:
        node.stop()
        raise
    return node, gcs
