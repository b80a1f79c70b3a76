"""Scene graphs of a split: which pictures have one, and what models read of them."""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from models.contract import Graphs
from orchestration.data.graph_text import graph_text, read_graph
from orchestration.data.graphs import (
    GraphSettings,
    StoredGraphs,
    graph_dataset,
    graphs_of,
    graphs_stage,
    known_names,
    open_graphs,
)
from orchestration.data.records import (
    Box,
    Caption,
    Dataset,
    ImageRecord,
    Instance,
    Panoptic,
    PanopticSegment,
    SceneGraph,
    SceneObject,
    carried,
)
from orchestration.data.scene_graphs import RELATIONS, CocoGraphOptions, GraphVocabulary, coco_graph
from orchestration.data.sources import open_source
from orchestration.data.transforms import TRANSFORMS, Transform
from orchestration.errors import RequestError
from orchestration.stages import ensure, quiet
from tests.visual_genome_release import refusal, write_release

Link = tuple[int, str, int]
SIZE = 32
NAMES = GraphVocabulary(("cat", "dog", "sky"), (), ("above", "left of"))


def graph(names: Sequence[str], *links: Link, boxes: Sequence[Box] = ()) -> SceneGraph:
    """Ids are 10, 20, ...; links name places."""
    boxes = boxes or [(0.0, 0.0, 40.0, 40.0)] * len(names)
    things = (SceneObject(10 * place + 10, *pair) for place, pair in enumerate(_named(names, boxes)))
    return SceneGraph(tuple(things), tuple((10 * one + 10, word, 10 * other + 10) for one, word, other in links))


def _named(names: Sequence[str], boxes: Sequence[Box]) -> list[tuple[str, tuple[str, ...], Box]]:
    return [(name, (), box) for name, box in zip(names, boxes, strict=True)]


def record(image_id: int, scene: SceneGraph | None, side: tuple[int, int] = (64, 64), **more: Any) -> ImageRecord:
    return ImageRecord(image_id, Path("a.png"), *side, graph=scene, **more)


def dataset(*records: ImageRecord, split: str = "train") -> Dataset:
    return Dataset("tiny", split, Path("folder"), records, carried(records), f"{len(records)}{split}".ljust(64, "0"))


def said(data: Dataset) -> list[str]:
    texts = []
    for one in data.records:
        assert one.captions is not None and one.graph is not None and len(one.captions) == 1
        texts.append(one.captions[0].text)
    return texts


# --- which pictures have a graph ----------------------------------------------------------------------------------


def coco(image_id: int, things: int = 2) -> ImageRecord:
    instances = tuple(
        Instance(f"thing {place}", 1, (30.0 * place, 0, 30, 30), None, 900, False) for place in range(things)
    )
    stuff = (
        Instance("sky", 1, (0, 0, 100, 40), None, 1, False),
        Instance("grass", 1, (0, 50, 100, 50), None, 1, False),
    )
    segments = (PanopticSegment(1, "wall-wood", 1, False, (0, 0, 90, 90), 1, False),)
    return ImageRecord(
        image_id,
        Path(f"{image_id}.png"),
        100,
        100,
        captions=(Caption(7, "two cats"), Caption(8, "cats")),
        instances=instances,
        stuff=stuff,
        panoptic=Panoptic(b"", segments),
    )


def reader(**splits: Dataset) -> Callable[[str], Dataset]:
    return lambda split: splits[split]


def test_settings_are_sg2ims_and_checked() -> None:
    assert GraphSettings().options == CocoGraphOptions()
    changed = GraphSettings(
        least_objects=1, most_objects=4, min_area=0.1, crowds=False, left_out=("sky", "sea"), stuff="panoptic"
    )
    assert changed.options == CocoGraphOptions(0.1, (1, 4), ("sky", "sea"), False, "panoptic")
    with pytest.raises(ValidationError, match="least_objects 9 is more than most_objects 8"):
        GraphSettings(least_objects=9)
    for wrong in ({"stuff": "things"}, {"min_area": 2}, {"val_pictures": 0}, {"least_objects": 0}, {"seed": -1}):
        with pytest.raises(ValidationError):
            GraphSettings(**wrong)  # type: ignore[arg-type]


