"""TReCS as a system: what it is built from, how it paints, a run that trains nothing, and what its settings change."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.contract import Given, StageMissing
from models.registry import get_system
from models.spade import SpadeConfig
from models.trecs.config import TReCSConfig
from models.trecs.system import TReCS, misfit
from orchestration.config import Experiment
from orchestration.data.batches import CaptionedPictures, TrainingStream
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.judging import Verdict
from orchestration.prepared import Prepared
from orchestration.progress import Watcher
from orchestration.training import worker
from orchestration.training.recorder import METRICS, PICTURES, read_metrics
from orchestration.training.state import (
    TEXT,
    build_nets,
    checkpoint_folders,
    load_for_sampling,
    newest_checkpoint,
    open_checkpoint,
)
from orchestration.training.worker import CHECKPOINTS, OUTCOME, Job, Outcome, read_outcome, train_worker
from tests.tiny import CPU, data_for, small_pretrained_nets, some_conditions, tiny_experiment, tiny_given, tiny_job

SYSTEM = TReCS()


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    """One thread, small nets."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with small_pretrained_nets():
        yield
    torch.set_num_threads(before)


def refusal(**changes: object) -> str:
    with pytest.raises(RequestError) as caught:
        tiny_experiment("trecs", **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestParts:
    @pytest.mark.parametrize(
        ("changes", "stages"),
        [
            ({}, {"dual_encoder": "dual_encoder", "bert_on_hmm": "bert_tagger", "ccfpse": "ccfpse"}),
            ({"labeler": "bert_on_raw"}, ["dual_encoder", "bert_on_raw", "ccfpse"]),
            ({"labeler": "hmm", "generator": "spade"}, {"dual_encoder": "dual_encoder", "spade": "spade"}),
            ({"labeler": "raw"}, {"dual_encoder": "dual_encoder", "ccfpse": "ccfpse"}),
            # The picture's own label map needs neither words nor other pictures.
            ({"masks": "true_masks"}, {"ccfpse": "ccfpse"}),
            ({"masks": "true_masks", "labeler": "hmm", "generator": "spade"}, {"spade": "spade"}),
        ],
    )
    def test_by_settings(self, changes: dict[str, Any], stages: Any) -> None:
        found = SYSTEM.stages(TReCSConfig(**changes))
        assert list(found) == list(stages)
        assert not isinstance(stages, dict) or found == stages

    def test_nothing_is_learned(self) -> None:
        config = TReCSConfig()
        assert SYSTEM.optimizers(config) == {} and SYSTEM.phases(config) == [] and SYSTEM.text_dim(config) == 0
        [(name, average)] = SYSTEM.averages(config).items()
        assert name == "generator" and average.decay == 0

    def test_the_same_parts_whatever_is_composed(self) -> None:
        """Rows and trials share what they share."""
        base = tiny_experiment("trecs")
        changed = base.replace({"model.k": 50, "model.missing": "next", "narratives.tagger.transition_power": 3.0})
        assert changed.stage("ccfpse").identity == base.stage("ccfpse").identity
        assert base.stage("ccfpse").narratives is None
        # What reads narratives is told them alike.
        assert changed.stage("bert_on_hmm").narratives == changed.stage("dual_encoder").narratives == changed.narratives


class TestGenerator:
    @pytest.mark.parametrize("name", ["ccfpse", "spade"])
    def test_it_is_the_parts(self, name: str) -> None:
        """Its weights, its settings, its own way of sampling."""
        experiment = tiny_experiment("trecs", model__generator=name)
        given = tiny_given(experiment)
        nets = build_nets(experiment, given)
        trained = load_file(given.folders[name] / "generator.safetensors")
        found = nets["generator"].state_dict()
        assert nets.keys() == {"generator"} and found.keys() == trained.keys()
        assert all(value.equal(trained[key]) for key, value in found.items())
        assert not any(parameter.requires_grad for parameter in nets["generator"].parameters())

        conditions, seeds = some_conditions(experiment, 3), [4, 5, 6]
        part, system = experiment.stage(name), get_system(name)
        with torch.inference_mode():
            ours = get_system("trecs").sample(nets, experiment.model, conditions, seeds)
            theirs = system.sample(nets, part.model, conditions, seeds)
        assert ours.shape == (3, 3, 32, 32) and ours.equal(theirs)

    def test_without_z_every_seed_is_the_same_picture(self) -> None:
        changes = {"stages__ccfpse__model__use_vae": False, "stages__ccfpse__model__noise": "none"}
        experiment = tiny_experiment("trecs", **changes)
        nets, conditions = build_nets(experiment, tiny_given(experiment)), some_conditions(experiment, 2)
        first, other = (SYSTEM.sample(nets, experiment.model, conditions, seeds) for seeds in ([1, 2], [3, 4]))  # type: ignore[arg-type]
        assert first.equal(other) and not first[0].equal(first[1])

    def test_without_settings_it_is_the_published_one_at_the_resolution(self) -> None:
        with torch.device("meta"):
            nets = SYSTEM.build(TReCSConfig(resolution=128, generator="spade"))
        assert nets["generator"].config == SpadeConfig(resolution=128)
        assert all(tensor.is_meta for tensor in nets["generator"].state_dict().values())

    def test_what_is_missing(self) -> None:
        with pytest.raises(ValueError, match="trecs reads label maps but the data has 0 classes"):
            SYSTEM.build(TReCSConfig(resolution=32))
        small = {"spade": SpadeConfig(resolution=32, generator_channels=2, hidden_dim=2)}
        given = Given(classes=3, parts=small)
        with pytest.raises(StageMissing, match="generator comes from the trained stage 'spade', which was not given"):
            SYSTEM.build(TReCSConfig(resolution=32, generator="spade"), given)

    def test_pictures_of_another_size(self) -> None:
        experiment = tiny_experiment("trecs", model__resolution=64)
        parts = {name: stage.model for name, stage in experiment.stages.items()}
        sentence = misfit(experiment.model, parts)  # type: ignore[arg-type]
        assert sentence == (
            "model.resolution is 64 and stages.ccfpse.model.resolution is 32: label maps are composed as large as the "
            "generator paints, set both to the same"
        )
        with pytest.raises(RequestError, match="model.resolution is 64 and stages.ccfpse.model.resolution is 32"):
            build_nets(experiment, replace(tiny_given(tiny_experiment("trecs")), parts=parts))
        assert misfit(TReCSConfig(resolution=32), parts) is None and misfit(TReCSConfig(), {}) is None

    def test_a_tagger_of_other_labels(self) -> None:
        experiment = tiny_experiment("trecs", stages__bert_on_hmm__model__tags="raw")
        parts = {name: stage.model for name, stage in experiment.stages.items()}
        config = TReCSConfig(resolution=32)
        assert misfit(config, parts) == (
            "model.labeler is bert_on_hmm and stages.bert_on_hmm.model.tags is raw: set that to hmm"
        )
        for others in ({"labeler": "bert_on_raw"}, {"labeler": "hmm"}, {"masks": "true_masks"}):
            assert misfit(TReCSConfig(resolution=32, **others), parts) is None


class TestExperiments:
    def test_it_has_no_length(self) -> None:
        assert tiny_experiment("trecs").training.kimg == 0 and not tiny_experiment("trecs").learns
        assert refusal(training__kimg=0.5) == "trecs has nothing to train itself: set training.kimg to 0"
        assert refusal(training__kimg=-1).startswith("training.kimg: input should be greater than or equal to 0")

    def test_what_is_trained_has_one(self) -> None:
        with pytest.raises(RequestError) as caught:
            tiny_experiment("spade", training__kimg=0)
        assert str(caught.value) == "training.kimg is 0, and spade is trained: set it to a length greater than 0"
        told = refusal(stages__ccfpse__training__kimg=0)
        assert told == ("stages.ccfpse: training.kimg is 0, and ccfpse is trained: set it to a length greater than 0")

    def test_narratives_are_described(self) -> None:
        assert refusal(narratives=None) == "trecs reads narratives: say how they are made ready under narratives"

    @pytest.mark.parametrize("change", [{"model.k": 7}, {"model.labeler": "hmm"}, {"model.place": "centred"}])
    def test_what_is_composed_is_read(self, change: dict[str, Any]) -> None:
        """A trial with another k must not paint the canvases of the campaign."""
        base = tiny_experiment("trecs")
        assert base.replace(change).reads_as != base.reads_as
        assert base.replace({"training.seed": 9}).reads_as == base.reads_as
        xmcgan = tiny_experiment("xmcgan")
        assert xmcgan.replace({"model.lambda_1": 3.0}).reads_as == xmcgan.reads_as


class FixedJudge:
    verdicts = 0

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, nets: object) -> Verdict:
        FixedJudge.verdicts += 1
        return Verdict("fixed", {"fid/fixed": float(FixedJudge.verdicts)}, 2)


