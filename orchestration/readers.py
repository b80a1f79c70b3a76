"""What reads the prompts of a system: a text encoder, or what stands in its place."""

from models.encoders.image import WeightsMissing
from models.encoders.text import TextEncoder
from orchestration.data.features import Encoder
from orchestration.data.graph_reader import GraphReader
from orchestration.data.label_names import LabelNames
from orchestration.data.word_encoder import WordEncoder, open_word_encoder
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.narratives.reader import PARTS, NarrativeReader
from orchestration.training.state import LABELS, NAMES, TEXT, Checkpoint

Reader = Encoder | GraphReader | LabelNames | NarrativeReader


def checkpoint_encoder(checkpoint: Checkpoint, home: Home, device: str = "cpu") -> Reader:
    """What a checkpoint's prompts are read with: the trained encoder or the names that it holds, or its pretrained
    encoder.

    Raises RequestError when that is missing.
    """
    text = checkpoint.folder / TEXT
    if (text / PARTS).is_file():
        return NarrativeReader.open(text, checkpoint.experiment, home, device)
    if (text / LABELS).is_file():
        return LabelNames.open(text)
    if (text / NAMES).is_file():
        return GraphReader.open(text)
    if text.is_dir():
        return open_word_encoder(text).to(device)
    try:
        return TextEncoder(checkpoint.experiment.text, home.encoders).to(device)
    except WeightsMissing as error:
        raise RequestError(str(error)) from error


def vocabulary_digest(encoder: Reader) -> str | None:
    """Digest of the vocabulary that prompts are read with; None for an encoder with its own word pieces."""
    if isinstance(encoder, NarrativeReader):
        return encoder.names.digest
    if isinstance(encoder, LabelNames):
        return encoder.digest
    return encoder.vocabulary.digest if isinstance(encoder, WordEncoder | GraphReader) else None
