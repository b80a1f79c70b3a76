"""What is made ready before training: text features equal the encoder's, and nothing is computed twice."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.encoders.image import PretrainedImageSettings
from models.encoders.text import TextEncoder, TextEncoderSettings
from orchestration import requirements as requirements_module
from orchestration.config import Experiment
from orchestration.data import picture_files
from orchestration.data.coco import read_coco
from orchestration.data.features import (
    CaptionFeatures,
    CaptionIndex,
    check_encodable,
    open_caption_features,
    open_caption_index,
    write_caption_features,
    write_caption_index,
)
from orchestration.data.records import Dataset
from orchestration.errors import RequestError
from orchestration.evaluation import scenes_net
from orchestration.home import Home
from orchestration.painter import Painter
from orchestration.preparation import Preparation
from orchestration.prepared import Prepared, PreparedSplit
from orchestration.recipes import get_recipe
from orchestration.requirements import require
from orchestration.stages import Progress, quiet
from orchestration.training.state import Provenance, initial_state, load_for_sampling, open_checkpoint, save_checkpoint
from tests.tiny_inputs import CAPTIONS, TINY_DIM, write_tiny_bert, write_tiny_coco

SCENES = "scenes:size=32,things=3,colours=3,backgrounds=2,objects=1,train=8,val=8,test=8"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_coco(tmp_path_factory.mktemp("coco") / "root")


@pytest.fixture
def experiment(bert: Path, coco: Path) -> Experiment:
    return get_recipe("xmcgan_scenes32").replace(
        {
            "data.source": f"coco:{coco}",
            "text.name": str(bert),
            "model.text_dim": TINY_DIM,
            "model.channels": 2,
            "model.noise_dim": 4,
            "model.sentence_dim": 4,
            "evaluation.protocol": "none",
        }
    )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the expensive things were done."""
    calls = {"encode": 0, "decode": 0, "judge": 0}

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        return wrapped

    monkeypatch.setattr(TextEncoder, "forward", counting("encode", TextEncoder.forward))
    monkeypatch.setattr(picture_files, "decode", counting("decode", picture_files.decode))
    monkeypatch.setattr(scenes_net, "train_judge", counting("judge", scenes_net.train_judge))
    return calls


