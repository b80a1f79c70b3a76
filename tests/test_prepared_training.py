"""Training on prepared shards and on the published files: the same batches, whatever the form."""

import json
from pathlib import Path

import numpy as np
import pytest

from models.contract import Batch
from orchestration.config import Experiment
from orchestration.data.batches import TrainingStream
from orchestration.data.prepare import prepare
from orchestration.data.shards import ShardOptions
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.recipes import get_recipe
from tests.tiny_inputs import TINY_DIM, write_tiny_bert, write_tiny_coco

SIZE = 32


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_coco(tmp_path_factory.mktemp("data") / "coco")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, coco: Path) -> Experiment:
    return get_recipe("xmcgan_scenes32").replace(
        {
            "data.source": f"coco:{coco}",
            "data.transform": "attngan",
            "data.flip": None,
            "text.name": str(write_tiny_bert(tmp_path_factory.mktemp("bert"))),
            "model.text_dim": TINY_DIM,
            "evaluation.protocol": "none",
        }
    )


def batches(experiment: Experiment, home: Home, start: int = 0, stride: int = 4) -> list[Batch]:
    """Four batches of a new stream that begins at `start`."""
    data = Preparation(experiment, home).everything().train.open()
    stream = TrainingStream(data, seed=5, flip=experiment.data.flip, stride=stride)
    return [stream.batch(start + 4 * turn, 4) for turn in range(4)]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.image_ids.equal(other.image_ids)
        assert one.images is not None and other.images is not None and one.images.equal(other.images)
        assert one.text is not None and other.text is not None
        assert one.text.words.equal(other.text.words) and one.text.lengths.equal(other.text.lengths)


def prepared(coco: Path, folder: Path, transform: str = "attngan", size: int = SIZE) -> Path:
    prepare(f"coco:{coco}", folder, ShardOptions(transform, size, "png"), folder.parent / "home")
    return folder


def test_every_form_gives_the_same_batches_and_shares_the_features(
    experiment: Experiment, coco: Path, tmp_path: Path
) -> None:
    folder, home = prepared(coco, tmp_path / "prepared"), Home(tmp_path / "home")
    published = batches(experiment.replace({"resources.pictures": "none"}), home)
    # Not all alike: pictures are cut at random, so a form that ignored the draws would be seen.
    assert published[0].images is not None and published[2].images is not None
    assert not published[0].images.equal(published[2].images)
    for codec in ("raw", "png"):
        assert_same(batches(experiment.replace({"resources.pictures": codec}), home), published)
    by_hand = experiment.replace({"data.source": f"prepared:{folder}"})
    assert_same(batches(by_hand, home), published)
    assert len(list(home.stages.glob("text-features-*"))) == 2  # train and val, made once for all forms
    assert Preparation(by_hand, home).everything().train.pictures == str(folder / "train")


def test_a_stream_goes_on_from_anywhere(experiment: Experiment, coco: Path, tmp_path: Path) -> None:
    folder, home = prepared(coco, tmp_path / "prepared"), Home(tmp_path / "home")
    by_hand = experiment.replace({"data.source": f"prepared:{folder}"})
    whole = batches(by_hand, home)
    assert_same(batches(by_hand, home, start=8)[:2], whole[2:])
    assert_same(batches(by_hand, home, stride=0), whole)


@pytest.mark.parametrize(("transform", "size"), [("xmcgan", SIZE), ("attngan", 64)])
def test_data_prepared_otherwise_is_refused_with_the_command(
    experiment: Experiment, coco: Path, tmp_path: Path, transform: str, size: int
) -> None:
    folder = prepared(coco, tmp_path / "prepared", transform, size)
    wanted = "prepare the data again with --transform attngan --size 32"
    with pytest.raises(RequestError, match=f"was prepared by {transform} at {size} px.*{wanted}"):
        Preparation(experiment.replace({"data.source": f"prepared:{folder}"}), Home(tmp_path / "home")).everything()


def test_images_without_a_caption_are_passed_over(experiment: Experiment, tmp_path: Path) -> None:
    coco = write_tiny_coco(tmp_path / "coco")
    file = coco / "annotations" / "captions_train2017.json"
    listing = json.loads(file.read_text())
    listing["annotations"] = [entry for entry in listing["annotations"] if entry["image_id"] != 2]
    file.write_text(json.dumps(listing))
    preparation = Preparation(experiment.replace({"data.source": f"coco:{coco}"}), Home(tmp_path / "home"))
    data = preparation.everything().train.open()
    assert data.image_ids.tolist() == [1, 3]
    folder = prepared(coco, tmp_path / "prepared")
    assert json.loads((folder / "train" / "manifest.json").read_text())["rows"] == 3
    by_hand = experiment.replace({"data.source": f"prepared:{folder}"})
    again = Preparation(by_hand, Home(tmp_path / "home")).everything().train.open()
    assert again.image_ids.tolist() == [1, 3]
    both = np.arange(2)
    assert again.pixels(both).equal(data.pixels(both))
