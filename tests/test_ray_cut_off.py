"""A campaign on two nodes of which one is cut off, and goes on unheard, ends as the undisturbed one."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from orchestration.campaigns.ledger import Ledger, Segment
from orchestration.stages import file_sha256
from orchestration.training.recorder import read_metrics
from orchestration.training.turn import LOCK

from .cluster_support import Cluster, Node, two_nodes
from .netns_support import Cable, cable
from .test_ray_node_loss import Campaign

pytestmark = [pytest.mark.ray_cluster, pytest.mark.late]
LET_DIE = {
    # A machine counts as dead after 25 seconds without an answer; Ray's own minute would be most of the test.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "5",
}
LIVE_ON = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
"""A machine that is cut off goes on for so long, unless it hears that it was given up."""
SHORT_S = 5.0
PATIENCE_S = 600.0
BEGUN_AGAIN = "was begun again by another process, which trains it now"


@pytest.fixture(scope="module")
def wire() -> Iterator[Cable]:
    with cable() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(wire: Cable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The head is here, its worker at the other end of the wire."""
    with two_nodes(
        tmp_path_factory.mktemp("cluster"),
        environment=LET_DIE,
        worker_environment=LIVE_ON,
        addresses=(wire.here, wire.there),
        worker_within=wire.within,
    ) as running:
        yield replace(running, environment={**running.environment, "T2I_PROGRESS": "lines"})


class Observed(Campaign):
    """A campaign of which all is told that must not change."""

    def segments(self) -> list[Segment]:
        ledger = Ledger.open(self.folder)
        try:
            return ledger.segments()
        finally:
            ledger.close()

    def everything(self) -> dict[str, Any]:
        """The ledger, the digest of every checkpoint, and what is recorded, but for times."""
        trials = {}
        for folder in sorted(self.folder.glob("trials/*")):
            kept = [*folder.glob("*/*/manifest.json"), *folder.glob("pictures/*")]
            trials[folder.name] = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(kept)}
        told = [(one.trial, one.step, one.state, one.figures, one.checkpoint, one.digest) for one in self.segments()]
        return {"ledger": self.ledger(), "segments": told, "trials": trials, "records": self.records()}

    def records(self) -> list[tuple[str, int, dict[str, float]]]:
        return [
            (folder.name, line["images"], {k: v for k, v in line["metrics"].items() if not k.startswith("speed/")})
            for folder in sorted(self.folder.glob("trials/*"))
            for line in read_metrics(folder)
        ]

    def attempts(self) -> list[int]:
        return [segment.attempts for segment in self.segments()]

    def turns(self) -> dict[str, str]:
        """What each trial's folder says of whose turn it is to write it."""
        return {path.parent.name: path.read_text() for path in self.folder.glob("trials/*/turn.json")}

    def in_the_middle(self) -> None:
        """Until both trials have trained for a while."""
        self.wait_for(lambda: len(self.saved()) == 2 and min(self.saved()) >= 1)
        assert self.attempts() == [1, 1]

    def wait_for(self, look: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not look():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, (self.saved(), self.attempts(), self.turns())
            time.sleep(0.1)

    def result_quietly(self) -> str:
        """Its end; what it said on standard error."""
        try:
            out, err = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.end()
        assert self.process.returncode == 0, err
        assert json.loads(out.splitlines()[-1])
        assert "Traceback" not in err
        return err


@pytest.fixture(scope="module")
def calm(cluster: Cluster, home: Path) -> dict[str, Any]:
    """All of one that nothing happens to."""
    undisturbed = Observed(cluster, home, "calm")
    undisturbed.result_quietly()
    assert undisturbed.attempts() == [1, 1]
    return undisturbed.everything()


def require_same(found: dict[str, Any], calm: dict[str, Any], restarts: int = 0) -> None:
    """To the last bit; but after each restart the first means are those since the checkpoint, not since the last."""
    records, wanted = found.pop("records"), dict(calm)
    calm_records = wanted.pop("records")
    assert found == wanted
    # Each step once, with the same figures.
    assert [(*where, values.keys()) for *where, values in records] == [
        (*at, values.keys()) for *at, values in calm_records
    ]
    changed = [(one, other) for one, other in zip(records, calm_records, strict=True) if one != other]
    assert len(changed) <= restarts, changed
    for (_, _, values), (_, _, others) in changed:
        assert all(
            values[name] == others[name] for name in values if not name.startswith(("generator/", "discriminator/"))
        )


def until(look: Callable[[], bool], what: Callable[[], object]) -> None:
    """Until `look` holds; what: told when it never does."""
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def trainer(node: Node) -> int:
    """The process that trains on a node: that of a Tune trial."""
    found = []
    for pid in node.pids:
        with suppress(OSError):
            if b"ImplicitFunc" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    assert len(found) == 1, found
    return found[0]


def hold(pid: int, folder: Path) -> None:
    """The process stands still; not while it writes, when others wait for it."""
    for _ in range(1000):
        os.kill(pid, signal.SIGSTOP)
        try:
            for trial in folder.glob("trials/*"):
                with FileLock(trial / LOCK).acquire(timeout=1):
                    pass
            return
        except Timeout:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.05)
    raise AssertionError("it always writes")


