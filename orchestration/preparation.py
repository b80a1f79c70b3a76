"""What must exist before training: vocabulary, trained parts, pixels, captions as they are read, the judge of scenes.

All are stages: computed once, under a key of all that they depend on, and shared by every run and trial.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from models.abilities import CaptionReader
from models.contract import Gathered, Given, Trainable
from models.encoders.image import WeightsMissing
from models.encoders.regions import DETECTOR
from models.encoders.text import TextEncoder
from models.registry import gathered_names, get_gathered, get_part
from orchestration.caption_stages import CaptionStages
from orchestration.config import Experiment
from orchestration.data.features import (
    Encoder,
)
from orchestration.data.graph_reader import GraphReader
from orchestration.data.label_names import LabelNames
from orchestration.data.objects import objects_stage
from orchestration.data.records import Dataset
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.data.shard_form import Codec
from orchestration.data.shards import ShardOptions, open_shards, write_shards
from orchestration.data.sources import FORMATS, PREPARED, SCENES, open_source, parse_source, source_folder
from orchestration.data.transforms import get_transform
from orchestration.data.vocabulary import Vocabulary, load_vocabulary, read_word_list, vocabulary_stage, word_list_stage
from orchestration.data.word_encoder import VOCABULARY, open_word_encoder
from orchestration.errors import RequestError
from orchestration.graph_stages import GraphStages
from orchestration.home import Home
from orchestration.label_stages import LabelStages
from orchestration.narrative_stages import NarrativeStages
from orchestration.patch_stages import PatchStages
from orchestration.prepared import Prepared, PreparedSplit, TokenSource
from orchestration.readers import Reader
from orchestration.region_source import RegionSource
from orchestration.region_stages import RegionStages
from orchestration.requirements import choose_protocol, needs_of, require, require_weights
from orchestration.stages import Progress, Stage, ensure, quiet
from orchestration.training.state import Provenance

LABELLED = frozenset({"images", "labels", "captions"})
PICTURES_VERSION = 2
# Up to so many bytes, reading raw pixels is worth more than a smaller folder.
RAW_UP_TO = 2 * 2**30
PART_FIGURES = "figures.json"


TrainPart = Callable[[Experiment, Prepared, Path, Progress], Path]
"""Trains a part in a run folder, or goes on there, and returns its last checkpoint's folder."""


