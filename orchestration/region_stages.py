"""The stages of an experiment, or of a part of it, that salient boxes play a part in, and what is refused there."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.contract import Given
from models.encoders.regions import DETECTOR
from models.registry import gathered_names
from orchestration.data.records import Dataset
from orchestration.data.regions import VERSION, write_regions
from orchestration.region_source import RegionSource, check_region_dim
from orchestration.stages import Progress, Stage

if TYPE_CHECKING:
    from orchestration.preparation import Preparation


class RegionStages:
    """What the subject of a preparation has to do with salient boxes: it reads those that were found in the data, it
    looks for them itself in whatever picture it is shown, or neither, though a part before it does."""

    def __init__(self, preparation: "Preparation", source: RegionSource) -> None:
        self.preparation, self.source = preparation, source
        model, subject = preparation.experiment.model, preparation.subject
        self.reads = "regions" in subject.reads
        self.looks = DETECTOR in subject.stages(model) and not self.reads

    @property
    def own(self) -> bool:
        """Whether it reads regions that a person brought."""
        return self.reads and self.source.settings.folder is not None

    def folder(self, dataset: Dataset) -> Path:
        """Regions of a split: a person's own, else a stage's."""
        if self.own:
            return self.source.own(dataset).folder
        return self.preparation.ensure(self.stage(dataset))

    def stage(self, dataset: Dataset) -> Stage:
        """The stage that finds salient boxes in the centre of a split's pictures."""
        preparation, options = self.preparation, self.preparation.shard_options(dataset)

        def write(folder: Path, progress: Progress) -> None:
            split = preparation.split(dataset, reads=frozenset())
            device = "cuda" if torch.cuda.is_available() else "cpu"
            workers = preparation.processes(device)
            # Of the parts only the detector: others are made from these regions.
            parts = {DETECTOR: preparation.part(DETECTOR)} if DETECTOR in preparation.needed else {}
            given = Given(folders=parts, regions=self.source.settings)
            write_regions(folder, split.open, given, dataset.digest, progress, workers, device)

        settings = {
            "regions": self.source.plain,
            "transform": options.transform,
            "size": options.size,
            "split": dataset.split,
        }
        inputs = {"data": dataset.digest, **self.source.inputs(self._detector_key)}
        return Stage("regions", VERSION, settings, inputs, write, resumable=True)

    @property
    def _detector_key(self) -> str | None:
        needed = self.preparation.needed
        return self.preparation.part_stage(DETECTOR).key if DETECTOR in needed else None

    def stages(self, dataset: Dataset) -> list[Stage]:
        """Of a split: one where regions are read and a detector finds them."""
        return [self.stage(dataset)] if self.reads and not self.own else []

    @property
    def settings(self) -> dict[str, Any]:
        """Of the subject's own stage: how it looks."""
        return {"regions": self.source.plain} if self.looks else {}

    @property
    def inputs(self) -> dict[str, str]:
        """Of the subject's own stage: the regions it reads, or what it looks with."""
        if self.looks:
            return self.source.inputs(self._detector_key)
        if not self.reads:
            return {}
        train = self.preparation.dataset(self.preparation.experiment.data.train_split)
        return {"regions": self.source.own_digest(train) if self.own else self.stage(train).key}

    def check(self, field: str, datasets: list[Dataset]) -> None:
        """Refuse what can be known before any work. field: the name of the subject's settings. Raises RequestError."""
        wanted = getattr(self.preparation.experiment.model, "region_dim", None)
        if self.own or (self._remembers and self.source.settings.folder is not None):
            for own in [self.source.own(dataset) for dataset in datasets]:
                check_region_dim(f"{field}.region_dim", wanted, own.about.feature_dim, str(own.folder))
        elif self.reads or self._remembers:
            check_region_dim(f"{field}.region_dim", wanted, self._detector_width, "the detector")
        if self.looks:
            check_region_dim(f"{field}.region_dim", wanted, self._detector_width, "the detector")
            if self.source.published is not None:
                self.source.check_own_detector(self.source.published.digest, datasets)

    @property
    def _remembers(self) -> bool:
        """Whether it is built from what was gathered of regions."""
        experiment = self.preparation.experiment
        return any(experiment.stages[name].system in gathered_names() for name in self.preparation.needed)

    @property
    def _detector_width(self) -> int:
        detector = self.preparation.experiment.stages.get(DETECTOR)
        return self.source.width(None if detector is None else getattr(detector.model, "feature_dim", None))

    def check_detector(self, datasets: list[Dataset]) -> None:
        """RequestError where it looks with another detector than a person's own regions were found by."""
        if self.looks and self.source.settings.folder is not None and self.source.published is None:
            self.source.check_own_detector(self.source.open(self.preparation.given).digest, datasets)
