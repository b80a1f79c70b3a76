"""Serving without Ray: the vocabulary of refusals, PNG files, seeds, and batches that cannot be seen."""

import asyncio
import base64
import hashlib
import io
import json
import logging
import socket
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from orchestration.errors import RequestError
from orchestration.serving.app import build_app
from orchestration.serving.client import request_image
from orchestration.serving.endpoint import Painted, create_http_app
from orchestration.serving.painting import InvariantBatches, PainterLike, candidate_sizes
from orchestration.serving.pictures import encode_png, picture_metadata, read_metadata
from orchestration.serving.requests import (
    STATUS,
    ModelIdentity,
    ServeError,
    image_seed,
    parse_image_request,
    wants_json,
)
from orchestration.serving.server import check_port, start_server

MODEL = ModelIdentity(name="bird", version="3", checkpoint_digest="cd" * 32)
Disturbance = Callable[[int, int, Sequence[str]], float]


class FakePainter:
    """Pictures of one grey, a function of prompt and seed plus what `disturbance(size, place, prompts)` adds."""

    resolution = 4
    checkpoint_digest = MODEL.checkpoint_digest
    experiment_name = "fake"

    def __init__(self, disturbance: Disturbance = lambda size, place, prompts: 0.0) -> None:
        self.disturbance = disturbance
        self.drawn_sizes: list[int] = []

    @classmethod
    def load(cls, checkpoint: Path, home: Path, device: str = "cpu") -> Self:
        return cls()

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        pixels = self.draw_float(prompts, seeds).permute(0, 2, 3, 1)
        return ((pixels + 1) * 127.5).to(torch.uint8).numpy()

    def draw_float(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        self.drawn_sizes.append(len(prompts))
        greys = [
            hashlib.sha256(f"{seed} {prompt}".encode("utf-8", "surrogatepass")).digest()[0] / 128 - 1
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        shifts = [self.disturbance(len(prompts), place, prompts) for place in range(len(prompts))]
        return (torch.tensor(greys) + torch.tensor(shifts))[:, None, None, None].expand(-1, 3, 4, 4)


class FakeBackend:
    """Draws with a painter, in the batches that serving would use."""

    def __init__(self, painter: PainterLike | None = None, failure: Exception | None = None, wait_s: float = 0) -> None:
        self.batches = InvariantBatches(painter or FakePainter(), 8)
        self.failure = failure
        self.wait_s = wait_s

    async def paint(self, prompt: str, seeds: Sequence[int], request_id: str) -> Painted:
        await asyncio.sleep(self.wait_s)
        if self.failure:
            raise self.failure
        pixels = self.batches.draw([prompt] * len(seeds), seeds)
        metadata = [picture_metadata(prompt, seed, MODEL) for seed in seeds]
        return Painted(MODEL, [encode_png(*pair) for pair in zip(pixels, metadata, strict=True)])

    async def describe(self) -> ModelIdentity:
        return MODEL


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(create_http_app(FakeBackend()))


def refusal(reply: Any) -> tuple[int, str, str]:
    error = reply.json()["error"]
    assert set(reply.json()) == {"error"} and set(error) == {"code", "message"}
    assert STATUS[error["code"]] == reply.status_code
    assert "Traceback" not in error["message"] and "\n" not in error["message"]
    return reply.status_code, error["code"], error["message"]


# Requests


@pytest.mark.parametrize(
    ("body", "code", "part"),
    [
        (b"", "bad_json", "line 1"),
        (b"{", "bad_json", "line 1, column 2"),
        (b"\xff\xfe\xff", "bad_json", "the body"),
        (b"[" * 60_000, "bad_json", "depth"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", "bad_json", "digits"),
        (b'["a bird"]', "bad_json", "no object"),
        (b"{}", "wrong_field", "prompt is missing"),
        (b'{"prompt": 3}', "wrong_field", "prompt must be a string"),
        (b'{"prompt": ""}', "empty_prompt", "empty"),
        (b'{"prompt": " \\t\\n\\u0000\\u200b\\u3000"}', "empty_prompt", "blanks"),
        (b'{"prompt": "a\\u0000b"}', "wrong_field", "NUL"),
        (b'{"prompt": "a\\ud800"}', "wrong_field", "surrogate"),
        (b'{"prompt": "a", "seed": -1}', "wrong_field", "seed must be a whole number from 0"),
        (b'{"prompt": "a", "seed": 9223372036854775808}', "wrong_field", "seed"),
        (b'{"prompt": "a", "seed": 1.5}', "wrong_field", "seed"),
        (b'{"prompt": "a", "seed": true}', "wrong_field", "seed"),
        (b'{"prompt": "a", "seed": NaN}', "wrong_field", "seed"),
        (b'{"prompt": "a", "images": 0}', "wrong_field", "images must be"),
        (b'{"prompt": "a", "images": 17}', "too_many_images", "16"),
        (b'{"prompt": "a", "sede": 1}', "wrong_field", "no field 'sede': write seed"),
        (b'{"prompt": "a", "\\ud800": 1}', "wrong_field", "no field"),
    ],
)
def test_a_wrong_body_is_named(client: TestClient, body: bytes, code: str, part: str) -> None:
    status, found, message = refusal(client.post("/v1/images", content=body))
    assert (found, status) == (code, 400 if code == "bad_json" else 422)
    assert part in message


def test_the_length_of_a_prompt_is_told(client: TestClient) -> None:
    assert client.post("/v1/images", json={"prompt": "ü" * 2_000}).status_code == 200
    _, code, message = refusal(client.post("/v1/images", json={"prompt": "ü" * 2_001}))
    assert code == "prompt_too_long" and "2,001" in message and "2,000" in message


@pytest.mark.parametrize("sized", [True, False])
def test_a_large_body_is_refused(client: TestClient, sized: bool) -> None:
    body = json.dumps({"prompt": "x" * 100_000}).encode()
    reply = client.post("/v1/images", content=body if sized else iter([body[:50_000], body[50_000:]]))
    assert refusal(reply)[:2] == (413, "body_too_large")


def test_wrong_paths_and_methods(client: TestClient) -> None:
    assert refusal(client.get("/nothing/ü"))[1] == "not_found"
    assert refusal(client.post("/v1/images/", json={"prompt": "a"}))[1] == "not_found"
    reply = client.get("/v1/images")
    assert refusal(reply)[1] == "method_not_allowed" and reply.headers["Allow"] == "POST"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
near_requests = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(st.characters(categories=None), max_size=20) | json_values,
        "seed": st.integers(-1, 2**64) | json_values,
        "images": st.integers(-1, 20) | json_values,
        "extra": json_values,
    },
)


@given(body=st.one_of(st.binary(max_size=50), near_requests.map(lambda value: json.dumps(value).encode())))
@settings(deadline=None, max_examples=150)
def test_any_body_is_drawn_or_refused_in_words(client: TestClient, body: bytes) -> None:
    reply = client.post("/v1/images", content=body)
    if reply.status_code == 200:
        request = parse_image_request(body)
        if request.images == 1:
            assert read_metadata(reply.content)["prompt"] == request.prompt
    else:
        assert refusal(reply)[0] in (400, 422)


# Replies


def test_a_picture_is_a_png_unless_json_is_asked_for(client: TestClient) -> None:
    body = {"prompt": "a bird", "seed": 7}
    png = client.post("/v1/images", json=body)
    assert png.headers["Content-Type"] == "image/png"
    reply = client.post("/v1/images", json=body, headers={"Accept": "application/json"}).json()
    assert reply["model"] == MODEL.model_dump()
    assert [image["seed"] for image in reply["images"]] == [7]
    assert base64.b64decode(reply["images"][0]["png"]) == png.content


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


def test_several_pictures_hold_those_of_fewer(client: TestClient) -> None:
    reply = client.post("/v1/images", json={"prompt": "a bird", "seed": 5, "images": 3}).json()
    for image in reply["images"]:
        alone = client.post("/v1/images", json={"prompt": "a bird", "seed": image["seed"]})
        assert alone.content == base64.b64decode(image["png"])
    assert reply["images"][0]["seed"] == 5


@given(seed=st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=50)
def test_seeds_are_distinct_and_in_range(seed: int) -> None:
    seeds = [image_seed(seed, index) for index in range(16)]
    assert seeds[0] == seed and len(set(seeds)) == 16
    assert all(0 <= value < 2**63 for value in seeds)


def test_derived_seeds_stay_what_they_are() -> None:
    # A changed derivation would silently change pictures that were served before.
    assert image_seed(0, 1) == int(hashlib.sha256(b"0:1").hexdigest()[:16], 16) % 2**63


def test_health_names_the_model(client: TestClient) -> None:
    assert client.get("/healthz").json() == {
        "status": "ok",
        "model": "bird",
        "version": "3",
        "checkpoint_digest": MODEL.checkpoint_digest,
    }


def test_every_reply_has_an_id(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "mine"}).headers["X-Request-ID"] == "mine"
    first, second = (client.get("/nothing").headers["X-Request-ID"] for _ in range(2))
    assert first != second
    assert len(client.get("/healthz", headers={"X-Request-ID": "x" * 500}).headers["X-Request-ID"]) == 36


