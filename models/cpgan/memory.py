"""The memory: what every word looks like across the training pictures (CPGAN, section 3.2.1, equation 7)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from models.contract import NOTHING, Batch, Gathered, Given, Nets, RegionStore, Settings, after_counts
from models.cpgan.captioner import NET, STAGE, TopDownCaptioner, frozen_captioner, required
from models.encoders.regions import DETECTOR

MERGED_AT_ONCE = 1 << 18
"""Rows that wait before they are merged with those kept: many, so that each row is sorted a few times only."""
FEATURES_AT_ONCE = 1 << 13


class MemoryConfig(Settings):
    """Which regions a word remembers."""

    top_k: int | None = Field(
        100,
        ge=1,
        description="K, pictures of a word that count, the most attended ones (section 3.2.1: tuned on the validation "
        "set; not given in the paper, 100 is this project's choice). None: all N pictures of the word",
    )
    longest: int = Field(40, ge=1, description="words of a caption that are read; the paper does not say")
    unknown: Literal["mean", "zero"] = Field(
        "mean",
        description='what words that were never seen remember, all of them alike: "mean" of all memories, each word '
        'counted once, or "zero". The paper does not say; in the released table rare words share one entry',
    )
    resolution: int = Field(
        256, ge=8, description="side of the pictures whose regions are found, in pixels: that of the captioner"
    )


class Memory(Gathered[MemoryConfig]):
    """A frozen captioner looks at every training caption; each word keeps the regions it meant most."""

    name = "memory"
    title = "The memory of CPGAN's Memory-Attended Text Encoder (2020)"
    Config = MemoryConfig
    needs = frozenset({"images", "captions"})
    transform = "attngan"
    reads = frozenset({"regions", "tokens"})

    def stages(self, config: MemoryConfig) -> Mapping[str, str]:
        return {DETECTOR: "grid_detector", STAGE: "attention_captioner"}

    def resolution(self, config: MemoryConfig) -> int:
        return config.resolution

    def longest(self, config: MemoryConfig) -> int:
        return config.longest

    def build(self, config: MemoryConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """Frozen "captioner". Raises StageMissing; ValueError for a stage that does not fit, see `frozen_captioner`."""
        return {NET: frozen_captioner(given, config.resolution)}

    def look(self, nets: Nets, config: MemoryConfig, batch: Batch, items: Tensor) -> dict[str, Tensor]:
        """The most attended region of every word of B captions, on the CPU; items: (B,) int64.

        words, items, places (M,) int64: the word, its picture, and which of the picture's regions (q_n of equation 7,
        the first where several are equal); attention (M,) float32; boxes (M,4) float32 in [0, 1]. Nothing of pictures
        without regions, nor of captions without a known word.
        """
        tokens, regions = required(batch)
        ids, lengths = tokens.ids[:, : config.longest], tokens.lengths.clamp(max=config.longest)
        captioner = cast(TopDownCaptioner, nets[NET])
        attention, places = captioner.attend(ids, lengths, regions).max(2)
        told = ~after_counts(lengths, ids.shape[1]) & (ids > 0) & (regions.counts > 0)[:, None]
        captions, positions = told.nonzero(as_tuple=True)
        chosen = places[captions, positions]
        found = {
            "words": ids[captions, positions],
            "items": items.to(ids.device)[captions],
            "places": chosen,
            "attention": attention[captions, positions].float(),
            "boxes": regions.boxes[captions, chosen].float(),
        }
        return {name: value.cpu() for name, value in found.items()}

    def gather(
        self, config: MemoryConfig, words: int, seen: Iterable[Mapping[str, Tensor]], regions: RegionStore
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The memory from what `look` saw, in the pictures' order, cut into portions anywhere: the same bytes.

        Tensors: "memory" (V,F) float32, row 0 (padding) zero, words never seen all alike; "pictures" (V,) int64, N of
        equation 7; and the regions that count, by word, the most attended first, equal ones by picture: "entry_words",
        "entry_items", "entry_places" (E,) int64, "entry_attention" (E,) float32, "entry_boxes" (E,4) float32 (see
        `entries_of`). However many captions there are, no more rows are held than a few times words x top_k.

        Raises ValueError for words outside the vocabulary, portions out of order, numbers that are not finite, and
        where nothing was seen at all.
        """
        best = BestEntries(words, config.top_k)
        for portion in seen:
            best.add(portion)
        entries, pictures = best.finish()
        if not len(entries.words):
            raise ValueError(
                "the memory would be empty: no training picture has both a region and a caption with a known word. "
                "Lower the detector's least score, or look at the captions"
            )
        memory = _memory(words, entries, regions)
        known = torch.from_numpy(pictures > 0)
        if config.unknown == "mean":
            unseen = ~known
            unseen[0] = False
            memory[unseen] = memory[known].mean(0, dtype=torch.float64).float()
        return entries.tensors() | {"memory": memory, "pictures": torch.from_numpy(pictures)}, _figures(
            entries, pictures
        )


