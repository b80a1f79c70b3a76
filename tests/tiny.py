"""A tiny experiment of every registered system, and random data that needs no encoder, no reader and no disk.

A system's tiny settings are its own defaults with every field that `SHRUNK` knows made small, so that a new system is
tested without a word here. One that has sizes of other names fails with a sentence that says what to add.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from models.contract import Batch, Settings, TextFeatures, parameter_count
from models.encoders.image import PretrainedImageSettings
from models.parallel import OneRank, Ranks
from models.registry import get_system
from orchestration.config import (
    DataSettings,
    EvaluationSettings,
    Experiment,
    ResourceSettings,
    TrainingSettings,
)
from orchestration.data.batches import CaptionedPictures, TrainingStream
from orchestration.data.features import CaptionFeatures
from orchestration.data.pictures import Pictures
from orchestration.data.records import Dataset, ImageRecord
from orchestration.data.sampler import derive_seed
from orchestration.data.shards import ShardOptions, write_shards
from orchestration.data.transforms import TRANSFORMS
from orchestration.preparation import Prepared, PreparedSplit
from orchestration.training.loop import RunningMeans, Trainer
from orchestration.training.state import Provenance, initial_state
from orchestration.training.worker import Job

CPU = torch.device("cpu")
SHRUNK: dict[str, Any] = {"resolution": 32, "channels": 2, "text_dim": 8, "noise_dim": 4, "sentence_dim": 4}
CARRIED = frozenset({"images", "captions"})
MOST_PARAMETERS = 300_000
PROVENANCE = Provenance("d" * 64, "e" * 64)


def tiny_settings(config: type[Settings]) -> Settings:
    """The defaults of a settings class with every known size made small."""
    values: dict[str, Any] = {}
    for name, info in config.model_fields.items():
        if name in SHRUNK:
            values[name] = SHRUNK[name]
        elif info.annotation is PretrainedImageSettings:
            values[name] = PretrainedImageSettings(side=32)
        elif info.is_required():
            raise AssertionError(
                f"{config.__name__}.{name} has no default and tests/tiny.py knows no small value: add it to SHRUNK"
            )
    return config(**values)


def tiny_experiment(system_name: str, **changes: object) -> Experiment:
    """An experiment with batch 16 of 32 px pictures; in `changes` a double underscore stands for a dot."""
    system = get_system(system_name)
    if unknown := system.needs - CARRIED:
        raise AssertionError(f"{system_name} needs {sorted(unknown)}: teach `tiny_data` in tests/tiny.py to make them")
    experiment = Experiment(
        recipe="tiny",
        system=system_name,
        model=tiny_settings(system.Config),
        data=DataSettings(),
        training=TrainingSettings(kimg=0.1, batch_size=16, seed=3, precision="float32"),
        evaluation=EvaluationSettings(protocol="none"),
        resources=ResourceSettings(threads=1),
    ).replace({name.replace("__", "."): value for name, value in changes.items()})
    with torch.device("meta"), small_pretrained_nets():
        nets = system.build(experiment.model)
    size = sum(parameter_count(net) for net in nets.values())
    if size > MOST_PARAMETERS:
        raise AssertionError(f"the tiny {system_name} has {size} parameters: add its size fields to tests/tiny.py")
    return experiment


class SmallImageNet(nn.Module):
    """Stands in for a pretrained net: fixed weights, pictures (B,3,H,W) to features (B,6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.linear = nn.Linear(4 * 16, 6)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.arange(parameter.numel()).add(1.0).mul(12.9898).sin().view_as(parameter) / 3)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = nn.functional.adaptive_avg_pool2d(torch.tanh(self.conv(pixels)), 4)
        features: Tensor = self.linear(maps.flatten(1))
        return features


@contextmanager
def small_pretrained_nets() -> Iterator[None]:
    """In here every pretrained image net is a `SmallImageNet`: no weights are read."""
    with patch("models.encoders.image._load", lambda settings: SmallImageNet()):
        yield


def tiny_data(images: int = 24, text_dim: int = 8, resolution: int = 32, seed: int = 0) -> CaptionedPictures:
    """Random pictures with one to three captions of two to six random word features each."""
    random = np.random.default_rng(seed)
    image_ids = 100 + 7 * np.arange(images, dtype=np.int64)
    pixels = random.integers(0, 256, (images, 3, resolution, resolution), np.uint8)
    starts = np.concatenate([[0], np.cumsum(random.integers(1, 4, images))]).astype(np.int64)
    captions = int(starts[-1])
    offsets = np.concatenate([[0], np.cumsum(random.integers(2, 7, captions))]).astype(np.int64)
    # Rows are in another order than captions, as where texts repeat.
    rows = random.permutation(captions).astype(np.int64)
    words = random.standard_normal((int(offsets[-1]), text_dim)).astype(np.float16)
    sentence = random.standard_normal((captions, text_dim)).astype(np.float32)
    texts = tuple(f"caption {index}" for index in range(captions))
    return CaptionedPictures(
        held_pictures(pixels, image_ids), CaptionFeatures(image_ids, starts, texts, rows, offsets, words, sentence)
    )


