"""R-precision: does a picture find its caption among wrong ones? Figures carry the protocol in their name.

Captions are ranked by the cosine of their embedding and the picture's. With R = 1 true caption among 100, R-precision
is the share of pictures whose true caption is first (AttnGAN, section 4), or in the first 2 or 3 (MirrorGAN, section
4.1.2). The papers differ in the wrong captions, hence the protocols:

    1+99                 of 99 other images, drawn for each picture (AttnGAN, section 4; MirrorGAN, section 4.1.2)
    1+99-other-classes   of 99 images of other classes (DM-GAN's released code: for CUB, other species)
    batch-100            those of the picture's own batch of 100 (CPGAN's released code)

Other counts have other names (1+37, batch-16). A wrong caption that the encoder cannot tell from the true one comes
before it. In DM-GAN's released code the true one wins ties: an encoder that gives all the same vector scores 1 there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from orchestration.data.sampler import derive_seed, mix
from orchestration.errors import RequestError

NAME = "r_precision"
TOPS = (1, 2, 3)
# Cosines of float32 embeddings differ by this much with the size of the batch alone: less is a tie.
TIE = 1e-6
POOL_STREAM = 300
QUANTILE_95 = 1.959964
CHUNK_NUMBERS = 2**22
_PROTOCOL = re.compile(r"(?P<kind>1\+|batch-)(?P<count>\d{1,6})(?P<classes>-other-classes)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure between `low` and `high` (95 %), from `count` pictures."""

    value: float
    low: float
    high: float
    count: int


def share(hits: NDArray[np.bool_]) -> Estimate:
    """The share of hits, with Wilson's score interval (1927): in [0, 1], and not empty at 0 and 1.

    It takes pictures as independent; captions that serve several pictures make the truth a little wider. Raises
    ValueError for no pictures.
    """
    count = len(hits)
    if not count:
        raise ValueError("no pictures to take a share of")
    value, spread = float(hits.mean()), QUANTILE_95**2 / count
    centre = (value + spread / 2) / (1 + spread)
    half = (spread * (value * (1 - value) + spread / 4)) ** 0.5 / (1 + spread)
    return Estimate(value, max(0.0, centre - half), min(1.0, centre + half), count)


