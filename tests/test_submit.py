"""`t2i submit` against a Jobs API of our own: what is sent, how it ends, and every wrong request."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from orchestration import submit_commands
from orchestration.clusters import job_code
from orchestration.clusters.job_code import PACKAGES, ROOT, code_files, staged_code
from orchestration.clusters.jobs import entrypoint
from orchestration.errors import RequestError

from .cli_support import Ended, T2i
from .job_support import TOKEN, FakeCluster, FakeJob, fake_cluster, submitter


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as cluster:
        yield cluster


@pytest.fixture
def t2i(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    return submitter(tmp_path, monkeypatch, capsys)


@pytest.fixture
def submit(t2i: T2i, cluster: FakeCluster) -> T2i:
    return lambda *words: t2i("submit", "--address", cluster.address, *words)


# What is sent


def test_a_job_is_sent_followed_and_told(submit: T2i, cluster: FakeCluster) -> None:
    cluster.next.pieces = ["Running\n", "xmc", "gan  XMC-GAN\n", '{"systems": 7}\n']
    ended = submit("--json", "--name", "first", "--env", "A=b=c", "--cpus", "1", "--", "models", "--json")
    assert ended.json == {
        "job": "first",
        "address": cluster.address,
        "status": "SUCCEEDED",
        "exit_code": 0,
        "seconds": 4.0,
        "result": {"systems": 7},
    }
    assert "Running\nxmcgan  XMC-GAN\n" in ended.err and "succeeded" in ended.err
    [asked] = cluster.submitted
    assert asked["entrypoint"] == "python -u -m orchestration models --json"
    assert asked["submission_id"] == "first" and asked["entrypoint_num_cpus"] == 1
    assert asked["metadata"]["t2i"] == "t2i models --json"
    assert asked["runtime_env"]["env_vars"] == {"A": "b=c", "T2I_PROGRESS": "lines"}
    assert TOKEN not in str(asked)
    files = cluster.files()
    assert {"pyproject.toml", "orchestration/cli.py", "models/registry.py", "search_spaces/xmcgan.yaml"} <= set(files)
    assert not [name for name in files if name.endswith(".pyc") or "/." in name or name.startswith(("tests", ".git"))]


def test_lines_go_to_standard_output_and_the_code_is_sent_once(
    submit: T2i, cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tree(tmp_path / "code")
    monkeypatch.setattr(job_code, "staged_code", lambda: staged_code(code))
    assert submit("models").out == "one\ntwo\n"
    packages = dict(cluster.packages)
    cluster.next = FakeJob()
    assert submit("models").code == 0
    assert cluster.packages == packages and len(cluster.jobs) == 2
    assert all(name.startswith("t2i-models-2") for name in cluster.jobs)


def test_the_images_own_code(submit: T2i, cluster: FakeCluster) -> None:
    assert submit("--no-code", "--", "models").code == 0
    assert not cluster.packages and "working_dir" not in cluster.submitted[0]["runtime_env"]


def test_the_shell_gets_every_word_whole() -> None:
    assert entrypoint(["train", "x", "--set", "a=$(rm -rf /); 'b'"]) == (
        """python -u -m orchestration train x --set 'a=$(rm -rf /); '"'"'b'"'"''"""
    )


def test_variables_are_passed_on_only_when_asked(
    submit: T2i, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert submit("--env", "MLFLOW_TRACKING_URI", "--", "models").code == 0
    sent = cluster.submitted[0]["runtime_env"]["env_vars"]
    assert sent == {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "T2I_PROGRESS": "lines"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "xmcgan_scenes32"], True),
        (["models"], False),
        (["train", "xmcgan_scenes32", "--home", "/mnt"], False),
        (["train", "xmcgan_scenes32", "--home=/mnt"], False),
    ],
)
def test_a_job_whose_results_would_be_lost(submit: T2i, words: list[str], told: bool) -> None:
    assert ("no --home" in submit("--", *words).err) == told


def test_a_home_of_the_job(submit: T2i) -> None:
    assert "no --home" not in submit("--env", "T2I_HOME=/mnt", "--", "train", "xmcgan_scenes32").err


def test_a_connection_lost_after_the_job_was_submitted(submit: T2i, cluster: FakeCluster) -> None:
    def fail(name: str) -> None:
        if name in cluster.jobs:
            raise ConnectionError

    cluster.on_ask = fail
    ended = submit("--detach", "--name", "later", "models")
    assert ended.code == 1 and "the job later was submitted: t2i submit --address" in ended.err
    assert "repeat the command" not in ended.err


def test_detached(submit: T2i, cluster: FakeCluster) -> None:
    cluster.next.endless = True
    ended = submit("--detach", "--json", "--name", "later", "models")
    assert ended.json == {"job": "later", "address": cluster.address, "status": "RUNNING"}


def test_the_answer_to_a_submission_is_lost(submit: T2i, cluster: FakeCluster) -> None:
    """The job was begun: it is followed, and not begun twice."""
    cluster.lost_answers = 1
    assert submit("models").out == "one\ntwo\n"
    assert len(cluster.submitted) == 1


def test_a_cluster_that_takes_no_uploads(submit: T2i, cluster: FakeCluster) -> None:
    cluster.largest_body = 1000
    submit("models").refused("refuses the request", "413")


def test_a_name_that_is_taken(submit: T2i, cluster: FakeCluster) -> None:
    cluster.jobs["first"] = FakeJob()
    submit("--name", "first", "models").refused("--name first", "choose another")
    assert not cluster.submitted


# The code


def tree(root: Path) -> Path:
    for package in PACKAGES:
        (root / package / "__pycache__").mkdir(parents=True)
        (root / package / "__init__.py").write_text("x = 1\n")
        (root / package / "__pycache__" / "x.pyc").write_text("")
    (root / "pyproject.toml").write_text("[project]\n")
    return root


def test_only_the_packages_are_staged(tmp_path: Path) -> None:
    root = tree(tmp_path)
    for path in (
        "t2i-home/mlflow.db",
        ".git/config",
        ".venv/x.py",
        "models/.hidden",
        "models/t2i-home/runs/a",
        "notes.md",
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("no")
    expected = {"pyproject.toml", *(f"{package}/__init__.py" for package in PACKAGES)}
    assert {str(path) for path in code_files(root)} == expected
    with staged_code(root) as folder:
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == expected
    assert not folder.exists()


def test_code_that_is_too_large_names_what_is_big(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "models" / "weights.safetensors").write_bytes(b"\0" * 3 * 2**20)
    with (
        pytest.raises(RequestError, match=r"is 3 MiB and a job takes 2; the biggest: models/weights.safetensors \(3.0"),
        staged_code(root, 2 * 2**20),
    ):
        pass


def test_a_package_is_missing(tmp_path: Path) -> None:
    (tree(tmp_path) / "search_spaces").rename(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="no folder search_spaces.*--no-code"):
        code_files(tmp_path)


def test_this_code_is_small() -> None:
    assert sum((ROOT / path).stat().st_size for path in code_files()) < 10 * 2**20


# How it ends


def test_a_job_that_fails(submit: T2i, cluster: FakeCluster) -> None:
    cluster.next = FakeJob(
        pieces=["begun\n", "t2i: out of memory: make the batch smaller\n"], status="FAILED", exit_code=1
    )
    ended = submit("--name", "one", "--json", "models")
    assert ended.code == 1
    assert "exit code 1: out of memory: make the batch smaller (t2i submit" in ended.err.splitlines()[-1]
    assert '"status": "FAILED"' in ended.out.splitlines()[-1] and '"exit_code": 1' in ended.out


def test_a_job_whose_request_is_wrong(submit: T2i, cluster: FakeCluster) -> None:
    cluster.next = FakeJob(pieces=["t2i: no recipe 'x'\n"], status="FAILED", exit_code=2)
    ended = submit("train", "x")
    assert ended.code == 2 and "ended with exit code 2: no recipe 'x'" in ended.err


def test_a_job_that_never_began(submit: T2i, cluster: FakeCluster) -> None:
    cluster.next = FakeJob(pieces=[], status="FAILED", exit_code=None, message="Failed to set up\nthe environment.")
    ended = submit("models")
    assert ended.code == 1 and "without its command ending (Failed to set up the environment)" in ended.err


def test_an_image_without_the_project(submit: T2i, cluster: FakeCluster) -> None:
    cluster.next = FakeJob(pieces=["python: No module named orchestration\n"], status="FAILED", exit_code=1)
    ended = submit("--no-code", "models")
    assert ended.code == 1 and "the cluster's image lacks it: `t2i doctor`" in ended.err


def test_ctrl_c_without_a_terminal_leaves_it_running(submit: T2i, cluster: FakeCluster) -> None:
    cluster.jobs["one"] = FakeJob(endless=True)
    ended = interrupted(lambda: submit("--attach", "one"), cluster.jobs["one"])
    assert ended.code == 1 and not cluster.jobs["one"].stopped
    assert "the job one goes on" in ended.err and "--attach one" in ended.err and "--stop one" in ended.err


@pytest.mark.parametrize("answer", ["y", "n", "interrupted"])
def test_ctrl_c_at_a_terminal_asks(
    submit: T2i, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def confirm(question: str, **_: object) -> bool:
        assert "stop the job one?" in question
        if answer == "interrupted":
            raise click.Abort
        return answer == "y"

    monkeypatch.setattr(click, "confirm", confirm)
    cluster.jobs["one"] = FakeJob(endless=True)
    monkeypatch.setattr(submit_commands, "_at_a_terminal", lambda: True)
    ended = interrupted(lambda: submit("--attach", "one"), cluster.jobs["one"])
    assert ended.code == 1 and cluster.jobs["one"].stopped == (answer == "y")
    assert ("the job one was stopped" in ended.err) == (answer == "y")


def interrupted(run: Callable[[], Ended], job: FakeJob) -> Ended:
    """Ctrl-C once the whole log was shown."""

    def press() -> None:
        while job.shown < len(job.pieces):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    # Who runs the tests in the background has Ctrl-C switched off.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread.start()
    try:
        return run()
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


# Listing, reading, stopping


def test_list(submit: T2i, cluster: FakeCluster) -> None:
    assert "has no jobs" in submit("--list").out
    cluster.jobs["one"] = FakeJob(asked={"metadata": {"t2i": "t2i tune xmcgan_scenes32"}}, shown=2)
    cluster.jobs["two"] = FakeJob(entrypoint="python train.py")
    ended = submit("--list")
    assert "one  SUCCEEDED  2023-11-1" in ended.out and "t2i tune xmcgan_scenes32" in ended.out
    assert "two  RUNNING" in ended.out and "python train.py" in ended.out
    assert [job["name"] for job in submit("--list", "--json").json["jobs"]] == ["one", "two"]


def test_logs(submit: T2i, cluster: FakeCluster) -> None:
    cluster.jobs["one"] = FakeJob(shown=1)
    assert submit("--logs", "one").out == "one\n"
    assert submit("--logs", "one", "--json").json["log"] == "one\n"


def test_stop(submit: T2i, cluster: FakeCluster) -> None:
    cluster.jobs["one"] = FakeJob(endless=True)
    assert submit("--stop", "one", "--json").json["status"] == "STOPPED"
    assert "had ended: STOPPED" in submit("--stop", "one").out


def test_stop_before_it_began(submit: T2i, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray keeps the request until then."""
    monkeypatch.setattr(submit_commands, "BEGIN_S", 0.6)
    cluster.jobs["one"] = FakeJob(pending=10**6, message="It may be waiting for resources.")
    submit("--stop", "one").refused("told to stop and waits to begin (It may be waiting for resources.)", code=1)


