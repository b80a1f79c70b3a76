"""What tests of tagging share: small labelled pictures with narratives, and a small BERT that learns in seconds."""

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.contract import Batch, Given, Nets, StepContext
from models.encoders.bert import NO_WEIGHTS, BertSettings, own_tokenizer
from models.encoders.text import quiet_loading
from models.parallel import OneRank
from models.trecs.bert_tagger import NET, BertTagger, BertTaggerConfig, TaggerNet
from orchestration.data.coco_stuff import LABEL_OF
from orchestration.data.records import Dataset, ImageRecord, Instance, Narrative, Utterance
from orchestration.narratives.tagged_words import MARKS, StoredTaggedWords, cut, marks, windows
from orchestration.stages import Stage, ensure

CLASSES = ("cat", "dog", "grass", "sky-other")
"""Names of COCO-Stuff, in the order in which these tests number them."""
BERT = BertSettings(name=NO_WEIGHTS, width=16, layers=2, heads=2, inner_width=32, pieces=120, positions=64)
SMALL = BertTaggerConfig(bert=BERT, max_pieces=32)
SENTENCE = "a big red cat sits on the green grass under a grey sky and near the dog"
WORDS = Counter(SENTENCE.split())
TOKENS = own_tokenizer(WORDS, BERT.pieces)
"""The word pieces of these words."""
SHORT = [["a", "big", "cats"], ["Grass,", "\u200d", "-", "sky"], ["the", "red", "dog", "near", "the", "cat"]]
"""Narratives, one with a word without pieces."""


def store_in(folder: Path) -> Callable[[Stage], Path]:
    return lambda stage: ensure(stage, folder)


def labelled(image_id: int, labels: NDArray[np.uint8], *narratives: Narrative) -> ImageRecord:
    """A picture of COCO-Stuff labels (H,W), with categories of the four classes."""
    content = io.BytesIO()
    Image.fromarray(labels).save(content, "png")
    named = tuple(Instance(name, LABEL_OF[name] + 1, (0, 0, 1, 1), None, 0.0, True) for name in CLASSES)
    height, width = labels.shape
    things, stuff = named[:2], named[2:]
    return ImageRecord(
        image_id,
        Path(f"{image_id}.png"),
        width,
        height,
        instances=things,
        stuff=stuff,
        stuff_map=content.getvalue(),
        narratives=narratives or None,
    )


def split_of(*records: ImageRecord, split: str = "train") -> Dataset:
    return Dataset("tiny", split, Path(), records, frozenset({"images", "stuff", "labels", "narratives"}), "d" * 64)


