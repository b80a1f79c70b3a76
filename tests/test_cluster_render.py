"""Rendered files: real schemas and Ray's own validators pass them, and every fault that is planted is found."""

import json
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration import cluster_commands
from orchestration.cli import cli
from orchestration.clusters.check import check
from orchestration.clusters.findings import at, quantity
from orchestration.clusters.profile import parse_profile
from orchestration.clusters.render import KINDS, RECORD, Rendered, render, render_file, write
from orchestration.clusters.schemas import Schemas
from orchestration.clusters.versions import project_versions
from orchestration.errors import RequestError
from orchestration.serve_commands import deployment
from orchestration.serving.settings import ServeSettings
from tests.cli_support import T2i, runner

CLUSTERS = Path(__file__).parents[1] / "clusters"
NAMES = ("small", "gpu")
if "cluster" not in cli.commands:
    cluster_commands.add_to(cli)


@pytest.fixture(scope="module")
def rendered() -> dict[str, Rendered]:
    return {name: render_file(CLUSTERS / "profiles" / f"{name}.yaml") for name in NAMES}


@pytest.fixture(scope="module")
def schemas(shared_data: Path) -> Schemas:
    return Schemas(shared_data / "kuberay-crds")


@pytest.fixture
def t2i(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    return runner(tmp_path / "home", tmp_path / "here", monkeypatch, capsys)


def documents(rendered: Rendered, name: str) -> list[Any]:
    return list(yaml.safe_load_all(rendered.files[name]))


# What is right.


@pytest.mark.parametrize("name", NAMES)
def test_schemas_and_validators_pass_every_file(
    name: str, rendered: dict[str, Rendered], schemas: Schemas, tmp_path: Path
) -> None:
    write(rendered[name], tmp_path / "out")
    names, findings = check(tmp_path / "out", schemas)
    assert [finding.line for finding in findings] == []
    assert set(names) == set(rendered[name].files)


def test_both_examples_together_render_every_file(rendered: dict[str, Rendered]) -> None:
    every = {f"{kind}/{file}" for kind, files in KINDS.items() for file in files}
    assert {file for each in rendered.values() for file in each.files} == every


machines = st.builds(
    lambda cpus, memory, gpus, least, more, spot: {
        "cpus": cpus,
        "memory_gib": memory,
        "gpus": min(gpus, cpus),
        "min": least,
        "max": max(least + more, 1),
        "spot": spot,
    },
    st.integers(1, 64),
    st.integers(2, 512),
    st.integers(0, 8),
    st.integers(0, 5),
    st.integers(0, 5),
    st.booleans(),
)
profiles = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"\A[a-z]([a-z0-9-]{0,10}[a-z0-9])?\Z"),
        "image": st.fixed_dictionaries({"name": st.just("t2i"), "gpu": st.just(True)}),
        "workers": st.lists(machines, min_size=1, max_size=3),
        "head": st.fixed_dictionaries({"cpus": st.integers(1, 8), "works": st.booleans()}),
        "kubernetes": st.just({"spot_labels": {"node/spot": "true"}, "metrics_namespace": "monitoring"}),
        "train": st.fixed_dictionaries({"recipe": st.just("xmcgan_laptop"), "deadline_hours": st.floats(0.01, 999)}),
        "tune": st.just({"recipe": "xmcgan_laptop", "concurrent": 1}),
        "serve": st.fixed_dictionaries({"gateway_class": st.none() | st.just("istio")}),
        "postgres": st.none() | st.just({"host": "db"}),
        "storage": st.fixed_dictionaries({"stages": st.none() | st.just("gs://bucket/stages")}),
        "slurm": st.none() | st.just({}),
        "hosts": st.none() | st.just({"head": "10.0.0.1"}),
    }
)


@settings(deadline=None, max_examples=15)
@given(values=profiles)
def test_any_profile_renders_what_its_schema_allows(values: dict[str, Any], schemas: Schemas) -> None:
    for number, group in enumerate(values["workers"]):
        group["name"] = f"g{number}"
    try:
        profile = parse_profile(values, "any.yaml")
    except RequestError as refused:  # the endpoint's tenth of a CPU has no room on one machine of one CPU
        assert "serve: 1 replicas" in str(refused)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(render(profile, "any.yaml", "0" * 12), Path(folder) / "out")
        assert [finding.line for finding in check(Path(folder) / "out", schemas)[1]] == []


