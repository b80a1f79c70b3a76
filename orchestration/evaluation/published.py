"""The papers' numbers, and which of them may stand beside ours.

Main results are in published.yaml, ablations in search_spaces/tables, each with its table. A number may stand beside a
figure of ours where system and settings aside all is the same: metric, protocol, data set, split, number of pictures
and their size.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestration.data.sources import FORMATS
from orchestration.errors import RequestError
from orchestration.evaluation.record import MetricRecord
from search_spaces.reading import parse_checked
from search_spaces.tables import Table, load_table, table_names
from search_spaces.tables.table import UNKNOWN

FILE = Path(__file__).with_name("published.yaml")
REAL = "real"
YEARLESS = "coco"
UNSAID = "the paper does not settle how it was measured"

Name = Annotated[str, Field(min_length=1)]
Spread = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Value = Annotated[float, Field(allow_inf_nan=False)]
Cell = Value | tuple[Value, Spread]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Published(_Strict):
    """One number of a paper, in the units of our records: shares are in [0, 1].

    system: "real" for real pictures; variant: what sets it apart from the system's main row; protocol: "unknown" where
    `why` says what is known; samples: pictures drawn, None where the paper does not say; spread: what stands after the
    plus-minus sign, a deviation over splits or pairs; size: side of the pictures, None where the paper does not say;
    source: paper and table; note: must be read with it.
    """

    system: Name
    variant: str
    data: Name
    split: Name
    metric: Name
    protocol: Name
    value: float
    spread: float | None
    samples: int | None
    size: int | None
    source: Name
    why: str
    note: str

    @property
    def figure(self) -> str:
        """METRIC/PROTOCOL."""
        return f"{self.metric}/{self.protocol}"


class _Column(_Strict):
    metric: Name
    protocol: Name
    data: Name
    split: Name
    samples: int | None = Field(None, gt=0)
    percent: bool = False
    why: str = ""


class _Row(_Strict):
    system: Name
    values: dict[str, Cell] = Field(min_length=1)
    variant: str = ""
    note: str = ""
    protocols: dict[str, Name] = {}


class _Table(_Strict):
    source: Name
    columns: dict[str, _Column] = Field(min_length=1)
    rows: list[_Row] = Field(min_length=1)
    size: int | None = Field(None, gt=0)
    note: str = ""

    @model_validator(mode="after")
    def _columns_exist(self) -> "_Table":
        for row in self.rows:
            unknown = sorted((row.values.keys() | row.protocols.keys()) - self.columns.keys())
            if unknown:
                raise ValueError(
                    f"{self.source}: the row of {row.system} names the column {unknown[0]!r}, which the table lacks; "
                    f"it has {', '.join(self.columns)}"
                )
            idle = sorted(row.protocols.keys() - row.values.keys())
            if idle:
                raise ValueError(f"{self.source}: the row of {row.system} has a protocol and no value for {idle[0]!r}")
        for name, column in self.columns.items():
            if column.data not in FORMATS or column.data == YEARLESS:
                raise ValueError(
                    f"{self.source}: the column {name!r} is of the data set {column.data!r}, and data sets are called "
                    f"{', '.join(kind for kind in FORMATS if kind != YEARLESS)}"
                )
        return self

    def numbers(self) -> Sequence[Published]:
        """Its numbers, row by row."""
        return [
            _number(self, row, self.columns[name], row.protocols.get(name, self.columns[name].protocol), cell)
            for row in self.rows
            for name, cell in row.values.items()
        ]


class _File(_Strict):
    tables: list[_Table] = Field(min_length=1)

    @model_validator(mode="after")
    def _once(self) -> "_File":
        seen: set[tuple[str | int | None, ...]] = set()
        for number in (number for table in self.tables for number in table.numbers()):
            # Two unknown protocols may be two ones.
            why = number.why if number.protocol == UNKNOWN else ""
            key = (number.source, number.system, number.variant, number.data, number.split, number.figure, why)
            if key in seen:
                raise ValueError(f"{number.source} gives {number.figure} of {number.system} on {number.data} twice")
            seen.add(key)
        return self


def _number(table: _Table, row: _Row, column: _Column, protocol: str, cell: Cell) -> Published:
    value, spread = cell if isinstance(cell, tuple) else (cell, None)
    unit = 100 if column.percent else 1
    note = "; ".join(filter(None, (row.note, table.note)))
    why = "" if protocol != UNKNOWN else column.why or row.note or UNSAID
    return Published(
        system=row.system,
        variant=row.variant,
        data=column.data,
        split=column.split,
        metric=column.metric,
        protocol=protocol,
        value=value / unit,
        spread=None if spread is None else spread / unit,
        samples=column.samples,
        size=table.size,
        source=table.source,
        why=why,
        note=note,
    )


def read_published(path: Path) -> tuple[Published, ...]:
    """The numbers of a file laid out as published.yaml. Raises RequestError, with its name and the place in it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}): give a file of published numbers") from error
    try:
        file = parse_checked(content, str(path), _File, ValueError)
    except ValueError as error:
        raise RequestError(str(error)) from error
    return tuple(number for table in file.tables for number in table.numbers())


