"""What `t2i data show` draws: every colour is where the annotation says."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from orchestration.data import lettering
from orchestration.data.lettering import FINE, PAPER, Word, tag, text_block, width_of
from orchestration.data.overlays import (
    CAPTION_HEIGHT,
    SIDE,
    TILE,
    View,
    box_panel,
    chosen_records,
    colour_of,
    draw_overlays,
    draw_sheet,
    graph_panel,
    label_names,
    mask_panel,
    narrative_panel,
    panels,
    panoptic_panel,
    picture_panel,
    stuff_panel,
    time_colour,
    trace_panel,
)
from orchestration.data.records import (
    Caption,
    Dataset,
    ImageRecord,
    Instance,
    Narrative,
    Panoptic,
    PanopticSegment,
    SceneGraph,
    SceneObject,
    Utterance,
    carried,
)
from orchestration.errors import RequestError

WIDTH, HEIGHT = 80, 40
SCALE = SIDE / WIDTH


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def square(x: int, y: int, side: int, name: str = "cat", category_id: int = 17, crowd: bool = False) -> Instance:
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    return Instance(name, category_id, (x, y, side, side), json.dumps([corners]).encode(), float(side * side), crowd)


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    """A grey picture with nothing."""
    Image.new("RGB", (WIDTH, HEIGHT), (120, 120, 120)).save(tmp_path / "1.png")
    return ImageRecord(1, Path("1.png"), WIDTH, HEIGHT)


def full(record: ImageRecord) -> ImageRecord:
    """The same with everything that a record can carry."""
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    labels[:, :40] = 16
    ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    ids[:, 40:] = (5, 1, 0)
    trace = np.array([[0.1, 0.1, 0.0], [0.3, 0.1, 1.0], [0.3, 0.6, 2.0]])
    return replace(
        record,
        captions=(Caption(1, "a cat on a mat"), Caption(2, "a cat")),
        class_id=3,
        class_name="cats",
        subject_box=(2.0, 2.0, 20.0, 20.0),
        instances=(square(10, 10, 20), square(50, 10, 20, "dog", 18)),
        stuff_map=as_png(labels),
        panoptic=Panoptic(as_png(ids), (PanopticSegment(261, "sea", 155, False, (40, 0, 40, 40), 1600.0, False),)),
        graph=SceneGraph(
            (SceneObject(7, "cat", (), (5, 5, 10, 10)), SceneObject(8, "dog", ("big",), (60, 20, 10, 10))),
            ((7, "left of", 8),),
        ),
        narratives=(Narrative(4, "a cat sits", (Utterance("a cat", 0.0, 1.0), Utterance("sits", 1.0, 2.0)), (trace,)),),
    )


def at(image: Image.Image, x: float, y: float) -> tuple[int, int, int]:
    """The colour at a published pixel."""
    pixel = image.getpixel((round((x + 0.5) * SCALE), round((y + 0.5) * SCALE)))
    assert isinstance(pixel, tuple)
    return pixel[0], pixel[1], pixel[2]


def tinted(pixel: Sequence[int], colour: Sequence[int]) -> bool:
    """Whether a grey pixel has moved towards the colour."""
    grey = np.array(pixel, np.float64) - np.mean(pixel)
    wanted = np.array(colour, np.float64) - np.mean(colour)
    return bool(np.linalg.norm(grey) > 15 and grey @ wanted > 0.9 * np.linalg.norm(grey) * np.linalg.norm(wanted))


def dataset_of(root: Path, *records: ImageRecord) -> Dataset:
    return Dataset("coco", "train", root, records, carried(records), "0")


class TestPanels:
    def test_only_what_is_carried(self, record: ImageRecord, tmp_path: Path) -> None:
        assert [panel.title for panel in panels(record, tmp_path, {})] == ["picture"]
        boxes = replace(record, instances=(replace(square(1, 1, 5), segmentation=None),))
        assert [panel.title for panel in panels(boxes, tmp_path, {})] == ["picture", "boxes"]
        every = [panel.title for panel in panels(full(record), tmp_path, {16: "cat"})]
        assert every[:6] == ["picture", "boxes", "instance masks", "label map", "panoptic map", "scene graph"]
        assert len(every) == 7 and "mouse trace" in every[6]

    def test_a_small_picture_is_enlarged_whole(self, record: ImageRecord, tmp_path: Path) -> None:
        assert View(record, tmp_path).picture.size == (SIDE, SIDE * HEIGHT // WIDTH)

    def test_caption_and_class(self, record: ImageRecord, tmp_path: Path) -> None:
        words = picture_panel(View(full(record), tmp_path)).words
        assert [word.text for word in words] == ["cats", "a", "cat", "on", "a", "mat", "(1 of 2)"]

    def test_a_mask_is_on_its_thing_in_the_colour_of_its_box(self, record: ImageRecord, tmp_path: Path) -> None:
        view = View(full(record), tmp_path)
        masks, boxes = mask_panel(view).drawing, box_panel(view).drawing
        for index, (x, y) in enumerate([(10, 10), (50, 10)]):
            assert tinted(at(masks, x + 10, y + 10), colour_of(index))
            assert at(boxes, x + 10, y + 10) == (120, 120, 120)
            bottom = round((y + 20) * SCALE) - 1
            assert boxes.getpixel((round((x + 15) * SCALE), bottom)) == colour_of(index)
        for x, y in [(5, 20), (40, 20), (75, 20), (20, 5), (20, 35)]:
            assert not tinted(at(masks, x, y), colour_of(0)) and not tinted(at(masks, x, y), colour_of(1))

    def test_things_are_counted(self, record: ImageRecord, tmp_path: Path) -> None:
        things = (square(1, 1, 5), square(9, 9, 5), square(20, 20, 5, crowd=True), square(30, 9, 5, "dog"))
        words = box_panel(View(replace(record, instances=things), tmp_path)).words
        assert [word.text for word in words] == ["cat x2,", "cat (crowd),", "dog"]
        assert [word.text for word in box_panel(View(replace(record, instances=()), tmp_path)).words] == ["no thing"]

    def test_a_subject_is_no_counted_thing(self, record: ImageRecord, tmp_path: Path) -> None:
        bird = View(replace(record, subject_box=(2.0, 2.0, 20.0, 20.0)), tmp_path)
        assert box_panel(bird).words == ()
        nothing = View(replace(record, instances=()), tmp_path)
        assert [word.text for word in box_panel(nothing).words] == ["no thing"]

    def test_a_box_outside_of_the_picture_is_drawn_at_its_edge(self, record: ImageRecord, tmp_path: Path) -> None:
        far = replace(square(0, 0, 1), box=(-50.0, 10.0, 500.0, 500.0), segmentation=None)
        drawing = box_panel(View(replace(record, instances=(far,)), tmp_path)).drawing
        assert drawing.getpixel((0, drawing.height // 2)) == colour_of(0)

    def test_label_map_with_its_names(self, record: ImageRecord, tmp_path: Path) -> None:
        panel = stuff_panel(View(full(record), tmp_path), {16: "cat"})
        assert [(word.text, word.square) for word in panel.words] == [
            ("cat 50%", colour_of(16)),
            ("unlabelled 50%", (128, 128, 128)),
        ]
        assert tinted(at(panel.drawing, 20, 20), colour_of(16))
        assert not tinted(at(panel.drawing, 60, 20), colour_of(16))

    def test_panoptic_segments(self, record: ImageRecord, tmp_path: Path) -> None:
        panel = panoptic_panel(View(full(record), tmp_path))
        assert tinted(at(panel.drawing, 70, 30), colour_of(0))
        assert at(panel.drawing, 20, 20) == (120, 120, 120)
        assert [word.text for word in panel.words] == ["things 0,", "regions of stuff 1"]

    def test_trace_from_blue_to_red(self, record: ImageRecord, tmp_path: Path) -> None:
        whole = full(record)
        assert whole.narratives is not None
        panel = trace_panel(View(whole, tmp_path), whole.narratives[0])
        # The line's middle: from (8,4) to (24,4) in the first second, down to (24,24) in the next.
        half, end = time_colour(0.5), time_colour(1.0)
        assert panel.drawing.getpixel((round(16 * SCALE), round(4 * SCALE))) == half
        assert panel.drawing.getpixel((round(24 * SCALE), round(14 * SCALE))) == end
        assert [word.text for word in panel.words] == ["a", "cat", "sits"]
        assert panel.words[0].colour != panel.words[2].colour
        assert time_colour(0)[2] > 200 > 50 > time_colour(0)[0] and time_colour(1)[0] > 200 > 50 > time_colour(1)[2]

    def test_a_narrative_without_a_trace_is_coloured_by_tag(self, record: ImageRecord, tmp_path: Path) -> None:
        panel = narrative_panel(Narrative(1, "a cat on grass", (), (), ("cat", "cat", "grass", "grass")))
        assert [(word.text, word.square) for word in panel.words] == [("cat", colour_of(0)), ("grass", colour_of(1))]
        assert panel.title.endswith("by tag")
        assert narrative_panel(Narrative(1, "a cat", (), ())).words == []
        silent = replace(record, narratives=(Narrative(1, "a cat", (), (np.empty((0, 3)),)),))
        assert panels(silent, tmp_path, {})[-1].title == "narrative, no mouse trace"

    def test_a_trace_far_outside_of_the_picture(self, record: ImageRecord, tmp_path: Path) -> None:
        trace = np.array([[0.1, 0.1, 0.0], [1e308, -1e308, 1.0]])
        far = replace(record, narratives=(Narrative(1, "a cat", (Utterance("a cat", 0.0, 1.0),), (trace,)),))
        assert "mouse trace" in panels(far, tmp_path, {})[-1].title

    def test_an_arrow_from_subject_to_object(self, record: ImageRecord, tmp_path: Path) -> None:
        panel = graph_panel(View(full(record), tmp_path))
        # A quarter of the way from the middle of the cat (10,10) to that of the dog (65,25).
        assert panel.drawing.getpixel((round(23.75 * SCALE), round(13.75 * SCALE))) == colour_of(0)
        assert [word.text for word in panel.words] == ["cat left of dog"]

    def test_a_predicate_hides_no_name(
        self, record: ImageRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken: list[object] = []
        monkeypatch.setattr(lettering, "tag", lambda *written: taken.append(written[-1]))
        graph_panel(View(full(record), tmp_path))
        assert len(taken) == 3 and all(places is taken[0] for places in taken)

    def test_a_large_graph_says_what_is_not_drawn(self, record: ImageRecord, tmp_path: Path) -> None:
        things = tuple(SceneObject(place, f"thing {place}", (), (place, place, 5, 5)) for place in range(30))
        links = tuple((place, "near", place + 1) for place in range(29))
        panel = graph_panel(View(replace(record, graph=SceneGraph(things, links)), tmp_path))
        assert [word.text for word in panel.words][-1] == "and 19 more"
        alone = graph_panel(View(replace(record, graph=SceneGraph(things[:1], ((0, "near", 0),))), tmp_path))
        assert [word.text for word in alone.words] == ["thing 0 near thing 0"]

    def test_a_mask_that_cannot_be_drawn(self, record: ImageRecord, tmp_path: Path) -> None:
        broken = replace(square(1, 1, 5), segmentation=b'{"size": [1, 1], "counts": [1]}')
        with pytest.raises(RequestError, match="image 1: 'cat': the segmentation cannot be drawn: size is"):
            panels(replace(record, instances=(broken,)), tmp_path, {})


class TestChosen:
    def records(self, record: ImageRecord) -> tuple[ImageRecord, ...]:
        return (
            record,
            replace(full(record), image_id=2),
            replace(record, image_id=3, key="cats/3.png", captions=(Caption(1, "a cat"),)),
        )

    def test_those_that_carry_the_most(self, record: ImageRecord, tmp_path: Path) -> None:
        dataset = dataset_of(tmp_path, *self.records(record))
        assert [chosen.image_id for chosen in chosen_records(dataset, 2)] == [2, 3]

    def test_by_published_id(self, record: ImageRecord, tmp_path: Path) -> None:
        dataset = dataset_of(tmp_path, *self.records(record))
        assert [chosen.image_id for chosen in chosen_records(dataset, 9, ["cats/3.png", "1"])] == [3, 1]
        with pytest.raises(RequestError, match="split 'train' has no usable image '9'; name another, such as 1, 2, 3"):
            chosen_records(dataset, 9, ["9"])

    def test_labels_by_name(self, record: ImageRecord, tmp_path: Path) -> None:
        names = label_names(dataset_of(tmp_path, replace(record, stuff=(square(0, 0, 5, "night sky", 93),))))
        assert names[0] == "person" and names[92] == "night sky"


class TestDrawn:
    def test_a_row_for_each_image(self, record: ImageRecord, tmp_path: Path) -> None:
        dataset = dataset_of(tmp_path, record, replace(full(record), image_id=2))
        titles = draw_overlays(dataset, dataset.records, tmp_path / "new" / "out.png")
        assert [(name, len(drawn)) for name, drawn in titles.items()] == [("1", 1), ("2", 7)]
        with Image.open(tmp_path / "new" / "out.png") as sheet:
            assert sheet.format == "PNG" and sheet.width > 7 * SIDE // FINE
            assert sheet.height > 2 * SIDE // FINE * HEIGHT // WIDTH

    def test_nothing_to_draw(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="split 'train' has no usable image"):
            draw_overlays(dataset_of(tmp_path), (), tmp_path / "out.png")

    def test_a_picture_that_does_not_decode(self, record: ImageRecord, tmp_path: Path) -> None:
        (tmp_path / "1.png").write_bytes(b"no picture")
        for draw in (draw_overlays, draw_sheet):
            with pytest.raises(RequestError, match=r"1\.png does not decode \(it is of no known picture format\)"):
                draw(dataset_of(tmp_path, record), (record,), tmp_path / "out.png")
        assert not (tmp_path / "out.png").exists()

    def test_a_place_that_cannot_be_written(self, record: ImageRecord, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("kept")
        for draw in (draw_overlays, draw_sheet):
            with pytest.raises(RequestError, match="cannot be written to"):
                draw(dataset_of(tmp_path, record), (record,), tmp_path / "file" / "out.png")
        assert (tmp_path / "file").read_text() == "kept"


class TestSheet:
    def sheet(self, folder: Path, record: ImageRecord, count: int, caption: str = "a house") -> Image.Image:
        records = [replace(record, image_id=place, captions=(Caption(place, caption),)) for place in range(count)]
        draw_sheet(dataset_of(folder, *records), records, folder / "sheet.png")
        with Image.open(folder / "sheet.png") as image:
            return image.copy()

    @pytest.mark.parametrize(("pictures", "rows"), [(1, 1), (6, 1), (7, 2), (18, 3)])
    def test_any_number_of_pictures(self, tmp_path: Path, record: ImageRecord, pictures: int, rows: int) -> None:
        sheet = self.sheet(tmp_path, record, pictures)
        assert sheet.size == (6 * TILE, rows * (TILE + CAPTION_HEIGHT))
        middle = (TILE // 2, (rows - 1) * (TILE + CAPTION_HEIGHT) + TILE // 2)
        assert sheet.getpixel(middle) == (120, 120, 120)
        assert (sheet.getpixel((5 * TILE + TILE // 2, middle[1])) == PAPER) == (pictures in (1, 7))

    def test_the_caption_is_written_under_its_picture(self, tmp_path: Path, record: ImageRecord) -> None:
        sheet = self.sheet(tmp_path, record, 1, "a house " * 40).convert("L")
        under = sheet.crop((0, TILE, TILE, TILE + CAPTION_HEIGHT))
        beside = sheet.crop((TILE, TILE, 2 * TILE, TILE + CAPTION_HEIGHT))
        assert under.getextrema()[0] < 100 and beside.getextrema() == (255, 255)


class TestLettering:
    def test_words_are_wrapped(self) -> None:
        one = text_block([Word("word")], 400)
        assert one.height < text_block([Word("word")] * 40, 400).height <= 9 * one.height
        assert text_block([], 400).size == (400, 0)

    def test_what_does_not_fit_is_left_out(self) -> None:
        assert text_block([Word("word")] * 1000, 400, 3).height == 3 * text_block([Word("word")], 400).height

    def test_tags_do_not_hide_each_other(self) -> None:
        drawing, taken = Image.new("RGB", (400, 400), PAPER), list[tuple[float, float, float, float]]()
        assert tag(drawing, "cat", (200, 0, 0), [(10, 10)], taken)
        assert not tag(drawing, "dog", (0, 0, 200), [(12, 12)], taken)
        assert tag(drawing, "dog", (0, 0, 200), [(12, 12), (12, 100)], taken)
        assert len(taken) == 2 and drawing.getpixel((13, 101)) == (0, 0, 200)

    def test_a_tag_stays_inside(self) -> None:
        drawing, taken = Image.new("RGB", (200, 200), PAPER), list[tuple[float, float, float, float]]()
        assert tag(drawing, "cat", (200, 0, 0), [(190, 199)], taken)
        assert taken[0][2] <= 200 and taken[0][3] <= 200 and width_of("cat") > 0
