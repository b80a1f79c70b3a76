"""What can be asked of the endpoint: bodies that are read, and the sentences for those that are not."""

import copy
import hashlib
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.data.graph_text import read_graph
from orchestration.narratives.narrative_text import EXAMPLE, read_narrative
from orchestration.serving.inputs import EXAMPLES
from orchestration.serving.requests import (
    STATUS,
    ImageRequest,
    ServeError,
    image_seed,
    parse_image_request,
    wants_json,
)
from tests.serving_support import VOCABULARY

JSON = dict[str, Any]


def read(body: JSON | bytes) -> ImageRequest:
    return parse_image_request(body if isinstance(body, bytes) else json.dumps(body).encode())


def refused(body: JSON | bytes) -> ServeError:
    with pytest.raises(ServeError) as caught:
        read(body)
    error = caught.value
    assert error.status == STATUS[error.code] and "\n" not in error.message and "Traceback" not in error.message
    return error


def graph(*objects: Any, relations: Any = ()) -> JSON:
    return {"type": "graph", "graph": {"objects": list(objects), "relations": list(relations)}}


def narrative(**fields: Any) -> JSON:
    return {"type": "narrative", "narrative": fields}


@pytest.mark.parametrize(
    ("body", "code", "field", "part"),
    [
        (b"", "bad_json", None, "line 1"),
        (b"{", "bad_json", None, "line 1, column 2"),
        (b"\xff\xfe\xff", "bad_json", None, "the body is not text in UTF-8"),
        (b"\x1f\x8b\x08", "bad_json", None, "the body"),
        (b"[" * 60_000, "bad_json", None, "depth"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", "bad_json", None, "digits"),
        (b'["a bird"]', "bad_json", None, "no object"),
        (b"NaN", "bad_json", None, "no object"),
        ({}, "wrong_field", "prompt", "prompt is missing: send a string of 1 to 2,000"),
        ({"type": "poem", "prompt": "a"}, "wrong_field", "type", "type must be prompt, narrative or graph"),
        ({"type": ["graph"], "graph": "a"}, "wrong_field", "type", "type must be"),
        ({"prompt": 3}, "wrong_field", "prompt", "prompt must be a string"),
        ({"prompt": None}, "wrong_field", "prompt", "prompt must be a string"),
        ({"prompt": ""}, "empty_prompt", "prompt", "prompt is empty"),
        (b'{"prompt": " \\t\\n\\u200b\\u3000"}', "empty_prompt", "prompt", "blanks"),
        (b'{"prompt": "a\\u0000b"}', "wrong_field", "prompt", "the control character U+0000"),
        (b'{"prompt": "a\\u0007b"}', "wrong_field", "prompt", "the control character U+0007: remove it"),
        (b'{"prompt": "a\\u0085b"}', "wrong_field", "prompt", "U+0085"),
        (b'{"prompt": "a\\ud800"}', "wrong_field", "prompt", "surrogate"),
        ({"prompt": "ü" * 2_001}, "prompt_too_long", "prompt", "2,001 characters and the limit is 2,000"),
        ({"prompt": "a", "seed": -1}, "wrong_field", "seed", "seed must be a whole number from 0"),
        ({"prompt": "a", "seed": 2**63}, "wrong_field", "seed", "2^63 - 1"),
        ({"prompt": "a", "seed": 1.0}, "wrong_field", "seed", "seed must be a whole number"),
        ({"prompt": "a", "seed": True}, "wrong_field", "seed", "seed"),
        ({"prompt": "a", "seed": None}, "wrong_field", "seed", "seed"),
        ({"prompt": "a", "seed": "7"}, "wrong_field", "seed", "seed"),
        (b'{"prompt": "a", "seed": NaN}', "wrong_field", "seed", "seed"),
        ({"prompt": "a", "count": 0}, "wrong_field", "count", "count must be a whole number from 1 to 16"),
        ({"prompt": "a", "count": True}, "wrong_field", "count", "count must be"),
        ({"prompt": "a", "count": 1.0}, "wrong_field", "count", "count must be"),
        ({"prompt": "a", "count": 17}, "too_many_images", "count", "count is more than 16"),
        ({"prompt": "a", "count": 10**6}, "too_many_images", "count", "send several requests"),
        ({"prompt": "a", "images": 0}, "wrong_field", "images", "images must be"),
        ({"prompt": "a", "images": 17}, "too_many_images", "images", "images is more than 16"),
        ({"prompt": "a", "images": 2, "count": 2}, "wrong_field", "images", "leave images out"),
        ({"prompt": "a", "truncation": 0}, "wrong_field", "truncation", "a number above 0 and at most 10"),
        ({"prompt": "a", "truncation": 10.5}, "wrong_field", "truncation", "at most 10"),
        (b'{"prompt": "a", "truncation": NaN}', "wrong_field", "truncation", "truncation must be"),
        (b'{"prompt": "a", "truncation": 1e999}', "wrong_field", "truncation", "truncation must be"),
        ({"prompt": "a", "truncation": True}, "wrong_field", "truncation", "truncation must be"),
        ({"prompt": "a", "format": "jpeg"}, "wrong_field", "format", "format must be png or json"),
        ({"prompt": "a", "format": "png", "count": 2}, "wrong_format", "format", "cannot hold several pictures"),
        ({"prompt": "a", "format": "png", "explain": True}, "wrong_format", "format", "cannot hold reasons"),
        ({"prompt": "a", "explain": 1}, "wrong_field", "explain", "explain must be true or false"),
        ({"prompt": "a", "deadline_s": 0}, "wrong_field", "deadline_s", "from 1 to 3,600"),
        (b'{"prompt": "a", "deadline_s": Infinity}', "wrong_field", "deadline_s", "a number of seconds"),
        ({"prompt": "a", "model": 3}, "wrong_field", "model", "model must be a name"),
        ({"prompt": "a", "sede": 1}, "wrong_field", None, "no field 'sede': write seed"),
        ({"prompt": "a", "zzz": 1}, "wrong_field", None, "leave it out; the fields are model, seed, count"),
        ({"narrative": "a"}, "wrong_field", None, 'no field \'narrative\': say "type": "narrative" beside it'),
        ({"type": "graph", "prompt": "a"}, "wrong_field", None, "no field 'prompt'"),
        (b'{"prompt": "a", "\\ud800": 1}', "wrong_field", None, "no field"),
        ({"prompt": "a", "x" * 500: 1}, "wrong_field", None, "no field '" + "x" * 40 + "'"),
        ({"type": "narrative"}, "wrong_field", "narrative", "narrative is missing: send plain words, or an object"),
        ({"type": "narrative", "narrative": 3}, "wrong_field", "narrative", "narrative must be plain words"),
        ({"type": "narrative", "narrative": ""}, "empty_prompt", "narrative", "blanks"),
        ({"type": "narrative", "narrative": "a\x00b"}, "wrong_field", "narrative", "U+0000"),
        ({"type": "narrative", "narrative": "a" * 20_001}, "prompt_too_long", "narrative", "20,001"),
        ({"type": "narrative", "narrative": "a " * 501}, "wrong_field", "narrative", "501 words; write at most 500"),
        ({"type": "narrative", "narrative": {}}, "wrong_field", "narrative", "narrative has no words"),
        (narrative(words=["a"], poem=1), "wrong_field", "narrative", "unknown field 'poem'"),
        (narrative(words=["a", "b"], times=[[0, 1]]), "wrong_field", "narrative", "2 words and 1 time"),
        (narrative(words=["a"], trace=[[0, 0, 0]]), "wrong_field", "narrative", "no times of its words"),
        (narrative(words=["a"], times=[[2, 1]]), "wrong_field", "narrative", "the times run backwards"),
        (narrative(caption="a", timed_caption="b"), "wrong_field", "narrative", "timed_caption"),
        (narrative(caption="\u200b"), "empty_prompt", "narrative", "blanks"),
        (narrative(caption="a" * 20_001), "prompt_too_long", "narrative", "20,001"),
        (
            b'{"type": "narrative", "narrative": {"words": ["a"], "times": [[0, 1]], "trace": [[0, NaN, 1]]}}',
            "wrong_field",
            "narrative",
            "trace[0][1] is no finite number but NaN",
        ),
        (
            b'{"type": "narrative", "narrative": {"words": ["a"], "times": [[0, 1e999]]}}',
            "wrong_field",
            "narrative",
            "times[0][1] is no finite number",
        ),
        ({"type": "graph"}, "wrong_field", "graph", "graph is missing: send words such as"),
        ({"type": "graph", "graph": None}, "wrong_field", "graph", "graph must be words such as"),
        ({"type": "graph", "graph": ""}, "empty_prompt", "graph", "graph is empty"),
        ({"type": "graph", "graph": " \n"}, "empty_prompt", "graph", "blanks"),
        ({"type": "graph", "graph": "tree\x1b[2J"}, "wrong_field", "graph", "U+001B"),
        ({"type": "graph", "graph": "tree " * 801}, "prompt_too_long", "graph", "the limit is 4,000"),
        ({"type": "graph", "graph": {}}, "wrong_field", "graph.objects", "graph.objects is missing: send a list of 1"),
        (graph(), "wrong_field", "graph.objects", "must be a list of 1 to 30 objects"),
        (graph(*[{"name": "tree"}] * 1_000), "wrong_field", "graph.objects", "has 1,000 objects and the limit is 30"),
        (graph("tree"), "wrong_field", "graph.objects[0]", "must be an object with a name"),
        (graph({"box": [0, 0, 1, 1]}), "wrong_field", "graph.objects[0].name", "is missing: send a string of 1 to 100"),
        (graph({"name": ""}), "wrong_field", "graph.objects[0].name", "must be a string of 1 to 100"),
        (graph({"name": " "}), "empty_prompt", "graph.objects[0].name", "blanks"),
        (graph({"name": "a" * 101}), "wrong_field", "graph.objects[0].name", "1 to 100 characters"),
        (graph({"name": "a\x07"}), "wrong_field", "graph.objects[0].name", "U+0007"),
        (
            graph({"name": "a"}, {"name": "a", "colour": 1}),
            "wrong_field",
            "graph.objects[1]",
            "graph.objects[1] has a field 'colour' that is not known: leave it out, its fields are name and box",
        ),
        (
            {"type": "graph", "graph": {"objects": [{"name": "a"}], "links": []}},
            "wrong_field",
            "graph",
            "its fields are objects and relations",
        ),
        (graph({"name": "a", "box": [0, 0, 1]}), "wrong_field", "graph.objects[0].box[3]", "is missing: send a number"),
        (graph({"name": "a", "box": [0, 0, 1, 1, 1]}), "wrong_field", "graph.objects[0].box", "four numbers"),
        (graph({"name": "a", "box": "all"}), "wrong_field", "graph.objects[0].box", "four numbers"),
        (
            graph({"name": "a", "box": [0, 0, 1.001, 1]}),
            "wrong_field",
            "graph.objects[0].box[2]",
            "a number from 0 to 1",
        ),
        (graph({"name": "a", "box": [0, 0, True, 1]}), "wrong_field", "graph.objects[0].box[2]", "from 0 to 1"),
        (graph({"name": "a", "box": [0.5, 0, 0.5, 1]}), "wrong_field", "graph.objects[0].box", "x0 below x1"),
        (
            b'{"type": "graph", "graph": {"objects": [{"name": "a", "box": [0, 0, Infinity, 1]}]}}',
            "wrong_field",
            "graph.objects[0].box[2]",
            "a number from 0 to 1",
        ),
        (graph({"name": "a"}, relations=[3]), "wrong_field", "graph.relations[0]", "a list of a place in objects"),
        (graph({"name": "a"}, relations=[[0, "on"]]), "wrong_field", "graph.relations[0][2]", "is missing"),
        (graph({"name": "a"}, relations=[[0, "on", "a"]]), "wrong_field", "graph.relations[0][2]", "a whole number"),
        (graph({"name": "a"}, relations=[[-1, "on", 0]]), "wrong_field", "graph.relations[0][0]", "from 0 to 29"),
        (graph({"name": "a"}, relations=[[0, "", 0]]), "wrong_field", "graph.relations[0][1]", "1 to 100"),
        (graph({"name": "a"}, relations=[[0, "\x01", 0]]), "empty_prompt", "graph.relations[0][1]", "blanks"),
        (graph({"name": "a"}, relations=[[0, "on", 1]]), "wrong_field", "graph.relations[0]", "names object 1, which"),
        (graph({"name": "a"}, relations=[[0, "on", 0]] * 201), "wrong_field", "graph.relations", "201 relations"),
        ({"type": "graph", "graph": {"objects": [], "relations": "a"}}, "wrong_field", "graph.objects", "1 to 30"),
    ],
)
def test_a_wrong_body_is_named(body: JSON | bytes, code: str, field: str | None, part: str) -> None:
    error = refused(body)
    assert (error.code, error.field) == (code, field)
    assert part in error.message


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..%2f..",
        "a/b",
        "a\0",
        "a@",
        "a@0",
        "a@01",
        "a@latest",
        "a@champion@1",
        "ü",
        "",
        ".a",
        "a" * 101,
        "a@1\n",
        "a b",
        "-a",
        "a@" + "9" * 10,
    ],
)
def test_a_name_that_no_model_can_have_is_unknown(name: str) -> None:
    error = refused({"prompt": "a", "model": name})
    assert (error.code, error.field, error.status) == ("unknown_model", "model", 404)
    assert "GET /v1/models" in error.message and (not name or name not in error.message or name == "a@champion@1")


