"""What the HTTP interface needs of whoever draws: it knows nothing of Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from orchestration.serving.replies import Kind, Lineage, ModelIdentity, ModelsReply, Reasons


@dataclass(frozen=True, slots=True)
class Job:
    """A request that has been read and checked, as far as that is possible without the model.

    model: NAME, NAME@champion or NAME@VERSION as it was asked for, none for the default of the kind; text: what the
    model's reader reads, whatever the kind: plain words, or JSON; seeds: one a picture; truncation: of the latent, in
    standard deviations; explain: whether the reasons are wanted; seconds: until the request's deadline.
    """

    kind: Kind
    text: str
    seeds: tuple[int, ...]
    model: str | None = None
    truncation: float | None = None
    explain: bool = False
    request_id: str = ""
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Painted:
    """PNG files in the order of the seeds, their ids, the model that drew them, and why they look as they do.

    batched: pictures in the batch that the first was drawn in; seconds: that drawing took, waiting not counted.
    """

    model: ModelIdentity
    pictures: Sequence[bytes]
    ids: Sequence[str]
    reasons: Reasons | None = None
    batched: int = 0
    seconds: float = 0.0


class Backend(Protocol):
    """Who draws. Every method raises ServeError."""

    async def paint(self, job: Job) -> Painted:
        """One PNG a seed."""
        ...

    async def models(self) -> ModelsReply:
        """What is being served, now."""
        ...

    async def lineage(self, image: str) -> Lineage:
        """Where a picture comes from, by its id."""
        ...


IN_WORDS: Final[Mapping[Kind, str]] = {"prompt": "a prompt", "narrative": "a narrative", "graph": "a scene graph"}


def kinds_in_words(kinds: Sequence[Kind]) -> str:
    """For a sentence: "a prompt or a narrative"."""
    return " or ".join(IN_WORDS[kind] for kind in kinds)