def test_no_template_has_a_version_in_it() -> None:
    for template in (CLUSTERS / "templates").rglob("*.j2"):
        text = template.read_text().replace("127.0.0.1", "")
        assert not re.findall(r"\b\d+\.\d+\.\d+\b|==\s*\d|python:\d", text), template


def test_every_version_in_every_file_is_the_projects(rendered: dict[str, Rendered]) -> None:
    versions = project_versions()
    for each in rendered.values():
        for name, text in each.files.items():
            assert versions.line in text, name
            assert set(re.findall(r"rayVersion: \"?([\d.]+)", text)) <= {versions["ray"]}
            assert set(re.findall(r"-ray([\d.]+)-", text)) <= {versions["ray"]}
            for package, version in re.findall(r"\b([a-z-]+)==([\d.]+)", text):
                assert version == versions[package.replace("faiss-gpu", "faiss-cpu")], name


def test_every_file_says_what_applies_it_and_what_it_is_from(rendered: dict[str, Rendered]) -> None:
    for name, text in rendered["gpu"].files.items():
        head = "\n".join(line for line in text.splitlines()[:20] if line.startswith("#"))
        assert f"gpu.yaml ({rendered['gpu'].digest})" in head and f"{name}" in head, name


def test_the_endpoint_is_what_serve_config_writes(rendered: dict[str, Rendered]) -> None:
    service = documents(rendered["gpu"], "kuberay/rayservice.yaml")[0]["spec"]
    config = yaml.safe_load(service["serveConfigV2"])
    arguments = ServeSettings.model_validate(config["applications"][0]["args"])
    assert config == deployment(arguments, "0.0.0.0", 8000)
    assert (arguments.device, arguments.max_replicas, arguments.models) == ("cuda", 2, ("xmcgan",))
    assert service["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"


def test_jobs_begin_with_the_machines_they_need(rendered: dict[str, Rendered]) -> None:
    train, tune = (documents(rendered["gpu"], f"kuberay/rayjob-{each}.yaml")[0]["spec"] for each in ("train", "tune"))
    replicas = {group["groupName"]: group["replicas"] for group in train["rayClusterSpec"]["workerGroupSpecs"]}
    assert replicas == {"steady": 2, "spot": 2}  # eight GPUs
    assert (train["backoffLimit"], train["activeDeadlineSeconds"]) == (3, 96 * 3600)
    assert "--storage postgresql+psycopg://t2i@postgres.example.org:5432/optuna" in tune["entrypoint"]
    slots = [at(group, "resources", "trial_slot") for group in tune["rayClusterSpec"]["workerGroupSpecs"]]
    assert [tune["rayClusterSpec"]["headGroupSpec"]["resources"], *slots] == [{"CPU": "0", "trial_slot": "4"}, "1", "4"]


def test_workers_share_the_cores(rendered: dict[str, Rendered]) -> None:
    groups = documents(rendered["gpu"], "kuberay/raycluster.yaml")[0]["spec"]["workerGroupSpecs"]
    found = {}
    for group in groups:
        [container] = group["template"]["spec"]["containers"]
        [threads] = [each["value"] for each in container["env"] if each["name"] == "OMP_NUM_THREADS"]
        found[group["groupName"]] = (threads, container["resources"]["limits"]["nvidia.com/gpu"])
    assert found == {"steady": ("8", "1"), "spot": ("12", "4")}


def test_secrets_are_named_and_never_written(rendered: dict[str, Rendered]) -> None:
    cluster = rendered["gpu"].files["kuberay/raycluster.yaml"]
    assert "name: PGPASSWORD\n                  valueFrom" in cluster
    assert "T2I_SERVE_TOKEN" not in cluster  # the endpoint's token is the endpoint's
    assert "T2I_SERVE_TOKEN" in rendered["gpu"].files["kuberay/rayservice.yaml"]


def test_faiss_is_there_once(rendered: dict[str, Rendered]) -> None:
    files = rendered["gpu"].files
    assert "pip uninstall --yes faiss-cpu" in files["container/Containerfile"]
    assert "faiss-gpu" not in files["container/Containerfile.cpu"]
    assert (
        "torchvision" not in files["container/Containerfile.cpu"]
        and ",gpu]" not in files["container/Containerfile.cpu"]
    )


def test_a_server_that_is_there_is_not_rendered() -> None:
    values = yaml.safe_load((CLUSTERS / "profiles" / "small.yaml").read_text())
    profile = parse_profile({**values, "mlflow": {"url": "https://mlflow.example.org", "secret": "login"}}, "x")
    files = render(profile, "x", "0").files
    assert not any("mlflow" in name for name in files)
    assert "--mlflow-uri https://mlflow.example.org" in files["kuberay/rayjob-train.yaml"]
    assert "MLFLOW_TRACKING_PASSWORD" in files["kuberay/raycluster.yaml"]


def test_an_unknown_recipe_is_refused_before_anything_is_written() -> None:
    values = yaml.safe_load((CLUSTERS / "profiles" / "small.yaml").read_text())
    profile = parse_profile({**values, "train": {"recipe": "xmcgan_sceness"}}, "x")
    with pytest.raises(RequestError, match=r"train\.recipe: no recipe 'xmcgan_sceness'; near it: xmcgan_scenes32"):
        render(profile, "x", "0")


# What is wrong.

CLUSTER, JOB, SERVICE = "kuberay/raycluster.yaml", "kuberay/rayjob-tune.yaml", "kuberay/rayservice.yaml"
FAULTS = [
    (CLUSTER, "mode: token", "mode: disabled", "without a token a cluster runs what anyone sends it"),
    (CLUSTER, 'rayVersion: "2', 'rayVersion: "1', "rayVersion: is 1"),
    (CLUSTER, "serviceType: ClusterIP", "serviceType: LoadBalancer", "opens the Jobs API to the outside"),
    (CLUSTER, "rayStartParams: {}", "rayStartParams: {dashboard-host: 0.0.0.0}", "sets dashboard-host"),
    (CLUSTER, "memory: 16Gi", "memory: 15Gi", "asks for 15Gi of memory and may take 16Gi"),
    (
        CLUSTER,
        "allowPrivilegeEscalation: false",
        "allowPrivilegeEscalation: true",
        "container ray-head: may gain rights",
    ),
    (CLUSTER, "runAsNonRoot: true", "runAsNonRoot: false", "may run as root"),
    (CLUSTER, "terminationGracePeriodSeconds: 60", "hostNetwork: true", "has hostNetwork, the machine's own"),
    (CLUSTER, "sizeLimit: 4Gi", "sizeLimit: 16Gi", "/dev/shm can fill all of its memory"),
    (CLUSTER, "medium: Memory", "medium: ''", "has no /dev/shm of its own"),
    (CLUSTER, "image: registry.example.org/lab/t2i:", "image: other:", "or versions differ between machines"),
    (CLUSTER, "# t2i ", "# t2i 9", "was rendered for t2i 9"),
    (CLUSTER, 'cpu: "8"', "cpu: four", "autoscaler cannot read it"),
    (CLUSTER, "instance: t2i-gpu", "instance: other", "no network policy selects its pods"),
    (CLUSTER, '"s3://t2i/stages"', '"s3://key:hunter2@t2i/stages"', "a URL has a password in it"),
    (CLUSTER, "T2I_STAGES_REMOTE", "MY_SECRET", "MY_SECRET is written out"),
    (CLUSTER, "kind: RayCluster", "kind: [", "is no YAML"),
    (CLUSTER, "apiVersion: ray.io/v1", "other: ray.io/v1", "is neither of Kubernetes nor for ray up"),
    (JOB, "--concurrent 4", "--concurrent 9", "18 workers take a GPU each, and its groups have 10"),
    (JOB, "--workers 2", "--workers 3", "12 workers take a GPU each"),
    (JOB, 'trial_slot: "4"', 'trial_slot: "0"', "4 trials at a time and 2 trial_slot"),
    (JOB, "activeDeadlineSeconds: 86400", "suspend: false", "it could run for ever"),
    (SERVICE, "max_replicas: 2", "max_replicas: 3", "3 replicas take 3 GPUs, and its groups have 2"),
    (SERVICE, "cpus: 4.0", "cpus: -1", "Serve refuses it (cpus: input should be greater than 0"),
    (SERVICE, "proxy_location: EveryNode", "proxy_location: Nowhere", "Serve refuses it"),
    (SERVICE, "applications:", "things:", "has no application of t2i"),
    ("kuberay/mlflow.yaml", "type: ClusterIP", "type: NodePort", "is NodePort, which is open to the outside"),
    ("kuberay/mlflow.yaml", "kind: NetworkPolicy", "kind: Other", "listens on 0.0.0.0 and no network policy"),
    ("ray-up/aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "is every interface"),
    ("ray-up/aws.yaml", "RAY_AUTH_MODE=token\n    ray start", "ray start", "starts Ray without a token"),
    ("ray-up/aws.yaml", "203.0.113.0/24", "0.0.0.0/0", "'0.0.0.0/0' is open to everyone"),
    ("ray-up/aws.yaml", "max_workers: 6", "max_workers: 0", "ray up refuses it (The specified global `max_workers`"),
    ("ray-up/gcp.yaml", "upscaling_speed", "upscaling_sped", "'upscaling_sped' was unexpected"),
    ("ray-up/gcp.yaml", "head_node_type: head", "head_node_type: nobody", "must be one of `available_node_types`"),
    ("slurm/t2i.sbatch", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "starts Ray without a token"),
    ("slurm/t2i.sbatch", "fi\n", "\n", "bash cannot read it"),
    ("slurm/t2i.sbatch", "--dashboard-host=127.0.0.1", "--dashboard-host '*'", "is every interface"),
    ("container/Containerfile", "USER 1000:1000", "USER root", "runs as root"),
    ("container/Containerfile", "FROM python:3", "FROM python:2", "FROM python:2"),
    ("container/Containerfile", " torch==2", " torch==1", "torch==1"),
    ("container/Containerfile", "pip uninstall --yes faiss-cpu", "true", "installs faiss-gpu beside faiss-cpu"),
]


# Replaced once, where all of them replaced would be right again.
ONCE = ("memory: 16Gi", "fi\n")


@pytest.mark.parametrize(
    ("file", "good", "bad", "sentence"), FAULTS, ids=[f"{each[0]}-{each[3][:30]}" for each in FAULTS]
)
def test_a_planted_fault_is_found(
    file: str, good: str, bad: str, sentence: str, rendered: dict[str, Rendered], tmp_path: Path
) -> None:
    write(rendered["gpu"], tmp_path / "out")
    path = tmp_path / "out" / file
    assert good in path.read_text()
    path.write_text(path.read_text().replace(good, bad, 1 if good in ONCE else -1))
    lines = [finding.line for finding in check(tmp_path / "out")[1]]
    assert any(sentence in line for line in lines), lines
    assert all("hunter2" not in line for line in lines)


SCHEMA_FAULTS = [
    (CLUSTER, "rayVersion:", "rayVersoin:", "'rayVersoin' was unexpected"),
    (CLUSTER, "mode: token", "mode: tokens", "'tokens' is not one of ['disabled', 'token']"),
    (CLUSTER, "replicas: 1", "replicas: one", "'one' is not of type 'integer'"),
    (CLUSTER, "restartPolicy:", "restartPolicie:", "'restartPolicie' was unexpected"),
    (CLUSTER, "name: t2i-gpu\n", "name: T2I\n", "'T2I' does not match"),
    (JOB, "backoffLimit: 3", "backoffLimit: three", "RayJob spec.backoffLimit: 'three' is not of type 'integer'"),
    (JOB, "preRunningDeadlineSeconds: 1800", "preRunningDeadlineSeconds: 0", "0 is less than the minimum of 1"),
    (SERVICE, "stepSizePercent: 20", "step: 20", "'stepSizePercent' is a required property"),
    ("kuberay/networkpolicy.yaml", "podSelector:", "podSelektor:", "'podSelektor' was unexpected"),
    ("kuberay/mlflow.yaml", "targetPort: http", "targetPorts: http", "'targetPorts' was unexpected"),
    ("kuberay/mlflow.yaml", "readinessProbe", "readynessProbe", "'readynessProbe' was unexpected"),
    ("kuberay/mlflow.yaml", "kind: Service", "kind: Servise", "v1 Servise is none of"),
]


@pytest.mark.parametrize(
    ("file", "good", "bad", "sentence"), SCHEMA_FAULTS, ids=[each[3][:30] for each in SCHEMA_FAULTS]
)
def test_the_operators_schemas_find_it(
    file: str, good: str, bad: str, sentence: str, rendered: dict[str, Rendered], schemas: Schemas, tmp_path: Path
) -> None:
    path = tmp_path / Path(file).name
    text = rendered["gpu"].files[file]
    assert good in text
    path.write_text(text.replace(good, bad, 1))
    lines = [finding.line for finding in check(path, schemas)[1]]
    assert any(sentence in line for line in lines), lines


def test_a_folder_without_schemas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no CustomResourceDefinition of RayCluster, RayJob, RayService"):
        Schemas(tmp_path)
    (tmp_path / "a.yaml").write_text("[")
    with pytest.raises(RequestError, match="cannot be read"):
        Schemas(tmp_path)


@pytest.mark.parametrize(("text", "number"), [("16Gi", 2**34), ("500m", 0.5), ("4", 4), ("2M", 2e6)])
def test_quantities(text: str, number: float) -> None:
    assert quantity(text) == number
    assert quantity("four") != quantity("four")


# Writing.


def test_written_again_it_replaces_what_was_rendered_and_nothing_else(
    rendered: dict[str, Rendered], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    write(rendered["gpu"], folder)
    write(rendered["small"], folder)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {*rendered["small"].files, RECORD}
    assert os.access(folder / "hosts" / "start-head.sh", os.X_OK)
    changed = folder / "hosts" / "stop.sh"
    changed.write_text(changed.read_text() + "# mine\n")
    with pytest.raises(RequestError, match=r"holds hosts/stop\.sh, which was not rendered as it is"):
        write(rendered["gpu"], folder)
    changed.unlink()
    (folder / "notes").write_text("mine")
    with pytest.raises(RequestError, match="holds notes, which was not rendered"):
        write(rendered["gpu"], folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_someone_elses_is_kept(rendered: dict[str, Rendered], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RequestError, match="is no folder: name another"):
        write(rendered["small"], tmp_path / "file")
    with pytest.raises(RequestError, match="cannot be written"):
        write(rendered["small"], tmp_path / "file" / "below")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / RECORD).write_text('{"files": []}')
    (tmp_path / "full" / "a").write_text("mine")
    with pytest.raises(RequestError, match="holds a, which"):
        write(rendered["small"], tmp_path / "full")


def test_a_disk_that_fills_up_leaves_what_was_there(
    rendered: dict[str, Rendered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(rendered["small"], tmp_path / "out")
    before = (tmp_path / "out" / RECORD).read_bytes()
    real, written = Path.write_text, []

    def full(path: Path, *given: Any, **named: Any) -> int:
        written.append(path)
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        return real(path, *given, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RequestError, match="No space left on device"):
        write(rendered["gpu"], tmp_path / "out")
    assert (tmp_path / "out" / RECORD).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_put_in_place_leaves_what_was_there(
    rendered: dict[str, Rendered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(rendered["small"], tmp_path / "out")
    before, real = (tmp_path / "out" / RECORD).read_bytes(), Path.rename

    def refused(path: Path, target: Path) -> Path:
        if target.name == "out" and (path / RECORD).read_bytes() != before:
            raise OSError(1, "Operation not permitted")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(RequestError, match="Operation not permitted"):
        write(rendered["gpu"], tmp_path / "out")
    assert (tmp_path / "out" / RECORD).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Commands.


def test_render_and_check(t2i: T2i, tmp_path: Path) -> None:
    profile = str(CLUSTERS / "profiles" / "gpu.yaml")
    result = t2i("cluster", "render", profile, "--only", "kuberay", "--out", "out", "--json").json
    assert {file.partition("/")[0] for file in result["files"]} == {"kuberay"}
    assert json.loads(Path("out", RECORD).read_text())["digest"] == result["profile"]
    assert t2i("cluster", "check", "out", "--json").json["findings"] == []
    assert "7 files are right" in t2i("cluster", "check", "out").out
    path = Path("out") / CLUSTER
    path.write_text(path.read_text().replace("mode: token", "mode: disabled"))
    ended = t2i("cluster", "check", "out")
    assert ended.code == 1 and "1 fault in out, the first in kuberay/raycluster.yaml" in ended.err
    told = json.loads(t2i("cluster", "check", str(path), "--json").out.splitlines()[-1])
    assert [each["where"] for each in told["findings"]] == ["RayCluster spec.authOptions"]


def test_refusals(t2i: T2i, tmp_path: Path) -> None:
    small = str(CLUSTERS / "profiles" / "small.yaml")
    t2i("cluster", "render", "none.yaml").refused("profile none.yaml cannot be read")
    t2i("cluster", "render", small, "--only", "slurm").refused("has no slurm, which slurm is made from: add it")
    t2i("cluster", "render", small, "--only", "ray-up").refused("has no aws and no gcp, which ray-up is made from")
    t2i("cluster", "render", small, "--only", "kubray").refused("--only 'kubray' is none: there are kuberay")
    t2i("cluster", "check", "none").refused("holds nothing to check")
    t2i("cluster", "check", ".").refused("holds nothing to check")
    assert list(Path.cwd().iterdir()) == []


# Programs, with stand-ins for what they start.

RAY = """#!/usr/bin/env bash
echo "$RAY_AUTH_MODE $*" >>"$CALLS"
if [[ $1 == start ]]; then
  echo "from ray"
  [[ ${HEALTH:-0} == 1 ]] || echo "Ray runtime started."
  trap 'echo "ended" >>"$CALLS"; kill $!; exit' TERM
  sleep "${RAY_LASTS:-60}" &
  echo $$ >>"$CALLS.started"
  wait
  exit
fi
exit "${HEALTH:-0}"
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
if [[ $1 == hostname ]]; then echo "10.0.0.9 10.0.0.8"; exit 0; fi
exec "$@"
"""


class Machine:
    """A folder with programs, stand-ins first on the path, a home with a token, and what was called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "CALLS": str(self.calls),
            "T2I_START_TRIES": "5",
        }
        self.calls.touch()
        self.token = folder / ".ray" / "auth_token"
        self.token.parent.mkdir()
        self.token.write_text("0123456789abcdef")
        self.token.chmod(0o600)
        for name, text in {
            "ray": RAY,
            "srun": SRUN,
            "scontrol": "#!/bin/sh\necho one\necho two\n",
            "scancel": '#!/bin/sh\necho "scancel $*" >>"$CALLS"\nkill $(cat "$CALLS".started)\n',
            # The one that finds ports, and the one that counts nodes.
            "python": '#!/bin/sh\ncat >/dev/null\n[ $2 != "$SLURM_JOB_ID" ] || exec echo 20012 20013 20014\nsleep 1\n',
            "t2i": '#!/bin/sh\necho "t2i $RAY_ADDRESS $*" >>"$CALLS"\nexit "${CODE:-0}"\n',
        }.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)

    def run(self, program: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(program), *words],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def hosts(tmp_path: Path, machine: Machine) -> Iterator[Path]:
    values = yaml.safe_load((CLUSTERS / "profiles" / "small.yaml").read_text())
    values["hosts"]["folder"] = str(tmp_path / "ray")
    write(render(parse_profile(values, "small.yaml"), "small.yaml", "0" * 12, ["hosts"]), tmp_path / "out")
    yield tmp_path / "out" / "hosts"
    machine.run(tmp_path / "out" / "hosts" / "stop.sh")


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists() and ") Z " not in Path(f"/proc/{process}/stat").read_text()


def test_start_and_stop_a_head(hosts: Path, machine: Machine) -> None:
    ended = machine.run(hosts / "start-head.sh")
    assert (ended.returncode, ended.stdout) == (0, "Ray runs here, and 10.0.0.1:6379 answers\n"), ended
    [call] = [line for line in machine.calls.read_text().splitlines() if " start " in line]
    assert call.startswith("token start --block") and "--head" in call and "--dashboard-host=127.0.0.1" in call
    assert '--num-cpus=0 --num-gpus=0 --resources={"trial_slot": 2}' in call
    process = int((machine.folder / "ray" / "ray.pid").read_text())
    assert alive(process) and os.getsid(process) == process
    again = machine.run(hosts / "start-head.sh")
    assert again.returncode == 2 and "Ray runs here already" in again.stderr
    assert "ended here" in machine.run(hosts / "stop.sh").stdout
    for _ in range(50):
        if not alive(process):
            break
        time.sleep(0.1)
    assert not alive(process) and machine.calls.read_text().endswith("ended\n")
    assert "no Ray of t2i-small runs here" in machine.run(hosts / "stop.sh").stdout


def test_a_worker_is_one_of_a_group(hosts: Path, machine: Machine) -> None:
    assert machine.run(hosts / "start-worker.sh").returncode == 2
    refused = machine.run(hosts / "start-worker.sh", "gpus")
    assert (refused.returncode, refused.stderr) == (2, "name a group: cpu\n")
    assert machine.run(hosts / "start-worker.sh", "cpu").returncode == 0
    assert (
        '--address=10.0.0.1:6379 --num-cpus=2 --num-gpus=0 --resources={"trial_slot": 1}' in machine.calls.read_text()
    )


def test_a_head_that_does_not_start_says_why(hosts: Path, machine: Machine) -> None:
    ended = machine.run(hosts / "start-head.sh", RAY_LASTS="0", HEALTH="1")
    assert ended.returncode == 1 and "from ray" in ended.stderr and "Ray did not start" in ended.stderr


@pytest.mark.parametrize("kind", ["hosts", "slurm"])
def test_tokens_that_are_not_there_or_not_ones_own(
    kind: str, hosts: Path, machine: Machine, rendered: dict[str, Rendered]
) -> None:
    program, words = hosts / "start-head.sh", tuple[str, ...]()
    if kind == "slurm":
        program = machine.folder / "t2i.sbatch"
        program.write_text(rendered["gpu"].files["slurm/t2i.sbatch"].replace("source /mnt/", "true /mnt/"))
        words = ("train", "xmcgan_laptop")
    machine.token.chmod(0o644)
    ended = machine.run(program, *words)
    assert ended.returncode == 2 and "others can read" in ended.stderr and "chmod 600" in ended.stderr
    machine.token.unlink()
    ended = machine.run(program, *words)
    assert ended.returncode == 2 and "make one with ray get-auth-token --generate" in ended.stderr
    assert machine.calls.read_text() == ""


def test_a_slurm_job_starts_a_cluster_runs_the_command_and_ends(machine: Machine) -> None:
    values = yaml.safe_load((CLUSTERS / "profiles" / "gpu.yaml").read_text())
    values["slurm"]["setup"] = ["export T2I_SETUP=done"]
    profile = parse_profile(values, "gpu.yaml")
    program = machine.folder / "t2i.sbatch"
    program.write_text(render(profile, "gpu.yaml", "0", ["slurm"]).files["slurm/t2i.sbatch"])
    # No other's: one that was killed may have left its own.
    job = f"{random.SystemRandom().randrange(10**7, 10**8)}"
    slurm = {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "n[1-2]", "RAY_LASTS": f"61.{job}"}
    missing = machine.run(program, "train", "xmcgan_laptop", **slurm)
    assert missing.returncode == 1 and "PGPASSWORD: put it into ~/.t2i/secrets.env" in missing.stderr
    secrets = machine.folder / ".t2i" / "secrets.env"
    secrets.parent.mkdir()
    secrets.write_text("PGPASSWORD=a\nAWS_ACCESS_KEY_ID=b\nAWS_SECRET_ACCESS_KEY=c\n")
    ended = machine.run(program, "train", "xmcgan_laptop", "--set", "a=b c", CODE="7", **slurm)
    assert ended.returncode == 7, ended  # the command's own
    calls = machine.calls.read_text().splitlines()
    assert "t2i 10.0.0.9:20012 train xmcgan_laptop --set a=b c" in calls
    starts = [call for call in calls if call.startswith("token start")]
    assert len(starts) == 2 and all("--num-cpus=48 --num-gpus=4" in start for start in starts)
    assert len({re.search(rf"--temp-dir=/tmp/ray-{job}-\w{{4}}/ray ", start)[0] for start in starts}) == 2  # type: ignore[index]
    assert "--dashboard-port=20013 --ray-client-server-port=20014" in "".join(starts) and "a=b" not in "".join(starts)
    # Told to end, not killed: each puts its folder away.
    assert calls.count("ended") == 2 and f"scancel --signal=TERM {job}" in calls
    assert not list(Path("/tmp").glob(f"ray-{job}-*"))
    left = subprocess.run(["pgrep", "-f", f"sleep 61.{job}"], capture_output=True, text=True, check=False).stdout
    assert left == ""
    assert machine.run(program, **slurm).returncode == 2


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_shellcheck_has_nothing_to_say(name: str, rendered: dict[str, Rendered], tmp_path: Path) -> None:
    write(rendered[name], tmp_path / "out")
    programs = sorted(str(path) for path in (tmp_path / "out").rglob("*") if path.suffix in (".sh", ".sbatch", ".env"))
    # SC1091: what is sourced is on the cluster's own disk.
    words = ["shellcheck", "-x", "-P", "SCRIPTDIR", "--exclude=SC1091", *programs]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.stdout == ""