def figures(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Estimates METRIC/PROTOCOL/... as figures of a verdict: each beside METRIC_low/... and METRIC_high/..."""
    found: dict[str, float] = {}
    for name, estimate in estimates.items():
        metric, _, rest = name.partition("/")
        found |= {
            name: estimate.value,
            f"{metric}_low/{rest}": estimate.low,
            f"{metric}_high/{rest}": estimate.high,
        }
    return found


def cosines(pictures: Tensor, captions: Tensor) -> Tensor:
    """(B,C) and (B,K,C) to (B,K) float64 in [-1, 1]; 0 for a vector without length."""
    return _products(_unit(pictures), _unit(captions))


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.double(), dim=-1)


def _products(pictures: Tensor, captions: Tensor) -> Tensor:
    return (captions @ pictures[:, :, None]).squeeze(2)


def true_ranks(scores: Tensor) -> Tensor:
    """(B,1+K) scores, column 0 of the true caption, to (B,) int64: wrong captions that come before it.

    What is not clearly below the true one comes before it: ties (within 1e-6), and scores that are not numbers.
    """
    below = scores[:, 1:] < scores[:, :1] - TIE
    return (~below).sum(1)


def most_others(image_ids: NDArray[np.int64], groups: NDArray[np.int64] | None = None) -> int:
    """The largest K for which protocol 1+K can be had: captions of other images, or of other groups (N,)."""
    images, first = np.unique(image_ids, return_index=True)
    if groups is None:
        return len(images) - 1
    return int(len(images) - np.unique(groups[first], return_counts=True)[1].max())


def draw_others(
    positions: NDArray[np.int64], image_ids: NDArray[np.int64], groups: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """(N,count) rows whose captions are wrong for each of N pictures, in rising order.

    Each is of another group (N,) than the picture's, no two are of one image, and all such sets are as likely. Rows of
    one image share a group. A picture's set depends on the seed and its position (N,). Raises RequestError where there
    are too few.
    """
    _, rows = np.unique(image_ids, return_index=True)
    chunk = max(1, CHUNK_NUMBERS // len(rows))
    drawn = []
    for start in range(0, len(positions), chunk):
        part = slice(start, start + chunk)
        numbers = positions[part, None] * len(rows) + np.arange(len(rows))
        # The least of random keys, as the order of the data is made; what may not be drawn has the greatest.
        keys = mix(derive_seed(seed, POOL_STREAM), 0, numbers)
        own = groups[part, None] == groups[rows]
        free = len(rows) - own.sum(1)
        if free.min(initial=count) < count:
            place = start + int(free.argmin())
            raise RequestError(
                f"{NAME} asks for {count} captions that are wrong for image {image_ids[place]}, and the pictures "
                f"judged have {free.min()}: judge more pictures, or ask for fewer captions"
            )
        keys[own] = np.iinfo(np.uint64).max
        drawn.append(np.sort(rows[np.argpartition(keys, count - 1, axis=1)[:, :count]], axis=1))
    return np.concatenate(drawn)


@dataclass(frozen=True, slots=True)
class _Embedded:
    """positions, image_ids, groups: (N,); pictures, captions: (N,C) float32 on the CPU."""

    positions: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    groups: NDArray[np.int64]
    pictures: Tensor
    captions: Tensor


class RPrecision:
    """R-precision under one protocol. However pictures come, in batches or from workers, the result is the same.

    protocol: 1+K, 1+K-other-classes or batch-K; RequestError for another. seed: of the wrong captions of 1+K. It keeps
    every embedding: 60 MB for 30,000 pictures of width 256.
    """

    def __init__(self, protocol: str = "1+99", seed: int = 0) -> None:
        match = _PROTOCOL.fullmatch(protocol)
        least = 2 if protocol.startswith("batch-") else 1
        if match is None or int(match["count"]) < least or (match["kind"] == "batch-" and match["classes"]):
            raise RequestError(
                f"{NAME} has no protocol {protocol!r}: use 1+99, 1+99-other-classes or batch-100, or another number"
            )
        self.protocol, self.seed = protocol, seed
        self._batches, self._count = match["kind"] == "batch-", int(match["count"])
        self._by_class = match["classes"] is not None
        self._parts: list[_Embedded] = []

    def update(
        self,
        positions: NDArray[np.int64],
        image_ids: NDArray[np.int64],
        pictures: Tensor,
        captions: Tensor,
        class_ids: NDArray[np.int64] | None = None,
    ) -> None:
        """Add B pictures (B,C) and their true captions (B,C).

        positions: (B,) places in the whole evaluation, from 0: they name the samples, and one that comes twice counts
        once. image_ids: (B,); class_ids: (B,), for 1+K-other-classes. Raises ValueError for shapes that do not fit.
        """
        if self._by_class and class_ids is None:
            raise ValueError(f"{self.protocol} needs class_ids")
        groups = class_ids if self._by_class and class_ids is not None else image_ids
        lengths = {len(positions), len(image_ids), len(groups), len(pictures), len(captions)}
        if len(lengths) > 1 or pictures.ndim != 2 or pictures.shape != captions.shape:
            raise ValueError(
                f"B positions, image ids and classes and two (B,C) are wanted, not {len(positions)}, "
                f"{len(image_ids)}, {len(groups)}, {tuple(pictures.shape)} and {tuple(captions.shape)}"
            )
        kept = (embedding.detach().float().cpu() for embedding in (pictures, captions))
        self._parts.append(_Embedded(positions, image_ids, groups, *kept))

    def merge(self, other: "RPrecision") -> None:
        """Add what another worker saw. Raises ValueError for another protocol or seed."""
        if (self.protocol, self.seed) != (other.protocol, other.seed):
            raise ValueError(f"{other.protocol} with seed {other.seed} is not {self.protocol} with seed {self.seed}")
        self._parts += other._parts

    def ranks(self) -> NDArray[np.int64]:
        """Wrong captions before the true one, for each picture that is judged, by position.

        batch-K judges positions 0 to K-1, K to 2K-1 and so on, and leaves batches out that are not whole. Raises
        RequestError for too few pictures.
        """
        seen = self._whole()
        pictures, captions = _unit(seen.pictures), _unit(seen.captions)
        rows, others, wrong = self._batch_mates(seen) if self._batches else self._pool(seen)
        found = []
        chunk = max(1, CHUNK_NUMBERS // (others.shape[1] * pictures.shape[1]))
        for start in range(0, len(rows), chunk):
            part = slice(start, start + chunk)
            listed = torch.from_numpy(np.concatenate([rows[part, None], others[part]], 1))
            scores = _products(pictures[listed[:, 0]], captions[listed])
            scores[:, 1:].masked_fill_(~torch.from_numpy(wrong[part]), -torch.inf)
            found.append(true_ranks(scores).numpy())
        return np.concatenate(found)

    def compute(self) -> dict[str, Estimate]:
        """`r_precision/PROTOCOL/top-1`, and top-2 and top-3 where there are captions enough. Raises as `ranks`."""
        ranks = self.ranks()
        others = self._count - 1 if self._batches else self._count
        return {f"{NAME}/{self.protocol}/top-{top}": share(ranks < top) for top in TOPS if top <= others}

    def _whole(self) -> _Embedded:
        """All samples by position, each once."""
        if not sum(len(part.positions) for part in self._parts):
            raise RequestError(f"{NAME}/{self.protocol} has no pictures to judge: give it some")
        columns = [[getattr(part, field.name) for part in self._parts] for field in fields(_Embedded)]
        numbers = [np.concatenate(column) for column in columns[:3]]
        positions, order = np.unique(numbers[0], return_index=True)
        pictures, captions = (torch.cat(column)[torch.from_numpy(order)] for column in columns[3:])
        return _Embedded(positions, numbers[1][order], numbers[2][order], pictures, captions)

    def _pool(self, seen: _Embedded) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        others = draw_others(seen.positions, seen.image_ids, seen.groups, self._count, self.seed)
        return np.arange(len(others)), others, np.ones(others.shape, np.bool_)

    def _batch_mates(self, seen: _Embedded) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """An image that was drawn twice into a batch has two true captions there: neither is wrong for the other."""
        batches, sizes = np.unique(seen.positions // self._count, return_counts=True)
        whole = batches[sizes == self._count]
        rows = np.flatnonzero(np.isin(seen.positions // self._count, whole))
        if not len(rows):
            raise RequestError(
                f"{NAME}/{self.protocol} needs a whole batch of {self._count} pictures, and {len(seen.positions)} were "
                "judged: judge more"
            )
        steps = np.arange(self._count)
        others = np.stack([steps[steps != place] for place in steps])  # row i: all but i
        mates = rows.reshape(-1, self._count)[:, others].reshape(len(rows), -1)
        return rows, mates, seen.image_ids[mates] != seen.image_ids[rows, None]
