"""The reader of Visual Genome, on folders in its published layout."""

import gc
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestration.data import visual_genome
from orchestration.data.problems import Findings, Kind
from orchestration.data.records import SceneGraph, SceneObject
from orchestration.data.scene_graphs import Aliases, read_aliases
from orchestration.data.visual_genome import (
    read_scene_graphs,
    read_visual_genome,
    read_visual_genome_sg2im,
    visual_genome_splits,
)
from tests.visual_genome_release import (
    JPEG,
    NAMES,
    Json,
    box_json,
    refusal,
    relationship_json,
    release_json,
    sentence,
    write_json,
    write_release,
)

# --- scene_graphs.json --------------------------------------------------------------------------------------------


def graphs_json() -> list[Json]:
    box = {"x": 1, "y": 2, "w": 3, "h": 4}
    return [
        {
            "image_id": 4,
            "objects": [
                {"object_id": 7, "names": ["cat", "animal"], "attributes": ["grey"], **box},
                {"object_id": 8, "names": ["mat"], "merged_object_ids": [80], **box},
                {"object_id": 9, "name": "rug", "attributes": None, **box, "w": 0},
            ],
            "relationships": [
                {"relationship_id": 1, "subject_id": 7, "predicate": "ON", "object_id": 80},
                {"relationship_id": 2, "subject_id": 7, "predicate": "near", "object_id": 999},
                {"relationship_id": 3, "subject_id": 998, "predicate": "near", "object_id": 7},
            ],
        }
    ]


def test_scene_graphs(tmp_path: Path) -> None:
    findings = Findings()
    graphs = read_scene_graphs(write_json(tmp_path / "scene_graphs.json", graphs_json()), findings)
    box = (1.0, 2.0, 3.0, 4.0)
    assert graphs == {
        4: SceneGraph(
            objects=(
                SceneObject(7, "cat", ("grey",), box, ("animal",)),
                SceneObject(8, "mat", (), box),
                SceneObject(9, "rug", (), (1.0, 2.0, 0.0, 4.0)),
            ),
            relationships=((7, "ON", 8),),
        )
    }
    assert graphs == read_scene_graphs(tmp_path / "scene_graphs.json")
    assert findings.counts == {Kind.GRAPH_STRANGER: 2, Kind.BOX_EMPTY: 1}
    said = " ".join(map(sentence, findings.examples[Kind.GRAPH_STRANGER]))
    assert "object 999 is not listed" in said and "object 998 is not listed" in said
    assert "object 9 of image 4 has a box of 0 x 4 px" in sentence(findings.examples[Kind.BOX_EMPTY][0])


@pytest.mark.parametrize(
    ("edit", "kind", "said"),
    [
        (lambda g: g.append(g[0]), Kind.DUPLICATE_ID, "lists image 4 twice"),
        (
            lambda g: g[0]["objects"].append(g[0]["objects"][0]),
            Kind.DUPLICATE_ID,
            "object 7 of image 4 is listed twice",
        ),
        (lambda g: g[0]["objects"][2].update(name=" "), Kind.ENTRY_BROKEN, "object 9 of image 4 has no name"),
        (lambda g: g[0]["objects"][2].pop("name"), Kind.ENTRY_BROKEN, "object 9 of image 4 has no name"),
        (
            lambda g: g[0]["objects"][2].pop("w"),
            Kind.ENTRY_BROKEN,
            "objects[2] of image 4 cannot be used: w is missing",
        ),
        (lambda g: g[0]["objects"][2].update(object_id=-1), Kind.ENTRY_BROKEN, "objects[2] of image 4 cannot be used"),
        (
            lambda g: g[0]["relationships"][1].pop("predicate"),
            Kind.ENTRY_BROKEN,
            "relationships[1] of image 4 cannot be used: predicate is missing",
        ),
        (lambda g: g[0].update(relationships=3), Kind.ENTRY_BROKEN, "relationships of image 4 cannot be used"),
        (lambda g: g.append({"image_id": 5}), Kind.ENTRY_BROKEN, "objects is missing"),
    ],
)
def test_wrong_scene_graphs_are_refused_or_left_out(
    tmp_path: Path, edit: Callable[[list[Json]], object], kind: Kind, said: str
) -> None:
    graphs = graphs_json()
    edit(graphs)
    file = write_json(tmp_path / "scene_graphs.json", graphs)
    message = refusal(lambda: read_scene_graphs(file))
    assert said in message and str(file) in message
    findings = Findings()
    (graph,) = read_scene_graphs(file, findings).values()
    assert [thing.name for thing in graph.objects][:2] == ["cat", "mat"]
    assert (findings.faults, findings.counts[kind]) == (1, 1)


