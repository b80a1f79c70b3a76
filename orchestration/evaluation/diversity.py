"""Diversity (DS): how different pictures of one caption look, by LPIPS."""

import hashlib
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.encoders.image import WeightsMissing
from models.encoders.perceptual_trunks import PUBLISHED_FILES, find_perceptual_weights
from models.encoders.trunk import RANDOM
from models.losses.lpips import Lpips, LpipsSettings, find_heads
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.metric import Array, Asked, OpenView, Result, Seen
from orchestration.evaluation.pixels import check_pictures
from orchestration.evaluation.plans import REPEATS
from orchestration.evaluation.repeats import Table, next_of_group, pairs_of
from orchestration.stages import file_sha256

PROTOCOLS = {
    "lpips-alex": "mean LPIPS v0.1 with AlexNet between pictures of one caption (RetrieveGAN, section 4.1)",
    "lpips-vgg": "the same with VGG-16 (Zhang et al., 2018)",
    "lpips-squeeze": "the same with torchvision's SqueezeNet 1.1 (Zhang et al., 2018)",
    "lpips-squeeze-caffe": "the same with SqueezeNet 1.1 as its authors trained it: not equal to lpips-squeeze",
}
MOST_ON_GPU = 32


def view_name(settings: LpipsSettings) -> str:
    """lpips-NET for a published file of weights; lpips-NET-DIGITS for another one, by its sha256; lpips-NET-random.

    Raises RequestError when a file is missing.
    """
    return _name_and_digest(settings)[0]


def _name_and_digest(settings: LpipsSettings) -> tuple[str, str]:
    try:
        weights, heads = find_perceptual_weights(settings.net, settings.weights), find_heads(settings)
    except WeightsMissing as error:
        raise RequestError(f"LPIPS cannot look: {error}") from error
    digest = file_sha256(weights) if weights else RANDOM
    unpublished = f"{settings.net}-{digest[:8] if weights else RANDOM}"
    both = hashlib.sha256(f"lpips 0.1 {digest} {file_sha256(heads)}".encode()).hexdigest()
    return f"lpips-{PUBLISHED_FILES.get(digest[:8], unpublished)}", both


class LpipsPairs:
    """Looks how far each picture is from the next one of its group: NAME/next, float32 (B,), NaN where there is none.

    On a CPU a group passes through the net by itself, so that its numbers do not depend on the portion's other groups.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, settings: LpipsSettings, device: torch.device) -> None:
        self.name, self.digest = _name_and_digest(settings)
        self.device = device
        try:
            self.net = Lpips(settings).to(device)
        except WeightsMissing as error:
            raise RequestError(f"LPIPS cannot look: {error}") from error

    @torch.inference_mode()
    def look(self, pictures: Tensor, asked: Asked) -> dict[str, Array]:
        """uint8 pictures (B,3,H,W), groups following each other. Raises RequestError for pictures too small."""
        check_pictures(pictures)
        following = next_of_group(asked.groups)
        found = np.full(len(following), np.nan, np.float32)
        for block in self._blocks(asked.groups):
            mine = following[block]
            paired = np.flatnonzero(mine >= 0)
            if not len(paired):
                continue
            try:
                maps = self.net.maps(pictures[block[0] : block[-1] + 1].to(self.device).float() / 127.5 - 1)
            except ValueError as error:
                raise RequestError(f"{self.name} cannot look: {error}") from error
            others = mine[paired] - block[0]
            first, second = ([each[torch.from_numpy(rows)] for each in maps] for rows in (paired, others))
            found[block[paired]] = self.net.between(first, second).cpu().numpy()
        if not np.isfinite(found[following >= 0]).all():
            raise RunError(f"{self.name} gave a distance that is not a number: check its weights")
        return {f"{self.name}/next": found}

    def _blocks(self, groups: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Rows of whole groups that pass through the net together."""
        most = MOST_ON_GPU if self.device.type != "cpu" else 0
        block: list[NDArray[np.int64]] = []
        for run in np.split(np.arange(len(groups)), np.flatnonzero(np.diff(groups)) + 1):
            if block and sum(map(len, block)) + len(run) > most:
                yield np.concatenate(block)
                block = []
            block.append(run)
        yield np.concatenate(block)


def open_lpips(settings: LpipsSettings) -> OpenView:
    """Opens the view in any process."""
    return partial(LpipsPairs, settings)


class Diversity:
    """Mean LPIPS over pairs of pictures of one caption; larger is more diverse, noise most of all.

    The interval is over captions. details: `std`, over pairs (RetrieveGAN's tables give mean and deviation), `pairs`,
    `captions`.
    """

    name = "diversity"
    looks_at_real: frozenset[str] = frozenset()
    plan = REPEATS

    def __init__(self, view: str = "lpips-alex") -> None:
        self.protocol, self.looks_at = view, frozenset({view})
        self._seen = Table()

    def update(self, drawn: Seen) -> None:
        self._seen.add(drawn.asked.places, drawn.asked.groups, drawn[f"{self.protocol}/next"])

    def update_real(self, real: Seen) -> None:
        """Nothing: no real picture plays a part."""

    def merge(self, other: "Diversity") -> None:
        if self.protocol != other.protocol:
            raise ValueError(f"diversity/{self.protocol} cannot add diversity/{other.protocol}")
        self._seen.merge(other._seen)

    def compute(self) -> list[Result]:
        groups, values = self._seen.read() or (np.empty(0), np.empty(0))
        pairs = pairs_of(groups, values, f"{self.name}/{self.protocol}")
        details = {
            "std": float(pairs.values.std()),
            "pairs": float(len(pairs.values)),
            "captions": float(pairs.group_count),
        }
        return [Result(self.name, self.protocol, pairs.mean(), 0, pairs.drawn, details=details)]
