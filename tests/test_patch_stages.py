"""Patches as stages: which there are, what a changed setting makes anew, whose patches are whose; and how what compares
patches is judged."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.blocks.graphs import flatten
from models.contract import Batch
from models.encoders.image import WeightsMissing
from models.retrievegan.networks import own_patches
from models.sg2im.encoder import open_graph_encoder
from orchestration.config import parse_experiment
from orchestration.data.batches import CaptionedPictures, TrainingStream
from orchestration.data.candidates import StoredCandidates, open_candidates
from orchestration.data.graph_reader import GraphReader
from orchestration.data.patches import PatchBank, open_bank
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.evaluate import Evaluation, Request
from orchestration.evaluation.parts import BATCH, PartJudge
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.prepared import CandidateSource, Prepared, PreparedSplit
from orchestration.stage_graph import DONE, MISSING
from orchestration.stage_graph import read_graph as read_stage_graph
from orchestration.stages import is_finished
from orchestration.training.state import initial_state
from tests.case_names import case_name
from tests.graph_support import PATCH, SCENES, folders, names, prepare, retrievegan, sg2im
from tests.tiny import NAMES


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Shared: what one test had made, others find."""
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def prepared(home: Home) -> Prepared:
    return prepare(retrievegan(), home).everything()


def candidates_of(split: PreparedSplit) -> CandidateSource:
    assert split.candidates is not None
    return split.candidates


def opened(split: PreparedSplit) -> tuple[StoredCandidates, PatchBank]:
    source = candidates_of(split)
    return open_candidates(Path(source.folder)), open_bank(Path(source.bank))


class TestStages:
    def test_each_comes_after_what_it_reads(self, home: Home, prepared: Prepared) -> None:
        stages = prepare(retrievegan(), home).graph()
        assert all(is_finished(home.stages / stage.folder_name) for stage in stages)
        places = {stage.key: place for place, stage in enumerate(stages)}
        for place, stage in enumerate(stages):
            assert all(places[value] < place for value in stage.inputs.values() if value in places)
        of = {stage.name: stage for stage in stages}
        count = {name: sum(stage.name == name for stage in stages) for name in of}
        assert count["sg2im"] == count["co_occurrence"] == count["patches"] == 1
        assert count["candidates"] == count["graphs"] == count["pictures"] == 2
        bank, parts = of["patches"], {name for name, _ in prepared.parts}
        assert parts == {"sg2im", "co_occurrence"} and bank.inputs["encoder"] == of["sg2im"].key
        for stage in stages:
            if stage.name == "candidates":
                assert stage.inputs["bank"] == bank.key and stage.inputs["encoder"] == of["sg2im"].key
        rows = read_stage_graph(retrievegan(), home)
        assert {row.state for row in rows.stages} == {DONE} and rows.run.state == MISSING
        labels = [row.label for row in rows.stages]
        assert {"candidates (train)", "candidates (val)"} < set(labels) and len(set(labels)) == len(labels)

    @pytest.mark.parametrize(
        ("change", "anew"),
        [
            ({"model.retrieval.temperature": 0.5, "model.retrieval.selection": "soft"}, set()),
            ({"patches.candidates": 4}, set()),
            ({"model.lambda_cooccurrence": 2, "model.lambda_gt_selection": 0, "model.lambda_box": 1}, set()),
            ({"model.lambda_cooccurrence": 0}, set()),
            ({"training.seed": 3, "training.kimg": 1, "model.query_dim": 9}, set()),
            ({"patches.prefilter.k": 5}, {"candidates"}),
            ({"patches.prefilter.index": "exact"}, {"candidates"}),
            ({"patches.side": 24}, {"patches", "candidates"}),
            ({"stages.sg2im.training.kimg": 0.032}, {"sg2im", "patches", "candidates"}),
            ({"stages.sg2im.model.graph_layers": 3}, {"sg2im", "patches", "candidates"}),
            ({"stages.sg2im.training.log_kimg": 0.008}, set()),
            ({"stages.co_occurrence.model.margin": 0.3}, {"co_occurrence"}),
            ({"model.resolution": 64}, {"pictures", "graphs", "patches", "candidates"}),
        ],
        ids=case_name,
    )
    def test_what_a_change_makes_anew(self, home: Home, change: dict[str, Any], anew: set[str]) -> None:
        before, after = (folders(prepare(retrievegan(**changes), home)) for changes in ({}, change))
        assert names(after - before) == anew
        gone = {"co_occurrence"} if change.get("model.lambda_cooccurrence") == 0 else set()
        assert names(before - after) - anew == gone

    def test_a_sweep_prepares_nothing_again(self, home: Home, prepared: Prepared) -> None:
        def never(*_: Any) -> Path:
            raise AssertionError("a part is trained again")

        made = {path.name for path in home.stages.iterdir() if not path.name.startswith(".")}
        for change in (
            {"model.retrieval.temperature": 1.0},
            {"patches.candidates": 3},
            {"model.lambda_cooccurrence": 0.0},
        ):
            again = Preparation(retrievegan(**change), home, train_part=never).everything()
            assert replace(candidates_of(again.train), count=2) == candidates_of(prepared.train)
            assert candidates_of(again.train).count == (3 if "patches.candidates" in change else 2)
            assert set(dict(again.parts)) == {"sg2im", *([] if 0.0 in change.values() else ["co_occurrence"])}
        assert {path.name for path in home.stages.iterdir() if not path.name.startswith(".")} == made

    def test_sg2im_alone_is_not_the_stage(self, home: Home, prepared: Prepared) -> None:
        """But its pictures and graphs are the same, and so are those of all who read them at one resolution."""
        assert folders(prepare(sg2im(), home)) < folders(prepare(retrievegan(), home))

    def test_it_crosses_processes_as_json(self, prepared: Prepared) -> None:
        again = Prepared.from_json(json.loads(json.dumps(prepared.to_json())))
        assert again == prepared and again.given == prepared.given

    def test_parts_that_nobody_trains(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="the stage sg2im is not trained yet: run t2i train tiny first"):
            Preparation(retrievegan(), Home(tmp_path)).everything()


