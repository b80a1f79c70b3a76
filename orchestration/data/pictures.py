"""Pixels made ready once: every picture of a data set, decoded and resized, in one memory-mapped array."""

import glob
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestration.data.json_files import Id, first_fault
from orchestration.data.records import Dataset
from orchestration.errors import RequestError, RunError

RESIZE_RULE = "squash-bilinear-pillow"
PIXELS_FILE = "pictures.npy"
HEADER_FILE = "pictures.json"
_POOL_FROM = 500  # below this, starting a pool costs more than it saves
_ABANDONED_AFTER = 3600.0  # seconds without a write
_CHUNK = 256  # pictures in flight: bounds memory however slow the disk is


class _Header(BaseModel):
    """What `pictures.json` says of `pictures.npy`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    resolution: int = Field(ge=1)
    resize: str
    dataset: str
    split: str
    dataset_digest: str
    sha256: str
    image_ids: list[Id] = Field(min_length=1)


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Prepared pictures, read-only: `pixels` uint8 (N,3,H,W) in 0..255 on disk, `image_ids` int64 (N,)."""

    pixels: NDArray[np.uint8]
    image_ids: NDArray[np.int64]


def load_picture(file: Path, resolution: int) -> NDArray[np.uint8]:
    """One picture as uint8 (3,H,W) in 0..255, H = W = `resolution`.

    Resized straight to the square, bilinear, the aspect ratio not kept: the preprocessing that XMC-GAN
    released. The EXIF orientation is ignored, as COCO's boxes and masks ignore it.
    Raises RequestError when the file does not decode.
    """
    try:
        with Image.open(file) as image:
            square = image.convert("RGB").resize((resolution, resolution), Image.Resampling.BILINEAR, reducing_gap=None)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise a dozen types on broken bytes, some of them undocumented
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise RequestError(
            f"picture {file} does not decode ({reason}); fetch it again or remove it from the data set."
        ) from error
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))


