"""MS-COCO in its published layout (Lin et al. 2014, Chen et al. 2015), and data sets laid out like it.

    ROOT/annotations/captions_train2017.json      needed
    ROOT/train2017/000000000009.jpg               needed
    ROOT/annotations/instances_train2017.json     things, with boxes and segmentations
    ROOT/stuffthingmaps/train2017/*.png           COCO-Stuff labels, or in
    ROOT/annotations/stuffthing_train2017/*_label.png
    ROOT/annotations/scene_graphs_train2017.json  scene graphs in Visual Genome's layout
    ROOT/annotations/coco_train_localized_narratives*.jsonl   narratives, in one file or in shards

The same with `val` or `test` for `train`, and with 2014 for 2017.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import FailFast, Field, FiniteFloat, TypeAdapter

from orchestration.data.json_files import Id, read_json
from orchestration.data.localized_narratives import read_narratives
from orchestration.data.records import Caption, ImageRecord, Instance
from orchestration.data.visual_genome import read_scene_graphs
from orchestration.errors import RequestError

_CAPTIONS_NAME = re.compile(r"captions_(train|val|test)(2014|2017)\.json")


@dataclass(frozen=True, slots=True)
class _Image:
    id: Id
    file_name: Annotated[str, Field(min_length=1)]
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class _CaptionEntry:
    id: Id
    image_id: Id
    caption: str


@dataclass(frozen=True, slots=True)
class _CaptionsFile:
    images: Annotated[list[_Image], FailFast()]
    annotations: Annotated[list[_CaptionEntry], FailFast()]


@dataclass(frozen=True, slots=True)
class _Listed:
    id: Id


@dataclass(frozen=True, slots=True)
class _Category:
    id: Id
    name: str


@dataclass(frozen=True, slots=True)
class _InstanceEntry:
    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    segmentation: Any
    area: FiniteFloat
    iscrowd: int


@dataclass(frozen=True, slots=True)
class _InstancesFile:
    images: Annotated[list[_Listed], FailFast()]
    annotations: Annotated[list[_InstanceEntry], FailFast()]
    categories: Annotated[list[_Category], FailFast()]


_CAPTIONS = TypeAdapter(_CaptionsFile)
_INSTANCES = TypeAdapter(_InstancesFile)


@dataclass(frozen=True, slots=True)
class CocoDataset:
    """One split of a COCO folder; `carries` names what at least one record has."""

    name: str
    split: str
    year: int
    records: tuple[ImageRecord, ...]
    carries: frozenset[str]
    digest: str


def read_coco(root: Path, split: str) -> CocoDataset:
    """Read and check the split ("train", "val" or "test") of the COCO folder `root`.

    The records are the images of the captions file that have a caption, in that file's order; caption texts
    are kept as published. An image that an optional file does not list has None there; one listed without
    instances has (). A folder with both years is read as the year with more splits, and as 2017 where they
    are even: one year serves all splits, because most images of val2014 are in train2017.
    Raises RequestError for a folder, file or entry that is missing or broken.
    """
    year, captions_file = _find_captions(root, split)
    tag = f"{split}{year}"
    listing = read_json(captions_file, _CAPTIONS, "COCO captions")
    captions = _captions_by_image(listing, captions_file)
    images = [image for image in listing.images if image.id in captions]
    if not images:
        raise RequestError(f"{captions_file} holds no captioned image; fetch the file again or add captions.")
    sizes = _image_sizes(root / tag, images, captions_file)

    annotations = root / "annotations"
    instances_file = annotations / f"instances_{tag}.json"
    graphs_file = annotations / f"scene_graphs_{tag}.json"
    narrative_files = sorted(annotations.glob(f"*{split}*localized_narratives*.jsonl"))
    instances = _read_instances(instances_file) if instances_file.is_file() else {}
    graphs = read_scene_graphs(graphs_file) if graphs_file.is_file() else {}
    narratives = read_narratives(narrative_files)
    stuff = _stuff_maps(root, tag)

    records = tuple(
        ImageRecord(
            image_id=image.id,
            file=root / tag / image.file_name,
            width=image.width,
            height=image.height,
            captions=captions[image.id],
            instances=instances.get(image.id),
            stuff_map=stuff.get(Path(image.file_name).stem),
            graph=graphs.get(image.id),
            narratives=narratives.get(image.id),
        )
        for image in images
    )
    read_files = [file for file in (captions_file, instances_file, graphs_file) if file.is_file()]
    maps = [record.stuff_map for record in records if record.stuff_map is not None]
    return CocoDataset(
        name="coco",
        split=split,
        year=year,
        records=records,
        carries=_carried(records),
        digest=_digest(
            read_files + narrative_files, sizes + [(f"stuff/{file.name}", file.stat().st_size) for file in maps]
        ),
    )


def _find_captions(root: Path, split: str) -> tuple[int, Path]:
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a name that no file system can hold
        reason = getattr(error, "strerror", None) or "not a possible path"
        raise RequestError(
            f"{str(root)!r} cannot be opened ({reason}); give the folder that holds annotations/ and the images."
        ) from error
    if not is_folder:
        raise RequestError(f"{root} is not a folder; give the folder that holds annotations/ and the images.")
    found: dict[int, dict[str, Path]] = {2014: {}, 2017: {}}
    for file in sorted(root.glob("annotations/captions_*.json")):
        if match := _CAPTIONS_NAME.fullmatch(file.name):
            found[int(match[2])][match[1]] = file
    year = max(found, key=lambda candidate: (len(found[candidate]), candidate))
    if not found[year]:
        raise RequestError(
            f"{root} is no COCO folder: it has no annotations/captions_<split><year>.json with split train, "
            "val or test and year 2014 or 2017; unpack the published archives so that "
            f"{root}/annotations/captions_train2017.json and the pictures in {root}/train2017/ are there."
        )
    if split not in found[year]:
        have = ", ".join(f"{name}{year}" for name in found[year])
        raise RequestError(
            f"{root} has no split {split!r} (found: {have}); ask for one of these or add "
            f"annotations/captions_{split}{year}.json and its pictures."
        )
    return year, found[year][split]


def _captions_by_image(listing: _CaptionsFile, file: Path) -> dict[int, tuple[Caption, ...]]:
    captions: dict[int, list[Caption]] = {}
    for image in listing.images:
        if image.id in captions:
            raise RequestError(f"{file} lists image {image.id} twice; leave one of the entries.")
        captions[image.id] = []
    for entry in listing.annotations:
        if entry.image_id not in captions:
            raise RequestError(
                f"{file}: caption {entry.id} is of image {entry.image_id}, which is not under `images`; "
                "add the image there or remove the caption."
            )
        if not entry.caption.strip():
            raise RequestError(
                f"{file}: caption {entry.id} of image {entry.image_id} is empty; write its text or remove it."
            )
        captions[entry.image_id].append(Caption(entry.id, entry.caption))
    return {image_id: tuple(written) for image_id, written in captions.items() if written}


def _image_sizes(folder: Path, images: Iterable[_Image], captions_file: Path) -> list[tuple[str, int]]:
    """Name and size in bytes of every image file; RequestError that counts those missing."""
    sizes: list[tuple[str, int]] = []
    missing: list[str] = []
    for image in images:
        try:
            status = (folder / image.file_name).stat()
        except (OSError, ValueError):  # ValueError: a name that no file system can hold
            missing.append(image.file_name)
            continue
        if stat.S_ISREG(status.st_mode):
            sizes.append((image.file_name, status.st_size))
        else:
            missing.append(image.file_name)
    if missing:
        raise RequestError(
            f"{folder} lacks {len(missing)} of the {len(missing) + len(sizes)} captioned images that "
            f"{captions_file.name} lists, {missing[0]!r} first; unpack the pictures of this split there."
        )
    return sizes


def _read_instances(file: Path) -> dict[int, tuple[Instance, ...]]:
    content = read_json(file, _INSTANCES, "COCO instances")
    names = {category.id: category.name for category in content.categories}
    instances: dict[int, list[Instance]] = {image.id: [] for image in content.images}
    for entry in content.annotations:
        if entry.image_id not in instances or entry.category_id not in names:
            field, value = ("image", entry.image_id)
            if entry.image_id in instances:
                field, value = ("category", entry.category_id)
            raise RequestError(
                f"{file}: instance {entry.id} is of {field} {value}, which the file does not list; "
                f"add the {field} or remove the instance."
            )
        instances[entry.image_id].append(
            Instance(names[entry.category_id], entry.bbox, entry.segmentation, entry.area, bool(entry.iscrowd))
        )
    return {image_id: tuple(things) for image_id, things in instances.items()}


def _stuff_maps(root: Path, tag: str) -> Mapping[str, Path]:
    """COCO-Stuff label maps by image stem."""
    maps = {
        file.name.removesuffix("_label.png"): file for file in root.glob(f"annotations/stuffthing_{tag}/*_label.png")
    }
    return maps | {file.stem: file for file in root.glob(f"stuffthingmaps/{tag}/*.png")}


def _carried(records: Iterable[ImageRecord]) -> frozenset[str]:
    carried = {"images", "captions"}
    for record in records:
        carried |= {
            name
            for name, value in (
                ("instances", record.instances),
                ("stuff", record.stuff_map),
                ("graph", record.graph),
                ("narratives", record.narratives),
            )
            if value is not None
        }
    return frozenset(carried)


def _digest(annotation_files: Iterable[Path], image_sizes: Iterable[tuple[str, int]]) -> str:
    """Sha256 (hex) over the annotation files' names and bytes, and the images' names and sizes.

    Independent of where the folder lies.
    """
    digest = hashlib.sha256()
    for file in annotation_files:
        with file.open("rb") as content:
            digest.update(os.fsencode(file.name) + b"\0" + hashlib.file_digest(content, "sha256").digest())
    for name, size in image_sizes:
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()
