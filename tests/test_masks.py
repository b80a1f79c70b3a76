"""Masks drawn from COCO's polygons, RLE, label maps and panoptic maps."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from orchestration.data.coco import read_coco
from orchestration.data.coco_stuff import FIRST_STUFF_LABEL, LABEL_OF, LABELS, UNLABELLED
from orchestration.data.masks import draw_mask, label_map, mask_fault, panoptic_ids, size_fault
from orchestration.data.records import ImageRecord, Instance, Panoptic
from orchestration.errors import RequestError
from tests.data_files import refusal, rle, sentence


def as_json(segmentation: object) -> bytes:
    return json.dumps(segmentation).encode()


def as_png(pixels: NDArray[np.generic], mode: str | None = None) -> bytes:
    content = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(content, "png")
    return content.getvalue()


# --- polygons and run-length codes --------------------------------------------------------------------------------


def test_a_rectangle_and_the_union_of_two() -> None:
    mask = draw_mask(as_json([[1, 1, 5, 1, 5, 3, 1, 3]]), 8, 6)
    assert (mask.shape, mask.dtype, mask.flags["C_CONTIGUOUS"]) == ((6, 8), np.bool_, True)
    assert mask.sum() == 8 and mask[1:3, 1:5].all()
    both = draw_mask(as_json([[1, 1, 5, 1, 5, 3, 1, 3], [4, 2, 8, 2, 8, 6, 4, 6]]), 8, 6)
    assert both[1:3, 1:5].all() and both[2:6, 4:8].all() and both.sum() == 8 + 16 - 1


Numbers = st.floats(-12, 40, allow_nan=False).map(lambda value: round(value, 2))


@settings(deadline=None, max_examples=150)
@given(points=st.lists(st.tuples(Numbers, Numbers), min_size=3, max_size=7))
def test_polygons_cover_the_pixels_whose_middle_is_inside(points: list[tuple[float, float]]) -> None:
    """Even-odd rule at pixel middles; those within a pixel of an edge may fall either way."""
    width, height = 28, 25
    mask = draw_mask(as_json([[value for point in points for value in point]]), width, height)
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    near = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if y0 != y1:
            crosses = ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
            inside ^= crosses
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        share = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / max(length, 1e-9), 0, 1)
        near |= np.hypot(x - x0 - share * (x1 - x0), y - y0 - share * (y1 - y0)) <= 1.5
    assert (mask == inside)[~near].all()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_run_length_codes_of_either_kind_give_their_mask(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    mask = rng.random((height, width)) < data.draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    np.testing.assert_array_equal(draw_mask(as_json(rle(mask)), width, height), mask)
    down = mask.T.ravel()
    changes = np.flatnonzero(np.diff(down)) + 1
    runs = np.diff(np.concatenate(([0], changes, [down.size]))).tolist()
    counts = runs if not down[0] else [0, *runs]
    plain = as_json({"size": [height, width], "counts": counts})
    np.testing.assert_array_equal(draw_mask(plain, width, height), mask)


def test_long_runs_are_read() -> None:
    mask = np.zeros((3000, 2000), bool)
    mask[2999, 1998] = True
    np.testing.assert_array_equal(draw_mask(as_json(rle(mask)), 2000, 3000), mask)


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        (b"[[0, 0, 4", "cut short"),
        (b'"x"', "expected"),
        (b"[[0, 0, 4, 0, 4, NaN]]", "NaN is no JSON number"),
        (as_json([]), "it holds no polygon"),
        (as_json([[0, 0, 4, 0]]), "polygon 0 has 4 numbers"),
        (as_json([[0, 0, 4, 0, 4, 3], [0, 0, 4, 0, 4, 3, 1]]), "polygon 1 has 7 numbers"),
        (as_json([[0, 0, 4, 0, 1e9, 3]]), "polygon 0 has x = 1e+09, far outside of its image of 8 x 6 px"),
        (as_json([[0, -7, 4, 0, 4, 3]]), "polygon 0 has y = -7, far outside"),
        (as_json({"size": [8, 6], "counts": [48]}), "size is [8, 6], but its image is 6 px high and 8 px wide"),
        (as_json({"size": [6, 8], "counts": [40]}), "counts covers 40 pixels of the image's 48"),
        (as_json({"size": [6, 8], "counts": [-2, 50]}), "counts"),
        (as_json({"size": [6, 8]}), "counts is missing"),
        (as_json({"size": [6, 8], "counts": ""}), "counts is cut short"),
        (as_json({"size": [6, 8], "counts": "\x10"}), "a character that is of no RLE"),
        (as_json({"size": [6, 8], "counts": "é"}), "a character that is of no RLE"),
        (as_json({"size": [6, 8], "counts": "o"}), "counts is cut short"),
        (as_json({"size": [6, 8], "counts": "oooooooo0"}), "a run longer than any image"),
        (as_json({"size": [6, 8], "counts": "N"}), "negative run"),
    ],
)
def test_a_broken_segmentation_is_refused_with_what_is_wrong(segmentation: bytes, said: str) -> None:
    fault = mask_fault(segmentation, 8, 6)
    assert fault is not None and said in fault
    message = refusal(lambda: draw_mask(segmentation, 8, 6))
    assert message.startswith("the segmentation cannot be drawn: ") and said in message


def test_an_image_too_large_to_draw_is_refused() -> None:
    assert "too large" in refusal(lambda: draw_mask(as_json([[0, 0, 4, 0, 4, 3]]), 2**31 - 1, 2**31 - 1))


def test_the_size_alone_is_looked_at_quickly() -> None:
    mask = np.ones((6, 8), bool)
    assert size_fault(as_json(rle(mask)), 8, 6) is None
    assert size_fault(as_json(rle(mask)), 6, 8) == "size is [6, 8], but its image is 8 px high and 6 px wide"
    assert size_fault(as_json([[0, 0, 4, 0, 4, 3]]), 1, 1) is None
    assert size_fault(b'{"size": 3}', 1, 1) is None  # broken: mask_fault says how


CODES = as_json(rle(np.random.default_rng(0).random((6, 8)) < 0.3))


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0, len(CODES) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_of_an_rle_gives_a_mask_or_a_sentence(position: int, byte: int) -> None:
    changed = CODES[:position] + bytes([byte]) + CODES[position + 1 :]
    try:
        assert draw_mask(changed, 8, 6).shape == (6, 8)
    except RequestError as error:
        sentence(str(error))


# --- label maps ---------------------------------------------------------------------------------------------------


def rectangle(left: int, top: int, right: int, bottom: int) -> bytes:
    return as_json([[left, top, right, top, right, bottom, left, bottom]])


def region(category_id: int, segmentation: bytes | None, area: float = 1.0, crowd: bool = False) -> Instance:
    return Instance(f"c{category_id}", category_id, (0, 0, 1, 1), segmentation, area, crowd)


@pytest.fixture
def record() -> ImageRecord:
    return ImageRecord(5, Path("5.png"), 8, 6)


def test_labels_are_those_of_coco_stuff() -> None:
    assert len(LABELS) == len(LABEL_OF) == 182
    assert (LABELS[0], LABELS[89], LABELS[FIRST_STUFF_LABEL], LABELS[181]) == (
        "person",
        "toothbrush",
        "banner",
        "wood",
    )


def test_label_names_are_those_of_published_files(shared_data: Path) -> None:
    known = 0
    for name in ("instances_val2017", "panoptic_val2017"):
        content = json.loads((shared_data / f"coco-mini/annotations/{name}.json").read_text())
        for category in content["categories"]:
            if category["id"] <= len(LABELS):  # beyond are panoptic's merged ones
                assert LABELS[category["id"] - 1] == category["name"]
                known += 1
    assert known == 80 + 80 + 36


def test_a_label_map_is_drawn_things_over_stuff_and_small_over_large(record: ImageRecord) -> None:
    drawn = replace(
        record,
        stuff=(region(124, rectangle(0, 0, 4, 6)), region(183, rectangle(0, 0, 8, 6))),
        instances=(
            region(17, rectangle(2, 2, 4, 4), area=4),
            region(18, rectangle(2, 0, 6, 4), area=16),
            region(1, rectangle(0, 0, 3, 1), area=3, crowd=True),
            region(44, None),
        ),
    )
    labels = label_map(drawn)
    assert (labels.shape, labels.dtype) == ((6, 8), np.uint8)
    expected = np.full((6, 8), UNLABELLED)
    expected[:, :4] = 123
    expected[0, :3] = 0
    expected[0:4, 2:6] = 17
    expected[2:4, 2:4] = 16
    np.testing.assert_array_equal(labels, expected)
    assert set(np.unique(label_map(replace(drawn, instances=None)))) == {123, UNLABELLED}


def test_a_published_label_map_goes_before_a_drawn_one(record: ImageRecord, tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    pixels[0, 0] = UNLABELLED
    published = replace(record, stuff_map=as_png(pixels), stuff=(region(124, rectangle(0, 0, 4, 6)),))
    np.testing.assert_array_equal(label_map(published), pixels)
    (tmp_path / "map.png").write_bytes(as_png(pixels))
    np.testing.assert_array_equal(label_map(replace(record, stuff_map=tmp_path / "map.png")), pixels)


def test_wrong_label_maps_are_refused(record: ImageRecord, tmp_path: Path) -> None:
    def said(**fields: object) -> str:
        return refusal(lambda: label_map(replace(record, **fields)))  # type: ignore[arg-type]

    pixels = np.zeros((6, 8), np.uint8)
    assert "image 5 has no stuff" in said()
    assert "the stuff map of image 5 is 6 x 8 px, but its image is annotated as 8 x 6 px" in said(
        stuff_map=as_png(pixels.T.copy())
    )
    assert "mode RGB instead of L" in said(stuff_map=as_png(pixels, "RGB"))
    assert "holds label 182; labels are 0 to 181, and 255" in said(stuff_map=as_png(pixels + np.uint8(182)))
    assert "the stuff map of image 5 does not decode" in said(stuff_map=b"no picture")
    assert "does not decode" in said(stuff_map=as_png(np.random.default_rng(0).integers(0, 99, (6, 8), np.uint8))[:-30])
    assert f"{tmp_path / 'none.png'} cannot be read" in said(stuff_map=tmp_path / "none.png")
    assert "'c200' is category 200, and COCO-Stuff has 1 to 182" in said(stuff=(region(200, rectangle(0, 0, 1, 1)),))
    assert "'c0' is category 0" in said(stuff=(), instances=(region(0, rectangle(0, 0, 1, 1)),))
    assert "image 5: 'c124': the segmentation cannot be drawn: it holds no polygon" in said(stuff=(region(124, b"[]"),))


# --- panoptic maps ------------------------------------------------------------------------------------------------


def test_panoptic_ids(record: ImageRecord) -> None:
    colours = np.zeros((6, 8, 3), np.uint8)
    colours[0, 1] = (1, 2, 3)
    colours[5, 7] = (255, 255, 255)
    ids = panoptic_ids(replace(record, panoptic=Panoptic(as_png(colours), ())))
    assert (ids.shape, ids.dtype) == ((6, 8), np.int32)
    assert (ids[0, 1], ids[5, 7], np.count_nonzero(ids)) == (1 + 512 + 196_608, 2**24 - 1, 2)


def test_wrong_panoptic_maps_are_refused(record: ImageRecord) -> None:
    assert "image 5 has no panoptic map" in refusal(lambda: panoptic_ids(record))
    grey = replace(record, panoptic=Panoptic(as_png(np.zeros((6, 8), np.uint8)), ()))
    assert "mode L instead of RGB" in refusal(lambda: panoptic_ids(grey))
    small = replace(record, panoptic=Panoptic(as_png(np.zeros((5, 8, 3), np.uint8)), ()))
    assert "the panoptic map of image 5 is 8 x 5 px" in refusal(lambda: panoptic_ids(small))


def test_real_masks_and_maps(shared_data: Path) -> None:
    val = read_coco(shared_data / "coco-mini", "val")
    relative_errors = []
    for record in val.records:
        for thing in record.instances or ():
            assert thing.segmentation is not None
            drawn = int(draw_mask(thing.segmentation, record.width, record.height).sum())
            if thing.area > 1000 and not thing.crowd:
                relative_errors.append(abs(drawn - thing.area) / thing.area)
        if record.panoptic is not None:
            ids = panoptic_ids(record)
            for segment in record.panoptic.segments:
                assert np.count_nonzero(ids == segment.id) == segment.area
        if record.stuff_map is not None:
            assert set(np.unique(label_map(record)).tolist()) <= {*range(182), UNLABELLED}
    assert len(relative_errors) > 100 and max(relative_errors) < 0.05
