"""The judge of generated scenes: a small net that names background, colour and thing, and whose features give FID.

It is trained by a stage of its own on real scenes drawn with a seed of its own: it never sees a generated picture, and
no training loss ever sees it.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orchestration.config import Experiment
from orchestration.data.masks import label_map
from orchestration.data.records import Dataset, ImageRecord
from orchestration.data.sampler import SeededOrder
from orchestration.data.scenes import parse_options
from orchestration.data.sources import open_source, parse_source
from orchestration.data.transforms import TRANSFORMS, decode
from orchestration.errors import RequestError, RunError
from orchestration.home import Home
from orchestration.stages import Progress, Stage

VERSION = 1
ATTRIBUTES = ("background", "colour", "thing")
FEATURES = 128
# COCO-Stuff's pixel maps: things below 91, stuff from 91, 255 nothing.
FIRST_STUFF_LABEL, UNLABELLED = 91, 255
# Added to the data's own seed: the judge's scenes are never the GAN's.
SEED_OFFSET = 7919
TRAIN_IMAGES, HELD_OUT_IMAGES = 4000, 500
EPOCHS, BATCH, LEARNING_RATE = 5, 64, 2e-3


def named_attributes(record: ImageRecord) -> tuple[str, str, str]:
    """Background, colour and thing that every caption of a scene names: those of its main object.

    The background is the label that fills most of the stuff map.
    """
    if record.graph is None or not record.graph.objects or record.stuff_map is None:
        raise RequestError(f"image {record.image_id} has no scene graph or stuff map: scenes-net judges scenes only")
    labels = label_map(record).reshape(-1)
    stuff = labels[(labels >= FIRST_STUFF_LABEL) & (labels != UNLABELLED)]
    main = record.graph.objects[0]
    return f"stuff {np.bincount(stuff).argmax()}", main.attributes[0], main.name


class ScenesNet(nn.Module):
    """Pictures (B,3,H,W) uint8 to logits of each attribute, and (B,128) features."""

    def __init__(self, classes: dict[str, list[str]]) -> None:
        super().__init__()
        self.classes = classes
        widths = (3, 24, 48, 96, FEATURES)
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(width, out, 3, padding=1, stride=1 if index == 0 else 2, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(),
                )
                for index, (width, out) in enumerate(pairwise(widths))
            )
        )
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(classes[name])) for name in ATTRIBUTES})
        self.num_features = FEATURES

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 pictures to features: the form in which torchmetrics asks for them."""
        x = pictures.float() / 127.5 - 1
        if x.shape[-1] != 32:
            x = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
        features: Tensor = self.body(x).amax((2, 3))
        return features

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """Features to logits by attribute."""
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True, slots=True)
class LabelledScenes:
    """Pictures (N,3,32,32) uint8 and class indices by attribute (N,)."""

    pictures: NDArray[np.uint8]
    labels: dict[str, NDArray[np.int64]]


def judge_source(experiment: Experiment) -> str:
    """The scenes the judge learns from: the same classes, its own seed and pictures."""
    options = parse_options(parse_source(experiment.data.source).argument)
    changed = options.model_copy(
        update={
            "seed": (options.seed + SEED_OFFSET) % 2**31,
            "train": TRAIN_IMAGES,
            "val": HELD_OUT_IMAGES,
            "test": HELD_OUT_IMAGES,
        }
    )
    return "scenes:" + ",".join(f"{name}={value}" for name, value in changed.model_dump().items())


def judge_stage(experiment: Experiment, home: Home) -> Stage:
    """The stage that draws the judge's scenes, trains it and measures it on held-out ones."""
    source = judge_source(experiment)

    def run(folder: Path, progress: Progress) -> None:
        train = read_scenes(source, "train", home, progress)
        held_out = read_scenes(source, "val", home, progress)
        classes = {name: sorted({row[index] for row in train[1]}) for index, name in enumerate(ATTRIBUTES)}
        net = train_judge(_labelled(*train, classes), classes, progress)
        accuracy = judge_accuracy(net, _labelled(*held_out, classes))
        try:
            save_file(net.state_dict(), folder / "judge.safetensors")
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error
        (folder / "judge.json").write_text(
            json.dumps({"classes": classes, "accuracy_on_real": accuracy, "source": source}, indent=1)
        )

    settings = {"source": source, "epochs": EPOCHS, "batch": BATCH, "learning_rate": LEARNING_RATE}
    return Stage("scenes-judge", VERSION, settings, {}, run)


def read_scenes(
    source: str, split: str, home: Home, progress: Progress
) -> tuple[NDArray[np.uint8], list[tuple[str, str, str]]]:
    """Pictures at 32 px and the attributes their captions name, of a split of scenes."""
    dataset = open_source(source, split, home.root, lambda done, total: progress("drawing scenes", done, total))
    squash = TRANSFORMS["xmcgan"]
    pictures = np.stack([squash.store(decode(record.file), record, 32) for record in dataset.records])
    return pictures, [named_attributes(record) for record in dataset.records]


def labels_stage(dataset: Dataset) -> Stage:
    """The stage that reads off what each picture's captions name: labels.json, image id to three words."""

    def run(folder: Path, progress: Progress) -> None:
        labels = {str(record.image_id): named_attributes(record) for record in dataset.records}
        (folder / "labels.json").write_text(json.dumps(labels))

    return Stage("scenes-labels", VERSION, {"split": dataset.split}, {"data": dataset.digest}, run)


def _labelled(
    pictures: NDArray[np.uint8], names: list[tuple[str, str, str]], classes: dict[str, list[str]]
) -> LabelledScenes:
    labels = {
        attribute: np.array([classes[attribute].index(row[index]) for row in names])
        for index, attribute in enumerate(ATTRIBUTES)
    }
    return LabelledScenes(pictures, labels)


def train_judge(scenes: LabelledScenes, classes: dict[str, list[str]], progress: Progress) -> ScenesNet:
    """Supervised training, every second batch flipped. Deterministic for a given machine and number of threads."""
    torch.manual_seed(0)
    net = ScenesNet(classes)
    count = len(scenes.pictures)
    steps = EPOCHS * count // BATCH
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    order = SeededOrder(count, 0)
    for step in range(steps):
        items = order.items(np.arange(step * BATCH, (step + 1) * BATCH))
        pictures = torch.from_numpy(scenes.pictures[items])
        if step % 2:
            pictures = pictures.flip(3)
        logits = net.logits(net(pictures))
        losses = [
            F.cross_entropy(logits[name], torch.from_numpy(scenes.labels[name][items]), label_smoothing=0.05)
            for name in ATTRIBUTES
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(losses).sum())
        optimizer.step()
        schedule.step()
        progress("training the judge", step + 1, steps)
    return net.eval()


@torch.inference_mode()
def judge_accuracy(net: ScenesNet, scenes: LabelledScenes) -> dict[str, float]:
    """Share of pictures whose attribute the judge names rightly."""
    logits = net.logits(torch.cat([net(torch.from_numpy(part)) for part in np.array_split(scenes.pictures, 8)]))
    return {name: float((logits[name].argmax(1).numpy() == scenes.labels[name]).mean()) for name in ATTRIBUTES}


def load_judge(folder: Path) -> ScenesNet:
    """The trained judge of a stage folder, frozen."""
    try:
        net = ScenesNet(json.loads((folder / "judge.json").read_text())["classes"])
        net.load_state_dict(load_file(folder / "judge.safetensors"))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RunError(f"the judge in {folder} cannot be read ({error}): delete that folder and repeat") from error
    return net.requires_grad_(False).eval()
