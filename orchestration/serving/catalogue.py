"""Which versions of which models there are to serve, from the registry."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestration.champion_history import champions, read_history
from orchestration.champions import CHECKPOINT_TAG, champion_checkpoint
from orchestration.errors import RequestError, RunError
from orchestration.home import Home
from orchestration.painter import require_words
from orchestration.registry import ModelVersion
from orchestration.serving.inputs import can_be_asked_for
from orchestration.serving.lineage import trace
from orchestration.serving.replies import Lineage
from orchestration.tracking import Tracker


@dataclass(frozen=True, slots=True)
class Release:
    """A version of a registered model. digest: of its checkpoint, as it was registered, "" where that was not noted;
    folder: where it lies, once it was fetched and found to be whole."""

    model: str
    version: int
    digest: str
    folder: Path | None = None

    @property
    def id(self) -> str:
        """As a request names it."""
        return f"{self.model}@{self.version}"


class Catalogue(Protocol):
    """The registry as serving sees it. Every method may take long, and raises RequestError or RunError."""

    def __init__(self, home: Path, uri: str | None) -> None: ...

    def champions(self) -> Mapping[str, Release]:
        """The champion of every model that has one, by name; names are such as a request can write, without @."""
        ...

    def version(self, model: str, number: int) -> Release:
        """One version."""
        ...

    def before(self, model: str) -> Sequence[Release]:
        """The champions before the present one, the latest first."""
        ...

    def fetched(self, release: Release) -> Release:
        """With its folder on this machine; raises where a file is missing or altered, or nothing can be drawn."""
        ...

    def lineage(self, image: str) -> Lineage:
        """See `Backend.lineage`; raises ServeError."""
        ...


class RegistryCatalogue:
    """MLflow's registry."""

    def __init__(self, home: Path, uri: str | None) -> None:
        self._home = Home(home)
        self._tracker = Tracker(self._home.root, uri)

    def champions(self) -> Mapping[str, Release]:
        return {
            name: _release(version) for name, version in self._tracker.champions().items() if can_be_asked_for(name)
        }

    def version(self, model: str, number: int) -> Release:
        return _release(self._version(model, number))

    def before(self, model: str) -> Sequence[Release]:
        versions = {each.version: each for each in self._tracker.versions(model)}
        numbers = champions(read_history(list(versions.values())))
        earlier = dict.fromkeys(reversed(numbers[:-1]))
        return [_release(versions[number]) for number in earlier if number in versions and number != numbers[-1]]

    def fetched(self, release: Release) -> Release:
        version = self._version(release.model, release.version)
        try:
            checkpoint = champion_checkpoint(self._tracker, version, self._home)
        except OSError as error:
            raise RunError(
                f"the checkpoint of {release.id} cannot be read ({error}): mend that, or choose another version"
            ) from error
        if release.digest not in ("", checkpoint.digest):
            raise RequestError(
                f"the checkpoint of {release.id} is another one than was registered (its manifest was altered): "
                "register it again, or choose another version"
            )
        require_words(checkpoint.experiment)
        return Release(release.model, release.version, checkpoint.digest, checkpoint.folder)

    def lineage(self, image: str) -> Lineage:
        return trace(self._tracker, self._home, image)

    def _version(self, model: str, number: int) -> ModelVersion:
        versions = self._tracker.versions(model)
        for version in versions:
            if version.version == number:
                return version
        there = f"there are {', '.join(str(each.version) for each in versions)}" if versions else "none is registered"
        raise RequestError(f"model {model!r} has no version {number}: {there}")


_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]*)://[^\s'\"(),;]+")
_FOLDER = re.compile(r"(?<![\w.:…/])/(?:[^\s'\"(),;:/]+/)+")


def without_places(sentence: str, home: Path) -> str:
    """A sentence about a checkpoint as a client may read it: folders and addresses are none of a client's business."""
    return _FOLDER.sub("…/", _ADDRESS.sub(r"\1://…", sentence.replace(str(home.resolve()), "HOME")))


def _release(version: ModelVersion) -> Release:
    return Release(version.model, version.version, version.tags.get(CHECKPOINT_TAG, ""))
