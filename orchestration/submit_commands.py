"""`t2i submit`: the same commands, on a cluster."""

import json
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click

from orchestration.commands import App, Result, command
from orchestration.errors import RequestError, RunError
from orchestration.options import number, repeatable

if TYPE_CHECKING:
    from orchestration.clusters.jobs import Job, JobServer, JobState

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
HOME_VARIABLE = "T2I_HOME"
HOMELESS = frozenset({"models", "doctor", "--help"})
"""Words of commands that keep nothing."""
WRONG_REQUEST = 2
BEGIN_S, STOP_S = 15.0, 60.0
LONGEST_REASON = 300


def add_to(group: click.Group) -> None:
    """Add the command to a group."""
    # From its first word on, a command line is the job's.
    command(group, "submit")(submit).allow_interspersed_args = False


@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--address",
    metavar="URL",
    help="The cluster's Jobs API  [default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, else http://127.0.0.1:8265]",
)
@click.option("--name", metavar="ID", help="Name of the job  [default: t2i-COMMAND-TIME]")
@repeatable(
    "--env",
    "variables",
    "NAME[=VALUE]",
    "Set it for the job, or pass on your own; whoever may list jobs can read it  [default: none]",
)
@click.option("--cpus", type=click.FloatRange(0), metavar="N", help="CPUs kept for the driver itself  [default: 0]")
@click.option("--gpus", type=click.FloatRange(0), metavar="N", help="GPUs kept for the driver itself  [default: 0]")
@click.option("--no-code", is_flag=True, help="Run the image's own t2i instead of sending this one.")
@click.option("--detach", is_flag=True, help="Do not follow the job.")
@number("--patience", "Seconds that the cluster may be out of reach while it is followed.", 1, default=600)
@click.option("--attach", metavar="ID", help="Follow a job that runs, from its first line  [default: none]")
@click.option("--list", "list_all", is_flag=True, help="List the jobs.")
@click.option("--logs", metavar="ID", help="Print what a job wrote so far  [default: none]")
@click.option("--stop", metavar="ID", help="Stop a job  [default: none]")
def submit(
    app: App,
    words: Sequence[str],
    address: str | None,
    name: str | None,
    variables: Sequence[str],
    cpus: float | None,
    gpus: float | None,
    no_code: bool,
    detach: bool,
    patience: int,
    attach: str | None,
    list_all: bool,
    logs: str | None,
    stop: str | None,
) -> Result | None:
    """Run t2i WORDS as a job on a Ray cluster.

    This code is sent along, the job is followed to its end, and its exit code is this command's. A lost connection is
    taken up again; Ctrl-C leaves the job running, or stops it if you say so. Paths are the cluster's: give the job a
    --home on storage that every node has, or --env T2I_HOME. A token is read as Ray reads it: RAY_AUTH_TOKEN,
    RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token. `ray job submit --working-dir . -- python -m orchestration WORDS` works too.

    \b
    Examples:
      t2i submit --address http://HEAD:8265 -- tune mirrorgan_cub --home /mnt/t2i
      t2i submit --env T2I_HOME=/mnt/t2i --detach --name first -- train xmcgan_scenes32
      t2i submit --attach first
      t2i submit --list
      t2i submit --stop first
    """
    asked = [flag for flag, given in _modes(words, attach, list_all, logs, stop).items() if given]
    if len(asked) != 1:
        said = f"{' and '.join(asked)} were given together" if asked else "nothing was asked for"
        raise RequestError(f"{said}: give the WORDS of one t2i command, or one of --attach, --list, --logs, --stop")
    for flag, given in (("--name", name), ("--attach", attach), ("--logs", logs), ("--stop", stop)):
        if given is not None and not re.fullmatch(NAME, given):
            raise RequestError(f"{flag} {given!r} is no name of a job: letters, digits, '-', '_' and '.', at most 100")
    environment = job_environment(variables)
    if words:
        check_words(words, click.get_current_context().find_root().command)

    from orchestration.clusters.access import find_access
    from orchestration.clusters.jobs import JobServer, LostConnection

    server = JobServer(find_access(address))
    try:
        _warn(server)
        if words:
            return _submit(app, server, _job(words, name, environment, cpus, gpus), no_code, detach, patience)
        if attach is not None:
            server.job(attach)
            return _follow(app, server, attach, patience)
        if list_all:
            return _list(app, server)
        return _stop(app, server, stop) if stop is not None else _logs(app, server, str(logs))
    except LostConnection as error:
        raise RunError(f"{server.address} stopped answering ({error}): repeat the command") from error


