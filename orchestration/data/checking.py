"""`t2i data check`: everything a data set holds is gone through, and nothing stops at the first fault."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestration.data.masks import label_map, mask_fault, panoptic_ids, size_fault
from orchestration.data.picture_files import read_picture
from orchestration.data.problems import Findings, Kind, Notice, Problem
from orchestration.data.records import CONTENTS, Dataset, ImageRecord, Instance
from orchestration.data.sources import FORMATS, source_folder
from orchestration.errors import RequestError
from orchestration.stages import Progress, quiet

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_CHUNK = 512  # records in flight: bounds memory however slow the disk is
_LONGEST = 600  # characters of a sentence that are shown

COUNTS: Mapping[str, Callable[[ImageRecord], int]] = {
    "pictures": lambda record: 1,
    "captioned images": lambda record: int(bool(record.captions)),
    "captions": lambda record: len(record.captions or ()),
    "images of a class": lambda record: int(record.class_id is not None),
    "images with things": lambda record: int(bool(record.instances)),
    "things": lambda record: len(record.instances or ()),
    "images with stuff": lambda record: int(record.stuff_map is not None or bool(record.stuff)),
    "panoptic maps": lambda record: int(record.panoptic is not None),
    "scene graphs": lambda record: int(record.graph is not None),
    "relationships": lambda record: len(record.graph.relationships) if record.graph else 0,
    "narratives": lambda record: len(record.narratives or ()),
    "mouse traces": lambda record: sum(len(said.traces) for said in record.narratives or ()),
}
"""What is counted, split by split."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a data set holds and what is wrong with it.

    `counts` is by split, then by name of `COUNTS`; a split that could not be read has none. `digests` (sha256, hex)
    are of the splits that could be read.
    """

    source: str
    counts: Mapping[str, Mapping[str, int]]
    carries: frozenset[str]
    digests: Mapping[str, str]
    findings: Findings

    def kinds(self, faults: bool) -> list[Kind]:
        """The kinds found, faults or remarks, the most frequent first."""
        counts = self.findings.counts
        return sorted((kind for kind in counts if kind.is_fault == faults), key=lambda kind: -counts[kind])

    @property
    def verdict(self) -> str | None:
        """One sentence when there are faults."""
        if not self.findings.faults:
            return None
        kinds = self.kinds(faults=True)
        # Without a whole file, what is left is not what was published.
        whole = not {Kind.FILE_BROKEN, Kind.SPLIT_UNUSABLE} & set(kinds)
        or_skip = ", or leave them out with t2i data prepare --broken skip" if whole else ""
        found = f"{number_of(self.findings.faults, 'fault')} of {number_of(len(kinds), 'kind')}"
        return f"{found} in {self.source}: mend them{or_skip}."

    def as_json(self) -> dict[str, Any]:
        """Everything, kinds by their names in `Kind`."""
        found = self.findings
        return {
            "source": self.source,
            "splits": {split: dict(counts) for split, counts in self.counts.items()},
            "carries": sorted(self.carries),
            "digests": dict(self.digests),
            "faults": found.faults,
            "problems": {
                kind.name: {
                    "title": kind.title,
                    "fault": kind.is_fault,
                    "count": count,
                    "examples": found.examples.get(kind, []),
                }
                for kind, count in found.counts.items()
            },
        }

    def lines(self) -> Iterator[str]:
        """The report for a person: what is there, faults, remarks."""
        yield self.source
        yield from self._table()
        yield f"  carries {', '.join(name for name in CONTENTS if name in self.carries) or 'nothing'}"
        for title, faults in (("fault", True), ("remark", False)):
            kinds = self.kinds(faults)
            total = sum(self.findings.counts[kind] for kind in kinds)
            yield ""
            yield f"{number_of(total, title)} of {number_of(len(kinds), 'kind')}" if kinds else f"no {title}"
            for kind in kinds:
                yield f"{self.findings.counts[kind]:>9,}  {kind.title}"
                yield from (f"{'':11}- {_shown(sentence)}" for sentence in self.findings.examples.get(kind, []))

    def _table(self) -> Iterator[str]:
        splits = list(self.counts)
        yield f"  {'':20}" + "".join(f"{split:>12}" for split in splits)
        for name in COUNTS:
            row = [self.counts[split].get(name) for split in splits]
            if any(row) or name == "pictures":
                yield f"  {name:20}" + "".join(f"{'unreadable' if n is None else format(n, ','):>12}" for n in row)


def _shown(sentence: str) -> str:
    """One line that a terminal can show: a name in published data may hold anything, and be of any length."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def number_of(count: int, thing: str) -> str:
    """The count and the word, in the plural where it is one."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def check_source(
    spec: str,
    splits: Sequence[str] | None,
    home: Path,
    progress: Progress = quiet,
    *,
    examples: int = 3,
    pictures: bool = True,
) -> Report:
    """Read `splits` (None: all there are) of the named data, decode every picture, draw every mask, and report.

    `examples` sentences are kept of each kind of problem; `pictures` = False leaves the picture files closed.
    Raises RequestError for a wrong name, folder or split, and for nothing that is wrong inside.
    """
    kind, folder = source_folder(spec, home, lambda done, total: progress("drawing scenes", done, total))
    reader = FORMATS[kind]
    known = reader.splits(folder)
    wanted = known if not splits else tuple(dict.fromkeys(splits))
    if strange := [split for split in wanted if split not in known]:
        raise RequestError(f"{spec} has no split {strange[0]!r}; it has {', '.join(known)}.")
    findings = Findings(examples)
    notice = _Once(findings)
    counts: dict[str, dict[str, int]] = {}
    digests: dict[str, str] = {}
    carries: frozenset[str] = frozenset()
    for split in wanted:
        counts[split] = {}
        try:
            dataset = reader.read(folder, split, notice)
        except RequestError as error:
            notice(Problem(Kind.SPLIT_UNUSABLE, str(error)))
            continue
        digests[split], carries = dataset.digest, carries | dataset.carries
        # Prepared pictures were decoded when they were written, and their published folder may be gone.
        counts[split] = _check_split(dataset, notice, progress, pictures and dataset.root.is_dir())
    return Report(spec, counts, carries, digests, findings)


class _Once:
    """A `Notice` that passes a problem on once: what serves several splits is read for each of them."""

    def __init__(self, notice: Notice) -> None:
        self.notice, self._heard = notice, set[int]()

    def __call__(self, problem: Problem) -> None:
        key = hash(problem.sentence)
        if key not in self._heard:
            self._heard.add(key)
            self.notice(problem)


def _check_split(dataset: Dataset, notice: Notice, progress: Progress, pictures: bool) -> dict[str, int]:
    """The counts of `COUNTS`; what is wrong is told to `notice`, in record order."""
    counts = dict.fromkeys(COUNTS, 0)
    records = dataset.records
    what = f"checking {dataset.split}"
    # Pillow lets go of the interpreter lock while it decodes. What it warns of is looked for here by itself.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        for start in range(0, len(records), _CHUNK):
            chunk = records[start : start + _CHUNK]
            found = pool.map(lambda record: record_problems(record, dataset.root, pictures), chunk)
            for done, (record, problems) in enumerate(zip(chunk, found, strict=True), start + 1):
                for problem in problems:
                    notice(problem)
                for name, count in COUNTS.items():
                    counts[name] += count(record)
                progress(what, done, len(records))
    return counts


def record_problems(record: ImageRecord, root: Path, pictures: bool = True) -> list[Problem]:
    """What is wrong with the files and masks of one image; `pictures` = False leaves its picture closed."""
    found = picture_problems(record, root) if pictures else []
    regions = (*(record.instances or ()), *(record.stuff or ()))
    found += [problem for region in regions if (problem := _mask_problem(record, region)) is not None]
    return found + _map_problems(record)


def with_sound_masks(dataset: Dataset, notice: Notice) -> Dataset:
    """The data set without the things and regions whose masks `notice` hears to be broken."""

    def sound(record: ImageRecord, regions: tuple[Instance, ...] | None) -> tuple[Instance, ...] | None:
        problems = [_mask_problem(record, region) for region in regions or ()]
        if regions is None or not any(problems):
            return regions
        for problem in problems:
            if problem is not None:
                notice(problem)
        return tuple(region for region, problem in zip(regions, problems, strict=True) if problem is None)

    if not dataset.carries & {"masks", "stuff"}:
        return dataset
    records = []
    for record in dataset.records:
        instances, stuff = sound(record, record.instances), sound(record, record.stuff)
        same = instances is record.instances and stuff is record.stuff
        records.append(record if same else replace(record, instances=instances, stuff=stuff))
    return replace(dataset, records=tuple(records))


def _mask_problem(record: ImageRecord, region: Instance) -> Problem | None:
    if region.segmentation is None:
        return None
    fault = mask_fault(region.segmentation, record.width, record.height)
    if fault is None:
        return None
    resized = size_fault(region.segmentation, record.width, record.height) is not None
    return Problem(
        Kind.MASK_SIZE if resized else Kind.MASK_BROKEN,
        f"{_named(record)}: the segmentation of its {region.category} at x {region.box[0]:g}, y {region.box[1]:g} "
        f"cannot be drawn ({fault}); mend the annotation or remove it.",
    )


def _named(record: ImageRecord) -> str:
    return f"image {record.key or record.image_id} ({record.file.name})"


def _map_problems(record: ImageRecord) -> list[Problem]:
    """What is wrong with the label map and the panoptic map."""
    found = []
    if record.stuff_map is not None:
        found += _map_fault(record, record.stuff_map, lambda: label_map(record))
    if record.panoptic is not None:
        segments = {segment.id for segment in record.panoptic.segments}
        found += _map_fault(record, record.panoptic.map, lambda: _match(segments, panoptic_ids(record)))
    return [Problem(kind, f"{_named(record)}: {sentence}") for kind, sentence in found]


def _map_fault(record: ImageRecord, content: Path | bytes, read: Callable[[], object]) -> list[tuple[Kind, str]]:
    try:
        read()
        return []
    except RequestError as error:
        try:
            with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
                resized = image.size != (record.width, record.height)
        except Exception:  # the sentence says that it does not open
            resized = False
        return [(Kind.MASK_SIZE if resized else Kind.MASK_BROKEN, str(error))]


def _match(listed: set[int], ids: NDArray[np.int32]) -> None:
    """RequestError unless a panoptic map shows all the listed segments.

    Others are let be: the reader may have left a segment out of the list, and has said so.
    """
    pixels = ids.ravel()
    first_ones = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1  # far fewer than all
    unseen = listed - {int(pixels[0]), *pixels[first_ones].tolist()}
    if unseen:
        raise RequestError(
            f"the panoptic map has no pixel of segment {min(unseen)} ({len(unseen)} of {len(listed)} are not in it); "
            "fetch the map and its annotation file again, both of one release."
        )


def picture_problems(record: ImageRecord, root: Path) -> list[Problem]:
    """What is wrong with the picture itself: the file is decoded to its last pixel."""
    read = read_picture(record, root)
    found = [read] if isinstance(read, Problem) else []
    try:
        with Image.open(root / record.file) as image:
            return found + _header_remarks(root / record.file, image)
    except MemoryError:
        raise
    except Exception:  # what does not open has been said
        return found


def _header_remarks(file: Path, image: Image.Image) -> list[Problem]:
    """What is unusual about a picture that can be used as it is."""
    kind, said = _FAMILY.get(image.format or "", image.format), Image.registered_extensions().get(file.suffix.lower())
    remarks = []
    if said != kind:
        name = f"its name says {said}" if said else "its name does not say so"
        remarks.append((Kind.PICTURE_EXTENSION, f"is {kind} by its content, which is read, but {name}; rename it"))
    if image.mode == "CMYK":
        remarks.append((Kind.PICTURE_CMYK, "is in CMYK; it is converted to RGB without a colour profile"))
    if image.mode in _GREY:
        remarks.append((Kind.PICTURE_GREY, f"is grey (mode {image.mode}); its three channels are made equal"))
    if (turn := _orientation(image)) != 1:
        remarks.append(
            (
                Kind.PICTURE_ROTATED,
                f"has EXIF orientation {turn}; it is not turned, as annotations lie on stored pixels",
            )
        )
    return [Problem(kind, f"picture {file} {what}.") for kind, what in remarks]


_FAMILY = {"MPO": "JPEG"}  # a JPEG with further views behind it
_GREY = ("1", "L", "LA", "La", "I", "I;16", "F")


def _orientation(image: Image.Image) -> int:
    """1 (upright) where the picture says nothing, or nothing that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken metadata are no fault of the pixels
        return 1
    return value if isinstance(value, int) and 1 < value <= 8 else 1
