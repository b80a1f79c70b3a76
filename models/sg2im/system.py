"""sg2im as a system: its nets, its one phase and how it samples."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from models.attngan.damsm import evaluating
from models.blocks.graphs import flatten, known_names
from models.blocks.noise import seeded_noise
from models.blocks.object_discriminator import Discriminators, Judgement
from models.blocks.pixels import to_signed
from models.contract import NOTHING, AdamSettings, Batch, Given, Graphs, Nets, Objective, Phase, StepContext, System
from models.losses.scene_graphs import discriminator_objective
from models.sg2im.config import Sg2imConfig
from models.sg2im.losses import generator_objective
from models.sg2im.networks import Drawing, Generator


class Sg2im(System[Sg2imConfig]):
    """Johnson, Gupta and Fei-Fei, "Image Generation from Scene Graphs", CVPR 2018."""

    name = "sg2im"
    title = "sg2im: Image Generation from Scene Graphs (2018)"
    Config = Sg2imConfig
    needs = frozenset({"images", "graph"})
    transform = "sg2im"
    reads = frozenset({"graphs"})

    def build(self, config: Sg2imConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """A "generator" and "discriminators". Raises ValueError without a vocabulary of scene graphs."""
        classes, predicates = known_names(given, self.name)
        return {
            "generator": Generator(config, classes, predicates),
            "discriminators": Discriminators(config, classes),
        }

    def optimizers(self, config: Sg2imConfig) -> Mapping[str, AdamSettings]:
        return {"generator": config.generator_optimizer, "discriminators": config.discriminator_optimizer}

    def phases(self, config: Sg2imConfig) -> Sequence[Phase]:
        """One, in which all step: the released code updates the generator by the discriminators as they were, then
        those by the pictures that the generator had drawn before its update."""

        def losses(nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
            images, graphs = _required(batch)
            flat = flatten(graphs)
            drawing: Drawing = nets["generator"](flat, context.noise(config.drawn_noise), flat.boxes)
            # One pass of the drawn pictures serves both: each net's gradient is asked for by itself.
            fake: Judgement = nets["discriminators"](drawing.images, flat)
            real: Judgement = nets["discriminators"](images, flat)
            return {
                "generator": generator_objective(config, drawing, fake, images, flat, context.ranks),
                "discriminators": discriminator_objective(real, fake, flat, context.ranks),
            }

        return [Phase("joint", ("generator", "discriminators"), losses)]

    def sample(
        self, nets: Nets, config: Sg2imConfig, conditions: Batch, seeds: Sequence[int], truncation: float | None = None
    ) -> Tensor:
        """By `conditions.graphs`, of which boxes are only read with `boxes="given"`; needs the generator alone."""
        graphs = conditions.graphs
        assert graphs is not None
        flat = flatten(graphs)
        noise = seeded_noise(seeds, config.drawn_noise, flat.boxes.device, truncation)
        with evaluating(nets["generator"]):
            drawing: Drawing = nets["generator"](flat, noise, flat.boxes if config.boxes == "given" else None)
        return to_signed(drawing.images)


def _required(batch: Batch) -> tuple[Tensor, Graphs]:
    assert batch.images is not None and batch.graphs is not None
    return batch.images, batch.graphs
