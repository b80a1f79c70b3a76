"""A small campaign in a ledger: what every state and every kind of segment looks like.

`python -m tests.ledger_example FOLDER` writes it, as tests/assets/ledger-v1.db was written. That file stays as it is:
a later format gets a file of its own beside it.
"""

import sys
from pathlib import Path

from orchestration.campaigns.ledger import Ledger, Reached, Segment, SegmentState, State, Trial
from search_spaces.space import Value

FIGURE = "validation/fid/scenes-net"
HEADER = {
    "name": "example",
    "settings": {"trials": 5, "budget_kimg": 4.0, "objectives": [{"figure": FIGURE, "direction": "minimize"}]},
    "space": {"system": "xmcgan", "parameters": {"tau": {"low": 0.05, "high": 0.2}}},
    "code": "0123456789abcdef",
    "storage": None,
}
POINTS: list[dict[str, Value]] = [
    {"tau": 0.1, "batch_size": 32, "spectral": True, "order": "paper"},
    {"tau": 0.07, "batch_size": 16, "spectral": False, "order": "released"},
    {"tau": 0.19, "batch_size": 64, "spectral": True, "order": "paper"},
    {"tau": 0.05, "batch_size": 16, "spectral": True, "order": "paper"},
    {"tau": 0.15, "batch_size": 32, "spectral": True, "order": "paper"},
]


def figures(value: float) -> dict[str, float]:
    return {FIGURE: value, "validation/fid_low/scenes-net": value - 1, "validation/fid_high/scenes-net": value + 1}


def reached(value: float, kimg: float, number: int) -> Reached:
    return Reached(
        SegmentState.REACHED,
        kimg,
        figures(value),
        f"trials/trial-{number:04d}/rungs/kimg-{kimg:g}",
        f"{number:x}{int(kimg):x}" * 32,
        f"run-{number}",
        f"identity-{number}",
    )


def write_example(ledger: Ledger) -> None:
    """Trial 0 finishes, 1 copies 0 and diverges, 2 collapses, 3 is stopped, 4 died once and was begun again."""
    for number, values in enumerate(POINTS):
        ledger.propose(number, values, "proposed" if number else "paper")
    first = [Segment(number, 0, 2.0, POINTS[number]) for number in range(5)]
    for segment in first:
        ledger.begin(segment)
    ledger.reach(first[0], reached(40.0, 2.0, 0), State.WAITING)
    ledger.reach(first[1], reached(60.0, 2.0, 1), State.WAITING)
    collapsed = Reached(SegmentState.COLLAPSED, 1.5, {}, None, None, "run-2", "identity-2", "one picture for all")
    ledger.reach(first[2], collapsed, State.COLLAPSED)
    ledger.reach(first[3], reached(70.0, 2.0, 3), State.WAITING)
    ledger.begin(first[4])
    last = Segment(0, 1, 4.0, POINTS[0])
    ledger.begin(last)
    ledger.reach(last, reached(30.0, 4.0, 0), State.FINISHED)
    copy = Segment(1, 1, 4.0, POINTS[1] | {"tau": 0.12}, donor=0, donor_digest="02" * 32)
    ledger.begin(copy)
    lost = Reached(SegmentState.DIVERGED, 2.5, {}, None, None, reason="the gradient of the generator is nan")
    ledger.reach(copy, lost, State.DIVERGED)
    ledger.end(3, State.STOPPED, "others were better at 2 kimg")
    ledger.note("run_id", "parent-run")


def check_example(ledger: Ledger) -> None:
    """Everything that `write_example` wrote is there, and nothing else."""
    assert ledger.header == {**HEADER, "run_id": "parent-run"}
    copied = {**POINTS[1], "tau": 0.12}
    assert ledger.trials() == [
        Trial(
            0, POINTS[0], "paper", State.FINISHED, "", 4.0, figures(30.0), "trials/trial-0000/rungs/kimg-4", "04" * 32,
            "run-0", "identity-0",
        ),
        Trial(
            1, copied, "proposed", State.DIVERGED, "the gradient of the generator is nan", 2.5, {},
            "trials/trial-0001/rungs/kimg-2", "12" * 32, "run-1", "identity-1",
        ),
        Trial(
            2, POINTS[2], "proposed", State.COLLAPSED, "one picture for all", 1.5, {}, None, None, "run-2", "identity-2"
        ),
        Trial(
            3, POINTS[3], "proposed", State.STOPPED, "others were better at 2 kimg", 2.0, figures(70.0),
            "trials/trial-0003/rungs/kimg-2", "32" * 32, "run-3", "identity-3",
        ),
        Trial(4, POINTS[4], "proposed", State.RUNNING),
    ]  # fmt: skip
    found = {(segment.trial, segment.step): segment for segment in ledger.segments()}
    assert list(found) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 0), (4, 0)]
    assert found[1, 1] == Segment(
        1,
        1,
        4.0,
        copied,
        0,
        "02" * 32,
        1,
        SegmentState.DIVERGED,
        {},
        None,
        None,
        "the gradient of the generator is nan",
    )
    assert found[0, 0] == Segment(
        0, 0, 2.0, POINTS[0], None, None, 1, SegmentState.REACHED, figures(40.0), "trials/trial-0000/rungs/kimg-2",
        "02" * 32,
    )  # fmt: skip
    assert found[4, 0] == Segment(4, 0, 2.0, POINTS[4], attempts=2)
    assert found[2, 0].state is SegmentState.COLLAPSED and found[2, 0].reason == "one picture for all"


if __name__ == "__main__":
    written = Ledger.create(Path(sys.argv[1]), HEADER)
    write_example(written)
    written.close()