@pytest.mark.parametrize("name", ["a", "xmcgan@champion", "xmc-gan_2.1@3", "A" * 100 + "@999999999", None])
def test_a_name_that_a_model_can_have_is_passed_on(name: str | None) -> None:
    assert read({"prompt": "a", "model": name}).model == name


@pytest.mark.parametrize("prompt", ["a\tb\nc\r\n", "ü" * 2_000, "🐑 im Gras", "赤い船", "قارب أحمر", "a\u200db"])
def test_other_scripts_and_ends_of_lines_are_kept(prompt: str) -> None:
    assert read({"prompt": prompt}) == ImageRequest("prompt", prompt)
    assert read({"type": "narrative", "narrative": prompt}).text == prompt.strip()


def test_what_is_asked_for_reaches_the_job() -> None:
    wishes = {
        "model": "m@3",
        "seed": 5,
        "count": 3,
        "truncation": 1,
        "explain": True,
        "format": "json",
        "deadline_s": 9,
    }
    request = read({"prompt": "a bird", **wishes})
    job = request.job("id", 8.5)
    assert (job.kind, job.text, job.model, job.truncation, job.explain) == ("prompt", "a bird", "m@3", 1.0, True)
    assert job.seeds == tuple(image_seed(5, index) for index in range(3)) and job.seeds[0] == 5
    assert (job.request_id, job.seconds, request.deadline_s) == ("id", 8.5, 9)
    plain = read({"prompt": "a bird", "truncation": None, "format": None, "count": None}).job("", 60)
    assert (plain.seeds, plain.model, plain.truncation, plain.explain) == ((0,), None, None, False)


