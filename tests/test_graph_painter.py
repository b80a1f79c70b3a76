"""Drawing from scene graphs that a person types: with sg2im, and with RetrieveGAN from the patches in a home."""

import asyncio
import io
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestration.data.graph_text import MOST_OBJECTS, read_graph
from orchestration.data.patch_source import PatchFinder
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.painter import Painter
from orchestration.preparation import Preparation
from orchestration.reasons.schema import Kind
from orchestration.serving.backend import Job, Painted
from orchestration.serving.catalogue import Release
from orchestration.serving.loaded import Counts, LoadedModel, Refusal
from orchestration.serving.painting import InvariantBatches
from orchestration.serving.settings import BatchSettings
from orchestration.stages import DamagedStage, read_records
from tests.cascade_drill import train
from tests.cli_support import made
from tests.graph_support import prepare, retrievegan, sg2im

NO_PERCEPTION = {"model.lambda_image_perceptual": 0.0, "model.lambda_object_perceptual": 0.0}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def trained(home: Home, chosen: Any, name: str) -> Path:
    """The checkpoint of a run with one step, all that comes before it included."""
    return train(chosen, prepare(chosen, home).everything(), home.runs / name)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def checkpoint(home: Home) -> Path:
    return trained(home, retrievegan(**NO_PERCEPTION), "retriever")


@pytest.fixture(scope="module")
def painter(home: Home, checkpoint: Path) -> Painter:
    return Painter.load(checkpoint, home.root)


@pytest.fixture(scope="module")
def words(painter: Painter) -> list[str]:
    """Graphs of one, two and five objects."""
    objects, relations = painter.encoder.vocabulary.objects, painter.encoder.vocabulary.relationships  # type: ignore[union-attr]
    first, second, third = (objects[place % len(objects)] for place in range(3))
    word, other = relations[0], relations[-1]
    chain = f"{first} {word} {second} and {second} {other} {third} 2 and {first} 3 and {third} 3"
    return [first, f"{second} {other} {third}", chain]


@pytest.fixture
def elsewhere(home: Home, checkpoint: Path, tmp_path: Path) -> Iterator[tuple[Home, Path]]:
    """A home with the stages and the run alone, and the checkpoint there."""
    other = Home(tmp_path / "elsewhere")
    for name in ("stages", "runs"):
        shutil.copytree(home.root / name, other.root / name)
    yield other, other.root / checkpoint.relative_to(home.root)