class TestRun:
    """At 0 images all of it is there: a grid, a verdict, a checkpoint."""

    @pytest.fixture
    def job(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
        def never(self: TrainingStream, *_: object) -> None:
            raise AssertionError("nothing is trained, and a batch was loaded")

        monkeypatch.setattr(TrainingStream, "_load", never)
        monkeypatch.setattr(worker, "make_judge", FixedJudge)
        monkeypatch.setattr(FixedJudge, "verdicts", 0)
        return tiny_job(tmp_path, tiny_experiment("trecs"), protocol="fixed")

    def test_it_draws_is_judged_and_kept(self, job: Job) -> None:
        told: list[dict[str, float]] = []
        folder = Path(job.folder)
        assert train_worker(job, lambda figures: told.append(dict(figures)), CPU) == Outcome("finished", "", 0)
        assert read_outcome(folder) == Outcome("finished", "", 0)
        assert [line["metrics"] for line in read_metrics(folder)] == [{"validation/fid/fixed": 1.0}, {"finished": 1.0}]
        assert told == [{"validation/fid/fixed": 1.0, "finished": 1.0, "kimg": 0.0, "checkpoint_kimg": 0.0}]
        assert [grid.name for grid in (folder / PICTURES).iterdir()] == ["kimg-000000.000.png"]
        [checkpoint] = map(open_checkpoint, checkpoint_folders(folder / CHECKPOINTS))
        names = {file.name for file in checkpoint.folder.glob("*.safetensors")}
        assert checkpoint.images_seen == 0 and names == {"average_generator.safetensors"}

    def test_its_checkpoint_paints_by_itself(self, job: Job) -> None:
        """Without the folder of the part."""
        train_worker(job, lambda _: None, CPU)
        checkpoint = newest_checkpoint(Path(job.folder) / CHECKPOINTS)
        assert checkpoint is not None and (checkpoint.folder / TEXT).is_dir()
        nets = load_for_sampling(checkpoint, CPU)
        conditions = some_conditions(job.experiment, 2)
        trained = build_nets(job.experiment, tiny_given(job.experiment))
        drawn = [SYSTEM.sample(found, job.experiment.model, conditions, [1, 2]) for found in (nets, trained)]  # type: ignore[arg-type]
        assert drawn[0].equal(drawn[1])

    def test_again_it_adds_nothing(self, job: Job) -> None:
        first, folder = train_worker(job, lambda _: None, CPU), Path(job.folder)
        before = (folder / METRICS).read_bytes()
        digest = newest_checkpoint(folder / CHECKPOINTS).digest  # type: ignore[union-attr]
        (folder / OUTCOME).unlink()
        assert train_worker(job, lambda _: None, CPU) == first
        assert (folder / METRICS).read_bytes() == before and FixedJudge.verdicts == 1
        assert newest_checkpoint(folder / CHECKPOINTS).digest == digest  # type: ignore[union-attr]

    def test_a_lost_checkpoint_comes_back(self, job: Job) -> None:
        """Its record says finished at 0 images, which no lost checkpoint takes back."""
        train_worker(job, lambda _: None, CPU)
        folder = Path(job.folder)
        digest = newest_checkpoint(folder / CHECKPOINTS).digest  # type: ignore[union-attr]
        shutil.rmtree(folder / CHECKPOINTS)
        (folder / OUTCOME).unlink()
        train_worker(job, lambda _: None, CPU)
        assert newest_checkpoint(folder / CHECKPOINTS).digest == digest  # type: ignore[union-attr]
        assert [line["metrics"] for line in read_metrics(folder)] == [{"validation/fid/fixed": 1.0}, {"finished": 1.0}]

    def test_a_stretch_of_nothing_is_the_whole(self, job: Job) -> None:
        stretch = Job.from_json(json.loads(json.dumps(replace(job, until_kimg=0.0).to_json())))
        assert stretch.whole and train_worker(stretch, lambda _: None, CPU).status == "finished"

    def test_no_bar_of_no_length(self, tmp_path: Path) -> None:
        told: list[tuple[object, ...]] = []
        (tmp_path / METRICS).write_text('{"images": 0, "kimg": 0.0, "time": 1.0, "metrics": {"a": 1.0}}\n')
        with Watcher(tmp_path, 0.0, lambda *what: told.append(what), every_s=0.001) as watcher:
            watcher._thread.join(0.05) if watcher._thread.is_alive() else None
        assert told == []


class TestData:
    """What is read of captions: tagged words, and canvases in the place of label maps."""

    @staticmethod
    def whole(experiment: Experiment) -> CaptionedPictures:
        from tests.tiny import _whole_data

        return _whole_data(experiment)

    def test_a_caption_has_its_own(self) -> None:
        data = data_for(tiny_experiment("trecs"))
        items = np.array([0, 3, 3], np.int64)
        captions = np.array([data.index.starts[0], data.index.starts[3], data.index.starts[4] - 1], np.int64)
        assert data.canvases is not None and data.labels is None
        for batch in (data.without_pixels(items, captions), data.still(items, captions)):
            assert batch.labels is not None and batch.labels.labels.equal(data.canvases.take(captions).labels)
            assert batch.tagged is None

    def test_canvases_come_before_label_maps(self) -> None:
        whole = self.whole(tiny_experiment("trecs"))
        assert whole.canvases is not None and whole.labels is not None and whole.tagged is not None
        items, captions = np.array([1], np.int64), whole.index.starts[1:2]
        batch = whole.still(items, captions)
        assert batch.labels is not None and batch.labels.labels.equal(whole.canvases.take(captions).labels)
        assert not batch.labels.labels.equal(whole.labels.take(items).labels)
        assert batch.tagged is not None and batch.tagged.pieces.equal(whole.tagged.take(captions).pieces)

    def test_training_has_those_of_its_captions(self) -> None:
        whole = self.whole(tiny_experiment("trecs"))
        assert whole.canvases is not None and whole.tagged is not None and whole.tokens is not None
        batch = TrainingStream(whole, 5).batch(0, 16)
        assert batch.labels is not None and batch.tagged is not None
        items = [whole.image_ids.tolist().index(image_id) for image_id in batch.image_ids.tolist()]
        chosen = set()
        for row, item in enumerate(items):
            own = np.arange(whole.index.starts[item], whole.index.starts[item + 1])
            maps = whole.canvases.take(own).labels
            same = [place for place, shown in zip(own, maps, strict=True) if shown.equal(batch.labels.labels[row])]
            chosen.add(len(own) > 1 and same[0] != own[0])
            told = whole.tagged.take(np.array(same[:1], np.int64))
            count = int(told.counts[0])
            assert int(batch.tagged.counts[row]) == count
            assert batch.tagged.pieces[row, :count].equal(told.pieces[0, :count])
        assert True in chosen  # not always the first caption

    @pytest.mark.parametrize("name", ["tagged words", "canvases"])
    def test_of_other_data(self, name: str) -> None:
        whole = self.whole(tiny_experiment("trecs"))

        class Fewer:
            def __len__(self) -> int:
                return len(whole.index.texts) - 1

            def take(self, captions: object) -> Any:
                raise AssertionError("nothing is taken")

        fewer: Any = Fewer()
        stored = {"tagged": fewer} if name == "tagged words" else {"canvases": fewer}
        with pytest.raises(RunError, match=f"captions and {name} were prepared from different data"):
            CaptionedPictures(whole.pictures, whole.index, **stored)

    def test_a_prepared_split_opens_them(self, tmp_path: Path) -> None:
        job = tiny_job(tmp_path, tiny_experiment("trecs"))
        prepared = Prepared.from_json(json.loads(json.dumps(job.prepared.to_json())))
        assert prepared == job.prepared and prepared.given.class_names == ("cat", "dog", "grass")
        opened, held = prepared.train.open(), data_for(job.experiment)
        captions = np.arange(len(held.index.texts), dtype=np.int64)
        assert opened.canvases is not None and held.canvases is not None and opened.tagged is None
        maps, wanted = opened.canvases.take(captions), held.canvases.take(captions)
        assert maps.labels.equal(wanted.labels) and maps.instances.equal(wanted.instances)
        tagger = tiny_job(tmp_path / "tagger", tiny_experiment("bert_tagger")).prepared.train.open()
        words, told = tagger.tagged, data_for(tiny_experiment("bert_tagger")).tagged
        assert words is not None and told is not None and tagger.canvases is None
        assert _same(words.take(captions), told.take(captions))


def _same(ours: Any, theirs: Any) -> bool:
    pairs: list[tuple[Tensor, Tensor]] = [
        (getattr(ours, name), getattr(theirs, name)) for name in ("pieces", "counts", "first", "labels")
    ]
    return all(one.equal(other) for one, other in pairs)
