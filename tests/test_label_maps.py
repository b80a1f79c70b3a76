"""Label maps as training shows them: on the picture's own pixels, whatever was cut and mirrored."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from orchestration.data.coco_stuff import LABEL_OF, LABELS, UNLABELLED
from orchestration.data.label_maps import LabelReader, StoredLabelMaps, label_maps_stage, open_label_maps
from orchestration.data.records import Dataset, ImageRecord, Instance, Panoptic, PanopticSegment
from orchestration.data.sources import open_source
from orchestration.data.transforms import TRANSFORMS
from orchestration.errors import RequestError
from orchestration.stages import ensure, quiet
from tests.data_files import refusal, rle

SIZE = 32
CAT, DOG, GRASS, SKY = (LABEL_OF[name] for name in ("cat", "dog", "grass", "sky-other"))


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def mask(height: int, width: int, rows: slice, columns: slice) -> NDArray[np.bool_]:
    drawn = np.zeros((height, width), np.bool_)
    drawn[rows, columns] = True
    return drawn


def region(name: str, drawn: NDArray[np.bool_], crowd: bool = False, number: int | None = None) -> Instance:
    number = LABEL_OF[name] + 1 if number is None else number
    return Instance(name, number, (0, 0, 9, 9), json.dumps(rle(drawn)).encode(), float(drawn.sum()), crowd)


def stuffed(labels: NDArray[np.uint8], *things: Instance, image_id: int = 7) -> ImageRecord:
    height, width = labels.shape
    return ImageRecord(image_id, Path("a.png"), width, height, instances=things, stuff_map=as_png(labels))


def parted(ids: NDArray[np.int32], segments: Sequence[tuple[int, str, bool, bool]]) -> ImageRecord:
    """segments: id, name, thing, crowd."""
    pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    found = tuple(
        PanopticSegment(one, name, 1, thing, (0, 0, 9, 9), 9.0, crowd) for one, name, thing, crowd in segments
    )
    return ImageRecord(9, Path("a.png"), ids.shape[1], ids.shape[0], panoptic=Panoptic(as_png(pixels), found))


def dataset_of(*records: ImageRecord, split: str = "train") -> Dataset:
    return Dataset("tiny", split, Path(), records, frozenset({"images", "stuff"}), "d" * 64)


def stored_in(
    folder: Path, *records: ImageRecord, transform: str = "spade", classes: Sequence[str] | None = None
) -> StoredLabelMaps:
    label_maps_stage(dataset_of(*records), TRANSFORMS[transform], SIZE, classes).run(folder, quiet)
    return open_label_maps(folder)


def quarters(height: int, width: int) -> NDArray[np.uint8]:
    """Four labels whose borders lie where no side is halved."""
    labels = np.full((height, width), SKY, np.uint8)
    labels[height // 3 :, : width // 2] = GRASS
    labels[height // 3 :, width // 2 :] = CAT
    labels[: height // 2, 2 * width // 3 :] = DOG
    return labels


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["spade", "spade", "attngan", "xmcgan"]),
    st.tuples(st.integers(40, 120), st.integers(40, 120)),
    st.one_of(st.none(), st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3)),
    st.booleans(),
)
def test_labels_lie_on_the_pixels(
    name: str, sides: tuple[int, int], draws: tuple[float, float, float] | None, flip: bool
) -> None:
    """The picture's red is its label: pictures are resampled smoothly and labels are not, and yet they agree."""
    labels = quarters(*sides)
    record, transform = stuffed(labels), TRANSFORMS[name]
    shades = np.array([(place + 1) * 60 for place in range(4)], np.uint8)
    known = [CAT, DOG, GRASS, SKY]
    coloured = shades[np.searchsorted(known, labels)]
    picture = Image.fromarray(np.repeat(coloured[..., None], 3, 2))
    numbers = None if draws is None else np.array(draws)
    shown = transform.view(transform.store(picture, record, SIZE), SIZE, numbers, flip)[0].astype(int)
    with TemporaryDirectory() as folder:
        maps = stored_in(Path(folder), record, transform=name)
        taken = maps.take(np.array([0]), None if numbers is None else numbers[None], flip).labels[0].numpy()
    expected = shades[np.searchsorted(known, taken)].astype(int)
    # Where a pixel and its neighbours have one label the smooth picture has that label's shade.
    inner = np.ones((SIZE, SIZE), np.bool_)
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        inner &= taken == np.roll(taken, (down, right), (0, 1))
        inner &= taken == np.roll(taken, (-down, -right), (0, 1))
    inner[[0, -1]] = inner[:, [0, -1]] = False
    assert inner.sum() > SIZE * SIZE / 4
    assert np.abs(shown - expected)[inner].max() <= 30
    assert (np.abs(shown[:, :, None] - shades).argmin(2) == np.searchsorted(known, taken)).mean() > 0.85