def _modes(
    words: Sequence[str], attach: str | None, list_all: bool, logs: str | None, stop: str | None
) -> dict[str, bool]:
    return {
        "WORDS": bool(words),
        "--attach": attach is not None,
        "--list": list_all,
        "--logs": logs is not None,
        "--stop": stop is not None,
    }


def job_environment(variables: Sequence[str]) -> dict[str, str]:
    """The job's variables of NAME=VALUE, and of NAME with the value it has here. Raises RequestError."""
    found = {}
    for text in variables:
        name, given, value = text.partition("=")
        if not re.fullmatch(VARIABLE, name):
            raise RequestError(f"--env {text!r} sets no variable: write it as NAME=VALUE, or NAME to pass on your own")
        if name.startswith("RAY_AUTH_"):
            raise RequestError(
                f"--env {name}: a job's variables can be read by others; the cluster's nodes have the token"
            )
        if not given and name not in os.environ:
            raise RequestError(f"--env {name}: it is not set here: set it, or write --env {name}=VALUE")
        found[name] = value if given else os.environ[name]
    return found


def check_words(words: Sequence[str], group: click.Command) -> None:
    """RequestError unless they begin with a command; its options are the job's to check."""
    names = sorted(group.commands) if isinstance(group, click.Group) else []
    if words[0] == "submit":
        raise RequestError("a job does not submit jobs: give the command that the job is to run")
    if words[0] not in names:
        hint = "leave out 't2i'" if words[0] == "t2i" else f"there are {', '.join(names)}"
        raise RequestError(f"a job runs one t2i command, and {words[0]!r} is none: {hint}")


def _job(
    words: Sequence[str], name: str | None, environment: dict[str, str], cpus: float | None, gpus: float | None
) -> "Job":
    from orchestration.clusters.jobs import WORDS, Job, entrypoint
    from orchestration.progress import STYLE

    made = f"t2i-{words[0]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    # Nobody looks at the job's own terminal: bars become lines.
    environment = {STYLE: "lines", **environment}
    return Job(name or made, entrypoint(words), environment, {WORDS: shlex.join(["t2i", *words])}, cpus, gpus)


def _warn(server: "JobServer") -> None:
    from orchestration.clusters.jobs import LostConnection

    try:
        if server.is_open():
            _note(f"{server.address} runs jobs for anyone who reaches it: start it with RAY_AUTH_MODE=token")
    except LostConnection:
        return  # What comes next says it.
    here = version("ray")
    if server.ray_version.split(".")[:2] != here.split(".")[:2]:
        _note(f"{server.address} runs Ray {server.ray_version}, and here is {here}: make them the same")


def _submit(app: App, server: "JobServer", job: "Job", no_code: bool, detach: bool, patience: int) -> Result | None:
    from orchestration.clusters.job_code import staged_code
    from orchestration.clusters.jobs import LostConnection

    words = shlex.split(job.entrypoint)
    if HOME_VARIABLE not in job.environment and not {"--home", *HOMELESS} & {word.partition("=")[0] for word in words}:
        _note(f"the job has no --home and no --env {HOME_VARIABLE}: unless the cluster sets one, what it makes is lost")
    with nullcontext() if no_code else staged_code() as code:
        try:
            server.submit(replace(job, code=code))
        except KeyboardInterrupt:
            _note(f"if the job was submitted already, {_again(server, '--stop', job.name)} ends it")
            raise
    _note(f"submitted {job.name} to {server.address}")
    try:
        if detach:
            app.say(job.name)
            return {"job": job.name, "address": server.address, "status": server.job(job.name).status}
        return _follow(app, server, job.name, patience)
    except LostConnection as error:
        # The same command again would be a second job.
        raise RunError(
            f"{server.address} stopped answering ({error}); the job {job.name} was submitted: "
            f"{_again(server, '--attach', job.name)}"
        ) from error


