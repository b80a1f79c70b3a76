"""What the endpoint answers, as JSON: pictures and their reasons, the served models, where a picture comes from."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["prompt", "narrative", "graph"]
"""What a picture can be asked for with: plain words, a narrative with or without its mouse trace, a scene graph."""

Edges = tuple[float, float, float, float]
"""x0, y0, x1, y1 as parts of the picture, 0 to 1."""

Base64Png = Annotated[str, Field(description="base64 of a PNG file")]


class Reply(BaseModel):
    """What all replies have in common."""

    model_config = ConfigDict(frozen=True)


class ModelIdentity(Reply):
    """Which model draws; checkpoint_digest is the sha256 of the checkpoint's manifest, hex."""

    name: str
    version: str
    checkpoint_digest: str


class ReadWord(Reply):
    """A word of a prompt; one that is not known is read over, or as a mark for unknown words."""

    word: str
    known: bool


class PromptReasons(Reply):
    """How a prompt was read."""

    type: Literal["prompt"] = "prompt"
    words: list[ReadWord]


class TaggedWord(Reply):
    """A word of a narrative and the class that it was tagged with."""

    word: str
    tag: str


class Mentioned(Reply):
    """Neighbouring words of one tag, and the mask they got.

    first, end: their places in the narrative's words, end excluded; image: the id of the picture that the mask is from
    and iou: how well it fits the trace's hull (0 to 1), none for stuff and where there is no mask, and `why` then says
    so; mask: white where the mask was, before it was placed; hull: white where the trace encloses the canvas.
    """

    words: str
    first: int
    end: int
    tag: str
    thing: bool
    image: int | None
    iou: float | None
    why: str
    mask: Base64Png | None
    hull: Base64Png | None


class RetrievedPicture(Reply):
    """A picture whose masks were taken into account, best first; score: cosine to the narrative."""

    image: int
    score: float


class LegendEntry(Reply):
    """A class on the canvas and its colour, as #rrggbb."""

    label: str
    colour: str


class NarrativeReasons(Reply):
    """Every step from a narrative to the label map that was painted (TReCS, figure 2).

    stuff: the retrieved picture that gave the background, and stuff_fit how well it fits the hulls (mean IoU); canvas:
    the label map in the legend's colours.
    """

    type: Literal["narrative"] = "narrative"
    words: list[TaggedWord]
    mentions: list[Mentioned]
    retrieved: list[RetrievedPicture]
    stuff: int | None
    stuff_fit: float | None
    canvas: Base64Png
    legend: list[LegendEntry]


class CandidatePatch(Reply):
    """A patch that an object may be drawn from: cut from a picture, at a box."""

    patch: Base64Png
    image: int
    box: Edges


class DrawnObject(Reply):
    """An object of a scene graph. name: numbered where several have it; box: where it was drawn; chosen: for each
    picture of the reply the candidate it was drawn from (a place in `candidates`), none where there is none."""

    name: str
    box: Edges
    candidates: list[CandidatePatch]
    chosen: list[int | None]


class GraphReasons(Reply):
    """How a scene graph was read and drawn. text: the graph in words; relations: places in `objects`, and a word."""

    type: Literal["graph"] = "graph"
    text: str
    objects: list[DrawnObject]
    relations: list[tuple[int, str, int]]


Reasons = Annotated[PromptReasons | NarrativeReasons | GraphReasons, Field(discriminator="type")]


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


class GraphWords(Reply):
    """The names that a scene graph can be written with; of `objects`, those that can be drawn."""

    objects: list[str]
    relations: list[str]


class Abilities(Reply):
    """What can be asked of a model.

    accepts: the kinds of requests that it draws, the one that tells it most first; truncation: whether it draws from a
    latent that can be truncated; examples: of each kind, in words or JSON, as a person would write it.
    """

    system: str
    recipe: str
    resolution: int
    accepts: list[Kind]
    truncation: bool
    examples: dict[Kind, str] = {}
    graph: GraphWords | None = None


class ServedModel(ModelIdentity, Abilities):
    """A model that answers. aliases: such as champion; warm: other versions that are loaded beside it; note: what is
    wrong, such as a champion that was refused because its files were altered."""

    aliases: list[str]
    warm: list[str] = []
    note: str | None = None


class ModelsReply(Reply):
    """The reply of GET /v1/models. default: the model that draws a kind of request which names none."""

    models: list[ServedModel]
    default: dict[Kind, str]


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
