"""A checkpoint ready to draw: prompts and seeds in, pictures out. Serving and `t2i` share it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Batch
from models.trecs.config import TReCSConfig
from orchestration.config import Experiment
from orchestration.data.features import check_encodable
from orchestration.data.graph_reader import GraphReader
from orchestration.data.graph_text import MOST_OBJECTS, NO_BOX, graph_text
from orchestration.data.label_names import LabelNames
from orchestration.data.patch_source import PatchFinder
from orchestration.data.patches import open_bank
from orchestration.data.records import SceneGraph, SceneObject
from orchestration.data.transforms import get_transform
from orchestration.data.word_encoder import WordEncoder
from orchestration.errors import RequestError
from orchestration.evaluation.looking import drawer
from orchestration.evaluation.pixels import to_bytes
from orchestration.home import Home
from orchestration.narratives.reader import NarrativeReader
from orchestration.readers import Reader, checkpoint_encoder, vocabulary_digest
from orchestration.reasons.abilities import abilities_of
from orchestration.reasons.prompts import prompt_reasons
from orchestration.reasons.schema import Abilities, Reasons
from orchestration.stages import DamagedStage, Manifest, is_finished, read_manifest, reopen
from orchestration.training.state import Checkpoint, load_for_sampling, open_checkpoint


def checkpoint_patches(checkpoint: Checkpoint, home: Home) -> PatchFinder | None:
    """What finds patches for the objects of a checkpoint's prompts; None where it draws from none.

    The bank and the graph encoder are stages of the home, found by what they say they were made of: the data itself
    need not be there. Nothing is computed. Raises RequestError where they are missing or damaged.
    """
    from orchestration.patch_stages import ENCODER

    experiment = checkpoint.experiment
    settings = experiment.patches
    if "candidates" not in experiment.trainable.reads or settings is None:
        return None
    damaged: DamagedStage | None = None
    for folder in sorted(home.stages.glob("patches-*")):
        try:
            manifest = read_manifest(folder) if is_finished(folder) else None
            if manifest is None or not _is_bank(manifest, checkpoint, settings.side):
                continue
            encoder = home.stages / f"{ENCODER}-{manifest.inputs[ENCODER_INPUT]}"
            if not is_finished(encoder) or not _is_encoder(read_manifest(encoder), experiment.stage(ENCODER)):
                continue
            bank = open_bank(reopen(folder, home.stages))
            return PatchFinder(bank, reopen(encoder, home.stages), settings.prefilter, settings.candidates)
        except DamagedStage as error:
            damaged = error
    if damaged is not None:
        raise damaged
    raise RequestError(
        f"{experiment.recipe} draws from a patch bank that {ENCODER} describes, and {home.stages} has none that fits "
        f"{checkpoint.folder}: t2i train {experiment.recipe}, with the run's settings, makes it, or name the home that "
        "the run was trained in"
    )


ENCODER_INPUT = "encoder"  # of a bank's stage


def _is_bank(manifest: Manifest, checkpoint: Checkpoint, side: int) -> bool:
    data = checkpoint.provenance.data_digest
    return (manifest.inputs.get("data"), manifest.settings.get("side")) == (data, side)


def _is_encoder(manifest: Manifest, part: Experiment) -> bool:
    """Whether a trained part is the one of these settings; of which data it is, the bank's manifest says."""
    from orchestration.part_stages import RECORDS

    wanted: dict[str, Any] = {
        "system": part.system,
        "model": part.model.model_dump(mode="json"),
        "training": part.training.model_dump(mode="json", exclude=RECORDS),
        "transform": part.data.transform,
        "flip": part.data.flip,
    }
    return all(manifest.settings.get(name) == value for name, value in wanted.items())


def require_words(experiment: Experiment) -> None:
    """RequestError for a system that draws nothing of words."""
    reads, model = experiment.trainable.reads, experiment.model
    if "labels" in reads:
        raise RequestError(
            f"{experiment.system} draws from label maps, and words alone give none: look at t2i show RUN, or draw with "
            "a system that reads words"
        )
    if isinstance(model, TReCSConfig) and not model.reads_words:
        raise RequestError(
            f"with model.labeler={model.labeler} and model.masks={model.masks} {experiment.system} draws only what a "
            "picture with labels is of: look at t2i show RUN, or draw with a run of model.labeler=bert_on_hmm"
        )


