"""The generated data set: its layouts load, its words are true of its pixels, and it appears whole or not at all."""

import errno
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from orchestration.data.coco import read_coco
from orchestration.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    THINGS,
    ScenesOptions,
    contact_sheet,
    folder_name,
    generate,
    parse_options,
)
from orchestration.data.scenes.compose import Placed, Scene, compose, split_triples
from orchestration.data.scenes.draw import draw
from orchestration.data.scenes.geometry import relation
from orchestration.data.scenes.vocabulary import OTHER_ID, stuff_id
from orchestration.errors import RequestError, RunError
from orchestration.listing import SCENES_CARRY

SPLITS = ("train", "val", "test")
SMALL = ScenesOptions(size=32, things=6, colours=5, backgrounds=4, objects=4, train=50, val=20, test=24)
FULL = ScenesOptions(size=64, objects=3, train=60, val=4, test=30, seed=7)
TINY = ScenesOptions(size=32, train=3, val=2, test=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module", params=[SMALL, FULL], ids=["small", "full"])
def made(request: pytest.FixtureRequest, root: Path) -> tuple[ScenesOptions, Path]:
    return request.param, generate(request.param, root)


def annotations(folder: Path, name: str) -> Any:
    return json.loads((folder / "annotations" / name).read_text())


def narratives(folder: Path, split: str) -> list[Any]:
    file = folder / "annotations" / f"scenes_{split}_localized_narratives.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def pixels(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as picture:
        return np.asarray(picture)


def captions_of(folder: Path, split: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for entry in annotations(folder, f"captions_{split}2017.json")["annotations"]:
        found[entry["image_id"]].append(entry["caption"])
    return found


def main_triple(graph: Any) -> tuple[str, str, str]:
    main, stuff = graph["objects"][0], graph["objects"][-1]
    return main["names"][0], main["attributes"][0], stuff["names"][0]


# The same options, the same bytes.


def test_the_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = generate(SMALL, tmp_path / "one"), generate(SMALL, tmp_path / "other")
    assert one.name == other.name == folder_name(SMALL)
    assert digests(one) == digests(other)
    assert len(digests(one)) == 2 * (50 + 20 + 24) + 3 * 5 + 1
    other_seed = generate(SMALL.model_copy(update={"seed": 1}), tmp_path / "one")
    assert not set(digests(one).values()) & set(digests(other_seed).values())


def test_compositions_stay_as_they_are() -> None:
    """Where this fails on purpose, raise VERSION: users have data sets of the old one on their disks."""
    seen, _ = split_triples(FULL)
    scenes = [compose(Random(f"pinned {k}"), FULL, seen[37 * k], frozenset()) for k in range(24)]
    written = repr(
        [(s.background, s.texture, [(p.thing, p.colour, *p.box, p.turn, p.mirror) for p in s.objects]) for s in scenes]
    )
    assert hashlib.sha256(written.encode()).hexdigest()[:16] == "c94047caa7fa8072"


def test_a_scene_is_the_same_in_every_size(tmp_path: Path) -> None:
    small, large = (generate(TINY.model_copy(update={"size": size}), tmp_path) for size in (32, 128))
    for split in SPLITS:
        graphs = [annotations(folder, f"scene_graphs_{split}2017.json") for folder in (small, large)]
        for one, other in zip(*graphs, strict=True):
            assert [o["names"] + o["attributes"] for o in one["objects"]] == [
                o["names"] + o["attributes"] for o in other["objects"]
            ]


# The layouts.


def test_pictures_are_square_rgb_png(made: tuple[ScenesOptions, Path]) -> None:
    options, folder = made
    for split in SPLITS:
        files = sorted((folder / f"{split}2017").iterdir())
        assert len(files) == getattr(options, split)
        for file in files:
            with Image.open(file) as picture:
                assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (options.size, options.size))


def test_masks_boxes_areas_and_stuff_maps_agree(made: tuple[ScenesOptions, Path]) -> None:
    options, folder = made
    for split in SPLITS:
        things = COCO(str(folder / "annotations" / f"instances_{split}2017.json"))
        stuff = COCO(str(folder / "annotations" / f"stuff_{split}2017.json"))
        assert len(things.getImgIds()) == getattr(options, split)
        for image_id in things.getImgIds():
            expected = np.full((options.size, options.size), 255, dtype=np.uint8)
            entries = things.loadAnns(things.getAnnIds(imgIds=image_id)) + [
                entry for entry in stuff.loadAnns(stuff.getAnnIds(imgIds=image_id)) if entry["category_id"] != OTHER_ID
            ]
            for entry in entries:
                mask = things.annToMask(entry).astype(bool)
                ys, xs = np.nonzero(mask)
                assert entry["area"] == mask.sum() >= 12
                assert entry["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert (expected[mask] == 255).all(), "two masks share a pixel"
                expected[mask] = entry["category_id"] - 1
            name = things.loadImgs(image_id)[0]["file_name"]
            with Image.open(folder / "stuffthingmaps" / f"{split}2017" / name) as stuff_map:
                assert stuff_map.mode == "L"
            np.testing.assert_array_equal(pixels(folder / "stuffthingmaps" / f"{split}2017" / name), expected)


def test_the_other_category_covers_the_things(made: tuple[ScenesOptions, Path]) -> None:
    _, folder = made
    stuff = COCO(str(folder / "annotations" / "stuff_val2017.json"))
    stuff_ids = [*(stuff_id(index) for index in range(made[0].backgrounds)), OTHER_ID]
    assert [c["id"] for c in stuff.loadCats(stuff.getCatIds())] == stuff_ids
    assert min(stuff_ids) == 92
    for image_id in stuff.getImgIds():
        covered = sum(stuff.annToMask(entry).astype(int) for entry in stuff.loadAnns(stuff.getAnnIds(imgIds=image_id)))
        assert (covered == 1).all()


def test_ids_are_unique_over_all_splits(made: tuple[ScenesOptions, Path]) -> None:
    _, folder = made
    images: list[int] = []
    for kind in ("captions", "instances", "stuff"):
        ids = [e["id"] for split in SPLITS for e in annotations(folder, f"{kind}_{split}2017.json")["annotations"]]
        assert len(set(ids)) == len(ids)
    for split in SPLITS:
        images += [e["id"] for e in annotations(folder, f"captions_{split}2017.json")["images"]]
    assert images == list(range(1, len(images) + 1))


def test_the_main_object_is_first_and_largest(made: tuple[ScenesOptions, Path]) -> None:
    _, folder = made
    for split in SPLITS:
        things = COCO(str(folder / "annotations" / f"instances_{split}2017.json"))
        for graph in annotations(folder, f"scene_graphs_{split}2017.json"):
            entries = things.loadAnns(things.getAnnIds(imgIds=graph["image_id"]))
            names = [things.loadCats(entry["category_id"])[0]["name"] for entry in entries]
            assert names == [o["names"][0] for o in graph["objects"][:-1]]
            assert [e["bbox"] for e in entries] == [[o[k] for k in "xywh"] for o in graph["objects"][:-1]]
            for other in entries[1:]:
                assert other["area"] < entries[0]["area"]
                assert other["bbox"][2] * other["bbox"][3] < entries[0]["bbox"][2] * entries[0]["bbox"][3]


def test_a_lone_object_is_big(tmp_path: Path) -> None:
    folder = generate(ScenesOptions(size=32, objects=1, train=120, val=1, test=1), tmp_path)
    for graph in annotations(folder, "scene_graphs_train2017.json"):
        main, _ = graph["objects"]
        assert min(main["w"], main["h"]) >= 0.44 * 32
        assert max(main["w"], main["h"]) >= 0.66 * 32


def test_relationships_hold_between_the_boxes(made: tuple[ScenesOptions, Path]) -> None:
    _, folder = made
    told = set()
    for graph in annotations(folder, "scene_graphs_train2017.json"):
        boxes = {o["object_id"]: tuple(o[k] for k in "xywh") for o in graph["objects"]}
        pairs = len(boxes) * (len(boxes) - 1) // 2
        assert len(graph["relationships"]) == pairs
        for link in graph["relationships"]:
            subject, other = boxes[link["subject_id"]], boxes[link["object_id"]]
            assert link["predicate"] == relation(subject, other)
            told.add(link["predicate"])
    assert told == set(RELATIONS)


@pytest.mark.parametrize(
    ("subject", "other", "expected"),
    [
        ((0, 0, 4, 4), (10, 1, 4, 4), "left of"),
        ((10, 1, 4, 4), (0, 0, 4, 4), "right of"),
        ((1, 0, 4, 4), (0, 10, 4, 4), "above"),
        ((0, 10, 4, 4), (1, 0, 4, 4), "below"),
        ((2, 2, 4, 4), (0, 0, 9, 9), "inside"),
        ((0, 0, 9, 9), (2, 2, 4, 4), "surrounding"),
        ((0, 0, 4, 4), (0, 0, 9, 9), "left of"),  # touches the border: not inside; at 45 degrees, sideways
    ],
)
def test_the_six_relations(subject: Any, other: Any, expected: str) -> None:
    assert relation(subject, other) == expected


def test_our_own_readers_read_it(made: tuple[ScenesOptions, Path]) -> None:
    options, folder = made
    for split in SPLITS:
        data = read_coco(folder, split)
        assert data.carries == SCENES_CARRY
        assert len(data.records) == getattr(options, split)
        assert all(len(record.captions or ()) == 5 and len(record.narratives or ()) == 1 for record in data.records)


# The words.


def test_five_captions_name_colour_thing_and_background(made: tuple[ScenesOptions, Path]) -> None:
    _, folder = made
    mention_others = 0
    for split in SPLITS:
        captions = captions_of(folder, split)
        for graph in annotations(folder, f"scene_graphs_{split}2017.json"):
            texts = captions[graph["image_id"]]
            assert len(texts) == len(set(texts)) == 5
            for text in texts:
                words = text.lower()
                assert all(part in words for part in main_triple(graph)), text
                assert words.count(" a orange") == 0
                others = [f"{o['attributes'][0]} {o['names'][0]}" for o in graph["objects"][1:-1]]
                mention_others += any(other in words for other in others)
    assert mention_others > 20


def test_the_mouse_shows_what_is_said(made: tuple[ScenesOptions, Path]) -> None:
    options, folder = made
    side = options.size
    for split in SPLITS:
        things = COCO(str(folder / "annotations" / f"instances_{split}2017.json"))
        stuff = COCO(str(folder / "annotations" / f"stuff_{split}2017.json"))
        for graph, told in zip(
            annotations(folder, f"scene_graphs_{split}2017.json"), narratives(folder, split), strict=True
        ):
            assert told["dataset_id"] == f"scenes_{split}2017"
            image_id = graph["image_id"]
            assert told["image_id"] == str(image_id)
            masks = [things.annToMask(e) for e in things.loadAnns(things.getAnnIds(imgIds=image_id))]
            masks.append(stuff.annToMask(stuff.loadAnns(stuff.getAnnIds(imgIds=image_id))[0]))
            names = [f"{o['attributes'][0]} {o['names'][0]}" for o in graph["objects"][:-1]]
            names.append(graph["objects"][-1]["names"][0])
            points = [point for trace in told["traces"] for point in trace]
            shown = 0
            for name, mask in zip(names, masks, strict=True):
                (phrase,) = (u for u in told["timed_caption"] if name in u["utterance"])
                during = [p for p in points if phrase["start_time"] <= p["t"] <= phrase["end_time"]]
                assert len(during) >= 3
                assert all(mask[int(p["y"] * side), int(p["x"] * side)] for p in during), (image_id, name)
                shown += len(during)
            assert shown == len(points), "the mouse moves while nothing is named"


def test_times_increase(made: tuple[ScenesOptions, Path]) -> None:
    _, folder = made
    for told in narratives(folder, "train"):
        edges = [t for u in told["timed_caption"] for t in (u["start_time"], u["end_time"])]
        assert edges[0] > 0 and all(a < b for a, b in pairwise(edges))
        times = [point["t"] for trace in told["traces"] for point in trace]
        assert all(a < b for a, b in pairwise(times))
        assert told["caption"] == " ".join(u["utterance"] for u in told["timed_caption"])


# The splits.


def test_no_picture_and_no_composition_is_in_two_places(made: tuple[ScenesOptions, Path]) -> None:
    options, folder = made
    total = options.train + options.val + options.test
    pictures = {pixels(file).tobytes() for split in SPLITS for file in (folder / f"{split}2017").iterdir()}
    assert len(pictures) == total
    compositions = {
        json.dumps([[o["names"], o["attributes"], o["x"], o["y"], o["w"], o["h"]] for o in graph["objects"]])
        for split in ("train", "val")
        for graph in annotations(folder, f"scene_graphs_{split}2017.json")
    }
    assert len(compositions) >= 0.95 * (options.train + options.val)  # a turn may leave the boxes as they are


def test_unseen_compositions_are_only_in_the_test_split(made: tuple[ScenesOptions, Path]) -> None:
    options, folder = made
    held_out = {tuple(triple) for triple in json.loads((folder / "scenes.json").read_text())["held_out"]}
    triples = options.things * options.colours * options.backgrounds
    assert 0.03 * triples <= len(held_out) <= 0.06 * triples
    for split in ("train", "val"):
        for graph in annotations(folder, f"scene_graphs_{split}2017.json"):
            stuff = graph["objects"][-1]["names"][0]
            assert not {(o["names"][0], o["attributes"][0], stuff) for o in graph["objects"][:-1]} & held_out
    test = [main_triple(graph) in held_out for graph in annotations(folder, "scene_graphs_test2017.json")]
    assert sum(test) == len(test) // 2


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 16), st.integers(2, 10), st.integers(2, 8), st.integers(0, 99))
def test_every_pair_of_a_held_out_triple_is_still_seen(things: int, colours: int, backgrounds: int, seed: int) -> None:
    seen, held_out = split_triples(ScenesOptions(things=things, colours=colours, backgrounds=backgrounds, seed=seed))
    assert held_out and not set(seen) & set(held_out)
    assert len(seen) + len(held_out) == things * colours * backgrounds
    for thing, colour, background in held_out:
        assert any((t, c) == (thing, colour) for t, c, _ in seen)
        assert any((t, b) == (thing, background) for t, _, b in seen)
        assert any((c, b) == (colour, background) for _, c, b in seen)


