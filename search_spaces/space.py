"""Which hyperparameters a paper documents, as checked data; and how Optuna draws from them."""

import difflib
import math
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from search_spaces.reading import parse_checked

Value = bool | int | float | str


class SpaceError(ValueError):
    """A search space, or a request about one, is wrong; the message says what, where and how to mend it."""


class Parameter(BaseModel):
    """One documented hyperparameter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str = Field(description="the experiment's field it sets")
    also: tuple[str, ...] = Field((), description="fields that must have the same value, and are set with it")
    kind: Literal["float", "int", "choice"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    values: tuple[Value, ...] | None = None
    paper: Value | None = Field(description="the paper's value; none if it gives none")
    released: Value | None = Field(None, description="the released code's value")
    by_data: dict[str, Value] = Field(
        default_factory=dict, description="the documented value on another data set, by its format, such as coco"
    )
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
        documented = {"paper": self.paper, "released": self.released, **self.by_data}
        for name, value in documented.items():
            if value is not None and not self.allows(value):
                raise ValueError(f"the {name} value {value!r} is outside the range")
        return self

    @model_validator(mode="after")
    def _says_its_stage(self) -> Self:
        if len(set(self.fields)) < len(self.fields):
            raise ValueError("a field is named twice")
        stages = [field.split(".")[1] for field in self.fields if field.startswith("stages.")]
        if stages and self.stage not in stages:
            raise ValueError(f"stage is {self.stage!r}, but it sets a field of {stages[0]}: write stage: {stages[0]}")
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
    def fields(self) -> tuple[str, ...]:
        """Every field it sets."""
        return self.field, *self.also

    @property
    def documented(self) -> Value | None:
        """The paper's value, else the released code's, for the data that the system's defaults are for."""
        return self.released if self.paper is None else self.paper

    def documented_on(self, source: str) -> Value | None:
        """The documented value for data such as "coco:PATH" or "coco-2014:PATH"."""
        kind = source.partition(":")[0]
        return self.by_data.get(kind, self.by_data.get(kind.partition("-")[0], self.documented))

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
            for field in parameter.fields:
                other = owners.setdefault(field, name)
                if other != name:
                    raise ValueError(f"{other!r} and {name!r} both set {field}")
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

    def assignments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The experiment's fields that a point of the space sets, with their values."""
        return {field: value for name, value in values.items() for field in self._parameter(name).fields}


def _narrowed(name: str, parameter: Parameter, text: str) -> Parameter:
    try:
        if parameter.kind == "choice":
            values = tuple(yaml.safe_load(part) for part in text.split(","))
            changes: dict[str, Any] = {"values": values}
        else:
            low, _, high = text.partition(":")
            changes = {"low": float(low), "high": float(high)}
        # The documented values stay in the record of the full space; a narrowed range need not hold them.
        kept = Parameter.model_construct(**{**parameter.__dict__, **changes})
        documented = {
            key: value if (value := getattr(parameter, key)) is not None and kept.allows(value) else None
            for key in ("paper", "released")
        }
        by_data = {kind: value for kind, value in parameter.by_data.items() if kept.allows(value)}
        return Parameter(**{**parameter.__dict__, **changes, **documented, "by_data": by_data})
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
    space = parse_checked(text, where, Space, SpaceError)
    if space.system != system:
        raise SpaceError(f"{where} says system {space.system!r}: write system: {system}, or rename the file")
    return space
