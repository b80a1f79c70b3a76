"""Naming, and the judge of parts: descriptions and encoders whose worth is known."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.contract import Batch, Nets, TextFeatures, Tokens
from orchestration.campaigns.preflight import direction_of, known_objectives
from orchestration.data.batches import CaptionedPictures
from orchestration.data.features import CaptionIndex, CaptionTokens
from orchestration.data.scenes import BACKGROUNDS
from orchestration.data.sources import open_source
from orchestration.data.vocabulary import Vocabulary, words
from orchestration.errors import RequestError, RunError
from orchestration.evaluation import parts
from orchestration.evaluation.naming import caption_overlap, content_words, named_words, naming_in_scenes
from orchestration.evaluation.parts import PartJudge
from orchestration.evaluation.r_precision import RPrecision
from orchestration.evaluation.recall import KS, TO_CAPTION, TO_IMAGE
from orchestration.evaluation.scenes_net import ATTRIBUTES, named_attributes
from tests.tiny import held_pictures, tiny_experiment

IMAGES = 120
COLOURS = ("red", "blue", "green")
LABELS = [("stuff 91", "red", "house"), ("stuff 92", "blue", "fish"), ("stuff 91", "red", "tree")]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class TestNamingInScenes:
    def test_it_counts_the_words_of_each_attribute(self) -> None:
        told = [words("A red house on the grass."), words("a red boat under the sky"), words("blue grass")]
        found = naming_in_scenes(told, LABELS)
        # The night sky is named by both words.
        assert found["naming/scenes/background"] == pytest.approx(2 / 3)
        assert found["naming/scenes/colour"] == pytest.approx(1 / 3)
        assert found["naming/scenes/thing"] == pytest.approx(1 / 3)
        # What the picture before names: (tree, red, grass), (house, red, grass), (fish, blue, night sky).
        assert found["naming_mismatched/scenes/background"] == pytest.approx(1 / 3)
        assert found["naming_mismatched/scenes/colour"] == pytest.approx(1)
        assert found["naming_mismatched/scenes/thing"] == 0
        assert found["naming_chance/scenes/colour"] == pytest.approx(2 / 3)
        assert found["naming_chance/scenes/thing"] == pytest.approx(1 / 3)
        for attribute in ATTRIBUTES:
            value = found[f"naming/scenes/{attribute}"]
            assert found[f"naming_low/scenes/{attribute}"] < value < found[f"naming_high/scenes/{attribute}"]
        assert len(found) == 15

    def test_naming_everything_is_found_out(self) -> None:
        everything = {word for row in LABELS for label in row for word in named_words(label)}
        found = naming_in_scenes([everything] * 3, LABELS)
        for attribute in ATTRIBUTES:
            assert found[f"naming/scenes/{attribute}"] == found[f"naming_mismatched/scenes/{attribute}"] == 1

    def test_backgrounds_have_their_names(self) -> None:
        assert named_words("stuff 91") == {"grass"}
        assert named_words(f"stuff {91 + len(BACKGROUNDS) - 1}") == set(BACKGROUNDS[-1].name.split())
        assert named_words("mushroom") == {"mushroom"}

    def test_captions_of_scenes_name_their_scene(self, tmp_path: Path) -> None:
        """Every caption, of every background, thing and colour."""
        records = open_source("scenes:size=32,objects=2,train=48,val=1,test=1", "train", tmp_path).records
        assert len({named_attributes(record)[0] for record in records}) == len(BACKGROUNDS)
        for place in range(5):
            told = [words(record.captions[place].text) for record in records if record.captions]
            found = naming_in_scenes(told, [named_attributes(record) for record in records])
            for attribute in ATTRIBUTES:
                assert found[f"naming/scenes/{attribute}"] == 1
                assert found[f"naming_mismatched/scenes/{attribute}"] < 0.6

    @pytest.mark.parametrize(("told", "truths"), [(0, 0), (1, 1), (3, 2)])
    def test_too_few(self, told: int, truths: int) -> None:
        for judge, truth in ((naming_in_scenes, LABELS[0]), (caption_overlap, "a house")):
            with pytest.raises(ValueError, match=f"two descriptions or more, .* not {told} with {truths}"):
                judge([{"house"}] * told, [truth] * truths)  # type: ignore[operator]


class TestCaptionOverlap:
    def test_it_is_the_mean_share_of_content_words(self) -> None:
        told = [("a", "red", "bird", "red"), ("a", "boat"), ("the", "sea")]
        found = caption_overlap(told, ["The red bird, this is it", "A boat", "there is a man by the sea"])
        shares = [1.0, 1.0, 1 / 2]
        assert found["naming/caption-overlap"] == pytest.approx(np.mean(shares))
        error = np.std(shares) / 3**0.5
        assert found["naming_low/caption-overlap"] == pytest.approx(np.mean(shares) - 1.96 * error, abs=1e-4)
        assert np.mean(shares) + 1.96 * error > 1 == found["naming_high/caption-overlap"]
        assert found["naming_mismatched/caption-overlap"] == 0

    def test_function_words_are_no_content(self) -> None:
        assert content_words("There is a bird, and it can't be on the Sea!") == {"bird", "sea"}

    def test_captions_without_content_are_left_out(self) -> None:
        found = caption_overlap([("boat",), ("boat",), ("sea",)], ["this is it", "a boat", "a boat"])
        assert found["naming/caption-overlap"] == 1 / 2
        # Against the caption before: (boat), (nothing), (boat).
        assert found["naming_mismatched/caption-overlap"] == 1 / 2
        assert set(caption_overlap([("boat",)] * 2, ["it is", "..."]).values()) == {0.0}


def captioned(images: int = IMAGES, classes: int | None = None, tokens: bool = True) -> CaptionedPictures:
    """Plain pictures whose brightness is their number, with captions that name it and a colour."""
    numbers = np.arange(images)
    image_ids = 1000 + 3 * numbers
    starts = np.arange(images + 1) * 2
    texts = tuple(
        text
        for number in numbers
        for text in (f"a {COLOURS[number % 3]} thing n{number}", f"this n{number} is {COLOURS[number % 3]}")
    )
    class_ids = image_ids if classes is None else numbers % classes
    index = CaptionIndex(image_ids, class_ids, starts, texts)
    vocabulary = Vocabulary(("<end>", *sorted({word for text in texts for word in words(text)})))
    pixels = np.broadcast_to(numbers[:, None, None, None], (images, 3, 4, 4)).astype(np.uint8)
    pictures = held_pictures(np.ascontiguousarray(pixels), image_ids)
    return CaptionedPictures(pictures, index, None, CaptionTokens(index, vocabulary, 6, "random") if tokens else None)


@dataclass(frozen=True)
class Split:
    """A prepared split in memory."""

    data: CaptionedPictures
    labels: str | None = None

    def open(self) -> CaptionedPictures:
        return self.data


class Drop(nn.Module):
    """Right in evaluation mode only."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.training else x


