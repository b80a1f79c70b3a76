"""RetrieveGAN from nothing to a checkpoint, every stage of it, in this process and small: what its retrieval learns,
and kills."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.blocks.graphs import flatten
from models.blocks.layout import crop_boxes
from models.contract import Batch
from models.retrievegan import RetrieveGANConfig
from models.retrievegan.networks import Generator
from models.retrievegan.retrieval import noise_width
from models.retrievegan.selection import true_patch_ranks
from models.retrievegan.system import RetrieveGAN
from orchestration.config import Experiment
from orchestration.data.batches import CaptionedPictures
from orchestration.data.patch_source import CandidatePatches
from orchestration.home import Home
from orchestration.preparation import PART_FIGURES, Preparation
from orchestration.prepared import Prepared
from orchestration.recipes import get_recipe
from orchestration.stages import read_records
from orchestration.training.state import load_for_sampling, open_checkpoint
from search_spaces.tables import load_table
from tests.cascade_drill import killed_as_calm, train

SCENES = "scenes:size=32,things=4,colours=4,backgrounds=4,objects=3,train=800,val=200,test=20"
PARTS = ("sg2im", "co_occurrence")
CANDIDATES = 10
CPU = torch.device("cpu")


def small(kimg: float, sg2im: float, co_occurrence: float, **changes: Any) -> Experiment:
    """The recipe on few scenes of 32 px, without a perceptual net."""
    values: dict[str, Any] = {
        "data.source": SCENES,
        "evaluation.protocol": "none",
        "model.resolution": 32,
        "model.canvas_side": 8,
        "model.lambda_image_perceptual": 0.0,
        "model.lambda_object_perceptual": 0.0,
        "stages.sg2im.model.resolution": 32,
        "stages.co_occurrence.model.resolution": 32,
        "stages.co_occurrence.model.patch_side": 16,
        "patches.side": 16,
        "patches.candidates": CANDIDATES,
    }
    for place, length in (("training", kimg), ("stages.sg2im.training", sg2im)):
        values |= {f"{place}.{name}": length for name in ("kimg", "checkpoint_kimg", "picture_kimg")}
    for name in ("kimg", "checkpoint_kimg"):
        values[f"stages.co_occurrence.training.{name}"] = co_occurrence
    return get_recipe("retrievegan_scenes").replace({**values, **changes})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("retrievegan") / "home")


EXPERIMENT = small(1.6, 0.96, 12.0)


@pytest.fixture(scope="module")
def prepared(home: Home, all_cores: None) -> Prepared:
    """Everything below RetrieveGAN is made here: sg2im, patches, candidates, the co-occurrence embedding."""
    return Preparation(EXPERIMENT, home, train_part=train).everything()


class Trained:
    """A GAN that was trained on the shared stages, and held-out scenes."""

    def __init__(self, experiment: Experiment, home: Home) -> None:
        prepared = Preparation(experiment, home, train_part=train).everything()
        checkpoint = open_checkpoint(train(experiment, prepared, home.runs / experiment.run_name))
        self.nets = load_for_sampling(checkpoint, CPU, checkpoint.provenance.vocabulary)
        assert isinstance(experiment.model, RetrieveGANConfig)
        self.model: RetrieveGANConfig = experiment.model
        self.data: CaptionedPictures = prepared.validation.open()

    def held_out(self) -> Iterator[Batch]:
        """In portions, with their pictures."""
        for start in range(0, len(self.data), 50):
            items = np.arange(start, start + 50)
            yield self.data.still(items, self.data.index.starts[items])


@pytest.fixture(scope="module")
def trained(prepared: Prepared, home: Home) -> Trained:
    return Trained(EXPERIMENT, home)


@pytest.fixture(scope="module")
def backgrounds(prepared: Prepared) -> dict[int, str]:
    """What lies behind the things of each training scene, as the generator of scenes says."""
    assert prepared.train.labels is not None
    labels = json.loads((Path(prepared.train.labels) / "labels.json").read_text())
    return {int(image_id): told[0] for image_id, told in labels.items()}


def pairs_alike(names: list[str]) -> list[bool]:
    return [one == other for place, one in enumerate(names) for other in names[:place]]


def test_the_embedding_knows_what_goes_together(prepared: Prepared, home: Home) -> None:
    """Two patches of one held-out picture are nearer than one of another picture; chance is a half."""
    [folder] = home.stages.glob("co_occurrence-*")
    assert json.loads((folder / PART_FIGURES).read_text())["validation/triplets/in-order"] > 0.75


def test_chosen_patches_are_of_scenes_alike(trained: Trained, backgrounds: dict[int, str]) -> None:
    """How often two patches of a set are cut from scenes of one background, over sets of random candidates: at least
    0.1 more often."""
    assert isinstance(trained.data.candidates, CandidatePatches)
    bank, system = trained.data.candidates.bank, RetrieveGAN()
    random = np.random.default_rng(0)
    chosen: list[bool] = []
    drawn: list[bool] = []
    for batch in trained.held_out():
        candidates, graphs = batch.candidates, batch.graphs
        assert candidates is not None and graphs is not None
        with torch.inference_mode():
            picked = system.retrieve(trained.nets, trained.model, batch, range(50)).selection.chosen.numpy()

        def scenes(row: int, choice: NDArray[np.int64], places: torch.Tensor = candidates.places) -> list[str]:
            found = places[row, np.arange(len(choice)), choice].numpy()
            return [backgrounds[image_id] for image_id in bank.image_ids[found].tolist()]

        for row, count in enumerate(graphs.counts.tolist()):
            chosen += pairs_alike(scenes(row, picked[row, :count]))
            drawn += pairs_alike(scenes(row, random.integers(0, CANDIDATES, count)))
    print(f"of one background: chosen {np.mean(chosen):.3f}, random {np.mean(drawn):.3f}, {len(chosen)} pairs")
    assert len(chosen) > 400
    assert np.mean(chosen) > np.mean(drawn) + 0.1


def rank_of_truth(trained: Trained) -> float:
    """Mean share of candidates that are nearer to another true patch of the picture than an object's own; chance .5."""
    generator = trained.nets["generator"]
    assert isinstance(generator, Generator)
    before, rivals = [], []
    for batch in trained.held_out():
        graphs, candidates, images = batch.graphs, batch.candidates, batch.images
        assert graphs is not None and candidates is not None and images is not None
        flat = flatten(graphs)
        real = flat.boxes[flat.objects], flat.pictures[flat.objects]
        truth = crop_boxes(images, *real, candidates.patches.shape[-1], trained.model.align_corners)
        groups, size = candidates.patches.shape[1:3]
        noise = torch.zeros(len(images), noise_width(groups, size + 1, trained.model.retrieval))
        with torch.inference_mode():
            found = generator(flat, candidates, noise, flat.boxes, truth)
        last = torch.where(found.valid[:, :, -1], size, -1)
        ahead, others = true_patch_ranks(found.features, found.valid, last, trained.model.retrieval.distance)
        before.append(ahead)
        rivals.append(others)
    return float((torch.cat(before) / torch.cat(rivals)).mean())


