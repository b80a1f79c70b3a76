"""Views that embed or describe: the trained part's own answers, an independent encoder, and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.contract import NOTHING, Batch
from models.encoders.text import TextEncoder, TextEncoderSettings, quiet_loading
from models.registry import get_part
from orchestration.data.transforms import get_transform
from orchestration.data.vocabulary import Vocabulary
from orchestration.data.word_encoder import describe_part, opening
from orchestration.errors import RequestError
from orchestration.evaluation.catalogue import Context, open_metrics
from orchestration.evaluation.matcher_views import (
    CaptionerView,
    DualEncoderView,
    MatcherView,
    in_batches,
    open_captioner_view,
    open_dual_encoder_view,
    open_matcher_view,
    open_part,
    weights_digest,
)
from orchestration.evaluation.metric import Asked, Seen, View
from orchestration.evaluation.r_precision import RPrecision
from orchestration.evaluation.recall import Recall
from orchestration.training.state import build_nets
from tests.tiny import CPU, small_pretrained_nets, tiny_experiment, tiny_given
from tests.tiny_inputs import TINY_DIM, write_tiny_bert

WORDS = Vocabulary(("<end>", "a", "bird", "blue", "boat", "red", "sea"))
TEXTS = ("a red bird", "a blue boat", "a blue sea, red boat, a bird and a bird", "boat")
LONGEST = 5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def part_folder(folder: Path, system: str, vocabulary: Vocabulary = WORDS) -> Path:
    """What training a tiny part leaves."""
    experiment = tiny_experiment(system)
    folder.mkdir(exist_ok=True)
    with small_pretrained_nets(), torch.random.fork_rng(devices=[]):
        given = replace(tiny_given(experiment), vocabulary_size=len(vocabulary))
        nets = build_nets(experiment, given)
    for name in experiment.trainable.optimizers(experiment.model):
        save_file(nets[name].state_dict(), folder / f"{name}.safetensors")
    describe_part(folder, system, experiment.model.model_dump(mode="json"), vocabulary, LONGEST)
    return folder


@pytest.fixture(scope="module")
def damsm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return part_folder(tmp_path_factory.mktemp("parts") / "damsm", "damsm")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return part_folder(tmp_path_factory.mktemp("parts") / "stream", "stream")


def matcher(folder: Path, **options: Any) -> MatcherView:
    with small_pretrained_nets():
        return open_matcher_view(CPU, str(folder), **options)


def captioner(folder: Path, **options: Any) -> CaptionerView:
    with small_pretrained_nets():
        return open_captioner_view(CPU, str(folder), **options)


def pictures(count: int, side: int = 32, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (count, 3, side, side), np.uint8))


def asked(texts: Sequence[str]) -> Asked:
    places = np.arange(len(texts))
    return Asked(places, places, places, places, texts)


def some(count: int) -> list[str]:
    return [TEXTS[place % len(TEXTS)] for place in range(count)]


class TestMatcher:
    def test_it_is_what_the_part_says(self, damsm: Path) -> None:
        with small_pretrained_nets():
            trained = open_part(damsm, CPU)
        view: View = MatcherView(trained)
        found = view.look(pictures(4), asked(TEXTS))
        batch = Batch(
            torch.arange(4),
            get_transform("attngan").normalise(pictures(4)),
            tokens=WORDS.tokens(TEXTS, LONGEST),
            class_ids=torch.arange(4),
        )
        expected = trained.part.embed(trained.nets, batch)
        assert list(found) == ["damsm/picture", "damsm/caption"]
        for array, embedded in zip(found.values(), expected, strict=True):
            assert array.dtype == np.float32
            assert torch.allclose(torch.from_numpy(array), embedded, atol=1e-5)
        assert len({row.tobytes() for row in found["damsm/picture"]}) == 4
        assert len({row.tobytes() for row in found["damsm/caption"]}) == 4

    def test_weights_are_those_of_the_folder(self, damsm: Path, tmp_path: Path) -> None:
        with small_pretrained_nets():
            nets = open_part(damsm, CPU).nets
        for name in ("text_encoder", "image_encoder"):
            for key, value in load_file(damsm / f"{name}.safetensors").items():
                assert torch.equal(nets[name].state_dict()[key], value)
            assert not nets[name].training
            assert not any(parameter.requires_grad for parameter in nets[name].parameters())

    def test_company_changes_nothing(self, damsm: Path) -> None:
        """To the last bit for pictures; a caption's last digits depend on how long the others of its batch are."""
        view = matcher(damsm)
        shown, texts = pictures(53), some(53)
        whole = view.look(shown, asked(texts))
        rolled = view.look(shown.roll(7, 0), asked([*texts[-7:], *texts[:-7]]))
        assert np.array_equal(np.roll(whole["damsm/picture"], 7, 0), rolled["damsm/picture"])
        for place in (0, 17, 52):
            alone = view.look(shown[place : place + 1], asked(texts[place : place + 1]))
            assert np.array_equal(alone["damsm/picture"][0], whole["damsm/picture"][place])
            assert np.allclose(alone["damsm/caption"][0], whole["damsm/caption"][place], rtol=1e-6, atol=1e-7)

    def test_given_word_indices_are_read(self, damsm: Path) -> None:
        view = matcher(damsm)
        words = WORDS.tokens(["a blue boat"] * 4, LONGEST)
        found = view.look(pictures(4), replace(asked(TEXTS), tokens=words))["damsm/caption"]
        assert np.array_equal(found, view.look(pictures(4), asked(["a blue boat"] * 4))["damsm/caption"])
        with pytest.raises(RequestError, match="read with the vocabulary 0123456789ab, and damsm was trained with "):
            view.look(pictures(4), replace(asked(TEXTS), tokens=replace(words, vocabulary="0123456789abcdef")))

    def test_pictures_of_another_side_are_resized(self, damsm: Path) -> None:
        with small_pretrained_nets():
            trained = open_part(damsm, CPU)
        stripes = (torch.arange(96) % 2 * 200).to(torch.uint8).expand(2, 3, 96, 96)
        assert trained.pictures(stripes).shape == (2, 3, 32, 32)
        # Narrow stripes become about their mean; without antialiasing they would stay stripes.
        inside = trained.pictures(stripes)[:, :, 2:-2, 2:-2]
        assert torch.allclose(inside, torch.full_like(inside, 100 / 127.5 - 1), atol=0.2)
        assert MatcherView(trained).look(stripes, asked(TEXTS[:2]))["damsm/picture"].shape == (2, 8)

    def test_the_transform_and_the_weights_are_in_the_digest(self, damsm: Path, tmp_path: Path) -> None:
        first = matcher(damsm)
        other_values = matcher(damsm, transform="sg2im")
        shown = [view.look(pictures(2), asked(TEXTS[:2]))["damsm/picture"] for view in (first, other_values)]
        assert not np.allclose(shown[0], shown[1])
        changed = part_folder(tmp_path / "changed", "damsm")
        weights = load_file(changed / "text_encoder.safetensors")
        next(iter(weights.values()))[0] += 1
        save_file(weights, changed / "text_encoder.safetensors")
        words = part_folder(tmp_path / "words", "damsm", Vocabulary((*WORDS.words[:-1], "tree")))
        digests = [first.digest, matcher(damsm, name="again").digest, other_values.digest]
        digests += [matcher(changed).digest, matcher(words).digest]
        assert digests[0] == digests[1]
        assert len(set(digests)) == 4

    def test_metrics_read_it(self, damsm: Path) -> None:
        view = matcher(damsm)
        question = asked(some(20))
        seen = Seen(question, view.look(pictures(20), question))
        precision, recall = RPrecision("1+9"), Recall()
        precision.update(seen)
        recall.update_real(seen)
        assert precision.compute()[0].figure == "r_precision/1+9/top-1"
        assert recall.compute()[0].figure == "recall/caption-to-image@1"

    def test_a_caption_without_a_known_word(self, damsm: Path) -> None:
        with pytest.raises(RequestError, match="caption 'green' has none of the 6 words of the vocabulary"):
            matcher(damsm).look(pictures(1), asked(["green"]))


