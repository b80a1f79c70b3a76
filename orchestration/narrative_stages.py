"""What narratives are to an experiment, and the stages between them and the label maps that TReCS paints."""

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.trecs.bert_tagger import BertTaggerConfig
from models.trecs.config import TReCSConfig
from models.trecs.system import DUAL_ENCODER, misfit
from orchestration.data.label_names import LabelNames
from orchestration.data.records import Dataset
from orchestration.data.word_encoder import opening
from orchestration.errors import RequestError
from orchestration.label_stages import LabelStages
from orchestration.narratives.reader import BANK, ENCODER, INDEX, PARTS, TAGGER, NarrativeReader
from orchestration.narratives.settings import NarrativeSettings
from orchestration.narratives.simulated import simulate_traces
from orchestration.narratives.telling import told
from orchestration.requirements import needs_of
from orchestration.stages import Progress, Stage, write_atomically
from orchestration.training.state import LABELS

if TYPE_CHECKING:
    from orchestration.narratives.opening import OpenComposer, SplitTags
    from orchestration.preparation import Preparation

READER_VERSION = 1


class NarrativeStages:
    """The narratives of a preparation whose subject needs them.

    draws: whether it paints what is composed of them; tagged: whether it learns their tags.
    """

    def __init__(self, preparation: "Preparation") -> None:
        self.preparation = preparation
        self.settings = preparation.experiment.narratives or NarrativeSettings()
        reads = preparation.subject.reads
        self.draws, self.tagged = "canvases" in reads, "tagged" in reads
        self._labels = LabelStages(preparation)

    def told(self, dataset: Dataset) -> Dataset:
        """A split whose captions are its narratives, with simulated traces where these are asked for and read."""
        return told(simulate_traces(dataset, self.settings) if self.draws or self.tagged else dataset)

    @property
    def names(self) -> LabelNames:
        """The names of the classes that words are tagged with."""
        return self._labels.names

    @property
    def _model(self) -> TReCSConfig:
        model = self.preparation.experiment.model
        assert isinstance(model, TReCSConfig)
        return model

    @property
    def _train(self) -> Dataset:
        return self.preparation.dataset(self.preparation.experiment.data.train_split)

    def check(self) -> None:
        """Refuse what can be known before any work. Raises RequestError."""
        experiment = self.preparation.experiment
        if self.draws:
            parts = {name: stage.model for name, stage in experiment.stages.items()}
            if problem := misfit(self._model, parts):
                raise RequestError(problem)
        if (self.tagged or self._labeler in ("raw", "hmm")) and "traces" not in self._train.carries:
            raise RequestError(
                f"the narratives of {experiment.data.source} ({experiment.data.train_split}) have no mouse traces, and "
                "words are labelled by them: choose data with traces, or add --set narratives.traces=simulated where "
                "words have tags"
            )

    @property
    def _labeler(self) -> str | None:
        return self._model.labeler if self.draws and self._model.masks == "retrieved" else None

    def corpus(self, dataset: Dataset) -> Stage:
        """The words of a split's narratives, with their noisy labels."""
        from orchestration.narratives.corpus import noisy_labels_stage

        return noisy_labels_stage(dataset, self.names.classes, self.settings, self.preparation.processes())

    def hmm(self) -> Stage:
        """The tables of the HMM, of the training narratives."""
        from orchestration.narratives.hmm_tags import hmm_stage

        return hmm_stage(self.corpus(self._train), self.preparation.ensure, self.settings.tagger)

    def hmm_tags(self, dataset: Dataset) -> Stage:
        """The tags that the HMM gives a split's narratives, knowing the labels of their pictures."""
        from orchestration.narratives.hmm_tags import hmm_tags_stage

        return hmm_tags_stage(self.hmm(), self.corpus(dataset), self.preparation.ensure, self.settings.tagger)

    def _tokenizer(self) -> Stage:
        from orchestration.narratives.tagged_words import tokenizer_stage

        model, preparation = self._taught, self.preparation
        return tokenizer_stage(self.corpus(self._train), preparation.ensure, model.bert, preparation.home.encoders)

    @property
    def _taught(self) -> BertTaggerConfig:
        model = self.preparation.experiment.model
        assert isinstance(model, BertTaggerConfig)
        return model

    def tagged_words(self, dataset: Dataset) -> Stage:
        """A split's narratives as the tagger reads and learns them."""
        from orchestration.narratives.tagged_words import tagged_words_stage

        model, preparation = self._taught, self.preparation
        tags = self.hmm_tags(dataset) if model.tags == "hmm" else None
        return tagged_words_stage(
            self._tokenizer(),
            self.corpus(dataset),
            tags,
            preparation.ensure,
            model.max_pieces,
            model.excluded,
            preparation.processes(),
        )

    def describe(self, folder: Path) -> None:
        """Put beside a trained tagger's weights what else reads narratives: its word pieces and the classes' names."""
        from orchestration.narratives.tagged_words import TOKENIZER

        shutil.copyfile(self.preparation.ensure(self._tokenizer()) / TOKENIZER, folder / TOKENIZER)
        shutil.copyfile(self.names.folder / LABELS, folder / LABELS)

    @cached_property
    def _untraced(self) -> Dataset:
        """The training pictures as they are told, whatever trace is simulated: masks do not depend on it."""
        experiment = self.preparation.experiment
        return told(self.preparation.published(experiment.data.train_split).having(needs_of(experiment)))

    def bank(self) -> Stage:
        """The masks of the training pictures."""
        from orchestration.narratives.mask_bank import mask_bank_stage

        side = self._model.resolution
        return mask_bank_stage(self._untraced, side, self.names.classes, self.preparation.processes)

    def index(self) -> Stage:
        """The training pictures as the dual encoder sees them."""
        from functools import partial

        from orchestration.narratives.retrieval_index import EncodedPictures, OpenPictures, retrieval_index_stage

        below = self.preparation.below(DUAL_ENCODER)
        train = below.dataset(below.experiment.data.train_split)

        def source() -> OpenPictures:
            split, part = below.split(train, reads=frozenset()), self.preparation.part(DUAL_ENCODER)
            return partial(EncodedPictures, split, part.resolve(), self._device)

        pictures = below.pictures_stage(train)
        inputs = {
            "pictures": pictures.key if pictures else "prepared",
            DUAL_ENCODER: self.preparation.part_stage(DUAL_ENCODER).key,
        }
        return retrieval_index_stage(inputs, train.digest, source, processes=self._processes)

    def _tags(self, dataset: Dataset) -> Stage:
        """The stage that has a split's tags by the labeler; that of the corpus for the noisy labels themselves."""
        from orchestration.narratives.bert_tags import bert_tags_stage

        corpus = self.corpus(dataset)
        if self._model.labeler == "raw":
            return corpus
        if self._model.labeler == "hmm":
            return self.hmm_tags(dataset)
        assert self._model.tagger is not None
        part = self.preparation.part_stage(self._model.tagger)
        return bert_tags_stage(part, corpus, self.preparation.ensure, self._processes, self._device)

    def tags(self, dataset: Dataset) -> "SplitTags":
        """A split's tags by the labeler."""
        from orchestration.narratives.opening import OpenTags

        folder = self.preparation.ensure(self._tags(dataset))
        return OpenTags(folder, len(self.names.classes), self._model.labeler == "raw")()

    def canvases(self, dataset: Dataset) -> Stage:
        """The label maps that are composed for a split's narratives."""
        from orchestration.narratives.canvases import Composing, canvases_stage, true_canvases_stage
        from orchestration.narratives.opening import OpenTags

        model, classes = self._model, self.names.classes
        if model.masks == "true_masks":
            return true_canvases_stage(dataset, model.resolution, classes, self.preparation.processes)
        tags, ensure = self._tags(dataset), self.preparation.ensure

        def composing() -> Composing:
            opened = OpenTags(ensure(tags).resolve(), len(classes), model.labeler == "raw")
            return Composing(self.open_composer(), opened, own=dataset.digest == self._train.digest)

        # What was tagged and what paints are told by the tags' key, or change nothing here.
        settings = model.model_dump(mode="json", exclude={"labeler", "generator", "masks"})
        settings |= {"min_radius": self.settings.min_radius}
        inputs = {"tags": tags.key, "bank": self.bank().key, "index": self.index().key}
        return canvases_stage(dataset, inputs, settings, composing, self._processes)

    def open_composer(self) -> "OpenComposer":
        """What composes, by folders that are there; made now where they are missing."""
        from orchestration.narratives.opening import OpenComposer

        preparation = self.preparation
        return OpenComposer(
            preparation.ensure(self.bank()).resolve(),
            preparation.ensure(self.index()).resolve(),
            preparation.part(DUAL_ENCODER).resolve(),
            opening(preparation.experiment.text, preparation.home.encoders),
            self._model,
            self.settings.min_radius,
            self._device,
        )

    def folder(self, dataset: Dataset) -> Path:
        """The canvases of a split, made now where they are missing."""
        self._make_parts()
        return self.preparation.ensure(self.canvases(dataset))

    def _make_parts(self) -> None:
        """Before the stages that need them: those would count as running meanwhile."""
        for name in self.preparation.needed:
            self.preparation.part(name)

    @property
    def _reading(self) -> dict[str, Stage]:
        """What new narratives are read with, none where words alone are not enough."""
        model = self._model
        if not model.reads_words:
            return {}
        tagger = self.hmm() if model.tagger is None else self.preparation.part_stage(model.tagger)
        encoder = self.preparation.part_stage(DUAL_ENCODER)
        return {TAGGER: tagger, ENCODER: encoder, INDEX: self.index(), BANK: self.bank()}

    def reader_stage(self) -> Stage:
        """The stage that keeps the names of labels, and of the stages that new narratives are read with."""
        reading, names = self._reading, self._labels.names_stage

        def run(folder: Path, progress: Progress) -> None:
            shutil.copyfile(self.preparation.ensure(names) / LABELS, folder / LABELS)
            if reading:
                named = {what: stage.folder_name for what, stage in reading.items()}
                write_atomically(folder / PARTS, json.dumps(named, indent=1))

        inputs = {"names": names.key, **{what: stage.key for what, stage in reading.items()}}
        return Stage("narrative-reader", READER_VERSION, {}, inputs, run)

    @cached_property
    def reader_folder(self) -> Path:
        """What checkpoints take along; all that it names is there."""
        self._make_parts()
        for stage in self._reading.values():
            self.preparation.ensure(stage)
        return self.preparation.ensure(self.reader_stage())

    @property
    def reader(self) -> NarrativeReader | LabelNames:
        """What reads new narratives; the names alone where words are not enough."""
        folder, preparation = self.reader_folder, self.preparation
        if not self._model.reads_words:
            return LabelNames.open(folder)
        return NarrativeReader.open(folder, preparation.experiment, preparation.home, self._device)

    def stages(self, dataset: Dataset) -> list[Stage]:
        """Of a split, each after those it reads."""
        found = [self._labels.names_stage] if self.draws or self.tagged else []
        train = self._train
        if self.tagged:
            corpora = [self.corpus(train), self.corpus(dataset)]
            hmm = [self.hmm(), self.hmm_tags(dataset)] if self._taught.tags == "hmm" else []
            found += [*corpora, *hmm, self._tokenizer(), self.tagged_words(dataset)]
        if self.draws and dataset.split != self.preparation.experiment.data.validation_split:
            return found  # nothing is learned from canvases: those of training pictures are not made
        if self.draws and self._model.masks == "true_masks":
            found += [self.canvases(dataset), self.reader_stage()]
        elif self.draws:
            hmm = [self.corpus(train), self.hmm()] if self._model.labeler == "hmm" else []
            found += [*hmm, self.corpus(dataset), self._tags(dataset), self.bank(), self.index()]
            found += [self.canvases(dataset), self.reader_stage()]
        return found

    def _processes(self) -> int | None:
        return self.preparation.processes(self._device)

    @property
    def _device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"
