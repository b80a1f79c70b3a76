"""The doctor on real two-node clusters: what is right, what is planted, and what keeps it from looking."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.doctor import collecting, probes
from orchestration.doctor.facts import Asked
from orchestration.doctor.findings import find
from orchestration.doctor.hands import OnCluster
from orchestration.doctor.joining import joined
from orchestration.stages import quiet

from .cluster_support import Cluster, two_nodes

pytestmark = pytest.mark.ray_cluster
REPOSITORY = Path(__file__).parents[1]
PATIENCE_S = 180


@pytest.fixture(scope="class")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp("cluster"), worker_environment={"OMP_NUM_THREADS": "64"}) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def doctor(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, with JSON as its last line of standard output."""
    return subprocess.run(
        [sys.executable, "-m", "orchestration", "doctor", "--json", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def result(ended: subprocess.CompletedProcess[str]) -> Any:
    assert ended.stdout, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def refused(found: Any) -> dict[str, str]:
    """What is refused, by check."""
    return {each["check"]: each["what"] for each in found["findings"] if each["severity"] == "refuse"}


class Planted(OnCluster):
    """A cluster whose worker has another torch and another folder of the same name."""

    def __init__(self, ray: Any, home: str, elsewhere: str) -> None:
        super().__init__(ray)
        self.home, self.elsewhere = home, elsewhere
        self.worker = next(place for place in self.places if not place.head)

    def run(self, calls: Any, timeout_s: float) -> dict[str, Any]:
        def moved(word: Any) -> Any:
            return self.elsewhere if word == self.home else word

        changed = {name: tuple(map(moved, call)) if name == self.worker.name else call for name, call in calls.items()}
        found = super().run(changed, timeout_s)
        for name, call in calls.items():
            if name == self.worker.name and call[0] is probes.look_at_versions:
                found[name]["packages"]["torch"] = "2.12.0"
        return found


def examine_planted(address: str, home: str, elsewhere: str) -> None:
    """For a process of its own, as Ray keeps the token it began with. Prints what is refused."""
    with joined(address) as (ray, _):
        hands = Planted(ray, home, elsewhere)
        facts = collecting.examine_nodes(hands, Asked(home, address), quiet)
        hands.close()
    print(json.dumps([[each.check, each.what, len(each.where)] for each in find(facts) if each.severity == "refuse"]))


class TestWithTokens:
    """One cluster for all; it has ended before the next one starts."""

    def test_what_is_right_is_right(self, cluster: Cluster, home: Path) -> None:
        ended = doctor(cluster.environment, "--address", cluster.gcs, "--home", str(home), "--stages", f"file://{home}")
        found = result(ended)
        assert refused(found) == {} and ended.returncode == 0, ended.stderr
        head, worker = found["nodes"]
        assert head["head"] and not worker["head"]
        assert head["versions"] == worker["versions"] and head["versions"]["code"]
        for node in found["nodes"]:
            assert (
                sorted(node["home"]["seen"]) == sorted(node["stages"]["seen"]) == sorted([head["name"], worker["name"]])
            )
            assert node["access"]["mode"] == "token" and node["access"]["token_mode"] == 0o600
            assert abs(node["clock"]["offset"]) < 1 and node["machine"]["ray_cpus"] == 1
        roles = {port["role"] for port in head["access"]["ports"]}
        assert {"GCS", "dashboard", "Ray client", "raylet", "agent", "metrics"} <= roles
        assert "GCS" not in {port["role"] for port in worker["access"]["ports"]}
        assert found["jobs"]["code"] == 401 and found["gcs_open"] is False
        [ring] = found["rings"]
        assert (ring["backend"], ring["ranks"], ring["correct"]) == ("gloo", 2, True) and ring["bandwidth"] > 0
        # Planted on the worker alone, and no more than a warning.
        [threads] = [each for each in found["findings"] if each["check"] == "threads"]
        assert threads["where"] == [worker["name"]] and "OMP_NUM_THREADS is 64" in threads["what"]
        assert not list(home.iterdir())
        assert "t2i doctor: the cluster at" in ended.stderr

    def test_planted_faults_are_found(self, cluster: Cluster, closed_uri: str) -> None:
        """All at once: a home that nothing can be written to, closed servers, and a token that all may read."""
        assert cluster.token_file is not None
        cluster.token_file.chmod(0o644)
        try:
            ended = doctor(
                cluster.environment,
                *("--address", cluster.gcs, "--home", "/sys"),
                *("--mlflow-uri", closed_uri, "--stages", closed_uri.replace("http", "ftp")),
                *("--optuna", "sqlite:////nowhere/optuna.db"),
            )
        finally:
            cluster.token_file.chmod(0o600)
        found = result(ended)
        assert ended.returncode == 1
        planted = refused(found)
        assert planted.keys() == {"home", "stages", "mlflow", "optuna", "token file"}
        assert "/sys is not usable there" in planted["home"] and "refused" in planted["stages"]
        assert "cannot be reached" in planted["mlflow"] and "/nowhere cannot be written to" in planted["optuna"]
        assert "mode 0644" in planted["token file"]
        assert all(len(each["where"]) >= 2 for each in found["findings"] if each["severity"] == "refuse")
        assert ended.stderr.rstrip().endswith("t2i: the doctor refuses this for 5 reasons: mend each as it says")

    @pytest.mark.parametrize(
        ("changed", "part"),
        [
            ({"RAY_AUTH_TOKEN": "0" * 48}, "refuses the token of this machine"),
            ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "wants a token, and there is none here"),
            ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE is 'disabled' here"),
        ],
    )
    def test_tokens_that_do_not_open(self, changed: dict[str, str], part: str, cluster: Cluster, home: Path) -> None:
        ended = doctor({**cluster.environment, **changed}, "--address", cluster.gcs)
        assert ended.returncode == 2 and not ended.stdout and "Traceback" not in ended.stderr
        assert part in ended.stderr and "RAY_AUTH_TOKEN_PATH" in ended.stderr
        # Nor do they let work in, and it says so before it prepares anything.
        train = [sys.executable, "-m", "orchestration", "train", "xmcgan_scenes32", "--home", str(home)]
        environment = {**cluster.environment, **changed, "RAY_ADDRESS": cluster.gcs}
        worked = subprocess.run(train, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
        assert (worked.returncode, worked.stdout) == (2, "") and worked.stderr.count("\n") == 1, worked.stderr
        assert part in worked.stderr and not (home / "stages").exists()

    def test_a_home_that_is_two_and_versions_that_differ(self, cluster: Cluster, home: Path, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        words = (cluster.gcs, str(home), str(elsewhere))
        call = f"from tests.test_ray_doctor import examine_planted; examine_planted(*{words!r})"
        ended = subprocess.run(
            [sys.executable, "-c", call],
            env=cluster.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert ended.stdout, ended.stderr
        versions, folders = json.loads(ended.stdout.splitlines()[-1])
        assert versions[0] == "versions" and "torch is 2.12.0 there" in versions[1] and versions[2] == 1
        assert folders[0] == "home" and "is not one place" in folders[1] and folders[2] == 2
        assert not list(home.iterdir()) and not list(elsewhere.iterdir())

    def test_a_node_that_hangs_hangs_nobody(self, cluster: Cluster, home: Path) -> None:
        pids = cluster.worker.pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            ended = doctor(cluster.environment, "--address", cluster.gcs, "--home", str(home), "--timeout", "5")
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        found = result(ended)
        assert ended.returncode == 1
        [silent] = [each for each in found["findings"] if each["severity"] == "refuse"]
        assert silent["check"] == "answers" and "nothing that was sent there came back" in silent["what"]
        assert silent["where"] == [node["name"] for node in found["nodes"] if not node["head"]]


def test_a_cluster_without_tokens_is_refused(tmp_path: Path, home: Path) -> None:
    off = {"RAY_AUTH_MODE": "disabled"}
    with two_nodes(tmp_path, token=False, environment=off) as running:
        ended = doctor({**running.environment, **off}, "--address", running.gcs, "--home", str(home))
    found = result(ended)
    assert ended.returncode == 1 and found["jobs"]["code"] == 200 and found["gcs_open"] is True
    whats = [each["what"] for each in found["findings"] if each["severity"] == "refuse"]
    assert any("the Jobs API at" in what and "answers without a token" in what for what in whats)
    assert any("GCS" in what for what in whats)
