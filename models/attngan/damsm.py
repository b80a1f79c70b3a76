"""DAMSM as a part that is trained before a GAN, and its frozen encoders as GANs use them (section 3.2)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from models.attngan.config import DAMSMConfig
from models.attngan.image import ImageEncoder, PictureEncoder
from models.attngan.losses import damsm_objective
from models.attngan.text import TextEncoder
from models.contract import (
    NOTHING,
    AdamSettings,
    Batch,
    Given,
    Nets,
    Objective,
    Phase,
    StepContext,
    TextFeatures,
    Tokens,
    Trainable,
)
from models.encoders.trunk import ImageTrunk, ImageTrunkSettings
from models.losses.damsm import PictureEmbedding

STAGE = "damsm"

DAMSMT = TypeVar("DAMSMT", bound=DAMSMConfig)


class EncoderTraining(Trainable[DAMSMT]):
    """A text and an image encoder, trained together so that captions find their pictures: what every DAMSM shares."""

    needs = frozenset({"images", "captions"})
    transform = "attngan"
    reads = frozenset({"tokens"})

    def optimizers(self, config: DAMSMT) -> Mapping[str, AdamSettings]:
        """The same for both, but only the text encoder's gradient has a largest norm (released)."""
        free = config.optimizer.model_copy(update={"gradient_norm": None})
        return {"text_encoder": config.optimizer, "image_encoder": free}

    def text_dim(self, config: DAMSMT) -> int:
        return config.text.text_dim

    def phases(self, config: DAMSMT) -> Sequence[Phase]:
        """Both encoders on one loss, neither seeing the other's step."""

        def losses(nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
            images, tokens = _required(batch)
            text_encoder = cast(TextEncoder, nets["text_encoder"])
            noise = context.noise(text_encoder.noise_width(tokens.ids.shape[1])) if config.text.dropout > 0 else None
            text = text_encoder(tokens.ids, tokens.lengths, noise)
            objective = damsm_objective(config, look(nets, images), text, batch.class_ids, context.ranks)
            return {"text_encoder": objective, "image_encoder": objective}

        return [Phase("damsm", ("text_encoder", "image_encoder"), losses)]

    def embed(self, nets: Nets, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,D) of `batch.images` and (B,D) of the sentences of `batch.tokens`: both global features of section 3.2."""
        images, tokens = _required(batch)
        pictures = cast(PictureEncoder, nets["image_encoder"]).whole(nets["trunk"](images))
        return pictures, self.encode(nets, tokens).sentence

    def encode(self, nets: Nets, tokens: Tokens) -> TextFeatures:
        """Captions by "text_encoder" alone, without dropout. Words are zero at padding."""
        with evaluating(nets["text_encoder"]):
            text: TextFeatures = nets["text_encoder"](tokens.ids, tokens.lengths)
        return text


class DAMSM(EncoderTraining[DAMSMConfig]):
    """The text and the image encoder of AttnGAN."""

    name = STAGE
    title = "DAMSM: the Deep Attentional Multimodal Similarity Model of AttnGAN (2018)"
    Config = DAMSMConfig

    def build(self, config: DAMSMConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """Trained "text_encoder" and "image_encoder", frozen "trunk". Raises ValueError without a vocabulary."""
        text_encoder = TextEncoder(config.text, known_words(given, "the text encoder"))
        trunk = ImageTrunk(config.trunk)
        image_encoder = ImageEncoder(trunk, config.text.text_dim)
        return {"text_encoder": text_encoder, "image_encoder": image_encoder, "trunk": trunk}


def _required(batch: Batch) -> tuple[Tensor, Tokens]:
    assert batch.images is not None and batch.tokens is not None
    return batch.images, batch.tokens


def look(nets: Nets, images: Tensor) -> PictureEmbedding:
    """Pictures (B,3,H,W) by "trunk" and "image_encoder", which also reads salient boxes where "regions" finds some."""
    salient = [nets["regions"](images)] if "regions" in nets else []
    embedding: PictureEmbedding = nets["image_encoder"](nets["trunk"](images), *salient)
    return embedding


def frozen_image_encoder(settings: ImageTrunkSettings, text_dim: int, given: Given) -> dict[str, nn.Module]:
    """A "trunk" and the trained stage's "image_encoder", for a GAN that pays DAMSM's loss.

    Raises StageMissing, and ValueError where the stage stands on another trunk.
    """
    trunk = ImageTrunk(settings)
    encoder = ImageEncoder(trunk, text_dim)
    return {"trunk": trunk, "image_encoder": load_fitting(encoder, given, STAGE, "image_encoder", "model.trunk")}


def check_text_dim(given: Given, text_dim: int) -> None:
    """ValueError where the trained stage makes text features of another width; nothing where there is no stage."""
    if STAGE not in given.folders:
        return
    made = stored_shapes(given.folders[STAGE] / "image_encoder.safetensors")["pooled_proj.weight"][0]
    if made != text_dim:
        raise ValueError(
            f"model.text_dim is {text_dim}, but the trained stage {STAGE!r} makes text features of width {made}: "
            f"set model.text_dim={made}, or train the stage with text.text_dim={text_dim}"
        )


def load_fitting(net: nn.Module, given: Given, stage: str, name: str, field: str) -> nn.Module:
    """`Given.load`, with ValueError where the stage's weights are of other shapes; `field`: what must be as there."""
    on_meta = any(parameter.is_meta for parameter in net.parameters())
    if stage in given.folders and not on_meta:
        made = stored_shapes(given.folders[stage] / f"{name}.safetensors")
        own = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        for key in sorted(own.keys() | made.keys()):
            if own.get(key) != made.get(key):
                raise ValueError(
                    f"the trained stage {stage!r} does not fit: {key} of its {name} has the shape {made.get(key)}, "
                    f"here {own.get(key)}: make {field} as the stage was trained, or train it again"
                )
    return given.load(net, stage, name)


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a .safetensors file, by name; nothing else of it is read."""
    with safe_open(path, "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118, a file is no dict


def known_words(given: Given, reader: str) -> int:
    """Size of the data's vocabulary. ValueError where there is none; on "meta", where nothing is read, 2 stand in."""
    if given.vocabulary_size < 2 and torch.empty(0).device.type != "meta":
        raise ValueError(
            f"{reader} reads word indices but the vocabulary has {given.vocabulary_size} words, padding counted: give "
            "the size of the data's vocabulary, at least 2"
        )
    return max(given.vocabulary_size, 2)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """`net` is in evaluation mode in here, whatever mode the loop left it in, and as before afterwards."""
    before = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
