"""What a drill found, as a page for a person and as one JSON object."""

from collections.abc import Sequence
from typing import Any

from orchestration.campaigns.segments import trial_name
from orchestration.drill.drill import Report
from orchestration.drill.plan import Kind

HITS = ("killed", "what", "trial", "at kimg", "went on after", "trained again", "ledger")
LEDGER = ("trial", "state", "kimg", "figure", "checkpoint", "the twin's figure", "its checkpoint", "")


def page(report: Report) -> str:
    """Blows, the ledger beside the twin's, and what differs."""
    lines = table(HITS, hit_rows(report))
    for kind, why in report.missed.items():
        lines.append(f"{kind}: not hit, {why}")
    for kind, why in report.skipped.items():
        lines.append(f"{kind}: left out, {why}")
    if report.plan.in_campaign:
        lines += ["", f"the ledger beside the twin's, {report.objective}", *table(LEDGER, ledger_rows(report))]
    lines += ["", *report.faults]
    if not report.faults:
        lines.append(verdict(report))
    return "\n".join(lines)


def verdict(report: Report) -> str:
    """Of a drill that found nothing."""
    told = []
    if report.plan.in_campaign:
        told.append("the ledger is the twin's to the last bit, MLflow holds every record once, nothing is left over")
    if report.replica:
        told.append(f"all {report.replica.answers} answers of the endpoint were those before")
    return f"{'; '.join(told)} ({sum(report.seconds.values()):.0f} s)"


def hit_rows(report: Report) -> list[list[str]]:
    """A row for each blow."""
    differing = {each.trial for each in report.differences}
    rows = []
    for hit in report.hits:
        what = f"{hit.node}{f', pid {hit.pid}' if hit.pid else ''}{f' ({hit.note})' if hit.note else ''}"
        lost = f"{hit.lost} pictures"
        same = "differs" if hit.trial in differing else "equal"
        times = f"{hit.went_on_s:.1f} s"
        rows.append([hit.kind, what, trial_name(hit.trial), f"{hit.at / 1000:g}", times, lost, same])
    if (one := report.replica) is not None:
        what = f"{one.victim.node}, pid {one.victim.pid}"
        same = f"{len(one.wrong)} of {one.answers} answers differ" if one.wrong else f"{one.answers} answers equal"
        rows.append([Kind.REPLICA, what, "", f"answer {one.after}", f"{one.went_on_s:.1f} s", "", same])
    return rows


def ledger_rows(report: Report) -> list[list[str]]:
    """A row for each trial of either ledger."""
    differing = {each.trial for each in report.differences}
    rows = []
    for trial in sorted({*report.twin, *report.drilled}):
        mine, theirs = report.drilled.get(trial, {}), report.twin.get(trial, {})
        rows.append(
            [
                trial_name(trial),
                f"{mine.get('state', 'missing')}",
                f"{mine.get('kimg', 0):g}",
                *_result(report, mine),
                *_result(report, theirs),
                "differs" if trial in differing else "equal",
            ]
        )
    return rows


def _result(report: Report, trial: Any) -> tuple[str, str]:
    figure = trial.get(f"figures.{report.objective}")
    return "" if figure is None else f"{figure:.6g}", f"{trial.get('digest') or ''}"[:12]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def as_json(report: Report) -> dict[str, Any]:
    """All of it as plain values."""
    plan, replica = report.plan, report.replica
    return {
        "seed": plan.seed,
        "trials": plan.trials,
        "kinds": [kind.value for kind in plan.kinds],
        "equal": not report.faults,
        "hits": [hit.to_json() for hit in report.hits],
        "missed": {kind.value: why for kind, why in report.missed.items()},
        "skipped": {kind.value: why for kind, why in report.skipped.items()},
        "differences": [
            {"trial": each.trial, "field": each.field, "twin": each.twin, "drilled": each.drilled}
            for each in report.differences
        ],
        "unrecorded": report.unrecorded,
        "left_over": report.left_over,
        "unserved": report.unserved,
        "replica": None
        if replica is None
        else {
            "node": replica.victim.node,
            "pid": replica.victim.pid,
            "after_answers": replica.after,
            "went_on_s": round(replica.went_on_s, 1),
            "answers": replica.answers,
            "wrong": list(replica.wrong),
        },
        "twin_ledger": {f"{trial}": dict(fields) for trial, fields in report.twin.items()},
        "drilled_ledger": {f"{trial}": dict(fields) for trial, fields in report.drilled.items()},
        "kept": str(report.kept) if report.kept else None,
        "seconds": report.seconds,
    }
