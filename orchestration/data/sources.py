"""What a person writes to name data: `scenes[:options]`, or `FORMAT:PATH` such as `coco:PATH`."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestration.data import scenes
from orchestration.data.coco import read_coco
from orchestration.data.records import Dataset
from orchestration.errors import RequestError

Reader = Callable[[Path, str], Dataset]
READERS: dict[str, Reader] = {"coco": read_coco}  # FORMAT -> reader of (folder, split)

SCENES = "scenes"


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
    if kind == SCENES or (kind in READERS and argument.strip()):
        return Source(kind, argument)
    if kind in READERS:
        raise RequestError(f"data {spec!r} names no folder; write {kind}:PATH with the folder of the data set.")
    known = ", ".join([f"{SCENES}[:options]", *(f"{name}:PATH" for name in READERS)])
    near = difflib.get_close_matches(kind.strip().lower(), [SCENES, *READERS], n=1)
    hint = f" (perhaps {near[0]!r} was meant)" if near else ""
    raise RequestError(f"data {spec!r} is of no known kind{hint}; write one of {known}.")


def open_source(spec: str, split: str, home: Path, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """Read one split ("train", "val" or "test") of the named data.

    Scenes are generated once below `home`/data and read as any COCO folder; `progress` hears (done, total)
    meanwhile.
    Raises RequestError for a wrong name, option, folder or split.
    """
    source = parse_source(spec)
    if source.kind == SCENES:
        folder = scenes.generate(scenes.parse_options(source.argument), home / "data", progress)
        return replace(read_coco(folder, split), name=SCENES)
    try:
        folder = Path(source.argument).expanduser()
    except RuntimeError as error:
        raise RequestError(f"data {spec!r}: its ~ names no known user; write the whole path.") from error
    return READERS[source.kind](folder, split)
