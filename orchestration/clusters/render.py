"""From a profile to the files that start a cluster, all of them or none."""

import hashlib
import json
import math
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from orchestration.campaigns.execution import SLOT
from orchestration.clusters.capacity import machines_for, machines_for_serving
from orchestration.clusters.profile import Campaign, Job, Profile, read_profile
from orchestration.clusters.versions import Versions, image_of, project_versions, require_versions
from orchestration.errors import RequestError
from orchestration.recipes import get_recipe
from orchestration.serve_commands import deployment
from orchestration.serving.settings import TOKEN_VARIABLE, ServeSettings
from orchestration.stages import REMOTE, hidden_sibling

RECORD = "rendered.json"
KINDS = {
    "kuberay": (
        "raycluster.yaml",
        "rayjob-train.yaml",
        "rayjob-tune.yaml",
        "rayservice.yaml",
        "networkpolicy.yaml",
        "mlflow.yaml",
        "secrets.sh",
    ),
    "ray-up": ("aws.yaml", "aws-group.sh", "gcp.yaml"),
    "slurm": ("t2i.sbatch",),
    "hosts": ("t2i.env", "start-head.sh", "start-worker.sh", "start-mlflow.sh", "stop.sh"),
    "container": ("Containerfile", "Containerfile.cpu"),
}
SECTIONS = {"ray-up": ("aws", "gcp"), "slurm": ("slurm",), "hosts": ("hosts",)}
"""The part of a profile that a kind is rendered from; the others are rendered from any."""
PROGRAMS = (".sh", ".sbatch")
MLFLOW = ("mlflow.yaml", "start-mlflow.sh")
"""Not rendered where the profile names a server that is there already."""
EVERY_ADDRESS = "0.0.0.0"
"""What a server in a pod listens on: the pod's own addresses, which the network policy beside it closes."""
USER = 1000
"""The user of the image; Kubernetes is told its number, since it cannot tell that a name is not root."""
EXTRAS = {"postgresql": "postgres", "s3": "s3", "gs": "gs", "aws": "aws", "gcp": "gcp"}
"""Extras of the project that reach what a profile names."""


@dataclass(frozen=True)
class Rendered:
    """Files by their path in the folder, and what they were made from."""

    files: Mapping[str, str]
    profile: str
    digest: str
    versions: Versions
    image: str

    def record(self) -> str:
        """What RECORD holds."""
        digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(self.files.items())}
        told = {"profile": self.profile, "digest": self.digest, "image": self.image, "versions": self.versions.line}
        return json.dumps({"format": 1, **told, "files": digests}, indent=1) + "\n"


def render_file(file: Path, only: Iterable[str] = ()) -> Rendered:
    """The files of the profile in a file. Raises RequestError for a wrong profile, recipe or kind."""
    profile, digest = read_profile(file)
    return render(profile, file.name, digest, only)


def render(profile: Profile, name: str, digest: str, only: Iterable[str] = ()) -> Rendered:
    """The files of a profile. name, digest: of its file, told in each. only: kinds  [default: all it has parts for].

    Raises RequestError for a kind that the profile has no part for, an unknown recipe, and versions that differ.
    """
    versions = project_versions()
    require_versions(profile, versions, name)
    for field, job in (("train", profile.train), ("tune", profile.tune)):
        try:
            get_recipe(job.recipe)
        except RequestError as error:
            raise RequestError(f"profile {name}: {field}.recipe: {error}") from error
    image = image_of(profile, versions)
    environment = _environment()
    common = _context(profile, versions, image) | {"profile_name": name, "profile_digest": digest}
    files = {}
    for kind in _kinds(profile, name, only):
        for each in KINDS[kind]:
            if kind == "ray-up" and getattr(profile, re.split(r"[-.]", each)[0]) is None:
                continue
            if profile.mlflow.url and each in MLFLOW:
                continue
            template = environment.get_template(f"{kind}/{each}.j2")
            text = template.render(common | {"file": f"{kind}/{each}"}).rstrip() + "\n"
            files[f"{kind}/{each}"] = re.sub(r"\n+", "\n", text) if each.endswith(".yaml") else text
    return Rendered(files, name, digest, versions, image)


def _kinds(profile: Profile, name: str, only: Iterable[str]) -> list[str]:
    chosen = list(only)
    for kind in chosen or KINDS:
        sections = SECTIONS.get(kind, ())
        if not sections or any(getattr(profile, section) is not None for section in sections):
            continue
        if chosen:
            raise RequestError(f"profile {name} has no {' and no '.join(sections)}, which {kind} is made from: add it")
    return [
        kind
        for kind in KINDS
        if (not chosen or kind in chosen)
        and (kind not in SECTIONS or any(getattr(profile, section) is not None for section in SECTIONS[kind]))
    ]


def _environment() -> jinja2.Environment:
    folder = resources.files("clusters").joinpath("templates")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(folder)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["json"] = json.dumps
    environment.filters["sh"] = shlex.quote
    return environment


