"""Views that bring pictures and captions together: trained parts, and independent dual encoders.

`MatcherView` and `DualEncoderView` leave NAME/picture and NAME/caption (B,C), whose cosine says how well the two fit;
`CaptionerView` leaves NAME/words (B,T), its descriptions as word indices. Nets run in batches of one size, filled up
where there are fewer pictures, since the size of a batch changes the last digits. A recurrent text encoder's last
digits still depend on how long the other captions of a batch are: by 1e-7, less than what `r_precision` calls a tie.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.abilities import Captioner, Matcher
from models.contract import NOTHING, Batch, Given, Tokens
from models.encoders.image import WeightsMissing
from models.encoders.text import PROBE, TextEncoder, quiet_loading
from models.parts import PART
from models.registry import get_trainable
from orchestration.data.transforms import Transform, get_transform
from orchestration.data.vocabulary import Vocabulary, load_vocabulary
from orchestration.data.word_encoder import VOCABULARY
from orchestration.errors import RequestError
from orchestration.evaluation.metric import Array, Asked
from orchestration.evaluation.r_precision import INDEPENDENT, OWN_MATCHER
from orchestration.stages import short_hash

BATCH = 50
OWN_CAPTIONER = "stream"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class TrainedPart:
    """A trained part with all that it needs to judge: nets are in evaluation mode, on `device`, frozen.

    vocabulary, longest: of one that reads words, and how many of a caption; None and 0 of any other. transform: how its
    pictures are made ready; side: of its pictures, in pixels.
    """

    part: Any
    nets: Mapping[str, nn.Module]
    vocabulary: Vocabulary | None
    longest: int
    transform: Transform
    side: int
    digest: str
    device: torch.device

    def pictures(self, pictures: Tensor) -> Tensor:
        """uint8 (B,3,H,W) as the part was trained to see them, of its own side.

        Pictures of another side are resized, bilinear with antialiasing, and not rounded again.
        """
        pixels = self.transform.normalise(pictures.cpu()).to(self.device)
        if pixels.shape[-2:] != (self.side, self.side):
            pixels = F.interpolate(pixels, (self.side, self.side), mode="bilinear", antialias=True)
        return pixels


def open_part(folder: Path, device: torch.device, transform: str | None = None, given: Given = NOTHING) -> TrainedPart:
    """The part that a stage trained, from the stage's folder.

    transform: of its pictures, None for the part's own; given: the parts that it was built on, where there are any.
    Raises RequestError when a file is missing or does not fit.
    """
    try:
        described = json.loads((folder / PART).read_text())
        part = get_trainable(described["system"])
        config = part.Config.model_validate(described["model"])
        vocabulary = load_vocabulary(folder / VOCABULARY) if "tokens" in part.reads else None
        with torch.random.fork_rng(devices=[]):
            nets = part.build(config, replace(given, vocabulary_size=len(vocabulary) if vocabulary else 0))
        for name in part.optimizers(config):
            nets[name].load_state_dict(load_file(folder / f"{name}.safetensors"))
        longest = int(described["longest"]) if vocabulary else 0
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, WeightsMissing) as error:
        raise RequestError(
            f"the trained part in {folder} cannot be read ({error}): give the folder of its stage, or train it again"
        ) from error
    read_as, side = get_transform(transform or part.transform), part.resolution(config)
    digest = short_hash(
        {
            "weights": {name: weights_digest(net) for name, net in sorted(nets.items())},
            "words": [vocabulary.digest, longest] if vocabulary else None,
            "pictures": [read_as.name, side],
        }
    )
    frozen = {name: net.requires_grad_(False).eval().to(device) for name, net in nets.items()}
    return TrainedPart(part, frozen, vocabulary, longest, read_as, side, digest, device)


class MatcherView:
    """A trained `Matcher`, such as a run's own DAMSM: NAME/picture and NAME/caption (B,C) float32.

    It reads `asked.tokens`, or where there are none the texts by its own vocabulary, the first words of long ones; or
    the features that `text` gives of the texts. Raises RequestError for a part that is no matcher or reads neither, and
    for word indices of another vocabulary.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, trained: TrainedPart, name: str = OWN_MATCHER, text: TextEncoder | None = None) -> None:
        part = trained.part
        if not isinstance(part, Matcher):
            raise RequestError(f"{trained.part.name} does not match pictures and captions: give a part that does")
        if unread := sorted(trained.part.reads - {"tokens", *(("features",) if text else ())}):
            raise RequestError(
                f"{trained.part.name} reads captions as {unread[0]}, and judging gives word indices: give another part"
            )
        self.trained, self.name, self.digest = trained, checked_name(name), trained.digest
        self.text = text if "features" in trained.part.reads else None
        if self.text is not None:
            read_as = [self.text.digest, self.text.settings.model_dump(mode="json", exclude={"name"})]
            self.digest = short_hash([trained.digest, read_as])

    @torch.inference_mode()
    def look(self, pictures: Tensor, asked: Asked) -> Mapping[str, Array]:
        """uint8 (B,3,H,W) and their captions, embedded."""
        tokens, device = self._tokens(asked), self.trained.device
        image_ids, class_ids = (torch.from_numpy(ids) for ids in (asked.image_ids, asked.class_ids))

        def embed(rows: Tensor) -> tuple[Tensor, ...]:
            words = tokens and Tokens(tokens.ids[rows], tokens.lengths[rows], tokens.vocabulary)
            text = self.text([asked.texts[row] for row in rows.tolist()]) if self.text else None
            shown = self.trained.pictures(pictures[rows])
            batch = Batch(image_ids[rows], shown, text, words, class_ids[rows])
            embedded: tuple[Tensor, Tensor] = self.trained.part.embed(self.trained.nets, batch.to(device))
            return embedded

        picture, caption = in_batches(embed, len(pictures))
        return {f"{self.name}/picture": as_float32(picture), f"{self.name}/caption": as_float32(caption)}

    def _tokens(self, asked: Asked) -> Tokens | None:
        vocabulary = self.trained.vocabulary
        if vocabulary is None:
            return None
        if asked.tokens is None:
            return vocabulary.tokens(asked.texts, self.trained.longest)
        if asked.tokens.vocabulary != vocabulary.digest:
            raise RequestError(
                f"the captions were read with the vocabulary {asked.tokens.vocabulary[:12]}, and {self.name} was "
                f"trained with {vocabulary.digest[:12]}: judge with the part that the run was trained with"
            )
        return asked.tokens


