"""A tiny random BERT in a folder, as transformers saves one: text features in milliseconds, without any package."""

import json
from pathlib import Path

import torch

from orchestration.data.scenes import BACKGROUNDS, COLOURS, THINGS

TINY_DIM = 16
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
COMMON = ("a", "the", "is", "and", "in", "on", "of", "with", "under", "sky", "night", "huge", "small", "##s", ".", ",")


def tiny_vocabulary() -> list[str]:
    """Special tokens, some common words, and the words of scenes."""
    scenes = [word for group in (THINGS, COLOURS, BACKGROUNDS) for item in group for word in item.name.split()]
    return list(dict.fromkeys([*SPECIAL, *COMMON, *scenes]))


def write_tiny_bert(folder: Path, seed: int = 0) -> Path:
    """A 2-layer BERT of width 16 with random weights from the seed, and a lower-casing WordPiece tokenizer."""
    from transformers import BertConfig, BertModel

    vocabulary = tiny_vocabulary()
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=TINY_DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        # Words differ clearly: an untrained net with the usual 0.02 gives nearly equal features.
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return folder
