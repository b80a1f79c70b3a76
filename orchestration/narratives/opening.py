"""How what canvases are composed with is opened, in any process: folders and settings, which cross between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.encoders.image import WeightsMissing
from models.encoders.text import TextEncoder
from models.trecs.config import TReCSConfig
from orchestration.errors import RequestError
from orchestration.narratives.composer import Composer
from orchestration.narratives.corpus import open_corpus
from orchestration.narratives.hmm_tags import StoredTags, open_tags, raw_tags
from orchestration.narratives.mask_bank import MaskBank
from orchestration.narratives.retrieval_index import Retriever


@dataclass(frozen=True, slots=True)
class OpenComposer:
    """Opens a composer. bank, index, encoder: folders of stages; text: opens what the dual encoder reads narratives
    with, such as `orchestration.data.word_encoder.opening`.

    Called, it raises RequestError for what cannot be read or does not fit together.
    """

    bank: Path
    index: Path
    encoder: Path
    text: Callable[[], TextEncoder]
    model: TReCSConfig
    min_radius: float
    device: str = "cpu"

    def __call__(self) -> Composer:
        try:
            text = self.text().to(self.device)
        except WeightsMissing as error:
            raise RequestError(f"text.name: {error}") from error
        bank = MaskBank.open(self.bank)
        retriever = Retriever.open(self.index, self.encoder, text, self.device, of=bank.image_ids)
        return Composer(bank, retriever, self.model, self.min_radius)


@dataclass(frozen=True, slots=True)
class OpenTags:
    """Opens the tags of a split. folder: a stage of tags, or with `raw` the corpus itself; classes: how many."""

    folder: Path
    classes: int
    raw: bool = False

    def __call__(self) -> "SplitTags":
        return SplitTags(raw_tags(open_corpus(self.folder)) if self.raw else open_tags(self.folder), self.classes)


@dataclass(frozen=True, slots=True)
class SplitTags:
    """The tags of a split's narratives as the composer reads them: the number of classes for a word of none."""

    stored: StoredTags
    classes: int

    def __call__(self, captions: range) -> Sequence[NDArray[np.int64]]:
        return [self.of(caption) for caption in captions]

    def of(self, caption: int) -> NDArray[np.int64]:
        """(T,), of one narrative."""
        tags = self.stored.take(caption)
        return np.where(tags < 0, self.classes, tags)