def test_each_pixel_is_the_nearest_one_as_pillow_has_it() -> None:
    labels = np.random.default_rng(0).integers(0, 182, (61, 47)).astype(np.uint8)
    found, _ = LabelReader(dataset_of(record := stuffed(labels))).read(record, (3, 5, 40, 60), (35, 35))
    pillow = Image.fromarray(labels).crop((3, 5, 40, 60)).resize((35, 35), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(found, np.asarray(pillow))
    np.testing.assert_array_equal(LabelReader(dataset_of(record)).read(record)[0], labels)


def test_instances_are_cut_and_mirrored_with_the_labels(tmp_path: Path) -> None:
    labels = quarters(64, 64)
    cats, dogs = labels == CAT, labels == DOG
    found = stored_in(tmp_path, stuffed(labels, region("dog", dogs), region("cat", cats)))
    maps = found.take(np.array([0, 0]), np.array([[0.1, 0.8, 0.9], [0.99, 0.0, 0.2]]), flip=True)
    assert maps.labels.shape == maps.instances.shape == (2, SIZE, SIZE)
    assert str(maps.labels.dtype) == str(maps.instances.dtype) == "torch.int64"
    np.testing.assert_array_equal(maps.instances == 1, maps.labels == DOG)
    np.testing.assert_array_equal(maps.instances == 2, maps.labels == CAT)
    assert not (maps.labels[0] == maps.labels[1]).all() and (maps.instances == 2).any()


def test_of_two_things_of_a_class_the_later_is_on_top_and_a_crowd_has_no_number() -> None:
    labels = np.full((8, 10), CAT, np.uint8)
    labels[:2] = GRASS
    things = (
        region("cat", mask(8, 10, slice(0, 6), slice(0, 6))),  # reaches into the grass
        region("cat", mask(8, 10, slice(4, 8), slice(4, 8))),
        region("cat", mask(8, 10, slice(2, 8), slice(8, 10)), crowd=True),
        region("dog", mask(8, 10, slice(2, 4), slice(0, 2))),  # hidden by the cat
        Instance("cat", CAT + 1, (0, 0, 2, 2), None, 4.0, False),  # a box alone
    )
    _, instances = LabelReader(dataset_of(record := stuffed(labels, *things))).read(record)
    expected = np.zeros((8, 10), int)
    expected[2:6, 0:6] = 1
    expected[4:8, 4:8] = 2
    np.testing.assert_array_equal(instances, expected)


def test_stuff_without_a_map_is_painted_and_the_things_over_it() -> None:
    grass, cat = np.ones((6, 8), np.bool_), mask(6, 8, slice(2, 4), slice(2, 5))
    grass[0] = False
    other = region("other", cat, number=183)
    record = ImageRecord(3, Path("a.png"), 8, 6, instances=(region("cat", cat),), stuff=(region("grass", grass), other))
    reader = LabelReader(dataset_of(record))
    labels, instances = reader.read(record)
    assert reader.classes == LABELS and reader.dont_care == 182
    assert (labels[0] == 182).all() and (labels[cat] == CAT).all() and (labels[1:][~cat[1:]] == GRASS).all()
    np.testing.assert_array_equal(instances, cat.astype(int))


def test_panoptic_maps_go_by_coco_stuff_s_names() -> None:
    ids = np.array([[0, 5, 8, 70000], [300, 300, 6, 70000]], np.int32)
    segments = [
        (5, "cat", True, False),
        (6, "cat", True, True),
        (300, "grass-merged", False, False),
        (70000, "ceiling-merged", False, False),
        (8, "cat", True, False),
    ]
    reader = LabelReader(dataset_of(record := parted(ids, segments)))
    labels, instances = reader.read(record)
    ceiling = LABEL_OF["ceiling-other"]
    assert labels.tolist() == [[182, CAT, CAT, ceiling], [GRASS, GRASS, CAT, ceiling]]
    assert instances.tolist() == [[0, 1, 5, 0], [0, 0, 0, 0]]
    assert reader.stuff == tuple(label >= 91 for label in range(182))
    unlisted = replace(record, stuff=())  # the stuff file lists the picture and has no region of it
    np.testing.assert_array_equal(reader.read(unlisted)[0], labels)


def test_every_published_panoptic_class_has_a_name_of_coco_stuff(shared_data: Path) -> None:
    files = sorted((shared_data / "coco-mini" / "annotations").glob("panoptic_*.json"))
    names = {one["name"] for file in files for one in json.loads(file.read_text())["categories"]}
    assert len(names) == 133
    ids = np.array([[1]], np.int32)
    for name in names:
        reader = LabelReader(dataset_of(record := parted(ids, [(1, name, False, False)])))
        assert reader.classes == LABELS and reader.read(record)[0][0, 0] < 182, name


def test_the_split_s_own_names_and_those_of_training(tmp_path: Path) -> None:
    """COCO-Stuff's layout with another meaning, as the generated scenes have it."""
    labels = np.full((40, 40), 91, np.uint8)
    labels[:20, :20], labels[30:] = 4, UNLABELLED
    record = stuffed(labels, region("kite", labels == 4, number=5))
    record = ImageRecord(
        7,
        Path("a.png"),
        40,
        40,
        instances=record.instances,
        stuff=(region("meadow", labels == 91, number=92), region("other", labels == 4, number=183)),
        stuff_map=record.stuff_map,
    )
    own = stored_in(tmp_path, record)
    assert own.classes == ("kite", "meadow") and own.stuff == (False, True) and own.maps.dtype == np.uint8
    shown = own.take(np.array([0]))
    assert shown.labels[0, 0, 0] == 0 and shown.instances[0, 0, 0] == 1
    assert shown.labels[0, 20, 0] == 1 and shown.labels[0, -1, 0] == 2
    training = stored_in(tmp_path, record, classes=("desert", "meadow"))
    shown = training.take(np.array([0]))
    assert training.classes == ("desert", "meadow") and set(shown.labels.flatten().tolist()) == {1, 2}
    assert not shown.instances.any()  # what does not count has no number


def test_more_than_a_byte_holds(tmp_path: Path) -> None:
    labels = np.full((40, 40), CAT, np.uint8)
    cats = tuple(
        region("cat", mask(40, 40, slice(row, row + 2), slice(col, col + 2)))
        for row in range(0, 40, 2)
        for col in range(0, 40, 2)
    )
    found = stored_in(tmp_path, stuffed(labels, *cats))
    assert found.maps.dtype == np.uint16 and isinstance(found.maps, np.memmap)
    assert found.take(np.array([0])).instances.max() > 300


def test_a_stage_knows_what_it_depends_on() -> None:
    data, spade = dataset_of(stuffed(quarters(40, 40))), TRANSFORMS["spade"]
    stages = [
        label_maps_stage(data, spade, 32),
        label_maps_stage(data, spade, 64),
        label_maps_stage(data, TRANSFORMS["xmcgan"], 32),
        label_maps_stage(data, spade, 32, ["cat"]),
        label_maps_stage(dataset_of(*data.records, split="val"), spade, 32),
    ]
    assert len({stage.key for stage in stages}) == len(stages)
    assert {stage.name for stage in stages} == {"label-maps"} and stages[0].inputs == {"data": "d" * 64}


def test_pictures_whose_labels_are_not_known_are_refused(tmp_path: Path) -> None:
    bare = ImageRecord(5, Path("a.png"), 40, 40, instances=())
    assert refusal(lambda: stored_in(tmp_path, bare)) == (
        "image 5 has no labels: add its COCO-Stuff map, the stuff file of its split or its panoptic map, or leave the "
        "picture out."
    )
    labels = np.full((40, 40), 91, np.uint8)
    odd = stuffed(labels, region("kite", labels == 91, number=5))
    assert refusal(lambda: stored_in(tmp_path, odd)) == (
        "image 7: its label map shows category 92, which no annotation of the split names; add the category to its "
        "instances or stuff file, or fetch the map again."
    )
    assert refusal(lambda: stored_in(tmp_path, stuffed(labels), classes=["bear", "emu"])) == (
        "no picture of tiny (train) shows one of the 2 classes; name splits of one data set."
    )
    twice = (region("kite", labels == 91, number=5), region("bird", labels == 91, number=5))
    assert refusal(lambda: LabelReader(dataset_of(stuffed(labels, *twice)))) == (
        "tiny (train): category 5 is both 'kite' and 'bird'; give each a number of its own."
    )


def test_maps_and_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    small = ImageRecord(5, Path("a.png"), 50, 40, stuff_map=as_png(np.zeros((40, 40), np.uint8)))
    assert "is 40 x 40 px, but its image is annotated as 50 x 40 px" in refusal(lambda: stored_in(tmp_path, small))
    ids = parted(np.ones((4, 4), np.int32), [(1, "cat", True, False)])
    wide = ImageRecord(5, Path("a.png"), 50, 40, panoptic=ids.panoptic)
    assert "is 4 x 4 px, but its image is annotated as 50 x 40 px" in refusal(lambda: stored_in(tmp_path, wide))
    thing = region("cat", np.ones((4, 4), np.bool_))
    record = stuffed(np.full((40, 40), CAT, np.uint8), thing)
    assert "image 7: 'cat': the segmentation cannot be drawn: size is [4, 4]" in refusal(
        lambda: stored_in(tmp_path, record)
    )


def _described(**changes: Any) -> Callable[[Path], object]:
    whole = {"transform": "spade", "size": 32, "classes": ["a"], "stuff": [False]} | changes
    return lambda folder: (folder / "label_maps.json").write_text(json.dumps(whole), encoding="utf-8")


def _rewritten(name: str, array: NDArray[Any]) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / f"{name}.npy", array)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda folder: (folder / "label_maps.json").unlink(), "No such file"),
        (lambda folder: (folder / "label_maps.json").write_text("{"), "Expecting"),
        (lambda folder: (folder / "maps.npy").unlink(), "No such file"),
        (_described(stuff=[]), "1 classes and 0 kinds"),
        (_described(size=64), "smaller than 64 px"),
        (_described(transform="spad"), "perhaps 'spade' was meant"),
        (_rewritten("stored", np.array([[35, 35, 3]])), "stored has the shape (1, 3) and not (1, 2)"),
        (_rewritten("maps", np.zeros(9, np.uint8)), "maps is uint8 (9,) and not unsigned (2450,)"),
        (_rewritten("maps", np.zeros(2450, np.int64)), "maps is int64 (2450,) and not unsigned (2450,)"),
        (_rewritten("image_ids", np.full(1, {}, object)), "allow_pickle"),
    ],
)
def test_folders_that_hold_no_label_maps(tmp_path: Path, spoil: Callable[[Path], object], what: str) -> None:
    assert len(stored_in(tmp_path, stuffed(quarters(40, 40)))) == 1
    spoil(tmp_path)
    with pytest.raises(RequestError) as caught:
        open_label_maps(tmp_path)
    message = str(caught.value)
    assert what in message and "\n" not in message
    assert "perhaps" in message or message.startswith(f"label maps in {tmp_path} cannot be read (")


