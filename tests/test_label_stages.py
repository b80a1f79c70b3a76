"""SPADE and CC-FPSE from data to a checkpoint: the stages of label maps, what a checkpoint takes along, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.contract import Batch
from orchestration.config import Experiment
from orchestration.data.batches import TrainingStream
from orchestration.data.label_maps import open_label_maps
from orchestration.data.label_names import LabelNames
from orchestration.errors import RequestError
from orchestration.evaluation.looking import drawer
from orchestration.home import Home
from orchestration.painter import Painter
from orchestration.preparation import Preparation
from orchestration.prepared import Prepared
from orchestration.readers import checkpoint_encoder, vocabulary_digest
from orchestration.recipes import get_recipe
from orchestration.training.state import LABELS, TEXT, Checkpoint, load_for_sampling, open_checkpoint
from tests.cascade_drill import train

SCENES = "scenes:size=32,things=3,colours=3,backgrounds=2,objects=2,train=20,val=6,test=4"
SHOWN = ("grass", "night sky")
CPU = torch.device("cpu")


def experiment(system: str = "spade", **changes: Any) -> Experiment:
    """The recipe at 32 px, two steps long, without a perceptual net."""
    values: dict[str, Any] = {
        "data.source": SCENES,
        "evaluation.protocol": "none",
        "training.kimg": 0.032,
        "training.picture_kimg": 1.0,
        "model.resolution": 32,
        "model.generator_channels": 4,
        "model.upsamplings": 3,
        "model.perceptual_weight": 0.0,
    }
    return get_recipe(f"{system}_scenes").replace({**values, **changes})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    torch.set_num_threads(1)
    return Home(tmp_path_factory.mktemp("labels") / "home")


@pytest.fixture(scope="module")
def prepared(home: Home) -> Prepared:
    return Preparation(experiment(), home).everything()


@pytest.fixture(scope="module", params=["spade", "ccfpse"])
def checkpoint(request: pytest.FixtureRequest, prepared: Prepared, home: Home) -> Checkpoint:
    chosen = experiment(request.param)
    return open_checkpoint(train(chosen, prepared, home.runs / chosen.run_name))


def test_both_systems_share_every_stage(home: Home) -> None:
    graphs = [Preparation(experiment(system), home).graph() for system in ("spade", "ccfpse")]
    first, second = ([(stage.name, stage.key) for stage in graph] for graph in graphs)
    assert first == second
    assert [name for name, _ in first].count("label-maps") == 2 and "label-names" in [name for name, _ in first]


def test_maps_and_pictures_are_cut_and_mirrored_alike(prepared: Prepared) -> None:
    """Where the label is grass the picture is green, at every cut."""
    assert prepared.train.label_maps is not None
    names = open_label_maps(Path(prepared.train.label_maps)).classes
    batch = TrainingStream(prepared.train.open(), 3).batch(0, 20)
    assert batch.images is not None and batch.labels is not None
    assert batch.labels.labels.shape == (20, 32, 32) and set(SHOWN) < set(names)
    red, green, blue = batch.images.unbind(1)
    grass = batch.labels.labels == names.index("grass")
    assert grass.float().mean() > 0.1
    assert ((green > red) & (green > blue))[grass].float().mean() > 0.9
    sky = batch.labels.labels == names.index("night sky")
    assert ((green > red) & (green > blue))[sky].float().mean() < 0.2
    # Things are numbered, stuff is not.
    assert (batch.labels.instances[grass | sky] == 0).all() and batch.labels.instances.any()


def test_a_checkpoint_takes_the_names_along(checkpoint: Checkpoint, prepared: Prepared, home: Home) -> None:
    names = json.loads((checkpoint.folder / TEXT / LABELS).read_text())["classes"]
    assert prepared.classes == len(names) and set(SHOWN) < set(names)
    reader = checkpoint_encoder(checkpoint, home)
    assert isinstance(reader, LabelNames) and list(reader.classes) == names
    assert (checkpoint.provenance.vocabulary, checkpoint.provenance.text_digest) == (reader.digest, reader.digest)


def test_it_draws_held_out_maps(checkpoint: Checkpoint, prepared: Prepared, home: Home) -> None:
    reader = checkpoint_encoder(checkpoint, home)
    nets = load_for_sampling(checkpoint, CPU, vocabulary_digest(reader))
    data = prepared.validation.open()
    items = np.arange(6)
    conditions = data.without_pixels(items, data.index.starts[items])
    assert isinstance(conditions, Batch) and conditions.labels is not None
    pictures = drawer(checkpoint.experiment, nets, CPU)(conditions, range(6))
    assert pictures.shape == (6, 3, 32, 32) and pictures.isfinite().all() and pictures.abs().max() <= 1


def test_words_alone_are_refused(checkpoint: Checkpoint, home: Home) -> None:
    painter = Painter.load(checkpoint.folder, home.root)
    for call in (lambda: painter.draw(["a red house"], [1]), lambda: painter.check("a red house")):
        with pytest.raises(RequestError, match="draws from label maps, and words alone give none"):
            call()


def test_names_that_cannot_be_read(tmp_path: Path) -> None:
    for content in (None, "[", "[]", '{"classes": 3}'):
        if content is not None:
            (tmp_path / LABELS).write_text(content)
        with pytest.raises(RequestError, match="the names of labels in .* cannot be read"):
            LabelNames.open(tmp_path)


def test_photographs(shared_data: Path, tmp_path: Path) -> None:
    """Panoptic maps where there are no others, in COCO-Stuff's names."""
    source = shared_data / "coco-mini"
    if not source.is_dir():
        pytest.skip(f"real photographs are absent: no folder {source}")
    chosen = experiment(**{"data.source": f"coco:{source}", "data.test_split": "val"})
    found = Preparation(chosen, Home(tmp_path)).everything()
    assert found.classes == 182
    batch = TrainingStream(found.train.open(), 0).batch(0, 8)
    assert batch.labels is not None
    known = batch.labels.labels < 182
    assert known.float().mean() > 0.7 and len(batch.labels.labels[known].unique()) > 10


def test_data_without_labels(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "captions.jsonl").write_text("")
    with pytest.raises(RequestError):
        Preparation(experiment(**{"data.source": f"folder:{folder}"}), Home(tmp_path)).everything()
