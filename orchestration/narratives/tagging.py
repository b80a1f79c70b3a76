"""A trained BERT tagger on narratives that are in no data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from models.contract import Batch, Given, TaggedWords
from models.parts import part_settings
from models.trecs.bert_tagger import NET, PART, BertTagger, TaggerNet
from orchestration.data.label_names import LabelNames
from orchestration.errors import RequestError
from orchestration.narratives.corpus import word_key
from orchestration.narratives.tagged_words import MARKS, TOKENIZER, CutNarrative, cut, marks, padded, read_tokenizer
from orchestration.narratives.tagged_words import windows as windows_of

BATCH = 32  # windows


@dataclass(frozen=True, slots=True, eq=False)
class TrainedTagger:
    """A class for each word of any narrative. classes: names, by number; longest: pieces that it reads at once."""

    classes: tuple[str, ...]
    tokenizer: Tokenizer
    net: TaggerNet
    longest: int
    device: torch.device

    def tag(self, narratives: Sequence[Sequence[str]]) -> list[NDArray[np.int64]]:
        """(T,) class numbers for each narrative of T words.

        A narrative longer than the tagger reads at once is tagged in stretches of whole words, each of which begins in
        the middle of the one before; a word has its tag from the stretch where more is read on both sides of it. A word
        without pieces, such as a lone invisible character, has the tag of the word before it, or else after it. Raises
        RequestError for a narrative without a word that has a letter or digit.
        """
        found = cut(self.tokenizer, narratives, self.longest - MARKS)
        for number, (words, one) in enumerate(zip(narratives, found, strict=True), 1):
            if not any(map(word_key, words)) or not one.sizes.any():
                raise RequestError(
                    f"narrative {number} has no word with a letter or digit; write or say what the picture shows."
                )
        stretches = [
            (place, first, end)
            for place, one in enumerate(found)
            for first, end in windows_of(one.sizes, self.longest - MARKS)
        ]
        tags = [np.full(len(one.sizes), -1, np.int64) for one in found]
        depths = [np.full(len(one.sizes), -1.0) for one in found]
        # Stretches of like length together: little padding.
        order = sorted(range(len(stretches)), key=lambda at: int(found[stretches[at][0]].sizes.sum()))
        for start in range(0, len(order), BATCH):
            some = [stretches[at] for at in order[start : start + BATCH]]
            for (place, first, end), row in zip(some, self._pieces(found, some), strict=True):
                one = found[place]
                begins = np.cumsum(one.sizes[first:end]) - one.sizes[first:end]
                depth = np.where(one.sizes[first:end] > 0, _depth(one, first, end), -1.0)
                better = depth > depths[place][first:end]
                tags[place][first:end][better] = row[1 + begins[better]]
                depths[place][first:end][better] = depth[better]
        return [_filled(one) for one in tags]

    def _pieces(
        self, found: Sequence[CutNarrative], stretches: Sequence[tuple[int, int, int]]
    ) -> list[NDArray[np.int64]]:
        """The likeliest class at each piece of each stretch, marks included."""
        begin, finish = marks(self.tokenizer)
        rows = []
        for place, first, end in stretches:
            ends = np.concatenate([[0], found[place].ends])
            rows.append([begin, *found[place].ids[ends[first] : ends[end]].tolist(), finish])
        counts = torch.tensor([len(row) for row in rows])
        pieces = torch.zeros(len(rows), padded(int(counts.max()), self.longest), dtype=torch.int64)
        for row, ids in enumerate(rows):
            pieces[row, : len(ids)] = torch.tensor(ids)
        unasked = torch.zeros_like(pieces, dtype=torch.bool), torch.full_like(pieces, -1)
        batch = Batch(counts, tagged=TaggedWords(pieces, counts, *unasked)).to(self.device)
        return list(BertTagger().tag({NET: self.net}, batch).cpu().numpy())


def _depth(one: CutNarrative, first: int, end: int) -> NDArray[np.float64]:
    """How many pieces each word of a stretch is from where it is cut off; infinite where nothing is cut off."""
    ends = one.ends
    starts = ends - one.sizes
    left = starts[first:end] - starts[first] if first > 0 else np.full(end - first, np.inf)
    right = ends[end - 1] - ends[first:end] if end < len(ends) else np.full(end - first, np.inf)
    return np.asarray(np.minimum(left, right), np.float64)


def _filled(tags: NDArray[np.int64]) -> NDArray[np.int64]:
    """Words without a tag have that of the word before, the first ones that of the word after."""
    known = np.flatnonzero(tags >= 0)
    before = np.searchsorted(known, np.arange(len(tags)), "right") - 1
    filled: NDArray[np.int64] = tags[known[before.clip(0)]]
    return filled


def open_tagger(folder: Path, device: torch.device | str = "cpu") -> TrainedTagger:
    """The tagger in a trained part's folder: part.json, tagger.safetensors, tokenizer.json and label_names.json.

    Raises RequestError for a folder that is not whole or not that of a tagger.
    """
    names, tokenizer = LabelNames.open(folder).classes, read_tokenizer(folder / TOKENIZER)
    part = BertTagger()
    try:
        config = part_settings(folder, PART, part.Config)
        with torch.device("meta"):
            net = part.build(config, Given(classes=len(names), class_names=names))[NET]
        net.to_empty(device="cpu").load_state_dict(load_file(folder / f"{NET}.safetensors"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise RequestError(
            f"the tagger in {folder} cannot be read ({said}): restore the folder, or train the part again"
        ) from error
    assert isinstance(net, TaggerNet)
    on = torch.device(device)
    net.requires_grad_(False).eval().to(on)
    return TrainedTagger(names, tokenizer, net, config.max_pieces, on)
