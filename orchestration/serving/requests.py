"""What can be asked of the endpoint, as the backend wants it, and the vocabulary of its refusals."""

import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, Field, ValidationError

from orchestration.data.graph_text import MOST_OBJECTS
from orchestration.errors import RequestError
from orchestration.narratives.narrative_text import narrative_json, read_narrative
from orchestration.serving.backend import Job
from orchestration.serving.inputs import (
    BODIES,
    DEADLINE_LIMIT,
    GRAPH_LIMIT,
    IMAGES_LIMIT,
    NAME_LIMIT,
    NARRATIVE_LIMIT,
    PROMPT_LIMIT,
    RELATIONS_LIMIT,
    SEED_LIMIT,
    TRUNCATION_LIMIT,
    Body,
    GraphBody,
    GraphParts,
    NarrativeBody,
    PromptBody,
)
from orchestration.serving.replies import Kind, ModelIdentity

__all__ = ["STATUS", "ImageRequest", "ModelIdentity", "ServeError", "image_seed", "parse_image_request", "wants_json"]

BODY_LIMIT: Final = 2**20
"""Bytes; a mouse trace of 10,000 points is about half of it."""

STATUS: Final[Mapping[str, int]] = {
    "bad_json": 400,
    "incomplete_body": 400,
    "unauthorized": 401,
    "not_found": 404,
    "unknown_model": 404,
    "unknown_image": 404,
    "method_not_allowed": 405,
    "slow_body": 408,
    "body_too_large": 413,
    "empty_prompt": 422,
    "prompt_too_long": 422,
    "too_many_images": 422,
    "wrong_field": 422,
    "wrong_prompt": 422,
    "wrong_input": 422,
    "wrong_format": 422,
    "busy": 429,
    "internal": 500,
    "not_ready": 503,
    "timed_out": 504,
}
"""Every error code and its HTTP status."""

# Control, format, surrogate and the three separator categories: nothing of these can be seen.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"})
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # less tab and ends of lines

_NAME = f"a string of 1 to {NAME_LIMIT} characters"
_COUNT = f"a whole number from 1 to {IMAGES_LIMIT}"
_RULES: Mapping[str, str] = {
    "type": "prompt, narrative or graph",
    "prompt": f"a string of 1 to {PROMPT_LIMIT:,} characters",
    "narrative": "plain words, or an object with words, times and trace, or with caption, timed_caption and traces",
    "graph": "words such as sheep left of tree, or an object with objects and relations",
    "model": "a name such as xmcgan, xmcgan@champion or xmcgan@3",
    "seed": "a whole number from 0 to 2^63 - 1",
    "count": _COUNT,
    "images": _COUNT,
    "truncation": f"a number above 0 and at most {TRUNCATION_LIMIT:g}",
    "format": "png or json",
    "explain": "true or false",
    "deadline_s": f"a number of seconds from 1 to {DEADLINE_LIMIT:,.0f}",
    "graph.objects": f"a list of 1 to {MOST_OBJECTS} objects",
    "graph.objects[]": "an object with a name and perhaps a box",
    "graph.objects[].name": _NAME,
    "graph.objects[].box": "a list of four numbers x0, y0, x1, y1 from 0 to 1",
    "graph.objects[].box[]": "a number from 0 to 1",
    "graph.relations": f"a list of at most {RELATIONS_LIMIT} relations",
    "graph.relations[]": "a list of a place in objects, a word, and another place",
    "graph.relations[][0]": f"a place in objects, a whole number from 0 to {MOST_OBJECTS - 1}",
    "graph.relations[][1]": _NAME,
    "graph.relations[][2]": f"a place in objects, a whole number from 0 to {MOST_OBJECTS - 1}",
}
"""What each field must be; [] stands for any place in a list."""

_WISHES = tuple(PromptBody.model_fields.keys() - {"prompt", "type"})


class ServeError(Exception):
    """A refusal: `code` is a key of STATUS; `message` says in one sentence what, where and how to mend it.

    field: of the request that it concerns, such as graph.objects[2].name.
    """

    def __init__(
        self, code: str, message: str, headers: Mapping[str, str] | None = None, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = STATUS[code]
        self.headers = dict(headers or {})
        self.field = field

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, dict[str, str], str | None]]:
        # The message alone, which is what exceptions are copied by, would not make another one.
        return type(self), (self.code, self.message, self.headers, self.field)


class ErrorBody(BaseModel):
    """The inside of an error reply."""

    code: str = Field(description="one of: " + ", ".join(STATUS))
    message: str = Field(description="one sentence: what was wrong, where, and how to mend it")
    field: str | None = Field(description="of the request that it concerns, such as graph.objects[2].name")


