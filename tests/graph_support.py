"""Tiny RetrieveGANs: a generator with graphs and candidates that need no disk, and experiments of a few seconds."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.contract import Batch, Candidates, Given, Graphs, Settings, StepContext, after_counts
from models.losses.perceptual import PerceptualSettings
from models.parallel import OneRank
from models.retrievegan import CoOccurrenceConfig, RetrieveGANConfig
from models.sg2im import Sg2imConfig
from orchestration.config import Experiment, parse_experiment
from orchestration.home import Home
from orchestration.preparation import Preparation
from tests.cascade_drill import train
from tests.test_graph_blocks import CLASSES, PREDICATES, graph_of, some_graphs

__all__ = ["CLASSES", "PREDICATES", "graph_of", "some_graphs"]

NAMES = Given(classes=CLASSES, predicates=PREDICATES)
SIDE, PATCH, MOST_PATCHES = 32, 16, 3
GRAPH: dict[str, Any] = {"embedding_dim": 6, "object_dim": 5, "hidden_dim": 7, "graph_layers": 2}
JUDGES: dict[str, Any] = {"discriminator_channels": 2, "feature_dim": 5}
DRAWING: dict[str, Any] = {"resolution": SIDE, "generator_channels": 2, "refinement_modules": 3}
TRUNK = PerceptualSettings(net="efficientnet-lite0", weights="random", side=SIDE)
LAMBDAS = tuple(name for name in RetrieveGANConfig.model_fields if name.startswith("lambda_"))


def small(**changes: Any) -> RetrieveGANConfig:
    """Of a few hundred parameters."""
    values = {
        **GRAPH,
        **JUDGES,
        **DRAWING,
        "query_dim": 4,
        "patch_channels": 2,
        "crop_dim": 3,
        "canvas_side": 8,
        "residual_blocks": 1,
        "perceptual": TRUNK,
    }
    return RetrieveGANConfig(**{**values, **changes})


def only(**weights: float) -> dict[str, float]:
    """All nine weights: these, and 0."""
    return {**dict.fromkeys(LAMBDAS, 0.0), **{f"lambda_{name}": value for name, value in weights.items()}}


def some_candidates(graphs: Graphs, seed: int = 0, fill: float = 0.0, counts: Tensor | None = None) -> Candidates:
    """Random patches; every picture's first object has all, the others any number; the padding holds `fill`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*graphs.classes.shape, MOST_PATCHES)
    patches = torch.randn(*shape, 3, PATCH, PATCH, generator=generator)
    if counts is None:
        counts = torch.randint(0, MOST_PATCHES + 1, shape[:2], generator=generator)
        counts[:, 0] = MOST_PATCHES
    counts = counts.masked_fill(graphs.padding(), 0)
    hidden = after_counts(counts, MOST_PATCHES)[..., None, None, None]
    return Candidates(patches.masked_fill(hidden, fill), torch.zeros(shape, dtype=torch.int64), counts)


def some_batch(count: int = 3, seed: int = 0, graphs: Graphs | None = None) -> Batch:
    graphs = some_graphs(count, seed=seed) if graphs is None else graphs
    images = torch.randn(len(graphs.counts), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return Batch(torch.arange(len(images)), images, graphs=graphs, candidates=some_candidates(graphs, seed))


def in_double(batch: Batch) -> Batch:
    """The same in double precision."""
    images, graphs, candidates = batch.images, batch.graphs, batch.candidates
    assert images is not None and graphs is not None and candidates is not None
    return replace(
        batch,
        images=images.double(),
        graphs=replace(graphs, boxes=graphs.boxes.double()),
        candidates=replace(candidates, patches=candidates.patches.double()),
    )


def context(rows: int, seed: int = 0) -> StepContext:
    return StepContext(OneRank(), lambda width: torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))


def rows_of(graphs: Graphs, picture: int) -> Graphs:
    """One picture's graph without any padding."""
    count, links = int(graphs.counts[picture]), int(graphs.links[picture])
    row = slice(picture, picture + 1)
    return Graphs(
        graphs.classes[row, :count],
        graphs.boxes[row, :count],
        graphs.counts[row],
        graphs.relations[row, :links],
        graphs.links[row],
    )


# Experiments

SCENES = "scenes:size=32,things=3,colours=3,backgrounds=2,objects=2,train=20,val=6,test=4"
PART = {"kimg": 0.016, "batch_size": 16, "log_kimg": 0.016, "picture_kimg": 1, "checkpoint_kimg": 1}
SG2IM = Sg2imConfig(**GRAPH, **JUDGES, **DRAWING, noise_dim=2, mask_side=4)
TOGETHER = CoOccurrenceConfig(resolution=SIDE, patch_side=PATCH, channels=2, embedding_dim=4)
PATCHES = {"candidates": 2, "side": PATCH, "prefilter": {"k": 4}}


def _part(system: str, model: Settings) -> dict[str, Any]:
    return {"system": system, "model": model.model_dump(mode="json"), "training": PART}


PARTS = {"sg2im": _part("sg2im", SG2IM), "co_occurrence": _part("co_occurrence", TOGETHER)}


def experiment(system: str, model: Settings, **changes: Any) -> Experiment:
    """On generated scenes; in `changes` names are as `Experiment.replace` has them."""
    values = {
        "recipe": "tiny",
        "system": system,
        "model": model.model_dump(mode="json"),
        "data": {"source": SCENES},
        "graphs": {},
        "patches": PATCHES if system == "retrievegan" else None,
        "stages": PARTS if system == "retrievegan" else {},
        "training": PART,
        "evaluation": {"protocol": "none", "samples": 16},
        "resources": {"threads": 1},
    }
    return parse_experiment(values).replace(changes)


def retrievegan(**changes: Any) -> Experiment:
    return experiment("retrievegan", small(), **changes)


def sg2im(**changes: Any) -> Experiment:
    return experiment("sg2im", SG2IM, **changes)


def prepare(chosen: Experiment, home: Home) -> Preparation:
    return Preparation(chosen, home, train_part=train)


def folders(preparation: Preparation) -> set[str]:
    """Folder names of all its stages."""
    return {stage.folder_name for stage in preparation.graph()}


def names(folder_names: Iterable[str]) -> set[str]:
    """Of stages, from their folders' names."""
    return {name.rpartition("-")[0] for name in folder_names}
