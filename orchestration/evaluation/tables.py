"""Records side by side: figures in rows, judged runs in columns; for a terminal, as Markdown and as CSV.

A value is marked best only where it is better than every other by more than the noise. Papers' numbers stand beside
ours only where they compare; otherwise a footnote says why not.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from msgspec.structs import replace

from orchestration.errors import RequestError
from orchestration.evaluation.published import Published, apart, beside
from orchestration.evaluation.record import Judged, MetricRecord, compare, noise_floor, why_not_comparable
from orchestration.stages import write_atomically

WIDTH, FIGURE_WIDTH, HEAD_WIDTH, GAP = 110, 34, 16, 2
EMPTY = "-"
FORMS = (".md", ".csv")
LOWER = frozenset({"fid", "fid_inf", "kid", "duplicates", "memorised"})
HIGHER = frozenset(
    {"inception_score", "r_precision", "recall", "precision", "density", "coverage", "accuracy", "naming", "captioning"}
)
"""Metrics by which value is better. More diversity (LPIPS) is not better by itself: noise has most."""
FIELDS = (
    *("figure", "better", "run", "system", "recipe", "checkpoint", "kimg", "data", "data_digest"),
    *("split", "pictures", "seeds"),
    *("value", "low", "high", "noise", "count", "real", "drawn", "best", "source", "notes"),
)


def better(metric: str) -> str | None:
    """ "lower", "higher", or None where neither is better by itself."""
    if metric in LOWER:
        return "lower"
    return "higher" if metric in HIGHER or metric.startswith(("soa_c", "soa_i")) else None


@dataclass(frozen=True, slots=True)
class Column:
    """One judged run, or one system of a paper. lines: what stands below its name; judged, None for a paper's."""

    title: str
    lines: tuple[str, ...]
    judged: Judged | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure of a run. record: over several sampling seeds the mean of value, low and high; noise: standard deviation
    over the seeds, None for one; notes: numbers of footnotes."""

    record: MetricRecord
    seeds: tuple[int, ...]
    noise: float | None = None
    best: bool = False
    notes: tuple[int, ...] = ()


class _Footnotes:
    """Numbers sentences, each once."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def number(self, sentence: str) -> int:
        if sentence not in self.sentences:
            self.sentences.append(sentence)
        return self.sentences.index(sentence) + 1


