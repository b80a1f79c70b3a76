"""`t2i show RUN --what retrieval`: what is told and drawn of graphs, and what is said of those that cannot be."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestration import retrieval_drawing
from orchestration.data.graph_text import graph_text
from orchestration.data.lettering import FINE
from orchestration.data.overlays import colour_of
from orchestration.data.records import SceneGraph, SceneObject
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.painter import Painter
from orchestration.preparation import Preparation
from orchestration.reasons.graphs import labels_of
from orchestration.retrieval_drawing import ROW, SHOWN, TILE, Candidate, Retrieval, Sample
from orchestration.retrieval_sheet import show_retrieval
from tests.cli_support import T2i, runner
from tests.graph_support import retrievegan, sg2im
from tests.test_graph_painter import NO_PERCEPTION, trained

GREY, GREEN, BLUE = (90, 90, 90), (10, 200, 30), (20, 30, 220)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def plain(colour: tuple[int, int, int], side: int = 16) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((side, side, 3), colour, np.uint8)


def count_of(drawing: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(drawing) == np.array(colour, np.uint8)).all(2).sum())


def retrieval(objects: int = 2, candidates: int = 3, chosen: tuple[int, ...] = (0, 2), **changes: Any) -> Retrieval:
    """Objects in a row; candidate k of each is from image k; sample s chose candidate chosen[s] of all."""
    found = [
        [Candidate(plain(GREY), place, (0.25, 0.25, 0.75, 0.75)) for place in range(candidates)] for _ in range(objects)
    ]
    samples = [
        Sample(seed, plain(GREEN, 32), [place] * objects, [place if place >= 0 else None] * objects)
        for seed, place in enumerate(chosen)
    ]
    names = [f"thing {place}" if place else "thing" for place in range(objects)]
    relations = [(place, "left of", place + 1) for place in range(objects - 1)]
    made = Retrieval("words", names, relations, found, [(0.1, 0.1, 0.6, 0.9)] * objects, samples)
    return replace(made, **changes)


def photographs(count: int = 20) -> dict[int, Any]:
    return {image_id: plain(BLUE, 32) for image_id in range(count)}


def sheet(*found: Retrieval) -> Image.Image:
    return retrieval_drawing.retrieval_sheet("title", "about", found, photographs())


def block_row(one: Retrieval, thing: int = 0) -> Image.Image:
    """The candidates of an object as they are drawn, without frames' outer halves."""
    drawing = Image.new("RGB", (20 * TILE, ROW), "white")
    for column, place in enumerate(one.shown(thing)):
        retrieval_drawing._candidate(drawing, one, thing, place, (column * 2 * TILE + TILE, 0))
    return drawing


