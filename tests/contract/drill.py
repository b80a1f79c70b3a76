"""A worker that a drill kills.

Drills are forked from a server that has imported everything once: a process that starts anew takes seconds to import.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest.mock import patch

from safetensors.torch import save_file
from torch import Tensor

from orchestration.training.worker import Job, train_worker
from tests.tiny import CPU, small_pretrained_nets


def start_drill(job: Job, folder: Path, linger_s: float = 0.0, dies_writing: int = 0) -> ForkServerProcess:
    """A process that trains the job, if it is let; what it says on stderr is `said` of the folder.

    It lingers so long after each checkpoint, so that there is time to kill it; and it kills itself in the middle of
    the DIES_WRITING-th file of a checkpoint (0: never).
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    process = server.Process(target=_train, args=(json.dumps(job.to_json()), str(folder), linger_s, dies_writing))
    process.start()
    return process


def said(folder: Path) -> str:
    """The end of the last drill's stderr."""
    return (folder / "stderr").read_text()[-3000:]


def _train(job: str, folder: str, linger_s: float, dies_writing: int) -> None:
    sys.stderr = (Path(folder) / "stderr").open("w")
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
        train_worker(Job.from_json(json.loads(job)), lambda _: time.sleep(linger_s), CPU)
