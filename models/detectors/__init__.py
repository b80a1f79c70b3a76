"""Detectors of objects by option: `contract` is what they are, `opening` makes one of settings, `coco` its class names,
`boxes` suppression, `framing` the way of a picture into a net, and a module for each kind."""

from models.detectors.coco import as_coco80, to_coco80
from models.detectors.contract import Detections, Detector, DetectorSettings, RegionDetector
from models.detectors.opening import open_detector

__all__ = [
    "Detections",
    "Detector",
    "DetectorSettings",
    "RegionDetector",
    "as_coco80",
    "open_detector",
    "to_coco80",
]
