"""Visual Genome in its published layout (Krishna et al. 2017, version 1.4).

    ROOT/image_data.json         needed: size and address of every picture
    ROOT/objects.json            needed: named boxes
    ROOT/attributes.json         needed: attributes by object
    ROOT/relationships.json      needed: (subject, predicate, object)
    ROOT/VG_100K/1.jpg           needed, here or in ROOT/VG_100K_2: pictures by image id
    ROOT/object_alias.txt        a line a name: the name, then its other spellings, commas between
    ROOT/relationship_alias.txt  the same for predicates
    ROOT/vg_splits.json          sg2im's splits: {"train": [image ids], "val": [...], "test": [...]}

`scene_graphs.json`, the layout whose objects carry their attributes, is read by itself.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np

from orchestration.data.folders import check_folder, collector_paused, digest_of, file_sizes
from orchestration.data.json_files import Id, Size, clause, read_entries, read_json
from orchestration.data.problems import Findings, Kind, Notice, Problem, refuse
from orchestration.data.records import Dataset, ImageRecord, SceneGraph, SceneObject, carried
from orchestration.data.sampler import mix
from orchestration.data.scene_graphs import ALIAS_FILES, Sg2imOptions, filter_graphs, read_aliases, sg2im_vocabulary
from orchestration.errors import RequestError

SPLITS = ("train", "val", "test")
_FOLDERS = ("VG_100K", "VG_100K_2")
_FILES = ("image_data.json", "objects.json", "attributes.json", "relationships.json")
_SPLIT_FILE = "vg_splits.json"
_SLACK = 1.0  # px; published boxes are rounded
_SPLIT_STREAM = 0x5647  # keeps the seeded split apart from other uses of `mix`


class _Image(msgspec.Struct, gc=False, frozen=True):
    image_id: Id
    width: Size
    height: Size
    url: str | None = None


class _Splits(msgspec.Struct):
    train: list[Id]
    val: list[Id]
    test: list[Id]


# The real files hold up to 700 MB: items stay undecoded until their image's turn.
class _ImageObjects(msgspec.Struct, gc=False, frozen=True):
    image_id: Id
    items: msgspec.Raw = msgspec.field(name="objects")


class _ImageAttributes(msgspec.Struct, gc=False, frozen=True):
    image_id: Id
    items: msgspec.Raw = msgspec.field(name="attributes")


class _ImageRelationships(msgspec.Struct, gc=False, frozen=True):
    image_id: Id
    items: msgspec.Raw = msgspec.field(name="relationships")


class _ImageGraph(msgspec.Struct, gc=False, frozen=True):
    image_id: Id
    objects: msgspec.Raw
    relationships: msgspec.Raw


class _Object(msgspec.Struct, gc=False):
    object_id: Id
    x: float
    y: float
    w: float
    h: float
    names: tuple[str, ...] = ()
    name: str | None = None  # the published releases spell it both ways
    attributes: tuple[str, ...] | None = None
    merged_object_ids: tuple[Id, ...] = ()


class _Described(msgspec.Struct, gc=False):
    object_id: Id
    attributes: tuple[str, ...] | None = None


class _End(msgspec.Struct, gc=False):
    object_id: Id


class _Relationship(msgspec.Struct, gc=False):
    predicate: str
    subject: _End
    target: _End = msgspec.field(name="object")

    @property
    def link(self) -> "_Link":
        return self.subject.object_id, self.predicate, self.target.object_id


class _FlatRelationship(msgspec.Struct, gc=False):
    predicate: str
    subject_id: Id
    object_id: Id

    @property
    def link(self) -> "_Link":
        return self.subject_id, self.predicate, self.object_id


class _Entry(Protocol):
    @property
    def image_id(self) -> int: ...


EntryT = TypeVar("EntryT", bound=_Entry)
LayoutT = TypeVar("LayoutT", _ImageObjects, _ImageAttributes, _ImageRelationships)
ItemT = TypeVar("ItemT", bound=msgspec.Struct)
_Attributes = Mapping[int, tuple[str, ...]]  # by object id
_Link = tuple[int, str, int]
_Objects = tuple[tuple[SceneObject, ...], Mapping[int, int]]  # and the id that each merged id stands for


def read_scene_graphs(path: Path, notice: Notice = refuse) -> Mapping[int, SceneGraph]:
    """Scene graphs by image id, from a file laid out as Visual Genome's `scene_graphs.json`.

    Names, attributes and predicates are kept as written; boxes are x, y, width, height in pixels. A relationship may
    name an object by an id that was merged into another. One whose object is not in the graph at all is a remark: the
    graph is used without it, since the published files hold such relationships.
    Raises what `notice` raises, for `refuse` RequestError: a broken file or entry, an image or an object listed
    twice, an object without a name.
    """
    graphs: dict[int, SceneGraph] = {}
    for entry in _once(read_entries(path, _ImageGraph, "Visual Genome scene graphs", notice), path, notice):
        place = _Place(path, entry.image_id, notice)
        objects = place.objects(place.items(entry.objects, _Object, "objects"))
        links = place.items(entry.relationships, _FlatRelationship, "relationships")
        graphs[entry.image_id] = place.graph(objects, (item.link for item in links))
    return graphs


def visual_genome_splits(root: Path) -> tuple[str, ...]:
    """The splits of the folder that hold a picture. RequestError for a folder of another layout."""
    _, splits = _images_and_splits(root, Findings())  # single broken entries are told when a split is read
    if not any(splits.values()):
        _images_and_splits(root, refuse)
        raise RequestError(f"{root / _FILES[0]} and {_SPLIT_FILE} name no picture; fetch the files again.")
    return tuple(split for split in SPLITS if splits[split])


def read_visual_genome(root: Path, split: str, notice: Notice = refuse) -> Dataset:
    """Read and check the split ("train", "val" or "test") of the Visual Genome folder `root`, graphs as published.

    With vg_splits.json the split is that file's, in its order. Without it the image id decides: a seeded hash of it
    puts 80 % of all ids into train, 10 % into val and 10 % into test, the same ones whatever else the folder holds.
    A picture that objects.json does not list has no graph; one listed without objects has an empty graph; both are
    remarks. Nothing is filtered: `read_visual_genome_sg2im` does that.
    Raises what `notice` raises, for `refuse` RequestError: a file that is missing or broken, a broken entry, an id
    listed twice, annotations of an image that image_data.json lacks, an object without a name, a missing picture.
    Always raises RequestError for a folder of another layout, a split that it lacks and one without any picture there.
    """
    images, splits = _images_and_splits(root, notice)
    ids = _ids_of(root, split, splits)
    return _dataset(root, split, _records(images, ids, _read_graphs(root, images, ids, notice)), images, notice)


def read_visual_genome_sg2im(root: Path, split: str, notice: Notice = refuse) -> Dataset:
    """The same as sg2im and RetrieveGAN use it: spellings by `read_aliases`, then `sg2im_filter` with its own limits.

    Names are counted over the whole train split, whether its pictures are there or not.
    Published result (sg2im, section 4.1): 178 object and 45 relationship types, 62,565 train, 5,506 val and 5,088 test
    pictures. Others who ran its released preprocessing count 62,565, 5,062 and 5,096 (he-dhamo/simsg, issue 11).
    Raises what `read_visual_genome` raises, and RequestError when no picture passes.
    """
    images, splits = _images_and_splits(root, notice)
    ids = _ids_of(root, split, splits)
    options, aliases = Sg2imOptions(), read_aliases(root, notice)
    graphs = _read_graphs(root, images, [*splits["train"], *ids], notice)
    vocabulary = sg2im_vocabulary(_records(images, splits["train"], graphs), options, aliases)
    dataset = _dataset(root, split, _records(images, ids, graphs), images, notice)
    return filter_graphs(replace(dataset, name="visual-genome-sg2im"), vocabulary, options, aliases)


def _images_and_splits(root: Path, notice: Notice) -> tuple[dict[int, _Image], dict[str, list[int]]]:
    check_folder(root, "the folder that holds objects.json, image_data.json and VG_100K/")
    if lacking := [name for name in _FILES if not (root / name).is_file()]:
        raise RequestError(
            f"{root} is no Visual Genome folder: it lacks {', '.join(lacking)}; unpack the published files of version "
            f"1.4 so that {root / lacking[0]} is there."
        )
    file, split_file = root / _FILES[0], root / _SPLIT_FILE
    entries = read_entries(file, _Image, "Visual Genome image data", notice)
    images = {image.image_id: image for image in _once(entries, file, notice)}
    return images, _published_splits(split_file, images, notice) if split_file.is_file() else _seeded_splits(images)


def _seeded_splits(images: Iterable[int]) -> dict[str, list[int]]:
    ids = np.array(list(images), np.int64)
    tenths = mix(0, _SPLIT_STREAM, ids) % np.uint64(10)
    return {name: ids[np.isin(tenths, part)].tolist() for name, part in zip(SPLITS, _TENTHS, strict=True)}


_TENTHS = (range(8), (8,), (9,))  # of SPLITS; sg2im, section 4.1, divides 80/10/10 too


def _published_splits(file: Path, images: Mapping[int, _Image], notice: Notice) -> dict[str, list[int]]:
    content = read_json(file, _Splits, "Visual Genome splits", notice)
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    owners: dict[int, str] = {}
    for split in SPLITS if content is not None else ():
        for image_id in getattr(content, split):
            if image_id in owners:
                sentence = (
                    f"{file} lists image {image_id} in {owners[image_id]} and again in {split}; leave one of them."
                )
                notice(Problem(Kind.DUPLICATE_ID, sentence))
            elif image_id not in images:
                sentence = f"{file}: image {image_id} of {split} is not in {_FILES[0]}; add it there or remove it here."
                notice(Problem(Kind.ANNOTATION_WITHOUT_IMAGE, sentence))
            else:
                owners[image_id] = split
                splits[split].append(image_id)
    return splits


def _ids_of(root: Path, split: str, splits: Mapping[str, list[int]]) -> list[int]:
    if ids := splits.get(split):
        return ids
    found = ", ".join(name for name in SPLITS if splits[name]) or "none"
    raise RequestError(
        f"{root} has no picture in split {split!r} (found: {found}); ask for one of these or list its image ids in "
        f"{_SPLIT_FILE}."
    )


def _read_graphs(root: Path, images: Mapping[int, _Image], ids: Iterable[int], notice: Notice) -> dict[int, SceneGraph]:
    """The graphs of these images, as published."""
    with collector_paused():
        return _linked_graphs(_Files(root, images, frozenset(ids), notice), images)


def _linked_graphs(files: "_Files", images: Mapping[int, _Image]) -> dict[int, SceneGraph]:
    attributes = {place.image_id: place.attributes(items) for place, items in files.read(_ImageAttributes, _Described)}
    objects: dict[int, _Objects] = {}
    for place, things in files.read(_ImageObjects, _Object):
        image, described = images[place.image_id], attributes.pop(place.image_id, {})
        objects[place.image_id] = place.objects(things, described, (image.width, image.height))
    graphs = {image_id: SceneGraph(nodes, ()) for image_id, (nodes, _) in objects.items()}
    for place, relationships in files.read(_ImageRelationships, _Relationship):
        graph = place.graph(objects.get(place.image_id, ((), {})), (item.link for item in relationships))
        if place.image_id in graphs:
            graphs[place.image_id] = graph
    return graphs


@dataclass(frozen=True, slots=True)
class _Files:
    root: Path
    images: Mapping[int, _Image]
    wanted: frozenset[int]
    notice: Notice

    def read(self, layout: type[LayoutT], item: type[ItemT]) -> Iterator[tuple["_Place", list[ItemT]]]:
        """The items of every wanted image; one file's text at a time is in memory."""
        field = msgspec.structs.fields(layout)[1].encode_name
        file = self.root / f"{field}.json"
        entries = read_entries(file, layout, f"Visual Genome {field}", self.notice)
        for entry in _once(self._wanted(entries or (), file), file, self.notice):
            place = _Place(file, entry.image_id, self.notice)
            yield place, place.items(entry.items, item, field)

    def _wanted(self, entries: Iterable[LayoutT], file: Path) -> Iterator[LayoutT]:
        for entry in entries:
            if entry.image_id not in self.images:
                sentence = f"{file}: image {entry.image_id} is not in {_FILES[0]}; add it there or remove it here."
                self.notice(Problem(Kind.ANNOTATION_WITHOUT_IMAGE, sentence))
            elif entry.image_id in self.wanted:
                yield entry