@dataclass(frozen=True, slots=True)
class Entries:
    """Regions that words mean: words, items, places (E,) int64; attention (E,) float32; boxes (E,4) float32."""

    words: NDArray[np.int64]
    items: NDArray[np.int64]
    places: NDArray[np.int64]
    attention: NDArray[np.float32]
    boxes: NDArray[np.float32]

    @classmethod
    def of(cls, rows: Mapping[str, Tensor]) -> "Entries":
        """What `Memory.look` saw."""
        whole = [rows[name].cpu().numpy().astype(np.int64, copy=False) for name in ("words", "items", "places")]
        attention, boxes = (rows[name].cpu().numpy().astype(np.float32, copy=False) for name in ("attention", "boxes"))
        return cls(whole[0], whole[1], whole[2], attention, boxes)

    @classmethod
    def joined(cls, parts: "list[Entries]") -> "Entries":
        columns = [[getattr(part, name) for part in parts] for name in cls.__slots__]
        return cls(*(np.concatenate(column) for column in columns))

    def __getitem__(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Entries":
        return Entries(*(getattr(self, name)[rows] for name in self.__slots__))

    def tensors(self) -> dict[str, Tensor]:
        """As they are kept, by name."""
        return {f"entry_{name}": torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in self.__slots__}


def _no_entries() -> Entries:
    none = np.zeros(0, np.int64)
    return Entries(none, none, none, np.zeros(0, np.float32), np.zeros((0, 4), np.float32))


class BestEntries:
    """The `top_k` most attended pictures of every word, kept while pictures stream by in their order.

    A word counts once a picture, by its most attended occurrence; equal attention: the first region, the first
    picture. Rows wait and are merged in bulk, so that time grows with their number alone.
    """

    def __init__(self, words: int, top_k: int | None) -> None:
        self.words, self.top_k = words, top_k
        self.pictures: NDArray[np.int64] = np.zeros(words, np.int64)
        self._kept = _no_entries()
        self._waiting: list[Entries] = []
        self._rows, self._last = 0, -1

    def add(self, portion: Mapping[str, Tensor]) -> None:
        """Rows of some pictures, none of them before those of earlier portions. Raises ValueError, see `gather`."""
        rows = Entries.of(portion)
        if not len(rows.words):
            return
        self._check(rows)
        self._last = max(self._last, int(rows.items.max()))
        self._waiting.append(rows)
        self._rows += len(rows.words)
        if self._rows >= max(MERGED_AT_ONCE, len(self._kept.words)):
            self._merge(self._last)

    def finish(self) -> tuple[Entries, NDArray[np.int64]]:
        """The entries by word, the best first, and the pictures of each word (V,)."""
        self._merge(self._last + 1)
        return self._kept, self.pictures

    def _check(self, rows: Entries) -> None:
        least, most = int(rows.words.min()), int(rows.words.max())
        if least < 1 or most >= self.words:
            raise ValueError(
                f"a caption has word {most if most >= self.words else least}, and the vocabulary's words are 1 to "
                f"{self.words - 1}: read the captions with the vocabulary that the captioner was trained with"
            )
        if int(rows.items.min()) < self._last:
            raise ValueError(f"picture {int(rows.items.min())} comes after picture {self._last}: give them in order")
        if not np.isfinite(rows.attention).all():
            raise ValueError("the captioner's attention is not finite: its training went wrong, train it again")

    def _merge(self, end: int) -> None:
        """Take in the pictures before `end`; the last one may go on in the next portion, and waits."""
        if not self._waiting:
            return
        rows = Entries.joined(self._waiting)
        whole = rows.items < end
        self._waiting = [rows[~whole]]
        self._rows = len(self._waiting[0].words)
        once = _once_a_picture(rows[whole])
        self.pictures += np.bincount(once.words, minlength=self.words)
        self._kept = _most_attended(Entries.joined([self._kept, once]), self.top_k)


def _once_a_picture(rows: Entries) -> Entries:
    rows = rows[np.lexsort((rows.places, -rows.attention, rows.items, rows.words))]
    first = np.ones(len(rows.words), bool)
    first[1:] = (rows.words[1:] != rows.words[:-1]) | (rows.items[1:] != rows.items[:-1])
    return rows[first]


def _most_attended(rows: Entries, top_k: int | None) -> Entries:
    rows = rows[np.lexsort((rows.items, -rows.attention, rows.words))]
    if top_k is None:
        return rows
    count = len(rows.words)
    starts = np.flatnonzero(np.append(True, rows.words[1:] != rows.words[:-1])) if count else np.zeros(0, np.int64)
    rank = np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))
    return rows[rank < top_k]


