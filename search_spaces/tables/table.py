"""A paper's table as checked data: its rows as configurations, its published numbers, and what it claims."""

import difflib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from search_spaces.reading import parse_checked
from search_spaces.space import Value

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
UNKNOWN = "unknown"


class TableError(ValueError):
    """A paper's table is wrong or not there; the message says what, where and how to mend it."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Column(_Record):
    """One metric on one data set."""

    metric: str = Field(min_length=1, description="what is measured, such as inception_score")
    protocol: str = Field(
        min_length=1, description='how, in the names of t2i evaluate; "unknown" where the paper does not settle it'
    )
    why: str = Field("", description="of an unknown protocol, what is known")
    nearest: str | None = Field(None, min_length=1, description="the protocol that comes nearest to an unknown one")
    better: Literal["higher", "lower"]
    percent: bool = Field(False, description="whether the paper prints the share in percent")
    data: str = Field(min_length=1, description="the data set, such as cub")
    split: str = Field(min_length=1)
    samples: int | None = Field(None, gt=0, description="pictures drawn; none where the paper does not say")
    recipe: str = Field(min_length=1, description="the experiment at the paper's scale that the rows change")
    source: str = Field(min_length=1, description="section that says how it was measured")

    @model_validator(mode="after")
    def _unknown_is_explained(self) -> Self:
        if (self.protocol == UNKNOWN) != bool(self.why):
            raise ValueError("why says what is known of an unknown protocol, and of no other: write both or neither")
        if self.nearest is not None and self.protocol != UNKNOWN:
            raise ValueError("nearest is for an unknown protocol, and this one is known: leave it out")
        return self

    def improves(self, worse: float, better: float) -> bool:
        """Whether the second figure is better than the first."""
        return better > worse if self.better == "higher" else better < worse


class Figure(_Record):
    """A published number as printed; spread: what stands after its plus-minus sign."""

    value: float
    spread: float | None = Field(None, ge=0)


class Row(_Record):
    """One configuration; `changes`: the experiment's fields that make it, by dotted name."""

    title: str = Field(min_length=1, description="as the paper writes it")
    changes: dict[str, Value]
    published: dict[str, Figure] = Field(default_factory=dict, description="by column; none where they are only drawn")
    note: str = Field("", description="must be read with its numbers")


class Reference(_Record):
    """Numbers that stand in the table and are of no configuration of the system, such as those of real pictures."""

    system: str = Field(min_length=1, description='"real" for real pictures')
    title: str = Field("", description="what sets it apart from that system's main numbers")
    published: dict[str, Figure] = Field(min_length=1)
    note: str = ""


class Claim(_Record):
    """In every one of these columns `better` is better than `worse`, or each row of `monotone` better than the one
    before it. drawn: the paper says so of a figure whose numbers it does not print."""

    better: str | None = None
    worse: str | None = None
    monotone: tuple[str, ...] | None = Field(None, min_length=3, description="rows in order, the worst first")
    columns: tuple[str, ...] = Field(min_length=1)
    drawn: bool = False
    source: str = Field(min_length=1, description="where the paper says so, and what in our words")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        pair = (self.better is not None, self.worse is not None)
        if pair != ((True, True) if self.monotone is None else (False, False)):
            raise ValueError("a claim has either better and worse, or monotone")
        if len(set(self.order)) < len(self.order):
            raise ValueError(f"a claim names row {self.order[0]!r} twice")
        return self

    @property
    def order(self) -> tuple[str, ...]:
        """Its rows, the worst first."""
        return self.monotone or (self.worse or "", self.better or "")

    @property
    def words(self) -> str:
        """Such as lambda_20 over lambda_10 over lambda_5."""
        return " over ".join(reversed(self.order))


class Table(_Record):
    """One table of a paper.

    to_come: the system is not there yet, and `changes` are in the names that its options are to have; size: side of the
    pictures in pixels, none where the paper does not say; settings: fields that all rows have at the paper's scale.
    """

    name: Name
    system: Name
    to_come: bool = False
    title: str = Field(min_length=1)
    source: str = Field(min_length=1, description="paper and table")
    size: int | None = Field(None, gt=0)
    settings: dict[str, Value] = Field(default_factory=dict)
    columns: dict[Name, Column] = Field(min_length=1)
    rows: dict[Name, Row] = Field(min_length=2)
    references: tuple[Reference, ...] = ()
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
        for reference in self.references:
            for column in reference.published:
                _known("column", column, self.columns, f"the reference {reference.system!r}")
        for number, claim in enumerate(self.claims, 1):
            self._check_claim(claim, f"claim {number}")
        return self

    def _check_claim(self, claim: Claim, where: str) -> None:
        for row in claim.order:
            _known("row", row, self.rows, where)
        for name in claim.columns:
            _known("column", name, self.columns, where)
            for worse, better in () if claim.drawn else pairwise(claim.order):
                self._check_step(name, worse, better, where)

    def _check_step(self, name: str, worse: str, better: str, where: str) -> None:
        figures = []
        for row in (better, worse):
            if name not in self.rows[row].published:
                raise ValueError(f"{where} compares {name!r}, for which row {row!r} has no published number")
            figures.append(self.rows[row].published[name].value)
        if not self.columns[name].improves(figures[1], figures[0]):
            raise ValueError(
                f"{where} says {better!r} is better than {worse!r} in {name!r}, but the published numbers are "
                f"{figures[0]:g} and {figures[1]:g}, {self.columns[name].better} being better"
            )

    @property
    def label(self) -> str:
        """Its name on the command line, such as mirrorgan-table3."""
        return self.name.replace("_", "-")

    @property
    def recipes(self) -> tuple[str, ...]:
        """The recipes at the paper's scale, each once."""
        return tuple(dict.fromkeys(column.recipe for column in self.columns.values()))

    def entries(self) -> Iterator[Reference]:
        """All that it prints: the references, and its rows as variants of its system."""
        yield from self.references
        for row in self.rows.values():
            if row.published:
                yield Reference(system=self.system, title=row.title, published=row.published, note=row.note)


def _known(kind: str, name: str, known: Mapping[str, object], where: str) -> None:
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
