"""Scene graphs of a split: which pictures have one, and the graphs as models read them."""

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from models.contract import Graphs, Settings
from orchestration.data.graph_text import GraphLanguage, graph_text
from orchestration.data.records import Caption, Dataset, ImageRecord, SceneGraph, carried
from orchestration.data.scene_graphs import (
    CocoGraphOptions,
    GraphVocabulary,
    StuffSource,
    own_val_and_test,
    with_coco_graphs,
)
from orchestration.data.transforms import Placement, Transform, get_transform
from orchestration.errors import RequestError
from orchestration.stages import Progress, Stage

VERSION = 1
WORDS_VERSION = 1  # of how a graph is said, for the digest of a data set whose captions are that
_ARRAYS = {
    "image_ids": np.int64,
    "stored": np.int64,
    "starts": np.int64,
    "boxes": np.float32,
    "numbers": np.int64,
    "link_starts": np.int64,
    "links": np.int64,
}
_WIDTHS = {"stored": (2,), "boxes": (4,), "links": (3,)}
_DESCRIPTION = "graphs.json"


class GraphSettings(Settings):
    """Which pictures have a scene graph, and of what. All but val_pictures is for COCO, where no graph is published."""

    least_objects: int = Field(3, ge=1, description="pictures with fewer objects are left out (sg2im, section 4.1: 3)")
    most_objects: int = Field(8, ge=1, description="pictures with more objects are left out (sg2im, section 4.1: 8)")
    min_area: float = Field(
        0.02, ge=0, le=1, description="share of the picture that an object's box needs (sg2im, section 4.1: 0.02)"
    )
    crowds: bool = Field(True, description="one box around many of a kind is an object (sg2im's released code)")
    left_out: tuple[str, ...] = Field(
        ("other",), description="categories that are no object (sg2im's released code: COCO-Stuff's other)"
    )
    stuff: StuffSource = Field(
        "auto",
        description="where grass, sky and the like come from: stuff (COCO-Stuff's boxes, as sg2im), panoptic (the "
        "panoptic map's, under its names), or auto: COCO-Stuff's where a picture has them, else the panoptic map's",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the relations, which are drawn from all pairs of objects")
    val_pictures: int | None = Field(
        None,
        ge=1,
        description="make val and test of the val split: so many pictures first (sg2im: 1024), then the rest; none: "
        "the splits as they are",
    )

    @model_validator(mode="after")
    def _check(self) -> "GraphSettings":
        if self.least_objects > self.most_objects:
            raise ValueError(f"least_objects {self.least_objects} is more than most_objects {self.most_objects}")
        return self

    @property
    def options(self) -> CocoGraphOptions:
        """The same for `with_coco_graphs`."""
        counts = self.least_objects, self.most_objects
        return CocoGraphOptions(self.min_area, counts, self.left_out, self.crowds, self.stuff)


def graph_dataset(read: Callable[[str], Dataset], split: str, settings: GraphSettings) -> Dataset:
    """The split with a scene graph on every record, and that graph in words as its one caption.

    read: gives a split of the data, such as `open_source` does. Published graphs stay as they are; others are made by
    `with_coco_graphs`; records without an object are left out. With `val_pictures` "val" and "test" are both made of
    the val split (`own_val_and_test`). Raises RequestError where no picture is left, and what `read` raises.
    """
    first = settings.val_pictures if split in ("val", "test") else None
    dataset = read(split if first is None else "val")
    if not dataset.carries & {"graph", "stuff", "panoptic"}:
        raise RequestError(
            f"{dataset.root} ({dataset.split}) has neither scene graphs nor what they are made of; name data with "
            "graphs, stuff boxes or panoptic maps, such as scenes, coco:PATH or visual-genome-sg2im:PATH."
        )
    made = with_coco_graphs(dataset, settings.options, settings.seed)
    kept = tuple(record for record in made.records if record.graph is not None and record.graph.objects)
    if not kept:
        raise RequestError(
            f"no scene graph of {dataset.root} ({dataset.split}) has an object; fetch its files again or name other "
            "data."
        )
    made = replace(made, records=kept)
    if first is not None:
        made = own_val_and_test(made, first)[split == "test"]
    said = [_said(record, record.graph, graph_text) for record in made.records if record.graph is not None]
    return _replaced(made, said, f"graphs in words {WORDS_VERSION}")


def known_names(dataset: Dataset, vocabulary: GraphVocabulary) -> Dataset:
    """What of a `graph_dataset` can be said in the names of `vocabulary`, the train split's as a rule.

    Objects of other names go, with their relations, and relations of other names; then pictures without an object. The
    captions say what is left. Where all is known, this very data set. Raises RequestError where no picture is left.
    """
    language = GraphLanguage(vocabulary)
    objects, predicates = frozenset(vocabulary.objects), frozenset(vocabulary.relationships)
    kept = []
    for record in dataset.records:
        graph = None if record.graph is None else _known(record.graph, objects, predicates)
        if graph is not None and graph.objects:
            kept.append(_said(record, graph, language.write))
    if not kept:
        raise RequestError(
            f"no picture of {dataset.root} ({dataset.split}) has an object with one of the {len(objects)} names known "
            "from training; name splits of one data set."
        )
    if len(kept) == len(dataset.records) and all(map(_same, kept, dataset.records)):
        return dataset
    return _replaced(dataset, kept, f"known {vocabulary.digest}")


def _known(graph: SceneGraph, objects: frozenset[str], predicates: frozenset[str]) -> SceneGraph:
    things = tuple(thing for thing in graph.objects if thing.name in objects)
    ids = {thing.id for thing in things}
    links = (link for link in graph.relationships if link[1] in predicates and link[0] in ids and link[2] in ids)
    return SceneGraph(things, tuple(links))


def _said(record: ImageRecord, graph: SceneGraph, words: Callable[[SceneGraph], str]) -> ImageRecord:
    return replace(record, graph=graph, captions=(Caption(0, words(graph)),))


def _same(one: ImageRecord, other: ImageRecord) -> bool:
    return one.image_id == other.image_id and one.graph == other.graph and one.captions == other.captions


def _replaced(dataset: Dataset, records: Sequence[ImageRecord], what: str) -> Dataset:
    """The data set with these records of it, of which each has a graph and a caption."""
    digest = hashlib.sha256(f"{dataset.digest} {what}".encode()).hexdigest()
    complete = dataset.complete | {"graph", "captions"}
    return replace(dataset, records=tuple(records), carries=carried(records), digest=digest, complete=complete)


@dataclass(frozen=True, slots=True, eq=False)
class StoredGraphs:
    """The scene graphs of N pictures.

    image_ids: (N,) int64, as the records stand; classes, predicates: names; stored: (N,2) int64, width and height of
    each stored picture; starts: (N+1,) int64, picture i owns objects starts[i] to starts[i+1], at least one; boxes:
    (M,4) float32, x0, y0, x1, y1 in pixels of the stored picture, which they may reach beyond; numbers: (M,) int64,
    places in `classes`; link_starts: (N+1,) int64, picture i owns relations link_starts[i] to link_starts[i+1]; links:
    (L,3) int64, the subject's place among the picture's objects, a place in `predicates`, the object's place; size:
    side of the square pictures that are shown.
    """

    image_ids: NDArray[np.int64]
    classes: tuple[str, ...]
    predicates: tuple[str, ...]
    stored: NDArray[np.int64]
    starts: NDArray[np.int64]
    boxes: NDArray[np.float32]
    numbers: NDArray[np.int64]
    link_starts: NDArray[np.int64]
    links: NDArray[np.int64]
    transform: Transform
    size: int
    most: int = field(init=False)
    """Objects of the fullest picture, at least 1."""
    most_links: int = field(init=False)
    """Relations of the picture with the most, at least 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "most", max([1, *np.diff(self.starts).tolist()]))
        object.__setattr__(self, "most_links", max([1, *np.diff(self.link_starts).tolist()]))

    def __len__(self) -> int:
        return len(self.image_ids)

    def take(self, items: NDArray[np.int64], draws: NDArray[np.float64] | None = None) -> Graphs:
        """The graphs of B pictures, padded to `most` and `most_links`; items: (B,) places among the N, draws: (B,3).

        Cut as `Pictures.drawn` does with these draws, and without draws as `Pictures.still`, but never mirrored: "left
        of" would not be true. A graph keeps all its objects: a box is cut where the picture ends, and one of which less
        than a pixel of a side is left becomes that pixel, at the edge that it lies beyond.
        """
        counts, rows, places, own = _spread(self.starts, items)
        classes = np.zeros((len(items), self.most), np.int64)
        classes[rows, places] = self.numbers[own] + 1
        boxes = np.zeros((len(items), self.most, 4), np.float32)
        boxes[rows, places] = self._shown(self.boxes[own].astype(np.float64), self._corners(items, draws)[rows])
        linked, rows, places, own = _spread(self.link_starts, items)
        relations = np.zeros((len(items), self.most_links, 3), np.int64)
        relations[rows, places] = self.links[own] + np.array([0, 1, 0])
        return _graphs(classes, boxes, counts, relations, linked)

    def _corners(self, items: NDArray[np.int64], draws: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """(B,2) left and top of the squares that are cut out, in pixels of the stored pictures."""
        corners = np.zeros((len(items), 2))
        for row, (width, height) in enumerate(self.stored[items].tolist()):
            # A stored picture is what its transform makes of itself, so that only the random half is left to do.
            record = ImageRecord(0, Path(), width, height)
            place = self.transform.place(record, self.size, None if draws is None else draws[row])
            corners[row] = place.left, place.top
        return corners

    def _shown(self, boxes: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.float64]:
        """(M,4) in [0, 1] of the shown pictures."""
        low = (boxes[:, :2] - corners).clip(0, self.size - 1)
        high = (boxes[:, 2:] - corners).clip(low + 1, self.size)
        return np.concatenate([low, high], 1) / self.size


def _spread(starts: NDArray[np.int64], items: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """How much each item owns, and of all that: whose it is (a place in items), its place there, its place in all."""
    counts = starts[items + 1] - starts[items]
    rows = np.repeat(np.arange(len(items)), counts)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return counts, rows, places, starts[items][rows] + places


def _graphs(classes: Any, boxes: Any, counts: Any, relations: Any, links: Any) -> Graphs:
    return Graphs(*map(torch.from_numpy, (classes, boxes, counts, relations, links)))


def graphs_of(typed: Sequence[SceneGraph], vocabulary: GraphVocabulary, least: tuple[int, int] = (1, 1)) -> Graphs:
    """Graphs that people wrote (`read_graph`), with boxes as parts of the picture, zero where none was given.

    least: they are padded to so many objects and relations, or to those of the fullest where that has more. Raises
    RequestError for a graph without an object, a relation of an object that is not there, and an unknown name.
    """
    numbering = _Numbering(vocabulary)
    read = [numbering.of(graph, f"scene graph {place}") for place, graph in enumerate(typed)]
    most = max([least[0], *(len(numbers) for numbers, _ in read)])
    most_links = max([least[1], *(len(links) for _, links in read)])
    classes = np.zeros((len(read), most), np.int64)
    boxes = np.zeros((len(read), most, 4), np.float32)
    relations = np.zeros((len(read), most_links, 3), np.int64)
    for row, (graph, (numbers, links)) in enumerate(zip(typed, read, strict=True)):
        classes[row, : len(numbers)] = np.array(numbers) + 1
        boxes[row, : len(numbers)] = _corners_of(np.array([thing.box for thing in graph.objects], np.float64))
        relations[row, : len(links)] = np.array(links, np.int64).reshape(-1, 3) + np.array([0, 1, 0])
    counts = np.array([len(numbers) for numbers, _ in read], np.int64)
    return _graphs(classes, boxes, counts, relations, np.array([len(links) for _, links in read], np.int64))


def _corners_of(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M,4) x, y, width, height to x0, y0, x1, y1."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


class _Numbering:
    """Graphs by the places of their names in a vocabulary."""

    def __init__(self, vocabulary: GraphVocabulary) -> None:
        self.classes = {name: place for place, name in enumerate(vocabulary.objects)}
        self.predicates = {name: place for place, name in enumerate(vocabulary.relationships)}

    def of(self, graph: SceneGraph | None, where: str) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Classes of the objects, and relations as `StoredGraphs` has them. Raises RequestError."""
        if graph is None or not graph.objects:
            raise RequestError(f"{where} has no object; leave it out or give it one.")
        places = {thing.id: place for place, thing in enumerate(graph.objects)}
        links = []
        for subject, word, target in graph.relationships:
            for end in (subject, target):
                if end not in places:
                    raise RequestError(
                        f"{where} has a relation of object {end}, which it does not list; list it or remove the "
                        "relation."
                    )
            links.append((places[subject], _place(self.predicates, "relation", word, where), places[target]))
        return [_place(self.classes, "object", thing.name, where) for thing in graph.objects], links


def _place(known: dict[str, int], kind: str, name: str, where: str) -> int:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (perhaps {near[0]!r} was meant)" if near else ""
    raise RequestError(
        f"{where} has the {kind} {name!r}, which is none of the {len(known)} known ones{hint}; rename or remove it."
    )


def graphs_stage(dataset: Dataset, transform: Transform, size: int, vocabulary: GraphVocabulary) -> Stage:
    """The stage that writes what `open_graphs` reads.

    size: side of the training pictures; vocabulary: the training split's names, which must be all that the graphs have
    (`known_names` sees to it). `run` raises RequestError for a picture without an object, for a relation of an object
    that is not there and for an unknown name.
    """

    def run(folder: Path, progress: Progress) -> None:
        _write(dataset, transform, size, vocabulary, folder, progress)

    settings = {
        "split": dataset.split,
        "transform": transform.name,
        "size": size,
        "classes": list(vocabulary.objects),
        "predicates": list(vocabulary.relationships),
    }
    return Stage("graphs", VERSION, settings, {"data": dataset.digest}, run)


def _write(
    dataset: Dataset, transform: Transform, size: int, vocabulary: GraphVocabulary, folder: Path, progress: Progress
) -> None:
    numbering = _Numbering(vocabulary)
    boxes = [np.zeros((0, 4), np.float32)]
    found: dict[str, list[Any]] = {name: [] for name in _ARRAYS if name != "boxes"}
    found["starts"].append(0)
    found["link_starts"].append(0)
    for done, record in enumerate(dataset.records, 1):
        numbers, links = numbering.of(record.graph, f"the scene graph of image {record.image_id} of {dataset.root}")
        things = () if record.graph is None else record.graph.objects
        # The identity of the random half: only where the stored picture lies in the published one.
        place = transform.place(record, size)
        uncut = Placement(place.region, place.stored, 0, 0, size, False)
        edges = uncut.boxes(np.array([thing.box for thing in things], np.float64))
        boxes.append(_corners_of(edges).astype(np.float32))
        found["numbers"] += numbers
        found["links"] += links
        found["image_ids"].append(record.image_id)
        found["stored"].append(place.stored)
        found["starts"].append(len(found["numbers"]))
        found["link_starts"].append(len(found["links"]))
        progress("graphs", done, len(dataset.records))
    np.save(folder / "boxes.npy", np.concatenate(boxes))
    for name, rows in found.items():
        np.save(folder / f"{name}.npy", np.array(rows, _ARRAYS[name]).reshape(-1, *_WIDTHS.get(name, ())))
    description = {
        "transform": transform.name,
        "size": size,
        "classes": vocabulary.objects,
        "predicates": vocabulary.relationships,
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")


def open_graphs(folder: Path) -> StoredGraphs:
    """What the stage wrote. Raises RequestError."""
    try:
        described = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _ARRAYS}
        _check(arrays, len(described["classes"]), len(described["predicates"]))
        return StoredGraphs(
            transform=get_transform(described["transform"]),
            size=int(described["size"]),
            classes=tuple(map(str, described["classes"])),
            predicates=tuple(map(str, described["predicates"])),
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"scene graphs in {folder} cannot be read ({error}): delete that folder and repeat"
        ) from error


def _check(arrays: Mapping[str, NDArray[Any]], classes: int, predicates: int) -> None:
    count, objects, relations = (len(np.atleast_1d(arrays[name])) for name in ("image_ids", "numbers", "links"))
    lengths = {"stored": count, "starts": count + 1, "boxes": objects, "link_starts": count + 1}
    for name, array in arrays.items():
        shape = (lengths.get(name, len(np.atleast_1d(array))), *_WIDTHS.get(name, ()))
        if array.shape != shape or array.dtype != _ARRAYS[name]:
            raise ValueError(f"{name} is {array.dtype} {array.shape} and not {np.dtype(_ARRAYS[name])} {shape}")
    starts, links, link_starts = arrays["starts"], arrays["links"], arrays["link_starts"]
    if starts[0] != 0 or starts[-1] != objects or (np.diff(starts) < 1).any():
        raise ValueError(f"starts do not part {objects} objects so that each picture has one")
    if link_starts[0] != 0 or link_starts[-1] != relations or (np.diff(link_starts) < 0).any():
        raise ValueError(f"link_starts do not part {relations} relations")
    if not _within(arrays["numbers"], classes) or not _within(links[:, 1], predicates):
        raise ValueError("there are numbers without a name")
    owned = np.repeat(np.diff(starts), np.diff(link_starts))
    if not _within(links[:, 0], owned) or not _within(links[:, 2], owned):
        raise ValueError("there are relations of objects that are not there")
    if not np.isfinite(arrays["boxes"]).all():
        raise ValueError("there are boxes that are no numbers")


def _within(numbers: NDArray[np.int64], end: int | NDArray[np.int64]) -> bool:
    return bool(((numbers >= 0) & (numbers < end)).all())
