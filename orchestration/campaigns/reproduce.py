"""A paper's table, run: every row trained and judged at a scale, and every claim of the paper tried on what came out.

Rows are ordinary training runs, and what several rows need before them is a stage, computed once. Whatever is done is
found again: the same call goes on where it was killed. HOME/reproductions/TABLE-SCALE holds the figures of each run and
the whole table; in MLflow the rows are runs below one of the table.
"""

import difflib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from orchestration.campaigns.reproduce_claims import Cell
from orchestration.campaigns.reproduce_report import Report, Run
from orchestration.campaigns.reproduce_scales import Measure, Scale, base_experiments, measures_of, why_not_now
from orchestration.cluster import ray_cluster
from orchestration.config import Experiment, apply_assignments
from orchestration.data.features import open_caption_index
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.catalogue import Context, open_metrics
from orchestration.evaluation.evaluate import Request, judge_runs
from orchestration.evaluation.matcher_views import OWN_CAPTIONER
from orchestration.evaluation.r_precision import OWN_MATCHER
from orchestration.evaluation.record import MetricRecord, from_json, to_json
from orchestration.home import Home, exclusive
from orchestration.preparation import Preparation
from orchestration.prepared import PreparedSplit
from orchestration.progress import Say
from orchestration.requirements import choose_protocol, require_weights
from orchestration.stages import Progress, quiet, short_hash, write_atomically
from orchestration.tracking import Tracker
from orchestration.training.launch import train
from orchestration.training.worker import read_outcome
from search_spaces.tables import Table

FOLDER, RECORDS = "reproductions", "records"
WHOLE, SHOWN = "reproduction.json", "table.md"


@dataclass(frozen=True, slots=True)
class Options:
    """data: FORMAT:PATH of the paper's data sets; assignments: fields of every row's experiment; rows: only these;
    seeds: trainings a row, None for the scale's; weights: paths that judging needs, by name; workers: processes that
    judge, None for every free core."""

    data: Sequence[str] = ()
    assignments: Sequence[str] = ()
    rows: Sequence[str] = ()
    seeds: int | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """One training: a row by one recipe with one seed."""

    row: str
    recipe: str
    seed: int
    experiment: Experiment


@dataclass(frozen=True)
class Plan:
    """All that a table asks for at a scale. folder: its name in HOME/reproductions."""

    table: Table
    scale: Scale
    rows: tuple[str, ...]
    seeds: int
    units: tuple[Unit, ...]
    measures: tuple[Measure, ...]
    weights: Mapping[str, str]
    workers: int | None

    @property
    def folder(self) -> str:
        return f"{self.table.label}-{self.scale.name}"

    def request(self, recipe: str) -> Request:
        """How runs of a recipe are judged."""
        asked = tuple(dict.fromkeys(measure.request for measure in self.measures if measure.recipe == recipe))
        return Request(asked, samples=self.scale.samples, weights=self.weights, workers=self.workers)


def make_plan(table: Table, scale: Scale, options: Options = Options()) -> Plan:
    """What is to be trained and judged; nothing is read or run. Raises RequestError."""
    reason = why_not_now(table)
    if reason is not None:
        raise RequestError(reason)
    rows = _chosen_rows(table, options.rows)
    _check_changes(table, options.assignments)
    if options.weights and not scale.published:
        raise RequestError(f"--weights is for --scale paper: what judges at --scale {scale.name} needs none")
    seeds = options.seeds or scale.seeds
    bases = base_experiments(table, scale, options.data)
    bases = {recipe: apply_assignments(base, options.assignments) for recipe, base in bases.items()}
    # Seed by seed: a whole table of one training a row comes first.
    units = [
        Unit(row, recipe, seed, base.replace({**table.rows[row].changes, **_seeded(base, seed)}))
        for seed in range(seeds)
        for recipe, base in bases.items()
        for row in rows
    ]
    measures = measures_of(table, scale, list(bases))
    return Plan(table, scale, rows, seeds, tuple(units), tuple(measures), dict(options.weights), options.workers)


def _seeded(base: Experiment, seed: int) -> dict[str, Any]:
    """The fields of one of several trainings. Parts are shared by all, but where nothing else is trained."""
    changes = {"training.seed": base.training.seed + seed}
    for name, stage in base.stages.items() if not base.learns else ():
        if stage.training is not None:
            changes[f"stages.{name}.training.seed"] = stage.training.seed + seed
    return changes


