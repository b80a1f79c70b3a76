"""Every command that README, docs and recipes show exists, with those options; the quick ones are run."""

import inspect
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import click
import pytest

from orchestration.cli import cli, run_cli
from orchestration.recipes import RECIPES
from orchestration.tracking import Tracker

REPOSITORY = Path(__file__).parents[1]
# Shown commands that other tests run for real, by the test that does.
RUN_ELSEWHERE = {
    "quickstart": "tests/test_ray_campaign.py::test_quickstart_twice",
    "train": "tests/test_ray_training.py::test_killed_worker_and_killed_command_lose_nothing",
    "tune": "tests/test_ray_campaign.py::test_tune_evaluate_show_promote_commands",
    "evaluate": "tests/test_ray_campaign.py::test_tune_evaluate_show_promote_commands",
    "report": "tests/test_report.py::test_the_command",
    "reproduce": "tests/test_ray_reproduce.py::test_mirrorgans_lambda",
    "show": "tests/test_ray_campaign.py::test_tune_evaluate_show_promote_commands",
    "promote": "tests/test_ray_campaign.py::test_tune_evaluate_show_promote_commands",
    "rollback": "tests/test_champions.py::test_promote_rollback_history",
    "history": "tests/test_champions.py::test_promote_rollback_history",
    "serve": "tests/test_ray_campaign.py::test_serve_command",
    "data list": "tests/test_data_commands.py::test_formats",
    "data check": "tests/test_data_commands.py::test_nothing_is_wrong",
    "data show": "tests/test_data_commands.py::test_scenes",
    "data prepare": "tests/test_data_commands.py::test_prepared_data_is_data",
    "stages graph": "tests/test_stage_commands.py::test_nothing_is_there_and_nothing_is_run",
    "stages show": "tests/test_stage_commands.py::test_a_stage_in_full",
    "stages check": "tests/test_stage_commands.py::test_every_byte_is_read",
    "stages drop": "tests/test_stage_commands.py::test_the_next_run_computes_it_anew",
    "stages gc": "tests/test_stage_commands.py::test_what_is_referred_to_is_kept_with_what_it_was_made_from",
    "cluster render": "tests/test_cluster_render.py::test_render_and_check",
    "cluster check": "tests/test_cluster_render.py::test_render_and_check",
    "submit": "tests/test_ray_submit.py::test_submit",
    "doctor": "tests/test_doctor.py::test_this_machine",
    "drill": "tests/test_ray_drill.py::test_what_is_killed_changes_nothing",
    "mlflow": "tests/test_docs.py::test_mlflow_page",
}


def all_commands(group: click.Group) -> list[click.Command]:
    """Those of a group, and of the groups within it."""
    found: list[click.Command] = []
    for command in group.commands.values():
        found += [command, *(all_commands(command) if isinstance(command, click.Group) else [])]
    return found


def shown_commands() -> list[str]:
    """Every line that begins with t2i (or sets a variable for it) in the documents, helps and recipes."""
    texts = [path.read_text() for path in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"))]
    texts += [inspect.getdoc(function) or "" for function in RECIPES.values()]
    texts += [command.help or "" for command in all_commands(cli)]
    found = []
    for text in texts:
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            line = re.sub(r"^(Command|Examples?):\s*", "", line.strip())
            if re.match(r"(RAY_ADDRESS=\S+ )?t2i [a-z]", line) and "shows every" not in line:
                found.append(line.split("   ")[0].removesuffix("&").strip())
    return sorted(set(found))


@pytest.mark.parametrize("line", shown_commands())
def test_shown_command_is_one(line: str) -> None:
    words = [word for word in shlex.split(line) if "RAY_ADDRESS" not in word][1:]
    command, name = cli.commands[words[0]], words[0]
    if isinstance(command, click.Group):
        assert len(words) > 1
        if words[1] not in command.commands and hasattr(command, "default"):
            words.insert(1, command.default)
        command, words, name = command.commands[words[1]], words[1:], " ".join(words[:2])
    # With a parent, as when it is called: click keeps what it first made of a command's help option.
    parent = click.Context(cli, info_name="t2i", **cli.context_settings)
    context = command.make_context(words[0], words[1:], parent=parent)
    assert isinstance(context, click.Context)
    if name in ("train", "tune") and not context.params.get("resume"):
        assert context.params["recipe"] in RECIPES
    assert name in RUN_ELSEWHERE or name == "models"


def test_there_are_commands_to_check() -> None:
    assert {line.split()[1] for line in shown_commands() if line.startswith("t2i")} >= {
        "train",
        "tune",
        "serve",
        "show",
    }


def test_named_tests_exist() -> None:
    for test in RUN_ELSEWHERE.values():
        file, name = test.split("::")
        assert f"def {name}(" in (REPOSITORY / file).read_text(), test


@pytest.mark.parametrize(
    "line", ["models", "models xmcgan", "train xmcgan_scenes32 --set model.lambda_2=0.5 --dry-run"]
)
def test_quick_commands_run(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli([*shlex.split(line), "--home", str(tmp_path)]) == 0
    assert "xmcgan" in capsys.readouterr().out


def test_links_and_pictures_exist() -> None:
    for document in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert target.startswith("http") or (document.parent / target).exists(), f"{document.name}: {target}"


def test_make_has_the_two_commands() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "\nquickstart:" in makefile and "\ntest:" in makefile


def test_mlflow_page(tmp_path: Path) -> None:
    """The README's MLflow server opens a home's database and answers."""
    Tracker(tmp_path).start_run("xmcgan", "run", "run", {})
    [line] = [line for line in (REPOSITORY / "README.md").read_text().splitlines() if line.startswith("mlflow server")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = shlex.split(line.replace("sqlite:///t2i-home", f"sqlite:///{tmp_path}"))[1:]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words, "--port", str(port)],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert server.poll() is None
                time.sleep(0.2)
        else:
            raise AssertionError("the MLflow server did not answer")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
