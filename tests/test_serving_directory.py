"""The directory asks a registry that moves, breaks and comes back; what answers goes on answering."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from orchestration.errors import RequestError, RunError
from orchestration.serving import directory as module
from orchestration.serving.catalogue import Release
from orchestration.serving.directory import Directory
from orchestration.serving.replies import Abilities, Lineage, ModelsReply
from orchestration.serving.requests import ServeError
from orchestration.serving.settings import ServeSettings

DRAWS = Abilities(system="fake", recipe="fake", resolution=8, accepts=["prompt"], truncation=False)


class FakeCatalogue:
    """A registry in memory. gone: what an altered or missing checkpoint says, by id; down: the registry is away."""

    alias: ClassVar[dict[str, int]] = {}
    earlier: ClassVar[dict[str, list[int]]] = {}
    gone: ClassVar[dict[str, str]] = {}
    down: ClassVar[bool] = False

    def __init__(self, home: Path, uri: str | None) -> None:
        pass

    def champions(self) -> Mapping[str, Release]:
        self._reach()
        return {model: made(model, version) for model, version in self.alias.items()}

    def version(self, model: str, number: int) -> Release:
        self._reach()
        if number > 9:
            raise RequestError(f"model {model!r} has no version {number}: there are 1")
        return made(model, number)

    def before(self, model: str) -> Sequence[Release]:
        return [made(model, version) for version in self.earlier.get(model, [])]

    def fetched(self, release: Release) -> Release:
        if release.id in self.gone:
            raise RequestError(self.gone[release.id])
        return replace(release, folder=Path("/checkpoints") / release.id)

    def lineage(self, image: str) -> Lineage:
        raise ServeError("unknown_image", f"there is no picture {image}")

    def _reach(self) -> None:
        if self.down:
            raise RunError("MLflow at http://mlflow.internal:5000 cannot be reached: start the server")


def made(model: str, version: int) -> Release:
    return Release(model, version, "ab" * 32)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> type[FakeCatalogue]:
    for name, value in {"alias": {"bird": 1}, "earlier": {}, "gone": {}, "down": False}.items():
        monkeypatch.setattr(FakeCatalogue, name, value)
    return FakeCatalogue


def directory(**settings: Any) -> Directory:
    given = {"home": Path("home"), "poll_s": 0.1, "catalogue": f"{__name__}:FakeCatalogue"}
    return Directory(ServeSettings(**{**given, **settings}))


async def replica(
    there: Directory, failed: Mapping[str, str] | None = None, answering: Mapping[str, str] | None = None
) -> dict[str, str]:
    """One that loads what it is told to, less what it fails at; what answers then."""
    failed = dict(failed or {})
    table = await there.report("a", {}, failed, answering or {})
    loaded = {id: DRAWS for id in table.wanted if id not in failed}
    table = await there.report("a", loaded, {id: why for id, why in failed.items() if id in table.wanted}, table.ids)
    return dict(table.ids)


async def models(there: Directory) -> ModelsReply:
    return (await there.served({}))[1]


async def until(there: Directory, expected: dict[str, str], failed: Mapping[str, str] | None = None) -> None:
    async with asyncio.timeout(5):
        while await replica(there, failed) != expected:
            await asyncio.sleep(0.02)


def test_the_alias_is_followed_back_and_forth(registry: type[FakeCatalogue]) -> None:
    async def run() -> None:
        there = directory()
        assert await replica(there) == {"bird": "bird@1"}
        for version in (2, 1, 3):
            registry.alias["bird"] = version
            await until(there, {"bird": f"bird@{version}"})
        [model] = (await models(there)).models
        assert (model.name, model.version, sorted(model.warm)) == ("bird", "3", ["1", "2"])

    asyncio.run(run())


def test_a_champion_with_an_altered_file_is_refused_and_may_be_mended(
    registry: type[FakeCatalogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        there = directory()
        await replica(there)
        registry.gone["bird@2"] = "generator.safetensors was altered"
        registry.alias["bird"] = 2
        async with asyncio.timeout(5):
            while (note := (await models(there)).models[0].note) is None:
                await replica(there)
                await asyncio.sleep(0.02)
        assert "generator.safetensors was altered" in note and "version 1 goes on answering" in note
        assert await replica(there) == {"bird": "bird@1"}
        monkeypatch.setattr(module, "TRY_AGAIN_S", 0.0)
        registry.gone.clear()
        await until(there, {"bird": "bird@2"})
        assert (await models(there)).models[0].note is None

    asyncio.run(run())


def test_what_no_replica_can_load_is_replaced_by_the_champion_before(registry: type[FakeCatalogue]) -> None:
    registry.alias["bird"], registry.earlier["bird"] = 3, [2, 1]
    registry.gone["bird@2"] = "it is gone"

    async def run() -> None:
        there = directory()
        assert await replica(there, {"bird@3": "no memory"}) == {"bird": "bird@1"}
        [model] = (await models(there)).models
        assert model.version == "1" and "version 3" in (model.note or "") and "no memory" in (model.note or "")

    asyncio.run(run())


def test_at_the_start_a_damaged_champion_gives_way_to_the_one_before(registry: type[FakeCatalogue]) -> None:
    registry.alias["bird"], registry.earlier["bird"] = 2, [1]
    registry.gone["bird@2"] = "manifest.json is missing"

    async def run() -> None:
        there = directory()
        assert await replica(there) == {"bird": "bird@1"}
        assert "manifest.json is missing" in ((await models(there)).models[0].note or "")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("alias", "gone", "models", "sentence"),
    [
        ({}, {}, (), "home has no champion to serve: train one and run t2i promote RUN"),
        ({"bird": 1}, {}, ("fish",), "model 'fish' has no champion: train one"),
        ({"bird": 1}, {"bird@1": "it is gone"}, (), "it is gone"),
        ({"bird": 1}, {}, ("bird@12",), "model 'bird' has no version 12: there are 1"),
    ],
)
def test_nothing_to_serve(
    registry: type[FakeCatalogue],
    alias: dict[str, int],
    gone: dict[str, str],
    models: tuple[str, ...],
    sentence: str,
) -> None:
    registry.alias.clear()
    registry.alias.update(alias)
    registry.gone.update(gone)

    async def run() -> None:
        with pytest.raises(RequestError, match=sentence):
            await replica(directory(models=models))

    asyncio.run(run())


def test_one_broken_model_does_not_stop_the_others(
    registry: type[FakeCatalogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.alias["fish"] = 1
    registry.gone["fish@1"] = "it is gone"

    async def run() -> None:
        there = directory()
        assert await replica(there) == {"bird": "bird@1"}
        assert "it is gone" in (await models(there)).refused["fish"]
        monkeypatch.setattr(module, "TRY_AGAIN_S", 0.0)
        registry.gone.clear()
        await until(there, {"bird": "bird@1", "fish": "fish@1"})
        assert not (await models(there)).refused

    asyncio.run(run())


def test_a_registry_that_is_away_changes_nothing(registry: type[FakeCatalogue]) -> None:
    async def run() -> None:
        there = directory()
        await replica(there)
        registry.down = True
        registry.alias["bird"] = 2
        await asyncio.sleep(0.3)
        assert await replica(there) == {"bird": "bird@1"}
        registry.down = False
        await until(there, {"bird": "bird@2"})

    asyncio.run(run())


def test_a_directory_that_comes_back_learns_what_answers(registry: type[FakeCatalogue]) -> None:
    registry.alias["bird"], registry.earlier["bird"] = 2, [1]

    async def run() -> None:
        there = directory(poll_s=60)
        assert await replica(there, answering={"bird": "bird@1"}) == {"bird": "bird@1"}
        assert await replica(directory(poll_s=60)) == {"bird": "bird@2"}

    asyncio.run(run())


def test_pinned_models_and_chosen_ones(registry: type[FakeCatalogue]) -> None:
    registry.alias["fish"] = 4

    async def run() -> None:
        there = directory(models=("bird@2", "fish@champion"))
        assert await replica(there) == {"bird": "bird@2", "fish": "fish@4"}
        registry.alias.update(bird=3, fish=5)
        await until(there, {"bird": "bird@2", "fish": "fish@5"})

    asyncio.run(run())


def test_versions_are_found_by_number() -> None:
    async def run() -> None:
        there = directory()
        await replica(there)
        found = await there.release("bird", 5, {})
        assert isinstance(found, Release) and found.folder == Path("/checkpoints/bird@5")
        assert await there.release("bird", 10, {}) == ("unknown_model", "model 'bird' has no version 10: there are 1")
        assert await there.release("fish", 1, {}) == (
            "unknown_model",
            "there is no model 'fish' here: there are bird",
        )
        assert await there.lineage("x") == ("unknown_image", "there is no picture x")

    asyncio.run(run())


def test_a_version_that_cannot_be_had(registry: type[FakeCatalogue]) -> None:
    """The client hears no folder of this machine and no address; an outage is no version that does not exist."""
    registry.gone["bird@5"] = f"weights in checkpoint {Path('home').resolve()}/runs/a were changed: restore the file"

    async def run() -> None:
        there = directory()
        await replica(there)
        sentence = "weights in checkpoint HOME/runs/a were changed: restore the file"
        assert await there.release("bird", 5, {}) == ("unknown_model", sentence)
        registry.down = True
        found = await there.release("bird", 6, {})
        assert isinstance(found, tuple) and found[0] == "not_ready" and "mlflow.internal" not in found[1]

    asyncio.run(run())


def test_the_note_of_a_refused_champion_names_no_folder(registry: type[FakeCatalogue]) -> None:
    registry.alias["bird"], registry.earlier["bird"] = 2, [1]
    registry.gone["bird@2"] = "checkpoint /srv/artifacts/bird-2 lacks generator.safetensors: restore the file"

    async def run() -> None:
        there = directory()
        await replica(there)
        note = (await models(there)).models[0].note or ""
        assert "checkpoint …/bird-2 lacks generator.safetensors" in note and "/srv" not in note

    asyncio.run(run())


@pytest.mark.parametrize("models", [("bird@2",), ("bird@2", "champions@1")])
def test_pinned_versions_alone_follow_nothing(registry: type[FakeCatalogue], models: tuple[str, ...]) -> None:
    registry.alias.update(bird=3, fish=4, champions=5)

    async def run() -> None:
        there = directory(models=models)
        pinned = dict(sorted((name.partition("@")[0], name) for name in models))
        assert await replica(there) == pinned
        for _ in range(20):
            await asyncio.sleep(0.02)
            assert await replica(there) == pinned

    asyncio.run(run())


def test_a_champion_that_is_taken_away_is_told_of_and_not_waited_for(registry: type[FakeCatalogue]) -> None:
    registry.alias["fish"] = 1
    registry.gone["fish@1"] = "it is gone"

    async def run() -> None:
        there = directory()
        await replica(there)
        assert "fish" in (await models(there)).refused
        registry.alias["bird"] = 2
        async with asyncio.timeout(5):
            while "bird@2" not in (await there.served({}))[0].wanted:
                await asyncio.sleep(0.02)
            registry.alias.clear()
            while (await models(there)).refused:
                await asyncio.sleep(0.02)
        assert await replica(there) == {"bird": "bird@1"}
        assert (await models(there)).models[0].note == ("it has no champion any more: version 1 goes on answering")

    asyncio.run(run())


def test_a_directory_that_comes_back_and_cannot_fetch_what_answers(registry: type[FakeCatalogue]) -> None:
    registry.alias.update(bird=3, fish=1)
    registry.earlier["bird"] = [2, 1]
    registry.gone["bird@2"] = "it is gone"

    async def run() -> None:
        there = directory(poll_s=60)
        assert await replica(there, answering={"bird": "bird@2"}) == {"bird": "bird@3", "fish": "fish@1"}

    asyncio.run(run())