class TestFeatures:
    """A matcher that reads a frozen encoder's features, such as TReCS's dual encoder."""

    @pytest.fixture(scope="class")
    def bert(self, tmp_path_factory: pytest.TempPathFactory) -> TextEncoderSettings:
        return TextEncoderSettings(name=str(write_tiny_bert(tmp_path_factory.mktemp("bert"))), max_tokens=9)

    @pytest.fixture(scope="class")
    def towers(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """What training leaves: no vocabulary."""
        experiment = tiny_experiment("dual_encoder", model__text_dim=TINY_DIM)
        folder = tmp_path_factory.mktemp("dual_encoder")
        with small_pretrained_nets(), torch.random.fork_rng(devices=[]):
            nets = build_nets(experiment)
        nets["image"].longest.fill_(3.0)  # type: ignore[operator]
        nets["text"].longest.fill_(3.0)  # type: ignore[operator]
        for name in experiment.trainable.optimizers(experiment.model):
            save_file(nets[name].state_dict(), folder / f"{name}.safetensors")
        describe_part(folder, "dual_encoder", experiment.model.model_dump(mode="json"))
        return folder

    def test_it_is_what_the_part_says(self, towers: Path, bert: TextEncoderSettings, tmp_path: Path) -> None:
        view = matcher(towers, text=opening(bert, tmp_path))
        texts, shown = some(4), pictures(4)
        found = view.look(shown, asked(texts))
        with small_pretrained_nets():
            trained = open_part(towers, CPU)
        images = get_transform("xmcgan").normalise(shown)
        batch = Batch(torch.arange(4), images, TextEncoder(bert, tmp_path)(texts))
        expected = trained.part.embed(trained.nets, batch)
        for array, embedded in zip(found.values(), expected, strict=True):
            assert torch.allclose(torch.from_numpy(array), embedded, atol=1e-5)
        assert len({row.tobytes() for row in found["damsm/caption"]}) == 4

    def test_recall_reads_it(self, towers: Path, bert: TextEncoderSettings, tmp_path: Path) -> None:
        view, metric = matcher(towers, text=opening(bert, tmp_path)), Recall()
        told = asked([f"{text} and {number} sky" for number, text in enumerate(some(8))])
        metric.update_real(Seen(told, view.look(pictures(8), told)))
        assert {result.figure for result in metric.compute()} >= {
            "recall/caption-to-image@1",
            "recall/image-to-caption@1",
        }

    def test_company_changes_nothing(self, towers: Path, bert: TextEncoderSettings, tmp_path: Path) -> None:
        view = matcher(towers, text=opening(bert, tmp_path))
        whole, one = (view.look(pictures(53)[:count], asked(some(53)[:count])) for count in (53, 1))
        for name, array in one.items():
            np.testing.assert_allclose(array[0], whole[name][0], rtol=1e-6)

    def test_what_reads_for_it_is_in_the_digest(
        self, towers: Path, bert: TextEncoderSettings, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        other = write_tiny_bert(tmp_path_factory.mktemp("other"), seed=1)
        settings = (bert, bert.model_copy(update={"max_tokens": 8}), bert.model_copy(update={"name": str(other)}))
        assert len({matcher(towers, text=opening(one, tmp_path)).digest for one in settings}) == 3

    def test_metrics_find_it(self, towers: Path, bert: TextEncoderSettings, tmp_path: Path) -> None:
        """No captions of the system's own are encoded by it: it is a part among others."""
        experiment = tiny_experiment("trecs", text__name=bert.name, text__max_tokens=bert.max_tokens)
        preparation: Any = SimpleNamespace(
            _part=lambda name: get_part(experiment.stages[name].system),
            text_part=None,
            part={"dual_encoder": towers}.__getitem__,
            below=lambda name: SimpleNamespace(built_on=NOTHING, subject=get_part(experiment.stages[name].system)),
            home=SimpleNamespace(encoders=tmp_path),
        )
        whole: Any = None
        context = Context(experiment, preparation, whole, whole, 0, 4, {})
        [metric] = open_metrics(["recall"], context)
        with small_pretrained_nets():
            view = context.views["damsm"](CPU)
        assert metric.looks_at_real == {"damsm"} and view.digest == matcher(towers, text=opening(bert, tmp_path)).digest
        none = replace(context, experiment=experiment.replace({"model.masks": "true_masks"}), views={})
        with pytest.raises(RequestError, match="trecs has no encoder of pictures and captions of its own"):
            open_metrics(["recall"], none)

    def test_without_an_encoder(self, towers: Path, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="dual_encoder reads captions as features, and judging gives word"):
            matcher(towers)
        nowhere = TextEncoderSettings(name=str(tmp_path / "nowhere"))
        with pytest.raises(RequestError, match=r"text\.name: there is no folder"):
            matcher(towers, text=opening(nowhere, tmp_path))


class TestCaptioner:
    def test_it_is_what_the_part_says(self, stream: Path) -> None:
        with small_pretrained_nets():
            trained = open_part(stream, CPU)
        view: View = CaptionerView(trained)
        shown = pictures(53)
        found = view.look(shown, asked([""] * 53))
        normalised = get_transform("attngan").normalise(shown)
        expected = trained.part.describe(trained.nets, Batch(torch.arange(53), normalised))
        assert list(found) == ["stream/words"]
        assert found["stream/words"].dtype == np.int64
        assert np.array_equal(found["stream/words"], expected.numpy())
        alone = view.look(shown[20:21], asked([""]))
        assert np.array_equal(alone["stream/words"][0], found["stream/words"][20])

    def test_names(self, stream: Path) -> None:
        assert list(captioner(stream, name="other").look(pictures(1), asked([""]))) == ["other/words"]
        for name in ("", "a/b", "-x", "ü"):
            with pytest.raises(RequestError, match="cannot name what judges: use letters, digits"):
                captioner(stream, name=name)


class TestWrongParts:
    def test_parts_that_do_something_else(self, damsm: Path, stream: Path) -> None:
        with pytest.raises(
            RequestError, match="damsm does not describe pictures: give a part that does, such as stream"
        ):
            captioner(damsm)
        with pytest.raises(RequestError, match="stream does not match pictures and captions: give a part that does"):
            matcher(stream)

    def test_a_part_that_reads_features(self, damsm: Path) -> None:
        with small_pretrained_nets():
            trained = open_part(damsm, CPU)
        part = trained.part
        reader = SimpleNamespace(name="reader", reads={"features"}, embed=part.embed, encode=part.encode)
        with pytest.raises(RequestError, match="reader reads captions as features, and judging gives word indices"):
            MatcherView(replace(trained, part=reader))

    @pytest.mark.parametrize("gone", ["part.json", "vocabulary.json", "text_encoder.safetensors"])
    def test_files_that_are_missing(self, gone: str, tmp_path: Path) -> None:
        folder = part_folder(tmp_path / "part", "damsm")
        (folder / gone).unlink()
        with pytest.raises(
            RequestError, match=gone if gone == "vocabulary.json" else "trained part in .* cannot be read"
        ):
            matcher(folder)

    def test_files_that_do_not_fit(self, tmp_path: Path) -> None:
        folder = part_folder(tmp_path / "part", "damsm")
        described = json.loads((folder / "part.json").read_text())

        def refused(why: str) -> None:
            with pytest.raises(
                RequestError, match=f"part in .*part cannot be read \\((?s:.)*{why}(?s:.)*: give the folder"
            ):
                matcher(folder)

        (folder / "part.json").write_text(json.dumps({**described, "system": "unheard-of"}))
        refused("unheard-of")
        (folder / "part.json").write_text(json.dumps({**described, "model": {"speed": 3}}))
        refused("speed")
        (folder / "part.json").write_text(json.dumps(described))
        weights = (folder / "text_encoder.safetensors").read_bytes()
        (folder / "text_encoder.safetensors").write_bytes(weights[:50])
        refused("deserializing")
        save_file({"other": torch.ones(1)}, folder / "text_encoder.safetensors")
        refused("other")


def dual_encoder(folder: Path, seed: int = 0) -> Path:
    """A tiny untrained CLIP with a tokenizer of eleven words and its own preparation of pictures."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    known = ["<pad>", "<s>", "</s>", "<unk>", *WORDS.words[1:]]
    text = {"vocab_size": len(known), "max_position_embeddings": 9}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"image_size": 24, "patch_size": 8}
    with torch.random.fork_rng(devices=[]), quiet_loading():
        torch.manual_seed(seed)
        net = CLIPModel(CLIPConfig(text_config={**size, **text}, vision_config={**size, **vision}, projection_dim=10))
        net.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=9, **special).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dual_encoder(tmp_path_factory.mktemp("encoders") / "tiny-clip")


class TestDualEncoder:
    def test_it_is_what_the_encoder_says(self, clip: Path) -> None:
        """Pictures cut and normalised as CLIP's, captions with their special tokens."""
        from transformers import CLIPModel

        view: View = DualEncoderView(clip, CPU)
        assert view.name == "dual-tiny-clip"
        shown = pictures(4, 24)
        found = view.look(shown, asked(TEXTS))
        with quiet_loading():
            net = CLIPModel.from_pretrained(clip).eval()
        mean, std = (
            torch.tensor([0.48145466, 0.4578275, 0.40821073]),
            torch.tensor([0.26862954, 0.26130258, 0.27577711]),
        )
        pixels = (shown / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        known = ["<pad>", "<s>", "</s>", "<unk>", *WORDS.words[1:]]
        ids = torch.tensor([known.index(word) for word in ["<s>", "a", "red", "bird", "</s>"]])
        with torch.no_grad():
            picture, caption = net.get_image_features(pixel_values=pixels), net.get_text_features(ids[None])
        assert list(found) == ["dual-tiny-clip/picture", "dual-tiny-clip/caption"]
        assert np.allclose(found["dual-tiny-clip/picture"], picture.pooler_output, atol=1e-5)
        assert np.allclose(found["dual-tiny-clip/caption"][0], caption.pooler_output[0], atol=1e-5)
        assert found["dual-tiny-clip/caption"].dtype == np.float32
        assert len({row.tobytes() for row in found["dual-tiny-clip/caption"]}) == 4

    def test_company_changes_nothing(self, clip: Path) -> None:
        view = DualEncoderView(clip, CPU)
        shown, texts = pictures(53, 32), some(53)
        whole = view.look(shown, asked(texts))
        for name, array in whole.items():
            for place in (0, 17, 52):
                alone = view.look(shown[place : place + 1], asked(texts[place : place + 1]))
                assert np.array_equal(alone[name][0], array[place])

    def test_captions_are_always_as_long_as_can_be(self, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        view = DualEncoderView(clip, CPU)
        whole, read = view._net.get_text_features, []

        def recorded(**words: Tensor) -> Any:
            read.append(words["input_ids"])
            return whole(**words)

        monkeypatch.setattr(view._net, "get_text_features", recorded)
        view.look(pictures(2), asked(["boat", "a bird and a bird and a bird and a bird"]))
        (ids,) = read
        assert ids.shape == (50, 9)
        assert ids[0].tolist() == [1, 7, 2, 0, 0, 0, 0, 0, 0]
        assert ids[1, -1] == 2

    def test_r_precision_says_whose_it_is(self, clip: Path) -> None:
        view = open_dual_encoder_view(CPU, str(clip), "clip")
        metric, question = RPrecision("1+5", view=view.name), asked(some(10))
        metric.update(Seen(question, view.look(pictures(10), question)))
        assert metric.compute()[0].figure == "r_precision/dual-clip/1+5/top-1"

    def test_the_digest_is_of_weights_words_and_preparation(self, clip: Path, tmp_path: Path) -> None:
        digests = [DualEncoderView(clip, CPU).digest, DualEncoderView(clip, CPU, "other-name").digest]
        digests.append(DualEncoderView(dual_encoder(tmp_path / "weights", 1), CPU).digest)
        for file, old, new in (
            ("preprocessor_config.json", '"resample": 3', '"resample": 2'),
            ("tokenizer_config.json", '"model_max_length": 9', '"model_max_length": 8'),
        ):
            folder = dual_encoder(tmp_path / file)
            changed = (folder / file).read_text().replace(old, new)
            (folder / file).write_text(changed)
            digests.append(DualEncoderView(folder, CPU).digest)
        assert digests[0] == digests[1]
        assert len(set(digests)) == 4

    def test_folders_that_hold_none(self, clip: Path, tmp_path: Path) -> None:
        from transformers import BertConfig, BertModel

        def refused(folder: Path, why: str) -> None:
            with pytest.raises(
                RequestError, match=f"no dual encoder at {folder} \\(.*{why}.*: give the folder of a CLIP"
            ):
                DualEncoderView(folder, CPU)

        refused(tmp_path / "absent", "there is no such folder")
        (tmp_path / "empty").mkdir()
        refused(tmp_path / "empty", "")
        for gone, why in (("tokenizer.json", ""), ("preprocessor_config.json", "image processor"), ("config.json", "")):
            folder = dual_encoder(tmp_path / f"no-{gone}")
            (folder / gone).unlink()
            refused(folder, why)
        pickled = dual_encoder(tmp_path / "pickled")
        torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
        (pickled / "model.safetensors").unlink()
        refused(pickled, "safetensors")
        partial = dual_encoder(tmp_path / "partial")
        weights = load_file(partial / "model.safetensors")
        del weights["visual_projection.weight"]
        save_file(weights, partial / "model.safetensors", {"format": "pt"})
        refused(partial, "lacks 1 weights, visual_projection.weight first")
        one_tower = dual_encoder(tmp_path / "bert")
        with quiet_loading():
            size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
            BertModel(BertConfig(vocab_size=12, **size)).save_pretrained(one_tower)
        refused(one_tower, "BertModel does not embed both pictures and captions")


class TestHelpers:
    @pytest.mark.parametrize("count", [1, 49, 50, 51, 120])
    def test_batches_are_of_one_size(self, count: int) -> None:
        sizes = []

        def function(rows: Tensor) -> tuple[Tensor, ...]:
            sizes.append(len(rows))
            assert rows.max() < count
            return rows, rows * 2

        rows, doubled = in_batches(function, count)
        assert (rows.tolist(), doubled.tolist()) == (list(range(count)), list(range(0, 2 * count, 2)))
        assert set(sizes) == {50}

    def test_the_digest_sees_names_shapes_types_and_values(self) -> None:
        def digest(key: str, value: Tensor) -> str:
            net = torch.nn.Module()
            net.register_buffer(key, value)
            return weights_digest(net)

        digests = [digest("a", torch.zeros(4)), digest("a", torch.zeros(4)), digest("b", torch.zeros(4))]
        digests += [digest("a", torch.zeros(2, 2)), digest("a", torch.zeros(4, dtype=torch.int32))]
        digests += [digest("a", torch.ones(4)), digest("a", torch.tensor(0))]
        assert digests[0] == digests[1]
        assert len(set(digests)) == 6
