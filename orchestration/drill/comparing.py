"""What a drilled campaign left beside what its twin did: the two ledgers, and the record in MLflow."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestration.campaigns.ledger import Ledger
from orchestration.campaigns.segments import TRIALS, trial_name
from orchestration.tracking import Tracker
from orchestration.training.recorder import read_metrics

MISSING = "missing"
TIMES = "speed/"
"""Metrics that are another number when the same pictures are trained again: MLflow keeps the first."""
# MLflow's name of a trial's run, and how often something was begun: of these a kill leaves a trace.
FREE = frozenset({"run_id", "attempts"})


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where the two ledgers differ."""

    trial: int
    field: str
    twin: Any
    drilled: Any

    def __str__(self) -> str:
        return f"{trial_name(self.trial)} {self.field}: {_short(self.twin)} in the twin, {_short(self.drilled)} here"


def ledger_of(folder: Path) -> dict[int, dict[str, Any]]:
    """By trial what a ledger says of it, its segments' fields too, by dotted names."""
    ledger = Ledger.open(folder)
    try:
        found: dict[int, dict[str, Any]] = {trial.number: dict(_flat(asdict(trial))) for trial in ledger.trials()}
        for segment in ledger.segments():
            found[segment.trial] |= dict(_flat(asdict(segment), f"segment {segment.step}."))
    finally:
        ledger.close()
    return found


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if name in FREE:
            continue
        found += _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else [(f"{before}{name}", value)]
    return found


def differences(twin: Mapping[int, Mapping[str, Any]], drilled: Mapping[int, Mapping[str, Any]]) -> list[Difference]:
    """Every place where two ledgers differ, to the last bit."""
    found = []
    for trial in sorted({*twin, *drilled}):
        theirs, mine = twin.get(trial, {}), drilled.get(trial, {})
        for name in dict.fromkeys([*theirs, *mine]):
            one, other = theirs.get(name, MISSING), mine.get(name, MISSING)
            if one != other and not (_nan(one) and _nan(other)):
                found.append(Difference(trial, name, one, other))
    return found


def unrecorded(folder: Path, tracker: Tracker, system: str, trials: int) -> list[str]:
    """Sentences about what MLflow lacks of a finished campaign's record, or has twice; [] where all is there once."""
    runs = {run.run_id: run for run in tracker.run_summaries(system)}
    found = []
    if len(runs) != trials + 1:
        found.append(f"MLflow has {len(runs)} runs of {trials} trials and their campaign")
    found += [f"run {run.name} is still {run.status}" for run in runs.values() if run.status == "RUNNING"]
    ledger = Ledger.open(folder)
    try:
        of_trial = {trial.name: trial.run_id for trial in ledger.trials()}
    finally:
        ledger.close()
    for name, run_id in of_trial.items():
        if run_id not in runs:
            found.append(f"{name} has no run in MLflow")
            continue
        written: dict[str, list[tuple[int, float]]] = {}
        for line in read_metrics(folder / TRIALS / name):
            for metric, value in line["metrics"].items():
                if isinstance(value, int | float) and math.isfinite(value):
                    written.setdefault(metric, []).append((line["images"], value))
        for metric, values in written.items():
            sent = tracker.history(run_id, metric)
            at, known = [images for images, _ in values], [images for images, _ in sent]
            if at != known or (sent != values and not metric.startswith(TIMES)):
                found.append(
                    f"{name} {metric}: {len(values)} values were recorded and MLflow has {len(sent)}, or others"
                )
    return found


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _short(value: Any) -> str:
    text = f"{value}"
    return f"{text[:12]}…" if len(text) == 64 else text