def test_the_old_name_of_count_still_counts() -> None:
    assert read({"prompt": "a", "images": 3}) == read({"prompt": "a", "count": 3})


def test_every_form_of_a_narrative_has_one_text() -> None:
    short = json.loads(EXAMPLE)
    said = [
        {"utterance": word, "start_time": start, "end_time": end}
        for word, (start, end) in zip(short["words"], short["times"], strict=True)
    ]
    points = [dict(zip("xyt", point, strict=True)) for point in short["trace"]]
    published = {"caption": "a dog on grass", "timed_caption": said, "traces": [points], "image_id": 7}
    texts = {read({"type": "narrative", "narrative": form}).text for form in (short, EXAMPLE, published, " " + EXAMPLE)}
    assert len(texts) == 1
    again = read_narrative(texts.pop())
    assert again.caption == "a dog on grass" and again.traces[0].tolist() == short["trace"]
    assert read({"type": "narrative", "narrative": " a dog on grass\n"}).text == "a dog on grass"


def test_a_long_trace_is_read_and_a_longer_one_refused() -> None:
    body = narrative(words=["a"], times=[[0, 1]], trace=[[0.123456, 0.654321, k / 10_000] for k in range(10_000)])
    assert len(read_narrative(read(body).text).traces[0]) == 10_000
    body["narrative"]["trace"].append([0, 0, 1])
    error = refused(body)
    assert error.code == "wrong_field" and "10,001 points; keep at most 10,000" in error.message


