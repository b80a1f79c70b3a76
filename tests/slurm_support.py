"""A real Slurm of two nodes on one machine: its own daemons, key, ports and folder, and no other Slurm touched."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .cluster_support import free_ports

NODES = ("n1", "n2")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
START_S, END_S = 60.0, 60.0
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")
# Neither control groups nor accounting: what a job may take is not enforced here, only counted.
CONFIGURATION = """\
ClusterName=t2i
FirstJobId={first}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
MpiDefault=none
SchedulerType=sched/builtin
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=120
MailProg=/bin/true
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=16000 State=UNKNOWN"


def why_not() -> str:
    """Why there is no Slurm here; empty where there is."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} of Slurm are not installed"
    return "" if os.geteuid() == 0 else "Slurm's daemons want to be root"


@dataclass(frozen=True)
class Slurm:
    """A running one. environment: of its clients."""

    folder: Path
    environment: dict[str, str]

    def ask(self, *words: str, cwd: Path | None = None) -> str:
        """What a client says; an error where it fails."""
        ended = subprocess.run(words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, (words, ended.stdout, ended.stderr, self.said())
        return ended.stdout.strip()

    def submit(self, program: Path, *words: str, environment: Mapping[str, str]) -> str:
        """The number of the job; its log is beside the program."""
        chosen = {**environment, "SLURM_CONF": self.environment["SLURM_CONF"], "PATH": self.environment["PATH"]}
        client = Slurm(self.folder, chosen)
        return client.ask("sbatch", "--parsable", str(program), *words, cwd=program.parent)

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job, by its own names."""
        told = self.ask("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def wait(self, number: str, patience_s: float) -> dict[str, str]:
        """The job, once it has ended and all that is its own has too."""
        until = time.monotonic() + patience_s
        while (job := self.job(number))["JobState"] not in OVER:
            assert time.monotonic() < until, (job, self.said())
            time.sleep(0.5)
        return job

    def said(self) -> str:
        """The daemons' own words."""
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*.log")))


@contextmanager
def slurm() -> Iterator[Slurm]:
    """Two idle nodes; at the end no daemon is left."""
    folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    # Whoever asks must reach the socket.
    folder.chmod(0o755)
    host = socket.gethostname()
    control, *ports = free_ports(1 + len(NODES))
    nodes = "\n".join(NODE.format(name=name, host=host, port=port) for name, port in zip(NODES, ports, strict=True))
    for name in ("munge", "state", *(f"spool-{name}" for name in NODES)):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    configuration = folder / "slurm.conf"
    # What a test looks for by a job's number must not be what a killed one left of its own.
    first = secrets.randbelow(10**7) + 1000
    configuration.write_text(CONFIGURATION.format(host=host, port=control, folder=folder, nodes=nodes, first=first))
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    munge = [f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid", f"--log-file={folder}/munge/log"]
    munge += [f"--key-file={key}", f"--seed-file={folder}/munge/seed"]
    commands = {
        "munged": ["munged", "--foreground", "--force", *munge],
        "slurmctld": ["slurmctld", "-D"],
        **{name: ["slurmd", "-D", "-N", name] for name in NODES},
    }
    running: list[subprocess.Popen[bytes]] = []
    found = Slurm(folder, environment)
    try:
        for name, words in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                )
            if name == "munged":
                _until(lambda: (folder / "munge" / "socket").exists(), running, found)
        _until(lambda: _idle(found) == len(NODES), running, found)
        yield found
    finally:
        for process in reversed(running):
            process.terminate()
        for process in reversed(running):
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            process.kill()
            process.wait(END_S)
        shutil.rmtree(folder, ignore_errors=True)


def _idle(slurm: Slurm) -> int:
    ended = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle"],
        env=slurm.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return len(ended.stdout.splitlines()) if ended.returncode == 0 else 0


def _until(there: object, running: list[subprocess.Popen[bytes]], slurm: Slurm) -> None:
    assert callable(there)
    until = time.monotonic() + START_S
    while not there():
        assert all(process.poll() is None for process in running) and time.monotonic() < until, slurm.said()
        time.sleep(0.25)
