"""Faults to plant in the facts of a healthy cluster, and what must be found of each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestration.doctor.facts import (
    GIB,
    MIB,
    SECTIONS,
    Access,
    Facts,
    Failed,
    FailedRing,
    Gpu,
    Gpus,
    Jobs,
    NodeFacts,
    Port,
    Reached,
    Ring,
    Storage,
)
from orchestration.doctor.finding import NOTE, REFUSE, WARN
from orchestration.doctor.storage_checks import STORE_MENDS

from .doctor_support import BOTH, HEAD, PACKAGES, WORKER, on

LATE = Failed("no answer within 60 s", timed_out=True)
Change = Callable[[Facts], Facts]


def worker(**sections: Any) -> Change:
    """A change of the worker's facts."""
    return lambda facts: on(facts, WORKER, **sections)


def versions(**packages: str | None) -> Change:
    """A change of the worker's packages; None takes one away."""
    named = {name.replace("_", "-"): version for name, version in packages.items()}
    there = {name: version for name, version in {**PACKAGES, **named}.items() if version}
    return worker(versions={"packages": there})


def ports(*found: Port, token: bool = True, public: tuple[str, ...] = ()) -> Change:
    """The worker listens there."""
    return lambda facts: replace(
        on(facts, WORKER, access={"ports": found, "public": public}),
        gcs_open=not token,
        jobs=replace(facts.jobs or Jobs(""), code=401 if token else 200),
    )


def with_facts(**fields: Any) -> Change:
    return lambda facts: replace(facts, **fields)


def asked(**fields: Any) -> Change:
    return lambda facts: replace(facts, asked=replace(facts.asked, **fields))


SILENT = NodeFacts(WORKER, False, *([LATE] * len(SECTIONS)))

Fault = tuple[Change, str, tuple[str, ...], str, str]
"""Change of the facts, severity, where, a part of what is said, a part of the mend."""

