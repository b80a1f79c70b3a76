"""The project's own code, as it is sent with a job."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestration.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("models", "orchestration", "search_spaces", "clusters")
PROJECT = "pyproject.toml"
LEFT_OUT = frozenset({"__pycache__", "t2i-home", "build", "node_modules", "venv"})
LARGEST_BYTES = 50 * 2**20
NAMED = 3


def code_files(root: Path = ROOT) -> list[Path]:
    """What a job runs, relative to `root`: the packages and their data, without hidden and compiled files or homes.

    Raises RequestError when a package is missing.
    """
    found = [Path(PROJECT)] if (root / PROJECT).is_file() else []
    for package in PACKAGES:
        if not (root / package).is_dir():
            raise RequestError(
                f"{root} has no folder {package}: the code cannot be sent; with --no-code the image's runs"
            )
        for folder, folders, files in os.walk(root / package):
            folders[:] = sorted(name for name in folders if name not in LEFT_OUT and not name.startswith("."))
            here = Path(folder).relative_to(root)
            found += [here / name for name in sorted(files) if not name.startswith(".") and not name.endswith(".pyc")]
    return found


@contextmanager
def staged_code(root: Path = ROOT, largest_bytes: int = LARGEST_BYTES) -> Iterator[Path]:
    """A folder with a copy of those files, for as long as the context lasts.

    Raises RequestError when they are more than `largest_bytes` together: every node fetches them at its first task.
    """
    files = code_files(root)
    sizes = {path: (root / path).stat().st_size for path in files}
    if sum(sizes.values()) > largest_bytes:
        big = sorted(sizes, key=lambda path: -sizes[path])[:NAMED]
        named = ", ".join(f"{path} ({sizes[path] / 2**20:.1f} MiB)" for path in big)
        total, limit = (round(size / 2**20) for size in (sum(sizes.values()), largest_bytes))
        raise RequestError(
            f"the code in {root} is {total} MiB and a job takes {limit}; the biggest: {named}: move data to the "
            "cluster's storage, or use the image's code with --no-code"
        )
    with tempfile.TemporaryDirectory(prefix="t2i-job-") as folder:
        for path in files:
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, target)
        yield Path(folder)
