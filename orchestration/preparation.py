"""What must exist before a GAN trains: pixels, text features, and the judge of generated scenes. All are stages."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.encoders.image import PretrainedImageSettings, WeightsMissing, find_weights
from models.encoders.text import TextEncoder
from orchestration.config import Experiment
from orchestration.data.batches import CaptionedPictures
from orchestration.data.features import VERSION as FEATURES_VERSION
from orchestration.data.features import open_caption_features, write_caption_features
from orchestration.data.pictures import Pictures
from orchestration.data.records import Dataset
from orchestration.data.shard_form import Codec
from orchestration.data.shards import ShardOptions, open_shards, write_shards
from orchestration.data.sources import PREPARED, SCENES, open_source, parse_source, source_folder
from orchestration.data.transforms import get_transform
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.stages import Progress, Stage, ensure, quiet
from orchestration.training.state import Provenance

PICTURES_VERSION = 2
# Up to so many bytes, reading raw pixels is worth more than a smaller folder.
RAW_UP_TO = 2 * 2**30


@dataclass(frozen=True, slots=True)
class PreparedSplit:
    """One prepared split, by path: the shards' folder, the published folder they were made from, the features."""

    pictures: str
    root: str
    features: str
    labels: str | None = None

    def open(self) -> CaptionedPictures:
        """Memory-map it."""
        shards = open_shards(Path(self.pictures), Path(self.root))
        options = shards.options
        pictures = Pictures(shards, get_transform(options.transform), options.size)
        return CaptionedPictures(pictures, open_caption_features(Path(self.features)))


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a worker reads, by path: it crosses process borders as JSON."""

    train: PreparedSplit
    validation: PreparedSplit
    provenance: Provenance
    protocol: str
    judge: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Prepared":
        return cls(
            PreparedSplit(**values["train"]),
            PreparedSplit(**values["validation"]),
            Provenance(**values["provenance"]),
            values["protocol"],
            values["judge"],
        )


class Preparation:
    """Runs the stages of an experiment that are missing. The text encoder is loaded once, and only if needed."""

    def __init__(self, experiment: Experiment, home: Home, progress: Progress = quiet) -> None:
        self.experiment, self.home, self.progress = experiment, home, progress
        self._encoder: TextEncoder | None = None

    @property
    def encoder(self) -> TextEncoder:
        """The experiment's text encoder. Raises RequestError when it is missing or of another width."""
        if self._encoder is None:
            try:
                self._encoder = TextEncoder(self.experiment.text, self.home.encoders)
            except WeightsMissing as error:
                raise RequestError(f"text.name: {error}") from error
            wanted = self.experiment.get_system().text_dim(self.experiment.model)
            if wanted != self._encoder.dim:
                raise RequestError(
                    f"model.text_dim is {wanted} but {self.experiment.text.name} gives {self._encoder.dim} features: "
                    f"add --set model.text_dim={self._encoder.dim}"
                )
        return self._encoder

    def everything(self) -> Prepared:
        """What training and its validation read. What is missing is said before the long work. Raises RequestError."""
        data = self.experiment.data
        train, validation = self.dataset(data.train_split), self.dataset(data.validation_split)
        protocol = choose_protocol(self.experiment)
        require_weights(self.experiment)
        encoder = self.encoder
        return Prepared(
            self.split(train),
            self.split(validation),
            Provenance(train.digest, encoder.digest),
            protocol,
            self.judge(protocol),
        )

    def judge(self, protocol: str) -> str | None:
        """The folder of the trained judge, for the protocol that needs one."""
        if protocol != "scenes-net":
            return None
        from orchestration.evaluation.scenes_net import judge_stage

        return str(ensure(judge_stage(self.experiment, self.home), self.home.stages, self.progress))

    def dataset(self, split: str) -> Dataset:
        """One split: its images that have everything the system needs. Raises RequestError."""
        dataset = open_source(
            self.experiment.data.source,
            split,
            self.home.root,
            lambda done, total: self.progress("drawing scenes", done, total),
        )
        require(self.experiment, dataset)
        return dataset.having(self.experiment.get_system().needs)

    def split(self, dataset: Dataset) -> PreparedSplit:
        """Pixels and text features of a split."""
        labels = None
        if parse_source(self.experiment.data.source).kind == SCENES:
            from orchestration.evaluation.scenes_net import labels_stage

            labels = str(ensure(labels_stage(dataset), self.home.stages, self.progress))
        return PreparedSplit(str(self.pictures(dataset)), str(dataset.root), str(self.features(dataset)), labels)

    def pictures(self, dataset: Dataset) -> Path:
        """The shards of a split: those that were prepared by hand, else a stage."""
        options = self.shard_options(dataset)
        source = self.experiment.data.source
        if parse_source(source).kind == PREPARED:
            folder = source_folder(source, self.home.root)[1] / dataset.split
            made = open_shards(folder, dataset.root).options
            if (made.transform, made.size) != (options.transform, options.size):
                raise RequestError(
                    f"{folder} was prepared by {made.transform} at {made.size} px, and {self.experiment.recipe} wants "
                    f"{options.transform} at {options.size} px: prepare the data again with --transform "
                    f"{options.transform} --size {options.size}."
                )
            return folder

        def write(folder: Path, progress: Progress) -> None:
            write_shards(
                dataset, options, folder / "shards", progress=lambda done, total: progress("pictures", done, total)
            )

        settings = {
            "transform": options.transform,
            "size": options.size,
            "codec": options.codec,
            "split": dataset.split,
        }
        stage = Stage("pictures", PICTURES_VERSION, settings, {"data": dataset.digest}, write)
        return ensure(stage, self.home.stages, self.progress) / "shards"

    def shard_options(self, dataset: Dataset) -> ShardOptions:
        """How this experiment's pictures are made ready and kept. Raises RequestError for an unknown transform."""
        system = self.experiment.get_system()
        wanted = self.experiment.data.transform
        transform = get_transform(system.transform if wanted == "auto" else wanted)
        size = system.resolution(self.experiment.model)
        codec: Codec = "raw" if self.experiment.resources.pictures == "auto" else self.experiment.resources.pictures
        if self.experiment.resources.pictures == "auto":
            side = size * transform.margin
            codec = "raw" if len(dataset.records) * 3 * side * side <= RAW_UP_TO else "png"
        return ShardOptions(transform.name, size, codec)

    def features(self, dataset: Dataset) -> Path:
        """Text features of a split's captions."""
        encoder = self.encoder
        stage = Stage(
            "text-features",
            FEATURES_VERSION,
            {"text": self.experiment.text.model_dump(mode="json"), "split": dataset.split},
            {"data": dataset.digest, "encoder": encoder.digest},
            lambda folder, progress: write_caption_features(dataset, encoder, folder, progress),
        )
        return ensure(stage, self.home.stages, self.progress)


