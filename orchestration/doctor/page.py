"""The page that a person reads: findings first, then the facts, no line longer than 100 characters."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from orchestration.doctor.facts import (
    Access,
    Clock,
    Facts,
    Failed,
    FailedRing,
    Gpus,
    Machine,
    NodeFacts,
    Reached,
    Storage,
    Versions,
    shown_url,
)
from orchestration.doctor.finding import SEVERITIES, Finding, listed, size_text

WIDTH = 100
INDENT = 12
PLURALS = {"refuse": ("refusal", "refusals"), "warn": ("warning", "warnings"), "note": ("note", "notes")}
UNKNOWN = "?"


def page(facts: Facts, findings: Sequence[Finding]) -> str:
    """Findings and facts as text."""
    lines = [heading(facts), summary(findings), ""]
    for finding in findings:
        lines += told(finding, facts)
    if findings:
        lines.append("")
    for section in (_node_table, _version_table, _rings, _shared, _access):
        lines += section(facts)
    return "\n".join(lines)


def heading(facts: Facts) -> str:
    """What was looked at."""
    count = len(facts.nodes)
    if facts.asked.address is None:
        return "t2i doctor: this machine"
    return f"t2i doctor: the cluster at {facts.asked.address}, {count} node{'s' if count > 1 else ''}"


def summary(findings: Sequence[Finding]) -> str:
    """How many findings of each severity."""
    counts = [(severity, sum(each.severity == severity for each in findings)) for severity in SEVERITIES]
    parts = [f"{count} {PLURALS[severity][count > 1]}" for severity, count in counts if count]
    return ", ".join(parts) or "nothing to mend"


def told(finding: Finding, facts: Facts) -> list[str]:
    """A finding, where it is, and its mend."""
    every = len(finding.where) == len(facts.nodes) > 1
    where = (
        "" if not finding.where or len(facts.nodes) == 1 else "every node: " if every else f"{listed(finding.where)}: "
    )
    return [
        *_wrapped(f"{finding.severity:<{INDENT - 2}}", f"{finding.check}: {where}{finding.what}"),
        *_wrapped("", f"→ {finding.mend}"),
    ]


def _wrapped(label: str, text: str) -> list[str]:
    blank = " " * INDENT
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{label:<{INDENT}}",
        subsequent_indent=f"{blank}  ",
        break_on_hyphens=False,
    )


def _table(title: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns; the first to the left, what is beyond the width cut off."""
    whole = [list(title), *map(list, rows)]
    widths = [max(len(row[column]) for row in whole) for column in range(len(title))]
    widths[0] = min(widths[0], 26)
    lines = []
    for row in whole:
        cells = [f"{row[0][: widths[0]]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip()[:WIDTH])
    return [*lines, ""]


def _cell(fact: Any, kind: Callable[..., Any], show: Callable[[Any], str]) -> str:
    return show(fact) if isinstance(fact, kind) else UNKNOWN if isinstance(fact, Failed) else "-"  # type: ignore[arg-type]


def _node_table(facts: Facts) -> list[str]:
    def row(node: NodeFacts) -> list[str]:
        def sized(show: Callable[[Machine], str]) -> str:
            return _cell(node.machine, Machine, show)

        return [
            ("* " if node.head else "  ") * (len(facts.nodes) > 1) + node.name,
            sized(lambda each: ("" if each.ray_cpus is None else f"{each.ray_cpus:g}/") + f"{each.cores}"),
            sized(lambda each: size_text(each.memory)),
            sized(lambda each: size_text(each.shm)),
            sized(lambda each: size_text(each.object_store) if each.object_store else "-"),
            sized(lambda each: size_text(each.temp_free)),
            sized(lambda each: str(each.open_files)),
            sized(lambda each: str(each.threads or "-")),
            _cell(node.clock, Clock, lambda clock: f"{clock.offset:+.2f} s"),
            _cell(node.gpus, Gpus, lambda gpus: str(len(gpus.seen))),
        ]

    clustered = facts.asked.address is not None
    first = ("* head" if len(facts.nodes) > 1 else "node", "CPU/cores" if clustered else "cores")
    title = (*first, "memory", "shm", "store", "temp", "files", "OMP", "clock", "GPUs")
    lines = _table(title, [row(node) for node in facts.nodes])
    for node, gpus in facts.having("gpus", Gpus):
        if gpus.seen:
            kinds = sorted({f"{gpu.name} ({size_text(gpu.memory)})" for gpu in gpus.seen})
            lines += _wrapped("", f"{node.name}: {listed(kinds)}")
    return lines


def _version_table(facts: Facts) -> list[str]:
    """One line for what is the same everywhere; nodes that differ have one each."""
    groups: dict[str, list[str]] = {}
    for node, versions in facts.having("versions", Versions):
        packages = ", ".join(f"{name} {version}" for name, version in versions.packages.items())
        weights = [name for name, there in versions.weights.items() if there]
        line = f"{packages}; source {versions.code or 'absent'}; weights: {', '.join(weights) or 'none'}"
        groups.setdefault(line, []).append(node.name)
    lines = []
    for line, where in groups.items():
        lines += _wrapped("versions", line if len(groups) == 1 else f"{listed(where)}: {line}")
    return lines


def _rings(facts: Facts) -> list[str]:
    lines = []
    for ring in facts.rings:
        if isinstance(ring, FailedRing):
            lines += _wrapped("all-reduce", f"{ring.backend}: {'not tried' if ring.busy else 'failed'}")
            continue
        speed = f"{ring.seconds * 1000:.1f} ms, {size_text(ring.bandwidth)}/s"
        right = "right" if ring.correct else "WRONG"
        lines += _wrapped("all-reduce", f"{ring.backend}, {ring.ranks} ranks, {size_text(ring.size)}: {speed}, {right}")
    return lines


def _shared(facts: Facts) -> Iterator[str]:
    asked = facts.asked
    places = {
        "home": asked.home,
        "stages": asked.stages and shown_url(asked.stages),
        "mlflow": shown_url(asked.mlflow) if asked.mlflow else f"{asked.home}/mlflow.db",
        "optuna": asked.optuna and shown_url(asked.optuna),
    }
    for section, place in places.items():
        if place is None:
            yield from _wrapped(section, "none named")
            continue
        yield from _wrapped(section, place)
        groups: dict[str, list[str]] = {}
        for node in facts.nodes:
            fact = getattr(node, section)
            text = _stored(fact) if isinstance(fact, Storage) else _reached(fact)
            groups.setdefault(text, []).append(node.name)
        for text, where in groups.items():
            yield from _wrapped("", text if len(facts.nodes) == 1 else f"{listed(where)}: {text}")


def _stored(store: Storage) -> str:
    if store.status != "ok":
        return store.status
    free = f", {size_text(store.free)} free" if store.total else ""
    system = f", {store.filesystem}" if store.filesystem else ""
    return f"write {size_text(store.write_speed)}/s, read {size_text(store.read_speed)}/s{free}{system}"


def _reached(fact: Any) -> str:
    if isinstance(fact, Reached):
        return f"answers in {fact.seconds:.2f} s" if fact.status == "ok" else fact.status
    return "unknown"


def _access(facts: Facts) -> Iterator[str]:
    for node, access in facts.having("access", Access):
        token = f"RAY_AUTH_MODE {access.mode or 'unset'}"
        if access.token_file:
            token += f", {access.token_file} {access.token_mode:04o}"
        place = f" ({node.machine.address})" if isinstance(node.machine, Machine) else ""
        yield from _wrapped("access", f"{node.name}{place}: {token}")
        roles: dict[str, set[str]] = {}
        for port in access.ports:
            address = "*" if port.everywhere else port.address.removeprefix("::ffff:")
            roles.setdefault(port.role, set()).add(f"{address}:{port.port}")
        for role, places in sorted(roles.items()):
            yield from _wrapped("", f"{role} {listed(sorted(places), 6)}")
    if facts.jobs is not None and facts.jobs.url:
        answer = "no answer" if facts.jobs.code is None else f"HTTP {facts.jobs.code}"
        yield from _wrapped("jobs", f"{facts.jobs.url}, asked without a token: {answer}")


def as_json(facts: Facts, findings: Sequence[Finding]) -> dict[str, Any]:
    """Findings and facts as plain values; no password is in them."""
    values: dict[str, Any] = msgspec.to_builtins(facts)
    asked = values.pop("asked")
    for name in ("mlflow", "optuna", "stages"):
        asked[name] = asked[name] and shown_url(asked[name])
    counts = {severity: sum(each.severity == severity for each in findings) for severity in SEVERITIES}
    for ring, seen in zip(values["rings"], facts.rings, strict=True):
        if not isinstance(seen, FailedRing):
            ring["bandwidth"] = seen.bandwidth
    return {**asked, "counts": counts, "findings": msgspec.to_builtins(list(findings)), **values}