PLANTED: dict[str, Fault] = {
    "silent node": (
        lambda facts: replace(facts, nodes=(facts.nodes[0], SILENT)),
        REFUSE,
        (WORKER,),
        "nothing that was sent there came back (no answer within 60 s)",
        "start it again",
    ),
    "home hangs": (worker(home=LATE), REFUSE, (WORKER,), "the home: no answer within 60 s", "--timeout"),
    "GPUs hang": (worker(gpus=LATE), WARN, (WORKER,), "GPUs: no answer", "--timeout"),
    "image without mlflow": (
        worker(mlflow=Failed("ModuleNotFoundError: ...", missing="mlflow")),
        REFUSE,
        (WORKER,),
        "MLflow cannot be looked at: no module 'mlflow'",
        "one image",
    ),
    "probe fails": (worker(machine=Failed("OSError: x")), WARN, (WORKER,), "(OSError: x)", "mend"),
    "dead node": (with_facts(dead=("10.0.0.9",)), NOTE, (), "have died: 10.0.0.9", "start them again"),
    "jobs open": (
        with_facts(jobs=Jobs("http://h:1", 200)),
        REFUSE,
        (HEAD,),
        "answers without a token (HTTP 200)",
        "RAY_AUTH_MODE=token",
    ),
    "no dashboard": (
        with_facts(jobs=Jobs("", None, "the cluster has no dashboard")),
        WARN,
        (HEAD,),
        "no dashboard",
        "--include-dashboard",
    ),
    "Ray open": (with_facts(gcs_open=True), REFUSE, (HEAD,), "GCS) answers without a token", "RAY_AUTH_MODE=token"),
    "mode unset": (worker(access={"mode": ""}), WARN, (WORKER,), "RAY_AUTH_MODE is not token", "RAY_AUTH_MODE=token"),
    "token for all": (
        worker(access={"token_mode": 0o644}),
        REFUSE,
        (WORKER,),
        "(mode 0644)",
        "chmod 600 /home/ray/token",
    ),
    "token for the group": (worker(access={"token_mode": 0o640}), WARN, (WORKER,), "(mode 0640)", "chmod 600"),
    "client's token for all": (
        with_facts(client=Access("token", "/me/t", 0o604)),
        REFUSE,
        ("this machine",),
        "/me/t can be read by others",
        "chmod 600 /me/t",
    ),
    "dashboard open": (
        ports(Port("dashboard", "0.0.0.0", 8265)),
        NOTE,
        (WORKER,),
        "dashboard (0.0.0.0 port 8265) can be",
        "127.0.0.1",
    ),
    "dashboard open, no token": (
        ports(Port("dashboard", "0.0.0.0", 8265), token=False),
        REFUSE,
        (WORKER,),
        "and no token is asked for",
        "RAY_AUTH_MODE=token",
    ),
    "client open, no token": (
        ports(Port("Ray client", "::", 10001), token=False),
        REFUSE,
        (WORKER,),
        "Ray client (:: port 10001)",
        "RAY_AUTH_MODE=token",
    ),
    "Serve open": (ports(Port("Serve proxy", "10.0.0.2", 8000)), NOTE, (WORKER,), "Serve proxy", "T2I_SERVE_TOKEN"),
    "metrics open": (ports(Port("metrics", "0.0.0.0", 8080)), NOTE, (WORKER,), "metrics", "Prometheus"),
    "on the internet": (
        ports(Port("GCS", "::", 6379), public=("203.0.113.7",)),
        WARN,
        (WORKER,),
        "listen on 203.0.113.7",
        "firewall",
    ),
    "on the internet, no token": (
        ports(Port("GCS", "::", 6379), public=("203.0.113.7",), token=False),
        REFUSE,
        (WORKER,),
        "listen on 203.0.113.7",
        "firewall",
    ),
    **{
        f"another {name}": (
            versions(**{name: "0.9"}),
            REFUSE,
            (WORKER,),
            f"{name} is 0.9 there, and {PACKAGES[name]} elsewhere",
            "one image",
        )
        for name in ("python", "ray", "torch", "mlflow", "optuna", "numpy")
    },
    "another faiss": (versions(faiss_cpu="0.9"), REFUSE, (WORKER,), "faiss-cpu is 0.9 there", "one image"),
    "no torch": (versions(torch=None), REFUSE, (WORKER,), "torch is not installed", "one image"),
    "no faiss": (versions(faiss_cpu=None), REFUSE, (WORKER,), "neither faiss-cpu nor faiss-gpu", "one image"),
    "two faiss": (versions(faiss_gpu="1.15.1"), WARN, (WORKER,), "both installed", "uninstall both"),
    "no t2i": (worker(versions={"code": ""}), REFUSE, (WORKER,), "t2i cannot be imported", "t2i submit"),
    "another t2i": (worker(versions={"code": "ba9876543210"}), REFUSE, (WORKER,), "source of t2i is ba98", "one image"),
    "weights on one": (
        worker(versions={"weights": {"efficientnet-lite-pytorch": False}}),
        REFUSE,
        (WORKER,),
        "efficientnet-lite-pytorch are not installed, as elsewhere",
        "t2i[offline]",
    ),
    "weights on none": (
        lambda facts: on(facts, *BOTH, versions={"weights": {"efficientnet-lite-pytorch": False}}),
        NOTE,
        BOTH,
        "efficientnet-lite-pytorch are not installed",
        "t2i[offline]",
    ),
    "GPU that torch cannot use": (worker(gpus=Gpus((), True, "")), WARN, (WORKER,), "torch sees no GPU", "CUDA build"),
    "Ray counts too many GPUs": (
        worker(machine={"ray_gpus": 1.0}),
        REFUSE,
        (WORKER,),
        "Ray counts 1 GPUs, and torch sees 0",
        "--num-gpus=0",
    ),
    "Ray counts too few GPUs": (
        worker(gpus=Gpus((Gpu("H100", 80 * GIB),), True, "13.0")),
        WARN,
        (WORKER,),
        "Ray counts 0 GPUs, and torch sees 1",
        "--num-gpus=1",
    ),
    "several kinds of GPU": (
        lambda facts: on(
            on(facts, HEAD, gpus=Gpus((Gpu("A100", GIB),), True, "13.0"), machine={"ray_gpus": 1.0}),
            WORKER,
            gpus=Gpus((Gpu("H100", GIB),), True, "13.0"),
            machine={"ray_gpus": 1.0},
        ),
        NOTE,
        BOTH,
        "several kinds: A100, H100",
        "one kind",
    ),
    "clock behind": (worker(clock={"offset": -3.0}), WARN, (WORKER,), "3.0 s behind the head's", "chrony"),
    "clock ahead": (worker(clock={"offset": 2.5}), WARN, (WORKER,), "2.5 s ahead of the head's", "chrony"),
    "small shared memory": (worker(machine={"shm": 64 * MIB}), WARN, (WORKER,), "/dev/shm holds 67.1 MB", "--shm-size"),
    "nearly full large disk": (
        worker(machine={"temp_total": 1000 * GIB, "temp_free": 40 * GIB}),
        WARN,
        (WORKER,),
        "/tmp/ray has 42.9 GB left (4%)",
        "--temp-dir",
    ),
    "full disk": (
        worker(machine={"temp_free": 4 * GIB}),
        WARN,
        (WORKER,),
        "/tmp/ray has 4.29 GB left (4%)",
        "--temp-dir",
    ),
    "too many threads": (
        worker(machine={"threads": 64}),
        WARN,
        (WORKER,),
        "OMP_NUM_THREADS is 64",
        "cores over workers",
    ),
    "too many CPUs": (worker(machine={"ray_cpus": 32.0}), WARN, (WORKER,), "Ray counts 32 CPUs", "--num-cpus=8"),
    "few open files": (worker(machine={"open_files": 1024}), WARN, (WORKER,), "only 1024 files", "ulimit -n"),
    "no slots": (lambda facts: on(facts, HEAD, machine={"slots": 0.0}), NOTE, (), "trial_slot", "--resources"),
    "no all-reduce": (
        with_facts(rings=(FailedRing("gloo", {WORKER: "timed out"}),)),
        REFUSE,
        (WORKER,),
        "with gloo (timed out)",
        "GLOO_SOCKET_IFNAME",
    ),
    "no all-reduce on GPUs": (
        with_facts(rings=(FailedRing("nccl", {WORKER: "timed out"}),)),
        REFUSE,
        (WORKER,),
        "with nccl",
        "NCCL_SOCKET_IFNAME",
    ),
    "GPUs in use": (
        with_facts(rings=(FailedRing("nccl", {WORKER: "in use"}, busy=True),)),
        NOTE,
        (WORKER,),
        "not tried with nccl, as all GPUs are in use there",
        "ask again",
    ),
    "wrong sum": (
        with_facts(rings=(Ring("gloo", 2, 1, 1.0, False),)),
        REFUSE,
        (),
        "2 ranks with gloo is wrong",
        "do not train",
    ),
    "all-reduce not tried": (with_facts(rings=()), NOTE, (), "not tried", "mend those first"),
    **{
        f"{section} {status}": (
            worker(**{section: Storage(status, "the reason")}),
            REFUSE,
            (WORKER,),
            "is not usable there",
            mend,
        )
        for section in ("home", "stages")
        for status, mend in STORE_MENDS.items()
    },
    "home not shared": (
        lambda facts: on(
            on(facts, HEAD, home={"seen": (HEAD,)}), WORKER, home={"seen": (WORKER,), "filesystem": "ext4 /dev/sda"}
        ),
        REFUSE,
        BOTH,
        "is not one place: what other nodes write is not seen there (on ext4 /dev/sda, nfs4 server:/t2i)",
        "mount one shared",
    ),
    "stages not shared": (worker(stages={"seen": (WORKER,)}), REFUSE, (WORKER,), "is not one place", "s3://BUCKET"),
    "home nearly full": (worker(home={"free": 1000}), WARN, (WORKER,), "only 1 kB left", "t2i stages gc"),
    "MLflow closed": (
        worker(mlflow=Reached("unreachable", "refused")),
        REFUSE,
        (WORKER,),
        "MLflow at http://mlflow:5000 cannot be reached (refused)",
        "--mlflow-uri",
    ),
    "MLflow without driver": (
        worker(mlflow=Reached("no driver", "psycopg")),
        REFUSE,
        (WORKER,),
        "needs a driver",
        "in the image",
    ),
    "MLflow is a shared file": (
        asked(mlflow=None),
        WARN,
        (),
        "a file of SQLite (/shared/home/mlflow.db)",
        "PostgreSQL",
    ),
    "MLflow not yet": (
        lambda facts: on(facts, *BOTH, mlflow=Reached("not yet")),
        NOTE,
        BOTH,
        "not there yet",
        "the first command makes it",
    ),
    "Optuna closed": (
        worker(optuna=Reached("unreachable", "refused")),
        REFUSE,
        (WORKER,),
        "Optuna's storage",
        "--optuna",
    ),
    "Optuna without driver": (worker(optuna=Reached("no driver", "x")), REFUSE, (WORKER,), "needs a driver", "psycopg"),
    "Optuna is a shared file": (asked(optuna="sqlite:////a/o.db"), WARN, (), "is a file", "postgresql"),
}
