"""STREAM as a part that is trained before MirrorGAN, and frozen as MirrorGAN uses it (section 3.3)."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from models.attngan.damsm import evaluating, known_words, load_fitting
from models.contract import NOTHING, AdamSettings, Batch, Given, Nets, Objective, Phase, StepContext, Trainable
from models.encoders.trunk import ImageTrunk, TrunkFeatures
from models.mirrorgan.config import StreamConfig
from models.mirrorgan.losses import stream_objective
from models.mirrorgan.stream import Stream

STAGE = "stream"


class STREAM(Trainable[StreamConfig]):
    """The captioner of MirrorGAN, trained on real pictures. Neither paper nor code gives the procedure."""

    name = STAGE
    title = "STREAM: the Semantic Text REgeneration and Alignment Module of MirrorGAN (2019)"
    Config = StreamConfig
    needs = frozenset({"images", "captions"})
    transform = "attngan"
    reads = frozenset({"tokens"})

    def build(self, config: StreamConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """Trained "stream", frozen "trunk". Raises ValueError without a vocabulary."""
        trunk = ImageTrunk(config.trunk)
        return {"stream": Stream(config, trunk, known_words(given, "the captioner")), "trunk": trunk}

    def optimizers(self, config: StreamConfig) -> Mapping[str, AdamSettings]:
        return {"stream": config.optimizer}

    def text_dim(self, config: StreamConfig) -> int:
        """Width of its own word embeddings: it reads no text features."""
        return config.embedding_dim

    def phases(self, config: StreamConfig) -> Sequence[Phase]:
        """The captioner on the true captions (equation 8)."""

        def losses(nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
            images, tokens = batch.images, batch.tokens
            assert images is not None and tokens is not None
            features: TrunkFeatures = nets["trunk"](images)
            objective = stream_objective(config, nets["stream"], features, tokens.ids, tokens.lengths, context.ranks)
            return {"stream": objective}

        return [Phase("stream", ("stream",), losses)]

    def describe(self, nets: Nets, batch: Batch) -> Tensor:
        """`batch.images` to word indices (B,T) int64, 0 after the description.

        Its training has no end word, so that a description goes on to the longest length unless it meets a 0.
        """
        assert batch.images is not None
        with torch.no_grad(), evaluating(nets["stream"]):
            told = cast(Stream, nets["stream"]).describe(nets["trunk"](batch.images))
        return told.masked_fill((told == 0).cumsum(1) > 0, 0)


def frozen_captioner(config: StreamConfig, given: Given) -> dict[str, nn.Module]:
    """A "stream_trunk" and the trained stage's "stream".

    Raises StageMissing, and ValueError where the stage has another trunk, other widths or another vocabulary.
    """
    trunk = ImageTrunk(config.trunk)
    # Without the stage that is what is missing, not its vocabulary.
    words = known_words(given, "the captioner") if STAGE in given.folders else max(given.vocabulary_size, 2)
    stream = Stream(config, trunk, words)
    fitting = load_fitting(stream, given, STAGE, "stream", "the data's vocabulary and model.stream")
    return {"stream_trunk": trunk, "stream": fitting}
