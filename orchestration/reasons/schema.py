"""The forms that reasons and abilities have, as JSON. Plain data: whoever asks needs none of what makes them."""

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


class ReadWord(Reply):
    """A word of a prompt; one that is not known is read over, or as a mark for unknown words."""

    word: str
    known: bool


class PromptReasons(Reply):
    """How a prompt was read. words: those that were read, in order; unread: what follows them, beyond the longest
    prompt that the model reads."""

    type: Literal["prompt"] = "prompt"
    words: list[ReadWord]
    unread: list[str] = []


class TaggedWord(Reply):
    """A word of a narrative and the class that it was tagged with."""

    word: str
    tag: str


class Mentioned(Reply):
    """Neighbouring words of one tag, and the mask they got.

    first, end: their places in the narrative's words, end excluded; thing: not stuff, such as sky; image: the id of the
    picture that the mask is from, none for stuff, which is taken from one picture as a whole, and for what is not
    drawn, of which `why` says why; iou: how well the mask fits the trace's hull (0 to 1), none where either is missing;
    mask: white where the mask was in its picture, before it was placed; hull: white where the trace encloses the
    canvas, none where the mouse shows nothing.
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
    """A class on the canvas and its colour, as #rrggbb; of several things of a class each has its own."""

    label: str
    colour: str


class NarrativeReasons(Reply):
    """Every step from a narrative to the label map that was painted (TReCS, figure 2).

    stuff: the id of the retrieved picture that gave the background, and stuff_fit how well it fits the hulls (mean
    IoU), none where no trace shows any stuff; canvas: the label map in the legend's colours.
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
    """An object of a scene graph.

    name: numbered where several have it; box: where it was drawn, as far as that is in the picture; candidates: the
    nearest 8 and what was chosen beyond them, the nearest first; chosen: for each picture of the reply the candidate it
    was drawn from (a place in `candidates`), none where there is none.
    """

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


class GraphWords(Reply):
    """The names that a scene graph can be written with; of `objects`, those that can be drawn."""

    objects: list[str]
    relations: list[str]


class Abilities(Reply):
    """What can be asked of a model.

    resolution: side of its pictures in pixels; accepts: the kinds of requests that it draws, the one that tells it most
    first; truncation: whether it draws from a latent that can be truncated; examples: one of each kind that it accepts,
    in words or JSON, as a person would write it, "" where none is known; graph: for scene graphs alone.
    """

    system: str
    recipe: str
    resolution: int
    accepts: list[Kind]
    truncation: bool
    examples: dict[Kind, str] = {}
    graph: GraphWords | None = None