@cache
def published() -> tuple[Published, ...]:
    """All numbers of the papers: main results in their order, then ablations."""
    ablations = [number for name in table_names() for number in numbers_of(load_table(name))]
    return (*read_published(FILE), *ablations)


def numbers_of(table: Table) -> Sequence[Published]:
    """The numbers of a table of search_spaces/tables, row by row; a row is a variant of its system."""
    return [
        Published(
            system=entry.system,
            variant=entry.title,
            data=column.data,
            split=column.split,
            metric=column.metric,
            protocol=column.protocol,
            value=figure.value / unit,
            spread=None if figure.spread is None else figure.spread / unit,
            samples=column.samples,
            size=table.size,
            source=table.source,
            why=column.why,
            note="; ".join(filter(None, (entry.note, *table.notes))),
        )
        for entry in table.entries()
        for column, figure, unit in (
            (table.columns[name], figure, 100 if table.columns[name].percent else 1)
            for name, figure in entry.published.items()
        )
    ]


def data_name(record: MetricRecord) -> str:
    """Name of the data set that a figure is about: "coco-2014" of coco-2014:PATH."""
    return record.judged.data.partition(":")[0]


def why_not_beside(number: Published, record: MetricRecord) -> str | None:
    """Why a paper's number must not stand beside a figure of ours, as the end of a sentence; None where it may.

    A folder of a data set is taken as whole: that is what the number of pictures cannot tell.
    """
    ours = data_name(record)
    if ours == YEARLESS and number.data.startswith(f"{YEARLESS}-"):
        return f"data called {YEARLESS}:PATH may be of either year, call it {number.data}:PATH"
    if ours != number.data:
        return f"ours is {ours or 'unnamed'} data"
    if record.judged.split != number.split:
        return f"ours is the split {record.judged.split}"
    if number.protocol == UNKNOWN:
        return number.why
    if record.figure != number.figure:
        return "measured under another protocol"
    if number.samples is None:
        return "the paper does not say from how many pictures"
    count = record.drawn or record.real
    if count != number.samples:
        return f"theirs is from {number.samples:,} pictures, ours from {count:,}"
    size = re.search(r"\b\d+\b", record.judged.pictures)
    if size is not None and number.size is not None and int(size[0]) != number.size:
        return f"theirs is of pictures of {number.size} px, ours of {size[0]} px"
    return None


def beside(records: Sequence[MetricRecord]) -> Mapping[str, Sequence[Published]]:
    """By figure, the main rows' numbers that may stand beside all our figures of that name."""
    found: dict[str, list[Published]] = {}
    for figure in dict.fromkeys(record.figure for record in records):
        ours = [record for record in records if record.figure == figure]
        for number in published():
            if not number.variant and all(why_not_beside(number, record) is None for record in ours):
                found.setdefault(figure, []).append(number)
    return found


def apart(records: Sequence[MetricRecord], most: int = 3) -> Sequence[str]:
    """Sentences on numbers of the judged systems that may not stand beside ours, and why; at most so many.

    Main rows only, one sentence a table; those on other data only where the systems have none on ours.
    """
    drawn = [record for record in records if record.judged.checkpoint]
    shown = beside(records)
    groups: dict[tuple[str, str, str, str, str], list[str]] = {}
    for number in published():
        ours = [r for r in drawn if r.judged.system == number.system and r.metric == number.metric]
        if number.variant or not ours or number in shown.get(number.figure, ()):
            continue
        # Of two nets' FIDs that of the paper's net says most.
        ours.sort(key=lambda record: record.figure != number.figure)
        reason = next(filter(None, (why_not_beside(number, record) for record in ours)), UNSAID)
        spread = "" if number.spread is None else f" ± {number.spread:.4g}"
        known = number.figure if number.protocol != UNKNOWN else f"{number.metric} (protocol unknown)"
        key = (number.system, number.data, number.split, number.source, reason)
        groups.setdefault(key, []).append(f"{known} {number.value:.4g}{spread}")
    names = {data_name(record) for record in drawn}
    # Where the paper has our data set its others say nothing.
    known_data = any(number.data in names for numbers in shown.values() for number in numbers)
    order = [key for key in groups if key[1] in names] or ([] if known_data else list(groups))
    sentences = [
        f"published of {system}: {', '.join(groups[system, data, split, source, reason])} on {data} {split} ({source}; "
        f"not comparable: {reason})"
        for system, data, split, source, reason in order[:most]
    ]
    left = len(order) - most
    return [*sentences, f"and {left} more published rows of the same kind"] if left > 0 else sentences
