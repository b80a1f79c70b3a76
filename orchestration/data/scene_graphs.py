"""Scene graphs as sg2im prepares them (Johnson, Gupta and Fei-Fei, 2018, section 4.1), which RetrieveGAN follows.

Visual Genome: what is rare, small or crowded is left out (`sg2im_filter`). COCO: a graph is made of the boxes
(`with_coco_graphs`). The papers' virtual `__image__` node, to which every object stands in relation `__in_image__`, is
the model's: it is in no graph and no vocabulary here.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from orchestration.data.json_files import clause, read_bytes
from orchestration.data.problems import Kind, Notice, Problem, refuse
from orchestration.data.records import (
    Box,
    Dataset,
    ImageRecord,
    Instance,
    PanopticSegment,
    SceneGraph,
    SceneObject,
    carried,
)
from orchestration.data.sampler import derive_seed, mix
from orchestration.errors import RequestError

RELATIONS = ("left of", "right of", "above", "below", "inside", "surrounding")
"""The six geometric predicates (sg2im, section 4.1)."""

ALIAS_FILES = ("object_alias.txt", "relationship_alias.txt")
"""Visual Genome's: a line a name, the name first, then its other spellings, commas between."""

_COCO_STREAM, _LIMIT_STREAM = 0x434F, 0x4C49  # keep these draws apart from other uses of one seed


@dataclass(frozen=True, slots=True)
class Sg2imOptions:
    """sg2im's limits on Visual Genome. "Paper" is its section 4.1; "code" its released preprocessing's defaults."""

    min_object_count: int = 2000  # of a name, over the train split's objects (paper)
    min_attribute_count: int = 2000  # the same for an attribute (code)
    min_relationship_count: int = 500  # of a predicate, over train relationships whose both objects stay (paper, code)
    min_object_px: int = 32  # width and height of a box; the paper says only "small objects" (code)
    min_picture_px: int = 200  # the shorter side; not in the paper (code)
    objects_per_picture: tuple[int, int] = (3, 30)  # fewest and most; other pictures are left out (paper)
    relationships_per_picture: tuple[int, int] = (1, 30)  # at least one (paper); at most 30 (code)
    max_objects: int | None = 10  # drawn from a picture's objects (code); None: all


@dataclass(frozen=True, slots=True)
class Aliases:
    """The name that stands for each spelling, where that is another."""

    objects: Mapping[str, str] = field(default_factory=dict)
    relationships: Mapping[str, str] = field(default_factory=dict)


def read_aliases(root: Path, notice: Notice = refuse) -> Aliases:
    """What object_alias.txt and relationship_alias.txt say, where they are; the last line on a spelling holds."""
    return Aliases(*(_spellings(root / name, notice) for name in ALIAS_FILES))


def _spellings(file: Path, notice: Notice) -> Mapping[str, str]:
    if not file.is_file():
        return {}
    content = read_bytes(file)
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        sentence = f"{file} cannot be used as aliases: {clause(content, error)}; fetch the file again."
        notice(Problem(Kind.FILE_BROKEN, sentence))
        return {}
    rows = ([spelling.strip() for spelling in line.split(",")] for line in lines)
    return {spelling: row[0] for row in rows if row[0] for spelling in row if spelling}


@dataclass(frozen=True, slots=True)
class GraphVocabulary:
    """The names that scene graphs use, the most frequent first, equally frequent ones by alphabet."""

    objects: tuple[str, ...]
    attributes: tuple[str, ...]
    relationships: tuple[str, ...]

    @classmethod
    def of(cls, records: Iterable[ImageRecord]) -> "GraphVocabulary":
        """Every name in the graphs of these records, however rare."""
        graphs = [record.graph for record in records if record.graph is not None]
        return cls(
            _frequent((thing.name for graph in graphs for thing in graph.objects), 1),
            _frequent((name for graph in graphs for thing in graph.objects for name in thing.attributes), 1),
            _frequent((predicate for graph in graphs for _, predicate, _ in graph.relationships), 1),
        )

    @property
    def digest(self) -> str:
        """Sha256 (hex) of all names in their order."""
        return hashlib.sha256(json.dumps([self.objects, self.attributes, self.relationships]).encode()).hexdigest()


