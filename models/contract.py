"""What a system is to everything else: its batch, its phases, how it samples.

Training, evaluation, serving and the report know this module and nothing of any paper. Adding a sixth system means
writing one class that satisfies `System` and one line in `models.registry`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.parallel import Ranks

Nets = Mapping[str, nn.Module]


class Settings(BaseModel):
    """Base of every configuration: immutable; an unknown or ill-typed field, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """What a frozen text encoder says about B captions.

    words: (B,T,C), positions at and after `lengths` are padding; lengths: (B,) int64, at least 1; sentence: (B,C).
    """

    words: Tensor
    lengths: Tensor
    sentence: Tensor

    def padding(self) -> Tensor:
        """(B,T) bool, True where there is no word."""
        steps = torch.arange(self.words.shape[1], device=self.words.device)
        return steps[None, :] >= self.lengths[:, None]


@dataclass(frozen=True, slots=True)
class Tokens:
    """B captions as word indices.

    ids: (B,T) int64, 0 at and after `lengths`; lengths: (B,) int64, at least 1; vocabulary: digest of the vocabulary
    whose indices they are.
    """

    ids: Tensor
    lengths: Tensor
    vocabulary: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What a data set can carry; what it lacks is None.

    image_ids: (B,) int64; images: (B,3,H,W) in [-1, 1], or normalised as the system's transform says.
    """

    image_ids: Tensor
    images: Tensor | None = None
    text: TextFeatures | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, rows: slice) -> "Batch":
        """The samples in `rows`."""
        return _map_tensors(self, lambda tensor: tensor[rows])


DataT = TypeVar("DataT", Batch, TextFeatures)


def _map_tensors(data: DataT, function: Callable[[Tensor], Tensor]) -> DataT:
    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        return None if value is None else _map_tensors(value, function)

    return type(data)(**{field.name: apply(getattr(data, field.name)) for field in fields(data)})


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a loss may know beyond its own samples.

    ranks: the other workers (gather with gradient). noise: `noise(width)` gives (B,width) standard normal numbers that
    depend on the seed, the progress, the phase and each sample's place in the global batch, never on the number of
    workers.
    """

    ranks: Ranks
    noise: Callable[[int], Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """A scalar to minimise, and its named parts for the record (detached scalars)."""

    loss: Tensor
    terms: Mapping[str, Tensor]


PhaseLosses = Callable[[Nets, Batch, StepContext], Mapping[str, Objective]]


@dataclass(frozen=True, slots=True)
class Phase:
    """One turn of training: which nets step together, on which losses.

    `losses` gives one objective for each net in `trains`. Every gradient is taken for that net's own parameters with
    all nets as they were before the turn; then all of them step. That one rule holds both orders the papers use: two
    nets in one phase never see each other's update (XMC-GAN's released code), two phases one after the other do
    (AttnGAN). `fresh_batch=False` trains on the batch of the phase before.
    """

    name: str
    trains: tuple[str, ...]
    losses: PhaseLosses
    fresh_batch: bool = True


class AdamSettings(Settings):
    """Adam's hyperparameters for one net."""

    learning_rate: float = Field(gt=0)
    beta_1: float = Field(ge=0, lt=1)
    beta_2: float = Field(ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)


class AverageSettings(Settings):
    """Exponential moving average of a net, one update after each of its steps.

    decay: weight of the old value. warm_up: use min(decay, (1 + n) / (10 + n)) at the n-th step, so that short runs do
    not average in the random start. buffers: "live" copies batch-norm statistics from the trained net (XMC-GAN's
    released code), "averaged" averages them too.
    """

    decay: float = Field(ge=0, lt=1)
    warm_up: bool = False
    buffers: str = Field(default="live", pattern="^(live|averaged)$")


ConfigT = TypeVar("ConfigT", bound=Settings)


class System(Protocol[ConfigT]):
    """One paper. Methods are pure: everything they need is in their arguments."""

    name: str
    """Registry name, e.g. "xmcgan"."""
    title: str
    """The paper's title and year."""
    Config: type[ConfigT]
    """Frozen settings; defaults are the published model's, each with its source."""
    needs: frozenset[str]
    """What the data must carry: "images", "captions"."""
    transform: str
    """How the paper made its pictures ready, e.g. "xmcgan": a name in `orchestration.data.transforms`."""

    def build(self, config: ConfigT) -> dict[str, nn.Module]:
        """Every net by name, trained and frozen; works under `torch.device("meta")`."""
        ...

    def optimizers(self, config: ConfigT) -> Mapping[str, AdamSettings]:
        """One optimizer for each trained net; nets without one are frozen and are not saved in checkpoints."""
        ...

    def averages(self, config: ConfigT) -> Mapping[str, AverageSettings]:
        """The nets whose moving average is kept, and sampled from."""
        ...

    def phases(self, config: ConfigT) -> Sequence[Phase]:
        """The turns of one iteration, in order."""
        ...

    def sample(self, nets: Nets, config: ConfigT, text: TextFeatures, seeds: Sequence[int]) -> Tensor:
        """Pictures (B,3,H,W) in [-1, 1] for B captions and B seeds; the same seed and caption give the same picture."""
        ...

    def text_dim(self, config: ConfigT) -> int:
        """Width C of the text features this configuration was built for."""
        ...

    def resolution(self, config: ConfigT) -> int:
        """Side of the square pictures, in pixels."""
        ...


def parameter_count(net: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in net.parameters())


def seeded_noise(seeds: Sequence[int], width: int, device: torch.device) -> Tensor:
    """(len(seeds), width) standard normal numbers, row i from seed i alone; drawn on the CPU so devices agree."""
    rows = [torch.randn(width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)
