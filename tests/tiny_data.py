"""Random data that needs no encoder, no reader and no disk, and how it is on disk after preparation."""

import json
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.contract import Candidates
from models.encoders.regions import RegionSettings
from orchestration.config import (
    PatchSettings,
)
from orchestration.data.batches import CanvasStore, CaptionedPictures, TaggedStore
from orchestration.data.candidates import write_candidates
from orchestration.data.features import CaptionFeatures, CaptionIndex, CaptionTokens
from orchestration.data.graphs import StoredGraphs, graphs_stage
from orchestration.data.label_maps import StoredLabelMaps, label_maps_stage
from orchestration.data.objects import StoredObjects, objects_stage
from orchestration.data.patch_search import PreFilterSettings
from orchestration.data.patch_source import EncodedObjects
from orchestration.data.patches import write_bank
from orchestration.data.pictures import Pictures
from orchestration.data.records import (
    Dataset,
    ImageRecord,
    Instance,
    Panoptic,
    PanopticSegment,
    SceneGraph,
    SceneObject,
)
from orchestration.data.regions import ARRAYS, About, RegionFeatures
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.data.shards import ShardOptions, write_shards
from orchestration.data.transforms import TRANSFORMS
from orchestration.data.vocabulary import Vocabulary, save_vocabulary
from orchestration.narratives.canvases import ARRAYS as CANVAS_ARRAYS
from orchestration.narratives.canvases import About as CanvasesAbout
from orchestration.narratives.canvases import StoredCanvases
from orchestration.narratives.runs import to_runs
from orchestration.narratives.tagged_words import ARRAYS as TAGGED_ARRAYS
from orchestration.narratives.tagged_words import StoredTaggedWords
from orchestration.prepared import CandidateSource, PreparedSplit, TokenSource
from orchestration.stages import quiet
from orchestration.training.state import Provenance

REGION_DIM = 5
REGIONS = RegionSettings(count=4)
PATCHES = PatchSettings(candidates=6, side=16, prefilter=PreFilterSettings(k=20))
NAMES = GraphVocabulary(("cat", "dog", "grass"), (), ("left of", "on"))
LABELS = ("cat", "dog", "grass")
STUFF = (False, False, True)
PIECES, LONGEST_TAGGED = 40, 12
PROVENANCE = Provenance("d" * 64, "e" * 64)


