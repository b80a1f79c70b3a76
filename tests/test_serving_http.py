"""The HTTP interface over a backend without networks: replies, headers, access, deadlines, metrics, logs."""

import base64
import json
import logging
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestration.narratives.narrative_text import EXAMPLE
from orchestration.serving.endpoint import HttpSettings, check_token, create_http_app
from orchestration.serving.pictures import read_metadata
from orchestration.serving.replies import ImagesReply, Lineage, ModelsReply
from orchestration.serving.requests import STATUS, ServeError
from tests.serving_support import DEFAULT, MODELS, FakeBackend

PAINTER = MODELS["painter"]
NAMES = ["painter@3", "teller@1", "grapher@2"]


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> TestClient:
    return TestClient(create_http_app(backend))


def client_of(backend: FakeBackend, **settings: Any) -> TestClient:
    return TestClient(create_http_app(backend, HttpSettings(**settings)))


def refusal(reply: Any) -> tuple[int, str, str]:
    error = reply.json()["error"]
    assert set(reply.json()) == {"error"} and set(error) == {"code", "message", "field"}
    assert STATUS[error["code"]] == reply.status_code
    assert "Traceback" not in error["message"] and "\n" not in error["message"]
    return reply.status_code, error["code"], error["message"]


def counted(client: TestClient, line: str) -> bool:
    return line in client.get("/metrics").text.splitlines()


# Pictures


def test_a_picture_is_a_png_unless_json_is_asked_for(client: TestClient) -> None:
    body = {"prompt": "a bird", "seed": 7}
    png = client.post("/v1/images", json=body)
    assert png.headers["Content-Type"] == "image/png"
    told = read_metadata(png.content)
    assert (told["kind"], told["prompt"], told["seed"], told["model"]) == ("prompt", "a bird", "7", "painter")
    assert (png.headers["X-Model"], png.headers["X-Seed"]) == ("painter@3", "7")
    assert png.headers["X-Image-Id"] == told["image"]
    by_field = client.post("/v1/images", json={**body, "format": "json"})
    by_header = client.post("/v1/images", json=body, headers={"Accept": "application/json"})
    for asked in (by_field, by_header):
        reply = ImagesReply.model_validate(asked.json())
        assert reply.model.model_dump() == {name: getattr(PAINTER, name) for name in reply.model.model_dump()}
        assert [(image.seed, image.id) for image in reply.images] == [(7, told["image"])]
        assert base64.b64decode(reply.images[0].png) == png.content and reply.reasons is None
        assert asked.headers["X-Model"] == "painter@3"


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({"type": "narrative", "narrative": "a dog on grass"}, "teller"),
        ({"type": "narrative", "narrative": json.loads(EXAMPLE)}, "teller"),
        ({"type": "graph", "graph": "sheep left of tree"}, "grapher"),
        ({"type": "graph", "graph": {"objects": [{"name": "sheep", "box": [0, 0, 0.5, 1]}]}}, "grapher"),
        ({"prompt": "a dog", "model": "teller@champion"}, "teller"),
    ],
)
def test_each_kind_is_drawn_with_its_reasons(client: TestClient, body: dict[str, Any], model: str) -> None:
    reply = client.post("/v1/images", json={**body, "explain": True, "count": 2}).json()
    assert reply["model"]["name"] == model and len(reply["images"]) == 2
    assert reply["reasons"]["type"] == body.get("type", "prompt")
    again = client.post("/v1/images", json={**body, "explain": True, "count": 2}).json()
    assert again == reply


def test_several_pictures_hold_those_of_fewer(client: TestClient) -> None:
    reply = client.post("/v1/images", json={"prompt": "a bird", "seed": 5, "count": 3}).json()
    assert client.post("/v1/images", json={"prompt": "a bird", "seed": 5, "images": 3}).json() == reply
    for image in reply["images"]:
        alone = client.post("/v1/images", json={"prompt": "a bird", "seed": image["seed"]})
        assert alone.content == base64.b64decode(image["png"])
    assert reply["images"][0]["seed"] == 5


