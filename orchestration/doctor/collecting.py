"""Asking every node for every fact. What comes back is data; nothing is judged here."""

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import msgspec

from orchestration.campaigns.execution import SLOT
from orchestration.clusters.knocking import knock
from orchestration.doctor import probes, storage_probes
from orchestration.doctor.facts import (
    MIB,
    Access,
    Asked,
    Clock,
    Facts,
    Failed,
    FailedRing,
    Gpus,
    Jobs,
    Machine,
    NodeFacts,
    Reached,
    Ring,
    Storage,
    Versions,
)
from orchestration.doctor.hands import Call, Hands, Here, OnCluster, Place
from orchestration.doctor.joining import joined
from orchestration.stages import Progress

SIZE = 16 * MIB
PINGS = 5
START_S = 15.0
PING_S = 10.0
LOCAL = ("file://", "local://")


def examine(asked: Asked, progress: Progress) -> Facts:
    """Look at a cluster, or at this machine alone. Raises RequestError where the cluster cannot be joined."""
    client = _convert(probes.look_at_token_file() | {"mode": os.environ.get("RAY_AUTH_MODE", "")}, Access)
    if asked.address is None:
        return replace(examine_nodes(Here(), asked, progress), client=client)
    with joined(asked.address) as (ray, context):
        hands = OnCluster(ray)
        try:
            dashboard = context.dashboard_url
            facts = examine_nodes(hands, asked, progress, f"http://{dashboard}" if dashboard else "")
        finally:
            hands.close()
        gcs = ray.get_runtime_context().gcs_address
        return replace(facts, client=client, gcs_open=knock(gcs, None) == "open", dead=hands.dead)


def examine_nodes(hands: Hands, asked: Asked, progress: Progress, dashboard: str | None = None) -> Facts:
    """Run every probe through `hands`. dashboard: URL of a cluster's, empty where it has none; none: no cluster."""
    examination = Examination(hands, asked)
    steps: Sequence[tuple[str, Callable[[], None]]] = (
        ("versions", examination.ask_versions),
        ("machine", examination.ask_machine),
        ("GPUs", lambda: examination.ask("gpus", Gpus, probes.look_at_gpus, asked.timeout_s)),
        ("clocks", examination.ask_clocks),
        ("ports", lambda: examination.ask_access(dashboard)),
        ("home", lambda: examination.ask_storage("home", FOLDER, asked.home)),
        ("stages", lambda: examination.ask_storage("stages", URL, asked.stages)),
        ("MLflow", lambda: examination.ask("mlflow", Reached, storage_probes.reach_mlflow, asked.home, asked.mlflow)),
        ("Optuna", examination.ask_optuna),
        ("all-reduce", examination.ask_rings),
    )
    for done, (what, step) in enumerate(steps):
        progress(f"looking at {what}", done, len(steps))
        step()
    progress("looking", len(steps), len(steps))
    jobs = examination.ask_jobs(dashboard) if dashboard is not None else None
    nodes = tuple(NodeFacts(place.name, place.head, **examination.found[place.name]) for place in hands.places)
    return Facts(asked, nodes, rings=tuple(examination.rings), jobs=jobs)


StorageProbes = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]
FOLDER: StorageProbes = (
    storage_probes.leave_in_folder,
    storage_probes.seen_in_folder,
    storage_probes.remove_from_folder,
)
URL: StorageProbes = (storage_probes.leave_at_url, storage_probes.seen_at_url, storage_probes.remove_from_url)


