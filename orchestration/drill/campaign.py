"""The campaign of a drill: `t2i tune` as a process of its own, and how far its folder says that it is."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orchestration
from orchestration.campaigns.execution import STORAGE
from orchestration.campaigns.ledger import FILE, Ledger
from orchestration.campaigns.segments import TRIALS, trial_name
from orchestration.errors import RequestError, RunError
from orchestration.training.recorder import METRICS, read_metrics
from orchestration.training.state import MANIFEST
from orchestration.training.worker import CHECKPOINTS

ENDING_S = 20.0
SAID = "t2i: "


class Driver:
    """`t2i` with these words, in a process group of its own; what it says is added to the log."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        source = str(Path(orchestration.__path__[0]).parent)
        found = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        self._words, self.log = list(words), log
        self._environment = {**os.environ, "PYTHONPATH": found, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def code(self) -> int | None:
        """Its exit code; None before its end."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Begin, or begin again."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestration", *self._words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL of its whole group."""
        self._signal(signal.SIGKILL)

    def end(self) -> None:
        """As by Ctrl-C, and by force where that takes long."""
        self._signal(signal.SIGINT)
        self.kill()

    def _signal(self, which: signal.Signals) -> None:
        # Once it has ended, its number may be another's.
        if self._process is None or not self.running:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, which)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_S)

    def failure(self) -> RequestError | RunError:
        """What it said at its end."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        said = next((line.removeprefix(SAID) for line in reversed(lines) if line.startswith(SAID)), "it said nothing")
        kind = RequestError if self.code == 2 else RunError
        return kind(f"the drill's campaign ended with exit code {self.code} ({said}); all it said is in {self.log}")


class Folder:
    """A campaign's folder as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def trial(self, number: int) -> Path:
        """Of one trial."""
        return self.path / TRIALS / trial_name(number)

    def saved(self, trial: int) -> int:
        """Pictures seen at the trial's newest whole checkpoint."""
        folders = self.trial(trial).glob(f"{CHECKPOINTS}/kimg-*/{MANIFEST}")
        return max((round(1000 * float(path.parent.name.removeprefix("kimg-"))) for path in folders), default=0)

    def trained(self, trial: int) -> int:
        """Pictures that the trial's record reaches."""
        lines = read_metrics(self.trial(trial))
        return int(lines[-1]["images"]) if lines else 0

    def records(self, trial: int) -> int:
        """Lines of the trial's record."""
        return len(read_metrics(self.trial(trial)))

    def ended(self, trial: int) -> bool:
        """Whether the ledger says that the trial has come to an end."""
        if not self.begun:
            return False
        ledger = Ledger.open(self.path)
        try:
            return any(one.number == trial and one.state.ended for one in ledger.trials())
        finally:
            ledger.close()

    @property
    def standing(self) -> object:
        """Something that changes whenever the campaign gets on."""
        sizes = {}
        for path in self.path.glob(f"{TRIALS}/*/{METRICS}"):
            with suppress(OSError):  # replaced at this moment
                sizes[path] = path.stat().st_size
        return sizes, self.jobs

    @property
    def begun(self) -> bool:
        """Whether there is a ledger."""
        return (self.path / FILE).is_file()

    @property
    def jobs(self) -> set[str]:
        """Ray's jobs of the drivers whose bookkeeping is in the folder now."""
        return {found.name.split("-")[1] for found in self.path.glob(f"{STORAGE}*")}


def read_json(path: Path) -> Any:
    """What a file holds; None where there is none, or no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
