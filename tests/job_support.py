"""A Jobs API without Ray: what Ray's own client asks of one, over http and websockets, with faults on demand."""

import asyncio
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
from aiohttp import web

from orchestration.clusters import job_log

from .cli_support import T2i, runner

TOKEN = "s3cret"
SET_BY_OTHERS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "T2I_HOME")


@dataclass
class FakeJob:
    """A job whose log is shown piece by piece, one a stream's step; it ends when all are shown."""

    entrypoint: str = "python -m orchestration models"
    pieces: list[str] = field(default_factory=lambda: ["one\n", "two\n"])
    status: str = "SUCCEEDED"
    exit_code: int | None = 0
    message: str | None = None
    asked: dict[str, Any] = field(default_factory=dict)
    shown: int = 0
    pending: int = 0
    endless: bool = False
    stopped: bool = False

    @property
    def over(self) -> bool:
        return self.stopped or (self.shown >= len(self.pieces) and not self.endless)

    @property
    def log(self) -> str:
        return "".join(self.pieces[: self.shown])

    def details(self, name: str) -> dict[str, Any]:
        status = "PENDING" if self.pending else "STOPPED" if self.stopped else self.status if self.over else "RUNNING"
        return {
            "type": "SUBMISSION",
            "submission_id": name,
            "job_id": None,
            "driver_info": None,
            "status": status,
            "entrypoint": self.entrypoint,
            "message": self.message,
            "start_time": 1_700_000_000_000,
            "end_time": 1_700_000_004_000 if self.over else None,
            "metadata": self.asked.get("metadata"),
            "driver_exit_code": self.exit_code if self.over else None,
        }


@dataclass
class FakeCluster:
    """token: None lets anyone in. cut_after: streams end after so many steps. deaf: requests that get no answer.

    streams: whether there are any. mute: they bring nothing, and do not end. lost_answers: submissions that are carried
    out and not answered. next: what a submitted job will be. on_ask: called with a job's name before it is told of.
    """

    token: str | None = TOKEN
    ray_version: str = ray.__version__
    cut_after: int | None = None
    deaf: int = 0
    largest_body: int = 2**26
    streams: bool = True
    mute: bool = False
    lost_answers: int = 0
    next: FakeJob = field(default_factory=FakeJob)
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    address: str = ""
    on_ask: Callable[[str], None] | None = None

    def files(self) -> list[str]:
        """What the only package that was sent holds."""
        [package] = self.packages.values()
        return zipfile.ZipFile(io.BytesIO(package)).namelist()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=2**26)
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/packages/{protocol}/{name}", self._package)
        app.router.add_put("/api/packages/{protocol}/{name}", self._upload)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_get("/api/jobs/{name}", self._info)
        app.router.add_get("/api/jobs/{name}/logs", self._logs)
        app.router.add_get("/api/jobs/{name}/logs/tail", self._tail)
        app.router.add_post("/api/jobs/{name}/stop", self._stop)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.deaf:
            self.deaf -= 1
            self._hang_up(request)
        given = request.headers.get("Authorization")
        if self.token is not None and given is None:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        if self.token is not None and given != f"Bearer {self.token}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        name = request.match_info.get("name")
        if self.on_ask is not None and request.path.endswith(f"/api/jobs/{name}"):
            self.on_ask(str(name))
        if "/api/jobs/" in request.path and name is not None and name not in self.jobs:
            return web.Response(status=404, text=f"Job {name} does not exist")
        answer: web.StreamResponse = await handler(request)
        return answer

    @staticmethod
    def _hang_up(request: web.Request) -> None:
        assert request.transport is not None
        request.transport.close()

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"version": "4", "ray_version": self.ray_version, "ray_commit": "", "session_name": ""}
        )

    async def _package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _upload(self, request: web.Request) -> web.Response:
        package = await request.read()
        if len(package) > self.largest_body:
            return web.Response(status=413, text="Maximum request body size exceeded")
        self.packages[request.match_info["name"]] = package
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        asked = json.loads(await request.text())
        name = asked["submission_id"]
        if name in self.jobs:
            return web.Response(status=400, text=f"ValueError: Job with submission_id {name} already exists.")
        self.submitted.append(asked)
        self.next.asked, self.next.entrypoint = asked, asked["entrypoint"]
        self.jobs[name] = self.next
        if self.lost_answers:
            self.lost_answers -= 1
            self._hang_up(request)
        return web.json_response({"job_id": name, "submission_id": name})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response([job.details(name) for name, job in self.jobs.items()])

    async def _info(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["name"]]
        answer = web.json_response(job.details(request.match_info["name"]))
        job.pending = max(0, job.pending - 1)
        return answer

    async def _logs(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["name"]]
        if self.mute or not self.streams:
            job.shown = min(job.shown + 1, len(job.pieces))
        return web.json_response({"logs": job.log})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        if not self.streams:
            return web.Response(status=502)
        job, stream = self.jobs[request.match_info["name"]], web.WebSocketResponse()
        await stream.prepare(request)
        while self.mute:
            await asyncio.sleep(0.02)
        if job.log:
            await stream.send_str(job.log)
        steps = 0
        while not job.over:
            if self.cut_after is not None and steps >= self.cut_after:
                self._hang_up(request)
                return stream
            if job.shown < len(job.pieces):
                job.shown += 1
                steps += 1
                await stream.send_str(job.pieces[job.shown - 1])
            else:
                await asyncio.sleep(0.02)
        await stream.close()
        return stream

    async def _stop(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["name"]]
        was = not job.over
        job.stopped = was
        return web.json_response({"stopped": was})


@contextmanager
def fake_cluster() -> Iterator[FakeCluster]:
    """One on a port of its own, in a thread, until the context ends."""
    cluster, loop = FakeCluster(), asyncio.new_event_loop()
    runner = web.AppRunner(cluster.app(), shutdown_timeout=0.1)

    async def begin() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        cluster.address = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(begin())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def submitter(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    """Runs `t2i` with the fake's token, an empty home folder of the user, and short pauses."""
    for name in SET_BY_OTHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(folder / "user"))
    monkeypatch.setattr(job_log, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(job_log, "LONGEST_PAUSE_S", 0.05)
    return runner(folder / "home", folder / "here", monkeypatch, capsys)
