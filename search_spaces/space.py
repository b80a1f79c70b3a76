"""Which hyperparameters a paper documents, as checked data; and how Optuna draws from them."""

import difflib
import math
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Value = bool | int | float | str


class SpaceError(ValueError):
    """A search space, or a request about one, is wrong; the message says what, where and how to mend it."""


class Parameter(BaseModel):
    """One documented hyperparameter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str = Field(description="the experiment's field it sets")
    kind: Literal["float", "int", "choice"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    values: tuple[Value, ...] | None = None
    paper: Value | None = Field(description="the paper's value; none if it gives none")
    released: Value | None = Field(None, description="the released code's value")
    source: str = Field(min_length=1, description="section, table or figure")
    stage: str = Field(min_length=1, description="what must run again when it changes")

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.kind == "choice":
            if not self.values or len(set(self.values)) != len(self.values) or self.low is not None:
                raise ValueError("a choice needs distinct `values` and no low or high")
        elif self.low is None or self.high is None or not self.low < self.high or self.values:
            raise ValueError(f"a {self.kind} needs low < high and no values")
        elif not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError("low and high must be finite")
        elif self.kind == "int" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("an int needs a whole low and high")
        elif self.log and self.low <= 0:
            raise ValueError("a log range must be above 0")
        for name in ("paper", "released"):
            value = getattr(self, name)
            if value is not None and not self.allows(value):
                raise ValueError(f"the {name} value {value!r} is outside the range")
        return self

    def allows(self, value: Any) -> bool:
        """Whether the range holds the value."""
        if self.kind == "choice":
            assert self.values is not None
            return value in self.values
        assert self.low is not None and self.high is not None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        whole = self.kind == "float" or float(value).is_integer()
        return whole and self.low <= value <= self.high

    @property
    def documented(self) -> Value | None:
        """The paper's value, else the released code's."""
        return self.released if self.paper is None else self.paper

    def describe(self) -> str:
        """The range in words."""
        if self.kind == "choice":
            return "one of " + ", ".join(str(value) for value in self.values or ())
        return f"{self.low:g} to {self.high:g}" + (", log" if self.log else "")

    def suggest(self, name: str, trial: Any) -> Value:
        """A value from an Optuna trial."""
        value: Value
        if self.kind == "choice":
            value = trial.suggest_categorical(name, list(self.values or ()))
        elif self.kind == "int":
            value = trial.suggest_int(name, int(self.low or 0), int(self.high or 0), log=self.log)
        else:
            value = trial.suggest_float(name, self.low, self.high, log=self.log)
        return value


class Space(BaseModel):
    """The documented hyperparameters of one system, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    parameters: dict[str, Parameter] = Field(min_length=1)
    default: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _default_is_known(self) -> Self:
        for name in self.default:
            if name not in self.parameters:
                raise ValueError(f"default names {name!r}, which is no parameter")
        owners: dict[str, str] = {}
        for name, parameter in self.parameters.items():
            other = owners.setdefault(parameter.field, name)
            if other != name:
                raise ValueError(f"{other!r} and {name!r} both set {parameter.field}")
        return self

    def choose(self, names: Iterable[str] = (), ranges: Mapping[str, str] | None = None) -> "Space":
        """The parameters to vary: those named, else the default ones; `ranges` narrows some ("low:high" or "a,b,c").

        Raises SpaceError for an unknown name or a range that is none.
        """
        chosen = {name: self._parameter(name) for name in (tuple(names) or self.default)}
        for name, text in (ranges or {}).items():
            chosen[name] = _narrowed(name, chosen.get(name) or self._parameter(name), text)
        return Space(system=self.system, parameters=chosen, default=tuple(chosen))

    def _parameter(self, name: str) -> Parameter:
        if name not in self.parameters:
            near = difflib.get_close_matches(name, self.parameters, n=3, cutoff=0.4) or list(self.parameters)
            raise SpaceError(f"{self.system} documents no parameter {name!r}; near it: {', '.join(near)}")
        return self.parameters[name]

    def suggest(self, trial: Any) -> dict[str, Value]:
        """One point from an Optuna trial."""
        return {name: parameter.suggest(name, trial) for name, parameter in self.parameters.items()}


def _narrowed(name: str, parameter: Parameter, text: str) -> Parameter:
    try:
        if parameter.kind == "choice":
            values = tuple(yaml.safe_load(part) for part in text.split(","))
            changes: dict[str, Any] = {"values": values}
        else:
            low, _, high = text.partition(":")
            changes = {"low": float(low), "high": float(high)}
        # The documented values stay in the record of the full space; a narrowed range need not hold them.
        kept = Parameter.model_construct(**{**parameter.__dict__, **changes, "paper": None, "released": None})
        documented = {
            key: value
            for key in ("paper", "released")
            if (value := getattr(parameter, key)) is not None and kept.allows(value)
        }
        return Parameter(**{**parameter.__dict__, **changes, "paper": None, "released": None, **documented})
    except (ValueError, ValidationError, yaml.YAMLError) as error:
        form = "a,b,c" if parameter.kind == "choice" else "low:high"
        raise SpaceError(f"range {text!r} of {name} is none: write it as {name}={form}") from error


def load_space(system: str) -> Space:
    """The checked search space of a system. Raises SpaceError when there is none, or when its file is wrong."""
    resource = files("search_spaces") / f"{system}.yaml"
    if not resource.is_file():
        raise SpaceError(f"no search space for system {system!r}: add search_spaces/{system}.yaml")
    return parse_space(resource.read_bytes(), system)


def parse_space(text: bytes, system: str) -> Space:
    """The space that the text of `search_spaces/SYSTEM.yaml` describes. Raises SpaceError with one sentence."""
    where = f"search_spaces/{system}.yaml"
    try:
        # The loader is a safe one: it only refuses more.
        space = Space.model_validate(yaml.load(text, _StrictLoader))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the file"
        reason = problem["msg"].removeprefix("Value error, ")
        raise SpaceError(f"{where} is wrong at {place}: {reason[0].lower()}{reason[1:]}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2020-13-45 is a ValueError
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise SpaceError(f"{where}{line} cannot be read ({reason}): mend the YAML there") from error
    if space.system != system:
        raise SpaceError(f"{where} says system {space.system!r}: write system: {system}, or rename the file")
    return space


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
