"""What lives on a Ray cluster whose nodes are processes of this machine, and what of it somebody has left there."""

import json
import os
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST = 10_000  # rows of one answer of the State API, and the most that it gives
STEP_S = 1.0
IDLE, STARTING, AGENTS = "ray::IDLE", "ray::starting", ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
ENDED = ("DEAD", "REMOVED")
KEPT = ("logs", "runtime_resources/working_dir_files")
"""What a Ray session keeps for people, and the code of jobs, which it keeps for the next one: no leftovers."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process. memory: its share of all memory but the object store's, in bytes; files: that it holds open."""

    pid: int
    name: str
    memory: int
    files: int


@dataclass(frozen=True, slots=True)
class Stock:
    """What there is at a moment, each with how often."""

    processes: Counter[str]
    alive: Counter[str]
    objects: int
    paths: frozenset[str]

    def beyond(self, before: "Stock") -> list[str]:
        """What there was not before, in words."""
        told = [f"process {name}" for name in (self.processes - before.processes).elements()]
        told += list((self.alive - before.alive).elements())
        told += [f"{self.objects - before.objects} objects"] if self.objects > before.objects else []
        return told + [f"file {path}" for path in sorted(self.paths - before.paths)]


@dataclass
class Inventory:
    """Of a cluster. address: of its dashboard. marks: NAME=VALUE in the environment of every process that a node, or a
    driver, has started; sessions: the process that started them, and is their session. rays: Ray's temporary folder of
    each node; temporary: folders that processes have for files of their own."""

    address: str
    token: str | None
    marks: Mapping[str, str]
    sessions: dict[str, int] = field(default_factory=dict)
    rays: Mapping[str, Path] = field(default_factory=dict)
    temporary: Mapping[str, Path] = field(default_factory=dict)

    def asked(self, question: str) -> Any:
        """An answer of the head's dashboard. Raises OSError."""
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"{self.address}{question}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    def listed(self, kind: str) -> list[dict[str, Any]]:
        """Every one of a kind, as the State API names it."""
        return list(self.asked(f"/api/v0/{kind}?limit={MOST}")["result"]["result"])

    def states(self, kind: str) -> Counter[str]:
        """How many "actors" or "placement_groups" there are in each state."""
        return Counter(one["state"] for one in self.listed(kind))

    def processes(self, who: str) -> list[Process]:
        """Those of a node or a driver that are alive."""
        mark, session = self.marks[who].encode(), self.sessions.get(who)
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # ended meanwhile
                told = (place / "stat").read_text().rpartition(")")[2].split()
                # A process that renames itself may have written over its environment.
                marked = mark in (place / "environ").read_bytes().split(b"\0") or int(told[3]) == session
                if marked and told[0] != "Z":
                    words = (place / "cmdline").read_bytes().split(b"\0")
                    rollup = dict(line.split(":", 1) for line in (place / "smaps_rollup").read_text().splitlines()[1:])
                    kib = int(rollup["Pss"].split()[0]) - int(rollup["Pss_Shmem"].split()[0])
                    files = len(list((place / "fd").iterdir()))
                    found.append(
                        Process(int(place.name), name_of([word.decode() for word in words]), kib * 1024, files)
                    )
        return found

    def paths(self) -> frozenset[str]:
        """What lies in the temporary folders, and in those of Ray but for what it keeps for people."""
        found = {f"{who}: {path.name}" for who, folder in self.temporary.items() for path in folder.glob("*")}
        for who, folder in self.rays.items():
            session = (folder / "session_latest").resolve()
            for place, folders, files in os.walk(session):
                inner = Path(place).relative_to(session)
                folders[:] = [name for name in folders if str(inner / name) not in KEPT]
                found |= {f"{who}: {inner / name}" for name in (*files, *folders)}
        return frozenset(found)

    def log_bytes(self) -> int:
        """Of Ray's logs."""
        logs = [path for folder in self.rays.values() for path in folder.glob("session_2*/logs/**/*")]
        return sum(path.stat().st_size for path in logs if path.is_file() and not path.is_symlink())

    def stock(self) -> Stock:
        """Now. Processes that wait for work count for none: a node starts and ends them as it likes."""
        names = [f"{who}: {one.name}" for who in self.marks for one in self.processes(who) if not waits(one)]
        alive = [f"actor {one['class_name']}" for one in self.listed("actors") if one["state"] not in ENDED]
        groups = [one for one in self.listed("placement_groups") if one["state"] not in ENDED]
        alive += [f"placement group, {one['state']}" for one in groups]
        return Stock(Counter(names), Counter(alive), len(self.listed("objects")), self.paths())

    def left_over(self, before: Stock, patience_s: float, also: Callable[[], list[str]] = lambda: []) -> list[str]:
        """What there is and was not before, in words, once it stays for so long. also: what else is left."""
        until = time.monotonic() + patience_s
        while (told := [*self.stock().beyond(before), *also()]) and time.monotonic() < until:
            time.sleep(STEP_S)
        return told


def name_of(words: list[str]) -> str:
    """What a process is, in few letters: gcs_server, raylet, dashboard, ray::IDLE ..."""
    line, first = " ".join(words), words[0].split(" ")[0]
    if first.startswith(("ray::", "ray-dashboard-")) or not Path(first).name.startswith("python"):
        return Path(first).name
    if scripts := re.findall(r"([\w-]+)\.py\b", line):
        return STARTING if scripts[0] == "default_worker" else str(scripts[0])
    modules = re.findall(r"-m ([\w.]+)", line)
    return modules[0] if modules else Path(first).name


def is_of_trials(process: Process) -> bool:
    """Whether this is a process that carries out tasks or actors, and not the node's own."""
    return process.name.startswith("ray::") and process.name not in AGENTS


def waits(process: Process) -> bool:
    """Whether this is a process that carries out nothing now."""
    return process.name in (IDLE, STARTING)