# What it looks like.


def alone(thing: int, colour: int = 0, background: int = 0) -> Scene:
    return Scene(background, 1, (Placed(thing, colour, 512, 512, 820, 0, False),))


def test_nothing_lies_over_the_main_object_and_it_hides_others() -> None:
    seen, _ = split_triples(FULL)
    hidden = 0
    for k in range(40):
        drawing = draw(compose(Random(f"order {k}"), FULL, seen[k], frozenset()), 64)
        visible_pixels = [int((drawing.labels == label).sum()) for label in range(1, len(drawing.areas) + 1)]
        assert visible_pixels[0] == drawing.areas[0]
        hidden += sum(shown < whole for shown, whole in zip(visible_pixels, drawing.areas, strict=True))
    assert hidden > 5


def test_silhouettes_differ() -> None:
    masks = [draw(alone(thing), 32).labels > 0 for thing in range(len(THINGS))]
    for a in range(len(masks)):
        for b in range(a):
            shared = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
            assert shared < 0.9, (THINGS[a].name, THINGS[b].name)


def test_backgrounds_and_colours_differ() -> None:
    """Mean colours of every two backgrounds, and of one thing in every two colours, are apart."""
    fields, bodies = [], []
    for background in range(len(BACKGROUNDS)):
        drawing = draw(alone(0, background=background), 32)
        fields.append(np.asarray(drawing.image)[drawing.labels == 0].mean(axis=0))
    for colour in range(len(COLOURS)):
        drawing = draw(alone(2, colour), 32)
        bodies.append(np.asarray(drawing.image)[drawing.labels == 1].mean(axis=0))
    for group in (fields, bodies):
        for a in range(len(group)):
            for b in range(a):
                assert np.linalg.norm(group[a] - group[b]) > 20, (a, b)


