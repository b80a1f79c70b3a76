"""Region features of a split: the salient boxes of every picture, found once by a stage or brought by a person.

A folder holds regions.json (`About`) and five arrays: image_ids (N,) int64; boxes (N,R,4) float32, x0, y0, x1, y1 in
[0, 1] of the centre of each picture as it is made ready for training; features (N,R,F) float16; scores (N,R) float32
in [0, 1], the highest first; counts (N,) int64, how many of the R places are filled. docs/data.md makes one.
"""

import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Given, Regions
from models.encoders.regions import RegionNet, open_region_net
from orchestration.data.array_files import map_array, map_arrays, read_about
from orchestration.errors import RequestError
from orchestration.mapping import join_blocks, map_blocks
from orchestration.stages import Progress, file_sha256, short_hash, write_atomically

VERSION = 1
FORMAT = 1
ABOUT = "regions.json"
BLOCK = 64  # pictures between two files: a multiple of FIND_BATCH
FIND_BATCH = 16
ARRAYS: Mapping[str, tuple[str, str]] = {
    "image_ids": ("int64", "N"),
    "boxes": ("float32", "N,R,4"),
    "features": ("float16", "N,R,F"),
    "scores": ("float32", "N,R"),
    "counts": ("int64", "N"),
}
"""Type and shape of each array."""
_AGAIN = "write it again as docs/data.md says"
_NAMED = 3  # images that a message names


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What regions.json says.

    detector: what found the boxes, in words; digest: of its weights and settings, `RegionNet.digest`; feature_dim: F;
    count: R; pictures: digest of the data that they were found in, none where it is not known; classes: names that the
    detector knows, none where it names nothing.
    """

    format: int
    detector: str
    digest: str
    feature_dim: int
    count: int
    pictures: str | None = None
    classes: list[str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RegionFeatures:
    """Boxes and features of pictures, memory-mapped: a `models.contract.RegionStore`.

    rows: (items,) the row of each picture of a split; the arrays' own order until `of` says otherwise.
    """

    folder: Path
    about: About
    image_ids: NDArray[np.int64]
    boxes: NDArray[np.float32]
    features: NDArray[np.float16]
    scores: NDArray[np.float32]
    counts: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, image_ids: NDArray[np.int64], pictures: str | None = None) -> "RegionFeatures":
        """The same, in the order of a split's pictures; there may be regions of others too.

        pictures: digest of the split's data. Raises RequestError where a picture has no entry, and where the regions
        were found in other data.
        """
        if pictures is not None and self.about.pictures is not None and self.about.pictures != pictures:
            raise RequestError(
                f"{self.folder / ABOUT} says that the regions were found in the pictures {self.about.pictures[:12]}, "
                f"and these are {pictures[:12]}: give regions of these pictures, or leave `pictures` out of that file"
            )
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids.tolist())}
        missing = [image_id for image_id in image_ids.tolist() if image_id not in row_of]
        if missing:
            named = ", ".join(map(str, missing[:_NAMED])) + (" ..." if len(missing) > _NAMED else "")
            raise RequestError(
                f"{self.folder / 'image_ids.npy'} lacks {len(missing)} of the {len(image_ids)} images that are read "
                f"({named}), so it is of another image set: give regions of this data and split"
            )
        rows = np.array([row_of[image_id] for image_id in image_ids.tolist()], np.int64)
        return replace(self, rows=rows)

    def batch(self, items: NDArray[np.int64]) -> Regions:
        """The regions of B pictures of the split, as float32; what is beyond a picture's count is zero."""
        rows = self.rows[items]
        counts = self.counts[rows]
        filled = np.arange(self.about.count)[None, :] < counts[:, None]
        boxes = np.where(filled[:, :, None], self.boxes[rows], np.float32(0))
        features = np.where(filled[:, :, None], self.features[rows], np.float16(0)).astype(np.float32)
        scores = np.where(filled, self.scores[rows], np.float32(0))
        return Regions(*map(torch.from_numpy, (boxes, features, scores, counts)))

    def take(self, items: Tensor, places: Tensor) -> Tensor:
        """(M,F) float32: the features of box `places[m]` of picture `items[m]`; both (M,) int64."""
        return torch.from_numpy(self.features[self.rows[items.numpy()], places.numpy()].astype(np.float32))