class ErrorReply(BaseModel):
    """Every reply that is not a success."""

    error: ErrorBody


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A body of POST /v1/images that was read; text is canonical, the other fields are as `inputs.Wishes` has them."""

    kind: Kind
    text: str
    model: str | None = None
    seed: int = 0
    count: int = 1
    truncation: float | None = None
    format: Literal["png", "json"] | None = None
    explain: bool = False
    deadline_s: float | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed a picture: the request's own first, the others derived from it."""
        return tuple(image_seed(self.seed, index) for index in range(self.count))

    def job(self, request_id: str, seconds: float) -> Job:
        """What the backend gets; seconds: until the deadline."""
        return Job(
            self.kind, self.text, self.seeds, self.model, self.truncation, self.explain, request_id, seconds=seconds
        )

    def replies_json(self, accept: str) -> bool:
        """Whether the reply is JSON and not a PNG, by the request and its Accept header."""
        if self.format is not None:
            return self.format == "json"
        return self.count > 1 or self.explain or wants_json(accept)


def image_seed(seed: int, index: int) -> int:
    """The seed of picture `index` of a request: `seed` itself for 0, else 63 bits of sha256("seed:index")."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "big") & SEED_LIMIT


def parse_image_request(body: bytes) -> ImageRequest:
    """The request in `body`; ServeError for the first thing that is wrong. No message repeats a prompt."""
    try:
        fields = _parse_object(body)
        kind = _kind(fields)
        return _request(kind, _validated(kind, fields))
    except RecursionError:
        raise _beyond_reason() from None


def wants_json(accept: str) -> bool:
    """Whether an Accept header asks for JSON at least as much as for a PNG; `*/*` alone asks for neither."""
    weights = {"json": 0.0, "png": 0.0}
    for item in accept.lower().split(","):
        media, *parameters = (part.strip() for part in item.split(";"))
        weight = _quality(parameters)
        if media in ("application/json", "application/*"):
            weights["json"] = max(weights["json"], weight)
        elif media in ("image/png", "image/*"):
            weights["png"] = max(weights["png"], weight)
    return weights["json"] > 0 and weights["json"] >= weights["png"]


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except UnicodeDecodeError:
        raise ServeError("bad_json", "the body is not text in UTF-8: send a JSON object") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ServeError("bad_json", f"the body is not JSON ({error.msg} at {where}): send a JSON object") from None
    except ValueError:
        raise _beyond_reason() from None
    if not isinstance(value, dict):
        raise ServeError("bad_json", 'the body is JSON but no object: send {"prompt": "..."}')
    return value


def _beyond_reason() -> ServeError:
    return ServeError("bad_json", "the body is JSON beyond reason (depth or digits): send a flat object")


def _kind(fields: Mapping[str, Any]) -> str:
    kind = fields.get("type", "prompt")
    if not isinstance(kind, str) or kind not in BODIES:
        raise ServeError("wrong_field", f"type must be {_RULES['type']}: mend it", field="type")
    known = BODIES[kind].model_fields
    for name in fields:
        if name not in known:
            raise _unknown_field(name, kind, "type" in fields)
    if "count" in fields and "images" in fields:
        message = "count and images are one field, and images is its old name: leave images out"
        raise ServeError("wrong_field", message, field="images")
    return kind


def _unknown_field(name: str, kind: str, typed: bool) -> ServeError:
    if name in BODIES and not typed:
        hint = f'say "type": "{name}" beside it'
    else:
        known = (kind, *_WISHES, "type")
        near = difflib.get_close_matches(name[:40], known, n=1, cutoff=0.5)
        hint = f"write {near[0]}" if near else "leave it out"
    listed = ", ".join(field for field in BODIES[kind].model_fields if field != "images")
    return ServeError("wrong_field", f"there is no field {name[:40]!a}: {hint}; the fields are {listed}")


def _validated(kind: str, fields: Mapping[str, Any]) -> Body:
    try:
        return BODIES[kind].model_validate(fields)
    except ValidationError as error:
        # `input` and `context` hold what was sent: neither is looked at.
        problem = error.errors(include_input=False, include_context=False, include_url=False)[0]
        field, *inner = problem["loc"]
        # The next step tells which form of a graph or a narrative was tried; a narrative has no further ones.
        inner = {"graph": inner[1:], "narrative": []}.get(str(field), inner)
        raise _refusal([field, *inner], problem["type"], fields) from None


def _refusal(steps: Sequence[str | int], kind: str, fields: Mapping[str, Any]) -> ServeError:
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    match steps, kind:
        case ["prompt"] | ["graph"], "string_too_short":
            return _empty(field, "is empty")
        case ["prompt"] | ["graph"], "string_too_long":
            return _too_long(field, len(fields[field]))
        case _, "string_unicode":
            return ServeError(
                "wrong_field", f"{field} holds half of a surrogate pair: send whole characters", None, field
            )
        case ["model"], "string_pattern_mismatch":
            message = f"there is no such model: write {_RULES['model']}, as GET /v1/models lists them"
            return ServeError("unknown_model", message, None, field)
        case ["count"] | ["images"], "less_than_equal":
            message = f"{field} is more than {IMAGES_LIMIT}: ask for fewer, or send several requests"
            return ServeError("too_many_images", message, None, field)
        case ["graph", ("objects" | "relations") as part], "too_long":
            limit = MOST_OBJECTS if part == "objects" else RELATIONS_LIMIT
            message = f"{field} has {len(fields['graph'][part]):,} {part} and the limit is {limit}: leave some out"
            return ServeError("wrong_field", message, None, field)
        case [*_, name], "extra_forbidden":
            inside = field.rpartition(".")[0]
            known = "name and box" if "[" in inside else "objects and relations"
            message = f"{inside} has a field {str(name)[:40]!a} that is not known: leave it out, its fields are {known}"
            return ServeError("wrong_field", message, None, inside)
    rule = _RULES[field] if field in _RULES else _RULES[_general(steps)]
    what = f"is missing: send {rule}" if kind == "missing" else f"must be {rule}: mend it"
    return ServeError("wrong_field", f"{field} {what}", None, field)


def _general(steps: Sequence[str | int]) -> str:
    """The key in _RULES of a place inside a graph."""
    told = "".join("[]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    return f"graph.relations[][{steps[-1]}]" if told == "graph.relations[][]" else told


def _request(kind: str, body: Body) -> ImageRequest:
    count = body.count or body.images or 1
    if body.format == "png" and (count > 1 or body.explain):
        what = "several pictures" if count > 1 else "reasons"
        raise ServeError("wrong_format", f"one PNG cannot hold {what}: ask for the format json", field="format")
    text = _text(body)
    return ImageRequest(
        body.type,
        text,
        body.model,
        body.seed,
        count,
        body.truncation,
        body.format,
        body.explain,
        body.deadline_s,
    )


def _text(body: Body) -> str:
    if isinstance(body, PromptBody):
        _check_characters(body.prompt, "prompt")
        return body.prompt
    if isinstance(body, NarrativeBody):
        return _narrative_text(body.narrative)
    assert isinstance(body, GraphBody)
    if isinstance(body.graph, str):
        _check_characters(body.graph, "graph")
        return body.graph.strip()
    return _graph_json(body.graph)


def _narrative_text(narrative: str | dict[str, Any]) -> str:
    """Plain words, or JSON in the published form whatever form was sent."""
    if isinstance(narrative, str):
        if len(narrative) > NARRATIVE_LIMIT:
            raise _too_long("narrative", len(narrative))
        _check_characters(narrative, "narrative")
    given = narrative if isinstance(narrative, str) else json.dumps(narrative)
    try:
        read = read_narrative(given, "narrative")
    except RequestError as error:
        raise ServeError("wrong_field", str(error), field="narrative") from None
    said = max(len(read.caption), sum(len(each.text) for each in read.utterances))
    if said > NARRATIVE_LIMIT:
        raise _too_long("narrative", said)
    _check_characters(read.caption, "narrative")
    return narrative_json(read) if given.lstrip().startswith("{") else read.caption


def _graph_json(graph: GraphParts) -> str:
    objects: list[dict[str, Any]] = []
    for place, thing in enumerate(graph.objects):
        where = f"graph.objects[{place}]"
        _check_characters(thing.name, f"{where}.name")
        if thing.box is None:
            objects.append({"name": thing.name})
            continue
        x0, y0, x1, y1 = thing.box
        if x0 >= x1 or y0 >= y1:
            message = f"{where}.box is empty: write x0, y0, x1, y1 with x0 below x1 and y0 below y1"
            raise ServeError("wrong_field", message, field=f"{where}.box")
        objects.append({"name": thing.name, "box": thing.box})
    for place, (subject, word, target) in enumerate(graph.relations):
        where = f"graph.relations[{place}]"
        _check_characters(word, f"{where}[1]")
        if max(subject, target) >= len(objects):
            message = (
                f"{where} names object {max(subject, target)}, which is not there: the graph lists {len(objects)}, and "
                "the first is 0"
            )
            raise ServeError("wrong_field", message, field=where)
    parts = {"objects": objects, "relations": graph.relations}
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def _check_characters(text: str, field: str) -> None:
    if all(unicodedata.category(character) in _INVISIBLE for character in text):
        raise _empty(field, "holds nothing but blanks")
    if (odd := _CONTROL.search(text)) is not None:
        message = f"{field} holds the control character U+{ord(odd[0]):04X}: remove it"
        raise ServeError("wrong_field", message, field=field)


def _empty(field: str, what: str) -> ServeError:
    return ServeError("empty_prompt", f"{field} {what}: write what the picture shows", field=field)


def _too_long(field: str, length: int) -> ServeError:
    limit = {"prompt": PROMPT_LIMIT, "narrative": NARRATIVE_LIMIT, "graph": GRAPH_LIMIT}[field]
    message = f"{field} has {length:,} characters and the limit is {limit:,}: shorten it"
    return ServeError("prompt_too_long", message, field=field)