def test_every_object_stands_out_from_every_background() -> None:
    """The upper rim of a thing differs from the pixels just above it, whatever the colours."""
    for background in range(len(BACKGROUNDS)):
        for colour in range(len(COLOURS)):
            drawing = draw(alone(3, colour, background), 64)
            inside = drawing.labels == 1
            picture = np.asarray(drawing.image).astype(int)
            top = inside[1:] & ~inside[:-1]
            contrast = np.linalg.norm(picture[1:][top].mean(axis=0) - picture[:-1][top].mean(axis=0))
            assert contrast > 25, (BACKGROUNDS[background].name, COLOURS[colour].name)


def test_contact_sheet(root: Path) -> None:
    sheet = contact_sheet(generate(SMALL, root), "train", 2, 3)
    assert sheet.size == (600, 472)
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 100


# The options.


def options_text(draw_from: Any) -> tuple[str, ScenesOptions]:
    values = {}
    for name, field in ScenesOptions.model_json_schema()["properties"].items():
        if draw_from(st.booleans()):
            values[name] = draw_from(st.integers(field["minimum"], field["maximum"]))
    spaces = st.sampled_from(["", " ", "\t", "  "])
    names = draw_from(st.permutations(list(values)))
    pieces = [
        f"{draw_from(spaces)}{name}{draw_from(spaces)}={draw_from(spaces)}{values[name]}{draw_from(spaces)}"
        for name in names
    ]
    return ",".join(pieces), ScenesOptions(**values)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_written_options_are_read_back(data: Any) -> None:
    text, options = options_text(data.draw)
    assert parse_options(text) == options


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(max_size=30), st.text(alphabet="sizethngcolour=,0123456789 -+", max_size=30)))
def test_any_other_text_is_refused_in_one_sentence(text: str) -> None:
    try:
        options = parse_options(text)
    except RequestError as error:
        assert "\n" not in str(error) and str(error).endswith((".", "?"))
    else:
        assert isinstance(options, ScenesOptions)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thing=6", "scenes has no option 'thing'; did you mean things"),
        ("sized=32", "did you mean size"),
        ("zzz=1", "the options are size, things, colours"),
        ("size=300", "scenes option 'size' is '300'; write a whole number from 32 to 256"),
        ("size=31", "from 32 to 256"),
        ("things=six", "'six'; write a whole number from 2 to 16"),
        ("seed=-1", "from 0 to"),
        ("size=" + "9" * 5000, "from 32 to 256"),
        ("size=３２", "from 32 to 256"),
        ("size", "is not of the form name=number"),
        ("size=32,", "is not of the form name=number"),
        ("=32", "is not of the form name=number"),
        ("size=32, size=64", "is given twice"),
    ],
)
def test_wrong_options_name_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_options(text)
    assert words in str(caught.value)


