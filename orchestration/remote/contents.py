"""What a folder of a home holds, here and in the store, and how it is told apart: small files, checkpoints, records."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from orchestration.remote.lease import LEASE
from orchestration.stages import write_atomically

WRITER, PUBLISHED = "writer.json", ".published.json"
MANIFEST = "manifest.json"  # of a checkpoint: see orchestration.training.state
CHECKPOINTS = ("checkpoints", "rungs")
APART = ("trials",)  # folders that are published by themselves
LINES = ".jsonl"
NOT_KEPT = ("optuna.db", "optuna.db-journal", "ledger.db-journal")
"""Made again from the ledger, or part of what sqlite is writing."""


@dataclass
class Listing:
    """What is published: small files with their sizes, and each checkpoint's files with theirs."""

    files: dict[str, int] = field(default_factory=dict)
    checkpoints: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, sizes: dict[str, int]) -> "Listing":
        found = cls()
        for name, size in sizes.items():
            parts = PurePosixPath(name).parts
            if ".." in parts or parts[0] in APART or name in (LEASE, WRITER):
                continue
            if parts[0] in CHECKPOINTS:
                if len(parts) > 2:
                    found.checkpoints.setdefault("/".join(parts[:2]), {})["/".join(parts[2:])] = size
            else:
                found.files[name] = size
        return found

    def is_whole(self, name: str) -> bool:
        """Whether a checkpoint exists at all."""
        return MANIFEST in self.checkpoints.get(name, {})


@dataclass
class Here:
    """What is to be published: small files, and checkpoints with their manifests' sha256; damaged: those that are not,
    and say nothing of what is published."""

    files: dict[str, Path] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path) -> "Here":
        found = cls()
        for parent in CHECKPOINTS:
            for path in sorted((folder / parent).glob("[!.]*")):
                name = f"{parent}/{path.name}"
                try:
                    manifest = (path / MANIFEST).read_bytes()
                    sizes_of(manifest)
                    found.checkpoints[name] = sha256_of(manifest)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except ValueError:
                    found.damaged.add(name)
        for place, folders, files in os.walk(folder):
            top = Path(place) == folder
            away = (*CHECKPOINTS, *APART) if top else ()
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in away)
            for name in sorted(files):
                path = Path(place) / name
                if not name.startswith(".") and name not in NOT_KEPT and path.is_file():
                    found.files[path.relative_to(folder).as_posix()] = path
        return found


def noted(folder: Path) -> dict[str, str]:
    """sha256 of what was published of a folder; nothing of it is relied on without a look at the store."""
    try:
        return dict(json.loads((folder / PUBLISHED).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def note(folder: Path, published: dict[str, str]) -> None:
    """Keep that for `noted`."""
    write_atomically(folder / PUBLISHED, json.dumps(published, indent=1, sort_keys=True))


def sizes_of(manifest: bytes) -> dict[str, int]:
    """Sizes of a checkpoint's files, by path. Raises ValueError when this is no manifest or names files elsewhere."""
    try:
        found = {str(name): int(entry["bytes"]) for name, entry in json.loads(manifest)["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} is broken") from error
    for name in found:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{MANIFEST} names the file {name!r} outside the folder")
    return found


def whole_lines(content: bytes) -> bytes:
    """Without the last one while it is being written."""
    return content[: content.rfind(b"\n") + 1]


def size_of(path: Path) -> int:
    """In bytes; -1 of a file that is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def sha256_of(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
