"""Examples of what a person may ask of a model, in words that it knows."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from random import Random

from orchestration.data import scenes
from orchestration.data.graph_text import NO_BOX, graph_text
from orchestration.data.records import SceneGraph, SceneObject
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.data.scenes.language import Seen, article, captions
from orchestration.data.sources import SCENES, parse_source
from orchestration.data.word_encoder import WordEncoder
from orchestration.errors import RequestError
from orchestration.narratives.corpus import word_key
from orchestration.narratives.reader import NarrativeReader

SAYS_MOST = ("left of", "above")
"""Relations that a picture shows best, where a vocabulary has them."""
OF_DATA = {
    "cub": ("a small red bird with a black head and a short beak",),
    "coco": ("a man rides a horse on the beach", "a dog sits on the grass", "a plate of food on a table"),
}
"""What pictures of published data sets show, by how a format begins; Localized Narratives tell of COCO's."""
_MOST_WORDS = 5  # of a vocabulary, one after the other


def graph_example(objects: Sequence[str], relations: Sequence[str], vocabulary: GraphVocabulary) -> str:
    """A graph in words, of up to three of the objects; backgrounds of scenes come last. "" without any."""
    backgrounds = {background.name for background in scenes.BACKGROUNDS}
    names = sorted(objects, key=backgrounds.__contains__)[:3]
    words = [word for word in SAYS_MOST if word in relations] or list(relations[:2])
    things = tuple(SceneObject(place, name, (), NO_BOX) for place, name in enumerate(names))
    links = tuple((first, words[first % len(words)], last) for first, last in pairwise(range(len(things))) if words)
    return graph_text(SceneGraph(things, links), vocabulary) if things else ""


def prompt_example(encoder: object, source: str) -> str:
    """A caption of words that the encoder knows, as the data has them; "" where nothing is known of either."""
    told = [*_captions(source), *(text for texts in OF_DATA.values() for text in texts)]
    if not isinstance(encoder, WordEncoder):
        return next(iter(_captions(source)), "")
    vocabulary = encoder.vocabulary
    whole = [text for text in told if not vocabulary.unknown(text)]
    return whole[0] if whole else " ".join(vocabulary.words[1 : _MOST_WORDS + 1])


def _captions(source: str) -> list[str]:
    """Of a scene's main kinds, or of what a published data set shows."""
    try:
        parsed = parse_source(source)
        if parsed.kind != SCENES:
            kind = parsed.kind.removeprefix("ln-")
            return [text for name, texts in OF_DATA.items() if kind.startswith(name) for text in texts]
        scenes.parse_options(parsed.argument)
    except RequestError:
        return []
    # The first of each list: every choice of options has it.
    thing = Seen(scenes.THINGS[0].name, scenes.COLOURS[0].name, "big", (0, 0, 1, 1))
    return captions(Random(0), [thing], 0)


def narrative_example(reader: NarrativeReader, traced: bool) -> str:
    """A thing and what is behind it, of classes that can be drawn: as JSON with times and a trace, or in plain words.

    Without a class that it knows, the reader's own first words, and "" where it has none.
    """
    from orchestration.narratives.composer import SILENT

    bank, known = reader.composer.bank, None if reader.words is None else set(reader.words)
    drawn = [
        (name, stuff)
        for label, (name, stuff) in enumerate(zip(bank.classes, bank.stuff, strict=True))
        if name not in SILENT
        and bank.has(label)
        and all(known is None or word_key(word) in known for word in name.split())
    ]
    phrases: list[tuple[str, Sequence[tuple[float, float]]]] = []
    if things := [name for name, stuff in drawn if not stuff]:
        phrases += [("In this picture there is", ()), (f"{article(things[0])}.", _ROUND)]
    if grounds := [name for name, stuff in drawn if stuff]:
        phrases += [("In the background there is", ()), (f"{grounds[0]}.", _ACROSS)]
    if not phrases:
        phrases = [(" ".join((reader.words or ())[:_MOST_WORDS]), ())]
    return _narrated(phrases) if traced else " ".join(words for words, _ in phrases)


_ROUND = [(0.5 + 0.2 * math.cos(angle), 0.6 + 0.25 * math.sin(angle)) for angle in (0.0, 1.05, 2.1, 3.15, 4.2, 5.25)]
_ACROSS = [(0.05, 0.1), (0.95, 0.15), (0.9, 0.5), (0.1, 0.55), (0.05, 0.95), (0.95, 0.95)]
_WORD_S = 0.4


def _narrated(phrases: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """JSON of words that take equally long, and the mouse evenly on its way meanwhile."""
    words: list[str] = []
    times: list[list[float]] = []
    trace: list[list[float]] = []
    for text, points in phrases:
        start = len(words) * _WORD_S
        words += text.split()
        times += [[round(at * _WORD_S, 2), round((at + 1) * _WORD_S, 2)] for at in range(len(times), len(words))]
        step = (len(words) * _WORD_S - start) / (len(points) + 1)
        trace += [[round(x, 2), round(y, 2), round(start + step * at, 2)] for at, (x, y) in enumerate(points, 1)]
    return json.dumps({"words": words, "times": times, "trace": trace}, ensure_ascii=False)
