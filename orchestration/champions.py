"""From a finished run to the champion that serving loads."""

from collections.abc import Mapping
from pathlib import Path

from orchestration.home import Home
from orchestration.registry import ModelVersion
from orchestration.tracking import Tracker
from orchestration.training.state import Checkpoint, open_checkpoint


def promote(
    tracker: Tracker, checkpoint: Checkpoint, run_id: str, figures: Mapping[str, float] | None = None
) -> ModelVersion:
    """Register the checkpoint as a version of its system's model and make it the champion."""
    experiment = checkpoint.experiment
    tags = {
        "t2i.checkpoint_digest": checkpoint.digest,
        "t2i.recipe": experiment.recipe,
        "t2i.identity": experiment.identity,
        "t2i.data_digest": checkpoint.provenance.data_digest,
        "t2i.text_digest": checkpoint.provenance.text_digest,
        "t2i.images_seen": str(checkpoint.images_seen),
        **{f"t2i.figure.{name}": f"{value:.6g}" for name, value in (figures or {}).items()},
    }
    version = tracker.register(experiment.system, run_id, checkpoint.folder, tags)
    tracker.set_champion(experiment.system, version)
    champion = tracker.champion(experiment.system)
    assert champion is not None
    return champion


def champion_checkpoint(tracker: Tracker, champion: ModelVersion, home: Home) -> Checkpoint:
    """The champion's checkpoint, on this machine and verified."""
    folder = tracker.fetch(champion, home.root / "champions" / f"{champion.model}-{champion.version}")
    return open_checkpoint(Path(folder))
