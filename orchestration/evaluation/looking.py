"""Pictures come, portion by portion, and views look at them: in this process, or in many, with the same outcome."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Batch, Given, Nets
from orchestration.config import Experiment
from orchestration.data.batches import CaptionedPictures
from orchestration.errors import RunError
from orchestration.evaluation.metric import Array, OpenView, Seen, View
from orchestration.evaluation.pixels import checked_bytes
from orchestration.evaluation.plans import Plan, portions
from orchestration.mapping import Worker, map_blocks, read_block
from orchestration.prepared import PreparedSplit
from orchestration.stages import Progress, Stage
from orchestration.training.state import initial_state, load_for_sampling, open_checkpoint

DRAW_BATCH = 50
VERSION = 1
BLOCKS = "blocks"

Draw = Callable[[Batch, Sequence[int]], Tensor]
"""What B pictures are conditioned on, and B seeds, to pictures (B,3,H,W) in [-1, 1]."""

Take = Callable[[CaptionedPictures, Plan, NDArray[np.int64]], Tensor]
"""The pictures at some places of a plan: uint8 (B,3,H,W)."""


class Source(Protocol):
    """Where pictures come from. It crosses process borders; what it opens does not."""

    def open(self, device: torch.device) -> Take: ...


@dataclass(frozen=True, slots=True)
class RealPictures:
    """The split's own pictures: their centre, or with a seed cut and flipped at random as in training."""

    seed: int | None = None

    def open(self, device: torch.device) -> Take:
        return lambda data, plan, places: data.pixels(plan.items[places], self.seed)


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """Drawn by the averaged nets of a checkpoint's folder; vocabulary: digest of what captions are encoded with."""

    folder: Path
    vocabulary: str | None

    def open(self, device: torch.device) -> Take:
        checkpoint = open_checkpoint(self.folder)
        nets = load_for_sampling(checkpoint, device, self.vocabulary)
        return drawn_by(drawer(checkpoint.experiment, nets, device))


@dataclass(frozen=True, slots=True)
class Untrained:
    """Drawn by the nets before the first step."""

    experiment: Experiment
    given: Given

    def open(self, device: torch.device) -> Take:
        nets = initial_state(self.experiment, device, self.given).sampling_nets()
        return drawn_by(drawer(self.experiment, nets, device))


class Drawer(Protocol):
    """A `Draw` that can truncate its latent, see `System.sample`."""

    def __call__(self, conditions: Batch, seeds: Sequence[int], truncation: float | None = None) -> Tensor: ...


def drawer(experiment: Experiment, nets: Nets, device: torch.device) -> Drawer:
    """How an experiment's nets draw: on the device, without gradient."""
    system = experiment.get_system()

    @torch.inference_mode()
    def draw(conditions: Batch, seeds: Sequence[int], truncation: float | None = None) -> Tensor:
        return system.sample(nets, experiment.model, conditions.to(device), seeds, truncation).float()

    return draw


def drawn_by(draw: Draw) -> Take:
    """Pictures of captions and noise, in batches of fixed size."""

    def take(data: CaptionedPictures, plan: Plan, places: NDArray[np.int64]) -> Tensor:
        if plan.seeds is None:
            raise RunError(f"the plan {plan.name} is one of real pictures: it has no noise to draw with")
        pieces = []
        for start in range(0, len(places), DRAW_BATCH):
            part = places[start : start + DRAW_BATCH]
            conditions = data.without_pixels(plan.items[part], plan.captions[part])
            pieces.append(checked_bytes(draw(conditions, plan.seeds[part].tolist())))
        return torch.cat(pieces)

    return take


class Looker:
    """Takes the pictures at some places and has every view look at them."""

    def __init__(self, data: CaptionedPictures, plan: Plan, take: Take, views: Sequence[View]) -> None:
        self.data, self.plan, self.take, self.views = data, plan, take, views

    @torch.inference_mode()
    def __call__(self, places: NDArray[np.int64]) -> dict[str, Array]:
        asked = self.plan.asked(self.data, places)
        pictures = self.take(self.data, self.plan, places)
        found: dict[str, Array] = {}
        for view in self.views:
            found |= view.look(pictures, asked)
        return found

    def seen(self, places: NDArray[np.int64]) -> Seen:
        """What was seen at these places."""
        return Seen(self.plan.asked(self.data, places), self(places))

    def all_seen(self) -> Iterator[Seen]:
        """What was seen of the whole plan, portion by portion."""
        return (self.seen(places) for places in portions(self.plan))


@dataclass(frozen=True, slots=True)
class Looking:
    """All that a worker needs to look at portions of a plan, in any process."""

    source: Source
    split: PreparedSplit
    plan: Plan
    views: Mapping[str, OpenView]
    device: str

    def worker(self, views: Mapping[str, View] | None = None) -> Worker:
        """Load the nets and the data; `views` where they are open already."""
        device = torch.device(self.device)
        opened = views or {name: open_view(device) for name, open_view in self.views.items()}
        looker = Looker(self.split.open(), self.plan, self.source.open(device), [opened[name] for name in self.views])
        return lambda items: looker(np.arange(items.start, items.stop))

    def stage(self, name: str, inputs: Mapping[str, str], opened: Mapping[str, View], workers: int | None) -> Stage:
        """The stage that looks at the whole plan, and goes on where it was stopped.

        inputs: digests of what the pictures depend on; opened: the views, as they are open in this process.
        """
        settings = {
            "plan": self.plan.digest,
            "batch": DRAW_BATCH,
            "views": {view: opened[view].digest for view in sorted(self.views)},
        }

        def run(folder: Path, progress: Progress) -> None:
            here = partial(self.worker, opened)
            map_blocks(
                folder / BLOCKS, len(self.plan), self.plan.portion, self.worker, progress, workers, name, here=here
            )

        return Stage(name, VERSION, settings, inputs, run, resumable=True)


def read_seen(folder: Path, data: CaptionedPictures, plan: Plan) -> Iterator[Seen]:
    """What the stage in `folder` saw, portion by portion. Raises RequestError for a damaged one."""
    for places, file in zip(portions(plan), sorted((folder / BLOCKS).iterdir()), strict=True):
        yield Seen(plan.asked(data, places), read_block(file))
