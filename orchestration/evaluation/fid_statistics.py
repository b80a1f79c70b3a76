"""Statistics files: mean and covariance of real pictures' features, as pytorch-fid publishes them, or with their net.

An .npz holds `mu` (F,) and `sigma` (F,F), the names that pytorch-fid and TTUR use; what is written here adds `net`,
`weights` and `count`, which those readers leave alone. A .safetensors file holds `mu` and `sigma`, the rest as
metadata.
"""

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import safe_open as open_safetensors
from safetensors.numpy import save as safetensors_bytes

from orchestration.errors import RequestError
from orchestration.stages import write_atomically

# Published covariances are float32 at worst: an eigenvalue of 0 may come out this much of the largest below 0.
ROUNDING = 1e-4


@dataclass(frozen=True, slots=True)
class Statistics:
    """mean: (F,) and covariance: (F,F), float64. count: real pictures, 0 where a file does not say; net: the view's
    name, weights: its digest, source: the file, digest: sha256 of its bytes; each empty where not known."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int = 0
    net: str = ""
    weights: str = ""
    source: str = ""
    digest: str = ""

    def check_net(self, net: str, weights: str = "") -> None:
        """Raises RequestError where they are of another view, or of other weights, as far as both are known."""
        if self.net and self.net != net:
            raise RequestError(f"{self.source} holds statistics of {self.net}, not of {net}: give a file of {net}")
        if self.weights and weights and self.weights != weights:
            raise RequestError(
                f"{self.source} holds statistics by other weights of {net} ({self.weights[:12]} and not "
                f"{weights[:12]}): give a file made with the same weights"
            )

    def check_width(self, width: int) -> None:
        """Raises RequestError where features have another width."""
        if width != len(self.mean):
            raise RequestError(
                f"{self.source} holds statistics of {len(self.mean)} features, and the pictures drawn have {width}: "
                "give a file of the same net"
            )


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write an .npz or a .safetensors file, whole or not at all. Raises RequestError for another suffix."""
    arrays: dict[str, Any] = {"mu": statistics.mean, "sigma": statistics.covariance}
    said = {"net": statistics.net, "weights": statistics.weights, "count": str(statistics.count)}
    if _suffix(path) == ".npz":
        content = io.BytesIO()
        more = {name: np.array(value) for name, value in said.items()}
        np.savez(content, **(arrays | more))
        write_atomically(path, content.getvalue())
    else:
        write_atomically(path, safetensors_bytes({k: np.ascontiguousarray(v) for k, v in arrays.items()}, said))


def load_statistics(path: Path, net: str, weights: str = "", width: int | None = None) -> Statistics:
    """Statistics for view `net` from a file of pytorch-fid, TTUR or `save_statistics`.

    weights: digest of the view; width: its number of features; both are held against the file where given. Raises
    RequestError for a file that is none, of another net, other weights or another width.
    """
    suffix = _suffix(path)
    try:
        content = path.read_bytes()
        mean, covariance, said = _of_npz(content) if suffix == ".npz" else _of_safetensors(path)
        _check(mean, covariance)
        count = int(said.get("count", "0"))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        raise RequestError(
            f"{path} holds no statistics of features ({' '.join(str(error).split()).rstrip('.')}): give a file with mu "
            "(F) and sigma (F,F)"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    found = Statistics(mean, covariance, count, said.get("net", ""), said.get("weights", ""), str(path), digest)
    found.check_net(net, weights)
    if width is not None:
        found.check_width(width)
    return found


def _suffix(path: Path) -> str:
    if path.suffix not in (".npz", ".safetensors"):
        raise RequestError(f"statistics are kept as .npz or .safetensors, not as {path.name}: give such a file")
    return path.suffix


def _of_npz(content: bytes) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, str]]:
    # Of anything else numpy says that it might be loaded by running it.
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError("it is no archive of arrays")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        said: dict[str, str] = {name: str(file[name]) for name in ("net", "weights", "count") if name in file.files}
        return file["mu"].astype(np.float64), file["sigma"].astype(np.float64), said


def _of_safetensors(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, str]]:
    with open_safetensors(path, "numpy") as file:
        mean, covariance = (file.get_tensor(name).astype(np.float64) for name in ("mu", "sigma"))
        return mean, covariance, dict(file.metadata() or {})


def _check(mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> None:
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mu is {mean.shape} and sigma {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("not all of its numbers are finite")
    allowed = ROUNDING * np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > allowed or np.linalg.eigvalsh(covariance)[0] < -allowed:
        raise ValueError("sigma is no covariance")
