"""What captions are to an experiment: the stages that list them, and describe them by a frozen encoder."""

from typing import TYPE_CHECKING

from orchestration.data.features import (
    INDEX_VERSION,
    VERSION,
    open_caption_index,
    write_caption_features,
    write_caption_index,
)
from orchestration.data.graph_reader import GraphReader
from orchestration.data.label_names import LabelNames
from orchestration.data.records import Dataset
from orchestration.data.word_encoder import reopening
from orchestration.narratives.reader import NarrativeReader
from orchestration.stages import Progress, Stage

if TYPE_CHECKING:
    from pathlib import Path

    from orchestration.preparation import Preparation


class CaptionStages:
    """The captions of a preparation's data."""

    def __init__(self, preparation: "Preparation") -> None:
        self.preparation = preparation

    def index_stage(self, dataset: Dataset) -> Stage:
        """The stage that says which captions each image of a split has."""
        return Stage(
            "captions",
            INDEX_VERSION,
            {"split": dataset.split},
            {"data": dataset.digest},
            lambda folder, progress: write_caption_index(dataset, folder),
        )

    def features_stage(self, dataset: Dataset) -> Stage:
        """The stage that has the text features of a split's captions. With a trained encoder its key needs no more than
        that part's key."""
        preparation = self.preparation
        trained = preparation.text_part if preparation.given_encoder is None else None
        text = None if preparation.text_part else preparation.experiment.text.model_dump(mode="json")

        def write(folder: "Path", progress: Progress) -> None:
            index, encoder = open_caption_index(preparation.ensure(self.index_stage(dataset))), preparation.encoder
            assert not isinstance(encoder, GraphReader | LabelNames | NarrativeReader)
            opened = reopening(encoder, preparation.home.encoders)
            write_caption_features(index, encoder, folder, progress, preparation.processes(), opened)

        encoder = preparation.part_stage(trained).key if trained else preparation.encoder.digest
        inputs = {"data": dataset.digest, "encoder": encoder}
        settings = {"text": text, "split": dataset.split}
        return Stage("text-features", VERSION, settings, inputs, write, resumable=True)
