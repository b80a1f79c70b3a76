"""Ray Train with as many workers as the cluster has room for: fewer when machines are taken, more when they come.

Ray Train's own policy for ranges (2.60) does not do here: it counts what it has reserved, which holds machines that are
gone for 20 seconds and those of a command that was killed for minutes; it takes any number in the range; and it grows
at any moment, which throws away all since the last checkpoint. This one counts what is free on machines that answer,
takes numbers that share out the batch evenly, and grows right after a checkpoint.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    RestartingState,
    RunningState,
)
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError
from tqdm import tqdm

from orchestration.cluster import ANSWER_S, head_answers, is_open
from orchestration.errors import RunError
from orchestration.training.worker import SAVED

# Ray Train keeps what its controller says: in the session's logs/train, on the machine of the command.
LOG = logging.getLogger("ray.train.elastic")
LOOK_S = 1.0
SETTLE_S = 5.0
"""So long the cluster is asked again before fewer workers than all are taken: what others held comes free by and by."""


class FollowsCluster(ElasticScalingPolicy):
    """How many workers run: the largest of `sizes` that there is room for.

    sizes: in order. max_failures: failures in a row without a checkpoint in between. wait_s: so long it waits for the
    smallest size.
    """

    def __init__(self, scaling: ScalingConfig, sizes: tuple[int, ...], max_failures: int, wait_s: float) -> None:
        super().__init__(scaling)
        self.sizes, self.max_failures, self.wait_s = sizes, max_failures, wait_s
        self._failures = 0
        self._failure: Exception | None = None
        # Workers that were started, and the nodes they are on once they run: theirs until the next are started.
        self._started = 0
        self._nodes: list[str] | None = None
        self._waiting_since: float | None = None
        self._said = ""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with what there is, or look again. Raises ControllerError, which ends the run, when it gives up."""
        if self._failure is not None and self._failures > self.max_failures:
            raise ControllerError(self._failure)
        self._maybe_send_resource_request()
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        waited = now - self._waiting_since
        size = self._largest(self._room())
        if size == self.sizes[-1] or (size and waited >= SETTLE_S):
            return self._start(size)
        if waited > self.wait_s:
            raise ControllerError(RunError(self._gave_up()))
        # Ray's loop asks again at once.
        time.sleep(LOOK_S)
        return NoopDecision()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """More workers where there is room, right after a checkpoint."""
        self._maybe_send_resource_request()
        self._nodes = [worker.metadata.node_id for worker in worker_group_state.workers]
        report = worker_group_status.worker_statuses[0].training_report
        if report is None or not just_saved(report.metrics):
            return NoopDecision()
        self._failures = 0
        running = worker_group_state.num_workers
        if time.monotonic() - worker_group_state.start_time < self.scaling_config.elastic_resize_monitor_interval_s:
            return NoopDecision()
        size = self._largest(room := self._room())
        self._say(f"{running} of {self.sizes[-1]} workers run, and there is room for {room}")
        return self._start(size) if size > running else NoopDecision()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Ray's controller says where it is, at every turn of its loop."""
        if isinstance(current_state, RunningState):
            self._waiting_since = None
        elif isinstance(current_state, ReschedulingState):
            self._started, self._nodes = 0, None
        begun = isinstance(current_state, RestartingState) and current_state is not previous_state
        # Machines that are taken back with notice are no failures.
        if begun and not isinstance(current_state.training_failed_error, PreemptionError):
            self._failures += 1
            self._failure = current_state.training_failed_error

    def _largest(self, room: int) -> int:
        return max((size for size in self.sizes if size <= room), default=0)

    def _say(self, sentence: str) -> None:
        if sentence != self._said:
            LOG.info(sentence)
        self._said = sentence

    def _start(self, size: int) -> ScalingDecision:
        self._say(f"{size} of {self.sizes[-1]} workers are started")
        self._started, self._nodes = size, None
        return self._get_resize_decision(size)

    def _room(self) -> int:
        """So many workers fit: in what is free, and in what the last ones hold on machines that are left."""
        free = ray._private.state.available_resources_per_node()
        fit: dict[str, int] = {}
        for node, machine in answering(ray.nodes()).items():
            held = 0 if self._nodes is None else self._nodes.count(node)
            # A machine that came back before its end was noticed is two nodes.
            fit[machine] = max(fit.get(machine, 0), held + room_for([free.get(node, {})], self._each))
        return sum(fit.values()) + (self._started if self._nodes is None else 0)

    @property
    def _each(self) -> Mapping[str, float]:
        needs: Mapping[str, float] = self.scaling_config._resources_per_worker_not_none
        return needs

    def _gave_up(self) -> str:
        fewest = self.sizes[0]
        return (
            f"{fewest} worker{'s' if fewest > 1 else ''} at the least {'were' if fewest > 1 else 'was'} waited for "
            f"{self.wait_s / 60:g} minutes, and the cluster has room for {self._room()}: "
            "bring machines back or lower --workers, and repeat the command to go on from the last checkpoint"
        )