def test_a_failure_says_nothing_of_itself_or_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    client = TestClient(create_http_app(FakeBackend(failure=ValueError("it was: secret prompt"))))
    with caplog.at_level(logging.DEBUG, logger="orchestration"):
        reply = client.post("/v1/images", json={"prompt": "secret prompt"})
    status, code, message = refusal(reply)
    assert (status, code) == (500, "internal") and reply.headers["X-Request-ID"] in message
    assert "secret" not in message + caplog.text
    assert reply.headers["X-Request-ID"] in caplog.text and "ValueError" in caplog.text


def test_busy_says_when_to_come_back() -> None:
    busy = ServeError("busy", "too many", {"Retry-After": "1"})
    reply = TestClient(create_http_app(FakeBackend(failure=busy))).post("/v1/images", json={"prompt": "a"})
    assert refusal(reply)[:2] == (503, "busy") and reply.headers["Retry-After"] == "1"


def test_a_slow_picture_times_out() -> None:
    client = TestClient(create_http_app(FakeBackend(wait_s=30), timeout_s=0.05))
    assert refusal(client.post("/v1/images", json={"prompt": "a"}))[:2] == (504, "timed_out")


@pytest.mark.parametrize("token", ["abc", "schlüssel"])
def test_the_token(token: str) -> None:
    client = TestClient(create_http_app(FakeBackend(), token=token))
    body = {"prompt": "a bird"}
    right = {b"Authorization": f"bearer {token}".encode()}
    assert client.post("/v1/images", json=body, headers=right).status_code == 200
    for wrong in ("", "Bearer", "Bearer x", f"Basic {token}", f"Bearer {token}x"):
        reply = client.post("/v1/images", json=body, headers={b"Authorization": wrong.encode()})
        assert refusal(reply)[:2] == (401, "unauthorized") and reply.headers["WWW-Authenticate"] == "Bearer"
    assert client.get("/healthz").status_code == 200


