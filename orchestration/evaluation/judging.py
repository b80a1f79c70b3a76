"""A generator against held-out captions, under a named protocol. Figures carry the protocol in their name."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.contract import Nets, TextFeatures
from models.encoders.image import PretrainedImageEncoder, PretrainedImageSettings, WeightsMissing
from orchestration.config import Experiment
from orchestration.data.batches import CaptionedPictures, held_out_captions
from orchestration.data.sampler import derive_seed
from orchestration.errors import RequestError
from orchestration.evaluation.distances import distances, features_of, to_bytes
from orchestration.evaluation.scenes_net import ATTRIBUTES, ScenesNet, load_judge
from orchestration.prepared import PreparedSplit

CPU = torch.device("cpu")
DRAW_BATCH = 50
NOISE_STREAM, REAL_STREAM = 200, 201

Draw = Callable[[TextFeatures, Sequence[int]], Tensor]
"""B captions' features and B seeds to pictures (B,3,H,W) in [-1, 1]."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Figures by name (`fid/scenes-net`, `accuracy/thing` ...), and how many pictures each side had."""

    protocol: str
    figures: Mapping[str, float]
    samples: int


class Judge:
    """One protocol on one held-out split; real pictures are those the captions belong to."""

    def __init__(
        self,
        protocol: str,
        split: PreparedSplit,
        judge: str | None,
        samples: int,
        seed: int,
        device: torch.device = CPU,
        real: str = "still",
    ) -> None:
        self.protocol, self.seed = protocol, seed
        self.real_seed = derive_seed(seed, REAL_STREAM) if real == "drawn" else None
        self.data: CaptionedPictures = split.open()
        self.device = device
        self.net = _feature_net(protocol, judge).to(device)
        self.items, self.captions = held_out_captions(self.data.index, samples, seed)
        self.seeds = [derive_seed(seed, NOISE_STREAM, index) for index in range(samples)]
        self.labels: dict[str, list[str]] = (
            json.loads((Path(split.labels) / "labels.json").read_text()) if split.labels else {}
        )

    def __call__(self, draw: Draw) -> Verdict:
        """Draw one picture a caption and judge them all."""
        fake = features_of(self.net, (to_bytes(draw(text, seeds)).cpu() for text, seeds in self._portions()))
        found = distances(self._real, fake)
        figures = {
            f"fid/{self.protocol}": found.fid,
            f"kid/{self.protocol}": found.kid,
            f"kid_std/{self.protocol}": found.kid_std,
        }
        if isinstance(self.net, ScenesNet):
            figures |= self._accuracy(self.net, fake)
        return Verdict(self.protocol, figures, len(self.items))

    @cached_property
    def _real(self) -> Tensor:
        """Features of the real pictures: the same for every verdict."""
        return features_of(self.net, (self.data.pixels(items, self.real_seed) for items in _split(self.items)))

    def _portions(self) -> Iterator[tuple[TextFeatures, list[int]]]:
        for start in range(0, len(self.items), DRAW_BATCH):
            captions = self.captions[start : start + DRAW_BATCH]
            yield self.data.text(captions), self.seeds[start : start + DRAW_BATCH]

    @torch.inference_mode()
    def _accuracy(self, net: ScenesNet, features: Tensor) -> dict[str, float]:
        """Share of pictures that show what their caption names, what another picture's caption names, and chance."""
        logits = net.logits(features.to(self.device))
        image_ids = self.data.image_ids[self.items]
        figures = {}
        for place, name in enumerate(ATTRIBUTES):
            seen = logits[name].argmax(1)
            shown = np.array([net.classes[name][index] for index in seen.tolist()])
            named = np.array([self.labels[str(image_id)][place] for image_id in image_ids])
            figures[f"accuracy/{name}"] = float((shown == named).mean())
            figures[f"accuracy_mismatched/{name}"] = float((shown == np.roll(named, 1)).mean())
            figures[f"chance/{name}"] = 1 / len(net.classes[name])
        return figures


def _split(items: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    for start in range(0, len(items), DRAW_BATCH):
        yield items[start : start + DRAW_BATCH]


class _EfficientNetFeatures(nn.Module):
    """uint8 pictures to ImageNet EfficientNet-lite0's 1280 pooled features, at 224 px."""

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        self.encoder = PretrainedImageEncoder(PretrainedImageSettings(name="efficientnet-lite0"))

    def forward(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.encoder(pictures.float() / 127.5 - 1)
        return features


def _feature_net(protocol: str, judge: str | None) -> nn.Module:
    if protocol == "scenes-net":
        assert judge is not None
        return load_judge(Path(judge))
    try:
        return _EfficientNetFeatures()
    except WeightsMissing as error:
        raise RequestError(f"evaluation.protocol=efficientnet-lite0: {error}, or set it to none") from error


def drawer(experiment: Experiment, nets: Nets, device: torch.device) -> Draw:
    """How an experiment's nets draw: on the device, without gradient."""
    system = experiment.get_system()

    @torch.inference_mode()
    def draw(text: TextFeatures, seeds: Sequence[int]) -> Tensor:
        on_device = TextFeatures(text.words.to(device), text.lengths.to(device), text.sentence.to(device))
        return system.sample(nets, experiment.model, on_device, seeds).float()

    return draw
