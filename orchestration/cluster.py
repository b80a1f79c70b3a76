"""Ray, touched in one place: starting it here or joining one, quietly."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from orchestration.errors import RequestError, RunError

QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ray Tune only carries out: it writes no records of its own, says nothing of failures that are told elsewhere, and
    # never reads its state again.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # processes start side by side
    # Workers stay where the command was given, so that a relative path means the same to all.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Each of our processes has an environment of its own: those that Ray starts beforehand, one a core, none could use.
    "RAY_prestart_worker_first_driver": "0",
    # Ray's uv hook would rebuild the environment on workers; the environment is the one that is running.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
OWN = "local"
"""An address that stands for a private cluster, as none does."""
OWN_SEARCH = ("auto", OWN)
"""Addresses for which Ray looks on this machine."""
ANSWER_S = 2.0
"""Seconds for a machine to answer."""


def is_open(host: str, port: int) -> bool:
    """Whether something listens there."""
    with suppress(OSError), socket.create_connection((host, port), ANSWER_S):
        return True
    return False


def head_answers(ray: Any) -> bool:
    """Whether the cluster's head can be reached: who asks it anything when it is gone hears nothing for a minute, after
    which Ray ends the process."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return is_open(host.strip("[]"), int(port))


def require_cluster() -> None:
    """RequestError when RAY_ADDRESS names a cluster that does not answer, or does not take our token."""
    address = os.environ.get("RAY_ADDRESS")
    if address and address not in OWN_SEARCH:
        from orchestration.clusters.knocking import checked_address, require_answer

        require_answer(checked_address(address, "RAY_ADDRESS", "COMMAND"))


@contextmanager
def ray_cluster(minimum_cpus: int = 1, extra_resources: dict[str, float] | None = None) -> Iterator[Any]:
    """`ray`, connected: to the cluster RAY_ADDRESS names, to one already joined, or to a private one that ends with us.

    A private cluster has at least `minimum_cpus` slots, so that two workers run on one core too. The dashboard is on
    loopback: without it Ray Tune cannot take workers back from a stopped trial.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    require_cluster()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address or address == OWN:
        # Nobody takes this machine away with a warning: an actor that listens for one is a process more to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        options |= {
            "num_cpus": max(os.cpu_count() or 1, minimum_cpus),
            "resources": extra_resources or {},
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
        }
    try:
        ray.init(address=address or OWN, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RequestError(
            f"no Ray cluster at {address or 'this machine'} ({error}): check RAY_ADDRESS, or unset it to start one here"
        ) from error
    except Exception as error:
        # Ray gives its node half a minute, and raises the plain class.
        if type(error) is not Exception:
            raise
        raise RunError(
            f"Ray did not start on this machine ({error}): it is too busy, or the disk of Ray's "
            "folder is full (RAY_TMPDIR, else /tmp/ray); repeat the command when it is not"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def signals_kept() -> Iterator[None]:
    """Ray's Tune and Train take Ctrl-C while they run, to end their processes, and do not give it back.

    What Train leaves there holds its controller too, whose process would live as long as this one.
    """
    here = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGUSR1)} if here else {}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def wants_gpu(use_gpu: bool | None, ray: Any) -> bool:
    """Whether workers get a GPU each: as asked, else if the cluster has any."""
    return bool(ray.cluster_resources().get("GPU", 0)) if use_gpu is None else use_gpu


def require(ray: Any, resource: str, units: int, wanted: str, advice: str) -> None:
    """RequestError when the cluster has fewer units of a resource, whose sentence begins with what they are for."""
    have = ray.cluster_resources().get(resource, 0)
    if have < units:
        raise RequestError(f"{wanted} and the cluster has {have:.0f}: {advice}")
