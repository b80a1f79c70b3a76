"""Annotated boxes as training shows them: where the picture's own pixels are, whatever was cut and mirrored."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from orchestration.data.objects import StoredObjects, objects_stage, open_objects
from orchestration.data.records import Dataset, ImageRecord, Instance
from orchestration.data.sources import open_source
from orchestration.data.transforms import TRANSFORMS, Transform
from orchestration.errors import RequestError
from orchestration.stages import ensure, quiet

Box = tuple[float, float, float, float]
SIZE = 32


def thing(box: Box, category: str = "cat", crowd: bool = False) -> Instance:
    return Instance(category, 1, box, None, box[2] * box[3], crowd)


def record(
    image_id: int, things: Sequence[Instance] | None, side: tuple[int, int] = (64, 64), **more: Any
) -> ImageRecord:
    return ImageRecord(image_id, Path("a.png"), *side, instances=None if things is None else tuple(things), **more)


def dataset_of(records: Sequence[ImageRecord], split: str = "train") -> Dataset:
    return Dataset("tiny", split, Path(), tuple(records), frozenset({"images", "boxes"}), "d" * 64)


def stored_in(
    folder: Path, records: Sequence[ImageRecord], transform: str = "attngan", classes: Sequence[str] | None = None
) -> StoredObjects:
    """What the stage leaves; `folder` may be one that it filled before."""
    objects_stage(dataset_of(records), TRANSFORMS[transform], SIZE, classes).run(folder, quiet)
    return open_objects(folder)


def taken(
    found: StoredObjects, item: int, draws: Sequence[float] | None = None, flip: bool = False
) -> NDArray[np.float32]:
    """(M,4) of one picture."""
    objects = found.take(np.array([item]), None if draws is None else np.array([draws]), flip)
    return objects.boxes[0, : int(objects.counts[0])].numpy()


def pixels_of(
    transform: Transform, one: ImageRecord, draws: NDArray[np.float64] | None, flip: bool
) -> NDArray[np.bool_]:
    """Where the one thing of a picture is shown: white on black, through the real pixels' whole way."""
    picture = np.zeros((one.height, one.width, 3), np.uint8)
    assert one.instances is not None
    x, y, width, height = (int(number) for number in one.instances[0].box)
    picture[y : y + height, x : x + width] = 255
    shown = transform.view(transform.store(Image.fromarray(picture), one, SIZE), SIZE, draws, flip)
    return np.asarray(shown[0] > 127)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(TRANSFORMS)),
    st.tuples(st.integers(48, 120), st.integers(48, 120)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.one_of(st.none(), st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3)),
    st.booleans(),
    st.booleans(),
)
def test_boxes_lie_on_the_pixels(
    name: str,
    sides: tuple[int, int],
    where: tuple[float, float, float, float],
    draws: tuple[float, float, float] | None,
    flip: bool,
    subject: bool,
) -> None:
    width, height = sides
    x, y = int(where[0] * (width - 24)), int(where[1] * (height - 24))
    box = (x, y, 12 + int(where[2] * (width - x - 12)), 12 + int(where[3] * (height - y - 12)))
    one = record(7, [thing(box)], sides, subject_box=box if subject else None)
    transform = TRANSFORMS[name]
    numbers = None if draws is None else np.array(draws)
    shown = pixels_of(transform, one, numbers, flip)
    with TemporaryDirectory() as folder:
        boxes = taken(stored_in(Path(folder), [one], name), 0, draws, flip)
    assert len(boxes) <= 1
    if not len(boxes):
        # At most a sliver is left: a tenth of it, or less than a pixel and the blur of resizing.
        rows, columns = shown.any(1).sum(), shown.any(0).sum()
        whole = transform.place(one, SIZE, numbers, flip).boxes(np.array([box], np.float64))[0, 2:].prod()
        assert min(rows, columns) <= 2 or rows * columns <= 0.1 * whole + rows + columns
        return
    assert shown.any() or (boxes[0, 2:] - boxes[0, :2]).min() * SIZE < 2
    if shown.any():
        columns, rows = np.flatnonzero(shown.any(0)), np.flatnonzero(shown.any(1))
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(boxes[0] * SIZE - edges).max() <= 1.0


