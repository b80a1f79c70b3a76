"""Small search spaces for tests."""

from typing import Any

from search_spaces.space import Parameter, Space

ABOUT = {"paper": None, "source": "s", "stage": "gan"}


def choice(*values: Any, field: str = "a.x", **when: Any) -> dict[str, Any]:
    """A parameter of these values."""
    return {**ABOUT, "field": field, "kind": "choice", "values": values, "when": when}


def number(low: float, high: float, kind: str = "float", field: str = "a.y", log: bool = False, **when: Any) -> Any:
    """A parameter of this range."""
    return {**ABOUT, "field": field, "kind": kind, "low": low, "high": high, "log": log, "when": when}


def space_of(**parameters: dict[str, Any]) -> Space:
    """A space of these, each with a field of its own."""
    named = {name: Parameter(**{**known, "field": f"a.{name}"}) for name, known in parameters.items()}
    return Space(system="new", parameters=named, default=tuple(named))