def test_a_missing_file_of_scene_graphs_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(lambda: read_scene_graphs(tmp_path / "none.json"))
    assert read_scene_graphs(tmp_path / "none.json", findings := Findings()) == {}
    assert findings.counts == {Kind.FILE_BROKEN: 1}


# --- the release --------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_release(tmp_path / "vg")


def test_a_release_is_read_as_published(root: Path) -> None:
    assert visual_genome_splits(root) == ("train", "val", "test")
    findings = Findings()
    train = read_visual_genome(root, "train", findings)
    assert findings.counts == {}
    assert train == read_visual_genome(root, "train")
    assert (train.name, train.split, train.carries) == ("visual-genome", "train", frozenset({"images", "graph"}))
    second, first = train.records
    assert (second.image_id, second.file) == (2, root / "VG_100K/2.jpg")
    assert (first.image_id, first.file) == (1, root / "VG_100K_2/1.jpg")
    assert (first.width, first.height) == (800, 600)
    clock, street = (421.0, 91.0, 79.0, 339.0), (0.0, 200.0, 800.0, 400.0)
    assert first.graph == SceneGraph(
        (
            SceneObject(1058498, "clock", ("green", "tall"), clock, ("wall clock",)),
            SceneObject(1058508, "street", (), street),
        ),
        ((1058498, "ON", 1058508),),
    )
    assert second.graph is not None
    assert [thing.attributes for thing in second.graph.objects] == [(), ("wet",)]
    assert second.graph.relationships == ()


def test_pictures_without_objects_stay_and_are_remarked(root: Path) -> None:
    (val,) = read_visual_genome(root, "val", findings := Findings()).records
    assert val.graph == SceneGraph((), ())
    (test,) = read_visual_genome(root, "test", findings).records
    assert test.graph is None
    assert findings.counts == {Kind.IMAGE_WITHOUT_ANNOTATION: 2}
    assert "no object of image 2407890" in sentence(findings.examples[Kind.IMAGE_WITHOUT_ANNOTATION][1])
    assert read_visual_genome(root, "test").carries == {"images"}


def test_pictures_are_found_in_either_folder(root: Path) -> None:
    (root / "VG_100K_2/1.jpg").rename(root / "VG_100K/1.jpg")
    assert read_visual_genome(root, "train").records[1].file == root / "VG_100K/1.jpg"


def test_a_picture_that_no_file_lists_is_a_remark(root: Path) -> None:
    (root / "VG_100K/77.jpg").write_bytes(JPEG)
    assert len(read_visual_genome(root, "train", findings := Findings()).records) == 2
    assert findings.counts == {Kind.UNLISTED_PICTURE: 1}
    assert "77.jpg is not in image_data.json" in sentence(findings.examples[Kind.UNLISTED_PICTURE][0])


def test_the_digest_is_of_the_content_not_of_the_place(root: Path, tmp_path: Path) -> None:
    digest = read_visual_genome(root, "train").digest
    moved = write_release(tmp_path / "elsewhere")
    assert read_visual_genome(moved, "train").digest == digest
    assert read_visual_genome(moved, "val").digest != digest
    content = release_json()
    content["attributes"][0]["attributes"][0]["attributes"] = ["red"]
    assert read_visual_genome(write_release(tmp_path / "other", content), "train").digest != digest
    (moved / "VG_100K/2.jpg").write_bytes(JPEG + b"\0")
    assert read_visual_genome(moved, "train").digest != digest
    (root / "object_alias.txt").write_text("clock,timepiece\n")
    assert read_visual_genome(root, "train").digest != digest