def _memory(words: int, entries: Entries, regions: RegionStore) -> Tensor:
    """(V,F): the mean of each word's regions, weighted by attention (equation 7); 0 for words without any."""
    attention = entries.attention.astype(np.float64)
    total = np.bincount(entries.words, attention, minlength=words)
    weights = torch.from_numpy((attention / total[entries.words]).astype(np.float32))
    # In the pictures' order, so that the store is read once from start to end.
    order = np.lexsort((entries.places, entries.items))
    memory: Tensor | None = None
    for start in range(0, len(order), FEATURES_AT_ONCE):
        chosen = order[start : start + FEATURES_AT_ONCE]
        places = torch.from_numpy(entries.items[chosen]), torch.from_numpy(entries.places[chosen])
        features = regions.take(*places).float()
        if memory is None:
            memory = features.new_zeros(words, features.shape[1])
        memory.index_add_(0, torch.from_numpy(entries.words[chosen]), features * weights[chosen][:, None])
    assert memory is not None
    if not memory.isfinite().all():
        raise ValueError("region features are not finite: find the regions again, with weights that are whole")
    return memory


def _figures(entries: Entries, pictures: NDArray[np.int64]) -> dict[str, float]:
    seen = int((pictures > 0).sum())
    return {
        "words_seen": float(seen),
        "never_seen_share": 1.0 - seen / max(len(pictures) - 1, 1),
        "pictures_per_word": float(pictures.sum() / seen),
        "kept_per_word": len(entries.words) / seen,
        "mean_attention": float(entries.attention.mean(dtype=np.float64)),
    }


def entries_of(kept: Mapping[str, Tensor], word: int) -> dict[str, Tensor]:
    """What a gathered memory keeps of one word, the most attended first: items, places (K,) int64, attention (K,),
    boxes (K,4). Nothing for a word that was never seen."""
    found = kept["entry_words"]
    start, end = torch.searchsorted(found, torch.tensor([word, word + 1])).tolist()
    return {name: kept[f"entry_{name}"][start:end] for name in ("items", "places", "attention", "boxes")}
