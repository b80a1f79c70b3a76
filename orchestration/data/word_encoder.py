"""What a trained part's folder says of it, and the text encoder that one is: captions to features by its vocabulary."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from models.abilities import CaptionReader
from models.contract import Given, TextFeatures, Tokens
from models.encoders.text import TextEncoder, TextEncoderSettings
from models.parts import PART
from models.registry import get_trainable
from orchestration.data.features import Encoder
from orchestration.data.vocabulary import Vocabulary, load_vocabulary, save_vocabulary
from orchestration.errors import RequestError
from orchestration.stages import file_sha256, short_hash, write_atomically

VOCABULARY = "vocabulary.json"


class WordEncoder:
    """Captions to features, at most `longest` words of each, the first ones. Its folder is all it needs."""

    def __init__(
        self, folder: Path, part: Any, nets: dict[str, nn.Module], vocabulary: Vocabulary, longest: int
    ) -> None:
        self.folder, self.part, self.nets = folder, part, nets
        self.vocabulary, self.longest = vocabulary, longest
        self.device = torch.device("cpu")
        weights = {name: file_sha256(folder / f"{name}.safetensors") for name in sorted(nets)}
        self.digest = short_hash({"weights": weights, "vocabulary": vocabulary.digest, "longest": longest})

    @property
    def dim(self) -> int:
        """Width C of the features."""
        described = json.loads((self.folder / PART).read_text())
        width: int = self.part.text_dim(self.part.Config.model_validate(described["model"]))
        return width

    @property
    def probes(self) -> tuple[str, ...]:
        """Three captions of words that it knows: of one, of some, and of more than it reads."""
        known = self.vocabulary.words[1:]
        return tuple(" ".join(islice(cycle(known), count)) for count in (1, 12, 2 * self.longest))

    def check(self, text: str) -> None:
        """RequestError for a caption without a known word."""
        self.vocabulary.tokens([text], self.longest)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> TextFeatures:
        """Features of B captions. Raises RequestError for one without a known word."""
        tokens = self.vocabulary.tokens(texts, self.longest)
        on_device = Tokens(tokens.ids.to(self.device), tokens.lengths.to(self.device), tokens.vocabulary)
        encoded: TextFeatures = self.part.encode(self.nets, on_device)
        return encoded

    def to(self, device: torch.device | str) -> "WordEncoder":
        """Itself, on `device`."""
        self.device = torch.device(device)
        for net in self.nets.values():
            net.to(self.device)
        return self


def describe_part(
    folder: Path, system: str, model: dict[str, Any], vocabulary: Vocabulary | None = None, longest: int | None = None
) -> None:
    """Write beside a part's weights which part it is and, of one that reads words, what `open_word_encoder` needs.

    vocabulary: None for one that reads no words; longest: words of a caption that it reads.
    """
    said: dict[str, Any] = {"system": system, "model": model}
    if vocabulary is not None:
        save_vocabulary(vocabulary, folder / VOCABULARY)
        said["longest"] = longest
    write_atomically(folder / PART, json.dumps(said, sort_keys=True))


def open_word_encoder(folder: Path) -> WordEncoder:
    """The encoder in a trained part's folder. Raises RequestError when a file is missing or does not fit."""
    vocabulary = load_vocabulary(folder / VOCABULARY)
    try:
        described = json.loads((folder / PART).read_text())
        part = get_trainable(described["system"])
        assert isinstance(part, CaptionReader)
        config = part.Config.model_validate(described["model"])
        with torch.device("meta"):
            built = part.build(config, Given(len(vocabulary)))
        nets = {}
        for name in part.optimizers(config):
            net = built[name].to_empty(device="cpu")
            net.load_state_dict(load_file(folder / f"{name}.safetensors"))
            nets[name] = net.requires_grad_(False).eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise RequestError(
            f"the text encoder in {folder} cannot be read ({error}): restore the folder, or train the part again"
        ) from error
    return WordEncoder(folder, part, nets, vocabulary, int(described["longest"]))


def reopening(encoder: Encoder, encoders: Path) -> Callable[[], Encoder] | None:
    """What opens the encoder in another process, which has another current folder; None for one that cannot be.

    encoders: where packaged ones are unpacked.
    """
    if isinstance(encoder, WordEncoder):
        return partial(open_word_encoder, encoder.folder.resolve())
    return opening(encoder.settings, encoders) if isinstance(encoder, TextEncoder) else None


def opening(settings: TextEncoderSettings, encoders: Path) -> Callable[[], TextEncoder]:
    """What opens a pretrained encoder in any process; encoders: where packaged ones are unpacked."""
    folder = Path(settings.name).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else settings.name
    return partial(TextEncoder, settings.model_copy(update={"name": name}), encoders.resolve())
