"""What a campaign needs, and what there is, in numbers.

Nothing is trained or prepared, and nets are built on torch.device("meta"); a system that draws from scene graphs draws
one picture.
"""

import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from models.abilities import CaptionReader
from models.contract import Batch, Candidates, Given, Graphs, LabelMaps, TextFeatures
from models.detectors.contract import DetectorSettings
from models.encoders.image import PretrainedImageSettings, WeightsMissing, find_weights
from models.encoders.regions import DETECTOR
from models.encoders.trunk import ImageTrunkSettings, find_trunk_weights
from models.registry import get_part, get_trainable
from orchestration.campaigns.execution import SLOT
from orchestration.campaigns.settings import CampaignSettings
from orchestration.config import Experiment, parse_experiment
from orchestration.data import scenes
from orchestration.data.scenes.write import is_complete
from orchestration.data.sources import SCENES, parse_source
from orchestration.data.transforms import get_transform
from orchestration.errors import RequestError
from orchestration.evaluation.looking import DRAW_BATCH
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.stages import is_finished
from orchestration.training.launch import EXPERIMENT_FILE
from orchestration.training.recorder import read_metrics

GIB = 2**30
PROCESS_BYTES = 0.6 * GIB
"""Of a worker beside its nets: Python, torch, its libraries and the data's index (measured on CPU: 0.3 to 0.5 GiB)."""
ACTIVATIONS = 5.0
"""What all phases hold for backward, over what the generator's forward alone does.

Measured as the growth of the process from batch 32 to 128: 3.2 for XMC-GAN, 5.8 for MirrorGAN with its frozen trunk.
"""
DRAWING = 5.0
"""What drawing without backward holds at a time, over the largest map of the forward.

Measured as the growth of the process while it drew: 1.8 and 4.4 for SPADE, 4.2 and 5.1 for CC-FPSE.
"""
WORDS = 27_297
"""A vocabulary's size where the data's own is not known yet: that of COCO (AttnGAN's released captions.pickle)."""
CLASSES, PREDICATES, OBJECTS = 178, 45, 8
"""Of scene graphs: Visual Genome's names as sg2im filters them; the most objects that it takes of a COCO picture."""
PNG_SHARE = 0.7
"""Of raw pixels, where pictures are kept as PNG: photographs take about half to two thirds."""
SPEED = "speed/images_per_second"


@dataclass(frozen=True, slots=True)
class Resources:
    """What there is to run on; bytes. slots: units of `trial_slot`, None where a Ray is started for the campaign, which
    gives as many slots and CPUs as it asks for. memory: of all machines; gpu_memory: of one GPU, None if not known."""

    cpus: float
    gpus: float
    memory: float
    slots: float | None = None
    gpu_memory: float | None = None

    @classmethod
    def of_cluster(cls, totals: Mapping[str, float], gpu_memory: float | None = None) -> "Resources":
        """From `ray.cluster_resources()`."""
        got = {name: float(totals.get(name, 0.0)) for name in ("CPU", "GPU", "memory", SLOT)}
        return cls(got["CPU"], got["GPU"], got["memory"], got[SLOT], gpu_memory)

    @classmethod
    def of_machine(cls) -> "Resources":
        """This machine, as it is now."""
        gpus = torch.cuda.device_count()
        gpu_memory = min((torch.cuda.mem_get_info(index)[0] for index in range(gpus)), default=None)
        return cls(os.cpu_count() or 1, gpus, free_memory(), None, gpu_memory)


def available_resources(totals: Mapping[str, float] | None = None) -> Resources:
    """Those of a Ray cluster by its totals, or this machine's where none runs."""
    return Resources.of_machine() if totals is None else Resources.of_cluster(totals)


def free_memory(root: Path = Path("/")) -> float:
    """Bytes that this machine, or the container that we are in, can still give. root: another place, for tests."""
    found: list[float] = []
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        found += [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    group = root / "sys/fs/cgroup"
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        found += [float(limit) - float(used)] if limit != "max" else []
    except (OSError, ValueError):
        pass
    return min(found)


def _given(base: Experiment) -> Given:
    """Stands in for what the data will say."""
    parts = {name: stage.model for name, stage in base.stages.items()}
    return Given(WORDS, classes=CLASSES, predicates=PREDICATES, parts=parts)


def _zeros(net: nn.Module) -> nn.Module:
    """A net of the same sizes on the CPU, all its numbers 0."""
    real = copy.deepcopy(net).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*real.parameters(), *real.buffers()):
            tensor.zero_()
    return real


