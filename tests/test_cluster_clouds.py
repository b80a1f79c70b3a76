"""Files for `ray up`, by what Ray itself makes of them: where mounts are, which service is asked, who may come in."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.clusters.render import Rendered, render_file

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
"""In place of `ray start`: where it would ask for machines, whether as the storage, and where and as whom for stages."""


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