def test_the_selection_loss_raises_the_rank_of_the_true_patch(trained: Trained, home: Home) -> None:
    """On held-out scenes, beside the same training without the loss; both share every stage."""
    without = Trained(EXPERIMENT.replace({"model.lambda_gt_selection": 0.0}), home)
    ours, theirs = rank_of_truth(trained), rank_of_truth(without)
    print(f"share of candidates before the true patch: {ours:.3f} with the loss, {theirs:.3f} without")
    assert ours < theirs - 0.05 and ours < 0.4
    computed = [line["stage"] for line in read_records(home.stages)]
    assert all(computed.count(stage) == 1 for stage in (*PARTS, "patches"))


def test_the_table_shares_every_early_stage(home: Home, prepared: Prepared) -> None:
    """Table 2's rows change losses alone, as do sweeps of tau and k."""
    base = Preparation(EXPERIMENT, home).graph()
    early = {(stage.name, stage.key) for stage in base}
    rows = [row.changes for row in load_table("retrievegan_table2").rows.values()]
    sweeps = [{"model.retrieval.temperature": 0.5}, {"patches.candidates": 3}, {"model.lambda_box": 1.0}]
    for changes in (*rows, *sweeps):
        graph = Preparation(EXPERIMENT.replace(dict(changes)), home).graph()
        assert {(stage.name, stage.key) for stage in graph} <= early


def test_killed_in_every_stage_it_ends_as_if_nothing_happened(tmp_path: Path) -> None:
    experiment = small(0.032, 0.064, 0.064, **{"training.batch_size": 16})
    deaths = ("sg2im", "patches", "candidates", "co_occurrence", "retrievegan")
    home = killed_as_calm(experiment, tmp_path, deaths)
    computed = [line["stage"] for line in read_records(home.stages)]
    assert all(computed.count(stage) == 1 for stage in (*PARTS, "patches"))