class TestPatches:
    def test_the_bank_has_every_object_of_the_training_pictures(self, home: Home, prepared: Prepared) -> None:
        stored, bank = opened(prepared.train)
        data = prepared.train.open()
        assert data.graphs is not None
        graphs = data.graphs.take(np.arange(len(data)))
        there = ~graphs.padding()
        assert len(bank) == int(there.sum()) == stored.about.objects and len(stored) == len(data) == 20
        assert bank.classes.tolist() == graphs.classes[there].tolist()
        np.testing.assert_allclose(bank.boxes, graphs.boxes[there].numpy())
        assert bank.about.size == PATCH and list(bank.about.classes) == list(data.graphs.classes)
        folder = dict(prepared.parts)["sg2im"]
        net = open_graph_encoder(Path(folder))
        assert bank.about.feature_dim == 5 and not net.training
        assert not any(parameter.requires_grad for parameter in net.parameters())

    def test_no_candidate_is_of_the_own_picture_in_training(self, prepared: Prepared) -> None:
        for split, own in ((prepared.train, True), (prepared.validation, False)):
            stored, bank = opened(split)
            assert stored.about.own is own and stored.about.k == 4
            owners = np.repeat(stored.image_ids, np.diff(stored.starts))
            there = stored.places >= 0
            assert there.any(1).all()
            same = (bank.image_ids[stored.places.clip(0)] == owners[:, None]) & there
            assert not same.any()  # of val: ids of splits differ
            if own:
                # The own patch would be the nearest of all: its feature is the very same.
                nearest = stored.distances[:, 0]
                assert (nearest >= 0).all() and np.isfinite(nearest).all()

    def test_a_first_batch_has_candidates_of_its_objects(self, prepared: Prepared) -> None:
        data = prepared.train.open()
        _, bank = opened(prepared.train)
        batch = TrainingStream(data, 3).batch(0, 16)
        graphs, candidates = batch.graphs, batch.candidates
        assert batch.images is not None and graphs is not None and candidates is not None
        assert candidates.patches.shape == (16, graphs.classes.shape[1], 2, 3, PATCH, PATCH)
        there = torch.arange(2) < candidates.counts[..., None]
        assert not (there.any(2) & graphs.padding()).any() and there.any()
        chosen = candidates.places[there].numpy()
        owners = graphs.classes[..., None].expand_as(there)[there]
        assert bank.classes[chosen].tolist() == owners.tolist()
        pictures = batch.image_ids[:, None, None].expand_as(there)[there]
        assert not (bank.image_ids[chosen] == pictures.numpy()).any()
        expected = data.pictures.transform.normalise(bank.take(chosen))
        assert torch.equal(candidates.patches[there], expected)
        still = data.still(np.arange(4), data.index.starts[:4])
        assert still.candidates is not None and still.candidates.patches.dtype == torch.float32

    def test_fewer_shown_are_the_nearest(self, home: Home, prepared: Prepared) -> None:
        more = prepare(retrievegan(**{"patches.candidates": 4}), home).everything().train.open()
        few = prepared.train.open()
        items = np.arange(6)
        assert more.candidates is not None and few.candidates is not None
        wide, narrow = more.candidates.take(items), few.candidates.take(items)
        assert torch.equal(wide.places[:, :, :2], narrow.places)
        assert torch.equal(wide.counts.clamp(max=2), narrow.counts) and wide.counts.max() == 4

    def test_a_bank_of_other_data_is_refused(self, home: Home, prepared: Prepared) -> None:
        other = prepare(retrievegan(**{"data.source": SCENES.replace("train=20", "train=16")}), home).everything()
        elsewhere = replace(candidates_of(prepared.train), bank=candidates_of(other.train).bank)
        with pytest.raises(RequestError, match=r"are in the patch bank [0-9a-f]+, and .* find candidates in this bank"):
            replace(prepared.train, candidates=elsewhere).open()
        with pytest.raises(RunError, match="captions and candidates were prepared from different data"):
            replace(prepared.train, candidates=candidates_of(other.train)).open()

    def test_an_experiment_without_patches(self) -> None:
        values = retrievegan().model_dump(mode="json")
        with pytest.raises(RequestError, match="retrievegan draws from patches: say how they are chosen under patches"):
            parse_experiment({**values, "patches": None})
        with pytest.raises(
            RequestError, match="candidates is 9, and the pre-filter keeps 4 .* patches.prefilter.k too"
        ):
            retrievegan(**{"patches.candidates": 9})
        stages = {name: part for name, part in values["stages"].items() if name != "sg2im"}
        with pytest.raises(RequestError, match="retrievegan needs the trained stage 'sg2im': give it under stages"):
            parse_experiment({**values, "stages": stages})


