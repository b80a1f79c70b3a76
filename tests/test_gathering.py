"""Gathering: every training picture is looked at once with all its captions, and a pass that was stopped goes on."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.contract import Batch, Given, RegionStore, StageMissing
from models.cpgan.memory import Memory
from orchestration import gathering
from orchestration.data.batches import CaptionedPictures
from orchestration.data.features import CaptionTokens
from orchestration.data.vocabulary import Vocabulary, load_vocabulary
from orchestration.errors import RequestError, RunError
from orchestration.gathering import UNREAD, write_gathered
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.prepared import PreparedSplit
from orchestration.stages import quiet
from tests.region_support import captioner, prepare, write_own
from tests.tiny import tiny_data, write_split

BLOCK, IMAGES = 10, 24


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Diary:
    """A gathered part that notes what it is shown."""

    name = "diary"
    Config: Any = None

    def __init__(self, fail_at: int = 10**9, fault: Exception | None = None) -> None:
        self.shown: list[Batch] = []
        self.fail_at, self.fault, self.seen = fail_at, fault, list[dict[str, list[Any]]]()

    def build(self, config: Any, given: Given) -> dict[str, nn.Module]:
        if config.missing:
            raise StageMissing("the captioner was not given")
        return {"net": nn.Dropout()}

    def look(self, nets: Any, config: Any, batch: Batch, items: Tensor) -> dict[str, Tensor]:
        assert not nets["net"].training and torch.is_inference_mode_enabled()
        assert batch.tokens is not None and batch.regions is not None and batch.images is None
        if int(items.max()) >= self.fail_at:
            raise RunError("stopped")
        self.shown.append(batch)
        # Two rows a caption.
        return {
            "items": items.repeat_interleave(2),
            "ids": batch.image_ids.repeat_interleave(2),
            "words": batch.tokens.ids[:, :2].reshape(-1),
            "counts": batch.regions.counts.repeat_interleave(2),
        }

    def gather(
        self, config: Any, words: int, seen: Iterable[Mapping[str, Tensor]], regions: RegionStore
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        if self.fault:
            raise self.fault
        self.seen = [{name: column.tolist() for name, column in portion.items()} for portion in seen]
        rows = torch.tensor([len(portion["items"]) for portion in self.seen])
        taken = regions.take(torch.tensor([3]), torch.tensor([0]))
        return {"rows": rows, "taken": taken.T}, {"words": float(words)}


@pytest.fixture
def split(tmp_path: Path) -> PreparedSplit:
    """Tiny pictures of one to three captions, with regions."""
    whole = tiny_data(images=IMAGES)
    data = CaptionedPictures(whole.pictures, whole.index, None, whole.tokens)
    written = write_split(tmp_path / "data", data)
    write_own(tmp_path / "data" / "regions", data.image_ids)
    return replace(written, regions=str(tmp_path / "data" / "regions"))


def gather(
    monkeypatch: pytest.MonkeyPatch, folder: Path, split: PreparedSplit, part: Diary, missing: bool = False
) -> dict[str, Any]:
    monkeypatch.setattr(gathering, "get_gathered", lambda name: part)
    monkeypatch.setattr(gathering, "BLOCK", BLOCK)
    monkeypatch.setattr(gathering, "LOOK_BATCH", 7)
    folder.mkdir(exist_ok=True)
    config: Any = SimpleNamespace(missing=missing)
    write_gathered(folder, "diary", config, Given(), split, "figures.json", quiet)
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return figures


def test_every_picture_is_seen_once_with_all_its_captions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, split: PreparedSplit
) -> None:
    part, data = Diary(), split.open()
    figures = gather(monkeypatch, tmp_path / "made", split, part)
    assert data.tokens is not None and data.regions is not None
    assert figures == {"words": len(data.tokens.vocabulary), UNREAD: 0}
    assert len(part.seen) == 3 and max(len(batch.image_ids) for batch in part.shown) == 7
    whole = {name: np.concatenate([portion[name] for portion in part.seen])[::2] for name in part.seen[0]}
    owners = np.repeat(np.arange(IMAGES), np.diff(data.index.starts))
    assert whole["items"].tolist() == owners.tolist()
    assert whole["ids"].tolist() == data.image_ids[owners].tolist()
    # The first words of long captions: nothing is drawn.
    first = [data.tokens.vocabulary.encode(text)[0] for text in data.index.texts]
    assert whole["words"].tolist() == first
    assert whole["counts"].tolist() == (owners % 4).tolist()
    assert all(max(portion["items"]) < BLOCK * (place + 1) for place, portion in enumerate(part.seen))
    kept = load_file(tmp_path / "made" / "diary.safetensors")
    assert kept["rows"].tolist() == [len(portion["items"]) for portion in part.seen]
    assert kept["taken"][:, 0].tolist() == np.load(str(split.regions) + "/features.npy")[3, 0].tolist()
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"diary.safetensors", "figures.json"}


def test_one_that_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, split: PreparedSplit) -> None:
    gather(monkeypatch, tmp_path / "whole", split, Diary())
    with pytest.raises(RunError, match="stopped"):
        gather(monkeypatch, tmp_path / "stopped", split, Diary(fail_at=20))
    again = Diary()
    gather(monkeypatch, tmp_path / "stopped", split, again)
    assert min(int(batch.image_ids.min()) for batch in again.shown) == 100 + 7 * 20
    for name in ("diary.safetensors", "figures.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("forgotten", ["number", None])
def test_captions_without_a_known_word_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, split: PreparedSplit, forgotten: str | None
) -> None:
    """And with no caption left in a block, or at all."""
    words = ["number"] if forgotten is None else ["of", "all", "captions"]
    known = Vocabulary(("<end>", *words))
    data = split.open()
    tokens = CaptionTokens(data.index, known, 4, "random")
    monkeypatch.setattr(PreparedSplit, "open", lambda self: replace_tokens(data, tokens))
    texts = list(data.index.texts)
    if forgotten is None:
        texts[data.index.starts[10] : data.index.starts[20]] = ["sea"] * (data.index.starts[20] - data.index.starts[10])
        data.index = replace(data.index, texts=tuple(texts))
        tokens = CaptionTokens(data.index, known, 4, "random")
    part = Diary()
    figures = gather(monkeypatch, tmp_path / "made", split, part)
    silent = sum(not len(known.encode(text)) for text in texts)
    assert figures[UNREAD] == silent > 0
    assert sum(len(batch.image_ids) for batch in part.shown) == len(texts) - silent
    assert len(part.seen) == (2 if forgotten is None else 3)


def replace_tokens(data: Any, tokens: CaptionTokens) -> Any:
    data.tokens = tokens
    return data


def test_what_cannot_be_gathered_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, split: PreparedSplit
) -> None:
    empty = Diary(fault=ValueError("nothing was seen"))
    with pytest.raises(RequestError, match="^diary cannot be gathered: nothing was seen$"):
        gather(monkeypatch, tmp_path / "empty", split, empty)
    with pytest.raises(RequestError, match="^the captioner was not given$"):
        gather(monkeypatch, tmp_path / "missing", split, Diary(), missing=True)


class TestMemoryStage:
    """CPGAN's memory, on a detector and a captioner that learned little."""

    @pytest.fixture(scope="class")
    def home(self, tmp_path_factory: pytest.TempPathFactory) -> Home:
        return Home(tmp_path_factory.mktemp("home"))

    @pytest.fixture(scope="class")
    def preparation(self, home: Home) -> Preparation:
        return prepare(captioner(**{"regions.count": 3}), home)

    def test_it_is_what_one_look_at_everything_gives(self, preparation: Preparation) -> None:
        folder, below = preparation.part("memory"), preparation.below("memory")
        kept, vocabulary = load_file(folder / "memory.safetensors"), load_vocabulary(folder / "vocabulary.json")
        data = below.split(below.dataset("train")).open()
        assert data.regions is not None and data.tokens is not None and data.tokens.vocabulary == vocabulary
        captions = np.arange(len(data.index.texts))
        owners = np.repeat(np.arange(len(data)), np.diff(data.index.starts))
        memory, config = Memory(), below.experiment.model
        nets = memory.build(config, below.given)  # type: ignore[arg-type]
        seen = memory.look(nets, config, data.without_pixels(owners, captions), torch.from_numpy(owners))  # type: ignore[arg-type]
        expected, figures = memory.gather(config, len(vocabulary), [seen], data.regions)  # type: ignore[arg-type]
        assert kept.keys() == expected.keys() and kept["memory"].shape == (len(vocabulary), 6)
        for name, tensor in expected.items():
            assert torch.allclose(kept[name].double(), tensor.double(), atol=1e-5), name
        assert json.loads((folder / "figures.json").read_text()) == pytest.approx({**figures, UNREAD: 0}, abs=1e-6)

    def test_its_folder_says_what_it_is(self, preparation: Preparation) -> None:
        folder = preparation.part("memory")
        said = json.loads((folder / "part.json").read_text())
        assert said["system"] == "memory" and said["longest"] == 18 and said["model"]["resolution"] == 32
        described = json.loads((preparation.part("detector") / "part.json").read_text())
        assert described.keys() == {"system", "model"} and described["system"] == "grid_detector"
        classes = json.loads((preparation.part("detector") / "classes.json").read_text())
        assert classes == sorted(classes) and len(classes) == 3
        assert not (preparation.part("detector") / "vocabulary.json").exists()
        assert json.loads((preparation.part("captioner") / "part.json").read_text())["longest"] == 18

    def test_the_second_time_nothing_is_computed(self, preparation: Preparation, home: Home) -> None:
        before = {path: path.stat().st_mtime_ns for path in home.stages.rglob("*") if path.suffix != ".lock"}
        told: list[str] = []
        again = Preparation(preparation.experiment, home, lambda what, done, total: told.append(what))
        assert again.part("memory") == preparation.part("memory") and not told
        assert before == {path: path.stat().st_mtime_ns for path in home.stages.rglob("*") if path.suffix != ".lock"}

    def test_it_goes_on_where_it_was_stopped(
        self, preparation: Preparation, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        preparation.part("memory")
        monkeypatch.setattr(gathering, "BLOCK", 8)
        other = prepare(preparation.experiment.replace({"stages.memory.model.top_k": 2}), home)
        look, seen = Memory.look, list[int]()

        def stopping(self: Memory, nets: Any, config: Any, batch: Batch, items: Tensor) -> dict[str, Tensor]:
            if len(seen) == 2:
                seen.append(-1)
                raise RunError("stopped")
            seen.append(int(items[0]))
            return look(self, nets, config, batch, items)

        monkeypatch.setattr(Memory, "look", stopping)
        with pytest.raises(RunError, match="stopped"):
            other.part("memory")
        other.part("memory")
        assert seen == [0, 8, -1, 16]

    def test_parts_that_must_be_trained_are_said(self, home: Home, tmp_path: Path) -> None:
        chosen = captioner(**{"stages.captioner.training.seed": 9})
        with pytest.raises(RunError, match="the stage captioner is not trained yet: run t2i train tiny first"):
            Preparation(chosen, home).part("memory")