def _conditions(base: Experiment) -> Batch:
    """One picture's: a label map, or as many objects as sg2im takes of COCO, each with all of its candidates."""
    most = OBJECTS
    if base.trainable.reads & {"labels", "canvases"}:
        side = base.trainable.resolution(base.model)
        flat = torch.zeros(1, side, side, dtype=torch.int64)
        return Batch(torch.zeros(1, dtype=torch.int64), labels=LabelMaps(flat, flat))
    classes, counts = torch.ones(1, most, dtype=torch.int64), torch.tensor([most])
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, most, 4)
    graphs = Graphs(classes, boxes, counts, torch.zeros(1, most, 3, dtype=torch.int64), counts)
    if base.patches is None:
        return Batch(torch.zeros(1, dtype=torch.int64), graphs=graphs)
    shape, side = (1, most, base.patches.candidates), base.patches.side
    there = torch.full(shape[:2], base.patches.candidates)
    patches = Candidates(torch.zeros(*shape, 3, side, side), torch.zeros(shape, dtype=torch.int64), there)
    return Batch(torch.zeros(1, dtype=torch.int64), graphs=graphs, candidates=patches)


class Needs:
    """What a campaign needs, in numbers; bytes and kimg."""

    def __init__(
        self, base: Experiment, settings: CampaignSettings, has: Resources, home: Home, preparation: Preparation
    ) -> None:
        self.base, self.settings, self.home, self._preparation = base, settings, home, preparation
        self.at_once = min(settings.concurrent, settings.trials)
        # Of a range the fewest must fit, and each of them has the largest share of a batch.
        self.each = base.resources.min_workers or base.resources.workers
        self.workers = self.at_once * self.each
        wanted = base.resources.use_gpu
        self.uses_gpu = has.gpus > 0 if wanted is None else wanted

    @cached_property
    def _nets(self) -> dict[str, nn.Module]:
        with torch.device("meta"):
            return self.base.trainable.build(self.base.model, _given(self.base))

    @cached_property
    def memory(self) -> dict[str, float]:
        """Bytes of one worker's tensors, by what they are for."""
        trainable, model = self.base.trainable, self.base.model
        trained = set(trainable.optimizers(model))
        sizes = {name: _bytes(net) for name, net in self._nets.items()}
        learned = sum(_bytes(self._nets[name], buffers=False) for name in trained)
        averages = sum(sizes[name] for name in trainable.averages(model))
        parameters = sum(sizes.values()) + sum(_frozen_files(model))
        if self.base.regions is not None and DETECTOR in trainable.stages(model):
            parameters += sum(_frozen_files(self.base.regions))
        # Adam keeps two moments (Kingma and Ba, 2015).
        return {
            "nets": parameters,
            "averages": averages,
            "gradients": learned,
            "optimizers": 2 * learned,
            "activations": self._activations,
        }

    @property
    def _activations(self) -> float:
        """Of a worker's micro-batch; 0 for a part, which does not draw. What learns nothing draws to be judged."""
        base, training = self.base, self.base.training
        if not base.draws:
            return 0.0
        count = training.batch_size // (training.micro_batches * self.each)
        nets, pictures = self._nets, count
        if base.trainable.reads & {"graphs", "labels", "canvases"}:
            # How many objects there are decides the shapes, which no meta tensor says: one picture, by nets of zeros.
            pictures = 1
            nets = {name: _zeros(net) for name, net in nets.items() if name in base.trainable.averages(base.model)}
            for net in nets.values() if not base.learns else ():
                net.requires_grad_(True)  # or no map of a frozen net would be seen
            conditions = _conditions(base)
        else:
            width = base.trainable.text_dim(base.model)
            with torch.device("meta"):
                words = torch.empty(count, base.words.longest, width)
                text = TextFeatures(words, torch.ones(count, dtype=torch.int64), torch.empty(count, width))
                conditions = Batch(torch.empty(count, dtype=torch.int64), text=text)
        kept: list[Tensor] = []  # alive, so that no two have one address

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            drawn = base.get_system().sample(nets, base.model, conditions, range(pictures))
        own = {_address(tensor) for net in nets.values() for tensor in (*net.parameters(), *net.buffers())}
        found = {_address(tensor): tensor.untyped_storage().nbytes() for tensor in [*kept, drawn]}
        sizes = [size for address, size in found.items() if address not in own]
        if not base.learns:
            return DRAWING * DRAW_BATCH * max(sizes, default=0) / pictures
        half = training.precision == "bfloat16" or (training.precision == "auto" and self.uses_gpu)
        share = ACTIVATIONS / 2 if half else ACTIVATIONS
        return share * count / pictures * sum(sizes)

    @cached_property
    def checkpoint_bytes(self) -> float:
        """Of one checkpoint: nets that learn, averages, two moments each, and the trained text encoder."""
        trainable, model = self.base.trainable, self.base.model
        learned = [self._nets[name] for name in trainable.optimizers(model)]
        averages = [self._nets[name] for name in trainable.averages(model)]
        moments = 2 * sum(_bytes(net, buffers=False) for net in learned)
        return sum(map(_bytes, [*learned, *averages])) + moments + self._text_bytes

    @property
    def _text_bytes(self) -> float:
        for name in self.base.needed:
            stage = self.base.stages[name]
            if isinstance(get_part(stage.system), CaptionReader):
                part = get_trainable(stage.system)
                with torch.device("meta"):
                    nets = part.build(stage.model, _given(self.base))
                return sum(_bytes(nets[net]) for net in part.optimizers(stage.model))
        return 0.0

    @cached_property
    def reached(self) -> list[int]:
        """How many trials reach each rung. Halving: one in `reduction` of those at the rung before, and at least one
        (Li et al., 2018, algorithm 2); it may promote a few more early on."""
        settings = self.settings
        keep = settings.reduction if settings.scheduler == "halving" else 1
        return [max(1, settings.trials // keep**index) for index in range(len(settings.rungs))]

    @property
    def kimg(self) -> float:
        """Expected, of all trials together."""
        rungs = (0.0, *self.settings.rungs)
        return sum(count * (end - start) for count, start, end in zip(self.reached, rungs[:-1], rungs[1:], strict=True))

    @property
    def checkpoints(self) -> int:
        """At most on disk: the newest of each trial, one at each rung that it reached, one half-written at a time."""
        return self.settings.trials * self.base.training.keep_checkpoints + sum(self.reached) + self.at_once

    @cached_property
    def picture_bytes(self) -> float:
        """Of the prepared pictures that are not there yet."""
        experiment = self.base
        source = parse_source(experiment.data.source)
        splits = dict.fromkeys((experiment.data.train_split, experiment.data.validation_split))
        if source.kind == SCENES:
            options = scenes.parse_options(source.argument)
            if not is_complete(self.home.data / scenes.folder_name(options), options):
                return sum(self._picture_bytes(int(getattr(options, split, 0))) for split in splits)
        found = 0.0
        for split in splits:
            dataset = self._preparation.dataset(split)
            stage = self._preparation.pictures_stage(dataset)
            if stage is not None and not is_finished(self.home.stages / stage.folder_name):
                found += self._picture_bytes(len(dataset.records))
        return found

    def _picture_bytes(self, count: int) -> float:
        experiment = self.base
        trainable, kind = experiment.trainable, experiment.resources.pictures
        wanted = experiment.data.transform
        margin = get_transform(trainable.transform if wanted == "auto" else wanted).margin
        side = int(trainable.resolution(experiment.model) * margin)
        return count * 3 * side * side * {"none": 0.0, "png": PNG_SHARE}.get(kind, 1.0)

    @property
    def disk(self) -> float:
        return self.checkpoints * self.checkpoint_bytes + self.picture_bytes

    @cached_property
    def speed(self) -> float | None:
        """Images a second of earlier runs of the system in this home, at its resolution and with as many workers."""
        same = _likeness(self.base)
        speeds = []
        for folder in (*self.home.runs.glob("*"), *self.home.campaigns.glob("*/trials/*")):
            rates = [line["metrics"][SPEED] for line in read_metrics(folder) if SPEED in line["metrics"]]
            # The first has the warming up in it.
            if rates and _read_likeness(folder / EXPERIMENT_FILE) == same:
                speeds.append(median(rates[1:] or rates))
        return median(speeds) if speeds else None

    @property
    def hours(self) -> float | None:
        """Of training: None where nothing is trained, or nothing like it was before."""
        return None if self.speed is None or not self.kimg else self.kimg * 1000 / self.speed / self.at_once / 3600


def _likeness(experiment: Experiment) -> tuple[str, int, int]:
    resolution = experiment.trainable.resolution(experiment.model)
    return experiment.system, resolution, experiment.resources.workers


def _read_likeness(file: Path) -> tuple[str, int, int] | None:
    try:
        return _likeness(parse_experiment(json.loads(file.read_text())))
    except (OSError, ValueError, RequestError):  # of another version, or cut off
        return None


def _bytes(net: nn.Module, buffers: bool = True) -> float:
    tensors: list[Tensor] = [*net.parameters(), *(net.buffers() if buffers else ())]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _frozen_files(settings: Any) -> Iterator[float]:
    """Bytes of the pretrained nets that these settings name: on "meta" they are empty."""
    for _, value in settings:
        try:
            if isinstance(value, ImageTrunkSettings):
                file = find_trunk_weights(value)
            elif isinstance(value, PretrainedImageSettings):
                file = find_weights(value) if getattr(settings, "uses_pretrained", False) else None
            elif isinstance(value, DetectorSettings):
                given = Path(value.weights).expanduser()
                file = given if given.is_file() else None  # a folder's are counted nowhere
            else:
                continue
        except WeightsMissing:  # said when it is prepared
            continue
        yield float(file.stat().st_size) if file else 0.0


def free_disk(folder: Path) -> float:
    """Bytes free where a folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)
