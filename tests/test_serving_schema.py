"""The published schema against the endpoint: what it calls wrong is refused, and no reply is other than it says."""

from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from orchestration.serving.endpoint import create_http_app
from orchestration.serving.inputs import EXAMPLES, MODEL_PATTERN
from orchestration.serving.requests import STATUS
from tests.serving_support import FakeBackend

app = create_http_app(FakeBackend())
schema = schemathesis.openapi.from_asgi("/openapi.json", app)
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]


@schema.parametrize()
@settings(
    deadline=None,
    max_examples=120,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    # Bodies of many points and words are large and slow to make, as they should be.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
def test_the_endpoint_keeps_to_its_schema(case: schemathesis.Case[Any]) -> None:
    # Left out is positive_data_acceptance: a prompt of blanks or a graph of unknown names is refused, and no schema
    # can say so.
    case.call_and_validate(checks=CHECKS)


@pytest.fixture(scope="module")
def document() -> Any:
    return TestClient(app).get("/openapi.json").json()


def test_the_body_is_a_tagged_union_with_its_limits(document: Any) -> None:
    content = document["paths"]["/v1/images"]["post"]["requestBody"]["content"]["application/json"]
    schemas = document["components"]["schemas"]
    assert content["schema"]["discriminator"]["propertyName"] == "type"
    assert set(content["schema"]["discriminator"]["mapping"]) == {"prompt", "narrative", "graph"}
    bodies = [schemas[form["$ref"].rpartition("/")[2]] for form in content["schema"]["oneOf"]]
    assert len(bodies) == 3
    for body in bodies:
        told = body["properties"]
        assert body["additionalProperties"] is False and body["not"] == {"required": ["count", "images"]}
        # Exact, though a double would round it.
        assert (told["seed"]["minimum"], told["seed"]["maximum"]) == (0, 2**63 - 1)
        assert told["count"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 16}
        assert told["images"]["deprecated"] is True
        assert told["truncation"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0, "maximum": 10}
        assert told["model"]["anyOf"][0]["pattern"] == MODEL_PATTERN
    prompt, narrative, graph = bodies
    assert prompt["properties"]["prompt"]["maxLength"] == 2_000 and prompt["required"] == ["prompt"]
    forms = {form.get("$ref", "").rpartition("/")[2] for form in narrative["properties"]["narrative"]["anyOf"]}
    assert forms == {"", "TimedWords", "LocalizedNarrative"} and graph["required"] == ["type", "graph"]
    assert schemas["TimedWords"]["properties"]["trace"]["maxItems"] == 10_000
    assert schemas["GraphParts"]["properties"]["objects"]["maxItems"] == 30
    assert {name: each["value"] for name, each in content["examples"].items()} == {
        name: body for name, (_, body) in EXAMPLES.items()
    }


def test_every_reply_is_documented(document: Any) -> None:
    responses = document["paths"]["/v1/images"]["post"]["responses"]
    assert set(responses) == {"200"} | {str(status) for status in STATUS.values()} - {"405"}
    assert set(responses["200"]["content"]) == {"image/png", "application/json"}
    assert responses["429"]["description"] == "busy" and "unknown_model" in responses["404"]["description"]
    codes = {code for reply in responses.values() for code in reply["description"].split(", ")}
    assert set(STATUS) - codes == {"not_found", "method_not_allowed", "unknown_image"}
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "security" not in operation and "Validation" not in str(operation["responses"])
    assert set(document["paths"]) == {
        *("/v1/images", "/v1/models", "/v1/lineage/{image}"),
        *("/healthz", "/readyz", "/metrics"),
    }


def test_every_reference_leads_somewhere(document: Any) -> None:
    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    schemas = document["components"]["schemas"]
    found = {reference.rpartition("/")[2] for reference in references(document)}
    assert found <= set(schemas) and set(schemas) - found == set()
