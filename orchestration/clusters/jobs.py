"""A cluster's Jobs API: submit, ask, stop, and read what a job wrote."""

import asyncio
import logging
import os
import shlex
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.clusters.access import ADDRESS_VARIABLES, HOW_TO_GIVE_A_TOKEN, Access
from orchestration.errors import RequestError, RunError

CONNECT_S, ANSWER_S = 10.0, 60.0
PENDING, RUNNING, SUCCEEDED, STOPPED, FAILED = "PENDING", "RUNNING", "SUCCEEDED", "STOPPED", "FAILED"
TALKERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
ENDED = frozenset({SUCCEEDED, STOPPED, FAILED})
WORDS = "t2i"
"""Of a job's metadata: the command it runs."""

Read = Callable[[str], None]


class LostConnection(Exception):
    """The Jobs API did not answer, or not as one; the job may well go on."""


class UnknownJob(RequestError):
    """No job has this name."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is submitted. code: a folder that becomes its working directory, on every node; None: the image's own.

    cpus and gpus: reserved for the driver. environment: of the driver and of all workers.
    """

    name: str
    entrypoint: str
    environment: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    cpus: float | None = None
    gpus: float | None = None
    code: Path | None = None


@dataclass(frozen=True, slots=True)
class JobState:
    """What the cluster says of a job. began, ended: Unix seconds. exit_code: of its command, once it ended."""

    name: str
    status: str
    entrypoint: str
    message: str
    began: float | None
    ended: float | None
    exit_code: int | None
    words: str

    @property
    def over(self) -> bool:
        """Whether it ended, however."""
        return self.status in ENDED

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {name: getattr(self, name) for name in self.__slots__}


class JobServer:
    """One cluster's Jobs API through Ray's own client, with time limits.

    Every method raises RequestError when the token is refused, LostConnection when nothing answers, and those that
    name a job raise UnknownJob. The constructor raises RequestError for each: nothing has begun then.
    """

    def __init__(self, access: Access) -> None:
        self.access, self.address = access, access.address
        try:
            with self._told():
                self._client = _client(access)
        except LostConnection as error:
            raise RequestError(
                f"no Jobs API answers at {self.address} ({error}): check --address, and that the head runs with its "
                "dashboard and the port is open to you"
            ) from error

    @property
    def ray_version(self) -> str:
        """Of the cluster."""
        return str(self._client._server_ray_version)

    def is_open(self) -> bool:
        """Whether it answers those without a token."""
        import requests

        with self._told():
            answer = requests.get(f"{self.address}/api/jobs/", timeout=(CONNECT_S, ANSWER_S), allow_redirects=False)
            return answer.status_code == 200

    def submit(self, job: Job) -> None:
        """Start a job. One whose answer was lost has been started if the cluster knows it afterwards.

        Raises RequestError when its name is taken.
        """
        environment: dict[str, Any] = {"env_vars": dict(job.environment)} if job.environment else {}
        if job.code is not None:
            environment["working_dir"] = str(job.code)
        if self.known(job.name):
            raise RequestError(f"--name {job.name}: {self.address} has a job of this name: choose another")
        try:
            with self._told(job.name):
                self._client.submit_job(
                    entrypoint=job.entrypoint,
                    submission_id=job.name,
                    runtime_env=environment,
                    metadata=dict(job.metadata),
                    entrypoint_num_cpus=job.cpus,
                    entrypoint_num_gpus=job.gpus,
                )
        except LostConnection as error:
            if not self._started(job.name):
                raise RunError(
                    f"{self.address} stopped answering while the job was submitted ({error}): look with --list whether "
                    f"there is a job {job.name}, and submit again if not"
                ) from error

    def _started(self, name: str) -> bool:
        try:
            return self.known(name)
        except LostConnection:
            return False

    def known(self, name: str) -> bool:
        """Whether there is a job of this name."""
        try:
            self.job(name)
        except UnknownJob:
            return False
        return True

    def job(self, name: str) -> JobState:
        """How a job is."""
        with self._told(name):
            return _state(self._client.get_job_info(name))

    def jobs(self) -> list[JobState]:
        """Every submitted job, the newest first."""
        with self._told():
            told = [_state(one) for one in self._client.list_jobs() if one.submission_id]
        return sorted(told, key=lambda one: one.began or 0.0, reverse=True)

    def log(self, name: str) -> str:
        """All that a job wrote so far."""
        with self._told(name):
            return str(self._client.get_job_logs(name))

    def tail(self, name: str, quiet_s: float, read: Read) -> None:
        """Give `read` a job's log from its beginning, as it grows, until it ends or nothing came for `quiet_s`.

        It returns as well when the stream is cut; `job` says then whether the cluster still answers.
        """
        asyncio.run(_read_all(self._client.tail_job_logs(name), quiet_s, read))

    def stop(self, name: str) -> bool:
        """Ask a job to end. False when it had ended."""
        with self._told(name):
            return bool(self._client.stop_job(name))

    @contextmanager
    def _told(self, name: str | None = None) -> Iterator[None]:
        """What Ray's client and what lies beneath it raise, as what a person can use."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            if self.access.token is None:
                raise RequestError(f"{self.address} wants a token and there is none: {HOW_TO_GIVE_A_TOKEN}") from error
            raise RequestError(
                f"{self.address} refuses the token: it is another cluster's or an old one; {HOW_TO_GIVE_A_TOKEN}"
            ) from error
        except (requests.exceptions.JSONDecodeError, requests.exceptions.HTTPError, KeyError, ValueError) as error:
            raise LostConnection("what answers there is no Ray cluster, or does not see one") from error
        except (requests.exceptions.RequestException, OSError) as error:
            raise LostConnection(_reason(error)) from error
        except RuntimeError as error:
            said = str(error)
            if name is not None and "status code 404" in said:
                raise UnknownJob(f"{self.address} has no job {name!r}: --list shows those there are") from error
            if "already exists" in said:
                raise RequestError(f"--name {name}: {self.address} has a job of this name: choose another") from error
            if "status code 4" in said:
                raise RequestError(f"{self.address} refuses the request: {_last_line(said)}") from error
            raise LostConnection(_last_line(said)) from error


def _client(access: Access) -> Any:
    from ray.job_submission import JobSubmissionClient

    # They speak of each upload, and of each stream that is closed.
    for talker in TALKERS:
        logging.getLogger(talker).setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        """Ray's, which waits for ever by itself."""

        def _do_request(self, method: str, endpoint: str, **words: Any) -> Any:
            words.setdefault("timeout", (CONNECT_S, ANSWER_S))
            return super()._do_request(method, endpoint, **words)

    # Ray lets these overrule the address that it is given.
    kept = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        return Client(access.address, headers=access.headers)
    finally:
        os.environ.update(kept)