def test_a_version_and_a_truncation_make_another_picture(client: TestClient) -> None:
    bodies: list[dict[str, Any]] = [{}, {"model": "painter@2"}, {"truncation": 0.5}]
    replies = [client.post("/v1/images", json={"prompt": "a", **body}) for body in bodies]
    assert len({reply.content for reply in replies}) == 3
    assert [reply.headers["X-Model"] for reply in replies] == ["painter@3", "painter@2", "painter@3"]


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"prompt": "a", "model": "nobody"}, "unknown_model", "model"),
        ({"prompt": "a", "model": "painter@9"}, "unknown_model", "model"),
        ({"prompt": "a", "model": "../painter"}, "unknown_model", "model"),
        ({"prompt": "a", "model": "grapher"}, "wrong_input", "model"),
        ({"type": "graph", "graph": "sheep left of sheep dog"}, "wrong_prompt", "graph"),
        ({"prompt": "a", "model": "teller", "truncation": 1}, "wrong_field", "truncation"),
        ({"prompt": ""}, "empty_prompt", "prompt"),
        ({"prompt": "a", "format": "png", "count": 2}, "wrong_format", "format"),
    ],
)
def test_a_refusal_names_the_field(client: TestClient, body: dict[str, Any], code: str, field: str) -> None:
    reply = client.post("/v1/images", json=body)
    assert refusal(reply)[1] == code and reply.json()["error"]["field"] == field


def test_what_only_the_backend_can_refuse_reaches_it_and_nothing_else(client: TestClient, backend: FakeBackend) -> None:
    client.post("/v1/images", json={"prompt": "a", "model": "..%2fpainter"})
    client.post("/v1/images", content=b"{")
    assert backend.jobs == []
    client.post("/v1/images", json={"prompt": "a", "model": "nobody"}, headers={"X-Request-ID": "mine"})
    assert [(job.model, job.request_id) for job in backend.jobs] == [("nobody", "mine")]


@pytest.mark.parametrize("sized", [True, False])
def test_a_large_body_is_refused(client: TestClient, sized: bool) -> None:
    body = json.dumps({"prompt": "x" * 2**20}).encode()
    reply = client.post("/v1/images", content=body if sized else iter([body[:500_000], body[500_000:]]))
    assert refusal(reply)[:2] == (413, "body_too_large") and reply.headers["Connection"] == "close"
    assert "1,048,576 bytes" in refusal(reply)[2]


def test_a_narrative_of_ten_thousand_points_is_drawn(client: TestClient) -> None:
    trace = [[0.123456, 0.654321, k / 10_000] for k in range(10_000)]
    body = {"type": "narrative", "narrative": {"words": ["dog"], "times": [[0, 1]], "trace": trace}}
    png = client.post("/v1/images", json=body)
    assert png.status_code == 200 and len(json.loads(read_metadata(png.content)["prompt"])["traces"][0]) == 10_000


# What is served, health, lineage


def test_models_are_told(client: TestClient) -> None:
    reply = ModelsReply.model_validate(client.get("/v1/models").json())
    assert reply == ModelsReply(models=list(MODELS.values()), default=DEFAULT)


def test_the_lineage_of_a_picture(client: TestClient) -> None:
    image = client.post("/v1/images", json={"prompt": "a"}).headers["X-Image-Id"]
    found = Lineage.model_validate(client.get(f"/v1/lineage/{image}").json())
    assert (found.image, found.model, found.trial) == (image, "painter", "4")


ID = "0123456789abcdef-0123456789abcdef"


@pytest.mark.parametrize("image", ["x", ID[:-1], ID[:-1] + "G", ID.upper(), ID + "%0A", "%00", "..%5c..", ID + "a"])
def test_what_is_no_id_never_reaches_the_backend(client: TestClient, image: str) -> None:
    status, code, message = refusal(client.get(f"/v1/lineage/{image}"))
    assert (status, code) == (404, "unknown_image") and "this is no id of a picture" in message
    assert refusal(client.get("/v1/lineage/..%2f.."))[1] == "not_found"