def ray_logs(cluster: Cluster, node: str) -> str:
    """What the processes of a node said."""
    return "\n".join(path.read_text() for path in cluster.folder.glob(f"{node}/session_2*/logs/worker-*.err"))


def test_a_short_cut_restarts_nothing(cluster: Cluster, wire: Cable, home: Path, calm: dict[str, Any]) -> None:
    shaken = Observed(cluster, home, "shaken")
    shaken.in_the_middle()
    wire.cut()
    try:
        time.sleep(SHORT_S)
        assert not wire.reaches()
    finally:
        wire.mend()
    shaken.result_quietly()
    assert shaken.attempts() == [1, 1]
    require_same(shaken.everything(), calm)
    assert cluster.alive() == 2


def test_a_machine_that_is_given_up_and_trains_on_changes_nothing(
    cluster: Cluster, wire: Cable, home: Path, calm: dict[str, Any]
) -> None:
    """Two processes train one trial at once, and one machine hears of it only afterwards. It comes back."""
    lost = Observed(cluster, home, "cut-off")
    lost.in_the_middle()
    unheard, before = trainer(cluster.worker), lost.turns()
    wire.cut()
    try:
        # Held up there until its trial is begun again, whichever of the two is faster.
        hold(unheard, lost.folder)
        lost.wait_for(lambda: cluster.alive() == 1)
        lost.wait_for(lambda: lost.turns() != before)
        assert sorted(lost.attempts()) == [1, 2]
        os.kill(unheard, signal.SIGCONT)
        until(lambda: BEGUN_AGAIN in ray_logs(cluster, "w"), lambda: ray_logs(cluster, "w"))
        assert Path(f"/proc/{unheard}").exists() and not wire.reaches()
    finally:
        with suppress(ProcessLookupError):
            os.kill(unheard, signal.SIGCONT)
        wire.mend()
    said = lost.result_quietly()
    assert sorted(lost.attempts()) == [1, 2]
    require_same(lost.everything(), calm, restarts=1)
    assert "lost its process" in said
    comes_back(cluster)


def comes_back(cluster: Cluster) -> None:
    """A machine that hears it was given up ends itself, and whoever looks after it starts it again."""
    process = cluster.worker.process
    assert process is not None
    until(lambda: process.poll() is not None, cluster.worker.log.read_text)
    cluster.worker.kill()
    cluster.worker.start()
    cluster.wait(2)


def test_a_machine_that_is_cut_off_and_not_held_up_changes_nothing(
    cluster: Cluster, wire: Cable, home: Path, calm: dict[str, Any]
) -> None:
    """It trains on, and judges, unheard, until its trial is begun again or done; either way nobody can tell."""
    lost = Observed(cluster, home, "judged")
    lost.in_the_middle()
    unheard = trainer(cluster.worker)
    wire.cut()
    try:
        until(lambda: len(list(lost.folder.glob("trials/*/rungs/*/manifest.json"))) == 2, lost.saved)
        lost.wait_for(lambda: cluster.alive() == 1)
        assert Path(f"/proc/{unheard}").exists()
        said = lost.result_quietly()
    finally:
        wire.mend()
    assert sorted(lost.attempts()) == [1, 2]
    require_same(lost.everything(), calm, restarts=1)
    assert "lost its process" in said
    comes_back(cluster)
