"""A cluster profile: one small file of sizes, image, storage and addresses, from which every other file is rendered."""

import difflib
import hashlib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from models.contract import Settings
from orchestration.clusters.addresses import (
    Bind,
    FolderPath,
    HttpUrl,
    Line,
    Name,
    Network,
    Port,
    StoreUrl,
    Text,
    Word,
)
from orchestration.config import first_problem
from orchestration.errors import RequestError
from orchestration.serving.settings import ModelName

Count = Annotated[int, Field(ge=0, le=10_000)]
OFF = (False, None, "off", "none", "disabled", "no")


class Image(Settings):
    """What every machine runs."""

    name: Word = Field(description="of the container image, without a tag")
    tag: str | None = Field(
        None, pattern=r"^[\w][\w.-]{0,127}$", description="[default: the versions of t2i and ray, and cpu or gpu]"
    )
    gpu: bool = Field(False, description="with the CUDA build of torch and of faiss")
    pull_secret: Name | None = Field(None, description="Kubernetes secret of the registry")


class Token(Settings):
    """Who may use the cluster. It cannot be turned off: a Ray without a token runs what anyone sends it."""

    mode: str = Field("token", description="token")
    secret: Name = Field("t2i-ray-token", description="Kubernetes secret with the key auth_token")
    file: Word = Field("~/.ray/auth_token", description="on other machines; readable by its owner alone")

    @field_validator("mode", mode="before")
    @classmethod
    def _on(cls, mode: object) -> object:
        if mode != "token":
            raise ValueError(
                f"{mode!r} would leave the cluster to anyone who reaches it: write token (the secret is made by "
                "kuberay/secrets.sh, the file by ray get-auth-token --generate)"
            )
        return mode


class Storage(Settings):
    """What all machines share."""

    home: FolderPath = Field("/mnt/t2i", description="T2I_HOME: a folder on a file system that every machine mounts")
    claim: Name = Field("t2i-home", description="Kubernetes volume claim of that file system (ReadWriteMany)")
    nfs: Word | None = Field(None, description="HOST:/EXPORT, mounted there by the machines that ray up starts")
    stages: StoreUrl | None = Field(None, description="copies of stages, T2I_STAGES_REMOTE  [default: none]")
    artifacts: StoreUrl | None = Field(None, description="MLflow's artifacts  [default: a folder in the home]")
    endpoint: HttpUrl | None = Field(None, description="of an S3-compatible storage  [default: AWS]")
    secret: Name | None = Field(None, description="Kubernetes secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")

    @model_validator(mode="after")
    def _one_storage(self) -> Self:
        if self.endpoint and not any(url and url.startswith("s3://") for url in (self.stages, self.artifacts)):
            raise ValueError("endpoint is that of an S3-compatible storage, and neither stages nor artifacts is s3://")
        return self