def test_an_id_that_was_never_given_is_unknown(client: TestClient) -> None:
    assert refusal(client.get(f"/v1/lineage/{ID}"))[:2] == (404, "unknown_image")


def test_health_and_readiness(client: TestClient) -> None:
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok", "models": NAMES}
    starting = TestClient(create_http_app(FakeBackend(empty=True)))
    assert starting.get("/healthz").json() == {"status": "ok", "models": []}
    reply = starting.get("/readyz")
    assert refusal(reply)[:2] == (503, "not_ready") and reply.headers["Retry-After"] == "1"
    assert "GET /v1/models" in refusal(reply)[2]


def test_a_server_whose_backend_is_silent_is_alive_but_not_ready() -> None:
    class Silent(FakeBackend):
        silent = False

        async def models(self) -> ModelsReply:
            if self.silent:
                raise ServeError("not_ready", "the models cannot be listed: ask another", {"Retry-After": "5"})
            return await super().models()

    backend = Silent()
    client = TestClient(create_http_app(backend))
    client.get("/healthz")
    backend.silent = True
    assert client.get("/healthz").json() == {"status": "ok", "models": NAMES}
    for path in ("/readyz", "/v1/models"):
        assert refusal(client.get(path)) == (503, "not_ready", "the models cannot be listed: ask another")


# Routes


def test_wrong_paths_and_methods(client: TestClient) -> None:
    assert refusal(client.get("/nothing/ü"))[1] == "not_found"
    assert refusal(client.get("/docs"))[1] == "not_found"
    assert refusal(client.post("/v1/images/", json={"prompt": "a"}))[1] == "not_found"
    reply = client.get("/v1/images")
    assert refusal(reply)[1] == "method_not_allowed" and reply.headers["Allow"] == "POST"
    assert "use GET" in refusal(client.put("/healthz"))[2]
    assert refusal(client.delete("/v1/models"))[1] == "method_not_allowed"


def test_head_and_options(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/healthz", "/v1/models", "/openapi.json"):
        whole, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(whole.content))
    with caplog.at_level(logging.INFO, logger="orchestration"):
        client.head("/v1/models")
    line = json.loads(ours(caplog)[0].getMessage())
    assert (line["method"], line["bytes_out"]) == ("HEAD", 0)
    assert client.head("/v1/images").status_code == 405
    asked = client.options("/v1/images", headers={"Origin": "http://other", "Access-Control-Request-Method": "POST"})
    assert (asked.status_code, asked.content, asked.headers["Allow"]) == (204, b"", "POST")
    assert client.options("/healthz").headers["Allow"] == "GET, HEAD"
    # No other site's page may read what this server says.
    assert not [name for name in asked.headers if name.lower().startswith("access-control")]


def test_every_reply_has_an_id(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "mine"}).headers["X-Request-ID"] == "mine"
    first, second = (client.get("/nothing").headers["X-Request-ID"] for _ in range(2))
    assert first != second
    assert len(client.get("/healthz", headers={"X-Request-ID": "x" * 500}).headers["X-Request-ID"]) == 36
    assert "X-Request-ID" not in client_of(FakeBackend(), adds_request_id=False).get("/healthz").headers


def test_replies_are_not_to_be_guessed_at_or_kept(client: TestClient) -> None:
    for reply in (client.get("/healthz"), client.post("/v1/images", json={"prompt": "a"}), client.get("/nothing")):
        assert reply.headers["X-Content-Type-Options"] == "nosniff" and reply.headers["Cache-Control"] == "no-store"


# Failures and deadlines


def test_a_failure_says_nothing_of_itself_or_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    client = TestClient(create_http_app(FakeBackend(failure=ValueError("it was: secret prompt"))))
    with caplog.at_level(logging.DEBUG, logger="orchestration"):
        reply = client.post("/v1/images", json={"prompt": "secret prompt"})
    status, code, message = refusal(reply)
    assert (status, code) == (500, "internal") and reply.headers["X-Request-ID"] in message
    assert "secret" not in message + caplog.text
    assert reply.headers["X-Request-ID"] in caplog.text and "ValueError" in caplog.text
    assert counted(client, 't2i_refused_total{code="internal"} 1.0')


