"""What preparation leaves for workers: all that training reads, by path, so that it crosses processes as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.contract import Given
from models.encoders.regions import RegionSettings
from orchestration.data.batches import CanvasStore, CaptionedPictures, TaggedStore
from orchestration.data.features import CaptionTokens, open_caption_features, open_caption_index
from orchestration.data.graphs import open_graphs
from orchestration.data.label_maps import open_label_maps
from orchestration.data.objects import open_objects
from orchestration.data.patch_source import CandidatePatches
from orchestration.data.pictures import Pictures
from orchestration.data.regions import open_regions
from orchestration.data.shards import open_shards
from orchestration.data.transforms import get_transform
from orchestration.data.vocabulary import load_vocabulary
from orchestration.training.state import Provenance


@dataclass(frozen=True, slots=True)
class TokenSource:
    """How captions become word indices: the vocabulary's file, and what is kept of long captions."""

    vocabulary: str
    longest: int
    shortening: str


@dataclass(frozen=True, slots=True)
class CandidateSource:
    """Where patches come from: the folders of the candidates and of the bank, and how many candidates are shown."""

    folder: str
    bank: str
    count: int


@dataclass(frozen=True, slots=True)
class PreparedSplit:
    """One prepared split, by path: the shards' folder, the published folder they were made from, the captions, and
    what else is read of it."""

    pictures: str
    root: str
    captions: str
    features: str | None = None
    tokens: TokenSource | None = None
    labels: str | None = None
    objects: str | None = None
    regions: str | None = None
    graphs: str | None = None
    candidates: CandidateSource | None = None
    label_maps: str | None = None
    tagged: str | None = None
    canvases: str | None = None

    def open(self) -> CaptionedPictures:
        """Memory-map it."""
        shards = open_shards(Path(self.pictures), Path(self.root))
        options = shards.options
        pictures = Pictures(shards, get_transform(options.transform), options.size)
        index = open_caption_index(Path(self.captions))
        features = open_caption_features(Path(self.features)) if self.features else None
        tokens = None
        if self.tokens:
            vocabulary = load_vocabulary(Path(self.tokens.vocabulary))
            tokens = CaptionTokens(index, vocabulary, self.tokens.longest, self.tokens.shortening)
        objects = open_objects(Path(self.objects)) if self.objects else None
        regions = open_regions(Path(self.regions)) if self.regions else None
        graphs = open_graphs(Path(self.graphs)) if self.graphs else None
        maps = open_label_maps(Path(self.label_maps)) if self.label_maps else None
        candidates = None
        if self.candidates:
            assert graphs is not None
            chosen = self.candidates
            candidates = CandidatePatches.open(Path(chosen.folder), Path(chosen.bank), graphs.most, chosen.count)
        return CaptionedPictures(
            pictures,
            index,
            features,
            tokens,
            objects,
            regions,
            graphs,
            candidates,
            maps,
            self._open_tagged(),
            self._open_canvases(),
        )

    def _open_tagged(self) -> TaggedStore | None:
        if self.tagged is None:
            return None
        from orchestration.narratives.tagged_words import open_tagged_words

        opened: TaggedStore = open_tagged_words(Path(self.tagged))
        return opened

    def _open_canvases(self) -> CanvasStore | None:
        if self.canvases is None:
            return None
        from orchestration.narratives.canvases import open_canvases

        opened: CanvasStore = open_canvases(Path(self.canvases))
        return opened


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a worker reads, by path: it crosses process borders as JSON.

    text: folder of what reads captions or graphs, which checkpoints take along: a trained part, or the graphs'
    vocabulary; None for pretrained encoders; regions: `RegionSettings` as JSON, None where salient boxes play no part;
    classes, predicates: of scene graphs or label maps, 0 where none are read; encoders: where packaged encoders are
    unpacked; class_names: of the label maps' classes.
    """

    train: PreparedSplit
    validation: PreparedSplit
    provenance: Provenance
    protocol: str
    judge: str | None
    vocabulary_size: int = 0
    parts: tuple[tuple[str, str], ...] = ()
    text: str | None = None
    regions: dict[str, Any] | None = None
    classes: int = 0
    predicates: int = 0
    encoders: str | None = None
    class_names: tuple[str, ...] = ()

    @property
    def given(self) -> Given:
        """What nets are built from."""
        regions = RegionSettings.model_validate(self.regions) if self.regions is not None else None
        folders = {name: Path(folder) for name, folder in self.parts}
        encoders = Path(self.encoders) if self.encoders else None
        return Given(
            self.vocabulary_size,
            folders,
            regions,
            self.classes,
            self.predicates,
            encoders=encoders,
            class_names=self.class_names,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Prepared":
        splits = {}
        for name in ("train", "validation"):
            tokens, chosen = values[name]["tokens"], values[name].get("candidates")
            read = {
                "tokens": TokenSource(**tokens) if tokens else None,
                "candidates": CandidateSource(**chosen) if chosen else None,
            }
            splits[name] = PreparedSplit(**{**values[name], **read})
        parts = tuple((name, folder) for name, folder in values["parts"])
        named = tuple(values.get("class_names", ()))
        found = {**values, **splits, "parts": parts, "class_names": named}
        return cls(**{**found, "provenance": Provenance(**values["provenance"])})
