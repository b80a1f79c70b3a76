"""A paper's table beside ours: numbers, intervals, and what became of each claim; for people and for programs."""

import csv
import io
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestration.campaigns.reproduce_claims import NOT_JUDGED, VERDICTS, Cell, Noise, Verdict, judge_claim
from orchestration.campaigns.reproduce_scales import Measure, Scale
from orchestration.errors import RequestError
from orchestration.evaluation.published import numbers_of, why_not_beside
from orchestration.stages import write_atomically
from search_spaces.tables import Claim, Figure, Table

FORMAT = 1
FORMS = (".md", ".csv")
WIDTH, GAP, EMPTY = 110, 2, "-"
ARROWS = {"lower": "↓", "higher": "↑"}
FIELDS = (
    *("kind", "table", "scale", "row", "title", "column", "figure", "better", "paper", "paper_spread", "value", "low"),
    *("high", "spread", "trainings", "real", "drawn", "claim", "verdict", "gain", "error", "critical", "source"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One training of a row. run: its folder's name; checkpoint: digest; failure: why it has no figure."""

    row: str
    recipe: str
    seed: int
    run: str
    checkpoint: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one figure of ours says of one claim. number: the claim's, from 1."""

    number: int
    claim: Claim
    measure: Measure
    verdict: Verdict


@dataclass(frozen=True)
class Report:
    """rows: those that were asked for; cells: by row and place of the measure; shared: parts that all trainings share;
    seconds: of this call."""

    table: Table
    scale: Scale
    measures: tuple[Measure, ...]
    rows: tuple[str, ...]
    seeds: int
    runs: tuple[Run, ...]
    cells: Mapping[tuple[str, int], Cell]
    shared: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @cached_property
    def judgements(self) -> list[Judgement]:
        """Every claim by every figure that stands for one of its columns."""
        found = []
        for number, claim in enumerate(self.table.claims, 1):
            for place, measure in enumerate(self.measures):
                if set(measure.columns) & set(claim.columns):
                    cells = self._column(place)
                    noise = Noise.of(list(cells.values()))
                    found.append(Judgement(number, claim, measure, judge_claim(claim, measure, cells, noise)))
        return found

    @property
    def counts(self) -> dict[str, int]:
        """How often each verdict was given."""
        found = Counter(judgement.verdict.verdict for judgement in self.judgements)
        return {verdict: found[verdict] for verdict in VERDICTS}

    @property
    def failures(self) -> list[Run]:
        """Trainings without a figure."""
        return [run for run in self.runs if run.failure]

    def _column(self, place: int) -> dict[str, Cell]:
        return {row: self.cells[row, place] for row in self.rows if (row, place) in self.cells}

    def figure(self, place: int) -> str:
        """Name of a measure's figure as it was judged, its pattern where none was."""
        cells = list(self._column(place).values())
        return cells[0].mean.figure if cells else self.measures[place].figure

    def name(self, place: int) -> str:
        """The same with the data set, where runs on several are judged."""
        several = len({measure.recipe for measure in self.measures}) > 1
        data = self.table.columns[self.measures[place].columns[0]].data
        return f"{self.figure(place)} on {data}" if several else self.figure(place)

    def text(self) -> str:
        """For a terminal of 110 columns."""
        lines = [*_filled(self._heading, ""), ""]
        for place in range(len(self.measures)):
            lines += [*_filled(self._about(place), ""), *_aligned(self._block(place)), ""]
        lines += ["Claims: verdict, gain ± noise (95 %)", *self._claim_lines(), ""]
        for note in self.notes:
            lines += _filled(note, "  ")
        return "\n".join(lines).rstrip() + "\n"

    def markdown(self) -> str:
        """As Markdown tables."""
        lines = [f"# {_escaped(self._heading)}", ""]
        for place in range(len(self.measures)):
            lines += [_escaped(self._about(place)), "", *_piped(self._block(place)), ""]
        lines += ["## Claims", "", *_piped(self._claims()), ""]
        return "\n".join([*lines, *(f"- {_escaped(note)}" for note in self.notes)]) + "\n"

    @property
    def _heading(self) -> str:
        table = self.table
        return f"{table.source}: {table.title}. Scale {self.scale.name}: {self.scale.about}"

    def _about(self, place: int) -> str:
        measure = self.measures[place]
        unit = ", in percent" if measure.percent else ""
        others = [name for name in measure.stands_for if name != self.figure(place)]
        kind = "nearest to" if measure.nearest else "stand-in for"
        stands = f", {kind} {', '.join(others)}" if others else ""
        if measure.stands_for and not others:
            stands = ", the paper's metric on other data"
        return f"{self.name(place)} {ARROWS[measure.better]}{unit}{stands}"

    def _block(self, place: int) -> list[list[str]]:
        """A heading and a line a row: what the paper prints in each column, ours, and its spread over trainings."""
        measure, cells = self.measures[place], self._column(place)
        spreads, paper = self.seeds > 1, {name: self._printed(name) for name in measure.columns}
        lines = [["row", *measure.columns, "ours [95 %]"]]
        lines[0] += ["spread"] * spreads
        for row in self.rows:
            entry, cell = self.table.rows[row], cells.get(row)
            ours = [EMPTY] if cell is None else [_shown(cell, measure.percent)]
            if spreads:
                ours.append(_spread(cell, measure.percent))
            lines.append([entry.title, *(paper[name](entry.published.get(name)) for name in measure.columns), *ours])
        for reference in self.table.references:
            printed = [paper[name](reference.published.get(name)) for name in measure.columns]
            if set(printed) != {EMPTY}:
                title = " ".join(filter(None, (reference.system, reference.title)))
                lines.append([title, *printed, EMPTY, *([EMPTY] * spreads)])
        return lines

    def _printed(self, column: str) -> Callable[[Figure | None], str]:
        """How a number of a column is printed: in the paper's unit, all with as many decimals."""
        found = [entry.published[column].value for entry in self.table.entries() if column in entry.published]
        decimals = max((len(f"{value:g}".partition(".")[2]) for value in found), default=0)

        def show(figure: Figure | None) -> str:
            if figure is None:
                return EMPTY
            return f"{figure.value:.{decimals}f}" + (f" ± {figure.spread:g}" if figure.spread is not None else "")

        return show

    def _claim_lines(self) -> Iterator[str]:
        """Each claim, and below it a line a figure."""
        rows = self._claims()[1:]
        names, said = (max((len(row[place]) for row in rows), default=0) for place in (1, 2))
        indent = " " * (2 + names + said + 2 * GAP)
        for one, (title, figure, verdict, gain) in zip(self.judgements, rows, strict=True):
            if title:
                yield from _filled(f"{title} ({one.claim.source})", "    ")
            line = f"  {figure.ljust(names)}  {verdict.ljust(said)}  {gain}"
            yield from textwrap.wrap(line, WIDTH, subsequent_indent=indent, drop_whitespace=False) or [line]

    def _claims(self) -> list[list[str]]:
        """A heading and a line a judgement; the claim stands beside its first."""
        lines, before = [["claim", "figure", "verdict", "gain ± noise (95 %)"]], 0
        for one in self.judgements:
            place = self.measures.index(one.measure)
            verdict, said = one.verdict, one.verdict.verdict
            if verdict.verdict == NOT_JUDGED:
                gain = verdict.reason
            else:
                unit = 100 if one.measure.percent else 1
                gain = f"{unit * verdict.gain:+.3g} ± {unit * verdict.critical * verdict.error:.2g}"
                if (verdict.worse, verdict.better) != (one.claim.order[0], one.claim.order[-1]):
                    said += f" ({verdict.worse} to {verdict.better})"
            lines.append([one.claim.words if one.number != before else "", self.name(place), said, gain])
            before = one.number
        return lines

    @property
    def notes(self) -> list[str]:
        """What must be read with the numbers."""
        counted = ", ".join(f"{verdict} {count}" for verdict, count in self.counts.items() if count)
        found = [counted, "columns under the name of a metric are the paper's numbers as printed"]
        judged = sum(self.counts.values()) - self.counts[NOT_JUDGED]
        drawn = {cell.mean.drawn for cell in self.cells.values()}
        pictures = f"{min(drawn):,}" if drawn else "the"
        if self.seeds == 1:
            found.append(
                f"noise: of {pictures} pictures drawn from one training a row. How trainings of the same row differ is "
                "not in it, so a difference beyond it may still be chance: --seeds 3 measures that"
            )
        else:
            shared = f"; {', '.join(self.shared)} and their seeds are shared by all" if self.shared else ""
            found.append(
                f"noise: {self.seeds} trainings a row, their spread pooled over rows, or that of {pictures} pictures "
                f"drawn, whichever is larger{shared}"
            )
        if judged > 10:
            found.append(f"each of {judged} verdicts is at 95 %: chance alone gives about {judged / 20:.0f} wrong ones")
        found += self._comparable()
        found += [f"{run.row}, seed {run.seed}: no figure: {run.failure}" for run in self.failures]
        left = [row for row in self.table.rows if row not in self.rows]
        if left:
            found.append(f"rows left out: {', '.join(left)}")
        shown = {name for measure in self.measures for name in measure.columns}
        wanted = [name for name in self.table.columns if any(name in r.published for r in self.table.rows.values())]
        if absent := [name for name in wanted if name not in shown]:
            found.append(f"columns left out, for want of data or of a figure that stands for them: {', '.join(absent)}")
        return found + [f"on the paper: {note}" for note in self.table.notes]

    def _comparable(self) -> Iterator[str]:
        """At the paper's scale, whether the paper's numbers may be compared with ours."""
        if not self.scale.published:
            data = dict.fromkeys(self.table.columns[name].data for one in self.measures for name in one.columns)
            yield f"the paper's numbers are of {' and '.join(data)}, ours of scenes: they do not compare"
            return
        for place, measure in enumerate(self.measures):
            cells = self._column(place)
            column = self.table.columns[measure.columns[0]]
            number = next(n for n in numbers_of(self.table) if (n.metric, n.data) == (column.metric, column.data))
            if cells:
                reason = why_not_beside(number, next(iter(cells.values())).mean)
                said = "compares with the paper's" if reason is None else f"does not compare with the paper's: {reason}"
                yield f"{self.name(place)} {said}"

    def csv(self) -> str:
        """A line a row and column, then a line a verdict; shares are in [0, 1]."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, FIELDS, restval="", lineterminator="\n")
        writer.writeheader()
        same = {"table": self.table.label, "scale": self.scale.name}
        for place, measure in enumerate(self.measures):
            for row in self.rows:
                for name in measure.columns:
                    paper, ours = self._paper(row, name), self._ours(row, place)
                    values: dict[str, Any] = {
                        "row": row,
                        "title": self.table.rows[row].title,
                        "column": name,
                        "better": measure.better,
                    }
                    values |= {"figure": self.name(place), "source": self.table.source, **ours}
                    values |= {"paper": paper.get("value", ""), "paper_spread": paper.get("spread", "")}
                    writer.writerow({"kind": "number", **same, **_filled_in(values)})
        for one in self.judgements:
            verdict = one.verdict
            values = {"figure": self.name(self.measures.index(one.measure)), "claim": one.claim.words}
            values |= {"verdict": verdict.verdict, "gain": verdict.gain, "error": verdict.error}
            values |= {"critical": verdict.critical, "better": one.measure.better, "source": one.claim.source}
            writer.writerow({"kind": "claim", **same, **_filled_in(values)})
        return buffer.getvalue()

    def to_json(self) -> dict[str, Any]:
        """As JSON values; shares are in [0, 1], what is not finite is null."""
        return {
            "format": FORMAT,
            "table": self.table.label,
            "source": self.table.source,
            "system": self.table.system,
            "scale": self.scale.name,
            "seeds": self.seeds,
            "rows": {
                row: {
                    "title": self.table.rows[row].title,
                    "changes": self.table.rows[row].changes,
                    "paper": {name: self._paper(row, name) for name in self.table.rows[row].published},
                    "ours": {self.name(place): self._ours(row, place) for place in range(len(self.measures))},
                    "runs": [asdict(run) for run in self.runs if run.row == row],
                }
                for row in self.rows
            },
            "measures": [{**asdict(one), "judged": self.name(place)} for place, one in enumerate(self.measures)],
            "claims": [
                {"rows": list(one.claim.order), "source": one.claim.source, "figure": self.name(place)}
                | {name: _finite(value) for name, value in asdict(one.verdict).items()}
                for one in self.judgements
                for place in (self.measures.index(one.measure),)
            ],
            "verdicts": self.counts,
            "notes": self.notes,
            "seconds": round(self.seconds, 1),
        }

    def _paper(self, row: str, column: str) -> dict[str, float | None]:
        found = self.table.rows[row].published.get(column)
        unit = 100 if self.table.columns[column].percent else 1
        if found is None:
            return {}
        return {"value": found.value / unit, "spread": None if found.spread is None else found.spread / unit}

    def _ours(self, row: str, place: int) -> dict[str, Any]:
        cell = self.cells.get((row, place))
        if cell is None:
            return {}
        mean = cell.mean
        numbers = {name: _finite(getattr(mean, name)) for name in ("value", "low", "high")}
        counts = {"trainings": len(cell.records), "real": mean.real, "drawn": mean.drawn}
        return numbers | {"spread": _finite(cell.spread)} | counts

    def write(self, path: Path) -> None:
        """Write it in the form that `path` ends with, .md or .csv. Raises RequestError where that cannot be done."""
        check_form(path)
        try:
            write_atomically(path, self.markdown() if path.suffix == ".md" else self.csv())
        except OSError as error:
            raise RequestError(f"{path} cannot be written ({error.strerror}): give another place") from error


def check_form(path: Path) -> None:
    """RequestError for a name that says no form."""
    if path.suffix not in FORMS:
        raise RequestError(f"--out {path} is neither .md nor .csv: end its name with one of them")


def _shown(cell: Cell, percent: bool) -> str:
    """Value and interval, with as many decimals as two digits of half the interval need."""
    unit, mean = 100 if percent else 1, cell.mean
    value, low, high = (unit * getattr(mean, name) for name in ("value", "low", "high"))
    half = (high - low) / 2
    if not all(map(math.isfinite, (value, half))) or half <= 0:
        return f"{value:.4g} [{low:.4g}, {high:.4g}]"
    decimals = min(8, max(0, 1 - math.floor(math.log10(half) + 1e-6)))
    return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _spread(cell: Cell | None, percent: bool) -> str:
    if cell is None or cell.spread is None:
        return EMPTY
    return f"{(100 if percent else 1) * cell.spread:.2g} of {len(cell.records)}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _filled_in(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: "" if _finite(value) is None else value for name, value in values.items()}


def _aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns side by side, with a rule below the first line; a long last column goes on below itself."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    indent = sum(widths[:-1]) + GAP * (len(widths) - 1)
    last = max(20, min(widths[-1], WIDTH - indent))
    for number, line in enumerate(lines):
        cells = [cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=False)]
        first, *more = textwrap.wrap(line[-1], last) or [""]
        yield (" " * GAP).join([*cells, first]).rstrip()
        yield from (" " * indent + piece for piece in more)
        if number == 0:
            yield (" " * GAP).join("-" * width for width in [*widths[:-1], last])


def _piped(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield "| " + " | ".join(_escaped(cell) for cell in line) + " |"
        if number == 0:
            yield "|" + " --- |" * len(line)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _filled(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent)
