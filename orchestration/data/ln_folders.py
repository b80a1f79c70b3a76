"""Folders of pictures whose captions are Localized Narratives: LN-COCO, LN-OpenImages, Flickr30k and ADE20k.

The narratives' files keep their published names and lie in the folder or in its annotations/; the pictures lie as
their own data set publishes them:

    ln-coco         coco_{train,val}_localized_narratives*.jsonl                  {train,val}2017/000000000009.jpg
    ln-openimages   open_images_{train_v6,validation,test}_localized_narratives*  {train,validation,test}/<id>.jpg
    ln-flickr30k    flickr30k_{train,val,test}_localized_narratives.jsonl         flickr30k-images/<id>.jpg
    ln-ade20k       ade20k_{train,validation}_localized_narratives.jsonl          images/{training,validation}/<id>.jpg

The smaller ..._captions.jsonl of the same publisher serves where the traces are not there, and for COCO the tags
that TReCS released. XMC-GAN (section 5.1, table 1) trains on LN-COCO, which is of the 2017 split (134 k and 8 k
narratives, 42.1 words on average), and on LN-OpenImages (507 k and 41 k, 35.6 words). The exact numbers are in
`orchestration.data.localized_narratives`.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from orchestration.data.coco import read_coco
from orchestration.data.folders import check_folder, digest_of, file_sizes, measure
from orchestration.data.localized_narratives import narrative_files, read_narratives
from orchestration.data.problems import Kind, Notice, Problem, refuse
from orchestration.data.records import Caption, Dataset, ImageRecord, carried
from orchestration.errors import RequestError

_YEAR = 2017  # of COCO: XMC-GAN, section 5.1


@dataclass(frozen=True, slots=True)
class _Published:
    """One data set: by split, how its narratives' files begin (a pattern) and where its pictures may lie."""

    name: str
    title: str
    files: Mapping[str, str]
    pictures: Mapping[str, tuple[str, ...]]
    picture: str = "{}.jpg"
    tags: str | None = None  # pattern of TReCS's files of tags

    def splits(self, root: Path) -> tuple[str, ...]:
        check_folder(root, "the folder that holds the narratives' files and the pictures")
        found = tuple(split for split in self.files if self.narrative_files(root, split))
        if not found:
            names = ", ".join(f"{start}_localized_narratives*.jsonl" for start in self.files.values())
            raise RequestError(
                f"{root} is no folder of {self.title}: neither it nor its annotations/ has a file such as {names}; "
                "put the published files there."
            )
        return found

    def narrative_files(self, root: Path, split: str) -> list[Path]:
        tags = None if self.tags is None else self.tags.format(split)
        return narrative_files((root / "annotations", root), self.files[split], tags)

    def open(self, root: Path, split: str, notice: Notice) -> list[Path]:
        """The narratives' files of the split; shards that lack are told to `notice`."""
        found = self.splits(root)
        if split not in found:
            raise RequestError(
                f"{root} has no narratives of split {split!r} (found: {', '.join(found)}); ask for one of these or "
                "add its file."
            )
        files = self.narrative_files(root, split)
        shards = [
            (int(match[1]), int(match[2])) for file in files if (match := re.search(r"-(\d+)-of-(\d+)", file.name))
        ]
        lacking = sorted(set(range(max((total for _, total in shards), default=0))) - {place for place, _ in shards})
        if lacking:
            sentence = (
                f"{files[0].parent} has {len(shards)} of the {shards[0][1]} shards of {self.title} {split}, number "
                f"{lacking[0]:05d} is missing; fetch it too."
            )
            notice(Problem(Kind.FILE_BROKEN, sentence))
        return files

    def read(self, root: Path, split: str, notice: Notice) -> Dataset:
        return self.pictured(root, split, self.open(root, split, notice), notice)

    def pictured(self, root: Path, split: str, files: list[Path], notice: Notice) -> Dataset:
        """The narratives with their pictures, in the order of the narratives' files."""
        narratives = read_narratives(files, notice)
        places = [root / place for place in self.pictures[split]]
        folder = next((place for place in places if place.is_dir()), places[0])
        names = {image_id: self.picture.format(image_id) for image_id in narratives}
        sizes = file_sizes(folder, list(names.values()), files[0], notice)
        measured = measure([folder / name for name in sizes], notice)
        numbered = all(isinstance(image_id, int) for image_id in names)
        records: list[ImageRecord] = []
        for place, (image_id, name) in enumerate(names.items()):
            if (file := folder / name) in measured:
                width, height = measured[file]
                number, key = (int(image_id), None) if numbered else (place, str(image_id))
                records.append(ImageRecord(number, file, width, height, key, narratives=narratives[image_id]))
        return self.checked(root, split, records, digest_of(files, sizes.items()))

    def checked(self, root: Path, split: str, records: Iterable[ImageRecord], digest: str) -> Dataset:
        captioned = tuple(_captioned(records))
        if not captioned:
            raise RequestError(
                f"{root} has no picture with a narrative in split {split!r}; unpack the pictures of this split."
            )
        return Dataset(self.name, split, root, captioned, carried(captioned), digest)


