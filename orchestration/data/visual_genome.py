"""Scene graphs in Visual Genome's published layout (`scene_graphs.json`, Krishna et al. 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import FailFast, FiniteFloat, TypeAdapter

from orchestration.data.json_files import Id, read_json
from orchestration.data.records import SceneGraph, SceneObject
from orchestration.errors import RequestError


@dataclass(frozen=True, slots=True)
class _Object:
    object_id: Id
    x: FiniteFloat
    y: FiniteFloat
    w: FiniteFloat
    h: FiniteFloat
    names: tuple[str, ...] = ()
    name: str | None = None  # the published releases spell it both ways
    attributes: tuple[str, ...] | None = None
    merged_object_ids: tuple[Id, ...] = ()


@dataclass(frozen=True, slots=True)
class _Relationship:
    subject_id: Id
    predicate: str
    object_id: Id


@dataclass(frozen=True, slots=True)
class _Graph:
    image_id: Id
    objects: tuple[_Object, ...]
    relationships: tuple[_Relationship, ...]


_GRAPHS = TypeAdapter(Annotated[list[_Graph], FailFast()])


def read_scene_graphs(path: Path) -> Mapping[int, SceneGraph]:
    """Scene graphs by image id.

    An object's name is its first published name, kept as written; boxes are x, y, width, height in pixels. A
    relationship may name an object by an id that was merged into another. One whose object is not in the
    graph at all is left out: the published file holds such relationships.
    Raises RequestError for a broken file, an image listed twice and an object without a name.
    """
    graphs: dict[int, SceneGraph] = {}
    for graph in read_json(path, _GRAPHS, "Visual Genome scene graphs"):
        if graph.image_id in graphs:
            raise RequestError(f"{path} lists image {graph.image_id} twice; leave one of its graphs.")
        graphs[graph.image_id] = SceneGraph(
            objects=tuple(_scene_object(item, graph.image_id, path) for item in graph.objects),
            relationships=_known_relationships(graph),
        )
    return graphs


def _scene_object(item: _Object, image_id: int, path: Path) -> SceneObject:
    name = item.names[0] if item.names else item.name
    if name is None or not name.strip():
        raise RequestError(
            f"{path}: object {item.object_id} of image {image_id} has no name; give it one under `names`."
        )
    return SceneObject(item.object_id, name, item.attributes or (), (item.x, item.y, item.w, item.h))


def _known_relationships(graph: _Graph) -> tuple[tuple[int, str, int], ...]:
    kept = {merged: item.object_id for item in graph.objects for merged in item.merged_object_ids}
    kept |= {item.object_id: item.object_id for item in graph.objects}
    return tuple(
        (kept[link.subject_id], link.predicate, kept[link.object_id])
        for link in graph.relationships
        if link.subject_id in kept and link.object_id in kept
    )
