"""MirrorGAN from nothing, in a process that is killed at a chosen place; forked from a server that imports once."""

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from orchestration.config import Experiment, parse_experiment
from orchestration.home import Home
from orchestration.preparation import PART_FIGURES, Preparation
from orchestration.prepared import Prepared
from orchestration.stages import Progress, file_sha256, quiet
from orchestration.training.recorder import last_metrics, read_metrics
from orchestration.training.state import MANIFEST, newest_checkpoint
from orchestration.training.worker import CHECKPOINTS, Job, train_worker

CPU = torch.device("cpu")
PATIENCE_S = 240
DONE = "done"  # how the last line of a drill that was not killed begins


def train(experiment: Experiment, prepared: Prepared, folder: Path, progress: Progress = quiet, dies: str = "") -> Path:
    """What launching does, without Ray and MLflow; `dies` names the system in whose training the process dies."""
    folder.mkdir(parents=True, exist_ok=True)

    def report(figures: object) -> None:
        if experiment.system == dies:  # a checkpoint was just written
            os.kill(os.getpid(), signal.SIGKILL)

    outcome = train_worker(Job(experiment, prepared, str(folder), 1), report, CPU)
    assert outcome.status == "finished"
    (folder / PART_FIGURES).write_text(json.dumps(last_metrics(read_metrics(folder))))
    checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    assert checkpoint is not None
    return checkpoint.folder


def start_drill(experiment: Experiment, home: Path, said: Path, dies: str = "") -> ForkServerProcess:
    """A process that prepares and trains everything below `home`, and dies at `dies`.

    That is a system in training, or a stage that reports progress under that name. What it says is in `said`.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    values = json.dumps(experiment.model_dump(mode="json"))
    process = server.Process(target=_run, args=(values, str(home), str(said), dies))
    process.start()
    return process


def killed_as_calm(experiment: Experiment, folder: Path, deaths: Sequence[str], files: int = 6) -> Home:
    """Die in each of these in turn in one home, then end; the checkpoint is bit-equal to that of a calm home.

    files: so many a checkpoint has at least, beside its manifest. Returns the home of the deaths.
    """
    killed, calm, said = folder / "killed", folder / "calm", folder / "said"
    for dies in deaths:
        process = start_drill(experiment, killed, said, dies)
        process.join(PATIENCE_S)
        assert process.exitcode == -signal.SIGKILL, (dies, said.read_text()[-2000:])
    folders = []
    for home in (killed, calm):
        process = start_drill(experiment, home, said)
        process.join(PATIENCE_S)
        assert process.exitcode == 0, said.read_text()[-2000:]
        [line] = [line for line in said.read_text().splitlines() if line.startswith(DONE)]
        folders.append(Path(line.split()[1]))
    ours, theirs = (
        {str(file.relative_to(folder)): file_sha256(file) for file in folder.rglob("*") if file.is_file()}
        for folder in folders
    )
    assert ours.pop(MANIFEST) and theirs.pop(MANIFEST) and len(ours) >= files
    assert ours == theirs
    return Home(killed)


def _run(values: str, home: str, said: str, dies: str) -> None:
    with Path(said).open("w") as output, redirect_stdout(output), redirect_stderr(output):
        torch.set_num_threads(1)
        experiment, state = parse_experiment(json.loads(values)), Home(Path(home))

        def progress(what: str, done: int, total: int) -> None:
            if what == dies and done > total // 2:
                os.kill(os.getpid(), signal.SIGKILL)

        def train_part(part: Experiment, prepared: Prepared, folder: Path, progress: Progress) -> Path:
            return train(part, prepared, folder, progress, dies)

        prepared = Preparation(experiment, state, progress, train_part).everything()
        print(DONE, train(experiment, prepared, state.runs / experiment.run_name, dies=dies))
