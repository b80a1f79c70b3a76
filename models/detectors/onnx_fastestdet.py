"""FastestDet (github.com/dog-qiuqiu/FastestDet), a small one-scale detector, from its exported .onnx file."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.detectors.boxes import corners, selected
from models.detectors.contract import Detections, DetectorSettings, settings_digest
from models.detectors.framing import Frame, check_pictures
from models.encoders.image import WeightsMissing

STRIDE = 16
# Exponents of objectness and class score in the released decoding.
OBJECTNESS_POWER, CLASS_POWER = 0.6, 0.4


def decode(numbers: Tensor) -> Tensor:
    """The net's output (5+C,h,w) to rows (h*w,5+C): centre x, centre y, width, height in pixels of the input,
    objectness and class scores in [0, 1].

    Channels are objectness, four numbers of the box, classes after softmax. The centre is tanh plus the cell's corner,
    the size a sigmoid of the whole input (the released decoding).
    """
    height, width = numbers.shape[1:]
    rows = numbers.permute(1, 2, 0)
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = (rows[..., 1:3].tanh() + torch.stack([xs, ys], -1)) * STRIDE
    size = rows[..., 3:5].sigmoid() * STRIDE * torch.tensor([width, height])
    return torch.cat([centre, size, rows[..., :1], rows[..., 5:]], -1).flatten(0, 1)


class FastestDetDetector:
    """An exported FastestDet as a `Detector`. Raises WeightsMissing for a missing runtime or another net's file.

    A score is objectness^0.6 times class score^0.4. One picture at a time: the file's batch is fixed at 1.
    """

    def __init__(
        self, path: Path, settings: DetectorSettings, names: tuple[str, ...], weights: str, device: torch.device
    ) -> None:
        self.settings, self.names = settings, names
        self.frame = Frame(settings.side, settings.fit)
        self.name = f"fastestdet-{settings.side}"
        self.digest = settings_digest(settings, names, weights)
        self.session = _open(path, device)
        self.input: str = self.session.get_inputs()[0].name
        self._check_shapes(path)

    def detect(self, pictures: Tensor) -> list[Detections]:
        """As `Detector.detect`."""
        check_pictures(pictures)
        height, width = pictures.shape[-2:]
        found = []
        for picture in pictures.cpu():
            pixels = self.frame.enter(picture[None]).flip(1)  # the net was trained on BGR
            (numbers,) = self.session.run(None, {self.input: np.ascontiguousarray(pixels.numpy())})
            found.append(self._found(decode(torch.from_numpy(numbers[0])), height, width))
        return found

    def _found(self, rows: Tensor, height: int, width: int) -> Detections:
        if not rows.isfinite().all():
            raise WeightsMissing(f"{self.name} finds boxes that are no numbers: its weights are damaged, give others")
        best, classes = rows[:, 5:].max(1)
        scores = rows[:, 4] ** OBJECTNESS_POWER * best**CLASS_POWER
        found = Detections(corners(rows[:, :4]), scores, classes)[rows[:, 4] >= self.settings.objectness]
        found = selected(found, self.settings)
        return Detections(self.frame.leave(found.boxes, height, width), found.scores, found.classes)

    def _check_shapes(self, path: Path) -> None:
        side, cells = self.frame.side, self.frame.side // STRIDE
        inputs = [list(value.shape) for value in self.session.get_inputs()]
        outputs = [list(value.shape) for value in self.session.get_outputs()]
        if inputs == [[1, 3, side, side]] and len(outputs) == 1 and outputs[0][2:] == [cells, cells]:
            classes = outputs[0][1] - 5
            if classes != len(self.names):
                raise WeightsMissing(
                    f"{path} finds {classes} classes, but {len(self.names)} are named: give the file of its class names"
                )
            return
        raise WeightsMissing(
            f"{path} takes {inputs} and gives {outputs}, FastestDet takes one of [1, 3, {side}, {side}] and gives one "
            f"of [1, 5 + classes, {cells}, {cells}]: give a FastestDet exported at {side} pixels"
        )


def _open(path: Path, device: torch.device) -> Any:
    if find_spec("onnxruntime") is None:
        raise WeightsMissing("onnx-fastestdet needs onnxruntime, which is not installed: pip install onnxruntime")
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    try:
        # From bytes, so that the file cannot have other files read.
        return runtime.InferenceSession(path.read_bytes(), options, providers=providers)
    except Exception as error:  # the runtime's own errors share no base class
        raise WeightsMissing(f"{path} is no whole .onnx file ({type(error).__name__}): fetch it again") from error