# Whole or not at all.


def visible(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if not file.name.endswith(".lock")]


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    generate(TINY, tmp_path, lambda done, total: told.append((done, total)))
    assert told == [(k, 7) for k in range(1, 8)]


def test_an_existing_folder_is_used_as_it_is(tmp_path: Path) -> None:
    folder = generate(TINY, tmp_path)
    (folder / "mark").touch()

    def fail(done: int, total: int) -> None:
        raise AssertionError(f"generated again: {done} of {total}")

    assert generate(TINY, tmp_path, fail) == folder
    assert (folder / "mark").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, stop: BaseException) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise stop

    with pytest.raises((KeyboardInterrupt, RunError)) as caught:
        generate(TINY, tmp_path, interrupt)
    assert visible(tmp_path) == []
    if isinstance(stop, OSError):
        assert str(tmp_path / folder_name(TINY)) in str(caught.value)
        assert "No space left on device" in str(caught.value)
    assert (generate(TINY, tmp_path) / "scenes.json").is_file()


def damage_manifest(folder: Path) -> None:
    (folder / "scenes.json").write_text('{"version": 1')


def other_version(folder: Path) -> None:
    manifest = json.loads((folder / "scenes.json").read_text())
    (folder / "scenes.json").write_text(json.dumps({**manifest, "version": 0}))


