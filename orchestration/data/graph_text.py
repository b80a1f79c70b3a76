"""Scene graphs in words, and back: "sheep left of tree and tree above grass and cloud".

    graph      = statement { separator statement }
    statement  = object [ predicate object ]
    object     = name [ number ]                   "tree" is the first tree, "tree 2" another one
    separator  = "and" | "," | ";" | end of line   one or more

Names are those of a vocabulary, of one word or several, in any case; separators and numbers may be part of them. Of
several ways to read a text, that with the longer name where they first differ counts, but a separator that can end a
statement ends it. A name in double quotes (a quote in it is doubled) is that name and nothing else: `graph_text`
quotes where plain words would be read as another graph.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from orchestration.data.json_files import clause
from orchestration.data.records import Box, SceneGraph, SceneObject
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.errors import RequestError

MOST_OBJECTS = 30
"""Of a graph that a person writes: sg2im uses no picture with more (section 4.1)."""

NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)
"""Of objects that a person wrote without one."""

_TOKEN = re.compile(r'"((?:[^"]|"")*+)"(?=[\s,;]|\Z)|[,;\n]|[^\s,;]+')
_JSON = "{"  # what such a text begins with
_NUMBER = re.compile(r"[1-9][0-9]{0,3}")
_SEPARATORS = frozenset({"and", ",", ";", "\n"})
_LISTED, _SHOWN = 20, 60  # names and characters, in a sentence
_NEAR = 0.6  # difflib's own

_Label = tuple[str, int]  # a name, and which object of that name
_Statement = tuple[_Label] | tuple[_Label, str, _Label]


def graph_text(graph: SceneGraph, vocabulary: GraphVocabulary | None = None) -> str:
    """The graph in words: its relations in order, then the objects without any, by name.

    Objects of one name are numbered as they are first said. Read back with `vocabulary`, which has the graph's names
    and without one is nothing but these, it is the same graph: the objects in the order in which they are said, without
    boxes and attributes. Raises RequestError for a relation of an object that the graph does not list.
    """
    if vocabulary is None:
        names = tuple(dict.fromkeys(thing.name for thing in graph.objects))
        vocabulary = GraphVocabulary(names, (), tuple(dict.fromkeys(word for _, word, _ in graph.relationships)))
    return GraphLanguage(vocabulary).write(graph)


def read_graph(text: str, vocabulary: GraphVocabulary) -> SceneGraph:
    """The graph that a person wrote, as this module's grammar says, or as JSON:

        {"objects": [{"name": "sheep", "box": [x0, y0, x1, y1]}, {"name": "tree"}], "relations": [[0, "left of", 1]]}

    Boxes are parts of the picture, 0 to 1, and may be left out (`NO_BOX` then); a relation names places in the list.
    An object's id is its place, and its box x, y, width, height. Raises RequestError for a text that is no such graph,
    for a name that the vocabulary does not have, and for no object or more than `MOST_OBJECTS`.
    """
    return GraphLanguage(vocabulary).read(text)


class GraphLanguage:
    """`graph_text` and `read_graph` for many graphs of one vocabulary."""

    def __init__(self, vocabulary: GraphVocabulary) -> None:
        self._objects = _Names("object", vocabulary.objects)
        self._predicates = _Names("relation", vocabulary.relationships)

    def write(self, graph: SceneGraph) -> str:
        """As `graph_text`."""
        statements = _statements_of(graph)
        plain = _joined(statements, str)
        if not plain.lstrip().startswith(_JSON) and self._statements(_Text(plain)) == statements:
            return plain
        return _joined(statements, lambda name: '"' + name.replace('"', '""') + '"')

    def read(self, text: str) -> SceneGraph:
        """As `read_graph`."""
        if text.lstrip().startswith(_JSON):
            graph = self._from_json(text)
        else:
            words = _Text(text)
            statements = self._statements(words)
            if statements is None:
                raise RequestError(f"the graph cannot be read: {self._fault(words)}.")
            graph = _graph_of(statements)
        if not graph.objects:
            raise RequestError(f"the graph has no object; write what the picture should show, such as {self._example}.")
        if len(graph.objects) > MOST_OBJECTS:
            raise RequestError(
                f"the graph has {len(graph.objects)} objects; write at most {MOST_OBJECTS}, as sg2im uses no picture "
                "with more."
            )
        return graph

    @property
    def _example(self) -> str:
        objects, predicates = self._objects.names, self._predicates.names
        return repr(" ".join((objects[0], predicates[0], objects[-1]) if objects and predicates else objects[:1]))

    def _statements(self, text: "_Text") -> list[_Statement] | None:
        """What the text says, or None. From its end on, so that it is known which ways lead to the end."""
        starts: dict[int, tuple[_Label | None, int]] = {text.count: (None, text.count)}  # a statement or a separator
        links: dict[int, tuple[str | None, int]] = {}  # after the first object: a predicate, or the statement's end
        targets: dict[int, tuple[_Label, int]] = {}  # after a predicate: the second object
        ends: set[int] = set()
        for place in range(text.count, -1, -1):
            separates = text.separates(place) and place + 1 in starts
            if separates or place == text.count:
                ends.add(place)
                links[place] = None, place
            labels = list(self._labels(text, place))
            for label, end in labels:
                if end in ends:
                    targets[place] = label, end
                    break
            if place not in links:
                for name, end in self._predicates.at(text, place):
                    if end in targets:
                        links[place] = name, end
                        break
            for label, end in labels:
                if end in links:
                    starts[place] = label, end
                    break
            else:
                if separates:
                    starts[place] = None, place + 1
        return _followed(starts, links, targets, text.count) if 0 in starts else None

    def _labels(self, text: "_Text", place: int) -> Iterator[tuple[_Label, int]]:
        """The objects that may be said there and where they end, the longest first."""
        for name, end in self._objects.at(text, place):
            if (number := text.number(end)) is not None:
                yield (name, number), end + 1
            yield (name, 1), end

    def _fault(self, text: "_Text") -> str:
        """Why a text is no graph, as a clause: what is wrong where reading from its start comes to its end."""
        starts, links, targets, ends = {0}, set[int](), set[int](), set[int]()
        for place in range(text.count + 1):
            if place in starts:
                links |= {end for _, end in self._labels(text, place)}
            if place in links:
                targets |= {end for _, end in self._predicates.at(text, place)}
            if place in targets:
                ends |= {end for _, end in self._labels(text, place)}
            if text.separates(place) and place in starts | links | ends:
                starts.add(place + 1)
        place = max(starts | links | targets | ends)
        stop = next((after for after in range(place, text.count) if text.separates(after)), text.count)
        start = max(before for before in starts if before <= place)
        objects, predicates = self._objects, self._predicates
        later = [after for after in range(place + 1, stop) if any(predicates.at(text, after))][:1]
        if place in targets:
            if place == stop:
                return f"after {text.shown(start, place)} an object is missing"
            return objects.unknown(text.said(place, stop))
        if place in links:
            last = [at for at in range(place, stop) if any(end == stop for _, end in self._labels(text, at))][:1]
            if last == [place]:
                between = f"{text.shown(start, place)} and {text.shown(place, stop)}"
                return f"between {between} no relation is said; write one, or 'and'"
            # Either name may be wrong, or all of it: the one that is nearest to a known name is said.
            guesses = [(objects, text.said(start, after)) for after in later]
            guesses += [(predicates, text.said(place, before)) for before in [*last, stop]]
            guesses += [(objects, text.said(start, stop))]
            known, said = max(guesses, key=lambda each: each[0].nearness(each[1]))
            return known.unknown(said)
        if place in ends:
            said = text.said(max(before for before in targets if before < place), stop)
            if objects.near(said):
                return objects.unknown(said)
            return (
                f"{text.shown(start, place)} is followed by {text.shown(place, stop)}; put 'and' between two statements"
            )
        for _, end in predicates.at(text, place):
            return f"before {text.shown(place, end)} an object is missing"
        said = max((text.said(place, after) for after in [*later, stop]), key=objects.nearness)
        return objects.unknown(said)

    def _from_json(self, text: str) -> SceneGraph:
        content = text.encode("utf-8", "surrogatepass")
        try:
            typed = msgspec.json.decode(content, type=_TypedGraph)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(f"the graph cannot be read as JSON: {clause(content, error)}.") from error
        objects = []
        for place, thing in enumerate(typed.objects):
            name = self._objects.find(thing.name)
            if name is None:
                raise RequestError(f"objects[{place}] of the graph: {self._objects.unknown(thing.name)}.")
            box = NO_BOX if thing.box is None else _checked_box(thing.box, f"objects[{place}].box of the graph")
            objects.append(SceneObject(place, name, (), box))
        relations = []
        for place, (subject, word, target) in enumerate(typed.relations):
            where = f"relations[{place}] of the graph"
            for end in (subject, target):
                if not 0 <= end < len(objects):
                    listed = f"the graph lists {len(objects)}, and the first is 0"
                    raise RequestError(f"{where} names object {end}, which is not there; {listed}.")
            predicate = self._predicates.find(word)
            if predicate is None:
                raise RequestError(f"{where}: {self._predicates.unknown(word)}.")
            relations.append((subject, predicate, target))
        return SceneGraph(tuple(objects), tuple(relations))


class _TypedObject(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    box: tuple[float, float, float, float] | None = None


class _TypedGraph(msgspec.Struct, forbid_unknown_fields=True):
    objects: list[_TypedObject]
    relations: list[tuple[int, str, int]] = []


def _checked_box(edges: tuple[float, float, float, float], where: str) -> Box:
    x0, y0, x1, y1 = edges
    given = f"{where}, [{x0:g}, {y0:g}, {x1:g}, {y1:g}],"
    if not all(0 <= edge <= 1 for edge in edges):
        raise RequestError(f"{given} leaves the picture; write x0, y0, x1, y1 as parts of it, 0 to 1.")
    if x0 >= x1 or y0 >= y1:
        raise RequestError(f"{given} is empty; write x0, y0, x1, y1 with x0 below x1 and y0 below y1.")
    return x0, y0, x1 - x0, y1 - y0


class _Text:
    """A text by words. words: as written, without quotes; keys: in one case, None for a quoted one; count: of them."""

    def __init__(self, text: str) -> None:
        words: list[str] = []
        keys: list[str | None] = []
        for token in _TOKEN.finditer(text):
            quoted = token[1]
            words.append(token[0] if quoted is None else quoted.replace('""', '"'))
            keys.append(token[0].casefold() if quoted is None else None)
        self.words, self.keys, self.count = tuple(words), tuple(keys), len(words)

    def separates(self, place: int) -> bool:
        return place < self.count and self.keys[place] in _SEPARATORS

    def number(self, place: int) -> int | None:
        if place == self.count or self.keys[place] is None or not _NUMBER.fullmatch(self.words[place]):
            return None
        return int(self.words[place])

    def said(self, start: int, end: int) -> str:
        return " ".join(self.words[start:end])

    def shown(self, start: int, end: int) -> str:
        return _shown(self.said(start, end))


class _Names:
    """A vocabulary's names of one kind, the most frequent first, found by their words."""

    def __init__(self, kind: str, names: Sequence[str]) -> None:
        self.kind, self.names, self._exact = kind, tuple(names), frozenset(names)
        self._spelled: dict[tuple[str | None, ...], list[str]] = {}
        for name in names:
            keys = _Text(name).keys
            if keys and None not in keys:  # others can only be quoted
                self._spelled.setdefault(keys, []).append(name)
        self._lengths = sorted({len(keys) for keys in self._spelled}, reverse=True)

    def find(self, name: str) -> str | None:
        """The name that is spelled so, or else so but for case and spaces."""
        if name in self._exact:
            return name
        alike = self._spelled.get(_Text(name).keys)
        return None if alike is None else alike[0]

    def at(self, text: _Text, place: int) -> Iterator[tuple[str, int]]:
        """The names that may be said there and where they end, the longest first."""
        if place == text.count:
            return
        if text.keys[place] is None:
            quoted = self.find(text.words[place])
            if quoted is not None:
                yield quoted, place + 1
            return
        for length in self._lengths:
            end = place + length
            alike = self._spelled.get(text.keys[place:end]) if end <= text.count else None
            if alike is not None:
                written = text.said(place, end)
                yield written if written in alike else alike[0], end

    def near(self, said: str) -> list[str]:
        """The names that may have been meant."""
        folded = {name.casefold(): name for name in reversed(self.names)}
        return [folded[key] for key in difflib.get_close_matches(said.casefold(), folded, 3, _NEAR)]

    def nearness(self, said: str) -> float:
        """Of the nearest name: 1 where it is the same, 0 where it is none of `near`."""
        matcher = difflib.SequenceMatcher(b=said.casefold())
        best = 0.0
        for name in self.names:
            matcher.set_seq1(name.casefold())
            best = max(best, matcher.ratio())
        return best if best >= _NEAR else 0.0

    def unknown(self, said: str) -> str:
        """That it is no name of these, as a clause."""
        near = " or ".join(map(repr, self.near(said)))
        hint = f" (perhaps {near} was meant)" if near else ""
        listed = ", ".join(self.names[:_LISTED]) or "none"
        few = "known are" if len(self.names) <= _LISTED else f"{len(self.names)} are known, such as"
        return f"no {self.kind} {_shown(said)} is known{hint}; {few} {listed}"