def _chosen_rows(table: Table, names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in table.rows:
            near = difflib.get_close_matches(name, table.rows, n=3, cutoff=0.4) or list(table.rows)
            raise RequestError(f"{table.label} has no row {name!r}; near it: {', '.join(near)}")
    chosen = tuple(name for name in table.rows if not names or name in names)
    if len(chosen) < 2:
        raise RequestError(f"one row is nothing to compare: name two or more of {', '.join(table.rows)}")
    return chosen


def _check_changes(table: Table, assignments: Sequence[str]) -> None:
    """What makes the rows different is not the command line's to set."""
    fields = {field for row in table.rows.values() for field in row.changes} | {"training.seed"}
    for assignment in assignments:
        name = assignment.partition("=")[0].strip()
        if name == "data.source":
            raise RequestError(f"--set {assignment}: the scale says what rows are trained on: use --data instead")
        if name in fields:
            raise RequestError(f"--set {assignment}: the rows of {table.label} set {name} themselves: leave it out")


def _silent(line: str) -> None:
    """Says nothing."""


def reproduce(
    table: Table,
    scale: Scale,
    home: Home,
    tracker: Tracker,
    options: Options = Options(),
    say: Say = _silent,
    progress: Progress = quiet,
) -> Report:
    """Train and judge the rows that are not done yet, and report on all.

    Raises RequestError before any training for what cannot be met: data, weights, options. A row whose training or
    judging fails is in the report's failures, and tried again by the next call.
    """
    started = time.perf_counter()
    plan = make_plan(table, scale, options)
    check_ready(plan, home, progress)
    folder = home.root / FOLDER / plan.folder
    with exclusive(folder):
        name = f"reproduce {table.label} at {scale.name}"
        about = {"table": table.label, "scale": scale.name, "rows": list(plan.rows), "seeds": plan.seeds}
        tags = {"t2i.reproduces": table.label, "t2i.scale": scale.name, "t2i.source": table.source}
        parent = tracker.start_run(table.system, name, f"reproduce-{plan.folder}", about, tags)
        try:
            with _ray_if_needed(plan, home):
                report = _run(plan, home, tracker, folder, parent, say, progress, started)
        except BaseException as error:
            with suppress(RunError):
                tracker.finish(parent, "FAILED", str(error) or type(error).__name__)
            raise
        with suppress(RunError):
            _track(tracker, parent, report, folder)
    return report


def _ray_if_needed(plan: Plan, home: Home) -> AbstractContextManager[Any]:
    """One Ray for all rows, as starting it takes seconds; none where every row is trained."""
    outcomes = [read_outcome(home.runs / unit.experiment.run_name) for unit in plan.units]
    if all(outcome is not None and outcome.status == "finished" for outcome in outcomes):
        return nullcontext()
    return ray_cluster(minimum_cpus=max(unit.experiment.resources.workers for unit in plan.units))


def _run(
    plan: Plan,
    home: Home,
    tracker: Tracker,
    folder: Path,
    parent: str,
    say: Say,
    progress: Progress,
    started: float,
) -> Report:
    runs: list[Run] = []
    records: dict[tuple[str, str], list[list[MetricRecord]]] = {}
    for number, unit in enumerate(plan.units, 1):
        seed = f", seed {unit.experiment.training.seed}" if plan.seeds > 1 else ""
        say(f"{number} of {len(plan.units)}: {plan.table.rows[unit.row].title} ({unit.recipe}{seed})")
        run, found = _train_and_judge(plan, unit, home, tracker, folder, parent, progress)
        runs.append(run)
        if found:
            records.setdefault((unit.row, unit.recipe), []).append(found)
        if run.failure:
            say(f"  no figure: {run.failure}")
        report = _report(plan, runs, records, time.perf_counter() - started)
        write_atomically(folder / WHOLE, json.dumps(report.to_json(), indent=1))
    write_atomically(folder / SHOWN, report.markdown())
    return report


def _train_and_judge(
    plan: Plan, unit: Unit, home: Home, tracker: Tracker, folder: Path, parent: str, progress: Progress
) -> tuple[Run, list[MetricRecord]]:
    name = unit.experiment.run_name
    seed = unit.experiment.training.seed
    try:
        finished = train(unit.experiment, home, tracker, progress, parent)
    except RunError as error:
        return Run(unit.row, unit.recipe, seed, name, failure=str(error)), []
    digest = finished.checkpoint.digest
    request = plan.request(unit.recipe)
    key = short_hash([digest, list(request.metrics), request.samples, _seen_weights(request.weights)])
    file = folder / RECORDS / f"{name}-{key}.jsonl"
    if file.is_file():
        return Run(unit.row, unit.recipe, seed, name, digest), from_json(file.read_bytes(), str(file))
    try:
        [found] = judge_runs(home, tracker, [str(finished.folder)], request, progress=progress).values()
    except (RequestError, RunError) as error:
        # Weights and data were looked at before the first training: what is wrong now is wrong with this run.
        return Run(unit.row, unit.recipe, seed, name, digest, str(error)), []
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, to_json(found))
    return Run(unit.row, unit.recipe, seed, name, digest), found