def test_the_openapi_document_is_exact(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/images"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["seed"]["maximum"] == 2**63 - 1
    assert body["properties"]["images"]["maximum"] == 16
    assert set(document["paths"]["/v1/images"]["post"]["responses"]) == {"200"} | {str(s) for s in STATUS.values()}


# PNG files


@given(prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), seed=st.integers(0, 2**63))
@settings(deadline=None, max_examples=60)
def test_png_metadata_round_trip(prompt: str, seed: int) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    metadata = picture_metadata(prompt, seed, MODEL)
    png = encode_png(pixels, metadata)
    assert read_metadata(png) == metadata
    assert png == encode_png(pixels, metadata)


def test_png_holds_the_pixels_and_nothing_unsaid() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    png = encode_png(pixels, picture_metadata("a bird", 1, MODEL))
    kinds, data, place = [], b"", 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        kinds.append(png[place + 4 : place + 8])
        data += png[place + 8 : place + 8 + length] if kinds[-1] == b"IDAT" else b""
        place += length + 12
    assert set(kinds) == {b"IHDR", b"tEXt", b"IDAT", b"IEND"} and kinds.count(b"tEXt") == 6
    assert len(zlib.decompress(data)) == 5 * (1 + 4 * 3)
    assert (np.asarray(Image.open(io.BytesIO(png))) == pixels).all()


@given(junk=st.binary(max_size=60))
@settings(deadline=None, max_examples=50)
def test_what_is_no_png_is_refused(junk: bytes) -> None:
    whole = encode_png(np.zeros((2, 2, 3), np.uint8), {"prompt": "a"})
    for data in (junk, whole[:20] + junk):
        with pytest.raises(RequestError, match="no PNG"):
            read_metadata(data)


# Batches


def test_candidate_sizes() -> None:
    assert candidate_sizes(1) == [1]
    assert candidate_sizes(8) == [1, 2, 4, 8]
    assert candidate_sizes(12) == [1, 2, 4, 8, 12]


TINY = 2.0**-24