def quarters(names: Sequence[str] = ("cat", "dog", "grass", "sky-other"), side: int = 8) -> NDArray[np.uint8]:
    """(side,side): one label in each quarter, row by row."""
    numbers = np.array([LABEL_OF[name] for name in names], np.uint8).reshape(2, 2)
    return numbers.repeat(side // 2, 0).repeat(side // 2, 1)


PLACES = {"cat": (0.25, 0.25), "dog": (0.75, 0.25), "grass": (0.25, 0.75), "sky-other": (0.75, 0.75)}
"""The middle of each quarter."""


def spoken(*phrases: tuple[str, str | None]) -> Narrative:
    """Each phrase takes a second, in whose middle the mouse is in the quarter of that name, or nowhere."""
    said = tuple(Utterance(text, float(second), second + 0.9) for second, (text, _) in enumerate(phrases))
    traces = tuple(
        np.array([[*PLACES[name], second + 0.4]]) for second, (_, name) in enumerate(phrases) if name is not None
    )
    return Narrative(1, " ".join(text for text, _ in phrases), said, traces)


def without_traces(dataset: Dataset) -> Dataset:
    """The same split, told without a mouse."""
    records = tuple(
        replace(record, narratives=tuple(replace(one, traces=()) for one in record.narratives or ()))
        for record in dataset.records
    )
    return replace(dataset, records=records, digest="e" * 64)


def stored_pieces(
    tokenizer: Any, narratives: Sequence[Sequence[str]], labels: Sequence[Sequence[int]], longest: int
) -> StoredTaggedWords:
    """In memory, as the stage stores them."""
    begin, end = marks(tokenizer)
    pieces, first, taught, counts = [], [], [], []
    for found, tags in zip(cut(tokenizer, narratives, longest - MARKS), labels, strict=True):
        words = windows(found.sizes, longest - MARKS)[0][1]
        kept = int(found.sizes[:words].sum())
        begins = 1 + found.ends[:words] - found.sizes[:words]
        pieces.append(np.array([begin, *found.ids[:kept], end]))
        first.append(np.isin(np.arange(kept + MARKS), begins))
        taught.append(np.full(kept + MARKS, -1))
        taught[-1][begins] = tags[:words]
        counts.append(kept + MARKS)
    return StoredTaggedWords(
        np.concatenate(pieces).astype(np.int32),
        np.concatenate(first),
        np.concatenate(taught).astype(np.int32),
        np.cumsum([0, *counts]),
        max(counts),
    )


def stored_words(narratives: Sequence[Sequence[str]], labels: Sequence[Sequence[int]]) -> StoredTaggedWords:
    return stored_pieces(TOKENS, narratives, labels, 64)


def saved_bert(folder: Path) -> Path:
    """A tiny BERT as transformers saves it, in that folder."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(1)
    with quiet_loading():
        BertModel(BertConfig(vocab_size=120, max_position_embeddings=64, **sizes)).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=TOKENS, pad_token="[PAD]", cls_token="[CLS]").save_pretrained(folder)
    return folder


def bert_at(folder: Path, **changes: Any) -> BertSettings:
    """Settings of a BERT that is in a folder."""
    return BERT.model_copy(update={"name": str(folder), **changes})


def bert_copy(bert: Path, folder: Path, **config: Any) -> Path:
    """Into another folder, described otherwise."""
    for file in bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    described = json.loads((bert / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def built(config: BertTaggerConfig = SMALL, names: Sequence[str] = CLASSES) -> TaggerNet:
    """A tagger that was taught nothing."""
    torch.manual_seed(0)
    return cast(TaggerNet, BertTagger().build(config, Given(classes=len(names), class_names=tuple(names)))[NET])


def context_of(generator: torch.Generator, count: int) -> StepContext:
    def noise(width: int) -> Tensor:
        return torch.randn(count, width, generator=generator)

    return StepContext(OneRank(), noise)


def trained(
    stored: StoredTaggedWords, config: BertTaggerConfig, classes: Sequence[str], steps: int, batch: int = 32
) -> Nets:
    """A tagger after some steps on batches drawn by chance, of narratives of like length, with one thread."""
    part, generator, threads = BertTagger(), torch.Generator().manual_seed(0), torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    nets = part.build(config, Given(classes=len(classes), class_names=tuple(classes)))
    optimizer = torch.optim.Adam(nets[NET].parameters(), config.optimizer.learning_rate)
    (phase,) = part.phases(config)
    order = np.argsort(np.diff(stored.starts), kind="stable")
    try:
        for _ in range(steps):
            first = int(torch.randint(len(order) - batch + 1, (1,), generator=generator))
            words = Batch(torch.arange(batch), tagged=stored.take(order[first : first + batch]))
            objective = phase.losses(nets, words, context_of(generator, batch))[NET]
            optimizer.zero_grad()
            torch.autograd.backward(objective.loss)
            optimizer.step()
    finally:
        torch.set_num_threads(threads)
    return nets


def tagged_by(nets: Nets, stored: StoredTaggedWords) -> NDArray[np.int64]:
    """The class at the first piece of each word, flat."""
    found = []
    for first in range(0, len(stored), 100):
        tagged = stored.take(np.arange(first, min(first + 100, len(stored))))
        tags = BertTagger().tag(nets, Batch(tagged.counts, tagged=tagged))
        found.append(tags[tagged.first].numpy())
    return np.concatenate(found)