def _seen_weights(weights: Mapping[str, str]) -> dict[str, list[Any]]:
    """What changes when a file of weights does, without reading it."""
    found = {}
    for name, path in weights.items():
        stat = Path(path).expanduser().stat()
        found[name] = [path, stat.st_size, stat.st_mtime_ns]
    return found


def _report(
    plan: Plan,
    runs: Sequence[Run],
    records: Mapping[tuple[str, str], Sequence[Sequence[MetricRecord]]],
    seconds: float,
) -> Report:
    cells = {}
    for place, measure in enumerate(plan.measures):
        for row in plan.rows:
            found = [measure.record(one) for one in records.get((row, measure.recipe), ())]
            kept = tuple(record for record in found if record is not None)
            if kept:
                cells[row, place] = Cell(kept)
    shared = tuple(dict.fromkeys(name for one in plan.units if one.experiment.learns for name in one.experiment.stages))
    return Report(plan.table, plan.scale, plan.measures, plan.rows, plan.seeds, tuple(runs), cells, shared, seconds)


def _track(tracker: Tracker, parent: str, report: Report, folder: Path) -> None:
    figures = {f"{row}/{report.name(place)}": cell.mean.value for (row, place), cell in report.cells.items()} | {
        f"claims/{verdict.replace(' ', '_')}": float(count) for verdict, count in report.counts.items()
    }
    tracker.log_metrics(parent, figures, 0)
    tracker.log_artifact(parent, folder / SHOWN)
    tracker.log_artifact(parent, folder / WHOLE)
    if report.failures:
        tracker.finish(parent, "FAILED", f"{len(report.failures)} of {len(report.runs)} trainings have no figure")
    else:
        tracker.finish(parent, "FINISHED")


def check_ready(plan: Plan, home: Home, progress: Progress = quiet) -> None:
    """RequestError for data, encoders and weights that are missing, before any training.

    Weights that judging at the paper's scale needs are opened as they will be; what it trains itself is not there yet.
    """
    for unit in plan.units:
        require_weights(unit.experiment)
        choose_protocol(unit.experiment)
    texts, judged = set(), set()
    for unit in plan.units:
        experiment = unit.experiment
        preparation = Preparation(experiment, home, progress)
        if unit.recipe not in judged:
            data = experiment.data
            for split in dict.fromkeys((data.train_split, data.validation_split, data.test_split)):
                preparation.dataset(split)
        for reader in (preparation, *map(preparation.below, preparation.needed)):
            if "features" in reader.subject.reads and reader.text_part is None and experiment.text not in texts:
                texts.add(experiment.text)
                _ = reader.encoder
        if plan.scale.published and unit.recipe not in judged:
            _check_weights(plan, unit, preparation)
        judged.add(unit.recipe)


def _check_weights(plan: Plan, unit: Unit, preparation: Preparation) -> None:
    experiment, request = unit.experiment, plan.request(unit.recipe)
    dataset = preparation.dataset(experiment.data.test_split)
    captions = preparation.ensure(preparation.captions.index_stage(dataset))
    weights = {**experiment.resources.weights, **request.weights}
    # Pixels and features are not made ready yet, and no metric of real pictures reads them when it is opened.
    split = PreparedSplit("", str(dataset.root), str(captions), None, None, None)
    matcher = preparation.home.stages if preparation.text_part else None
    seed, samples = experiment.evaluation.seed, request.samples
    context = Context(experiment, preparation, split, open_caption_index(captions), seed, samples, weights, matcher)
    open_metrics(request.metrics, context)
    for name, open_view in context.views.items():
        if name not in (OWN_MATCHER, OWN_CAPTIONER):
            open_view(torch.device("cpu"))
