"""What was seen, as plain data: everything that the checks read and the page shows. Nothing here looks at anything."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

MIB = 1 << 20
GIB = 1 << 30
SECTIONS = ("versions", "machine", "gpus", "clock", "access", "home", "stages", "mlflow", "optuna")
"""Fields of NodeFacts that a probe fills, in the order in which they are asked for."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A probe that gave no facts. missing: the module that could not be imported, where that was the reason. busy: it
    was not tried, as others use what it needs."""

    reason: str
    timed_out: bool = False
    missing: str = ""
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Versions:
    """packages: installed version by name; what is not installed is not in it. code: digest of t2i's own source, or
    empty where it cannot be imported. weights: packages of pretrained weights, and whether they are there."""

    packages: Mapping[str, str]
    code: str
    weights: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Machine:
    """Sizes are in bytes. threads: OMP_NUM_THREADS that the node's processes inherit, or none."""

    host: str
    address: str
    cores: int
    memory: int
    shm: int
    shm_free: int
    open_files: int
    temp: str
    temp_total: int
    temp_free: int
    threads: int | None
    ray_cpus: float | None = None
    ray_gpus: float = 0.0
    object_store: int = 0
    slots: float = 0.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """memory: in bytes."""

    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class Gpus:
    """What torch sees. driver: whether NVIDIA's driver is there. cuda: what torch was built for, or empty."""

    seen: tuple[Gpu, ...]
    driver: bool
    cuda: str


@dataclass(frozen=True, slots=True)
class Clock:
    """offset: the node's clock less this command's, in seconds, known to within half of round_trip."""

    offset: float
    round_trip: float


@dataclass(frozen=True, slots=True)
class Port:
    """A port that a process of Ray listens on, at an address (:: and 0.0.0.0 are all of the node's)."""

    role: str
    address: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only the node itself reaches it."""
        return self.address.removeprefix("::ffff:").startswith("127.") or self.address == "::1"

    @property
    def everywhere(self) -> bool:
        """Whether it listens on every address of the node."""
        return self.address.removeprefix("::ffff:") in ("0.0.0.0", "::", "")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may come in. mode: RAY_AUTH_MODE of the node's Ray, or empty. token_file: the file its token is read from, if
    there is one; token_mode: that file's permissions. public: addresses of the node that the internet can route."""

    mode: str
    token_file: str
    token_mode: int
    ports: tuple[Port, ...] = ()
    public: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Storage:
    """One folder or URL, tried from one node.

    status: ok, absent, not a folder, read-only, denied, full, no driver or failed. tried: the folder that was written
    to: a parent where the folder itself is still to be made. seen: nodes whose file was read back there. Speeds are in
    bytes a second, sizes in bytes; 0 is unknown.
    """

    status: str
    reason: str = ""
    tried: str = ""
    filesystem: str = ""
    free: int = 0
    total: int = 0
    write_speed: float = 0.0
    read_speed: float = 0.0
    seen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reached:
    """A server or database, asked from one node. status: ok, not yet, no driver or unreachable."""

    status: str
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Ring:
    """One all-reduce of `size` bytes among `ranks` processes. correct: whether every rank got the sum."""

    backend: str
    ranks: int
    size: int
    seconds: float
    correct: bool

    @property
    def bandwidth(self) -> float:
        """Bus bandwidth in bytes a second: 2 (n-1)/n times the size over the time, as NCCL's own tests count it
        (nccl-tests, doc/PERFORMANCE.md)."""
        return 2 * (self.ranks - 1) / self.ranks * self.size / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class FailedRing:
    """An all-reduce that was not done. ranks: what each rank that failed had to say. busy: it was not even tried, as
    others use what it needs."""

    backend: str
    ranks: Mapping[str, str]
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Jobs:
    """The Jobs API, asked without a token. url: empty where the cluster has no dashboard. code: the HTTP status of the
    answer; none: no answer, for `reason`."""

    url: str
    code: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node. What was not asked for is None."""

    name: str
    head: bool = False
    versions: Versions | Failed | None = None
    machine: Machine | Failed | None = None
    gpus: Gpus | Failed | None = None
    clock: Clock | Failed | None = None
    access: Access | Failed | None = None
    home: Storage | Failed | None = None
    stages: Storage | Failed | None = None
    mlflow: Reached | Failed | None = None
    optuna: Reached | Failed | None = None

    @property
    def silent(self) -> bool:
        """Whether every probe failed."""
        found = [getattr(self, field.name) for field in fields(self)[2:]]
        answers = [fact for fact in found if fact is not None]
        return bool(answers) and all(isinstance(fact, Failed) for fact in answers)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is looked at. address: the cluster's; none: this machine alone. URLs are whole, with their passwords."""

    home: str
    address: str | None = None
    mlflow: str | None = None
    optuna: str | None = None
    stages: str | None = None
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was seen. dead: nodes that Ray has given up. gcs_open: whether Ray itself answered without a
    token; none: not asked. client: Failed or Access of the machine the command runs on."""

    asked: Asked
    nodes: tuple[NodeFacts, ...]
    client: Access | Failed | None = None
    rings: tuple[Ring | FailedRing, ...] = ()
    jobs: Jobs | None = None
    gcs_open: bool | None = None
    dead: tuple[str, ...] = ()

    def having(self, section: str, kind: Callable[..., Any]) -> Iterator[tuple[NodeFacts, Any]]:
        """Nodes whose section is facts of that type, with them."""
        for node in self.nodes:
            fact = getattr(node, section)
            if isinstance(fact, kind):  # type: ignore[arg-type]
                yield node, fact


def shown_url(url: str) -> str:
    """A URL without its user and password, which may have a slash in it, and without passwords among its options."""
    hidden = re.sub(r"//\S*@", "//***@", url)
    return re.sub(r"(?i)((?:password|passwd|pwd|token|secret|key)[^=&\s]*=)[^&\s]*", r"\1***", hidden)
