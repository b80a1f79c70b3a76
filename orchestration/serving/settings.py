"""The settings of the endpoint: the `args` of its Serve application, wherever it runs."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestration.serving.inputs import MODEL_PATTERN

TOKEN_VARIABLE = "T2I_SERVE_TOKEN"
NO_CHAMPION = "train one and run t2i promote RUN, or t2i quickstart"
"""What mends it, where there is nothing to serve."""

ModelName = Annotated[str, Field(pattern=MODEL_PATTERN)]
"""NAME or NAME@champion, the champion wherever it moves; NAME@VERSION, one version for good."""


class BatchSettings(BaseModel):
    """What `user_config` of the deployment `painter` holds; it can be changed while serving."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch: int = Field(16, ge=1, le=1024, description="pictures drawn at once, at most")
    wait_s: float = Field(0.01, ge=0, le=10, description="how long a picture waits for company")


class ServeSettings(BatchSettings):
    """The `args` of the application."""

    home: Path
    tracking_uri: str | None = Field(None, description="of MLflow  [default: the home's own]")
    models: tuple[ModelName, ...] = Field((), description="what is served  [default: every model with a champion]")
    device: str = Field("cpu", pattern=r"^(cpu|cuda)$", description="cuda takes one GPU a replica")
    cpus: float = Field(1.0, gt=0, le=1024, description="CPUs a replica, and its threads")
    replicas: int = Field(1, ge=1, le=1024)
    max_replicas: int | None = Field(None, ge=1, le=1024, description="more under load, up to so many  [default: none]")
    max_queued: int = Field(256, ge=1, le=1_000_000, description="requests that may wait; one more is refused as busy")
    timeout_s: float = Field(60.0, gt=0, le=3600, description="longest time a request may take")
    keep_warm_s: float = Field(
        600.0, ge=10, le=1_000_000, description="a version that was replaced stays loaded so long, to go back to"
    )
    poll_s: float = Field(2.0, ge=0.1, le=3600, description="the registry is asked for its champions so often")
    models_per_replica: int = Field(
        2, ge=1, le=64, description="versions that a replica keeps beside these, because they were asked for"
    )
    log_prompts: bool = Field(False, description="whether the log may hold what people write")
    painter: str = Field("orchestration.painter:Painter", pattern=r"^[\w.]+:\w+$", description="module:Class")
    catalogue: str = Field(
        "orchestration.serving.catalogue:RegistryCatalogue", pattern=r"^[\w.]+:\w+$", description="module:Class"
    )

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below replicas, {self.replicas}: raise it")
        return self

    @property
    def batches(self) -> BatchSettings:
        """The part that can be changed while serving."""
        return BatchSettings(max_batch=self.max_batch, wait_s=self.wait_s)

    def args(self) -> dict[str, object]:
        """As plain values, for a Serve configuration file."""
        return self.model_dump(mode="json")


def is_loopback(host: str) -> bool:
    """Whether an address is one that only this machine reaches."""
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