@pytest.mark.parametrize(
    ("disturbance", "sizes"),
    [
        (lambda size, place, prompts: 0.0, (1, 2, 4, 8, 16)),
        # One family below 4 and one from 4 on: the larger reaches further.
        (lambda size, place, prompts: TINY * (size < 4), (4, 8, 16)),
        # The largest size stands alone; half of it costs a lone request less.
        (lambda size, place, prompts: TINY * (size == 16) + 2 * TINY * (size < 4), (4, 8)),
        # Every size is its own family.
        (lambda size, place, prompts: TINY * size, (8,)),
        (lambda size, place, prompts: TINY * (size >= 4) * size, (8,)),
        (lambda size, place, prompts: TINY * (place == size - 1 and size > 1), (1,)),
        (lambda size, place, prompts: TINY * (place > 1), (1, 2)),
        # The length of the neighbours matters.
        (lambda size, place, prompts: TINY * max(map(len, prompts)) * (size > 1), (1,)),
        (lambda size, place, prompts: TINY * (size == 16 and len(set(prompts)) > 1), (1, 2, 4, 8)),
    ],
)
def test_only_sizes_that_agree_are_used(disturbance: Disturbance, sizes: tuple[int, ...]) -> None:
    assert InvariantBatches(FakePainter(disturbance), 16).sizes == sizes


def test_a_painter_that_never_repeats_itself_draws_one_at_a_time() -> None:
    drawn = iter(range(10_000))
    batches = InvariantBatches(FakePainter(lambda size, place, prompts: TINY * next(drawn)), 8)
    assert batches.sizes == (1,)


def test_the_sizes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="orchestration"):
        InvariantBatches(FakePainter(lambda size, place, prompts: TINY * (size == 1)), 8)
    assert "in use: [2, 4, 8]; left out, since their bits differ: [1]" in caplog.text


@given(count=st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_padding(count: int) -> None:
    painter = FakePainter(lambda size, place, prompts: TINY * (size < 4))
    batches = InvariantBatches(painter, 16)
    painter.drawn_sizes.clear()
    prompts, seeds = [f"prompt {k}" for k in range(count)], list(range(count))
    pictures = batches.draw(prompts, seeds)
    assert pictures.shape == (count, 4, 4, 3)
    assert set(painter.drawn_sizes) <= {4, 8, 16} and sum(painter.drawn_sizes) < count + 16
    for k in range(count):
        assert (pictures[k] == painter.draw([prompts[k]], [k])[0]).all()


@given(neighbours=st.lists(st.tuples(st.text(max_size=5), st.integers(0, 9)), max_size=20), place=st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_neighbours_are_not_seen(neighbours: list[tuple[str, int]], place: int) -> None:
    # Visible to the eye wherever a wrong size or an unpadded batch is used.
    batches = InvariantBatches(FakePainter(lambda size, place, prompts: 0.0 if size in (2, 8) else 0.5), 8)
    place = min(place, len(neighbours))
    items = [*neighbours[:place], ("a bird", 3), *neighbours[place:]]
    together = batches.draw([prompt for prompt, _ in items], [seed for _, seed in items])[place]
    assert (together == batches.draw(["a bird"], [3])[0]).all()


# Starting


def test_a_wrong_start_is_refused_before_ray_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port} on 127.0.0.1 is in use: choose another with --port"):
            start_server(tmp_path, tmp_path, "bird", "1", port=port)
    with pytest.raises(RequestError, match="port 70000 does not exist"):
        start_server(tmp_path, tmp_path, "bird", "1", port=70_000)
    with pytest.raises(RequestError, match="no address of this machine"):
        start_server(tmp_path, tmp_path, "bird", "1", host="192.0.2.77", port=0)
    with pytest.raises(RequestError, match="is no folder"):
        start_server(tmp_path / "none", tmp_path, "bird", "1", port=0)
    with pytest.raises(RequestError, match="max_batch"):
        start_server(tmp_path, tmp_path, "bird", "1", port=0, max_batch=0)
    monkeypatch.setenv("T2I_SERVE_TOKEN", " ")
    with pytest.raises(RequestError, match="T2I_SERVE_TOKEN is set but blank"):
        start_server(tmp_path, tmp_path, "bird", "1", port=0)
    assert check_port("127.0.0.1", 0) > 0


def test_wrong_arguments_of_the_application_are_named() -> None:
    arguments = {"checkpoint": "c", "home": "h", "name": "bird", "version": 3}
    assert build_app(arguments) is not None
    for wrong in ({"replica": 2}, {"wait_s": -1}, {"device": "tpu"}, {"painter": "no colon"}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            build_app({**arguments, **wrong})


def test_the_client_names_a_wrong_address() -> None:
    with pytest.raises(RequestError, match="write it as http://host:port"):
        request_image("file:///etc", "a bird")