@dataclass(frozen=True)
class Table:
    """cells, published: by figure and place of the column; notes: by figure, those of all its cells; remarks: lines
    without a number."""

    heading: str
    figures: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: dict[tuple[str, int], Cell]
    published: dict[tuple[str, int], Published]
    notes: dict[str, tuple[int, ...]]
    footnotes: tuple[str, ...]
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, records: Sequence[MetricRecord]) -> "Table":
        """A column a judged run, in order; seeds of one run are merged. Raises RequestError for no records."""
        if not records:
            raise RequestError("there is no figure to show: judge a run with t2i evaluate RUN")
        footnotes = _Footnotes()
        groups: dict[tuple[str, ...], list[MetricRecord]] = {}
        for record in records:
            groups.setdefault(_column_of(record.judged), []).append(record)
        judged = [group[0].judged for group in groups.values()]
        heading, columns = _headings(judged)
        figures = tuple(dict.fromkeys(record.figure for record in records))
        cells: dict[tuple[str, int], Cell] = {}
        notes: dict[str, tuple[int, ...]] = {}
        for figure in figures:
            row: dict[int, Cell] = {}
            for place, group in enumerate(groups.values()):
                mine = [record for record in group if record.figure == figure]
                if mine:
                    row[place] = _merged(mine, footnotes)
            row = _ranked(row, columns, footnotes)
            numbers = [set(cell.notes) for cell in row.values()]
            notes[figure] = tuple(sorted(set.intersection(*numbers)))
            for place, cell in row.items():
                # What all cells say stands once, beside the figure.
                cells[figure, place] = _noted(cell, set(cell.notes) - set(notes[figure]))
        papers, published = _papers(records, footnotes, len(columns))
        return cls(
            heading,
            figures,
            (*columns, *papers),
            cells,
            published,
            notes,
            tuple(footnotes.sentences),
            tuple(apart(records)),
        )

    def text(self) -> str:
        """For a terminal of 110 columns; runs that do not fit beside each other stand below each other."""
        figures = [
            _packed(f"{figure}{_arrow(figure)}{_marks(self.notes[figure])}", FIGURE_WIDTH) for figure in self.figures
        ]
        first = [[], *figures]
        counts = [["pictures", "real/drawn"], *([self._counts(figure)] for figure in self.figures)]
        bodies = []
        for place, column in enumerate(self.columns):
            rows = [self._cell(figure, place).splitlines() for figure in self.figures]
            width = max(HEAD_WIDTH, *(len(line) for row in rows for line in row))
            heads = (column.title, *column.lines)
            bodies.append([[piece for head in heads for piece in _packed(head, width)], *rows])
        blocks: list[list[list[list[str]]]] = []
        for body in bodies:
            if not blocks or _width([*blocks[-1], body]) > WIDTH:
                blocks.append([first, counts] if not blocks else [first])
            blocks[-1].append(body)
        lines = [*_filled(self.heading, ""), ""]
        for block in blocks:
            lines += [*_laid_out(_without_empty_rows(block)), ""]
        for line in self._footnote_lines():
            lines += _filled(line, "    ")
        return "\n".join(lines).rstrip() + "\n"

    def markdown(self) -> str:
        """As a Markdown table."""
        heads = [" ".join([column.title, *column.lines]) for column in self.columns]
        rows = [["figure", "real/drawn", *heads], ["---"] * (len(heads) + 2)]
        for figure in self.figures:
            cells = [self._cell(figure, place, bold=True) for place in range(len(self.columns))]
            rows.append([f"{figure}{_arrow(figure)}{_marks(self.notes[figure])}", self._counts(figure), *cells])
        lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows]
        notes = [f"- {_escaped(line)}" for line in self._footnote_lines()]
        return "\n".join([_escaped(self.heading), "", *lines, "", *notes]).rstrip() + "\n"

    def csv(self) -> str:
        """A line a figure and run, numbers in full; papers' numbers have a `source` and no run."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, FIELDS, restval="", lineterminator="\n")
        writer.writeheader()
        for (figure, _), cell in sorted(
            self.cells.items(), key=lambda item: (self.figures.index(item[0][0]), item[0][1])
        ):
            record, judged = cell.record, cell.record.judged
            numbers = sorted({*cell.notes, *self.notes[figure]})
            same = {name: getattr(judged, name) for name in FIELDS if name in Judged.__struct_fields__}
            same |= {name: getattr(record, name) for name in ("value", "low", "high", "count", "real", "drawn")}
            writer.writerow(
                same
                | {
                    "figure": figure,
                    "better": better(record.metric) or "",
                    "seeds": " ".join(map(str, cell.seeds)),
                    "noise": "" if cell.noise is None else cell.noise,
                    "best": "yes" if cell.best else "",
                    "notes": "; ".join(self.footnotes[number - 1] for number in numbers),
                }
            )
        for (figure, _), paper in self.published.items():
            same = {name: getattr(paper, name) for name in ("system", "data", "split", "value", "source")}
            notes = paper.note if paper.spread is None else "; ".join(filter(None, (f"± {paper.spread:g}", paper.note)))
            writer.writerow(
                same
                | {"figure": figure, "better": better(paper.metric) or "", "drawn": paper.samples or "", "notes": notes}
            )
        return buffer.getvalue()

    def write(self, path: Path) -> None:
        """Write it in the form that `path` ends with, .md or .csv. Raises RequestError where that cannot be done."""
        if path.suffix not in FORMS:
            raise RequestError(f"{path} is neither .md nor .csv: end its name with one of them")
        try:
            write_atomically(path, self.markdown() if path.suffix == ".md" else self.csv())
        except OSError as error:
            raise RequestError(f"{path} cannot be written ({error.strerror}): give another place") from error

    def _counts(self, figure: str) -> str:
        """Pictures behind a row, where all its runs have the same."""
        found = {(cell.record.real, cell.record.drawn) for (name, _), cell in self.cells.items() if name == figure}
        return "{}/{}".format(*found.pop()) if len(found) == 1 else "varies"

    def _cell(self, figure: str, place: int, bold: bool = False) -> str:
        cell, paper = self.cells.get((figure, place)), self.published.get((figure, place))
        if paper is not None:
            return f"{paper.value:.4g}" + (f" ± {paper.spread:.2g}" if paper.spread is not None else "")
        if cell is None:
            return EMPTY
        value, interval = _shown(cell.record)
        mark = f"**{value}**" if bold and cell.best else f"{value}{'*' * cell.best}"
        varies = self._counts(figure) == "varies"
        counts = f" of {cell.record.real}/{cell.record.drawn}" if varies else ""
        lines = [f"{mark} {interval}{counts}{_marks(cell.notes)}"]
        if cell.noise is not None:
            lines.append(f"noise {cell.noise:.2g}, {len(cell.seeds)} seeds")
        return ("; " if bold else "\n").join(lines)

    def _footnote_lines(self) -> Iterator[str]:
        yield "value [95 % interval]; ↓ lower is better, ↑ higher is better"
        if any(cell.noise is not None for cell in self.cells.values()):
            yield "noise: standard deviation over sampling seeds; value and interval are their means"
        if any(cell.best for cell in self.cells.values()):
            yield "* (bold in Markdown): better than every other judged run by more than the noise"
        for number, sentence in enumerate(self.footnotes, 1):
            yield f"({number}) {sentence}"
        yield from self.remarks


def _column_of(judged: Judged) -> tuple[str, ...]:
    return (judged.run, judged.checkpoint, judged.data_digest, judged.split, judged.pictures)


def _headings(judged: Sequence[Judged]) -> tuple[str, list[Column]]:
    """What all columns share, as a line; and the columns, with what they do not."""

    def described(one: Judged) -> dict[str, str]:
        return {"data": one.data, "split": f"split {one.split}", "pictures": f"pictures {one.pictures}"}

    same = {name for name in described(judged[0]) if len({described(one)[name] for one in judged}) == 1}
    shared = ", ".join(text for name, text in described(judged[0]).items() if name in same)
    columns = []
    for one in judged:
        apart_lines = [text for name, text in described(one).items() if name not in same]
        # The real pictures were not trained.
        kimg = [f"{one.kimg:g} kimg"] if one.checkpoint else []
        columns.append(Column(one.run, (*kimg, *apart_lines), one))
    return (f"Judged on {shared}" if shared else "Judged"), columns


def _merged(records: Sequence[MetricRecord], footnotes: _Footnotes) -> Cell:
    """One figure of one run, over its sampling seeds; of a seed that comes twice the newest."""
    last = records[-1]
    by_seed = {record.judged.seed: record for record in records if why_not_comparable(record, last) is None}
    left = [reason for record in records if (reason := why_not_comparable(record, last)) is not None]
    kept = [by_seed[seed] for seed in sorted(by_seed)]
    sentences = list(dict.fromkeys(note for record in kept for note in record.notes))
    if left:
        sentences.append(f"earlier figures of {last.judged.run} are left out: {left[0]}")
    numbers = tuple(footnotes.number(sentence) for sentence in sentences)
    if len(kept) == 1:
        return Cell(last, (last.judged.seed,), notes=numbers)
    value, low, high = (fmean(getattr(record, name) for record in kept) for name in ("value", "low", "high"))
    mean = replace(last, value=value, low=low, high=high)
    return Cell(mean, tuple(sorted(by_seed)), noise_floor(kept), notes=numbers)


def _ranked(row: dict[int, Cell], columns: Sequence[Column], footnotes: _Footnotes) -> dict[int, Cell]:
    """The row with its best run marked, and footnotes where runs do not compare with the first."""
    drawn = [place for place, cell in row.items() if cell.record.judged.checkpoint]
    first = drawn[0] if drawn else next(iter(row))
    compared = [first] if drawn else []
    for place, cell in row.items():
        reason = why_not_comparable(row[first].record, cell.record)
        if reason is not None:
            names = f"{columns[place].title} does not compare with {columns[first].title}"
            row[place] = _noted(cell, {*cell.notes, footnotes.number(f"{names}: {reason}")})
        elif place in drawn[1:]:
            compared.append(place)
    best = _best({place: row[place] for place in compared})
    if best is not None:
        cell = row[best]
        row[best] = Cell(cell.record, cell.seeds, cell.noise, True, cell.notes)
    return row


def _best(cells: dict[int, Cell]) -> int | None:
    """The place of the run that is better than each other one by more than the noise; None where there is none."""
    finite = {place: cell for place, cell in cells.items() if math.isfinite(cell.record.value)}
    if len(finite) < 2:
        return None
    direction = better(next(iter(finite.values())).record.metric)
    if direction is None:
        return None
    choose = min if direction == "lower" else max
    best = choose(finite, key=lambda place: finite[place].record.value)
    mine = finite[best]
    for place, other in finite.items():
        noise = max(mine.noise or 0.0, other.noise or 0.0)
        if place != best and not compare(mine.record, other.record, noise).beyond_noise:
            return None
    return best


def _noted(cell: Cell, numbers: set[int]) -> Cell:
    return Cell(cell.record, cell.seeds, cell.noise, cell.best, tuple(sorted(numbers)))


def _papers(
    records: Sequence[MetricRecord], footnotes: _Footnotes, start: int
) -> tuple[list[Column], dict[tuple[str, int], Published]]:
    """Columns of the papers' numbers that compare with ours, the judged systems' first."""
    found = beside(records)
    systems = {record.judged.system for record in records}
    keys = dict.fromkeys(_key(number) for numbers in found.values() for number in numbers)
    places = {key: start + place for place, key in enumerate(sorted(keys, key=lambda key: key[0] not in systems))}
    columns = []
    for system, source in places:
        told = {number.note for numbers in found.values() for number in numbers if _key(number) == (system, source)}
        marks = [footnotes.number("; ".join(filter(None, (f"published: {source}", note)))) for note in sorted(told)]
        columns.append(Column(system, ("published" + _marks(marks),)))
    cells = {(figure, places[_key(number)]): number for figure in found for number in found[figure]}
    return columns, cells


def _key(number: Published) -> tuple[str, str]:
    return number.system, number.source


def _shown(record: MetricRecord) -> tuple[str, str]:
    """Value and interval, with as many decimals as two digits of half the interval need."""
    half = (record.high - record.low) / 2
    if not all(map(math.isfinite, (record.value, half))) or half <= 0:
        return f"{record.value:.4g}", f"[{record.low:.4g}, {record.high:.4g}]"
    decimals = min(8, max(0, 1 - math.floor(math.log10(half) + 1e-6)))
    return f"{record.value:.{decimals}f}", f"[{record.low:.{decimals}f}, {record.high:.{decimals}f}]"


def _arrow(figure: str) -> str:
    return {"lower": " ↓", "higher": " ↑", None: ""}[better(figure.partition("/")[0])]


def _marks(numbers: Sequence[int]) -> str:
    return "".join(f" ({number})" for number in numbers)


def _packed(name: str, width: int) -> list[str]:
    """A name in lines of at most so many characters, broken where it has a mark; a long part is cut."""
    pieces = [piece for part in re.findall(r"[^-_/ ]*[-_/ ]*", name) for piece in _cut(part, width) if piece]
    lines = [""]
    for piece in pieces:
        if len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines if line.strip()]


def _cut(text: str, width: int) -> list[str]:
    return [text[start : start + width] for start in range(0, len(text), width)]


def _filled(sentence: str, indent: str) -> list[str]:
    lines = _packed_words(sentence, WIDTH - len(indent))
    return [lines[0], *(indent + line for line in lines[1:])]


def _packed_words(sentence: str, width: int) -> list[str]:
    lines = [""]
    for word in sentence.split():
        for piece in _cut(word, width):
            if lines[-1] and len(lines[-1]) + 1 + len(piece) > width:
                lines.append("")
            lines[-1] += f" {piece}" if lines[-1] else piece
    return lines


def _column_width(body: Sequence[Sequence[str]]) -> int:
    return max((len(line) for row in body for line in row), default=0)


def _width(block: Sequence[Sequence[Sequence[str]]]) -> int:
    return sum(_column_width(body) for body in block) + GAP * (len(block) - 1)


def _without_empty_rows(block: Sequence[list[list[str]]]) -> list[list[list[str]]]:
    """A block whose first column has names; rows where all others have nothing are left out."""
    kept = [place == 0 or any(body[place] != [EMPTY] for body in block[1:]) for place in range(len(block[0]))]
    return [[row for row, keep in zip(body, kept, strict=True) if keep] for body in block]


def _laid_out(block: Sequence[Sequence[Sequence[str]]]) -> Iterator[str]:
    """Lines of columns of rows of lines, with a rule below the first row."""
    widths = [_column_width(body) for body in block]
    for number, row in enumerate(zip(*block, strict=True)):
        for place in range(max(len(cell) for cell in row)):
            parts = [cell[place] if place < len(cell) else "" for cell in row]
            yield (" " * GAP).join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        if number == 0:
            yield (" " * GAP).join("-" * width for width in widths)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
