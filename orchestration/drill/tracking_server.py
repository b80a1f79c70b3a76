"""The drill's own MLflow server, which is killed and comes back; the user's own is never touched."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from orchestration.errors import RunError

LOOPBACK = "127.0.0.1"
START_S, END_S = 180.0, 20.0


class TrackingServer:
    """`mlflow server` over a database in a folder, on a free port of loopback that it keeps."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "mlflow.log"
        with socket.socket() as found:
            found.bind((LOOPBACK, 0))
            self._port = int(found.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Begin it, and wait until it answers. Raises RunError when it does not."""
        self.begin()
        self.wait()

    def wait(self) -> None:
        """Until it answers. Raises RunError when it does not."""
        until = time.monotonic() + START_S
        while not self.healthy():
            if self._ended or time.monotonic() > until:
                self.kill()
                raise RunError(f"the drill's MLflow server did not start: {self.log} says why")
            time.sleep(0.2)

    def begin(self) -> None:
        """Begin it; it answers some seconds later."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["server", "--backend-store-uri", f"sqlite:///{(self.folder / 'mlflow.db').absolute()}"]
        words += ["--artifacts-destination", str((self.folder / "mlartifacts").absolute())]
        words += ["--host", LOOPBACK, "--port", str(self._port), "--workers", "1"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def healthy(self) -> bool:
        """Whether it answers."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with suppress(OSError), opener.open(f"{self.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """SIGKILL of it and of all in its group."""
        if self._process is None or self._ended:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
