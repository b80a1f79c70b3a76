"""Inception-v3 with its classifier, in the three forms that published scores come from. Key names are torchvision's.

They differ in pooling alone. TensorFlow's average pools leave the padding out, torchvision's count it as zeros; and the
graph of December 2015, which FID is defined on (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017),
takes maxima in its last block where all others take means.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.encoders.inception import POOLED_DIM, Conv, InceptionV3, Pool, smooth

Form = Literal["2015", "keras", "torchvision"]
SIDE = 299
CLASSES_2015, CLASSES_IMAGENET = 1008, 1000


def smooth_inside(x: Tensor) -> Tensor:
    """3x3 means at stride 1 over what lies inside the map, as TensorFlow's padding "SAME" means."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def greatest(x: Tensor) -> Tensor:
    """3x3 maxima at stride 1."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


POOLS: dict[Form, tuple[Pool, Pool]] = {
    "2015": (smooth_inside, greatest),
    "keras": (smooth_inside, smooth_inside),
    "torchvision": (smooth, smooth),
}
"""Pools of all blocks but the last, and of the last."""


@dataclass(frozen=True, slots=True)
class Classified:
    """pooled: (B,2048); unbiased: (B,C) logits before the classifier's bias is added; logits: (B,C)."""

    pooled: Tensor
    unbiased: Tensor
    logits: Tensor


class InceptionClassifier(InceptionV3):
    """Pixels (B,3,299,299) in [-1, 1] to features and class logits.

    "2015": the graph inception-2015-12-05 in the names of its two converted files, pytorch-fid's
    `pt_inception-2015-12-05-6726825d.pth` and torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`: 566 tensors
    each, a classifier `fc` of 1008 and no auxiliary head. "keras": ImageNet's Inception-v3 of Keras, and of TF-slim.
    "torchvision": torchvision's `inception_v3`.
    """

    def __init__(self, form: Form, classes: int) -> None:
        super().__init__(*POOLS[form])
        self.fc = nn.Linear(POOLED_DIM, classes)

    def classify(self, pixels: Tensor) -> Classified:
        """The original Inception Score (Salimans et al., "Improved Techniques for Training GANs", 2016) is of the
        logits without bias: its code multiplies by the classifier's matrix alone."""
        pooled = self(pixels)[1]
        unbiased = F.linear(pooled, self.fc.weight)
        return Classified(pooled, unbiased, unbiased + self.fc.bias)


_KERAS_NAME = re.compile(r"(?:^|/)(conv2d|batch_normalization|predictions)(?:_(\d+))?/(?:.*/)?(\w+)(?::0)?$")
_KERAS_FIELDS = {
    ("conv2d", "kernel"): "conv.weight",
    ("batch_normalization", "beta"): "bn.bias",
    ("batch_normalization", "moving_mean"): "bn.running_mean",
    ("batch_normalization", "moving_variance"): "bn.running_var",
}


def from_keras(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Arrays of Keras's Inception-v3, by their names in its .h5 file, as a state dict of the form "keras".

    Keras numbers its 94 convolutions, and the batch norm behind each, in the order in which torchvision lists them.
    Kernels (h,w,in,out) become (out,in,h,w); batch norms have no scale there, so it is 1 here. Raises ValueError, with
    the end of a sentence, for names of another net.
    """
    convolutions = [name for name, module in _on_meta().named_modules() if isinstance(module, Conv)]
    numbered: dict[str, dict[int, dict[str, Tensor]]] = {"conv2d": {}, "batch_normalization": {}}
    state: dict[str, Tensor] = {}
    for name, array in arrays.items():
        found = _KERAS_NAME.search(name)
        if found is None:
            continue
        layer, number, what = found.groups()
        values = np.array(array, np.float32)
        if layer == "predictions":
            state["fc.weight" if what == "kernel" else "fc.bias"] = torch.from_numpy(values.T.copy())
        elif (layer, what) in _KERAS_FIELDS:
            tensor = torch.from_numpy(values.transpose(3, 2, 0, 1).copy() if what == "kernel" else values)
            numbered[layer].setdefault(int(number or 0), {})[_KERAS_FIELDS[layer, what]] = tensor
    for layer, fields in numbered.items():
        if len(fields) != len(convolutions):
            raise ValueError(f"it has {len(fields)} layers {layer} where Inception-v3 has {len(convolutions)}")
        for place, number in enumerate(sorted(fields)):
            state |= {f"{convolutions[place]}.{key}": tensor for key, tensor in fields[number].items()}
    for name in convolutions:
        state[f"{name}.bn.weight"] = torch.ones(state[f"{name}.conv.weight"].shape[0])
    return state


def _on_meta() -> InceptionClassifier:
    with torch.device("meta"):
        return InceptionClassifier("keras", CLASSES_IMAGENET)
