"""What can be asked of the endpoint, what it answers, and the vocabulary of its refusals."""

import difflib
import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PROMPT_LIMIT: Final = 2_000
IMAGES_LIMIT: Final = 16
SEED_LIMIT: Final = 2**63 - 1
BODY_LIMIT: Final = 64 * 2**10

STATUS: Final[Mapping[str, int]] = {
    "bad_json": 400,
    "incomplete_body": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "body_too_large": 413,
    "empty_prompt": 422,
    "prompt_too_long": 422,
    "too_many_images": 422,
    "wrong_field": 422,
    "wrong_prompt": 422,
    "internal": 500,
    "busy": 503,
    "not_ready": 503,
    "timed_out": 504,
}
"""Every error code and its HTTP status."""

# Control, format, surrogate and the three separator categories: nothing of these can be seen.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"})

_RULES = {
    "prompt": f"a string of 1 to {PROMPT_LIMIT:,} characters",
    "seed": "a whole number from 0 to 2^63 - 1",
    "images": f"a whole number from 1 to {IMAGES_LIMIT}",
}


class ServeError(Exception):
    """A refusal: `code` is a key of STATUS; `message` says in one sentence what, where and how to mend it."""

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = STATUS[code]
        self.headers = dict(headers or {})


class ErrorBody(BaseModel):
    """The inside of an error reply."""

    code: str = Field(description="one of: " + ", ".join(STATUS))
    message: str = Field(description="one sentence: what was wrong, where, and how to mend it")


class ErrorReply(BaseModel):
    """Every reply that is not a success."""

    error: ErrorBody


class ImageRequest(BaseModel):
    """The body of POST /v1/images."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: Annotated[str, Field(min_length=1, max_length=PROMPT_LIMIT, description="what the picture shows")]
    seed: Annotated[int, Field(ge=0, le=SEED_LIMIT, description="the same request gives the same picture")] = 0
    images: Annotated[int, Field(ge=1, le=IMAGES_LIMIT, description="the first picture is that of images = 1")] = 1

    @property
    def seeds(self) -> list[int]:
        """One seed a picture: the request's own first, the others derived from it."""
        return [image_seed(self.seed, index) for index in range(self.images)]


class ModelIdentity(BaseModel):
    """Which model draws; checkpoint_digest is the sha256 of the checkpoint's manifest, hex."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    checkpoint_digest: str


class ImageReply(BaseModel):
    """One picture of a JSON reply; asked for alone with its seed it has the same bytes."""

    png: str = Field(description="base64 of the PNG file")
    seed: int


class ImagesReply(BaseModel):
    """The JSON reply of POST /v1/images."""

    images: list[ImageReply]
    model: ModelIdentity


class HealthReply(BaseModel):
    """The reply of GET /healthz."""

    status: Literal["ok"] = "ok"
    model: str
    version: str
    checkpoint_digest: str


def image_seed(seed: int, index: int) -> int:
    """The seed of picture `index` of a request: `seed` itself for 0, else 63 bits of sha256("seed:index")."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "big") & SEED_LIMIT


def parse_image_request(body: bytes) -> ImageRequest:
    """The request in `body`; ServeError for the first thing that is wrong. No message repeats the prompt."""
    fields = _parse_object(body)
    for name in fields:
        if name not in _RULES:
            raise ServeError("wrong_field", _unknown_field(name))
    try:
        request = ImageRequest.model_validate(fields)
    except ValidationError as error:
        # `input` and `context` hold what was sent: neither is looked at.
        problem = error.errors(include_input=False, include_context=False, include_url=False)[0]
        raise _refusal(str(problem["loc"][0]), problem["type"], fields) from None
    if all(unicodedata.category(character) in _INVISIBLE for character in request.prompt):
        raise ServeError("empty_prompt", "prompt holds nothing but blanks: write what the picture shows")
    if "\0" in request.prompt:
        raise ServeError("wrong_field", "prompt holds a NUL character, which no PNG can carry: remove it")
    return request


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
    except (ValueError, RecursionError):
        raise ServeError("bad_json", "the body is JSON beyond reason (depth or digits): send a flat object") from None
    if not isinstance(value, dict):
        raise ServeError("bad_json", 'the body is JSON but no object: send {"prompt": "..."}')
    return value


def _unknown_field(name: str) -> str:
    near = difflib.get_close_matches(name[:40], _RULES, n=1, cutoff=0.5)
    hint = f"write {near[0]}" if near else "leave it out"
    return f"there is no field {name[:40]!a}: {hint}; the fields are {', '.join(_RULES)}"


def _refusal(field: str, kind: str, fields: Mapping[str, Any]) -> ServeError:
    match field, kind:
        case "prompt", "string_too_short":
            return ServeError("empty_prompt", "prompt is empty: write what the picture shows")
        case "prompt", "string_too_long":
            length = len(fields["prompt"])
            return ServeError(
                "prompt_too_long", f"prompt has {length:,} characters and the limit is {PROMPT_LIMIT:,}: shorten it"
            )
        case "prompt", "string_unicode":
            return ServeError("wrong_field", "prompt holds half of a surrogate pair: send whole characters")
        case "images", "less_than_equal":
            return ServeError(
                "too_many_images", f"images is more than {IMAGES_LIMIT}: ask for fewer, or send several requests"
            )
        case _, "missing":
            return ServeError("wrong_field", f"{field} is missing: send {_RULES[field]}")
    return ServeError("wrong_field", f"{field} must be {_RULES[field]}: mend it")
