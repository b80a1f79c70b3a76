"""Reaching into a Ray cluster: who runs where, and SIGKILL on whichever node it is."""

import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from orchestration.campaigns.execution import SLOT
from orchestration.campaigns.leftovers import OF_THE_CLUSTER
from orchestration.cluster import OWN, ray_cluster
from orchestration.clusters.knocking import CLIENT, checked_address
from orchestration.doctor.hands import Place, places_of
from orchestration.doctor.joining import joined
from orchestration.errors import RequestError, RunError

ADDRESS = "RAY_ADDRESS"
TRAIN_WORKER, TRIAL, REPLICA = "RayTrainWorker", "ImplicitFunc", "ServeReplica"
"""How Ray's own classes of actors are called, or begin; Ray lists those made in a function under a longer name."""
ANSWER_S = 60.0
MOST = 10_000  # rows of one answer


@dataclass(frozen=True, slots=True)
class Victim:
    """A process of a node. node: as a person knows it; node_id: Ray's."""

    pid: int
    node: str
    node_id: str


class Cluster(Protocol):
    """What a drill needs of a cluster."""

    address: str

    def nodes(self) -> Sequence[Place]:
        """Those that are alive."""

    def losable(self) -> Sequence[Place]:
        """Those of them that are neither the head's nor this process's."""

    def units(self, resource: str) -> float:
        """How many of it all nodes have."""

    def actors(self, kind: str, jobs: Collection[str] | None = None) -> list[Victim]:
        """Living processes of actors whose class, without where it was made, begins so, of these jobs."""

    def kill(self, victim: Victim) -> bool:
        """SIGKILL of a process; whether it was still there."""

    def kill_node(self, place: Place) -> None:
        """SIGKILL of a node's raylet and of all that it started."""

    def reach_all(self) -> None:
        """Be ready to strike on every node that is alive."""

    def left_over(self, jobs: Collection[str]) -> list[str]:
        """What the cluster still holds of jobs: actors and placement groups, by a few words each."""

    def serves(self) -> bool:
        """Whether Ray Serve runs on it."""

    def on_head(self, kind: type, *arguments: Any) -> Any:
        """An actor of this class on the head; its methods are called with `call`."""

    def call(self, method: Any, *arguments: Any) -> Any:
        """What an actor's method returns."""


class Hand:
    """A process on a node that strikes there."""

    def end(self, pid: int) -> bool:
        """SIGKILL; whether there was such a process."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    def end_node(self) -> None:
        """SIGKILL of this node's raylet, then of all that it started, this process the last."""
        import psutil

        raylet = psutil.Process(os.getppid())
        if "raylet" not in raylet.name():
            raise RuntimeError(f"the parent of a worker is {raylet.name()} and no raylet")
        below = raylet.children(recursive=True)
        for process in [raylet, *(one for one in below if one.pid != os.getpid())]:
            with suppress(psutil.Error):
                process.kill()
        os.kill(os.getpid(), signal.SIGKILL)

    def host(self) -> str:
        """Of the node."""
        return os.uname().nodename


