"""Running a probe on every node at once, and waiting only so long: what a node does not answer is a fact too."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestration.doctor import probes, ring, storage_probes
from orchestration.doctor.facts import Failed

Call = tuple[Any, ...]
"""A probe and its arguments."""

HERE = "this machine"
TRAVELLING = (probes, storage_probes, ring)
AT_ONCE = 16
"""Threads of a node's process, so that a probe that hangs holds up no other."""
HEAD = "node:__internal_head__"


@dataclass(frozen=True, slots=True)
class Place:
    """A node as Ray's table has it. ports: roles of known ports; resources: Ray's counts. Empty without a cluster."""

    name: str
    head: bool = False
    node_id: str = ""
    address: str = ""
    ports: Mapping[int, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)


class Hands(Protocol):
    """What reaches the nodes; the head's place is the first."""

    places: Sequence[Place]

    def run(self, calls: Mapping[str, Call], timeout_s: float) -> dict[str, Any]:
        """Run a probe on each named node; by name what it returned, or Failed."""

    def reduce(self, backend: str, timeout_s: float, among: Sequence[str] = ()) -> dict[str, Any]:
        """One all-reduce among the named places, or all; by rank's name its values as in `ring.reduce`, or Failed."""


class Here:
    """This machine alone, in this process."""

    def __init__(self) -> None:
        self.places: Sequence[Place] = (Place(HERE, head=True),)

    def run(self, calls: Mapping[str, Call], timeout_s: float) -> dict[str, Any]:
        """As Hands.run."""
        return {name: _in_time(call, timeout_s) for name, call in calls.items()}

    def reduce(self, backend: str, timeout_s: float, among: Sequence[str] = ()) -> dict[str, Any]:
        """As Hands.reduce, between two processes."""
        answers = _in_time((ring.reduce_here, backend, timeout_s), timeout_s + 30)
        if isinstance(answers, Failed):
            return {HERE: answers}
        return {
            f"process {rank}": Failed(answer) if isinstance(answer, str) else answer
            for rank, answer in enumerate(answers)
        }


