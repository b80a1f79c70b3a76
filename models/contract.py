"""What a system is to everything else: its batch, its phases, how it samples.

Training, evaluation, serving and the report know this module and nothing of any paper. Adding another system means
writing one class that inherits `System` and one line in `models.registry`.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor, nn

from models.parallel import Ranks

if TYPE_CHECKING:
    from models.encoders.regions import RegionSettings

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
        return after_counts(self.lengths, self.words.shape[1])


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
class Objects:
    """The annotated things of B pictures, as they are shown.

    boxes: (B,N,4), x0, y0, x1, y1 in [0, 1] of the picture; classes: (B,N) int64; counts: (B,) int64, so many are
    there, the rest is zero.
    """

    boxes: Tensor
    classes: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Regions:
    """The salient boxes that a detector found in B pictures, the highest score first.

    boxes: (B,R,4), x0, y0, x1, y1 in [0, 1] of the picture; features: (B,R,F); scores: (B,R) in [0, 1]; counts: (B,)
    int64, 0 to R, so many are there, the rest is zero.
    """

    boxes: Tensor
    features: Tensor
    scores: Tensor
    counts: Tensor

    def padding(self) -> Tensor:
        """(B,R) bool, True where there is no box."""
        return after_counts(self.counts, self.boxes.shape[1])


@dataclass(frozen=True, slots=True)
class Graphs:
    """The scene graphs of B pictures: things and stuff as objects, and how they stand to each other.

    classes: (B,N) int64, from 1, what each object is; boxes: (B,N,4), x0, y0, x1, y1 in [0, 1] of the picture as it is
    shown; counts: (B,) int64, at least 1, so many objects are there; relations: (B,E,3) int64, the subject's place
    among the objects, the predicate (from 1) and the object's place; links: (B,) int64, so many relations are there.
    The rest is zero. Class 0 and predicate 0 are no word of any vocabulary: models have them for nodes of their own.
    """

    classes: Tensor
    boxes: Tensor
    counts: Tensor
    relations: Tensor
    links: Tensor

    def padding(self) -> Tensor:
        """(B,N) bool, True where there is no object."""
        return after_counts(self.counts, self.classes.shape[1])


@dataclass(frozen=True, slots=True)
class Candidates:
    """The patches that each object of B scene graphs may be made of, the likeliest first.

    patches: (B,N,K,3,S,S), with values as the pictures'; places: (B,N,K) int64, in the patch bank; counts: (B,N) int64,
    0 to K, so many are there, the rest is zero.
    """

    patches: Tensor
    places: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class LabelMaps:
    """What every pixel of B pictures shows, as they are shown.

    labels: (B,H,W) int64, the class of each pixel, and the number of classes where none is known ("don't care");
    instances: (B,H,W) int64, the same number in all pixels of one thing, another in the next, 0 in stuff.
    """

    labels: Tensor
    instances: Tensor


@dataclass(frozen=True, slots=True)
class TaggedWords:
    """B narratives as a tagger reads them: word pieces, and a label for each word at its first piece.

    pieces: (B,T) int64, by the tagger's tokenizer, its marks of begin and end among them; counts: (B,) int64, so many
    are there, the rest is 0; first: (B,T) bool, True where a word begins; labels: (B,T) int64, the class of the word
    that begins there, -1 elsewhere and where none is known.
    """

    pieces: Tensor
    counts: Tensor
    first: Tensor
    labels: Tensor


def after_counts(counts: Tensor, most: int) -> Tensor:
    """(...,) int64 to (...,most) bool: True at and after each count, where there is only padding."""
    return torch.arange(most, device=counts.device) >= counts[..., None]


@dataclass(frozen=True, slots=True)
class Batch:
    """What a data set can carry; what it lacks is None.

    image_ids: (B,) int64; images: (B,3,H,W) in [-1, 1], or normalised as the system's transform says; text and tokens:
    of one caption an image, the same one; class_ids: (B,) int64, what images of one class share: the published class,
    or where there is none the image's own id (other captions of an image are no wrong ones); objects: annotated things,
    cut and mirrored as the images are; regions: what the detector found in the uncut centre of the images, whatever cut
    of them is shown; graphs: cut as the images are; candidates: for the objects of the graphs; labels: cut and mirrored
    as the images are.
    """

    image_ids: Tensor
    images: Tensor | None = None
    text: TextFeatures | None = None
    tokens: Tokens | None = None
    class_ids: Tensor | None = None
    objects: Objects | None = None
    regions: Regions | None = None
    graphs: Graphs | None = None
    candidates: Candidates | None = None
    labels: LabelMaps | None = None
    tagged: TaggedWords | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        """The samples in `rows`: a slice, or their places."""
        return _map_tensors(self, lambda tensor: tensor[rows])


DataT = TypeVar("DataT", Batch, TextFeatures, Tokens, Objects, Regions, Graphs, Candidates, LabelMaps, TaggedWords)


def _map_tensors(data: DataT, function: Callable[[Tensor], Tensor]) -> DataT:
    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        return value if value is None or isinstance(value, str) else _map_tensors(value, function)

    return type(data)(**{item.name: apply(getattr(data, item.name)) for item in fields(data)})


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
    (AttnGAN). `fresh_batch=False` trains on the batch of the phase before, with its noise: the generator is asked for
    the very pictures that the discriminator just saw.
    """

    name: str
    trains: tuple[str, ...]
    losses: PhaseLosses
    fresh_batch: bool = True


