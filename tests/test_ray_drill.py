"""`t2i drill` on two nodes: every kind of blow, and the node's return by a command of the test's own."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestration.drill.plan import Kind, Plan

from .cluster_support import Cluster, two_nodes

pytestmark = pytest.mark.ray_cluster
PATIENCE_S = 1800.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@contextmanager
def who_brings_back(cluster: Cluster, folder: Path) -> Iterator[str]:
    """A command that asks for the worker node again, and returns once that was begun; the nodes are this process's."""
    asked, done, over = folder / "asked", folder / "done", threading.Event()
    os.mkfifo(asked)
    os.mkfifo(done)

    def work() -> None:
        asked.read_text()
        if not over.is_set():
            cluster.worker.kill()
            cluster.worker.start()
            done.write_text("begun")

    script = folder / "bring-back.sh"
    script.write_text(f"echo please > {asked}\ncat {done}\n")
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"bash {script}"
    finally:
        over.set()
        if thread.is_alive():
            asked.write_text("no more")
        thread.join()


def test_everything_is_killed_once_and_nothing_changes(cluster: Cluster, home: Path, tmp_path: Path) -> None:
    plan = Plan(1, 2, tuple(Kind))
    with who_brings_back(cluster, tmp_path) as command:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "orchestration", "drill", "--kill", ",".join(plan.kinds), "--seed", "1"),
                *("--bring-back", command, "--home", str(home), "--json"),
            ],
            env={**cluster.environment, "RAY_ADDRESS": cluster.gcs},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["equal"] and not told["skipped"] and not told["missed"]
    assert [(hit["kind"], hit["trial"]) for hit in told["hits"]] == [(one.kind, one.trial) for one in plan.strikes()]
    assert all(hit["at"] >= hit["planned"] for hit in told["hits"])
    assert told["drilled_ledger"] == told["twin_ledger"] and len(told["twin_ledger"]) == 2
    assert all(trial["state"] == "finished" and trial["digest"] for trial in told["twin_ledger"].values())
    assert told["replica"]["answers"] > told["replica"]["after_answers"] and told["replica"]["wrong"] == []
    # What was started for it has ended, and only the twin stays.
    assert [path.name for path in (home / "drills" / "campaigns").iterdir()] == [plan.twin]
    assert not [pid for pid in processes() if str(home / "drills") in pid]
    cluster.wait(2)


def processes() -> list[str]:
    """Command lines of all that runs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found
