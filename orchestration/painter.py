"""A checkpoint ready to draw: prompts and seeds in, pictures out. Serving and `t2i` share it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Batch
from models.encoders.image import WeightsMissing
from models.encoders.text import TextEncoder
from orchestration.data.features import check_encodable
from orchestration.data.graph_reader import GraphReader, Reader
from orchestration.data.word_encoder import WordEncoder, open_word_encoder
from orchestration.errors import RequestError
from orchestration.evaluation.looking import drawer
from orchestration.evaluation.pixels import to_bytes
from orchestration.home import Home
from orchestration.training.state import NAMES, TEXT, Checkpoint, load_for_sampling, open_checkpoint


def checkpoint_encoder(checkpoint: Checkpoint, home: Home, device: str = "cpu") -> Reader:
    """What a checkpoint's prompts are read with: the trained encoder or the graphs' names it holds, or its pretrained
    encoder.

    Raises RequestError when that is missing.
    """
    if (checkpoint.folder / TEXT / NAMES).is_file():
        return GraphReader.open(checkpoint.folder / TEXT)
    if (checkpoint.folder / TEXT).is_dir():
        return open_word_encoder(checkpoint.folder / TEXT).to(device)
    try:
        return TextEncoder(checkpoint.experiment.text, home.encoders).to(device)
    except WeightsMissing as error:
        raise RequestError(str(error)) from error


def vocabulary_digest(encoder: Reader) -> str | None:
    """Digest of the vocabulary that prompts are read with; None for an encoder with its own word pieces."""
    return encoder.vocabulary.digest if isinstance(encoder, WordEncoder | GraphReader) else None


class Painter:
    """Draws with the averaged nets of a checkpoint.

    Raises RequestError when the checkpoint is damaged, or its text encoder is missing or not the one it was trained
    with.
    """

    def __init__(self, checkpoint: Checkpoint, encoder: Reader, device: torch.device) -> None:
        self.checkpoint, self.encoder = checkpoint, encoder
        self.experiment = checkpoint.experiment
        self.checkpoint_digest = checkpoint.digest
        self.experiment_name = self.experiment.recipe
        self.resolution: int = self.experiment.get_system().resolution(self.experiment.model)
        nets = load_for_sampling(checkpoint, device, vocabulary_digest(encoder))
        self._draw = drawer(self.experiment, nets, device)

    @classmethod
    def load(cls, checkpoint: Path, home: Path, device: str = "cpu") -> "Painter":
        """The painter of the checkpoint in a folder; `home` is where packaged encoders are unpacked."""
        opened = open_checkpoint(checkpoint)
        encoder = checkpoint_encoder(opened, Home(home), device)
        trained_with = opened.provenance.text_digest
        if encoder.digest != trained_with:
            raise RequestError(
                f"checkpoint {checkpoint} was trained with the text encoder {trained_with[:12]}, but "
                f"{opened.experiment.text.name!r} here is {encoder.digest[:12]}: install the same weights"
            )
        return cls(opened, encoder, torch.device(device))

    def draw_float(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """(B,3,H,W) in [-1, 1] for B prompts and B seeds."""
        check_encodable(prompts)
        return self._draw(self.conditions(prompts), seeds)

    def conditions(self, prompts: Sequence[str]) -> Batch:
        """What pictures of B prompts are drawn from. Raises RequestError for a prompt that cannot be read."""
        if isinstance(self.encoder, GraphReader):
            return self.encoder.conditions(prompts)
        return Batch(torch.arange(len(prompts)), text=self.encoder(prompts))

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        """(B,H,W,3) bytes for B prompts and B seeds."""
        pictures: NDArray[np.uint8] = to_bytes(self.draw_float(prompts, seeds)).permute(0, 2, 3, 1).cpu().numpy()
        return pictures
