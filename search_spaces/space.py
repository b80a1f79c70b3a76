"""Which hyperparameters a paper documents, as checked data; and how Optuna draws from them."""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.resources import files
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

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
    when: dict[str, tuple[Value, ...]] = Field(
        default_factory=dict,
        description="parameters with a value or a list of them: it only exists where each has one of its values",
    )

    @field_validator("when", mode="before")
    @classmethod
    def _lists(cls, when: Any) -> Any:
        if not isinstance(when, dict):
            return when
        return {name: values if isinstance(values, list | tuple) else [values] for name, values in when.items()}

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
            return _holds(self.values or (), value)
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

    @property
    def condition(self) -> str:
        """Where it exists, in words; empty if that is everywhere."""
        return " and ".join(f"{name} is {' or '.join(map(str, values))}" for name, values in self.when.items())

    def at(self, position: float) -> Value:
        """The value at a place in [0, 1] of its range: evenly from low to high, or evenly in the logarithm; of a choice
        the one in whose equal share the place lies."""
        if self.kind == "choice":
            assert self.values is not None
            return self.values[min(int(position * len(self.values)), len(self.values) - 1)]
        assert self.low is not None and self.high is not None
        if position in (0, 1):  # the logarithm's rounding would miss the ends
            value = self.high if position else self.low
        elif self.log:
            value = math.exp(math.log(self.low) + position * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + position * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.kind == "int" else value

    def position(self, value: float) -> float:
        """The place in [0, 1] of a number in its range. ValueError for a choice."""
        if self.low is None or self.high is None:
            raise ValueError("a choice has no places")
        low, high, number = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (number - low) / (high - low)

    def spread(self, count: int) -> tuple[Value, ...]:
        """Its values for a grid: of a choice all, else at most `count` (2 or more), evenly placed, with both ends."""
        if self.kind == "choice":
            return self.values or ()
        return tuple(dict.fromkeys(self.at(step / (count - 1)) for step in range(count)))

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

    @model_validator(mode="after")
    def _conditions_can_hold(self) -> Self:
        for name, parameter in self.parameters.items():
            for other, values in parameter.when.items():
                where = f"the condition of {name!r}"
                if other == name:
                    raise ValueError(f"{where} is on itself: name another parameter")
                if other not in self.parameters:
                    raise ValueError(f"{where} names {other!r}, which is no parameter")
                known = self.parameters[other]
                if known.kind == "float":
                    raise ValueError(f"{where} is on {other!r}, a float: only a choice or an int has values to meet")
                if not values:
                    raise ValueError(f"{where} names no value of {other!r}")
                for value in values:
                    if not known.allows(value):
                        raise ValueError(f"{where} needs {other} = {value!r}, which is outside {other}'s range")
        try:
            _ = self.order
        except CycleError as error:
            circle = " on ".join(repr(name) for name in error.args[1][::-1])
            raise ValueError(f"conditions go round in a circle: {circle}") from error
        return self

    @property
    def order(self) -> list[str]:
        """Every parameter after those that it depends on."""
        return list(TopologicalSorter({name: known.when for name, known in self.parameters.items()}).static_order())

    def require_system(self, system: str) -> None:
        """Raises SpaceError when it is the space of another system."""
        if self.system != system:
            raise SpaceError(
                f"this search space is of {self.system}, and the experiment trains {system}: "
                f"take search_spaces/{system}.yaml"
            )

    def choose(
        self,
        names: Collection[str] = (),
        ranges: Mapping[str, str] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> "Space":
        """The parameters to vary: those named, else the default ones; `ranges` changes some: "low:high" of a number,
        "a,b,c" of anything.

        fields: the experiment's, nested, which decide the conditions on parameters that are not varied; without them
        these conditions are taken as met. A default parameter that cannot exist is left out. Raises SpaceError for an
        unknown name, a range that is none, and a condition of a named parameter that no point can meet.
        """
        asked = {*names, *(ranges or {})}
        chosen = {name: self._parameter(name) for name in (tuple(names) or self.default)}
        for name, text in (ranges or {}).items():
            chosen[name] = _narrowed(name, chosen.get(name) or self._parameter(name), text)
        kept = {}
        for name, known in chosen.items():
            try:
                kept[name] = known.model_copy(update={"when": self._open_conditions(name, chosen, fields)})
            except SpaceError:
                if name in asked:
                    raise
        return Space(system=self.system, parameters=kept, default=tuple(kept))

    def _open_conditions(
        self, name: str, chosen: Mapping[str, Parameter], fields: Mapping[str, Any] | None
    ) -> dict[str, tuple[Value, ...]]:
        """The conditions on parameters that are varied too."""
        kept: dict[str, tuple[Value, ...]] = {}
        waiting = list(self.parameters[name].when.items())
        while waiting:
            other, values = waiting.pop(0)
            if other in chosen:
                kept[other] = tuple(value for value in values if chosen[other].allows(value))
                if not kept[other]:
                    raise SpaceError(
                        f"{name} only exists where {other} is {_either(values)}, and the range of {other} is "
                        f"{chosen[other].describe()}: widen that or leave {name} out"
                    )
                continue
            known = self.parameters[other]
            now = None if fields is None else _at(fields, known.field)
            if fields is not None and not _holds(values, now):
                raise SpaceError(
                    f"{name} only exists where {other} is {_either(values)}, and {known.field} is {now}: "
                    f"vary {other} too, set it, or leave {name} out"
                )
            waiting += known.when.items()
        return kept

    def _parameter(self, name: str) -> Parameter:
        if name not in self.parameters:
            near = difflib.get_close_matches(name, self.parameters, n=3, cutoff=0.4) or list(self.parameters)
            raise SpaceError(f"{self.system} documents no parameter {name!r}; near it: {', '.join(near)}")
        return self.parameters[name]

    def suggest(self, trial: Any) -> dict[str, Value]:
        """One point from an Optuna trial: the parameters that exist there."""
        point: dict[str, Value] = {}
        for name in self.order:
            if self.exists(name, point):
                point[name] = self.parameters[name].suggest(name, trial)
        return {name: point[name] for name in self.parameters if name in point}

    def exists(self, name: str, values: Mapping[str, Value]) -> bool:
        """Whether a parameter exists at a point that names all which its condition is on, if they exist."""
        conditions = self.parameters[name].when.items()
        return all(other in values and _holds(wanted, values[other]) for other, wanted in conditions)

    def existing(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The point without the parameters that do not exist there. A condition on a parameter that the point does not
        name is taken as met. Raises SpaceError for an unknown parameter."""
        for name in values:
            self._parameter(name)
        gone: set[str] = set()
        for name in self.order:
            conditions = self.parameters[name].when.items()
            if any(
                other in gone or (other in values and not _holds(wanted, values[other])) for other, wanted in conditions
            ):
                gone.add(name)
        return {name: value for name, value in values.items() if name not in gone}

    def check(self, values: Mapping[str, Value]) -> None:
        """Raises SpaceError unless the values are a whole point: every parameter that exists there, in its range."""
        existing = self.existing(values)
        for name, value in values.items():
            known = self.parameters[name]
            if not known.allows(value):
                raise SpaceError(
                    f"{name} = {value!r} is outside its range ({known.describe()}): choose a value in it, or widen it"
                )
            if name not in existing:
                raise SpaceError(f"{name} has a value, and only exists where {known.condition}: leave it out")
        for name in self.order:
            if name not in values and self.exists(name, values):
                raise SpaceError(f"the point has no value for {name} ({self.parameters[name].describe()}): give one")

    def assignments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The experiment's fields that a point of the space sets, with their values. What does not exist there sets
        nothing. Raises SpaceError for an unknown parameter."""
        existing = self.existing(values)
        return {field: value for name, value in existing.items() for field in self._parameter(name).fields}


def _holds(values: Collection[Value], value: Any) -> bool:
    """Membership that tells true from 1."""
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values)


def _either(values: Iterable[Value]) -> str:
    return " or ".join(str(value) for value in values)


def _at(fields: Mapping[str, Any], path: str) -> Any:
    node: Any = fields
    for part in path.split("."):
        node = node[part]
    return node


def _narrowed(name: str, parameter: Parameter, text: str) -> Parameter:
    listed = parameter.kind == "choice" or "," in text
    try:
        if listed:
            changes: dict[str, Any] = {
                "kind": "choice",
                "values": tuple(_listed(parameter, part) for part in text.split(",")),
                "low": None,
                "high": None,
                "log": False,
            }
        else:
            low, _, high = text.partition(":")
            changes = {"low": float(low), "high": float(high)}
            if changes["low"] > changes["high"]:
                raise SpaceError(
                    f"range {text!r} of {name} has its low above its high: write it as {name}={high}:{low}"
                )
        # The documented values stay in the record of the full space; a narrowed range need not hold them.
        kept = Parameter.model_construct(**{**parameter.__dict__, **changes})
        documented = {
            key: value if (value := getattr(parameter, key)) is not None and kept.allows(value) else None
            for key in ("paper", "released")
        }
        by_data = {kind: value for kind, value in parameter.by_data.items() if kept.allows(value)}
        return Parameter(**{**parameter.__dict__, **changes, **documented, "by_data": by_data})
    except SpaceError:
        raise
    except (ValueError, ValidationError, yaml.YAMLError) as error:
        form = f"{name}=a,b,c" if parameter.kind == "choice" else f"{name}=low:high or {name}=a,b,c"
        raise SpaceError(f"range {text!r} of {name} is none: write it as {form}") from error


def _listed(parameter: Parameter, text: str) -> Value:
    """One of the values that a range lists. Raises ValueError."""
    value: Any = yaml.safe_load(text)
    if parameter.kind == "choice":
        return value  # type: ignore[no-any-return]
    number = float(text)
    if not math.isfinite(number) or (parameter.kind == "int" and not number.is_integer()):
        raise ValueError(text)
    return int(number) if parameter.kind == "int" else number


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
