"""Runs and trials by name: where their checkpoints are, and their records in MLflow."""

from pathlib import Path

from orchestration.campaigns.segments import TRIALS
from orchestration.errors import RequestError
from orchestration.home import Home, pull
from orchestration.tracking import Tracker
from orchestration.training.state import MANIFEST, Checkpoint, newest_checkpoint, open_checkpoint
from orchestration.training.worker import CHECKPOINTS


def find_checkpoint(home: Home, run: str) -> tuple[Checkpoint, Path]:
    """The newest whole checkpoint of a run (by name or folder), or the checkpoint in a folder; and the run's folder.

    A trial is a run by the name CAMPAIGN/trial-0003. Raises RequestError.
    """
    campaign, slash, trial = run.rpartition("/")
    trials = [home.campaigns / campaign / TRIALS / trial] if slash and trial else []
    for folder in (Path(run), home.runs / run, *trials):
        pull(folder)
        if (folder / MANIFEST).is_file():
            return open_checkpoint(folder), folder.parent.parent
        checkpoint = newest_checkpoint(folder / CHECKPOINTS)
        if checkpoint is not None:
            return checkpoint, folder
    known = sorted(path.name for path in home.runs.glob("*") if path.is_dir()) or ["none yet"]
    raise RequestError(
        f"no checkpoint in {run!r}: give a run ({', '.join(known)}), a trial as CAMPAIGN/trial-0000, or the folder of "
        "a checkpoint"
    )


def finished_run(tracker: Tracker, checkpoint: Checkpoint, folder: Path) -> str:
    """The MLflow run of a run's folder: the one it was trained in, or a new one if this server has none."""
    experiment = checkpoint.experiment
    key = folder.name
    if folder.parent.name == TRIALS:
        key = f"{folder.parent.parent.name}-{folder.name}"
        # How a trial ended is the campaign's to say: its run is not begun again.
        known = next((run.run_id for run in tracker.run_summaries(experiment.system) if run.key == key), None)
        if known is not None:
            return known
    values, tags = experiment.model_dump(mode="json"), {"t2i.recipe": experiment.recipe}
    run_id = tracker.start_run(experiment.system, folder.name, key, values, tags)
    tracker.finish(run_id, "FINISHED")
    return run_id