def test_a_graph_in_parts_becomes_what_its_reader_reads() -> None:
    parts = graph(
        {"name": "sheep", "box": [0, 0.25, 0.5, 1]}, {"name": "tree", "box": None}, relations=[[0, "left of", 1]]
    )
    text = read(parts).text
    assert (
        text == '{"objects":[{"name":"sheep","box":[0.0,0.25,0.5,1.0]},{"name":"tree"}],"relations":[[0,"left of",1]]}'
    )
    found = read_graph(text, VOCABULARY)
    assert [thing.name for thing in found.objects] == ["sheep", "tree"] and found.objects[0].box == (0, 0.25, 0.5, 0.75)
    assert found.relationships == ((0, "left of", 1),)
    assert read({"type": "graph", "graph": " sheep left of tree\n"}).text == "sheep left of tree"
    assert "赤" in read(graph({"name": "赤"})).text
    # The largest that may be sent is read as well.
    read(graph(*[{"name": "tree"}] * 30, relations=[[29, "on", 0]] * 200))


@pytest.mark.parametrize(("summary", "body"), EXAMPLES.values(), ids=list(EXAMPLES))
def test_published_examples_are_read(summary: str, body: JSON) -> None:
    assert read(body).kind == body.get("type", "prompt") and summary


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
any_text = st.text(st.characters(categories=None), max_size=20)
words = st.sampled_from(
    ["words", "times", "trace", "caption", "timed_caption", "traces", "objects", "relations", "name"]
)
near_requests = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["prompt", "narrative", "graph"]) | json_values,
        "prompt": any_text | json_values,
        "narrative": any_text | st.dictionaries(words, json_values, max_size=3) | json_values,
        "graph": any_text | st.dictionaries(words, json_values, max_size=3) | json_values,
        "seed": st.integers(-1, 2**64) | json_values,
        "count": st.integers(-1, 20) | json_values,
        "model": any_text | json_values,
        "truncation": st.floats() | json_values,
        "extra": json_values,
    },
)