def prepare_pictures(
    dataset: Dataset, resolution: int, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write every picture of `dataset`, in record order, to `folder`, and return `folder`.

    The folder appears whole or not at all. One that already holds these very pictures is left as it is; one
    that holds others, or damaged ones, is replaced. `progress` hears (done, total).
    Raises RequestError for a picture that does not decode and a folder that holds anything else; RunError
    when the disk is full.
    """
    if resolution < 1:
        raise RequestError(f"resolution {resolution} is not a picture size; give a number of pixels of at least 1.")
    if not dataset.records:
        raise RequestError(f"data set {dataset.name!r} has no picture in split {dataset.split!r}; name another split.")
    staging = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        if _already_holds(folder, dataset, resolution):
            return folder
        _remove_abandoned(folder)
        staging.mkdir(parents=True)
        _check_space(len(dataset.records), resolution, staging)
        sha256 = _write_pixels(dataset, resolution, staging / PIXELS_FILE, progress)
        header = _Header(
            resolution=resolution,
            resize=RESIZE_RULE,
            dataset=dataset.name,
            split=dataset.split,
            dataset_digest=dataset.digest,
            sha256=sha256,
            image_ids=[record.image_id for record in dataset.records],
        )
        (staging / HEADER_FILE).write_text(header.model_dump_json() + "\n", encoding="utf-8")
        if not _already_holds(folder, dataset, resolution):  # another process may have been faster
            _move_into_place(staging, folder)
    except OSError as error:
        raise RunError(
            f"pictures could not be written to {folder} ({error.strerror or error}); "
            "free the disk or name another folder, then run the same command again."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def open_pictures(folder: Path) -> Pictures:
    """Map prepared pictures into memory; sizes are checked against the header, pixel values are not read.

    Raises RequestError when they are missing or damaged.
    """
    header = _read_header(folder)
    wanted = (len(header.image_ids), 3, header.resolution, header.resolution)
    file = folder / PIXELS_FILE
    try:
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
        whole = (
            isinstance(pixels, np.memmap)
            and pixels.dtype == np.uint8
            and pixels.shape == wanted
            and pixels.flags.c_contiguous
            and pixels.offset + pixels.nbytes == file.stat().st_size
        )
    except (OSError, EOFError, ValueError) as error:
        raise _damaged(file, "it is missing or cut short") from error
    if not whole:
        raise _damaged(file, f"it is not the uint8 array of shape {wanted} that {HEADER_FILE} describes")
    image_ids = np.array(header.image_ids, dtype=np.int64)
    image_ids.setflags(write=False)
    return Pictures(pixels, image_ids)


def _read_header(folder: Path) -> _Header:
    file = folder / HEADER_FILE
    try:
        return _Header.model_validate_json(file.read_bytes())
    except OSError as error:
        raise RequestError(
            f"{folder} holds no prepared pictures ({HEADER_FILE}: {error.strerror}); prepare them again."
        ) from error
    except ValidationError as error:
        raise _damaged(file, first_fault(error)) from error


def _damaged(file: Path, reason: str) -> RequestError:
    return RequestError(f"prepared pictures {file} are damaged: {reason}; remove {file.parent} and prepare them again.")


def _already_holds(folder: Path, dataset: Dataset, resolution: int) -> bool:
    """Whether `folder` holds exactly these pictures; RequestError when it holds anything else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise RequestError(f"{folder} is a file; name a folder for the pictures.")
    others = sorted(item.name for item in folder.iterdir() if item.name not in (PIXELS_FILE, HEADER_FILE))
    if others:
        raise RequestError(
            f"{folder} holds other files, {others[0]!r} first; name an empty or new folder for pictures."
        )
    try:
        header = _read_header(folder)
        open_pictures(folder)
    except RequestError:
        return False
    return (header.dataset_digest, header.resolution, header.resize, header.image_ids) == (
        dataset.digest,
        resolution,
        RESIZE_RULE,
        [record.image_id for record in dataset.records],
    )


def _remove_abandoned(folder: Path) -> None:
    """Delete what killed runs left beside `folder`: a run that lives writes to its file all the time."""
    for staging in folder.parent.glob(f".{glob.escape(folder.name)}-{'?' * 32}"):
        newest = max((item.stat().st_mtime for item in staging.iterdir()), default=staging.stat().st_mtime)
        if time.time() - newest > _ABANDONED_AFTER:
            shutil.rmtree(staging, ignore_errors=True)


def _check_space(count: int, resolution: int, folder: Path) -> None:
    needed = count * 3 * resolution * resolution + 100 * count  # the header file takes some bytes a picture too
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{count} pictures of {resolution} px need {needed} bytes and {folder.parent} has {free} free; "
            "free the disk or name a folder on another one, then run the same command again."
        )


def _write_pixels(dataset: Dataset, resolution: int, file: Path, progress: Callable[[int, int], None] | None) -> str:
    """Stream the pictures into an .npy file; its sha256 (hex). Memory stays at one chunk of pictures."""
    files = [record.file for record in dataset.records]
    shape = (len(files), 3, resolution, resolution)
    with file.open("w+b") as output:
        np.lib.format.write_array_header_1_0(
            output, {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
        )
        output.seek(0)
        digest = hashlib.sha256(output.read())
        for done, picture in enumerate(_load_all(files, resolution), start=1):
            content = picture.tobytes()
            digest.update(content)
            output.write(content)
            if progress is not None:
                progress(done, len(files))
        output.flush()
        os.fsync(output.fileno())
    return digest.hexdigest()


def _load_all(files: Sequence[Path], resolution: int) -> Iterator[NDArray[np.uint8]]:
    load = partial(load_picture, resolution=resolution)
    if len(files) <= _POOL_FROM:
        yield from map(load, files)
        return
    # Threads: Pillow lets go of the interpreter lock while it decodes and resizes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), _CHUNK):
            yield from pool.map(load, files[start : start + _CHUNK])


def _move_into_place(staging: Path, folder: Path) -> None:
    # A rename cannot replace a folder with content: that is moved aside, into what is deleted at the end.
    if folder.exists():
        folder.rename(staging / "old")
    new = staging / "new"
    new.mkdir()
    for name in (PIXELS_FILE, HEADER_FILE):
        (staging / name).rename(new / name)
    new.rename(folder)
