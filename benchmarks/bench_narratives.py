"""Composing label maps for narratives (TReCS, sections 2.2 and 2.3), on a prepared mask bank and retrieval index.

Generated scenes tell the narratives and fill the bank. Tags are the true ones and text features are drawn, so that
neither a tagger nor a BERT is in the time; the dual encoder's text tower has the paper's sizes (768 to 2,048, a layer
of 8 heads, 64 tokens) and is not trained, and the index holds --index more embeddings that are drawn and searched with
those of the bank's pictures. One thread.

Which part takes the time: "embed" the text tower, "search" the index, "hulls" of the traces, "choice" of masks and of
stuff, "paste" all else, which is drawing the canvas. Beside it the same narratives are only pasted, things and stuff
being given: `floor_ratio` is the whole's narratives/s over that floor's, which no retrieval can pass.

Wanted: at least a fifth of the floor's, and 100,000 narratives in less than an hour on a core.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import interleaved, report

from models.contract import TextFeatures
from models.trecs.config import TReCSConfig
from models.trecs.dual_encoder import TEXT, DualEncoder, DualEncoderConfig, TextTower
from orchestration.data.composition import Thing, compose
from orchestration.data.records import Narrative
from orchestration.data.sources import open_source
from orchestration.data.vector_search import IndexSettings, ProductIndex
from orchestration.narratives import composer as composer_module
from orchestration.narratives.composer import Composer
from orchestration.narratives.mask_bank import MaskBank, write_mask_bank
from orchestration.narratives.retrieval_index import Retriever
from orchestration.narratives.telling import told
from orchestration.stages import quiet

TOKENS = 64


class Clock:
    """Seconds of wrapped functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return call


def tags_of(said: Narrative, classes: Sequence[str]) -> NDArray[np.int64]:
    """Of each utterance the class that it names, or none."""
    found: list[int] = []
    for spoken in said.utterances:
        named = [label for label, name in enumerate(classes) if name in spoken.text]
        label = max(named, key=lambda one: len(classes[one]), default=len(classes))
        found += [label] * len(spoken.text.split())
    return np.array(found)


def text_tower(config: DualEncoderConfig) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    torch.manual_seed(0)
    nets = {TEXT: TextTower(config)}
    words = torch.randn(1, TOKENS, config.text_dim)
    given = TextFeatures(words, torch.tensor([TOKENS]), words[:, 0])
    one = DualEncoder()
    return lambda texts: np.concatenate([one.embed_captions(nets, given).numpy() for _ in texts])


def retriever_of(
    bank: MaskBank, more: int, dim: int, embed: Callable[[Sequence[str]], NDArray[np.float32]]
) -> Retriever:
    """Of the bank's pictures and `more`, which are so far away that they are never found."""
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((len(bank) + more, dim)).astype(np.float32)
    vectors[len(bank) :] *= 1e-3
    ids = np.concatenate([bank.image_ids, bank.image_ids.max() + 1 + np.arange(more)])
    return Retriever(ProductIndex(vectors, IndexSettings(index="exact")), ids, embed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--narratives", type=int, default=100)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--index", type=int, default=10_000, help="embeddings beside those of the bank")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = DualEncoderConfig(text_dim=768)
    embed = text_tower(config)
    dim = embed(["a"]).shape[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = f"scenes:size={asked.size},train={asked.narratives},val=1,test=1"
        dataset = told(open_source(source, "train", folder))
        (folder / "bank").mkdir()
        bank = write_mask_bank(folder / "bank", dataset, asked.size, None, quiet)
        narratives = [said for record in dataset.records for said in record.narratives or ()]
        tags = [tags_of(said, bank.classes) for said in narratives]
        own = [record.image_id for record in dataset.records for _ in record.narratives or ()]
        retriever = retriever_of(bank, asked.index, dim, embed)
        composer = Composer(bank, retriever, TReCSConfig.model_validate({"resolution": asked.size}))
        composed = composer.compose(narratives, tags, own)
        given = [
            (
                [Thing(m.label, m.choice.mask(), m.hull) for m in one.mentions if m.choice is not None],
                bank.segmentation(one.retrieved[one.stuff or 0].place),
            )
            for one in composed
        ]

        def whole() -> None:
            composer.compose(narratives, tags, own)

        def floor() -> None:
            for things, segmentation in given:
                compose(things, segmentation, bank.stuff)

        seconds, least = interleaved(whole, floor, asked.rounds)
        clock = Clock()
        retriever.embed = clock.timed("embed", retriever.embed)
        retriever.index.search = clock.timed("search", retriever.index.search)  # type: ignore[method-assign]
        composer._mentions = clock.timed("hulls", composer._mentions)  # type: ignore[method-assign]
        for part in ("choose_masks", "best_stuff"):
            setattr(composer_module, part, clock.timed("choice", getattr(composer_module, part)))
        composer.compose = clock.timed("whole", composer.compose)  # type: ignore[method-assign]
        whole()
        parts = dict(clock.seconds)
        total = parts.pop("whole")
        parts["paste"] = total - sum(parts.values())
        report(
            benchmark="narratives",
            narratives=len(narratives),
            size=asked.size,
            embeddings=len(retriever),
            dim=dim,
            things_pasted=sum(len(things) for things, _ in given) / len(given),
            narratives_s=len(narratives) / seconds,
            floor_narratives_s=len(narratives) / least,
            floor_ratio=least / seconds,
            hours_of_100000=100_000 * seconds / len(narratives) / 3600,
            **{f"{part}_share": taken / total for part, taken in parts.items()},
        )


if __name__ == "__main__":
    main()
