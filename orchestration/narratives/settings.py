"""How narratives are made ready for TReCS, whatever is then drawn of them."""

from typing import Literal

from pydantic import Field

from models.contract import Settings
from models.trecs.tagger import TaggerSettings
from orchestration.data.hulls import MIN_RADIUS


class NarrativeSettings(Settings):
    """Of an experiment whose system, or a part of it, reads narratives."""

    traces: Literal["own", "simulated"] = Field(
        "own",
        description='"own": as the annotator moved the mouse; "simulated": where a narrative has none and its words '
        "have tags, drawn by chance within each tag's segment",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of simulated traces")
    min_radius: float = Field(
        MIN_RADIUS, gt=0, description="pixels around each point of a trace, so that a point or a line has an area"
    )
    known_only: bool = Field(
        True, description="whether pixels of no known class are left out where a hull's most frequent label is counted"
    )
    tagger: TaggerSettings = TaggerSettings()
