"""AttnGAN as a system, and what every cascade's system shares: its turns and how it samples."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from models.attngan.config import AttnGANConfig
from models.attngan.damsm import STAGE, check_text_dim, evaluating, frozen_image_encoder, look
from models.attngan.losses import generator_objective
from models.attngan.networks import Generator
from models.blocks.cascade import CascadeOutput, CascadeSettings
from models.blocks.discriminator import Discriminators
from models.blocks.noise import seeded_noise
from models.blocks.norm import frozen_statistics
from models.contract import (
    NOTHING,
    AdamSettings,
    Batch,
    Given,
    Nets,
    Objective,
    Phase,
    StepContext,
    System,
    TextFeatures,
)
from models.losses.cascade import discriminator_objective
from models.losses.damsm import PictureEmbedding

CascadeT = TypeVar("CascadeT", bound=CascadeSettings)
AttnGANT = TypeVar("AttnGANT", bound=AttnGANConfig)


class CascadeLosses(Generic[CascadeT]):
    """The turns of a cascade: all discriminators, then the generator, scored by what they have become (released)."""

    def __init__(self, config: CascadeT) -> None:
        self.config = config

    def discriminator_step(self, nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
        """Every stage's discriminator on its own pictures; the generator's batch-norm estimates stay as they are."""
        images, text = required(batch)
        with torch.no_grad(), frozen_statistics(nets["generator"]):
            fakes = self.generate(nets, batch, context).images
        objective = discriminator_objective(self.config, discriminators_of(nets), images, fakes, text, context.ranks)
        return {"discriminators": objective}

    def generator_step(self, nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
        """The pictures that the discriminators just saw, made again with gradient."""
        output = self.generate(nets, batch, context)
        return {"generator": self.generator_objective(nets, output, batch, context)}

    def generate(self, nets: Nets, batch: Batch, context: StepContext) -> CascadeOutput:
        """Fakes of every stage for the batch's captions."""
        output: CascadeOutput = nets["generator"](batch.text, context.noise(self.config.drawn_noise))
        return output

    def generator_objective(self, nets: Nets, output: CascadeOutput, batch: Batch, context: StepContext) -> Objective:
        """What the generator pays for its pictures."""
        raise NotImplementedError


class CascadeGAN(System[CascadeT]):
    """What is the same in every system whose generator is a cascade: AttnGAN and those that build on it."""

    needs = frozenset({"images", "captions"})
    transform = "attngan"

    def losses(self, config: CascadeT) -> CascadeLosses[CascadeT]:
        """The paper's losses."""
        raise NotImplementedError

    def optimizers(self, config: CascadeT) -> Mapping[str, AdamSettings]:
        return {"generator": config.generator_optimizer, "discriminators": config.discriminator_optimizer}

    def text_dim(self, config: CascadeT) -> int:
        return config.text_dim

    def phases(self, config: CascadeT) -> Sequence[Phase]:
        """Released order: the discriminators step first, then the generator on the same batch and noise."""
        losses = self.losses(config)
        return [
            Phase("discriminators", ("discriminators",), losses.discriminator_step),
            Phase("generator", ("generator",), losses.generator_step, fresh_batch=False),
        ]

    def sample(
        self, nets: Nets, config: CascadeT, conditions: Batch, seeds: Sequence[int], truncation: float | None = None
    ) -> Tensor:
        """The last stage's pictures; needs the generator alone. z is truncated, and the noise of the conditioning
        augmentation."""
        text = conditions.text
        assert text is not None
        noise = seeded_noise(seeds, config.drawn_noise, text.sentence.device, truncation)
        with evaluating(nets["generator"]):
            output: CascadeOutput = nets["generator"](text, noise)
        return output.images[-1]


class AttnGAN(CascadeGAN[AttnGANConfig]):
    """Xu et al., "AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative Adversarial Networks",
    CVPR 2018."""

    name = "attngan"
    title = "AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative Adversarial Networks (2018)"
    Config = AttnGANConfig
    reads = frozenset({"features"})

    def build(self, config: AttnGANConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """A "generator", "discriminators" and, where DAMSM's loss has a weight, the frozen "trunk" and "image_encoder".

        Raises StageMissing, and ValueError where the trained stage does not fit.
        """
        check_text_dim(given, config.text_dim)
        nets: dict[str, nn.Module] = {"generator": Generator(config), "discriminators": Discriminators(config)}
        if config.damsm_weight > 0:
            nets |= frozen_image_encoder(config.trunk, config.text_dim, given)
        return nets

    def stages(self, config: AttnGANConfig) -> Mapping[str, str]:
        return {STAGE: "damsm"}

    def losses(self, config: AttnGANConfig) -> "AttnGANLosses[AttnGANConfig]":
        return AttnGANLosses(config)


class AttnGANLosses(CascadeLosses[AttnGANT]):
    """Equations 3 to 6, as released, and those of systems that pay the same."""

    def generator_objective(self, nets: Nets, output: CascadeOutput, batch: Batch, context: StepContext) -> Objective:
        _, text = required(batch)
        return generator_objective(
            self.config,
            discriminators_of(nets),
            image_judge(nets),
            output,
            text,
            batch.class_ids,
            context.ranks,
        )


def required(batch: Batch) -> tuple[Tensor, TextFeatures]:
    """The pictures and text features of a batch that must have them."""
    assert batch.images is not None and batch.text is not None
    return batch.images, batch.text


def discriminators_of(nets: Nets) -> Discriminators:
    """The discriminators of every stage."""
    return cast(Discriminators, nets["discriminators"])


def image_judge(nets: Nets) -> Callable[[Tensor], PictureEmbedding] | None:
    """Pictures to `PictureEmbedding` by DAMSM's frozen encoder, or None where the system has none."""
    return partial(look, nets) if "image_encoder" in nets else None
