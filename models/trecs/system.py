"""TReCS as a system: a label map composed for a narrative goes in, its trained mask-to-image generator paints it.

Nothing is learned here. What makes the label map (tagging, retrieval, composition) is made ready before; the dual
encoder, the tagger and the generator are parts that are trained before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from models.blocks.label_maps import known_classes
from models.ccfpse import CCFPSE
from models.ccfpse import Generator as CCFPSEGenerator
from models.contract import NOTHING, AdamSettings, AverageSettings, Batch, Given, Nets, Phase, Settings, System
from models.spade.config import SpadeConfig
from models.spade.networks import Generator
from models.spade.system import Spade
from models.trecs.config import TReCSConfig


@dataclass(frozen=True, slots=True)
class MaskToImage:
    """A mask-to-image system, and the net of it that draws."""

    system: Spade
    generator: type[Generator]


GENERATORS: Mapping[str, MaskToImage] = {
    "ccfpse": MaskToImage(CCFPSE(), CCFPSEGenerator),
    "spade": MaskToImage(Spade(), Generator),
}
"""By `TReCSConfig.generator`, which is also the name of the part's stage."""
DUAL_ENCODER, TAGGER = "dual_encoder", "bert_tagger"


class TReCS(System[TReCSConfig]):
    """Koh et al., "Text-to-Image Generation Grounded by Fine-Grained User Attention", WACV 2021."""

    name = "trecs"
    title = "Text-to-Image Generation Grounded by Fine-Grained User Attention (2021)"
    Config = TReCSConfig
    needs = frozenset({"images", "narratives", "labels"})
    # Canvases are of whole pictures, squashed.
    transform = "xmcgan"
    reads = frozenset({"canvases"})

    def stages(self, config: TReCSConfig) -> Mapping[str, str]:
        """The dual encoder and, where a BERT labels words, the tagger (neither where the true masks are painted), then
        the generator."""
        retrieval = {DUAL_ENCODER: DUAL_ENCODER} if config.masks == "retrieved" else {}
        labeling = {config.tagger: TAGGER} if config.tagger is not None else {}
        return {**retrieval, **labeling, config.generator: config.generator}

    def build(self, config: TReCSConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """The frozen "generator", of the part's settings; where none are given, of the part's defaults at the
        resolution.

        Raises StageMissing without the part's weights, ValueError without classes of label maps and where pictures
        would not be as large as label maps.
        """
        problem = misfit(config, given.parts)
        if problem is not None:
            raise ValueError(problem)
        chosen, classes = GENERATORS[config.generator], known_classes(given, self.name)
        settings = given.parts.get(config.generator) or chosen.system.Config(resolution=config.resolution)
        assert isinstance(settings, SpadeConfig)
        return {"generator": given.load(chosen.generator(settings, classes), config.generator, "generator")}

    def optimizers(self, config: TReCSConfig) -> Mapping[str, AdamSettings]:
        """None: it has nothing to learn itself."""
        return {}

    def averages(self, config: TReCSConfig) -> Mapping[str, AverageSettings]:
        """The generator as it is, so that checkpoints have it."""
        return {"generator": AverageSettings(decay=0.0)}

    def phases(self, config: TReCSConfig) -> Sequence[Phase]:
        """None."""
        return []

    def sample(
        self, nets: Nets, config: TReCSConfig, conditions: Batch, seeds: Sequence[int], truncation: float | None = None
    ) -> Tensor:
        """By `conditions.labels`, the composed label maps (B,S,S), as the generator's own system samples. Where that
        reads no z every seed gives the same picture."""
        painter = GENERATORS[config.generator].system
        return painter.sample(nets, _settings(nets), conditions, seeds, truncation)

    def truncates(self, nets: Nets, config: TReCSConfig) -> bool:
        """As the generator's own system."""
        return GENERATORS[config.generator].system.truncates(nets, _settings(nets))


def _settings(nets: Nets) -> SpadeConfig:
    """Of the part that paints."""
    generator = nets["generator"]
    assert isinstance(generator, Generator)
    return generator.config


def misfit(config: TReCSConfig, parts: Mapping[str, Settings]) -> str | None:
    """Why the parts do not fit these settings, as a sentence; None where they do.

    The generator paints pictures as large as label maps are composed, and the tagger is taught the labels that it is
    named after. parts: settings by stage name; one that is not there fits.
    """
    painter, tagger = parts.get(config.generator), parts.get(config.tagger or "")
    if isinstance(painter, SpadeConfig) and painter.resolution != config.resolution:
        return (
            f"model.resolution is {config.resolution} and stages.{config.generator}.model.resolution is "
            f"{painter.resolution}: label maps are composed as large as the generator paints, set both to the same"
        )
    taught = getattr(tagger, "tags", None)
    if config.tagger is not None and taught is not None and not config.tagger.endswith(f"_{taught}"):
        return (
            f"model.labeler is {config.labeler} and stages.{config.tagger}.model.tags is {taught}: set that to "
            f"{config.tagger.rpartition('_')[2]}"
        )
    return None
