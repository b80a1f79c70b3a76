"""The adversarial losses of a cascade of generators and discriminators (AttnGAN, MirrorGAN, CPGAN)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.cascade import CascadeOutput, CascadeSettings
from models.blocks.discriminator import Discriminator, Discriminators, StageJudgement
from models.blocks.norm import own_statistics
from models.contract import Objective
from models.losses.adversarial import condition_kl, discriminator_loss, generator_loss
from models.parallel import Ranks


def picture_pyramid(images: Tensor, sides: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Real pictures (B,3,S,S) at every stage's side: resized bilinearly with anti-aliasing, as the released readers
    did with PIL."""
    return tuple(
        images if side == images.shape[-1] else F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        for side in sides
    )


def mismatched_logits(stage: Discriminator, features: Tensor, sentence: Tensor, ranks: Ranks) -> Tensor:
    """Conditional logits (M-1,) of real picture i with sentence i + 1, over the batches of all ranks (released).

    features: (B,C,4,4) of this rank's real pictures; sentence: (B,D). The last picture of all has no partner. Every
    rank judges all pairs, so that the number of ranks changes neither the pairs nor the batch statistics.
    """
    everyone, sentences = ranks.gather(features), ranks.gather(sentence)
    if ranks.size == 1:
        return stage.cond_head(everyone[:-1], sentences[1:])
    with own_statistics(stage.cond_head):
        return stage.cond_head(everyone[:-1], sentences[1:])


def discriminator_objective(
    config: CascadeSettings,
    discriminators: Discriminators,
    images: Tensor,
    fakes: tuple[Tensor, ...],
    sentence: Tensor,
    ranks: Ranks,
) -> Objective:
    """The sum of every stage's loss, for real pictures (B,3,S,S) and fakes of every stage, without their gradient.

    Real and fake pictures pass separately, each with batch statistics of its own (released).
    """
    losses: list[Tensor] = []
    terms: dict[str, Tensor] = {}
    for number, (stage, real, fake) in enumerate(
        zip(discriminators.stages, picture_pyramid(images, config.sides), fakes, strict=True)
    ):
        assert isinstance(stage, Discriminator)
        of_real: StageJudgement = stage(real, sentence)
        of_fake: StageJudgement = stage(fake.detach(), sentence)
        fake_logits = [of_fake.unconditional, of_fake.conditional]
        if config.mismatched_pairs:
            fake_logits.append(mismatched_logits(stage, of_real.features, sentence, ranks))
        loss = discriminator_loss([of_real.unconditional, of_real.conditional], fake_logits, config.adversarial)
        losses.append(loss)
        terms |= {
            f"stage_{number}": loss.detach(),
            f"stage_{number}_real_logit": of_real.conditional.detach().mean(),
            f"stage_{number}_fake_logit": of_fake.conditional.detach().mean(),
        }
    return Objective(torch.stack(losses).sum(), terms)


def generator_terms(
    config: CascadeSettings, discriminators: Discriminators, output: CascadeOutput, sentence: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Adversarial terms of every stage plus kl_weight times the KL term, and the parts by name, detached."""
    losses = [
        generator_loss([judged.unconditional, judged.conditional], config.adversarial, config.generator_terms)
        for judged in discriminators(output.images, sentence)
    ]
    kl = condition_kl(output.mu, output.log_variance)
    terms = {f"stage_{number}": loss.detach() for number, loss in enumerate(losses)} | {"kl": kl.detach()}
    return torch.stack(losses).sum() + config.kl_weight * kl, terms
