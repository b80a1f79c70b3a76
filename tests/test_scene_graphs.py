"""Scene graphs as sg2im prepares them: Visual Genome's filter, and graphs of COCO's boxes."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestration.data.records import (
    Box,
    Dataset,
    ImageRecord,
    Instance,
    Panoptic,
    PanopticSegment,
    SceneGraph,
    SceneObject,
    carried,
)
from orchestration.data.scene_graphs import (
    RELATIONS,
    Aliases,
    CocoGraphOptions,
    GraphVocabulary,
    Sg2imOptions,
    coco_graph,
    coco_regions,
    filter_graphs,
    graph_sentence,
    own_val_and_test,
    sg2im_filter,
    sg2im_vocabulary,
    spatial_relation,
    with_coco_graphs,
)
from orchestration.errors import RequestError

Link = tuple[int, str, int]


def dataset(*records: ImageRecord, split: str = "train") -> Dataset:
    return Dataset("visual-genome", split, Path("vg"), records, carried(records), "0" * 64)


def thing(
    object_id: int,
    name: str,
    *,
    box: Box = (0, 0, 40, 40),
    attributes: tuple[str, ...] = (),
    other_names: tuple[str, ...] = (),
) -> SceneObject:
    return SceneObject(object_id, name, attributes, box, other_names)


def picture(
    image_id: int, objects: tuple[SceneObject, ...], links: tuple[Link, ...] = (), size: tuple[int, int] = (300, 300)
) -> ImageRecord:
    return ImageRecord(image_id, Path(f"{image_id}.jpg"), *size, graph=SceneGraph(objects, links))


LAX = Sg2imOptions(1, 1, 1, 0, 0, (0, 99), (0, 99), None)
"""No rule bites; each test tightens one."""


def names(data: Dataset) -> list[list[str]]:
    return [[thing.name for thing in record.graph.objects] for record in data.records if record.graph is not None]


def links(data: Dataset) -> list[tuple[Link, ...]]:
    return [record.graph.relationships for record in data.records if record.graph is not None]


# --- the filter of Visual Genome ----------------------------------------------------------------------------------


def test_the_limits_are_the_published_ones() -> None:
    assert Sg2imOptions() == Sg2imOptions(
        min_object_count=2000,
        min_attribute_count=2000,
        min_relationship_count=500,
        min_object_px=32,
        min_picture_px=200,
        objects_per_picture=(3, 30),
        relationships_per_picture=(1, 30),
        max_objects=10,
    )


def test_objects_with_a_rare_name_go_and_take_their_relationships_along() -> None:
    train = dataset(
        picture(1, (thing(1, "man"), thing(2, "hat")), ((1, "wears", 2),)),
        picture(2, (thing(1, "man"), thing(2, "dog"), thing(3, "man")), ((1, "has", 2), (1, "near", 3))),
    )
    lax = sg2im_filter(train, train, LAX)
    assert lax.records == train.records
    kept = sg2im_filter(train, train, replace(LAX, min_object_count=2))
    assert names(kept) == [["man"], ["man", "man"]]
    assert links(kept) == [(), ((1, "near", 3),)]


def test_names_are_counted_in_the_train_split_alone() -> None:
    train = dataset(picture(1, (thing(1, "man"),)))
    val = dataset(picture(2, (thing(1, "man"), thing(2, "dog"), thing(3, "dog"))), split="val")
    assert names(sg2im_filter(train, val, LAX)) == [["man"]]
    assert sg2im_filter(train, val, LAX).split == "val"


def test_aliases_join_spellings_before_they_are_counted() -> None:
    data = dataset(picture(1, (thing(1, "man"), thing(2, "guy"), thing(3, "Man")), ((1, "on", 2), (2, "ON", 1))))
    options = replace(LAX, min_object_count=2, min_relationship_count=2)
    aliases = Aliases({"guy": "man", "man": "man"}, {"ON": "on"})
    kept = sg2im_filter(data, data, options, aliases)
    assert names(kept) == [["man", "man"]]
    assert links(kept) == [((1, "on", 2), (2, "on", 1))]
    with pytest.raises(RequestError):
        sg2im_filter(data, data, replace(options, objects_per_picture=(1, 9)))
    vocabulary = sg2im_vocabulary(data.records, options, aliases)
    assert vocabulary == GraphVocabulary(("man",), (), ("on",))
    without = sg2im_vocabulary(data.records, options, Aliases({"guy": "man"}))
    assert without.relationships == ("on",)  # lower case, as sg2im's code has them, with no alias for it
    # An alias may also lead out of the vocabulary.
    strange = Aliases({"man": "creature"}, {"on": "upon"})
    assert links(filter_graphs(data, GraphVocabulary(("man", "guy"), (), ("on", "ON")), LAX, strange)) == [()]


def test_an_object_takes_the_first_of_its_names_that_is_frequent() -> None:
    data = dataset(
        picture(1, (thing(1, "gent", other_names=("person", "man")), thing(2, "man"), thing(3, "person"))),
    )
    assert names(sg2im_filter(data, data, replace(LAX, min_object_count=2))) == [["person", "man", "person"]]
    # Two spellings of one name on one object count once.
    twice = dataset(picture(1, (thing(1, "guy", other_names=("man",)),)))
    counted = sg2im_vocabulary(twice.records, replace(LAX, min_object_count=2), Aliases({"guy": "man"}))
    assert counted.objects == ()


def test_an_attribute_counts_once_for_an_object() -> None:
    data = dataset(picture(1, (thing(1, "man", attributes=("old", "old")),)))
    assert sg2im_vocabulary(data.records, replace(LAX, min_attribute_count=2)).attributes == ()


def test_rare_attributes_go() -> None:
    data = dataset(
        picture(1, (thing(1, "man", attributes=("old", "tall")), thing(2, "hat", attributes=("red", "old")))),
    )
    (record,) = sg2im_filter(data, data, replace(LAX, min_attribute_count=2)).records
    assert record.graph is not None
    assert [node.attributes for node in record.graph.objects] == [("old",), ("old",)]


def test_relationships_count_only_where_both_objects_stay() -> None:
    data = dataset(
        picture(1, (thing(1, "man"), thing(2, "man"), thing(3, "dot", box=(0, 0, 9, 9))), ((1, "by", 2), (1, "on", 2))),
        picture(2, (thing(1, "man"), thing(2, "man"), thing(3, "dot", box=(0, 0, 9, 9))), ((1, "by", 2), (1, "on", 3))),
    )
    options = replace(LAX, min_relationship_count=2, min_object_px=32)
    assert sg2im_vocabulary(data.records, options).relationships == ("by",)
    assert links(sg2im_filter(data, data, options)) == [((1, "by", 2),), ((1, "by", 2),)]


@pytest.mark.parametrize(("size", "stays"), [((32, 32), True), ((31, 40), False), ((40, 31), False)])
def test_small_objects_go(size: tuple[int, int], stays: bool) -> None:
    data = dataset(picture(1, (thing(1, "man"), thing(2, "dot", box=(0, 0, *size)))))
    assert names(sg2im_filter(data, data, replace(LAX, min_object_px=32))) == [["man", "dot"] if stays else ["man"]]


def test_small_objects_count_for_names_as_in_sg2im() -> None:
    data = dataset(picture(1, (thing(1, "man"), thing(2, "man", box=(0, 0, 9, 9)))))
    assert names(sg2im_filter(data, data, replace(LAX, min_object_px=32, min_object_count=2))) == [["man"]]


@pytest.mark.parametrize(("size", "stays"), [((200, 300), True), ((199, 300), False), ((300, 199), False)])
def test_small_pictures_go_and_their_names_do_not_count(size: tuple[int, int], stays: bool) -> None:
    data = dataset(picture(1, (thing(1, "man"),)), picture(2, (thing(1, "dog"),), size=size))
    options = replace(LAX, min_picture_px=200)
    assert names(sg2im_filter(data, data, options)) == ([["man"], ["dog"]] if stays else [["man"]])
    assert ("dog" in sg2im_vocabulary(data.records, options).objects) == stays


def test_pictures_with_too_few_or_too_many_objects_go() -> None:
    crowds = [picture(count, tuple(thing(i, "man") for i in range(count))) for count in range(1, 7)]
    kept = sg2im_filter(dataset(*crowds), dataset(*crowds), replace(LAX, objects_per_picture=(3, 5)))
    assert [record.image_id for record in kept.records] == [3, 4, 5]


def test_objects_are_counted_after_the_rare_ones_are_gone() -> None:
    data = dataset(picture(1, (thing(1, "man"), thing(2, "man"), thing(3, "dog"))), picture(2, (thing(1, "man"),)))
    kept = sg2im_filter(data, data, replace(LAX, min_object_count=2, objects_per_picture=(1, 2)))
    assert names(kept) == [["man", "man"], ["man"]]


def test_pictures_with_too_few_or_too_many_relationships_go() -> None:
    pair = (thing(1, "man"), thing(2, "dog"))
    linked = [picture(count, pair, ((1, "by", 2),) * count) for count in range(5)]
    kept = sg2im_filter(dataset(*linked), dataset(*linked), replace(LAX, relationships_per_picture=(1, 3)))
    assert [record.image_id for record in kept.records] == [1, 2, 3]
    # A rare predicate leaves its picture without any.
    data = dataset(*linked[1:2], picture(9, pair, ((1, "rides", 2),)), picture(10, pair, ((1, "by", 2),)))
    strict = replace(LAX, relationships_per_picture=(1, 3), min_relationship_count=2)
    assert [record.image_id for record in sg2im_filter(data, data, strict).records] == [1, 10]


def test_of_many_objects_ten_are_drawn_related_ones_first() -> None:
    many = tuple(thing(i, f"name {i}") for i in range(30))
    options = replace(LAX, max_objects=10)
    few_related = [picture(i, many, ((25, "on", 3), (3, "by", 28))) for i in range(40)]
    kept = sg2im_filter(dataset(*few_related), dataset(*few_related), options)
    assert {len(objects) for objects in names(kept)} == {10}
    assert set(links(kept)) == {((25, "on", 3), (3, "by", 28))}
    drawn = Counter(name for objects in names(kept) for name in objects)
    assert drawn["name 3"] == drawn["name 25"] == drawn["name 28"] == 40
    assert len(drawn) == 30  # the orphans beside them differ from picture to picture
    ids = [[node.id for node in record.graph.objects] for record in kept.records if record.graph is not None]
    assert all(each == sorted(each) for each in ids)

    chain = tuple((i, "on", i + 1) for i in range(14))  # 15 related objects
    kept = sg2im_filter(dataset(picture(1, many, chain)), dataset(picture(1, many, chain)), options)
    (left,) = names(kept)
    assert len(left) == 10 and all(int(name.split()[1]) <= 14 for name in left)
    here = {int(name.split()[1]) for name in left}
    assert links(kept) == [tuple(link for link in chain if {link[0], link[2]} <= here)]
    again = sg2im_filter(dataset(picture(1, many, chain)), dataset(picture(1, many, chain)), options)
    assert again == kept
    assert names(sg2im_filter(dataset(picture(1, many)), dataset(picture(1, many)), LAX)) == [[o.name for o in many]]


def test_pictures_without_a_graph_go_and_nothing_left_is_refused() -> None:
    bare = ImageRecord(5, Path("5.jpg"), 300, 300)
    data = dataset(picture(1, (thing(1, "man"),)), bare)
    assert [record.image_id for record in sg2im_filter(data, data, LAX).records] == [1]
    with pytest.raises(RequestError, match="no picture of the 2 in vg .train. passes sg2im's filter"):
        sg2im_filter(data, data)


def test_the_filtered_digest_depends_on_everything_that_changes_the_graphs() -> None:
    data = dataset(picture(1, (thing(1, "man"), thing(2, "dog"))))
    other = dataset(picture(1, (thing(1, "man"),)))
    digests = [
        sg2im_filter(data, data, LAX).digest,
        sg2im_filter(data, data, replace(LAX, max_objects=1)).digest,
        sg2im_filter(other, data, LAX).digest,
        sg2im_filter(data, data, LAX, Aliases({"man": "dog"})).digest,
        sg2im_filter(data, data, LAX, Aliases({}, {"on": "by"})).digest,
        sg2im_filter(data, replace(data, digest="1" * 64), LAX).digest,
        data.digest,
    ]
    assert len(set(digests)) == len(digests)
    assert sg2im_filter(data, data, LAX) == sg2im_filter(data, data, LAX)


def test_vocabulary() -> None:
    objects = (thing(1, "man", attributes=("old",)), thing(2, "dog"), thing(3, "dog"), thing(4, "cat"))
    records = [picture(1, objects, ((1, "on", 2), (2, "by", 1))), ImageRecord(2, Path("2.jpg"), 9, 9)]
    vocabulary = GraphVocabulary.of(records)
    assert vocabulary == GraphVocabulary(("dog", "cat", "man"), ("old",), ("by", "on"))
    assert vocabulary.digest == GraphVocabulary.of(reversed(records)).digest
    # A name that changes its list is another vocabulary.
    moved = GraphVocabulary(("dog", "cat"), ("man", "old"), ("by", "on"))
    assert len({vocabulary.digest, moved.digest, replace(vocabulary, objects=("cat", "dog", "man")).digest}) == 3


def test_sentences() -> None:
    objects = (thing(1, "man"), thing(2, "hat"), thing(3, "horse"), thing(4, "tree"))
    graph = SceneGraph(objects, ((1, "wearing", 2), (1, "riding", 3)))
    assert graph_sentence(graph) == "man wearing hat and man riding horse"
    assert graph_sentence(replace(graph, relationships=())) == ""


# --- relations of boxes -------------------------------------------------------------------------------------------

CENTRE: Box = (40, 40, 20, 20)


@pytest.mark.parametrize(
    ("subject", "relation"),
    [
        ((0, 45, 10, 10), "left of"),
        ((90, 45, 10, 10), "right of"),
        ((45, 0, 10, 10), "above"),
        ((45, 90, 10, 10), "below"),
        ((45, 45, 10, 10), "inside"),
        ((30, 30, 40, 40), "surrounding"),
        ((40, 45, 10, 10), "left of"),  # within, but it touches a side
        ((40, 30, 20, 40), "right of"),  # the same centre
        ((0, 11, 10, 20), "left of"),  # 45 from left, 29 up
        ((21, 0, 10, 20), "above"),  # 24 left, 40 up
        ((10, 10, 20, 20), "left of"),  # exactly between left and above
        ((70, 70, 20, 20), "right of"),  # exactly between right and below
        ((35, 0, 90, 20), "above"),  # it begins further left, but its centre is right
    ],
)
def test_relations(subject: Box, relation: str) -> None:
    assert spatial_relation(subject, CENTRE) == relation


boxes = st.tuples(*[st.integers(-50, 50).map(float)] * 2, *[st.integers(0, 40).map(float)] * 2)
CONVERSE = dict(zip(RELATIONS, ("right of", "left of", "below", "above", "surrounding", "inside"), strict=True))


@settings(deadline=None, max_examples=300)
@given(subject=boxes, target=boxes)
def test_exactly_one_relation_holds_and_its_converse_when_swapped(subject: Box, target: Box) -> None:
    relation = spatial_relation(subject, target)
    centres = [(2 * box[0] + box[2], 2 * box[1] + box[3]) for box in (subject, target)]
    right, down = centres[0][0] - centres[1][0], centres[0][1] - centres[1][1]

    def within(inner: Box, outer: Box) -> bool:
        left, top = inner[0] > outer[0], inner[1] > outer[1]
        return left and top and sum(inner[::2]) < sum(outer[::2]) and sum(inner[1::2]) < sum(outer[1::2])

    nested = {"inside": within(subject, target), "surrounding": within(target, subject)}
    apart = not any(nested.values())
    holds = nested | {
        "left of": apart and right < 0 and abs(right) >= abs(down),
        "right of": apart and right >= 0 and abs(right) >= abs(down),
        "above": apart and down < 0 and abs(down) > abs(right),
        "below": apart and down > 0 and abs(down) > abs(right),
    }
    assert [name for name in RELATIONS if holds[name]] == [relation]
    assume(any(nested.values()) or right or down)
    assert spatial_relation(target, subject) == CONVERSE[relation]


@settings(deadline=None, max_examples=200)
@given(
    subject=boxes,
    target=boxes,
    shift=st.tuples(st.integers(-99, 99), st.integers(-99, 99)),
    scale=st.sampled_from([0.25, 0.5, 2.0, 3.0, 64.0]),
)
def test_relations_do_not_change_with_place_and_scale(
    subject: Box, target: Box, shift: tuple[int, int], scale: float
) -> None:
    def moved(box: Box) -> Box:
        x, y, width, height = box
        return (x + shift[0]) * scale, (y + shift[1]) * scale, width * scale, height * scale

    assert spatial_relation(moved(subject), moved(target)) == spatial_relation(subject, target)


# --- graphs of COCO's boxes ---------------------------------------------------------------------------------------


def region(category: str, box: Box, *, crowd: bool = False) -> Instance:
    return Instance(category, 1, box, None, box[2] * box[3], crowd)


CAT = region("cat", (10, 10, 20, 20))
DOG = region("dog", (60, 20, 20, 20))
SKY = region("sky-other", (0, 0, 100, 40))
GRASS = region("grass", (0, 50, 100, 50))
COCO = CocoGraphOptions()


def coco(
    instances: tuple[Instance, ...] | None = (CAT, DOG),
    stuff: tuple[Instance, ...] | None = (SKY, GRASS),
    image_id: int = 9,
    size: tuple[int, int] = (100, 100),
) -> ImageRecord:
    return ImageRecord(image_id, Path(f"{image_id}.jpg"), *size, instances=instances, stuff=stuff)


def nodes(record: ImageRecord, options: CocoGraphOptions = COCO) -> list[tuple[int, str]] | None:
    graph = coco_graph(record, options, seed=1)
    return None if graph is None else [(node.id, node.name) for node in graph.objects]


def test_nodes_are_things_and_stuff_by_their_index() -> None:
    assert CocoGraphOptions(0.02, (3, 8), ("other",), crowds=True) == COCO
    assert nodes(coco()) == [(0, "cat"), (1, "dog"), (2, "sky-other"), (3, "grass")]
    graph = coco_graph(coco(), COCO, 1)
    assert graph is not None and [node.box for node in graph.objects] == [each.box for each in (CAT, DOG, SKY, GRASS)]
    assert nodes(coco(instances=None, stuff=(SKY, GRASS, SKY))) == [(0, "sky-other"), (1, "grass"), (2, "sky-other")]


def test_small_regions_go() -> None:
    assert nodes(coco((region("cat", (0, 0, 20, 9.9)), CAT, DOG))) == [
        (1, "cat"),
        (2, "dog"),
        (3, "sky-other"),
        (4, "grass"),
    ]
    exact = region("cat", (0, 0, 20, 10))
    assert nodes(coco((exact, DOG))) is not None and len(nodes(coco((exact, DOG))) or ()) == 4
    assert nodes(coco(size=(1000, 100)), replace(COCO, objects_per_picture=(1, 8))) == [(2, "sky-other"), (3, "grass")]


def test_other_stuff_goes_and_categories_named_other_something_stay() -> None:
    other = region("other", (0, 0, 90, 90))
    assert nodes(coco(stuff=(other, SKY, GRASS))) == [(0, "cat"), (1, "dog"), (3, "sky-other"), (4, "grass")]
    assert len(nodes(coco(stuff=(other, SKY, GRASS)), replace(COCO, left_out=())) or ()) == 5


def test_crowds_stay_unless_told() -> None:
    record = coco((region("cat", (0, 0, 90, 90), crowd=True), CAT, DOG))
    assert len(nodes(record) or ()) == 5
    assert nodes(record, replace(COCO, crowds=False)) == [(1, "cat"), (2, "dog"), (3, "sky-other"), (4, "grass")]


def test_pictures_need_stuff_annotations() -> None:
    assert coco_graph(coco((CAT, DOG, CAT), None), COCO, 1) is None
    assert coco_graph(coco((CAT, DOG, CAT), ()), COCO, 1) is None
    assert coco_graph(coco((CAT, DOG, CAT), (region("other", (0, 0, 90, 90)),)), COCO, 1) is not None


def segment(category: str, box: Box, *, thing: bool = False, crowd: bool = False) -> PanopticSegment:
    return PanopticSegment(1, category, 1, thing, box, box[2] * box[3], crowd)


def panoptic(*segments: PanopticSegment) -> Panoptic:
    return Panoptic(b"", segments)


SEGMENTS = panoptic(
    segment("horse", (0, 0, 30, 30), thing=True),
    segment("sky-other-merged", (0, 0, 100, 40)),
    segment("cow", (50, 0, 30, 30), thing=True, crowd=True),
    segment("wall-wood", (0, 50, 100, 50)),
)


def test_panoptic_stuff_stands_in_for_coco_stuff() -> None:
    record = replace(coco(stuff=None), panoptic=SEGMENTS)
    expected = [(0, "cat"), (1, "dog"), (2, "sky-other-merged"), (3, "wall-wood")]
    assert nodes(record) == nodes(replace(record, stuff=())) == expected
    regions = coco_regions(record)
    assert regions is not None and [regions[index].category for index, _ in expected] == [name for _, name in expected]
    both = replace(record, stuff=(SKY, GRASS))
    assert nodes(both) == nodes(both, replace(COCO, stuff="stuff")) == nodes(coco())
    assert nodes(both, replace(COCO, stuff="panoptic")) == expected
    assert nodes(record, replace(COCO, stuff="stuff")) is None
    assert nodes(coco(), replace(COCO, stuff="panoptic")) is None
    # The same limits hold: the area, the crowds, the categories that are left out.
    small = panoptic(*SEGMENTS.segments, segment("rug-merged", (0, 0, 20, 9.9)))
    assert nodes(replace(record, panoptic=small)) == expected
    assert nodes(record, replace(COCO, left_out=("wall-wood",))) == expected[:3]


def test_panoptic_things_stand_in_for_instances() -> None:
    record = replace(coco(instances=None, stuff=None), panoptic=SEGMENTS)
    assert nodes(record) == [(0, "horse"), (1, "cow"), (2, "sky-other-merged"), (3, "wall-wood")]
    assert nodes(record, replace(COCO, crowds=False)) == [(0, "horse"), (2, "sky-other-merged"), (3, "wall-wood")]
    assert nodes(replace(record, stuff=(SKY, GRASS))) == [(0, "horse"), (1, "cow"), (2, "sky-other"), (3, "grass")]
    # An instances file that lists the picture without things has the word.
    listed = replace(record, instances=())
    assert nodes(listed, replace(COCO, objects_per_picture=(1, 8))) == [(0, "sky-other-merged"), (1, "wall-wood")]
    # A panoptic map without stuff is an annotation nevertheless: COCO-Stuff has a region "other" there.
    things = panoptic(*[segment("cow", (10 * place, 0, 30, 30), thing=True) for place in range(3)])
    assert nodes(replace(record, panoptic=things)) == [(0, "cow"), (1, "cow"), (2, "cow")]


def test_pictures_need_three_to_eight_objects() -> None:
    counted = {count: coco_graph(coco((CAT,) * (count - 1), (SKY,)), COCO, 1) is not None for count in range(1, 11)}
    assert [count for count, used in counted.items() if used] == [3, 4, 5, 6, 7, 8]
    one = coco_graph(coco((), (SKY,)), replace(COCO, objects_per_picture=(1, 8)), 1)
    assert one is not None and one.relationships == ()


def test_each_object_gives_one_relationship_drawn_from_seed_and_image_id() -> None:
    seen: Counter[tuple[int, int]] = Counter()
    as_subject = 0
    for image_id in range(600):
        graph = coco_graph(coco(image_id=image_id), COCO, 1)
        assert graph is not None and graph == coco_graph(coco(image_id=image_id), COCO, 1)
        assert len(graph.relationships) == 4
        boxed = {node.id: node.box for node in graph.objects}
        for place, (subject, predicate, target) in enumerate(graph.relationships):
            assert subject != target and place in (subject, target)
            assert predicate == spatial_relation(boxed[subject], boxed[target])
            seen[subject, target] += 1
            as_subject += subject == place
    # 12 ordered pairs, each expected 200 times.
    assert len(seen) == 12 and all(150 < count < 250 for count in seen.values())
    assert 1100 < as_subject < 1300
    assert any(coco_graph(coco(image_id=i), COCO, 1) != coco_graph(coco(image_id=i), COCO, 2) for i in range(5))


def test_relations_are_those_of_the_picture_squeezed_to_a_square() -> None:
    # 100 right and 60 down in pixels; in a picture four times as wide as high it is further down than right.
    pair = (region("cat", (0, 0, 100, 40)), region("dog", (100, 60, 100, 40)))
    record = coco(pair, (region("sky", (0, 0, 400, 100)),), size=(400, 100))
    relations = {
        (subject, target): predicate
        for seed in range(30)
        for graph in [coco_graph(record, COCO, seed)]
        if graph is not None
        for subject, predicate, target in graph.relationships
    }
    assert (relations[0, 1], relations[1, 0]) == ("above", "below")


def test_graphs_are_added_where_there_are_none() -> None:
    published = replace(coco(image_id=3), graph=SceneGraph((thing(1, "man"),), ()))
    data = dataset(coco(image_id=1), coco(stuff=None, image_id=2), published)
    made = with_coco_graphs(data)
    assert [record.image_id for record in made.records] == [1, 3]
    assert made.records[0].graph == coco_graph(data.records[0], COCO, 0)
    assert made.records[1] == published
    assert "graph" in made.carries
    digests = {made.digest, data.digest, with_coco_graphs(data, seed=1).digest}
    digests |= {with_coco_graphs(data, replace(COCO, min_area=0.03)).digest}
    assert len(digests) == 4
    assert with_coco_graphs(data) == made
    assert made.complete == {"images", "graph"}
    lacking = dataset(coco(stuff=None), split="val")
    with pytest.raises(RequestError, match=r"no picture of vg \(val\) .* 3 to 8 objects of 2% .*stuff_val2017.json\.$"):
        with_coco_graphs(lacking)
    with pytest.raises(RequestError, match=r"file annotations/panoptic_val2017.json or annotations/stuff_val2017.json"):
        with_coco_graphs(lacking)
    with pytest.raises(RequestError, match=r"file annotations/panoptic_val2017.json\.$"):
        with_coco_graphs(lacking, replace(COCO, stuff="panoptic"))


def test_the_first_pictures_are_sg2ims_own_val_split() -> None:
    whole = with_coco_graphs(dataset(*(coco(image_id=i) for i in range(7)), split="val"))
    val, test = own_val_and_test(whole, 3)
    assert [record.image_id for record in val.records] == [0, 1, 2]
    assert [record.image_id for record in test.records] == [3, 4, 5, 6]
    assert (val.split, test.split) == ("val", "test")
    assert len({whole.digest, val.digest, test.digest, own_val_and_test(whole, 2)[0].digest}) == 4
    halves = own_val_and_test(with_coco_graphs(dataset(*(coco(image_id=i) for i in range(6)))), 3)
    assert halves[0].digest != halves[1].digest
    with pytest.raises(RequestError, match="has 7 pictures with a scene graph, and the first 1024 are"):
        own_val_and_test(whole)
