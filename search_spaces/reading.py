"""Reads and checks the YAML files of this package: a wrong one is told with one sentence."""

from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_checked(text: bytes, where: str, model: type[ModelT], refusal: type[ValueError]) -> ModelT:
    """What the YAML text of the file `where` describes. Raises `refusal` with one sentence."""
    try:
        # The loader is a safe one: it only refuses more.
        return model.model_validate(yaml.load(text, _StrictLoader))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the file"
        reason = problem["msg"].removeprefix("Value error, ")
        raise refusal(f"{where} is wrong at {place}: {reason[0].lower()}{reason[1:]}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2020-13-45 is a ValueError
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise refusal(f"{where}{line} cannot be read ({reason}): mend the YAML there") from error


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is written twice, where YAML's usual reader keeps the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)
