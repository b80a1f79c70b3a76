"""Points of a search space, as experiments."""

from collections.abc import Mapping
from typing import Any

from orchestration.config import Experiment
from orchestration.errors import RequestError
from search_spaces.space import Space, SpaceError, Value


def paper_point(space: Space, base: Experiment) -> dict[str, Value]:
    """Trial 0: each parameter that exists there at its documented value, or at the recipe's own where it has none.

    Raises RequestError when a range does not hold that value.
    """
    wanted: dict[str, Value] = {}
    recipe: dict[str, Any] = {}
    for name, parameter in space.parameters.items():
        value: Any = base
        for part in parameter.field.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        documented = parameter.documented_on(base.data.source)
        recipe[name], wanted[name] = value, value if documented is None else documented
    point = space.existing(wanted)
    for name, value in point.items():
        parameter = space.parameters[name]
        if not parameter.allows(value):
            raise RequestError(
                f"the range of {name} ({parameter.describe()}) holds neither a documented value nor the recipe's "
                f"{recipe[name]!r}: widen it with --range"
            )
    return point


def trial_experiment(base: Experiment, space: Space, values: Mapping[str, Any]) -> Experiment:
    """The experiment of a point of the space. Raises RequestError when the point makes none."""
    try:
        assignments = space.assignments(values)
    except SpaceError as error:
        raise RequestError(str(error)) from error
    return base.replace(assignments)