class CaptionerView:
    """A trained `Captioner`, such as MirrorGAN's STREAM: NAME/words (B,T) int64, indices of its vocabulary, 0 after the
    description. Raises RequestError for a part that describes nothing, or regions that were found beforehand."""

    notes: tuple[str, ...] = ()

    def __init__(self, trained: TrainedPart, name: str = OWN_CAPTIONER) -> None:
        part = trained.part
        reads = sorted(part.reads)
        if not isinstance(part, Captioner):
            raise RequestError(f"{trained.part.name} does not describe pictures: give a part that does, such as stream")
        if "regions" in reads:
            raise RequestError(
                f"{trained.part.name} describes regions that were found in the data, and here pictures are drawn: its "
                "own figures are with its stage (t2i stages show), or give a part that describes pictures, such as "
                "stream"
            )
        self.trained, self.name, self.digest = trained, checked_name(name), trained.digest

    @torch.inference_mode()
    def look(self, pictures: Tensor, asked: Asked) -> Mapping[str, Array]:
        """uint8 (B,3,H,W), described."""

        def describe(rows: Tensor) -> tuple[Tensor, ...]:
            shown = self.trained.pictures(pictures[rows])
            batch = Batch(torch.zeros(len(shown), dtype=torch.int64), shown)
            told: Tensor = self.trained.part.describe(self.trained.nets, batch)
            return (told,)

        (told,) = in_batches(describe, len(pictures))
        return {f"{self.name}/words": told.cpu().numpy().astype(np.int64)}


