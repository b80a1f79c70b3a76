"""Scene graphs in words: what is written is read back, and what a person mistypes is said in a sentence."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.data.graph_text import MOST_OBJECTS, NO_BOX, GraphLanguage, graph_text, read_graph
from orchestration.data.records import SceneGraph, SceneObject
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.errors import RequestError

Link = tuple[int, str, int]

FARM = GraphVocabulary(
    ("sheep", "tree", "night sky", "grass", "cloud", "hot", "hot dog", "salt and pepper", "knife, fork"),
    (),
    ("left of", "above", "to the left of", "left", "mixed and matched with"),
)


def graph(names: list[str], *links: Link, first_id: int = 0) -> SceneGraph:
    things = tuple(SceneObject(first_id + place, name, (), NO_BOX) for place, name in enumerate(names))
    return SceneGraph(things, tuple((first_id + one, word, first_id + other) for one, word, other in links))


def refused(text: str, vocabulary: GraphVocabulary = FARM) -> str:
    with pytest.raises(RequestError) as caught:
        read_graph(text, vocabulary)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and ". " not in message
    return message


# --- in words -----------------------------------------------------------------------------------------------------


def test_relations_are_said_in_order_and_then_the_objects_without_any() -> None:
    farm = graph(["cloud", "tree", "sheep", "grass"], (2, "left of", 1), (1, "above", 3), first_id=70)
    assert graph_text(farm) == "sheep left of tree and tree above grass and cloud"
    assert graph_text(graph(["cloud", "tree"])) == "cloud and tree"
    assert graph_text(graph(["tree"])) == "tree"
    assert graph_text(graph([])) == ""


def test_objects_of_one_name_are_numbered_as_they_are_said() -> None:
    trees = graph(["tree", "sheep", "tree", "tree"], (2, "left of", 1), (1, "above", 0))
    assert graph_text(trees) == "tree left of sheep and sheep above tree 2 and tree 3"
    assert graph_text(graph(["tree"], (0, "above", 0))) == "tree above tree"
    assert graph_text(graph(["tree", "tree"], (1, "above", 0))) == "tree above tree 2"


def test_names_are_quoted_where_plain_words_would_be_another_graph() -> None:
    odd = graph(["tree", "tree", "tree 2"], (0, "above", 1))
    assert graph_text(odd) == '"tree" "above" "tree" 2 and "tree 2"'
    pair = graph(["tree", "tree"], (0, "above", 1))
    assert graph_text(pair) == "tree above tree 2"
    wider = GraphVocabulary(("tree", "tree 2"), (), ("above",))
    assert graph_text(pair, wider) == '"tree" "above" "tree" 2'
    linked = graph(["cat", "dog"], (0, "and", 1))
    assert graph_text(linked) == '"cat" "and" "dog"'
    assert graph_text(graph(['12" ruler', '"big"', "\n"], (0, "above", 1))) == '"12"" ruler" "above" """big""" and "\n"'
    assert graph_text(graph(['12" ruler'])) == '12" ruler'  # nothing else could be meant


def test_boxes_and_attributes_are_not_said() -> None:
    thing = SceneObject(4, "tree", ("old",), (1, 2, 3, 4), ("oak",))
    assert read_graph(graph_text(SceneGraph((thing,), ())), FARM) == graph(["tree"])


def test_a_relation_of_a_stranger_is_refused() -> None:
    with pytest.raises(RequestError, match=r"a relation of object 9, which it does not list; list it or remove the"):
        graph_text(graph(["tree"], (0, "above", 9)))


# --- back again ---------------------------------------------------------------------------------------------------


def as_said(whole: SceneGraph) -> SceneGraph:
    """The graph with its objects in the order in which the relations, then the list, first name them."""
    ends = [end for subject, _, target in whole.relationships for end in (subject, target)]
    order = list(dict.fromkeys([*ends, *(thing.id for thing in whole.objects)]))
    names = {thing.id: thing.name for thing in whole.objects}
    links = [(order.index(one), word, order.index(other)) for one, word, other in whole.relationships]
    return graph([names[thing] for thing in order], *links)


# Few pieces, so that names are often others' beginnings, ends, numbers, separators or only differ by case and spaces.
pieces = st.sampled_from(["a", "b", "A", "and", "2", "1", "12", ",", ";", "\n", '"', '""', 'a"', "left", "of", "{"])
odd_names = st.lists(pieces, min_size=1, max_size=4).flatmap(
    lambda words: st.sampled_from([" ", "", "  "]).map(lambda space: space.join(words))
)


@st.composite
def worded(draw: st.DrawFn) -> tuple[SceneGraph, GraphVocabulary]:
    objects = draw(st.lists(odd_names, min_size=1, max_size=6, unique=True))
    predicates = draw(st.lists(st.one_of(st.sampled_from(objects), odd_names), min_size=1, max_size=4, unique=True))
    names = draw(st.lists(st.sampled_from(objects), min_size=1, max_size=7))
    ends = st.integers(0, len(names) - 1)
    links = draw(st.lists(st.tuples(ends, st.sampled_from(predicates), ends), max_size=6))
    return graph(names, *links, first_id=draw(st.integers(0, 9))), GraphVocabulary(
        tuple(objects), (), tuple(predicates)
    )


@settings(deadline=None, max_examples=600)
@given(worded())
def test_every_graph_over_every_vocabulary_is_read_back(both: tuple[SceneGraph, GraphVocabulary]) -> None:
    whole, vocabulary = both
    text = graph_text(whole, vocabulary)
    assert read_graph(text, vocabulary) == as_said(whole)
    assert graph_text(as_said(whole), vocabulary) == text
    own = GraphVocabulary(
        tuple({thing.name: 0 for thing in whole.objects}), (), tuple({word: 0 for _, word, _ in whole.relationships})
    )
    assert read_graph(graph_text(whole), own) == as_said(whole)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from(FARM.objects), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(FARM.relationships), st.integers(0, 5)), max_size=6),
    st.data(),
)
def test_spaces_case_and_separators_do_not_matter(names: list[str], links: list[Link], data: st.DataObject) -> None:
    whole = graph(names, *(link for link in links if max(link[0], link[2]) < len(names)))
    text = graph_text(whole, FARM)
    assert '"' not in text and read_graph(text, FARM) == as_said(whole)
    spaced = data.draw(st.sampled_from(["  ", "\t", " \r"])).join(text.split(" "))
    assert read_graph(data.draw(st.sampled_from([spaced, spaced.upper(), spaced.title()])), FARM) == as_said(whole)


@pytest.mark.parametrize("between", [" and ", ",", ", and ", ";", "\n", " ;\n", " AND "])
def test_statements_are_parted_in_many_ways(between: str) -> None:
    text = between.join(["sheep left of tree", "cloud", "tree above night sky"])
    read = read_graph(text + between, FARM)
    assert read == graph(["sheep", "tree", "cloud", "night sky"], (0, "left of", 1), (1, "above", 3))


def test_the_longest_name_counts() -> None:
    assert read_graph("hot dog left of hot", FARM) == graph(["hot dog", "hot"], (0, "left of", 1))
    assert read_graph("sheep to the left of tree", FARM) == graph(["sheep", "tree"], (0, "to the left of", 1))
    assert read_graph("sheep left tree", FARM) == graph(["sheep", "tree"], (0, "left", 1))
    # But only where the rest can be read: "left of" is followed by no object here.
    words = GraphVocabulary(("sheep", "of tree", "tree"), (), ("left of", "left"))
    assert read_graph("sheep left of tree", words) == graph(["sheep", "tree"], (0, "left of", 1))
    words = GraphVocabulary(("sheep", "of tree"), (), ("left of", "left"))
    assert read_graph("sheep left of tree", words) == graph(["sheep", "of tree"], (0, "left", 1))
    numbered = GraphVocabulary(("tree", "tree 2"), (), ("above",))
    assert read_graph("tree 2 above tree", numbered) == graph(["tree 2", "tree"], (0, "above", 1))
    assert read_graph("tree 2 2 above tree 3", numbered) == graph(["tree 2", "tree"], (0, "above", 1))


def test_names_may_hold_separators() -> None:
    read = read_graph("salt and pepper left of hot and knife , fork above salt and pepper", FARM)
    assert read == graph(["salt and pepper", "hot", "knife, fork"], (0, "left of", 1), (2, "above", 0))
    assert read_graph("hot mixed and matched with tree", FARM) == graph(
        ["hot", "tree"], (0, "mixed and matched with", 1)
    )
    both = GraphVocabulary(("salt", "pepper", "salt and pepper"), (), ("and",))
    assert read_graph("salt and pepper", both) == graph(["salt and pepper"])
    assert read_graph('"salt" and "pepper"', both) == graph(["salt", "pepper"])
    assert read_graph('"salt" "and" "pepper"', both) == graph(["salt", "pepper"], (0, "and", 1))
    assert read_graph("pepper and salt", both) == graph(["pepper", "salt"])


def test_numbers_tell_objects_of_one_name_apart() -> None:
    read = read_graph("tree left of tree 2 and tree 1 above tree 7 and tree", FARM)
    assert read == graph(["tree", "tree", "tree"], (0, "left of", 1), (0, "above", 2))
    assert read_graph("tree above tree", FARM) == graph(["tree"], (0, "above", 0))


def test_names_that_differ_only_by_case_are_told_apart_as_written() -> None:
    words = GraphVocabulary(("man", "Man"), (), ("on", "ON"))
    assert read_graph("Man ON man", words) == graph(["Man", "man"], (0, "ON", 1))
    assert read_graph("MAN On MAN", words) == graph(["man"], (0, "on", 0))
    assert read_graph('"MAN"', words) == graph(["man"])


# --- what a person mistypes ---------------------------------------------------------------------------------------

KNOWN = "known are sheep, tree, night sky, grass, cloud, hot, hot dog, salt and pepper, knife, fork"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("treee", f"no object 'treee' is known (perhaps 'tree' was meant); {KNOWN}"),
        ("sheep left of treee", "no object 'treee' is known (perhaps 'tree' was meant)"),
        ("shep left of tree", "no object 'shep' is known (perhaps 'sheep' was meant)"),
        ("cloud and shep left of tree", "no object 'shep' is known (perhaps 'sheep' was meant)"),
        ("cloud, zebra", f"no object 'zebra' is known; {KNOWN}"),
        ("nihgt sky above tree", "no object 'nihgt sky' is known (perhaps 'night sky' was meant)"),
        ("hot dgo left of tree", "no object 'hot dgo' is known (perhaps 'hot dog' or 'hot' was meant)"),
        ("tree left of hot dgo", "no object 'hot dgo' is known (perhaps 'hot dog' or 'hot' was meant)"),
        ('"treee" above tree', "no object 'treee' is known (perhaps 'tree' was meant)"),
        (
            "sheep lft of tree",
            "no relation 'lft of' is known (perhaps 'left of' or 'to the left of' or 'left' was meant); known are left "
            "of, above, to the left of, left, mixed and matched with",
        ),
        ("sheep abov tree 2 and cloud", "no relation 'abov' is known (perhaps 'above' was meant)"),
        ("sheep rides tree", "no relation 'rides' is known; known are left of"),
        ("sheepp eating left of tree", "no object 'sheepp eating' is known"),
        ("sheep galloping", "no relation 'galloping' is known; known are left of"),
        ("sheep tree", "between 'sheep' and 'tree' no relation is said; write one, or 'and'"),
        ("cloud and sheep left of", "after 'sheep left of' an object is missing"),
        ("sheep above and tree", "after 'sheep above' an object is missing"),
        ("above tree", "before 'above' an object is missing"),
        ("cloud; left of tree", "before 'left of' an object is missing"),
        ("sheep left of tree above grass", "'sheep left of tree' is followed by 'above grass'; put 'and' between two"),
        ("x" * 90, "no object '" + "x" * 60 + "…' is known"),
        ('tree above "cloud', "no object '\"cloud' is known (perhaps 'cloud' was meant)"),
        ("cloud \ud800", "no object 'cloud \\ud800' is known (perhaps 'cloud' was meant)"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, why: str) -> None:
    message = refused(text)
    assert message.startswith("the graph cannot be read: ") and why in message


@pytest.mark.parametrize("text", ["", "  \n", "and", " , and ;", '{"objects": []}'])
def test_a_graph_without_objects_is_refused(text: str) -> None:
    assert refused(text) == (
        "the graph has no object; write what the picture should show, such as 'sheep left of knife, fork'."
    )


def test_too_many_objects_are_refused() -> None:
    most = " and ".join(f"tree {number}" for number in range(1, MOST_OBJECTS + 1))
    assert len(read_graph(most, FARM).objects) == 30
    told = "the graph has 31 objects; write at most 30, as sg2im uses no picture with more."
    assert refused(f"{most} and cloud") == told
    assert refused(json.dumps({"objects": [{"name": "tree"}] * 31})) == told


def test_numbers_begin_from_1() -> None:
    for text in ("tree 0", "tree -1", "tree 02"):
        assert f"no object {text!r} is known (perhaps 'tree' was meant)" in refused(text)


def test_a_large_vocabulary_is_not_listed_whole() -> None:
    many = GraphVocabulary(tuple(f"n{place}" for place in range(21)), (), ())
    assert refused("zebra", many).endswith("; 21 are known, such as " + ", ".join(many.objects[:20]) + ".")
    assert refused("n1 on n2", many).endswith("no relation 'on' is known; known are none.")
    assert refused("", many).endswith("such as 'n0'.")


# --- as JSON ------------------------------------------------------------------------------------------------------


def typed(objects: Any, **more: Any) -> str:
    return json.dumps({"objects": objects} | more)


def test_json_may_give_boxes() -> None:
    text = typed(
        [{"name": "Sheep", "box": [0.25, 0, 0.75, 1]}, {"name": "night  sky"}, {"name": "tree", "box": None}],
        relations=[[0, "LEFT of", 1], [2, "above", 2]],
    )
    read = read_graph(" \n" + text, FARM)
    expected = graph(["sheep", "night sky", "tree"], (0, "left of", 1), (2, "above", 2))
    assert read.relationships == expected.relationships
    assert [(thing.id, thing.name) for thing in read.objects] == [(0, "sheep"), (1, "night sky"), (2, "tree")]
    assert [thing.box for thing in read.objects] == [(0.25, 0, 0.5, 1), NO_BOX, NO_BOX]
    # Each entry is an object of its own, whatever its name.
    assert len(read_graph(typed([{"name": "tree"}, {"name": "tree"}]), FARM).objects) == 2


TREE = {"name": "tree"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "the graph cannot be read as JSON: it is cut short"),
        ("{}", "the graph cannot be read as JSON: objects is missing"),
        ('{"objects": [{"name": "\ud800"}]}', "the graph cannot be read as JSON: byte 23 is not UTF-8"),
        (typed(3), "objects: expected `array`, got `int`"),
        (typed([{}]), "name is missing in objects[0]"),
        (typed([{"nam": "tree"}]), "objects[0]: object contains unknown field `nam`"),
        (typed([TREE], relation=[]), "contains unknown field `relation`"),
        (typed([{"name": "treee"}]), "objects[0] of the graph: no object 'treee' is known (perhaps 'tree' was meant)"),
        (typed([TREE], relations=[[0, "abov", 0]]), "relations[0] of the graph: no relation 'abov' is known (perhaps"),
        (
            typed([TREE], relations=[[0, "above", 0], [0, "above", 1]]),
            "relations[1] of the graph names object 1, which is not there; the graph lists 1, and the first is 0",
        ),
        (typed([TREE], relations=[[-1, "above", 0]]), "relations[0] of the graph names object -1, which is not there"),
        (typed([TREE], relations=[[0, "above"]]), "relations[0]: expected `array` of length 3"),
        (typed([TREE], relations=[[0.5, "above", 0]]), "relations[0][0]: expected `int`, got `float`"),
        (
            typed([{"name": "tree", "box": [0, 0, 0.5, 1.01]}]),
            "objects[0].box of the graph, [0, 0, 0.5, 1.01], leaves the picture; write x0, y0, x1, y1 as parts of it",
        ),
        (
            typed([TREE, {"name": "tree", "box": [-0.1, 0, 0.5, 1]}]),
            "objects[1].box of the graph, [-0.1, 0, 0.5, 1], l",
        ),
        (
            typed([{"name": "tree", "box": [0.5, 0, 0.5, 1]}]),
            "objects[0].box of the graph, [0.5, 0, 0.5, 1], is empty; write x0, y0, x1, y1 with x0 below x1",
        ),
        (typed([{"name": "tree", "box": [0, 0.6, 1, 0.5]}]), "is empty"),
        (typed([{"name": "tree", "box": [0, 0, 1]}]), "objects[0].box: expected `array` of length 4"),
        (typed([{"name": "tree", "box": [0, 0, 1, float("nan")]}]), "NaN is no JSON number"),
        (typed([{"name": "tree", "box": [0, 0, 1, float("inf")]}]), "Infinity is no JSON number"),
        ('{"objects": [{"name": "tree", "box": [0, 0, 1, 1e999]}]}', "the graph cannot be read as JSON"),
        ('{"objects": [{"name": ' + "[" * 99_999, "the graph cannot be read as JSON"),
    ],
)
def test_json_that_is_no_graph_is_refused(text: str, why: str) -> None:
    assert why in refused(text)


def test_a_language_serves_many_graphs() -> None:
    language = GraphLanguage(FARM)
    for text in ("sheep left of tree", "cloud", "tree above tree 2"):
        assert language.write(language.read(text)) == text == graph_text(read_graph(text, FARM), FARM)
