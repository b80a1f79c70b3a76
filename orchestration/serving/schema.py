"""The OpenAPI document: the bodies, the errors of each operation, and the headers of pictures."""

from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field, TypeAdapter

from orchestration.serving.envelope import IMAGES
from orchestration.serving.inputs import EXAMPLES, Body
from orchestration.serving.replies import ImagesReply
from orchestration.serving.requests import STATUS, ErrorReply

_JSON = "application/json"

IMAGES_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "a PNG, or JSON where several pictures, their reasons or JSON are asked for",
        "model": ImagesReply,
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            "X-Image-Id": {"description": "of a PNG: its id at /v1/lineage", "schema": {"type": "string"}},
            "X-Model": {"description": "name@version of what drew", "schema": {"type": "string"}},
            "X-Seed": {"description": "of a PNG: its seed", "schema": {"type": "string"}},
        },
    }
}
METRICS_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "as Prometheus reads it", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


def refusals(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The documented replies of these error codes."""
    statuses: dict[int, list[str]] = {}
    for code in codes:
        statuses.setdefault(STATUS[code], []).append(code)
    return {
        status: {"model": ErrorReply, "description": ", ".join(sorted(names))} for status, names in statuses.items()
    }


class PublishedApi(FastAPI):
    """FastAPI, with the body of POST /v1/images as `inputs` has it."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document. The body is put in last, since FastAPI rounds the largest seed to a float."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document["components"]["schemas"]
            body = TypeAdapter(Annotated[Body, Field(discriminator="type")]).json_schema(
                ref_template="#/components/schemas/{model}"
            )
            schemas.update(body.pop("$defs"))
            document["paths"][IMAGES]["post"]["requestBody"] = {
                "required": True,
                "content": {_JSON: {"schema": body, "examples": _examples()}},
            }
            for operations in document["paths"].values():
                for operation in operations.values():
                    if operation["responses"].get("422", {}).get("description") == "Validation Error":
                        del operation["responses"]["422"]
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
        return self.openapi_schema or {}


def _examples() -> dict[str, Any]:
    return {name: {"summary": summary, "value": value} for name, (summary, value) in EXAMPLES.items()}
