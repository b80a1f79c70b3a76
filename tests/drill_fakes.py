"""A cluster and a driver by script, for tests of the drill: a campaign that grows a little whenever it is looked at."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

from orchestration.campaigns.ledger import FILE, Ledger, Reached, Segment, SegmentState, State
from orchestration.campaigns.segments import TRIALS, trial_name
from orchestration.doctor.hands import Place
from orchestration.drill.plan import CHECKPOINT_KIMG, KIMG
from orchestration.drill.reach import TRAIN_WORKER, TRIAL, Victim
from orchestration.errors import RequestError, RunError

STEP, CHECKPOINT, LENGTH = 16, round(CHECKPOINT_KIMG * 1000), round(KIMG * 1000)
JOB = "0a000000"
DIGEST = "ab" * 32
HEAD, WORKER = Place("head", True, "id-head"), Place("worker", False, "id-worker")


class FakeDriver:
    """A campaign in the folder that the words name. Killed processes cut its trial back to the newest checkpoint.

    digests: of trials, as this driver will have them; ends: codes with which it ends as soon as it is begun, the first
    first; after: called at every step with the pictures of all trials so far.
    """

    digests: ClassVar[dict[str, str]] = {}
    ends: ClassVar[list[int]] = []
    all: ClassVar[list["FakeDriver"]] = []
    interrupt_at: ClassVar[int | None] = None

    def __init__(self, words: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.words, self.environment, self.log = list(words), environment, log
        self.name = self._word("--name")
        self.trials = int(self._word("--trials"))
        self.folder = Path(self._word("--home")) / "campaigns" / self.name
        self.pid, self.code, self.starts, self.ended = 4711, None, 0, False
        self.all.append(self)

    def _word(self, name: str) -> str:
        return self.words[self.words.index(name) + 1]

    def start(self) -> None:
        self.starts += 1
        self.code = self.ends.pop(0) if self.ends else None
        if self.code is None:
            (self.folder / f".tune-{JOB}-x").mkdir(parents=True, exist_ok=True)
            if not (self.folder / FILE).exists():
                Ledger.create(self.folder, {"name": self.name}).close()

    @property
    def running(self) -> bool:
        """As is asked again and again while something is waited for."""
        if self.code is None:
            self.step()
        return self.code is None

    def step(self) -> None:
        """The next pictures of the first trial that has not ended; exit code 0 once all have."""
        ledger = Ledger.open(self.folder)
        try:
            trials = ledger.trials()
            number = next((trial.number for trial in trials if not trial.state.ended), len(trials))
            if number == self.trials:
                self.code = 0
                return
            if number == len(trials):
                ledger.propose(number, {"tau": 0.1}, "proposed")
                ledger.begin(Segment(number, 0, KIMG, {"tau": 0.1}))
            if self.train(number) == LENGTH:
                digest = self.digests.get(self.name.partition("-")[0], DIGEST)
                ended = Reached(SegmentState.REACHED, KIMG, {"fid": 2.5}, f"trials/{number}", digest)
                ledger.reach(Segment(number, 0, KIMG, {"tau": 0.1}), ended, State.FINISHED)
        finally:
            ledger.close()

    def train(self, number: int) -> int:
        folder = self.folder / TRIALS / trial_name(number)
        folder.mkdir(parents=True, exist_ok=True)
        at = self.at(number) + STEP
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"images": at, "kimg": at / 1000, "time": 1.0, "metrics": {"loss": 1.0}}) + "\n")
        if at % CHECKPOINT == 0:
            checkpoint = folder / "checkpoints" / f"kimg-{at / 1000:010.3f}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "manifest.json").touch()
        if FakeDriver.interrupt_at == at and self.name.startswith("seed"):
            FakeDriver.interrupt_at = None
            raise KeyboardInterrupt
        return at

    def at(self, number: int) -> int:
        path = self.folder / TRIALS / trial_name(number) / "metrics.jsonl"
        return int(json.loads(path.read_text().splitlines()[-1])["images"]) if path.is_file() else 0

    def cut(self) -> None:
        """As whoever resumes it does: the record ends at the newest checkpoint."""
        for path in self.folder.glob(f"{TRIALS}/*/metrics.jsonl"):
            saved = len(list(path.parent.glob("checkpoints/*"))) * CHECKPOINT
            lines = [line for line in path.read_text().splitlines() if json.loads(line)["images"] <= saved]
            path.write_text("".join(f"{line}\n" for line in lines))

    def kill(self) -> None:
        self.cut()
        self.code = -9

    def end(self) -> None:
        self.ended = True

    def failure(self) -> Exception:
        return (RequestError if self.code == 2 else RunError)(f"it ended with {self.code}")


class FakeCluster:
    """Two nodes. back: whether a lost one comes back by itself; deaf: kills that miss, since it has just ended;
    left: what is left over."""

    address = "127.0.0.1:1"

    def __init__(self, nodes: Sequence[Place] = (HEAD, WORKER), back: bool = True) -> None:
        self.all, self.alive, self.back = list(nodes), list(nodes), back
        self.killed: list[str] = []
        self.resources = {"CPU": 2.0, "trial_slot": 1.0}
        self.deaf, self.serving, self.asked = 0, False, 0
        self.left: list[str] = []

    def nodes(self) -> Sequence[Place]:
        self.asked += 1
        if self.back and self.asked % 5 == 0:
            self.alive = [Place(each.name, each.head, f"{each.node_id}-again") for each in self.all]
        return self.alive

    def losable(self) -> Sequence[Place]:
        return [place for place in self.alive if not place.head]

    def units(self, resource: str) -> float:
        return self.resources.get(resource, 0.0)

    def actors(self, kind: str, jobs: Collection[str] | None = None) -> list[Victim]:
        assert jobs is None or jobs == {JOB}
        found = {TRAIN_WORKER: [11, 12], TRIAL: [13]}.get(kind, [])
        return [Victim(pid, WORKER.name, WORKER.node_id) for pid in found]

    def kill(self, victim: Victim) -> bool:
        if self.deaf:
            self.deaf -= 1
            return False
        self.killed.append(f"{victim.pid}")
        FakeDriver.all[-1].cut()
        return True

    def kill_node(self, place: Place) -> None:
        self.killed.append(place.name)
        self.alive = [each for each in self.alive if each.name != place.name]
        FakeDriver.all[-1].cut()

    def reach_all(self) -> None:
        self.reached = [place.node_id for place in self.nodes()]

    def left_over(self, jobs: Collection[str]) -> list[str]:
        return self.left

    def serves(self) -> bool:
        return self.serving

    def on_head(self, kind: type, *arguments: Any) -> Any:
        raise AssertionError("no endpoint here")

    def call(self, method: Any, *arguments: Any) -> Any:
        raise AssertionError("no endpoint here")


class FakeServer:
    """Of MLflow: told what happened to it."""

    uri, pid = "http://127.0.0.1:2", 14

    def __init__(self, folder: Path) -> None:
        self.told: list[str] = []

    def start(self) -> None:
        self.told.append("start")

    def begin(self) -> None:
        self.told.append("begin")

    def wait(self) -> None:
        self.told.append("wait")

    def kill(self) -> None:
        self.told.append("kill")