def sg2im_vocabulary(
    train: Iterable[ImageRecord], options: Sg2imOptions | None = None, aliases: Aliases | None = None
) -> GraphVocabulary:
    """The names that are frequent enough in the graphs of the train split.

    An object counts once for each of its names after aliases; a relationship counts where both objects stay.
    """
    options, aliases = options or Sg2imOptions(), aliases or Aliases()
    graphs = [record.graph for record in train if record.graph is not None and _large(record, options)]
    things = [thing for graph in graphs for thing in graph.objects]
    objects = _frequent((name for thing in things for name in set(_names(thing, aliases))), options.min_object_count)
    attributes = _frequent((name for thing in things for name in set(thing.attributes)), options.min_attribute_count)
    stay = frozenset(objects)
    links = (link for graph in graphs for link in _linked(graph, _staying(graph, stay, options, aliases), aliases))
    return GraphVocabulary(
        objects, attributes, _frequent((predicate for _, predicate, _ in links), options.min_relationship_count)
    )


def filter_graphs(
    dataset: Dataset, vocabulary: GraphVocabulary, options: Sg2imOptions | None = None, aliases: Aliases | None = None
) -> Dataset:
    """The pictures and the part of their graphs that sg2im uses, in the words of `vocabulary`.

    A picture stays if it is not too small and if, after all words outside the vocabulary and all small objects are
    gone, it has neither too few nor too many objects and relationships. An object takes the first of its published
    names that the vocabulary has, after aliases. Names and attributes keep their case; predicates are put into lower
    case and stripped before aliases. sg2im's code does that in the train split only, where it counts them, and so
    loses every "ON" of the others; here it is done in all splits.

    Of the objects left `max_objects` are drawn, those in a relationship first, then orphans. sg2im draws anew each
    time a picture is read, and its code counts the virtual node among the ten, so that it draws nine, or by a slip ten
    where more than nine are related. Here ten are drawn, once, from the image id: every reading gives the same graph.
    Raises RequestError when no picture is left.
    """
    options, aliases = options or Sg2imOptions(), aliases or Aliases()
    words = _Words(frozenset(vocabulary.objects), frozenset(vocabulary.attributes), frozenset(vocabulary.relationships))
    kept = []
    for record in dataset.records:
        if record.graph is None or not _large(record, options):
            continue
        graph = _filtered(record.graph, words, options, aliases)
        if graph is not None:
            kept.append(replace(record, graph=_limited(graph, options.max_objects, record.image_id)))
    if not kept:
        raise RequestError(
            f"no picture of the {len(dataset.records)} in {dataset.root} ({dataset.split}) passes sg2im's filter: it "
            f"counts names over the full data set and asks for {options.min_object_count} of each; read the folder "
            "as visual-genome, unfiltered, or filter with lower limits."
        )
    spelled = json.dumps([sorted(aliases.objects.items()), sorted(aliases.relationships.items())])
    said = f"{dataset.digest} sg2im {options} {vocabulary.digest} {spelled}"
    digest = hashlib.sha256(said.encode()).hexdigest()
    return replace(dataset, records=tuple(kept), carries=carried(kept), digest=digest)


def sg2im_filter(
    train: Dataset, dataset: Dataset, options: Sg2imOptions | None = None, aliases: Aliases | None = None
) -> Dataset:
    """`dataset` filtered by the vocabulary of `train`. Raises RequestError when no picture is left."""
    return filter_graphs(dataset, sg2im_vocabulary(train.records, options, aliases), options, aliases)


@dataclass(frozen=True, slots=True)
class _Words:
    objects: frozenset[str]
    attributes: frozenset[str]
    relationships: frozenset[str]


def _frequent(names: Iterable[str], least: int) -> tuple[str, ...]:
    counts = Counter(names)
    return tuple(sorted((name for name in counts if counts[name] >= least), key=lambda name: (-counts[name], name)))


def _large(record: ImageRecord, options: Sg2imOptions) -> bool:
    return min(record.width, record.height) >= options.min_picture_px


def _names(thing: SceneObject, aliases: Aliases) -> Iterator[str]:
    return (aliases.objects.get(name, name) for name in (thing.name, *thing.other_names))


def _staying(graph: SceneGraph, words: frozenset[str], options: Sg2imOptions, aliases: Aliases) -> dict[int, str]:
    """The names, by object id, of the objects that are large enough and have one among `words`."""
    names: dict[int, str] = {}
    for thing in graph.objects:
        name = next((name for name in _names(thing, aliases) if name in words), None)
        if name is not None and min(thing.box[2:]) >= options.min_object_px:
            names[thing.id] = name
    return names


def _linked(graph: SceneGraph, ids: Mapping[int, str], aliases: Aliases) -> Iterator[tuple[int, str, int]]:
    for subject, predicate, target in graph.relationships:
        if subject in ids and target in ids:
            plain = predicate.lower().strip()
            yield subject, aliases.relationships.get(plain, plain), target