def tree(folder: Path) -> dict[str, int]:
    """Every file that is no lock, with the time of its last change."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def features_of(split: PreparedSplit) -> CaptionFeatures:
    found = split.open().features
    assert found is not None
    return found


def write_captions(dataset: Dataset, encoder: TextEncoder, folder: Path, progress: Progress = quiet) -> None:
    """The index and the features, in one folder."""
    write_caption_index(dataset, folder)
    write_caption_features(open_caption_index(folder), encoder, folder, progress)


class TestFeatures:
    @pytest.fixture(scope="class")
    def encoder(self, bert: Path) -> TextEncoder:
        return TextEncoder(TextEncoderSettings(name=str(bert), max_tokens=20, sentence="mean"), bert / "unused")

    @pytest.fixture(scope="class")
    def train(self, coco: Path) -> Dataset:
        return read_coco(coco, "train")

    @pytest.fixture
    def written(self, train: Dataset, encoder: TextEncoder, tmp_path: Path) -> CaptionFeatures:
        write_captions(train, encoder, tmp_path)
        return open_caption_features(tmp_path)

    @pytest.fixture
    def index(self, written: CaptionFeatures, tmp_path: Path) -> CaptionIndex:
        return open_caption_index(tmp_path)

    def test_they_equal_the_encoders(self, written: CaptionFeatures, index: CaptionIndex, encoder: TextEncoder) -> None:
        texts = [text for group in CAPTIONS["train"] for text in group]
        assert list(index.texts) == texts
        assert written.dim == TINY_DIM
        direct, stored = encoder(texts), written.take(np.arange(len(texts)))
        assert torch.equal(stored.lengths, direct.lengths)
        assert torch.allclose(stored.sentence, direct.sentence, atol=1e-5)
        longest = int(direct.lengths.max())
        assert stored.words.shape == (len(texts), longest, TINY_DIM)
        there = ~direct.padding()[:, :longest, None]
        # Half precision keeps 11 bits.
        assert torch.allclose(stored.words, direct.words[:, :longest] * there, rtol=2**-10, atol=1e-3)
        assert (stored.words[stored.padding()] == 0).all()
        assert (stored.words[~stored.padding()] != 0).any()

    def test_each_image_owns_its_captions(self, index: CaptionIndex, train: Dataset) -> None:
        assert index.image_ids.tolist() == [record.image_id for record in train.records]
        # COCO has no classes: only an image's own captions are never wrong ones.
        assert index.class_ids.tolist() == index.image_ids.tolist()
        for item, group in enumerate(CAPTIONS["train"]):
            assert index.texts[index.starts[item] : index.starts[item + 1]] == tuple(group)

    def test_published_classes_are_kept(self, train: Dataset, tmp_path: Path) -> None:
        records = [replace(record, class_id=7) for record in train.records]
        write_caption_index(replace(train, records=tuple(records)), tmp_path)
        assert open_caption_index(tmp_path).class_ids.tolist() == [7, 7, 7]

    def test_a_text_is_stored_once(self, written: CaptionFeatures, index: CaptionIndex) -> None:
        assert len(index.texts) == 5 and len(written.sentence) == 4
        first, again = (place for place, text in enumerate(index.texts) if text == "a red house")
        assert written.rows[first] == written.rows[again]
        assert len(written.words) == written.offsets[-1]

    def test_rows_are_in_an_order_that_every_process_finds(self, encoder: TextEncoder, tmp_path: Path) -> None:
        texts = [f"a {letter}{other} fish" for letter in "zyxw" for other in "dcba"]
        dataset = read_coco(write_tiny_coco(tmp_path / "coco", {"train": (texts,)}), "train")
        write_captions(dataset, encoder, tmp_path)
        rows = open_caption_features(tmp_path).rows
        assert [texts[caption] for caption in np.argsort(rows)] == sorted(texts)

    def test_progress_ends_at_all(self, train: Dataset, encoder: TextEncoder, tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        write_captions(train, encoder, tmp_path, lambda *report: told.append(report))
        assert told[-1] == ("text features", 4, 4)

    @settings(max_examples=40, deadline=None)
    @given(
        lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
        choice=st.lists(st.integers(0, 5), min_size=1, max_size=8),
        seed=st.integers(0, 99),
    )
    def test_any_captions_in_any_order(self, lengths: list[int], choice: list[int], seed: int) -> None:
        random = np.random.default_rng(seed)
        count, width = len(lengths), 3
        offsets = np.cumsum([0, *lengths])
        words = random.standard_normal((offsets[-1], width)).astype(np.float16)
        sentence = random.standard_normal((count, width)).astype(np.float32)
        rows = random.permutation(count)
        features = CaptionFeatures(rows, offsets, words, sentence)
        wanted = np.array([index % count for index in choice])
        taken = features.take(wanted)
        assert taken.words.shape == (len(wanted), max(lengths), width)
        for place, caption in enumerate(wanted):
            row = rows[caption]
            own = torch.from_numpy(words[offsets[row] : offsets[row + 1]].astype(np.float32))
            assert taken.lengths[place] == len(own) == lengths[row]
            assert torch.equal(taken.words[place, : len(own)], own)
            assert not taken.words[place, len(own) :].any()
            assert torch.equal(taken.sentence[place], torch.from_numpy(sentence[row]))

    @pytest.mark.parametrize("damage", ["gone", "cut", "no text"])
    def test_damaged_ones_are_a_sentence(
        self, train: Dataset, encoder: TextEncoder, tmp_path: Path, damage: str
    ) -> None:
        write_captions(train, encoder, tmp_path)
        if damage == "gone":
            (tmp_path / "rows.npy").unlink()
        elif damage == "cut":
            words = tmp_path / "words.npy"
            words.write_bytes(words.read_bytes()[:-100])
        else:
            (tmp_path / "captions.json").write_text("[")
        with pytest.raises(RequestError, match="delete that folder and repeat"):
            open_caption_features(tmp_path)
            open_caption_index(tmp_path)

    def test_an_array_that_would_unpickle_is_refused(
        self, train: Dataset, encoder: TextEncoder, tmp_path: Path
    ) -> None:
        write_captions(train, encoder, tmp_path)
        np.save(tmp_path / "rows.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
        with pytest.raises(RequestError, match="cannot be read"):
            open_caption_features(tmp_path)

    def test_an_empty_caption_is_named(self) -> None:
        check_encodable(["a", "b"])
        with pytest.raises(RequestError, match="caption 1 is empty"):
            check_encodable(["a", " \n"])


class TestStages:
    def test_the_second_time_nothing_is_computed(
        self, experiment: Experiment, home: Home, counted: dict[str, int]
    ) -> None:
        first = Preparation(experiment, home).everything()
        assert counted == {"encode": 2, "decode": 5, "judge": 0}
        before = tree(home.stages)
        told: list[str] = []
        again = Preparation(experiment, home, lambda what, done, total: told.append(what)).everything()
        assert again == first
        assert counted == {"encode": 2, "decode": 5, "judge": 0} and not told
        assert tree(home.stages) == before

    def test_what_does_not_matter_makes_no_new_stage(
        self, experiment: Experiment, home: Home, counted: dict[str, int]
    ) -> None:
        first = Preparation(experiment, home).everything()
        changes = {"model.tau": 0.3, "training.seed": 5, "training.kimg": 1, "resources.workers": 2}
        assert Preparation(experiment.replace(changes), home).everything() == first
        assert counted["encode"] == 2 and counted["decode"] == 5

    def test_other_tokens_make_other_features_of_the_same_pictures(self, experiment: Experiment, home: Home) -> None:
        first = Preparation(experiment, home).everything().train
        second = Preparation(experiment.replace({"text.max_tokens": 5}), home).everything().train
        assert first.pictures == second.pictures
        assert first.features != second.features
        assert tuple(features_of(split).longest for split in (first, second)) == (8, 5)

    def test_another_resolution_makes_other_pictures_of_the_same_features(
        self, experiment: Experiment, home: Home
    ) -> None:
        first = Preparation(experiment, home).everything().train
        second = Preparation(experiment.replace({"model.resolution": 64}), home).everything().train
        assert first.features == second.features
        assert first.pictures != second.pictures
        assert second.open().pixels(np.arange(2)).shape == (2, 3, 64, 64)

    def test_changed_data_are_seen(self, experiment: Experiment, home: Home, coco: Path, tmp_path: Path) -> None:
        first = Preparation(experiment, home).everything()
        changed = Path(shutil.copytree(coco, tmp_path / "changed"))
        captions = changed / "annotations" / "captions_train2017.json"
        captions.write_text(captions.read_text().replace("a blue fish", "a green fish"))
        second = Preparation(experiment.replace({"data.source": f"coco:{changed}"}), home).everything()
        assert second.train.features != first.train.features
        assert second.provenance.data_digest != first.provenance.data_digest
        assert second.validation.features == first.validation.features

    def test_a_damaged_stage_is_refused_by_name(
        self, experiment: Experiment, home: Home, counted: dict[str, int]
    ) -> None:
        first = Preparation(experiment, home).everything()
        folder = Path(str(first.train.features))
        words = folder / "words.npy"
        whole = words.read_bytes()
        words.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(RequestError, match=rf"words\.npy is not what was written.*t2i stages drop {folder.name}"):
            Preparation(experiment, home).everything()
        assert counted["encode"] == 2
        shutil.rmtree(folder)
        assert Preparation(experiment, home).everything() == first
        assert words.read_bytes() == whole
        assert counted["encode"] == 3

    def test_it_crosses_processes_as_json(self, experiment: Experiment, home: Home) -> None:
        prepared = Preparation(experiment, home).everything()
        assert Prepared.from_json(json.loads(json.dumps(prepared.to_json()))) == prepared

    def test_a_broken_picture_leaves_no_stage(
        self, experiment: Experiment, home: Home, coco: Path, tmp_path: Path
    ) -> None:
        broken = Path(shutil.copytree(coco, tmp_path / "broken"))
        picture = broken / "train2017" / "000000000002.png"
        picture.write_bytes(picture.read_bytes()[:200])
        with pytest.raises(RequestError, match=r"000000000002\.png is cut short"):
            Preparation(experiment.replace({"data.source": f"coco:{broken}"}), home).everything()
        assert not list(home.stages.glob("pictures-*"))
        # Locks stay, and so do the shards that were finished: the next run goes on from them.
        assert all(path.name.endswith(("-begun", ".lock")) for path in home.stages.glob(".pictures-*"))


class TestLabels:
    def test_scenes_have_them(self, experiment: Experiment, home: Home) -> None:
        scenes = experiment.replace({"data.source": SCENES})
        preparation = Preparation(scenes, home)
        dataset = preparation.dataset("val")
        split = preparation.split(dataset)
        assert split.labels is not None
        labels = json.loads((Path(split.labels) / "labels.json").read_text())
        assert labels.keys() == {str(record.image_id) for record in dataset.records}
        for record in dataset.records:
            background, colour, thing = labels[str(record.image_id)]
            assert record.captions and record.graph
            assert background.startswith("stuff ")
            assert colour in record.captions[0].text.lower() and thing in record.captions[0].text.lower()

    def test_photographs_have_none(self, experiment: Experiment, home: Home) -> None:
        prepared = Preparation(experiment, home).everything()
        assert prepared.train.labels is None and prepared.judge is None and prepared.protocol == "none"

    @pytest.fixture
    def small_judge(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scenes_net, "TRAIN_IMAGES", 70)
            patch.setattr(scenes_net, "HELD_OUT_IMAGES", 10)
            patch.setattr(scenes_net, "EPOCHS", 1)
            yield

    def test_the_judge_is_trained_once_for_all_experiments_on_these_scenes(
        self, experiment: Experiment, home: Home, counted: dict[str, int], small_judge: None
    ) -> None:
        scenes = experiment.replace({"data.source": SCENES, "evaluation.protocol": "auto"})
        first = Preparation(scenes, home).everything()
        # Other pictures of the same classes, another text encoder setting, another net.
        other = scenes.replace({"data.source": SCENES.replace("train=8", "train=9"), "model.tau": 0.2})
        second = Preparation(other, home).everything()
        assert first.protocol == "scenes-net" and first.judge is not None
        assert second.judge == first.judge
        assert second.train.pictures != first.train.pictures
        assert counted["judge"] == 1


class TestRefusals:
    """All of them come before any stage is made."""

    @pytest.fixture(autouse=True)
    def nothing_was_made(self, home: Home) -> Iterator[None]:
        yield
        assert not home.stages.exists()

    def test_a_text_encoder_that_is_not_there(self, experiment: Experiment, home: Home, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"text\.name: there is no folder"):
            Preparation(experiment.replace({"text.name": str(tmp_path / "none")}), home).everything()

    def test_a_text_encoder_of_another_width(self, experiment: Experiment, home: Home) -> None:
        with pytest.raises(RequestError, match=rf"add --set model\.text_dim={TINY_DIM}"):
            Preparation(experiment.replace({"model.text_dim": 99}), home).everything()

    def test_an_image_net_that_is_not_there(self, experiment: Experiment, home: Home) -> None:
        wanted = experiment.replace({"model.image_losses": "both", "model.pretrained.name": "vgg19"})
        with pytest.raises(RequestError, match=r"model\.pretrained: vgg19 needs its ImageNet weights"):
            Preparation(wanted, home).everything()

    def test_a_judge_of_photographs_that_is_not_there(
        self, experiment: Experiment, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(net: PretrainedImageSettings) -> Path:
            raise requirements_module.WeightsMissing(f"{net.name} is not installed")

        monkeypatch.setattr(requirements_module, "find_weights", missing)
        with pytest.raises(RequestError, match="efficientnet-lite0 is not installed, or set it to none"):
            Preparation(experiment.replace({"evaluation.protocol": "auto"}), home).everything()

    def test_data_without_captions(self, experiment: Experiment, home: Home, coco: Path) -> None:
        bare = replace(read_coco(coco, "train"), carries=frozenset({"images", "boxes"}))
        with pytest.raises(RequestError, match=r"needs captions, which .* does not carry; it carries boxes, images"):
            require(experiment, bare)

    def test_a_split_that_is_not_there(self, experiment: Experiment, home: Home) -> None:
        with pytest.raises(RequestError, match="has no split 'dev'"):
            Preparation(experiment.replace({"data.validation_split": "dev"}), home).everything()


class TestPainter:
    @pytest.fixture
    def checkpoint(self, experiment: Experiment, home: Home, tmp_path: Path) -> Path:
        digest = Preparation(experiment, home).encoder.digest
        state = initial_state(experiment, torch.device("cpu"))
        return save_checkpoint(state, experiment, Provenance("d" * 64, digest), tmp_path / "run" / "checkpoints")

    def test_it_draws_what_was_trained_on_stored_features(
        self, experiment: Experiment, home: Home, checkpoint: Path
    ) -> None:
        """Stored features are padded with zeros to the split's longest caption, fresh ones to max_tokens."""
        data = Preparation(experiment, home).everything().train.open()
        painter = Painter.load(checkpoint, home.root)
        fresh = painter.draw_float(list(data.index.texts), list(range(5)))
        nets = load_for_sampling(open_checkpoint(checkpoint), torch.device("cpu"))
        conditions = data.without_pixels(data.index.starts.searchsorted(np.arange(5), side="right") - 1, np.arange(5))
        with torch.inference_mode():
            stored = experiment.get_system().sample(nets, experiment.model, conditions, list(range(5)))
        assert torch.allclose(fresh, stored, atol=5e-3)
        assert fresh.std() > 0.01

    def test_a_prompt_and_a_seed_are_one_picture(self, home: Home, checkpoint: Path) -> None:
        painter = Painter.load(checkpoint, home.root)
        prompts, seeds = ["a red house", "a red house", "a blue fish"], [1, 2, 1]
        together = painter.draw(prompts, seeds)
        assert together.shape == (3, 32, 32, 3) and together.dtype == np.uint8
        assert not np.array_equal(together[0], together[1])
        alone = painter.draw(prompts[:1], seeds[:1])
        assert np.abs(alone[0].astype(int) - together[0]).max() <= 1

    def test_a_low_truncation_makes_seeds_agree(self, home: Home, checkpoint: Path) -> None:
        painter = Painter.load(checkpoint, home.root)
        one, other = (
            [painter.draw_float(["a red house"], [seed], limit) for limit in (None, 1e3, 0.5, 0.01)] for seed in (1, 2)
        )
        apart = [float((mine - theirs).abs().mean()) for mine, theirs in zip(one, other, strict=True)]
        assert one[0].equal(painter.draw_float(["a red house"], [1])) and painter.probes is None
        assert torch.allclose(one[1], one[0], atol=1e-5) and apart[3] < 0.1 * apart[2] < 0.09 * apart[0]

    def test_an_empty_prompt(self, home: Home, checkpoint: Path) -> None:
        with pytest.raises(RequestError, match="caption 1 is empty"):
            Painter.load(checkpoint, home.root).draw(["a", ""], [0, 0])

    def test_another_text_encoder(self, home: Home, bert: Path, checkpoint: Path) -> None:
        weights = bert / "model.safetensors"
        kept = weights.read_bytes()
        try:
            write_tiny_bert(bert, seed=1)
            with pytest.raises(RequestError, match="install the same weights"):
                Painter.load(checkpoint, home.root)
        finally:
            weights.write_bytes(kept)
        Painter.load(checkpoint, home.root)