def test_every_record_has_a_graph_and_says_it() -> None:
    published = record(5, graph(["cat", "dog"], (1, "above", 0)), captions=(Caption(1, "a cat"),))
    data = dataset(coco(1), coco(2, things=0), published, record(6, None), record(7, SceneGraph((), ())))
    made = graph_dataset(reader(train=data), "train", GraphSettings(seed=3))
    assert [one.image_id for one in made.records] == [1, 5]
    assert made.records[0].graph == coco_graph(data.records[0], CocoGraphOptions(), 3)
    assert made.records[1] == replace(published, captions=(Caption(0, "dog above cat"),))
    assert said(made) == [graph_text(one.graph) for one in made.records if one.graph is not None]
    assert made.carries == carried(made.records) >= {"graph", "captions", "boxes"}
    assert made.complete == {"images", "graph", "captions"} and made.having({"graph", "captions"}) is made
    assert (made.split, made.name, made.root) == ("train", "tiny", Path("folder"))


def test_settings_reach_the_graphs_and_the_digest() -> None:
    read = reader(train=dataset(coco(1), coco(2), coco(3)))
    several = [
        GraphSettings(),
        GraphSettings(seed=1),
        GraphSettings(stuff="panoptic"),
        GraphSettings(left_out=("sky",)),
        GraphSettings(min_area=0.1, least_objects=1),
        GraphSettings(most_objects=5),
    ]
    made = [graph_dataset(read, "train", one) for one in several]
    assert len({one.digest for one in made} | {read("train").digest}) == len(made) + 1
    assert said(made[0]) != said(made[1])
    named = [{thing.name for one in data.records if one.graph for thing in one.graph.objects} for data in made]
    assert named[0] == {"thing 0", "thing 1", "sky", "grass"} and named[2] == {"thing 0", "thing 1", "wall-wood"}
    assert named[3] == {"thing 0", "thing 1", "grass"} and named[4] == {"sky", "grass"}
    again = graph_dataset(read, "train", GraphSettings())
    assert again == made[0]


def test_val_and_test_of_the_val_split() -> None:
    # Pictures are counted once they have a graph: the second has too few objects.
    val = dataset(coco(1), coco(2, things=0), *(coco(place) for place in range(3, 8)), split="val")
    read = reader(train=dataset(coco(9)), val=val, test=dataset(coco(8), split="test"))
    own = GraphSettings(val_pictures=2)
    parts = {split: graph_dataset(read, split, own) for split in ("train", "val", "test")}
    assert {split: [one.image_id for one in part.records] for split, part in parts.items()} == {
        "train": [9],
        "val": [1, 3],
        "test": [4, 5, 6, 7],
    }
    assert all(part.split == split for split, part in parts.items())
    as_they_are = {split: graph_dataset(read, split, GraphSettings()) for split in parts}
    assert [len(part.records) for part in as_they_are.values()] == [1, 6, 1]
    assert parts["train"] == as_they_are["train"]
    assert len({part.digest for part in [*parts.values(), *as_they_are.values()]}) == 5
    with pytest.raises(
        RequestError, match="has 6 pictures with a scene graph, and the first 6 are to be the val split"
    ):
        graph_dataset(read, "test", GraphSettings(val_pictures=6))


def test_data_without_graphs_is_refused() -> None:
    def message(*records: ImageRecord) -> str:
        return refusal(lambda: graph_dataset(reader(val=dataset(*records, split="val")), "val", GraphSettings()))

    assert message(record(1, None, captions=(Caption(0, "a cat"),))) == (
        "folder (val) has neither scene graphs nor what they are made of; name data with graphs, stuff boxes or "
        "panoptic maps, such as scenes, coco:PATH or visual-genome-sg2im:PATH."
    )
    assert "no picture of folder (val) gives a scene graph" in message(coco(1, things=0))
    assert message(record(1, SceneGraph((), ()))) == (
        "no scene graph of folder (val) has an object; fetch its files again or name other data."
    )


