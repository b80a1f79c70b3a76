"""A conductor by script over a real ledger, and workers that die, for tests of what carries segments out."""

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestration.campaigns.ledger import Ledger, Reached, Segment, SegmentState, State
from orchestration.campaigns.segments import TRIALS, run_segment, trial_name
from orchestration.training.state import checkpoint_folders
from orchestration.training.worker import CHECKPOINTS


class Scripted:
    """Hands out segments in the script's order, each as soon as the step before it has ended, of its trial and donor.

    What failed is handed out again so many times. told: what happened, in order, as (word, trial, step).
    """

    def __init__(self, ledger: Ledger, script: Sequence[Segment], failures: int = 1) -> None:
        self.ledger, self.script, self.failures = ledger, list(script), failures
        self.out: set[tuple[int, int]] = set()
        self.told: list[tuple[str, int, int]] = []
        for number in sorted({segment.trial for segment in script}):
            first = next(segment for segment in script if segment.trial == number)
            if number not in [trial.number for trial in ledger.trials()]:
                ledger.propose(number, first.values, "proposed")

    @property
    def done(self) -> bool:
        return all(self._found(segment.trial, segment.step) for segment in self.script)

    def next(self) -> Segment | None:
        for segment in self.script:
            place = (segment.trial, segment.step)
            if place in self.out or self._found(*place) or not self._ready(segment):
                continue
            donor = None if segment.donor is None else self._found(segment.donor, segment.step - 1)
            segment = replace(segment, donor_digest=donor.digest if donor else None)
            self.ledger.begin(segment)
            self.out.add(place)
            self.told.append(("begun", *place))
            return segment
        return None

    def ended(self, segment: Segment, reached: Reached) -> None:
        self.out.discard((segment.trial, segment.step))
        self.told.append((str(reached.state), segment.trial, segment.step))
        [known] = [one for one in self.ledger.segments() if (one.trial, one.step) == (segment.trial, segment.step)]
        if reached.state != SegmentState.FAILED or known.attempts > self.failures:
            state = State.WAITING if reached.state == SegmentState.REACHED else State(str(reached.state))
            self.ledger.reach(segment, reached, state)

    def _ready(self, segment: Segment) -> bool:
        needed = [segment.trial] if segment.donor is None else [segment.trial, segment.donor]
        return segment.step == 0 or all(self._found(number, segment.step - 1) for number in needed)

    def _found(self, trial: int, step: int) -> Segment | None:
        """A segment that has ended."""
        for segment in self.ledger.segments():
            if (segment.trial, segment.step) == (trial, step) and segment.state != SegmentState.BEGUN:
                return segment
        return None


def ask_to_die(campaign: Path, trial: int, step: int) -> Path:
    """Have `mortal_segment` die once in this segment; the file that this leaves is gone once it did."""
    wish = campaign / f"die-{trial}-{step}"
    wish.touch()
    return wish


def mortal_segment(given: Mapping[str, Any]) -> dict[str, Any]:
    """`run_segment` in a process that ends itself by SIGKILL, soon after a checkpoint was written, where it was asked.

    A group's workers are other processes: they live on until Ray finds that they are nobody's.
    """
    segment, campaign = given["segment"], Path(given["folder"])
    wish = campaign / f"die-{segment['trial']}-{segment['step']}"
    checkpoints = campaign / TRIALS / trial_name(segment["trial"]) / CHECKPOINTS
    if wish.exists():
        threading.Thread(target=_die_after_a_checkpoint, args=(checkpoints, wish), daemon=True).start()
    return run_segment(given)


def _die_after_a_checkpoint(checkpoints: Path, wish: Path) -> None:
    before: set[Path] | None = None
    while True:
        now = set(checkpoint_folders(checkpoints))
        before = now if before is None else before
        if now - before:
            wish.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.002)
