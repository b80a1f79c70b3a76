"""Scene graphs as stages: what who reads them needs, made of which data, and how its checkpoints are judged."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.contract import Batch
from orchestration.config import Experiment, parse_experiment
from orchestration.data.batches import TrainingStream
from orchestration.data.graph_reader import GraphReader
from orchestration.data.graph_text import read_graph
from orchestration.data.records import Dataset
from orchestration.data.scene_graphs import Sg2imOptions
from orchestration.errors import RequestError
from orchestration.evaluation import scenes_net
from orchestration.evaluation.evaluate import Evaluation, Request
from orchestration.evaluation.record import MetricRecord
from orchestration.home import Home
from orchestration.painter import Painter
from orchestration.preparation import Preparation
from orchestration.prepared import Prepared
from orchestration.readers import checkpoint_encoder
from orchestration.stage_graph import read_graph as read_stage_graph
from orchestration.stages import is_finished
from orchestration.training.state import Checkpoint, open_checkpoint
from tests.cascade_drill import train
from tests.case_names import case_name
from tests.evaluate_drill import SMALL_JUDGE
from tests.graph_support import SCENES, folders, names, prepare, retrievegan, sg2im
from tests.visual_genome_release import box_json, relationship_json, write_release

OTHER_SCENES = SCENES.replace("things=3", "things=5")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SMALL_JUDGE, "TRAIN_IMAGES": 100, "EPOCHS": 1}.items():
            patch.setattr(scenes_net, name, value)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Shared: what one test had made, others find."""
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def prepared(home: Home) -> Prepared:
    return prepare(sg2im(), home).everything()


def first_batch(prepared: Prepared, count: int = 4) -> Batch:
    """As training begins."""
    batch = TrainingStream(prepared.train.open(), 3).batch(0, count)
    assert batch.images is not None and batch.graphs is not None
    graphs = batch.graphs
    there = ~graphs.padding()
    assert batch.images.isfinite().all() and batch.images.shape[0] == len(graphs.counts) == count
    assert graphs.classes[there].min() >= 1 and graphs.classes.max() <= prepared.classes
    assert (graphs.boxes[there][:, 2:] > graphs.boxes[there][:, :2]).all()
    assert graphs.relations[..., 1].max() <= prepared.predicates
    return batch


class TestStages:
    def test_there_is_what_it_reads_and_no_more(self, home: Home, prepared: Prepared) -> None:
        stages = prepare(sg2im(), home).graph()
        listed = [(stage.name, stage.settings.get("split")) for stage in stages]
        of_a_split = ("pictures", "captions", "graphs")
        assert [one for one in listed if one[0] in of_a_split] == [
            (name, split) for split in ("train", "val") for name in of_a_split
        ]
        rest = [one for one in listed if one[0] not in of_a_split]
        labels = [("scenes-labels", split) for split in ("train", "val")]
        assert rest == [("graph-vocabulary", "train"), *labels]
        assert listed.index(rest[0]) < listed.index(("graphs", "train"))
        assert all(is_finished(home.stages / stage.folder_name) for stage in stages)
        rows = read_stage_graph(sg2im(), home)
        assert {row.state for row in rows.stages} == {"done"} and rows.run.state == "missing"
        assert not any((prepared.train.features, prepared.train.tokens, prepared.train.candidates))
        assert prepared.parts == () and prepared.vocabulary_size == 0

    def test_names_are_those_of_training(self, home: Home, prepared: Prepared) -> None:
        reader = GraphReader.open(Path(str(prepared.text)))
        assert (len(reader.vocabulary.objects), len(reader.vocabulary.relationships)) == (
            prepared.classes,
            prepared.predicates,
        )
        assert prepared.given.classes == prepared.classes == 5  # three things, two backgrounds
        assert prepared.provenance.text_digest == prepared.provenance.vocabulary == reader.digest
        for split in (prepared.train, prepared.validation):
            data = split.open()
            assert data.graphs is not None and data.graphs.classes == reader.vocabulary.objects
            assert data.graphs.predicates == reader.vocabulary.relationships

    def test_captions_say_the_graphs_that_the_batch_has(self, home: Home, prepared: Prepared) -> None:
        data = prepared.validation.open()
        assert data.graphs is not None
        vocabulary = GraphReader.open(Path(str(prepared.text))).vocabulary
        graphs = data.graphs.take(np.arange(len(data)))
        for row, text in enumerate(data.index.texts):
            said = sorted(thing.name for thing in read_graph(text, vocabulary).objects)
            shown = graphs.classes[row, : graphs.counts[row]].tolist()
            assert said == sorted(vocabulary.objects[number - 1] for number in shown)
        first_batch(prepared)

    def test_it_crosses_processes_as_json(self, prepared: Prepared) -> None:
        again = Prepared.from_json(json.loads(json.dumps(prepared.to_json())))
        assert again == prepared and again.given == prepared.given

    @pytest.mark.parametrize(
        ("change", "anew"),
        [
            ({"model.graph_layers": 3, "training.seed": 4, "model.box_weight": 1}, set()),
            ({"model.resolution": 64}, {"pictures", "graphs"}),
            ({"graphs.val_pictures": 3}, {"pictures", "captions", "graphs", "scenes-labels"}),
            ({"data.source": OTHER_SCENES}, {"pictures", "captions", "graph-vocabulary", "graphs", "scenes-labels"}),
        ],
        ids=case_name,
    )
    def test_what_a_change_makes_anew(self, home: Home, change: dict[str, Any], anew: set[str]) -> None:
        before, after = (folders(prepare(sg2im(**changes), home)) for changes in ({}, change))
        assert names(after - before) == anew

    def test_the_val_split_may_be_val_and_test(self, home: Home) -> None:
        preparation = prepare(sg2im(**{"graphs.val_pictures": 4}), home)
        val, test = (preparation.dataset(split) for split in ("val", "test"))
        whole = prepare(sg2im(), home).dataset("val")
        assert (len(val.records), len(test.records)) == (4, 2)
        ids = [record.image_id for record in (*val.records, *test.records)]
        assert ids == [record.image_id for record in whole.records]