def test_busy_says_when_to_come_back() -> None:
    busy = ServeError("busy", "too many", {"Retry-After": "1"})
    reply = TestClient(create_http_app(FakeBackend(failure=busy))).post("/v1/images", json={"prompt": "a"})
    assert refusal(reply)[:2] == (429, "busy") and reply.headers["Retry-After"] == "1"


def test_a_slow_picture_times_out() -> None:
    backend = FakeBackend(wait_s=30)
    client = client_of(backend, timeout_s=0.05)
    _, code, message = refusal(client.post("/v1/images", json={"prompt": "a"}))
    assert code == "timed_out" and "0.05 seconds" in message
    assert backend.unfinished == 0 and len(backend.jobs) == 1


def test_a_deadline_shortens_and_never_lengthens_the_time(backend: FakeBackend) -> None:
    client = client_of(backend, timeout_s=20.0)
    for wanted in (None, 5, 3_600):
        client.post("/v1/images", json={"prompt": "a", "deadline_s": wanted})
    default, short, long = (job.seconds for job in backend.jobs)
    assert 15 < default <= 20 and 4 < short <= 5 and 15 < long <= 20
    slow = client_of(FakeBackend(wait_s=30), timeout_s=20.0)
    assert "within 1 seconds" in refusal(slow.post("/v1/images", json={"prompt": "a", "deadline_s": 1}))[2]


# Access


# As UTF-8 the last one ends in what Latin-1 takes for a blank.
@pytest.mark.parametrize("token", ["abc", "schlüssel", "voilà"])
def test_the_token(token: str) -> None:
    backend = FakeBackend()
    client = TestClient(create_http_app(backend, HttpSettings(token=token)), client=("203.0.113.5", 1))
    right = {b"Authorization": f"bearer {token}".encode()}
    closed = [("POST", "/v1/images"), ("GET", "/v1/models"), ("GET", "/v1/lineage/x"), ("GET", "/metrics")]
    for method, path in closed:
        assert client.request(method, path, json={"prompt": "a"}, headers=right).status_code in (200, 404)
        for wrong in ("", "Bearer", "Bearer x", f"Basic {token}", f"Bearer {token}x"):
            # The body is not looked at: it is no JSON.
            reply = client.request(method, path, content=b"{", headers={b"Authorization": wrong.encode()})
            assert refusal(reply)[:2] == (401, "unauthorized") and reply.headers["WWW-Authenticate"] == "Bearer"
    assert len(backend.jobs) == 1
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert client.get("/openapi.json").json()["paths"]["/v1/models"]["get"]["security"]


def test_a_token_that_is_no_utf_8() -> None:
    """As Python has it from the environment."""
    check_token("Bearer a\xff", "a\udcff")
    with pytest.raises(ServeError, match="missing or wrong"):
        check_token("Bearer a\xfe", "a\udcff")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.8.8.8", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("testclient", 200),
        ("203.0.113.5", 401),
        ("10.0.0.1", 401),
        ("fe80::1%eth0", 401),
        ("::ffff:10.0.0.1", 401),
    ],
)
def test_without_a_token_only_this_machine_is_answered(host: str, status: int) -> None:
    client = TestClient(create_http_app(FakeBackend()), client=(host, 1))
    for reply in (client.post("/v1/images", json={"prompt": "a"}), client.get("/v1/models"), client.get("/metrics")):
        assert reply.status_code == status
        if status == 401:
            assert "T2I_SERVE_TOKEN" in refusal(reply)[2]
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("laptop:8000", 200),
        ("", 200),
        ("draw.example.org", 401),
        ("203.0.113.5:8000", 401),
        ("[2001:db8::1]:8000", 401),
        ("127.0.0.1.example.org", 401),
    ],
)
def test_without_a_token_no_name_of_the_internet_is_answered(host: str, status: int) -> None:
    """A page that lets its own name point to this machine reads no picture, and no proxy publishes it unawares."""
    client = TestClient(create_http_app(FakeBackend()), client=("127.0.0.1", 1), headers={"Host": host})
    assert client.post("/v1/images", json={"prompt": "a"}).status_code == status
    with_token = TestClient(create_http_app(FakeBackend(), HttpSettings(token="t")), headers={"Host": host})
    right = {"Authorization": "Bearer t"}
    assert with_token.post("/v1/images", json={"prompt": "a"}, headers=right).status_code == 200


