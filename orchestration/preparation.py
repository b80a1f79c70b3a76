"""What must exist before training: vocabulary, trained parts, pixels, captions as they are read, the judge of scenes.

All are stages: computed once, under a key of all that they depend on, and shared by every run and trial.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from models.contract import Matcher
from models.encoders.image import PretrainedImageSettings, WeightsMissing, find_weights
from models.encoders.text import TextEncoder
from models.encoders.trunk import ImageTrunkSettings, find_trunk_weights
from models.registry import get_trainable
from orchestration.config import Experiment
from orchestration.data.features import (
    INDEX_VERSION,
    Encoder,
    open_caption_index,
    write_caption_features,
    write_caption_index,
)
from orchestration.data.features import VERSION as FEATURES_VERSION
from orchestration.data.records import Dataset
from orchestration.data.shard_form import Codec
from orchestration.data.shards import ShardOptions, open_shards, write_shards
from orchestration.data.sources import FORMATS, PREPARED, SCENES, open_source, parse_source, source_folder
from orchestration.data.transforms import get_transform
from orchestration.data.vocabulary import Vocabulary, load_vocabulary, read_word_list, vocabulary_stage, word_list_stage
from orchestration.data.word_encoder import VOCABULARY, WordEncoder, describe_part, open_word_encoder
from orchestration.errors import RequestError, RunError
from orchestration.home import Home
from orchestration.prepared import Prepared, PreparedSplit, TokenSource
from orchestration.stages import Progress, Stage, ensure, quiet
from orchestration.training.state import Provenance

PICTURES_VERSION, PART_VERSION = 2, 1
# Up to so many bytes, reading raw pixels is worth more than a smaller folder.
RAW_UP_TO = 2 * 2**30
PART_PROTOCOL, PART_FIGURES = "part", "figures.json"
# What a training records and when does not change what it learns.
RECORDS = {"log_kimg", "picture_kimg", "checkpoint_kimg", "keep_checkpoints"}


TrainPart = Callable[[Experiment, Prepared, Path, Progress], Path]
"""Trains a part in a run folder, or goes on there, and returns its last checkpoint's folder."""


