"""Canvases: every pixel has a label, and who is mentioned first is on top."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestration.data.composition import Thing, choose_stuff, compose, label_maps_of, stuff_layer
from orchestration.data.mask_choice import Centre, centred

H, W = 10, 13
STUFF = (False, False, True, True, False)  # classes 0 to 4
DONT_CARE = len(STUFF)


def box(top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
    drawn = np.zeros((H, W), np.bool_)
    drawn[top:bottom, left:right] = True
    return drawn


def some_box(rng: np.random.Generator) -> NDArray[np.bool_]:
    top, left, high, wide = rng.integers([0, 0, 1, 1], [H, W, H, W]).tolist()
    return box(top, top + high, left, left + wide)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Thing], NDArray[np.int64]]:
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    allowed = draw(st.sampled_from([range(DONT_CARE + 1), (0, 1, DONT_CARE), (DONT_CARE,), (2, 3)]))
    segmentation = rng.choice(list(allowed), (H, W)).astype(np.int64)
    things = [Thing(int(rng.choice([0, 1, 4])), some_box(rng), some_box(rng)) for _ in range(draw(st.integers(0, 5)))]
    return things, segmentation


@settings(deadline=None, max_examples=150)
@given(scene=scenes(), centre=st.sampled_from(["box", "centroid"]))
def test_what_holds_of_every_canvas(scene: tuple[list[Thing], NDArray[np.int64]], centre: Centre) -> None:
    things, segmentation = scene
    canvas = compose(things, segmentation, STUFF, centre)
    assert canvas.labels.shape == canvas.instances.shape == (H, W)
    assert canvas.labels.dtype == canvas.instances.dtype == np.int64
    # Every pixel has a label: a thing's own, or stuff; none only where there was no stuff at all.
    has_stuff = np.isin(segmentation, (2, 3)).any()
    bare = canvas.instances == 0
    assert np.isin(canvas.labels[bare], (2, 3) if has_stuff else (DONT_CARE,)).all()
    known = np.isin(segmentation, (2, 3)) & bare
    assert (canvas.labels[known] == segmentation[known]).all()
    # Each thing is seen where nothing mentioned before it is.
    taken = np.zeros((H, W), np.bool_)
    for number, thing in enumerate(things, 1):
        placed = centred(thing.mask, thing.hull, centre)
        assert ((canvas.instances == number) == (placed & ~taken)).all()
        assert (canvas.labels[canvas.instances == number] == thing.label).all()
        taken |= placed
    assert (bare == ~taken).all()


def test_the_first_mentioned_is_on_top() -> None:
    first, second = Thing(0, box(0, 4, 0, 4), box(3, 7, 3, 7)), Thing(1, box(6, 10, 5, 13), box(2, 8, 1, 9))
    canvas = compose([first, second], np.full((H, W), 2), STUFF)
    assert (canvas.labels[3:7, 3:7] == 0).all() and (canvas.instances[3:7, 3:7] == 1).all()
    assert (canvas.instances == 2).sum() == 4 * 8 - 4 * 4 and canvas.instances[3, 1] == 2
    swapped = compose([second, first], np.full((H, W), 2), STUFF)
    assert (swapped.instances == 1).sum() == 32 and not (swapped.instances == 2).any()


def test_two_things_of_a_class_have_numbers_of_their_own() -> None:
    things = [Thing(0, box(0, 2, 0, 2), box(row, row + 2, 4, 6)) for row in (1, 3)]
    canvas = compose(things, np.full((H, W), 3), STUFF)
    assert (canvas.labels[1:5, 4:6] == 0).all() and canvas.instances[1:5, 4].tolist() == [1, 1, 2, 2]


def test_what_leaves_the_canvas_is_cut_off() -> None:
    canvas = compose([Thing(4, box(2, 8, 2, 10), box(0, 1, 0, 1))], np.full((H, W), 2), STUFF)
    # The middle of rows 2 to 7 and columns 2 to 9 comes to the corner's middle, half a pixel rounded down and right.
    assert (canvas.instances[:4, :5] == 1).all() and canvas.instances.sum() == 20


def test_uncovered_pixels_take_the_nearest_stuff() -> None:
    segmentation = np.full((1, 9), DONT_CARE)
    segmentation[0, 0], segmentation[0, 5], segmentation[0, 6] = 2, 1, 3
    assert stuff_layer(segmentation, STUFF).tolist() == [[2, 2, 2, 2, 3, 3, 3, 3, 3]]
    rng = np.random.default_rng(3)
    wide = rng.choice([0, 2, 3, DONT_CARE], (9, 11), p=[0.5, 0.1, 0.1, 0.3])
    layer = stuff_layer(wide, STUFF)
    known = np.argwhere(np.isin(wide, (2, 3)))
    for place in np.ndindex(wide.shape):
        far = ((known - place) ** 2).sum(1)
        nearest = {int(wide[tuple(one)]) for one in known[far == far.min()]}
        assert layer[place] in nearest


def test_without_stuff_and_without_things() -> None:
    nothing = np.full((H, W), DONT_CARE)
    canvas = compose([], nothing, STUFF)
    assert (canvas.labels == DONT_CARE).all() and not canvas.instances.any()
    alone = compose([Thing(1, box(0, 2, 0, 2), box(4, 6, 4, 6))], np.zeros((H, W), np.int64), STUFF)
    assert (alone.labels == 1).sum() == 4 and (alone.labels == DONT_CARE).sum() == H * W - 4
    stuff = compose([], np.full((H, W), 3), STUFF)
    assert (stuff.labels == 3).all() and not stuff.instances.any()


def test_the_best_stuff() -> None:
    upper, lower = box(0, 5, 0, W), box(5, H, 0, W)
    first = np.where(upper, 2, DONT_CARE)  # all of the one, nothing of the other: 1/2
    second = np.where(box(0, 4, 0, W), 2, 3)  # 4/5 and 5/6
    third = np.full((H, W), 3)
    maps = np.stack([third, first, second])
    best, fit = choose_stuff([(2, upper), (3, lower)], maps)
    assert best == 2 and fit == pytest.approx((4 / 5 + 5 / 6) / 2)
    assert choose_stuff([(2, upper)], maps) == (1, 1.0)
    assert choose_stuff([(0, upper)], maps) == (0, 0.0)  # nobody has it: the one retrieved first
    assert choose_stuff([], maps) == (0, 0.0)
    with pytest.raises(ValueError, match="no segmentation"):
        choose_stuff([(2, upper)], maps[:0])


def test_things_that_do_not_fit_are_refused() -> None:
    small = np.ones((2, 2), np.bool_)
    with pytest.raises(ValueError, match="thing 1 is"):
        compose([Thing(0, small, small)], np.full((H, W), 2), STUFF)
    with pytest.raises(ValueError, match="label 5, which is none of 5 classes"):
        compose([Thing(5, box(0, 1, 0, 1), box(0, 1, 0, 1))], np.full((H, W), 2), STUFF)


def test_canvases_as_generators_read_them() -> None:
    canvas = compose([Thing(1, box(0, 2, 0, 2), box(4, 6, 4, 6))], np.full((H, W), 2), STUFF)
    maps = label_maps_of([canvas, canvas])
    assert maps.labels.shape == maps.instances.shape == (2, H, W) and str(maps.labels.dtype) == "torch.int64"
    assert (maps.instances[1].numpy() == canvas.instances).all() and (maps.labels[0].numpy() == canvas.labels).all()