class Examination:
    """Facts as they come in: `found` by node and section. A node that did not answer the first probe is left alone."""

    def __init__(self, hands: Hands, asked: Asked) -> None:
        self.hands, self.asked = hands, asked
        self.found: dict[str, dict[str, Any]] = {place.name: {} for place in hands.places}
        self.rings: list[Ring | FailedRing] = []

    def ask(self, section: str, kind: type, probe: Callable[..., Any], *arguments: Any) -> None:
        """Run one probe everywhere with the same arguments, and keep what it returns as `kind`."""
        self._keep(section, kind, self._run(lambda _: (probe, *arguments)))

    def ask_versions(self) -> None:
        """The first question: it waits for the node's process to start as well."""
        calls: dict[str, Call] = {place.name: (probes.look_at_versions,) for place in self.hands.places}
        self._keep("versions", Versions, self.hands.run(calls, self.asked.timeout_s + START_S))

    def ask_machine(self) -> None:
        """Each node's sizes, and what Ray counts it for."""
        answers = self._run(lambda _: (probes.look_at_machine,))
        for place in self.hands.places:
            answer = answers[place.name]
            if place.resources and not isinstance(answer, Failed):
                counted = place.resources
                answer |= {
                    "ray_cpus": counted.get("CPU", 0.0),
                    "ray_gpus": counted.get("GPU", 0.0),
                    "object_store": int(counted.get("object_store_memory", 0)),
                    "slots": counted.get(SLOT, 0.0),
                }
        self._keep("machine", Machine, answers)

    def ask_clocks(self) -> None:
        """Each node's clock, by the quickest of a few round trips."""
        for place in self._awake():
            best: Clock | Failed | None = None
            for _ in range(PINGS):
                began = time.time()
                theirs = self.hands.run({place.name: (probes.look_at_clock,)}, PING_S)[place.name]
                ended = time.time()
                if isinstance(theirs, Failed):
                    best = theirs
                    break
                if not isinstance(best, Clock) or ended - began < best.round_trip:
                    best = Clock(theirs - (began + ended) / 2, ended - began)
            self.found[place.name]["clock"] = best

    def ask_access(self, dashboard: str | None) -> None:
        """Tokens and ports of each node of a cluster."""
        if dashboard is None:
            return
        own = {urlsplit(dashboard).port or 80: "dashboard"} if dashboard else {}
        answers = self._run(
            lambda place: (probes.look_at_access, place.head, {**place.ports, **(own if place.head else {})})
        )
        self._keep("access", Access, answers)

    def ask_storage(self, section: str, kind: StorageProbes, where: str | None) -> None:
        """Every node leaves a file, then looks for the files of all, then removes its own."""
        if where is None:
            return
        leave, look, remove = kind
        nonce, alone = secrets.token_hex(8), len(self.hands.places) == 1
        try:
            answers = self._run(lambda place: (leave, where, nonce, place.name, SIZE, alone))
            wrote = [name for name, answer in answers.items() if _ok(answer)]
            seen = self._run(lambda place: (look, self._place(where, answers[place.name]), nonce, wrote), wrote)
            for name in wrote:
                answers[name] = seen[name] if isinstance(seen[name], Failed) else {**answers[name], "seen": seen[name]}
        finally:
            with suppress(Exception):
                self._run(lambda place: (remove, self._place(where, answers[place.name]), nonce, place.name), wrote)
        self._keep(section, Storage, answers)

    def ask_optuna(self) -> None:
        """Optuna's database, where one is named."""
        if self.asked.optuna is not None:
            patience = min(self.asked.timeout_s, 10.0)
            self.ask("optuna", Reached, storage_probes.reach_database, self.asked.optuna, patience)

    def ask_rings(self) -> None:
        """An all-reduce with gloo between all nodes, and with nccl between those that have GPUs."""
        awake = self._awake()
        if len(awake) < len(self.hands.places):
            return
        self.rings.append(ring_of("gloo", self.hands.reduce("gloo", self.asked.timeout_s)))
        # Those train together that have one, and a head often has none.
        gpus = {place.name: count for place in awake if (count := self._gpus_of(place))}
        if len(gpus) > 1 or sum(gpus.values()) > 1:
            self.rings.append(ring_of("nccl", self.hands.reduce("nccl", self.asked.timeout_s, tuple(gpus))))

    def _gpus_of(self, place: Place) -> int:
        """GPUs that a process there can have: torch sees them, and Ray lends them out."""
        gpus = self.found[place.name].get("gpus")
        seen = len(gpus.seen) if isinstance(gpus, Gpus) else 0
        return min(seen, int(place.resources.get("GPU", 0))) if place.resources else seen

    def ask_jobs(self, dashboard: str) -> Jobs:
        """The Jobs API, asked without a token on the head, where its loopback is."""
        head = next((place for place in self._awake() if place.head), None)
        if not dashboard or head is None:
            return Jobs(dashboard, reason="the cluster has no dashboard" if not dashboard else "the head is silent")
        answer = self._run(lambda _: (probes.ask_jobs, dashboard, PING_S), [head.name])[head.name]
        return Jobs(dashboard, reason=answer.reason) if isinstance(answer, Failed) else _convert(answer, Jobs)

    def _run(self, call: Callable[[Place], Call], names: Sequence[str] | None = None) -> dict[str, Any]:
        """A probe on the nodes that are awake (of those named); the others get the failure that they had."""
        awake = [place for place in self._awake() if names is None or place.name in names]
        answers = self.hands.run({place.name: call(place) for place in awake}, self.asked.timeout_s)
        if names is None:
            answers |= {name: sections["versions"] for name, sections in self.found.items() if name not in answers}
        return answers

    def _awake(self) -> list[Place]:
        def silent(place: Place) -> bool:
            first = self.found[place.name].get("versions")
            return isinstance(first, Failed)

        return [place for place in self.hands.places if not silent(place)]

    def _keep(self, section: str, kind: type, answers: Mapping[str, Any]) -> None:
        for name, answer in answers.items():
            self.found[name][section] = answer if isinstance(answer, Failed) else _convert(answer, kind)

    @staticmethod
    def _place(where: str, answer: Any) -> str:
        """A folder that was tried by its parent is looked for there."""
        remote = "://" in where and not where.startswith(LOCAL)
        return where if remote or isinstance(answer, Failed) else answer.get("tried") or where


def ring_of(backend: str, answers: Mapping[str, Any]) -> Ring | FailedRing:
    """What the ranks answered as one all-reduce, as slow as its slowest rank."""
    failed = {name: answer.reason for name, answer in answers.items() if isinstance(answer, Failed)}
    if failed:
        return FailedRing(backend, failed, any(isinstance(each, Failed) and each.busy for each in answers.values()))
    values = list(answers.values())
    slowest = max(answer["seconds"] for answer in values)
    return Ring(backend, len(values), values[0]["size"], slowest, all(answer["correct"] for answer in values))


def _ok(answer: Any) -> bool:
    return not isinstance(answer, Failed) and answer["status"] == "ok"


def _convert(values: Mapping[str, Any], kind: type) -> Any:
    return msgspec.convert(values, kind)
