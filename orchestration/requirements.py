"""What an experiment requires of its data and of this machine, said before any work."""

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from models.encoders.image import PretrainedImageSettings, WeightsMissing, find_weights
from models.encoders.trunk import ImageTrunkSettings, find_trunk_weights
from models.losses.perceptual import PerceptualSettings, require_perceptual_weights
from models.registry import get_part
from orchestration.config import Experiment
from orchestration.data.records import Dataset
from orchestration.data.sources import SCENES, parse_source
from orchestration.errors import RequestError

PART_PROTOCOL = "part"


def require(experiment: Experiment, dataset: Dataset) -> None:
    """RequestError when the data lacks something the system is conditioned on."""
    missing: Iterable[str] = sorted(needs_of(experiment) - dataset.carries)
    if missing:
        raise RequestError(
            f"{experiment.system} needs {', '.join(missing)}, which {experiment.data.source} ({dataset.split}) does "
            f"not carry; it carries {', '.join(sorted(dataset.carries))}: choose another data set with --data"
        )


def needs_of(experiment: Experiment) -> frozenset[str]:
    """What every image must carry. Pictures are read caption by caption, also by parts that look at none; where
    narratives are needed they are the captions."""
    needs = get_part(experiment.system).needs
    return needs if "narratives" in needs else needs | {"captions"}


def require_weights(experiment: Experiment) -> None:
    """RequestError when a pretrained image net that it, or a part that it needs, uses is not on this machine."""
    settings = getattr(experiment.model, "pretrained", None)
    if getattr(experiment.model, "uses_pretrained", False) and isinstance(settings, PretrainedImageSettings):
        try:
            find_weights(settings)
        except WeightsMissing as error:
            raise RequestError(f"model.pretrained: {error}") from error
    used: dict[str, Any] = {}
    for name in experiment.needed:
        used |= experiment.stage(name).stages | {name: experiment.stages[name]}
    for where, net in _frozen_nets(experiment.model_copy(update={"stages": used})):
        try:
            if isinstance(net, PerceptualSettings):
                require_perceptual_weights(net, where)
            else:
                find_trunk_weights(net, where)
        except WeightsMissing as error:
            raise RequestError(f"{where}: {error}") from error


def _frozen_nets(settings: Any, path: str = "") -> Iterator[tuple[str, ImageTrunkSettings | PerceptualSettings]]:
    """Every frozen image net below some settings that is used, with the field that names it."""
    if isinstance(settings, ImageTrunkSettings | PerceptualSettings):
        yield path, settings
    elif isinstance(settings, BaseModel | dict):
        for name, value in settings.items() if isinstance(settings, dict) else settings:
            if not isinstance(value, PerceptualSettings) or getattr(settings, "uses_perceptual", True):
                yield from _frozen_nets(value, f"{path}.{name}" if path else name)


def choose_protocol(experiment: Experiment) -> str:
    """The protocol that "auto" means for this data. Raises RequestError for one that cannot judge it."""
    from orchestration.evaluation.feature_views import NETS

    if not experiment.draws:
        return PART_PROTOCOL
    wanted = experiment.evaluation.protocol
    generated = parse_source(experiment.data.source).kind == SCENES
    if wanted == "auto":
        wanted = "scenes-net" if generated else "efficientnet-lite0"
    if wanted == "efficientnet-lite0":
        try:
            find_weights(PretrainedImageSettings(name="efficientnet-lite0"))
        except WeightsMissing as error:
            raise RequestError(f"evaluation.protocol=efficientnet-lite0: {error}, or set it to none") from error
    if wanted not in (*NETS, "none"):
        raise RequestError(f"evaluation.protocol={wanted!r} is no feature net: there are auto, {', '.join(NETS)}, none")
    if wanted == "scenes-net" and not generated:
        raise RequestError(
            f"evaluation.protocol=scenes-net judges generated scenes only, not {experiment.data.source}: "
            "use efficientnet-lite0"
        )
    return wanted
