"""Content-addressed results: what a stage depends on is its name, and what exists is not computed again.

A stage's key is the hash of its name, version, settings and inputs. Its result is a folder, written atomically with a
manifest of every file's size and sha256. Two processes that need the same missing stage compute it once: one holds a
file lock, the other waits, and takes over if the first dies.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from orchestration.errors import RunError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""

MANIFEST = "stage.json"
# Larger files are checked by size when read; hashing them each time would cost more than it finds.
HASH_LIMIT = 16 * 2**20


def quiet(what: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a recipe.

    settings: the JSON values it depends on; inputs: digests or keys of what it reads; run: fills an empty folder.
    """

    name: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    run: Callable[[Path, Progress], None] = field(compare=False)

    @property
    def key(self) -> str:
        """16 hex digits."""
        return short_hash(
            {"name": self.name, "version": self.version, "settings": self.settings, "inputs": self.inputs}
        )


def short_hash(value: Any) -> str:
    """The first 16 hex digits of the sha256 of a JSON value, written one way."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file under a folder, by relative path: what a manifest says of them."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_atomically(path: Path, data: bytes | str) -> None:
    """`path` holds all of `data` or what it held before."""
    temporary = hidden_sibling(path)
    try:
        with temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def hidden_sibling(path: Path) -> Path:
    """A new name beside `path` for what is not finished.

    Not from tempfile, whose files and folders only their owner can read: a home may be shared.
    """
    return path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")


def ensure(stage: Stage, store: Path, progress: Progress = quiet) -> Path:
    """The folder of the stage's result under `store`, computed now if it is not there or is damaged.

    Raises RunError when a file cannot be read or written, a full disk for one; whatever else `stage.run` raises passes
    through. Nothing half-done is left behind.
    """
    store.mkdir(parents=True, exist_ok=True)
    folder = store / f"{stage.name}-{stage.key}"
    with FileLock(store / f".{folder.name}.lock"):
        if is_complete(folder):
            return folder
        # Whoever held the lock before us and was killed left these.
        for left_over in (folder, *store.glob(f".{folder.name}-*")):
            shutil.rmtree(left_over, ignore_errors=True)
        working = hidden_sibling(folder)
        try:
            working.mkdir()
            stage.run(working, progress)
            files = list_files(working)
            manifest = {
                "name": stage.name,
                "version": stage.version,
                "settings": dict(stage.settings),
                "inputs": dict(stage.inputs),
                "files": files,
            }
            write_atomically(working / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
            working.replace(folder)
        except OSError as error:
            raise RunError(
                f"stage {stage.name} failed on a file ({error}): free some disk under {store} or mend that file, "
                "and repeat"
            ) from error
        finally:
            shutil.rmtree(working, ignore_errors=True)
    return folder


def is_complete(folder: Path) -> bool:
    """Whether the folder holds every file its manifest names, whole."""
    try:
        files = dict(json.loads((folder / MANIFEST).read_text())["files"])
        return all(_is_whole(folder / name, known["bytes"], known["sha256"]) for name, known in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    return size > HASH_LIMIT or file_sha256(path) == sha256
