"""Masks that fit hulls, by run-length codes and by pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestration.data.mask_choice import (
    Centre,
    Choice,
    Place,
    centred,
    choose_masks,
    decoded,
    encoded,
    intersection_over_union,
    middle,
    picture_masks,
)

Mask = NDArray[np.bool_]
H, W = 12, 15


def box(top: int, bottom: int, left: int, right: int) -> Mask:
    drawn = np.zeros((H, W), np.bool_)
    drawn[top:bottom, left:right] = True
    return drawn


def blobs(seed: int, count: int) -> list[Mask]:
    """Boxes, some of them with holes, some empty."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        top, left, high, wide = rng.integers(0, [H, W, H, W]).tolist()
        drawn = box(top, top + high, left, left + wide)
        found.append(drawn & (rng.random((H, W)) < rng.choice([0.3, 1.0])))
    return found


def by_pixels(mask: Mask, hull: Mask) -> float:
    either = int((mask | hull).sum())
    return int((mask & hull).sum()) / either if either else 0.0


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 9))
def test_codes_overlap_as_their_pixels_do(seed: int, count: int) -> None:
    """Equal to the last place: both are one division of two whole numbers."""
    *masks, hull = blobs(seed, count + 1)
    codes = encoded(masks)
    assert all((decoded(code) == mask).all() for code, mask in zip(codes, masks, strict=True))
    found = intersection_over_union(codes, encoded([hull])[0])
    assert found.tolist() == [by_pixels(mask, hull) for mask in masks]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    place=st.sampled_from(["original", "centred"]),
    centre=st.sampled_from(["box", "centroid"]),
)
def test_the_best_mask_of_the_class_is_chosen(seed: int, place: Place, centre: Centre) -> None:
    rng = np.random.default_rng(seed)
    maps = [(rng.integers(0, 4, (H, W)), rng.integers(0, 3, (H, W))) for _ in range(rng.integers(0, 4))]
    wanted = list(zip(rng.integers(0, 6, 4).tolist(), blobs(seed, 4), strict=True))
    pictures = [picture_masks(labels, numbers, range(6)) for labels, numbers in maps]
    for (label, hull), choice in zip(wanted, choose_masks(wanted, pictures, place, centre), strict=True):
        fits = []
        for picture, (labels, numbers) in enumerate(maps):
            for number in np.unique(numbers[labels == label]):
                mask = (labels == label) & (numbers == number)
                fits.append(
                    (by_pixels(centred(mask, hull, centre) if place == "centred" else mask, hull), picture, mask)
                )
        if not fits:
            assert choice is None
            continue
        best = max(fit for fit, _, _ in fits)
        picture, mask = next((picture, mask) for fit, picture, mask in fits if fit == best)
        assert isinstance(choice, Choice) and (choice.iou, choice.picture) == (best, picture)
        assert (choice.mask() == mask).all()
        masks = pictures[picture]
        assert masks.labels[choice.place] == label and masks.codes[choice.place] == choice.code


def test_the_masks_of_a_picture() -> None:
    labels, numbers = np.full((H, W), 3), np.zeros((H, W), np.int64)
    labels[:4], labels[6:9, :6] = 7, 1
    numbers[6:9, :3], numbers[6:9, 3:5] = 1, 2
    found = picture_masks(labels, numbers, {1, 7})
    assert found.labels.tolist() == [1, 1, 1, 7] and found.instances.tolist() == [0, 1, 2, 0]
    assert [int(decoded(code).sum()) for code in found.codes] == [3, 9, 6, 4 * W]
    assert picture_masks(labels, numbers, ()).codes == ()


def test_a_class_that_no_picture_has_gets_no_mask() -> None:
    pictures = [picture_masks(np.ones((H, W), np.int64), np.zeros((H, W), np.int64), {1, 2})]
    assert choose_masks([(2, box(0, 3, 0, 3))], pictures) == [None]
    assert choose_masks([(2, box(0, 3, 0, 3))], []) == [None]
    assert choose_masks([], pictures) == []


def test_where_masks_are_compared_changes_the_choice() -> None:
    """A mask that is there and too large against one that fits and is elsewhere."""
    labels = np.zeros((H, W), np.int64)
    labels[0:8, 0:8] = 1
    other = np.zeros((H, W), np.int64)
    other[8:12, 11:15] = 1
    pictures = [picture_masks(each, np.zeros_like(each), {1}) for each in (labels, other)]
    wanted = [(1, box(2, 6, 2, 6))]
    (there,), (fitting,) = choose_masks(wanted, pictures), choose_masks(wanted, pictures, "centred")
    assert there is not None and (there.picture, there.iou) == (0, 0.25)
    assert fitting is not None and (fitting.picture, fitting.iou) == (1, 1.0)
    assert (fitting.mask() == (other == 1)).all()


def test_hulls_of_another_size_are_refused() -> None:
    pictures = [picture_masks(np.ones((H, W), np.int64), np.zeros((H, W), np.int64), {1})]
    with pytest.raises(ValueError, match="as high and wide as every hull"):
        choose_masks([(1, np.ones((H, H), np.bool_))], pictures)


def test_middles() -> None:
    """Rows 2 and 3, columns 3 to 5, of which the lower row lacks the last."""
    drawn = box(2, 3, 3, 6) | box(3, 4, 3, 5)
    middles: dict[Centre, tuple[float, float]] = {"box": (3.0, 4.5), "centroid": (2.5 + 2 / 5, 3.5 + (1 + 2 + 1) / 5)}
    for centre, by_hand in middles.items():
        found = middle(drawn, centre)
        assert found is not None
        np.testing.assert_allclose(found, by_hand)
        assert middle(np.zeros((H, W), np.bool_), centre) is None


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10_000), centre=st.sampled_from(["box", "centroid"]))
def test_a_centred_mask_is_the_mask_moved(seed: int, centre: Centre) -> None:
    mask, hull = blobs(seed, 2)
    moved = centred(mask, hull, centre)
    start, end = middle(mask, centre), middle(hull, centre)
    if start is None or end is None:
        assert (moved == mask).all()
        return
    down, right = np.floor(end - start + 0.5).astype(int).tolist()
    places = {(row + down, column + right) for row, column in zip(*np.nonzero(mask), strict=True)}
    assert {tuple(place) for place in np.argwhere(moved)} == {(r, c) for r, c in places if 0 <= r < H and 0 <= c < W}
    if len(places) == moved.sum():  # nothing was cut off
        after = middle(moved, centre)
        assert after is not None and np.abs(after - end).max() <= 0.5 + 1e-9
