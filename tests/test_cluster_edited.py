"""Rendered files that somebody edited: whatever stands in them is told or passed by, and never ends the check."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from orchestration.clusters.check import check
from orchestration.clusters.findings import quantity
from orchestration.clusters.render import Rendered, render_file

PROFILE = Path(__file__).parents[1] / "clusters" / "profiles" / "gpu.yaml"
CLUSTER, JOB, SERVICE = "kuberay/raycluster.yaml", "kuberay/rayjob-tune.yaml", "kuberay/rayservice.yaml"
POLICY, AWS, GCP = "kuberay/networkpolicy.yaml", "ray-up/aws.yaml", "ray-up/gcp.yaml"


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return render_file(PROFILE)


OWN = "IfNotPresent\n            securityContext:"
CONTAINER = "spec.headGroupSpec.template.spec.containers.0"


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        (CLUSTER, f"{CONTAINER}.env.0", 5),
        (CLUSTER, CONTAINER, 5),
        (CLUSTER, "spec.headGroupSpec.template.spec.volumes", "home"),
        (CLUSTER, "spec.workerGroupSpecs", "x y"),
        (CLUSTER, "metadata", "x y"),
        (CLUSTER, f"{CONTAINER}.resources.limits.memory", "8ki"),
        (JOB, "spec.rayClusterSpec.workerGroupSpecs.0.replicas", "two"),
        (JOB, "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.nvidia.com/gpu", {}),
        (SERVICE, "spec.rayClusterConfig.workerGroupSpecs.0.maxReplicas", None),
        (SERVICE, "kind", ["a"]),
        (POLICY, "kind", None),
        (POLICY, "spec.podSelector.matchExpressions.0", "cluster"),
        (AWS, "provider.security_group.IpPermissions.0", 1.5),
        (AWS, "provider.security_group.IpPermissions", True),
        (GCP, "worker_start_ray_commands", -1),
    ],
)
def test_what_is_of_another_kind_than_it_should_be(
    file: str, path: str, value: object, rendered: Rendered, tmp_path: Path
) -> None:
    documents = list(yaml.safe_load_all(rendered.files[file]))
    place = documents[0]
    *before, last = path.replace("nvidia.com", "nvidia_com").split(".")
    keys = [int(key) if key.isdecimal() else key.replace("nvidia_com", "nvidia.com") for key in (*before, last)]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    edited = tmp_path / "x.yaml"
    edited.write_text(yaml.safe_dump_all(documents))
    assert check(edited)[0] == ["x.yaml"]


def test_a_quantity_of_an_unknown_unit_is_no_number() -> None:
    assert quantity("8Ki") == 8192 and str(quantity("8ki")) == "nan"


@pytest.mark.parametrize(
    ("file", "good", "bad", "sentence"),
    [
        (JOB, "--workers 2", "--workers=3", "12 workers take a GPU each, and its groups have 10"),
        (JOB, "--workers 2", "--workers 3-8", "12 workers take a GPU each, and its groups have 10"),
        (CLUSTER, OWN, f"{OWN}\n              runAsNonRoot: false", "container ray-head: may run as root"),
    ],
)
def test_faults_in_other_words(
    file: str, good: str, bad: str, sentence: str, rendered: Rendered, tmp_path: Path
) -> None:
    edited = tmp_path / "x.yaml"
    edited.write_text(rendered.files[file].replace(good, bad))
    assert any(sentence in finding.line for finding in check(edited)[1])


@pytest.mark.parametrize(
    ("peers", "open_to_all"),
    [
        (None, True),
        ([], True),
        ([{"namespaceSelector": {}}], True),
        ([{"namespaceSelector": {}, "podSelector": {}}], True),
        ([{"ipBlock": {"cidr": "::/0"}}], True),
        ([{"podSelector": {}}], False),
        ([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}}], False),
        ([{"ipBlock": {"cidr": "10.0.0.0/8"}}], False),
    ],
)
def test_a_policy_that_lets_everyone_in(
    peers: list[object] | None, open_to_all: bool, rendered: Rendered, tmp_path: Path
) -> None:
    documents = list(yaml.safe_load_all(rendered.files[POLICY]))
    documents[1]["spec"]["ingress"][0]["from"] = peers
    edited = tmp_path / "x.yaml"
    edited.write_text(yaml.safe_dump_all(documents))
    lines = [finding.line for finding in check(edited)[1]]
    assert any("NetworkPolicy t2i-gpu-serve spec.ingress: lets everyone in" in line for line in lines) == open_to_all


def test_a_policy_for_what_goes_out_closes_nothing(rendered: Rendered, tmp_path: Path) -> None:
    for name in (CLUSTER, POLICY):
        text = rendered.files[name].replace("policyTypes: [Ingress]", "policyTypes: [Egress]")
        (tmp_path / Path(name).name).write_text(text)
    assert any("no network policy selects its pods" in finding.line for finding in check(tmp_path)[1])


def test_no_secret_is_made_of_nothing(rendered: Rendered, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$*" >>{calls}\ncase "$*" in *" get secret "*) exit 1;; esac\n')
    kubectl.chmod(0o755)
    program = tmp_path / "secrets.sh"
    program.write_text(rendered.files["kuberay/secrets.sh"])

    def run(given: str) -> tuple[int, str, list[str]]:
        calls.unlink(missing_ok=True)
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        ended = subprocess.run(
            ["bash", str(program)], input=given, env=path, capture_output=True, text=True, timeout=60, check=False
        )
        return ended.returncode, ended.stderr, re.findall(r"create secret generic (\S+)", calls.read_text())

    code, said, made = run("")
    assert code != 0 and "nothing was given for password" in said and made == ["t2i-ray-token", "t2i-serve-token"]
    code, said, made = run("one\ntwo\nthree\n")
    assert code == 0 and made[2:] == ["t2i-postgres", "t2i-storage"], said
