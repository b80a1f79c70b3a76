"""What a person writes to name data: `scenes[:options]`, or `FORMAT:PATH` such as `coco:PATH`."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from orchestration.data import scenes
from orchestration.data.coco import coco_splits, read_coco
from orchestration.data.cub import cub_splits, read_cub
from orchestration.data.folder import folder_splits, read_folder
from orchestration.data.json_files import unreadable
from orchestration.data.ln_folders import (
    ln_ade20k_splits,
    ln_coco_splits,
    ln_flickr30k_splits,
    ln_open_images_splits,
    read_ln_ade20k,
    read_ln_coco,
    read_ln_flickr30k,
    read_ln_open_images,
)
from orchestration.data.problems import Notice, refuse
from orchestration.data.records import CONTENTS, Dataset
from orchestration.data.shards import prepared_splits, read_prepared
from orchestration.data.visual_genome import read_visual_genome, read_visual_genome_sg2im, visual_genome_splits
from orchestration.errors import RequestError

Reader = Callable[[Path, str, Notice], Dataset]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Format:
    """One published layout.

    `carries` is what a full release has; `read` takes (folder, split, notice); `splits` gives those the folder has,
    and raises RequestError for a folder of another layout.
    """

    title: str
    carries: frozenset[str]
    splits: Callable[[Path], tuple[str, ...]]
    read: Reader


SCENES, PREPARED = "scenes", "prepared"

_COCO = frozenset(CONTENTS) - {"class", "subject-box"}
_NARRATED = frozenset({"images", "captions", "narratives", "traces"})

_KNOWN: Mapping[str, Format] = {
    "coco": Format("MS-COCO 2014 or 2017, whichever the folder has more of", _COCO, coco_splits, read_coco),
    "coco-2014": Format("MS-COCO 2014", _COCO, partial(coco_splits, year=2014), partial(read_coco, year=2014)),
    "coco-2017": Format("MS-COCO 2017", _COCO, partial(coco_splits, year=2017), partial(read_coco, year=2017)),
    "ln-coco": Format("Localized Narratives of MS-COCO 2017", _COCO, ln_coco_splits, read_ln_coco),
    "ln-openimages": Format(
        "Localized Narratives of Open Images", _NARRATED, ln_open_images_splits, read_ln_open_images
    ),
    "ln-flickr30k": Format("Localized Narratives of Flickr30k", _NARRATED, ln_flickr30k_splits, read_ln_flickr30k),
    "ln-ade20k": Format("Localized Narratives of ADE20k", _NARRATED, ln_ade20k_splits, read_ln_ade20k),
    "cub": Format(
        "CUB-200-2011 birds with the captions of Reed et al.",
        frozenset({"images", "captions", "class", "subject-box"}),
        cub_splits,
        read_cub,
    ),
    "visual-genome": Format(
        "Visual Genome 1.4, as published", frozenset({"images", "graph"}), visual_genome_splits, read_visual_genome
    ),
    "visual-genome-sg2im": Format(
        "Visual Genome 1.4, filtered as by sg2im",
        frozenset({"images", "graph"}),
        visual_genome_splits,
        read_visual_genome_sg2im,
    ),
    "folder": Format(
        "Your own pictures with a captions.jsonl", frozenset({"images", "captions"}), folder_splits, read_folder
    ),
    PREPARED: Format(
        "What `t2i data prepare` wrote",
        frozenset(CONTENTS),
        prepared_splits,
        read_prepared,
    ),
}


def _said(function: Callable[P, T]) -> Callable[P, T]:
    """The same function, with a RequestError where the file system refuses a file or folder."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            if error.filename is None:
                raise
            raise RequestError(unreadable(error.filename, error)) from error

    return call


FORMATS: Mapping[str, Format] = {
    name: replace(known, splits=_said(known.splits), read=_said(known.read)) for name, known in _KNOWN.items()
}


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed data name: `kind` is "scenes" or a format, `argument` its options (or "") or its path."""

    kind: str
    argument: str


def parse_source(spec: str) -> Source:
    """Take a data name apart; nothing on disk is looked at.

    Raises RequestError that lists the known kinds, and the near one where there is one.
    """
    kind, _, argument = spec.partition(":")
    if kind == SCENES or (kind in FORMATS and argument.strip()):
        return Source(kind, argument)
    if kind in FORMATS:
        raise RequestError(f"data {spec!r} names no folder; write {kind}:PATH with the folder of the data set.")
    known = ", ".join([f"{SCENES}[:options]", *(f"{name}:PATH" for name in FORMATS)])
    near = difflib.get_close_matches(kind.strip().lower(), [SCENES, *FORMATS], n=1)
    hint = f" (perhaps {near[0]!r} was meant)" if near else ""
    raise RequestError(f"data {spec!r} is of no known kind{hint}; write one of {known}.")


def source_folder(spec: str, home: Path, progress: Callable[[int, int], None] | None = None) -> tuple[str, Path]:
    """(format, folder) of the named data. Scenes are generated once below `home`/data. Raises RequestError."""
    source = parse_source(spec)
    if source.kind == SCENES:
        return "coco", scenes.generate(scenes.parse_options(source.argument), home / "data", progress)
    if not source.argument.isprintable():
        # Manifests are UTF-8 text, and a line break in a name would break every sentence about it.
        raise RequestError(f"data {spec!r}: the folder's name has characters that are no text; rename the folder.")
    try:
        # Absolute: records hold where their files are, for workers that run elsewhere.
        return source.kind, Path(source.argument).expanduser().absolute()
    except RuntimeError as error:
        raise RequestError(f"data {spec!r}: its ~ names no known user; write the whole path.") from error


def open_source(
    spec: str,
    split: str,
    home: Path,
    progress: Callable[[int, int], None] | None = None,
    notice: Notice = refuse,
) -> Dataset:
    """Read one split ("train", "val" or "test") of the named data.

    Scenes are generated once below `home`/data and read as any COCO folder; `progress` hears (done, total)
    meanwhile. `notice` hears what is wrong with the data.
    Raises RequestError for a wrong name, option, folder or split.
    """
    kind, folder = source_folder(spec, home, progress)
    dataset = FORMATS[kind].read(folder, split, notice)
    return replace(dataset, name=SCENES) if parse_source(spec).kind == SCENES else dataset
