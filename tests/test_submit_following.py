"""Following a job: each line once, through every kind of lost connection."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.clusters import job_log
from orchestration.clusters.job_log import Follower, LogReader
from orchestration.clusters.jobs import JobState, LostConnection

from .cli_support import T2i
from .job_support import FakeCluster, FakeJob, fake_cluster, submitter


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


class Scripted:
    """What a Follower asks, without a network: `log` grows by one character range a stream, which then is cut."""

    address = "http://head:8265"

    def __init__(self, log: str, cuts: list[int], failures: list[bool], replays: random.Random) -> None:
        self._log, self._cuts, self._failures, self._random = log, [*cuts, len(log)], list(failures), replays
        self._written = 0

    def job(self, name: str) -> JobState:
        if self._failures and self._failures.pop(0):
            raise LostConnection("Connection refused")
        over = self._written >= len(self._log)
        return JobState(name, "SUCCEEDED" if over else "RUNNING", "x", "", 1.0, 2.0 if over else None, 0, "")

    def log(self, name: str) -> str:
        return self._log[: self._written]

    def tail(self, name: str, quiet_s: float, read: Callable[[str], None]) -> None:
        self._written = max(self._written, self._cuts.pop(0) if self._cuts else len(self._log))
        shown, position = self._log[: self._written], 0
        while position < len(shown):
            # A stream may be cut before all that is written was sent.
            if self._random.random() < 0.1:
                return
            size = self._random.randint(1, 7)
            read(shown[position : position + size])
            position += size


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet="ab\nz é", max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
    st.lists(st.booleans(), max_size=8),
    st.integers(0, 2**16),
)
def test_every_line_once_however_often_the_connection_is_cut(
    log: str, cuts: list[int], failures: list[bool], seed: int
) -> None:
    server: Any = Scripted(log, sorted(min(cut, len(log)) for cut in cuts), failures, random.Random(seed))
    lines: list[str] = []
    notes: list[str] = []
    state = Follower(server, "job", lines.append, notes.append, "again", wait=lambda _: None).follow()
    assert state.over
    expected = log.split("\n")
    assert lines == (expected[:-1] if expected[-1] == "" else expected)
    assert sum("lost" in note for note in notes) == sum("again" in note for note in notes if "connected" in note)


def test_a_job_that_had_ended(submit: T2i, cluster: FakeCluster) -> None:
    cluster.jobs["one"] = FakeJob(pieces=["a\n", "b"], shown=2)
    assert submit("--attach", "one").out == "a\nb\n"


def test_a_bar_becomes_its_last_state() -> None:
    lines: list[str] = []
    reader = LogReader(lines.append)
    reader.read("0%\r50%\r100%\nplain\r\n\nrest")
    reader.end()
    assert lines == ["100%", "plain", "", "rest"] and reader.last == "rest"


def test_streams_that_are_cut(submit: T2i, cluster: FakeCluster) -> None:
    cluster.cut_after = 1
    cluster.next.pieces = [f"line {number}\n" for number in range(12)]
    assert submit("models").out == "".join(cluster.next.pieces)


def test_a_proxy_that_lets_no_streams_through(submit: T2i, cluster: FakeCluster) -> None:
    cluster.streams = False
    assert submit("models").out == "one\ntwo\n"


def test_a_stream_that_is_cut_without_a_word(
    submit: T2i, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither side knows: only silence."""
    monkeypatch.setattr(job_log, "QUIET_S", 0.05)
    cluster.mute = True
    assert submit("models").out == "one\ntwo\n"


def test_a_cluster_that_is_away_for_a_while(submit: T2i, cluster: FakeCluster) -> None:
    cluster.jobs["one"] = FakeJob(pieces=["a\n", "b\n", "c\n"], pending=1)
    asked = []

    def go_away(name: str) -> None:
        asked.append(name)
        if len(asked) == 2:
            cluster.deaf = 3

    cluster.on_ask = go_away
    ended = submit("--attach", "one")
    assert ended.out == "a\nb\nc\n" and ended.code == 0
    assert ended.err.count("lost the connection") == ended.err.count("connected to") == 1


def test_a_head_that_never_comes_back(submit: T2i, cluster: FakeCluster) -> None:
    cluster.jobs["one"] = FakeJob(endless=True, pending=1)
    cluster.on_ask = lambda name: setattr(cluster, "deaf", 10**9) if cluster.jobs[name].pending == 0 else None
    started = time.monotonic()
    ended = submit("--attach", "one", "--patience", "1")
    assert ended.code == 1 and 1 <= time.monotonic() - started < 20
    assert "out of reach for 1 s" in ended.err and f"--address {cluster.address} --attach one" in ended.err


def test_a_job_that_is_deleted_under_the_client(submit: T2i, cluster: FakeCluster) -> None:
    cluster.jobs["one"] = FakeJob(pending=3)
    cluster.on_ask = lambda name: cluster.jobs.clear() if cluster.jobs["one"].pending == 1 else None
    ended = submit("--attach", "one")
    assert ended.code == 1 and "no longer knows the job one" in ended.err and "Traceback" not in ended.err


def test_a_job_that_waits_for_room(submit: T2i, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "SLOW_S", 0.05)
    cluster.jobs["one"] = FakeJob(pending=12, message="It may be waiting for resources.")
    assert submit("--attach", "one").err.count("one waits to begin: It may be waiting for resources.") == 1
