"""What the benchmarks of serving share: a registry of two versions, clients, and the memory of every process."""

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tiny_run import HOME, prepared_experiment, trainer

from orchestration.config import Experiment
from orchestration.serving.catalogue import Release
from orchestration.serving.replies import Lineage
from orchestration.serving.requests import ServeError
from orchestration.serving.settings import ServeSettings
from orchestration.training.state import newest_checkpoint, save_checkpoint

MODEL = "xmcgan"
VERSIONS = HOME.root / "served"
PROMPT = "a red boat on the sea number {}"


class FixedCatalogue:
    """Two versions of one model, of which the first is champion for good; replicas load it by its import path."""

    def __init__(self, home: Path, uri: str | None) -> None:
        pass

    def champions(self) -> Mapping[str, Release]:
        return {MODEL: self.version(MODEL, 1)}

    def version(self, model: str, number: int) -> Release:
        checkpoint = newest_checkpoint(VERSIONS / str(number))
        assert checkpoint is not None
        return Release(model, number, checkpoint.digest, checkpoint.folder)

    def before(self, model: str) -> Sequence[Release]:
        return []

    def fetched(self, release: Release) -> Release:
        return self.version(release.model, release.version)

    def lineage(self, image: str) -> Lineage:
        raise ServeError("unknown_image", "nothing is registered here")


def served_experiment() -> Experiment:
    """The quickstart's generator, untrained, as two versions that differ."""
    experiment, prepared = prepared_experiment()
    for number in (1, 2):
        changed = experiment.replace({"training.seed": number})
        state = trainer(changed, prepared).state
        save_checkpoint(state, changed, prepared.provenance, VERSIONS / str(number))
    return experiment


def settings(**changes: object) -> ServeSettings:
    """Of one replica on one core."""
    values = {"home": HOME.root, "models": (MODEL,), "catalogue": f"{__name__}:FixedCatalogue", **changes}
    return ServeSettings.model_validate(values)


@dataclass
class Load:
    """Seconds of each request, from when it was due, and the statuses; 0 for a connection that broke."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    began: float = 0.0
    ended: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second that were answered with a picture."""
        return self.statuses[200] / (self.ended - self.began)

    def percentile(self, part: float) -> float:
        """Of the seconds."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


class Client:
    """One connection that is kept; a plain one, since clients share the machine's cores with the server."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, index: int, model: str | None = None) -> int:
        """The status of a request for a picture, 0 where the connection broke."""
        body = {"prompt": PROMPT.format(index), "seed": index} | ({} if model is None else {"model": model})
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self._address, timeout=120)
            self._connection.request("POST", "/v1/images", json.dumps(body), {"Content-Type": "application/json"})
            reply = self._connection.getresponse()
            reply.read()
            return reply.status
        except (OSError, http.client.HTTPException):
            self.close()
            return 0

    def close(self) -> None:
        """The next request opens a new connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def load(url: str, clients: int, requests: int | None = None, seconds: float | None = None, rate: float = 0.0) -> Load:
    """So many requests, or as many as fit in so many seconds, of different pictures.

    rate: requests a second that are due, whether those before are answered or not; 0: each client sends its next when
    the last is answered.
    """
    done, places, lock = Load(began=time.perf_counter()), itertools.count(), threading.Lock()

    def work() -> None:
        client = Client(url)
        while True:
            with lock:
                place = next(places)
            due = done.began + place / rate if rate else time.perf_counter()
            if (requests is not None and place >= requests) or (seconds is not None and due >= done.began + seconds):
                break
            time.sleep(max(0.0, due - time.perf_counter()))
            status = client.ask(place)
            with lock:
                done.seconds.append(time.perf_counter() - due)
                done.statuses[status] += 1
        client.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.ended = time.perf_counter()
    return done


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def serving_processes(root: int) -> dict[str, float]:
    """Resident MB of every process of Serve and Ray below the process `root`, by name and id."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name in brackets may hold blanks.
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below, found = {root}, {}
    while True:
        more = {pid for pid, parent in parents.items() if parent in below} - below
        if not more:
            break
        below |= more
    for pid in sorted(below):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").split()
            name = "driver" if pid == root else Path(words[0]).name.partition(".")[0] if words else ""
            if name.startswith(("ray::Serve", "ray::Proxy", "gcs_server", "raylet", "driver")):
                found[f"{name} {pid}"] = round(resident_mb(pid), 1)
        except OSError:
            continue
    return found
