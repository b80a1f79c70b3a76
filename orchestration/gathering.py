"""Runs a part that has nothing to learn: every training picture is looked at once, with all its captions."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from models.contract import Gathered, Given, Settings
from models.encoders.image import WeightsMissing
from models.registry import get_gathered
from orchestration.data.batches import CaptionedPictures
from orchestration.errors import RequestError
from orchestration.mapping import map_blocks, read_block
from orchestration.prepared import PreparedSplit
from orchestration.stages import Progress, write_atomically

VERSION = 1
BLOCK = 64  # pictures between two files
LOOK_BATCH = 64  # captions
UNREAD = "captions_without_a_known_word"


def write_gathered(
    folder: Path,
    name: str,
    config: Settings,
    given: Given,
    split: PreparedSplit,
    figures_file: str,
    progress: Progress,
    workers: int | None = 1,
    device: str = "cpu",
) -> None:
    """Look at every picture of the split and write NAME.safetensors and the figures; after a kill, it goes on.

    name: of the gathered part; it is shown what it reads of the data, no pixels, and no caption without a known word.
    workers: as `map_blocks`' says. Raises RequestError where nets cannot be built or nothing can be gathered, RunError
    for what fails in another process.
    """
    data, part = split.open(), get_gathered(name)
    regions = data.regions
    assert regions is not None and data.tokens is not None
    blocks = folder / "blocks"
    make_worker: Callable[[], _Looking] = partial(_open_worker, name, config, given, split, device)
    files = map_blocks(blocks, len(data), BLOCK, make_worker, progress, workers, name)
    try:
        tensors, figures = part.gather(config, len(data.tokens.vocabulary), _seen(files), regions)
    except ValueError as error:
        raise RequestError(f"{name} cannot be gathered: {error}") from error
    unread = sum(int(read_block(file)[UNREAD][0]) for file in files)
    plain = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
    write_atomically(folder / f"{name}.safetensors", save(plain))
    write_atomically(folder / figures_file, json.dumps({**figures, UNREAD: unread}, indent=1))
    shutil.rmtree(blocks)


def _seen(files: Sequence[Path]) -> Iterator[Mapping[str, Tensor]]:
    """What was seen, a block at a time in memory."""
    for file in files:
        arrays = read_block(file)
        if arrays.keys() != {UNREAD}:  # some caption was read
            yield {name: torch.from_numpy(array) for name, array in arrays.items() if name != UNREAD}


class _Looking:
    """Pictures of a block to what their captions say of them."""

    def __init__(
        self, data: CaptionedPictures, part: Gathered[Any], config: Settings, given: Given, device: str
    ) -> None:
        self.data, self.part, self.config, self.device = data, part, config, torch.device(device)
        try:
            nets = part.build(config, given)
        except (WeightsMissing, ValueError) as error:
            raise RequestError(str(error)) from error
        self.nets = {name: net.requires_grad_(False).eval().to(self.device) for name, net in nets.items()}

    @torch.inference_mode()
    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        tokens, index = self.data.tokens, self.data.index
        assert tokens is not None
        first, last = index.starts[items.start], index.starts[items.stop]
        told = [tokens.vocabulary.encode(text) for text in index.texts[first:last]]
        captions = first + np.flatnonzero([len(ids) for ids in told])
        found = []
        for start in range(0, len(captions), LOOK_BATCH):
            chosen = captions[start : start + LOOK_BATCH]
            owners = np.searchsorted(index.starts, chosen, side="right") - 1
            batch = self.data.without_pixels(owners, chosen).to(self.device)
            found.append(self.part.look(self.nets, self.config, batch, torch.from_numpy(owners).to(self.device)))
        seen = {name: torch.cat([one[name] for one in found]).cpu().numpy() for name in (found[0] if found else ())}
        return {**seen, UNREAD: np.array([len(told) - len(captions)])}


def _open_worker(name: str, config: Settings, given: Given, split: PreparedSplit, device: str) -> _Looking:
    return _Looking(split.open(), get_gathered(name), config, given, device)