def _filtered(graph: SceneGraph, words: _Words, options: Sg2imOptions, aliases: Aliases) -> SceneGraph | None:
    names = _staying(graph, words.objects, options, aliases)
    links = tuple(link for link in _linked(graph, names, aliases) if link[1] in words.relationships)
    for count, (least, most) in (
        (len(names), options.objects_per_picture),
        (len(links), options.relationships_per_picture),
    ):
        if not least <= count <= most:
            return None
    objects = (
        SceneObject(
            thing.id, names[thing.id], tuple(name for name in thing.attributes if name in words.attributes), thing.box
        )
        for thing in graph.objects
        if thing.id in names
    )
    return SceneGraph(tuple(objects), links)


def _limited(graph: SceneGraph, count: int | None, image_id: int) -> SceneGraph:
    """At most `count` of the objects, drawn from the image id, those in a relationship first; in published order."""
    if count is None or len(graph.objects) <= count:
        return graph
    related = {end for subject, _, target in graph.relationships for end in (subject, target)}
    draws = mix(image_id, _LIMIT_STREAM, np.arange(len(graph.objects))).tolist()
    order = sorted(zip(graph.objects, draws, strict=True), key=lambda pair: (pair[0].id not in related, pair[1]))
    drawn = {thing.id for thing, _ in order[:count]}
    return SceneGraph(
        tuple(thing for thing in graph.objects if thing.id in drawn),
        tuple(link for link in graph.relationships if link[0] in drawn and link[2] in drawn),
    )


def graph_sentence(graph: SceneGraph) -> str:
    """The graph in words, for systems that read text: RetrieveGAN's protocol for AttnGAN (section 4).

    Each relationship is "subject predicate object", in the graph's order, and "and" stands between them. Objects in
    no relationship are not said; a graph without any gives "".
    """
    names = {thing.id: thing.name for thing in graph.objects}
    return " and ".join(f"{names[subject]} {word} {names[target]}" for subject, word, target in graph.relationships)


StuffSource = Literal["auto", "stuff", "panoptic"]
"""Whose regions of stuff are nodes: COCO-Stuff's, the panoptic map's, or COCO-Stuff's where a picture has them."""


@dataclass(frozen=True, slots=True)
class CocoGraphOptions:
    """sg2im's choice of COCO objects (section 4.1; what it leaves open follows its released code).

    sg2im knows COCO-Stuff alone; panoptic maps, which are younger, stand in where it is absent.
    """

    min_area: float = 0.02  # of the picture; of the box, not of the mask (google/sg2im, issue 7)
    objects_per_picture: tuple[int, int] = (3, 8)
    left_out: tuple[str, ...] = ("other",)  # COCO-Stuff's category of all that is a thing
    crowds: bool = True  # whether a crowd, one box around many, counts as an object (code)
    stuff: StuffSource = "auto"


def spatial_relation(subject_box: Box, object_box: Box) -> str:
    """How the subject stands to the object: exactly one of `RELATIONS`.

    "surrounding" and "inside" where one box lies within the other and touches none of its sides. Else the direction
    from the object's centre to the subject's decides, in four sectors of a quarter turn about the axes; the sectors'
    edges, at exactly 45 degrees, are "left of" and "right of", so that swapping the boxes always gives the converse.
    Only for one and the same centre it is "right of" both ways, as in sg2im's code, where that angle is 0.

    Boxes are x, y, width, height in any one unit; y points down. sg2im measures from the masks' centroids instead of
    the boxes' centres.
    """
    x, y, width, height = subject_box
    other_x, other_y, other_width, other_height = object_box
    if _within(object_box, subject_box):
        return "surrounding"
    if _within(subject_box, object_box):
        return "inside"
    # Twice the distances between the centres: only their signs and their order count.
    right = (2 * x + width) - (2 * other_x + other_width)
    down = (2 * y + height) - (2 * other_y + other_height)
    if abs(right) >= abs(down):
        return "left of" if right < 0 else "right of"
    return "above" if down < 0 else "below"


def _within(inner: Box, outer: Box) -> bool:
    return all(
        outer[axis] < inner[axis] and inner[axis] + inner[axis + 2] < outer[axis] + outer[axis + 2] for axis in (0, 1)
    )


def coco_regions(record: ImageRecord, source: StuffSource = "auto") -> tuple[Instance | PanopticSegment, ...] | None:
    """Things, then stuff, or None where the picture's stuff is not annotated.

    Things are the instances, or the panoptic map's where no instances file lists the picture. A panoptic map covers
    the whole picture, so that one without any stuff counts as annotated: COCO-Stuff has a region "other" there.
    """
    segments = () if record.panoptic is None else record.panoptic.segments
    things = tuple(each for each in segments if each.thing) if record.instances is None else record.instances
    if record.stuff and source != "panoptic":
        return *things, *record.stuff
    if record.panoptic is not None and source != "stuff":
        return *things, *(each for each in segments if not each.thing)
    return None


