"""Small trained runs of each kind that is served, a step long, for tests of painters, the endpoint and the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestration.config import Experiment
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.recipes import get_recipe
from tests import trecs_support
from tests.cascade_drill import train
from tests.graph_support import retrievegan, sg2im

SIDE = 32
"""Pixels, of all their pictures."""
NARRATED = "scenes:size=32,things=3,colours=2,backgrounds=3,objects=2,train=96,val=8,test=4"
CAPTIONED = "scenes:size=32,things=3,colours=3,backgrounds=2,objects=1,train=48,val=8,test=4"


def small_retriever(home: Home, **changes: Any) -> Path:
    """The checkpoint of a RetrieveGAN: scene graphs, drawn from patches."""
    quiet = {"model.lambda_image_perceptual": 0.0, "model.lambda_object_perceptual": 0.0}
    return _checkpoint(home, retrievegan(**{**quiet, **changes}), "small-retriever", changes)


def small_grapher(home: Home, **changes: Any) -> Path:
    """The checkpoint of an sg2im: scene graphs, without patches."""
    return _checkpoint(home, sg2im(**changes), "small-grapher", changes)


def small_teller(home: Home, **changes: Any) -> Path:
    """The checkpoint of a TReCS: narratives with or without traces. Its words are tagged by the HMM, which needs no
    long training to tell a house from grass; `model.labeler` chooses another."""
    lengths = {"dual_encoder": 0.032, "bert_on_hmm": 0.032, "spade": 0.032}
    chosen = {"data.source": NARRATED, "model.labeler": "hmm", "text.max_tokens": 24, "model.k": 8}
    return _checkpoint(home, trecs_support.small(lengths, **{**chosen, **changes}), "small-teller", changes)


def small_painter(home: Home, **changes: Any) -> Path:
    """The checkpoint of an AttnGAN: captions, read by the words of its vocabulary."""
    one_step = {"kimg": 0.016, "checkpoint_kimg": 0.016, "log_kimg": 0.016, "picture_kimg": 1, "batch_size": 16}
    chosen: dict[str, Any] = {"data.source": CAPTIONED, "model.resolution": SIDE, "stages.damsm.model.resolution": SIDE}
    chosen |= {
        f"{where}{name}": size for where in ("training.", "stages.damsm.training.") for name, size in one_step.items()
    }
    chosen |= {"model.generator_channels": 2, "model.discriminator_channels": 4, "evaluation.protocol": "none"}
    return _checkpoint(home, get_recipe("attngan_scenes").replace({**chosen, **changes}), "small-painter", changes)


def small_speaker(home: Home, **changes: Any) -> Path:
    """The checkpoint of an XMC-GAN: captions, read by a BERT that knows all words."""
    one_step = {"kimg": 0.016, "checkpoint_kimg": 0.016, "log_kimg": 0.016, "picture_kimg": 1, "batch_size": 16}
    chosen: dict[str, Any] = {f"training.{name}": size for name, size in one_step.items()}
    chosen |= {"data.source": CAPTIONED, "model.channels": 2, "evaluation.protocol": "none"}
    return _checkpoint(home, get_recipe("xmcgan_scenes32").replace({**chosen, **changes}), "small-speaker", changes)


def _checkpoint(home: Home, experiment: Experiment, name: str, changes: Mapping[str, Any]) -> Path:
    """Of a run in `home.runs / name`, or one named after its changes; all that comes before it is made there too."""
    folder = home.runs / (f"{name}-{experiment.run_name}" if changes else name)
    return train(experiment, Preparation(experiment, home, train_part=train).everything(), folder)