def _once(entries: Iterable[EntryT] | None, file: Path, notice: Notice) -> Iterator[EntryT]:
    seen: set[int] = set()
    for entry in entries or ():
        if entry.image_id in seen:
            sentence = f"{file} lists image {entry.image_id} twice; leave one of its entries."
            notice(Problem(Kind.DUPLICATE_ID, sentence))
        else:
            seen.add(entry.image_id)
            yield entry


@dataclass(frozen=True, slots=True)
class _Place:
    """One image's entry in one file. Strings are interned: millions of objects share a few thousand words."""

    file: Path
    image_id: int
    notice: Notice

    def items(self, content: msgspec.Raw, item: type[ItemT], field: str) -> list[ItemT]:
        """The entry's sound items."""
        try:
            return msgspec.json.decode(content, type=list[item])  # type: ignore[valid-type]
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return list(self._sound(content, item, field))

    def _sound(self, content: msgspec.Raw, item: type[ItemT], field: str) -> Iterator[ItemT]:
        try:
            parts = msgspec.json.decode(content, type=list[msgspec.Raw])
        except msgspec.MsgspecError as error:
            self._broken(field, bytes(content), error)
            return
        for index, part in enumerate(parts):
            try:
                yield msgspec.json.decode(part, type=item)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self._broken(f"{field}[{index}]", bytes(part), error)

    def _broken(self, where: str, content: bytes, error: Exception) -> None:
        self._say(
            Kind.ENTRY_BROKEN, f"{where} of image", f"cannot be used: {clause(content, error)}; mend or remove it"
        )

    def _say(self, kind: Kind, what: str, fault: str) -> None:
        self.notice(Problem(kind, f"{self.file}: {what} {self.image_id} {fault}."))

    def attributes(self, items: Iterable[_Described]) -> _Attributes:
        found: dict[int, tuple[str, ...]] = {}
        for item in items:
            if item.attributes:
                found[item.object_id] = found.get(item.object_id, ()) + tuple(item.attributes)
        return found

    def objects(
        self, items: Sequence[_Object], described: _Attributes | None = None, size: tuple[int, int] | None = None
    ) -> _Objects:
        """Nodes, and merged ids. `described` are the attributes where another file has them; `size` in pixels."""
        nodes: dict[int, SceneObject] = {}
        merged: dict[int, int] = {}
        for item in items:
            names = item.names or (item.name or "",)
            if not all(map(str.strip, names)):
                names = tuple(name for name in names if name.strip())
            if item.object_id in nodes:
                self._say_of(item.object_id, Kind.DUPLICATE_ID, "is listed twice; leave one of its entries")
            elif not names:
                self._say_of(item.object_id, Kind.ENTRY_BROKEN, "has no name; give it one under `names`")
            else:
                attributes = item.attributes if described is None else described.get(item.object_id)
                first, *others = _interned(names)
                node = SceneObject(
                    item.object_id,
                    first,
                    _interned(attributes) if attributes else (),
                    (item.x, item.y, item.w, item.h),
                    tuple(others),
                )
                self._check_box(node, size)
                nodes[node.id] = node
                if item.merged_object_ids:
                    merged |= dict.fromkeys(item.merged_object_ids, node.id)
        for stranger in sorted((described or {}).keys() - nodes.keys() - merged.keys()):
            self._say_of(stranger, Kind.GRAPH_STRANGER, "has attributes and is not listed; list it")
        return tuple(nodes.values()), merged

    def _say_of(self, object_id: int, kind: Kind, fault: str) -> None:
        self._say(kind, f"object {object_id} of image", fault)

    def _check_box(self, node: SceneObject, size: tuple[int, int] | None) -> None:
        x, y, width, height = node.box
        if width <= 0 or height <= 0:
            self._say_of(node.id, Kind.BOX_EMPTY, f"has a box of {width:g} x {height:g} px; it is kept as published")
        if size is not None and (min(x, y) < -_SLACK or x + width > size[0] + _SLACK or y + height > size[1] + _SLACK):
            where = f"beyond its {size[0]} x {size[1]} px"
            self._say_of(node.id, Kind.BOX_OUTSIDE, f"has a box {where}; it is kept as published")

    def graph(self, objects: _Objects, links: Iterable[_Link]) -> SceneGraph:
        """The nodes with those links whose both ends are there."""
        nodes, merged = objects
        known = {**merged, **{node.id: node.id for node in nodes}}
        kept: list[_Link] = []
        for subject, predicate, target in links:
            if subject in known and target in known:
                kept.append((known[subject], sys.intern(predicate), known[target]))
            else:
                lost = target if subject in known else subject
                what = f"relationship {subject} {predicate!r} {target} of image"
                self._say(Kind.GRAPH_STRANGER, what, f"is left out: object {lost} is not listed; list it")
        return SceneGraph(nodes, tuple(kept))