def test_the_seeded_split_depends_on_the_id_alone(tmp_path: Path) -> None:
    splits = visual_genome._seeded_splits(range(1, 20001))
    assert {name: round(len(ids) / 20000, 2) for name, ids in splits.items()} == {"train": 0.8, "val": 0.1, "test": 0.1}
    assert sorted(id for ids in splits.values() for id in ids) == list(range(1, 20001))
    # Written down: another split on the next release would leak test pictures into training.
    assert (splits["val"][:5], splits["test"][:5]) == (PINNED_VAL, PINNED_TEST)
    assert visual_genome._seeded_splits([splits["val"][3], splits["train"][7]]) == {
        "train": [splits["train"][7]],
        "val": [splits["val"][3]],
        "test": [],
    }
    content = release_json()
    content["image_data"] = [{**content["image_data"][0], "image_id": id} for id in (1, PINNED_TEST[0])]
    content |= {"objects": [], "attributes": [], "relationships": []}
    root = write_release(tmp_path / "unsplit", content, splits=None)
    assert visual_genome_splits(root) == ("train", "test")
    assert [record.image_id for record in read_visual_genome(root, "test").records] == PINNED_TEST[:1]
    assert "no picture in split 'val' (found: train, test)" in refusal(lambda: read_visual_genome(root, "val"))


PINNED_VAL = [3, 38, 51, 56, 59]
PINNED_TEST = [7, 10, 12, 16, 24]


def test_remarks_leave_the_graph_as_published(tmp_path: Path) -> None:
    content = release_json()
    clock, street = content["objects"][1]["objects"]
    clock.update(w=0)
    street.update(x=-3)
    stranger = box_json(77, ["ghost"], (0, 0, 1, 1))
    content["attributes"][1]["attributes"].append({**stranger, "attributes": ["pale"]})
    merged = {**clock, "object_id": 5046}
    content["relationships"].append(
        {
            "image_id": 2,
            "relationships": [
                relationship_json(1, clock, "near", stranger),
                relationship_json(2, stranger, "near", clock),
                relationship_json(3, merged, "above", street),
            ],
        }
    )
    root = write_release(tmp_path / "vg", content)
    (record, _) = read_visual_genome(root, "train", findings := Findings()).records
    assert record.graph is not None
    assert [thing.box[:3] for thing in record.graph.objects] == [(421.0, 91.0, 0.0), (-3.0, 200.0, 800.0)]
    assert record.graph.relationships == ((1058498, "above", 1058508),)
    assert findings.counts == {Kind.BOX_EMPTY: 1, Kind.BOX_OUTSIDE: 1, Kind.GRAPH_STRANGER: 3}
    assert findings.faults == 0
    assert "object 1058498 of image 2 has a box of 0 x 339 px" in sentence(findings.examples[Kind.BOX_EMPTY][0])
    assert "object 1058508 of image 2 has a box beyond its 800 x 600 px" in findings.examples[Kind.BOX_OUTSIDE][0]
    strangers = list(map(sentence, findings.examples[Kind.GRAPH_STRANGER]))
    assert "object 77 of image 2 has attributes and is not listed" in strangers[0]
    assert "relationship 1058498 'near' 77 of image 2 is left out: object 77 is not listed" in strangers[1]


@pytest.mark.parametrize(
    ("box", "outside"),
    [((-1, -1, 802, 602), 0), ((2, 0, 800, 9), 1), ((0, 2, 9, 600), 1), ((-2, 0, 9, 9), 1), ((0, -2, 9, 9), 1)],
)
def test_a_box_is_outside_when_it_is_more_than_a_pixel_over(
    tmp_path: Path, box: tuple[int, int, int, int], outside: int
) -> None:
    content = release_json()
    content["objects"][1]["objects"][0].update(dict(zip("xywh", box, strict=True)))
    read_visual_genome(write_release(tmp_path / "vg", content), "train", findings := Findings())
    assert findings.counts.get(Kind.BOX_OUTSIDE, 0) == outside


def test_attributes_given_in_two_entries_of_one_object_are_joined(tmp_path: Path) -> None:
    content = release_json()
    content["attributes"][1]["attributes"].append({"object_id": 1058508, "attributes": ["long"]})
    (record, _) = read_visual_genome(write_release(tmp_path / "vg", content), "train").records
    assert record.graph is not None and record.graph.objects[1].attributes == ("wet", "long")


