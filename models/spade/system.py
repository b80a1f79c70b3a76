"""SPADE as a system: its nets, its phases and how it samples."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.attngan.damsm import evaluating
from models.blocks.label_maps import known_classes, label_input
from models.blocks.noise import seeded_noise, untruncated
from models.contract import NOTHING, AdamSettings, Batch, Given, LabelMaps, Nets, Objective, Phase, StepContext, System
from models.losses.feature_matching import (
    ScaleJudgement,
    discriminator_objective,
    feature_matching,
    hinge_fooling,
)
from models.losses.perceptual import PerceptualDistance
from models.spade.config import SpadeConfig
from models.spade.discriminator import Discriminator
from models.spade.encoder import kl_divergence
from models.spade.networks import Generator


class Spade(System[SpadeConfig]):
    """Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", CVPR 2019."""

    name = "spade"
    title = "SPADE: Semantic Image Synthesis with Spatially-Adaptive Normalization (2019)"
    Config = SpadeConfig
    needs = frozenset({"images", "labels"})
    transform = "spade"
    reads = frozenset({"labels"})

    def build(self, config: SpadeConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """A "generator", with its encoder where it has one, a "discriminator" and, where it has a weight, the frozen
        "perceptual". Raises WeightsMissing, and ValueError without classes of label maps."""
        classes = known_classes(given, self.name)
        nets: dict[str, nn.Module] = {
            "generator": Generator(config, classes),
            "discriminator": Discriminator(config, classes),
        }
        if config.uses_perceptual:
            nets["perceptual"] = PerceptualDistance(config.perceptual)
        return nets

    def optimizers(self, config: SpadeConfig) -> Mapping[str, AdamSettings]:
        return {"generator": config.generator_optimizer, "discriminator": config.discriminator_optimizer}

    def phases(self, config: SpadeConfig) -> Sequence[Phase]:
        """The generator, then the discriminator on the same batch, with pictures that the stepped generator draws by
        new z (released)."""
        losses = SpadeLosses(config)
        return [
            Phase("generator", ("generator",), losses.generator_step),
            Phase("discriminator", ("discriminator",), losses.discriminator_step, fresh_batch=False),
        ]

    def sample(
        self, nets: Nets, config: SpadeConfig, conditions: Batch, seeds: Sequence[int], truncation: float | None = None
    ) -> Tensor:
        """By `conditions.labels`; needs the generator alone. Without z every seed gives the same picture."""
        labels = conditions.labels
        assert labels is not None
        generator = nets["generator"]
        z = None
        if config.reads_noise:
            z = seeded_noise(seeds, config.noise_dim, labels.labels.device, truncation)
        else:
            untruncated(truncation)
        with evaluating(generator):
            pictures: Tensor = generator(label_input(labels, classes_of(generator)), z)
        return pictures

    def truncates(self, nets: Nets, config: SpadeConfig) -> bool:
        return config.reads_noise


class SpadeLosses:
    """What both nets minimise. Batch statistics and spectral norms of every pass count, as in the released code."""

    def __init__(self, config: SpadeConfig) -> None:
        self.config = config

    def generator_step(self, nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
        """Hinge, feature matching, perceptual distance and, with an encoder, its divergence, each by its weight."""
        config = self.config
        images, label_map = _required(nets, batch)
        fake, divergence = self._draw(nets, images, label_map, context, 0)
        shown, drawn = judge_both(nets["discriminator"], label_map, images, fake)
        parts = {"hinge": (1.0, hinge_fooling(drawn))}
        if config.feature_matching_weight:
            parts["feature_matching"] = (config.feature_matching_weight, feature_matching(drawn, shown))
        if config.uses_perceptual:
            parts["perceptual"] = (config.perceptual_weight, nets["perceptual"](fake, images).mean())
        if divergence is not None:
            # The mean over ranks of what each pays is the loss: a sum over all pictures is as many times its own.
            summed = config.kl_reduction == "sum"
            paid = divergence.sum() * context.ranks.size if summed else divergence.mean()
            parts["kl"] = (config.kl_weight, paid)
        loss = sum((weight * part for weight, part in parts.values()), start=images.new_zeros(()))
        return {"generator": Objective(loss, {name: part.detach() for name, (_, part) in parts.items()})}

    def discriminator_step(self, nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
        """Hinge, over scales."""
        images, label_map = _required(nets, batch)
        with torch.no_grad():
            fake, _ = self._draw(nets, images, label_map, context, 1)
        return {"discriminator": discriminator_objective(*judge_both(nets["discriminator"], label_map, images, fake))}

    def _draw(
        self, nets: Nets, images: Tensor, label_map: Tensor, context: StepContext, turn: int
    ) -> tuple[Tensor, Tensor | None]:
        """Pictures (B,3,S,S), and the divergence (B,) of the encoder's distributions. turn: 0 or 1, of the two that
        share a batch and its noise; each has z of its own."""
        config, generator = self.config, nets["generator"]
        if not config.reads_noise:
            return generator(label_map), None
        width = config.noise_dim
        z = context.noise(2 * width)[:, turn * width : (turn + 1) * width]
        if not config.use_vae:
            return generator(label_map, z), None
        assert isinstance(generator, Generator) and generator.encoder is not None
        mean, log_variance = generator.encoder(images)
        z = mean + (0.5 * log_variance).exp() * z
        return generator(label_map, z), kl_divergence(mean, log_variance)


def judge_both(
    discriminator: nn.Module, label_map: Tensor, images: Tensor, fake: Tensor
) -> tuple[list[ScaleJudgement], list[ScaleJudgement]]:
    """What the discriminator says of real and drawn pictures, in one pass, so that spectral norm iterates once
    (released)."""
    together: list[ScaleJudgement] = discriminator(
        torch.cat([label_map, label_map]), torch.cat([images, fake.to(images.dtype)])
    )
    halves = [scale.halves() for scale in together]
    return [shown for shown, _ in halves], [drawn for _, drawn in halves]


def classes_of(generator: nn.Module) -> int:
    """How many classes the label maps have that a generator was built for."""
    assert isinstance(generator, Generator)
    return generator.classes


def _required(nets: Nets, batch: Batch) -> tuple[Tensor, Tensor]:
    """Pictures, and their label maps as the nets read them."""
    labels: LabelMaps | None = batch.labels
    assert batch.images is not None and labels is not None
    return batch.images, label_input(labels, classes_of(nets["generator"]))
