"""Follows the registry: which version answers for each model, what replicas are to load, and where pictures come from.

One of it runs in the application. It may die and come back: what answers now is known to those who ask it.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from orchestration.errors import RequestError, RunError
from orchestration.serving.catalogue import Catalogue, Release, without_places
from orchestration.serving.following import CHAMPION, Following, Table
from orchestration.serving.replies import Abilities, Lineage, ModelsReply
from orchestration.serving.requests import ServeError
from orchestration.serving.settings import NO_CHAMPION, ServeSettings

SYNC_S = 0.5
"""Replicas and the ingress ask for the table so often."""
ALIVE_S = 10.0
TRY_AGAIN_S = 60.0
"""What was refused is looked at again so often: its files may have been restored."""

logger = logging.getLogger(__name__)


class Directory:
    """The table of what answers, kept up to date with the registry from the first question on."""

    def __init__(self, settings: ServeSettings) -> None:
        module, _, name = settings.catalogue.partition(":")
        kind: type[Catalogue] = getattr(import_module(module), name)
        self._settings = settings
        self._catalogue = kind(settings.home, settings.tracking_uri)
        self._following = Following(settings.keep_warm_s, ALIVE_S)
        self._beginning = asyncio.Lock()
        self._begun = False
        self._looking: asyncio.Task[None] | None = None
        self._told = ""

    async def report(
        self, replica: str, loaded: Mapping[str, Abilities], failed: Mapping[str, str], answering: Mapping[str, str]
    ) -> Table:
        """What a replica has loaded and could not load; answering: ids by model, as it was told last. Raises
        RequestError where there is nothing to serve."""
        await self._begin(answering)
        self._following.report(replica, loaded, failed, time.monotonic())
        for release in self._following.failed():
            await self._fall_back(release)
        return self._following.table(time.monotonic())

    async def served(self, answering: Mapping[str, str]) -> tuple[Table, ModelsReply]:
        """What answers, for those who route, and what can be asked of each model. Raises as `report`."""
        await self._begin(answering)
        now = time.monotonic()
        return self._following.table(now), self._following.models(now)

    async def release(self, model: str, version: int, answering: Mapping[str, str]) -> Release | tuple[str, str]:
        """A version of a served model that is asked for by its number; code and sentence of the refusal where it cannot
        be had, as where its files are missing or altered. Raises as `report`."""
        await self._begin(answering)
        table = self._following.table(time.monotonic())
        if (found := table.wanted.get(f"{model}@{version}")) is not None:
            return found
        if model not in table.answering:
            return "unknown_model", f"there is no model {model!r} here: {_listed(table.answering)}"
        try:
            known: Release = await self._in_thread(self._catalogue.version, model, version)
        except RequestError as error:
            return "unknown_model", str(error)
        except RunError as error:
            logger.warning("%s@%d could not be looked up: %s", model, version, error)
            return "not_ready", "the registry of models cannot be reached: repeat the request in a minute"
        try:
            release: Release = await self._in_thread(self._catalogue.fetched, known)
        except (RequestError, RunError) as error:
            logger.warning("%s was asked for and cannot be had: %s", known.id, error)
            return "unknown_model", self._told_clients(error)
        return release

    async def lineage(self, image: str) -> Lineage | tuple[str, str]:
        """Where a picture comes from; code and sentence of the refusal where that is not known."""
        try:
            return await self._in_thread(self._catalogue.lineage, image)
        except ServeError as error:
            return error.code, error.message

    async def _begin(self, answering: Mapping[str, str]) -> None:
        if self._begun:
            return
        async with self._beginning:
            if self._begun:
                return
            champions = await self._in_thread(self._catalogue.champions)
            asked = self._settings.models or tuple(champions)
            if not asked:
                raise RequestError(f"{self._settings.home} has no champion to serve: {NO_CHAMPION}")
            failures = []
            for name in asked:
                try:
                    await self._in_thread(self._begin_with, name, champions, answering)
                except (RequestError, RunError) as error:
                    if self._settings.models or len(asked) == 1:
                        raise
                    failures.append(str(error))
                    self._following.refuse(champions[name], self._told_clients(error))
                    logger.warning("%s is not served: %s", name, error)
            if len(failures) == len(asked):
                raise RequestError(failures[0])
            self._looking = asyncio.create_task(self._keep_looking())
            self._begun = True

    def _begin_with(self, asked: str, champions: Mapping[str, Release], answering: Mapping[str, str]) -> None:
        """Where something answered already, it goes on; where the champion cannot be had, the one before it does."""
        model, _, which = asked.partition("@")
        if which not in ("", CHAMPION):
            self._following.pin(self._catalogue.fetched(self._catalogue.version(model, int(which))))
            return
        champion = champions.get(model)
        if champion is None:
            raise RequestError(f"model {model!r} has no champion: {NO_CHAMPION}")
        before = [release for release in self._earlier(model) if release.id != champion.id]
        known = self._first_whole([release for release in before if release.id == answering.get(model)])
        if known is not None:
            # It may answer because the champion was refused: that is found out in its own time.
            self._following.begin(known)
            return
        try:
            self._following.begin(self._catalogue.fetched(champion))
        except (RequestError, RunError) as error:
            fallback = self._first_whole(before)
            if fallback is None:
                raise
            self._following.begin(fallback)
            self._following.refuse(champion, self._told_clients(error))
            logger.warning("version %d of %s is served in place of the champion: %s", fallback.version, model, error)

    def _earlier(self, model: str) -> Sequence[Release]:
        try:
            return self._catalogue.before(model)
        except (RequestError, RunError) as error:
            logger.warning("the history of %s cannot be read: %s", model, error)
            return []

    def _first_whole(self, releases: Sequence[Release]) -> Release | None:
        for release in releases:
            if self._following.was_refused(release):
                continue
            try:
                return self._catalogue.fetched(release)
            except (RequestError, RunError) as error:
                logger.warning("%s cannot be served: %s", release.id, error)
        return None

    async def _fall_back(self, failed: Release) -> None:
        """In place of what no replica could load, the champion before it."""
        why = self._following.why_failed(failed)
        if self._following.was_refused(failed):
            return
        self._following.refuse(failed, why)
        before = [release for release in self._earlier(failed.model) if release.id != failed.id]
        fallback = await self._in_thread(self._first_whole, before)
        if fallback is not None:
            self._following.begin(fallback)
            self._following.refuse(failed, why)
            logger.warning("%s could not be loaded (%s): %s answers", failed.id, why, fallback.id)

    async def _keep_looking(self) -> None:
        since = time.monotonic()
        while True:
            await asyncio.sleep(self._settings.poll_s)
            if time.monotonic() - since > TRY_AGAIN_S:
                since = time.monotonic()
                self._following.try_again()
            try:
                await self._look()
                self._told = ""
            except Exception as error:
                # What answers goes on answering while the registry cannot be asked.
                if str(error) != self._told:
                    self._told = str(error)
                    logger.warning("the registry could not be asked for its champions: %s", error)

    async def _look(self) -> None:
        champions = await self._in_thread(self._catalogue.champions)
        for model in self._followed(champions):
            champion = champions.get(model)
            if champion is None:
                self._following.lost(model)
                continue
            self._following.saw(champion)
            if not self._following.is_new(champion):
                continue
            try:
                self._following.coming(await self._in_thread(self._catalogue.fetched, champion))
                logger.info("%s is the champion: replicas load it", champion.id)
            except (RequestError, RunError) as error:
                self._following.refuse(champion, self._told_clients(error))
                logger.warning("%s is the champion and was refused: %s", champion.id, error)

    def _followed(self, champions: Mapping[str, Release]) -> Sequence[str]:
        """The models whose champion answers, wherever it moves."""
        if not self._settings.models:
            return list(dict.fromkeys([*champions, *self._following.known]))
        named = [name.partition("@") for name in self._settings.models]
        return [model for model, _, which in named if which in ("", CHAMPION)]

    def _told_clients(self, error: Exception) -> str:
        return without_places(str(error), self._settings.home)

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)


def _listed(models: Mapping[str, Any]) -> str:
    return f"there are {', '.join(sorted(models))}" if models else "none is served"
