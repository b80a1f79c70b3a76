"""MirrorGAN as a system: AttnGAN's cascade with GLAM, whose pictures the frozen STREAM describes again."""

from collections.abc import Mapping

from torch import nn

from models.attngan.damsm import STAGE as DAMSM_STAGE
from models.attngan.damsm import check_text_dim, evaluating, frozen_image_encoder
from models.attngan.system import CascadeGAN, CascadeLosses, discriminators_of, image_judge, required
from models.blocks.cascade import CascadeOutput
from models.blocks.discriminator import Discriminators
from models.contract import NOTHING, Batch, Given, Nets, Objective, StepContext
from models.mirrorgan.captioner import STAGE as STREAM_STAGE
from models.mirrorgan.captioner import frozen_captioner
from models.mirrorgan.config import MirrorGANConfig
from models.mirrorgan.losses import generator_objective, stream_objective
from models.mirrorgan.networks import Generator


class MirrorGAN(CascadeGAN[MirrorGANConfig]):
    """Qiao et al., "MirrorGAN: Learning Text-to-image Generation by Redescription", CVPR 2019."""

    name = "mirrorgan"
    title = "MirrorGAN: Learning Text-to-image Generation by Redescription (2019)"
    Config = MirrorGANConfig
    reads = frozenset({"features", "tokens"})

    def build(self, config: MirrorGANConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """A "generator", "discriminators" and, each pair where its loss has a weight, the frozen "stream_trunk" and
        "stream", "trunk" and "image_encoder".

        Raises StageMissing, and ValueError where a trained stage does not fit.
        """
        check_text_dim(given, config.text_dim)
        nets: dict[str, nn.Module] = {"generator": Generator(config), "discriminators": Discriminators(config)}
        if config.stream_weight > 0:
            nets |= frozen_captioner(config.stream, given)
        if config.damsm_weight > 0:
            nets |= frozen_image_encoder(config.trunk, config.text_dim, given)
        return nets

    def stages(self, config: MirrorGANConfig) -> Mapping[str, str]:
        return {DAMSM_STAGE: "damsm", STREAM_STAGE: "stream"}

    def losses(self, config: MirrorGANConfig) -> "MirrorGANLosses":
        return MirrorGANLosses(config)


class MirrorGANLosses(CascadeLosses[MirrorGANConfig]):
    """Equations 7 to 11, as released or as written."""

    def __init__(self, config: MirrorGANConfig) -> None:
        super().__init__(config)
        self.untold = config.model_copy(update={"stream_weight": 0.0})

    def generator_objective(self, nets: Nets, output: CascadeOutput, batch: Batch, context: StepContext) -> Objective:
        _, text = required(batch)
        tokens, ranks, weight = batch.tokens, context.ranks, self.config.stream_weight
        assert tokens is not None
        seen = generator_objective(
            self.untold,
            discriminators_of(nets),
            None,
            output,
            text,
            tokens.ids,
            ranks,
            image_judge(nets),
            batch.class_ids,
        )
        if weight == 0:
            return seen
        # Of a long caption the tokens may be other words, and fewer, than the features: here only their lengths count.
        features = nets["stream_trunk"](output.images[-1])
        with evaluating(nets["stream"]):
            told = stream_objective(self.config.stream, nets["stream"], features, tokens.ids, tokens.lengths, ranks)
        return Objective(seen.loss + weight * told.loss, {**seen.terms, **told.terms})