class AdamSettings(Settings):
    """Adam's hyperparameters for one net.

    decay: factor of the learning rate after each pass over the data, never below least_learning_rate; gradient_norm:
    the net's whole gradient is scaled down to this norm where it is longer.
    """

    learning_rate: float = Field(gt=0)
    beta_1: float = Field(ge=0, lt=1)
    beta_2: float = Field(ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    decay: float = Field(default=1.0, gt=0, le=1)
    least_learning_rate: float = Field(default=0.0, ge=0)
    gradient_norm: float | None = Field(default=None, gt=0)

    def rate_after(self, passes: int) -> float:
        """Learning rate after so many whole passes over the data."""
        return max(self.learning_rate * self.decay**passes, min(self.least_learning_rate, self.learning_rate))


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


class StageMissing(ValueError):
    """A net is to be built from a trained stage that was not given."""


@dataclass(frozen=True, slots=True)
class Given:
    """What earlier stages made, for `build`.

    vocabulary_size: words with padding, 0 where none are used; folders: by stage name, the folder with
    NET.safetensors for each net that the stage trained; regions: how salient boxes are found, for those who look for
    them; classes, predicates: how many the scene graphs have, or the label maps (no predicates), 0 where none are read;
    parts: settings of the parts, by stage name; encoders: where packaged encoders are unpacked; class_names: of the
    label maps' classes, in order, for those who go by names.
    """

    vocabulary_size: int = 0
    folders: Mapping[str, Path] = field(default_factory=dict)
    regions: "RegionSettings | None" = None
    classes: int = 0
    predicates: int = 0
    parts: "Mapping[str, Settings]" = field(default_factory=dict)
    encoders: Path | None = None
    class_names: tuple[str, ...] = ()

    def load(self, net: nn.Module, stage: str, name: str) -> nn.Module:
        """`net` with the stage's weights, frozen, in evaluation mode. On "meta" it stays empty. Raises StageMissing."""
        net.requires_grad_(False).eval()
        if any(parameter.is_meta for parameter in net.parameters()):
            return net
        if stage not in self.folders:
            raise StageMissing(f"{name} comes from the trained stage {stage!r}, which was not given")
        net.load_state_dict(load_file(self.folders[stage] / f"{name}.safetensors"))
        return net


NOTHING = Given()


class _Pictured(Protocol):
    @property
    def resolution(self) -> int: ...


class _Averaged(Protocol):
    @property
    def average(self) -> AverageSettings: ...


class Trainable(Protocol[ConfigT]):
    """What can be trained: a paper's GAN, or a part that its GAN needs trained first.

    Methods are pure: everything they need is in their arguments. Whoever inherits this says only what is its own; what
    most have in common is answered here.
    """

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
    reads: frozenset[str]
    """What of the data it reads beside images: "features" (`Batch.text`), "tokens" (`Batch.tokens`), "objects",
    "regions", "graphs", "candidates", "labels", "tagged" (`Batch.tagged`), "canvases" (`Batch.labels`, composed from
    captions)."""

    def stages(self, config: ConfigT) -> Mapping[str, str]:
        """The parts that it is built from, in order: a key of `Experiment.stages`, and which part must be there. By
        default none."""
        return {}

    @abstractmethod
    def build(self, config: ConfigT, given: Given = NOTHING) -> dict[str, nn.Module]:
        """Every net by name, trained and frozen; works under `torch.device("meta")`. Raises StageMissing."""
        ...

    @abstractmethod
    def optimizers(self, config: ConfigT) -> Mapping[str, AdamSettings]:
        """One optimizer for each trained net; nets without one are frozen and are not saved in checkpoints."""
        ...

    def averages(self, config: ConfigT) -> Mapping[str, AverageSettings]:
        """The nets whose moving average is kept, and sampled from. By default none."""
        return {}

    @abstractmethod
    def phases(self, config: ConfigT) -> Sequence[Phase]:
        """The turns of one iteration, in order."""
        ...

    def text_dim(self, config: ConfigT) -> int:
        """Width C of the text features this configuration was built for; 0, the default, where it reads none."""
        return 0

    def resolution(self, config: ConfigT) -> int:
        """Side of the square pictures, in pixels. By default the setting of that name."""
        return cast(_Pictured, config).resolution


class RegionStore(Protocol):
    """The salient boxes of every picture of a split, see `Regions`."""

    def take(self, items: Tensor, places: Tensor) -> Tensor:
        """(M,F) float32: the features of box `places[m]` of picture `items[m]`, places in the split; both (M,)."""
        ...


class Gathered(Protocol[ConfigT]):
    """A part with nothing to learn: one pass over every caption of the training pictures, such as CPGAN's memory.

    Each worker looks at some pictures with all their captions; what they saw is gathered in the pictures' order.
    """

    name: str
    title: str
    Config: type[ConfigT]
    needs: frozenset[str]
    transform: str
    reads: frozenset[str]

    def stages(self, config: ConfigT) -> Mapping[str, str]:
        """As `Trainable.stages`."""
        ...

    def resolution(self, config: ConfigT) -> int:
        """As `Trainable.resolution`."""
        ...

    def longest(self, config: ConfigT) -> int:
        """Words of a caption that it reads."""
        ...

    def build(self, config: ConfigT, given: Given = NOTHING) -> dict[str, nn.Module]:
        """The frozen nets that it looks with."""
        ...

    def look(self, nets: Nets, config: ConfigT, batch: Batch, items: Tensor) -> dict[str, Tensor]:
        """What B captions say of their pictures; items: (B,) int64, each picture's place in the split. Rows in any
        number, the same in every array; a caption's do not depend on the others."""
        ...

    def gather(
        self, config: ConfigT, words: int, seen: Iterable[Mapping[str, Tensor]], regions: RegionStore
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Tensors to keep, by name, and figures, from what was seen, some pictures at a time in their order; words:
        size of the vocabulary."""
        ...


class System(Trainable[ConfigT], Protocol[ConfigT]):
    """One paper's GAN."""

    def averages(self, config: ConfigT) -> Mapping[str, AverageSettings]:
        """By default the generator's, by the setting `average`, of which a decay of 0 is the generator itself."""
        return {"generator": cast(_Averaged, config).average}

    @abstractmethod
    def sample(
        self, nets: Nets, config: ConfigT, conditions: Batch, seeds: Sequence[int], truncation: float | None = None
    ) -> Tensor:
        """Pictures (B,3,H,W) in [-1, 1] for B seeds and what they are conditioned on: a batch without images, with
        what the system reads of captions or graphs. The same seed and condition give the same picture.

        truncation: of the latent, in standard deviations, see `models.blocks.noise.truncated`; none leaves it as it is.
        Raises ValueError where it is not above 0, or `truncates` says no.
        """
        ...

    def truncates(self, nets: Nets, config: ConfigT) -> bool:
        """Whether pictures come from a standard normal latent, as by default; `nets` are those that `sample` takes."""
        return True


def parameter_count(net: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in net.parameters())