def test_a_token_is_not_shown_with_its_settings() -> None:
    assert "secret" not in repr(HttpSettings(token="secret"))


# Metrics and logs


def test_metrics_count_what_was_drawn_and_refused(client: TestClient) -> None:
    client.post("/v1/images", json={"prompt": "secret", "count": 3})
    client.post("/v1/images", json={"prompt": "secret", "model": "unheard-of"})
    client.post("/v1/images", json={"type": "secret"})
    client.get("/secret")
    client.get("/v1/images")
    text = client.get("/metrics").text
    lines = text.splitlines()
    for line in (
        't2i_requests_total{code="ok",kind="prompt",model="painter",version="3"} 1.0',
        't2i_requests_total{code="unknown_model",kind="prompt",model="",version=""} 1.0',
        't2i_requests_total{code="wrong_field",kind="",model="",version=""} 1.0',
        't2i_pictures_total{model="painter",version="3"} 3.0',
        't2i_request_seconds_count{kind="prompt"} 2.0',
        't2i_batch_pictures_bucket{le="2.0"} 0.0',
        't2i_batch_pictures_bucket{le="4.0"} 1.0',
        "t2i_requests_in_flight 0.0",
        't2i_refused_total{code="not_found"} 1.0',
        't2i_refused_total{code="method_not_allowed"} 1.0',
    ):
        assert line in lines
    assert "secret" not in text and "unheard" not in text
    # Another application has its own.
    assert "painter" not in TestClient(create_http_app(FakeBackend())).get("/metrics").text


def test_the_log_has_a_line_a_request_and_no_prompt(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    bodies: list[Any] = [
        {"prompt": "secret words", "seed": 3, "count": 2},
        {"prompt": "secret words", "model": "nobody"},
        {"type": "narrative", "narrative": {"caption": "secret words", "traces": 3}},
        {"type": "graph", "graph": "secret words"},
        {"secret words": 1},
    ]
    with caplog.at_level(logging.DEBUG, logger="orchestration"):
        for body in bodies:
            client.post("/v1/images?q=secret", json=body, headers={"X-Request-ID": "mine"})
        client.get("/secret words")
    assert "secret" not in caplog.text and not any("secret" in str(vars(record)) for record in ours(caplog))
    lines = [json.loads(record.getMessage()) for record in ours(caplog)]
    assert [(line["status"], line["code"]) for line in lines] == [
        *[(200, "ok"), (404, "unknown_model"), (422, "wrong_field"), (422, "wrong_prompt"), (422, "wrong_field")],
        (404, "not_found"),
    ]
    first = lines[0]
    assert first["ms"] > 0 and first["bytes_in"] == len(b'{"prompt":"secret words","seed":3,"count":2}')
    assert first["bytes_out"] > 900
    del first["ms"], first["bytes_in"], first["bytes_out"]
    assert first == {
        "event": "request",
        "id": "mine",
        "method": "POST",
        "client": "testclient",
        "path": "/v1/images",
        "kind": "prompt",
        "model": "painter",
        "version": "3",
        "count": 2,
        "status": 200,
        "code": "ok",
        "batch": 2,
    }
    assert ours(caplog)[0].__dict__["code"] == "ok" and lines[-1]["path"] == ""


def test_prompts_are_logged_where_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(FakeBackend(), log_prompts=True)
    with caplog.at_level(logging.INFO):
        client.post("/v1/images", json={"prompt": "ein roter\nVogel"})
    line = ours(caplog)[0].getMessage()
    assert json.loads(line)["text"] == "ein roter\nVogel" and "\n" not in line


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "orchestration.serving.requests"]