def numbers_of(images: Tensor) -> Tensor:
    """What `captioned` painted, (B,) int64; it sees whether pictures were normalised to [-1, 1]."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().long()


class Numbers:
    """A matcher that reads the picture's number and the number in its caption."""

    def __init__(self, vocabulary: Vocabulary, modulo: int = 10**6) -> None:
        self.vocabulary, self.modulo, self.seen = vocabulary, modulo, 0

    def embed(self, nets: Nets, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.images is not None and batch.tokens is not None and batch.class_ids is not None
        assert torch.is_inference_mode_enabled() and len(batch.class_ids) == len(batch.image_ids)
        self.seen += len(batch.images)
        assert torch.equal(batch.image_ids, 1000 + 3 * numbers_of(batch.images))
        return nets["net"](self._turn(numbers_of(batch.images))), self.encode(nets, batch.tokens).sentence

    def encode(self, nets: Nets, tokens: Tokens) -> TextFeatures:
        told = [self.vocabulary.decode(row) for row in tokens.ids.tolist()]
        numbers = torch.tensor([int(word[1:]) for row in told for word in row if word[1:].isdigit()])
        return TextFeatures(numbers, tokens.lengths, self._turn(numbers))

    def _turn(self, numbers: Tensor) -> Tensor:
        angles = (numbers % self.modulo) * 0.02
        return torch.stack([angles.cos(), angles.sin()], 1)


class Describer:
    """A captioner that says each picture's colour, `by` pictures off, and then nothing."""

    def __init__(self, vocabulary: Vocabulary, by: int = 0) -> None:
        self.vocabulary, self.by = vocabulary, by

    def describe(self, nets: Nets, batch: Batch) -> Tensor:
        assert not nets["net"].training and batch.images is not None
        numbers = numbers_of(batch.images).tolist()
        told = [self.vocabulary.encode(COLOURS[(number + self.by) % 3]) for number in numbers]
        return torch.nn.functional.pad(torch.from_numpy(np.stack(told)), (0, 3))


def judge(
    part: Any, data: CaptionedPictures, samples: int = 110, labels: str | None = None, seed: int = 1
) -> PartJudge:
    experiment: Any = SimpleNamespace(trainable=part, system="part")
    split: Any = Split(data, labels)
    return PartJudge(experiment, split, samples, seed)


def nets() -> dict[str, nn.Module]:
    return {"net": Drop()}


def vocabulary_of(data: CaptionedPictures) -> Vocabulary:
    assert data.tokens is not None
    return data.tokens.vocabulary


def labels_file(folder: Path, data: CaptionedPictures, things: Sequence[str] = ("house",)) -> str:
    """labels.json of `captioned` pictures: one background, their colours, and things in turn."""
    named = {
        str(image_id): ("stuff 91", COLOURS[number % 3], things[number % len(things)])
        for number, image_id in enumerate(data.image_ids.tolist())
    }
    (folder / "labels.json").write_text(json.dumps(named))
    return str(folder)


class TestMatchers:
    def test_a_perfect_one(self) -> None:
        data = captioned()
        verdict = judge(Numbers(vocabulary_of(data)), data)(nets())
        assert verdict.protocol == "r_precision/1+99 recall/both-ways"
        assert verdict.samples == 110
        assert [verdict.figures[f"r_precision/1+99/top-{top}"] for top in (1, 2, 3)] == [1, 1, 1]
        assert verdict.figures["r_precision_low/1+99/top-1"] == pytest.approx(1 - 1.96**2 / (110 + 1.96**2), abs=1e-3)
        recalls = {f"recall/{way}@{k}" for way in (TO_IMAGE, TO_CAPTION) for k in KS}
        assert {name for name in verdict.figures if name.startswith("recall/")} == recalls
        assert all(verdict.figures[name] == 1 for name in recalls)
        assert len(verdict.figures) == 9 + 3 * len(recalls)
        known = known_objectives(tiny_experiment("damsm", evaluation__protocol="auto", evaluation__samples=110))
        assert {f"validation/{name}" for name in verdict.figures if direction_of(f"validation/{name}")} == set(known)

    def test_nets_are_judged_in_evaluation_mode_and_left_as_they_were(self) -> None:
        data, given = captioned(), {"net": nn.Sequential(Drop(), Drop())}
        given["net"][0].eval()
        assert judge(Numbers(vocabulary_of(data)), data)(given).figures["r_precision/1+99/top-1"] == 1
        assert [module.training for module in given["net"].modules()] == [True, False, True]

    def test_one_that_fails_leaves_them_too(self) -> None:
        data, given = captioned(), nets()
        part = Numbers(vocabulary_of(data))
        part.embed = lambda nets, batch: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        with pytest.raises(ZeroDivisionError):
            judge(part, data)(given)
        assert given["net"].training

    def test_one_that_knows_nothing_is_at_most_chance(self) -> None:
        data = captioned()
        verdict = judge(Numbers(vocabulary_of(data), modulo=1), data)(nets())
        assert verdict.figures["r_precision/1+99/top-3"] == 0
        assert verdict.figures["recall/caption-to-image@100"] == verdict.figures["recall/image-to-caption@100"] == 0

    def test_recall_is_that_of_the_embeddings(self) -> None:
        """It tells numbers apart to half their range: of each picture, two images and two captions are as good."""
        data = captioned()
        figures = judge(Numbers(vocabulary_of(data), modulo=60), data, samples=120)(nets()).figures
        for way in (TO_IMAGE, TO_CAPTION):
            assert [figures[f"recall/{way}@{k}"] for k in (1, 5)] == [0, 1]
        assert figures["recall_low/caption-to-image@5"] < 1

    def test_fewer_images_than_captions_are_said(self) -> None:
        data = captioned(38)
        verdict = judge(Numbers(vocabulary_of(data)), data, samples=200)(nets())
        assert verdict.protocol == "r_precision/1+37 recall/both-ways"
        assert verdict.figures["r_precision/1+37/top-1"] == 1
        assert verdict.samples == 200

    def test_published_classes(self) -> None:
        """It knows the species and not the bird."""
        data = captioned(classes=5)
        verdict = judge(Numbers(vocabulary_of(data), modulo=5), data, samples=120)(nets())
        assert verdict.figures["r_precision/1+96-other-classes/top-1"] == 1
        assert verdict.figures["r_precision/1+99/top-1"] == 0

    def test_scenes_that_are_called_alike_are_a_class(self, tmp_path: Path) -> None:
        data = captioned()
        verdict = judge(Numbers(vocabulary_of(data), modulo=6), data, 120, labels_file(tmp_path, data, ["a", "b"]))(
            nets()
        )
        assert verdict.figures["r_precision/1+99-other-classes/top-1"] == 1
        assert verdict.figures["r_precision/1+99/top-1"] == 0

    def test_one_class_has_no_other(self) -> None:
        data = captioned(classes=1)
        figures = judge(Numbers(vocabulary_of(data)), data)(nets()).figures
        assert sum(name.startswith("r_precision") for name in figures) == 9

    def test_wrong_captions_are_drawn_with_the_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data, asked = captioned(), []

        def recorded(protocol: str, seed: int = 0) -> RPrecision:
            asked.append((protocol, seed))
            return RPrecision(protocol, seed)

        monkeypatch.setattr(parts, "RPrecision", recorded)
        judge(Numbers(vocabulary_of(data)), data, seed=7)(nets())
        assert asked == [("1+99", 7)]

    def test_portions_change_nothing_and_every_sample_is_seen_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = captioned()
        part = Numbers(vocabulary_of(data), modulo=60)
        whole = judge(part, data)(nets())
        assert part.seen == 110
        assert 0.1 < whole.figures["r_precision/1+99/top-1"] < 0.9
        monkeypatch.setattr(parts, "BATCH", 7)
        assert judge(part, data)(nets()) == whole
        assert judge(part, data, seed=2)(nets()) != whole


class TestCaptioners:
    def test_in_scenes(self, tmp_path: Path) -> None:
        data = captioned()
        labels = labels_file(tmp_path, data)
        verdict = judge(Describer(vocabulary_of(data)), data, labels=labels)(nets())
        assert verdict.protocol == "naming/scenes"
        assert verdict.figures["naming/scenes/colour"] == 1
        assert verdict.figures["naming_mismatched/scenes/colour"] < 0.5
        assert verdict.figures["naming/scenes/thing"] == 0
        wrong = judge(Describer(vocabulary_of(data), by=1), data, labels=labels)(nets())
        assert wrong.figures["naming/scenes/colour"] == 0

    def test_elsewhere(self) -> None:
        """Of "a red thing n7" it says a third, of "this n7 is red" half."""
        data = captioned()
        part = judge(Describer(vocabulary_of(data)), data)
        verdict = part(nets())
        assert verdict.protocol == "naming/caption-overlap"
        assert verdict.figures["naming/caption-overlap"] == pytest.approx(
            np.mean([(1 / 3, 1 / 2)[caption % 2] for caption in part.captions])
        )
        assert verdict.figures["naming_mismatched/caption-overlap"] < 0.25

    def test_one_that_also_matches(self) -> None:
        data = captioned()

        class Both(Numbers, Describer):
            by = 0

        verdict = judge(Both(vocabulary_of(data)), data)(nets())
        assert verdict.protocol == "r_precision/1+99 recall/both-ways naming/caption-overlap"
        assert verdict.figures["r_precision/1+99/top-1"] == 1
        assert verdict.figures["naming/caption-overlap"] > 0.3


class TestWrongParts:
    def test_one_that_does_neither(self) -> None:
        with pytest.raises(RequestError, match="part neither matches nor describes pictures, .*: give its class embed"):
            judge(SimpleNamespace(), captioned())

    def test_a_captioner_without_words(self) -> None:
        data = captioned()
        with pytest.raises(RunError, match="no word indices were prepared for part: add tokens to what it reads"):
            judge(Describer(vocabulary_of(data)), captioned(tokens=False))

    def test_one_image(self) -> None:
        data = captioned(1)
        with pytest.raises(RequestError, match="telling images apart, and 1 was held out: choose a larger split"):
            judge(Numbers(vocabulary_of(data)), data)
