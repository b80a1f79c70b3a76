"""The body of POST /v1/images, for each kind of request: what these classes say is the published schema."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetJsonSchemaHandler, Strict, Tag, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from orchestration.data.graph_text import MOST_OBJECTS
from orchestration.narratives.narrative_text import MOST_POINTS, MOST_WORDS

PROMPT_LIMIT: Final = 2_000
NARRATIVE_LIMIT: Final = 20_000
"""Characters; the words have a limit of their own."""
GRAPH_LIMIT: Final = 4_000
"""Characters of a scene graph in words."""
NAME_LIMIT: Final = 100
RELATIONS_LIMIT: Final = 200
IMAGES_LIMIT: Final = 16
SEED_LIMIT: Final = 2**63 - 1
TRUNCATION_LIMIT: Final = 10.0
DEADLINE_LIMIT: Final = 3_600.0

MODEL_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}(@(champion|[1-9][0-9]{0,8}))?$"
"""NAME, NAME@champion or NAME@VERSION."""


def can_be_asked_for(name: str) -> bool:
    """Whether a request could name a model that is called so: a registry takes any name, also from others."""
    return "@" not in name and re.fullmatch(MODEL_PATTERN, name) is not None


@dataclass(frozen=True, slots=True)
class PublishedAs:
    """An annotation: the schema is that of `form`, whose values the code checks by other means."""

    form: Any

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(TypeAdapter(self.form).core_schema)


class Part(BaseModel):
    """What all parts of a body have in common: nothing is converted and nothing is read over."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Wishes(Part):
    """How to draw, whatever it is drawn from."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["count", "images"]}})

    model: Annotated[
        str | None,
        Field(
            pattern=MODEL_PATTERN,
            description="NAME (its champion), NAME@champion or NAME@VERSION; absent: the default for the kind",
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, le=SEED_LIMIT, description="the same request gives the same picture")] = 0
    count: Annotated[int | None, Field(ge=1, le=IMAGES_LIMIT, description="the first is that of count = 1")] = None
    images: Annotated[int | None, Field(ge=1, le=IMAGES_LIMIT, description="old name of count", deprecated=True)] = None
    truncation: Annotated[
        float | None,
        Field(gt=0, le=TRUNCATION_LIMIT, allow_inf_nan=False, description="of the latent, in standard deviations"),
    ] = None
    format: Annotated[
        Literal["png", "json"] | None,
        Field(description="absent: JSON where Accept, count or explain ask for it, else PNG"),
    ] = None
    explain: Annotated[bool, Field(description="whether the reply says why; JSON only")] = False
    deadline_s: Annotated[
        float | None,
        Field(ge=1, le=DEADLINE_LIMIT, allow_inf_nan=False, description="seconds; the server's own may be shorter"),
    ] = None


class PromptBody(Wishes):
    """Pictures of plain words."""

    type: Literal["prompt"] = "prompt"
    prompt: Annotated[str, Field(min_length=1, max_length=PROMPT_LIMIT, description="what the picture shows")]


Seconds = Annotated[float, Field(description="from the start of the recording")]
PictureWidths = Annotated[float, Field(description="0 at the left edge, 1 at the right")]
PictureHeights = Annotated[float, Field(description="0 at the top, 1 at the bottom")]


class TimedUtterance(Part):
    """One or several words of a narrative and when they were said."""

    utterance: Annotated[str, Field(min_length=1)]
    start_time: Seconds
    end_time: Seconds


class TracePoint(Part):
    """Where the mouse was."""

    x: PictureWidths
    y: PictureHeights
    t: Seconds


class Recorded(Part):
    """Fields of Localized Narratives that are read over."""

    dataset_id: Any = None
    image_id: Any = None
    annotator_id: Any = None
    voice_recording: Any = None


class LocalizedNarrative(Recorded):
    """The form of Localized Narratives (Pont-Tuset et al. 2020); all traces together have at most 10,000 points."""

    caption: Annotated[str, Field(min_length=1, max_length=NARRATIVE_LIMIT)]
    timed_caption: Annotated[list[TimedUtterance], Field(max_length=MOST_WORDS)] = []
    traces: list[Annotated[list[TracePoint], Field(max_length=MOST_POINTS)]] = []


class TimedWords(Recorded):
    """The short form: each word, its start and end, and a trace of x, y and time."""

    words: Annotated[
        list[Annotated[str, Field(min_length=1, pattern=r"^\S+$")]], Field(min_length=1, max_length=MOST_WORDS)
    ]
    times: Annotated[list[tuple[Seconds, Seconds]], Field(max_length=MOST_WORDS)] = []
    trace: Annotated[list[tuple[PictureWidths, PictureHeights, Seconds]], Field(max_length=MOST_POINTS)] = []


PlainWords = Annotated[str, Field(min_length=1, max_length=NARRATIVE_LIMIT, title="PlainWords")]


class NarrativeBody(Wishes):
    """Pictures of a narrative, with or without its mouse trace."""

    type: Literal["narrative"]
    # Checked by `read_narrative`, whose sentences name the place in a narrative.
    narrative: Annotated[str | dict[str, Any], PublishedAs(PlainWords | TimedWords | LocalizedNarrative)]


Edge = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Place = Annotated[int, Field(ge=0, lt=MOST_OBJECTS)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_LIMIT)]


class GraphObject(Part):
    """An object of a scene graph. box: x0, y0, x1, y1 as parts of the picture, or where the model likes."""

    name: Name
    # JSON has no tuples, only lists.
    box: Annotated[tuple[Edge, Edge, Edge, Edge], Strict(False)] | None = None


class GraphParts(Part):
    """A scene graph. relations: place of an object in the list, a word, place of another."""

    objects: Annotated[list[GraphObject], Field(min_length=1, max_length=MOST_OBJECTS)]
    relations: Annotated[
        list[Annotated[tuple[Place, Name, Place], Strict(False)]], Field(max_length=RELATIONS_LIMIT)
    ] = []


def graph_form(value: object) -> str:
    """Whether a graph is given in words or in parts."""
    return "words" if isinstance(value, str) else "parts"


GraphWords = Annotated[str, Field(min_length=1, max_length=GRAPH_LIMIT, title="GraphWords")]


class GraphBody(Wishes):
    """Pictures of a scene graph; the names are those that GET /v1/models lists for the model."""

    type: Literal["graph"]
    graph: Annotated[
        Annotated[GraphWords, Tag("words")] | Annotated[GraphParts, Tag("parts")],
        Discriminator(graph_form),
        Field(description="in words such as sheep left of tree, or its objects and relations"),
    ]


Body = PromptBody | NarrativeBody | GraphBody
BODIES: Final[dict[str, type[PromptBody] | type[NarrativeBody] | type[GraphBody]]] = {
    "prompt": PromptBody,
    "narrative": NarrativeBody,
    "graph": GraphBody,
}

EXAMPLES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "prompt": ("plain words", {"prompt": "a red boat on the sea", "seed": 7}),
    "several": (
        "several pictures, as JSON",
        {"prompt": "a red boat on the sea", "seed": 7, "count": 4, "truncation": 0.8, "deadline_s": 30},
    ),
    "narrative": (
        "a narrative without a trace",
        {"type": "narrative", "narrative": "In this image a dog is on grass."},
    ),
    "traced": (
        "a narrative with the times of its words and a mouse trace, and why the picture looks as it does",
        {
            "type": "narrative",
            "narrative": {
                "words": ["a", "dog", "on", "grass"],
                "times": [[0, 0.2], [0.2, 0.8], [0.9, 1], [1, 1.6]],
                "trace": [[0.3, 0.4, 0.1], [0.5, 0.6, 0.7], [0.1, 0.9, 1.1], [0.9, 0.8, 1.5]],
            },
            "format": "json",
            "explain": True,
        },
    ),
    "localized": (
        "the same in the form of Localized Narratives",
        {
            "type": "narrative",
            "narrative": {
                "caption": "a dog",
                "timed_caption": [{"utterance": "a dog", "start_time": 0, "end_time": 0.8}],
                "traces": [[{"x": 0.3, "y": 0.4, "t": 0.1}, {"x": 0.5, "y": 0.6, "t": 0.7}]],
            },
        },
    ),
    "graph": ("a scene graph in words", {"type": "graph", "graph": "sheep left of tree and sky above tree"}),
    "parts": (
        "a scene graph of objects, with or without boxes, and relations",
        {
            "type": "graph",
            "graph": {
                "objects": [{"name": "sheep", "box": [0.1, 0.4, 0.5, 0.9]}, {"name": "tree"}],
                "relations": [[0, "left of", 1]],
            },
        },
    ),
}
"""Of bodies: a summary, and the body."""
