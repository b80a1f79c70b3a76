"""The training loop: it knows phases and nothing of any paper. Read it from top to bottom."""

import math
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from models.contract import Batch, Objective, Phase, StepContext
from models.parallel import Ranks
from orchestration.config import Experiment
from orchestration.data.batches import TrainingStream
from orchestration.data.sampler import derive_seed
from orchestration.errors import RunError
from orchestration.training.state import TrainingState, update_average

# Streams of the training seed (the data has its own, see data/batches.py). Each phase and micro-batch adds to them.
NOISE, LAYERS = 100, 1_000_000


EXPLODED = 1e8
"""A term of a loss, or the norm of a net's gradient, above this is no training any more.

float32 has 24 bits: up there a loss can no longer change by less than 8. The largest seen in sound trainings here is
a gradient of norm 1e3 (AttnGAN on scenes).
"""


class Diverged(RunError):
    """Losses or gradients are lost: `kind` is "nan" for numbers that are not finite, "exploded" for those above
    EXPLODED; `reason` names the net and its terms. Every rank raises it at the same step."""

    def __init__(self, reason: str, kimg: float, kind: Literal["nan", "exploded"] = "nan") -> None:
        self.reason, self.kind = reason, kind
        super().__init__(
            f"training diverged at {kimg:.3f} kimg ({reason}): nothing later than the last checkpoint is kept; lower "
            "the learning rates or loss weights and start again"
        )


@dataclass(frozen=True, slots=True)
class Cadence:
    """Every so many images, counted so that a resumed run acts at the same points as an undisturbed one."""

    images: int

    def due(self, before: int, after: int) -> bool:
        """Whether a multiple of the period lies in (before, after]."""
        return after // self.images > before // self.images


@dataclass
class RunningMeans:
    """Means of loss terms since they were last taken."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, prefix: str, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            key = f"{prefix}/{name}"
            self.sums[key] = self.sums[key] + value if key in self.sums else value.clone()
            self.counts[key] += 1

    def take(self, ranks: Ranks) -> dict[str, float]:
        """The means over steps and ranks; starts anew."""
        means = {key: (total / self.counts[key]).float().reshape(1) for key, total in sorted(self.sums.items())}
        ranks.average_(means.values())
        self.sums.clear()
        self.counts.clear()
        return {key: value.item() for key, value in means.items()}


@dataclass(frozen=True, slots=True)
class Terms:
    """Names of a net's loss terms, and their largest absolute values over micro-batches: (T,), NaN where one was."""

    names: tuple[str, ...]
    sizes: Tensor

    @classmethod
    def of(cls, objective: Objective, before: "Terms | None") -> "Terms":
        """Those of one more micro-batch; "loss" is the whole."""
        terms = {**objective.terms, "loss": objective.loss.detach()}
        sizes = torch.stack([value.float().reshape(()) for value in terms.values()]).abs()
        return cls(tuple(terms), sizes if before is None else torch.maximum(before.sizes, sizes))