def open_regions(folder: Path) -> RegionFeatures:
    """Map the regions in a folder. Raises RequestError for all that is not as the module says, but NaN in features."""
    about = _read_about(folder / ABOUT)
    count = len(map_array(folder / "image_ids.npy", ARRAYS["image_ids"][0], _AGAIN))
    sizes = {"N": count, "R": about.count, "F": about.feature_dim}
    arrays = map_arrays(folder, ARRAYS, sizes, f"{ABOUT} and image_ids.npy", _AGAIN)
    small = {name: np.array(arrays[name]) for name in ("image_ids", "boxes", "scores", "counts")}
    found = RegionFeatures(
        folder,
        about,
        features=arrays["features"],
        rows=np.arange(count),
        **small,
    )
    _check_values(found)
    return found


def _read_about(file: Path) -> About:
    about = read_about(file, About, FORMAT, "regions", _AGAIN)
    if about.count < 1 or about.feature_dim < 1:
        raise RequestError(
            f"{file} has count {about.count} and feature_dim {about.feature_dim}, and both are 1 or more: {_AGAIN}"
        )
    return about


def _check_values(found: RegionFeatures) -> None:
    """Raises RequestError for the first picture whose boxes, scores or count cannot be."""
    filled = np.arange(found.about.count)[None, :] < found.counts[:, None]
    low, high = found.boxes[:, :, :2], found.boxes[:, :, 2:]
    falling = np.ones(filled.shape, bool)
    falling[:, 1:] = found.scores[:, 1:] <= found.scores[:, :-1]
    # A comparison with NaN is False.
    checks: tuple[tuple[str, Any, str], ...] = (
        (
            "counts",
            np.logical_and(found.counts >= 0, found.counts <= found.about.count),
            f"a count outside 0 to {filled.shape[1]}: {_AGAIN}",
        ),
        ("boxes", ~np.isnan(found.boxes).any((1, 2)), "a box that holds NaN"),
        (
            "boxes",
            ((found.boxes >= 0) & (found.boxes <= 1) | ~filled[:, :, None]).all((1, 2)),
            "a box outside [0, 1]: give fractions of the picture, x0, y0, x1, y1",
        ),
        (
            "boxes",
            ((high >= low) | ~filled[:, :, None]).all((1, 2)),
            "a box whose x1 or y1 is below its x0 or y0: give x0, y0, x1, y1",
        ),
        ("scores", ((found.scores >= 0) & (found.scores <= 1) | ~filled).all(1), "a score outside [0, 1], or NaN"),
        ("scores", (falling | ~filled).all(1), "scores that rise: put the highest first"),
    )
    for name, good, fault in checks:
        _refuse_first(found, name, good, fault)
    twice = np.flatnonzero(np.diff(np.sort(found.image_ids)) == 0)
    if len(twice):
        image = np.sort(found.image_ids)[twice[0]]
        raise RequestError(f"{found.folder / 'image_ids.npy'} has image {image} twice: give each image one row")


def _refuse_first(found: RegionFeatures, name: str, good: NDArray[np.bool_], fault: str) -> None:
    if not good.all():
        image = found.image_ids[int(np.argmin(good))]
        mend = "" if ": " in fault else f": {_AGAIN}"
        raise RequestError(f"{found.folder / f'{name}.npy'} has for image {image} {fault}{mend}")


def check_features(found: RegionFeatures) -> None:
    """Read every feature. Raises RequestError for the first picture that has NaN or infinity."""
    for start in range(0, len(found.image_ids), BLOCK):
        rows = slice(start, start + BLOCK)
        good = np.ones(len(found.image_ids), bool)
        good[rows] = np.isfinite(found.features[rows]).all((1, 2))
        _refuse_first(found, "features", good, "a feature that is NaN or infinite")


