"""The ingress without Ray: which version a request goes to, and what becomes of it while others restart."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from orchestration.serving import app as module
from orchestration.serving.app import Ingress
from orchestration.serving.backend import Job, Painted
from orchestration.serving.catalogue import Release
from orchestration.serving.following import Table
from orchestration.serving.loaded import Refusal
from orchestration.serving.replies import ModelIdentity, ModelsReply, ServedModel
from orchestration.serving.requests import ServeError
from orchestration.serving.settings import ServeSettings

BIRD = Release("bird", 1, "ab" * 32, Path("bird@1"))
SERVED = ServedModel(
    name="bird",
    version="1",
    checkpoint_digest=BIRD.digest,
    aliases=["champion"],
    system="fake",
    recipe="fake",
    resolution=8,
    accepts=["prompt"],
    truncation=False,
)
READY = ModelsReply(models=[SERVED], default={"prompt": "bird"})
NOTHING = ModelsReply(models=[], default={})


@dataclass
class Remote:
    """A method of a handle; what it raises first, it raises once."""

    method: Callable[..., Awaitable[Any]]
    raises: list[Exception] = field(default_factory=list)
    calls: int = 0

    async def remote(self, *arguments: Any) -> Any:
        self.calls += 1
        await asyncio.sleep(0)
        if self.raises:
            raise self.raises.pop()
        return await self.method(*arguments)


class FakeDirectory:
    def __init__(self) -> None:
        self.told, self.found = READY, replace(BIRD, version=2)
        self.served, self.release = Remote(self._served), Remote(self._release)

    async def _served(self, answering: Any) -> tuple[Table, ModelsReply]:
        return Table({"bird": BIRD}, {BIRD.id: BIRD}), self.told

    async def _release(self, model: str, version: int, answering: Any) -> Any:
        assert answering == {"bird": "bird@1"}
        return self.found


class FakePainters:
    def __init__(self) -> None:
        self.refuses: Refusal | None = None
        self.paint = Remote(self._paint)

    def options(self, multiplexed_model_id: str) -> "FakePainters":
        return self

    async def _paint(self, job: Job, release: Release) -> Painted | Refusal:
        identity = ModelIdentity(name=release.model, version=str(release.version), checkpoint_digest=release.digest)
        return self.refuses or Painted(identity, [b"png"], ["id"])


@pytest.fixture
def directory() -> FakeDirectory:
    return FakeDirectory()


@pytest.fixture
def painters() -> FakePainters:
    return FakePainters()


@pytest.fixture
def ingress(directory: FakeDirectory, painters: FakePainters, monkeypatch: pytest.MonkeyPatch) -> Ingress:
    monkeypatch.setattr(module, "log_with_serve", lambda: None)
    monkeypatch.setattr(module, "SYNC_S", 0.02)
    return Ingress(ServeSettings(home=Path("home")), painters, directory, None)


def job(model: str | None = None) -> Job:
    return Job("prompt", "a bird", (1,), model, request_id="id")


async def refusal(ingress: Ingress, job: Job) -> tuple[str, str]:
    with pytest.raises(ServeError) as caught:
        await ingress.paint(job)
    return caught.value.code, caught.value.message


def test_many_first_requests_begin_one_poll(ingress: Ingress, directory: FakeDirectory) -> None:
    async def run() -> None:
        await asyncio.gather(*(ingress.paint(job()) for _ in range(20)))
        asked = directory.served.calls
        await asyncio.sleep(0.2)
        assert directory.served.calls - asked <= 10, "one question for each 0.02 s"

    asyncio.run(run())


def test_a_directory_that_was_restarted_costs_nothing(ingress: Ingress, directory: FakeDirectory) -> None:
    """It answers before any replica has reported to it."""

    async def run() -> None:
        await ingress.paint(job())
        directory.told = NOTHING
        await asyncio.sleep(0.1)
        assert (await ingress.paint(job())).model.version == "1"
        directory.release.raises.append(RayActorError())
        assert (await ingress.paint(job("bird@2"))).model.version == "2"

    asyncio.run(run())


@pytest.mark.parametrize("code", ["unknown_model", "not_ready"])
def test_a_version_that_the_directory_refuses(ingress: Ingress, directory: FakeDirectory, code: str) -> None:
    directory.found = (code, "it cannot be had")  # type: ignore[assignment]
    assert asyncio.run(refusal(ingress, job("bird@2"))) == (code, "it cannot be had")


def test_a_version_that_cannot_be_loaded_is_looked_for_again(
    ingress: Ingress, directory: FakeDirectory, painters: FakePainters
) -> None:
    async def run() -> None:
        painters.refuses = Refusal("unknown_model", "bird@2 cannot be loaded: it is gone")
        assert (await refusal(ingress, job("bird@2")))[0] == "unknown_model"
        painters.refuses = None
        await ingress.paint(job("bird@2"))
        await ingress.paint(job("bird@2"))
        assert directory.release.calls == 2

    asyncio.run(run())


@pytest.mark.parametrize("model", [None, "bird", "bird@champion"])
def test_a_champion_that_cannot_be_loaded_is_no_fault_of_the_request(
    ingress: Ingress, painters: FakePainters, model: str | None
) -> None:
    painters.refuses = Refusal("unknown_model", "bird@1 cannot be loaded: it is gone")
    assert asyncio.run(refusal(ingress, job(model)))[0] == "not_ready"
