"""A tiny experiment of every registered system and part, and random data that needs no encoder, no reader, no disk.

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
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from models.contract import Batch, Candidates, Given, Matcher, Settings, TextFeatures, parameter_count
from models.encoders.image import PretrainedImageSettings
from models.encoders.regions import DETECTOR, RegionSettings
from models.encoders.trunk import ImageTrunkSettings
from models.losses.perceptual import PerceptualSettings
from models.parallel import OneRank, Ranks
from models.registry import gathered_names, get_part, get_trainable
from orchestration.config import (
    DataSettings,
    EvaluationSettings,
    Experiment,
    PatchSettings,
    ResourceSettings,
    StageSettings,
    TrainingSettings,
)
from orchestration.data.batches import CaptionedPictures, TrainingStream
from orchestration.data.candidates import write_candidates
from orchestration.data.features import CaptionFeatures, CaptionIndex, CaptionTokens
from orchestration.data.graphs import GraphSettings, StoredGraphs, graphs_stage
from orchestration.data.label_maps import StoredLabelMaps, label_maps_stage
from orchestration.data.objects import StoredObjects, objects_stage
from orchestration.data.patch_search import PreFilterSettings
from orchestration.data.patch_source import EncodedObjects
from orchestration.data.patches import write_bank
from orchestration.data.pictures import Pictures
from orchestration.data.records import (
    Dataset,
    ImageRecord,
    Instance,
    Panoptic,
    PanopticSegment,
    SceneGraph,
    SceneObject,
)
from orchestration.data.regions import ARRAYS, About, RegionFeatures
from orchestration.data.sampler import derive_seed
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.data.shards import ShardOptions, write_shards
from orchestration.data.transforms import TRANSFORMS
from orchestration.data.vocabulary import Vocabulary, save_vocabulary
from orchestration.data.word_encoder import describe_part
from orchestration.prepared import CandidateSource, Prepared, PreparedSplit, TokenSource
from orchestration.stages import quiet, write_atomically
from orchestration.training.loop import RunningMeans, Trainer
from orchestration.training.state import LABELS as LABEL_NAMES
from orchestration.training.state import NAMES as GRAPH_NAMES
from orchestration.training.state import Provenance, build_nets, initial_state
from orchestration.training.worker import Job

CPU = torch.device("cpu")
REGION_DIM = 5
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
    # Larger than published, so that seeds and label maps show in untrained pictures.
    "init_gain": 1.0,
    # Those of an untrained box head have hardly any area.
    "boxes": "given",
}
STAND_INS: dict[type[Settings], Settings] = {
    PretrainedImageSettings: PretrainedImageSettings(side=32),
    ImageTrunkSettings: ImageTrunkSettings(name="efficientnet-lite0", weights="random", side=32),
    PerceptualSettings: PerceptualSettings(net="efficientnet-lite0", weights="random", side=32),
}
REGIONS = RegionSettings(count=4)
PATCHES = PatchSettings(candidates=6, side=16, prefilter=PreFilterSettings(k=20))
NAMES = GraphVocabulary(("cat", "dog", "grass"), (), ("left of", "on"))
LABELS = ("cat", "dog", "grass")
CARRIED = frozenset({"images", "captions", "boxes", "graph", "labels"})
MOST_PARAMETERS = 300_000
PROVENANCE = Provenance("d" * 64, "e" * 64)
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
    """All parts below a system, those that others need first."""
    found: dict[str, StageSettings] = {}
    for stage, part in get_part(system).stages(model).items():
        config = tiny_settings(get_part(part).Config)
        training = None if part in gathered_names() else TRAINING
        found |= _tiny_stages(part, config) | {stage: StageSettings(system=part, model=config, training=training)}
    return found


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
        stages=stages,
        training=TRAINING,
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
    # From two words to more than are used; two images a class.
    texts = tuple(" ".join(f"number {index} of all captions".split()[: 2 + index % 4]) for index in range(captions))
    index = CaptionIndex(image_ids, np.arange(images, dtype=np.int64) // 2, starts, texts)
    vocabulary = Vocabulary(("<end>", *sorted({word for text in texts for word in text.split()})))
    pictures = held_pictures(pixels, image_ids)
    graphs = _some_graphs(np.random.default_rng((seed, 1)), image_ids, pictures)
    return CaptionedPictures(
        pictures,
        index,
        CaptionFeatures(rows, offsets, words, sentence),
        CaptionTokens(index, vocabulary, 4, "random"),
        _some_objects(random, image_ids, pictures),
        _some_regions(random, image_ids),
        graphs,
        HeldCandidates(image_ids, graphs.most, seed),
        _some_labels(np.random.default_rng((seed, 2)), image_ids, pictures),
    )


def _some_boxes(random: np.random.Generator, count: int) -> NDArray[np.float32]:
    """(count,4), x0, y0, x1, y1 in [0, 1], at least a quarter of the picture wide and high."""
    low, size = random.uniform(0, 0.5, (count, 2)), random.uniform(0.25, 0.5, (count, 2))
    return np.concatenate([low, low + size], 1).astype(np.float32)


def _some_objects(random: np.random.Generator, image_ids: NDArray[np.int64], pictures: Pictures) -> StoredObjects:
    """None to two things a picture."""
    starts = np.concatenate([[0], np.cumsum(random.integers(0, 3, len(image_ids)))]).astype(np.int64)
    count, side = int(starts[-1]), pictures.size
    stored = np.full((len(image_ids), 2), side, np.int64)
    classes = random.integers(0, 2, count).astype(np.int64)
    boxes = (side * _some_boxes(random, count)).astype(np.float32)
    return StoredObjects(image_ids, ("cat", "dog"), stored, starts, boxes, classes, pictures.transform, side)


def _some_regions(random: np.random.Generator, image_ids: NDArray[np.int64]) -> RegionFeatures:
    """None to all of the regions a picture."""
    images, count = len(image_ids), REGIONS.count
    return RegionFeatures(
        Path("tiny"),
        About(1, "tiny", "0" * 64, REGION_DIM, count),
        image_ids,
        _some_boxes(random, images * count).reshape(images, count, 4),
        random.standard_normal((images, count, REGION_DIM)).astype(np.float16),
        np.sort(random.uniform(0, 1, (images, count)).astype(np.float32), 1)[:, ::-1],
        random.integers(0, count + 1, images).astype(np.int64),
        np.arange(images, dtype=np.int64),
    )


def _some_graphs(random: np.random.Generator, image_ids: NDArray[np.int64], pictures: Pictures) -> StoredGraphs:
    """Two or three objects a picture, and up to two relations."""
    starts, link_starts = (
        np.concatenate([[0], np.cumsum(random.integers(least, 1 + most, len(image_ids)))]).astype(np.int64)
        for least, most in ((2, 3), (0, 2))
    )
    counts = np.repeat(np.diff(starts), np.diff(link_starts))
    links = np.stack([random.integers(0, counts), random.integers(0, 2, len(counts)), random.integers(0, counts)], 1)
    stored = np.full((len(image_ids), 2), pictures.size, np.int64)
    count = int(starts[-1])
    boxes = (pictures.size * _some_boxes(random, count)).astype(np.float32)
    numbers = random.integers(0, len(NAMES.objects), count).astype(np.int64)
    return StoredGraphs(
        image_ids,
        NAMES.objects,
        NAMES.relationships,
        stored,
        starts,
        boxes,
        numbers,
        link_starts,
        links.astype(np.int64),
        pictures.transform,
        pictures.size,
    )


def _some_labels(random: np.random.Generator, image_ids: NDArray[np.int64], pictures: Pictures) -> StoredLabelMaps:
    """Stripes of all classes and of none, some of them things."""
    images, side = len(image_ids), pictures.size
    stripes = random.integers(0, len(LABELS) + 1, (images, 8))
    labels = np.repeat(stripes, side // 8, 1)[:, :, None].repeat(side, 2)
    maps = np.stack([labels, np.where(labels < 2, 1 + labels, 0)], 1).astype(np.uint8)
    stored, starts = np.full((images, 2), side, np.int64), 2 * side * side * np.arange(images + 1, dtype=np.int64)
    stuff = (False, False, True)
    return StoredLabelMaps(image_ids, LABELS, stuff, stored, starts, maps.reshape(-1), pictures.transform, side)


@dataclass(frozen=True, eq=False)
class HeldCandidates:
    """Random patches: each picture's first object has all that it may have, the others any number of them."""

    image_ids: NDArray[np.int64]
    objects: int
    seed: int

    def take(self, items: NDArray[np.int64]) -> Candidates:
        shape = (len(items), self.objects, PATCHES.candidates)
        patches, counts = np.zeros((*shape, 3, PATCHES.side, PATCHES.side), np.uint8), np.zeros(shape[:2], np.int64)
        for row, item in enumerate(items.tolist()):
            random = np.random.default_rng((self.seed, item))
            patches[row] = random.integers(0, 256, patches.shape[1:], np.uint8)
            counts[row] = random.integers(0, PATCHES.candidates + 1, self.objects)
            counts[row, 0] = PATCHES.candidates
        patches *= (np.arange(PATCHES.candidates) < counts[..., None])[..., None, None, None]
        return Candidates(torch.from_numpy(patches), torch.zeros(shape, dtype=torch.int64), torch.from_numpy(counts))


