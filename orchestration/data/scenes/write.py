"""Generates a data set as files in the published layouts: COCO, COCO-Stuff, Visual Genome, Localized Narratives."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from orchestration.data.scenes.annotations import SplitAnnotations
from orchestration.data.scenes.compose import Triple
from orchestration.data.scenes.options import ScenesOptions
from orchestration.data.scenes.pictures import Pictures
from orchestration.data.scenes.vocabulary import BACKGROUNDS, COLOURS, RELATIONS, THINGS
from orchestration.errors import RunError

VERSION = 1  # raise it whenever the same options would give other bytes

SPLITS = ("train", "val", "test")
MANIFEST = "scenes.json"

Progress = Callable[[int, int], None]


def folder_name(options: ScenesOptions) -> str:
    """The name of the folder that `generate` writes: it stands for the options and VERSION."""
    identity = json.dumps({"version": VERSION, "options": options.model_dump()}, sort_keys=True)
    return f"scenes-v{VERSION}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def generate(options: ScenesOptions, root: Path, progress: Progress | None = None) -> Path:
    """Write the data set under `root` if it is not there yet; return its folder.

    `progress` is called with (pictures done, pictures in all). The folder appears only when it is complete; of two
    processes that want the same one, the second waits for the first. Raises RunError where it cannot be written.
    """
    folder = root / folder_name(options)
    if is_complete(folder, options):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{folder.name}.lock"):
            if not is_complete(folder, options):
                _generate_aside(options, folder, progress)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"The scenes folder {folder} (about {_megabytes(options)} MB) could not be written: {reason}; "
            "free the disk or name another folder, and run the same command again."
        ) from error
    return folder


def is_complete(folder: Path, options: ScenesOptions) -> bool:
    """Whether the folder holds all of the data set these options name."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(manifest, dict)
        and manifest.get("version") == VERSION
        and manifest.get("options") == options.model_dump()
    )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _generate_aside(options: ScenesOptions, folder: Path, progress: Progress | None) -> None:
    """Write into a hidden sibling and rename it. Under the lock, a sibling found there is a dead process's."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    needed, free = _megabytes(options), shutil.disk_usage(folder.parent).free // 1_000_000
    if free < needed:
        raise RunError(
            f"The scenes folder {folder} needs about {needed} MB and only {free} MB are free; "
            "free the disk or name another folder."
        )
    partial.mkdir()
    try:
        _write(options, partial, progress)
        if folder.exists():  # what is there is no complete data set
            shutil.rmtree(folder)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _megabytes(options: ScenesOptions) -> int:
    """Disk space needed, rounded up: a picture and its stuff map fill whole blocks."""
    picture = 2 * 4096 + options.size * options.size // 3
    annotations = 2500 + 2200 * options.objects
    return 1 + (options.train + options.val + options.test) * (picture + annotations) // 1_000_000


def _write(options: ScenesOptions, folder: Path, progress: Progress | None) -> None:
    """All splits one after the other; `scenes.json` last."""
    (folder / "annotations").mkdir()
    pictures = Pictures(options)
    total = options.train + options.val + options.test
    done = 0

    def one_more_done() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    digests: dict[str, str] = {}
    for split in SPLITS:
        annotations = SplitAnnotations(split, options, first_id=done + 1)
        digests[f"{split}2017"] = _write_pictures(pictures, annotations, options, split, folder, one_more_done)
        for name, text in annotations.files().items():
            data = text.encode()
            (folder / "annotations" / name).write_bytes(data)
            digests[f"annotations/{name}"] = hashlib.sha256(data).hexdigest()
    manifest = _manifest(options, pictures.held_out, digests)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _write_pictures(
    pictures: Pictures,
    annotations: SplitAnnotations,
    options: ScenesOptions,
    split: str,
    folder: Path,
    one_more_done: Callable[[], None],
) -> str:
    """The pictures and stuff maps of one split; returns the sha256 of their pixels."""
    photos, maps = folder / f"{split}2017", folder / "stuffthingmaps" / f"{split}2017"
    photos.mkdir()
    maps.mkdir(parents=True)
    pixels = hashlib.sha256()
    for index in range(getattr(options, split)):
        rng = Random(f"scenes {VERSION} {options.seed} {split} {index}")
        scene, drawing = pictures.draw_next(rng, split, index)
        stuff_map, file_name = annotations.add(rng, scene, drawing)
        for image, place in ((drawing.image, photos), (stuff_map, maps)):
            image.save(place / file_name)
            pixels.update(image.tobytes())
        one_more_done()
    return pixels.hexdigest()


def _manifest(options: ScenesOptions, held_out: tuple[Triple, ...], digests: dict[str, str]) -> dict[str, Any]:
    """What `scenes.json` says. Digests are sha256: of a file's bytes, or of a folder's pixels (pictures and maps)."""
    return {
        "version": VERSION,
        "options": options.model_dump(),
        "things": [thing.name for thing in THINGS[: options.things]],
        "colours": [colour.name for colour in COLOURS[: options.colours]],
        "backgrounds": [background.name for background in BACKGROUNDS[: options.backgrounds]],
        "relations": list(RELATIONS),
        "held_out": [[THINGS[t].name, COLOURS[c].name, BACKGROUNDS[b].name] for t, c, b in held_out],
        "digests": digests,
    }