def digest_regions(folder: Path) -> str:
    """16 hex digits of every file of the regions in a folder."""
    return short_hash({name: file_sha256(folder / name) for name in (ABOUT, *(f"{array}.npy" for array in ARRAYS))})


def check_detector(found: RegionFeatures, digest: str) -> None:
    """RequestError where the regions were found by another detector than the one of that digest."""
    if found.about.digest != digest:
        raise RequestError(
            f"{found.folder / ABOUT} says that the regions were found by {found.about.detector} with the digest "
            f"{found.about.digest[:12]}, and the detector in use has {digest[:12]}: use the same weights and settings "
            "for both, or have the regions found anew without regions.folder"
        )


class Picturing(Protocol):
    """Pictures whose centre can be seen, such as `orchestration.data.batches.CaptionedPictures`."""

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """(N,)"""
        ...

    def pixels(self, items: NDArray[np.int64]) -> Tensor:
        """uint8 (B,3,H,W): the centre of each."""
        ...


OpenPictures = Callable[[], Picturing]


def write_regions(
    folder: Path,
    open_pictures: OpenPictures,
    given: Given,
    pictures_digest: str,
    progress: Progress,
    workers: int | None = 1,
    device: str = "cpu",
) -> None:
    """Find the regions of every picture into `folder`; repeated after a kill, it goes on.

    open_pictures, given: open the pictures and the detector, in any process; pictures_digest: of the data; workers: as
    `map_blocks`' says. Raises RequestError for weights that give no numbers
    and as the detector does, RunError for what fails in another process.
    """
    for left_over in folder.glob(".*.npy-*"):  # of a killed process
        left_over.unlink()
    blocks = folder / "blocks"
    pictures, net = open_pictures(), open_region_net(given).to(device)
    elsewhere = partial(_open_worker, open_pictures, given, net.digest, device)
    files = map_blocks(
        blocks,
        len(pictures.image_ids),
        BLOCK,
        elsewhere,
        progress,
        workers,
        "regions",
        lambda: _Finding(pictures, net, device),
        net.digest,
    )
    for name in ("boxes", "features", "scores", "counts"):
        join_blocks(files, name, folder / f"{name}.npy")
    np.save(folder / "image_ids.npy", pictures.image_ids)
    found_by, count, names = net.detector.name, net.settings.count, list(net.detector.names)
    about = About(FORMAT, found_by, net.digest, net.feature_dim, count, pictures_digest, names)
    write_atomically(folder / ABOUT, msgspec.json.format(msgspec.json.encode(about)))
    shutil.rmtree(blocks)


class _Finding:
    """Pictures of a block to their regions."""

    def __init__(self, pictures: Picturing, net: RegionNet, device: str) -> None:
        self.pictures, self.net, self.device = pictures, net, torch.device(device)

    @torch.inference_mode()
    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        found = []
        for start in range(items.start, items.stop, FIND_BATCH):
            places = np.arange(start, min(start + FIND_BATCH, items.stop), dtype=np.int64)
            pixels = self.pictures.pixels(places).to(self.device)
            # [-1, 1] whatever the transform's own values are: detectors are trained on plain pictures.
            found.append(self.net(pixels.float().div_(127.5).sub_(1)))
        regions = {
            name: torch.cat([getattr(one, name) for one in found]).cpu().numpy()
            for name in ("boxes", "features", "scores", "counts")
        }
        arrays = {name: array.astype(ARRAYS[name][0]) for name, array in regions.items()}
        if not np.isfinite(arrays["features"]).all():
            raise RequestError(
                f"the detector's features of pictures {items.start} to {items.stop - 1} are NaN, infinite or beyond "
                "half precision: check its weights, or pool the features of another net with regions.trunk"
            )
        return arrays


def _open_worker(open_pictures: OpenPictures, given: Given, digest: str, device: str) -> _Finding:
    """In another process, where the weights may be other ones."""
    net = open_region_net(given).to(device)
    if net.digest != digest:
        raise RequestError(
            f"the detector on {socket.gethostname()} is not the one that the command was started with: put the same "
            "weights on every machine"
        )
    return _Finding(open_pictures(), net, device)
