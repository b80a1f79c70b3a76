"""From a finished run to the champion that serving loads."""

from collections.abc import Mapping
from pathlib import Path

import torch

from models.contract import Given
from orchestration.errors import RequestError
from orchestration.evaluation.judging import Judge, Verdict, drawer
from orchestration.home import Home
from orchestration.painter import checkpoint_encoder, vocabulary_digest
from orchestration.preparation import Preparation, choose_protocol
from orchestration.registry import ModelVersion
from orchestration.stages import Progress, quiet
from orchestration.tracking import Tracker
from orchestration.training.state import (
    Checkpoint,
    Provenance,
    check_provenance,
    initial_state,
    load_for_sampling,
    open_checkpoint,
)


def evaluate(
    checkpoint: Checkpoint,
    home: Home,
    split: str | None = None,
    samples: int | None = None,
    source: str | None = None,
    progress: Progress = quiet,
) -> tuple[Verdict, Verdict]:
    """Judge a checkpoint on held-out captions: (the untrained net it grew from, the checkpoint).

    Both draw for the same captions with the same noise. split: by default the experiment's test split; source: by
    default the data it was trained on. Raises RequestError.
    """
    experiment = checkpoint.experiment
    if source is not None:
        experiment = experiment.replace({"data.source": source})
    encoder = checkpoint_encoder(checkpoint, home)
    vocabulary = vocabulary_digest(encoder)
    # Other data may be judged, another text encoder would only seem to work.
    check_provenance(checkpoint, Provenance(checkpoint.provenance.data_digest, encoder.digest, vocabulary))
    preparation = Preparation(experiment, home, progress, encoder=encoder)
    dataset = preparation.dataset(split or experiment.data.test_split)
    protocol = choose_protocol(experiment)
    if protocol == "none":
        raise RequestError("evaluation.protocol is none: name one, such as efficientnet-lite0")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judge = Judge(
        protocol,
        preparation.split(dataset, reads=frozenset({"features"})),
        preparation.judge(protocol),
        samples or experiment.evaluation.samples,
        experiment.evaluation.seed,
        device,
        experiment.evaluation.real,
    )
    verdicts: list[Verdict] = []
    untrained = initial_state(experiment, device, Given(folders=preparation.parts)).sampling_nets()
    for nets in (untrained, load_for_sampling(checkpoint, device, vocabulary)):
        progress("judging", len(verdicts), 2)
        verdicts.append(judge(drawer(experiment, nets, device)))
    progress("judging", 2, 2)
    return verdicts[0], verdicts[1]


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
