"""Training under a real Ray cluster, used as a person uses it: the command, killed in every way, and repeated."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from mlflow.tracking import MlflowClient

from orchestration.cli import run_cli
from orchestration.cluster import ray_cluster
from orchestration.options import chosen_experiment
from orchestration.tracking import Tracker
from orchestration.training.recorder import read_metrics
from orchestration.training.state import checkpoint_folders, open_checkpoint

from .ray_support import assignments

pytestmark = pytest.mark.ray_cluster
PATIENCE_S = 240.0
Found = TypeVar("Found")


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "T2I_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "orchestration", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(look: Callable[[], Found], process: subprocess.Popen[str]) -> Found:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := look():
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("nothing happened in time")


def workers_of(home: Path) -> list[int]:
    """Process ids of the Ray Train workers that commands with this home have started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"T2I_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0")
            if ours and b"RayTrainWorker" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue  # it ended while we looked
    return found


def test_killed_worker_and_killed_command_lose_nothing(home: Path) -> None:
    """SIGKILL one of two workers: Ray Train goes on. SIGKILL the command: the same command goes on and finishes."""
    lengths = {"training__kimg": 0.8, "training__checkpoint_kimg": 0.05, "training__picture_kimg": 0.1}
    changes = assignments(training__seed=11, **lengths)
    command = ["train", "xmcgan_scenes32", "--workers", "2", "--json", *changes]
    folder = home / "runs" / chosen_experiment("xmcgan_scenes32", None, changes[1::2], 2).run_name
    process = start(home, *command)
    checkpoints = folder / "checkpoints"
    wait_for(lambda: len(checkpoint_folders(checkpoints)) >= 1, process)
    os.kill(workers_of(home)[-1], signal.SIGKILL)
    seen = checkpoint_folders(checkpoints)[-1]
    wait_for(lambda: checkpoint_folders(checkpoints)[-1] > seen, process)

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    [before] = [run for run in Tracker(home).run_summaries("xmcgan") if run.name == folder.name]
    assert before.status == "RUNNING"
    reached = open_checkpoint(checkpoint_folders(checkpoints)[-1]).images_seen
    assert 0 < reached < 800

    again = start(home, *command)
    out, err = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    assert open_checkpoint(Path(result["checkpoint"])).images_seen == 800
    lines = read_metrics(folder)
    logged = [line["images"] for line in lines if "generator/hinge" in line["metrics"]]
    assert logged == sorted(set(logged)) and logged[0] <= 64 and logged[-1] == 800
    [run] = [run for run in Tracker(home).run_summaries("xmcgan") if run.name == folder.name]
    assert run.status == "FINISHED" and run.run_id == before.run_id == result["mlflow_run"]
    assert run.metrics["kimg"] == 0.8
    assert not list(folder.glob(".ray-*"))
    assert len(list((folder / "pictures").glob("*.png"))) >= 6


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(2):
        yield


def test_divergence_is_a_sentence_and_not_retried(
    cluster: None, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hopeless learning rate ends with exit code 1 and a reason, in MLflow too."""
    changes = assignments(model__generator_optimizer__learning_rate=1e30, training__seed=5)
    assert run_cli(["train", "xmcgan_scenes32", "--home", str(home), *changes]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "Traceback" not in err and "gradient" in err and "nan" in err.lower() + out
    name = chosen_experiment("xmcgan_scenes32", None, changes[1::2], None).run_name
    [run] = [run for run in Tracker(home).run_summaries("xmcgan") if run.name == name]
    assert run.status == "FAILED"


def test_photographs_of_coco(cluster: None, home: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real COCO photographs and captions, with a pretrained image net in the loss and in the judgement."""
    changes = {
        "training.kimg": 0.064,
        "training.batch_size": 16,
        "model.channels": 2,
        "model.pretrained.side": 32,
        "evaluation.samples": 16,
    }
    words = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    data = f"coco:{shared_data / 'coco-mini'}"
    assert run_cli(["train", "xmcgan_laptop", "--data", data, "--home", str(home), "--json", *words]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "validation/fid/efficientnet-lite0" in result["figures"]
    client = MlflowClient(tracking_uri=Tracker(home).uri)
    pictures = [item.path for item in client.list_artifacts(result["mlflow_run"], "pictures")]
    assert any(path.endswith("kimg-000000.064.png") for path in pictures)
