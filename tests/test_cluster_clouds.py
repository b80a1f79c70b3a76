"""Files for `ray up`, by what Ray itself makes of them: where mounts are, which service is asked, who may come in."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.clusters.profile import parse_profile
from orchestration.clusters.render import Rendered, render, render_file

PROFILE = Path(__file__).parents[1] / "clusters" / "profiles" / "gpu.yaml"
ASK = """
import boto3, fsspec
session = boto3.Session(region_name="us-west-2")
ec2, own = session.client("ec2").meta.endpoint_url, "AWS_ACCESS_KEY_ID" in __import__("os").environ
files, _ = fsspec.url_to_fs("s3://t2i/stages", client_kwargs={"region_name": "us-west-2"})
files.connect()
credentials = files.s3._request_signer._credentials
print(ec2, own, files.s3.meta.endpoint_url, credentials.access_key, credentials.secret_key)
"""
"""In place of `ray start`: where it asks for machines, whether with keys, and where and as whom it asks for stages."""


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return render_file(PROFILE)


def document(rendered: Rendered, name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(rendered.files[name])
    return found


@pytest.mark.parametrize("file", ["Containerfile", "Containerfile.cpu"])
def test_the_token_is_mounted_where_the_images_user_looks_for_it(rendered: Rendered, file: str) -> None:
    from ray.autoscaler._private.command_runner import DockerCommandRunner

    lines = rendered.files[f"container/{file}"]
    variables = re.findall(r"(?m)^ENV (HOME=\S+)$", lines)
    ran: list[str] = []

    class Machine:
        """In place of ssh: answers as docker on the machine does."""

        ssh_user, cluster_name = "ubuntu", "t2i"

        def run(self, command: str, **_: Any) -> bytes:
            ran.append(command)
            return json.dumps(variables).encode() if "Config.Env" in command else b"false"

    aws = document(rendered, "ray-up/aws.yaml")
    runner = DockerCommandRunner.__new__(DockerCommandRunner)
    runner.ssh_command_runner, runner.docker_config, runner.initialized = Machine(), aws["docker"], False
    runner.container_name, runner.docker_cmd, runner.home_dir = "t2i", "docker", None
    runner.run_init(as_head=False, file_mounts=aws["file_mounts"], sync_run_yet=True)
    [start] = [command for command in ran if command.startswith("docker run")]
    [home] = re.findall(r"--create-home (\w+)", lines)
    assert f":/home/{home}/.ray/auth_token " in start and "/root" not in start


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_autoscaler_asks_the_cloud_and_stages_are_in_the_storage(
    rendered: Rendered, cloud: str, tmp_path: Path
) -> None:
    text = document(rendered, f"ray-up/{cloud}.yaml")
    [start] = [each for each in text["head_start_ray_commands"] if "ray start" in each]
    # What the head's processes inherit: of docker's options, and of the program that starts them.
    given = [each.removeprefix("-e ") for each in text["docker"]["run_options"] if each.startswith("-e ")]
    for name in (".t2i/secrets.env", ".ray/auth_token"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("PGPASSWORD=p\nAWS_ACCESS_KEY_ID=of-storage\nAWS_SECRET_ACCESS_KEY=secret\n")
    ask = tmp_path / "ray"
    ask.write_text(f"#!{sys.executable}\n{ASK}")
    ask.chmod(0o755)
    ended = subprocess.run(
        ["bash", "-c", start],
        env={"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin", **dict(each.split("=", 1) for each in given)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended
    ec2, own, stages, key, secret = ended.stdout.split()
    assert ec2 == "https://ec2.us-west-2.amazonaws.com" and stages == "https://storage.example.org"
    assert own == ("False" if cloud == "aws" else "True") and (key, secret) == ("of-storage", "secret")


def test_machines_with_gpus_on_google_have_an_image_of_their_own(rendered: Rendered) -> None:
    """The common one has no driver, and docker starts no container with a GPU there."""
    types = document(rendered, "ray-up/gcp.yaml")["available_node_types"]
    images = {
        name: (bool(found["resources"].get("GPU")), found["node_config"]["disks"][0]["initializeParams"]["sourceImage"])
        for name, found in types.items()
    }
    assert images["head"] == (False, "projects/deeplearning-platform-release/global/images/family/common-cpu")
    own = (True, "projects/t2i-example/global/images/family/docker-with-nvidia")
    assert [found for name, found in images.items() if name != "head"] == [own, own]


@pytest.mark.parametrize(("there", "looks"), [("", 0), ("0x8086", 0), ("0x10de", 3)])
def test_a_machine_with_a_gpu_waits_for_its_driver(rendered: Rendered, there: str, looks: int, tmp_path: Path) -> None:
    [wait] = [each for each in document(rendered, "ray-up/gcp.yaml")["initialization_commands"] if "nvidia-smi" in each]
    bus, seen = tmp_path / "devices", tmp_path / "seen"
    if there:
        (bus / "0000:00:04.0").mkdir(parents=True)
        (bus / "0000:00:04.0" / "vendor").write_text(f"{there}\n")
    for name, does in {"nvidia-smi": f'echo >>{seen}; [ "$(wc -l <{seen})" -ge 3 ]', "sleep": ":"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    command = wait.replace("/sys/bus/pci/devices", str(bus))
    subprocess.run(["bash", "-c", command], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True, timeout=60)
    assert (seen.read_text().count("\n") if seen.exists() else 0) == looks


SSH = ("203.0.113.0/24", "2001:db8::/32")


def test_port_22_of_machines_on_aws_is_open_to_the_networks_that_are_named_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from moto.server import ThreadedMotoServer
    from ray.autoscaler._private.aws.config import _configure_security_group, _configure_subnet

    values = yaml.safe_load(PROFILE.read_text())
    values["aws"]["ssh_from"] = list(SSH)
    files = render(parse_profile(values, "test"), "test", "0").files
    (tmp_path / "aws-group.sh").write_text(files["ray-up/aws-group.sh"])
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
        ec2 = boto3.client("ec2", region_name="us-west-2")
        [other] = [ec2.create_security_group(GroupName="t2i-gpu", Description="as Ray left it")["GroupId"]]
        everyone = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
        ec2.authorize_security_group_ingress(GroupId=other, IpPermissions=[everyone])
        for _ in range(2):
            program = ["bash", str(tmp_path / "aws-group.sh")]
            ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
            assert ended.returncode == 0 and other in ended.stdout, ended
        # What `ray up` does then.
        config = yaml.safe_load(files["ray-up/aws.yaml"])
        _configure_security_group(_configure_subnet(config))
        assert {each["node_config"]["SecurityGroupIds"][0] for each in config["available_node_types"].values()} == {
            other
        }
        [group] = ec2.describe_security_groups(GroupIds=[other])["SecurityGroups"]
    finally:
        server.stop()
    rules = group["IpPermissions"]
    networks = [
        each.get("CidrIp") or each["CidrIpv6"] for rule in rules for each in rule["IpRanges"] + rule["Ipv6Ranges"]
    ]
    assert sorted(networks) == sorted(SSH)
    assert [pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]] == [other]