def _interned(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(sys.intern, words))


def _records(
    images: Mapping[int, _Image], ids: Iterable[int], graphs: Mapping[int, SceneGraph]
) -> Iterator[ImageRecord]:
    """One record an image; its file is named within the root, in the folder that its address names."""
    for image in (images[image_id] for image_id in ids):
        folder = _FOLDERS[f"/{_FOLDERS[1]}/" in (image.url or "")]
        file = Path(folder, f"{image.image_id}.jpg")
        yield ImageRecord(image.image_id, file, image.width, image.height, graph=graphs.get(image.image_id))


def _dataset(
    root: Path, split: str, records: Iterable[ImageRecord], images: Mapping[int, _Image], notice: Notice
) -> Dataset:
    """The records whose picture is there, in whichever folder it lies."""
    there = {file.name: folder for folder in _FOLDERS for file in (root / folder).glob("*")}
    placed = {
        f"{there.get(record.file.name, record.file.parent.name)}/{record.file.name}": record for record in records
    }
    sizes = file_sizes(root, list(placed), root / _FILES[0], notice)
    kept = tuple(replace(record, file=root / name) for name, record in placed.items() if name in sizes)
    if not kept:
        raise RequestError(f"{root} has no picture of its {split} split in VG_100K or VG_100K_2; unpack them there.")
    for record in kept:
        if record.graph is None or not record.graph.objects:
            sentence = f"{root / 'objects.json'} has no object of image {record.image_id}; it serves without a graph."
            notice(Problem(Kind.IMAGE_WITHOUT_ANNOTATION, sentence))
    for name in sorted(there.keys() - {f"{image_id}.jpg" for image_id in images}):
        sentence = f"{root / there[name] / name} is not in {_FILES[0]}; it is not used."
        notice(Problem(Kind.UNLISTED_PICTURE, sentence))
    read = [*_FILES, *(name for name in (_SPLIT_FILE, *ALIAS_FILES) if (root / name).is_file())]
    digest = digest_of([root / name for name in read], sizes.items())
    return Dataset("visual-genome", split, root, kept, carried(kept), digest)