def test_cut_and_mirrored_by_hand(tmp_path: Path) -> None:
    """64 x 64 is stored at 38 x 38 for pictures of 32: the cut begins at 0 to 6, the centre's at 3."""
    found = stored_in(tmp_path, [record(1, [thing((0.0, 0.0, 32.0, 64.0)), thing((32.0, 16.0, 32.0, 16.0), "dog")])])
    centre = taken(found, 0) * SIZE
    np.testing.assert_allclose(centre, [[0.0, 0.0, 16.0, 32.0], [16.0, 6.5, 32.0, 16.0]], atol=1e-4)
    upper_left = taken(found, 0, [0.0, 0.0, 0.9], flip=False) * SIZE
    np.testing.assert_allclose(upper_left, [[0.0, 0.0, 19.0, 32.0], [19.0, 9.5, 32.0, 19.0]], atol=1e-4)
    mirrored = taken(found, 0, [0.0, 0.0, 0.9], flip=True) * SIZE
    np.testing.assert_allclose(mirrored, [[13.0, 0.0, 32.0, 32.0], [0.0, 9.5, 13.0, 19.0]], atol=1e-4)
    not_this_time = taken(found, 0, [0.0, 0.0, 0.4], flip=True) * SIZE
    np.testing.assert_allclose(not_this_time, upper_left, atol=1e-4)


def test_what_is_hardly_left_is_not_there(tmp_path: Path) -> None:
    """xmcgan squashes 320 to 32: ten published pixels are one. attngan cuts 3 pixels of the stored 38 off each side."""
    squashed = stored_in(
        tmp_path,
        [record(1, [thing((0, 0, 9, 200)), thing((0, 0, 200, 9)), thing((0, 0, 11, 11))], (320, 320))],
        "xmcgan",
    )
    np.testing.assert_allclose(taken(squashed, 0) * SIZE, [[0, 0, 1.1, 1.1]], atol=1e-5)
    # In stored pixels: of the first nothing is left, of the second 1.5 of 4.5; below 1.5 of 16.5 and of 11.5.
    scale = 64 / 38
    cut = stored_in(
        tmp_path, [record(1, [thing((0, 0, width * scale, 30 * scale), f"{width}") for width in (2.0, 4.5)])]
    )
    np.testing.assert_allclose(taken(cut, 0) * SIZE, [[0, 0, 1.5, 27]], atol=1e-4)
    assert cut.classes == ("2.0", "4.5") and cut.take(np.array([0])).classes.tolist() == [[1, 0]]
    wide = stored_in(tmp_path, [record(1, [thing((-12 * scale, 0, 16.5 * scale, 38 * scale))])])
    assert len(taken(wide, 0)) == 0
    nearly = stored_in(tmp_path, [record(1, [thing((-7 * scale, 0, 11.5 * scale, 38 * scale))])])
    assert len(taken(nearly, 0)) == 1


def test_crowds_and_boxes_without_area_are_left_out(tmp_path: Path) -> None:
    things = [thing((0, 0, 20, 20), "ant"), thing((0, 0, 20, 20), "crowd", crowd=True), thing((5, 5, 0, 9), "flat")]
    found = stored_in(tmp_path, [record(4, things), record(9, []), record(2, None)])
    assert found.image_ids.tolist() == [4, 9, 2] and len(found) == 3
    assert found.classes == ("ant",) and found.most == 1
    assert found.take(np.arange(3)).counts.tolist() == [1, 0, 0]


def test_classes_are_sorted_and_padding_is_zero(tmp_path: Path) -> None:
    boxes = [(4.0 * place, 0.0, 30.0, 30.0) for place in range(3)]
    things = [thing(box, name) for box, name in zip(boxes, ("dog", "cat", "dog"), strict=True)]
    found = stored_in(tmp_path, [record(1, things[:1]), record(2, things)])
    objects = found.take(np.array([1, 0, 1]))
    assert found.classes == ("cat", "dog") and found.most == 3
    assert objects.counts.tolist() == [3, 1, 3]
    assert objects.classes.tolist() == [[1, 0, 1], [1, 0, 0], [1, 0, 1]]
    assert not objects.boxes[1, 1:].any() and objects.boxes.shape == (3, 3, 4)
    assert objects.boxes.dtype.is_floating_point and str(objects.boxes.dtype) == "torch.float32"


def test_the_training_splits_classes_hold_for_the_others(tmp_path: Path) -> None:
    """Their numbers stay; things of a class that it never had are left out."""
    things = [thing((0, 0, 30, 30), "zebra"), thing((0, 0, 40, 40), "emu")]
    found = stored_in(tmp_path, [record(1, things)], classes=("bear", "cat", "zebra"))
    assert found.classes == ("bear", "cat", "zebra")
    assert found.take(np.array([0])).classes.tolist() == [[2]]


