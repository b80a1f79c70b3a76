"""RetrieveGAN as a system: its nets, its one phase and how it samples."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from models.attngan.damsm import evaluating
from models.blocks.graphs import FlatGraphs, flatten, known_names
from models.blocks.noise import seeded_noise, untruncated
from models.blocks.object_discriminator import Discriminators, Judgement
from models.blocks.pixels import to_signed
from models.contract import (
    NOTHING,
    AdamSettings,
    Batch,
    Candidates,
    Given,
    Graphs,
    Nets,
    Objective,
    Phase,
    StepContext,
    System,
)
from models.losses.perceptual import PerceptualDistance
from models.losses.scene_graphs import discriminator_objective
from models.retrievegan.co_occurrence import STAGE as CO_OCCURRENCE
from models.retrievegan.co_occurrence import open_co_occurrence
from models.retrievegan.config import RetrieveGANConfig
from models.retrievegan.losses import Embed, generator_objective
from models.retrievegan.networks import Generator, Retrieved, own_patches
from models.retrievegan.retrieval import noise_width

SG2IM = "sg2im"
"""The stage whose graph encoder the pre-filter compares patches by (section 3.2)."""


class RetrieveGAN(System[RetrieveGANConfig]):
    """Tseng et al., "RetrieveGAN: Image Synthesis via Differentiable Patch Retrieval", ECCV 2020."""

    name = "retrievegan"
    title = "RetrieveGAN: Image Synthesis via Differentiable Patch Retrieval (2020)"
    Config = RetrieveGANConfig
    needs = frozenset({"images", "graph"})
    transform = "sg2im"
    reads = frozenset({"graphs", "candidates"})

    def stages(self, config: RetrieveGANConfig) -> Mapping[str, str]:
        return {SG2IM: "sg2im"} | ({CO_OCCURRENCE: "co_occurrence"} if config.lambda_cooccurrence else {})

    def build(self, config: RetrieveGANConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """A "generator", "discriminators" and, where their losses have a weight, the frozen "perceptual" and
        "co_occurrence". Raises StageMissing, WeightsMissing, and ValueError without a vocabulary of scene graphs."""
        classes, predicates = known_names(given, self.name)
        nets: dict[str, nn.Module] = {
            "generator": Generator(config, classes, predicates),
            "discriminators": Discriminators(config, classes),
        }
        if config.uses_perceptual:
            nets["perceptual"] = PerceptualDistance(config.perceptual)
        if config.lambda_cooccurrence:
            nets[CO_OCCURRENCE] = open_co_occurrence(given)
        return nets

    def optimizers(self, config: RetrieveGANConfig) -> Mapping[str, AdamSettings]:
        return {"generator": config.generator_optimizer, "discriminators": config.discriminator_optimizer}

    def phases(self, config: RetrieveGANConfig) -> Sequence[Phase]:
        """One, in which all step, as sg2im's released code has it; the paper says nothing of the order."""

        def losses(nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
            images, graphs, candidates = _required(batch)
            flat = flatten(graphs)
            # One row for all: noise that is asked for again is the same noise.
            noise = context.noise(training_noise_width(config, candidates) + 1)
            drawn, rebuilt = draw(config, cast(Generator, nets["generator"]), images, flat, candidates, noise[:, :-1])
            fake: Judgement = nets["discriminators"](drawn.images, flat)
            real: Judgement = nets["discriminators"](images, flat)
            paid = generator_objective(
                config,
                drawn,
                fake,
                rebuilt,
                images,
                flat,
                noise[:, -1],
                context.ranks,
                nets.get("perceptual"),
                _frozen(nets[CO_OCCURRENCE]) if CO_OCCURRENCE in nets else None,
            )
            return {"discriminators": discriminator_objective(real, fake, flat, context.ranks), "generator": paid}

        return [Phase("all", ("generator", "discriminators"), losses)]

    def sample(
        self,
        nets: Nets,
        config: RetrieveGANConfig,
        conditions: Batch,
        seeds: Sequence[int],
        truncation: float | None = None,
    ) -> Tensor:
        """By `conditions.graphs`, of which boxes are only read with `boxes="given"`, and `conditions.candidates`."""
        untruncated(truncation)
        return to_signed(self.retrieve(nets, config, conditions, seeds).images)

    def truncates(self, nets: Nets, config: RetrieveGANConfig) -> bool:
        """No: a seed's numbers choose patches (Gumbel noise), they are no latent."""
        return False

    def retrieve(self, nets: Nets, config: RetrieveGANConfig, conditions: Batch, seeds: Sequence[int]) -> Retrieved:
        """What `sample` draws, with the patches that were chosen; needs the generator alone."""
        graphs, candidates = conditions.graphs, conditions.candidates
        assert graphs is not None and candidates is not None
        flat = flatten(graphs)
        groups, size = candidates.patches.shape[1:3]
        noise = seeded_noise(seeds, noise_width(groups, size, config.retrieval), flat.boxes.device)
        with evaluating(nets["generator"]):
            drawn: Retrieved = nets["generator"](
                flat, candidates, noise, flat.boxes if config.boxes == "given" else None
            )
        return drawn


def training_noise_width(config: RetrieveGANConfig, candidates: Candidates) -> int:
    """How many numbers a picture's retrieval needs in training, where its objects' own patches are candidates too.

    Of the room that all batches have, so that no rank needs another width.
    """
    groups, size = candidates.patches.shape[1:3]
    return noise_width(groups, size + 1, config.retrieval)


def draw(
    config: RetrieveGANConfig,
    generator: Generator,
    images: Tensor,
    flat: FlatGraphs,
    candidates: Candidates,
    noise: Tensor,
) -> tuple[Retrieved, Tensor | None]:
    """A batch's pictures from retrieved patches and, where a loss asks for it, from the ground truth.

    noise: (B, `training_noise_width`) standard normal numbers.
    """
    side = candidates.patches.shape[-1]
    truth = own_patches(images, flat, side)
    boxes = flat.boxes if config.training_boxes == "given" else None
    drawn: Retrieved = generator(flat, candidates, noise, boxes, truth)
    rebuilt = None
    if config.lambda_image_reconstruction or (config.uses_perceptual and config.perceptual_of != "retrieved"):
        rebuilt = generator.reconstruct(drawn.vectors, truth, flat)
    return drawn, rebuilt


def _frozen(net: nn.Module) -> Embed:
    """Patches to embeddings, as the net was trained to give them, whatever mode the loop left it in."""

    def embed(patches: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(net):
            found: Tensor = net(patches)
        return found

    return embed


def _required(batch: Batch) -> tuple[Tensor, Graphs, Candidates]:
    assert batch.images is not None and batch.graphs is not None and batch.candidates is not None
    return batch.images, batch.graphs, batch.candidates