class TestEncoder:
    """What the pre-filter compares by, out of the part's folder."""

    @pytest.fixture
    def folder(self, prepared: Prepared, tmp_path: Path) -> Path:
        for file in Path(dict(prepared.parts)["sg2im"]).iterdir():
            if file.is_file():
                (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    def test_it_is_the_trained_one(self, folder: Path) -> None:
        weights = load_file(folder / "generator.safetensors")
        for name, value in open_graph_encoder(folder).state_dict().items():
            assert torch.equal(value, weights[f"encoder.{name}"])

    @pytest.mark.parametrize(
        ("file", "content", "said"),
        [
            ("generator.safetensors", None, "no weights of sg2im's graph encoder at"),
            ("generator.safetensors", b"nonsense", "part.json and the weights beside it are no sg2im"),
            ("generator.safetensors", b"", "part.json and the weights beside it are no sg2im"),
            ("part.json", None, "part.json and the weights beside it are no sg2im"),
            ("part.json", b"[]", "part.json and the weights beside it are no sg2im"),
            ("part.json", b"\xff", "part.json and the weights beside it are no sg2im"),
            ("part.json", b'{"model": {"memory_dim": 3}}', "part.json and the weights beside it are no sg2im"),
            ("part.json", b'{"model": {"graph_layers": 4}}', "part.json and the weights beside it are no sg2im"),
        ],
    )
    def test_a_damaged_folder_is_a_sentence(self, folder: Path, file: str, content: bytes | None, said: str) -> None:
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
        with pytest.raises(WeightsMissing, match=said) as error:
            open_graph_encoder(folder)
        assert "\n" not in str(error.value)


class Told:
    """Compares by the pictures' ids: what it was told of each portion."""

    def __init__(self, told: list[tuple[list[float], list[float]]]) -> None:
        self.told, self.seen = list(told), list[list[int]]()

    def compare(self, nets: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        self.seen.append(batch.image_ids.tolist())
        near, far = self.told.pop(0)
        return torch.tensor(near), torch.tensor(far)


class TestComparing:
    @pytest.fixture
    def split(self, prepared: Prepared) -> PreparedSplit:
        return replace(prepared.validation, candidates=None)

    def judge(self, part: Any, split: PreparedSplit, samples: int = 16) -> PartJudge:
        told: Any = SimpleNamespace(trainable=part, system="part")
        return PartJudge(told, split, samples, 3)

    def test_the_share_of_triplets_in_order(self, split: PreparedSplit) -> None:
        """Equal distances are half right; each picture is seen once, however many samples are asked for."""
        part = Told([([0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.3, 0.5])])
        verdict = self.judge(part, split)({})
        assert verdict.protocol == "triplets"
        assert verdict.figures["triplets/in-order"] == pytest.approx(2.5 / 4)
        assert verdict.figures["triplets_count/in-order"] == 4
        ids = split.open().image_ids.tolist()
        assert sorted(part.seen[0]) == sorted(ids) and len(ids) == 6 < 16
        # The interval is that of six pictures, not of four triplets: Wilson's by hand.
        share, count, z = 2.5 / 4, 6, 1.959964
        middle = (share + z * z / (2 * count)) / (1 + z * z / count)
        half = z * ((share * (1 - share) + z * z / (4 * count)) / count) ** 0.5 / (1 + z * z / count)
        low, high = (verdict.figures[f"triplets_{end}/in-order"] for end in ("low", "high"))
        assert [low, high] == pytest.approx([middle - half, middle + half], abs=1e-4)

    def test_portions_are_added_up(self, split: PreparedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("orchestration.evaluation.parts.BATCH", 4)
        part = Told([([0.0] * 3, [1.0] * 3), ([1.0], [0.0])])
        figures = self.judge(part, split)({}).figures
        assert figures["triplets/in-order"] == 0.75 and [len(seen) for seen in part.seen] == [4, 2]
        assert BATCH == 50

    def test_pictures_of_one_object_each_have_nothing_to_compare(self, split: PreparedSplit) -> None:
        with pytest.raises(RequestError, match="no held-out picture has two objects, so there is nothing to compare"):
            self.judge(Told([([], [])]), split)({})

    def test_the_trained_embedding_was_judged(self, prepared: Prepared) -> None:
        figures = json.loads((Path(dict(prepared.parts)["co_occurrence"]) / "figures.json").read_text())
        assert 0 <= figures["validation/triplets/in-order"] <= 1
        assert figures["validation/triplets_count/in-order"] > 6

    def test_graphs_that_were_not_prepared(self, split: PreparedSplit) -> None:
        with pytest.raises(RunError, match="no scene graphs were prepared for part: add graphs to what it reads"):
            self.judge(Told([]), replace(split, graphs=None))

    def test_one_object_a_picture(self, home: Home) -> None:
        """The part itself, on pictures where no two patches go together."""
        source = SCENES.replace("backgrounds=2,objects=2", "backgrounds=2,objects=1")
        chosen = retrievegan(**{"data.source": source}).stage("co_occurrence")
        prepared = prepare(chosen, home).everything()
        data: CaptionedPictures = prepared.validation.open()
        assert data.graphs is not None
        starts = np.arange(len(data) + 1)
        first = data.graphs.starts[:-1]
        alone = replace(
            data.graphs,
            starts=starts,
            boxes=data.graphs.boxes[first],
            numbers=data.graphs.numbers[first],
            link_starts=starts * 0,
            links=data.graphs.links[:0],
        )
        judge = PartJudge(chosen, prepared.validation, 16, 3)
        judge.data.graphs = alone
        nets = initial_state(chosen, torch.device("cpu"), prepared.given).nets
        with pytest.raises(RequestError, match="no held-out picture has two objects"):
            judge(nets)


def test_the_ground_truth_looks_as_the_bank_has_it(prepared: Prepared) -> None:
    """Cut otherwise, it would be told from the other candidates by that alone; in half precision too."""
    data = prepared.train.open()
    _, bank = opened(prepared.train)
    items = np.arange(len(data))
    batch = data.still(items, data.index.starts[items])
    assert batch.images is not None and batch.graphs is not None
    wanted = data.pictures.transform.normalise(bank.take(np.arange(len(bank))))
    assert wanted.std() > 0.3
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = own_patches(batch.images, flatten(batch.graphs), PATCH)
        # A level of 255 is 0.0175 of a deviation; pictures are rounded on the way, twice.
        assert found.dtype == torch.float32 and (found - wanted).abs().max() < 1.6 * 0.0175


def test_it_is_judged_on_the_data_of_its_patches(home: Home, tmp_path: Path) -> None:
    experiment, encoder = retrievegan(), GraphReader(tmp_path, NAMES)
    for source in (None, experiment.data.source):
        Evaluation(experiment, home, Request(source=source), encoder)
    with pytest.raises(RequestError, match=r"draws from patches of .*: judge it without --data"):
        Evaluation(experiment, home, Request(source="scenes:size=32"), encoder)