def _shown(said: str) -> str:
    return repr(said if len(said) <= _SHOWN else said[:_SHOWN] + "…")


def _followed(
    starts: Mapping[int, tuple[_Label | None, int]],
    links: Mapping[int, tuple[str | None, int]],
    targets: Mapping[int, tuple[_Label, int]],
    count: int,
) -> list[_Statement]:
    """The statements on the way from the text's start, see `GraphLanguage._statements`."""
    statements: list[_Statement] = []
    place = 0
    while place < count:
        subject, place = starts[place]
        if subject is None:
            continue
        predicate, end = links[place]
        if predicate is None:
            statements.append((subject,))
        else:
            target, end = targets[end]
            statements.append((subject, predicate, target))
        place = end + 1  # behind the separator that ended it
    return statements


def _statements_of(graph: SceneGraph) -> list[_Statement]:
    names = {thing.id: thing.name for thing in graph.objects}
    labels: dict[int, _Label] = {}
    said: Counter[str] = Counter()

    def label(thing: int) -> _Label:
        if thing not in labels:
            if thing not in names:
                raise RequestError(
                    f"a scene graph has a relation of object {thing}, which it does not list; list it or remove the "
                    "relation."
                )
            said[names[thing]] += 1
            labels[thing] = names[thing], said[names[thing]]
        return labels[thing]

    statements: list[_Statement] = [
        (label(subject), word, label(target)) for subject, word, target in graph.relationships
    ]
    return statements + [(label(thing.id),) for thing in graph.objects if thing.id not in labels]


def _joined(statements: Iterable[_Statement], name: Callable[[str], str]) -> str:
    def said(label: _Label) -> str:
        return name(label[0]) if label[1] == 1 else f"{name(label[0])} {label[1]}"

    return " and ".join(
        said(each[0]) if len(each) == 1 else f"{said(each[0])} {name(each[1])} {said(each[2])}" for each in statements
    )


def _graph_of(statements: Iterable[_Statement]) -> SceneGraph:
    places: dict[_Label, int] = {}
    relations = []
    for each in statements:
        ends = [places.setdefault(label, len(places)) for label in (each if len(each) == 1 else (each[0], each[2]))]
        if len(each) == 3:
            relations.append((ends[0], each[1], ends[1]))
    objects = (SceneObject(place, name, (), NO_BOX) for (name, _), place in places.items())
    return SceneGraph(tuple(objects), tuple(relations))
