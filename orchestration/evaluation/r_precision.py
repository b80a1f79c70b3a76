"""R-precision: does a picture find its caption among wrong ones? Figures carry the protocol in their name.

Captions are ranked by the cosine of their embedding and the picture's. With R = 1 true caption among 100, R-precision
is the share of pictures whose true caption is first (AttnGAN, section 4), or in the first 2 or 3 (MirrorGAN, section
4.1.2). The papers differ in the wrong captions, hence the protocols:

    1+99                 of 99 other images, drawn for each picture (AttnGAN, section 4; MirrorGAN, section 4.1.2)
    1+99-other-classes   of 99 images of other classes (DM-GAN's released code: for CUB, other species)
    batch-100            those of the picture's own batch of 100 (CPGAN's released code)

Other counts have other names (1+37, batch-16). A wrong caption that the encoder cannot tell from the true one comes
before it. In DM-GAN's released code the true one wins ties: an encoder that gives all the same vector scores 1 there.

The papers' encoder is the DAMSM that the generator was trained against. XMC-GAN's is one that no generator was trained
against (section 5.2): such a figure has the encoder's name in its protocol, as dual-NAME/1+99.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from orchestration.data.sampler import derive_seed, mix
from orchestration.errors import RequestError
from orchestration.evaluation.estimates import share
from orchestration.evaluation.metric import Result, Seen
from orchestration.stages import write_atomically

NAME = "r_precision"
OWN_MATCHER, INDEPENDENT = "damsm", "dual-"
TOPS = (1, 2, 3)
# Cosines of float32 embeddings differ by this much with the size of the batch alone: less is a tie.
TIE = 1e-6
POOL_STREAM = 300
CHUNK_NUMBERS = 2**22
PROTOCOLS: Mapping[str, str] = {
    "r_precision/1+99": "the true caption among 99 of other images, drawn for each picture (AttnGAN, section 4; "
    "MirrorGAN, section 4.1.2)",
    "r_precision/1+99-other-classes": "the true caption among 99 of images of other classes (DM-GAN's released code)",
    "r_precision/batch-100": "the true caption among those of the picture's own batch of 100 (CPGAN's released code)",
    "r_precision/dual-NAME/1+99": "as 1+99, by a dual encoder that no generator was trained against (XMC-GAN, section "
    "5.2)",
}
_PROTOCOL = re.compile(r"(?P<kind>1\+|batch-)(?P<count>\d{1,6})(?P<classes>-other-classes)?", re.ASCII)


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
class Pools:
    """Which captions each picture was ranked against, and of which data: with it the same ranks come again.

    places, image_ids, captions: (N,) int64 of the samples, captions as fingerprints of their texts. listed: (M,1+K)
    int64, places of the samples whose captions are ranked, the picture's own first; -1 where a batch holds another
    caption of the same image.
    """

    protocol: str
    seed: int
    places: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    captions: NDArray[np.int64]
    listed: NDArray[np.int64]


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    protocol: str
    seed: str


_ARRAYS = ("places", "image_ids", "captions", "listed")


def save_pools(pools: Pools, path: Path) -> None:
    """Write pools as safetensors, whole or not at all: 24 MB for 30,000 pictures of 1+99."""
    arrays = {name: np.ascontiguousarray(getattr(pools, name)) for name in _ARRAYS}
    write_atomically(path, save(arrays, {"protocol": pools.protocol, "seed": str(pools.seed)}))


def load_pools(path: Path) -> Pools:
    """What `save_pools` wrote. Raises RequestError for anything else."""
    try:
        with safe_open(path, "numpy") as file:
            header = msgspec.convert(file.metadata() or {}, _Header)
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
        pools = Pools(header.protocol, int(header.seed), **arrays)
        _check_pools(pools)
    except (OSError, ValueError, SafetensorError, msgspec.ValidationError) as error:
        raise RequestError(
            f"{path} holds no pools of {NAME} ({error}): give a file that an evaluation stored"
        ) from error
    return pools


def _check_pools(pools: Pools) -> None:
    one_each = {pools.places.shape, pools.image_ids.shape, pools.captions.shape}
    if {getattr(pools, name).dtype for name in _ARRAYS} != {np.dtype(np.int64)}:
        raise ValueError("its numbers are not int64")
    if len(one_each) > 1 or pools.places.ndim != 1 or pools.listed.ndim != 2 or pools.listed.shape[1] < 2:
        raise ValueError("its arrays do not fit each other")
    if (np.diff(pools.places) <= 0).any() or not np.isin(pools.listed, np.append(pools.places, -1)).all():
        raise ValueError("it lists samples that it does not have")
    if not len(pools.listed) or (pools.listed[:, 0] < 0).any():
        raise ValueError("a picture's own caption is missing")


def fingerprint(text: str) -> int:
    """63 bits of a text's sha256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class _Embedded:
    """places, image_ids, groups, captions: (N,) int64; picture, caption: (N,C) float32."""

    places: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    groups: NDArray[np.int64]
    captions: NDArray[np.int64]
    picture: NDArray[np.float32]
    caption: NDArray[np.float32]

    def __getitem__(self, rows: NDArray[np.int64]) -> "_Embedded":
        return _Embedded(*(getattr(self, column.name)[rows] for column in fields(self)))


