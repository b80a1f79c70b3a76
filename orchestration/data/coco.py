"""MS-COCO in its published layout (Lin et al. 2014, Chen et al. 2015), and data sets laid out like it.

    ROOT/train2017/000000000009.jpg               needed
    ROOT/annotations/captions_train2017.json      needed, or one of the next three
    ROOT/annotations/instances_train2017.json     things, with boxes and segmentations
    ROOT/annotations/stuff_train2017.json         COCO-Stuff's regions (Caesar et al. 2018)
    ROOT/annotations/panoptic_train2017.json      segments (Kirillov et al. 2019), with their maps in
    ROOT/annotations/panoptic_train2017/*.png
    ROOT/stuffthingmaps/train2017/*.png           COCO-Stuff's labels by pixel, or in
    ROOT/annotations/stuffthing_train2017/*_label.png
    ROOT/annotations/scene_graphs_train2017.json  scene graphs in Visual Genome's layout
    ROOT/annotations/coco_train_localized_narratives*.jsonl   narratives, in one file or in shards; else
    ROOT/annotations/coco_train_captions.jsonl    the same without traces; else
    ROOT/annotations/localized_narratives_tags_train2017.jsonl  the same as TReCS tagged them

The same with `val` or `test` for `train`, and with 2014 for 2017.

Splits: the papers on COCO train on train2014 and test on val2014 (CPGAN, section 4.1: 82,783 and 40,504 images;
"COCO-14" of XMC-GAN, section 5.1). LN-COCO is of the 2017 split (same section), which has 118,287 and 5,000 images
(cocodataset.org) and 134,272 and 8,573 narratives (google.github.io/localized-narratives).
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from orchestration.data.captions import caption_problem, checked_caption
from orchestration.data.coco_layout import (
    CaptionsFile,
    Category,
    Image,
    Owned,
    PanopticEntry,
    PanopticFile,
    RegionsFile,
)
from orchestration.data.folders import check_folder, collector_paused, digest_of, file_sizes
from orchestration.data.json_files import read_json
from orchestration.data.localized_narratives import narrative_files, read_narratives
from orchestration.data.masks import size_fault
from orchestration.data.problems import Kind, Notice, Problem, refuse
from orchestration.data.records import (
    Box,
    Caption,
    Dataset,
    ImageRecord,
    Instance,
    Narrative,
    Panoptic,
    PanopticSegment,
    SceneGraph,
    carried,
)
from orchestration.data.visual_genome import read_scene_graphs
from orchestration.errors import RequestError

SPLITS = ("train", "val", "test")
YEARS = (2014, 2017)
PUBLISHED_SIZES: Mapping[str, int] = {"train2014": 82_783, "val2014": 40_504, "train2017": 118_287, "val2017": 5_000}
"""Images of a whole split; sources above."""

_TABLE = re.compile(r"(?:captions|instances|stuff|panoptic)_(train|val|test)(2014|2017)\.json")
_PICTURES = frozenset({".jpg", ".jpeg", ".png"})
_SLACK = 1.0  # px; published boxes are rounded


T = TypeVar("T")
EntryT = TypeVar("EntryT", bound=Owned)
FileT = TypeVar("FileT", bound=msgspec.Struct)


def coco_splits(root: Path, year: int | None = None) -> tuple[str, ...]:
    """The splits that the COCO folder has, of `year` or of the year that `read_coco` takes.

    Raises RequestError for a folder of another layout, or without that year.
    """
    return _splits(root, year)[1]


def read_coco(root: Path, split: str, notice: Notice = refuse, year: int | None = None) -> Dataset:
    """Read and check the split ("train", "val" or "test") of the COCO folder `root`.

    The records are all images that a captions, instances, stuff or panoptic file lists, in the order of these files.
    An image that one of them does not list has None there; one listed without captions or instances has (). Texts
    are kept as published. Narratives of other images are passed over: COCO's two years share pictures.
    One year serves all splits, because most images of val2014 are in train2017. Without `year` that is the one
    with more splits; where they are even the one with more of the pictures' folders, and else 2017.
    Raises what `notice` raises, for `refuse` RequestError: a file or an entry that is broken, an id listed twice,
    files that disagree on an image, an annotation of an unlisted image or category, an empty caption, an RLE of
    another size than its image, a missing picture. Always raises RequestError for a folder of another layout, a split
    or year that it lacks, and a split without any usable image.
    """
    year, found = _splits(root, year)
    if split not in found:
        have = ", ".join(f"{name}{year}" for name in found)
        mend = f" or add annotations/captions_{split}{year}.json and its pictures" if split in SPLITS else ""
        raise RequestError(f"{root} has no split {split!r} (found: {have}); ask for one of these{mend}.")
    with collector_paused():
        return _Split(root, split, f"{split}{year}", notice).read()


def _splits(root: Path, year: int | None) -> tuple[int, tuple[str, ...]]:
    check_folder(root, "the folder that holds annotations/ and the images")
    folder = root / "annotations"
    names = (_TABLE.fullmatch(file.name) for file in (folder.iterdir() if folder.is_dir() else ()))
    tags = {(int(name[2]), name[1]) for name in names if name is not None}
    found = {year: tuple(split for split in SPLITS if (year, split) in tags) for year in YEARS}
    if not tags:
        raise RequestError(
            f"{root} is no COCO folder: it has no annotations/captions_<split><year>.json with split train, "
            "val or test and year 2014 or 2017; unpack the published archives so that "
            f"{root}/annotations/captions_train2017.json and the pictures in {root}/train2017/ are there."
        )
    if year is None:

        def pictures(year: int) -> int:
            return sum((root / f"{split}{year}").is_dir() for split in found[year])

        year = max(YEARS, key=lambda year: (len(found[year]), pictures(year), year))
    if not found.get(year):
        have = ", ".join(f"{split}{other}" for other in YEARS for split in found[other])
        raise RequestError(
            f"{root} holds nothing of COCO {year} (found: {have}); name the data coco:PATH, which takes the year that "
            f"is there, or add annotations/captions_train{year}.json and the pictures in train{year}/."
        )
    return year, found[year]


@dataclass(slots=True)
class _Split:
    """Reads the files of one split, one after the other. `images` are all that were listed so far."""

    root: Path
    split: str
    tag: str
    notice: Notice
    images: dict[int, Image] = field(default_factory=dict)
    disputed: set[int] = field(default_factory=set)  # the files disagree on these: left out
    files: list[Path] = field(default_factory=list)

    def read(self) -> Dataset:
        captions = self._captions()
        instances = self._regions("instances")
        stuff = self._regions("stuff")
        panoptic, panoptic_sizes = self._panoptic()
        graphs = self._graphs()
        narratives = self._narratives()
        maps = self._stuff_maps()
        folder = self.root / self.tag
        images = [image for image in self.images.values() if image.id not in self.disputed]
        listed_in = self.files[0] if self.files else self.root
        sizes = file_sizes(folder, [image.file_name for image in images], listed_in, self.notice)
        records = tuple(
            ImageRecord(
                image_id=image.id,
                file=folder / image.file_name,
                width=image.width,
                height=image.height,
                captions=captions.get(image.id),
                instances=instances.get(image.id),
                stuff=stuff.get(image.id),
                stuff_map=maps.get(Path(image.file_name).stem) if maps else None,
                panoptic=panoptic.get(image.id),
                graph=graphs.get(image.id),
                narratives=narratives.get(image.id),
            )
            for image in images
            if image.file_name in sizes
        )
        if not records:
            raise RequestError(f"{self.root} has no usable image in {self.tag}; fetch its files and pictures again.")
        self._remark(records, folder)
        used = [record.stuff_map for record in records if isinstance(record.stuff_map, Path)]
        sizes_by_name = [(name, size) for name, size in sizes.items()]
        sizes_by_name += [(f"stuff/{file.name}", file.stat().st_size) for file in used]
        sizes_by_name += [(f"panoptic/{name}", size) for name, size in panoptic_sizes.items()]
        digest = digest_of(self.files, sizes_by_name)
        return Dataset("coco", self.split, self.root, records, carried(records), digest)

    def _file(self, name: str) -> Path:
        return self.root / "annotations" / f"{name}_{self.tag}.json"

    def _table(self, name: str, layout: type[FileT]) -> FileT | None:
        """The file of that name; None where it is not there, or broken and told to `notice`."""
        file = self._file(name)
        if not os.path.lexists(file):  # a link that leads nowhere is a file that cannot be read
            return None
        content = read_json(file, layout, f"COCO {name}", self.notice)
        if content is not None:
            self.files.append(file)
        return content

    def _listed(self, name: str, images: Iterable[Image]) -> Iterator[int]:
        """The ids of the images that this file lists; they join those of the other files."""
        file, seen = self._file(name), set[int]()
        for image in images:
            if image.id in seen:
                self._tell(Kind.DUPLICATE_ID, f"{file} lists image {image.id} twice; leave one of the entries.")
                continue
            seen.add(image.id)
            known = self.images.setdefault(image.id, image)
            if known != image and image.id not in self.disputed:
                sentence = (
                    f"{file}: image {image.id} is {image.file_name!r}, {image.width} x {image.height} px, but "
                    f"{known.file_name!r}, {known.width} x {known.height} px, in another file of {self.tag}; mend one "
                    "of the entries."
                )
                self._tell(Kind.ENTRY_BROKEN, sentence)
                self.disputed.add(image.id)
            yield image.id

    def _owned(
        self, name: str, thing: str, entries: list[EntryT], owners: Mapping[int, list[T]]
    ) -> Iterator[tuple[EntryT, list[T]]]:
        """Each entry, and the list that its image keeps; those of no image and those seen before are told.

        `entries` is emptied on the way, so that what is read and what is built need not be held together.
        """
        seen: set[int] = set()
        entries.reverse()
        while entries:
            entry = entries.pop()
            kept = owners.get(entry.image_id)
            if kept is None:
                sentence = (
                    f"{self._file(name)}: {thing} {entry.id} is of image {entry.image_id}, which is not under "
                    f"`images`; add the image there or remove the {thing}."
                )
                self._tell(Kind.ANNOTATION_WITHOUT_IMAGE, sentence)
            elif entry.id in seen:
                sentence = f"{self._file(name)} lists {thing} {entry.id} twice; leave one of the entries."
                self._tell(Kind.DUPLICATE_ID, sentence)
            else:
                seen.add(entry.id)
                yield entry, kept

    def _captions(self) -> dict[int, tuple[Caption, ...]]:
        content = self._table("captions", CaptionsFile)
        if content is None:
            return {}
        found: dict[int, list[Caption]] = {image_id: [] for image_id in self._listed("captions", content.images)}
        for entry, captions in self._owned("captions", "caption", content.annotations, found):
            text = entry.caption
            if caption_problem(text) is not None:
                where = f"{self._file('captions')}: caption {entry.id} of image {entry.image_id}"
                if not checked_caption(text, where, self.notice):
                    continue
            captions.append(Caption(entry.id, text))
        return _frozen(found)

    def _regions(self, name: str) -> dict[int, tuple[Instance, ...]]:
        """Things or stuff: both are published alike."""
        content = self._table(name, RegionsFile)
        if content is None:
            return {}
        thing = "instance" if name == "instances" else "region"
        categories = self._categories(name, content.categories)
        found: dict[int, list[Instance]] = {image_id: [] for image_id in self._listed(name, content.images)}
        images = self.images
        for entry, regions in self._owned(name, thing, content.annotations, found):
            category = categories.get(entry.category_id)
            if category is None:
                self._tell_category(name, f"{thing} {entry.id}", entry.category_id)
                continue
            image = images[entry.image_id]
            # A copy: what was decoded is a view that keeps the whole file in memory.
            segmentation = bytes(entry.segmentation)
            fault = size_fault(segmentation, image.width, image.height)
            if fault is not None:
                sentence = (
                    f"{self._file(name)}: {thing} {entry.id} of image {image.id} has an RLE whose {fault}; mend it or "
                    f"remove the {thing}."
                )
                self._tell(Kind.MASK_SIZE, sentence)
                continue
            if not _fits(entry.bbox, image):
                self._tell_box(name, f"{thing} {entry.id}", entry.bbox, image)
            drawn = None if segmentation in (b"null", b"[]") else segmentation
            crowd = bool(entry.iscrowd)
            regions.append(Instance(category.name, category.id, entry.bbox, drawn, entry.area, crowd))
        return _frozen(found)

    def _panoptic(self) -> tuple[dict[int, Panoptic], dict[str, int]]:
        """Panoptic maps by image id, and the sizes in bytes of their files."""
        content = self._table("panoptic", PanopticFile)
        if content is None:
            return {}, {}
        folder = self.root / "annotations" / f"panoptic_{self.tag}"
        listing: dict[int, list[None]] = {image_id: [] for image_id in self._listed("panoptic", content.images)}
        categories = self._categories("panoptic", content.categories)
        names = [entry.file_name for entry in content.annotations if entry.image_id in listing]
        sizes = file_sizes(folder, names, self._file("panoptic"), self.notice)
        return {
            entry.image_id: Panoptic(folder / entry.file_name, tuple(self._segments(entry, categories)))
            for entry, _ in self._owned("panoptic", "map", content.annotations, listing)
            if entry.file_name in sizes
        }, sizes

    def _segments(self, entry: PanopticEntry, categories: Mapping[int, Category]) -> Iterator[PanopticSegment]:
        image, seen = self.images[entry.image_id], set[int]()
        for segment in entry.segments_info:
            category = categories.get(segment.category_id)
            what = f"segment {segment.id} of image {image.id}"
            if category is None:
                self._tell_category("panoptic", what, segment.category_id)
            elif segment.id in seen:
                sentence = f"{self._file('panoptic')} lists {what} twice; leave one of the entries."
                self._tell(Kind.DUPLICATE_ID, sentence)
            else:
                seen.add(segment.id)
                if not _fits(segment.bbox, image):
                    self._tell_box("panoptic", what, segment.bbox, image)
                yield PanopticSegment(
                    segment.id,
                    category.name,
                    category.id,
                    bool(category.isthing),
                    segment.bbox,
                    segment.area,
                    bool(segment.iscrowd),
                )

    def _graphs(self) -> Mapping[int, SceneGraph]:
        file = self._file("scene_graphs")
        if not os.path.lexists(file):
            return {}
        graphs = read_scene_graphs(file, self.notice)
        self.files.append(file)
        for image_id in graphs.keys() - self.images.keys():
            sentence = f"{file}: the graph of image {image_id} is of no image that {self.tag} lists; remove it."
            self._tell(Kind.ANNOTATION_WITHOUT_IMAGE, sentence)
        return graphs

    def _narratives(self) -> Mapping[int | str, tuple[Narrative, ...]]:
        """COCO's, or those of generated scenes."""
        tags = rf"localized_narratives_tags_{self.tag}\.jsonl"
        files = narrative_files([self.root / "annotations"], f"(?:coco|scenes)_{self.split}", tags)
        narratives = read_narratives(files, self.notice)
        self.files += files
        return narratives

    def _stuff_maps(self) -> Mapping[str, Path]:
        """COCO-Stuff's label maps by image stem."""
        labels = self.root.glob(f"annotations/stuffthing_{self.tag}/*_label.png")
        maps = {file.name.removesuffix("_label.png"): file for file in labels}
        maps |= {file.stem: file for file in self.root.glob(f"stuffthingmaps/{self.tag}/*.png")}
        return {stem: file for stem, file in maps.items() if file.is_file()}

    def _categories(self, name: str, categories: Iterable[Category]) -> dict[int, Category]:
        found: dict[int, Category] = {}
        for category in categories:
            if found.setdefault(category.id, category) is not category:
                sentence = f"{self._file(name)} lists category {category.id} twice; leave one of the entries."
                self._tell(Kind.DUPLICATE_ID, sentence)
        return found

    def _remark(self, records: Sequence[ImageRecord], folder: Path) -> None:
        """Remarks on images that nothing is said about, and on pictures that nobody lists."""
        for record in records:
            said = record.captions or record.instances or record.stuff or record.stuff_map or record.narratives
            if not said and record.panoptic is None and record.graph is None:
                sentence = f"image {record.image_id} of {folder} has no annotation; it is used for its pixels only."
                self._tell(Kind.IMAGE_WITHOUT_ANNOTATION, sentence)
        listed = {image.file_name for image in self.images.values()}
        with os.scandir(folder) as entries:
            strange = (entry.name for entry in entries if entry.name not in listed)
            for name in sorted(name for name in strange if Path(name).suffix.lower() in _PICTURES):
                sentence = f"{folder / name} is listed in no annotation file of {self.tag}; it is not used."
                self._tell(Kind.UNLISTED_PICTURE, sentence)

    def _tell(self, kind: Kind, sentence: str) -> None:
        self.notice(Problem(kind, sentence))

    def _tell_category(self, name: str, what: str, category_id: int) -> None:
        sentence = (
            f"{self._file(name)}: {what} is of category {category_id}, which is not under `categories`; add the "
            "category there or remove the entry."
        )
        self._tell(Kind.CATEGORY_UNKNOWN, sentence)

    def _tell_box(self, name: str, what: str, box: Box, image: Image) -> None:
        shown = "[" + ", ".join(f"{value:g}" for value in box) + "]"
        if box[2] <= 0 or box[3] <= 0:
            self._tell(Kind.BOX_EMPTY, f"{self._file(name)}: the box {shown} of {what} has no area.")
        else:
            sentence = (
                f"{self._file(name)}: the box {shown} of {what} leaves image {image.id} of {image.width} x "
                f"{image.height} px."
            )
            self._tell(Kind.BOX_OUTSIDE, sentence)


def _fits(box: Box, image: Image) -> bool:
    """Whether the box has an area and lies in the image."""
    x, y, width, height = box
    return (
        width > 0
        and height > 0
        and x >= -_SLACK
        and y >= -_SLACK
        and x + width <= image.width + _SLACK
        and y + height <= image.height + _SLACK
    )


def _frozen(lists: dict[int, list[T]]) -> dict[int, tuple[T, ...]]:
    return {image_id: tuple(items) for image_id, items in lists.items()}
