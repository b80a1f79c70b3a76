"""What scene graphs are to an experiment: how they are made of the data, and the stages that keep them."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.data.graph_reader import GraphReader, graph_vocabulary_stage
from orchestration.data.graphs import GraphSettings, graph_dataset, graphs_stage, known_names
from orchestration.data.records import Dataset
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.data.transforms import get_transform
from orchestration.errors import RequestError
from orchestration.stages import Stage

if TYPE_CHECKING:
    from orchestration.preparation import Preparation

_GRAPHED = frozenset({"scene graphs"})


class GraphStages:
    """The scene graphs of a preparation's data, in words the captions of its pictures.

    Names are those of the training pictures; where a trained system's reader is given they are that one's, whatever
    data are read: numbers of other names would be other things.
    reads: whether the subject reads the graphs themselves; others, such as AttnGAN in RetrieveGAN's comparison (section
    4), read them in words alone.
    """

    def __init__(self, preparation: "Preparation", settings: GraphSettings) -> None:
        self.preparation, self.settings = preparation, settings
        self.reads = "graphs" in preparation.subject.reads
        given = preparation.given_encoder
        self._reader = given if isinstance(given, GraphReader) else None

    def dataset(self, split: str) -> Dataset:
        """The pictures of a split that have a graph, of the names that training knows. Raises RequestError."""
        opened, key = self.preparation.opened, (split, _GRAPHED)
        train = self.preparation.experiment.data.train_split
        if key not in opened:
            found = graph_dataset(self.preparation.published, split, self.settings)
            if self._reader is not None:
                found = known_names(found, self._reader.vocabulary)
            elif split != train:
                found = known_names(found, GraphVocabulary.of(self.dataset(train).records))
            opened[key] = found
        return opened[key]

    @property
    def _train(self) -> Dataset:
        return self.preparation.dataset(self.preparation.experiment.data.train_split)

    @cached_property
    def vocabulary(self) -> GraphVocabulary:
        """The names that graphs are read by."""
        return self._reader.vocabulary if self._reader else GraphVocabulary.of(self._train.records)

    @property
    def vocabulary_stage(self) -> Stage:
        """The stage that keeps those names, for checkpoints to take along."""
        return graph_vocabulary_stage(self._train)

    def stage(self, dataset: Dataset) -> Stage:
        """The stage that has a split's graphs, and where their objects are in its pictures as training shows them."""
        options = self.preparation.shard_options(dataset)
        return graphs_stage(dataset, get_transform(options.transform), options.size, self.vocabulary)

    def folder(self, dataset: Dataset) -> Path:
        """The same, made now where it is missing."""
        return self.preparation.ensure(self.stage(dataset))

    def stages(self, dataset: Dataset) -> list[Stage]:
        """Of a split: the names and the graphs, where those are read."""
        return [self.vocabulary_stage, self.stage(dataset)] if self.reads else []

    def check(self) -> None:
        """Refuse what can be known before any work. Raises RequestError."""
        data, options = self.preparation.experiment.data, self.preparation.shard_options(self._train)
        transform = get_transform(options.transform)
        if transform.flip if data.flip is None else data.flip:
            raise RequestError(
                f"pictures are mirrored half of the time ({'data.flip' if data.flip else f'as by {transform.name}'}), "
                "and no longer show what their scene graphs say, left of for one: add --set data.flip=false"
            )
