"""What AttnGAN's nets minimise: the encoders of DAMSM, the discriminators, the generator (section 3)."""

from collections.abc import Callable

from torch import Tensor

from models.attngan.config import AttnGANConfig, DAMSMConfig
from models.blocks.cascade import CascadeOutput
from models.blocks.discriminator import Discriminators
from models.contract import Objective, TextFeatures
from models.losses.cascade import discriminator_objective, generator_terms
from models.losses.damsm import PictureEmbedding, matching_losses
from models.parallel import Ranks

__all__ = ["damsm_objective", "discriminator_objective", "generator_objective"]


def damsm_objective(
    config: DAMSMConfig,
    pictures: PictureEmbedding,
    text: TextFeatures,
    class_ids: Tensor | None,
    ranks: Ranks,
) -> Objective:
    """L_DAMSM of B pictures and their captions among those of all ranks (equation 13); class_ids: (B,) int64."""
    matching = matching_losses(pictures, text, config.matching, class_ids, ranks)
    return Objective(matching.loss, matching.terms())


def generator_objective(
    config: AttnGANConfig,
    discriminators: Discriminators,
    image_encoder: Callable[[Tensor], PictureEmbedding] | None,
    output: CascadeOutput,
    text: TextFeatures,
    class_ids: Tensor | None,
    ranks: Ranks,
) -> Objective:
    """Adversarial terms of every stage, the KL term, and lambda L_DAMSM of the last picture (equation 3).

    image_encoder: pictures to `PictureEmbedding`, frozen, such as nn.Sequential(trunk, encoder); None only when
    damsm_weight is 0. The released order scores the discriminators after their own step.
    """
    loss, terms = generator_terms(config, discriminators, output, text)
    if config.damsm_weight > 0:
        if image_encoder is None:
            raise ValueError("damsm_weight is above 0 but there is no image encoder: give DAMSM's, or set it to 0")
        matching = matching_losses(image_encoder(output.images[-1]), text, config.matching, class_ids, ranks)
        loss, terms = loss + config.damsm_weight * matching.loss, terms | matching.terms()
    return Objective(loss, terms)
