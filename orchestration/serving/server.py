"""Starts and stops the endpoint on this machine, and cleans up only what it started."""

import errno
import io
import logging
import os
import re
import signal
import socket
import threading
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Self

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from orchestration.errors import RequestError, RunError
from orchestration.serving.app import application, token_of
from orchestration.serving.client import T2IClient
from orchestration.serving.settings import TOKEN_VARIABLE, ServeSettings, is_loopback

APP_NAME = "t2i"
POLL_S = 0.2

logger = logging.getLogger(__name__)


@dataclass
class ServerHandle:
    """A running endpoint; `stop` ends it, as does leaving a `with` block."""

    url: str
    started_ray: bool
    started_serve: bool
    deployed: bool = False
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)

    def stop(self) -> None:
        """Ends the application, then Serve and Ray if they were started for it. A second call does nothing."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        if not ray.is_initialized():
            return
        # Ray prints that a task failed when Serve's controller ends itself, as it always does; nothing is wrong.
        with redirect_stdout(io.StringIO()):
            if self.started_serve:
                serve.shutdown()
            elif self.deployed:
                serve.delete(APP_NAME)
            if self.started_ray:
                ray.shutdown()

    def wait(self) -> None:
        """Until Ctrl-C or SIGTERM (heard on the main thread only), or until `stop` is called elsewhere; then stops."""
        previous = None
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            self._stopped.wait()
        except KeyboardInterrupt:
            self.stop()
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_server(
    settings: ServeSettings,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    block: bool = False,
    start_timeout_s: float = 600.0,
) -> ServerHandle:
    """Serves models over HTTP; with `block`, until Ctrl-C or SIGTERM.

    port 0 takes a free one. Ray is joined if this process has joined it or RAY_ADDRESS names it, and started on this
    machine otherwise. Raises RequestError before Ray is touched when the port is taken, and for an address that other
    machines reach without a token; RequestError when there is nothing to serve, or none of it can be loaded; RunError
    when the server does not come up.
    """
    port = check_port(host, port)
    token = token_of(os.environ)
    if token is None and not is_loopback(host):
        raise RequestError(
            f"host {host} can be reached from other machines, where anyone could draw: set {TOKEN_VARIABLE} to a token "
            "that requests must carry, or listen on 127.0.0.1"
        )
    settings = settings.model_copy(update={"home": settings.home.resolve()})
    # Serve tells the driver about each of its own steps; a person wants to know when it answers.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    handle = ServerHandle(_url(host, port), started_ray=not ray.is_initialized(), started_serve=False)
    try:
        if handle.started_ray:
            _start_ray(settings.cpus * (settings.max_replicas or settings.replicas))
        handle.started_serve = not serve.status().proxies
        serve.start(http_options=HTTPOptions(host=host, port=port))
        handle.deployed = True
        serve.run_many(
            [serve.RunTarget(application(settings, token), name=APP_NAME, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        _wait_until_running(time.monotonic() + start_timeout_s)
        _check_answer(handle.url)
    except BaseException:
        handle.stop()
        raise
    if block:
        handle.wait()
    return handle


def check_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises RequestError when the endpoint could not listen there."""
    if not 0 <= port <= 65535:
        raise RequestError(f"port {port} does not exist: choose one from 1 to 65535 with --port, or 0 for a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except socket.gaierror as error:
        raise RequestError(f"host {host!r} is no address: choose one of this machine with --host") from error
    except PermissionError as error:
        raise RequestError(f"port {port} needs the rights of the administrator: choose one above 1023") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RequestError(f"port {port} on {host} is in use: choose another with --port") from error
        raise RequestError(f"host {host!r} is no address of this machine: choose another with --host") from error


def _start_ray(cpus: float) -> None:
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
        return
    # Logical CPUs: the ingress takes a fraction, and a small machine serves too.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(cpus) + 1),
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def _wait_until_running(deadline: float) -> None:
    while time.monotonic() < deadline:
        application = serve.status().applications[APP_NAME]
        if application.status == "RUNNING":
            return
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise _start_failure(application)
        time.sleep(POLL_S)
    raise RunError(
        "the server did not come up in time: check that the cluster has the CPUs and GPUs that the replicas ask for"
    )


def _start_failure(application: Any) -> Exception:
    # The last exception of the replica's traceback is the reason; ours are sentences for a person already.
    text = "\n".join([application.message, *(deployment.message for deployment in application.deployments.values())])
    found = re.findall(r"^ *([\w.]+(?:Error|Exception)): (.+)", text, re.MULTILINE)
    kind, sentence = found[-1] if found else ("", application.message.strip())
    if kind.endswith("errors.RequestError"):
        return RequestError(sentence.strip())
    if kind.endswith("errors.RunError"):
        return RunError(sentence.strip())
    reason = f"{kind.rpartition('.')[2]}: {sentence}".strip(": ")
    return RunError(f"the server did not start ({reason}): the log of the replica, below /tmp/ray, says more")


def _check_answer(url: str) -> None:
    # Serve ignores another host and port when it runs already, and a proxy learns of its routes a little later.
    with T2IClient(url, timeout=10) as client:
        for _ in range(50):
            if client.healthy():
                return
            time.sleep(POLL_S)
    raise RunError(
        f"the models run, but {url} does not answer for them: a Serve that was running already keeps its own host and "
        "port, so choose those or stop it"
    )


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
