"""Regions as a person writes them, and tiny experiments of CPGAN's parts that read them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from orchestration.config import Experiment, parse_experiment
from orchestration.data.regions import ABOUT, ARRAYS
from orchestration.home import Home
from orchestration.preparation import Preparation
from tests.cascade_drill import train

SCENES = "scenes:size=32,things=3,colours=3,backgrounds=2,objects=2,train=20,val=6,test=4"
IDS = (139, 285, 632, 724)
COUNT, WIDTH = 3, 4


def write_own(folder: Path, image_ids: Any = IDS, width: int = WIDTH, seed: int = 0, **changes: Any) -> Path:
    """Regions as a person would write them; changes: other arrays, or None for a file that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    random, images = np.random.default_rng(seed), len(image_ids)
    counts = np.arange(images) % (COUNT + 1)
    corners = np.sort(random.random((images, COUNT, 2, 2)), 2)
    arrays: dict[str, Any] = {
        "image_ids": np.array(image_ids, np.int64),
        "boxes": corners.reshape(images, COUNT, 4).astype(np.float32),
        "features": random.normal(size=(images, COUNT, width)).astype(np.float16),
        "scores": -np.sort(-random.random((images, COUNT)), 1).astype(np.float32),
        "counts": counts.astype(np.int64),
    }
    about = {"format": 1, "detector": "by hand", "digest": "by-hand", "feature_dim": width, "count": COUNT}
    for name, array in {**arrays, **{name: changes[name] for name in changes if name in ARRAYS}}.items():
        if array is not None:
            np.save(folder / f"{name}.npy", array)
    (folder / ABOUT).write_text(json.dumps({**about, **changes.get("about", {})}))
    return folder


PART = {"kimg": 0.032, "batch_size": 16, "log_kimg": 0.032, "picture_kimg": 1, "checkpoint_kimg": 1}
DETECTOR = {"resolution": 32, "channels": 2, "residual_blocks": 1, "feature_dim": 6, "least_score": 0}
CAPTIONER = {"resolution": 32, "region_dim": 6, "embedding_dim": 5, "hidden_dim": 6, "attention_dim": 4}
TRUNK = {"name": "efficientnet-lite0", "weights": "random", "side": 32}
DAMSM = {
    "resolution": 32,
    "region_dim": 6,
    "trunk": TRUNK,
    "text": {"text_dim": 8, "embedding_dim": 6, "memory_hidden_dim": 4, "memory_dim": 4},
}
PARTS: dict[str, Any] = {
    "detector": {"system": "grid_detector", "model": DETECTOR, "training": PART},
    "captioner": {"system": "attention_captioner", "model": CAPTIONER, "training": PART},
    "memory": {"system": "memory", "model": {"resolution": 32, "longest": 18}},
}


def experiment(system: str, model: Any, stages: Any = None, regions: Any = None, **changes: Any) -> Experiment:
    values = {
        "recipe": "tiny",
        "system": system,
        "model": model,
        "data": {"source": SCENES},
        "regions": {"count": COUNT, **(regions or {})},
        "stages": PARTS if stages is None else stages,
        "training": PART,
        "evaluation": {"protocol": "none", "samples": 16},
        "resources": {"threads": 1},
    }
    return parse_experiment(values).replace(changes)


def captioner(**changes: Any) -> Experiment:
    return experiment("attention_captioner", CAPTIONER, **changes)


def prepare(chosen: Experiment, home: Home) -> Preparation:
    return Preparation(chosen, home, train_part=train)


def own_folder(root: Path, preparation: Preparation, width: int = 6, **changes: Any) -> Path:
    for split in ("train", "val"):
        ids = [record.image_id for record in preparation.dataset(split).records]
        write_own(root / split, ids, width, **changes)
    return root
