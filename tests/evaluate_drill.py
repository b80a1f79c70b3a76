"""Judges a checkpoint slowly, so that it can be killed in the middle: python -m tests.evaluate_drill HOME FOLDER N."""

import os
import sys
import time
from pathlib import Path

import torch

from orchestration.config import Experiment
from orchestration.evaluation import looking, scenes_net
from orchestration.evaluation.evaluate import Evaluation, Request
from orchestration.home import Home
from orchestration.readers import checkpoint_encoder
from orchestration.recipes import get_recipe
from orchestration.training.state import open_checkpoint
from tests.tiny_inputs import TINY_DIM, write_tiny_bert

SMALL_JUDGE = {"TRAIN_IMAGES": 500, "HELD_OUT_IMAGES": 50, "EPOCHS": 4}
"""Easy scenes need a small judge: seconds of training."""


def small_experiment(home: Home, source: str) -> Experiment:
    """XMC-GAN on easy scenes, as small as it can be, with a tiny BERT in the home."""
    return get_recipe("xmcgan_scenes32").replace(
        {
            "data.source": source,
            "text.name": str(write_tiny_bert(home.root / "bert")),
            "model.text_dim": TINY_DIM,
            "model.channels": 2,
            "model.noise_dim": 4,
            "model.sentence_dim": 4,
        }
    )


def main() -> None:
    for name, value in SMALL_JUDGE.items():
        setattr(scenes_net, name, value)
    home, checkpoint = Home(Path(sys.argv[1])), open_checkpoint(Path(sys.argv[2]))
    torch.set_num_threads(1)
    fast = looking.checked_bytes

    def slow(pictures: torch.Tensor) -> torch.Tensor:
        time.sleep(float(os.environ["T2I_SLOW_DRAWING"]))
        return fast(pictures)

    looking.checked_bytes = slow
    request = Request(samples=int(sys.argv[3]))
    evaluation = Evaluation(checkpoint.experiment, home, request, checkpoint_encoder(checkpoint, home))
    evaluation.checkpoint(checkpoint, "run")


if __name__ == "__main__":
    main()
