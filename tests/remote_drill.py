"""A worker in a process of its own, which a drill kills: `python -m tests.remote_drill JOB LINGER_S`.

It lingers so long after each checkpoint, with the run's folder held as the command that trains holds it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from orchestration.home import exclusive
from orchestration.training.worker import Job, train_worker
from tests.tiny import CPU, small_pretrained_nets


def start_remote_drill(job: Job, folder: Path, linger_s: float) -> "subprocess.Popen[bytes]":
    """The process; what it says on stderr is in `folder`."""
    file = folder / "job.json"
    file.write_text(json.dumps(job.to_json()))
    with (folder / "stderr").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.remote_drill", str(file), str(linger_s)],
            cwd=Path(__file__).parents[1],
            stderr=said,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )


def train_held(job: Job, linger_s: float = 0.0) -> str:
    """How the training ended."""
    with exclusive(Path(job.folder)), small_pretrained_nets():
        return train_worker(job, lambda _: time.sleep(linger_s), CPU).status


if __name__ == "__main__":
    train_held(Job.from_json(json.loads(Path(sys.argv[1]).read_text())), float(sys.argv[2]))