class RPrecision:
    """R-precision under one protocol, by the embeddings VIEW/picture and VIEW/caption (B,C).

    protocol: 1+K, 1+K-other-classes or batch-K; RequestError for another. seed: of the wrong captions of 1+K. view: the
    encoder; it is part of the protocol where its name begins with "dual-". pools: those of an earlier evaluation, to be
    used again. It keeps every embedding, 60 MB for 30,000 pictures of width 256, and takes 0.4 GB while it computes. A
    place that comes twice counts once.
    """

    name = NAME
    plan = "captions"
    looks_at_real: frozenset[str] = frozenset()

    def __init__(
        self, protocol: str = "1+99", seed: int = 0, view: str = OWN_MATCHER, pools: Pools | None = None
    ) -> None:
        match = _PROTOCOL.fullmatch(protocol)
        least = 2 if protocol.startswith("batch-") else 1
        if match is None or int(match["count"]) < least or (match["kind"] == "batch-" and match["classes"]):
            raise RequestError(
                f"{NAME} has no protocol {protocol!r}: use 1+99, 1+99-other-classes or batch-100, or another number"
            )
        if pools is not None and pools.protocol != protocol:
            raise RequestError(
                f"the stored pools are of {NAME}/{pools.protocol}, and {NAME}/{protocol} is asked for: ask for theirs"
            )
        self.protocol = f"{view}/{protocol}" if view.startswith(INDEPENDENT) else protocol
        self.seed, self.view = seed, view
        self.looks_at = frozenset({view})
        self._pooling, self._stored = protocol, pools
        self._batches, self._count = match["kind"] == "batch-", int(match["count"])
        self._by_class = match["classes"] is not None
        self._parts: list[_Embedded] = []

    def update(self, drawn: Seen) -> None:
        """Add B pictures and their true captions. Raises ValueError for shapes that do not fit."""
        asked = drawn.asked
        picture, caption = (drawn[f"{self.view}/{array}"] for array in ("picture", "caption"))
        lengths = {len(asked.places), len(asked.image_ids), len(asked.class_ids), len(asked.texts)}
        if (
            {len(picture), len(caption)} | lengths != {len(drawn)}
            or picture.ndim != 2
            or picture.shape != caption.shape
        ):
            raise ValueError(
                f"B places, image ids, classes and texts and two (B,C) are wanted, not {len(asked.places)}, "
                f"{len(asked.image_ids)}, {len(asked.class_ids)}, {len(asked.texts)}, {picture.shape} and "
                f"{caption.shape}"
            )
        groups = asked.class_ids if self._by_class else asked.image_ids
        captions = np.array([fingerprint(text) for text in asked.texts], np.int64)
        embedded = (np.array(array, np.float32) for array in (picture, caption))
        self._parts.append(_Embedded(asked.places, asked.image_ids, groups, captions, *embedded))

    def update_real(self, real: Seen) -> None:
        """Real pictures play no part: to judge them as a generator is judged, give them to `update`."""

    def merge(self, other: Self) -> None:
        """Add what another worker saw. Raises ValueError for another protocol or seed."""
        if (self.protocol, self.seed) != (other.protocol, other.seed):
            raise ValueError(f"{other.protocol} with seed {other.seed} is not {self.protocol} with seed {self.seed}")
        self._parts += other._parts

    def pools(self) -> Pools:
        """Which captions each picture is ranked against. Raises RequestError for too few pictures."""
        seen = self._whole()
        listed, wrong = self._listed(seen)
        places = np.where(np.pad(wrong, ((0, 0), (1, 0)), constant_values=True), seen.places[listed], -1)
        return Pools(self._pooling, self.seed, seen.places, seen.image_ids, seen.captions, places)

    def ranks(self) -> NDArray[np.int64]:
        """Wrong captions before the true one, for each picture that is judged, by place.

        batch-K judges places 0 to K-1, K to 2K-1 and so on, and leaves batches out that are not whole. Raises
        RequestError for too few pictures, and for stored pools of other data.
        """
        return self._ranks()[0]

    def compute(self) -> list[Result]:
        """`r_precision/PROTOCOL/top-1`, and top-2 and top-3 where there are captions enough. Raises as `ranks`."""
        ranks, best = self._ranks()
        others = self._count - 1 if self._batches else self._count
        notes: tuple[str, ...] = ()
        if tied := int(((best == 0) & (ranks > 0)).sum()):
            notes = (
                f"in {tied} of {len(ranks)} pictures the encoder gives a wrong caption the very score of the true one, "
                "none being better: such ties count against the picture",
            )
        details = {"tied": tied / len(ranks)}
        return [
            Result(NAME, f"{self.protocol}/top-{top}", share(ranks < top), 0, len(ranks), notes, details)
            for top in TOPS
            if top <= others
        ]

    def _ranks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(M,) wrong captions before the true one; and how many there would be if it won its ties."""
        seen = self._whole()
        listed, wrong = self._listed(seen)
        pictures, captions = _unit(torch.from_numpy(seen.picture)), _unit(torch.from_numpy(seen.caption))
        found, best = [], []
        chunk = max(1, CHUNK_NUMBERS // (listed.shape[1] * pictures.shape[1]))
        for start in range(0, len(listed), chunk):
            rows = torch.from_numpy(listed[start : start + chunk])
            scores = _products(pictures[rows[:, 0]], captions[rows])
            scores[:, 1:].masked_fill_(~torch.from_numpy(wrong[start : start + chunk]), -torch.inf)
            found.append(true_ranks(scores).numpy())
            # What is no number is no tie: it stays before the true caption.
            best.append((~(scores[:, 1:] <= scores[:, :1] + TIE)).sum(1).numpy())
        return np.concatenate(found), np.concatenate(best)

    def _whole(self) -> _Embedded:
        """All samples by place, each once."""
        if not sum(len(part.places) for part in self._parts):
            raise RequestError(f"{NAME}/{self.protocol} has no pictures to judge: give it some")
        columns = [np.concatenate([getattr(part, item.name) for part in self._parts]) for item in fields(_Embedded)]
        return _Embedded(*columns)[np.unique(columns[0], return_index=True)[1]]

    def _listed(self, seen: _Embedded) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(M,1+K) rows whose captions are ranked for M pictures, their own first; (M,K) which others are wrong."""
        if self._stored is not None:
            return _stored_rows(self._stored, seen)
        if self._batches:
            return self._batch_mates(seen)
        others = draw_others(seen.places, seen.image_ids, seen.groups, self._count, self.seed)
        return np.column_stack([np.arange(len(others)), others]), np.ones(others.shape, np.bool_)

    def _batch_mates(self, seen: _Embedded) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """An image that was drawn twice into a batch has two true captions there: neither is wrong for the other."""
        batches, sizes = np.unique(seen.places // self._count, return_counts=True)
        whole = batches[sizes == self._count]
        rows = np.flatnonzero(np.isin(seen.places // self._count, whole))
        if not len(rows):
            raise RequestError(
                f"{NAME}/{self.protocol} needs a whole batch of {self._count} pictures, and {len(seen.places)} were "
                "judged: judge more"
            )
        steps = np.arange(self._count)
        others = np.stack([steps[steps != place] for place in steps])  # row i: all but i
        mates = rows.reshape(-1, self._count)[:, others].reshape(len(rows), -1)
        return np.column_stack([rows, mates]), seen.image_ids[mates] != seen.image_ids[rows, None]


def _stored_rows(pools: Pools, seen: _Embedded) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    for name, what in (("places", "samples"), ("image_ids", "images"), ("captions", "captions")):
        if not np.array_equal(getattr(pools, name), getattr(seen, name)):
            raise RequestError(
                f"the stored pools of {NAME}/{pools.protocol} are of other {what} than those judged: judge the data "
                "that they were stored for, or leave them out"
            )
    rows = np.searchsorted(pools.places, np.maximum(pools.listed, pools.places[0]))
    return rows, pools.listed[:, 1:] >= 0