def _in_time(call: Call, timeout_s: float) -> Any:
    """What the call returns. Its thread is left behind when it hangs, as on a server that is gone."""
    answers: list[Any] = []

    def work() -> None:
        try:
            answers.append(call[0](*call[1:]))
        except Exception as error:
            answers.append(failure(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answers[0] if answers else too_late(timeout_s)


class OnCluster:
    """Every living node of a Ray cluster, with one process on each; `dead` names the others that Ray remembers."""

    def __init__(self, ray: Any) -> None:
        table = ray.nodes()
        self._ray = ray
        self.places: Sequence[Place] = places_of([entry for entry in table if entry["Alive"]])
        alive = {place.address for place in self.places}
        gone = {entry["NodeManagerAddress"] for entry in table if not entry["Alive"]}
        self.dead = tuple(sorted(gone - alive))
        self._examiners = {place.name: self._start(probes.Examiner, place) for place in self.places}

    def run(self, calls: Mapping[str, Call], timeout_s: float) -> dict[str, Any]:
        """As Hands.run."""
        return self._gather({name: self._examiners[name].run.remote(*call) for name, call in calls.items()}, timeout_s)

    def reduce(self, backend: str, timeout_s: float, among: Sequence[str] = ()) -> dict[str, Any]:
        """As Hands.reduce: a process a node, and two where it is one node."""
        places = [place for place in self.places if not among or place.name in among]
        chosen = places if len(places) > 1 else [*places, *places]
        names = [place.name for place in chosen] if len(places) > 1 else [f"process {rank}" for rank in range(2)]
        gpus = 1 if backend == "nccl" else 0
        busy = self._busy(chosen) if gpus else ()
        if busy:
            # A process that waits for a GPU until others give it back would look as one that is not reached.
            return {name: Failed("its GPUs are in use", busy=True) for name in busy}
        ranks = {name: self._start(ring.Rank, place, gpus) for name, place in zip(names, chosen, strict=True)}
        first, count = names[0], len(ranks)
        try:
            opened = self._gather({first: ranks[first].open.remote(chosen[0].address, count, timeout_s)}, timeout_s)
            if isinstance(opened[first], Failed):
                return opened
            meeting = (chosen[0].address, opened[first], backend, timeout_s)
            return self._gather(
                {name: rank.reduce.remote(index, count, *meeting) for index, (name, rank) in enumerate(ranks.items())},
                timeout_s + 10,
            )
        finally:
            for rank in ranks.values():
                self._end(rank)

    def _busy(self, chosen: Sequence[Place]) -> tuple[str, ...]:
        """Names of the places that have no GPU to spare for each time that they are chosen."""
        from ray._private.state import available_resources_per_node

        free = available_resources_per_node()
        wanted = Counter(place.node_id for place in chosen)
        lacking = (place.name for place in chosen if free.get(place.node_id, {}).get("GPU", 0) < wanted[place.node_id])
        return tuple(dict.fromkeys(lacking))

    def close(self) -> None:
        """End the processes."""
        for examiner in self._examiners.values():
            self._end(examiner)

    def _start(self, kind: type, place: Place, gpus: int = 0) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        with travelling():
            return (
                self._ray.remote(kind)
                .options(
                    num_cpus=0,  # a busy cluster is looked at too
                    num_gpus=gpus,
                    max_concurrency=AT_ONCE,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(place.node_id, soft=False),
                )
                .remote()
            )

    def _gather(self, references: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        waiting = list(references.values())
        ready, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=timeout_s) if waiting else ([], [])
        found: dict[str, Any] = {}
        for name, reference in references.items():
            try:
                found[name] = self._ray.get(reference) if reference in ready else too_late(timeout_s)
            except Exception as error:
                found[name] = failure(error)
        return found

    def _end(self, actor: Any) -> None:
        with suppress(Exception):
            self._ray.kill(actor)


def places_of(table: Sequence[Mapping[str, Any]]) -> tuple[Place, ...]:
    """Entries of `ray.nodes()` as places, named by host; a host that several share has the node's id after it."""
    hosts = [entry["NodeManagerHostname"] for entry in table]
    found = []
    for entry in table:
        host, identity = entry["NodeManagerHostname"], entry["NodeID"]
        ports = {
            entry.get("MetricsExportPort"): "metrics",
            entry.get("MetricsAgentPort"): "metrics",
            entry.get("DashboardAgentListenPort"): "agent",
            entry.get("RuntimeEnvAgentPort"): "agent",
            entry.get("NodeManagerPort"): "raylet",
            entry.get("ObjectManagerPort"): "raylet",
        }
        found.append(
            Place(
                name=host if hosts.count(host) == 1 else f"{host}-{identity[:6]}",
                head=HEAD in entry["Resources"],
                node_id=identity,
                address=entry["NodeManagerAddress"],
                ports={port: role for port, role in ports.items() if port},
                resources=dict(entry["Resources"]),
            )
        )
    return tuple(sorted(found, key=lambda place: (not place.head, place.name)))


@contextmanager
def travelling() -> Iterator[None]:
    """Probes are sent to nodes whole in here: an image without t2i, or with another, can still be looked at."""
    from ray import cloudpickle

    for module in TRAVELLING:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in TRAVELLING:
            cloudpickle.unregister_pickle_by_value(module)


def too_late(timeout_s: float) -> Failed:
    """A probe that has not answered."""
    return Failed(f"no answer within {timeout_s:g} s", timed_out=True)


def failure(error: BaseException) -> Failed:
    """What a probe raised, in one line; of Ray's own wrapping only what is inside."""
    cause = getattr(error, "cause", None) or error
    missing = cause.name or "" if isinstance(cause, ModuleNotFoundError) else ""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return Failed(f"{type(cause).__name__}: {(lines or ['no word'])[0][:300]}", missing=missing)