@dataclass(frozen=True, eq=False)
class HeldPictures:
    """Stored pictures in memory: `pixels` uint8 (N,3,h,w)."""

    pixels: NDArray[np.uint8]
    image_ids: NDArray[np.int64]

    def pictures(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.pixels[rows]


def held_pictures(pixels: NDArray[np.uint8], image_ids: NDArray[np.int64]) -> Pictures:
    """Pictures (N,3,S,S) that need no more than a flip."""
    return Pictures(HeldPictures(pixels, image_ids), TRANSFORMS["xmcgan"], pixels.shape[-1])


def data_for(experiment: Experiment) -> CaptionedPictures:
    """Tiny data of the widths that the experiment's system was built for."""
    system = experiment.get_system()
    return tiny_data(text_dim=system.text_dim(experiment.model), resolution=system.resolution(experiment.model))


def some_text(count: int, dim: int = 8, longest: int = 6, seed: int = 0) -> TextFeatures:
    """Random features of `count` captions, padded with zeros."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator)
    words = torch.randn(count, longest, dim, generator=generator)
    words[torch.arange(longest)[None, :] >= lengths[:, None]] = 0
    return TextFeatures(words, lengths, torch.randn(count, dim, generator=generator))


class WideStream(TrainingStream):
    """A training stream in torch's default precision, which a test may have set to float64."""

    def batch(self, start: int, count: int) -> Batch:
        narrow, dtype = super().batch(start, count), torch.get_default_dtype()
        assert narrow.images is not None and narrow.text is not None
        text = TextFeatures(narrow.text.words.to(dtype), narrow.text.lengths, narrow.text.sentence.to(dtype))
        return Batch(narrow.image_ids, narrow.images.to(dtype), text)


@contextmanager
def float64() -> Iterator[None]:
    """Nets, noise and `WideStream` batches made in here are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class TermLog(RunningMeans):
    """Keeps every loss term in the order it came."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Tensor]] = []

    def add(self, prefix: str, terms: dict[str, Tensor]) -> None:
        self.seen += [(f"{prefix}/{name}", value.clone()) for name, value in terms.items()]
        super().add(prefix, terms)


def tiny_trainer(
    experiment: Experiment,
    ranks: Ranks | None = None,
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> Trainer:
    """A trainer at the start of the experiment, on tiny data; `change` may spoil its batches."""

    class Stream(WideStream):
        def batch(self, start: int, count: int) -> Batch:
            return change(super().batch(start, count))

    with small_pretrained_nets():
        state = initial_state(experiment, CPU)
    stream = Stream(data_for(experiment), derive_seed(experiment.training.seed, 0), experiment.data.flip)
    trainer = Trainer(experiment, state, stream, CPU, ranks or OneRank())
    trainer.means = TermLog()
    return trainer


def terms_of(trainer: Trainer) -> list[tuple[str, Tensor]]:
    """Every loss term of a tiny trainer so far."""
    assert isinstance(trainer.means, TermLog)
    return trainer.means.seen


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that training changes, by name; copies."""
    state = trainer.state
    found: dict[str, Tensor] = {}
    for kind, nets in (("net", state.nets), ("average", state.averages)):
        for name, net in nets.items():
            found |= {f"{kind}/{name}/{key}": value for key, value in net.state_dict().items()}
    for name, optimizer in state.optimizers.items():
        for key, parameter in state.nets[name].named_parameters():
            for slot, value in optimizer.state[parameter].items():
                found[f"optimizer/{name}/{key}/{slot}"] = value
    return {name: value.detach().clone() for name, value in found.items()}


def write_split(folder: Path, data: CaptionedPictures) -> PreparedSplit:
    """Tiny data on disk, in the formats that preparation writes."""
    pictures, features, published = folder / "pictures", folder / "features", folder / "published"
    published.mkdir(parents=True)
    features.mkdir()
    side = data.pictures.size
    records = []
    for image_id, pixels in zip(data.image_ids.tolist(), data.pixels(np.arange(len(data))), strict=True):
        file = published / f"{image_id}.png"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
        records.append(ImageRecord(image_id, file, side, side))
    dataset = Dataset("tiny", "train", published, tuple(records), frozenset({"images"}), PROVENANCE.data_digest)
    # Compressed, and with random cuts: runs that resume on these resume on anything simpler.
    write_shards(dataset, ShardOptions("attngan", side, "png"), pictures)
    captions = data.captions
    arrays: dict[str, NDArray[Any]] = {
        name: getattr(captions, name) for name in ("image_ids", "starts", "rows", "offsets", "words", "sentence")
    }
    for name, array in arrays.items():
        np.save(features / f"{name}.npy", array)
    (features / "captions.json").write_text(json.dumps(captions.texts))
    return PreparedSplit(str(pictures), str(published), str(features))


def tiny_job(folder: Path, experiment: Experiment, protocol: str = "none") -> Job:
    """A job whose data lies in `folder`/data (written once) and whose run is `folder`/run."""
    data = folder / "data"
    splits = {
        name: PreparedSplit(*(str(data / name / part) for part in ("pictures", "published", "features")))
        for name in ("train", "validation")
    }
    if not data.exists():
        for name in splits:
            write_split(data / name, data_for(experiment))
    (folder / "run").mkdir(exist_ok=True)
    prepared = Prepared(splits["train"], splits["validation"], PROVENANCE, protocol, None)
    return Job(experiment, prepared, str(folder / "run"), 1)