@pytest.mark.parametrize("flag", ["--logs", "--stop", "--attach"])
def test_a_job_that_is_not_there(submit: T2i, flag: str) -> None:
    submit(flag, "nobody").refused("no job 'nobody'", "--list")


# The words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing was asked for"),
        (["--list", "models"], "WORDS and --list were given together"),
        (["--list", "--stop", "x"], "--list and --stop were given together"),
        (["--", "t2i", "models"], "leave out 't2i'"),
        (["tun"], "'tun' is none: there are"),
        (["submit", "models"], "does not submit jobs"),
        (["--name", "a b", "models"], "--name 'a b' is no name of a job"),
        (["--logs", "../x"], "--logs '../x' is no name of a job"),
        (["--env", "A", "models"], "--env A: it is not set here"),
        (["--env", "=x", "models"], "--env '=x' sets no variable"),
        (["--env", "RAY_AUTH_TOKEN", "models"], "the cluster's nodes have the token"),
        (["--cpus", "-1", "models"], "--cpus"),
    ],
)
def test_a_wrong_request(t2i: T2i, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A", raising=False)
    t2i("submit", *words).refused(said)


def test_options_after_the_first_word_are_the_jobs(submit: T2i, cluster: FakeCluster) -> None:
    assert submit("models", "--name", "x", "--json").code == 0
    assert cluster.submitted[0]["entrypoint"].endswith("orchestration models --name x --json")