class Instance(Settings):
    """The machine type, where `ray up` starts it."""

    aws: str | None = Field(None, pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$", description="such as g6.2xlarge")
    gcp: str | None = Field(None, pattern=r"^[a-z0-9-]+$", description="such as g2-standard-8")
    gcp_accelerator: str | None = Field(None, pattern=r"^[a-z0-9-]+$", description="such as nvidia-l4")


class Machine(Settings):
    """One machine. CPUs and memory are all that Ray and what it runs may use."""

    cpus: int = Field(ge=1, le=1024)
    memory_gib: int = Field(ge=2, le=24_576, description="limit and request in one")
    disk_gib: int = Field(100, ge=20, le=65_536, description="of machines that ray up starts")
    shm_gib: int | None = Field(None, ge=1, description="/dev/shm, part of the memory  [default: three tenths of it]")
    instance: Instance = Instance()

    @property
    def shm(self) -> int:
        """GiB of /dev/shm: Ray takes three tenths of the memory for its objects, and torch's loaders use it too."""
        return self.shm_gib or max(1, self.memory_gib * 3 // 10)

    @model_validator(mode="after")
    def _shm_fits(self) -> Self:
        if self.shm >= self.memory_gib:
            raise ValueError(
                f"shm_gib is {self.shm}, all of the memory of {self.memory_gib} GiB: lower it, or add memory"
            )
        return self


class Head(Machine):
    """The machine that knows the others. Nothing trains on it unless it `works`."""

    cpus: int = Field(2, ge=1, le=1024)
    memory_gib: int = Field(8, ge=2, le=24_576, description="limit and request in one")
    trial_slots: Count = Field(2, description="trials at a time whose workers are elsewhere")
    works: bool = Field(False, description="whether its CPUs are lent to work, too")


class Group(Machine):
    """Machines that are alike."""

    name: Name
    gpus: int = Field(0, ge=0, le=16)
    min: Count = Field(1, description="machines that are always there")
    max: Count = Field(1, description="machines under load")
    spot: bool = Field(False, description="may be taken away at any moment; training goes on from its checkpoint")
    processes: int | None = Field(None, ge=1, description="Ray Train workers a machine  [default: one a GPU, else one]")

    @property
    def workers(self) -> int:
        """Ray Train workers a machine; each may also be a trial of its own."""
        return self.processes or self.gpus or 1

    @property
    def threads(self) -> int:
        """Threads of torch a worker: spinning threads of two workers on one core take most of its time."""
        return max(1, self.cpus // self.workers)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.max < max(self.min, 1):
            raise ValueError(f"group {self.name}: max is {self.max}, below {max(self.min, 1)}: raise it")
        if self.workers > self.cpus:
            raise ValueError(
                f"group {self.name}: {self.workers} workers need a CPU each, and a machine has {self.cpus}"
            )
        if self.gpus and self.workers > self.gpus:
            raise ValueError(
                f"group {self.name}: {self.workers} workers need a GPU each, and a machine has {self.gpus}"
            )
        return self


class Postgres(Settings):
    """The database server of MLflow and of Optuna. The password is in a secret, and reaches both as PGPASSWORD."""

    host: Word
    port: int = Field(5432, ge=1, le=65535)
    user: Word = "t2i"
    secret: Name = Field("t2i-postgres", description="Kubernetes secret with the key password")
    mlflow: Name = Field("mlflow", description="database")
    optuna: Name = Field("optuna", description="database")

    def url(self, database: str) -> str:
        """As SQLAlchemy has it, without a password: libpq reads PGPASSWORD."""
        return f"postgresql+psycopg://{self.user}@{self.host}:{self.port}/{database}"


class Mlflow(Settings):
    """The tracking server."""

    url: HttpUrl | None = Field(None, description="one that is there already  [default: one is rendered]")
    secret: Name | None = Field(None, description="Kubernetes secret with username and password for that one")
    host: Bind = Field("127.0.0.1", description="what hosts/start-mlflow.sh listens on")
    port: Port = 5000
    cpus: int = Field(1, ge=1, le=64)
    memory_gib: int = Field(2, ge=1, le=256)


class Dashboard(Settings):
    """Ray's dashboard and Jobs API, outside Kubernetes."""

    host: Bind = "127.0.0.1"
    port: Port = 8265


class Serve(Settings):
    """The endpoint."""

    group: Name | None = Field(
        None, description="where it draws  [default: the first that is not spot, else the first]"
    )
    models: tuple[ModelName, ...] = Field((), description="what is served  [default: every model with a champion]")
    replicas: int = Field(1, ge=1, le=1024)
    max_replicas: int | None = Field(None, ge=1, le=1024, description="more under load  [default: none]")
    cpus: int = Field(1, ge=1, le=1024, description="CPUs a replica")
    port: Port = 8000
    secret: Name = Field("t2i-serve-token", description="Kubernetes secret with the key token")
    gateway_class: Name | None = Field(
        None, description="of the Gateway API: upgrades shift traffic step by step  [default: all at once]"
    )
    step_percent: int = Field(20, ge=1, le=100, description="of the traffic that one step shifts")
    interval_s: int = Field(30, ge=1, le=3600, description="between steps")
    surge_percent: int = Field(50, ge=0, le=100, description="of the old cluster that the new one may add")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below replicas, {self.replicas}: raise it")
        return self


class Job(Settings):
    """A command on a cluster of its own that ends with it. Tried again, it goes on where it was."""

    recipe: Word = "xmcgan_laptop"
    workers: int = Field(1, ge=1, le=10_000, description="Ray Train workers")
    arguments: tuple[Word, ...] = Field((), description="other words of the command")
    backoff: int = Field(3, ge=0, le=100, description="times that it is tried again")
    deadline_hours: float = Field(24, gt=0, le=8760)
    start_minutes: int = Field(30, ge=1, le=1440, description="machines must be there by then")
    keep_minutes: int = Field(60, ge=0, le=10_080, description="what is left of it can be looked at so long")


class Campaign(Job):
    """A campaign on a cluster of its own."""

    trials: int = Field(8, ge=1)
    concurrent: int = Field(2, ge=1, le=10_000)


class Kubernetes(Settings):
    """Where in Kubernetes."""

    namespace: Name = "t2i"
    operator_namespace: Name = Field("kuberay-system", description="where the KubeRay operator runs")
    spot_labels: dict[Word, Text] = Field(
        default_factory=dict, description="labels, and taints, of spot nodes, such as cloud.google.com/gke-spot: 'true'"
    )
    client_namespaces: tuple[Name, ...] = Field((), description="which may ask the endpoint, beside its own")
    metrics_namespace: Name | None = Field(None, description="which may read metrics, beside its own")


class Aws(Settings):
    """`ray up` on AWS."""

    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")
    zones: tuple[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], ...] = ()
    image_id: str | None = Field(None, pattern=r"^ami-[0-9a-f]+$", description="[default: Ray's, of the region]")
    instance_profile: str | None = Field(None, pattern=r"^arn:[\w:/+=,.@-]+$", description="rights of the machines")
    ssh_from: tuple[Network, ...] = Field(min_length=1, description="networks that may reach port 22")
    ssh_user: Name = "ubuntu"


class Gcp(Settings):
    """`ray up` on Google Cloud."""

    project: str = Field(pattern=r"^[a-z][a-z0-9-]{4,28}[a-z0-9]$")
    region: str = Field(pattern=r"^[a-z]+(-[a-z0-9]+)+$")
    zone: str = Field(pattern=r"^[a-z]+(-[a-z0-9]+)+-[a-z]$")
    source_image: Word = Field(
        "projects/deeplearning-platform-release/global/images/family/common-cpu", description="with docker"
    )
    gpu_image: Word | None = Field(
        None,
        description="of machines with GPUs: with docker, NVIDIA's container toolkit and driver, or what installs it",
    )
    ssh_user: Name = "ubuntu"


class Slurm(Settings):
    """A batch system: head and workers are one job."""

    partition: Word | None = None
    account: Word | None = None
    hours: float = Field(24, gt=0, le=8760)
    group: Name | None = Field(None, description="whose machines, `max` of them  [default: the first]")
    setup: tuple[Line, ...] = Field((), description="shell lines that make t2i a command, such as a module and a venv")


class Host(Settings):
    """A machine that is there."""

    address: Word
    group: Name


class Hosts(Settings):
    """Machines that are there, with `ray start` on each."""

    head: Word = Field(description="address of the head that the others reach")
    workers: tuple[Host, ...] = ()
    port: Port = 6379
    folder: FolderPath = Field("/var/tmp/t2i-ray", description="of Ray's own files, on each")
    setup: tuple[Line, ...] = Field((), description="shell lines that make t2i a command, such as a venv")


class Profile(Settings):
    """A cluster, whatever it runs on."""

    name: Annotated[Name, Field(max_length=30)]
    image: Image
    versions: dict[str, Text] = Field(default_factory=dict, description="that the image is known to hold")
    token: Token = Token()
    storage: Storage = Storage()
    head: Head = Head()
    workers: tuple[Group, ...] = Field(min_length=1)
    postgres: Postgres | None = Field(None, description="[default: sqlite in the home: for trying]")
    mlflow: Mlflow = Mlflow()
    dashboard: Dashboard = Dashboard()
    serve: Serve = Serve()
    train: Job = Job()
    tune: Campaign = Campaign()
    kubernetes: Kubernetes = Kubernetes()
    aws: Aws | None = None
    gcp: Gcp | None = None
    slurm: Slurm | None = None
    hosts: Hosts | None = None

    @field_validator("token", mode="before")
    @classmethod
    def _token(cls, token: object) -> object:
        return {"mode": token} if token in OFF else token

    @model_validator(mode="after")
    def _whole(self) -> Self:
        from orchestration.clusters.capacity import first_shortage

        problem = first_shortage(self)
        if problem:
            raise ValueError(problem)
        return self

    def group(self, name: str | None) -> Group:
        """The group of this name, the first by default."""
        return next((group for group in self.workers if group.name == name), self.workers[0])

    @property
    def serving_group(self) -> Group:
        """Where the endpoint draws."""
        steady = next((group for group in self.workers if not group.spot), self.workers[0])
        return self.group(self.serve.group or steady.name)


def read_profile(file: Path) -> tuple[Profile, str]:
    """The profile in a YAML file, and the first 12 digits of its sha256. Raises RequestError."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RequestError(f"profile {file} cannot be read ({error.strerror}): name a YAML file") from error
    try:
        values = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"profile {file} is no YAML: {' '.join(str(error).split())}") from error
    return parse_profile(values, str(file)), hashlib.sha256(data).hexdigest()[:12]


def parse_profile(values: object, where: str) -> Profile:
    """The profile of plain values. Raises RequestError that begins with `where`."""
    if not isinstance(values, dict):
        raise RequestError(f"profile {where}: a profile is a table of fields: begin with `name:` and `image:`")
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        raise RequestError(f"profile {where}: {_sentence(error)}") from error


def _sentence(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{where} is missing: add it"
    if problem["type"] != "extra_forbidden":
        return first_problem(error)
    parent = _model_at(Profile, problem["loc"][:-1])
    known = list(parent.model_fields) if parent else []
    near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=3, cutoff=0.5)
    return f"there is no field {where!r}; {'near it' if near else 'there are'}: {', '.join(near or known)}"


def _model_at(model: type[Settings], path: tuple[int | str, ...]) -> type[Settings] | None:
    """The settings class that a path leads to."""
    for part in path:
        if isinstance(part, str):
            found = _settings_in(model.model_fields[part].annotation) if part in model.model_fields else None
            if found is None:
                return None
            model = found
    return model


def _settings_in(annotation: Any) -> type[Settings] | None:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    if get_origin(annotation) in (Union, UnionType, tuple, Annotated, Literal):
        return next((found for each in get_args(annotation) if (found := _settings_in(each))), None)
    return None
