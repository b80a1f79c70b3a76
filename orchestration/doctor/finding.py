"""A finding, and how nodes are named in one."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestration.doctor.facts import Facts, NodeFacts

REFUSE, WARN, NOTE = "refuse", "warn", "note"
SEVERITIES = (REFUSE, WARN, NOTE)
"""refuse: work fails or the cluster is open, so the exit code is 1; warn: some work fails or is slow; note: to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know. check: its short name; where: nodes, none of them where it is of no node; mend: what to do."""

    severity: str
    check: str
    what: str
    where: tuple[str, ...]
    mend: str


Check = Callable[[Facts], Iterator[Finding]]


def names(nodes: Iterable[NodeFacts]) -> tuple[str, ...]:
    """Of nodes, in their order."""
    return tuple(node.name for node in nodes)


def grouped(pairs: Iterable[tuple[NodeFacts, str]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """One sentence with all nodes that it is true of."""
    found: dict[str, list[NodeFacts]] = defaultdict(list)
    for node, sentence in pairs:
        found[sentence].append(node)
    for sentence, nodes in found.items():
        yield sentence, names(nodes)


def listed(words: Sequence[str], most: int = 4) -> str:
    """Words for a person, no more than a line of them."""
    shown = ", ".join(words[:most])
    return shown if len(words) <= most else f"{shown} and {len(words) - most} more"


def size_text(count: float) -> str:
    """Bytes for a person, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
