"""A tiny experiment of every registered system and part, on the random data of tests/tiny_data.py.

Tiny settings are the published defaults with every field that `SHRUNK` knows made small, so that a new system is tested
without a word here. One that has sizes of other names fails with a sentence that says what to add. The parts that a
system needs trained first are given as they are initialised.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.abilities import CaptionReader
from models.contract import Batch, Given, Settings, TextFeatures, parameter_count
from models.encoders.bert import NO_WEIGHTS, BertSettings
from models.encoders.image import PretrainedImageSettings
from models.encoders.regions import DETECTOR
from models.encoders.trunk import ImageTrunkSettings
from models.losses.perceptual import PerceptualSettings
from models.parallel import OneRank, Ranks
from models.registry import gathered_names, get_part, get_trainable
from orchestration.config import (
    DataSettings,
    EvaluationSettings,
    Experiment,
    ResourceSettings,
    StageSettings,
    TrainingSettings,
)
from orchestration.data.batches import CaptionedPictures, TrainingStream
from orchestration.data.graphs import GraphSettings
from orchestration.data.sampler import derive_seed
from orchestration.data.word_encoder import describe_part
from orchestration.narratives.settings import NarrativeSettings
from orchestration.prepared import Prepared
from orchestration.stages import write_atomically
from orchestration.training.loop import RunningMeans, Trainer
from orchestration.training.state import LABELS as LABEL_NAMES
from orchestration.training.state import NAMES as GRAPH_NAMES
from orchestration.training.state import build_nets, initial_state
from orchestration.training.worker import Job
from tests.tiny_data import (
    LABELS,
    NAMES,
    PATCHES,
    PIECES,
    PROVENANCE,
    REGION_DIM,
    REGIONS,
    held_pictures,
    tiny_data,
    write_split,
)

__all__ = ["PROVENANCE", "held_pictures", "tiny_data", "write_split"]

CPU = torch.device("cpu")
SHRUNK: dict[str, Any] = {
    "resolution": 32,
    "channels": 2,
    "generator_channels": 4,
    "discriminator_channels": 2,
    "residual_blocks": 1,
    "text_dim": 8,
    "noise_dim": 4,
    "sentence_dim": 4,
    "condition_dim": 3,
    "embedding_dim": 6,
    "hidden_dim": 7,
    "attention_dim": 5,
    "feature_dim": REGION_DIM,
    "region_dim": REGION_DIM,
    "memory_hidden_dim": 6,
    "memory_dim": 5,
    "classes": 3,
    "object_dim": 6,
    "graph_layers": 2,
    "mask_side": 4,
    "refinement_modules": 3,
    "query_dim": 5,
    "patch_channels": 2,
    "patch_side": 16,
    "crop_dim": 4,
    "canvas_side": 8,
    "upsamplings": 3,
    "use_vae": True,
    "transformer_dim": 8,
    "heads": 2,
    "joint_dim": 6,
    "max_pieces": 16,
    # Larger than published, so that seeds and label maps show in untrained pictures.
    "init_gain": 1.0,
    # Those of an untrained box head have hardly any area.
    "boxes": "given",
}
STAND_INS: dict[type[Settings], Settings] = {
    PretrainedImageSettings: PretrainedImageSettings(side=32),
    ImageTrunkSettings: ImageTrunkSettings(name="efficientnet-lite0", weights="random", side=32),
    PerceptualSettings: PerceptualSettings(net="efficientnet-lite0", weights="random", side=32),
    BertSettings: BertSettings(name=NO_WEIGHTS, width=8, layers=1, heads=2, inner_width=8, pieces=PIECES, positions=16),
}
CARRIED = frozenset({"images", "captions", "boxes", "graph", "labels", "narratives"})
OF_STAGE: dict[str, dict[str, Any]] = {"bert_on_raw": {"tags": "raw"}}
"""Settings of a part that are not the same under every name that it is trained under."""
MOST_PARAMETERS = 300_000
TRAINING = TrainingSettings(kimg=0.1, batch_size=16, seed=3, precision="float32")


def tiny_settings(config: type[Settings], defaults: Settings | None = None) -> Settings:
    """The defaults of a settings class, or these, with every known size made small, in settings within it too."""
    values: dict[str, Any] = {}
    for name, info in config.model_fields.items():
        if name in SHRUNK:
            values[name] = SHRUNK[name]
            continue
        if defaults is None and info.is_required():
            raise AssertionError(
                f"{config.__name__}.{name} has no default and tests/tiny.py knows no small value: add it to SHRUNK"
            )
        value = info.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)
        if isinstance(value, Settings):
            value = STAND_INS.get(type(value)) or tiny_settings(type(value), value)
        values[name] = value
    return config(**values)


def _tiny_stages(system: str, model: Settings) -> dict[str, StageSettings]:
    """All parts below a system, whatever one of its settings chooses, those that others need first."""
    found: dict[str, StageSettings] = {}
    for stage, part in (pair for choice in _choices(model) for pair in get_part(system).stages(choice).items()):
        config = tiny_settings(get_part(part).Config).model_copy(update=OF_STAGE.get(stage, {}))
        training = None if part in gathered_names() else TRAINING
        found |= _tiny_stages(part, config) | {stage: StageSettings(system=part, model=config, training=training)}
    return found


def _choices(model: Settings) -> Iterator[Settings]:
    """The settings, then with each other value of a field that is a choice."""
    yield model
    for name, info in type(model).model_fields.items():
        for value in get_args(info.annotation) if get_origin(info.annotation) is Literal else ():
            yield model.model_copy(update={name: value})


def learns(name: str) -> bool:
    """Whether a system or part has anything to train itself."""
    trainable = get_trainable(name)
    return bool(trainable.optimizers(tiny_settings(trainable.Config)))


def tiny_experiment(name: str, **changes: object) -> Experiment:
    """An experiment with batch 16 of 32 px pictures; in `changes` a double underscore stands for a dot."""
    trainable = get_trainable(name)
    if unknown := trainable.needs - CARRIED:
        raise AssertionError(f"{name} needs {sorted(unknown)}: teach `tiny_data` in tests/tiny.py to make them")
    stages = _tiny_stages(name, tiny_settings(trainable.Config))
    looks = DETECTOR in {*stages, *trainable.stages(tiny_settings(trainable.Config))}
    experiment = Experiment(
        recipe="tiny",
        system=name,
        model=tiny_settings(trainable.Config),
        data=DataSettings(),
        regions=REGIONS if looks else None,
        graphs=GraphSettings() if "graphs" in trainable.reads else None,
        patches=PATCHES if "candidates" in trainable.reads else None,
        narratives=NarrativeSettings() if "narratives" in trainable.needs else None,
        stages=stages,
        training=TRAINING if learns(name) else TRAINING.model_copy(update={"kimg": 0.0}),
        evaluation=EvaluationSettings(protocol="none"),
        resources=ResourceSettings(threads=1),
    ).replace({field.replace("__", "."): value for field, value in changes.items()})
    with torch.device("meta"), small_pretrained_nets():
        nets = trainable.build(experiment.model)
    size = sum(parameter_count(net) for name, net in nets.items() if name in trainable.optimizers(experiment.model))
    if size > MOST_PARAMETERS:
        raise AssertionError(f"the tiny {trainable.name} has {size} parameters: add its size fields to tests/tiny.py")
    return experiment


class SmallImageNet(nn.Module):
    """Stands in for a pretrained net: fixed weights, pictures (B,3,H,W) to features (B,6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.linear = nn.Linear(4 * 16, 6)
        fix_weights(self)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = nn.functional.adaptive_avg_pool2d(torch.tanh(self.conv(pixels)), 4)
        features: Tensor = self.linear(maps.flatten(1))
        return features


class SmallTrunk(nn.Module):
    """Stands in for EfficientNet-lite0 as a trunk: fixed weights, (B,3,S,S) to (B,112,S/8,S/8) and (B,1280)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 112, 8, stride=8)
        self.linear = nn.Linear(112, 1280)
        fix_weights(self)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        regions = torch.tanh(self.conv(pixels))
        return regions, self.linear(regions.mean((2, 3)))


def fix_weights(net: nn.Module) -> None:
    """The same numbers in every process, between -1/3 and 1/3."""
    with torch.no_grad():
        for parameter in net.parameters():
            numbers = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_(numbers.add(1.0).mul(12.9898).sin().view_as(parameter) / 3)


@contextmanager
def small_pretrained_nets() -> Iterator[None]:
    """In here every pretrained image net is a `SmallImageNet`, every trunk a `SmallTrunk`: no weights are read."""
    with (
        patch("models.encoders.image._load", lambda settings: SmallImageNet()),
        patch("models.encoders.trunk._load", lambda settings: SmallTrunk()),
    ):
        yield


def data_for(experiment: Experiment) -> CaptionedPictures:
    """Tiny data of the widths that the experiment's system was built for; captions only as it says it reads them."""
    data, reads = _whole_data(experiment), experiment.trainable.reads
    return CaptionedPictures(
        data.pictures,
        data.index,
        data.features if "features" in reads else None,
        data.tokens if "tokens" in reads else None,
        data.objects if "objects" in reads else None,
        data.regions if "regions" in reads else None,
        data.graphs if "graphs" in reads else None,
        data.candidates if "candidates" in reads else None,
        data.labels if "labels" in reads else None,
        data.tagged if "tagged" in reads else None,
        data.canvases if "canvases" in reads else None,
    )


def _whole_data(experiment: Experiment) -> CaptionedPictures:
    trainable, model = experiment.trainable, experiment.model
    return tiny_data(text_dim=trainable.text_dim(model) or 8, resolution=trainable.resolution(model))


def tiny_given(experiment: Experiment) -> Given:
    """What the experiment's nets are built from: its parts as they are initialised, the same in every process."""
    tokens = _whole_data(experiment).tokens
    assert tokens is not None
    return _given(experiment, len(tokens.vocabulary))


def _given(experiment: Experiment, words: int) -> Given:
    parts = {name: experiment.stage(name) for name in experiment.needed}
    folders = {name: _untrained(part, words) for name, part in parts.items()}
    sizes = len(NAMES.objects), len(NAMES.relationships)
    return Given(words, folders, experiment.regions, *sizes, class_names=LABELS)


def _untrained(part: Experiment, words: int) -> Path:
    """The folder that training the part would leave, with the weights that it would start from."""
    folder = _parts_folder() / f"{part.system}-{part.identity}-{words}"
    if folder.exists():
        return folder
    if part.system in gathered_names():
        folder.mkdir()
        memory = torch.randn(words, REGION_DIM, generator=torch.Generator().manual_seed(words))
        save_file({"memory": memory}, folder / f"{part.system}.safetensors")
        return folder
    with in_dtype(torch.float32), torch.random.fork_rng(devices=[]), small_pretrained_nets():
        nets = build_nets(part, _given(part, words))
    folder.mkdir()
    for name in part.trainable.optimizers(part.model):
        save_file(nets[name].state_dict(), folder / f"{name}.safetensors")
    describe_part(folder, part.system, part.model.model_dump(mode="json"))
    return folder


@cache
def _parts_folder() -> Path:
    """This process's own, removed when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-parts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def some_conditions(experiment: Experiment, count: int) -> Batch:
    """What `count` pictures may be conditioned on: the first ones of the tiny data, without their pixels."""
    data = data_for(experiment)
    items = np.arange(count, dtype=np.int64)
    return data.without_pixels(items, data.index.starts[items])


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
        images, text = narrow.images, narrow.text
        assert images is not None
        if text is not None:
            text = TextFeatures(text.words.to(dtype), text.lengths, text.sentence.to(dtype))
        regions = narrow.regions
        if regions is not None:
            regions = replace(regions, boxes=regions.boxes.to(dtype), features=regions.features.to(dtype))
        graphs = narrow.graphs and replace(narrow.graphs, boxes=narrow.graphs.boxes.to(dtype))
        candidates = narrow.candidates
        if candidates is not None:
            candidates = replace(candidates, patches=candidates.patches.to(dtype))
        return replace(
            narrow, images=images.to(dtype), text=text, regions=regions, graphs=graphs, candidates=candidates
        )


@contextmanager
def in_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Nets, noise and `WideStream` batches made in here are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def float64() -> AbstractContextManager[None]:
    """`in_dtype` of double precision."""
    return in_dtype(torch.float64)


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
        state = initial_state(experiment, CPU, tiny_given(experiment))
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


def tiny_job(folder: Path, experiment: Experiment, protocol: str = "none") -> Job:
    """A job in a new folder: its data in `folder`/data, its run in `folder`/run."""
    (folder / "run").mkdir(parents=True)
    train, validation = (write_split(folder / "data" / name, data_for(experiment)) for name in ("train", "validation"))
    given = tiny_given(experiment)
    parts = tuple((name, str(part)) for name, part in given.folders.items())
    stages = experiment.stages
    text = next((part for name, part in parts if isinstance(get_part(stages[name].system), CaptionReader)), None)
    if "graphs" in experiment.trainable.reads:
        text = str(folder / "names")
        Path(text).mkdir()
        write_atomically(Path(text) / GRAPH_NAMES, json.dumps(asdict(NAMES)))
    if experiment.trainable.reads & {"labels", "canvases"}:
        text = str(folder / "names")
        Path(text).mkdir()
        write_atomically(Path(text) / LABEL_NAMES, json.dumps({"classes": LABELS}))
    regions = experiment.regions.model_dump(mode="json") if experiment.regions else None
    sizes = given.classes, given.predicates
    prepared = Prepared(
        train, validation, PROVENANCE, protocol, None, given.vocabulary_size, parts, text, regions, *sizes,
        class_names=given.class_names,
    )  # fmt: skip
    return Job(experiment, prepared, str(folder / "run"), 1)