class TestDrawing:
    def test_what_was_chosen_is_framed_and_the_rest_is_pale(self) -> None:
        drawing = block_row(retrieval(chosen=(0, 2)))
        framed, full = [], []
        for column in range(3):
            left = column * 2 * TILE + TILE
            part = drawing.crop((left - TILE // 2, 0, left + TILE + TILE // 2, TILE))
            framed.append(count_of(part, colour_of(0)) > 0)
            full.append(count_of(part, GREY) > TILE)
        assert framed == full == [True, False, True]

    def test_one_that_was_chosen_beyond_those_shown_is_shown(self) -> None:
        many = retrieval(candidates=20, chosen=(1, 15))
        assert many.shown(0) == [*range(SHOWN), 15]
        assert retrieval(candidates=3, chosen=(-1, 1)).shown(0) == [0, 1, 2]

    def test_photographs_pictures_and_the_real_one_are_there(self) -> None:
        one, framed = sheet(retrieval()), sheet(retrieval(image_id=5, real=plain((200, 10, 10), 32)))
        side = retrieval_drawing.PICTURE // FINE
        assert count_of(one, GREEN) == 2 * side**2
        assert 0.5 < count_of(one, BLUE) / (2 * 2 * (TILE // FINE) ** 2) < 1  # less the boxes
        assert framed.width == one.width + side and count_of(framed, (200, 10, 10)) > 0.8 * side**2

    def test_an_object_without_a_patch(self) -> None:
        drawn, less = sheet(retrieval(chosen=(0,))), sheet(retrieval(chosen=(-1,)))
        assert drawn.size == less.size and count_of(drawn, BLUE) > count_of(less, BLUE) == 0

    @pytest.mark.parametrize("objects", [1, 2, 9, 30])
    def test_graphs_of_any_size(self, objects: int) -> None:
        panel = retrieval_drawing._graph_panel(retrieval(objects))
        for thing in range(objects):
            assert count_of(panel, colour_of(thing)) > 100  # each object has its name's ground
        assert sheet(retrieval(objects), retrieval(1)).height > objects * ROW // FINE

    def test_odd_relations_and_boxes(self) -> None:
        """Of an object to itself, one that is said twice, both ways; boxes that are turned, flat, or far outside."""
        relations = [(0, "inside", 0), (0, "left of", 1), (0, "left of", 1), (1, "right of", 0)]
        boxes = [(0.9, 0.2, 0.1, 0.2), (-3.0, -1.0, 5.0, 0.5)]
        one = retrieval(relations=relations, boxes=boxes)
        assert count_of(retrieval_drawing._box_panel(one), colour_of(0)) > 0
        assert sheet(one).size == sheet(retrieval()).size

    def test_related_objects_stand_beside_each_other(self) -> None:
        one = retrieval(4, relations=[(0, "on", 3), (3, "on", 1)])
        assert retrieval_drawing._order(one) == [0, 2, 3, 1]

    def test_names_are_numbered_as_in_words(self) -> None:
        things = tuple(
            SceneObject(place, name, (), (0, 0, 0, 0)) for place, name in enumerate(("cat", "dog", "cat", "cat"))
        )
        graph = SceneGraph(things, ((3, "on", 1), (1, "by", 0)))
        assert graph_text(graph) == "cat on dog and dog by cat 2 and cat 3"
        assert labels_of(graph) == ["cat 2", "dog", "cat 3", "cat"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With a run that retrieves, one that draws by given boxes, and one of sg2im."""
    home = Home(tmp_path_factory.mktemp("retrieval"))
    trained(home, retrievegan(**NO_PERCEPTION), "retriever")
    trained(home, retrievegan(**NO_PERCEPTION, **{"model.boxes": "given"}), "given")
    trained(home, sg2im(), "plain")
    return home


@pytest.fixture(scope="module")
def names(home: Home) -> tuple[str, str, str]:
    """Two objects and a relation."""
    checkpoint = next((home.runs / "retriever" / "checkpoints").iterdir())
    vocabulary = Painter.load(checkpoint, home.root).encoder.vocabulary  # type: ignore[union-attr]
    return vocabulary.objects[0], vocabulary.objects[1], vocabulary.relationships[0]


@pytest.fixture
def t2i(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    return runner(home.root, tmp_path / "here", monkeypatch, capsys)


class TestCommand:
    def test_held_out_graphs(self, t2i: T2i, home: Home) -> None:
        options = ("--captions", "2", "--samples", "2", "--seed", "5")
        ended = t2i("show", "retriever", "--what", "retrieval", *options, "--json")
        preparation = Preparation(retrievegan(**NO_PERCEPTION), home)
        training, test = (preparation.dataset(split) for split in ("train", "test"))
        captions = {record.image_id: record.captions[0].text for record in test.records if record.captions}
        of_class = {
            record.image_id: {thing.name for thing in record.graph.objects}
            for record in training.records
            if record.graph
        }
        assert Path(ended.json["png"]).read_bytes().startswith(b"\x89PNG") and len(ended.json["graphs"]) == 2
        for graph in ended.json["graphs"]:
            assert graph["graph"] == captions[graph["image_id"]]
            assert len(graph["boxes"]) == len(graph["objects"]) and all(len(box) == 4 for box in graph["boxes"])
            assert [sample["seed"] for sample in graph["samples"]] == [5, 6]
            for sample in graph["samples"]:
                for name, image_id in zip(graph["objects"], sample["chosen"], strict=True):
                    assert name.rstrip(" 0123456789") in of_class[image_id]  # cut from a picture that has such a thing

    def test_typed_graphs(self, t2i: T2i, names: tuple[str, str, str]) -> None:
        first, second, word = names
        typed = (f"{first.upper()} {word}  {second}", f'{{"objects": [{{"name": "{second}"}}]}}')
        ended = t2i("show", "retriever", *typed, "--what", "retrieval", "--samples", "1", "--json")
        assert [graph["graph"] for graph in ended.json["graphs"]] == [f"{first} {word} {second}", second]
        assert [graph["image_id"] for graph in ended.json["graphs"]] == [None, None]
        assert all(len(graph["samples"]) == 1 for graph in ended.json["graphs"])
        assert "drew 1 graph to show.png" in t2i("show", "retriever", second, "--what", "retrieval").out

    def test_it_tells_what_the_painter_draws(self, home: Home, names: tuple[str, str, str], tmp_path: Path) -> None:
        checkpoint = next((home.runs / "retriever" / "checkpoints").iterdir())
        prompt = " ".join((names[0], names[2], names[1]))
        [found] = show_retrieval(home, "retriever", [prompt], tmp_path / "a.png", samples=2, seed=7)
        painter = Painter.load(checkpoint, home.root)
        for sample in found.samples:
            picture = painter.draw([prompt], [sample.seed])[0]
            assert np.abs(picture.astype(int) - sample.picture).max() <= 1
        assert [[one.image_id for one in row] for row in found.candidates] == [
            painter.patches.bank.image_ids[row].tolist()  # type: ignore[union-attr]
            for row in painter.conditions([prompt]).candidates.places[0].numpy()  # type: ignore[union-attr]
        ]

    def test_boxes_that_are_drawn_by(self, home: Home, names: tuple[str, str, str], tmp_path: Path) -> None:
        """A graph's own where the run draws by them and it has them, else those that are predicted."""
        boxed = f'{{"objects": [{{"name": "{names[0]}", "box": [0.25, 0, 0.5, 1]}}, {{"name": "{names[1]}"}}]}}'
        drawn = {}
        for run in ("retriever", "given"):
            [found] = show_retrieval(home, run, [boxed], tmp_path / "a.png", samples=1)
            drawn[run] = found.boxes
        assert drawn["given"][0] == (0.25, 0, 0.5, 1) != drawn["retriever"][0]
        assert drawn["given"][1] != (0, 0, 0, 0)

    def test_samples_of_graph_systems(self, t2i: T2i) -> None:
        for run in ("retriever", "plain"):
            ended = t2i("show", run, "--captions", "2", "--samples", "1", "--json")
            assert len(ended.json["captions"]) == 2

    def test_wrong_graphs(self, t2i: T2i, names: tuple[str, str, str]) -> None:
        first, _, word = names
        many = " and ".join(f"{first} {place}" for place in range(1, 32))
        for graphs, parts in (
            ([""], ["the graph has no object", "such as"]),
            (['{"objects": []}'], ["the graph has no object"]),
            ([many], ["has 31 objects", "at most 30"]),
            ([f"{first}x"], [f"no object '{first}x' is known", f"perhaps '{first}' was meant"]),
            ([f"{first} {word}x {first} 2"], ["no relation", f"perhaps '{word}'"]),
            ([first, f"{first}x"], ["graph 2 of 2: the graph cannot be read", f"perhaps '{first}'"]),
        ):
            t2i("show", "retriever", *graphs, "--what", "retrieval").refused(*parts)

    def test_wrong_runs(self, t2i: T2i, names: tuple[str, str, str]) -> None:
        t2i("show", "plain", "--what", "retrieval").refused(
            "plain is a run of sg2im, which retrieves no patches", "retrievegan", "--what samples"
        )
        t2i("show", "nowhere", "--what", "retrieval").refused("no checkpoint in 'nowhere'", "given, plain, retriever")
        t2i("show", "retriever", names[0], "--what", "retrieval", "--out", "nowhere/a.png").refused(
            "cannot be written", "--out"
        )

    def test_a_home_whose_stages_were_dropped(self, t2i: T2i, home: Home, tmp_path: Path) -> None:
        other = tmp_path / "other"
        shutil.copytree(home.runs, other / "runs")
        t2i("show", "retriever", "--what", "retrieval", "--home", str(other)).refused(
            "draws from a patch bank that sg2im describes", "has none that fits", "t2i train tiny"
        )
        assert not (other / "stages").exists() and not (other / "data").exists()

    def test_data_that_changed(self, home: Home, names: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        """The pictures beside the patches would be others."""
        dataset = Preparation.dataset
        monkeypatch.setattr(Preparation, "dataset", lambda self, split: replace(dataset(self, split), digest="e" * 64))
        with pytest.raises(RequestError, match="were cut from the data .* and these are eeee"):
            show_retrieval(home, "retriever", [names[0]], home.root / "a.png")
