"""A worker that a drill kills: `python -m tests.contract.drill JOB.json LINGER_S DIES_WRITING`.

It lingers so long after each checkpoint, so that there is time to kill it; and it kills itself in the middle of the
DIES_WRITING-th file of a checkpoint (0: never).
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

from safetensors.torch import save_file
from torch import Tensor

from orchestration.training.worker import Job, train_worker
from tests.tiny import CPU, small_pretrained_nets


def main(job_file: Path, linger_s: float, dies_writing: int) -> None:
    """Train the job, if it is let."""
    write = save_file
    written = 0

    def write_or_die(tensors: Mapping[str, Tensor], path: Path) -> None:
        nonlocal written
        written += 1
        if written == dies_writing:
            path.write_bytes(b"half of a fi")
            os.kill(os.getpid(), signal.SIGKILL)
        write(dict(tensors), path)

    with patch("orchestration.training.state.save_file", write_or_die), small_pretrained_nets():
        train_worker(Job.from_json(json.loads(job_file.read_text())), lambda _: time.sleep(linger_s), CPU)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
