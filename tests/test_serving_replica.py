"""A replica without Ray: what it keeps loaded, what it lets go of, and what it says of failures."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestration.serving import replica as module
from orchestration.serving.backend import Job, Painted
from orchestration.serving.catalogue import Release, without_places
from orchestration.serving.following import Table
from orchestration.serving.loaded import LoadedModel, Refusal
from orchestration.serving.replica import PainterReplica
from orchestration.serving.settings import ServeSettings
from tests.serving_fakes import PAINTER, FakePainter, digest, register


class Sized(FakePainter):
    """A picture drawn alone is another one: which sizes are used depends on the largest."""

    def check(self, prompt: str) -> None:
        super().check(prompt)
        if prompt.startswith("odd"):
            raise ValueError(f"cannot part {prompt}")

    def draw_float(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None = None) -> torch.Tensor:
        return super().draw_float(prompts, seeds, truncation) * (1.0 if len(prompts) < 2 else 0.5)


SIZED = f"{__name__}:{Sized.__name__}"


class FakeDirectory:
    def __init__(self, *releases: Release) -> None:
        self.wanted: dict[str, Release] = {release.id: release for release in releases}
        self.reports: list[tuple[str, ...]] = []
        self.report = SimpleNamespace(remote=self._report)

    async def _report(self, name: str, loaded: Mapping[str, Any], failed: Mapping[str, str], answering: Any) -> Table:
        self.reports.append(tuple(loaded))
        self.failed = dict(failed)
        return Table({}, dict(self.wanted))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    register(tmp_path, "bird", 1, 2, 3)
    return tmp_path


def bird(home: Path, version: int) -> Release:
    return Release("bird", version, digest("bird", version), home / f"bird@{version}")


def made(home: Path, directory: FakeDirectory, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> PainterReplica:
    """A replica whose models on demand are kept without Serve."""
    monkeypatch.setattr(module, "log_with_serve", lambda: None)
    monkeypatch.setattr(module, "SYNC_S", 0.02)
    given = {"home": home, "painter": PAINTER, "max_batch": 4, "wait_s": 0.0}
    there = PainterReplica(ServeSettings(**{**given, **settings}), directory)
    kept: dict[str, LoadedModel] = {}

    async def load_on_demand(id: str) -> LoadedModel:
        if id not in kept:
            kept[id] = await there._load(there._on_demand[id])
        return kept[id]

    monkeypatch.setattr(there, "_load_on_demand", load_on_demand)
    return there


def job(prompt: str = "a bird", **changes: Any) -> Job:
    return Job("prompt", prompt, (1, 2, 3, 4), request_id="id", **changes)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.01)


def test_it_is_heard_of_while_it_loads(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be taken for dead, and a version answer before it has it."""
    directory = FakeDirectory(bird(home, 1))

    async def run() -> None:
        there = made(home, directory, monkeypatch)
        await there.reconfigure({"max_batch": 4, "wait_s": 0.0})
        directory.wanted["bird@2"] = bird(home, 2)
        await until(lambda: "bird@2" in there._table.wanted)
        before = len(directory.reports)
        await until(lambda: "bird@2" in directory.reports[-1])
        assert len(directory.reports) - before > 5, "loading takes 0.3 s and more"

    asyncio.run(run())


def test_one_that_is_dropped_gives_its_memory_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = FakeDirectory(bird(home, 1), bird(home, 2))

    async def run() -> None:
        there = made(home, directory, monkeypatch)
        await there.reconfigure({"max_batch": 4, "wait_s": 0.0})
        assert isinstance(await there.paint(job(), bird(home, 2)), Painted)
        painter = weakref.ref(there._loaded["bird@2"].painter)
        gc.disable()
        try:
            del directory.wanted["bird@2"]
            await until(lambda: "bird@2" not in there._loaded)
            assert painter() is None, "without waiting for cycles to be found"
        finally:
            gc.enable()

    asyncio.run(run())