class Preparation:
    """Runs the stages of an experiment that are missing. Encoders are loaded once, and only if needed.

    train_part: trains the parts that are missing, None where all must be there; encoder: reads the captions, None for
    the experiment's own.
    """

    def __init__(
        self,
        experiment: Experiment,
        home: Home,
        progress: Progress = quiet,
        train_part: TrainPart | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self.experiment, self.home, self.progress = experiment, home, progress
        self._train_part, self._encoder = train_part, encoder
        self._opened: dict[str, Dataset] = {}  # shared with the preparations of the parts

    @cached_property
    def encoder(self) -> Encoder:
        """The experiment's text encoder. Raises RequestError when it is missing or of another width."""
        encoder = self._encoder or (
            open_word_encoder(self.parts[self.text_part]) if self.text_part else self._pretrained_encoder()
        )
        wanted = self.experiment.trainable.text_dim(self.experiment.model)
        if wanted != encoder.dim:
            name = f"the trained {self.text_part}" if self.text_part else self.experiment.text.name
            raise RequestError(
                f"model.text_dim is {wanted} but {name} gives {encoder.dim} features: "
                f"add --set model.text_dim={encoder.dim}"
            )
        return encoder

    def _pretrained_encoder(self) -> Encoder:
        try:
            return TextEncoder(self.experiment.text, self.home.encoders)
        except WeightsMissing as error:
            raise RequestError(f"text.name: {error}") from error

    @property
    def text_part(self) -> str | None:
        """The trained part that encodes captions; None where a pretrained encoder does."""
        stages = self.experiment.trainable.stages
        return next((name for name in stages if isinstance(self._part(name), Matcher)), None)

    def _part(self, name: str) -> Any:
        return get_trainable(self.experiment.stages[name].system)

    def everything(self) -> Prepared:
        """What training and its validation read. What is missing is said before the long work. Raises RequestError."""
        data, trainable = self.experiment.data, self.experiment.trainable
        train, validation = self.dataset(data.train_split), self.dataset(data.validation_split)
        protocol = choose_protocol(self.experiment)
        require_weights(self.experiment)
        text_digest = self.encoder.digest if "features" in trainable.reads else "none"
        vocabulary = self.vocabulary
        return Prepared(
            self.split(train),
            self.split(validation),
            Provenance(train.digest, text_digest, vocabulary.digest if vocabulary else None),
            protocol,
            self.judge(protocol),
            len(vocabulary) if vocabulary else 0,
            tuple((name, str(folder)) for name, folder in self.parts.items()),
            str(self.parts[self.text_part]) if self.text_part else None,
        )

    def judge(self, protocol: str) -> str | None:
        """The folder of the trained judge, for the protocol that needs one."""
        if protocol != "scenes-net":
            return None
        from orchestration.evaluation.scenes_net import judge_stage

        return str(ensure(judge_stage(self.experiment, self.home), self.home.stages, self.progress))

    def dataset(self, split: str) -> Dataset:
        """One split: its images that have everything the system needs. Raises RequestError."""
        if split not in self._opened:
            self._opened[split] = open_source(
                self.experiment.data.source,
                split,
                self.home.root,
                lambda done, total: self.progress("drawing scenes", done, total),
            )
        require(self.experiment, self._opened[split])
        return self._opened[split].having(self.experiment.trainable.needs)

    @property
    def uses_words(self) -> bool:
        """Whether anything here reads captions by a vocabulary."""
        trainables = [self.experiment.trainable, *(self._part(name) for name in self.experiment.trainable.stages)]
        return any("tokens" in trainable.reads for trainable in trainables)

    @cached_property
    def vocabulary_stage(self) -> Stage | None:
        """The vocabulary: of the captions of every split that is used (as AttnGAN's), or a published word list.

        None where no word index plays a part. Raises RequestError.
        """
        if not self.uses_words:
            return None
        words, data = self.experiment.words, self.experiment.data
        if words.file is not None:
            return word_list_stage(read_word_list(Path(words.file)))
        kind, folder = source_folder(data.source, self.home.root)
        there = FORMATS[kind].splits(folder)
        used = dict.fromkeys((data.train_split, data.validation_split, data.test_split))
        return vocabulary_stage([self.dataset(split) for split in used if split in there], words.min_count)

    @cached_property
    def vocabulary_file(self) -> Path | None:
        """Where the vocabulary is, None where there is none."""
        stage = self.vocabulary_stage
        return self._ensure(stage) / VOCABULARY if stage else None

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """What `vocabulary_file` holds."""
        return load_vocabulary(self.vocabulary_file) if self.vocabulary_file else None

    @cached_property
    def parts(self) -> dict[str, Path]:
        """The folders of the trained parts, in order; those that are missing are trained now."""
        return {name: self.part(name) for name in self.experiment.trainable.stages}

    def part(self, name: str) -> Path:
        """The folder of one trained part: NET.safetensors, figures.json, and what reads captions with it."""
        return self._ensure(self.part_stage(name))

    def _ensure(self, stage: Stage) -> Path:
        return ensure(stage, self.home.stages, self.progress)

    def _below(self, name: str) -> "Preparation":
        """The preparation of one part, which reads the same data."""
        below = Preparation(self.experiment.stage(name), self.home, self.progress, self._train_part)
        below._opened = self._opened
        return below

    def part_stage(self, name: str) -> Stage:
        """The stage that trains a part."""
        below = self._below(name)
        experiment = below.experiment
        data = experiment.data
        settings: dict[str, Any] = {
            "system": experiment.system,
            "model": experiment.model.model_dump(mode="json"),
            "training": experiment.training.model_dump(mode="json", exclude=RECORDS),
            "words": experiment.words.model_dump(mode="json", exclude={"file", "min_count"}),
            "transform": data.transform,
            "flip": data.flip,
        }
        inputs = {
            "train": below.dataset(data.train_split).digest,
            "vocabulary": below.vocabulary_stage.key if below.vocabulary_stage else "none",
            **{earlier: below.part_stage(earlier).key for earlier in experiment.trainable.stages},
        }

        def run(folder: Path, progress: Progress) -> None:
            if self._train_part is None:
                raise RunError(f"the stage {name} is not trained yet: run t2i train {self.experiment.recipe} first")
            prepared = below.everything()
            checkpoint = self._train_part(experiment, prepared, self.home.runs / f"{name}-{stage.key}", progress)
            averaged = experiment.trainable.averages(experiment.model)
            for net in experiment.trainable.optimizers(experiment.model):
                source = f"average_{net}" if net in averaged else net
                shutil.copyfile(checkpoint / f"{source}.safetensors", folder / f"{net}.safetensors")
            if below.vocabulary is not None:
                describe_part(folder, experiment.system, settings["model"], below.vocabulary, experiment.words.longest)
            shutil.copyfile(checkpoint.parent.parent / PART_FIGURES, folder / PART_FIGURES)

        stage = Stage(name, PART_VERSION, settings, inputs, run)
        return stage

    def split(self, dataset: Dataset, reads: frozenset[str] | None = None) -> PreparedSplit:
        """Pixels and captions of a split, as the system reads them in training, unless told how."""
        labels = None
        if parse_source(self.experiment.data.source).kind == SCENES:
            from orchestration.evaluation.scenes_net import labels_stage

            labels = str(ensure(labels_stage(dataset), self.home.stages, self.progress))
        reads, tokens = self.experiment.trainable.reads if reads is None else reads, None
        if "tokens" in reads:
            words = self.experiment.words
            tokens = TokenSource(str(self.vocabulary_file), words.longest, words.shortening)
        return PreparedSplit(
            str(self.pictures(dataset)),
            str(dataset.root),
            str(self.captions(dataset)),
            str(self.features(dataset)) if "features" in reads else None,
            tokens,
            labels,
        )

    def pictures(self, dataset: Dataset) -> Path:
        """The shards of a split: those that were prepared by hand, else a stage."""
        stage = self.pictures_stage(dataset)
        if stage is not None:
            return self._ensure(stage) / "shards"
        options = self.shard_options(dataset)
        folder = source_folder(self.experiment.data.source, self.home.root)[1] / dataset.split
        made = open_shards(folder, dataset.root).options
        if (made.transform, made.size) != (options.transform, options.size):
            raise RequestError(
                f"{folder} was prepared by {made.transform} at {made.size} px, and {self.experiment.recipe} wants "
                f"{options.transform} at {options.size} px: prepare the data again with --transform "
                f"{options.transform} --size {options.size}."
            )
        return folder

    def pictures_stage(self, dataset: Dataset) -> Stage | None:
        """The stage that makes the pictures of a split ready; None where that was done by hand."""
        if parse_source(self.experiment.data.source).kind == PREPARED:
            return None
        options = self.shard_options(dataset)

        def write(folder: Path, progress: Progress) -> None:
            write_shards(
                dataset, options, folder / "shards", progress=lambda done, total: progress("pictures", done, total)
            )

        settings = {
            "transform": options.transform,
            "size": options.size,
            "codec": options.codec,
            "split": dataset.split,
        }
        return Stage("pictures", PICTURES_VERSION, settings, {"data": dataset.digest}, write, resumable=True)

    def shard_options(self, dataset: Dataset) -> ShardOptions:
        """How this experiment's pictures are made ready and kept. Raises RequestError for an unknown transform."""
        trainable = self.experiment.trainable
        wanted = self.experiment.data.transform
        transform = get_transform(trainable.transform if wanted == "auto" else wanted)
        size = trainable.resolution(self.experiment.model)
        codec: Codec = "raw" if self.experiment.resources.pictures == "auto" else self.experiment.resources.pictures
        if self.experiment.resources.pictures == "auto":
            side = size * transform.margin
            codec = "raw" if len(dataset.records) * 3 * side * side <= RAW_UP_TO else "png"
        return ShardOptions(transform.name, size, codec)

    def captions(self, dataset: Dataset) -> Path:
        """Which captions each image of a split has."""
        return self._ensure(self.captions_stage(dataset))

    def captions_stage(self, dataset: Dataset) -> Stage:
        """The stage behind `captions`."""
        return Stage(
            "captions",
            INDEX_VERSION,
            {"split": dataset.split},
            {"data": dataset.digest},
            lambda folder, progress: write_caption_index(dataset, folder),
        )

    def features(self, dataset: Dataset) -> Path:
        """Text features of a split's captions."""
        return self._ensure(self.features_stage(dataset))

    def features_stage(self, dataset: Dataset) -> Stage:
        """The stage behind `features`. With a trained encoder its key needs no more than that part's key."""
        trained = self.text_part if self._encoder is None else None
        text = None if self.text_part else self.experiment.text.model_dump(mode="json")

        def write(folder: Path, progress: Progress) -> None:
            index, resources = open_caption_index(self.captions(dataset)), self.experiment.resources
            workers = resources.threads and resources.workers * resources.threads
            write_caption_features(index, self.encoder, folder, progress, workers, self._reopening())

        encoder = self.part_stage(trained).key if trained else self.encoder.digest
        inputs = {"data": dataset.digest, "encoder": encoder}
        settings = {"text": text, "split": dataset.split}
        return Stage("text-features", FEATURES_VERSION, settings, inputs, write, resumable=True)

    def _reopening(self) -> Callable[[], Encoder] | None:
        """What opens the encoder in another process, which has another current folder."""
        encoder = self.encoder
        if isinstance(encoder, WordEncoder):
            return partial(open_word_encoder, encoder.folder.resolve())
        if isinstance(encoder, TextEncoder):
            folder = Path(encoder.settings.name).expanduser()
            name = str(folder.resolve()) if folder.is_dir() else encoder.settings.name
            return partial(
                TextEncoder, encoder.settings.model_copy(update={"name": name}), self.home.encoders.resolve()
            )
        return None

    def graph(self) -> list[Stage]:
        """Every stage that this experiment needs, each after those it reads; nothing is run. Raises RequestError."""
        data, reads = self.experiment.data, self.experiment.trainable.reads
        found = [self.vocabulary_stage] if self.vocabulary_stage else []
        for name in self.experiment.trainable.stages:
            below = self._below(name)
            found += [*below.graph(), self.part_stage(name)]
        for split in dict.fromkeys((data.train_split, data.validation_split)):
            dataset = self.dataset(split)
            pictures = self.pictures_stage(dataset)
            found += [*([pictures] if pictures else []), self.captions_stage(dataset)]
            found += [self.features_stage(dataset)] if "features" in reads else []
        if parse_source(data.source).kind == SCENES:
            from orchestration.evaluation.scenes_net import judge_stage, labels_stage

            found += [labels_stage(self.dataset(split)) for split in (data.train_split, data.validation_split)]
            if choose_protocol(self.experiment) == "scenes-net":
                found += [judge_stage(self.experiment, self.home)]
        return list({(stage.name, stage.key): stage for stage in found}.values())


def require(experiment: Experiment, dataset: Dataset) -> None:
    """RequestError when the data lacks something the system is conditioned on."""
    missing: Iterable[str] = sorted(experiment.trainable.needs - dataset.carries)
    if missing:
        raise RequestError(
            f"{experiment.system} needs {', '.join(missing)}, which {experiment.data.source} ({dataset.split}) does "
            f"not carry; it carries {', '.join(sorted(dataset.carries))}: choose another data set with --data"
        )


def require_weights(experiment: Experiment) -> None:
    """RequestError when a pretrained image net that it, or a part before it, uses is not on this machine."""
    settings = getattr(experiment.model, "pretrained", None)
    if getattr(experiment.model, "uses_pretrained", False) and isinstance(settings, PretrainedImageSettings):
        try:
            find_weights(settings)
        except WeightsMissing as error:
            raise RequestError(f"model.pretrained: {error}") from error
    for where, trunk in _trunks(experiment):
        try:
            find_trunk_weights(trunk, where)
        except WeightsMissing as error:
            raise RequestError(str(error)) from error


def _trunks(settings: Any, path: str = "") -> Iterator[tuple[str, ImageTrunkSettings]]:
    """Every frozen image net below some settings, with the field that names it."""
    if isinstance(settings, ImageTrunkSettings):
        yield path, settings
    elif isinstance(settings, BaseModel | dict):
        for name, value in settings.items() if isinstance(settings, dict) else settings:
            yield from _trunks(value, f"{path}.{name}" if path else name)


def choose_protocol(experiment: Experiment) -> str:
    """The protocol that "auto" means for this data. Raises RequestError for one that cannot judge it."""
    from orchestration.evaluation.feature_views import NETS

    if not hasattr(experiment.trainable, "sample"):
        return PART_PROTOCOL
    wanted = experiment.evaluation.protocol
    generated = parse_source(experiment.data.source).kind == SCENES
    if wanted == "auto":
        wanted = "scenes-net" if generated else "efficientnet-lite0"
    if wanted == "efficientnet-lite0":
        try:
            find_weights(PretrainedImageSettings(name="efficientnet-lite0"))
        except WeightsMissing as error:
            raise RequestError(f"evaluation.protocol=efficientnet-lite0: {error}, or set it to none") from error
    if wanted not in (*NETS, "none"):
        raise RequestError(f"evaluation.protocol={wanted!r} is no feature net: there are auto, {', '.join(NETS)}, none")
    if wanted == "scenes-net" and not generated:
        raise RequestError(
            f"evaluation.protocol=scenes-net judges generated scenes only, not {experiment.data.source}: "
            "use efficientnet-lite0"
        )
    return wanted
