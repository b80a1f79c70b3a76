"""The patch bank: every object of the training pictures, cut out by its box, with what a graph encoder says of it.

A folder holds bank.json (`About`) and six arrays: crops (M,3,S,S) uint8; classes (M,) int64, from 1; image_ids (M,)
int64; boxes (M,4) float32, x0, y0, x1, y1 in [0, 1] of the picture; features (M,D) float32; starts (N+1,) int64, and
picture i of the split owns the patches starts[i] to starts[i+1], in the order of its objects.
RetrieveGAN (Tseng et al., 2020) section 3.2: patches are crops by ground-truth boxes, and the features that find an
object's candidates are those of sg2im's graph convolution network.
"""

import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from orchestration.data.array_files import map_arrays, read_about, require_parts
from orchestration.data.patch_search import ByClass
from orchestration.errors import RequestError
from orchestration.mapping import map_blocks, read_block
from orchestration.stages import Progress, hidden_sibling, short_hash, write_atomically

VERSION = 1
FORMAT = 1
ABOUT = "bank.json"
BLOCK = 256  # pictures between two files
CUT_BATCH = 32  # pictures in memory
ARRAYS: Mapping[str, tuple[str, str]] = {
    "crops": ("uint8", "M,3,S,S"),
    "classes": ("int64", "M"),
    "image_ids": ("int64", "M"),
    "boxes": ("float32", "M,4"),
    "features": ("float32", "M,D"),
    "starts": ("int64", "N+1"),
}
"""Type and shape of each array."""
_OWNED = "owned"  # of a block: how many patches each of its pictures owns
_GROWING = ("crops", "classes", "image_ids", "boxes", "features")
_EDGE = 1e-3  # px: boxes are float32, and an edge so near a pixel's is on it
_AGAIN = "delete that folder and repeat what wrote it"


@dataclass(frozen=True, slots=True, eq=False)
class PictureObjects:
    """The objects of B pictures, one picture's after the other's.

    image_ids: (B,) int64; starts: (B+1,) int64, picture b owns objects starts[b] to starts[b+1]; classes: (M,) int64,
    from 1; boxes: (M,4) float32, x0, y0, x1, y1 in [0, 1] of the picture, which they may reach beyond.
    """

    image_ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]

    @property
    def owners(self) -> NDArray[np.int64]:
        """(M,) the image of each object."""
        return np.repeat(self.image_ids, np.diff(self.starts))


class ObjectSource(Protocol):
    """A split's objects as a graph encoder describes them; what is said of a picture does not depend on the others."""

    @property
    def encoder(self) -> str:
        """Digest of the graph encoder's weights and settings."""
        ...

    def objects(self, items: NDArray[np.int64]) -> PictureObjects:
        """Of pictures at these places (B,) in the split."""
        ...

    def features(self, items: NDArray[np.int64]) -> Tensor:
        """float (M,D): of the same objects in the same order; (0,D) where there are none."""
        ...


class PictureSource(ObjectSource, Protocol):
    """The same with pictures to cut patches from."""

    def pixels(self, items: NDArray[np.int64]) -> Tensor:
        """uint8 (B,3,H,W)"""
        ...


