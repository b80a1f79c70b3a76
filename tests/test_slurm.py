"""The rendered batch job on a real Slurm: head and worker by srun, tokens on, and nothing left when it ended."""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestration.clusters.profile import parse_profile
from orchestration.clusters.render import render, write
from orchestration.training.state import checkpoint_folders, open_checkpoint

from .cluster_support import STARVED
from .ray_support import assignments
from .slurm_support import Slurm, slurm, why_not

pytestmark = [
    pytest.mark.ray_cluster,
    pytest.mark.late,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "Slurm is here"),
]
REPOSITORY = Path(__file__).parents[1]
PATIENCE_S = 600.0


@pytest.fixture(scope="module")
def batch() -> Iterator[Slurm]:
    with slurm() as running:
        yield running


class Submitted:
    """The rendered program, submitted as a person does: with a token's file and a shared home."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder, self.home = slurm, folder, folder / "home"
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(24))
        self.home.mkdir()
        setup = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={REPOSITORY}"
        values = {
            "name": "t2i-two",
            "image": {"name": "t2i"},
            "storage": {"home": str(self.home)},
            "token": {"file": str(token)},
            "workers": [{"name": "cpu", "cpus": 1, "memory_gib": 4, "min": 2, "max": 2}],
            "train": {"recipe": "xmcgan_scenes32", "workers": 2},
            "slurm": {"hours": 1, "setup": [setup]},
        }
        write(render(parse_profile(values, "two.yaml"), "two.yaml", "0" * 12, ["slurm"]), folder / "out")
        self.program = folder / "out" / "slurm" / "t2i.sbatch"

    def __call__(self, *words: str) -> str:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "T2I_", "SLURM_"))}
        return self.slurm.submit(self.program, *words, environment=mine | {"PYTHONWARNINGS": "ignore"})

    def log(self, number: str) -> str:
        path = self.program.with_name(f"t2i-two-{number}.log")
        return path.read_text() if path.exists() else ""

    def finished(self, *words: str) -> tuple[str, tuple[str, str]]:
        """The number of a job with these words, and how it ended; another one where Ray starved while it started."""
        for _ in range(3):
            number = self(*words)
            ended = self.ended(number)
            log = self.log(number)
            if not any(said in log for said in STARVED):
                break
        return number, ended

    def ended(self, number: str) -> tuple[str, str]:
        """The job's state and exit code, once nothing of it is left."""
        job = self.slurm.wait(number, PATIENCE_S)
        self.nothing_left(number)
        return job["JobState"], job["ExitCode"]

    def nothing_left(self, number: str) -> None:
        """No process that Ray started for the job, and no folder."""
        until = time.monotonic() + PATIENCE_S
        while left := [*Path("/tmp").glob(f"ray-{number}-*"), *processes(f"ray-{number}-")]:
            assert time.monotonic() < until, (left, self.log(number))
            time.sleep(0.5)


def processes(word: str) -> list[str]:
    """Command lines that have a word in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [line] if word in line else []
    return found


@pytest.fixture
def submitted(batch: Slurm, tmp_path: Path) -> Submitted:
    return Submitted(batch, tmp_path)


def test_two_nodes_and_a_token(submitted: Submitted) -> None:
    """What the doctor sees from inside the job."""
    number, ended = submitted.finished("doctor", "--json", "--home", str(submitted.home))
    assert ended == ("COMPLETED", "0:0"), submitted.log(number)
    [told] = [line for line in submitted.log(number).splitlines() if line.startswith("{")]
    found = json.loads(told)
    assert [node["head"] for node in found["nodes"]] == [True, False]
    assert {node["access"]["mode"] for node in found["nodes"]} == {"token"}
    assert found["jobs"]["code"] == 401 and found["gcs_open"] is False
    assert [each for each in found["findings"] if each["severity"] == "refuse"] == []
    ports = {port["role"]: (port["address"], port["port"]) for port in found["nodes"][0]["access"]["ports"]}
    assert ports["dashboard"][0] == "127.0.0.1"
    # Not Ray's own numbers, which another job on this node may have.
    assert all(20000 <= ports[role][1] < 32000 for role in ("GCS", "dashboard", "Ray client")), ports
    [ring] = found["rings"]
    assert ring["ranks"] == 2 and ring["correct"]


def test_a_job_that_is_requeued_goes_on_where_it_was(submitted: Submitted) -> None:
    """Two workers, on a node each; taken away in the middle, and started again by Slurm under the same number."""
    number = submitted("train", "xmcgan_scenes32", "--workers", "2", "--json", *assignments(training__kimg=0.8))
    [folder] = until(lambda: list(submitted.home.glob("runs/*/checkpoints")), submitted, number)
    until(lambda: checkpoint_folders(folder), submitted, number)
    submitted.slurm.ask("scontrol", "requeue", number)
    submitted.nothing_left(number)
    before = open_checkpoint(checkpoint_folders(folder)[-1]).images_seen
    assert 0 < before < 800
    assert submitted.ended(number) == ("COMPLETED", "0:0"), submitted.log(number)
    assert submitted.slurm.job(number)["Restarts"] == "1"
    log = submitted.log(number)
    assert log.count("Ray runtime started") == 4, log  # a head and a worker, twice, in one log
    [told] = [line for line in log.splitlines() if line.startswith("{")]
    assert open_checkpoint(Path(json.loads(told)["checkpoint"])).images_seen == 800


def test_the_job_ends_with_the_commands_exit_code(submitted: Submitted) -> None:
    number, ended = submitted.finished("train", "nothing")
    assert ended == ("FAILED", "2:0"), submitted.log(number)
    assert "t2i: no recipe 'nothing'" in submitted.log(number)


def until(look: Callable[[], list[Path]], submitted: Submitted, number: str) -> list[Path]:
    """What `look` finds, as soon as it finds something."""
    end = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < end, submitted.log(number)
        state = submitted.slurm.job(number)["JobState"]
        assert state in ("PENDING", "CONFIGURING", "RUNNING"), (state, submitted.log(number))
        time.sleep(0.2)
    return found
