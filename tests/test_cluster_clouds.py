"""Files for `ray up`, by what Ray itself makes of them: where mounts are, which service is asked, who may come in."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.clusters.render import Rendered, render_file

PROFILE = Path(__file__).parents[1] / "clusters" / "profiles" / "gpu.yaml"


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
