"""What a user brings, made tiny: a BERT in a folder as transformers saves one, and a folder in COCO's layout."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

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


CAPTIONS: Mapping[str, Sequence[Sequence[str]]] = {
    "train": (("a red house", "the house is red"), ("a blue fish in the sea",), ("a red house", "a green tree.")),
    "val": (("a yellow tree on the grass",), ("the fish and the house",)),
}


def write_tiny_coco(folder: Path, captions: Mapping[str, Sequence[Sequence[str]]] = CAPTIONS) -> Path:
    """One random 40x30 picture for each group of captions, split by split; image ids count from 1."""
    (folder / "annotations").mkdir(parents=True)
    random = np.random.default_rng(0)
    image_id = caption_id = 0
    for split, groups in captions.items():
        (folder / f"{split}2017").mkdir()
        listing: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
        for texts in groups:
            image_id += 1
            name = f"{image_id:012d}.png"
            Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / f"{split}2017" / name)
            listing["images"].append({"id": image_id, "file_name": name, "width": 40, "height": 30})
            for text in texts:
                caption_id += 1
                listing["annotations"].append({"id": caption_id, "image_id": image_id, "caption": text})
        (folder / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(listing))
    return folder
