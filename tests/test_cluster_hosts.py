"""Programs for machines that are there: what they end, and who is let in."""

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.clusters.profile import parse_profile
from orchestration.clusters.render import render

PROFILE = Path(__file__).parents[1] / "clusters" / "profiles" / "small.yaml"


def programs(folder: Path, **changes: Any) -> Path:
    values = yaml.safe_load(PROFILE.read_text()) | changes
    values["hosts"]["folder"] = str(folder / "ray")
    for name, text in render(parse_profile(values, "small.yaml"), "small.yaml", "0", ["hosts"]).files.items():
        (folder / Path(name).name).write_text(text)
    return folder


def test_another_process_of_the_number_that_was_kept_is_left_alone(tmp_path: Path) -> None:
    folder = programs(tmp_path)
    (folder / "ray").mkdir()
    token = folder / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            (folder / "ray" / "ray.pid").write_text(f"{other.pid}\n")
            variables = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "T2I_START_TRIES": "2"}
            ended, started = (
                subprocess.run(
                    ["bash", str(folder / name)], env=variables, capture_output=True, text=True, timeout=60, check=False
                )
                for name in ("stop.sh", "start-head.sh")
            )
            time.sleep(0.2)
            assert other.poll() is None and "no Ray of t2i-small runs here" in ended.stdout
            assert "runs here already" not in started.stderr and "Ray did not start" in started.stderr
        finally:
            other.kill()


@pytest.mark.parametrize(("host", "asked"), [("tracking.lab", "tracking.lab:5000"), ("100.64.0.7", "100.64.0.7:5000")])
def test_mlflow_answers_to_the_name_that_commands_are_told(host: str, asked: str, tmp_path: Path) -> None:
    from mlflow.server.security_utils import get_default_allowed_hosts, is_allowed_host_header

    assert not is_allowed_host_header(get_default_allowed_hosts(), asked)
    text = (programs(tmp_path, mlflow={"host": host}) / "start-mlflow.sh").read_text()
    [given] = re.findall(r"--allowed-hosts=(?:'([^']*)'|(\S+))", text)
    allowed = "".join(given).split(",")
    assert f"--mlflow-uri http://{asked}" in text
    assert all(is_allowed_host_header(allowed, each) for each in (asked, "localhost:8080", "127.0.0.1:5000"))
    assert not is_allowed_host_header(allowed, "evil.example:5000")
