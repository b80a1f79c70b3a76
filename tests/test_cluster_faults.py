"""Nodes with real faults of their own: storage that is full, read-only, not mounted or not shared, other versions.

One worker has them all, each as another home: in a mount namespace of its own, as a machine has its own mounts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .cluster_support import Cluster, two_nodes

PATIENCE_S = 600
MOUNTS = (
    "mount -t tmpfs -o size=16k tmpfs {0}/full; mount -t tmpfs -o ro tmpfs {0}/ro; "
    "mount -t tmpfs -o ro tmpfs {0}/unmounted; mount -t tmpfs -o size=64m tmpfs {0}/own"
)


def why_not() -> str:
    """Why no mount of its own can be made here; empty where one can."""
    tried = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        ended = subprocess.run(tried, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return "unshare of util-linux is not installed"
    return f"nothing can be mounted here: {ended.stderr.strip()}" if ended.returncode else ""


pytestmark = [pytest.mark.ray_cluster, pytest.mark.skipif(bool(why_not()), reason=why_not() or "mounts can be made")]


@dataclass(frozen=True)
class Faulty:
    """A cluster, and the folder in which each fault is a home."""

    cluster: Cluster
    folder: Path

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command, as a person gives it on the head."""
        return subprocess.run(
            [sys.executable, "-m", "orchestration", *words],
            env={**self.cluster.environment, "RAY_ADDRESS": self.cluster.gcs, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def doctor(self, home: str, *words: str) -> dict[str, list[tuple[list[str], str]]]:
        """What is refused, by check: where, and what with its mend, of each."""
        asked = ("--address", self.cluster.gcs, "--home", str(self.folder / home), "--timeout", "300")
        ended = self.run("doctor", "--json", *asked, *words)
        assert ended.returncode == 1 and ended.stdout, ended
        findings = json.loads(ended.stdout.splitlines()[-1])["findings"]
        refused = [each for each in findings if each["severity"] == "refuse"]
        assert f"for {len(refused)} reason" in ended.stderr
        found: dict[str, list[tuple[list[str], str]]] = {}
        for each in refused:
            found.setdefault(each["check"], []).append((each["where"], f"{each['what']}: {each['mend']}"))
        return found


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("faults")
    for name in ("full", "ro", "unmounted/home", "own", "other"):
        (folder / name).mkdir(parents=True)
    # What is found first is what is installed: an older Optuna, and no package of the extra s3.
    older = folder / "other" / "optuna-4.9.0.dist-info"
    older.mkdir()
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: optuna\nVersion: 4.9.0\n")
    (folder / "other" / "s3fs.py").write_text("raise ModuleNotFoundError(\"No module named 's3fs'\", name='s3fs')\n")
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(folder / "other"), *([before] if before else [])])
    program = f'set -e; {MOUNTS.format(folder)}; exec "$@"'
    within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", program, "sh"]
    with two_nodes(folder, worker_environment={"PYTHONPATH": path}, worker_within=within) as cluster:
        yield Faulty(cluster, folder)


@pytest.mark.parametrize(
    ("home", "said"),
    [
        ("full", "is not usable there: full (No space left on device): free some space or raise the quota"),
        ("ro", "is not usable there: read-only (Read-only file system): mount it for writing (rw)"),
        ("unmounted/home", "is not there: mount the shared file system there at the same path"),
    ],
)
def test_a_node_whose_storage_is_not_right(faulty: Faulty, home: str, said: str) -> None:
    refused = faulty.doctor(home)
    [(where, what)] = refused["home"]
    assert said in what and str(faulty.folder / home) in what, refused
    # It says which of the two: the one whose versions differ.
    [(worker, _)] = refused["versions"]
    assert len(where) == 1 and where == worker


def test_a_node_with_storage_other_versions_and_extras_of_its_own(faulty: Faulty) -> None:
    refused = faulty.doctor("own", "--stages", "s3://bucket/stages")
    assert "is not one place: what other nodes write is not seen there" in refused["home"][0][1]
    [(worker, what)] = refused["versions"]
    assert len(worker) == 1 and "optuna is 4.9.0 there" in what and "one image" in what
    [lacking] = [what for where, what in refused["stages"] if where == worker]
    assert "s3fs" in lacking and "install the file system's package in the image" in lacking, refused