class Painter:
    """Draws with the averaged nets of a checkpoint.

    patches: for systems that draw from them. Raises RequestError when the checkpoint is damaged, or its text encoder is
    missing or not the one it was trained with.
    """

    def __init__(
        self, checkpoint: Checkpoint, encoder: Reader, device: torch.device, patches: PatchFinder | None = None
    ) -> None:
        self.checkpoint, self.encoder, self.device, self.patches = checkpoint, encoder, device, patches
        self.experiment = checkpoint.experiment
        self.checkpoint_digest = checkpoint.digest
        self.experiment_name = self.experiment.recipe
        self.resolution: int = self.experiment.get_system().resolution(self.experiment.model)
        self.nets = load_for_sampling(checkpoint, device, vocabulary_digest(encoder))
        self.truncates: bool = self.experiment.get_system().truncates(self.nets, self.experiment.model)
        self._draw = drawer(self.experiment, self.nets, device)

    @classmethod
    def load(cls, checkpoint: Path, home: Path, device: str = "cpu") -> "Painter":
        """The painter of the checkpoint in a folder; `home` is where packaged encoders are unpacked, and patches are
        kept."""
        opened = open_checkpoint(checkpoint)
        encoder = checkpoint_encoder(opened, Home(home), device)
        trained_with = opened.provenance.text_digest
        if encoder.digest != trained_with:
            raise RequestError(
                f"checkpoint {checkpoint} was trained with the text encoder {trained_with[:12]}, but "
                f"{opened.experiment.text.name!r} here is {encoder.digest[:12]}: install the same weights"
            )
        return cls(opened, encoder, torch.device(device), checkpoint_patches(opened, Home(home)))

    @property
    def probes(self) -> Sequence[tuple[str, int]] | None:
        """Prompts and seeds that stand for all there may be: a short one, an ordinary one, the longest. None where any
        words will do."""
        prompts: Iterable[str] | None = None
        if isinstance(self.encoder, GraphReader):
            prompts = graph_prompts(self.encoder, self.patches)
        elif isinstance(self.encoder, NarrativeReader | WordEncoder):
            prompts = self.encoder.probes
        return None if prompts is None else list(zip(prompts, (1, 2, 3), strict=True))

    def check(self, prompt: str) -> None:
        """RequestError for a prompt that nothing can be drawn of."""
        require_words(self.experiment)
        if isinstance(self.encoder, NarrativeReader):
            self.encoder.check(prompt)
            return
        if not isinstance(self.encoder, GraphReader):
            check_encodable([prompt])
            if isinstance(self.encoder, WordEncoder):
                self.encoder.check(prompt)
            return
        graphs = self.encoder.graphs([prompt])
        if self.patches is not None:
            self.patches.check(graphs)

    @cached_property
    def abilities(self) -> Abilities:
        """What can be asked of it. Never fails."""
        return abilities_of(self)

    def explain(self, prompt: str, seeds: Sequence[int], truncation: float | None = None) -> Reasons:
        """Why the pictures of one prompt look as they do, one a seed: how it was read, and what was chosen for it.

        It costs no more than drawing them. Raises RequestError as `draw`.
        """
        self._check_truncation(truncation)
        require_words(self.experiment)
        if isinstance(self.encoder, GraphReader):
            from orchestration.reasons.graphs import graph_reasons

            return graph_reasons(self, prompt, seeds)
        if isinstance(self.encoder, NarrativeReader):
            from orchestration.narratives.narrative_text import read_narrative
            from orchestration.reasons.narratives import narrative_reasons

            [composed] = self.encoder.composed([read_narrative(prompt)])
            return narrative_reasons(composed, self.encoder.composer.bank.classes)
        assert not isinstance(self.encoder, LabelNames)
        return prompt_reasons(self.encoder, prompt)

    def draw_float(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None = None) -> Tensor:
        """(B,3,H,W) in [-1, 1] for B prompts and B seeds; truncation: of the latent, in standard deviations, see
        `models.blocks.noise.truncated`. Raises RequestError."""
        self._check_truncation(truncation)
        if isinstance(self.encoder, GraphReader):
            # One by one: of how many objects the others are, which no probe can foresee, decides how sums are rounded.
            pairs = zip(prompts, seeds, strict=True)
            return torch.cat([self._draw(self.conditions([prompt]), [seed], truncation) for prompt, seed in pairs])
        return self._draw(self.conditions(prompts), seeds, truncation)

    def _check_truncation(self, truncation: float | None) -> None:
        if truncation is None:
            return
        if not self.truncates:
            raise RequestError(
                f"truncation is {truncation:g}, but {self.experiment_name} draws from no latent that can be truncated: "
                "leave truncation out"
            )
        if not truncation > 0:
            raise RequestError(
                f"truncation is {truncation:g}: write a number of standard deviations above 0, such as 1"
            )

    def conditions(self, prompts: Sequence[str]) -> Batch:
        """What pictures of B prompts are drawn from. Raises RequestError for a prompt that cannot be read."""
        if isinstance(self.encoder, GraphReader):
            return self.with_patches(self.encoder.conditions(prompts))
        require_words(self.experiment)
        if isinstance(self.encoder, NarrativeReader):
            return self.encoder.conditions(prompts)
        assert not isinstance(self.encoder, LabelNames)
        check_encodable(prompts)
        return Batch(torch.arange(len(prompts)), text=self.encoder(prompts))

    def with_patches(self, conditions: Batch) -> Batch:
        """With the candidates of its graphs' objects, where the system draws from patches. Raises RequestError for an
        object of which there is no patch."""
        if self.patches is None or conditions.graphs is None:
            return conditions
        wanted = self.experiment.data.transform
        transform = get_transform(self.experiment.trainable.transform if wanted == "auto" else wanted)
        found = self.patches(conditions.graphs)
        return replace(conditions, candidates=replace(found, patches=transform.normalise(found.patches)))

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None = None) -> NDArray[np.uint8]:
        """(B,H,W,3) bytes for B prompts and B seeds; truncation: as in `draw_float`."""
        pictures = to_bytes(self.draw_float(prompts, seeds, truncation))
        channels_last: NDArray[np.uint8] = pictures.permute(0, 2, 3, 1).cpu().numpy()
        return channels_last


def graph_prompts(reader: GraphReader, patches: PatchFinder | None) -> Iterator[str]:
    """Three graphs in words: of one object, of three in a row, and of as many as a person may write."""
    vocabulary = reader.vocabulary
    names = [name for place, name in enumerate(vocabulary.objects) if patches is None or patches.has(place + 1)]
    for count in (1, 3, MOST_OBJECTS):
        things = tuple(SceneObject(place, name, (), NO_BOX) for place, name in enumerate(islice(cycle(names), count)))
        words = list(islice(cycle(vocabulary.relationships), count - 1))
        links = tuple((place, word, place + 1) for place, word in enumerate(words))
        yield graph_text(SceneGraph(things, links), vocabulary)