class TestRefusals:
    @pytest.fixture(autouse=True)
    def nothing_was_made(self, tmp_path: Path) -> Iterator[None]:
        yield
        assert not Home(tmp_path).stages.exists()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"data.flip": True}, r"pictures are mirrored half of the time \(data\.flip\)"),
            ({"data.transform": "attngan"}, r"mirrored half of the time \(as by attngan\).*add --set data\.flip=false"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("system", ["sg2im", "retrievegan"])
    def test_mirrored_pictures(self, tmp_path: Path, system: str, change: dict[str, Any], said: str) -> None:
        chosen = sg2im(**change) if system == "sg2im" else retrievegan(**change)
        with pytest.raises(RequestError, match=said):
            prepare(chosen, Home(tmp_path)).everything()

    def test_a_transform_that_mirrors_may_be_told_not_to(self, tmp_path: Path) -> None:
        prepare(sg2im(**{"data.transform": "attngan", "data.flip": False}), Home(tmp_path)).check()

    def test_graphs_that_nobody_says_how_to_make(self) -> None:
        values = sg2im().model_dump(mode="json")
        with pytest.raises(RequestError, match="sg2im reads scene graphs: say how they are made under graphs"):
            parse_experiment({**values, "graphs": None})

    def test_data_without_graphs(self, tmp_path: Path) -> None:
        folder = tmp_path / "pictures"
        folder.mkdir()
        (folder / "captions.jsonl").write_text("")
        with pytest.raises(RequestError):
            prepare(sg2im(**{"data.source": f"folder:{folder}"}), Home(tmp_path)).everything()


# Other data


def release() -> dict[str, Any]:
    """Ten pictures of 80 x 60 px with two or three objects, of which two stand in a relation."""
    content: dict[str, Any] = {name: [] for name in ("image_data", "objects", "attributes", "relationships")}
    for image in range(1, 11):
        things = [
            box_json(100 * image, ["clock"], (4 + image, 5, 30, 40)),
            box_json(100 * image + 1, ["street"], (0, 20, 80, 40)),
            *([box_json(100 * image + 2, ["tree"], (50, 2, 20, 50))] if image % 2 else []),
        ]
        word = "on" if image % 3 else "near"
        link = relationship_json(1000 + image, things[0], word, things[1])
        content["image_data"].append(
            {
                "image_id": image,
                "width": 80,
                "height": 60,
                "url": f"https://example.org/{'VG_100K' if image == 2 else 'VG_100K_2'}/{image}.jpg",
                "coco_id": None,
                "flickr_id": None,
            }
        )
        content["objects"].append({"image_id": image, "objects": copy.deepcopy(things), "image_url": ""})
        content["relationships"].append({"image_id": image, "relationships": [link]})
    return content


@pytest.fixture(scope="module")
def visual_genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": [1, 2, 3, 4, 5, 6], "val": [7, 8], "test": [9, 10]}
    return write_release(tmp_path_factory.mktemp("genome"), release(), splits)


@pytest.fixture
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """sg2im's limits are for 100,000 pictures."""
    monkeypatch.setattr(Sg2imOptions.__init__, "__defaults__", (2, 2, 2, 8, 32, (2, 30), (1, 30), 10))


@pytest.mark.parametrize(("kind", "objects", "predicates"), [("visual-genome", 3, 2), ("visual-genome-sg2im", 3, 2)])
def test_visual_genome_to_a_first_batch(
    home: Home, visual_genome: Path, few_are_enough: None, kind: str, objects: int, predicates: int
) -> None:
    chosen = retrievegan(**{"data.source": f"{kind}:{visual_genome}"})
    prepared = prepare(chosen, home).everything()
    assert (prepared.classes, prepared.predicates) == (objects, predicates)
    batch = first_batch(prepared, 6)
    assert batch.graphs is not None and batch.candidates is not None
    assert sorted(batch.graphs.counts.tolist()) == [2, 2, 2, 3, 3, 3] and batch.graphs.links.tolist() == [1] * 6
    # Of clocks and streets there are five in other pictures, of trees two.
    there = ~batch.graphs.padding()
    counts = dict(zip(batch.graphs.classes[there].tolist(), batch.candidates.counts[there].tolist(), strict=True))
    assert counts == {1: 2, 2: 2, 3: 2}
    assert prepared.validation.open().graphs is not None


def test_photographs_to_a_first_batch(home: Home, shared_data: Path) -> None:
    """Graphs of instances' boxes and panoptic segments'."""
    source = shared_data / "coco-mini"
    if not source.is_dir():
        pytest.skip(f"real photographs are absent: no folder {source}")
    preparation = prepare(sg2im(**{"data.source": f"coco:{source}"}), home)
    prepared = preparation.everything()
    batch = first_batch(prepared, 8)
    assert batch.graphs is not None and batch.graphs.counts.min() >= 3 and batch.graphs.counts.max() <= 8
    assert (batch.graphs.links > 0).all() and prepared.predicates == 6
    named = GraphReader.open(Path(str(prepared.text))).vocabulary.objects
    assert {"person", "sky-other-merged"} <= set(named) and prepared.protocol == "none"


# Checkpoints


@pytest.fixture(scope="module")
def judged_experiment() -> Experiment:
    source = SCENES.replace("objects=2,train=20,val=6,test=4", "objects=1,train=32,val=6,test=24")
    return sg2im(**{"data.source": source, "evaluation.protocol": "scenes-net", "model.boxes": "given"})


@pytest.fixture(scope="module")
def checkpoint(home: Home, judged_experiment: Experiment) -> Checkpoint:
    """Of one step."""
    prepared = prepare(judged_experiment.replace({"evaluation.protocol": "none"}), home).everything()
    folder = home.runs / judged_experiment.run_name
    return open_checkpoint(train(judged_experiment.replace({"evaluation.protocol": "none"}), prepared, folder))


def judge(home: Home, checkpoint: Checkpoint, experiment: Experiment, **request: Any) -> dict[str, MetricRecord]:
    asked = Request(samples=40, weights={"lpips-squeeze": "random"}, workers=1, **request)
    evaluation = Evaluation(experiment, home, asked, checkpoint_encoder(checkpoint, home))
    return {record.figure: record for record in evaluation.checkpoint(checkpoint, "run")}


def test_a_checkpoint_is_judged_by_its_graphs(
    home: Home, checkpoint: Checkpoint, judged_experiment: Experiment
) -> None:
    """FID, and how different the pictures of one graph look."""
    found = judge(home, checkpoint, judged_experiment, metrics=["fid", "lpips/lpips-squeeze"])
    assert set(found) == {"fid/scenes-net", "diversity/lpips-squeeze-random"}
    diversity = found["diversity/lpips-squeeze-random"]
    assert diversity.value > 0 and diversity.details["captions"] == 8 and diversity.details["pairs"] == 40
    assert np.isfinite(found["fid/scenes-net"].value) and found["fid/scenes-net"].value > 0


def test_a_graph_in_words_is_drawn(home: Home, checkpoint: Checkpoint) -> None:
    painter = Painter.load(checkpoint.folder, home.root)
    prompt = prepare(checkpoint.experiment, home).dataset("val").records[0].captions
    assert prompt is not None
    one, other = (painter.draw([prompt[0].text], [seed]) for seed in (1, 2))
    assert one.shape == (1, 32, 32, 3) and not np.array_equal(one, other)
    assert np.array_equal(painter.draw([prompt[0].text], [1]), one)


def test_other_data_are_read_by_the_checkpoints_names(
    home: Home, checkpoint: Checkpoint, judged_experiment: Experiment
) -> None:
    """Numbers of other data's names would be other things; what the checkpoint does not know is left out."""
    reader = checkpoint_encoder(checkpoint, home)
    assert isinstance(reader, GraphReader)
    elsewhere = judged_experiment.replace({"data.source": OTHER_SCENES})
    own = Preparation(elsewhere, home)
    other = Preparation(elsewhere, home, encoder=reader)
    assert own.names is not None and own.names.objects != reader.vocabulary.objects
    assert other.names == reader.vocabulary
    dataset: Dataset = other.dataset("val")
    data = other.split(dataset, reads=other.drawn_from).open()
    assert data.graphs is not None and data.graphs.classes == reader.vocabulary.objects
    said = {thing.name for record in dataset.records if record.graph for thing in record.graph.objects}
    unknown = {thing.name for record in own.dataset("val").records if record.graph for thing in record.graph.objects}
    assert said <= set(reader.vocabulary.objects) and unknown - said
    graphs = data.graphs.take(np.arange(len(data)))
    for row, record in enumerate(dataset.records):
        assert record.graph is not None
        shown = graphs.classes[row, : graphs.counts[row]].tolist()
        assert [reader.vocabulary.objects[number - 1] for number in shown] == [
            thing.name for thing in record.graph.objects
        ]
    # The very same data have the very same stages.
    again = Preparation(judged_experiment, home, encoder=reader)
    assert folders(again) == folders(Preparation(judged_experiment, home))