def require(experiment: Experiment, dataset: Dataset) -> None:
    """RequestError when the data lacks something the system is conditioned on."""
    missing: Iterable[str] = sorted(experiment.get_system().needs - dataset.carries)
    if missing:
        raise RequestError(
            f"{experiment.system} needs {', '.join(missing)}, which {experiment.data.source} ({dataset.split}) does "
            f"not carry; it carries {', '.join(sorted(dataset.carries))}: choose another data set with --data"
        )


def require_weights(experiment: Experiment) -> None:
    """RequestError when a pretrained image net that the losses use is not on this machine."""
    settings = getattr(experiment.model, "pretrained", None)
    if getattr(experiment.model, "uses_pretrained", False) and isinstance(settings, PretrainedImageSettings):
        try:
            find_weights(settings)
        except WeightsMissing as error:
            raise RequestError(f"model.pretrained: {error}") from error


def choose_protocol(experiment: Experiment) -> str:
    """The protocol that "auto" means for this data. Raises RequestError for one that cannot judge it."""
    wanted = experiment.evaluation.protocol
    generated = parse_source(experiment.data.source).kind == SCENES
    if wanted == "auto":
        wanted = "scenes-net" if generated else "efficientnet-lite0"
    if wanted == "efficientnet-lite0":
        try:
            find_weights(PretrainedImageSettings(name="efficientnet-lite0"))
        except WeightsMissing as error:
            raise RequestError(f"evaluation.protocol=efficientnet-lite0: {error}, or set it to none") from error
    if wanted == "scenes-net" and not generated:
        raise RequestError(
            f"evaluation.protocol=scenes-net judges generated scenes only, not {experiment.data.source}: "
            "use efficientnet-lite0"
        )
    return wanted
