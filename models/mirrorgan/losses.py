"""What MirrorGAN's nets minimise: the captioner before, then the discriminators and the generator (section 3.4)."""

from collections.abc import Callable

from torch import Tensor, nn

from models.blocks.cascade import CascadeOutput
from models.blocks.discriminator import Discriminators
from models.contract import Objective, TextFeatures
from models.encoders.trunk import TrunkFeatures
from models.losses.captioning import caption_loss, word_accuracy
from models.losses.cascade import discriminator_objective, generator_terms
from models.losses.damsm import PictureEmbedding, matching_losses
from models.mirrorgan.config import MirrorGANConfig, StreamConfig
from models.parallel import Ranks

__all__ = ["discriminator_objective", "generator_objective", "stream_objective"]


def stream_objective(
    config: StreamConfig, stream: nn.Module, features: TrunkFeatures, tokens: Tensor, lengths: Tensor, ranks: Ranks
) -> Objective:
    """L_stream of pictures' trunk features and their captions (B,T), the cross-entropy of the true words (equation 8):
    the captioner's own training, and G's."""
    logits = stream(features, tokens)
    loss = caption_loss(logits, tokens, lengths, config.loss, ranks)
    accuracy = word_accuracy(logits, tokens, lengths, ranks)
    return Objective(loss, {"stream": loss.detach(), "stream_accuracy": accuracy})


def generator_objective(
    config: MirrorGANConfig,
    discriminators: Discriminators,
    captioner: tuple[nn.Module, nn.Module] | None,
    output: CascadeOutput,
    text: TextFeatures,
    tokens: Tensor,
    ranks: Ranks,
    image_encoder: Callable[[Tensor], PictureEmbedding] | None = None,
    class_ids: Tensor | None = None,
) -> Objective:
    """Adversarial terms of every stage, the KL term, lambda L_stream of the last picture (equation 9), and DAMSM's
    loss where it has a weight.

    captioner: STREAM's trunk and STREAM, image_encoder: pictures to `PictureEmbedding`, such as nn.Sequential(trunk,
    encoder); frozen, None only without weight. tokens: (B,T) word ids of the captions of `text`.
    """
    loss, terms = generator_terms(config, discriminators, output, text)
    if config.stream_weight > 0:
        if captioner is None:
            raise ValueError("stream_weight is above 0 but there is no captioner: give STREAM, or set it to 0")
        trunk, stream = captioner
        told = stream_objective(config.stream, stream, trunk(output.images[-1]), tokens, text.lengths, ranks)
        loss, terms = loss + config.stream_weight * told.loss, {**terms, **told.terms}
    if config.damsm_weight > 0:
        if image_encoder is None:
            raise ValueError("damsm_weight is above 0 but there is no image encoder: give DAMSM's, or set it to 0")
        matching = matching_losses(image_encoder(output.images[-1]), text, config.matching, class_ids, ranks)
        loss, terms = loss + config.damsm_weight * matching.loss, terms | matching.terms()
    return Objective(loss, terms)