OpenObjects = Callable[[], ObjectSource]
OpenPictures = Callable[[], PictureSource]
"""Opens a source in any process: a class or function of a module, or a `partial` of one."""


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What bank.json says.

    data: digest of the pictures' data; encoder: digest of the graph encoder; size: S; classes: names, class c's at
    c - 1; feature_dim: D; count: M; pictures: N; sha256: of each array's file.
    """

    format: int
    data: str
    encoder: str
    size: int
    classes: list[str]
    feature_dim: int
    count: int
    pictures: int
    sha256: dict[str, str]


@dataclass(frozen=True, eq=False)
class PatchBank:
    """Patches, crops and features memory-mapped: arrays as the module says."""

    folder: Path
    about: About
    crops: NDArray[np.uint8] = field(repr=False)
    classes: NDArray[np.int64] = field(repr=False)
    image_ids: NDArray[np.int64] = field(repr=False)
    boxes: NDArray[np.float32] = field(repr=False)
    features: NDArray[np.float32] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return self.about.count

    @property
    def digest(self) -> str:
        """16 hex digits of all that the bank holds."""
        return short_hash(msgspec.to_builtins(self.about))

    @cached_property
    def _by_class(self) -> "ByClass":
        return ByClass(self.classes)

    def of_class(self, number: int) -> NDArray[np.int64]:
        """The places of the patches of a class, ascending; none where the bank has none."""
        return self._by_class.places(number)

    def take(self, places: NDArray[np.int64]) -> Tensor:
        """uint8 (...,3,S,S): the patches at places (...) of the bank. Raises RequestError for a place beyond it."""
        if places.size and not (places.min() >= 0 and places.max() < len(self)):
            beyond = places.max() if places.max() >= len(self) else places.min()
            raise RequestError(
                f"{self.folder} has the patches 0 to {len(self) - 1}, and patch {beyond} is asked for: find candidates "
                "in this bank"
            )
        return torch.from_numpy(self.crops[places])

    def check_of(self, data: str | None = None, encoder: str | None = None) -> None:
        """RequestError where the bank is of other data or of another graph encoder than these digests say."""
        said = f"{self.folder / ABOUT} says that the patches"
        if data is not None and data != self.about.data:
            raise RequestError(
                f"{said} were cut from the data {self.about.data[:12]}, and these are {data[:12]}: build a bank "
                "of this data"
            )
        if encoder is not None and encoder != self.about.encoder:
            raise RequestError(
                f"{said} were described by the graph encoder {self.about.encoder[:12]}, and the one in use is "
                f"{encoder[:12]}: build the bank with this encoder, or use the one that it was built with"
            )


def open_bank(folder: Path) -> PatchBank:
    """Map the bank in a folder. Raises RequestError for all that is not as the module says, but NaN in features."""
    about = _read_about(folder / ABOUT)
    sizes = {"M": about.count, "S": about.size, "D": about.feature_dim, "N+1": about.pictures + 1}
    arrays = map_arrays(folder, ARRAYS, sizes, ABOUT, _AGAIN)
    arrays |= {name: np.array(arrays[name]) for name in ("classes", "image_ids", "starts")}
    starts, classes = arrays["starts"], arrays["classes"]
    require_parts(folder / "starts.npy", starts, about.count, "patches", _AGAIN)
    if not (classes.min() >= 1 and classes.max() <= len(about.classes)):
        raise RequestError(
            f"{folder / 'classes.npy'} has classes outside 1 to {len(about.classes)}, of which {ABOUT} has names: "
            f"{_AGAIN}"
        )
    return PatchBank(folder, about, **arrays)


def _read_about(file: Path) -> About:
    about = read_about(file, About, FORMAT, "a patch bank", _AGAIN)
    if min(about.size, about.feature_dim, about.count, about.pictures) < 1:
        raise RequestError(f"{file} has a size, feature_dim, count or pictures below 1: {_AGAIN}")
    return about


def cut_patch(picture: Image.Image, box: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """(3,S,S): what a box shows of an RGB picture.

    box: (4,) as in `PictureObjects`. Its edges are moved outward to whole pixels and in to the picture's; at least one
    pixel is cut. Resized bilinearly with antialias. Raises ValueError for a box that shows nothing of the picture.
    """
    sides = np.array(picture.size, np.float64)
    low, high = box[:2] * sides, box[2:] * sides
    if not np.isfinite(box).all():
        raise ValueError("holds NaN or infinity")
    if (high < low).any():
        raise ValueError("has an x1 or y1 below its x0 or y0")
    if (high <= 0).any() or (low >= sides).any():
        raise ValueError("lies wholly outside the picture")
    first = np.floor(low + _EDGE).clip(0, sides - 1)
    last = np.maximum(np.ceil(high - _EDGE).clip(0, sides), first + 1)
    left, top, right, bottom = (int(edge) for edge in (*first, *last))
    cut = picture.crop((left, top, right, bottom)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(cut).transpose(2, 0, 1)


class PatchCutter:
    """Pictures of a block to their patches."""

    def __init__(self, source: PictureSource, size: int, classes: int) -> None:
        """size: S; classes: how many have names."""
        self.source, self.size, self.classes = source, size, classes

    def __call__(self, items: range) -> dict[str, NDArray[Any]]:
        parts = [
            self._cut(np.arange(start, min(start + CUT_BATCH, items.stop), dtype=np.int64))
            for start in range(items.start, items.stop, CUT_BATCH)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _cut(self, items: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        found, pixels = self.source.objects(items), self.source.pixels(items)
        strange = np.flatnonzero((found.classes < 1) | (found.classes > self.classes))
        if len(strange):
            raise RequestError(
                f"image {found.owners[strange[0]]} has an object of class {found.classes[strange[0]]}, and only the "
                f"classes 1 to {self.classes} have names: give the names of all classes"
            )
        features = described(self.source, items, found)
        crops = np.empty((len(found.classes), 3, self.size, self.size), np.uint8)
        for place in range(len(items)):
            picture = Image.fromarray(pixels[place].permute(1, 2, 0).contiguous().numpy())
            for row in range(found.starts[place], found.starts[place + 1]):
                try:
                    crops[row] = cut_patch(picture, found.boxes[row], self.size)
                except ValueError as error:
                    raise RequestError(
                        f"image {found.image_ids[place]} has a box {found.boxes[row].tolist()} that {error}: mend the "
                        "box, or leave that object out"
                    ) from error
        return {
            "crops": crops,
            "classes": found.classes.astype(np.int64),
            "image_ids": found.owners.astype(np.int64),
            "boxes": found.boxes.astype(np.float32),
            "features": features,
            _OWNED: np.diff(found.starts),
        }


def described(source: ObjectSource, items: NDArray[np.int64], found: PictureObjects) -> NDArray[np.float32]:
    """(M,D): the features of the objects of these pictures. Raises RequestError for what is no such array."""
    features = source.features(items).detach().float().cpu().numpy()
    if features.ndim != 2 or len(features) != len(found.classes):
        raise RequestError(
            f"the graph encoder {source.encoder[:12]} gives features of the shape {features.shape} for "
            f"{len(found.classes)} objects: one row for each is needed"
        )
    broken = np.flatnonzero(~np.isfinite(features).all(1))
    if len(broken):
        raise RequestError(
            f"the graph encoder {source.encoder[:12]} gives NaN or infinity for an object of image "
            f"{found.owners[broken[0]]}: train it anew, with a lower learning rate"
        )
    return features


def write_bank(
    folder: Path,
    count: int,
    open_source: OpenPictures,
    data: str,
    classes: Sequence[str],
    size: int,
    progress: Progress,
    workers: int | None = 1,
) -> PatchBank:
    """Cut the patches of pictures 0 to count-1 of a split into `folder`; repeated after a kill, it goes on.

    open_source: opens the pictures and the graph encoder, in any process; data: digest of the split's data; classes:
    names, class c's at c - 1; size: S; workers: as `map_blocks`' says. A block is in memory at a time; on disk it takes
    twice the bank meanwhile. Raises RequestError for a box that shows nothing of its picture, for a class without a
    name, for features that are no numbers and for a split without objects, RunError for what fails in another process.
    """
    if size < 1:
        raise RequestError(f"patches of {size} px are asked for, and a side has 1 or more: give another size")
    for left_over in folder.glob(".*.npy-*"):  # of a killed process
        left_over.unlink()
    blocks, source = folder / "blocks", open_source()
    encoder = source.encoder
    identity = short_hash([VERSION, data, encoder, size, list(classes)])
    elsewhere = partial(_open_cutter, open_source, encoder, size, len(classes))
    here = partial(PatchCutter, source, size, len(classes))
    files = map_blocks(blocks, count, BLOCK, elsewhere, progress, workers, "patches", here, identity)
    shapes = _joined_shapes(files)
    if not shapes or shapes["classes"][0] == 0:
        raise RequestError(f"none of the {count} pictures has an object, so there is nothing to cut: choose other data")
    sha256 = _join(files, shapes, folder)
    patches, width = shapes["features"]
    about = About(FORMAT, data, encoder, size, list(classes), width, patches, count, sha256)
    write_atomically(folder / ABOUT, msgspec.json.format(msgspec.json.encode(about)))
    shutil.rmtree(blocks)
    return open_bank(folder)


def _open_cutter(open_source: OpenPictures, encoder: str, size: int, classes: int) -> PatchCutter:
    """In another process, where the weights may be other ones."""
    source = open_source()
    check_same_encoder(source, encoder)
    return PatchCutter(source, size, classes)


def check_same_encoder(source: ObjectSource, encoder: str) -> None:
    """RequestError where a source that this machine opened has another graph encoder than the command's."""
    if source.encoder != encoder:
        raise RequestError(
            f"the graph encoder on {socket.gethostname()} is not the one that the command was started with: put the "
            "same weights on every machine"
        )


