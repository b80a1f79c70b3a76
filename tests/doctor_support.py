"""Facts of a cluster that has nothing wrong, for tests that plant one fault."""

from dataclasses import replace
from typing import Any

from orchestration.doctor.facts import (
    GIB,
    Access,
    Asked,
    Clock,
    Facts,
    Gpus,
    Jobs,
    Machine,
    NodeFacts,
    Port,
    Reached,
    Ring,
    Storage,
    Versions,
)
from orchestration.doctor.probes import WEIGHTS

HEAD, WORKER = "head-host", "worker-host"
BOTH = (HEAD, WORKER)
PACKAGES = {
    "python": "3.11.9",
    "ray": "2.60.0",
    "torch": "2.13.0",
    "t2i": "0.1.0",
    "mlflow": "3.17.2",
    "optuna": "5.0.0",
    "numpy": "2.4.6",
    "faiss-cpu": "1.15.1",
}


def healthy_node(name: str, head: bool) -> NodeFacts:
    """A node with nothing wrong."""
    stored = Storage(
        "ok", tried="/shared/home", filesystem="nfs4 server:/t2i", free=90 * GIB, total=100 * GIB, seen=BOTH
    )
    return NodeFacts(
        name=name,
        head=head,
        versions=Versions(PACKAGES, "0123456789ab", dict.fromkeys(WEIGHTS, True)),
        machine=Machine(
            host=name,
            address="10.0.0.1" if head else "10.0.0.2",
            cores=8,
            memory=32 * GIB,
            shm=16 * GIB,
            shm_free=16 * GIB,
            open_files=65536,
            temp="/tmp/ray",
            temp_total=100 * GIB,
            temp_free=50 * GIB,
            threads=4,
            ray_cpus=8.0,
            object_store=8 * GIB,
            slots=4.0 if head else 0.0,
        ),
        gpus=Gpus((), driver=False, cuda=""),
        clock=Clock(0.001, 0.002),
        access=Access(
            "token", "/home/ray/token", 0o600, (Port("GCS", "::", 6379), Port("dashboard", "127.0.0.1", 8265))
        ),
        home=stored,
        stages=stored,
        mlflow=Reached("ok", seconds=0.1),
        optuna=Reached("ok", seconds=0.1),
    )


def healthy() -> Facts:
    """Two nodes with nothing wrong."""
    return Facts(
        Asked(
            home="/shared/home",
            address="10.0.0.1:6379",
            mlflow="http://mlflow:5000",
            optuna="postgresql+psycopg://optuna/optuna",
            stages="s3://bucket/stages",
        ),
        (healthy_node(HEAD, True), healthy_node(WORKER, False)),
        client=Access("token", "/home/me/token", 0o600),
        rings=(Ring("gloo", 2, 16 << 20, 0.01, True),),
        jobs=Jobs("http://127.0.0.1:8265", 401),
        gcs_open=False,
    )


def on(facts: Facts, *names: str, **sections: Any) -> Facts:
    """The facts with other sections on the named nodes; a dict changes fields of what is there."""

    def changed(node: NodeFacts) -> NodeFacts:
        new = {
            name: replace(getattr(node, name), **value) if isinstance(value, dict) else value
            for name, value in sections.items()
        }
        return replace(node, **new)

    return replace(facts, nodes=tuple(changed(node) if node.name in names else node for node in facts.nodes))