def coco_graph(record: ImageRecord, options: CocoGraphOptions, seed: int) -> SceneGraph | None:
    """The scene graph of a COCO picture's boxes, or None where sg2im does not use the picture.

    Its nodes are the things and the stuff regions that `options` admit, named by category. A node's id is its index
    in `coco_regions(record, options.stuff)`: its mask is found there. Each node gives one relationship, with another
    node and in a direction that are drawn from the seed and the image id: a picture's graph is always the same.
    A picture without stuff annotations has none, nor one with too few or too many objects.
    """
    regions = coco_regions(record, options.stuff)
    if regions is None:
        return None
    nodes = [
        SceneObject(index, region.category, (), region.box)
        for index, region in enumerate(regions)
        if _admitted(region, record, options)
    ]
    least, most = options.objects_per_picture
    if not least <= len(nodes) <= most:
        return None
    draws = mix(derive_seed(seed, _COCO_STREAM, record.image_id), 0, np.arange(2 * len(nodes))).tolist()
    relationships = []
    for place, node in enumerate(nodes if len(nodes) > 1 else ()):
        other = nodes[(place + 1 + draws[2 * place] % (len(nodes) - 1)) % len(nodes)]
        subject, target = (node, other) if draws[2 * place + 1] % 2 else (other, node)
        # On the unit square, as sg2im has it: the networks see the picture squeezed to a square.
        predicate = spatial_relation(_on_unit_square(subject.box, record), _on_unit_square(target.box, record))
        relationships.append((subject.id, predicate, target.id))
    return SceneGraph(tuple(nodes), tuple(relationships))


def _admitted(region: Instance | PanopticSegment, record: ImageRecord, options: CocoGraphOptions) -> bool:
    if region.category in options.left_out or (region.crowd and not options.crowds):
        return False
    return region.box[2] * region.box[3] >= options.min_area * record.width * record.height


def _on_unit_square(box: Box, record: ImageRecord) -> Box:
    x, y, width, height = box
    return x / record.width, y / record.height, width / record.width, height / record.height


def with_coco_graphs(dataset: Dataset, options: CocoGraphOptions | None = None, seed: int = 0) -> Dataset:
    """The data set with a graph on every record: a published one stays, others are made by `coco_graph`.

    Records of which no graph is made are left out. Published sizes (sg2im, section 4.1): 24,972 train, 1,024 val
    and 2,048 test pictures, of which `own_val_and_test` makes the last two. The train figure is of COCO-Stuff's 40,000
    pictures of 2017: the files published since June 2018 annotate all of COCO, and about 72,600 pictures pass
    (google/sg2im, issue 15; ashual/scene_generation, issue 6).
    Raises RequestError when no picture is left.
    """
    options = options or CocoGraphOptions()
    kept = []
    for record in dataset.records:
        graph = coco_graph(record, options, seed) if record.graph is None else record.graph
        if graph is not None:
            kept.append(replace(record, graph=graph))
    if not kept:
        least, most = options.objects_per_picture
        sources = {"auto": ("panoptic", "stuff"), "stuff": ("stuff",), "panoptic": ("panoptic",)}[options.stuff]
        files = " or ".join(f"annotations/{source}_{dataset.split}2017.json" for source in sources)
        raise RequestError(
            f"no picture of {dataset.root} ({dataset.split}) gives a scene graph: each needs stuff annotations and "
            f"{least} to {most} objects of {options.min_area:.0%} of its area; add the published file {files}."
        )
    said = f"{dataset.digest} graphs {options} {seed}"
    digest = hashlib.sha256(said.encode()).hexdigest()
    complete = dataset.complete | {"graph"}
    return replace(dataset, records=tuple(kept), carries=carried(kept), digest=digest, complete=complete)


def own_val_and_test(val: Dataset, val_pictures: int = 1024) -> tuple[Dataset, Dataset]:
    """sg2im's own splits of COCO's val split, after graphs are made: the first 1,024 pictures, and the rest.

    Raises RequestError when there is no rest.
    """
    if len(val.records) <= val_pictures:
        raise RequestError(
            f"{val.root} ({val.split}) has {len(val.records)} pictures with a scene graph, and the first "
            f"{val_pictures} are to be the val split; ask for fewer, so that some are left for the test split."
        )
    return _part(val, "val", val.records[:val_pictures]), _part(val, "test", val.records[val_pictures:])


def _part(whole: Dataset, split: str, records: Iterable[ImageRecord]) -> Dataset:
    kept = tuple(records)
    digest = hashlib.sha256(f"{whole.digest} {split} of {len(kept)}".encode()).hexdigest()
    return replace(whole, split=split, records=kept, carries=carried(kept), digest=digest)
