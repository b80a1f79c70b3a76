"""A paper's table as checked data: its rows as configurations, its published numbers, and what it claims."""

import difflib
from importlib.resources import files
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from search_spaces.reading import parse_checked
from search_spaces.space import Value

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class TableError(ValueError):
    """A paper's table is wrong or not there; the message says what, where and how to mend it."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Column(_Record):
    """One metric on one data set."""

    metric: str = Field(min_length=1, description="what is measured, such as inception_score")
    protocol: str = Field(min_length=1, description="how: figures of two protocols are never compared")
    better: Literal["higher", "lower"]
    data: str = Field(min_length=1, description="format of the data set, such as cub")
    recipe: str = Field(min_length=1, description="the experiment at the paper's scale that the rows change")
    source: str = Field(min_length=1, description="section that says how it was measured")


class Figure(_Record):
    """A published number; spread: what stands after its plus-minus sign."""

    value: float
    spread: float | None = Field(None, ge=0)


class Row(_Record):
    """One configuration; `changes`: the experiment's fields that make it, by dotted name."""

    title: str = Field(min_length=1, description="as the paper writes it")
    changes: dict[str, Value]
    published: dict[str, Figure] = Field(min_length=1, description="by column")


class Claim(_Record):
    """One row is better than another in every one of these columns."""

    better: str
    worse: str
    columns: tuple[str, ...] = Field(min_length=1)
    source: str = Field(min_length=1, description="where the paper says so")

    def holds(self, column: Column, better: float, worse: float) -> bool:
        """Whether figures of the two rows, by one protocol of the column's metric, go the way the claim says."""
        return better > worse if column.better == "higher" else better < worse


class Table(_Record):
    """One table of a paper."""

    name: Name
    system: Name
    title: str = Field(min_length=1)
    source: str = Field(min_length=1, description="paper and table")
    columns: dict[Name, Column] = Field(min_length=1)
    rows: dict[Name, Row] = Field(min_length=2)
    claims: tuple[Claim, ...] = Field(min_length=1)
    notes: tuple[str, ...] = Field((), description="where the paper disagrees with itself or leaves something open")

    @field_validator("rows")
    @classmethod
    def _rows_differ(cls, rows: dict[str, Row]) -> dict[str, Row]:
        names = list(rows)
        for number, name in enumerate(names):
            for other in names[:number]:
                if rows[other].changes == rows[name].changes:
                    raise ValueError(f"{other!r} and {name!r} are the same configuration")
        return rows

    @model_validator(mode="after")
    def _pieces_fit(self) -> Self:
        for name, row in self.rows.items():
            for column in row.published:
                _known("column", column, self.columns, f"row {name!r}")
        for number, claim in enumerate(self.claims, 1):
            self._check_claim(claim, f"claim {number}")
        return self

    def _check_claim(self, claim: Claim, where: str) -> None:
        for row in (claim.better, claim.worse):
            _known("row", row, self.rows, where)
        for name in claim.columns:
            _known("column", name, self.columns, where)
            figures = []
            for row in (claim.better, claim.worse):
                if name not in self.rows[row].published:
                    raise ValueError(f"{where} compares {name!r}, for which row {row!r} has no published number")
                figures.append(self.rows[row].published[name].value)
            if not claim.holds(self.columns[name], *figures):
                raise ValueError(
                    f"{where} says {claim.better!r} is better than {claim.worse!r} in {name!r}, but the published "
                    f"numbers are {figures[0]:g} and {figures[1]:g}, {self.columns[name].better} being better"
                )

    @property
    def recipes(self) -> tuple[str, ...]:
        """The recipes at the paper's scale, each once."""
        return tuple(dict.fromkeys(column.recipe for column in self.columns.values()))


def _known(kind: str, name: str, known: dict[str, Column] | dict[str, Row], where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
        raise ValueError(f"{where} names {kind} {name!r}, which is not there; near it: {', '.join(near)}")


def table_names() -> list[str]:
    """Every table that is here."""
    found = (item.name for item in files("search_spaces.tables").iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def load_table(name: str) -> Table:
    """The checked table `name`, such as mirrorgan_table3. Raises TableError with one sentence."""
    known = table_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise TableError(f"no table {name!r}; near it: {', '.join(near)}")
    return parse_table((files("search_spaces.tables") / f"{name}.yaml").read_bytes(), name)


def parse_table(text: bytes, name: str) -> Table:
    """The table that the text of `search_spaces/tables/NAME.yaml` describes. Raises TableError with one sentence."""
    where = f"search_spaces/tables/{name}.yaml"
    table = parse_checked(text, where, Table, TableError)
    if table.name != name:
        raise TableError(f"{where} says name {table.name!r}: write name: {name}, or rename the file")
    return table
