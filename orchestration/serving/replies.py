"""What the endpoint answers, as JSON: pictures and their reasons, the served models, where a picture comes from."""

from typing import Literal

from pydantic import Field

from orchestration.reasons.schema import (
    Abilities,
    Base64Png,
    CandidatePatch,
    DrawnObject,
    Edges,
    GraphReasons,
    GraphWords,
    Kind,
    LegendEntry,
    Mentioned,
    NarrativeReasons,
    PromptReasons,
    ReadWord,
    Reasons,
    Reply,
    RetrievedPicture,
    TaggedWord,
)

__all__ = [
    "Abilities",
    "Base64Png",
    "CandidatePatch",
    "DataLineage",
    "DrawnObject",
    "Edges",
    "GraphReasons",
    "GraphWords",
    "HealthReply",
    "ImageReply",
    "ImagesReply",
    "Kind",
    "LegendEntry",
    "Lineage",
    "Mentioned",
    "ModelIdentity",
    "ModelsReply",
    "NarrativeReasons",
    "PromptReasons",
    "ReadWord",
    "Reasons",
    "Reply",
    "RetrievedPicture",
    "ServedModel",
    "TaggedWord",
]


class ModelIdentity(Reply):
    """Which model draws; checkpoint_digest is the sha256 of the checkpoint's manifest, hex."""

    name: str
    version: str
    checkpoint_digest: str


class ImageReply(Reply):
    """One picture of a JSON reply; asked for alone with its seed it has the same bytes.

    id: names the picture at /v1/lineage; the same request to the same checkpoint has the same.
    """

    id: str
    png: Base64Png
    seed: int


class ImagesReply(Reply):
    """The JSON reply of POST /v1/images. reasons: only where the request says `explain`."""

    images: list[ImageReply]
    model: ModelIdentity
    reasons: Reasons | None = None


class ServedModel(ModelIdentity, Abilities):
    """A model that answers. aliases: such as champion; warm: other versions that are loaded beside it; note: what is
    wrong, such as a champion that was refused because its files were altered."""

    aliases: list[str]
    warm: list[str] = Field(default_factory=list)
    note: str | None = None


class ModelsReply(Reply):
    """The reply of GET /v1/models. default: the model that draws a kind of request which names none; refused: models
    with a champion of which nothing answers, and why."""

    models: list[ServedModel]
    default: dict[Kind, str]
    refused: dict[str, str] = Field(default_factory=dict)


class DataLineage(Reply):
    """What a model was trained on."""

    source: str
    digest: str


class Lineage(Reply):
    """The reply of GET /v1/lineage/{image}: from a picture back to what it was made with.

    image: the picture's id; versions: of the registered model that are this checkpoint; champion: whether one of them
    is now; experiment: the hash of the recipe with all settings; images_seen: in training; run: MLflow's id; campaign
    and trial: where the run was a trial; figures: as they stood when the version was registered; history: decisions on
    its versions.
    """

    image: str
    model: str
    versions: list[int]
    champion: bool
    checkpoint_digest: str
    system: str
    recipe: str
    experiment: str
    images_seen: int
    data: DataLineage
    text_digest: str
    run: str
    run_name: str
    campaign: str | None
    trial: str | None
    figures: dict[str, float]
    history: list[str]


class HealthReply(Reply):
    """The reply of GET /healthz and /readyz. models: name@version of what answers."""

    status: Literal["ok"] = "ok"
    models: list[str]