def test_names_of_the_train_split_alone_stay() -> None:
    val = dataset(
        record(1, graph(["cat", "emu", "dog"], (0, "above", 2), (1, "above", 0), (0, "rides", 2))),
        record(2, graph(["emu", "yak"])),
        record(3, graph(["sky"])),
        split="val",
    )
    made = graph_dataset(reader(val=val), "val", GraphSettings())
    known = known_names(made, NAMES)
    cat_and_dog = graph(["cat", "emu", "dog"]).objects[::2]
    assert [one.image_id for one in known.records] == [1, 3] and said(known) == ["cat above dog", "sky"]
    assert known.records[0].graph == SceneGraph(cat_and_dog, ((10, "above", 30),))
    assert known.digest != made.digest and known.complete == made.complete == {"images", "graph", "captions"}
    assert known.split == "val" and known_names(known, NAMES) is known
    fewer = known_names(made, replace(NAMES, objects=("cat", "dog")))
    assert len({made.digest, known.digest, fewer.digest}) == 3 and said(fewer) == ["cat above dog"]
    assert known_names(made, GraphVocabulary.of(made.records)) is made
    assert refusal(lambda: known_names(made, replace(NAMES, objects=("gnu",)))) == (
        "no picture of folder (val) has an object with one of the 1 names known from training; name splits of one data "
        "set."
    )


def test_captions_of_known_names_are_read_back_with_these_names() -> None:
    made = graph_dataset(
        reader(val=dataset(record(1, graph(["tree", "tree"], (0, "above", 1))))), "val", GraphSettings()
    )
    numbered = GraphVocabulary(("tree", "tree 2"), (), ("above",))
    known = known_names(made, numbered)
    assert said(made) == ["tree above tree 2"] and said(known) == ['"tree" "above" "tree" 2']
    assert [thing.name for thing in read_graph(said(known)[0], numbered).objects] == ["tree", "tree"]
    assert known.digest != made.digest


def test_generated_scenes_have_graphs(tmp_path: Path) -> None:
    spec = "scenes:size=32,things=4,train=12,val=4,test=4"
    read: Callable[[str], Dataset] = lambda split: open_source(spec, split, tmp_path)  # noqa: E731
    train = graph_dataset(read, "train", GraphSettings())
    assert len(train.records) == 12 and train.name == "scenes"
    assert [one.graph for one in train.records] == [one.graph for one in read("train").records]
    vocabulary = GraphVocabulary.of(train.records)
    assert set(vocabulary.relationships) <= set(RELATIONS)
    val = known_names(graph_dataset(read, "val", GraphSettings(val_pictures=2)), vocabulary)
    found = open_graphs(ensure(graphs_stage(val, TRANSFORMS["sg2im"], SIZE, vocabulary), tmp_path / "stages"))
    graphs = found.take(np.arange(len(found)))
    for row, (one, text) in enumerate(zip(val.records, said(val), strict=True)):
        assert one.graph is not None
        again = read_graph(text, vocabulary)
        assert sorted(thing.name for thing in again.objects) == sorted(thing.name for thing in one.graph.objects)
        assert len(again.relationships) == int(graphs.links[row]) == len(one.graph.relationships)
        background = found.classes[int(graphs.classes[row, graphs.counts[row] - 1]) - 1]
        assert background == one.graph.objects[-1].name
        assert graphs.boxes[row, graphs.counts[row] - 1].tolist() == [0, 0, 1, 1]


def test_a_release_of_visual_genome_has_graphs(tmp_path: Path) -> None:
    root = write_release(tmp_path / "vg")
    read: Callable[[str], Dataset] = lambda split: open_source(f"visual-genome:{root}", split, tmp_path)  # noqa: E731
    train = graph_dataset(read, "train", GraphSettings())
    assert [one.image_id for one in train.records] == [2, 1] and said(train) == ["clock and street", "clock ON street"]
    vocabulary = GraphVocabulary.of(train.records)
    found = open_graphs(ensure(graphs_stage(train, TRANSFORMS["sg2im"], SIZE, vocabulary), tmp_path / "stages"))
    graphs = found.take(np.arange(2))
    assert found.classes == ("clock", "street") and found.predicates == ("ON",)
    assert graphs.relations.tolist() == [[[0, 0, 0]], [[0, 1, 1]]] and graphs.links.tolist() == [0, 1]
    np.testing.assert_allclose(graphs.boxes[1, 0] * torch.tensor([800, 600, 800, 600]), [421, 91, 500, 430], atol=1e-3)
    assert "no scene graph of" in refusal(lambda: graph_dataset(read, "val", GraphSettings()))
    assert "has neither scene graphs nor" in refusal(lambda: graph_dataset(read, "test", GraphSettings()))


