"""Paths that mean the same on every node: a job told to a worker names the home, and each node its own copy of it."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from orchestration.errors import RunError
from orchestration.home import Home, copy_of, find_home
from orchestration.stages import REMOTE, is_finished, lock_file, quiet, remote_of

TOLD = "remote"


def told(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The JSON of what a worker is given, for another node too: with the home that `folder` lies in, if it has a URL.

    The folder, which must be this copy's to write, and the stages it names are published first. Raises RunError when
    they cannot be.
    """
    copy = copy_of(folder)
    if copy is None:
        return values
    copy.insist(copy.push, folder, "published")
    home = Home(copy.root)
    remote = remote_of(home.stages)
    assert remote is not None
    for name in sorted(_stages(values, home)):
        if is_finished(home.stages / name):
            remote.send(home.stages / name, quiet)
    said = {"url": copy.url, "root": str(copy.root), "copy": copy.id, "stages": os.environ.get(REMOTE)}
    return {**values, TOLD: said}


def here(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker was told, with the paths of this node, and the stages and scenes it names in place.

    Raises RunError when a stage is not to be had.
    """
    said = given.get(TOLD)
    values: dict[str, Any] = {name: value for name, value in given.items() if name != TOLD}
    if said is None:
        return values
    if said["stages"]:
        os.environ.setdefault(REMOTE, said["stages"])
    home = find_home(said["url"])
    if str(home.root) != said["root"]:
        values = dict(_moved(values, said["root"], str(home.root)))
    remote = remote_of(home.stages)
    assert remote is not None
    home.stages.mkdir(parents=True, exist_ok=True)
    for name in sorted(_stages(values, home)):
        folder = home.stages / name
        if is_finished(folder):
            continue
        with FileLock(lock_file(folder)):
            if not is_finished(folder) and not remote.fetch(folder, quiet):
                raise RunError(f"stage {name} is neither here nor in {remote.url}: repeat the command to publish it")
    scenes = [Path(text) for text in _strings(values) if text.startswith(f"{home.data}/")]
    if not all(folder.exists() for folder in scenes):
        from orchestration.data.sources import source_folder

        experiment = values.get("experiment") or values["base"]
        source_folder(experiment["data"]["source"], home.root)  # drawn the same everywhere
    return values


def written_here(values: Mapping[str, Any]) -> bool:
    """Whether whoever told a worker this works in the same copy as it."""
    said = values.get(TOLD)
    copy = copy_of(find_home(said["url"]).root) if said else None
    return copy is None or copy.id == said["copy"]  # type: ignore[index]


def _stages(values: Any, home: Home) -> set[str]:
    """Names of the stages of a home that are named by path."""
    prefix = f"{home.stages}/"
    return {text.removeprefix(prefix).partition("/")[0] for text in _strings(values) if text.startswith(prefix)}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _moved(value: Any, root: str, own: str) -> Any:
    """The value with every path below `root` below `own`."""
    if isinstance(value, str):
        return own + value[len(root) :] if value == root or value.startswith(f"{root}/") else value
    if isinstance(value, Mapping):
        return {key: _moved(inner, root, own) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(inner, root, own) for inner in value]
    return value
