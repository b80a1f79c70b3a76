"""Whoever watches a run is told when machines are missing, and when they are there again."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from orchestration import cluster
from orchestration.campaigns.execution import SLOT, slots
from orchestration.training import elastic, launch
from orchestration.training.elastic import SaysWhoIsMissing


@pytest.mark.parametrize(
    ("fewest", "most", "have", "told"),
    [
        (2, 2, [2.0, 1.0, None, 1.0, 2.0], ["waiting for workers: each needs a CPU, 2 at the least, and the cluster "
         "has 1: bring one", "there are enough machines again: it goes on from the last checkpoint"]),
        (1, 4, [9.0, 2.0, 2.0, 5.0], ["there is a CPU for 2 of 4 workers: fewer train until machines come",
         "there is a CPU for each of 4 workers: all train from a next checkpoint on"]),
    ],
)  # fmt: skip
def test_whoever_watches_is_told_who_is_missing(
    fewest: int, most: int, have: list[float | None], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(elastic, "say", said.append)
    monkeypatch.setattr(cluster, "is_open", lambda *_: True)
    *some, last = have

    def resources() -> dict[str, float]:
        if (now := some.pop(0) if some else last) is None:
            raise ConnectionError("the head does not answer")
        return {"CPU": now}

    with SaysWhoIsMissing(at_head(resources), "CPU", fewest, most, "bring one", every_s=0.01):
        wait_until(lambda: len(said) >= len(told))
    assert said == told


def test_a_head_that_is_gone_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take a minute, and then Ray ends the process: nobody would be told how to go on."""
    looked: list[tuple[str, int]] = []
    asked: list[None] = []
    monkeypatch.setattr(cluster, "is_open", lambda host, port: looked.append((host, port)))
    with SaysWhoIsMissing(at_head(lambda: asked.append(None)), "CPU", 1, 2, "bring one", every_s=0.01):
        wait_until(lambda: len(looked) > 2)
    assert set(looked) == {("head", 6379)} and not asked


def at_head(resources: Any) -> Any:
    context = SimpleNamespace(gcs_address="head:6379")
    return SimpleNamespace(get_runtime_context=lambda: context, cluster_resources=resources)


def wait_until(so: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not so() and time.monotonic() < until:
        time.sleep(0.01)


def test_a_jobs_log_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for style, says in (("lines", True), ("bars", False)):
        monkeypatch.setenv("T2I_PROGRESS", style)
        assert isinstance(launch._missing_named(None, "CPU", (1, 2), "soon"), SaysWhoIsMissing) == says


def test_a_campaign_does_not_ask_it_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "is_open", lambda *_: True)
    assert slots(at_head(lambda: {SLOT: 3.0})) == 3
    monkeypatch.setattr(cluster, "is_open", lambda *_: False)
    assert slots(at_head(lambda: pytest.fail("it was asked"))) is None