@dataclass(frozen=True, eq=False)
class HeldPictures:
    """Stored pictures in memory: `pixels` uint8 (N,3,h,w)."""

    pixels: NDArray[np.uint8]
    image_ids: NDArray[np.int64]

    def pictures(self, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        return list(self.pixels[rows])


def held_pictures(pixels: NDArray[np.uint8], image_ids: NDArray[np.int64]) -> Pictures:
    """Pictures (N,3,S,S) that need no more than a flip."""
    return Pictures(HeldPictures(pixels, image_ids), TRANSFORMS["xmcgan"], pixels.shape[-1])


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
    return Given(words, folders, experiment.regions, len(NAMES.objects), len(NAMES.relationships))


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


def write_split(folder: Path, data: CaptionedPictures) -> PreparedSplit:
    """Tiny data on disk, in the formats that preparation writes."""
    pictures, features, published = folder / "pictures", folder / "features", folder / "published"
    published.mkdir(parents=True)
    features.mkdir()
    side = data.pictures.size
    records = []
    for place, pixels in enumerate(data.pixels(np.arange(len(data)))):
        image_id = int(data.image_ids[place])
        file = published / f"{image_id}.png"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
        things = None if data.objects is None else _instances(data.objects, place)
        graph = None if data.graphs is None else _graph(data.graphs, place)
        shown = {} if data.labels is None else _labelled(data.labels, place)
        records.append(ImageRecord(image_id, file, side, side, **{"instances": things, "graph": graph, **shown}))
    dataset = Dataset("tiny", "train", published, tuple(records), frozenset({"images"}), PROVENANCE.data_digest)
    # Compressed, and with random cuts: runs that resume on these resume on anything simpler.
    write_shards(dataset, ShardOptions("attngan", side, "png"), pictures)
    index, found, tokens = data.index, data.features, data.tokens
    for name in ("image_ids", "class_ids", "starts"):
        np.save(features / f"{name}.npy", getattr(index, name))
    for name in ("rows", "offsets", "words", "sentence") if found is not None else ():
        np.save(features / f"{name}.npy", getattr(found, name))
    (features / "captions.json").write_text(json.dumps(index.texts))
    source = None
    if tokens is not None:
        vocabulary = features / "vocabulary.json"
        save_vocabulary(tokens.vocabulary, vocabulary)
        source = TokenSource(str(vocabulary), tokens.longest, tokens.shortening)
    objects = None if data.objects is None else folder / "objects"
    regions = None if data.regions is None else folder / "regions"
    graphs, candidates = None if data.graphs is None else folder / "graphs", None
    if graphs and data.graphs:
        graphs.mkdir()
        graphs_stage(dataset, TRANSFORMS["attngan"], side, NAMES).run(graphs, quiet)
    if graphs and data.candidates:
        candidates = CandidateSource(str(folder / "candidates"), str(folder / "bank"), PATCHES.candidates)
        open_source = partial(
            _described, PreparedSplit(str(pictures), str(published), str(features), graphs=str(graphs))
        )
        for made in (candidates.folder, candidates.bank):
            Path(made).mkdir()
        count, digest = len(data), PROVENANCE.data_digest
        bank, chosen = Path(candidates.bank), Path(candidates.folder)
        write_bank(bank, count, open_source, digest, NAMES.objects, PATCHES.side, quiet)
        write_candidates(chosen, count, open_source, digest, bank, True, PATCHES.prefilter, quiet)
    if objects:
        objects.mkdir()
        objects_stage(dataset, TRANSFORMS["attngan"], side).run(objects, quiet)
    if regions and data.regions:
        regions.mkdir()
        for name in ARRAYS:
            np.save(regions / f"{name}.npy", getattr(data.regions, name))
        (regions / "regions.json").write_bytes(msgspec.json.encode(data.regions.about))
    maps = None if data.labels is None else folder / "labels"
    if maps and data.labels:
        maps.mkdir()
        label_maps_stage(dataset, TRANSFORMS["attngan"], side, LABELS).run(maps, quiet)
    return PreparedSplit(
        str(pictures),
        str(published),
        str(features),
        None if found is None else str(features),
        source,
        objects=str(objects) if objects else None,
        regions=str(regions) if regions else None,
        graphs=str(graphs) if graphs else None,
        candidates=candidates,
        label_maps=str(maps) if maps else None,
    )


class _Described(EncodedObjects):
    """Objects of tiny data, described by nobody: by their boxes and classes."""

    encoder = "f" * 64

    def __init__(self, split: PreparedSplit) -> None:
        self.data = split.open()

    def features(self, items: NDArray[np.int64]) -> Tensor:
        found = self.objects(items)
        return torch.from_numpy(np.concatenate([found.boxes, found.classes[:, None].astype(np.float32)], 1))


def _described(split: PreparedSplit) -> _Described:
    return _Described(split)


def _instances(objects: StoredObjects, place: int) -> tuple[Instance, ...]:
    """The things of a picture as they are published."""
    found = []
    for row in range(objects.starts[place], objects.starts[place + 1]):
        left, top, right, bottom = objects.boxes[row].tolist()
        box, number = (left, top, right - left, bottom - top), int(objects.numbers[row])
        found.append(Instance(objects.classes[number], number, box, None, box[2] * box[3], False))
    return tuple(found)


def _labelled(labels: StoredLabelMaps, place: int) -> dict[str, Any]:
    """What a picture shows, as it is published: a panoptic map, for which any names will do."""
    shown = labels.take(np.array([place])).labels[0].numpy()
    map_bytes = BytesIO()
    Image.fromarray(np.stack([shown + 1, 0 * shown, 0 * shown], 2).astype(np.uint8)).save(map_bytes, "PNG")
    segments = [
        PanopticSegment(number + 1, name, number + 1, number < 2, (0, 0, 1, 1), 1.0, False)
        for number, name in enumerate((*labels.classes, "nothing known"))
        if (shown == number).any() or number < len(labels.classes)
    ]
    return {"panoptic": Panoptic(map_bytes.getvalue(), tuple(segments))}


def _graph(graphs: StoredGraphs, place: int) -> SceneGraph:
    """The scene graph of a picture as it is published."""
    things = []
    for row in range(graphs.starts[place], graphs.starts[place + 1]):
        left, top, right, bottom = graphs.boxes[row].tolist()
        box = (left, top, right - left, bottom - top)
        things.append(SceneObject(len(things), graphs.classes[graphs.numbers[row]], (), box))
    links = graphs.links[graphs.link_starts[place] : graphs.link_starts[place + 1]].tolist()
    return SceneGraph(tuple(things), tuple((first, graphs.predicates[word], last) for first, word, last in links))


def tiny_job(folder: Path, experiment: Experiment, protocol: str = "none") -> Job:
    """A job in a new folder: its data in `folder`/data, its run in `folder`/run."""
    (folder / "run").mkdir(parents=True)
    train, validation = (write_split(folder / "data" / name, data_for(experiment)) for name in ("train", "validation"))
    given = tiny_given(experiment)
    parts = tuple((name, str(part)) for name, part in given.folders.items())
    stages = experiment.stages
    text = next((part for name, part in parts if isinstance(get_part(stages[name].system), Matcher)), None)
    if "graphs" in experiment.trainable.reads:
        text = str(folder / "names")
        Path(text).mkdir()
        write_atomically(Path(text) / GRAPH_NAMES, json.dumps(asdict(NAMES)))
    if "labels" in experiment.trainable.reads:
        text = str(folder / "names")
        Path(text).mkdir()
        write_atomically(Path(text) / LABEL_NAMES, json.dumps({"classes": LABELS}))
    regions = experiment.regions.model_dump(mode="json") if experiment.regions else None
    sizes = given.classes, given.predicates
    prepared = Prepared(
        train, validation, PROVENANCE, protocol, None, given.vocabulary_size, parts, text, regions, *sizes
    )
    return Job(experiment, prepared, str(folder / "run"), 1)