class Preparation:
    """Runs the stages of an experiment that are missing. Encoders are loaded once, and only if needed.

    train_part: trains the parts that are missing, None where all must be there; encoder: reads the captions or graphs,
    None for the experiment's own.
    """

    def __init__(
        self,
        experiment: Experiment,
        home: Home,
        progress: Progress = quiet,
        train_part: TrainPart | None = None,
        encoder: Reader | None = None,
    ) -> None:
        self.experiment, self.home, self.progress = experiment, home, progress
        self._train_part, self.given_encoder = train_part, encoder
        self.subject: Trainable[Any] | Gathered[Any] = get_part(experiment.system)
        # Shared with the preparations of the parts.
        self.opened: dict[tuple[str, frozenset[str]], Dataset] = {}
        self._below: dict[str, Preparation] = {}
        self._source = RegionSource(experiment.regions) if experiment.regions and experiment.uses_regions else None
        self.recipe, self._field = experiment.recipe, "model"

    @cached_property
    def encoder(self) -> Reader:
        """What reads the experiment's captions or graphs. Raises RequestError when it is missing or of another
        width."""
        encoder = self.given_encoder or self._own_encoder()
        wanted = self.experiment.trainable.text_dim(self.experiment.model)
        if wanted != encoder.dim:
            name = f"the trained {self.text_part}" if self.text_part else self.experiment.text.name
            raise RequestError(
                f"{self._field}.text_dim is {wanted} but {name} gives {encoder.dim} features: "
                f"add --set {self._field}.text_dim={encoder.dim}"
            )
        return encoder

    def _own_encoder(self) -> Reader:
        folder = self._reader_folder
        if folder is None:
            return self._pretrained_encoder()
        if self.labels is not None:
            return self.labels.names
        if self.narratives is not None and self.narratives.draws:
            return self.narratives.reader
        return GraphReader.open(folder) if self.names else open_word_encoder(folder)

    @property
    def _reader_folder(self) -> Path | None:
        """What checkpoints take along to read captions, graphs or label maps with; None where a pretrained encoder
        does."""
        if self.labels is not None:
            return self.labels.names.folder
        if self.narratives is not None and self.narratives.draws:
            return self.narratives.reader_folder
        if self.graphs and self.graphs.reads:
            return self.ensure(self.graphs.vocabulary_stage)
        return self.parts[self.text_part] if self.text_part else None

    def _pretrained_encoder(self) -> Encoder:
        try:
            return TextEncoder(self.experiment.text, self.home.encoders)
        except WeightsMissing as error:
            raise RequestError(f"text.name: {error}") from error

    @cached_property
    def regions(self) -> RegionStages | None:
        """What salient boxes are to it; None where they play no part in it, nor in any part before it."""
        return RegionStages(self, self._source) if self._source else None

    @property
    def needed(self) -> tuple[str, ...]:
        """The parts that it is built from itself, in order. Who reads a person's own regions needs no detector."""
        own = self.regions is not None and self.regions.own
        return tuple(name for name in self.experiment.needed if not (own and name == DETECTOR))

    @property
    def text_part(self) -> str | None:
        """The trained part that encodes captions; None where a pretrained encoder does."""
        return next((name for name in self.needed if isinstance(self._part(name), CaptionReader)), None)

    def _part(self, name: str) -> Any:
        return get_part(self.experiment.stages[name].system)

    def everything(self) -> Prepared:
        """What training and its validation read. What is missing is said before the long work. Raises RequestError."""
        data = self.experiment.data
        train, validation = self.dataset(data.train_split), self.dataset(data.validation_split)
        protocol = choose_protocol(self.experiment)
        require_weights(self.experiment)
        self.check()
        text_digest = self.encoder.digest if self.drawn_from else "none"
        vocabulary, names = self.vocabulary, self.names or self.label_names
        if self.regions is not None:
            self.regions.check_detector([train, validation])
        return Prepared(
            self.split(train, None if self._learns else frozenset()),
            self.split(validation),
            Provenance(train.digest, text_digest, words.digest if (words := vocabulary or names) else None),
            protocol,
            self.judge(protocol),
            len(vocabulary) if vocabulary else 0,
            tuple((name, str(folder)) for name, folder in self.parts.items()),
            str(folder) if (folder := self._reader_folder) else None,
            self._source.settings.model_dump(mode="json") if self._source else None,
            *self._name_counts,
            str(self.home.encoders),
            self.label_names.classes if self.label_names else (),
        )

    @property
    def _learns(self) -> bool:
        return bool(self.experiment.trainable.optimizers(self.experiment.model))

    @property
    def _name_counts(self) -> tuple[int, int]:
        """How many classes and predicates the scene graphs or label maps have that it reads."""
        if self.label_names is not None:
            return len(self.label_names.classes), 0
        return (len(self.names.objects), len(self.names.relationships)) if self.names else (0, 0)

    def check(self) -> None:
        """Refuse what can be known before any work, for every part that comes before too. Raises RequestError."""
        for name in self.needed:
            self.below(name).check()
        datasets = [self.dataset(split) for split in self._splits]
        if self.regions is not None:
            self.regions.check(self._field, datasets)
        if self.graphs is not None:
            self.graphs.check()
        if self.narratives is not None:
            self.narratives.check()
        most = getattr(self.experiment.model, "classes", None)
        if "objects" in self.subject.reads and most is not None and len(self.classes) > most:
            raise RequestError(
                f"{self._field}.classes is {most}, and the things of {self.experiment.data.source} are of "
                f"{len(self.classes)}: add --set {self._field}.classes={len(self.classes)}"
            )

    @property
    def drawn_from(self) -> frozenset[str]:
        """What of what it reads its pictures are conditioned on; the rest is for its losses."""
        return self.subject.reads & {"features", "graphs", "candidates", "labels", "canvases"}

    @property
    def _splits(self) -> tuple[str, ...]:
        """Whose pictures are read: what is gathered is not judged."""
        data = self.experiment.data
        gathered = self.experiment.system in gathered_names()
        return (data.train_split,) if gathered else tuple(dict.fromkeys((data.train_split, data.validation_split)))

    @property
    def given(self) -> Given:
        """What its nets are built from; parts that are missing are made now."""
        classes, predicates = self._name_counts
        words = len(self.vocabulary) if self.vocabulary else 0
        named = self.label_names.classes if self.label_names else ()
        return replace(self.built_on, vocabulary_size=words, classes=classes, predicates=predicates, class_names=named)

    @property
    def built_on(self) -> Given:
        """The same, but for the vocabulary."""
        regions = self._source.settings if self._source else None
        return Given(folders=self.parts, regions=regions, encoders=self.home.encoders)

    def judge(self, protocol: str) -> str | None:
        """The folder of the trained judge, for the protocol that needs one."""
        if protocol != "scenes-net":
            return None
        from orchestration.evaluation.scenes_net import judge_stage

        return str(ensure(judge_stage(self.experiment, self.home), self.home.stages, self.progress))

    def dataset(self, split: str) -> Dataset:
        """One split: its images that have everything the system needs. Raises RequestError."""
        needs = needs_of(self.experiment)
        if (split, needs) not in self.opened:
            whole = self.graphs.dataset(split) if self.graphs else self.published(split)
            require(self.experiment, whole)
            found = whole.having(needs)
            self.opened[split, needs] = self.narratives.told(found) if self.narratives else found
        return self.opened[split, needs]

    def labelled(self, split: str) -> Dataset:
        """The pictures of a split that have label maps, whatever else is needed of them."""
        key = (split, LABELLED)
        if key not in self.opened:
            self.opened[key] = self.published(split).having(LABELLED)
        return self.opened[key]

    def published(self, split: str) -> Dataset:
        """A split as it was published. Raises RequestError."""
        key = (split, frozenset[str]())
        if key not in self.opened:
            self.opened[key] = open_source(
                self.experiment.data.source,
                split,
                self.home.root,
                lambda done, total: self.progress("drawing scenes", done, total),
            )
        return self.opened[key]

    @cached_property
    def graphs(self) -> GraphStages | None:
        """What scene graphs are to it; None where they play no part in it."""
        return GraphStages(self, self.experiment.graphs) if self.experiment.graphs is not None else None

    @property
    def names(self) -> GraphVocabulary | None:
        """The names in the training pictures' graphs, where it reads those."""
        return self.graphs.vocabulary if self.graphs and self.graphs.reads else None

    @cached_property
    def captions(self) -> CaptionStages:
        """The captions of its data."""
        return CaptionStages(self)

    @cached_property
    def labels(self) -> LabelStages | None:
        """What every pixel shows; None where it does not read that."""
        return LabelStages(self) if "labels" in self.subject.reads else None

    @property
    def label_names(self) -> LabelNames | None:
        """The names of label maps' classes, where it reads those, or words tagged with them."""
        if self.labels is not None:
            return self.labels.names
        return self.narratives.names if self.narratives and (self.narratives.draws or self.narratives.tagged) else None

    @cached_property
    def narratives(self) -> NarrativeStages | None:
        """What narratives are to it; None where it reads captions."""
        return NarrativeStages(self) if "narratives" in self.subject.needs else None

    @cached_property
    def patches(self) -> PatchStages | None:
        """The patches that it draws from; None where it draws from none."""
        return PatchStages(self) if "candidates" in self.subject.reads else None

    @property
    def uses_words(self) -> bool:
        """Whether anything here reads captions by a vocabulary."""
        return any("tokens" in part.reads for part in (self.subject, *map(self._part, self.needed)))

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
        return self.ensure(stage) / VOCABULARY if stage else None

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """What `vocabulary_file` holds."""
        return load_vocabulary(self.vocabulary_file) if self.vocabulary_file else None

    @cached_property
    def parts(self) -> dict[str, Path]:
        """The folders of the parts, in order; those that are missing are made now."""
        return {name: self.part(name) for name in self.needed}

    def part(self, name: str) -> Path:
        """The folder of one part: NET.safetensors, or what was gathered, figures.json, and what reads captions."""
        return self.ensure(self.part_stage(name))

    def ensure(self, stage: Stage) -> Path:
        """The folder of a stage, computed now where it is missing."""
        return ensure(stage, self.home.stages, self.progress)

    def below(self, name: str) -> "Preparation":
        """The preparation of one part, which reads the same data."""
        if name not in self._below:
            below = Preparation(self.experiment.stage(name), self.home, self.progress, self._train_part)
            below.opened, below._below, below.recipe = self.opened, self._below, self.recipe
            below._source, below._field = below._source and self._source, f"stages.{name}.model"
            self._below[name] = below
        return self._below[name]

    def part_stage(self, name: str) -> Stage:
        """The stage that trains or gathers a part."""
        from orchestration.part_stages import part_stage

        return part_stage(name, self.below(name), self._train_part)

    def split(self, dataset: Dataset, reads: frozenset[str] | None = None) -> PreparedSplit:
        """Pixels and captions of a split, as the system reads them in training, unless told how."""
        labels = None
        if parse_source(self.experiment.data.source).kind == SCENES:
            from orchestration.evaluation.scenes_net import labels_stage

            labels = str(ensure(labels_stage(dataset), self.home.stages, self.progress))
        reads, tokens = self.subject.reads if reads is None else reads, None
        if "tokens" in reads:
            words, system = self.experiment.words, self.experiment.system
            gathered = get_gathered(system).longest(self.experiment.model) if system in gathered_names() else None
            tokens = TokenSource(str(self.vocabulary_file), gathered or words.longest, words.shortening)
        return PreparedSplit(
            str(self.pictures(dataset)),
            str(dataset.root),
            str(self.ensure(self.captions.index_stage(dataset))),
            str(self.ensure(self.captions.features_stage(dataset))) if "features" in reads else None,
            tokens,
            labels,
            str(self.ensure(self.objects_stage(dataset))) if "objects" in reads else None,
            str(self.regions.folder(dataset)) if self.regions and "regions" in reads else None,
            str(self.graphs.folder(dataset)) if self.graphs and "graphs" in reads else None,
            self.patches.source(dataset) if self.patches and "candidates" in reads else None,
            str(self.labels.folder(dataset)) if self.labels and "labels" in reads else None,
            str(self.ensure(self.narratives.tagged_words(dataset))) if self.narratives and "tagged" in reads else None,
            str(self.narratives.folder(dataset)) if self.narratives and "canvases" in reads else None,
        )

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the training pictures' things, in order; crowds have none."""
        records = self.dataset(self.experiment.data.train_split).records
        things = (thing for record in records for thing in record.instances or () if not thing.crowd)
        return tuple(sorted({thing.category for thing in things}))

    def objects_stage(self, dataset: Dataset) -> Stage:
        """The stage that has where the annotated things of a split's pictures are."""
        options = self.shard_options(dataset)
        return objects_stage(dataset, get_transform(options.transform), options.size, self.classes)

    def processes(self, device: str = "cpu") -> int | None:
        """How many look at data at once: one where it is on a GPU, None for every free core."""
        resources = self.experiment.resources
        return 1 if device == "cuda" else resources.threads and resources.workers * resources.threads

    def pictures(self, dataset: Dataset) -> Path:
        """The shards of a split: those that were prepared by hand, else a stage."""
        stage = self.pictures_stage(dataset)
        if stage is not None:
            return self.ensure(stage) / "shards"
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
        wanted = self.experiment.data.transform
        transform = get_transform(self.subject.transform if wanted == "auto" else wanted)
        size = self.subject.resolution(self.experiment.model)
        codec: Codec = "raw" if self.experiment.resources.pictures == "auto" else self.experiment.resources.pictures
        if self.experiment.resources.pictures == "auto":
            side = size * transform.margin
            codec = "raw" if len(dataset.records) * 3 * side * side <= RAW_UP_TO else "png"
        return ShardOptions(transform.name, size, codec)

    def graph(self) -> list[Stage]:
        """Every stage that this experiment needs, each after those it reads; nothing is run. Raises RequestError."""
        data, reads = self.experiment.data, self.subject.reads
        found = [self.vocabulary_stage] if self.vocabulary_stage else []
        for name in self.needed:
            below = self.below(name)
            found += [*below.graph(), self.part_stage(name)]
        for split in self._splits:
            dataset = self.dataset(split)
            pictures = self.pictures_stage(dataset)
            found += [*([pictures] if pictures else []), self.captions.index_stage(dataset)]
            found += [self.captions.features_stage(dataset)] if "features" in reads else []
            found += [self.objects_stage(dataset)] if "objects" in reads else []
            found += self.regions.stages(dataset) if self.regions else []
            found += self.graphs.stages(dataset) if self.graphs else []
            found += self.patches.stages(dataset) if self.patches else []
            found += self.labels.stages(dataset) if self.labels else []
            found += self.narratives.stages(dataset) if self.narratives else []
        if parse_source(data.source).kind == SCENES:
            from orchestration.evaluation.scenes_net import judge_stage, labels_stage

            found += [labels_stage(self.dataset(split)) for split in self._splits]
            if self.experiment.system not in gathered_names() and choose_protocol(self.experiment) == "scenes-net":
                found += [judge_stage(self.experiment, self.home)]
        return list({(stage.name, stage.key): stage for stage in found}.values())
