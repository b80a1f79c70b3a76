"""`t2i drill` on two nodes: every kind of blow, and the node's return by a command of the test's own."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from orchestration.drill.drill import DRILLS
from orchestration.drill.plan import Kind, Plan

from .cluster_support import Cluster, two_nodes

pytestmark = [pytest.mark.ray_cluster, pytest.mark.late]
PATIENCE_S = 1800.0
TRIES = 5


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@contextmanager
def who_brings_back(cluster: Cluster, folder: Path) -> Iterator[str]:
    """A command that asks for the worker node again, and returns once it is there; the nodes are this process's."""
    asked, done, over = folder / "asked", folder / "done", threading.Event()
    os.mkfifo(asked)
    os.mkfifo(done)

    def work() -> None:
        asked.read_text()
        # On a busy machine a raylet whose agents take longer than 15 s ends itself: whoever looks after it tries anew.
        for _ in range(0 if over.is_set() else TRIES):
            cluster.worker.kill()
            cluster.worker.start()
            with suppress(AssertionError):
                cluster.wait(2)
                break
        if not over.is_set():
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


def drilled(cluster: Cluster, home: Path, folder: Path, kinds: Sequence[Kind], seed: int) -> Any:
    """What a drill says of itself."""
    folder.mkdir()
    with who_brings_back(cluster, folder) as command:
        back = ["--bring-back", command] if Kind.NODE in kinds else []
        words = ["drill", "--kill", ",".join(kinds), "--seed", f"{seed}", *back, "--home", str(home), "--json"]
        ended = subprocess.run(
            [sys.executable, "-m", "orchestration", *words],
            env={**cluster.environment, "RAY_ADDRESS": cluster.gcs},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert ended.stdout, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    faults = [told[name] for name in ("differences", "unrecorded", "left_over", "unserved", "missed", "skipped")]
    assert not any(faults) and ended.returncode == 0 and told["equal"], ended.stderr
    return told


def test_what_is_killed_changes_nothing(cluster: Cluster, home: Path, tmp_path: Path) -> None:
    plan = Plan(1, 2, tuple(Kind))
    # Its judge is that of other tests' campaigns, and takes most of a minute.
    if (home / "stages").is_dir():
        shutil.copytree(home / "stages", home / DRILLS / "stages")
    told = drilled(cluster, home, tmp_path / "drill", plan.kinds, plan.seed)
    hits = {hit["kind"]: hit for hit in told["hits"]}
    assert sorted(hits) == sorted(plan.in_campaign)
    assert all(hit["at"] >= hit["planned"] for hit in hits.values())
    assert told["drilled_ledger"] == told["twin_ledger"] and len(told["twin_ledger"]) == 2
    assert all(trial["state"] == "finished" and trial["digest"] for trial in told["twin_ledger"].values())
    assert told["replica"]["answers"] > told["replica"]["after_answers"] and told["replica"]["wrong"] == []
    # What was started for it has ended.
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
