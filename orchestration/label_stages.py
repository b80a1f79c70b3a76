"""What label maps are to an experiment: whose pictures have them, and the stages that keep them."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.data.label_maps import label_maps_stage
from orchestration.data.label_names import LabelNames, label_names_stage
from orchestration.data.records import Dataset
from orchestration.data.transforms import get_transform
from orchestration.narratives.reader import NarrativeReader
from orchestration.stages import Stage

if TYPE_CHECKING:
    from orchestration.preparation import Preparation


class LabelStages:
    """The label maps of a preparation, and their names: those of all labelled pictures that are trained on, so that
    every part of a pipeline knows the same."""

    def __init__(self, preparation: "Preparation") -> None:
        self.preparation = preparation
        given = preparation.given_encoder
        known = given.names if isinstance(given, NarrativeReader) else given
        self._given = known if isinstance(known, LabelNames) else None

    @property
    def names_stage(self) -> Stage:
        """The stage that keeps the names, for checkpoints to take along."""
        return label_names_stage(self.preparation.labelled(self.preparation.experiment.data.train_split))

    @cached_property
    def names(self) -> LabelNames:
        """The names that maps are read by: a checkpoint's own, where one is judged on other data."""
        return self._given or LabelNames.open(self.preparation.ensure(self.names_stage))

    def stage(self, dataset: Dataset) -> Stage:
        """The stage that has a split's maps as training shows them."""
        options = self.preparation.shard_options(dataset)
        return label_maps_stage(dataset, get_transform(options.transform), options.size, self.names.classes)

    def folder(self, dataset: Dataset) -> Path:
        """The same, made now where it is missing."""
        return self.preparation.ensure(self.stage(dataset))

    def stages(self, dataset: Dataset) -> list[Stage]:
        """Of a split."""
        return [self.names_stage, self.stage(dataset)]