def test_photographs_have_graphs_by_their_panoptic_maps(shared_data: Path, tmp_path: Path) -> None:
    """26 of 80 and 23 of 99 pictures have a panoptic map; nobody's stuff is annotated otherwise."""
    spec = f"coco:{shared_data / 'coco-mini'}"
    read: Callable[[str], Dataset] = lambda split: open_source(spec, split, tmp_path)  # noqa: E731
    train, val = (graph_dataset(read, split, GraphSettings()) for split in ("train", "val"))
    assert (len(train.records), len(val.records)) == (21, 18)
    assert all(3 <= len(one.graph.objects) <= 8 for data in (train, val) for one in data.records if one.graph)
    vocabulary = GraphVocabulary.of(train.records)
    assert {"person", "sky-other-merged", "tree-merged"} <= set(vocabulary.objects)
    assert set(vocabulary.relationships) == set(RELATIONS)
    known = known_names(val, vocabulary)
    assert len(known.records) == 18
    things = [sum(len(one.graph.objects) for one in data.records if one.graph) for data in (val, known)]
    assert things == [87, 65]
    for data in (train, known):
        found = open_graphs(ensure(graphs_stage(data, TRANSFORMS["sg2im"], 64, vocabulary), tmp_path / "stages"))
        check(found.take(np.arange(len(found))), 64)
        for one, text in zip(data.records, said(data), strict=True):
            assert one.graph is not None and '"' not in text
            assert len(read_graph(text, vocabulary).objects) == len(one.graph.objects)


# --- what models read ---------------------------------------------------------------------------------------------


def check(graphs: Graphs, size: int) -> None:
    """What the contract says of every batch."""
    assert {tensor.dtype for tensor in (graphs.classes, graphs.counts, graphs.relations, graphs.links)} == {torch.int64}
    assert graphs.boxes.dtype == torch.float32 and graphs.counts.min() >= 1
    padding = graphs.padding()
    assert (
        not graphs.classes[padding].any() and not graphs.boxes[padding].any() and (graphs.classes[~padding] > 0).all()
    )
    shown = graphs.boxes[~padding]
    assert shown.min() >= 0 and shown.max() <= 1
    assert (shown[:, 2:] - shown[:, :2]).min() * size >= 1 - 1e-4
    there = torch.arange(graphs.relations.shape[1]) < graphs.links[:, None]
    assert not graphs.relations[~there].any() and (graphs.relations[there][:, 1] > 0).all()
    ends = graphs.relations[..., [0, 2]]
    assert (ends < graphs.counts[:, None, None]).all() and (ends >= 0).all()


def stored_in(
    folder: Path, records: Sequence[ImageRecord], transform: str = "sg2im", vocabulary: GraphVocabulary = NAMES
) -> StoredGraphs:
    """What the stage leaves; `folder` may be one that it filled before."""
    graphs_stage(dataset(*records), TRANSFORMS[transform], SIZE, vocabulary).run(folder, quiet)
    return open_graphs(folder)


THREE = (
    record(4, graph(["dog"])),
    record(9, graph(["sky", "cat", "cat"], (2, "left of", 0), (1, "above", 1), (2, "left of", 0), (0, "above", 1))),
    record(2, graph(["cat", "dog"], (1, "left of", 0))),
)


def test_objects_and_relations_by_hand(tmp_path: Path) -> None:
    found = stored_in(tmp_path, THREE)
    assert found.image_ids.tolist() == [4, 9, 2] and len(found) == 3
    assert (found.classes, found.predicates) == (NAMES.objects, NAMES.relationships)
    assert (found.most, found.most_links) == (3, 4)
    graphs = found.take(np.array([1, 0, 1, 2]))
    check(graphs, SIZE)
    assert graphs.counts.tolist() == [3, 1, 3, 2] and graphs.links.tolist() == [4, 0, 4, 1]
    assert graphs.classes.tolist() == [[3, 1, 1], [2, 0, 0], [3, 1, 1], [1, 2, 0]]
    linked = [[2, 2, 0], [1, 1, 1], [2, 2, 0], [0, 1, 1]]
    assert graphs.relations.tolist() == [linked, [[0, 0, 0]] * 4, linked, [[1, 2, 0], *[[0, 0, 0]] * 3]]