def test_reading_leaves_garbage_collection_as_it_was(root: Path) -> None:
    assert gc.isenabled()
    read_visual_genome(root, "train")
    assert gc.isenabled()
    write_json(root / "objects.json", {})
    refusal(lambda: read_visual_genome(root, "train"))
    assert gc.isenabled()


# --- aliases, and the filtered format -----------------------------------------------------------------------------


def test_aliases(root: Path) -> None:
    assert read_aliases(root) == Aliases()
    (root / "object_alias.txt").write_text("clock, timepiece ,wall clock\n\nstreet,road\nman,timepiece,,\n")
    (root / "relationship_alias.txt").write_bytes("on,ON\n,of\nà,a\n".encode())
    aliases = read_aliases(root)
    assert aliases.objects == {
        "clock": "clock",
        "timepiece": "man",
        "wall clock": "clock",
        "street": "street",
        "road": "street",
        "man": "man",
    }
    assert aliases.relationships == {"on": "on", "ON": "on", "à": "à", "a": "à"}
    (root / "object_alias.txt").write_bytes(b"clock,\xff\n")
    assert "object_alias.txt cannot be used as aliases: byte 6 is not UTF-8" in refusal(lambda: read_aliases(root))
    assert read_aliases(root, findings := Findings()).objects == {}
    assert findings.counts == {Kind.FILE_BROKEN: 1}


def many_pictures(count: int) -> dict[str, Json]:
    """Pictures with a man, a hat and a horse each; names and predicates in two spellings."""
    content: dict[str, Json] = {name: [] for name in NAMES}
    for i in range(1, count + 1):
        man, hat, horse, dot = (
            box_json(10 * i + place, [name], (20 * place, 10, width, 40))
            for place, (name, width) in enumerate((("man", 100), ("hat", 32), ("pony", 200), ("man", 31)))
        )
        content["image_data"].append({"image_id": i, "width": 800, "height": 200, "url": None})
        content["objects"].append({"image_id": i, "objects": [man, hat, horse, dot]})
        content["attributes"].append({"image_id": i, "attributes": [{**hat, "attributes": ["red"]}]})
        predicate = "wears" if i % 2 else "wearing"
        content["relationships"].append({"image_id": i, "relationships": [relationship_json(i, man, predicate, hat)]})
    return content


def test_the_filtered_format_counts_names_over_the_train_split(tmp_path: Path) -> None:
    content = many_pictures(2002)
    splits = {"train": list(range(1, 2001)), "val": [2001], "test": [2002]}
    root = write_release(tmp_path / "vg", content, splits)
    (root / "object_alias.txt").write_text("horse,pony\n")
    (root / "relationship_alias.txt").write_text("wears,wearing\n")
    (record,) = read_visual_genome_sg2im(root, "test").records
    assert record.graph is not None
    assert [(thing.name, thing.attributes) for thing in record.graph.objects] == [
        ("man", ()),
        ("hat", ("red",)),
        ("horse", ()),
    ]
    assert record.graph.relationships == ((20020, "wears", 20021),)
    assert len(read_visual_genome_sg2im(root, "train").records) == 2000
    test = read_visual_genome_sg2im(root, "test")
    assert test.name == "visual-genome-sg2im"
    # Pictures that are missing change no vocabulary: it is the annotations' alone.
    (root / "VG_100K_2/7.jpg").unlink()
    assert read_visual_genome_sg2im(root, "test") == test
    assert "lacks 1 of the 2000" in refusal(lambda: read_visual_genome_sg2im(root, "train"))
    # One hat fewer among the train pictures, and it is no word any more: too few objects are left.
    content["objects"][0]["objects"][1]["names"] = ["cap"]
    write_json(root / "objects.json", content["objects"])
    assert "passes sg2im's filter" in refusal(lambda: read_visual_genome_sg2im(root, "test"))


def test_a_small_folder_is_refused_by_the_filtered_format(root: Path) -> None:
    message = refusal(lambda: read_visual_genome_sg2im(root, "train"))
    assert re.search(r"no picture of the 2 in .* \(train\) passes sg2im's filter: .*2000 of each", message)
