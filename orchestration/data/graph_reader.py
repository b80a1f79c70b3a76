"""Prompts of systems that are conditioned on scene graphs: what a person types, to `Graphs`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from models.contract import Batch, Graphs
from orchestration.data.graph_text import GraphLanguage
from orchestration.data.graphs import graphs_of
from orchestration.data.records import Dataset
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.errors import RequestError
from orchestration.stages import Progress, Stage, write_atomically
from orchestration.training.state import NAMES

VERSION = 1


@dataclass(frozen=True, slots=True)
class GraphReader:
    """Reads scene graphs in words, or as JSON, by the names that a system was trained with. Its folder is all it needs.

    It stands where other systems have a text encoder.
    """

    folder: Path
    vocabulary: GraphVocabulary

    @classmethod
    def open(cls, folder: Path) -> "GraphReader":
        """The names in a folder. Raises RequestError when they cannot be read."""
        try:
            found = json.loads((folder / NAMES).read_text(encoding="utf-8"))
            names = {kind: tuple(map(str, found[kind])) for kind in ("objects", "attributes", "relationships")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"the names of scene graphs in {folder} cannot be read ({error}): restore the folder, or prepare the "
                "data again"
            ) from error
        return cls(folder, GraphVocabulary(**names))

    @property
    def digest(self) -> str:
        """sha256 (hex) of the names in their order."""
        return self.vocabulary.digest

    @property
    def dim(self) -> int:
        """Width of text features: there are none."""
        return 0

    def graphs(self, prompts: Sequence[str]) -> Graphs:
        """B scene graphs, padded to the largest. Raises RequestError for one that cannot be read."""
        language = GraphLanguage(self.vocabulary)
        return graphs_of([language.read(prompt) for prompt in prompts], self.vocabulary)

    def conditions(self, prompts: Sequence[str]) -> Batch:
        """What pictures of B scene graphs are drawn from. Raises as `graphs`."""
        return Batch(torch.arange(len(prompts)), graphs=self.graphs(prompts))


def graph_vocabulary_stage(train: Dataset) -> Stage:
    """The stage that keeps the names in the graphs of the training pictures."""

    def run(folder: Path, progress: Progress) -> None:
        write_atomically(folder / NAMES, json.dumps(asdict(GraphVocabulary.of(train.records)), ensure_ascii=False))

    return Stage("graph-vocabulary", VERSION, {"split": train.split}, {"data": train.digest}, run)