class Trainer:
    """Steps of one experiment on one rank. `on_device(batch)` and the ranks are all that differs between machines."""

    def __init__(
        self, experiment: Experiment, state: TrainingState, stream: TrainingStream, device: torch.device, ranks: Ranks
    ) -> None:
        self.experiment, self.state, self.stream = experiment, state, stream
        self.device, self.ranks = device, ranks
        self.system = experiment.trainable
        self.phases = list(self.system.phases(experiment.model))
        self.average_settings = self.system.averages(experiment.model)
        self.optimizer_settings = self.system.optimizers(experiment.model)
        self.means = RunningMeans()
        self.precision = _autocast(experiment.training.precision, device)

    @property
    def images_per_iteration(self) -> int:
        """Real pictures one iteration consumes."""
        return self.experiment.training.batch_size * sum(phase.fresh_batch for phase in self.phases)

    def iteration(self) -> None:
        """Every phase once. Raises Diverged."""
        batches: list[Batch] = []
        drawn = 0
        for index, phase in enumerate(self.phases):
            if phase.fresh_batch or not batches:
                batches, drawn = self._micro_batches(), index
                self.state.images_seen += self.experiment.training.batch_size
            self._step(index, phase, batches, drawn)

    def _micro_batches(self) -> list[Batch]:
        """This rank's part of each micro-batch of the next global batch."""
        training = self.experiment.training
        micro_size = training.batch_size // training.micro_batches
        own_size = micro_size // self.ranks.size
        starts = [
            self.state.images_seen + micro * micro_size + self.ranks.rank * own_size
            for micro in range(training.micro_batches)
        ]
        return [self.stream.batch(start, own_size).to(self.device) for start in starts]

    def _step(self, index: int, phase: Phase, batches: list[Batch], drawn: int | None = None) -> None:
        """One phase; its noise is that of the phase `drawn`, which took these batches, or else its own."""
        # Layers with randomness of their own (dropout) draw from here, so that a resumed run repeats them.
        torch.manual_seed(derive_seed(self.experiment.training.seed, LAYERS + index, self.state.images_seen))
        gradients: dict[str, list[Tensor]] = {}
        terms: dict[str, Terms] = {}
        for micro, batch in enumerate(batches):
            noise = self._noise(index if drawn is None else drawn, micro, len(batch.image_ids))
            context = StepContext(self.ranks, noise)
            with self.precision():
                objectives = phase.losses(self.state.nets, batch, context)
            for place, name in enumerate(phase.trains):
                objective = objectives[name]
                fresh = torch.autograd.grad(
                    objective.loss / len(batches),
                    list(self.state.nets[name].parameters()),
                    retain_graph=place + 1 < len(phase.trains),
                    materialize_grads=True,
                )
                if name in gradients:
                    torch._foreach_add_(gradients[name], fresh)
                else:
                    gradients[name] = list(fresh)
                self.means.add(name, dict(objective.terms))
                terms[name] = Terms.of(objective, terms.get(name))
        # Every gradient is checked before any net steps: a phase changes all of its nets or none.
        for name in phase.trains:
            self._agree(name, gradients[name], terms[name])
        for name in phase.trains:
            self._apply(name, gradients[name])

    def _agree(self, name: str, gradients: list[Tensor], terms: Terms) -> None:
        """Average over ranks, and shorten to the largest norm. Raises Diverged, on every rank.

        Only this step counts, so that a resumed run ends where an undisturbed one does.
        """
        # In the one message there is: a rank that stopped alone would leave the others waiting.
        self.ranks.average_([*gradients, terms.sizes])
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        sizes = torch.cat([norm.reshape(1), terms.sizes.to(norm.dtype)])
        # NaN is not below anything.
        if not (sizes <= EXPLODED).all():
            names = [f"the gradient of the {name}", *(f"{name}/{term}" for term in terms.names)]
            raise _diverged(dict(zip(names, sizes.tolist(), strict=True)), self.state.kimg)
        self.means.add(name, {"gradient_norm": norm})
        largest = self.optimizer_settings[name].gradient_norm
        if largest is not None:
            torch._foreach_mul_(gradients, (largest / norm).clamp(max=1.0))

    def _apply(self, name: str, gradients: list[Tensor]) -> None:
        """Step, and move the average."""
        state = self.state
        passes = (state.images_seen - self.experiment.training.batch_size) // len(self.stream.data)
        for group in state.optimizers[name].param_groups:
            group["lr"] = self.optimizer_settings[name].rate_after(passes)
        for parameter, gradient in zip(state.nets[name].parameters(), gradients, strict=True):
            parameter.grad = gradient
        state.optimizers[name].step()
        state.optimizers[name].zero_grad(set_to_none=True)
        if name in state.averages:
            update_average(state.averages[name], state.nets[name], self.average_settings[name], state.averaged[name])
            state.averaged[name] += 1

    def _noise(self, phase: int, micro: int, own_size: int) -> Callable[[int], Tensor]:
        """This rank's rows of noise drawn for the whole micro-batch: the same whatever the number of ranks."""
        micro_count = self.experiment.training.micro_batches
        seed = derive_seed(self.experiment.training.seed, NOISE + micro_count * phase + micro, self.state.images_seen)

        def draw(width: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            everyone = torch.randn(own_size * self.ranks.size, width, generator=generator)
            start = self.ranks.rank * own_size
            return everyone[start : start + own_size].to(self.device)

        return draw


def run(trainer: Trainer, on_iteration: Callable[[int, int], Any]) -> None:
    """Iterate until the experiment's kimg are seen; `on_iteration(before, after)` gets images seen."""
    total = round(trainer.experiment.training.kimg * 1000)
    state = trainer.state
    while state.images_seen < total:
        before = state.images_seen
        trainer.iteration()
        on_iteration(before, state.images_seen)


def _diverged(sizes: dict[str, float], kimg: float) -> Diverged:
    """Says which sizes are lost: those that are not finite, else those that are too large."""
    broken = {name: size for name, size in sizes.items() if not math.isfinite(size)}
    lost = broken or {name: size for name, size in sizes.items() if size > EXPLODED}
    reason = ", ".join(f"{name} is {size:.3g}" for name, size in lost.items())
    return Diverged(reason, kimg, "nan" if broken else "exploded")


def _autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    if not wanted:
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)
