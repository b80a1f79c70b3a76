"""Golden numbers: `.npz` files with in.*, w.*, out.*, grad.* and a JSON `meta`, in $T2I_GOLDEN or ../shared/golden."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Golden:
    """One file; tensors by group, float32 as stored."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Every tensor under `prefix.`, by the rest of its name."""
        return {
            key.removeprefix(prefix + "."): torch.from_numpy(value.copy())
            for key, value in self.arrays.items()
            if key.startswith(prefix + ".")
        }

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]).copy())

    def check(self, key: str, ours: Tensor) -> None:
        """`ours` equals the stored value within the tolerance stored beside it."""
        theirs = self[key]
        columns, values = self.meta["tolerance"]["columns"], self.meta["tolerance"]["values"]
        atol = values[key][columns.index("suggested_atol")] if key in values else 1e-6
        difference = (ours.detach().reshape(theirs.shape) - theirs).abs().max().item()
        assert difference <= atol, f"{key}: differs by {difference:.3g}, allowed {atol:.3g}"


Load = Callable[[str], Golden]


@pytest.fixture
def golden() -> Load:
    """Loads NAME.npz, or skips when the folder of golden numbers is not there."""
    folder = Path(os.environ.get("T2I_GOLDEN", REPOSITORY.parent / "shared" / "golden"))

    def load(name: str) -> Golden:
        path = folder / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no golden numbers at {path}: set T2I_GOLDEN to their folder")
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key != "meta"}
            return Golden(arrays, json.loads(str(file["meta"])))

    return load