def just_saved(metrics: Mapping[str, Any]) -> bool:
    """Whether what a worker reports is a checkpoint."""
    return bool(metrics.get(SAVED) == metrics.get("kimg"))


def room_for(nodes: Iterable[Mapping[str, float]], each: Mapping[str, float]) -> int:
    """How many workers that need `each` fit on nodes with so much that is free."""
    return sum(min(int(free.get(name, 0.0) // units) for name, units in each.items() if units) for free in nodes)


def answering(nodes: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Those nodes of `ray.nodes()` whose Ray can be reached, and where: of one that died it is said at once that it
    lives, 15 seconds later that it does not."""
    alive = [node for node in nodes if node["Alive"]]
    with ThreadPoolExecutor(max_workers=32) as pool:
        answers = list(pool.map(_answers, alive))
    return {
        node["NodeID"]: f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        for node, answer in zip(alive, answers, strict=True)
        if answer
    }


def _answers(node: Mapping[str, Any]) -> bool:
    return is_open(node["NodeManagerAddress"], node["NodeManagerPort"])


class ElasticTrainer(TorchTrainer):
    """A TorchTrainer whose number of workers `FollowsCluster`."""

    def __init__(self, *arguments: Any, policy: FollowsCluster, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.policy = policy

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        return super()._initialize_and_run_controller(**{**given, "scaling_policy": self.policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ctrl-C stays Python's: Ray's would ask a controller that waits for workers and answers nothing."""


class SaysWhoIsMissing:
    """While a run has fewer machines than it needs, or than it could use, tells whoever is watching, from a thread."""

    def __init__(self, ray: Any, kind: str, fewest: int, most: int, advice: str, every_s: float = 5.0) -> None:
        self.ray, self.kind, self.fewest, self.most, self.advice = ray, kind, fewest, most, advice
        self.every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "SaysWhoIsMissing":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(ANSWER_S)

    def _watch(self) -> None:
        before = self.most
        while not self._stop.wait(self.every_s):
            try:
                if not head_answers(self.ray):
                    continue
                have = min(self.most, int(self.ray.cluster_resources().get(self.kind, 0)))
            except Exception:
                continue  # the head does not answer: whoever trains hears of it
            if have != before:
                say(self._sentence(have, before))
            before = have

    def _sentence(self, have: int, before: int) -> str:
        if have < self.fewest:
            return (
                f"waiting for workers: each needs a {self.kind}, {self.fewest} at the least, and the cluster has "
                f"{have}: {self.advice}"
            )
        if before < self.fewest:
            return "there are enough machines again: it goes on from the last checkpoint"
        if have < self.most:
            return f"there is a {self.kind} for {have} of {self.most} workers: fewer train until machines come"
        return f"there is a {self.kind} for each of {self.most} workers: all train from a next checkpoint on"


def say(line: str) -> None:
    """A line of its own beside the progress bar."""
    tqdm.write(line, file=sys.stderr)