def test_what_a_picture_gives_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    found = stored_in(tmp_path, THREE, "attngan")
    draws = np.random.default_rng(0).random((3, 3))
    whole = found.take(np.arange(3), draws)
    for row in range(3):
        alone = found.take(np.array([row]), draws[row : row + 1])
        for name in ("classes", "boxes", "counts", "relations", "links"):
            assert torch.equal(getattr(alone, name), getattr(whole, name)[row : row + 1])


def test_graphs_without_relations_have_one_empty_place(tmp_path: Path) -> None:
    graphs = stored_in(tmp_path, [record(1, graph(["cat"]))]).take(np.array([0]))
    assert (
        graphs.relations.tolist() == [[[0, 0, 0]]] and graphs.links.tolist() == [0] and graphs.classes.tolist() == [[1]]
    )


def pixels_of(transform: Transform, one: ImageRecord, draws: NDArray[np.float64] | None) -> NDArray[np.bool_]:
    """Where the one object of a picture is shown: white on black, through the real pixels' whole way."""
    picture = np.zeros((one.height, one.width, 3), np.uint8)
    assert one.graph is not None
    x, y, width, height = (int(number) for number in one.graph.objects[0].box)
    picture[y : y + height, x : x + width] = 255
    shown = transform.view(transform.store(Image.fromarray(picture), one, SIZE), SIZE, draws)
    return np.asarray(shown[0] > 127)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(TRANSFORMS)),
    st.tuples(st.integers(48, 120), st.integers(48, 120)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.one_of(st.none(), st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3)),
    st.booleans(),
)
def test_boxes_lie_on_the_pixels(
    name: str,
    sides: tuple[int, int],
    where: tuple[float, float, float, float],
    draws: tuple[float, float, float] | None,
    subject: bool,
) -> None:
    width, height = sides
    x, y = int(where[0] * (width - 24)), int(where[1] * (height - 24))
    box = (float(x), float(y), 12.0 + int(where[2] * (width - x - 12)), 12.0 + int(where[3] * (height - y - 12)))
    one = record(7, graph(["cat"], boxes=[box]), sides, subject_box=box if subject else None)
    numbers = None if draws is None else np.array(draws)
    shown = pixels_of(TRANSFORMS[name], one, numbers)
    with TemporaryDirectory() as folder:
        found = stored_in(Path(folder), [one], name)
        graphs = found.take(np.array([0]), None if numbers is None else numbers[None])
    check(graphs, SIZE)
    if shown.any():
        columns, rows = np.flatnonzero(shown.any(0)), np.flatnonzero(shown.any(1))
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(graphs.boxes[0, 0].numpy() * SIZE - edges).max() <= 1.0


def test_cut_by_hand_and_never_mirrored(tmp_path: Path) -> None:
    """64 x 64 is stored at 38 x 38 for pictures of 32: the cut begins at 0 to 6, the centre's at 3."""
    one = record(1, graph(["cat", "dog"], boxes=[(0.0, 0.0, 32.0, 64.0), (32.0, 16.0, 32.0, 16.0)]))
    found = stored_in(tmp_path, [one], "attngan")
    item = np.array([0])
    np.testing.assert_allclose(found.take(item).boxes[0] * SIZE, [[0, 0, 16, 32], [16, 6.5, 32, 16]], atol=1e-4)
    for draw in (0.0, 0.4, 0.9):
        cut = found.take(item, np.array([[0.0, 0.99, draw]])).boxes[0] * SIZE
        np.testing.assert_allclose(cut, [[0, 0, 19, 32], [19, 3.5, 32, 13]], atol=1e-4)
    assert "flip" not in inspect.signature(found.take).parameters  # left would be right


def test_no_object_vanishes(tmp_path: Path) -> None:
    """Published pixels are halved. What lies beyond the picture or is thinner than a pixel keeps one, at its place."""
    boxes: list[Box] = [
        (-50, 20, 20, 20),  # beyond the left edge
        (90, 90, 20, 20),  # beyond the lower right corner
        (20, 20, 0, 1),  # thinner than a pixel
        (63.5, 0, 0.5, 64),  # at the right edge
        (-10, -10, 100, 100),  # around the picture
        (10, 10, 2, 4),
    ]
    found = stored_in(tmp_path, [record(1, graph(["cat"] * 6, boxes=boxes))])
    graphs = found.take(np.array([0]))
    check(graphs, SIZE)
    expected = [[0, 10, 1, 20], [31, 31, 32, 32], [10, 10, 11, 11], [31, 0, 32, 32], [0, 0, 32, 32], [5, 5, 6, 7]]
    np.testing.assert_allclose(graphs.boxes[0] * SIZE, expected, atol=1e-5)
    assert graphs.counts.tolist() == [6]