def _follow(app: App, server: "JobServer", name: str, patience: int) -> Result:
    from orchestration.clusters.job_log import Follower

    follower = Follower(server, name, app.say, _note, _again(server, "--attach", name), patience)
    try:
        state = follower.follow()
    except KeyboardInterrupt:
        if _wants_to_stop(name):
            state = _end(server, name)
        else:
            raise RunError(
                f"no longer followed; the job {name} goes on: {_again(server, '--attach', name)} follows it again, "
                f"{_again(server, '--stop', name)} ends it"
            ) from None
    return _outcome(app, server, state, follower.log.last)


def _wants_to_stop(name: str) -> bool:
    if not _at_a_terminal():
        return False
    try:
        return click.confirm(f"\nstop the job {name}?", default=False, err=True)
    except click.Abort:
        return False


def _at_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _outcome(app: App, server: "JobServer", state: "JobState", last: str) -> Result:
    """The result of a job that ended well. Raises RequestError when its request was wrong, else RunError."""
    from orchestration.clusters.jobs import STOPPED, SUCCEEDED

    result: Result = {
        "job": state.name,
        "address": server.address,
        "status": state.status,
        "exit_code": state.exit_code,
    }
    seconds = state.ended - state.began if state.ended and state.began else None
    result |= {"seconds": seconds, "result": _json_of(last)}
    if state.status == SUCCEEDED:
        _note(f"the job {state.name} succeeded")
        return result
    app.give(result)
    if state.status == STOPPED:
        raise RunError(f"the job {state.name} was stopped; the same command goes on where it was")
    logs = _again(server, "--logs", state.name)
    if state.exit_code is None:
        told = " ".join(state.message.split())[:LONGEST_REASON].rstrip(".")
        raise RunError(f"the job {state.name} ended without its command ending ({told}): {logs}")
    said = last.removeprefix("t2i: ").rstrip(".")
    if "No module named" in last:
        said += "; the cluster's image lacks it: `t2i doctor` compares image and project"
    error = RequestError if state.exit_code == WRONG_REQUEST else RunError
    raise error(f"the job {state.name} ended with exit code {state.exit_code}: {said} ({logs})")


def _json_of(line: str) -> Any:
    """What the job's own --json gave, if its last line is that."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _list(app: App, server: "JobServer") -> Result:
    jobs = server.jobs()
    for job in jobs:
        began = "-" if job.began is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.began))
        app.say(f"{job.name}  {job.status}  {began}  {job.words or job.entrypoint}")
    if not jobs:
        app.say(f"{server.address} has no jobs")
    return {"address": server.address, "jobs": [job.to_json() for job in jobs]}


def _logs(app: App, server: "JobServer", name: str) -> Result:
    state, text = server.job(name), server.log(name)
    for line in text.splitlines():
        app.say(line)
    return {"job": name, "address": server.address, "status": state.status, "log": text}


def _stop(app: App, server: "JobServer", name: str) -> Result:
    before = server.job(name)
    state = before if before.over else _end(server, name)
    app.say(f"the job {name} " + (f"had ended: {state.status}" if before.over else f"has ended: {state.status}"))
    return {"job": name, "address": server.address, "status": state.status, "had_ended": before.over}


def _end(server: "JobServer", name: str) -> "JobState":
    """Stop a job, and wait until it is. Raises RunError when it does not end."""
    from orchestration.clusters.jobs import PENDING

    server.stop(name)
    asked = time.monotonic()
    while not (state := server.job(name)).over:
        # Ray tells the job's driver, once there is one.
        if state.status == PENDING and time.monotonic() - asked > BEGIN_S:
            raise RunError(
                f"the job {name} was told to stop and waits to begin ({state.message}): it ends when it does"
            )
        if time.monotonic() - asked > STOP_S:
            raise RunError(f"the job {name} was told to stop and has not ended within {STOP_S:.0f} s: look with --list")
        time.sleep(0.5)
    return state


def _again(server: "JobServer", flag: str, name: str) -> str:
    return shlex.join(["t2i", "submit", "--address", server.address, flag, name])


def _note(line: str) -> None:
    click.echo(f"t2i: {line}", err=True)