def killed_while_writing(folder: Path) -> None:
    """What a killed process leaves: its hidden sibling, here with a manifest that looks whole."""
    folder.rename(folder.with_name(f".{folder.name}.partial"))
    (folder.with_name(f".{folder.name}.partial") / "train2017" / "000000000002.png").unlink()


@pytest.mark.parametrize(
    "damage", [damage_manifest, other_version, killed_while_writing, lambda folder: (folder / "scenes.json").unlink()]
)
def test_a_half_written_folder_is_not_taken_for_complete(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    expected = digests(generate(TINY, tmp_path / "whole"))
    damage(generate(TINY, tmp_path / "half"))
    assert digests(generate(TINY, tmp_path / "half")) == expected
    assert visible(tmp_path / "half") == [folder_name(TINY)]


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_500_000))
    with pytest.raises(RunError, match=r"scenes-v\d+-[0-9a-f]{12} needs about \d+ MB and only 1 MB are free"):
        generate(FULL, tmp_path)
    assert visible(tmp_path) == []


def test_the_needed_size_is_no_understatement(
    made: tuple[ScenesOptions, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, folder = made
    used = sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.rglob("*") if file.is_file())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": used - 1})())
    with pytest.raises(RunError):
        generate(options, folder / "elsewhere")


def test_two_at_once_generate_once(tmp_path: Path) -> None:
    told: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: generate(TINY, tmp_path, lambda done, _: told.append(done)), range(2)))
    assert len(folders) == 1
    assert told == list(range(1, 8))