edges = st.floats(-200, 200, allow_nan=False)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(edges, edges, edges, edges), min_size=1, max_size=4),
    st.sampled_from(sorted(TRANSFORMS)),
    st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3),
)
def test_every_box_has_a_pixel(boxes: list[Box], name: str, draws: tuple[float, float, float]) -> None:
    with TemporaryDirectory() as folder:
        found = stored_in(Path(folder), [record(1, graph(["cat"] * len(boxes), boxes=boxes), (90, 60))], name)
        check(found.take(np.array([0]), np.array([draws])), SIZE)


def test_a_stage_knows_what_it_depends_on() -> None:
    data = dataset(record(1, graph(["cat"])))
    stages = [
        graphs_stage(data, TRANSFORMS["sg2im"], 32, NAMES),
        graphs_stage(data, TRANSFORMS["sg2im"], 64, NAMES),
        graphs_stage(data, TRANSFORMS["xmcgan"], 32, NAMES),
        graphs_stage(data, TRANSFORMS["sg2im"], 32, replace(NAMES, objects=("dog", "cat", "sky"))),
        graphs_stage(data, TRANSFORMS["sg2im"], 32, replace(NAMES, relationships=("above",))),
        graphs_stage(replace(data, split="val"), TRANSFORMS["sg2im"], 32, NAMES),
        graphs_stage(replace(data, digest="e" * 64), TRANSFORMS["sg2im"], 32, NAMES),
    ]
    assert len({stage.key for stage in stages}) == len(stages)
    assert {stage.name for stage in stages} == {"graphs"} and stages[0].inputs == {"data": data.digest}


BROKEN = [
    (SceneGraph((), ()), "has no object; leave it out or give it one."),
    (
        SceneGraph(graph(["cat"]).objects, ((10, "above", 77),)),
        "has a relation of object 77, which it does not list; list it or remove the relation.",
    ),
    (
        SceneGraph(graph(["cat"]).objects, ((78, "above", 10),)),
        "has a relation of object 78, which it does not list; list it or remove the relation.",
    ),
    (
        graph(["cat", "doge"]),
        "has the object 'doge', which is none of the 3 known ones (perhaps 'dog' was meant); rename or remove it.",
    ),
    (graph(["emu"]), "has the object 'emu', which is none of the 3 known ones; rename or remove it."),
    (
        graph(["cat"], (0, "abve", 0)),
        "has the relation 'abve', which is none of the 2 known ones (perhaps 'above' was meant); rename or remove it.",
    ),
]


@pytest.mark.parametrize(("scene", "why"), [*BROKEN, (None, BROKEN[0][1])])
def test_graphs_that_cannot_be_stored_are_refused(tmp_path: Path, scene: SceneGraph | None, why: str) -> None:
    message = refusal(lambda: stored_in(tmp_path, [THREE[0], record(31, scene)]))
    assert message == f"the scene graph of image 31 of folder {why}"


def _rewritten(name: str, array: NDArray[Any]) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / f"{name}.npy", array)