def test_a_stage_knows_what_it_depends_on() -> None:
    data = dataset_of([record(1, [thing((0, 0, 9, 9))])])
    stages = [
        objects_stage(data, TRANSFORMS["attngan"], 32),
        objects_stage(data, TRANSFORMS["attngan"], 64),
        objects_stage(data, TRANSFORMS["xmcgan"], 32),
        objects_stage(data, TRANSFORMS["attngan"], 32, ["cat"]),
        objects_stage(data, TRANSFORMS["attngan"], 32, ["cat", "dog"]),
        objects_stage(dataset_of(data.records, "val"), TRANSFORMS["attngan"], 32),
    ]
    assert len({stage.key for stage in stages}) == len(stages)
    assert {stage.name for stage in stages} == {"objects"} and stages[0].inputs == {"data": "d" * 64}


def test_data_without_things_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        stored_in(tmp_path, [record(1, []), record(2, [thing((0, 0, 9, 9), crowd=True)])])
    assert str(caught.value) == (
        "no image of tiny (train) has an annotated thing: choose data with boxes, such as scenes or coco:PATH"
    )


def _rewritten(name: str, array: NDArray[Any]) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / f"{name}.npy", array)


def _described(**changes: Any) -> Callable[[Path], object]:
    whole = {"transform": "attngan", "size": 32, "classes": ["cat", "dog"]} | changes
    return lambda folder: (folder / "objects.json").write_text(json.dumps(whole), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda folder: (folder / "objects.json").unlink(), "No such file"),
        (lambda folder: (folder / "objects.json").write_text("{"), "Expecting"),
        (lambda folder: (folder / "objects.json").write_text("[]"), "indices"),
        (lambda folder: (folder / "boxes.npy").unlink(), "No such file"),
        (lambda folder: (folder / "boxes.npy").write_bytes(b"\x93NUMPY"), "EOF"),
        (_described(classes=["cat"]), "class numbers without a name"),
        (_described(size="big"), "invalid literal"),
        (_rewritten("numbers", np.array([0, -1])), "class numbers without a name"),
        (_rewritten("numbers", np.array([0, 1, 1])), "boxes has the shape (2, 4) and not (3, 4)"),
        (_rewritten("starts", np.array([0, 1])), "starts has the shape (2,) and not (3,)"),
        (_rewritten("starts", np.array([0, 3, 2])), "starts do not part 2 things"),
        (_rewritten("starts", np.array([0, 1, 1])), "starts do not part 2 things"),
        (_rewritten("boxes", np.full((2, 4), {}, object)), "allow_pickle"),
    ],
)
def test_folders_that_hold_no_objects(tmp_path: Path, spoil: Callable[[Path], object], what: str) -> None:
    records = [record(1, [thing((0, 0, 20, 20), "cat")]), record(2, [thing((0, 0, 20, 20), "dog")])]
    objects_stage(dataset_of(records), TRANSFORMS["attngan"], SIZE).run(tmp_path, quiet)
    assert len(open_objects(tmp_path)) == 2
    spoil(tmp_path)
    with pytest.raises(RequestError) as caught:
        open_objects(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"objects in {tmp_path} cannot be read (") and "\n" not in message
    assert what in message and message.endswith("): delete that folder and repeat")


def test_an_unknown_transform_is_named(tmp_path: Path) -> None:
    objects_stage(dataset_of([record(1, [thing((0, 0, 20, 20))])]), TRANSFORMS["attngan"], SIZE).run(tmp_path, quiet)
    _described(transform="attngna", classes=["cat"])(tmp_path)
    with pytest.raises(RequestError, match="perhaps 'attngan' was meant"):
        open_objects(tmp_path)


def test_generated_scenes_have_objects(tmp_path: Path) -> None:
    dataset = open_source("scenes:size=32,things=4,train=12,val=1,test=1", "train", tmp_path)
    found = open_objects(ensure(objects_stage(dataset, TRANSFORMS["attngan"], SIZE), tmp_path / "stages"))
    objects = found.take(np.arange(12))
    assert set(found.classes) <= {"house", "tree", "fish", "star"} and objects.counts.min() >= 1
    assert objects.boxes.min() >= 0 and objects.boxes.max() <= 1


def test_photographs_have_objects(shared_data: Path, tmp_path: Path) -> None:
    """COCO's own boxes: every one that is not a crowd and has an area is stored."""
    dataset = open_source(f"coco:{shared_data / 'coco-mini'}", "val", tmp_path).having({"boxes"})
    found = open_objects(ensure(objects_stage(dataset, TRANSFORMS["attngan"], 64), tmp_path / "stages"))
    alone = [one for record in dataset.records for one in record.instances or () if not one.crowd]
    assert len(found.numbers) == len(alone) > 100
    assert [found.classes[number] for number in found.numbers] == [one.category for one in alone]