def _state(told: Any) -> JobState:
    def seconds(milliseconds: int | None) -> float | None:
        return milliseconds / 1000 if milliseconds else None

    return JobState(
        name=str(told.submission_id),
        status=str(getattr(told.status, "value", told.status)),
        entrypoint=told.entrypoint,
        message=told.message or "",
        began=seconds(told.start_time),
        ended=seconds(told.end_time),
        exit_code=told.driver_exit_code,
        words=(told.metadata or {}).get(WORDS, ""),
    )


async def _read_all(chunks: AsyncIterator[str], quiet_s: float, read: Read) -> None:
    import aiohttp

    try:
        async with aclosing(chunks) as stream:  # type: ignore[type-var]
            while True:
                async with asyncio.timeout(quiet_s):
                    chunk = await anext(stream)
                read(chunk)
    except (StopAsyncIteration, TimeoutError, aiohttp.ClientError, OSError, RuntimeError):
        return


def _reason(error: Exception) -> str:
    """The innermost cause, in its own words: what wraps it repeats the address at length."""
    seen: Any = error
    while True:
        inner = seen.__cause__ or seen.__context__ or getattr(seen, "reason", None)
        if inner is None or not isinstance(inner, Exception) or inner is seen:
            break
        seen = inner
    text = getattr(seen, "strerror", None) or str(seen) or type(seen).__name__
    return str(text).rstrip(".")


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return (lines[-1] if lines else said)[:300].rstrip(".")


def entrypoint(words: Sequence[str]) -> str:
    """`t2i WORDS` as a line for the cluster's shell, as a module: it runs where no console script is installed."""
    return shlex.join(["python", "-u", "-m", "orchestration", *words])
