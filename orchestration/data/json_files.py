"""Published JSON files read against a known layout; what is wrong with one is said in a clause."""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from orchestration.errors import RequestError

T = TypeVar("T")
Id = Annotated[int, Field(ge=0, lt=2**63)]  # ids become int64 tensors


def first_fault(error: ValidationError) -> str:
    """The first thing wrong with a JSON text, as a clause: line and column, or the field and its fault."""
    fault = error.errors(include_url=False, include_input=False)[0]
    if fault["type"] == "json_invalid":
        return f"it is not whole JSON ({fault['ctx']['error']})"
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in fault["loc"])
    field = "".join(steps).lstrip(".") or "the whole of it"
    if fault["type"] == "missing":
        return f"{field} is missing"
    return f"{field}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"


def read_json(file: Path, layout: TypeAdapter[T], what: str) -> T:
    """Read one JSON file of a known layout; `what` names the layout, e.g. "COCO captions".

    Raises RequestError when the file cannot be read, is no whole JSON, or has another layout.
    """
    try:
        return layout.validate_json(file.read_bytes(), strict=True)
    except OSError as error:
        raise RequestError(f"{file} cannot be read ({error.strerror}); check that it is there and readable.") from error
    except ValidationError as error:
        raise RequestError(
            f"{file} cannot be used as {what}: {first_fault(error)}; fetch the file again or mend it at that place."
        ) from error
