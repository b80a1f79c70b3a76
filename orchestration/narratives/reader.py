"""Prompts of TReCS: a narrative, with its mouse trace or without, to the label map that is painted."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import Batch
from models.trecs.config import TReCSConfig
from orchestration.config import Experiment
from orchestration.data.label_names import LabelNames
from orchestration.data.records import Narrative
from orchestration.data.word_encoder import opening
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.narratives.settings import NarrativeSettings
from orchestration.stages import reopen, short_hash

if TYPE_CHECKING:
    from orchestration.narratives.composed import Composed
    from orchestration.narratives.composer import Composer

PARTS = "narratives.json"
"""In a checkpoint's text folder: the stages of the home that narratives are read with, by what they are."""
TAGGER, ENCODER, INDEX, BANK = "tagger", "dual_encoder", "retrieval-index", "mask-bank"

TagWords = Callable[[Sequence[tuple[str, ...]]], list[NDArray[np.int64]]]
"""Narratives in words to one class a word."""


@dataclass(frozen=True, slots=True)
class NarrativeReader:
    """Stands where other systems have a text encoder: tags, retrieves and composes.

    The mask bank, its index, the dual encoder and the tagger are stages of the home. folder: names them; words: of
    which a narrative must have one, None where any will do.
    """

    folder: Path
    names: LabelNames
    digest: str
    tag: TagWords
    composer: "Composer"
    words: Sequence[str] | None = None

    @classmethod
    def open(cls, folder: Path, experiment: Experiment, home: Home, device: str = "cpu") -> "NarrativeReader":
        """What a checkpoint's folder names. Raises RequestError where it cannot be read, or a stage is gone."""
        from orchestration.narratives.hmm_tags import open_hmm
        from orchestration.narratives.opening import OpenComposer
        from orchestration.narratives.tagging import open_tagger

        model, settings = experiment.model, experiment.narratives or NarrativeSettings()
        assert isinstance(model, TReCSConfig)
        there = {what: _reopened(name, home, experiment.recipe) for what, name in read_parts(folder).items()}
        words: Sequence[str] | None = None
        if model.labeler == "hmm":
            hmm = open_hmm(there[TAGGER], settings.tagger)
            words = tuple(filter(str.isprintable, hmm.places))
            tag: TagWords = lambda narratives: hmm.tag(narratives, None)  # noqa: E731
        else:
            tag = open_tagger(there[TAGGER], device).tag
        composer = OpenComposer(
            there[BANK],
            there[INDEX],
            there[ENCODER],
            opening(experiment.text, home.encoders),
            model,
            settings.min_radius,
            device,
        )()
        return cls(folder, LabelNames.open(folder), digest_of(folder), tag, composer, words)

    @property
    def probes(self) -> tuple[str, ...] | None:
        """Three narratives of words that it knows: of one, of some, and of as many as a person may write. None where
        any words will do."""
        from orchestration.narratives.narrative_text import MOST_WORDS

        if self.words is None:
            return None
        return tuple(" ".join(islice(cycle(self.words), count)) for count in (1, 12, MOST_WORDS))

    @property
    def dim(self) -> int:
        """Width of text features: there are none."""
        return 0

    def check(self, prompt: str) -> None:
        """RequestError for a narrative that cannot be read, or has no word that can be tagged."""
        from orchestration.narratives.narrative_text import read_narrative

        self.tag([tuple(read_narrative(prompt).caption.split())])

    def composed(self, narratives: Sequence[Narrative]) -> "list[Composed]":
        """Every step for each narrative, the same beside any others. Raises RequestError."""
        found = []
        for narrative in narratives:
            tags = self.tag([tuple(narrative.caption.split())])
            found += self.composer.compose([narrative], tags, None)
        return found

    def conditions(self, prompts: Sequence[str]) -> Batch:
        """What pictures of B narratives are drawn from. Raises RequestError for one that cannot be read."""
        from orchestration.data.composition import label_maps_of
        from orchestration.narratives.narrative_text import read_narrative

        canvases = [one.canvas for one in self.composed([read_narrative(prompt) for prompt in prompts])]
        return Batch(torch.arange(len(prompts)), labels=label_maps_of(canvases))


def read_parts(folder: Path) -> dict[str, str]:
    """Names of stages, by what they are. Raises RequestError."""
    try:
        return {str(what): str(name) for what, name in json.loads((folder / PARTS).read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise RequestError(
            f"what narratives are read with cannot be read in {folder} ({error}): restore the folder, or train again"
        ) from error


def digest_of(folder: Path) -> str:
    """Of the label names and all stages that narratives are read with."""
    return short_hash([LabelNames.open(folder).digest, read_parts(folder)])


def _reopened(name: str, home: Home, recipe: str) -> Path:
    try:
        return reopen(home.stages / name, home.stages)
    except FileNotFoundError as error:
        raise RequestError(
            f"{recipe} reads narratives with the stage {name}, and {home.stages} does not have it: t2i train {recipe}, "
            "with the run's settings, makes it, or name the home that the run was trained in"
        ) from error
