"""XMC-GAN as a system: its nets, its phases and how it samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from models.encoders.image import PretrainedImageEncoder
from models.losses.adversarial import hinge_discriminator, hinge_generator
from models.losses.contrastive import Contrast, contrast_scores, nt_xent, word_region_scores
from models.precision import at_least_float32
from models.xmcgan.config import XMCGANConfig
from models.xmcgan.networks import Discriminator, Generator, Judgement


@dataclass(frozen=True, slots=True)
class _View:
    """What the discriminator says of B real or B fake pictures: logits (B,), features (B,F), regions (B,R,C)."""

    logits: Tensor
    features: Tensor
    regions: Tensor


class XMCGAN(System[XMCGANConfig]):
    """Zhang et al., "Cross-Modal Contrastive Learning for Text-to-Image Generation", CVPR 2021."""

    name = "xmcgan"
    title = "XMC-GAN: Cross-Modal Contrastive Learning for Text-to-Image Generation (2021)"
    Config = XMCGANConfig
    needs = frozenset({"images", "captions"})
    transform = "xmcgan"
    reads = frozenset({"features"})

    def build(self, config: XMCGANConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        nets: dict[str, nn.Module] = {"generator": Generator(config), "discriminator": Discriminator(config)}
        if config.uses_pretrained:
            nets["pretrained"] = PretrainedImageEncoder(config.pretrained)
        return nets

    def optimizers(self, config: XMCGANConfig) -> Mapping[str, AdamSettings]:
        return {"generator": config.generator_optimizer, "discriminator": config.discriminator_optimizer}

    def text_dim(self, config: XMCGANConfig) -> int:
        return config.text_dim

    def phases(self, config: XMCGANConfig) -> Sequence[Phase]:
        """Algorithm 1 ("paper"), or the released order, whose last D step and G step are one joint step."""
        losses = XMCGANLosses(config)
        d_step = Phase("discriminator", ("discriminator",), losses.discriminator_step)
        if config.step_order == "paper":
            g_step = Phase("generator", ("generator",), losses.generator_step)
            return [d_step] * config.discriminator_steps + [g_step]
        joint = Phase("joint", ("discriminator", "generator"), losses.joint_step)
        return [d_step] * (config.discriminator_steps - 1) + [joint]

    def sample(
        self, nets: Nets, config: XMCGANConfig, conditions: Batch, seeds: Sequence[int], truncation: float | None = None
    ) -> Tensor:
        text = conditions.text
        assert text is not None
        noise = seeded_noise(seeds, config.noise_dim, text.sentence.device, truncation)
        pictures: Tensor = nets["generator"](text, noise)
        return pictures


class XMCGANLosses:
    """The losses of algorithm 1. Fake pictures never train the discriminator's contrastive features."""

    def __init__(self, config: XMCGANConfig) -> None:
        self.config = config

    def discriminator_step(self, nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
        """Algorithm 1, lines 3 to 9; the generator's batch-norm estimates stay as they are."""
        with torch.no_grad(), frozen_statistics(nets["generator"]):
            fake = self._generate(nets, batch, context)
        real, fakes, sentence = self._judge(nets, batch, fake)
        return {"discriminator": self._discriminator_objective(real, fakes, sentence, batch, context)}

    def generator_step(self, nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
        """Algorithm 1, lines 11 to 17."""
        fake = self._generate(nets, batch, context)
        real, fakes, sentence = self._judge(nets, batch, fake)
        return {"generator": self._generator_objective(nets, fake, real, fakes, sentence, batch, context)}

    def joint_step(self, nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
        """Both objectives from one forward pass, each for its own net's parameters."""
        fake = self._generate(nets, batch, context)
        real, fakes, sentence = self._judge(nets, batch, fake)
        return {
            "discriminator": self._discriminator_objective(real, fakes, sentence, batch, context),
            "generator": self._generator_objective(nets, fake, real, fakes, sentence, batch, context),
        }

    def _generate(self, nets: Nets, batch: Batch, context: StepContext) -> Tensor:
        fake: Tensor = nets["generator"](batch.text, context.noise(self.config.noise_dim))
        return fake

    def _judge(self, nets: Nets, batch: Batch, fake: Tensor) -> tuple[_View, _View, Tensor]:
        """Real and fake pictures in one pass, so that spectral norm iterates once (released code)."""
        images, text = _required(batch)
        judgement: Judgement = nets["discriminator"](torch.cat([images, fake.to(images.dtype)]), text.sentence)
        real, fakes = (
            _View(at_least_float32(logits), features, regions)
            for logits, features, regions in zip(
                judgement.logits.chunk(2), judgement.features.chunk(2), judgement.regions.chunk(2), strict=True
            )
        )
        return real, fakes, judgement.sentence

    def _text_contrasts(
        self, view: _View, sentence: Tensor, batch: Batch, context: StepContext, kind: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """lambda_1 L_sent + lambda_2 L_word of real or fake pictures against the sentences of all ranks."""
        config, gather = self.config, context.ranks.gather
        _, text = _required(batch)
        by_sentence = nt_xent(gather(view.features), gather(sentence), config.tau, config.directions)
        # Each rank scores its own pictures against every sentence; only the scores travel.
        scores = word_region_scores(
            view.regions,
            gather(text.words),
            gather(text.padding()),
            config.rho_1,
            config.rho_2,
            config.tau_word,
            config.region_values,
        )
        by_word = contrast_scores(gather(scores), config.directions)
        loss = config.lambda_1 * by_sentence.loss + config.lambda_2 * by_word.loss
        return loss, {**_terms(f"{kind}_sentence", by_sentence), **_terms(f"{kind}_word", by_word)}

    def _discriminator_objective(
        self, real: _View, fakes: _View, sentence: Tensor, batch: Batch, context: StepContext
    ) -> Objective:
        """Hinge + lambda_1 L_sent + lambda_2 L_word on real pictures (algorithm 1, lines 5 to 8)."""
        loss = hinge_discriminator(real.logits, fakes.logits)
        terms = {
            "hinge": loss.detach(),
            "real_logit": real.logits.detach().mean(),
            "fake_logit": fakes.logits.detach().mean(),
        }
        if self.config.contrastive_on != "generator":
            contrast, parts = self._text_contrasts(real, sentence, batch, context, "real")
            loss, terms = loss + contrast, terms | parts
        return Objective(loss, terms)

    def _generator_objective(
        self,
        nets: Nets,
        fake: Tensor,
        real: _View,
        fakes: _View,
        sentence: Tensor,
        batch: Batch,
        context: StepContext,
    ) -> Objective:
        """Hinge + lambda_1 L_sent + lambda_2 L_word + lambda_3 L_img on fake pictures (lines 12 to 16)."""
        config, gather = self.config, context.ranks.gather
        images, _ = _required(batch)
        loss = hinge_generator(fakes.logits)
        terms = {"hinge": loss.detach()}
        if config.contrastive_on != "discriminator":
            contrast, parts = self._text_contrasts(fakes, sentence, batch, context, "fake")
            loss, terms = loss + contrast, terms | parts
        if config.image_losses in ("discriminator", "both") and config.lambda_3 > 0:
            by_image = nt_xent(gather(real.features), gather(fakes.features), config.tau, config.directions)
            loss, terms = loss + config.lambda_3 * by_image.loss, terms | _terms("image", by_image)
        if config.uses_pretrained:
            pretrained, parts = self._pretrained_loss(nets, images, fake, context)
            loss, terms = loss + config.lambda_3 * pretrained, terms | parts
        return Objective(loss, terms)

    def _pretrained_loss(
        self, nets: Nets, images: Tensor, fake: Tensor, context: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_img on the features of a frozen net (section 6.2); "l2" is the perceptual loss of table 6."""
        encoder, gather = nets["pretrained"], context.ranks.gather
        with torch.no_grad():
            real_features = encoder(images)
        fake_features = encoder(fake)
        if self.config.pretrained_loss == "l2":
            distance = F.mse_loss(at_least_float32(fake_features), at_least_float32(real_features))
            return distance, {"pretrained_l2": distance.detach()}
        contrast = nt_xent(gather(real_features), gather(fake_features), self.config.tau, self.config.directions)
        return contrast.loss, _terms("pretrained", contrast)


def _required(batch: Batch) -> tuple[Tensor, TextFeatures]:
    assert batch.images is not None and batch.text is not None
    return batch.images, batch.text


def _terms(name: str, contrast: Contrast) -> dict[str, Tensor]:
    return {name: contrast.loss.detach(), f"{name}_accuracy": contrast.accuracy, f"{name}_entropy": contrast.entropy}
