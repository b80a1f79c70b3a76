"""The client against the HTTP interface itself, with made-up models, and the program in docs/serving.md."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.errors import RequestError
from orchestration.serving import T2IClient
from orchestration.serving.endpoint import HttpSettings, create_http_app
from orchestration.serving.requests import image_seed
from tests.serving_support import MODELS, FakeBackend, serve_in_thread


def test_the_documented_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("T2I_SERVE_TOKEN", raising=False)
    with serve_in_thread(create_http_app(FakeBackend())) as url:
        assert "http://127.0.0.1:8000" in program
        exec(compile(program.replace("http://127.0.0.1:8000", url), "docs/serving.md", "exec"), {})
    assert len({path.read_bytes() for path in tmp_path.glob("fish-*.png")}) == 100
    assert (tmp_path / "boat.png").is_file()


class TestTheEndpoint:
    """Against the HTTP interface itself, with models that are made up."""

    @pytest.fixture(scope="class")
    def endpoint(self) -> Iterator[T2IClient]:
        token = "a token with an ü"
        with serve_in_thread(create_http_app(FakeBackend(), HttpSettings(token=token))) as url:
            yield T2IClient(url, token, timeout=10)

    def test_every_kind(self, endpoint: T2IClient) -> None:
        prompt, told = endpoint.image("a red boat", seed=3, truncation=0.5), MODELS["painter"].examples["prompt"]
        assert (prompt.model, prompt.seed, prompt.metadata["truncation"]) == ("painter@3", 3, "0.5")
        assert prompt.png == endpoint.image("a red boat", seed=3, truncation=0.5).png
        assert endpoint.image("a red boat", seed=4).png != prompt.png and told
        narrative = endpoint.image(narrative=json.loads(MODELS["teller"].examples["narrative"]))
        assert (narrative.model, narrative.metadata["kind"]) == ("teller@1", "narrative")
        graph = endpoint.image(graph={"objects": [{"name": "sheep"}, {"name": "tree"}], "relations": [[0, "on", 1]]})
        assert (graph.model, graph.metadata["kind"]) == ("grapher@2", "graph")
        assert endpoint.image("a red boat", model="painter@2").model == "painter@2"

    def test_many_are_each_what_they_are_alone(self, endpoint: T2IClient) -> None:
        requests = [{"type": "graph", "graph": "sheep left of tree"}, "a dog", {"prompt": "a dog", "seed": 1}]
        found = list(endpoint.images(requests, workers=3))
        assert [each.model for each in found] == ["grapher@2", "painter@3", "painter@3"]
        assert found[1].png == endpoint.image("a dog", seed=image_seed(0, 1)).png

    def test_several_with_reasons(self, endpoint: T2IClient) -> None:
        reply = endpoint.draw({"prompt": "a xyzzy", "count": 2, "seed": 5, "explain": True})
        assert [image.seed for image in reply.images] == [5, image_seed(5, 1)] and reply.model.name == "painter"
        assert reply.reasons is not None and reply.reasons.type == "prompt"
        assert base64.b64decode(reply.images[0].png) == endpoint.image("a xyzzy", seed=5).png

    def test_models_lineage_health(self, endpoint: T2IClient) -> None:
        assert [model.name for model in endpoint.models().models] == list(MODELS)
        one = endpoint.image("a dog")
        assert endpoint.lineage(one).checkpoint_digest == one.metadata["checkpoint_digest"]
        assert endpoint.lineage(one.png) == endpoint.lineage(one.id) == endpoint.lineage(one)
        assert endpoint.healthy()

    @pytest.mark.parametrize(
        ("request_", "part"),
        [
            ({"prompt": ""}, "422: "),
            ({"prompt": "a", "sede": 1}, "sede"),
            ({"prompt": "a", "model": "nobody"}, "404: "),
            ({"prompt": "a", "count": 1_000}, "422: "),
            ({"type": "graph", "graph": "unicorn"}, "unicorn"),
        ],
    )
    def test_a_refusal_is_the_endpoints_sentence(self, endpoint: T2IClient, request_: Any, part: str) -> None:
        with pytest.raises(RequestError, match=part) as told:
            endpoint.draw(request_)
        assert "{" not in str(told.value) and "\n" not in str(told.value)

    def test_a_wrong_token(self, endpoint: T2IClient) -> None:
        with pytest.raises(RequestError, match="401: "):
            T2IClient(endpoint.url, "wrong").image("a")

    def test_nothing_is_served_yet(self) -> None:
        with serve_in_thread(create_http_app(FakeBackend(empty=True))) as url:
            assert not T2IClient(url).healthy()