class OnRay:
    """A cluster that this process has joined; one hand on each node, taken where it is needed."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        context = ray.get_runtime_context()
        self.address, self._own = str(context.gcs_address), context.get_node_id()
        self._hands: dict[str, Any] = {}
        self._others: list[Any] = []
        self.reach_all()

    def reach_all(self) -> None:
        # A process takes seconds to start, and a moment does not wait.
        self._ask([self._hand(place.node_id).host.remote() for place in self.nodes()])

    def nodes(self) -> Sequence[Place]:
        return places_of([entry for entry in self._ray.nodes() if entry["Alive"]])

    def losable(self) -> Sequence[Place]:
        return [place for place in self.nodes() if not place.head and place.node_id != self._own]

    def units(self, resource: str) -> float:
        return float(self._ray.cluster_resources().get(resource, 0.0))

    def actors(self, kind: str, jobs: Collection[str] | None = None) -> list[Victim]:
        names = {place.node_id: place.name for place in self.nodes()}
        return sorted(
            (
                Victim(int(actor.pid), names[actor.node_id], str(actor.node_id))
                for actor in self._listed("actors", ("state", "=", "ALIVE"))
                if actor.class_name.rpartition(".")[2].startswith(kind)
                and actor.pid
                and actor.node_id in names
                and (jobs is None or actor.job_id in jobs)
            ),
            key=lambda victim: (victim.node, victim.pid),
        )

    def kill(self, victim: Victim) -> bool:
        return bool(self._ask([self._hand(victim.node_id).end.remote(victim.pid)])[0])

    def kill_node(self, place: Place) -> None:
        # It does not live to answer.
        self._hand(place.node_id).end_node.remote()
        del self._hands[place.node_id]

    def left_over(self, jobs: Collection[str]) -> list[str]:
        found = [
            f"an actor {actor.class_name} (pid {actor.pid})"
            for actor in self._listed("actors", ("state", "!=", "DEAD"))
            if actor.job_id in jobs and actor.class_name not in OF_THE_CLUSTER
        ]
        groups = self._listed("placement_groups", ("state", "!=", "REMOVED"))
        return found + [f"placement group {one.placement_group_id}" for one in groups if one.creator_job_id in jobs]

    def serves(self) -> bool:
        from ray import serve

        status = serve.status()
        return bool(status.proxies or status.applications)

    def on_head(self, kind: type, *arguments: Any) -> Any:
        head = next(place for place in self.nodes() if place.head)
        actor = self._start(kind, head.node_id, *arguments)
        self._others.append(actor)
        return actor

    def call(self, method: Any, *arguments: Any) -> Any:
        return self._ask([method.remote(*arguments)])[0]

    def close(self) -> None:
        """End the hands."""
        for actor in (*self._hands.values(), *self._others):
            with suppress(Exception):
                self._ray.kill(actor)

    def _hand(self, node_id: str) -> Any:
        if node_id not in self._hands:
            self._hands[node_id] = self._start(Hand, node_id)
        return self._hands[node_id]

    def _start(self, kind: type, node_id: str, *arguments: Any) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        # Of no CPU: a busy cluster is struck too.
        options = {"num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": there}
        return self._ray.remote(kind).options(**options).remote(*arguments)

    def _listed(self, what: str, *filters: tuple[str, str, str]) -> list[Any]:
        """What Ray's state says, once it does: a head that is busy or has just lost a node answers another time."""
        from ray.util import state
        from ray.util.state.exception import RayStateApiException

        ask, until = getattr(state, f"list_{what}"), time.monotonic() + ANSWER_S
        while True:
            try:
                return list(ask(address=self.address, filters=list(filters), detail=True, limit=MOST))
            except RayStateApiException as error:
                if time.monotonic() > until:
                    reason = " ".join(str(error).split())
                    raise RunError(
                        f"the cluster did not list its {what.replace('_', ' ')} for {ANSWER_S:.0f} s ({reason}): see "
                        "to its dashboard and repeat the drill, which then goes on"
                    ) from error
                time.sleep(1.0)

    def _ask(self, references: list[Any]) -> list[Any]:
        return list(self._ray.get(references, timeout=10 * ANSWER_S))


@contextmanager
def cluster(cpus: int) -> Iterator[OnRay]:
    """The cluster that RAY_ADDRESS names, or a private one of this machine with so many CPUs at least, which ends.

    Raises RequestError where there is none at the address.
    """
    address = os.environ.get(ADDRESS)
    if address and address.startswith(CLIENT):
        raise RequestError(
            f"RAY_ADDRESS is {address}, and a drill cannot reach nodes through Ray's client: run it on a machine of "
            "the cluster, or as a job of it with t2i submit -- drill"
        )
    if address and address != OWN:
        with joined(checked_address(address, ADDRESS, "drill")) as (ray, _), _reaching(ray) as reach:
            yield reach
    else:
        with ray_cluster(cpus, {SLOT: 1.0}) as ray, _reaching(ray) as reach:
            yield reach


@contextmanager
def _reaching(ray: Any) -> Iterator[OnRay]:
    reach = OnRay(ray)
    try:
        yield reach
    finally:
        reach.close()


def wait_until(what: Callable[[], bool], patience_s: float, every_s: float = 0.1) -> bool:
    """Whether it came true in time."""
    until = time.monotonic() + patience_s
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(every_s)
    return True