def test_who_waits_for_one_that_is_dropped_gets_the_picture(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = FakeDirectory(bird(home, 1), bird(home, 2))

    async def run() -> None:
        there = made(home, directory, monkeypatch)
        await there.reconfigure({"max_batch": 4, "wait_s": 0.5})
        waiting = asyncio.create_task(there.paint(job(), bird(home, 2)))
        await asyncio.sleep(0.05)
        del directory.wanted["bird@2"]
        await until(lambda: "bird@2" not in there._loaded)
        assert isinstance(await waiting, Painted)

    asyncio.run(run())


def test_all_copies_of_a_version_draw_alike_after_a_change(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were loaded on demand, and those that were being loaded, too."""
    directory = FakeDirectory(bird(home, 1))

    async def run() -> None:
        there = made(home, directory, monkeypatch, painter=SIZED)
        await there.reconfigure({"max_batch": 4, "wait_s": 0.0})
        first = await there.paint(job(), bird(home, 2))
        late = asyncio.create_task(there.paint(job(), bird(home, 3)))
        await asyncio.sleep(0.1)
        await there.reconfigure({"max_batch": 2, "wait_s": 0.0})
        await late
        directory.wanted |= {f"bird@{version}": bird(home, version) for version in (2, 3)}
        on_demand = [await there.paint(job(), bird(home, version)) for version in (2, 3)]
        await until(lambda: len(there._loaded) == 3)
        pinned = [await there.paint(job(), bird(home, version)) for version in (2, 3)]
        for one, other in zip(on_demand, pinned, strict=True):
            assert isinstance(one, Painted) and isinstance(other, Painted)
            assert list(one.pictures) == list(other.pictures)
        assert isinstance(first, Painted) and isinstance(pinned[0], Painted)
        assert list(first.pictures) != list(pinned[0].pictures), "the change is one that can be seen"

    asyncio.run(run())


def test_a_failure_is_told_without_the_prompt(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Serve logs what a request raises, text and all."""
    directory = FakeDirectory(bird(home, 1))

    async def run() -> None:
        there = made(home, directory, monkeypatch, painter=SIZED)
        await there.reconfigure({"max_batch": 4, "wait_s": 0.0})
        with caplog.at_level(logging.INFO):
            assert await there.paint(job("odd secret"), bird(home, 1)) == Refusal("internal")
        assert "ValueError" in caplog.text and "secret" not in caplog.text

    asyncio.run(run())


def test_one_that_cannot_be_loaded_names_no_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(home, "bird", 4, loadable=False)
    directory = FakeDirectory(bird(home, 1), bird(home, 4))

    async def run() -> None:
        there = made(home, directory, monkeypatch)
        await there.reconfigure({"max_batch": 4, "wait_s": 0.0})
        assert await there.paint(job(), bird(home, 4)) == Refusal(
            "unknown_model", "bird@4 cannot be loaded: HOME/bird@4 needs a newer text encoder: install it"
        )
        assert directory.failed == {"bird@4": "HOME/bird@4 needs a newer text encoder: install it"}
        broken = await there.paint(job(), Release("bird", 9, digest("bird", 9), home / "broken"))
        assert broken == Refusal("internal")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("checkpoint /srv/a b/c lacks x: restore it", "checkpoint …/a b/c lacks x: restore it"),
        ("checkpoint /home/t2i/runs/a/b lacks x", "checkpoint HOME/runs/a/b lacks x"),
        ("it is not at file:///srv/a/b any more: register it", "it is not at file://… any more: register it"),
        (
            "MLflow at https://me:***@mlflow.internal:5000/x refused (why): mend",
            "MLflow at https://… refused (why): mend",
        ),
        ("has format 't2i/3' and a and/or b, at 3/4: mend it", "has format 't2i/3' and a and/or b, at 3/4: mend it"),
        ("('/srv/a.json'): mend it", "('…/a.json'): mend it"),
    ],
)
def test_places_are_not_told(sentence: str, told: str) -> None:
    assert without_places(sentence, Path("/home/t2i")) == told