@given(body=st.one_of(st.binary(max_size=50), near_requests.map(lambda value: json.dumps(value).encode())))
@settings(deadline=None, max_examples=200)
def test_any_body_is_read_or_refused_in_words(body: bytes) -> None:
    try:
        request = parse_image_request(body)
    except ServeError as error:
        assert error.status in (400, 404, 422) and error.message and "\n" not in error.message
    else:
        assert request == parse_image_request(body)
        # Canonical: what was read says the same again.
        assert read({"type": request.kind, request.kind: request.text}).text == request.text


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=20))
@settings(deadline=None, max_examples=60)
def test_no_sentence_repeats_a_prompt(text: str) -> None:
    marked = "Qx" + text.replace("\0", "") + "xQ"
    for body in (
        {"prompt": marked + "\0"},
        {"prompt": [marked]},
        {"prompt": marked, "seed": marked},
        {"model": marked},
    ):
        assert marked not in refused(body).message


# Seeds, formats and errors


@given(seed=st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=50)
def test_seeds_are_distinct_and_in_range(seed: int) -> None:
    seeds = [image_seed(seed, index) for index in range(16)]
    assert seeds[0] == seed and len(set(seeds)) == 16
    assert all(0 <= value < 2**63 for value in seeds)


def test_derived_seeds_stay_what_they_are() -> None:
    # A changed derivation would silently change pictures that were served before.
    assert image_seed(0, 1) == int(hashlib.sha256(b"0:1").hexdigest()[:16], 16) % 2**63


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("image/png", False),
        ("text/html, */*;q=0.8", False),
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("image/png;q=0.5, application/json", True),
        ("image/*, application/json;q=0.9", False),
        ("application/json;q=0", False),
        ("application/json;q=x", False),
    ],
)
def test_accept(accept: str, expected: bool) -> None:
    assert wants_json(accept) is expected
    request = ImageRequest("prompt", "a")
    assert request.replies_json(accept) is expected


def test_the_format_goes_before_the_accept_header() -> None:
    assert not ImageRequest("prompt", "a", format="png").replies_json("application/json")
    assert ImageRequest("prompt", "a", format="json").replies_json("image/png")
    assert ImageRequest("prompt", "a", count=2).replies_json("image/png")
    assert ImageRequest("prompt", "a", explain=True).replies_json("image/png")


def test_a_refusal_can_be_sent_between_processes() -> None:
    error = ServeError("busy", "too many wait: repeat", {"Retry-After": "1"}, "prompt")
    found = copy.deepcopy(error)  # by what processes send each other
    assert (found.code, found.message, found.status, found.headers, found.field) == (
        *("busy", "too many wait: repeat", 429),
        {"Retry-After": "1"},
        "prompt",
    )


def test_reading_requests_needs_neither_torch_nor_ray() -> None:
    script = (
        "import sys, orchestration.serving.requests, orchestration.serving.endpoint; "
        "print([name for name in ('torch', 'ray', 'mlflow', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
