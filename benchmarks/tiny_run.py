"""A prepared quickstart-sized experiment for the benchmarks, in a home of its own that later runs reuse."""

import tempfile
from pathlib import Path

import torch

from models.parallel import OneRank
from orchestration.config import Experiment
from orchestration.data.batches import TrainingStream
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.prepared import Prepared
from orchestration.recipes import get_recipe
from orchestration.training.loop import Trainer
from orchestration.training.state import initial_state

HOME = Home(Path(tempfile.gettempdir()) / "t2i-benchmarks")


def prepared_experiment(**changes: object) -> tuple[Experiment, Prepared]:
    """The quickstart's recipe on few scenes, without a judge, and its stages."""
    values = {
        "data.source": "scenes:size=32,things=6,colours=6,backgrounds=4,objects=1,train=500,val=100,test=100",
        "evaluation.protocol": "none",
    } | {name.replace("__", "."): value for name, value in changes.items()}
    experiment = get_recipe("xmcgan_scenes32").replace(values)
    return experiment, Preparation(experiment, HOME).everything()


def trainer(experiment: Experiment, prepared: Prepared) -> Trainer:
    """Our loop on one rank of this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stream = TrainingStream(prepared.train.open(), experiment.training.seed, experiment.data.flip)
    return Trainer(experiment, initial_state(experiment, device), stream, device, OneRank())