class TestPatches:
    def test_a_typed_graph_has_the_candidates_that_preparation_finds(self, home: Home, painter: Painter) -> None:
        preparation = Preparation(painter.experiment, home)
        data = preparation.split(preparation.dataset("val")).open()
        assert data.graphs is not None and data.candidates is not None and painter.patches is not None
        items = np.arange(len(data))
        found, stored = painter.patches(data.graphs.take(items)), data.candidates.take(items)
        assert torch.equal(found.counts, stored.counts) and torch.equal(found.places, stored.places)
        assert torch.equal(found.patches, stored.patches) and int(found.counts.max()) == 2

    def test_patches_have_values_as_the_pictures(self, painter: Painter, words: list[str]) -> None:
        found = painter.conditions(words).candidates
        assert found is not None and found.patches.dtype == torch.float32
        assert found.patches.min() < -1.5 < 1.5 < found.patches.max()  # white is 2.2 to 2.6 by ImageNet's statistics

    def test_a_class_without_a_patch(self, painter: Painter, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        assert painter.patches is not None and painter.probes is not None
        bank = painter.patches.bank
        lacking = replace(bank, classes=np.where(bank.classes == 1, 2, bank.classes))
        finder = PatchFinder.__new__(PatchFinder)
        finder.__dict__.update(painter.patches.__dict__, bank=lacking)
        monkeypatch.setattr(painter, "patches", finder)
        sentence = f"^the patch bank has no patch of '{words[0]}': name another object, or train on data with it$"
        for ask in (painter.check, lambda prompt: painter.draw([prompt], [0])):
            with pytest.raises(RequestError, match=sentence):
                ask(words[0])
        assert all(words[0] not in prompt.split() for prompt, _ in painter.probes)


class TestDrawing:
    def test_a_graph_and_a_seed_are_one_picture_in_any_company(self, painter: Painter, words: list[str]) -> None:
        together = painter.draw_float([*words, words[1]], [1, 1, 1, 2])
        assert together.shape == (4, 3, 32, 32) and together.abs().max() <= 1
        for row, (prompt, seed) in enumerate(zip([*words, words[1]], [1, 1, 1, 2], strict=True)):
            assert torch.equal(painter.draw_float([prompt], [seed])[0], together[row])
        assert not torch.equal(together[0], together[1])
        assert painter.draw(words, [0, 0, 0]).shape == (3, 32, 32, 3)

    def test_json_says_the_same_as_words(self, painter: Painter) -> None:
        vocabulary = painter.encoder.vocabulary  # type: ignore[union-attr]
        first, second, relation = vocabulary.objects[0], vocabulary.objects[1], vocabulary.relationships[0]
        typed = json.dumps({"objects": [{"name": first}, {"name": second}], "relations": [[0, relation, 1]]})
        drawn = painter.draw_float([typed, f"{first} {relation} {second}"], [4, 4])
        assert torch.equal(drawn[0], drawn[1])

    def test_what_chooses_patches_is_no_latent(self, painter: Painter, words: list[str]) -> None:
        for draw in (painter.draw, painter.draw_float, InvariantBatches(painter, 1).draw):
            with pytest.raises(RequestError) as caught:
                draw(words[:1], [1], 0.5)
            assert str(caught.value) == (
                f"truncation is 0.5, but {painter.experiment_name} draws from no latent that can be truncated: leave "
                "truncation out"
            )

    def test_wrong_graphs(self, painter: Painter, words: list[str]) -> None:
        name = words[0]
        for prompt, part in (
            (" \n", "has no object"),
            ('{"objects": []}', "has no object"),
            (" and ".join(f"{name} {place}" for place in range(1, 32)), "has 31 objects; write at most 30"),
            (f"{name}s", f"no object '{name}s' is known .*perhaps '{name}' was meant"),
            (f"{name} beneth {name} 2", "no relation 'beneth' is known.*known are"),
        ):
            for ask in (painter.check, lambda prompt: painter.draw([prompt], [0])):
                with pytest.raises(RequestError, match=part) as caught:
                    ask(prompt)
                assert "\n" not in str(caught.value)
        painter.check(words[2])


class TestHome:
    def test_nothing_is_computed_and_the_data_need_not_be_there(
        self, elsewhere: tuple[Home, Path], painter: Painter, words: list[str]
    ) -> None:
        other, checkpoint = elsewhere
        before = made(other.root), read_records(other.stages)
        again = Painter.load(checkpoint, other.root)
        assert torch.equal(again.draw_float(words, [3, 4, 5]), painter.draw_float(words, [3, 4, 5]))
        assert (made(other.root), read_records(other.stages)) == before and not (other.root / "data").exists()

    @pytest.mark.parametrize("name", ["patches", "sg2im"])
    def test_a_stage_that_was_dropped(self, elsewhere: tuple[Home, Path], name: str) -> None:
        other, checkpoint = elsewhere
        [folder] = other.stages.glob(f"{name}-*")
        shutil.rmtree(folder)
        with pytest.raises(
            RequestError, match="draws from a patch bank .* has none that fits .*t2i train tiny"
        ) as caught:
            Painter.load(checkpoint, other.root)
        assert str(other.stages) in str(caught.value)

    def test_a_home_that_never_was(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="t2i train tiny, with the run's settings, makes it, or name the home"):
            Painter.load(checkpoint, tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()

    def test_the_bank_of_another_experiment_is_passed_over(
        self, home: Home, elsewhere: tuple[Home, Path], words: list[str], painter: Painter
    ) -> None:
        """Of patches of another size, and described by another sg2im; both beside the right one, and alone."""
        other, checkpoint = elsewhere
        right = next(other.stages.glob("patches-*"))
        for changes in ({"patches.side": 24}, {"stages.sg2im.model.noise_dim": 3}):
            changed = retrievegan(**NO_PERCEPTION, **changes)
            prepare(changed, other).everything()
        assert len(list(other.stages.glob("patches-*"))) == 3
        found = Painter.load(checkpoint, other.root)
        assert found.patches is not None and found.patches.bank.folder == right
        assert torch.equal(found.draw_float(words[:1], [1]), painter.draw_float(words[:1], [1]))
        shutil.rmtree(right)
        with pytest.raises(RequestError, match="has none that fits"):
            Painter.load(checkpoint, other.root)

    def test_a_damaged_bank(self, elsewhere: tuple[Home, Path]) -> None:
        other, checkpoint = elsewhere
        [bank] = other.stages.glob("patches-*")
        (bank / "classes.npy").write_bytes(b"short")
        with pytest.raises(DamagedStage, match="classes.npy .*t2i stages drop patches-"):
            Painter.load(checkpoint, other.root)


class TestSg2im:
    @pytest.fixture(scope="class")
    def alone(self, home: Home, tmp_path_factory: pytest.TempPathFactory) -> Painter:
        """In a home without any stages."""
        return Painter.load(trained(home, sg2im(), "plain"), tmp_path_factory.mktemp("empty"))

    def test_it_needs_no_bank(self, alone: Painter, words: list[str]) -> None:
        assert alone.patches is None and alone.conditions(words).candidates is None
        together = alone.draw_float(words, [1, 2, 3])
        assert together.shape == (3, 3, 32, 32)
        assert torch.equal(alone.draw_float(words[2:], [3])[0], together[2])

    def test_its_noise_can_be_truncated(self, alone: Painter, words: list[str]) -> None:
        """In any company, and in the batches that are served."""
        whole, cut = alone.draw(words, [1, 2, 3]), alone.draw(words, [1, 2, 3], 0.1)
        assert (whole == alone.draw(words, [1, 2, 3], None)).all() and (whole != cut).any((1, 2, 3)).all()
        batches = InvariantBatches(alone, 2)
        assert (batches.draw(words, [1, 2, 3], 0.1) == cut).all() and (batches.draw(words, [1, 2, 3]) == whole).all()
        assert torch.equal(alone.draw_float(words[2:], [3], 0.1), alone.draw_float(words, [1, 2, 3], 0.1)[2:])
        for wrong in (0.0, -1.0, float("nan")):
            with pytest.raises(RequestError, match=f"^truncation is {wrong:g}: write a number of standard deviations"):
                alone.draw(words, [1, 2, 3], wrong)

    def test_its_probes_are_graphs(self, alone: Painter) -> None:
        prompts = [prompt for prompt, _ in alone.probes or ()]
        counts = [len(read_graph(prompt, alone.encoder.vocabulary).objects) for prompt in prompts]  # type: ignore[union-attr]
        assert counts == [1, 3, MOST_OBJECTS]


class TestServing:
    def test_every_batch_size_is_steady(self, painter: Painter) -> None:
        assert InvariantBatches(painter, 4).sizes == (1, 2, 4)

    def test_what_a_served_model_refuses_and_draws(self, painter: Painter, words: list[str]) -> None:
        release = Release("grapher", 1, painter.checkpoint_digest)
        with ThreadPoolExecutor(1) as thread:
            batches, counts = InvariantBatches(painter, 2), Counts()
            model = LoadedModel(release, painter, batches, BatchSettings(max_batch=2), thread, counts)

            def paint(text: str, kind: Kind = "graph", truncation: float | None = None) -> Painted | Refusal:
                return asyncio.run(model.paint(Job(kind, text, (3, 4), truncation=truncation)))

            for prompt, part in (
                (f"{words[0]} beneth {words[0]} 2", "no relation 'beneth' is known"),
                ('{"objects": []}', "has no object"),
                ('{"objects": "x"}', "cannot be read as JSON"),
            ):
                found = paint(prompt)
                assert isinstance(found, Refusal) and found.code == "wrong_prompt"
                assert part in found.message and "\n" not in found.message
            assert paint(words[1], kind="prompt").code == "wrong_input"  # type: ignore[union-attr]
            cut = paint(words[1], truncation=0.5)
            assert isinstance(cut, Refusal) and "latent" in cut.message
            assert counts.pictures == 0
            drawn = paint(words[1])
        assert isinstance(drawn, Painted) and len(drawn.pictures) == 2 and counts.pictures == 2
        for png, pixels in zip(drawn.pictures, painter.draw([words[1]] * 2, [3, 4]), strict=True):
            assert (np.asarray(Image.open(io.BytesIO(png))) == pixels).all()