def tiny_data(images: int = 24, text_dim: int = 8, resolution: int = 32, seed: int = 0) -> CaptionedPictures:
    """Random pictures with one to three captions of two to six random word features each."""
    random = np.random.default_rng(seed)
    image_ids = 100 + 7 * np.arange(images, dtype=np.int64)
    pixels = random.integers(0, 256, (images, 3, resolution, resolution), np.uint8)
    starts = np.concatenate([[0], np.cumsum(random.integers(1, 4, images))]).astype(np.int64)
    captions = int(starts[-1])
    offsets = np.concatenate([[0], np.cumsum(random.integers(2, 7, captions))]).astype(np.int64)
    # Rows are in another order than captions, as where texts repeat.
    rows = random.permutation(captions).astype(np.int64)
    words = random.standard_normal((int(offsets[-1]), text_dim)).astype(np.float16)
    sentence = random.standard_normal((captions, text_dim)).astype(np.float32)
    # From two words to more than are used; two images a class.
    texts = tuple(" ".join(f"number {index} of all captions".split()[: 2 + index % 4]) for index in range(captions))
    index = CaptionIndex(image_ids, np.arange(images, dtype=np.int64) // 2, starts, texts)
    vocabulary = Vocabulary(("<end>", *sorted({word for text in texts for word in text.split()})))
    pictures = held_pictures(pixels, image_ids)
    graphs = _some_graphs(np.random.default_rng((seed, 1)), image_ids, pictures)
    return CaptionedPictures(
        pictures,
        index,
        CaptionFeatures(rows, offsets, words, sentence),
        CaptionTokens(index, vocabulary, 4, "random"),
        _some_objects(random, image_ids, pictures),
        _some_regions(random, image_ids),
        graphs,
        HeldCandidates(image_ids, graphs.most, seed),
        _some_labels(np.random.default_rng((seed, 2)), image_ids, pictures),
        _some_tagged(np.random.default_rng((seed, 3)), captions),
        _some_canvases(np.random.default_rng((seed, 4)), np.repeat(image_ids, np.diff(starts)), resolution),
    )


def _some_boxes(random: np.random.Generator, count: int) -> NDArray[np.float32]:
    """(count,4), x0, y0, x1, y1 in [0, 1], at least a quarter of the picture wide and high."""
    low, size = random.uniform(0, 0.5, (count, 2)), random.uniform(0.25, 0.5, (count, 2))
    return np.concatenate([low, low + size], 1).astype(np.float32)


def _some_objects(random: np.random.Generator, image_ids: NDArray[np.int64], pictures: Pictures) -> StoredObjects:
    """None to two things a picture."""
    starts = np.concatenate([[0], np.cumsum(random.integers(0, 3, len(image_ids)))]).astype(np.int64)
    count, side = int(starts[-1]), pictures.size
    stored = np.full((len(image_ids), 2), side, np.int64)
    classes = random.integers(0, 2, count).astype(np.int64)
    boxes = (side * _some_boxes(random, count)).astype(np.float32)
    return StoredObjects(image_ids, ("cat", "dog"), stored, starts, boxes, classes, pictures.transform, side)


def _some_regions(random: np.random.Generator, image_ids: NDArray[np.int64]) -> RegionFeatures:
    """None to all of the regions a picture."""
    images, count = len(image_ids), REGIONS.count
    return RegionFeatures(
        Path("tiny"),
        About(1, "tiny", "0" * 64, REGION_DIM, count),
        image_ids,
        _some_boxes(random, images * count).reshape(images, count, 4),
        random.standard_normal((images, count, REGION_DIM)).astype(np.float16),
        np.sort(random.uniform(0, 1, (images, count)).astype(np.float32), 1)[:, ::-1],
        random.integers(0, count + 1, images).astype(np.int64),
        np.arange(images, dtype=np.int64),
    )


def _some_graphs(random: np.random.Generator, image_ids: NDArray[np.int64], pictures: Pictures) -> StoredGraphs:
    """Two or three objects a picture, and up to two relations."""
    starts, link_starts = (
        np.concatenate([[0], np.cumsum(random.integers(least, 1 + most, len(image_ids)))]).astype(np.int64)
        for least, most in ((2, 3), (0, 2))
    )
    counts = np.repeat(np.diff(starts), np.diff(link_starts))
    links = np.stack([random.integers(0, counts), random.integers(0, 2, len(counts)), random.integers(0, counts)], 1)
    stored = np.full((len(image_ids), 2), pictures.size, np.int64)
    count = int(starts[-1])
    boxes = (pictures.size * _some_boxes(random, count)).astype(np.float32)
    numbers = random.integers(0, len(NAMES.objects), count).astype(np.int64)
    return StoredGraphs(
        image_ids,
        NAMES.objects,
        NAMES.relationships,
        stored,
        starts,
        boxes,
        numbers,
        link_starts,
        links.astype(np.int64),
        pictures.transform,
        pictures.size,
    )


def _some_labels(random: np.random.Generator, image_ids: NDArray[np.int64], pictures: Pictures) -> StoredLabelMaps:
    """Stripes of all classes and of none, some of them things."""
    images, side = len(image_ids), pictures.size
    stripes = random.integers(0, len(LABELS) + 1, (images, 8))
    labels = np.repeat(stripes, side // 8, 1)[:, :, None].repeat(side, 2)
    maps = np.stack([labels, np.where(labels < 2, 1 + labels, 0)], 1).astype(np.uint8)
    stored, starts = np.full((images, 2), side, np.int64), 2 * side * side * np.arange(images + 1, dtype=np.int64)
    return StoredLabelMaps(image_ids, LABELS, STUFF, stored, starts, maps.reshape(-1), pictures.transform, side)


def _some_tagged(random: np.random.Generator, narratives: int) -> StoredTaggedWords:
    """Four pieces a narrative or more, marks included; a word begins at the first and at half of the others, and has a
    label more often than not."""
    counts = random.integers(4, 1 + LONGEST_TAGGED, narratives)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(starts[-1])
    first = random.random(total) < 0.5
    first[starts[:-1] + 1] = True
    first[starts[:-1]] = first[starts[1:] - 1] = False
    labels = np.where(first & (random.random(total) < 0.8), random.integers(0, len(LABELS), total), -1)
    pieces = random.integers(4, PIECES, total).astype(np.int32)
    return StoredTaggedWords(pieces, first, labels.astype(np.int32), starts, LONGEST_TAGGED)


def _some_canvases(random: np.random.Generator, image_ids: NDArray[np.int64], side: int) -> StoredCanvases:
    """Bands of all classes and of none, one of them in front of the others as a thing."""
    labels = random.integers(0, len(LABELS) + 1, (len(image_ids), side // 4, 1)).repeat(4, 1).repeat(side, 2)
    instances = np.zeros_like(labels)
    labels[:, side // 4 : side // 2, side // 4 :] = 1
    instances[:, side // 4 : side // 2, side // 4 :] = 1
    runs = [to_runs(*layers) for layers in zip(labels, instances, strict=True)]
    counts = [len(lengths) for _, lengths in runs]
    about = CanvasesAbout(1, PROVENANCE.data_digest, side, LABELS, STUFF, len(runs), len(runs), sum(counts))
    numbers = np.concatenate([found for found, _ in runs], 1)
    return StoredCanvases(
        Path("tiny"),
        about,
        image_ids,
        np.arange(len(runs), dtype=np.int64),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        numbers[0],
        numbers[1],
        np.concatenate([lengths for _, lengths in runs]),
    )


@dataclass(frozen=True, eq=False)
class HeldCandidates:
    """Random patches: each picture's first object has all that it may have, the others any number of them."""

    image_ids: NDArray[np.int64]
    objects: int
    seed: int

    def take(self, items: NDArray[np.int64]) -> Candidates:
        shape = (len(items), self.objects, PATCHES.candidates)
        patches, counts = np.zeros((*shape, 3, PATCHES.side, PATCHES.side), np.uint8), np.zeros(shape[:2], np.int64)
        for row, item in enumerate(items.tolist()):
            random = np.random.default_rng((self.seed, item))
            patches[row] = random.integers(0, 256, patches.shape[1:], np.uint8)
            counts[row] = random.integers(0, PATCHES.candidates + 1, self.objects)
            counts[row, 0] = PATCHES.candidates
        patches *= (np.arange(PATCHES.candidates) < counts[..., None])[..., None, None, None]
        return Candidates(torch.from_numpy(patches), torch.zeros(shape, dtype=torch.int64), torch.from_numpy(counts))


@dataclass(frozen=True, eq=False)
class HeldPictures:
    """Stored pictures in memory: `pixels` uint8 (N,3,h,w)."""

    pixels: NDArray[np.uint8]
    image_ids: NDArray[np.int64]

    def pictures(self, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        return list(self.pixels[rows])


def held_pictures(pixels: NDArray[np.uint8], image_ids: NDArray[np.int64]) -> Pictures:
    """Pictures (N,3,S,S) that need no more than a flip."""
    return Pictures(HeldPictures(pixels, image_ids), TRANSFORMS["xmcgan"], pixels.shape[-1])


def write_split(folder: Path, data: CaptionedPictures) -> PreparedSplit:
    """Tiny data on disk, in the formats that preparation writes."""
    pictures, features, published = folder / "pictures", folder / "features", folder / "published"
    published.mkdir(parents=True)
    features.mkdir()
    side = data.pictures.size
    records = []
    for place, pixels in enumerate(data.pixels(np.arange(len(data)))):
        image_id = int(data.image_ids[place])
        file = published / f"{image_id}.png"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
        things = None if data.objects is None else _instances(data.objects, place)
        graph = None if data.graphs is None else _graph(data.graphs, place)
        shown = {} if data.labels is None else _labelled(data.labels, place)
        records.append(ImageRecord(image_id, file, side, side, **{"instances": things, "graph": graph, **shown}))
    dataset = Dataset("tiny", "train", published, tuple(records), frozenset({"images"}), PROVENANCE.data_digest)
    # Compressed, and with random cuts: runs that resume on these resume on anything simpler.
    write_shards(dataset, ShardOptions("attngan", side, "png"), pictures)
    index, found, tokens = data.index, data.features, data.tokens
    for name in ("image_ids", "class_ids", "starts"):
        np.save(features / f"{name}.npy", getattr(index, name))
    for name in ("rows", "offsets", "words", "sentence") if found is not None else ():
        np.save(features / f"{name}.npy", getattr(found, name))
    (features / "captions.json").write_text(json.dumps(index.texts))
    source = None
    if tokens is not None:
        vocabulary = features / "vocabulary.json"
        save_vocabulary(tokens.vocabulary, vocabulary)
        source = TokenSource(str(vocabulary), tokens.longest, tokens.shortening)
    objects = None if data.objects is None else folder / "objects"
    regions = None if data.regions is None else folder / "regions"
    graphs, candidates = None if data.graphs is None else folder / "graphs", None
    if graphs and data.graphs:
        graphs.mkdir()
        graphs_stage(dataset, TRANSFORMS["attngan"], side, NAMES).run(graphs, quiet)
    if graphs and data.candidates:
        candidates = CandidateSource(str(folder / "candidates"), str(folder / "bank"), PATCHES.candidates)
        open_source = partial(
            _described, PreparedSplit(str(pictures), str(published), str(features), graphs=str(graphs))
        )
        for made in (candidates.folder, candidates.bank):
            Path(made).mkdir()
        count, digest = len(data), PROVENANCE.data_digest
        bank, chosen = Path(candidates.bank), Path(candidates.folder)
        write_bank(bank, count, open_source, digest, NAMES.objects, PATCHES.side, quiet)
        write_candidates(chosen, count, open_source, digest, bank, True, PATCHES.prefilter, quiet)
    if objects:
        objects.mkdir()
        objects_stage(dataset, TRANSFORMS["attngan"], side).run(objects, quiet)
    if regions and data.regions:
        regions.mkdir()
        for name in ARRAYS:
            np.save(regions / f"{name}.npy", getattr(data.regions, name))
        (regions / "regions.json").write_bytes(msgspec.json.encode(data.regions.about))
    maps = None if data.labels is None else folder / "labels"
    if maps and data.labels:
        maps.mkdir()
        label_maps_stage(dataset, TRANSFORMS["attngan"], side, LABELS).run(maps, quiet)
    tagged = None if data.tagged is None else _write_tagged(folder / "tagged", data.tagged)
    canvases = None if data.canvases is None else _write_canvases(folder / "canvases", data.canvases)
    return PreparedSplit(
        str(pictures),
        str(published),
        str(features),
        None if found is None else str(features),
        source,
        objects=str(objects) if objects else None,
        regions=str(regions) if regions else None,
        graphs=str(graphs) if graphs else None,
        candidates=candidates,
        label_maps=str(maps) if maps else None,
        tagged=tagged,
        canvases=canvases,
    )


def _write_tagged(folder: Path, tagged: TaggedStore) -> str:
    assert isinstance(tagged, StoredTaggedWords)
    folder.mkdir()
    for name in TAGGED_ARRAYS:
        np.save(folder / f"{name}.npy", getattr(tagged, name))
    about = {"format": 1, "narratives": len(tagged), "pieces": len(tagged.pieces), "longest": tagged.longest}
    (folder / "tagged_words.json").write_text(json.dumps(about))
    return str(folder)


def _write_canvases(folder: Path, canvases: CanvasStore) -> str:
    assert isinstance(canvases, StoredCanvases)
    folder.mkdir()
    for name in CANVAS_ARRAYS:
        np.save(folder / f"{name}.npy", getattr(canvases, name))
    (folder / "canvases.json").write_bytes(msgspec.json.encode(canvases.about))
    return str(folder)


class _Described(EncodedObjects):
    """Objects of tiny data, described by nobody: by their boxes and classes."""

    encoder = "f" * 64

    def __init__(self, split: PreparedSplit) -> None:
        self.data = split.open()

    def features(self, items: NDArray[np.int64]) -> Tensor:
        found = self.objects(items)
        return torch.from_numpy(np.concatenate([found.boxes, found.classes[:, None].astype(np.float32)], 1))


def _described(split: PreparedSplit) -> _Described:
    return _Described(split)


def _instances(objects: StoredObjects, place: int) -> tuple[Instance, ...]:
    """The things of a picture as they are published."""
    found = []
    for row in range(objects.starts[place], objects.starts[place + 1]):
        left, top, right, bottom = objects.boxes[row].tolist()
        box, number = (left, top, right - left, bottom - top), int(objects.numbers[row])
        found.append(Instance(objects.classes[number], number, box, None, box[2] * box[3], False))
    return tuple(found)


def _labelled(labels: StoredLabelMaps, place: int) -> dict[str, Any]:
    """What a picture shows, as it is published: a panoptic map, for which any names will do."""
    shown = labels.take(np.array([place])).labels[0].numpy()
    map_bytes = BytesIO()
    Image.fromarray(np.stack([shown + 1, 0 * shown, 0 * shown], 2).astype(np.uint8)).save(map_bytes, "PNG")
    segments = [
        PanopticSegment(number + 1, name, number + 1, number < 2, (0, 0, 1, 1), 1.0, False)
        for number, name in enumerate((*labels.classes, "nothing known"))
        if (shown == number).any() or number < len(labels.classes)
    ]
    return {"panoptic": Panoptic(map_bytes.getvalue(), tuple(segments))}


def _graph(graphs: StoredGraphs, place: int) -> SceneGraph:
    """The scene graph of a picture as it is published."""
    things: list[SceneObject] = []
    for row in range(graphs.starts[place], graphs.starts[place + 1]):
        left, top, right, bottom = graphs.boxes[row].tolist()
        box = (left, top, right - left, bottom - top)
        things.append(SceneObject(len(things), graphs.classes[graphs.numbers[row]], (), box))
    links = graphs.links[graphs.link_starts[place] : graphs.link_starts[place + 1]].tolist()
    return SceneGraph(tuple(things), tuple((first, graphs.predicates[word], last) for first, word, last in links))