def _joined_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Of each array, all blocks together. Raises RequestError where blocks are of different widths."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, "numpy") as opened:
            found = {name: tuple(opened.get_slice(name).get_shape()) for name in _GROWING}
        for name, (rows, *rest) in found.items():
            before, *wanted = shapes.get(name, (0, *rest))
            if rest != wanted:
                raise RequestError(
                    f"block {file} has {name} of the shape {tuple(rest)} a patch, and the blocks before it "
                    f"{tuple(wanted)}: one graph encoder gives all of them the same width"
                )
            shapes[name] = (before + rows, *rest)
    return shapes


def _join(files: Sequence[Path], shapes: Mapping[str, tuple[int, ...]], folder: Path) -> dict[str, str]:
    """Write every array and return the sha256 of each file.

    `mapping.join_blocks` reads every block anew for each array, and these blocks are large.
    """
    owned = []
    with ExitStack() as stack:
        columns = {
            name: stack.enter_context(_growing(folder / f"{name}.npy", ARRAYS[name][0], shapes[name]))
            for name in _GROWING
        }
        for file in files:
            arrays = read_block(file)
            owned.append(arrays[_OWNED])
            for name, column in columns.items():
                column.append(arrays[name])
        with _growing(folder / "starts.npy", "int64", (sum(map(len, owned)) + 1,)) as starts:
            starts.append(np.concatenate([[0], *owned]).cumsum())
    return {name: column.digest.hexdigest() for name, column in (*columns.items(), ("starts", starts))}


class _Column:
    """An .npy file that gets some rows at a time."""

    def __init__(self, output: Any, dtype: str, shape: tuple[int, ...]) -> None:
        self.output, self.dtype, self.digest = output, np.dtype(dtype), hashlib.sha256()
        np.lib.format.write_array_header_1_0(self, {"descr": self.dtype.str, "fortran_order": False, "shape": shape})

    def append(self, rows: NDArray[Any]) -> None:
        self.write(np.ascontiguousarray(rows, self.dtype).data)

    def write(self, content: Any) -> None:
        self.output.write(content)
        self.digest.update(content)


@contextmanager
def _growing(file: Path, dtype: str, shape: tuple[int, ...]) -> Iterator[_Column]:
    """The file is there once it is whole."""
    temporary = hidden_sibling(file)
    try:
        with temporary.open("xb") as output:
            yield _Column(output, dtype, shape)
            output.flush()
            os.fsync(output.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
