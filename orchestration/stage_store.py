"""The store of stages as a whole: what there is, who refers to it, freeing the rest, checking every byte."""

import difflib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.narratives.reader import PARTS, read_parts
from orchestration.registry import ARTIFACTS
from orchestration.stages import (
    BEGUN,
    DamagedStage,
    Manifest,
    Progress,
    alone_with,
    begun_folder,
    check_stage,
    hidden_sibling,
    is_finished,
    is_locked,
    quiet,
    read_manifest,
    read_records,
)
from orchestration.training.state import TEXT

PREPARED = "prepared.json"
"""In a run's or trial's folder: the paths of all that it reads, and so the stages it refers to."""
FIGURES = "figures.json"

_STAGE = re.compile(r"[^./][^/]*-[0-9a-f]{16}")
_TEMPORARY = re.compile(rf"\.(?P<stage>{_STAGE.pattern})-[0-9a-f]{{8}}")


def stage_folders(store: Path) -> list[Path]:
    """The folders of stages that were computed to their end, damaged ones too."""
    found = [path for path in store.glob("*") if _STAGE.fullmatch(path.name) and path.is_dir()]
    return sorted(path for path in found if is_finished(path) and not path.is_symlink())


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder; 0 if it is not there."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def find_stage(store: Path, name: str) -> Path:
    """The folder of the stage NAME-KEY; the beginning of its name or key is enough. Raises RequestError."""
    names = [folder.name for folder in stage_folders(store)]
    fitting = [known for known in names if known == name] or [
        known for known in names if name and (known.startswith(name) or _key(known).startswith(name))
    ]
    if len(fitting) == 1:
        return store / fitting[0]
    if fitting:
        raise RequestError(f"{name!r} may be any of {', '.join(fitting)}: write more of it")
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
    there = f"near it: {', '.join(near)}" if near else "it is empty"
    raise RequestError(f"no stage {name!r} in {store}; {there} (t2i stages RECIPE shows a recipe's)")


def _key(name: str) -> str:
    return name.rpartition("-")[2]


def drop(store: Path, name: str) -> int:
    """Remove one stage by its whole name NAME-KEY, what was begun of it too; bytes freed. Raises RequestError."""
    folder = store / name
    there = [path for path in (folder, begun_folder(folder)) if path.is_dir()]
    if not _STAGE.fullmatch(name) or not there or not (is_finished(folder) or begun_folder(folder) in there):
        find_stage(store, name)
        raise RequestError(f"{name!r} is not the whole name of a stage: write NAME-KEY as t2i stages show gives it")
    with alone_with(folder) as alone:
        if not alone:
            raise RequestError(f"stage {name} is being computed or read by another process: wait until that ends")
        return sum(_remove(path) for path in there)


def _remove(folder: Path) -> int:
    """Bytes freed. A kill leaves a temporary of the store, never half a stage."""
    size = size_of(folder)
    temporary = hidden_sibling(folder if not folder.name.startswith(".") else _plain(folder))
    folder.rename(temporary)
    shutil.rmtree(temporary)
    return size


def _plain(begun: Path) -> Path:
    return begun.with_name(begun.name.removeprefix(".").removesuffix(f"-{BEGUN}"))


def referring(home: Home) -> dict[str, list[str]]:
    """Names of stages that runs, campaigns' trials and registered models refer to, each with these (relative to the
    home).

    A part's own run, which has the stage's name, refers to it. Raises RequestError when a run's list is broken.
    """
    found: dict[str, list[str]] = {}
    for run in _runs(home):
        said = str(run.relative_to(home.root))
        names = {run.name} if run.parent == home.runs and _STAGE.fullmatch(run.name) else set[str]()
        try:
            values = json.loads((run / PREPARED).read_text())
        except FileNotFoundError:
            values = None
        except (OSError, ValueError) as error:
            raise RequestError(
                f"{run / PREPARED} cannot be read ({error}), so the stages of this run are not known: repeat the run, "
                "which writes it again, or remove its folder"
            ) from error
        # By name, not by path: a home may have been moved since.
        names |= {part for text in _strings(values) for part in Path(text).parts if _STAGE.fullmatch(part)}
        for name in names:
            found.setdefault(name, []).append(said)
    for file in _registered(home):
        for name in read_parts(file.parent).values():
            found.setdefault(name, []).append(str(file.parents[1].relative_to(home.root)))
    return found