def test_generated_scenes_have_label_maps(tmp_path: Path) -> None:
    dataset = open_source("scenes:size=32,things=4,train=12,val=1,test=1", "train", tmp_path)
    found = open_label_maps(ensure(label_maps_stage(dataset, TRANSFORMS["spade"], 28), tmp_path / "stages"))
    maps = found.take(np.arange(12))
    stuff = np.array([*found.stuff, True])[maps.labels.numpy()]
    things = {name for name, kind in zip(found.classes, found.stuff, strict=True) if not kind}
    assert things <= {"house", "tree", "fish", "star"} and maps.labels.max() < len(found.classes)
    np.testing.assert_array_equal(maps.instances.numpy() > 0, ~stuff)
    assert found.image_ids.tolist() == [record.image_id for record in dataset.records]


def test_photographs_have_label_maps(shared_data: Path, tmp_path: Path) -> None:
    """COCO's maps and the panoptic ones: nearly every pixel is known, and no thing's number is in stuff."""
    for split, content in (("val", "stuff"), ("train", "panoptic")):
        dataset = open_source(f"coco:{shared_data / 'coco-mini'}", split, tmp_path).having({content})
        found = open_label_maps(ensure(label_maps_stage(dataset, TRANSFORMS["spade"], 64), tmp_path / "stages"))
        maps = found.take(np.arange(len(found)))
        assert found.classes == LABELS and len(found) == {"val": 2, "train": 26}[split]
        assert (maps.labels < 182).float().mean() > 0.9
        assert (maps.labels[maps.instances > 0] < 91).all() and (maps.instances > 0).any()
