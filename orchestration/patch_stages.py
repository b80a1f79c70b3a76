"""The stages of a system that draws from patches: the bank of all training objects, and each object's candidates."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from orchestration.config import PatchSettings
from orchestration.data.candidates import VERSION as CANDIDATES_VERSION
from orchestration.data.candidates import write_candidates
from orchestration.data.patch_source import EncodedObjects
from orchestration.data.patches import VERSION as BANK_VERSION
from orchestration.data.patches import write_bank
from orchestration.data.records import Dataset
from orchestration.prepared import CandidateSource
from orchestration.stages import Progress, Stage, write_atomically

if TYPE_CHECKING:
    from orchestration.preparation import Preparation

ENCODER = "sg2im"
"""The part whose graph encoder compares patches."""
FIGURES = "figures.json"


class PatchStages:
    """The patches of a preparation whose subject draws from them."""

    def __init__(self, preparation: "Preparation") -> None:
        self.preparation = preparation
        settings = preparation.experiment.patches
        assert settings is not None
        self.settings: PatchSettings = settings

    @property
    def _train(self) -> Dataset:
        return self.preparation.dataset(self.preparation.experiment.data.train_split)

    def bank(self) -> Stage:
        """The stage that cuts out every object of the training pictures."""
        preparation, train = self.preparation, self._train

        def write(folder: Path, progress: Progress) -> None:
            names = preparation.names
            assert names is not None
            side, workers = self.settings.side, preparation.processes(self._device)
            source = self._source(train)
            write_bank(folder, len(train.records), source, train.digest, names.objects, side, progress, workers)

        return Stage("patches", BANK_VERSION, {"side": self.settings.side}, self._inputs(train), write, resumable=True)

    def candidates(self, dataset: Dataset) -> Stage:
        """The stage that finds the candidates of a split's objects in the bank."""
        preparation, bank = self.preparation, self.bank()
        own, prefilter = dataset.digest == self._train.digest, self.settings.prefilter

        def write(folder: Path, progress: Progress) -> None:
            found = preparation.ensure(bank)
            source, workers = self._source(dataset), preparation.processes(self._device)
            count = len(dataset.records)
            figures = write_candidates(folder, count, source, dataset.digest, found, own, prefilter, progress, workers)
            write_atomically(folder / FIGURES, json.dumps(figures, indent=1))

        inputs = {"bank": bank.key, **self._inputs(dataset)}
        settings = {**prefilter.model_dump(mode="json"), "own": own, "split": dataset.split}
        return Stage("candidates", CANDIDATES_VERSION, settings, inputs, write, resumable=True)

    def _inputs(self, dataset: Dataset) -> dict[str, str]:
        preparation = self.preparation
        assert preparation.graphs is not None
        pictures = preparation.pictures_stage(dataset)
        return {
            "data": dataset.digest,
            "pictures": pictures.key if pictures else "prepared",
            "graphs": preparation.graphs.stage(dataset).key,
            "encoder": preparation.part_stage(ENCODER).key,
        }

    def _source(self, dataset: Dataset) -> "partial[EncodedObjects]":
        split = self.preparation.split(dataset, reads=frozenset({"graphs"}))
        return partial(EncodedObjects, split, self.preparation.part(ENCODER), self._device)

    @property
    def _device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    def source(self, dataset: Dataset) -> CandidateSource:
        """The candidates of a split, made now where they are missing."""
        self.preparation.part(ENCODER)  # before the stages that need it: they would count as running meanwhile
        bank = self.preparation.ensure(self.bank())
        found = self.preparation.ensure(self.candidates(dataset))
        return CandidateSource(str(found), str(bank), self.settings.candidates)

    def stages(self, dataset: Dataset) -> list[Stage]:
        """Of a split."""
        return [self.bank(), self.candidates(dataset)]