def _registered(home: Home) -> list[Path]:
    """What the checkpoints of registered models name that read narratives with stages of the home."""
    pattern = f"{TEXT}/{PARTS}"
    return sorted([*home.root.glob(f"champions/*/{pattern}"), *(home.root / ARTIFACTS).rglob(pattern)])


def _runs(home: Home) -> list[Path]:
    folders = [*home.runs.glob("*"), *home.campaigns.glob("*/trials/*")]
    return sorted(folder for folder in folders if folder.is_dir())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


@dataclass
class Freed:
    """What gc freed, or would free: bytes by name. kept: why, by name; begun: what can go on, bytes by stage."""

    stages: dict[str, int] = field(default_factory=dict)
    temporaries: dict[str, int] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """In all."""
        return sum(self.stages.values()) + sum(self.temporaries.values())


def free_unreferenced(home: Home, dry_run: bool = False) -> Freed:
    """Free stages that nothing refers to, and what killed processes left in the store.

    Kept are stages that a run or trial refers to, that another process computes or reads, and those that a kept stage
    was made from. Nothing but whole stages' folders and abandoned temporaries is touched. Raises RequestError.
    """
    store = home.stages
    folders = {folder.name: folder for folder in stage_folders(store)}
    freed = Freed()
    for name, runs in referring(home).items():
        if name in folders:
            freed.kept[name] = ", ".join(runs)
    for name, folder in folders.items():
        if name not in freed.kept:
            with alone_with(folder) as alone:
                if not alone:
                    freed.kept[name] = "another process works with it"
    _keep_inputs(folders, freed.kept)
    for name in sorted(folders.keys() - freed.kept.keys()):
        with alone_with(folders[name]) as alone:
            if alone:
                freed.stages[name] = size_of(folders[name]) if dry_run else _remove(folders[name])
            else:
                freed.kept[name] = "another process works with it"
    for path in sorted(store.glob(".*")):
        match = _TEMPORARY.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink() and not is_locked(store / match["stage"]):
            freed.temporaries[path.name] = size_of(path)
            if not dry_run:
                shutil.rmtree(path)
        elif path.name.endswith(f"-{BEGUN}") and path.is_dir():
            freed.begun[_plain(path).name] = size_of(path)
    return freed


def _keep_inputs(folders: dict[str, Path], kept: dict[str, str]) -> None:
    """Adds to `kept` all that its stages were made from."""
    by_key = {_key(name): name for name in folders}
    waiting = list(kept)
    while waiting:
        name = waiting.pop()
        for value in _inputs(folders[name]).values():
            source = by_key.get(value)
            if source is not None and source not in kept:
                kept[source] = f"{name} was made from it"
                waiting.append(source)


def _inputs(folder: Path) -> dict[str, str]:
    try:
        return read_manifest(folder).inputs
    except DamagedStage:
        return {}


def check_store(store: Path, progress: Progress = quiet) -> tuple[list[Path], list[DamagedStage]]:
    """Read every byte of every stage: (all folders, what is wrong with the damaged ones)."""
    folders, damaged = stage_folders(store), []
    for done, folder in enumerate(folders):
        progress("checking stages", done, len(folders))
        try:
            check_stage(folder, every_byte=True)
        except DamagedStage as error:
            damaged.append(error)
    progress("checking stages", len(folders), len(folders))
    return folders, damaged


@dataclass(frozen=True)
class Description:
    """One stage in full. inputs: digests, or names of stages in this store; records: its computations."""

    folder: Path
    damage: str | None
    manifest: Manifest | None
    bytes: int
    inputs: dict[str, str]
    records: list[dict[str, Any]]
    used_by: list[str]
    figures: Any


def describe(home: Home, folder: Path) -> Description:
    """Everything that is known of a stage. What is damaged is said, not raised."""
    damage, manifest = None, None
    try:
        manifest = read_manifest(folder)
        check_stage(folder)
    except DamagedStage as error:
        damage = error.what
    others = stage_folders(home.stages)
    by_key = {_key(other.name): other.name for other in others}
    inputs = {label: by_key.get(value, value) for label, value in (manifest.inputs if manifest else {}).items()}
    key = _key(folder.name)
    used_by = [*referring(home).get(folder.name, [])]
    used_by += [other.name for other in others if key in _inputs(other).values()]
    try:
        figures = json.loads((folder / FIGURES).read_text())
    except (OSError, ValueError):
        figures = None
    records = [record for record in read_records(home.stages) if record.get("key") == key]
    return Description(folder, damage, manifest, size_of(folder), inputs, records, used_by, figures)
