"""Runs by name: where their checkpoints are, and their records in MLflow."""

from pathlib import Path

from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.tracking import Tracker
from orchestration.training.state import MANIFEST, Checkpoint, newest_checkpoint, open_checkpoint
from orchestration.training.worker import CHECKPOINTS


def find_checkpoint(home: Home, run: str) -> tuple[Checkpoint, Path]:
    """The newest whole checkpoint of a run (by name or folder), or the checkpoint in a folder; and the run's folder.

    Raises RequestError.
    """
    for folder in (Path(run), home.runs / run):
        if (folder / MANIFEST).is_file():
            return open_checkpoint(folder), folder.parent.parent
        checkpoint = newest_checkpoint(folder / CHECKPOINTS)
        if checkpoint is not None:
            return checkpoint, folder
    known = sorted(path.name for path in home.runs.glob("*") if path.is_dir()) or ["none yet"]
    raise RequestError(f"no checkpoint in {run!r}: give a run ({', '.join(known)}) or the folder of a checkpoint")


def finished_run(tracker: Tracker, checkpoint: Checkpoint, folder: Path) -> str:
    """The MLflow run of a run's folder: the one it was trained in, or a new one if this server has none."""
    experiment = checkpoint.experiment
    values, tags = experiment.model_dump(mode="json"), {"t2i.recipe": experiment.recipe}
    run_id = tracker.start_run(experiment.system, folder.name, folder.name, values, tags)
    tracker.finish(run_id, "FINISHED")
    return run_id
