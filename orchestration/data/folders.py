"""What every reader of a published folder does: see that it is one, find its pictures, and sum it up in a digest."""

import gc
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from orchestration.data.problems import Kind, Notice, Problem
from orchestration.errors import RequestError

_THREADS = 8  # for headers: each waits for the disk


def check_folder(root: Path, wanted: str) -> None:
    """RequestError when `root` is no folder; `wanted` says which folder is meant."""
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a name that no file system can hold
        reason = getattr(error, "strerror", None) or "not a possible path"
        raise RequestError(f"{str(root)!r} cannot be opened ({reason}); give {wanted}.") from error
    if not is_folder:
        raise RequestError(f"{root} is not a folder; give {wanted}.")
    if not os.access(root, os.R_OK | os.X_OK):
        raise RequestError(f"{str(root)!r} cannot be opened (Permission denied); get the right to read it.")


def is_below(name: str) -> bool:
    """Whether a published name leads to a place below its folder, and not elsewhere on the machine."""
    parts = name.split("/")
    return parts[0] != "" and ".." not in parts and not set(parts) <= {"", "."}


def file_sizes(folder: Path, names: Sequence[str], listed_in: Path, notice: Notice) -> dict[str, int]:
    """Size in bytes of every picture that is there, by name; those missing or outside of it are told to `notice`.

    A strict `notice` refuses at the first one missing, with their number.
    """
    sizes: dict[str, int] = {}
    missing: list[str] = []
    for name in names:
        if not is_below(name):
            sentence = f"{listed_in} names the picture {name!r}, which is not below {folder}; mend the name."
            notice(Problem(Kind.ENTRY_BROKEN, sentence))
            continue
        try:
            status = (folder / name).stat()
        except (OSError, ValueError):  # ValueError: a name that no file system can hold
            missing.append(name)
            continue
        if stat.S_ISREG(status.st_mode):
            sizes[name] = status.st_size
        else:
            missing.append(name)
    for name in missing:
        notice(
            Problem(
                Kind.PICTURE_MISSING,
                f"{folder} lacks {len(missing)} of the {len(names)} images that {listed_in.name} lists, {name!r} "
                "among them; unpack the pictures of this split there.",
            )
        )
    return sizes


def measure(files: Sequence[Path], notice: Notice) -> Mapping[Path, tuple[int, int]]:
    """(width, height) in pixels of every picture, from its header; those without one are told to `notice`."""
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = dict(zip(files, pool.map(_header, files), strict=True))
    measured: dict[Path, tuple[int, int]] = {}
    for file, size in sizes.items():
        if isinstance(size, tuple):
            measured[file] = size
        else:
            notice(Problem(Kind.PICTURE_UNDECODABLE, undecodable(file, size)))
    return measured


def undecodable(file: Path, error: Exception | str) -> str:
    """The sentence about a picture that does not decode."""
    if isinstance(error, UnidentifiedImageError):
        reason = "it is of no known picture format"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"picture {file} does not decode ({reason}); fetch it again or remove it from the data set."


def _header(file: Path) -> tuple[int, int] | Exception:
    try:
        with Image.open(file) as image:
            return image.size
    except MemoryError:
        raise
    except Exception as error:  # decoders raise a dozen types on broken bytes, some of them undocumented
        return error


@contextmanager
def collector_paused() -> Iterator[None]:
    """Millions of objects that all stay are built in here: looking for garbage among them would double the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def digest_of(annotation_files: Iterable[Path], sizes: Iterable[tuple[str, int]]) -> str:
    """Sha256 (hex) over the annotation files' names and bytes, and the other files' names and sizes.

    Independent of where the folder lies. A file that cannot be read, as its reader has said, is passed over.
    """
    digest = hashlib.sha256()
    for file in annotation_files:
        with suppress(OSError), file.open("rb") as content:
            digest.update(os.fsencode(file.name) + b"\0" + hashlib.file_digest(content, "sha256").digest())
    for name, size in sizes:
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()
