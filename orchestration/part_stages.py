"""The stage of a part that comes before a GAN: trained in a run of its own, or gathered from the training data."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from models.registry import gathered_names, get_gathered
from orchestration.data.objects import open_objects
from orchestration.data.word_encoder import describe_part
from orchestration.errors import RunError
from orchestration.gathering import VERSION as GATHERED_VERSION
from orchestration.gathering import write_gathered
from orchestration.preparation import PART_FIGURES, Preparation, TrainPart
from orchestration.stages import Progress, Stage, write_atomically

VERSION = 1
CLASSES = "classes.json"
"""In the folder of a part that finds things: the names of what it finds, in order."""
# What a training records and when does not change what it learns.
RECORDS = {"log_kimg", "picture_kimg", "checkpoint_kimg", "keep_checkpoints"}


def part_stage(name: str, part: Preparation, train: TrainPart | None) -> Stage:
    """The stage that makes a part; part: its own preparation; train: None where nothing is to be trained."""
    experiment = part.experiment
    settings: dict[str, Any] = {
        "system": experiment.system,
        "model": experiment.model.model_dump(mode="json"),
        **(part.regions.settings if part.regions else {}),
    }
    split = part.dataset(experiment.data.train_split)
    inputs = {
        "train": split.digest,
        "vocabulary": part.vocabulary_stage.key if part.vocabulary_stage else "none",
        **{earlier: part.part_stage(earlier).key for earlier in part.needed},
        **(part.regions.inputs if part.regions else {}),
    }
    if experiment.system in gathered_names():

        def gather(folder: Path, progress: Progress) -> None:
            _gather(folder, part, progress)

        return Stage(name, GATHERED_VERSION, settings, inputs, gather, resumable=True)
    settings |= {
        "training": experiment.training.model_dump(mode="json", exclude=RECORDS),
        "words": experiment.words.model_dump(mode="json", exclude={"file", "min_count"}),
        "transform": experiment.data.transform,
        "flip": experiment.data.flip,
    }
    if part.graphs and part.graphs.reads:
        inputs["graphs"] = part.graphs.stage(split).key
    if "objects" in part.subject.reads:
        inputs["objects"] = part.objects_stage(split).key

    if "features" in part.subject.reads:
        inputs["features"] = part.captions.features_stage(split).key
    if part.labels:
        inputs["labels"] = part.labels.stage(split).key
    if part.narratives and part.narratives.tagged:
        inputs["tagged"] = part.narratives.tagged_words(split).key

    def run(folder: Path, progress: Progress) -> None:
        if train is None:
            raise RunError(f"the stage {name} is not trained yet: run t2i train {part.recipe} first")
        _train(folder, part, train, part.home.runs / f"{name}-{stage.key}", progress)

    stage = Stage(name, VERSION, settings, inputs, run)
    return stage


def _train(folder: Path, part: Preparation, train: TrainPart, run: Path, progress: Progress) -> None:
    experiment, prepared = part.experiment, part.everything()
    checkpoint = train(experiment, prepared, run, progress)
    averaged = experiment.trainable.averages(experiment.model)
    for net in experiment.trainable.optimizers(experiment.model):
        source = f"average_{net}" if net in averaged else net
        shutil.copyfile(checkpoint / f"{source}.safetensors", folder / f"{net}.safetensors")
    if prepared.train.objects is not None:
        write_atomically(folder / CLASSES, json.dumps(open_objects(Path(prepared.train.objects)).classes))
    _describe(folder, part, experiment.words.longest)
    if part.narratives and part.narratives.tagged:
        part.narratives.describe(folder)
    shutil.copyfile(checkpoint.parent.parent / PART_FIGURES, folder / PART_FIGURES)


def _gather(folder: Path, part: Preparation, progress: Progress) -> None:
    experiment = part.experiment
    model = experiment.model
    split = part.split(part.dataset(experiment.data.train_split))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processes = part.processes(device)
    write_gathered(folder, experiment.system, model, part.given, split, PART_FIGURES, progress, processes, device)
    _describe(folder, part, get_gathered(experiment.system).longest(model))


def _describe(folder: Path, part: Preparation, longest: int) -> None:
    experiment = part.experiment
    described = experiment.model.model_dump(mode="json")
    describe_part(folder, experiment.system, described, part.vocabulary, longest if part.vocabulary else None)
