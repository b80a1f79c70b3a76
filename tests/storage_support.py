"""What stands beside a cluster, for real and on loopback: PostgreSQL, an MLflow server on it, and a store that speaks
S3."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from .cluster_support import free_ports

START_S = 60.0
BUCKET = "t2i"


@dataclass(frozen=True, slots=True)
class Beside:
    """mlflow, optuna: addresses, each of a database of its own; environment: with which the store is reached."""

    mlflow: str
    optuna: str
    home: str
    environment: Mapping[str, str]


def wait(answers: str, seconds: float = START_S) -> None:
    """Until there is an answer at a URL."""
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError), urllib.request.urlopen(answers, timeout=5):
            return
        assert time.monotonic() < end, f"nothing at {answers}"
        time.sleep(0.2)


@contextmanager
def postgres() -> Iterator[str]:
    """`postgresql+psycopg://...` of a server with the databases mlflow and optuna; skips where there is none."""
    # Debian keeps the server's programs out of the path.
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    known = shutil.which("initdb")
    bin = programs[-1] if programs else Path(known).resolve().parent if known else None
    if bin is None:
        pytest.skip("no PostgreSQL: install it (apt-get install postgresql) to have campaigns kept in it")
    pytest.importorskip("psycopg", reason="psycopg is absent: pip install 't2i[postgres]'")
    folder, port = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")), free_ports(1)[0]
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    data = folder / "data"
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"

    def run(*words: str) -> None:
        done = subprocess.run(words, user=user, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    run(str(bin / "initdb"), "-D", str(data), "-U", "t2i", "--auth=trust", "--encoding=UTF8", "--locale=C")
    run(str(bin / "pg_ctl"), "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        for name in ("mlflow", "optuna"):
            run(str(bin / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "t2i", name)
        yield f"postgresql+psycopg://t2i@127.0.0.1:{port}"
    finally:
        run(str(bin / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def process(*words: str, environment: Mapping[str, str], answers: str) -> Iterator[None]:
    """A server in a session of its own, until all of it is ended."""
    running = subprocess.Popen(
        words, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait(answers)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGTERM)
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)


@contextmanager
def beside() -> Iterator[Beside]:
    """PostgreSQL, S3 and MLflow on both."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is absent: pip install 't2i[dev]'")
    store, tracking = free_ports(2)
    access = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store}",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{store}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    environment = {**os.environ, **access}
    python = sys.executable
    with (
        postgres() as database,
        process(
            python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(store),
            environment=environment, answers=f"http://127.0.0.1:{store}/moto-api/",
        ),
    ):  # fmt: skip
        client = boto3.client(
            "s3",
            endpoint_url=access["AWS_ENDPOINT_URL"],
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        quiet = {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        url = f"http://127.0.0.1:{tracking}"
        with process(
            python, "-m", "mlflow", "server", "--backend-store-uri", f"{database}/mlflow", "--artifacts-destination",
            f"s3://{BUCKET}/mlflow", "--host", "127.0.0.1", "--port", str(tracking), "--workers", "1",
            environment=quiet, answers=f"{url}/health",
        ):  # fmt: skip
            yield Beside(url, f"{database}/optuna", f"s3://{BUCKET}/home", access)
