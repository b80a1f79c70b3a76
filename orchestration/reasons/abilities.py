"""What can be asked of a painter: kinds of requests, names that can be drawn, and an example of each kind."""

from typing import TYPE_CHECKING

from orchestration.data.graph_reader import GraphReader
from orchestration.data.label_names import LabelNames
from orchestration.errors import RequestError
from orchestration.narratives.reader import NarrativeReader
from orchestration.reasons.examples import graph_example, narrative_example, prompt_example
from orchestration.reasons.schema import Abilities, GraphWords, Kind

if TYPE_CHECKING:
    from orchestration.painter import Painter


def abilities_of(painter: "Painter") -> Abilities:
    """What the painter's reader reads. Examples are ones that its `check` lets pass, "" where none is."""
    accepts = kinds_of(painter)
    return Abilities(
        system=painter.experiment.system,
        recipe=painter.experiment.recipe,
        resolution=painter.resolution,
        accepts=accepts,
        truncation=painter.truncates,
        examples={kind: _passing(painter, _example(painter, kind)) for kind in accepts},
        graph=graph_words(painter),
    )


def kinds_of(painter: "Painter") -> list[Kind]:
    """What kinds of requests it draws, the one that tells it most first; none for one that reads no words."""
    reader = painter.encoder
    if isinstance(reader, LabelNames):
        return []
    if isinstance(reader, GraphReader):
        return ["graph"]
    return ["narrative", "prompt"] if isinstance(reader, NarrativeReader) else ["prompt"]


def graph_words(painter: "Painter") -> GraphWords | None:
    """The names of scene graphs, the most frequent first; of objects, those that there is a patch of where it draws
    from patches."""
    reader, patches = painter.encoder, painter.patches
    if not isinstance(reader, GraphReader):
        return None
    names = enumerate(reader.vocabulary.objects, 1)
    objects = [name for number, name in names if patches is None or patches.has(number)]
    return GraphWords(objects=objects, relations=list(reader.vocabulary.relationships))


def _example(painter: "Painter", kind: Kind) -> str:
    if kind == "graph":
        words = graph_words(painter)
        assert words is not None and isinstance(painter.encoder, GraphReader)
        return graph_example(words.objects, words.relations, painter.encoder.vocabulary)
    if isinstance(painter.encoder, NarrativeReader):
        return narrative_example(painter.encoder, traced=kind == "narrative")
    return prompt_example(painter.encoder, painter.experiment.data.source)


def _passing(painter: "Painter", example: str) -> str:
    try:
        painter.check(example)
    except RequestError:
        return ""
    return example
