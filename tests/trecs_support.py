"""TReCS by its recipe for scenes, made small: what tests of its whole pipeline share."""

from collections.abc import Mapping
from typing import Any

from orchestration.config import Experiment
from orchestration.recipes import get_recipe

SCENES = "scenes:size=32,things=4,colours=4,backgrounds=4,objects=3,train=300,val=100,test=20"
RESOLUTION = 32


def small(kimg: Mapping[str, float], recipe: str = "trecs_scenes", **changes: Any) -> Experiment:
    """The recipe at 32 px on few scenes, without a perceptual net; parts so many kimg long.

    Each keeps one checkpoint, at its end. The dual encoder's image net stays as it is.
    """
    values: dict[str, Any] = {
        "data.source": SCENES,
        "evaluation.protocol": "none",
        "evaluation.samples": 100,
        "model.resolution": RESOLUTION,
        "text.max_tokens": 48,
        "stages.dual_encoder.model.fine_tuned": False,
        "stages.bert_on_hmm.model.bert.layers": 1,
    }
    for part in ("dual_encoder", "bert_on_hmm", "bert_on_raw", "spade", "ccfpse"):
        values[f"stages.{part}.model.resolution"] = RESOLUTION
    for part in ("spade", "ccfpse"):
        sizes = {"generator_channels": 4, "upsamplings": 3, "discriminator_channels": 8, "perceptual_weight": 0.0}
        values |= {f"stages.{part}.model.{name}": size for name, size in sizes.items()}
    for part, length in kimg.items():
        fields = ("kimg", "checkpoint_kimg", "log_kimg", "picture_kimg")
        values |= {f"stages.{part}.training.{field}": length for field in fields}
    return get_recipe(recipe).replace({**values, **changes})
