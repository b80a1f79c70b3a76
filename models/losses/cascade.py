"""The adversarial losses of a cascade of generators and discriminators (AttnGAN, MirrorGAN, CPGAN)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.cascade import CascadeOutput, CascadeSettings
from models.blocks.discriminator import Discriminators, StageDiscriminator, StageJudgement
from models.blocks.norm import own_statistics
from models.contract import Objective, TextFeatures
from models.losses.adversarial import condition_kl, discriminator_loss, generator_loss
from models.parallel import Ranks


def picture_pyramid(images: Tensor, sides: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Real pictures (B,3,S,S) at every stage's side: resized bilinearly with anti-aliasing, as the released readers
    did with PIL."""
    return tuple(
        images if side == images.shape[-1] else F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        for side in sides
    )


def following_captions(text: TextFeatures, ranks: Ranks) -> TextFeatures:
    """Captions 1 to M-1 of the M captions of all ranks: the partner of real picture i is the caption of i + 1."""
    words, lengths, sentence = (ranks.gather(local)[1:] for local in (text.words, text.lengths, text.sentence))
    return TextFeatures(words, lengths, sentence)


def mismatched_logits(stage: StageDiscriminator, features: Tensor, following: TextFeatures, ranks: Ranks) -> Tensor:
    """Conditional logits of the M-1 pairs of real picture i with caption i + 1, over the batches of all ranks
    (released AttnGAN).

    features: (B,C,S,S) of this rank's real pictures; following: see `following_captions`. The last picture of all has
    no partner. Every rank judges all pairs, so that the number of ranks changes neither the pairs nor the batch
    statistics.
    """
    pictures = ranks.gather(features)[:-1]
    if ranks.size == 1:
        logits: Tensor = stage.cond_head(pictures, following)
        return logits
    with own_statistics(stage.cond_head):
        logits = stage.cond_head(pictures, following)
        return logits


def discriminator_objective(
    config: CascadeSettings,
    discriminators: Discriminators,
    images: Tensor,
    fakes: tuple[Tensor, ...],
    text: TextFeatures,
    ranks: Ranks,
) -> Objective:
    """The sum of every stage's loss, for real pictures (B,3,S,S) and fakes of every stage, without their gradient.

    Real and fake pictures pass separately, each with batch statistics of its own (released).
    """
    losses: list[Tensor] = []
    terms: dict[str, Tensor] = {}
    following = following_captions(text, ranks) if config.mismatched_pairs else None
    for number, (stage, real, fake) in enumerate(
        zip(discriminators.stages, picture_pyramid(images, config.sides), fakes, strict=True)
    ):
        assert isinstance(stage, StageDiscriminator)
        of_real: StageJudgement = stage(real, text)
        of_fake: StageJudgement = stage(fake.detach(), text)
        fake_logits = [of_fake.unconditional, of_fake.conditional]
        if following is not None:
            fake_logits.append(mismatched_logits(stage, of_real.features, following, ranks))
        loss = discriminator_loss([of_real.unconditional, of_real.conditional], fake_logits, config.adversarial)
        losses.append(loss)
        terms |= {
            f"stage_{number}": loss.detach(),
            f"stage_{number}_real_logit": of_real.conditional.detach().mean(),
            f"stage_{number}_fake_logit": of_fake.conditional.detach().mean(),
        }
    return Objective(torch.stack(losses).sum(), terms)


def generator_terms(
    config: CascadeSettings, discriminators: Discriminators, output: CascadeOutput, text: TextFeatures
) -> tuple[Tensor, dict[str, Tensor]]:
    """Adversarial terms of every stage plus kl_weight times the KL term, and the parts by name, detached."""
    losses = [
        generator_loss([judged.unconditional, judged.conditional], config.adversarial, config.generator_terms)
        for judged in discriminators(output.images, text)
    ]
    kl = condition_kl(output.mu, output.log_variance)
    terms = {f"stage_{number}": loss.detach() for number, loss in enumerate(losses)} | {"kl": kl.detach()}
    return torch.stack(losses).sum() + config.kl_weight * kl, terms