def _captioned(records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
    """Those with narratives, which become their captions."""
    ids = count()
    for record in records:
        if record.narratives:
            captions = tuple(Caption(next(ids), narrative.caption) for narrative in record.narratives)
            yield replace(record, captions=captions)


_COCO = _Published(
    "ln-coco",
    "LN-COCO",
    {"train": "coco_train", "val": "coco_val"},
    {split: (f"{split}{_YEAR}",) for split in ("train", "val")},
    "{:0>12}.jpg",
    rf"localized_narratives_tags_{{}}{_YEAR}\.jsonl",
)
_OPEN_IMAGES = _Published(
    "ln-openimages",
    "LN-OpenImages",
    {"train": "open_images_train_v6", "val": "open_images_validation", "test": "open_images_test"},
    {"train": ("train",), "val": ("validation",), "test": ("test",)},
)
_FLICKR30K = _Published(
    "ln-flickr30k",
    "Localized Narratives of Flickr30k",
    {split: f"flickr30k_{split}" for split in ("train", "val", "test")},
    dict.fromkeys(("train", "val", "test"), ("flickr30k-images",)),
)
_ADE20K = _Published(
    "ln-ade20k",
    "Localized Narratives of ADE20k",
    {"train": "ade20k_train", "val": "ade20k_validation"},
    {
        "train": ("ADEChallengeData2016/images/training", "images/training"),
        "val": ("ADEChallengeData2016/images/validation", "images/validation"),
    },
)

ln_coco_splits = _COCO.splits
ln_open_images_splits = _OPEN_IMAGES.splits
ln_flickr30k_splits = _FLICKR30K.splits
ln_ade20k_splits = _ADE20K.splits


def read_ln_coco(root: Path, split: str, notice: Notice = refuse) -> Dataset:
    """LN-COCO in a COCO 2017 folder: the images with narratives, whose texts are their captions.

    Where COCO's own annotations of the split are there, the records are `read_coco`'s, in its order and with
    instances and all the rest; narratives of images that they do not list are passed over. Caption ids count from 0,
    image by image.
    Raises what `notice` raises for anything broken, and RequestError for a folder or split that is not there.
    """
    files = _COCO.open(root, split, notice)
    tables = [root / "annotations" / f"{name}_{split}{_YEAR}.json" for name in ("captions", "instances", "panoptic")]
    if not any(table.is_file() for table in tables):
        return _COCO.pictured(root, split, files, notice)
    coco = read_coco(root, split, notice, _YEAR)
    records: Iterable[ImageRecord] = coco.records
    if "narratives" not in coco.carries:
        narratives = read_narratives(files, notice)
        records = (replace(record, narratives=narratives.get(record.image_id)) for record in records)
    digest = hashlib.sha256(f"{coco.digest} {digest_of(files, ())}".encode()).hexdigest()
    return _COCO.checked(root, split, records, digest)


def read_ln_open_images(root: Path, split: str, notice: Notice = refuse) -> Dataset:
    """LN-OpenImages: `key` is the published id, `image_id` the image's place in the split; sizes from the headers.

    "val" is what Open Images calls validation. Raises as `read_ln_coco`.
    """
    return _OPEN_IMAGES.read(root, split, notice)


def read_ln_flickr30k(root: Path, split: str, notice: Notice = refuse) -> Dataset:
    """The narratives of Flickr30k; `image_id` is the published number. Raises as `read_ln_coco`."""
    return _FLICKR30K.read(root, split, notice)


def read_ln_ade20k(root: Path, split: str, notice: Notice = refuse) -> Dataset:
    """The narratives of ADE20k's scene parsing release: `key` is the published id. Raises as `read_ln_coco`."""
    return _ADE20K.read(root, split, notice)