def _described(**changes: Any) -> Callable[[Path], object]:
    whole = {"transform": "sg2im", "size": 32, "classes": NAMES.objects, "predicates": NAMES.relationships} | changes
    return lambda folder: (folder / "graphs.json").write_text(json.dumps(whole), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda folder: (folder / "graphs.json").unlink(), "No such file"),
        (lambda folder: (folder / "graphs.json").write_text("{"), "Expecting"),
        (lambda folder: (folder / "graphs.json").write_text("[]"), "indices"),
        (lambda folder: (folder / "links.npy").unlink(), "No such file"),
        (lambda folder: (folder / "boxes.npy").write_bytes(b"\x93NUMPY"), "EOF"),
        (_described(classes=["cat", "dog"]), "numbers without a name"),
        (_described(predicates=["above"]), "numbers without a name"),
        (_described(predicates=3), "has no len"),
        (_described(size="big"), "invalid literal"),
        (_rewritten("numbers", np.array([1, 2, 0, -1, 0, 1])), "numbers without a name"),
        (_rewritten("numbers", np.zeros(7, np.int64)), "boxes is float32 (6, 4) and not float32 (7, 4)"),
        (_rewritten("numbers", np.zeros(6)), "numbers is float64 (6,) and not int64 (6,)"),
        (_rewritten("boxes", np.zeros((6, 4))), "boxes is float64 (6, 4) and not float32 (6, 4)"),
        (_rewritten("boxes", np.full((6, 4), np.nan, np.float32)), "boxes that are no numbers"),
        (_rewritten("starts", np.array([0, 1, 4])), "starts is int64 (3,) and not int64 (4,)"),
        (_rewritten("starts", np.array(4)), "starts is int64 () and not int64 (4,)"),
        (_rewritten("starts", np.array([0, 1, 4, 5])), "starts do not part 6 objects"),
        (_rewritten("starts", np.array([0, 1, 1, 6])), "starts do not part 6 objects so that each picture has one"),
        (_rewritten("link_starts", np.array([0, 5, 4, 5])), "link_starts do not part 5 relations"),
        (_rewritten("link_starts", np.array([0, 0, 4, 4])), "link_starts do not part 5 relations"),
        (_rewritten("links", np.zeros((5, 2), np.int64)), "links is int64 (5, 2) and not int64 (5, 3)"),
        (_rewritten("links", np.full((5, 3), [0, 2, 0])), "numbers without a name"),
        (_rewritten("links", np.full((5, 3), [0, 0, 2])), "relations of objects that are not there"),
        (_rewritten("links", np.full((5, 3), [-1, 0, 0])), "relations of objects that are not there"),
        (_rewritten("boxes", np.full((6, 4), {}, object)), "allow_pickle"),
    ],
)
def test_folders_that_hold_no_graphs(tmp_path: Path, spoil: Callable[[Path], object], what: str) -> None:
    assert len(stored_in(tmp_path, THREE)) == 3
    spoil(tmp_path)
    with pytest.raises(RequestError) as caught:
        open_graphs(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"scene graphs in {tmp_path} cannot be read (") and "\n" not in message
    assert what in message and message.endswith("): delete that folder and repeat")


def test_an_unknown_transform_is_named(tmp_path: Path) -> None:
    stored_in(tmp_path, THREE)
    _described(transform="sg2imm")(tmp_path)
    with pytest.raises(RequestError, match="perhaps 'sg2im' was meant"):
        open_graphs(tmp_path)


# --- graphs that people wrote -------------------------------------------------------------------------------------


def test_written_graphs_are_read_by_models() -> None:
    typed = [
        read_graph("cat left of sky and cat above cat 2", NAMES),
        read_graph('{"objects": [{"name": "dog", "box": [0.1, 0.2, 0.4, 1]}, {"name": "cat"}]}', NAMES),
    ]
    graphs = graphs_of(typed, NAMES)
    assert graphs.classes.tolist() == [[1, 3, 1], [2, 1, 0]] and graphs.counts.tolist() == [3, 2]
    assert graphs.relations.tolist() == [[[0, 2, 1], [0, 1, 2]], [[0, 0, 0], [0, 0, 0]]]
    assert graphs.links.tolist() == [2, 0] and not graphs.boxes[0].any() and not graphs.boxes[1, 1:].any()
    np.testing.assert_allclose(graphs.boxes[1, 0], [0.1, 0.2, 0.4, 1], atol=1e-6)
    assert graphs.boxes.dtype == torch.float32 and graphs.boxes.max() <= 1
    wide = graphs_of(typed, NAMES, least=(5, 4))
    assert (wide.classes.shape, wide.relations.shape) == ((2, 5), (2, 4, 3))
    assert torch.equal(wide.classes[:, :3], graphs.classes) and not wide.classes[:, 3:].any()
    assert graphs_of(typed[1:], NAMES).relations.shape == (1, 1, 3)


@pytest.mark.parametrize(("scene", "why"), BROKEN)
def test_written_graphs_that_are_none_are_refused(scene: SceneGraph, why: str) -> None:
    assert refusal(lambda: graphs_of([read_graph("cat", NAMES), scene], NAMES)) == f"scene graph 1 {why}"
