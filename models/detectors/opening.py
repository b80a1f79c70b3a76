"""From settings to a detector."""

from pathlib import Path

import torch

from models.detectors.coco import NAMES
from models.detectors.contract import Detector, DetectorSettings, file_digest
from models.encoders.image import WeightsMissing


def open_detector(settings: DetectorSettings, device: torch.device) -> Detector:
    """The detector with its weights, frozen, on `device`. Raises WeightsMissing in a sentence that says how to mend."""
    path = Path(settings.weights).expanduser()
    if settings.kind == "transformers":
        if not path.is_dir():
            raise WeightsMissing(f"there is no folder {path} of a detector: give one that transformers saved")
        from models.detectors.transformers_detector import TransformersDetector

        return TransformersDetector(path, settings, device)
    if not path.is_file():
        raise WeightsMissing(f"no weights of a detector ({settings.kind}) at {path}: give the path of their file")
    names = read_names(Path(settings.names).expanduser()) if settings.names is not None else NAMES
    try:
        digest = file_digest(path)
        if settings.kind == "yolov3":
            from models.detectors.darknet_weights import load_yolov3
            from models.detectors.yolov3 import YOLOv3Detector

            return YOLOv3Detector(load_yolov3(path, len(names), settings.width), settings, names, digest, device)
        from models.detectors.onnx_fastestdet import FastestDetDetector

        return FastestDetDetector(path, settings, names, digest, device)
    except OSError as error:
        raise WeightsMissing(f"{path} cannot be read ({error.strerror}): check the file and its rights") from error


def read_names(path: Path) -> tuple[str, ...]:
    """Class names, one a line; blank lines at the end do not count. Raises WeightsMissing for any other text."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WeightsMissing(
            f"no class names at {path} ({error.strerror}): give a text file, one name a line"
        ) from error
    except UnicodeDecodeError as error:
        raise WeightsMissing(f"{path} is no text in UTF-8: give the class names as text, one a line") from error
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if not names:
        raise WeightsMissing(f"{path} names no class: write one name a line")
    for number, name in enumerate(names, 1):
        if not name:
            raise WeightsMissing(f"{path}, line {number} is blank: write one class name a line, in the net's order")
        if name in names[: number - 1]:
            raise WeightsMissing(f"{path}, line {number} names {name!r} again: give every class its own name")
    return names