class DualEncoderView:
    """An independent dual encoder: any that transformers loads with get_image_features and get_text_features.

    XMC-GAN judges by one that was trained on other data than the generators (section 5.2); CLIP and its like serve as
    well. Pictures are prepared as the folder's preprocessor_config.json says, captions are cut to the encoder's
    longest. It leaves NAME/picture and NAME/caption (B,C) float32, NAME being dual-, then `name` or the folder's.
    Weights are safetensors and nothing is fetched. Raises RequestError for a folder that holds no such encoder.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, device: torch.device, name: str | None = None) -> None:
        self.name = INDEPENDENT + checked_name(name or folder.resolve().name)
        self.device = device
        try:
            with quiet_loading():
                net, self._tokenizer, self._prepare = _load(folder)
            self.longest = _longest(net, self._tokenizer)
            probe = self._tokenizer(PROBE, truncation=True, max_length=self.longest)["input_ids"]
            words = [sorted(self._tokenizer.get_vocab().items()), probe, self.longest]
        except Exception as error:  # transformers raises a dozen types, some of them undocumented
            first_line = str(error).strip().partition("\n")[0] or type(error).__name__
            raise RequestError(
                f"no dual encoder at {folder} ({first_line}): give the folder of a CLIP or its like, with config.json, "
                "safetensors weights, tokenizer and preprocessor_config.json"
            ) from error
        pictures = {key: value for key, value in self._prepare.to_dict().items() if not key.startswith("_")}
        self.digest = short_hash(
            {"weights": weights_digest(net), "words": words, "pictures": repr(sorted(pictures.items()))}
        )
        self._net = net.requires_grad_(False).eval().to(device)

    @torch.inference_mode()
    def look(self, pictures: Tensor, asked: Asked) -> Mapping[str, Array]:
        """uint8 (B,3,H,W) and their captions, embedded."""

        def embed(rows: Tensor) -> tuple[Tensor, ...]:
            pixels = self._prepare(
                images=list(pictures[rows].cpu().numpy()), return_tensors="pt", input_data_format="channels_first"
            )
            # Always as long as can be: other captions of the batch change nothing.
            words = self._tokenizer(
                [asked.texts[row] for row in rows.tolist()],
                padding="max_length",
                truncation=True,
                max_length=self.longest,
                return_tensors="pt",
            )
            found = (
                self._net.get_image_features(pixel_values=pixels["pixel_values"].to(self.device)),
                self._net.get_text_features(**words.to(self.device)),
            )
            return tuple(item if isinstance(item, Tensor) else item.pooler_output for item in found)

        picture, caption = in_batches(embed, len(pictures))
        return {f"{self.name}/picture": as_float32(picture), f"{self.name}/caption": as_float32(caption)}


def _load(folder: Path) -> tuple[Any, Any, Any]:
    """Net, tokenizer and image processor; raises whatever transformers does."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    if not folder.is_dir():
        raise OSError("there is no such folder")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    net, found = AutoModel.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
    )
    if not (hasattr(net, "get_image_features") and hasattr(net, "get_text_features")):
        raise ValueError(f"{type(net).__name__} does not embed both pictures and captions")
    if lacking := sorted(found["missing_keys"]):
        raise ValueError(f"it lacks {len(lacking)} weights, {lacking[0]} first")
    # The other backend is torchvision, which need not be there.
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **local)
    return net, AutoTokenizer.from_pretrained(folder, **local), processor


def _longest(net: Any, tokenizer: Any) -> int:
    """Tokens of the longest caption: no more than the net has positions for, and the tokenizer was made for."""
    settings = getattr(net.config, "text_config", net.config)
    positions = int(getattr(settings, "max_position_embeddings", tokenizer.model_max_length))
    return min(positions, int(tokenizer.model_max_length))


def checked_name(name: str) -> str:
    """The name of a view. Raises RequestError for one that would not stand in METRIC/PROTOCOL."""
    if _NAME.fullmatch(name) is None:
        raise RequestError(f"{name!r} cannot name what judges: use letters, digits, dots, hyphens and underscores")
    return name


def weights_digest(net: nn.Module) -> str:
    """sha256 (hex) of every parameter and buffer by name."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def in_batches(function: Callable[[Tensor], tuple[Tensor, ...]], count: int) -> tuple[Tensor, ...]:
    """What a function of rows (B,) gives for rows 0 to count-1, always asked for `BATCH` of them: row 0 fills up."""
    found = []
    for start in range(0, count, BATCH):
        rows = torch.arange(start, start + BATCH)
        found.append(function(torch.where(rows < count, rows, 0)))
    return tuple(torch.cat(column)[:count] for column in zip(*found, strict=True))


def as_float32(embeddings: Tensor) -> Array:
    """(B,C) on the CPU."""
    return embeddings.float().cpu().numpy()


def open_matcher_view(
    device: torch.device,
    folder: str,
    name: str = OWN_MATCHER,
    transform: str | None = None,
    given: Given = NOTHING,
    text: Callable[[], TextEncoder] | None = None,
) -> MatcherView:
    """Opens a `MatcherView` on the folder of a trained part's stage, in any process; given: what it was built on; text:
    opens what captions are read with, for a part that reads features. Raises as both, and RequestError without it."""
    try:
        encoder = text().to(device) if text else None
    except WeightsMissing as error:
        raise RequestError(f"text.name: {error}") from error
    return MatcherView(open_part(Path(folder), device, transform, given), name, encoder)


def open_captioner_view(
    device: torch.device, folder: str, name: str = OWN_CAPTIONER, transform: str | None = None
) -> CaptionerView:
    """Opens a `CaptionerView` on the folder of a trained part's stage, in any process."""
    return CaptionerView(open_part(Path(folder), device, transform), name)


def open_dual_encoder_view(device: torch.device, folder: str, name: str | None = None) -> DualEncoderView:
    """Opens a `DualEncoderView` on a folder, in any process."""
    return DualEncoderView(Path(folder), device, name)