def _context(profile: Profile, versions: Versions, image: str) -> dict[str, Any]:
    p = profile
    mlflow = f"{p.name}-mlflow"
    names = [f"{mlflow}{end}" for end in ("", f".{p.kubernetes.namespace}", f".{p.kubernetes.namespace}.svc")]
    tracking = p.mlflow.url or f"http://{names[-1]}:{p.mlflow.port}"
    return {
        "p": p,
        "v": versions,
        "image": image,
        "slot": SLOT,
        "user": USER,
        "every_address": EVERY_ADDRESS,
        "serve_token": TOKEN_VARIABLE,
        "tracking": tracking,
        "mlflow_hosts": ",".join(f"{each}:{p.mlflow.port}" for each in (*names, "localhost", "127.0.0.1")),
        "mlflow_own_hosts": f"{_in_url(p.mlflow.host)}:{p.mlflow.port},localhost:*,127.0.0.1:*",
        "mlflow_store": p.postgres.url(p.postgres.mlflow) if p.postgres else f"sqlite:///{p.storage.home}/mlflow.db",
        "artifacts": p.storage.artifacts or f"{p.storage.home}/mlflow-artifacts",
        "variables": _variables(p),
        "secrets": _secrets(p),
        "train": entrypoint("train", p.train, p, tracking),
        "tune": entrypoint("tune", p.tune, p, tracking),
        "train_machines": machines_for(p, p.train),
        "tune_machines": machines_for(p, p.tune),
        "serve_machines": machines_for_serving(p),
        "serve_config": yaml.safe_dump(_endpoint(p, tracking), sort_keys=False, width=120),
        # One command starts the workers of all groups, so it has the threads of the smallest.
        "threads": min(group.threads for group in p.workers),
        "slurm_group": p.group(p.slurm.group) if p.slurm else None,
        "extras": _extras(p),
        "permissions": [_ssh_rule(network) for network in p.aws.ssh_from] if p.aws else [],
        "seconds": lambda hours: math.ceil(hours * 3600),
        "clock": lambda hours: f"{math.ceil(hours * 60) // 60:02d}:{math.ceil(hours * 60) % 60:02d}:00",
    }


def entrypoint(command: str, job: Job, profile: Profile, tracking: str) -> str:
    """The command of a job, one line; a second try of it goes on where the first was."""
    words = ["t2i", command, job.recipe, "--workers", str(job.workers)]
    if isinstance(job, Campaign):
        words += ["--trials", str(job.trials), "--concurrent", str(job.concurrent)]
        words += ["--storage", profile.postgres.url(profile.postgres.optuna)] if profile.postgres else []
    return " ".join([*words, *job.arguments, "--home", profile.storage.home, "--mlflow-uri", tracking])


def _endpoint(profile: Profile, tracking: str) -> dict[str, Any]:
    serve = profile.serve
    settings = ServeSettings(
        home=Path(profile.storage.home),
        tracking_uri=tracking,
        models=serve.models,
        device="cuda" if profile.serving_group.gpus else "cpu",
        cpus=serve.cpus,
        replicas=serve.replicas,
        max_replicas=serve.max_replicas,
    )
    return deployment(settings, EVERY_ADDRESS, serve.port)


def _variables(profile: Profile) -> dict[str, str]:
    """Of every machine; nothing secret."""
    found = {
        "T2I_HOME": profile.storage.home,
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if profile.storage.stages:
        found[REMOTE] = profile.storage.stages
    if profile.storage.endpoint:
        # Of S3 alone: without _S3 every service of AWS is looked for there, and ray up starts no machine.
        found |= dict.fromkeys(("AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL"), profile.storage.endpoint)
    return found


def _secrets(profile: Profile) -> dict[str, tuple[str, str]]:
    """Variables that hold a secret: the Kubernetes secret of each, and its key there."""
    found = {}
    if profile.postgres:
        found["PGPASSWORD"] = (profile.postgres.secret, "password")
    if profile.storage.secret:
        found |= {name: (profile.storage.secret, name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    if profile.mlflow.secret:
        found["MLFLOW_TRACKING_USERNAME"] = (profile.mlflow.secret, "username")
        found["MLFLOW_TRACKING_PASSWORD"] = (profile.mlflow.secret, "password")
    return found


def _in_url(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host


def _ssh_rule(network: str) -> dict[str, Any]:
    """As EC2 takes it: port 22 for one network."""
    ranges = {"Ipv6Ranges": [{"CidrIpv6": network}]} if ":" in network else {"IpRanges": [{"CidrIp": network}]}
    return {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, **ranges}


def _extras(profile: Profile) -> list[str]:
    urls = [url for url in (profile.storage.stages, profile.storage.artifacts) if url]
    wanted = {url.partition(":")[0] for url in urls} | ({"postgresql"} if profile.postgres else set())
    wanted |= {cloud for cloud in ("aws", "gcp") if getattr(profile, cloud) is not None}
    return sorted(EXTRAS[each] for each in wanted if each in EXTRAS)


def write(rendered: Rendered, folder: Path) -> None:
    """The folder holds the files and nothing else; never some of them.

    Raises RequestError for a folder that something else was put into, or whose files were changed, and where it cannot
    be written.
    """
    folder = folder.absolute()
    _require_ours(folder)
    working = hidden_sibling(folder)
    try:
        for name, text in {**rendered.files, RECORD: rendered.record()}.items():
            path = working / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755 if path.suffix in PROGRAMS else 0o644)
        before = hidden_sibling(folder)
        if folder.exists():
            folder.rename(before)
        try:
            working.rename(folder)
        except OSError:
            if before.exists():
                before.rename(folder)
            raise
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise RequestError(
            f"--out {folder} cannot be written ({error.strerror}): name a folder in one that can"
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _require_ours(folder: Path) -> None:
    """RequestError when replacing the folder would lose something that was not rendered."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise RequestError(f"--out {folder} is no folder: name another")
    digests = _recorded(folder / RECORD)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name == RECORD:
            continue
        if path.is_symlink() or digests.get(name) != hashlib.sha256(path.read_bytes()).hexdigest():
            raise RequestError(
                f"--out {folder} holds {name}, which was not rendered as it is, and would be lost: name another "
                "folder, or put your change into the profile and remove that file"
            )


def _recorded(record: Path) -> dict[str, str]:
    """The digests of what was rendered into a folder; none when nothing was."""
    try:
        digests = json.loads(record.read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return digests if isinstance(digests, dict) else {}
