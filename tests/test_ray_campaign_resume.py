"""A campaign whose driver and whose cluster are killed, and whose MLflow server goes away, against a calm twin."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orchestration.campaigns.campaign import read_campaign
from orchestration.campaigns.ledger import Ledger, SegmentState, State
from orchestration.config import apply_assignments
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.recipes import get_recipe
from orchestration.training.recorder import read_metrics

from .mlflow_support import client_of, history
from .ray_support import TINY, assignments

pytestmark = pytest.mark.ray_cluster
NAME = "drill"
CHANGES = {"evaluation.protocol": "auto", "data.source": TINY["data.source"]}
ASKED = [
    *("--trials", "3", "--concurrent", "1", "--kimg", "0.2", "--grace-kimg", "0.1", "--name", NAME, "--seed", "5"),
    *("--parameter", "tau", "--parameter", "batch_size", "--range", "batch_size=8,16"),
]
TIMEOUT_S = 240


def command(home: Path, uri: str | None, *words: str) -> list[str]:
    tracking = ["--mlflow-uri", uri] if uri else []
    return [sys.executable, "-m", "orchestration", "tune", *words, "--home", str(home), *tracking]


def begin(home: Path, uri: str | None = None) -> list[str]:
    return command(home, uri, "xmcgan_scenes32", *ASKED, *assignments(evaluation__protocol="auto"))


def told(folder: Path) -> list[dict[str, Any]]:
    """Trials and segments as the ledger has them, but for how often they were begun and MLflow's names."""
    ledger = Ledger.open(folder)
    trials = [{**asdict(trial), "run_id": ""} for trial in ledger.trials()]
    segments = [{**asdict(segment), "attempts": 0} for segment in ledger.segments()]
    ledger.close()
    return trials + segments


def events(folder: Path) -> int:
    """Segments begun and ended so far, and checkpoints: how far a campaign is."""
    if not (folder / "ledger.db").is_file():
        return 0
    ledger = Ledger.open(folder)
    try:
        segments = ledger.segments()
    finally:
        ledger.close()
    ended = sum(segment.state != SegmentState.BEGUN for segment in segments)
    return len(segments) + ended + len(list(folder.glob("trials/*/checkpoints/kimg-*/manifest.json")))


def start(words: list[str]) -> subprocess.Popen[bytes]:
    # A driver waits so long for a cluster that is gone: Ray's own minute would be the whole test's.
    waiting = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    return subprocess.Popen(words, start_new_session=True, env={**os.environ, **waiting})


def kill_when(process: subprocess.Popen[bytes], folder: Path, wanted: int, cluster: bool = False) -> bool:
    """SIGKILL of the driver, and of all in its group, once the campaign is so far. False if it had ended before.

    cluster: of all that the driver started, Ray's own processes too, and not of the driver, which then must end.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        if events(folder) >= wanted:
            if not cluster:
                os.killpg(process.pid, signal.SIGKILL)
            for victim in below(process.pid) if cluster else []:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            assert process.wait(TIMEOUT_S) != 0
            return True
        time.sleep(0.02)
    return False


def below(parent: int) -> list[int]:
    """Every process that this one started, and those that they started."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            after_its_name = status.read_text().rpartition(")")[2].split()
            children.setdefault(int(after_its_name[1]), []).append(int(status.parent.name))
    found, waiting = [], [parent]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def mlflow_server(home: Path, port: int) -> Iterator[None]:
    words = ["server", "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words, "--host", "127.0.0.1", "--artifacts-destination", str(home / "files")],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def calm(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the undisturbed twin. Its judge is that of other campaigns: it is trained once for all tests."""
    twin = tmp_path_factory.mktemp("calm")
    changes = [f"{name}={value}" for name, value in CHANGES.items()]
    Preparation(apply_assignments(get_recipe("xmcgan_scenes32"), changes), Home(home)).judge("scenes-net")
    shutil.copytree(home / "stages", twin / "stages")
    subprocess.run(begin(twin), check=True, timeout=TIMEOUT_S)
    return twin


def test_a_driver_killed_three_times_a_cluster_killed_and_a_server_gone_for_5_seconds_change_nothing(
    calm: Path, tmp_path: Path
) -> None:
    # The stages are the twin's: they are not what is disturbed here.
    home = tmp_path / "disturbed"
    shutil.copytree(calm / "stages", home / "stages")
    folder, port = home / "campaigns" / NAME, free_port()
    uri = f"http://127.0.0.1:{port}"
    draw = random.Random(11)
    resume = command(home, uri, "--resume", NAME)
    with mlflow_server(home, port):
        reached = 0
        for death in range(3):
            process = start(begin(home, uri) if death == 0 else resume)
            reached = max(events(folder), reached) + draw.randint(1, 3)
            assert kill_when(process, folder, reached), "the campaign ended before it was killed"
        reached = max(events(folder), reached) + 1
        assert kill_when(start(resume), folder, reached, cluster=True), "the campaign ended before its cluster did"
        process = start(resume)
        deadline, before = time.monotonic() + TIMEOUT_S, events(folder)
        while events(folder) <= before and time.monotonic() < deadline:
            time.sleep(0.05)
    # The server is gone, and the campaign goes on.
    time.sleep(5)
    with mlflow_server(home, port):
        # One whose server is away at its very end has done its work, and says that it must be repeated.
        assert process.wait(TIMEOUT_S) in (0, 1)
        subprocess.run(resume, check=True, timeout=TIMEOUT_S)
        assert told(folder) == told(calm / "campaigns" / NAME)

        campaign = read_campaign(folder)
        assert campaign.checkpoint(campaign.best).digest == campaign.best.digest
        from orchestration.tracking import Tracker

        tracker = Tracker(home, uri)
        runs = {run.run_id: run for run in tracker.run_summaries("xmcgan")}
        trials = campaign.trials
        # One run for each trial and one for the campaign; none runs on.
        assert len(runs) == len(trials) + 1 and {trial.run_id for trial in trials} < set(runs)
        client = client_of(tracker)
        for trial in trials:
            assert trial.run_id is not None
            ended = {State.FINISHED: "FINISHED", State.STOPPED: "KILLED"}.get(trial.state, "FAILED")
            assert client.get_run(trial.run_id).info.status == ended
            recorded = [
                (line["images"], line["metrics"]["validation/fid/scenes-net"])
                for line in read_metrics(folder / "trials" / trial.name)
                if "validation/fid/scenes-net" in line["metrics"]
            ]
            assert recorded and history(tracker, trial.run_id, "validation/fid/scenes-net") == recorded

    # A campaign's folder is all there is of it: elsewhere it is found finished.
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere / "campaigns" / NAME)
    assert read_campaign(elsewhere / "campaigns" / NAME).best.values == campaign.best.values
    assert not list(folder.glob("**/tune*")) and not list(folder.glob(".ray*"))
