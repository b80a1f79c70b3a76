"""A generator against held-out captions while it trains, in the training's own process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from models.contract import Batch
from orchestration.data.batches import CaptionedPictures
from orchestration.data.sampler import derive_seed
from orchestration.errors import RequestError
from orchestration.evaluation.accuracy import SceneAccuracy
from orchestration.evaluation.collapse import Thumbnails, Variety
from orchestration.evaluation.feature_views import open_feature_view
from orchestration.evaluation.fid import Fid
from orchestration.evaluation.kid import Kid
from orchestration.evaluation.looking import Draw, Looker, RealPictures, drawn_by
from orchestration.evaluation.metric import Metric, Result, Seen, View
from orchestration.evaluation.plans import REAL_STREAM, one_a_caption, real_images
from orchestration.prepared import PreparedSplit

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Figures by name (`fid/scenes-net`, `accuracy/thing` ...), and how many pictures were judged."""

    protocol: str
    figures: Mapping[str, float]
    samples: int


def figures_of(results: list[Result]) -> dict[str, float]:
    """Results as figures: METRIC/PROTOCOL, METRIC_low/PROTOCOL, METRIC_high/PROTOCOL, METRIC_DETAIL/PROTOCOL."""
    found: dict[str, float] = {}
    for result in results:
        estimate = result.estimate
        found |= {
            result.figure: estimate.value,
            f"{result.name}_low/{result.protocol}": estimate.low,
            f"{result.name}_high/{result.protocol}": estimate.high,
            **{f"{result.name}_{name}/{result.protocol}": value for name, value in result.details.items()},
        }
    return found


class BrokenPictures(RequestError):
    """Pictures drawn hold NaN: the training has diverged since its last step was checked."""


class Judge:
    """FID and KID under one protocol on one held-out split, how far pictures differ, and for scenes whether they show
    what captions name.

    As many real pictures as captions are judged, at most all of the split.
    """

    def __init__(
        self,
        protocol: str,
        split: PreparedSplit,
        judge: str | None,
        samples: int,
        seed: int,
        device: torch.device = CPU,
        real: str = "still",
        weights: str | None = None,
    ) -> None:
        self.protocol, self.seed, self.split, self.judge = protocol, seed, split, judge
        self.data: CaptionedPictures = split.open()
        self.view: View = open_feature_view(protocol, weights, judge, device)
        self.views: list[View] = [self.view, Thumbnails()]
        self.plan = one_a_caption(self.data.index, samples, seed)
        self.real_seed = derive_seed(seed, REAL_STREAM) if real == "drawn" else None

    def __call__(self, draw: Draw) -> Verdict:
        """Draw one picture a caption and judge them all. Raises BrokenPictures."""
        metrics: list[Metric] = [Fid(self.protocol, self.seed), Kid(self.protocol, self.seed), Variety()]
        if self.judge is not None and self.split.labels is not None:
            metrics.append(SceneAccuracy.open(Path(self.split.labels), Path(self.judge)))
        for seen in Looker(self.data, self.plan, drawn_by(_whole(draw)), self.views).all_seen():
            for metric in metrics:
                metric.update(seen)
        for seen in self._real:
            for metric in metrics:
                metric.update_real(seen)
        results = [result for metric in metrics for result in metric.compute()]
        return Verdict(self.protocol, figures_of(results), len(self.plan))

    @cached_property
    def _real(self) -> list[Seen]:
        """What is seen of the real pictures: the same for every verdict."""
        plan = real_images(self.data.index, len(self.plan))
        return list(Looker(self.data, plan, RealPictures(self.real_seed).open(CPU), self.views).all_seen())


def _whole(draw: Draw) -> Draw:
    """The same, but for NaN, which has a type of its own: weights may overflow in the very last step."""

    def checked(conditions: Batch, seeds: Sequence[int]) -> Tensor:
        pictures = draw(conditions, seeds)
        if pictures.isnan().any():
            raise BrokenPictures("pictures drawn hold NaN: training has diverged, judge an earlier checkpoint")
        return pictures

    return checked
